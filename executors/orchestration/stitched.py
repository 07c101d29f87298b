"""A plan as a program: the chosen kernels in order, as one straight-line Python function behind an ``nn.Module``.

Every kernel contributes its statements (``kernels.Fragment``); a tensor's variable is deleted after its last reader, so
its memory goes back to the allocator and the next kernel's result may take its place. Nothing else happens between
kernels. On a GPU the function is captured once into a CUDA graph and replayed (``graphed``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from executors.orchestration import inductor
from executors.orchestration.backends import BACKENDS, Payload
from executors.orchestration.eager import REINTERPRET
from executors.orchestration.kernels import Fragment, Operands, dtype_of
from planners.orchestration.candidates import Structure, candidate, structure
from planners.orchestration.graph import GraphIndex, PrimitiveGraph, Tensor
from planners.orchestration.graph import load as load_graph
from planners.orchestration.graph import save as save_graph
from planners.orchestration.problem import Kernel, Plan
from planners.orchestration.views import viewed
from workbench.errors import SpecError
from workbench.files import make_folder, write_atomic
from workbench.spec import dump, parse

__all__ = ["Chosen", "Stitched", "chosen_of", "load", "save", "stitch"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """One kernel of a program, ready to be emitted."""

    kernel: Kernel
    structure: Structure
    payload: Payload


def chosen_of(graph: PrimitiveGraph, plan: Plan, payload: Callable[[str, str], Payload]) -> list[Chosen]:
    """The plan's kernels with their structures and what their back-ends prepared.

    Args:
        graph: the program.
        plan: the kernels.
        payload: from (structure digest, back-end) to what was prepared, e.g. ``Store.artifact``.

    Raises:
        SpecError: the plan is of another graph.
    """
    index = GraphIndex(graph)
    numbers = {p.name: i for i, p in enumerate(graph.primitives)}
    found = []
    for kernel in plan.kernels:
        try:
            members = [numbers[name] for name in kernel.primitives]
        except KeyError as error:
            raise SpecError(f"the program has no primitive {error}", hint="the plan is of another program",
                            next_command="wb plan SPEC") from None
        made = structure(index, candidate(index, members, kernel.outputs))
        found.append(Chosen(kernel, made, payload(made.digest(), kernel.backend)))
    return found


class Stitched(torch.nn.Module):
    """A stitched program: ``forward`` takes the graph's inputs and returns its outputs (one tensor, or a tuple).

    ``source`` is the generated function's text, ``peak_bytes`` what the values and the outputs of all kernels take at
    most at a time, ``stored_bytes`` what all kernels store, ``launches`` how many library or generated calls they make.
    """

    def __init__(self, graph: PrimitiveGraph, kernels: Sequence[Chosen], weights: Mapping[str, torch.Tensor], *,
                 device: str = "cpu") -> None:
        super().__init__()
        self.graph, self.kernels, self.device = graph, list(kernels), device
        tensors = {t.name: t for t in graph.tensors}
        self.weights = {name: weights[name].detach().to(device) for name, t in tensors.items() if t.role == "weight"}
        fragments = [_fragment(c, self.weights, device) for c in kernels]
        self.launches = sum(f.launches for f in fragments)
        self._inputs = [tensors[name] for name in graph.inputs]
        self.source, space, self.lifetimes = _function(graph, kernels, fragments, timed=False)
        self._timed_source, timed_space, _ = _function(graph, kernels, fragments, timed=True)
        self._call = _compiled(self.source, space)
        self._timed = _compiled(self._timed_source, timed_space)
        self.stored_bytes = sum(tensors[name].nbytes for c in kernels for name in c.kernel.outputs)
        self.peak_bytes = _peak(self.lifetimes, tensors)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The program's outputs."""
        with torch.no_grad():
            return self._call(*map(_as_stored, inputs, self._inputs))

    def timed(self, clock: Callable[[], int], *inputs: torch.Tensor) -> tuple[Any, list[int]]:
        """The outputs, and the clock before the first kernel and after each."""
        marks: list[int] = []
        with torch.no_grad():
            made = self._timed(clock, marks, *map(_as_stored, inputs, self._inputs))
        return made, marks

    def graphed(self, *inputs: torch.Tensor) -> Callable[..., Any]:
        """The program captured into a CUDA graph: a call copies inputs into place, replays, and returns the outputs.

        The outputs live in the graph's memory and change with the next call.

        Raises:
            SpecError: the program is not on a GPU.
        """
        if self.device != "cuda":
            raise SpecError("only programs on a GPU are captured into CUDA graphs", allowed=["cuda"])
        static = [x.clone() for x in map(_as_stored, inputs, self._inputs)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(3):
                self._call(*static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            outputs = self._call(*static)

        def replay(*given: torch.Tensor) -> Any:
            for place, x in zip(static, given, strict=True):
                place.copy_(x)
            graph.replay()
            return outputs

        return replay


def stitch(graph: PrimitiveGraph, plan: Plan, weights: Mapping[str, torch.Tensor],
           payload: Callable[[str, str], Payload], *, device: str = "cpu") -> Stitched:
    """The program of ``plan``.

    Raises:
        SpecError: the plan is of another graph, or weights are missing.
        Cannot: a back-end has no kernel after all (another version of a library).
    """
    missing = [t.name for t in graph.tensors if t.role == "weight" and t.name not in weights]
    if missing:
        raise SpecError(f"no values for {len(missing)} weights, first {missing[0]!r}")
    return Stitched(graph, chosen_of(graph, plan, payload), weights, device=device)


def _as_stored(x: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """An input as the kernels expect it stored.

    Raises:
        SpecError: another shape or dtype.
    """
    if tuple(x.shape) != tuple(tensor.shape) or x.dtype != dtype_of(tensor.dtype):
        raise SpecError(f"{tensor.name} is {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}",
                        allowed=[f"{tuple(tensor.shape)} {tensor.dtype}"])
    strides = tensor.layout.strides
    if x.stride() == tuple(strides):
        return x
    return torch.empty_strided(tensor.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _fragment(chosen: Chosen, weights: Mapping[str, torch.Tensor], device: str) -> Fragment:
    fixed = {i: weights[name] for i, name in enumerate(chosen.kernel.inputs) if name in weights}
    with torch.no_grad():
        return BACKENDS[chosen.kernel.backend].fragment(chosen.structure, chosen.payload, Operands(fixed, device))


def _function(graph: PrimitiveGraph, kernels: Sequence[Chosen], fragments: Sequence[Fragment], *, timed: bool
              ) -> tuple[str, dict[str, Any], dict[str, tuple[int, int]]]:
    """The function's text, its globals, and for each stored tensor the first and last kernel it lives for."""
    variables = {t.name: f"v{i}" for i, t in enumerate(graph.tensors)}
    made = {name: at for at, c in enumerate(kernels) for name in reversed(c.kernel.outputs)}
    last = dict(made) | dict.fromkeys(graph.inputs, -1)
    for at, chosen in enumerate(kernels):
        last.update({name: at for name in chosen.kernel.inputs if name in last})
    last.update({o.tensor: len(kernels) for o in graph.outputs if o.tensor in last})
    space: dict[str, Any] = {"view": REINTERPRET}
    arguments = [variables[name] for name in graph.inputs]
    lines = ["mark(clock())"] if timed else []
    for at, (chosen, fragment) in enumerate(zip(kernels, fragments, strict=True)):
        prefix = f"k{at}_"
        space.update({prefix + name: value for name, value in fragment.objects.items()})
        lines += fragment.placed(prefix, [variables[n] for n in chosen.kernel.inputs],
                                 [variables[n] for n in chosen.kernel.outputs])
        gone = [variables[name] for name, end in last.items()
                if end == at and ((name in made and made[name] <= at) or name in graph.inputs)]
        if gone:
            lines.append(f"del {', '.join(gone)}")
        if timed:
            lines.append("mark(clock())")
    tensors = {t.name: t for t in graph.tensors}
    results = []
    for operand in graph.outputs:
        seen = viewed(tensors[operand.tensor].layout, operand.views)
        name = variables[operand.tensor]
        results.append(name if not operand.views
                       else f"view({name}, {tuple(seen.shape)}, {tuple(seen.strides)}, {seen.offset})")
    lines.append(f"return {results[0]}" if len(results) == 1 else f"return ({', '.join(results)})")
    head = ["clock", "marks", *arguments] if timed else arguments
    first = ["mark = marks.append"] if timed else []
    text = "\n    ".join([f"def program({', '.join(head)}):", *first, *lines]) + "\n"
    lives = {name: (at, last[name]) for name, at in made.items()}
    return text, space, lives


def _compiled(text: str, space: dict[str, Any]) -> Callable[..., Any]:
    exec(compile(text, "<stitched program>", "exec"), space)
    made: Callable[..., Any] = space["program"]
    return made


def _peak(lifetimes: Mapping[str, tuple[int, int]], tensors: Mapping[str, Tensor]) -> int:
    ends = max((end for _, end in lifetimes.values()), default=0)
    level = [0] * (ends + 2)
    for name, (begin, end) in lifetimes.items():
        level[begin] += tensors[name].nbytes
        level[end + 1] -= tensors[name].nbytes
    peak = held = 0
    for change in level:
        held += change
        peak = max(peak, held)
    return peak


def save(program: Stitched, plan: Plan, folder: Path | str, *, compiled: Path | None = None) -> Path:
    """Write the program into ``folder``: graph, plan, weights, what the back-ends prepared, and shared objects.

    Args:
        program: the stitched program.
        plan: its plan.
        folder: where to.
        compiled: Inductor's cache folder; the shared objects that this process has loaded from it are copied, so that
            loading compiles nothing on a machine of the same kind.
    """
    folder = make_folder(folder)
    save_graph(program.graph, folder / "graph.json")
    torch.save(program.weights, folder / "weights.pt")
    names = {}
    for chosen in program.kernels:
        if chosen.payload is not None:
            key = f"{chosen.kernel.structure[:32]}-{chosen.kernel.backend}"
            binary = isinstance(chosen.payload, bytes)
            names[key] = f"{key}.{'bin' if binary else 'txt'}"
            write_atomic(folder / "artifacts" / names[key], chosen.payload)
    if compiled is not None:
        for path in inductor.loaded_from(compiled):
            target = folder / "inductor" / path.relative_to(compiled)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    body = {"device": program.device, "torch": torch.__version__, "artifacts": names, "plan": dump(plan)}
    return write_atomic(folder / "program.json", json.dumps(body, indent=1))


def load(folder: Path | str) -> tuple[Stitched, Plan]:
    """The program saved in ``folder``, and its plan.

    Raises:
        SpecError: there is none.
    """
    folder = Path(folder)
    try:
        body = json.loads((folder / "program.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise SpecError(f"no stitched program in {folder}: {error}") from None
    plan = parse(Plan, body["plan"])
    names = body["artifacts"]

    def payload(digest: str, backend: str) -> Payload:
        name = names.get(f"{digest[:32]}-{backend}")
        if name is None:
            return None
        path = folder / "artifacts" / name
        return path.read_bytes() if path.suffix == ".bin" else path.read_text(encoding="utf-8")

    with inductor.cache_folder(folder / "inductor"):
        return stitch(load_graph(folder / "graph.json"), plan, torch.load(folder / "weights.pt", weights_only=True),
                      payload, device=body["device"]), plan

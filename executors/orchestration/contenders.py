"""What a stitched program is measured beside: the same captured program by other means, in the same process.

``eager`` runs the captured primitives (or the module they come from) call by call; ``torch.compile`` is the user's
way to Inductor, front end included; ``inductor`` is the whole graph handed to Inductor without that front end;
``onnxruntime`` is one session over the whole graph. All get the same inputs and weights and the same allocator.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from executors.orchestration import inductor, ortsession
from executors.orchestration.kernels import Cannot, Operands, function, graph_module, view_call
from planners.orchestration.candidates import Candidate, Structure, candidate, structure
from planners.orchestration.graph import GraphIndex, PrimitiveGraph

__all__ = ["Captured", "contender", "interleaved", "whole"]

Program = Callable[..., Any]
_TIMED = 2


class Captured(torch.nn.Module):
    """The captured primitives of a graph as a module of its inputs, call by call.

    Generated code without bookkeeping, which others may trace and compile; ``evaluate`` says what it has to compute.
    """

    def __init__(self, graph: PrimitiveGraph, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.kernel, self.structure = whole(graph)
        self.body = graph_module(self.structure)
        self.inputs = list(graph.inputs)
        for i, name in enumerate(self.kernel.inputs):
            if name in weights:
                self.register_buffer(f"weight{i}", weights[name])
        self.places = [(i, name) for i, name in enumerate(self.kernel.inputs)
                       if self.structure.inputs[i].role != "constant"]
        self.results = [(self.kernel.outputs.index(o.tensor), o.views) for o in graph.outputs]

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The program's outputs."""
        given = dict(zip(self.inputs, inputs, strict=True))
        operands = [given[name] if name in given else getattr(self, f"weight{i}") for i, name in self.places]
        made = self.body(*operands)
        results = []
        for at, views in self.results:
            x = made[at]
            for view in views:
                target, arguments = view_call(view)
                x = target(x, *arguments)
            results.append(x)
        return results[0] if len(results) == 1 else tuple(results)


def whole(graph: PrimitiveGraph) -> tuple[Candidate, Structure]:
    """The captured program as one kernel: all primitives that lead to an output."""
    index = GraphIndex(graph)
    made = {p.output: i for i, p in enumerate(graph.primitives) if p.rewrite is None}
    wanted = [o.tensor for o in graph.outputs if o.tensor in made]
    members: set[int] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        at = made.get(name)
        if at is not None and at not in members:
            members.add(at)
            waiting += [o.tensor for o in graph.primitives[at].inputs]
    kernel = candidate(index, sorted(members), list(dict.fromkeys(wanted)))
    return kernel, structure(index, kernel)


def contender(name: str, graph: PrimitiveGraph, weights: Mapping[str, torch.Tensor], *, device: str, threads: int,
              eager: torch.nn.Module | None = None) -> Program:
    """The program by other means: ``eager``, ``torch.compile``, ``inductor`` or ``onnxruntime``.

    ``eager`` is the module the graph was captured from, where there is one.

    Raises:
        Cannot: it is not installed, or it cannot run the program.
    """
    module = eager if eager is not None else Captured(graph, weights)
    if name == "eager":
        return module
    if name == "torch.compile":
        torch._dynamo.reset()
        return torch.compile(module)
    kernel, made = whole(graph)
    fixed = {i: weights[n] for i, n in enumerate(kernel.inputs) if n in weights}
    if name == "inductor":
        from executors.orchestration.backends import BACKENDS

        payload = BACKENDS["inductor"].prepare(made, device, threads)
        assert isinstance(payload, str)
        call = inductor.load(payload)
        rest = [None if v.role == "data" else fixed.get(i) for i, v in enumerate(made.inputs) if v.role != "constant"]
        slots = [i for i, v in enumerate(v for v in made.inputs if v.role != "constant") if v.role == "data"]
        names = [kernel.inputs[i] for i, v in enumerate(made.inputs) if v.role == "data"]
        turn = [graph.inputs.index(n) for n in names]

        def run(*inputs: torch.Tensor) -> Any:
            given = list(rest)
            for slot, at in zip(slots, turn, strict=True):
                given[slot] = inputs[at]
            return call(given)

        return run
    if name == "onnxruntime":
        session = function(ortsession.fragment(made, ortsession.prepare(made, device, threads), Operands(fixed)), made)
        turn = [graph.inputs.index(kernel.inputs[i]) for i, v in enumerate(made.inputs) if v.role == "data"]
        return lambda *inputs: session(*[inputs[at] for at in turn])
    raise Cannot(f"no contender is called {name!r}; there are eager, torch.compile, inductor, onnxruntime")


def interleaved(programs: Mapping[str, Program], inputs: Sequence[torch.Tensor], *, rounds: int, threads: int,
                device: str = "cpu") -> dict[str, dict[str, float]]:
    """Least and median seconds of every program, taken in turn for ``rounds`` rounds.

    A turn is one call that brings the program's own data back into the caches, and two that are timed: what a program
    takes when it runs again and again, as programs do.
    """
    clock = time.thread_time_ns if threads == 1 and device == "cpu" else time.perf_counter_ns
    wait = torch.cuda.synchronize if device == "cuda" else _nothing
    taken: dict[str, list[int]] = {name: [] for name in programs}
    with torch.no_grad():
        for program in programs.values():
            program(*inputs)
        names = list(programs)
        for turn in range(rounds):
            for name in names[turn % len(names):] + names[: turn % len(names)]:
                programs[name](*inputs)
                for _ in range(_TIMED):
                    wait()
                    began = clock()
                    programs[name](*inputs)
                    wait()
                    taken[name].append(clock() - began)
    return {name: {"min_s": min(t) * 1e-9, "median_s": statistics.median(t) * 1e-9} for name, t in taken.items()}


def _nothing() -> None:
    pass

"""Capture: any module or function of tensors as a primitive graph, with the values of its weights beside it.

    found = capture(module, inputs)          # Captured(graph, weights)
    python -m executors.orchestration.capture [NAME …] [--out FOLDER]            # the shipped graphs
    python -m executors.orchestration.capture package.module:factory --out FOLDER  # yours, weights beside the graph

make_fx traces the program on tensors without values, in-place steps are made functional, ``fission`` takes operators
apart, ``capture_graph`` writes primitives down, ``capture_passes`` puts them into one form, ``rewrites`` adds what
computes the same tensors in other ways. What the table of primitives does not know becomes an ``opaque`` primitive.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from executors.orchestration import capture_passes, rewrites
from executors.orchestration.capture_graph import primitive_graph
from executors.orchestration.fission import TABLE, UNSAFE_TABLE, Fission
from executors.orchestration.models import MODELS, build
from planners.orchestration.graph import PrimitiveGraph, load, save, validate
from planners.orchestration.load import graph_name
from workbench.errors import SpecError, WorkbenchError
from workbench.files import atomic_path, make_folder
from workbench.study import data_folder

__all__ = ["SHIPPED", "Captured", "capture", "captured_model", "load_captured", "named", "save_captured"]

SHIPPED: Mapping[str, int] = {
    "candy": 112, "efficientvit-b0": 256, "segformer-b0": 128, "yolox-nano": 160, "yolov4": 128, "gpt2-block": 128,
    "candy-norm": 112, "efficientvit-attention": 64, "segformer-attention": 64, "segformer-decode": 64,
    "yolox-csp": 52, "yolov4-csp": 52}
"""Models and blocks whose graphs are shipped (batch 1), and the resolution of each."""


@dataclass(frozen=True)
class Captured:
    """A program and its weights.

    Attributes:
        graph: the primitives; weights appear by name only.
        weights: values by tensor name, in the host's memory.
        calls: ATen calls of the trace the primitives come from.
    """

    graph: PrimitiveGraph
    weights: Mapping[str, torch.Tensor]
    calls: int = 0


def capture(program: Callable[..., Any], inputs: Sequence[torch.Tensor], *, name: str = "program",
            rules: Collection[str] = rewrites.DEFAULT, safe: bool = True,
            provenance: Mapping[str, str] | None = None) -> Captured:
    """The primitive graph of ``program`` for inputs of these shapes.

    Args:
        program: an ``nn.Module`` (in eval mode) or a function of tensors that returns tensors.
        inputs: example inputs; only shapes, strides and types matter.
        name: name of the graph.
        rules: rewrites that add alternatives, by name.
        safe: whether softmax subtracts its maximum; without it large logits overflow.
        provenance: where the program comes from.

    Raises:
        SpecError: control flow depends on values, an input or weight is written to, the result is no tensor, the
            module trains, or a rule is unknown.
    """
    unknown = [rule for rule in rules if rule not in rewrites.RULES]
    if unknown:
        raise SpecError(f"no rewrite is called {unknown[0]!r}", where="rules", allowed=rewrites.RULES)
    if isinstance(program, torch.nn.Module) and any(
            m.training and isinstance(m, (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd))
            for m in program.modules()):
        raise SpecError("the module is in training mode", where=name, hint="call eval() on it")
    traced, weights = _traced(program, inputs, name, TABLE if safe else UNSAFE_TABLE)
    graph, held = primitive_graph(traced, weights, inputs, name=name)
    graph, held = capture_passes.tidied(graph, held)
    graph, held = rewrites.with_alternatives(graph, held, rules)
    validate(graph)
    graph = capture_passes.with_provenance(graph, {"torch": torch.__version__.split("+")[0], **(provenance or {})})
    used = {t.name for t in graph.tensors}
    calls = sum(n.op == "call_function" for n in traced.graph.nodes)
    return Captured(graph, {k: v for k, v in held.items() if k in used}, calls)


def _traced(program: Callable[..., Any], inputs: Sequence[torch.Tensor], name: str, table: Mapping[Any, Any]
            ) -> tuple[GraphModule, dict[str, torch.Tensor]]:
    """make_fx over (weights, inputs), and the weights by name."""
    weights: dict[str, torch.Tensor] = {}
    if isinstance(program, torch.nn.Module):
        weights = {**dict(program.named_parameters()), **dict(program.named_buffers())}
        weights = {key: value.detach() for key, value in weights.items()}
    names = list(weights)

    def flat(held: list[torch.Tensor], given: list[torch.Tensor]) -> Any:
        with Fission():
            if isinstance(program, torch.nn.Module):
                made = functional_call(program, dict(zip(names, held, strict=True)), tuple(given))
            else:
                made = program(*given)
        found, _ = torch.utils._pytree.tree_flatten(made)
        if not found or not all(isinstance(x, torch.Tensor) for x in found):
            raise SpecError("the program returns something that is no tensor", where=name,
                            allowed=["a tensor", "a list or tuple of tensors"])
        return found

    held_outside = _closed_over(program)
    versions = [t._version for t in held_outside]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            # tensors that a function closes over are real ones and become weights
            fake = FakeTensorMode(allow_non_fake_inputs=True)
            empty = [[fake.from_tensor(x) for x in tensors] for tensors in (weights.values(), inputs)]
            traced = make_fx(functionalize(flat), decomposition_table=dict(table))(*empty)
    except SpecError:
        raise
    except Exception as error:
        if _depends_on_data(error):
            raise SpecError("what the program does depends on values of its tensors", where=name,
                            hint="a graph has one path; capture each branch by itself") from None
        raise SpecError(f"the program cannot be traced: {type(error).__name__}: {str(error).splitlines()[0]}"
                        if str(error) else f"the program cannot be traced: {type(error).__name__}",
                        where=name) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if [t._version for t in held_outside] != versions:
        raise SpecError("the function writes to a tensor that it closes over", where=name,
                        hint="pass it in and return what is new; this trace has already written to it")
    assert isinstance(traced, GraphModule)
    traced.graph.eliminate_dead_code()
    drawn = next((n for n in traced.graph.nodes if isinstance(n.target, torch._ops.OpOverload)
                  and torch.Tag.nondeterministic_seeded in n.target.tags), None)
    if drawn is not None:
        raise SpecError(f"the program draws random numbers ({drawn.target})", where=name,
                        hint="draw them outside and pass them in; dropout is for training")
    return traced, weights


def _closed_over(program: Callable[..., Any]) -> list[torch.Tensor]:
    """Tensors that a function reads from outside by name; a module's own are its weights."""
    if not inspect.isfunction(program):
        return []
    found = inspect.getclosurevars(program)
    return [v for v in (*found.nonlocals.values(), *found.globals.values()) if isinstance(v, torch.Tensor)]


def _depends_on_data(error: BaseException) -> bool:
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    return isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)) \
        or "data-dependent" in str(error).lower() or "data dependent" in str(error).lower()


def captured_model(name: str, *, batch: int = 1, resolution: int | None = None,
                   rules: Collection[str] = rewrites.DEFAULT) -> Captured:
    """One of ``executors.orchestration.models``, captured.

    Raises:
        SpecError: no such model, or it does not run at that batch or resolution.
    """
    module, inputs = build(name, batch=batch, resolution=resolution)
    side = MODELS[name].resolved(resolution)
    return capture(module, inputs, name=name, rules=rules,
                   provenance={"model": MODELS[name].title, "batch": str(batch), "resolution": str(side)})


def named(reference: str) -> Any:
    """What ``package.module:factory`` gives: the factory's result when it is called without arguments.

    Raises:
        SpecError: the text, the module, the factory or its call fails; says how.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise SpecError(f"{reference!r} names no program", allowed=["package.module:factory"])
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise SpecError(f"importing {module_name!r} failed: {type(error).__name__}: {error}", where=reference,
                        hint="is its folder on PYTHONPATH?") from None
    if not hasattr(module, attribute):
        raise SpecError(f"{module_name} has no {attribute!r}", where=reference,
                        allowed=sorted(n for n in vars(module) if not n.startswith("_")))
    try:
        return getattr(module, attribute)()
    except Exception as error:
        raise SpecError(f"{attribute}() failed: {type(error).__name__}: {error}", where=reference,
                        allowed=["a factory without arguments that returns (module, example inputs)"]) from None


def save_captured(found: Captured, path: Path | str) -> Path:
    """Write the graph to ``path`` (JSON) and the weights beside it (``.pt``)."""
    path = Path(path)
    with atomic_path(path.with_suffix(".pt")) as where:
        torch.save(dict(found.weights), where)
    return save(found.graph, path)


def load_captured(path: Path | str) -> Captured:
    """Read what ``save_captured`` wrote.

    Raises:
        SpecError: a file is missing, broken, or holds other weights than the graph names.
    """
    path = Path(path)
    graph = load(path)
    beside = path.with_suffix(".pt")
    try:
        weights = torch.load(beside, weights_only=True)
    except FileNotFoundError:
        raise SpecError(f"no weights beside the graph: {beside}") from None
    except Exception as error:
        raise SpecError(f"no weights: {type(error).__name__}: {error}", where=str(beside)) from None
    for tensor in graph.tensors:
        if tensor.role == "weight" and (tensor.name not in weights
                                        or tuple(weights[tensor.name].shape) != tuple(tensor.shape)):
            raise SpecError(f"no weight {tensor.name!r} of shape {list(tensor.shape)}", where=str(beside))
    return Captured(graph, weights)


def _written(name: str, folder: Path, *, batch: int, resolution: int | None) -> tuple[Captured, Path]:
    """Capture a model, or a program by reference, into a file of ``folder``."""
    if ":" not in name:
        side = resolution or SHIPPED.get(name)
        found = captured_model(name, batch=batch, resolution=side)
        title = graph_name(name, batch=batch, resolution=MODELS[name].resolved(side))
        return found, save(found.graph, folder / f"{title}.json")
    made = named(name)
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[0]):
        raise SpecError("the factory gives no program", where=name, allowed=["(module or function, example inputs)"])
    title = name.partition(":")[2]
    found = capture(made[0], made[1], name=title, provenance={"program": name})
    return found, save_captured(found, folder / f"{title}.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the shipped graphs, or those of programs by ``package.module:factory``; a line each on stderr."""
    parser = argparse.ArgumentParser(prog="python -m executors.orchestration.capture", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SHIPPED), help="models; all that are shipped by default")
    parser.add_argument("--out", default=str(data_folder("graphs") / "orchestration"), help="folder")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=None)
    given = parser.parse_args(arguments)
    try:
        make_folder(given.out)
        for name in given.names:
            began = time.perf_counter()
            found, path = _written(name, Path(given.out), batch=given.batch, resolution=given.resolution)
            own = sum(p.rewrite is None for p in found.graph.primitives)
            others = len(found.graph.primitives) - own
            sys.stderr.write(f"{path.name}: {found.calls} calls, {own} primitives, {others} alternatives, "
                             f"{path.stat().st_size / 1e3:.0f} kB, {time.perf_counter() - began:.1f} s\n")
    except WorkbenchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

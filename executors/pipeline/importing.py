"""``nn.Module``s as operator graphs: export, cut into layers, count what each does and holds, and run the layers.

``python -m executors.pipeline.importing OUT.json < MODEL.json`` is what a spec with ``[model] module = …`` starts: the
module is built on the meta device (no weights, so size does not matter), exported with a free batch size, coarsened,
and written as a plain graph. Kernels come from the shapes of the ATen nodes: products as gemms, all else as bytes
moved, views for nothing. Saved bytes are counted on what autograd keeps. With ``measure`` every layer is built with
weights, one after the other, and its forward and backward are timed at each local batch.
To run, each rank makes the whole module from the run's seed, and keeps the weights of its own layers.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx, nn

from executors.pipeline.coarsening import Part, Parts, coarsen
from planners.pipeline.problem import Argument, Edge, Kernel, Layer, Module, ModuleModel, Operator, PlainGraph
from workbench.errors import SpecError, WorkbenchError
from workbench.files import write_atomic
from workbench.spec import dump, parse

__all__ = ["ImportedLayer", "build", "columns_of", "numbers", "opened", "parts_of", "plain_graph"]

_HINT = 4
_FLOAT_BYTES = 4
_POINT_S = 0.15


def build(source: Module) -> nn.Module:
    """The user's module, made by the function that ``source`` names.

    Raises:
        SpecError: there is no such function, it fails, or it returns something else.
    """
    place, _, name = source.module.partition(":")
    try:
        found = _file(place) if place.endswith(".py") else importlib.import_module(place)
        maker = getattr(found, name)
        made = maker()
    except Exception as error:
        raise SpecError(f"{source.module} cannot be called: {type(error).__name__}: {error}",
                        where="model.module") from error
    if not isinstance(made, nn.Module):
        raise SpecError(f"{source.module} returns {type(made).__name__}, not an nn.Module", where="model.module")
    return made


@lru_cache(maxsize=1)
def parts_of(source: Module, seed: int, device: str) -> tuple[Parts, nn.Module]:
    """The parts of a module exported for ``device``, and the module with the weights that the seed gives it."""
    torch.manual_seed(seed)
    made = build(source).to(device)
    return opened(source, made, device), made


@cache
def _file(place: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python file: {place}")
    found = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(Path(place).stem, found)
    spec.loader.exec_module(found)
    return found


def opened(source: Module, module: nn.Module, device: str) -> Parts:
    """The parts of ``module`` exported on ``device``.

    Raises:
        SpecError: torch.export refuses the module, or it cannot be cut.
    """
    batch = torch.export.Dim("batch")
    arguments = tuple(_example(a, device) for a in source.arguments)
    shapes: tuple[Any, ...] = tuple({0: batch} for _ in arguments)
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        shapes = (*shapes[:named], shapes[named:])
    try:
        # Tensors that forward makes itself without naming a device belong to the same one.
        with torch.device(device):
            exported = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raise SpecError(f"torch.export refuses the module: {type(error).__name__}: {said[0]}", where=source.module,
                        hint="the batch size must stay free: no shape or branch may depend on its value") from error
    return coarsen(exported, module, source.layers, source.module)


def _example(a: Argument, device: str) -> torch.Tensor:
    dtype = torch.float32 if a.dtype == "float" else torch.int64
    return torch.zeros((_HINT, *a.shape), dtype=dtype, device=device)


def shape_of(n: fx.Node) -> tuple[int, ...]:
    """Shape of one sample of a node that may leave its part."""
    return tuple(int(s) for s in n.meta["val"].shape[1:])


def columns_of(n: fx.Node) -> int:
    """Numbers a sample."""
    return math.prod(shape_of(n))


class ImportedLayer(nn.Module):
    """One part as a module: from the module's arguments and the packed outputs of the parts it reads.

    Packed: every tensor that leaves a part, flattened to [samples, columns] and put side by side.
    """

    def __init__(self, parts: Parts, part: Part, made: nn.Module) -> None:
        super().__init__()
        self.argument_numbers = tuple(parts.arguments.index(a) for a in part.arguments)
        self.slots = tuple(_slot(parts, n) for n in part.reads)
        names: dict[fx.Node, str] = {}
        held = {**dict(made.named_parameters()), **dict(made.named_buffers()), **parts.constants}
        for i, n in enumerate(part.weights):
            names[n] = f"w{i}"
            # A copy: replicas in one process, and the module itself, must not be trained together.
            self.register_parameter(names[n], nn.Parameter(held[parts.targets[n]].detach().clone()))
        for i, n in enumerate(part.constants):
            names[n] = f"c{i}"
            self.register_buffer(names[n], held[parts.targets[n]], persistent=False)
        self.weight_names = {names[n]: parts.targets[n] for n in part.weights}
        self.body = _body(parts, part, names, self)

    def forward(self, data: Sequence[torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Packed output, [samples, columns]; ``data`` are the arguments that the part takes, ``inputs`` by producer."""
        given = [inputs[producer][:, at:at + math.prod(shape)].reshape(-1, *shape)
                 for producer, at, shape in self.slots]
        made = self.body(*given, *data)
        flat = [t.flatten(1) if t.dim() > 1 else t.unsqueeze(1) for t in made]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def _slot(parts: Parts, n: fx.Node) -> tuple[str, int, tuple[int, ...]]:
    """Where a tensor lies: the part that packed it, its first column, the shape of one sample."""
    part = parts.of[n]
    before = part.gives[:part.gives.index(n)]
    return part.name, sum(map(columns_of, before)), shape_of(n)


def _body(parts: Parts, part: Part, names: dict[fx.Node, str], owner: nn.Module) -> fx.GraphModule:
    """The part's nodes as a graph of its own: placeholders for what it reads and for its arguments."""
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for n in (*part.reads, *part.arguments):
        known[n] = graph.placeholder(n.name)
    for n, name in names.items():
        known[n] = graph.get_attr(name)
    front = next(iter(known.values()), None)
    sizes: list[fx.Node] = []

    def batch() -> fx.Node:
        if not sizes:
            assert front is not None
            sizes.append(graph.call_function(torch.ops.aten.sym_size.int, (front, 0)))
        return sizes[0]

    def copied(n: fx.Node) -> fx.Node:
        if n not in known:
            value = n.meta.get("val")
            if n.op == "call_function" and not isinstance(value, torch.Tensor) and str(value) == str(parts.batch):
                known[n] = batch()
            else:
                for a in n.all_input_nodes:
                    copied(a)
                known[n] = graph.node_copy(n, lambda a: known[a])
        return known[n]

    for n in part.nodes:
        copied(n)
    graph.output(tuple(known[n] for n in part.gives))
    graph.lint()
    return fx.GraphModule(owner, graph)


def plain_graph(model: ModuleModel) -> PlainGraph:
    """Operators and edges of a module, with kernels or measured times.

    Raises:
        SpecError: see ``build``, ``opened``; or all its weights hang together, so that no cut is left.
    """
    source = model.source
    with torch.device("meta"):
        module = build(source)
    parts = opened(source, module, "meta")
    if len(parts.parts) == 1 and len([m for m in module.modules() if next(m.parameters(False), None) is not None]) > 1:
        raise SpecError("the module cannot be cut: all its layers share weights, call one another in turn, or pass on "
                        "tensors that cannot be sent", where=source.module,
                        hint="only floating tensors with the batch in front can be sent; a shared weight keeps its "
                             "readers in one stage")
    times = None if model.measure is None else _measured(model)
    operators = []
    for part in parts.parts:
        layer = ImportedLayer(parts, part, module)
        columns = sum(map(columns_of, part.gives))
        known: dict[str, Any] = {"kernels": tuple(_kernels(part))} if times is None else times[part.name]
        operators.append(Operator(
            name=part.name, weight_bytes=float(sum(p.numel() * p.element_size() for p in layer.parameters())),
            saved_bytes_per_sample=_saved_bytes(parts, part, layer, source) + _FLOAT_BYTES * columns,
            output_bytes_per_sample=float(_FLOAT_BYTES * columns),
            layer=Layer(kind="imported", width=columns, imported=source), **known))
    edges = [Edge(producer=producer, consumer=part.name) for part in parts.parts
             for producer in dict.fromkeys(parts.of[n].name for n in part.reads)]
    return PlainGraph(operators=tuple(operators), edges=tuple(edges))


def _inputs(parts: Parts, part: Part, source: Module, samples: int, device: str,
            rng: torch.Generator | None = None) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Arguments and packed inputs of a part; inputs are leaves that want gradients."""
    mine = [source.arguments[parts.arguments.index(n)] for n in part.arguments]
    data = [numbers(a, samples, rng).to(device) if rng is not None else _example(a, device) for a in mine]
    packed = {}
    for producer in dict.fromkeys(parts.of[n].name for n in part.reads):
        whole = next(p for p in parts.parts if p.name == producer)
        shape = samples, sum(map(columns_of, whole.gives))
        made = torch.zeros(shape, device=device) if rng is None else torch.randn(shape, generator=rng).to(device)
        packed[producer] = made.requires_grad_()
    return data, packed


def numbers(a: Argument, samples: int, rng: torch.Generator) -> torch.Tensor:
    """Random data for an argument, [samples, *shape]."""
    if a.dtype == "int64":
        return torch.randint(a.below, (samples, *a.shape), generator=rng)
    return torch.randn((samples, *a.shape), generator=rng)


def _saved_bytes(parts: Parts, part: Part, layer: ImportedLayer, source: Module) -> float:
    """Bytes a sample that autograd keeps, without weights, what other parts made, and what leaves the part."""
    data, inputs = _inputs(parts, part, source, _HINT, "meta")
    apart = {_storage(t) for t in (*layer.parameters(), *layer.buffers(), *inputs.values())}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        alive.append(t)
        kept[_storage(t)] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = layer(data, inputs)
    apart.add(_storage(out))
    return sum(size for where, size in kept.items() if where not in apart) / _HINT


def _storage(t: torch.Tensor) -> int:
    """Identity of a tensor's storage, also on the meta device, where all addresses are 0."""
    return int(t.untyped_storage()._cdata)


def _measured(model: ModuleModel) -> dict[str, dict[str, Any]]:
    """Forward and backward seconds of every part by local batch, timed one part at a time on one thread."""
    from profilers.harness import CpuTimer, CudaTimer, fixed_conditions, measure

    device = str(model.measure)
    source = model.source
    found: dict[str, dict[str, Any]] = {}
    timer = CpuTimer() if device == "cpu" else CudaTimer()
    with fixed_conditions(device=device, threads=1):
        module = build(source).to(device)
        parts = opened(source, module, device)
        for part in parts.parts:
            layer = ImportedLayer(parts, part, module)
            rows: dict[str, dict[int, float]] = {"forward_s": {}, "backward_s": {}}
            for samples in model.samples:
                for way, call in zip(rows, _calls(parts, part, layer, source, samples, device), strict=True):
                    rows[way][samples] = measure(call, timer=timer, seconds=_POINT_S, attempts=1).median_s
            found[part.name] = {**rows, "source": "measured"}
    return found


def _calls(parts: Parts, part: Part, layer: ImportedLayer, source: Module, samples: int,
           device: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A forward and a backward that can be repeated."""
    data, inputs = _inputs(parts, part, source, samples, device, torch.Generator().manual_seed(0))

    def forward() -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return cast(torch.Tensor, layer(data, inputs))

    out = forward()
    gradient = torch.ones_like(out)

    def backward() -> None:
        for t in inputs.values():
            t.grad = None
        if out.requires_grad:
            torch.autograd.backward([out], [gradient], retain_graph=True)

    return forward, backward


def _kernels(part: Part) -> Iterator[Kernel]:
    """Forward work of one sample: products by their sizes, everything else as bytes moved."""
    gemms: dict[tuple[float, int, int], float] = {}
    moved = 0.0
    for n in part.nodes:
        found = _products(n)
        if found:
            for rows, columns, inner in found:
                gemms[rows, columns, inner] = gemms.get((rows, columns, inner), 0.0) + 1
        elif not _is_view(n):
            moved += sum(_bytes(a) for a in n.all_input_nodes if a.op != "placeholder") + _bytes(n)
    for (rows, columns, inner), count in gemms.items():
        yield Kernel(op="gemm", rows=rows, columns=float(columns), inner=float(inner), count=count)
    if moved or not gemms:
        yield Kernel(op="elementwise", bytes=moved)


def _is_view(n: fx.Node) -> bool:
    schema = getattr(n.target, "_schema", None)
    return n.target is operator.getitem or (schema is not None and any(r.alias_info is not None
                                                                       for r in schema.returns))


def _sizes(n: Any) -> list[int]:
    return [int(s) if isinstance(s, int) else int(s.node.hint) for s in n.meta["val"].shape]


def _bytes(n: fx.Node) -> float:
    """Bytes a sample of a tensor node."""
    value = n.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return 0.0
    return math.prod(_sizes(n)) * value.element_size() / _HINT


def _products(n: fx.Node) -> list[tuple[float, int, int]]:
    """(rows a sample, columns, inner size) of every matrix product of a node."""
    name = str(n.target).removeprefix("aten.").split(".")[0]
    a = [x for x in n.args if isinstance(x, fx.Node)]
    if name == "linear":
        inner = _sizes(a[0])[-1]
        return [(math.prod(_sizes(a[0])) / inner / _HINT, _sizes(a[1])[0], inner)]
    if name in ("mm", "bmm", "matmul", "addmm", "baddbmm"):
        left, right = (a[-2], a[-1])
        inner = _sizes(left)[-1]
        return [(math.prod(_sizes(left)) / inner / _HINT, _sizes(right)[-1], inner)]
    if name in ("conv1d", "conv2d", "conv3d", "convolution"):
        out, weight = _sizes(n), _sizes(a[1])
        return [(math.prod(out) / out[1] / _HINT, weight[0], math.prod(weight[1:]))]
    if name == "scaled_dot_product_attention":
        q, k = _sizes(a[0]), _sizes(a[1])
        rows = math.prod(q[:-1]) / _HINT
        return [(rows, k[-2], q[-1]), (rows, q[-1], k[-2])]
    return []


def main(arguments: Sequence[str]) -> int:
    """Write the graph of the module that stdin describes; on a fault, say as JSON what is wrong and return 1."""
    try:
        graph = plain_graph(parse(ModuleModel, json.load(sys.stdin)))
    except WorkbenchError as error:
        sys.stdout.write(json.dumps({"message": error.message, "hint": error.hint}) + "\n")
        return 1
    write_atomic(Path(arguments[0]), json.dumps(dump(graph), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

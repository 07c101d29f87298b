"""From an ATen graph of make_fx to a ``PrimitiveGraph``: one primitive a call, views and constant chains folded."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from planners.orchestration.graph import VIEWS, Kind, Operand, Primitive, PrimitiveGraph, Tensor
from planners.orchestration.views import Layout, View, contiguous_strides, viewed
from workbench.errors import SpecError

__all__ = ["primitive_graph"]

_LINEAR = frozenset({"aten.convolution.default", "aten.mm.default", "aten.bmm.default"})
_REDUCE = frozenset({
    "aten.sum.dim_IntList", "aten.sum.default", "aten.mean.dim", "aten.mean.default", "aten.amax.default",
    "aten.amin.default", "aten.prod.dim_int", "aten.any.dim", "aten.all.dim", "aten.max_pool2d.default",
    "aten.max_pool2d_with_indices.default", "aten.avg_pool2d.default", "aten._adaptive_avg_pool2d.default",
    "aten.argmax.default"})
_LAYOUT = frozenset({
    "aten.clone.default", "aten.cat.default", "aten.constant_pad_nd.default", "aten.reflection_pad1d.default",
    "aten.reflection_pad2d.default", "aten.replication_pad1d.default", "aten.replication_pad2d.default",
    "aten.upsample_nearest2d.vec", "aten.upsample_nearest2d.default", "aten.upsample_bilinear2d.vec",
    "aten.upsample_bilinear2d.default", "aten.upsample_bicubic2d.vec", "aten.upsample_bicubic2d.default",
    "aten.flip.default", "aten.roll.default", "aten.repeat.default", "aten.pixel_shuffle.default",
    "aten.embedding.default", "aten.index_select.default", "aten.slice_scatter.default",
    "aten.select_scatter.default"})
_ELEMENTWISE = frozenset(f"aten.{name}.default" for name in (
    "_to_copy", "hardswish", "hardsigmoid", "hardtanh", "mish", "silu", "gelu", "elu", "leaky_relu", "softplus",
    "prelu", "log_sigmoid", "threshold")) | {"aten.where.self", "aten.where.ScalarSelf"}
"""Elementwise although torch does not tag all of them so."""
_SAME = frozenset({"aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default",
                   "aten.lift_fresh.default"})
_RENAMED = {"aten._unsafe_view.default": "aten.view.default", "aten.reshape.default": "aten.view.default"}
_BY_NUMBER = {f"aten.{name}.Tensor": f"aten.{name}.Scalar" for name in ("add", "sub", "mul", "div")}
_DROPPED = ("device", "pin_memory", "layout")


def primitive_graph(traced: GraphModule, weights: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor], *,
                    name: str) -> tuple[PrimitiveGraph, dict[str, torch.Tensor]]:
    """The program of ``traced`` and the values of its weights.

    Args:
        traced: its placeholders are the ``weights`` in order, then the ``inputs``.
        weights: parameters and buffers by name.
        inputs: what the program was traced with.
        name: the program's name.

    Raises:
        SpecError: it writes to an input or a weight, returns no tensors, or calls something that cannot be written
            down.
    """
    return _Builder(traced, weights, inputs, name).build()


class _Builder:
    def __init__(self, traced: GraphModule, weights: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor],
                 name: str) -> None:
        self.traced, self.name = traced, name
        self.tensors: dict[str, Tensor] = {}
        self.primitives: list[Primitive] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.seen: dict[Node, Operand] = {}
        self.values: dict[Node, torch.Tensor] = {}
        self.base: dict[Node, tuple[Node, tuple[View, ...]]] = {}
        self.titles: dict[Node, str] = {}
        self.inputs: list[str] = []
        self.given = dict(weights)
        self.examples = list(inputs)
        self.outputs: tuple[Operand, ...] = ()

    def build(self) -> tuple[PrimitiveGraph, dict[str, torch.Tensor]]:
        nodes = list(self.traced.graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        titles = list(self.given)
        for node, title in zip(placeholders, titles, strict=False):
            self.values[node], self.titles[node] = self.given[title].detach(), title
        for i, (node, example) in enumerate(zip(placeholders[len(titles):], self.examples, strict=True)):
            self._input(node, example, f"input{i}" if len(self.examples) > 1 else "input")
        for node in nodes:
            if node.op == "get_attr":
                self.values[node] = getattr(self.traced, str(node.target)).detach()
                self.titles[node] = str(node.target).lstrip("_")
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._output(node)
        return PrimitiveGraph(name=self.name, tensors=tuple(self.tensors.values()), primitives=tuple(self.primitives),
                              inputs=tuple(self.inputs), outputs=self.outputs), self.weights

    def _input(self, node: Node, example: torch.Tensor, name: str) -> None:
        strides = None if example.is_contiguous() else tuple(example.stride())
        self.tensors[name] = Tensor(name=name, shape=tuple(example.shape), dtype=_dtype(example), role="input",
                                    strides=strides)
        self.inputs.append(name)
        self.seen[node] = Operand(tensor=name)

    def _output(self, node: Node) -> None:
        found = node.args[0]
        results = list(found) if isinstance(found, (list, tuple)) else [found]
        if not results or not all(isinstance(r, Node) for r in results):
            raise SpecError("the program returns something that is no tensor", where=self.name,
                            allowed=["a tensor", "a list or tuple of tensors"])
        self.outputs = tuple(self._operand(r) for r in results if isinstance(r, Node))

    def _call(self, node: Node) -> None:
        if node.target is operator.getitem:
            self._item(node)
            return
        op = _RENAMED.get(str(node.target), str(node.target))
        if op.startswith("aten.copy_."):
            raise SpecError("the program writes to one of its inputs or weights", where=self.name,
                            hint="return the new value instead")
        if isinstance(node.meta.get("val"), (list, tuple)) or not node.users:
            return  # its results are taken one by one
        parents = node.all_input_nodes
        if all(p in self.values for p in parents):
            self._constant(node, op)
        elif op in _SAME:
            self.seen[node] = self._operand(parents[0])
        elif op in VIEWS and op != "aten.as_strided.default":
            self._view(node, self._operand(parents[0]), View(op=op, arguments=_plain(node.args[1:])))
        elif op == "aten.clone.default" or (op == "aten._to_copy.default" and _same_type(node)):
            self._clone(node)
        else:
            self._primitive(node, node, op, None)

    def _constant(self, node: Node, op: str) -> None:
        """A call that reads nothing but weights happens now; views of weights stay views."""
        parents = node.all_input_nodes
        if op in VIEWS and op != "aten.as_strided.default" and len(parents) == 1:
            base, views = self.base.get(parents[0], (parents[0], ()))
            views = (*views, View(op=op, arguments=_plain(node.args[1:])))
            try:
                viewed(_row_major(self.values[base].shape), views)
                self.base[node] = base, views
            except SpecError:
                pass
        with torch.no_grad():
            args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self.values[n])
            assert callable(node.target)
            self.values[node] = node.target(*args, **kwargs)

    def _operand(self, node: Node) -> Operand:
        if node in self.values:
            base, views = self.base.get(node, (node, ()))
            return Operand(tensor=self._weight(base), views=views)
        return self.seen[node]

    def _weight(self, node: Node) -> str:
        name = self.titles.setdefault(node, node.name)
        if name not in self.tensors:
            value = self.values[node].cpu().contiguous()
            fill = _uniform(value) if node.op == "call_function" else None
            self.tensors[name] = Tensor(name=name, shape=tuple(value.shape), dtype=_dtype(value), fill=fill,
                                        role="weight" if fill is None else "constant")
            if fill is None:
                self.weights[name] = value
        return name

    def _view(self, node: Node, operand: Operand, view: View) -> None:
        layout = self.tensors[operand.tensor].layout
        try:
            viewed(layout, (*operand.views, view))
            self.seen[node] = Operand(tensor=operand.tensor, views=(*operand.views, view))
        except SpecError:
            copy = self._copy(f"{node.name}_copy", operand)
            viewed(self.tensors[copy].layout, (view,))
            self.seen[node] = Operand(tensor=copy, views=(view,))

    def _copy(self, name: str, operand: Operand) -> str:
        seen = viewed(self.tensors[operand.tensor].layout, operand.views)
        self._add(name, "aten.clone.default", [operand], seen.shape, self.tensors[operand.tensor].dtype,
                  ({"input": 0},), {"memory_format": {"memory_format": "contiguous_format"}})
        return name

    def _clone(self, node: Node) -> None:
        """A copy is only a primitive when it changes the order of elements in memory."""
        operand = self._operand(node.all_input_nodes[0])
        seen = viewed(self.tensors[operand.tensor].layout, operand.views)
        if node.kwargs.get("memory_format") in (None, torch.preserve_format) or _compact(seen):
            self.seen[node] = operand
        else:
            self.seen[node] = Operand(tensor=self._copy(node.name, operand))

    def _item(self, node: Node) -> None:
        """One result of a call that has several; slices and selections are views."""
        parent, number = node.args[0], node.args[1]
        assert isinstance(parent, Node) and isinstance(number, int)
        op = str(parent.target)
        if parent in self.values:
            self.values[node] = self.values[parent][number]
            return
        if all(p in self.values for p in parent.all_input_nodes):
            self._constant(parent, op)
            self.values[node] = self.values[parent][number]
            return
        packet = op.split(".")[1]
        if packet in ("split", "split_with_sizes", "chunk", "unbind", "unsafe_split", "unsafe_chunk"):
            source = parent.args[0]
            assert isinstance(source, Node)
            rank = len(source.meta["val"].shape)
            default = 0 if packet == "unbind" else parent.kwargs.get("dim", 0)
            found = parent.args[1 if packet == "unbind" else 2] if len(parent.args) > (1 if packet == "unbind" else 2) \
                else default
            dim = int(found) % rank  # type: ignore[arg-type]
            parts = parent.meta["val"]
            if packet == "unbind":
                view = View(op="aten.select.int", arguments=(dim, number))
            else:
                start = sum(int(p.shape[dim]) for p in parts[:number])
                end = start + int(parts[number].shape[dim])
                view = View(op="aten.slice.Tensor", arguments=(dim, start, end))
            self._view(node, self._operand(source), view)
            return
        self._primitive(node, parent, op, number)

    def _primitive(self, node: Node, call: Node, op: str, result: int | None) -> None:
        operands: list[Operand] = []

        def written(value: Any) -> Any:
            if isinstance(value, Node):
                operands.append(self._operand(value))
                return {"input": len(operands) - 1}
            if isinstance(value, (list, tuple)):
                return [written(v) for v in value]
            return _written(value, f"{self.name}: {op}")

        positional = tuple(written(a) for a in call.args)
        named = {k: written(v) for k, v in call.kwargs.items() if k not in _DROPPED and v is not None}
        if op in _BY_NUMBER and len(positional) > 1 and not isinstance(positional[1], Mapping):
            op = _BY_NUMBER[op]
        if positional == tuple({"input": i} for i in range(len(operands))):
            arguments: tuple[Any, ...] | None = None
        else:
            arguments = positional
        value = node.meta["val"]
        self._add(node.name, op, operands, value.shape, _dtype(value), arguments, named, result, _kind(op, call))
        self.seen[node] = Operand(tensor=node.name)

    def _add(self, name: str, op: str, operands: Sequence[Operand], shape: Sequence[int], dtype: str,
             arguments: tuple[Any, ...] | None, named: Mapping[str, Any], result: int | None = None,
             kind: Kind = "layout") -> None:
        self.tensors[name] = Tensor(name=name, shape=tuple(int(n) for n in shape), dtype=dtype)
        self.primitives.append(Primitive(name=name, op=op, kind=kind, inputs=tuple(operands), output=name,
                                         arguments=arguments, attributes=named, result=result))


def _kind(op: str, call: Node) -> Kind:
    if op in _LINEAR:
        return "linear"
    if op in _REDUCE:
        return "reduce"
    if op in _LAYOUT:
        return "layout"
    tags = getattr(call.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags:
        raise SpecError(f"{op} draws random numbers", where=call.name, hint="call eval() on the module")
    return "elementwise" if op in _ELEMENTWISE or torch.Tag.pointwise in tags else "opaque"


def _written(value: Any, where: str) -> Any:
    """An argument as the graph's contract writes it."""
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(f"the argument {value} cannot be written down", where=where, allowed=["finite numbers"])
        return value
    raise SpecError(f"an argument of type {type(value).__name__} cannot be written down", where=where,
                    hint="shapes that depend on data are not supported" if isinstance(value, torch.SymInt) else None)


def _plain(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of a view as hashable values; the end of a slice that means 'to the end' is left as it is."""
    return tuple(tuple(a) if isinstance(a, (list, tuple)) else a for a in arguments)


def _same_type(node: Node) -> bool:
    return bool(node.args[0].meta["val"].dtype == node.meta["val"].dtype)  # type: ignore[union-attr]


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _row_major(shape: Sequence[int]) -> Layout:
    return Layout(tuple(shape), contiguous_strides(shape), 0)


def _compact(layout: Layout) -> bool:
    """Whether a reader sees elements in the order in which they lie, without gaps."""
    wanted = contiguous_strides(layout.shape)
    return all(a == b for n, a, b in zip(layout.shape, layout.strides, wanted, strict=True) if n != 1)


def _uniform(value: torch.Tensor) -> float | int | bool | None:
    """The value of all elements, or ``None`` where they differ or are not finite."""
    if value.numel() == 0 or value.is_complex():
        return None
    first = value.reshape(-1)[0]
    found = first.item()
    if not math.isfinite(found) or not bool((value == first).all()):
        return None
    return found if isinstance(found, (bool, int, float)) else None

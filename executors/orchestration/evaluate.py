"""Primitive graphs run as they are written, primitive by primitive: the meaning of ``planners.orchestration.graph``.

Slow and plain on purpose: rewrites, captures and stitched programs are held against it. ``computed`` gives tensors of
the graph by name, ``outputs`` the results; which of several producers makes a tensor is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from executors.orchestration.kernels import call_of, dtype_of, overload, view_call
from planners.orchestration.graph import Operand, Primitive, PrimitiveGraph, Tensor
from planners.orchestration.views import View
from workbench.errors import SpecError

__all__ = ["call", "computed", "constant", "free_tensors", "outputs", "read"]


def outputs(graph: PrimitiveGraph, inputs: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor], *,
            dtype: torch.dtype | None = None, chosen: Mapping[str, str] | None = None) -> tuple[torch.Tensor, ...]:
    """The program's results.

    Args:
        graph: the program.
        inputs: in the order of ``graph.inputs``.
        weights: by tensor name.
        dtype: floating point type to compute in; ``None``: as it is.
        chosen: name of the primitive that makes a tensor, by tensor; the captured program's own otherwise.

    Raises:
        SpecError: an input or weight is missing or of another shape, or the choice is circular.
    """
    values = free_tensors(graph, inputs, weights, dtype=dtype)
    wanted = [o.tensor for o in graph.outputs]
    order = _order(graph, values, wanted, chosen or {})
    last = {o.tensor: at for at, p in enumerate(order) for o in p.inputs}
    for at, primitive in enumerate(order):
        values[primitive.output] = call(primitive, values, dtype=dtype)
        for name in {o.tensor for o in primitive.inputs}:
            if last[name] == at and name not in wanted:
                del values[name]
    return tuple(read(o, values) for o in graph.outputs)


def free_tensors(graph: PrimitiveGraph, inputs: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor], *,
                 dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Inputs, weights and constants by name.

    Raises:
        SpecError: one is missing or of another shape.
    """
    if len(inputs) != len(graph.inputs):
        raise SpecError(f"{len(inputs)} inputs, the program takes {len(graph.inputs)}", where="inputs",
                        allowed=graph.inputs)
    given = {**weights, **dict(zip(graph.inputs, inputs, strict=True))}
    values = {}
    for tensor in graph.tensors:
        if tensor.role == "constant":
            values[tensor.name] = constant(tensor, dtype=dtype)
        elif tensor.free:
            if tensor.name not in given or tuple(given[tensor.name].shape) != tuple(tensor.shape):
                found = list(given[tensor.name].shape) if tensor.name in given else "nothing"
                raise SpecError(f"{tensor.role} of shape {list(tensor.shape)} wanted, {found} given",
                                where=tensor.name)
            values[tensor.name] = _cast(given[tensor.name], dtype)
    return values


def constant(tensor: Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor of a constant."""
    assert tensor.fill is not None
    return _cast(torch.full(tensor.shape, tensor.fill, dtype=dtype_of(tensor.dtype)), dtype)


def computed(graph: PrimitiveGraph, values: Mapping[str, torch.Tensor], wanted: Iterable[str], *,
             dtype: torch.dtype | None = None, chosen: Mapping[str, str] | None = None) -> dict[str, torch.Tensor]:
    """``values`` and all that had to be computed for the tensors ``wanted``.

    Raises:
        SpecError: a tensor depends on itself by the chosen primitives.
    """
    known = dict(values)
    for primitive in _order(graph, known, wanted, chosen or {}):
        known[primitive.output] = call(primitive, known, dtype=dtype)
    return known


def _order(graph: PrimitiveGraph, known: Collection[str], wanted: Iterable[str], chosen: Mapping[str, str]
           ) -> list[Primitive]:
    """The primitives that make ``wanted`` out of ``known``, in an order that runs."""
    named = {p.name: p for p in graph.primitives}
    maker: dict[str, Primitive] = {p.output: p for p in reversed(graph.primitives)}
    maker |= {p.output: p for p in graph.primitives if p.rewrite is None}
    maker |= {tensor: named[name] for tensor, name in chosen.items()}
    there, begun = set(known), set[str]()
    order: list[Primitive] = []
    stack = list(wanted)
    while stack:
        name = stack[-1]
        if name in there:
            stack.pop()
            continue
        primitive = maker[name]
        lacking = [o.tensor for o in primitive.inputs if o.tensor not in there]
        if lacking:
            if name in begun:
                raise SpecError(f"the chosen primitives make {name!r} out of itself",
                                where=f"primitives.{primitive.name}")
            begun.add(name)
            stack += lacking
            continue
        order.append(primitive)
        there.add(name)
        stack.pop()
    return order


def call(primitive: Primitive, values: Mapping[str, torch.Tensor], *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What one primitive makes of the tensors it reads.

    With ``dtype`` floating point types named in its arguments are replaced by it.
    """
    operands = [read(o, values) for o in primitive.inputs]
    positional, named = call_of(primitive, operands)
    if dtype is not None:
        positional = [_in_type(a, dtype) for a in positional]
        named = {k: _in_type(a, dtype) for k, a in named.items()}
    with torch.no_grad():
        made: Any = overload(primitive.op)(*positional, **named)
    found = made if primitive.result is None else made[primitive.result]
    assert isinstance(found, torch.Tensor)
    return found


def read(operand: Operand, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A tensor as its reader sees it."""
    x = values[operand.tensor]
    for view in operand.views:
        x = _viewed(x, view)
    return x


def _viewed(x: torch.Tensor, view: View) -> torch.Tensor:
    target, arguments = view_call(view)
    made = target(x.contiguous() if view.op == "aten.as_strided.default" else x, *arguments)
    assert isinstance(made, torch.Tensor)
    return made


def _cast(x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return x if dtype is None or not x.is_floating_point() else x.to(dtype)


def _in_type(value: Any, dtype: torch.dtype) -> Any:
    return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value

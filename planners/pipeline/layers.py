"""Whole layers as the cost model knows them: which measured operations (``wb profile pipeline``) price an operator.

An operator with a layer and neither times nor kernels costs its layer's forward and backward at the sizes it has:
    dense(inputs, width, samples), transformer(width, hidden, heads, tokens, samples), embedding(rows, dim, bag,
    samples), join(bytes) for operators that read several tensors, loss(bytes) for operators nobody reads, and
    weight_update(bytes) once a mini-batch.
On CPUs the backward of a dense layer has a table of its own where its rows are whole multiples of 2 KiB (``ALIASED``).
An operator that reads no other operator has no gradient of its input to compute: ``input_gradient`` says so.
"""

from __future__ import annotations

from typing import NamedTuple

from planners.pipeline.graph import OperatorGraph
from planners.pipeline.problem import Layer, Operator

__all__ = ["ALIASED", "Call", "calls", "joined_width", "measured_by_layer", "update_call"]

FLOAT_BYTES = {"fp32": 4, "bf16": 2}
ALIASED = 512
"""Inputs in 2 KiB of fp32: a weight gradient with rows of a multiple of that takes up to four times as long to add to,
since such rows compete for the same lines of a CPU's first cache."""


class Call(NamedTuple):
    """One operation of the cost model: its exact keys, its fixed sizes, and the size that grows with the samples."""

    op: str
    keys: dict[str, str]
    fixed: dict[str, float]
    grows: str
    each: float = 1.0


def measured_by_layer(o: Operator) -> bool:
    """Whether only its layer says what the operator costs."""
    return o.layer is not None and not o.kernels and not o.forward_s and o.forward_s_per_sample is None


def joined_width(graph: OperatorGraph, v: int) -> int:
    """Columns of everything operator ``v`` reads: its own data and its producers' outputs."""
    layer = graph.operators[v].layer
    assert layer is not None
    return layer.inputs + sum(_width(graph.operators[u].layer) for u, _ in graph.reads[v])


def _width(layer: Layer | None) -> int:
    return 0 if layer is None else layer.width


def calls(graph: OperatorGraph, v: int, dtype: str, device: str | None) -> tuple[list[Call], list[Call]] | None:
    """What the forward and the backward of operator ``v`` take on ``device``; ``None`` for layers no table knows."""
    layer = graph.operators[v].layer
    assert layer is not None
    if layer.kind == "imported":
        return None
    made = {"dense": _dense, "transformer": _transformer, "embedding": _embedding, "concat": _nothing}[layer.kind]
    forward, backward = made(graph, v, dtype)
    size = float(layer.tokens * FLOAT_BYTES[dtype])
    if len(graph.reads[v]) + bool(layer.inputs) > 1:
        both = _both("join", dtype, {}, "bytes", joined_width(graph, v) * size)
        forward, backward = [*forward, both[0]], [*backward, both[1]]
    if layer.kind == "dense" and device == "cpu" and joined_width(graph, v) * FLOAT_BYTES[dtype] % (4 * ALIASED) == 0:
        backward = [backward[0]._replace(op=f"{backward[0].op}_aliased"), *backward[1:]]
    if not graph.read_by[v]:
        both = _both("loss", dtype, {}, "bytes", layer.width * size)
        forward, backward = [*forward, both[0]], [*backward, both[1]]
    return forward, backward


def _both(kind: str, dtype: str, fixed: dict[str, float], grows: str, each: float = 1.0, *,
          leaf: bool = False, keyed: bool = False) -> tuple[Call, Call]:
    keys = {"dtype": dtype}
    gradient = {"input_gradient": "no" if leaf else "yes"} if keyed else {}
    return (Call(f"{kind}_forward", keys, fixed, grows, each),
            Call(f"{kind}_backward", {**keys, **gradient}, fixed, grows, each))


def _pair(both: tuple[Call, Call]) -> tuple[list[Call], list[Call]]:
    return [both[0]], [both[1]]


def _dense(graph: OperatorGraph, v: int, dtype: str) -> tuple[list[Call], list[Call]]:
    sizes = {"inputs": float(joined_width(graph, v)), "width": float(_width(graph.operators[v].layer))}
    return _pair(_both("dense", dtype, sizes, "samples", leaf=not graph.reads[v], keyed=True))


def _transformer(graph: OperatorGraph, v: int, dtype: str) -> tuple[list[Call], list[Call]]:
    layer = graph.operators[v].layer
    assert layer is not None
    sizes = {"width": float(layer.width), "hidden": float(layer.hidden), "heads": float(layer.heads),
             "tokens": float(layer.tokens)}
    return _pair(_both("transformer", dtype, sizes, "samples"))


def _embedding(graph: OperatorGraph, v: int, dtype: str) -> tuple[list[Call], list[Call]]:
    layer = graph.operators[v].layer
    assert layer is not None
    sizes = {"rows": float(layer.rows), "dim": float(layer.width // layer.bag), "bag": float(layer.bag)}
    return _pair(_both("embedding", dtype, sizes, "samples"))


def _nothing(graph: OperatorGraph, v: int, dtype: str) -> tuple[list[Call], list[Call]]:
    return [], []


def update_call(optimizer: str, dtype: str, o: Operator) -> Call:
    """The weight update of an operator; ``each`` is its weights' bytes."""
    return Call("weight_update", {"dtype": dtype, "optimizer": optimizer}, {}, "bytes", o.weight_bytes)

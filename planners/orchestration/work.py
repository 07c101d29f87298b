"""What a kernel must at least do, from its structure alone: bytes it moves, arithmetic of its compute-bound steps."""

from __future__ import annotations

import math
from typing import NamedTuple

from planners.orchestration.candidates import Step, StoredValue, Structure, ValueRef
from planners.orchestration.graph import ITEM_BYTES
from planners.orchestration.views import Layout, viewed

__all__ = ["Gemm", "Work", "gemm_of", "layout_of", "work_of"]


class Gemm(NamedTuple):
    """A compute-bound step as a matrix product: 2 m n k operations."""

    m: int
    n: int
    k: int


class Work(NamedTuple):
    """What a kernel must at least do."""

    read_bytes: int
    """Distinct elements it reads from outside."""
    stored_bytes: int
    """What it stores."""
    flops: float
    """Operations of its compute-bound steps."""
    elements: int
    """Elements its other steps make or reduce, layout steps left out."""


def work_of(structure: Structure) -> Work:
    """The least work of a kernel."""
    touched = [0] * len(structure.inputs)
    flops, elements = 0.0, 0
    for step in structure.steps:
        seen = [layout_of(structure, ref) for ref in step.operands]
        for ref, layout in zip(step.operands, seen, strict=True):
            if ref.origin == "in":
                distinct = math.prod(n for n, s in zip(layout.shape, layout.strides, strict=True) if s)
                touched[ref.number] += min(distinct, layout.elements)
        if step.kind == "linear":
            gemm = gemm_of(step, seen)
            flops += 2.0 * gemm.m * gemm.n * gemm.k
        elif step.kind != "layout":
            elements += max([math.prod(step.value.shape), *(layout.elements for layout in seen)])
    read = sum(min(count, math.prod(value.shape)) * ITEM_BYTES[value.dtype]
               for count, value in zip(touched, structure.inputs, strict=True))
    values = [structure.steps[s].value for s in structure.outputs]
    stored = sum(math.prod(value.shape) * ITEM_BYTES[value.dtype] for value in values)
    return Work(read, stored, flops, elements)


def gemm_of(step: Step, seen: list[Layout]) -> Gemm:
    """A compute-bound step as a matrix product: rows, columns, and the length that is summed over.

    Convolutions count as products over their unrolled windows. For overloads nobody described here the summed length
    is taken as 1, which never counts too much.
    """
    out = math.prod(step.value.shape)
    name = step.op.split(".")[1]
    if name == "convolution" and len(seen) > 1:
        weight = seen[1].shape
        taps = math.prod(weight[1:])
        transposed = bool(step.arguments and len(step.arguments) > 6 and step.arguments[6] is True)
        if transposed:
            taps = math.prod((weight[0], *weight[2:]))
            return Gemm(max(1, math.prod(seen[0].shape) // max(1, weight[0])), weight[1] * math.prod(weight[2:]),
                        max(1, taps // max(1, math.prod(weight[2:]))))
        columns = weight[0]
        return Gemm(max(1, out // max(1, columns)), columns, taps)
    first = {"addmm": 1, "baddbmm": 1, "addbmm": 1, "addmv": 1}.get(name, 0)
    known = name in ("mm", "bmm", "matmul", "linear", "addmm", "baddbmm", "mv", "dot", "addbmm", "addmv")
    if known and len(seen) > first and seen[first].shape:
        columns = step.value.shape[-1] if step.value.shape else 1
        return Gemm(max(1, out // max(1, columns)), columns, seen[first].shape[-1])
    return Gemm(out, 1, 1)


def layout_of(structure: Structure, ref: ValueRef) -> Layout:
    """What a step sees of a value."""
    value: StoredValue = structure.inputs[ref.number] if ref.origin == "in" else structure.steps[ref.number].value
    return viewed(Layout(value.shape, value.strides, 0), ref.views)

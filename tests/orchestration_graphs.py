"""Small primitive graphs for tests, from lists of predecessors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from planners.orchestration.graph import Operand, Primitive, PrimitiveGraph, Tensor, validate
from planners.orchestration.problem import Limits

__all__ = ["FIGURE_4", "FIGURE_4_LINEAR", "FREE", "PAPER", "dag", "fork_join", "random_dag", "with_alternatives"]

FIGURE_4: Sequence[Sequence[int]] = ((), (0,), (0,), (0,), (1, 2), (4,), (5,), (3,), (6, 7), (8,), (9,), (9, 10))
"""Predecessors of the paper's small graph (figure 4), from 0."""
FIGURE_4_LINEAR = (4, 8)
FREE = Limits(largest=99, per_output=10_000, whole=False, most_linear=9, prologues=True)
"""Every kernel that can be grown."""
PAPER = replace(FREE, space="convex", most_linear=0)
"""The released rules: convex, linear primitives alone."""


def dag(preds: Sequence[Sequence[int]], *, linear: Collection[int] = (), opaque: Collection[int] = (),
        outputs: Sequence[int] | None = None, distinct: bool = True, side: int = 8) -> PrimitiveGraph:
    """A graph whose primitive i reads ``preds[i]`` (the program's input when empty).

    Args:
        preds: predecessors of each primitive.
        linear: compute-bound primitives.
        opaque: primitives that run alone.
        outputs: primitives whose tensors are returned; those that nobody reads by default.
        distinct: whether each primitive has an operation of its own, so that no two kernels have one structure.
        side: tensors are side by side.
    """
    read = {p for row in preds for p in row}
    final = [i for i in range(len(preds)) if i not in read] if outputs is None else outputs
    tensors = [Tensor(name="x", shape=(side, side), role="input"),
               *(Tensor(name=f"t{i}", shape=(side, side)) for i in range(len(preds)))]
    kinds = {**dict.fromkeys(linear, "linear"), **dict.fromkeys(opaque, "opaque")}
    primitives = tuple(
        Primitive(name=f"p{i}", op=f"test.op{i}.default" if distinct else "aten.relu.default",
                  kind=kinds.get(i, "elementwise"),  # type: ignore[arg-type]
                  inputs=tuple(Operand(tensor=f"t{p}") for p in row) or (Operand(tensor="x"),), output=f"t{i}")
        for i, row in enumerate(preds))
    graph = PrimitiveGraph(name="dag", tensors=tuple(tensors), primitives=primitives, inputs=("x",),
                           outputs=tuple(Operand(tensor=f"t{i}") for i in final))
    validate(graph)
    return graph


def fork_join(width: int) -> list[list[int]]:
    """One source, ``width`` parallel primitives, one join."""
    return [[], *([0] for _ in range(width)), list(range(1, width + 1))]


def random_dag(rng: np.random.Generator, *, least: int = 4, most: int = 9) -> list[list[int]]:
    """Predecessors of a random connected DAG; every primitive but the first reads one to three earlier ones."""
    count = int(rng.integers(least, most + 1))
    return [[]] + [sorted(rng.choice(i, size=min(i, int(rng.integers(1, 4))), replace=False).tolist())
                   for i in range(1, count)]


def with_alternatives() -> PrimitiveGraph:
    """sum of e, also as a product with ones; and a circle: a from b and b from a by two rewrites."""
    def tensor(name: str, **more: object) -> Tensor:
        return Tensor(name=name, shape=(4, 4), **more)  # type: ignore[arg-type]

    def call(name: str, reads: str, output: str, rewrite: str | None = None) -> Primitive:
        return Primitive(name=name, op=f"test.{name}.default", kind="elementwise", output=output, rewrite=rewrite,
                         inputs=tuple(Operand(tensor=t) for t in reads.split()))

    graph = PrimitiveGraph(
        name="circle", tensors=(tensor("x", role="input"), tensor("a"), tensor("b"), tensor("y")), inputs=("x",),
        outputs=(Operand(tensor="y"),),
        primitives=(call("a-from-x", "x", "a"), call("b-from-x", "x", "b"), call("join", "a b", "y"),
                    call("a-from-b", "b", "a", "swap"), call("b-from-a", "a", "b", "swap")))
    validate(graph)
    return graph

"""Proofs for staging without a solver: when each node can run at the earliest and latest, and what that costs.

Energy argument: if node u runs in stage a or later, and u precedes v, then all wires of such u (and of v) must be local
somewhere in stages a..t(v), and stage k offers ``capacity[k]`` local wires. So t(v) is at least the first t with
``sum(capacity[a..t]) >= |union of masks|``, for every a. The same holds backwards, and for all nodes inside a window.
Fewest stages: the smallest s whose windows (all capacities L) are consistent.
Communication: let u(i, j) be the number of wires local in at least one of stages i..j. Merging those stages into one of
capacity u(i, j) leaves a valid schedule, so inconsistent windows rule the value out. And ``u(i, j) - L`` is at most the
sum of S and at most R plus the sum of T over the transitions inside (S wires become local, T become global).
Legend: L, R, G local, regional, global wires; n wires; s stages; c weight of a wire that becomes global.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from planners.circuit.dag import StageDag

__all__ = ["MovesBound", "Shape", "Windows", "cheapest_moves", "fewest_stages", "windows"]


class Shape(NamedTuple):
    """Numbers of local, regional and global wires, and the weight of becoming global."""

    local: int
    regional: int
    globals: int
    global_cost: float

    @property
    def wires(self) -> int:
        """n."""
        return self.local + self.regional + self.globals

    @property
    def away(self) -> int:
        """Wires that are not local in a stage."""
        return self.regional + self.globals


class Windows(NamedTuple):
    """First and last stage in which each node can run."""

    first: tuple[int, ...]
    last: tuple[int, ...]


def windows(dag: StageDag, capacity: Sequence[int]) -> Windows | None:
    """Windows of all nodes for stages of the given capacities, or ``None`` if they prove that no schedule exists."""
    stages = len(capacity)
    first = _sweep(range(dag.size), dag.before, dag.masks, capacity)
    if first is None:
        return None
    back = _sweep(range(dag.size - 1, -1, -1), dag.after, dag.masks, capacity[::-1])
    if back is None:
        return None
    last = [stages - 1 - t for t in back]
    inside: dict[tuple[int, int], int] = {}
    for a, b, mask in zip(first, last, dag.masks, strict=True):
        if a > b:
            return None
        inside[a, b] = inside.get((a, b), 0) | mask
    for low in range(stages):
        offered = 0
        for high in range(low, stages):
            offered += capacity[high]
            union = 0
            for (a, b), mask in inside.items():
                if a >= low and b <= high:
                    union |= mask
            if union.bit_count() > offered:
                return None
    return Windows(tuple(first), tuple(last))


def _sweep(order: Iterable[int], before: Sequence[Sequence[int]], masks: Sequence[int],
           capacity: Sequence[int]) -> list[int] | None:
    """Earliest stage of each node by the energy argument; ``None`` once a node has no stage left.

    ``above[v][a]``: union of the masks of v and its ancestors that run in stage a or later.
    """
    stages = len(capacity)
    offered = [0]
    for c in capacity:
        offered.append(offered[-1] + c)
    first = [0] * len(masks)
    above: list[list[int]] = [[]] * len(masks)
    for v in order:
        direct = before[v]
        earliest = 0
        if direct:
            union = above[direct[0]].copy()
            earliest = first[direct[0]]
            for u in direct[1:]:
                if first[u] > earliest:
                    earliest = first[u]
                for a, mask in enumerate(above[u]):
                    union[a] |= mask
        else:
            union = [0] * stages
        mask = masks[v]
        for a in range(earliest, -1, -1):
            wanted = (union[a] | mask).bit_count() + offered[a]
            while offered[earliest + 1] < wanted:
                earliest += 1
                if earliest >= stages:
                    return None
        first[v] = earliest
        for a in range(earliest + 1):
            union[a] |= mask
        above[v] = union
    return first


def fewest_stages(dag: StageDag, local: int) -> tuple[int, Windows]:
    """A proven lower bound on the number of stages, and the windows at that number.

    Every mask must fit into ``local`` wires.
    """
    stages = 1
    while True:
        found = windows(dag, [local] * stages)
        if found is not None:
            return stages, found
        stages += 1


class MovesBound(NamedTuple):
    """Proven least communication for a number of stages, and how it divides."""

    cost: float
    becoming_local: int
    becoming_global: int


def cheapest_moves(dag: StageDag, shape: Shape, stages: int) -> MovesBound:
    """Lower bound on the communication of any schedule with ``stages`` stages (which ``windows`` must allow).

    Every interval of stages demands some moves inside it; the most expensive chain of intervals is a lower bound,
    and the least sum that satisfies all interval demands (interval matrices are totally unimodular).
    """
    local, global_ = [0] * stages, [0] * stages
    for high in range(1, stages):
        for low in range(high):
            grown = _least_growth(dag, shape, stages, span=(low, high))
            local[high] = max(local[high], local[low] + grown)
            if shape.globals:
                global_[high] = max(global_[high], global_[low] + max(0, grown - shape.regional))
    return MovesBound(local[-1] + shape.global_cost * global_[-1], local[-1], global_[-1])


def _least_growth(dag: StageDag, shape: Shape, stages: int, *, span: tuple[int, int]) -> int:
    """Fewest wires beyond L that must be local somewhere in the span of stages (both ends included)."""
    low, high = span

    def possible(growth: int) -> bool:
        merged = [shape.local] * low + [shape.local + growth] + [shape.local] * (stages - 1 - high)
        return windows(dag, merged) is not None

    # at the fewest stages all or nothing is the usual answer
    if possible(0):
        return 0
    if not possible(shape.away - 1):
        return shape.away
    refuted, allowed = 0, shape.away - 1
    while allowed - refuted > 1:
        middle = (refuted + allowed) // 2
        refuted, allowed = (refuted, middle) if possible(middle) else (middle, allowed)
    return allowed

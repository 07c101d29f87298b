"""Answers by other means: shortest path over sets of stored tensors, and convexity from its definition."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from planners.orchestration.enumeration import Grown, Kernels
from planners.orchestration.masks import bits
from planners.orchestration.options import Option

__all__ = ["brute_force_cones", "convex_by_definition", "down_sets", "options_of", "shortest",
           "shortest_program", "subsets", "targets_of"]

Kernel = tuple[frozenset[int], frozenset[int], float]
"""Tensors read, tensors stored, seconds."""


def shortest_program(kernels: Sequence[Kernel], targets: frozenset[int]) -> float:
    """Least total time of a sequence of kernels after which all targets are stored: Dijkstra over sets of tensors.

    A kernel may run once all it reads is stored, so no sequence holds a circle; infinite when there is none.
    """
    best: dict[frozenset[int], float] = {frozenset(): 0.0}
    heap: list[tuple[float, int, frozenset[int]]] = [(0.0, 0, frozenset())]
    serial = itertools.count(1)
    while heap:
        seconds, _, stored = heapq.heappop(heap)
        if seconds > best[stored]:
            continue
        if targets <= stored:
            return seconds
        for reads, makes, cost in kernels:
            if reads <= stored and not makes <= stored:
                after = stored | makes
                if seconds + cost < best.get(after, math.inf):
                    best[after] = seconds + cost
                    heapq.heappush(heap, (seconds + cost, next(serial), after))
    return math.inf


def _reaches(preds: Sequence[Sequence[int]]) -> list[set[int]]:
    """Ancestors of each node, itself left out."""
    above: list[set[int]] = []
    for row in preds:
        above.append(set(row).union(*(above[p] for p in row)))
    return above


def convex_by_definition(preds: Sequence[Sequence[int]], members: frozenset[int]) -> bool:
    """No path leaves ``members`` and comes back."""
    above = _reaches(preds)
    return not any(above[b] & members and b in above[a] for a in members for b in set(range(len(preds))) - members)


def down_sets(preds: Sequence[Sequence[int]]) -> list[frozenset[int]]:
    """All sets that hold the predecessors of their members (execution states), the empty one too."""
    return [s for s in subsets(len(preds)) if all(set(preds[v]) <= s for v in s)]


def subsets(count: int) -> Iterator[frozenset[int]]:
    """All subsets of the first ``count`` numbers."""
    for mask in range(1 << count):
        yield frozenset(i for i in range(count) if mask >> i & 1)


def brute_force_cones(preds: Sequence[Sequence[int]], allowed: Iterable[frozenset[int]], *, convex: bool
                      ) -> set[tuple[frozenset[int], int]]:
    """(members, output) of every single-output kernel among ``allowed``: every member leads to the output inside."""
    found = set()
    for members in allowed:
        if not members or (convex and not convex_by_definition(preds, members)):
            continue
        sinks = [v for v in members if not any(v in preds[w] for w in members)]
        if len(sinks) == 1:  # in a DAG every member then leads to it
            found.add((members, sinks[0]))
    return found


def options_of(kernels: Kernels, seconds: Callable[[Grown], float]) -> list[Option]:
    """Grown kernels as options of the binary program, at a price each."""
    return [Option(g.makes, g.reads, g.members, seconds(g)) for g in kernels.grown]


def targets_of(kernels: Kernels) -> int:
    """Tensors that the outputs need, as a mask."""
    number = {name: i for i, name in enumerate(kernels.tensors)}
    return sum(1 << number[t] for t in kernels.index.targets)


def shortest(options: Sequence[Option], targets: int) -> float:
    """``shortest_program`` of options of the binary program."""
    return shortest_program([(frozenset(bits(o.reads)), frozenset(o.makes), o.seconds) for o in options],
                            frozenset(bits(targets)))

"""Series-parallel tree of an operator graph: of its order, so data edges that a path implies do not matter.

series: every operator of a child precedes every operator of the next; parallel: no operator of one child is ordered
with one of another. A set that is neither contains an N (a->c, b->c, b->d) and is made series by adding order edges
for planning only: all operators up to some depth before all deeper ones, at the depth that adds the fewest pairs.
Branches of equal shape and cost share a ``kind``, so that the search looks at each kind once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from planners.pipeline.graph import OperatorGraph, bits
from planners.pipeline.layers import measured_by_layer
from planners.pipeline.problem import Operator

__all__ = ["Node", "decompose", "is_series_parallel"]


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the tree. ``items`` are the children (a series holds no series, a parallel no parallel).

    ``groups`` of a parallel node lists the positions of children by kind: equal kinds are interchangeable. ``parts`` is
    the node as a series: its items, or itself alone.
    """

    shape: Literal["operator", "series", "parallel"]
    mask: int
    items: tuple[Node, ...] = ()
    kind: int = -1
    groups: tuple[tuple[int, ...], ...] = field(default=())
    parts: tuple[Node, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", self.items if self.shape == "series" else (self,))


def is_series_parallel(graph: OperatorGraph) -> bool:
    """Whether the order of the operators contains no N, so that no order edge has to be added."""
    added: list[int] = []
    _split(graph, graph.everything, list(graph.above), list(graph.below), added)
    return not added


def decompose(graph: OperatorGraph) -> tuple[Node, int]:
    """The tree and the number of ordered pairs that had to be added to make the graph series-parallel."""
    added: list[int] = []
    tree = _split(graph, graph.everything, list(graph.above), list(graph.below), added)
    return _Kinds(graph).mark(tree), sum(added)


def _split(graph: OperatorGraph, mask: int, above: list[int], below: list[int], added: list[int]) -> Node:
    if mask & (mask - 1) == 0:
        return Node("operator", mask)
    apart = _components(mask, lambda v: above[v] | below[v])
    if len(apart) > 1:
        return Node("parallel", mask, tuple(_split(graph, part, above, below, added) for part in apart))
    layers = _components(mask, lambda v: ~(above[v] | below[v] | 1 << v))
    if len(layers) == 1:
        layers = _sever(mask, above, added)
    layers.sort(key=lambda part: (above[_first(part)] & mask).bit_count())
    items: list[Node] = []
    for part in layers:
        node = _split(graph, part, above, below, added)
        items.extend(node.parts)
    return Node("series", mask, tuple(items))


def _first(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _components(mask: int, neighbours: Callable[[int], int]) -> list[int]:
    """Connected components of ``mask`` under a symmetric relation, each a mask, by first operator."""
    found = []
    while mask:
        part = frontier = mask & -mask
        while frontier:
            reached = 0
            for v in bits(frontier):
                reached |= neighbours(v)
            frontier = reached & mask & ~part
            part |= frontier
        found.append(part)
        mask &= ~part
    return found


def _sever(mask: int, above: Sequence[int], added: list[int]) -> list[int]:
    """Two sets in series: operators up to a depth, and the deeper ones; the fewest new pairs, then the evenest cut."""
    depth: dict[int, int] = {}
    for v in bits(mask):
        depth[v] = 1 + max((depth[u] for u in bits(above[v] & mask)), default=-1)
    best = (-1, 0, 0, 0)
    for level in range(max(depth.values())):
        upper = sum(1 << v for v, at in depth.items() if at <= level)
        lower = mask & ~upper
        pairs = upper.bit_count() * lower.bit_count()
        new = pairs - sum((above[v] & upper).bit_count() for v in bits(lower))
        if best[0] < 0 or (new, -pairs) < best[:2]:
            best = (new, -pairs, upper, lower)
    added.append(best[0])
    return [best[2], best[3]]


class _Kinds:
    """Numbers for classes of equal subtrees: same shape, same operators but for names, same edges in and out."""

    def __init__(self, graph: OperatorGraph) -> None:
        self.graph = graph
        self.numbers: dict[Hashable, int] = {}
        contents: dict[Hashable, int] = {}
        # Operators made alike share their kernels, and to compare those takes longest.
        kernels: dict[int, int] = {}
        for o in graph.operators:
            if id(o.kernels) not in kernels:
                kernels[id(o.kernels)] = contents.setdefault(o.kernels, len(contents))
        self.content = [contents.setdefault((kernels[id(o.kernels)], _content(o)), len(contents))
                        for o in graph.operators]

    def mark(self, node: Node) -> Node:
        items = tuple(self.mark(item) for item in node.items)
        kind = self.numbers.setdefault(self._signature(node), len(self.numbers))
        groups: dict[int, list[int]] = {}
        if node.shape == "parallel":
            for position, item in enumerate(items):
                groups.setdefault(item.kind, []).append(position)
        return Node(node.shape, node.mask, items, kind, tuple(map(tuple, groups.values())))

    def _signature(self, node: Node) -> Hashable:
        order = _canonical(node)
        place = {v: i for i, v in enumerate(order)}
        around: list[Hashable] = []
        for v in order:
            around.append(self.content[v])
            around.append(tuple(sorted((0, place[u], size) if u in place else (1, u, size)
                                       for u, size in self.graph.reads[v])))
            around.append(tuple(sorted((0, place[w], size) if w in place else (1, w, size)
                                       for w, size in self.graph.read_by[v])))
        return _outline(node), tuple(around)


def _content(o: Operator) -> Hashable:
    """What an operator costs beside its kernels."""
    return (tuple(sorted(o.forward_s.items())), tuple(sorted(o.backward_s.items())), o.forward_s_per_sample,
            o.backward_s_per_sample, o.weight_bytes, o.saved_bytes_per_sample, o.output_bytes_per_sample,
            o.source, o.layer if measured_by_layer(o) else None)


def _outline(node: Node) -> Hashable:
    """The tree's shape without its operators."""
    return node.shape, tuple(_outline(item) for item in node.items)


def _canonical(node: Node) -> list[int]:
    """Operators in the order of the tree."""
    if node.shape == "operator":
        return [_first(node.mask)]
    return [v for item in node.items for v in _canonical(item)]

"""What all probes of one tree share: a node of each kind, masks of runs of items and of whole branches."""

from __future__ import annotations

import math
from collections.abc import Iterator

from planners.pipeline.decomposition import Node

__all__ = ["Counts", "Shape", "joined"]

# Branches of a fork by kind.
Counts = tuple[int, ...]

_MANY_GROUPS = 4096


class Shape:
    """Of a tree; nodes of one kind share what is known of the first of them."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.of_kind: dict[int, Node] = {}
        self._spans: dict[tuple[int, int, int], int] = {}
        self._vectors: dict[tuple[Counts, int, bool], list[Counts]] = {}
        self._wholes: dict[tuple[int, Counts], int] = {}
        self._register(root)

    def _register(self, node: Node) -> None:
        self.of_kind.setdefault(node.kind, node)
        for item in node.items:
            self._register(item)

    def span(self, node: Node, lo: int, hi: int) -> int:
        """Mask of items lo … hi - 1."""
        key = (node.mask, lo, hi)
        found = self._spans.get(key)
        if found is None:
            found = self._spans[key] = joined(node, lo, hi)
        return found

    def whole(self, fork: Node, vector: Counts) -> int:
        """Mask of the first branches of each kind."""
        key = (fork.mask, vector)
        found = self._wholes.get(key)
        if found is None:
            found = 0
            for group, n in zip(fork.groups, vector, strict=True):
                for position in group[:n]:
                    found |= fork.items[position].mask
            self._wholes[key] = found
        return found

    def vectors(self, counts: Counts, first: int, joined: bool) -> list[Counts]:
        """Numbers of whole branches by kind that a stage can take, the largest first: joined to others one or more,
        grouped among themselves two or more with one of kind ``first``. Of very many kinds only intervals in the order
        of the kinds."""
        key = (counts, first, joined)
        found = self._vectors.get(key)
        if found is None:
            found = self._vectors[key] = [v for v in reversed(list(self._list_vectors(counts, first)))
                                         if (any(v) if joined else v[first] and sum(v) > 1)]
        return found

    def _list_vectors(self, counts: Counts, first: int) -> Iterator[Counts]:
        if math.prod(c + 1 for c in counts) <= _MANY_GROUPS // 8:
            yield from _product(counts)
            return
        yield (0,) * len(counts)
        for start in range(first, len(counts)):
            vector = [0] * len(counts)
            for g in range(start, len(counts)):
                for n in range(1, counts[g] + 1):
                    vector[g] = n
                    yield tuple(vector)


def _product(counts: Counts) -> Iterator[Counts]:
    if not counts:
        yield ()
        return
    for n in range(counts[0] + 1):
        for rest in _product(counts[1:]):
            yield (n, *rest)


def joined(node: Node, lo: int, hi: int) -> int:
    """Mask of items lo … hi - 1."""
    mask = 0
    for item in node.parts[lo:hi]:
        mask |= item.mask
    return mask

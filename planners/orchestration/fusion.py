"""Greedy pairwise fusion, the way TorchInductor's scheduler fuses vertically: the baseline that looks at no times.

Every primitive starts as a group. Of all groups where one reads what another makes, the pair that shares most bytes is
merged, as long as the groups stay free of circles, hold no more compute-bound primitives than allowed (and compute
nothing that such a one reads), and no more than 64 primitives; then the next. A group stores what others need of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from planners.orchestration.masks import bits

__all__ = ["FusionNode", "greedy_groups"]

_LARGEST = 64


class FusionNode(NamedTuple):
    """A primitive or group: masks of the tensors it reads and makes."""

    reads: int
    makes: int
    linear: bool
    opaque: bool


def greedy_groups(nodes: Sequence[FusionNode], sizes: Sequence[int], *, most_linear: int) -> list[list[int]]:
    """Positions in ``nodes`` (in an order that runs) by group, groups by first member.

    Args:
        nodes: the primitives.
        sizes: bytes of each tensor.
        most_linear: most compute-bound primitives of a group with others.
    """
    maker = {t: i for i, node in enumerate(nodes) for t in bits(node.makes)}
    group = list(range(len(nodes)))
    members = {i: [i] for i in range(len(nodes))}
    edges: dict[tuple[int, int], int] = {}
    for i, node in enumerate(nodes):
        for t in bits(node.reads):
            if t in maker:
                edges[maker[t], i] = edges.get((maker[t], i), 0) + sizes[t]
    after: list[set[int]] = [set() for _ in nodes]
    for a, b in edges:
        after[a].add(b)
    for (a, b), _ in sorted(edges.items(), key=lambda item: (-item[1], item[0])):
        first, second = group[a], group[b]
        if first == second or not _fits(nodes, members[first], members[second], most_linear):
            continue
        if _goes_around(first, second, after):
            continue
        members[first] += members.pop(second)
        for i in members[first]:
            group[i] = first
        after[first] = (after[first] | after[second]) - {first, second}
        after[second] = set()
        for following in after:
            if second in following:
                following.discard(second)
                following.add(first)
        after[first].discard(first)
    return sorted(sorted(m) for m in members.values())


def _fits(nodes: Sequence[FusionNode], first: Sequence[int], second: Sequence[int], most_linear: int) -> bool:
    both = [nodes[i] for i in (*first, *second)]
    if len(both) > _LARGEST or any(node.opaque for node in both):
        return False
    if sum(node.linear for node in both) > most_linear:
        return False
    made = 0
    for node in both:
        made |= node.makes
    return not any(node.linear and node.reads & made for node in both)


def _goes_around(first: int, second: int, after: Sequence[set[int]]) -> bool:
    """Whether a path leads from ``first`` to ``second`` through another group."""
    waiting = [g for g in after[first] if g != second]
    seen = set(waiting)
    while waiting:
        g = waiting.pop()
        if g == second:
            return True
        for following in after[g]:
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return False

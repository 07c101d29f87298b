"""From the choices of a probe to stages of the real tree: equal branches are taken in order."""

from __future__ import annotations

from typing import Any, NamedTuple

from planners.pipeline.decomposition import Node
from planners.pipeline.pricing import Prices
from planners.pipeline.shape import joined

__all__ = ["Chosen", "Reading"]


class Chosen(NamedTuple):
    """One stage of a found stage graph."""

    mask: int
    micro: int
    replicas: int


class Reading:
    """Turns the choices of a front into stages of the real tree.

    A choice holds the operators it was priced with: the first of each kind.
    """

    def __init__(self, prices: Prices, out: list[Chosen]) -> None:
        self.prices, self.out = prices, out

    def chain(self, choice: Any, node: Node, hi: int) -> None:
        """A choice of ``_chain`` for items … hi - 1 of ``node``."""
        if choice is None:
            return
        if choice[0] == "open":
            self.before(choice[1], node, hi - 1, _Branches(node.parts[hi - 1]), None)
        else:
            self.stage(choice, node, hi, 0)

    def stage(self, choice: Any, node: Node, hi: int, head: int) -> None:
        """A choice of a stage with ``head`` of what follows, and of what stands before it."""
        kind, j, b, d, _, priced, *_ = choice
        mask = head | joined(node, j, hi)
        if kind == "run":
            self._take(mask, b, d, priced)
            self.chain(choice[6], node, j)
            return
        whole, tail, rest = choice[6:]
        branches = _Branches(node.parts[j - 1])
        for g, n in enumerate(whole):
            for _ in range(n):
                mask |= branches.take(g).mask
        cut = None
        if tail is not None:
            child = branches.take(tail[0])
            mask |= joined(child, tail[1], len(child.parts))
            cut = (child, tail[1])
        self._take(mask, b, d, priced)
        self.before(rest, node, j - 1, branches, cut)

    def before(self, choice: Any, node: Node, p: int, branches: _Branches, cut: tuple[Node, int] | None) -> None:
        """A choice of ``_before``; ``cut`` is the branch whose tail went to a later stage."""
        if choice[0] == "closed":
            group, stub = choice[1]
            self.fork(group, branches)
            if cut is not None:
                self.chain(stub, *cut)
            self.chain(choice[2], node, p)
            return
        g, q, is_tail, (remainder, (sides, _)), _ = choice[4]
        if is_tail:
            assert cut is not None
            child, length = cut
            others, stub = sides
        else:
            child = branches.take(g)
            length = len(child.parts)
            others, stub = sides
            if cut is not None:
                self.chain(stub, *cut)
        self.fork(others, branches)
        self.chain(remainder, child, length)
        self.stage(choice, node, p, joined(child, 0, q))

    def fork(self, choice: Any, branches: _Branches) -> None:
        """A choice of ``_fork``."""
        while choice is not None:
            if choice[0] == "alone":
                child = branches.take(choice[1])
                self.chain(choice[2], child, len(child.parts))
                choice = choice[3]
                continue
            _, vector, b, d, priced, choice = choice
            mask = 0
            for g, n in enumerate(vector):
                for _ in range(n):
                    mask |= branches.take(g).mask
            self._take(mask, b, d, priced)

    def _take(self, mask: int, micro: int, replicas: int, priced: int) -> None:
        self.prices.alike(mask, priced, micro)
        self.out.append(Chosen(mask, micro, replicas))


class _Branches:
    """The branches of a real fork, handed out by kind."""

    def __init__(self, fork: Node) -> None:
        self.left = [[fork.items[p] for p in group] for group in fork.groups]

    def take(self, group: int) -> Node:
        return self.left[group].pop(0)

"""The operator graph in the form the search works on: operators by number, sets of them as bit masks.

Operators are numbered in a topological order that keeps the order of the spec where it can, so a set's bits in
ascending order are a valid execution order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from planners.pipeline.problem import Edge, Operator
from workbench.errors import SpecError

__all__ = ["OperatorGraph", "bits", "build"]


def bits(mask: int) -> list[int]:
    """Positions of the set bits, ascending."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


@dataclass(frozen=True, slots=True)
class OperatorGraph:
    """Operators in topological order with their data edges (producer, consumer, bytes a sample).

    ``above[v]`` and ``below[v]`` are the masks of all operators before and after v, ``parents[v]`` and ``children[v]``
    of those that v reads and that read v. ``largest[v]`` are the bytes a sample that the reader of most reads of v; the
    mask ``uneven`` has the operators of which some read less.
    """

    operators: tuple[Operator, ...]
    edges: tuple[tuple[int, int, float], ...]
    above: tuple[int, ...] = field(repr=False)
    below: tuple[int, ...] = field(repr=False)
    reads: tuple[tuple[tuple[int, float], ...], ...] = field(repr=False)
    read_by: tuple[tuple[tuple[int, float], ...], ...] = field(repr=False)
    parents: tuple[int, ...] = field(repr=False)
    children: tuple[int, ...] = field(repr=False)
    largest: tuple[float, ...] = field(repr=False)
    uneven: int = field(repr=False)

    def __len__(self) -> int:
        return len(self.operators)

    @property
    def everything(self) -> int:
        """Mask of all operators."""
        return (1 << len(self)) - 1

    def convex(self, mask: int) -> bool:
        """Whether no path leaves ``mask`` and comes back."""
        before = after = 0
        for v in bits(mask):
            before |= self.above[v]
            after |= self.below[v]
        return not (before & after & ~mask)

    def received(self, mask: int, members: Sequence[int]) -> float:
        """Bytes a sample that ``mask`` (its ``members``) reads from outside; a tensor read twice comes once."""
        before = 0
        for v in members:
            before |= self.parents[v]
        before &= ~mask
        if not before & self.uneven:
            return sum([self.largest[u] for u in bits(before)])
        return sum([max([size for v, size in self.read_by[u] if mask >> v & 1]) for u in bits(before)])

    def sent(self, mask: int, members: Sequence[int]) -> float:
        """Bytes a sample that others read from ``mask`` (its ``members``); a tensor counts once."""
        if not mask & self.uneven:
            return sum([self.largest[u] for u in members if self.children[u] & ~mask])
        return sum([max([size for v, size in self.read_by[u] if not mask >> v & 1])
                    for u in members if self.children[u] & ~mask])


def build(operators: Sequence[Operator], edges: Iterable[Edge], *, where: str = "edges") -> OperatorGraph:
    """The graph of ``operators`` and ``edges``.

    Raises:
        SpecError: the edges form a cycle, name unknown operators, or there are no operators.
    """
    if not operators:
        raise SpecError("a model needs at least one operator", where=where)
    index = {o.name: i for i, o in enumerate(operators)}
    into: list[dict[int, float]] = [{} for _ in operators]
    for e in edges:
        try:
            u, v = index[e.producer], index[e.consumer]
        except KeyError as error:
            raise SpecError(f"there is no operator {error.args[0]!r}", where=where) from None
        size = operators[u].output_bytes_per_sample if e.bytes_per_sample is None else e.bytes_per_sample
        into[v][u] = max(size, into[v].get(u, 0.0))
    order = _topological(into, [o.name for o in operators], where)
    place = {old: new for new, old in enumerate(order)}
    n = len(operators)
    reads: list[list[tuple[int, float]]] = [[] for _ in range(n)]
    read_by: list[list[tuple[int, float]]] = [[] for _ in range(n)]
    above, below = [0] * n, [0] * n
    for v in range(n):
        for u_old, size in into[order[v]].items():
            u = place[u_old]
            reads[v].append((u, size))
            read_by[u].append((v, size))
            above[v] |= above[u] | 1 << u
    for u in reversed(range(n)):
        for v, _ in read_by[u]:
            below[u] |= below[v] | 1 << v
    return OperatorGraph(operators=tuple(operators[i] for i in order),
                         edges=tuple((u, v, size) for v in range(n) for u, size in reads[v]),
                         above=tuple(above), below=tuple(below),
                         reads=tuple(map(tuple, reads)), read_by=tuple(map(tuple, read_by)),
                         parents=tuple(map(_mask, reads)), children=tuple(map(_mask, read_by)),
                         largest=tuple([max([size for _, size in mine], default=0.0) for mine in read_by]),
                         uneven=sum(1 << u for u, mine in enumerate(read_by) if len({size for _, size in mine}) > 1))


def _mask(edges: Sequence[tuple[int, float]]) -> int:
    return sum(1 << v for v, _ in edges)


def _topological(into: Sequence[dict[int, float]], names: Sequence[str], where: str) -> list[int]:
    """Depth-first order by the spec's order: a branch's operators stay together."""
    done: list[int] = []
    state = [0] * len(into)
    for root in range(len(into)):
        stack = [root]
        while stack:
            v = stack[-1]
            if state[v] == 2:
                stack.pop()
                continue
            waiting = [u for u in into[v] if state[u] != 2]
            state[v] = 1
            if not waiting:
                state[v] = 2
                done.append(v)
                stack.pop()
                continue
            loops = [u for u in waiting if state[u] == 1]
            if loops:
                raise SpecError(f"the operators form a cycle through {names[loops[0]]!r} and {names[v]!r}", where=where)
            stack.extend(reversed(waiting))
    return done

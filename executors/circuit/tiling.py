"""Which primitives run together on a tile, and in which order: the CPU's own kernelization.

A tile kernel works on a set S of wires (the tile's coordinates). Ready primitives whose mixed wires lie in S run;
wires they only read may lie outside. Two primitives on a wire commute when both only read it (phases, controls) or
both only add to it (CX targets), so a wire's history is a chain of groups and "ready" means: front group on every
wire. Kernels are chosen greedily: S grows by what the ready primitives miss, several growth rules are tried and the
one that runs most is taken. Inside a kernel matrices go first, then CX maps, and phases wait until they free one of
these, so that all phases between two layers become one pass.

Consecutive sets share at least ``run`` wires, which sit at the lowest addresses (contiguous memory rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from executors.circuit.lower import Flip, Matrix, Phase, Primitive, Turn
from workbench.errors import SpecError

__all__ = ["Step", "TileKernel", "tile_kernels"]


@dataclass(frozen=True, slots=True)
class Step:
    """Primitives of one kind that run one after the other: ``matrix``, ``flip`` or ``phase``."""

    kind: str
    primitives: tuple[Primitive, ...]


@dataclass(frozen=True, slots=True)
class TileKernel:
    """Wires of the tile, those of them that must be at the lowest addresses, and the steps."""

    wires: frozenset[int]
    low: tuple[int, ...]
    steps: tuple[Step, ...]


def _described(p: Primitive) -> tuple[str, int, list[tuple[int, str]]]:
    """Its kind, the wires that must lie in the tile, and each wire's role: r reads, a adds over GF(2), m mixes."""
    if isinstance(p, Phase):
        return "phase", 0, [(w, "r") for w in p.wires]
    if isinstance(p, Turn):
        return "matrix", 1 << p.wire, [(p.wire, "m")]
    if isinstance(p, Flip):
        return "flip", 1 << p.target, [(p.control, "r"), (p.target, "a")]
    mixed = [p.wire] if isinstance(p, Matrix) else list(p.wires)
    return "matrix", mask_of(mixed), [(w, "m") for w in mixed] + [(w, "r") for w, _ in p.controls]


def mask_of(wires: Iterable[int]) -> int:
    """A set of wires as the bits of a number."""
    mask = 0
    for w in wires:
        mask |= 1 << w
    return mask


def _wires(mask: int) -> list[int]:
    """The wires of a mask, ascending."""
    return [w for w in range(mask.bit_length()) if mask >> w & 1]


class _Order:
    """The partial order of a list of primitives, and how far it has been executed."""

    def __init__(self, primitives: Sequence[Primitive]) -> None:
        described = [_described(p) for p in primitives]
        self.primitives = primitives
        self.kind = [kind for kind, _, _ in described]
        self.needs = [needs for _, needs, _ in described]
        groups: list[list[int]] = []
        following: list[int] = []
        self.of: list[list[int]] = []
        self.waiting: list[int] = []
        last: dict[int, tuple[int, str]] = {}
        front: set[int] = set()
        for i, (_, _, roles) in enumerate(described):
            mine = []
            waiting = 0
            for w, role in roles:
                group, kind = last.get(w, (-1, ""))
                if kind != role or role == "m":
                    new = len(groups)
                    groups.append([])
                    following.append(-1)
                    if group < 0:
                        front.add(new)
                    else:
                        following[group] = new
                    group = new
                    last[w] = (group, role)
                groups[group].append(i)
                waiting += group not in front
                mine.append(group)
            self.of.append(mine)
            self.waiting.append(waiting)
        self.groups, self.following = groups, following
        self.left = [len(members) for members in groups]
        self.ready = [i for i, n in enumerate(self.waiting) if n == 0]
        self.remaining = len(primitives)

    def fork(self) -> _Order:
        """A copy whose execution leaves this one alone (the order itself is shared)."""
        twin = object.__new__(_Order)
        twin.primitives, twin.kind, twin.needs = self.primitives, self.kind, self.needs
        twin.groups, twin.following, twin.of = self.groups, self.following, self.of
        twin.waiting, twin.left, twin.ready = self.waiting.copy(), self.left.copy(), self.ready.copy()
        twin.remaining = self.remaining
        return twin

    def drain(self, inside: int, kind: str | None = None) -> list[int]:
        """Execute all that needs only wires of ``inside`` (and is of one kind) until nothing is ready; the order.

        ``ready`` keeps the rest.
        """
        needs, kinds, left, waiting = self.needs, self.kind, self.left, self.waiting
        groups, follows, of = self.groups, self.following, self.of
        outside = ~inside
        done: list[int] = []
        rest: list[int] = []
        stack = self.ready
        while stack:
            following: list[int] = []
            for i in stack:
                if needs[i] & outside or (kind is not None and kinds[i] != kind):
                    rest.append(i)
                    continue
                done.append(i)
                for group in of[i]:
                    left[group] -= 1
                    if left[group] == 0 and (after := follows[group]) >= 0:
                        for j in groups[after]:
                            waiting[j] -= 1
                            if waiting[j] == 0:
                                following.append(j)
            stack = following
        self.ready = rest
        self.remaining -= len(done)
        return done


def tile_kernels(primitives: Sequence[Primitive], *, wires: Sequence[int], size: int, run: int,
                 low: Sequence[int] | None) -> list[TileKernel]:
    """Cut ``primitives`` into tile kernels.

    Args:
        primitives: in program order.
        wires: local wires (those that may be tile coordinates).
        size: tile coordinates of a kernel; at most ``len(wires)``.
        run: how many of them must be at the lowest addresses.
        low: wires now at the ``run`` lowest addresses; ``None`` when the layout is still free.
    """
    order = _Order(primitives)
    size, run = min(size, len(wires)), min(run, len(wires))
    chosen: list[tuple[int, tuple[Step, ...]]] = []
    previous = None if low is None else mask_of(low)
    while order.remaining:
        wanted = _choose(order, size, run, previous)
        if not wanted:
            trial = order.fork()
            trial.drain(0)
            if trial.ready:
                wanted = _step_towards(order.needs[min(trial.ready)], size, run, previous)
            elif chosen:
                break
        group = _fill(wanted, size, chosen[-1][0] if chosen else previous, wires)
        steps = _schedule(order, group)
        chosen.append((group, tuple(steps)))
        previous = group
    if order.remaining:
        group, before = chosen[-1]
        rest = tuple(order.primitives[i] for i in order.drain(-1))
        chosen[-1] = (group, (*before, Step("phase", rest)))
    return _with_low(chosen, run, low)


def _step_towards(needs: int, size: int, run: int, previous: int | None) -> int:
    """A set on the way to a gate whose wires cannot all enter at once: a kernel that only moves wires."""
    if needs.bit_count() > size:
        raise SpecError(f"a gate mixes {needs.bit_count()} qubits, more than the {size} of a tile")
    assert previous is not None and size > run, "from a free layout every gate that fits can be reached"
    return needs & previous | mask_of(_wires(needs & ~previous)[: size - run])


def _fill(wanted: int, size: int, before: int | None, wires: Sequence[int]) -> int:
    """Bring a set to full size, with wires of the kernel before it first."""
    group = wanted
    for w in [*_wires(before or 0), *wires]:
        if group.bit_count() >= size:
            break
        group |= 1 << w
    return group


def _choose(order: _Order, size: int, run: int, previous: int | None) -> int:
    """The set, among several growth rules, that lets most primitives run."""
    best = (-1, 0)
    for rule in (_earliest, _nearest):
        group, done = _grow(order.fork(), size, run, previous, rule)
        if done > best[0]:
            best = (done, group)
        if done == order.remaining:
            break
    return best[1]


def _earliest(missing: dict[int, int]) -> int:
    return min(missing)


def _nearest(missing: dict[int, int]) -> int:
    """Fewest missing wires, then the wires most blocked primitives wait for."""
    votes: dict[int, int] = {}
    for lacks in missing.values():
        votes[lacks] = votes.get(lacks, 0) + 1
    return min(missing, key=lambda i: (missing[i].bit_count(), -votes[missing[i]], i))


def _grow(order: _Order, size: int, run: int, previous: int | None, rule: Callable[[dict[int, int]], int]
          ) -> tuple[int, int]:
    """(wires, primitives that mix any of them and run): ``rule`` picks which blocked primitive to let in next."""
    needs = order.needs
    group, count = 0, 0
    fresh = size if previous is None else size - run
    old = 0 if previous is None else previous
    while True:
        count += sum(1 for i in order.drain(group) if needs[i])
        missing = {}
        room = size - group.bit_count()
        for i in order.ready:
            lacks = needs[i] & ~group
            if lacks.bit_count() <= room and (lacks & ~old).bit_count() <= fresh:
                missing[i] = lacks
        if not missing:
            return group, count
        lacks = missing[rule(missing)]
        fresh -= (lacks & ~old).bit_count()
        group |= lacks


def _schedule(order: _Order, group: int) -> list[Step]:
    """Execute on ``order`` all that the group allows, in passes of one kind."""
    steps: list[Step] = []

    def perform(kind: str) -> bool:
        # phases lie anywhere: they need no wire inside
        done = order.drain(group, kind)
        if done:
            steps.append(Step(kind, tuple(order.primitives[i] for i in done)))
        return bool(done)

    while True:
        if perform("matrix"):
            continue
        trial = order.fork()
        known = set(order.ready)
        trial.drain(group, "phase")
        if any(i not in known and order.needs[i] and not order.needs[i] & ~group for i in trial.ready):
            perform("phase")
            continue
        if not perform("flip"):
            return steps


def _with_low(chosen: Sequence[tuple[int, tuple[Step, ...]]], run: int,
              low: Sequence[int] | None) -> list[TileKernel]:
    """Decide which wires sit at the lowest addresses in each kernel, changing as few as possible."""
    result = []
    current = None if low is None else list(low)
    wires = [frozenset(_wires(mask)) for mask, _ in chosen]
    for index, (group, (_, steps)) in enumerate(zip(wires, chosen, strict=True)):
        if current is None:
            following = wires[index + 1] if index + 1 < len(chosen) else group
            current = sorted(group, key=lambda w: (w not in following, w))[:run]
        missing = [w for w in current if w not in group]
        assert not missing, "the wires at the lowest addresses belong to the tile"
        result.append(TileKernel(group, tuple(current), steps))
        if index + 1 < len(chosen):
            following = wires[index + 1]
            spare = [w for w in sorted(group & following) if w not in current]
            current = [w if w in following else spare.pop(0) for w in current]
    return result

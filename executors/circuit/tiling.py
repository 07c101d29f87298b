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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from executors.circuit.lower import Dense, Flip, Matrix, Phase, Primitive, Turn
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


def _roles(p: Primitive) -> list[tuple[int, str]]:
    """(wire, role): r reads, a adds over GF(2), m mixes."""
    if isinstance(p, Phase):
        return [(w, "r") for w in p.wires]
    if isinstance(p, Flip):
        return [(p.control, "r"), (p.target, "a")]
    if isinstance(p, Turn):
        return [(p.wire, "m")]
    mixed = [p.wire] if isinstance(p, Matrix) else list(p.wires)
    return [(w, "m") for w in mixed] + [(w, "r") for w, _ in p.controls]


def _needs(p: Primitive) -> frozenset[int]:
    if isinstance(p, Phase):
        return frozenset()
    if isinstance(p, Flip):
        return frozenset((p.target,))
    if isinstance(p, Dense):
        return frozenset(p.wires)
    return frozenset((p.wire,))


class _Order:
    """The partial order of a list of primitives, and how far it has been executed."""

    def __init__(self, primitives: Sequence[Primitive]) -> None:
        self.primitives = primitives
        self.needs = [_needs(p) for p in primitives]
        self.groups: list[list[int]] = []
        self.following: list[int] = []
        self.of: list[list[int]] = []
        self.waiting: list[int] = []
        self.left: list[int] = []
        last: dict[int, tuple[int, str]] = {}
        front: set[int] = set()
        for i, p in enumerate(primitives):
            mine = []
            for w, role in _roles(p):
                group, kind = last.get(w, (-1, ""))
                if kind != role or role == "m":
                    new = len(self.groups)
                    self.groups.append([])
                    self.following.append(-1)
                    self.left.append(0)
                    if group < 0:
                        front.add(new)
                    else:
                        self.following[group] = new
                    group = new
                    last[w] = (group, role)
                self.groups[group].append(i)
                self.left[group] += 1
                mine.append(group)
            self.of.append(mine)
            self.waiting.append(sum(1 for group in mine if group not in front))
        self.ready = [i for i, n in enumerate(self.waiting) if n == 0]
        self.remaining = len(primitives)

    def fork(self) -> _Order:
        """A copy whose execution leaves this one alone (the order itself is shared)."""
        twin = object.__new__(_Order)
        twin.primitives, twin.needs = self.primitives, self.needs
        twin.groups, twin.following, twin.of = self.groups, self.following, self.of
        twin.waiting, twin.left, twin.ready = self.waiting.copy(), self.left.copy(), self.ready.copy()
        twin.remaining = self.remaining
        return twin

    def run(self, i: int) -> list[int]:
        """Execute ready primitive i; returns those that became ready (``ready`` itself is the caller's to edit)."""
        freed = []
        self.remaining -= 1
        for group in self.of[i]:
            self.left[group] -= 1
            if self.left[group] == 0:
                after = self.following[group]
                if after >= 0:
                    for j in self.groups[after]:
                        self.waiting[j] -= 1
                        if self.waiting[j] == 0:
                            freed.append(j)
        return freed

    def drain(self, allowed: Callable[[int], bool]) -> list[int]:
        """Execute everything allowed until nothing is ready; returns the order. ``ready`` keeps the rest."""
        done, stack, rest = [], self.ready, []
        while stack:
            following = []
            for i in stack:
                if allowed(i):
                    done.append(i)
                    following.extend(self.run(i))
                else:
                    rest.append(i)
            stack = following
        self.ready = rest
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
    chosen: list[tuple[frozenset[int], tuple[Step, ...]]] = []
    previous = None if low is None else frozenset(low)
    while order.remaining:
        wanted = _choose(order, size, run, previous)
        if not wanted:
            trial = order.fork()
            trial.drain(lambda i: not order.needs[i])
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
        rest = tuple(order.primitives[i] for i in order.drain(lambda i: True))
        chosen[-1] = (group, (*before, Step("phase", rest)))
    return _with_low(chosen, run, low)


def _step_towards(needs: frozenset[int], size: int, run: int, previous: frozenset[int] | None) -> frozenset[int]:
    """A set on the way to a gate whose wires cannot all enter at once: a kernel that only moves wires."""
    if len(needs) > size:
        raise SpecError(f"a gate mixes {len(needs)} qubits, more than the {size} of a tile")
    assert previous is not None and size > run, "from a free layout every gate that fits can be reached"
    return frozenset([*sorted(needs & previous), *sorted(needs - previous)[: size - run]])


def _fill(wanted: frozenset[int], size: int, before: frozenset[int] | None, wires: Sequence[int]) -> frozenset[int]:
    """Bring a set to full size, with wires of the kernel before it first."""
    group = set(wanted)
    for w in [*sorted(before or ()), *wires]:
        if len(group) >= size:
            break
        group.add(w)
    return frozenset(group)


def _choose(order: _Order, size: int, run: int, previous: frozenset[int] | None) -> frozenset[int]:
    """The set, among several growth rules, that lets most primitives run."""
    best: tuple[int, frozenset[int]] = (-1, frozenset())
    for rule in (_earliest, _nearest):
        group, done = _grow(order.fork(), size, run, previous, rule)
        if done > best[0]:
            best = (done, group)
        if done == order.remaining:
            break
    return best[1]


def _earliest(blocked: list[int], missing: dict[int, frozenset[int]]) -> int:
    return min(blocked)


def _nearest(blocked: list[int], missing: dict[int, frozenset[int]]) -> int:
    """Fewest missing wires, then the wires most blocked primitives wait for."""
    votes: dict[frozenset[int], int] = {}
    for i in blocked:
        votes[missing[i]] = votes.get(missing[i], 0) + 1
    return min(blocked, key=lambda i: (len(missing[i]), -votes[missing[i]], i))


def _grow(order: _Order, size: int, run: int, previous: frozenset[int] | None,
          rule: Callable[[list[int], dict[int, frozenset[int]]], int]) -> tuple[frozenset[int], int]:
    group: set[int] = set()
    fresh = size if previous is None else size - run
    count = 0

    def fits(i: int) -> bool:
        return order.needs[i] <= group

    while True:
        done = order.drain(fits)
        count += sum(1 for i in done if order.needs[i])
        missing = {}
        for i in order.ready:
            lacks = order.needs[i] - group
            new = lacks if previous is None else lacks - previous
            if len(group) + len(lacks) <= size and len(new) <= fresh:
                missing[i] = lacks
        if not missing:
            return frozenset(group), count
        lacks = missing[rule(list(missing), missing)]
        fresh -= len(lacks if previous is None else lacks - previous)
        group.update(lacks)


def _schedule(order: _Order, group: frozenset[int]) -> list[Step]:
    """Execute on ``order`` all that the group allows, in passes of one kind."""
    primitives = order.primitives

    def inside(kind: str) -> Callable[[int], bool]:
        if kind == "phase":
            return lambda i: isinstance(primitives[i], Phase)
        if kind == "flip":
            return lambda i: isinstance(primitives[i], Flip) and order.needs[i] <= group
        return lambda i: not isinstance(primitives[i], Phase | Flip) and order.needs[i] <= group

    steps: list[Step] = []

    def perform(kind: str) -> bool:
        done = order.drain(inside(kind))
        if done:
            steps.append(Step(kind, tuple(primitives[i] for i in done)))
        return bool(done)

    while True:
        if perform("matrix"):
            continue
        trial = order.fork()
        known = set(order.ready)
        trial.drain(inside("phase"))
        if any(i not in known and order.needs[i] and order.needs[i] <= group for i in trial.ready):
            perform("phase")
            continue
        if not perform("flip"):
            return steps


def _with_low(chosen: Sequence[tuple[frozenset[int], tuple[Step, ...]]], run: int,
              low: Sequence[int] | None) -> list[TileKernel]:
    """Decide which wires sit at the lowest addresses in each kernel, changing as few as possible."""
    result = []
    current = None if low is None else list(low)
    for index, (group, steps) in enumerate(chosen):
        if current is None:
            following = chosen[index + 1][0] if index + 1 < len(chosen) else group
            current = sorted(group, key=lambda w: (w not in following, w))[:run]
        missing = [w for w in current if w not in group]
        assert not missing, "the wires at the lowest addresses belong to the tile"
        result.append(TileKernel(group, tuple(current), steps))
        if index + 1 < len(chosen):
            following = chosen[index + 1][0]
            spare = [w for w in sorted(group & following) if w not in current]
            current = [w if w in following else spare.pop(0) for w in current]
    return result

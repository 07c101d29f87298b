"""Candidates as options of the binary program: which of them can run, are not dominated, and matter at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from planners.orchestration.masks import bits

__all__ = ["Option", "always_stored", "in_order", "makes_all", "runnable", "useful_options"]


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate for the program: masks of tensors and primitives, and what it costs."""

    makes: tuple[int, ...]
    reads: int
    members: int
    seconds: float
    stored: int = field(init=False, compare=False)
    """Mask of the tensors it makes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stored", sum(1 << t for t in self.makes))


def makes_all(options: Sequence[Option], among: Sequence[int], targets: int) -> bool:
    """Whether what these options can make holds all targets."""
    made, _ = runnable(options, among)
    return not targets & ~made


def runnable(options: Sequence[Option], among: Sequence[int]) -> tuple[int, list[int]]:
    """Tensors that can be made, and the options that can run, each after something makes what it reads."""
    made, left, order = 0, list(among), []
    while left:
        waiting = []
        for i in left:
            if options[i].reads & ~made:
                waiting.append(i)
            else:
                order.append(i)
                made |= options[i].stored
        if len(waiting) == len(left):
            break
        left = waiting
    return made, order


def useful_options(options: Sequence[Option], targets: int, *, once: bool) -> list[int]:
    """Options that can run, are not dominated, and lead to a target; ascending."""
    finite = [i for i, o in enumerate(options) if math.isfinite(o.seconds)]
    kept = sorted(runnable(options, finite)[1])
    if not once:
        kept = _undominated(options, kept)
    makers: dict[int, list[int]] = {}
    for i in kept:
        for t in options[i].makes:
            makers.setdefault(t, []).append(i)
    wanted: set[int] = set()
    seen, waiting = targets, list(bits(targets))
    while waiting:
        for i in makers.get(waiting.pop(), ()):
            if i not in wanted:
                wanted.add(i)
                waiting.extend(bits(options[i].reads & ~seen))
                seen |= options[i].reads
    return [i for i in kept if i in wanted]


def _undominated(options: Sequence[Option], among: Sequence[int]) -> list[int]:
    """Without options that another one of the same outputs replaces: no inputs of its own, no more time."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in among:
        groups.setdefault(options[i].makes, []).append(i)
    kept: list[int] = []
    for group in groups.values():
        best: list[int] = []
        for i in sorted(group, key=lambda k: (options[k].seconds, options[k].reads.bit_count(),
                                              options[k].members.bit_count(), k)):
            reads = options[i].reads
            if not any(options[j].reads & ~reads == 0 for j in best):
                best.append(i)
        kept += best
    return sorted(kept)


def in_order(options: Sequence[Option], chosen: Iterable[int]) -> tuple[list[int], list[int]]:
    """The chosen options in an order that runs (by what they need, then position), and those that never can."""
    _, order = runnable(options, list(chosen))
    ran = set(order)
    return order, [i for i in chosen if i not in ran]


def always_stored(options: Sequence[Option], among: Sequence[int], targets: int) -> int:
    """Tensors that every plan stores: those on every way to a target (dominators, over kernels of many inputs).

    ``needs[t] = t + intersection over kernels that make t of the union of needs of what they read``, from above: every
    fixed point holds only what any sequence of kernels that ends in t has stored.
    """
    makers: dict[int, list[int]] = {}
    for i in runnable(options, among)[1]:
        for t in options[i].makes:
            makers.setdefault(t, []).append(i)
    needs = dict.fromkeys(makers, -1)
    changed = True
    while changed:
        changed = False
        for t, kernels in makers.items():
            common = -1
            for i in kernels:
                through = 0
                for r in bits(options[i].reads):
                    through |= needs[r]
                common &= through
            common |= 1 << t
            changed |= common != needs[t]
            needs[t] = common
    forced = 0
    for t in bits(targets):
        forced |= needs[t]
    return forced

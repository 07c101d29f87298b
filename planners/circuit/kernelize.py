"""The paper's KERNELIZE: a dynamic program over the gate sequence whose state is a set of open kernels.

Source: Atlas, arXiv 2408.09055 (Algorithm 3). A kernel holds active wires (fusion: all it touches; tile: those it
mixes) and, for a tile, touching wires (used, not mixed). A gate is absorbed by a closed kernel nobody blocked since,
or joins an open one that covers it; otherwise each open kernel it meets is merged with it or closed, closed kernels
may swallow disjoint ones, and the gate's kernel is either kind. States beyond ``states`` are pruned by cost plus the
cost of packing their open kernels. Deviations: gates ride as in ``segments.attached``; a solution is the closed
kernels' wires in closing order, replayed so that each takes all it can, hence never an invalid order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from planners.circuit.kernels import StageGates, Step
from planners.circuit.problem import KernelKind
from planners.circuit.segments import attached

__all__ = ["kernelize"]



class _Open(NamedTuple):
    """A kernel that may still grow (or absorb): its kind, active wires (pinned ones out for a tile), touching wires."""

    kind: KernelKind
    active: int
    touching: int

    @property
    def wires(self) -> int:
        return self.active | self.touching


class _Item(NamedTuple):
    """A gate with its riders: all local wires, those mixed and not pinned, seconds inside a tile."""

    wires: int
    mixed: int
    weight: float


class _Closed(NamedTuple):
    """Linked list of closed kernels, last first."""

    kernel: _Open
    earlier: _Closed | None


class _State(NamedTuple):
    opened: tuple[_Open, ...]
    absorbing: tuple[_Open, ...]
    cost: float
    closed: _Closed | None


def kernelize(stage: StageGates, *, states: int) -> list[Step] | None:
    """Kernels by the pruned DP; ``None`` if the replay leaves gates out."""
    rules = _Rules(stage)
    layer = [_State((), (), 0.0, None)]
    for mask in attached(stage):
        item = _Item(stage.touched(mask), stage.moved(mask), stage.weights.of(mask))
        if not item.wires:
            continue
        reached: dict[tuple[_Open, ...], _State] = {}
        for state in layer:
            for following in rules.advance(state, item):
                known = reached.get(following.opened)
                if known is None or following.cost < known.cost:
                    reached[following.opened] = following
        layer = list(reached.values())
        if len(layer) > states:
            layer = sorted(layer, key=rules.estimate)[: max(1, states // 2)]
    best: list[Step] | None = None
    # the cheapest estimate need not replay cheapest
    for state in sorted(layer, key=rules.estimate)[:4]:
        found = stage.replay(_shapes(rules.finish(state)))
        if found is not None and (best is None or stage.total(found) < stage.total(best)):
            best = found
    return best


def _shapes(closed: _Closed | None) -> list[tuple[KernelKind, int]]:
    shapes: list[tuple[KernelKind, int]] = []
    while closed is not None:
        shapes.append((closed.kernel.kind, closed.kernel.active))
        closed = closed.earlier
    return shapes[::-1]


class _Rules:
    """Transitions, limits and costs of the DP for one stage."""

    def __init__(self, stage: StageGates) -> None:
        self.stage = stage
        table = stage.table
        self.fusion_s = table.fusion_s
        sizes = range(1, len(table.fusion_s))
        self.fusion_best = min(sizes, key=lambda m: table.fusion_s[m] / m)

    def price(self, kernel: _Open) -> float:
        """Seconds charged when a kernel closes (a tile's gates were charged as they came)."""
        size = kernel.active.bit_count()
        return self.fusion_s[size] if kernel.kind == "fusion" else self.stage.tile_base_s[size]

    def fits(self, kernel: _Open) -> bool:
        """Whether a kernel keeps its size limit."""
        limit = self.stage.fusion_limit if kernel.kind == "fusion" else self.stage.free_limit
        return kernel.active.bit_count() <= limit

    def fresh(self, item: _Item, kind: KernelKind) -> _Open:
        """A kernel of the item alone."""
        if kind == "fusion":
            return _Open(kind, item.wires, 0)
        return _Open(kind, item.mixed, item.wires & ~item.mixed)

    def covers(self, kernel: _Open, item: _Item) -> bool:
        """Whether the item can join without the kernel growing."""
        if kernel.kind == "fusion":
            return not item.wires & ~kernel.active
        return not item.mixed & ~kernel.active and not item.wires & ~(kernel.wires | self.stage.pinned)

    def advance(self, state: _State, item: _Item) -> Iterator[_State]:
        """States after the item."""
        met_absorbing = [k for k in state.absorbing if k.wires & item.wires]
        met = [k for k in state.opened if k.wires & item.wires]
        if not met and len(met_absorbing) == 1 and self.covers(met_absorbing[0], item):
            extra = item.weight if met_absorbing[0].kind == "tile" else 0.0
            yield state._replace(cost=state.cost + extra)
            return
        if len(met) == 1 and self.covers(met[0], item):
            extra = item.weight if met[0].kind == "tile" else 0.0
            yield state._replace(absorbing=_shrunk(state.absorbing, item), cost=state.cost + extra)
            return
        absorbing = _shrunk(state.absorbing, item)
        rest = tuple(k for k in state.opened if not k.wires & item.wires)
        kinds: tuple[KernelKind, ...] = ("fusion", "tile")
        for kind in kinds:
            new = self.fresh(item, kind)
            if self.fits(new):
                extra = item.weight if kind == "tile" else 0.0
                base = _State(rest, absorbing, state.cost + extra, state.closed)
                yield from self.settle(base, new, met, item)

    def settle(self, state: _State, new: _Open, met: list[_Open], item: _Item) -> Iterator[_State]:
        """Merge each met kernel with the new one, or close it; merging is forced where the new one does not grow."""
        if not met:
            yield state._replace(opened=tuple(sorted((*state.opened, new))))
            return
        first, others = met[0], met[1:]
        merged = _joined(new, first) if first.kind == new.kind else None
        if merged is not None and self.fits(merged):
            yield from self.settle(state, merged, others, item)
            if merged.active == new.active:
                return
        yield from self.settle(self.close(state, first, item), new, others, item)
        packed = self.packed(first, state.opened)
        if packed is not None:
            swallowed, left = packed
            yield from self.settle(self.close(state._replace(opened=left), swallowed, item), new, others, item)

    def close(self, state: _State, kernel: _Open, item: _Item | None) -> _State:
        """Charge a kernel and let it absorb from now on (but not on the item's wires)."""
        absorbing = state.absorbing
        if item is not None:
            absorbing = (*absorbing, *_shrunk((kernel,), item))
        return state._replace(absorbing=absorbing, cost=state.cost + self.price(kernel),
                              closed=_Closed(kernel, state.closed))

    def packed(self, kernel: _Open, opened: tuple[_Open, ...]) -> tuple[_Open, tuple[_Open, ...]] | None:
        """The kernel with what open kernels of its kind fit beside it, largest first; absent if none does."""
        limit = self.fusion_best if kernel.kind == "fusion" else self.stage.free_limit
        left = list(opened)
        grown = kernel
        for other in sorted(opened, key=lambda k: -k.active.bit_count()):
            joined = _joined(grown, other)
            if other.kind == kernel.kind and joined.active.bit_count() <= limit:
                grown = joined
                left.remove(other)
        return (grown, tuple(left)) if grown != kernel else None

    def finish(self, state: _State) -> _Closed | None:
        """Close what is open, packed first-fit by falling size."""
        closed = state.closed
        for kernel in self.leftovers(state.opened):
            closed = _Closed(kernel, closed)
        return closed

    def leftovers(self, opened: tuple[_Open, ...]) -> list[_Open]:
        """Open kernels packed into as few as first-fit by falling size makes them."""
        bins: list[_Open] = []
        for kernel in sorted(opened, key=lambda k: -k.active.bit_count()):
            limit = self.fusion_best if kernel.kind == "fusion" else self.stage.free_limit
            for place, other in enumerate(bins):
                joined = _joined(other, kernel)
                if other.kind == kernel.kind and joined.active.bit_count() <= limit:
                    bins[place] = joined
                    break
            else:
                bins.append(kernel)
        return bins

    def estimate(self, state: _State) -> float:
        """Cost so far and of closing what is open."""
        return state.cost + sum(self.price(kernel) for kernel in self.leftovers(state.opened))


def _joined(a: _Open, b: _Open) -> _Open:
    active = a.active | b.active
    return _Open(a.kind, active, (a.touching | b.touching) & ~active)


def _shrunk(absorbing: tuple[_Open, ...], item: _Item) -> tuple[_Open, ...]:
    """Absorbing kernels lose the wires an item blocks."""
    kept = []
    for kernel in absorbing:
        active = kernel.active & ~item.wires
        touching = kernel.touching & ~item.mixed
        if active:
            kept.append(_Open(kernel.kind, active, touching))
    return tuple(kept)

"""Physical positions from the sets of wires of each stage.

A layout lists the wire at each position: local first (position 0 least significant), then regional, then global.
Between stages, wires that stay local keep their positions as far as they can, and those that come in take the highest
local positions: the exchange then moves whole halves, quarters, ... of a shard, and the lowest positions stay.
"""

from __future__ import annotations

from planners.circuit.dag import bits
from planners.circuit.schedule import Layouts
from planners.circuit.windows import Shape

__all__ = ["positions"]


def positions(layouts: Layouts, shape: Shape) -> list[tuple[int, ...]]:
    """The layout of every stage."""
    everything = (1 << shape.wires) - 1
    found: list[tuple[int, ...]] = []
    for local, global_ in zip(layouts.local, layouts.globals, strict=True):
        regional = everything & ~local & ~global_
        if not found:
            found.append((*bits(local), *bits(regional), *bits(global_)))
        else:
            inner = _local_positions(found[-1], local, shape)
            outer = _outer_positions(found[-1], regional, global_, shape)
            found.append((*inner, *outer))
    return found


def _local_positions(before: tuple[int, ...], local: int, shape: Shape) -> list[int]:
    """Staying wires in place unless a newcomer takes theirs; newcomers on top, by their old positions."""
    newcomers = [wire for wire in before[shape.local:] if local >> wire & 1]
    top = shape.local - len(newcomers)
    placed: list[int | None] = [wire if local >> wire & 1 else None for wire in before[:top]]
    displaced = iter([wire for wire in before[top:shape.local] if local >> wire & 1])
    return [next(displaced) if wire is None else wire for wire in placed] + newcomers


def _outer_positions(before: tuple[int, ...], regional: int, global_: int, shape: Shape) -> list[int]:
    """Each level's wires: those already there stay, the others fill the gaps in order."""
    edge = shape.local + shape.regional
    placed: list[int] = []
    for mask, old in ((regional, before[shape.local:edge]), (global_, before[edge:])):
        kept = [wire if mask >> wire & 1 else None for wire in old]
        coming = iter(wire for wire in before if mask >> wire & 1 and wire not in kept)
        placed += [next(coming) if wire is None else wire for wire in kept]
    return placed

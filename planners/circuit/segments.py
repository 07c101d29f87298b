"""Kernels that are contiguous in the gate sequence: the paper's ORDERED dynamic program, and greedy packing.

First, gates on one local wire ride with their neighbour (``attached``): forward to the gate that needs them first, at
the end of the stage backward; this never inverts a precedence. Then ``ordered`` solves
``best[i] = min over j < i, kind of best[j] + cost(kind, items j..i-1)`` exactly for contiguous segments, and ``greedy``
packs items into fusion kernels of at most five wires (Atlas, arXiv 2408.09055: ORDERED KERNELIZE and its baseline).
"""

from __future__ import annotations

import math

from planners.circuit.dag import bits
from planners.circuit.kernels import StageGates, Step

__all__ = ["attached", "greedy", "ordered"]

_GREEDY_WIRES = 5


def attached(stage: StageGates) -> list[int]:
    """Items in a valid order: a gate on several local wires with the gates that ride with it, as bit masks."""
    wires = stage.wires
    carrier = list(range(stage.count))
    first_carrier = [stage.count] * stage.count
    for i in range(stage.count - 1, -1, -1):
        # not beyond the first carrier among all successors, or that one would come before i
        if first_carrier[i] < stage.count and _rides(wires[i], wires[first_carrier[i]]):
            carrier[i] = first_carrier[i]
        for u in bits(stage.before[i]):
            first_carrier[u] = min(first_carrier[u], carrier[i])
    for i in range(stage.count):
        if carrier[i] == i and stage.before[i]:
            last = max(carrier[u] for u in bits(stage.before[i]))
            if _rides(wires[i], wires[last]):
                carrier[i] = last
    items: dict[int, int] = {}
    for i, c in enumerate(carrier):
        items[c] = items.get(c, 0) | 1 << i
    return [items[c] for c in sorted(items)]


def _rides(wires: int, carrier: int) -> bool:
    """Whether a gate on at most one local wire finds it among those of a larger gate."""
    return wires.bit_count() <= 1 < carrier.bit_count() and not wires & ~carrier


def greedy(stage: StageGates) -> list[Step]:
    """One open fusion kernel at a time, closed when the next item would give it more than five wires."""
    limit = min(_GREEDY_WIRES, stage.fusion_limit)
    steps: list[Step] = []
    gates = wires = 0
    for item in attached(stage):
        touched = stage.touched(item)
        if gates and (wires | touched).bit_count() > limit:
            steps.append(Step("fusion", gates))
            gates = wires = 0
        if touched.bit_count() > stage.fusion_limit:
            steps.append(Step("tile", item))
            continue
        gates |= item
        wires |= touched
    return [*steps, Step("fusion", gates)] if gates else steps


def ordered(stage: StageGates) -> list[Step]:
    """Cheapest partition into contiguous segments."""
    items = attached(stage)
    touched = [stage.touched(item) for item in items]
    moved = [stage.moved(item) for item in items]
    weight = [stage.weights.of(item) for item in items]
    fusion_s = stage.table.fusion_s
    best = [0.0] + [math.inf] * len(items)
    choice: list[tuple[int, Step] | None] = [None] * (len(items) + 1)
    for start in range(len(items)):
        wires = free = gates = 0
        load = 0.0
        base = best[start]
        fusion_open = tile_open = True
        for end in range(start, len(items)):
            gates |= items[end]
            if fusion_open:
                wires |= touched[end]
                size = wires.bit_count()
                fusion_open = size <= stage.fusion_limit
                if fusion_open and base + fusion_s[size] < best[end + 1]:
                    best[end + 1] = base + fusion_s[size]
                    choice[end + 1] = (start, Step("fusion", gates))
            if tile_open:
                free |= moved[end]
                load += weight[end]
                size = free.bit_count()
                tile_open = size <= stage.free_limit
                if tile_open and base + stage.tile_base_s[size] + load < best[end + 1]:
                    best[end + 1] = base + stage.tile_base_s[size] + load
                    choice[end + 1] = (start, Step("tile", gates))
            if not (fusion_open or tile_open):
                break
    steps: list[Step] = []
    at = len(items)
    while at:
        found = choice[at]
        assert found is not None
        at = found[0]
        steps.append(found[1])
    return steps[::-1]

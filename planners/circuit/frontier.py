"""Kernelisation by a beam search over what has run so far (down-sets of the precedence order).

Every valid partition into kernels can be run one kernel after the other, so a solution is a path of down-sets; a
fusion kernel that could run one more gate for free should (Atlas, arXiv 2408.09055, absorbs gates alike). A step from a
down-set is a fusion kernel grown from a ready gate, or a tile whose active wires are chosen greedily; both take every
gate they can. States are ranked by cost so far plus the price of the gates left; prices start from what a gate costs
in a tile. Unlike the paper's DP this needs no set of open kernels, and its states compare gates done, not kernels open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from planners.circuit.dag import bits
from planners.circuit.kernels import StageGates, Step, Weights

__all__ = ["Settings", "frontier_search"]

_OPTIONS = 4
_ADJACENT = 8


class Settings(NamedTuple):
    """How wide the search looks.

    ``width``: states kept after each step; ``starts``: ready gates (on disjoint wires) that fusion kernels grow from;
    ``fusion``: wires of a grown kernel.
    """

    width: int
    starts: int
    fusion: int


class _Node(NamedTuple):
    """A down-set reached: rank = cost + price of what is left."""

    rank: float
    cost: float
    done: int
    left: float
    parent: _Node | None
    step: Step | None


def frontier_search(stage: StageGates, prices: Sequence[float], settings: Settings) -> list[Step] | None:
    """The cheapest kernels found, in execution order; ``None`` if every path got stuck.

    ``prices[i]``: expected seconds of gate i in a good solution; steers the search, nothing more.
    """
    price = Weights(prices)
    total = sum(prices)
    beam = [_Node(total, 0.0, 0, total, None, None)]
    best: _Node | None = None
    while beam:
        reached: dict[int, _Node] = {}
        for node in beam:
            for step in _steps(stage, node.done, settings):
                cost = node.cost + stage.cost(step)
                done = node.done | step.gates
                known = reached.get(done)
                if known is None or cost < known.cost:
                    left = node.left - price.of(step.gates)
                    reached[done] = _Node(cost + left, cost, done, left, node, step)
        finished = reached.pop(stage.everything, None)
        if finished is not None and (best is None or finished.cost < best.cost):
            best = finished
        beam = sorted(reached.values(), key=lambda node: node.rank)[: settings.width]
        if best is not None:
            beam = [node for node in beam if node.cost < best.cost]
    return None if best is None else _unrolled(best)


def _unrolled(node: _Node) -> list[Step]:
    steps: list[Step] = []
    while node.step is not None and node.parent is not None:
        steps.append(node.step)
        node = node.parent
    return steps[::-1]


def _steps(stage: StageGates, done: int, settings: Settings) -> list[Step]:
    """Kernels worth trying from a down-set."""
    ready = stage.ready(done)
    steps: list[Step] = []
    seen: set[int] = set()
    covered = 0
    starts = settings.starts
    for i in ready:
        if stage.wires[i] & covered or stage.wires[i].bit_count() > settings.fusion:
            continue
        covered |= stage.wires[i]
        gates = _grown(stage, done, ready, first=i, limit=settings.fusion)
        if gates not in seen:
            seen.add(gates)
            steps.append(Step("fusion", gates))
        starts -= 1
        if not starts:
            break
    for free in _tile_sets(stage, done):
        gates = stage.tiled(done, free)
        if gates:
            steps.append(Step("tile", gates))
    return steps


def _grown(stage: StageGates, done: int, ready: list[int], *, first: int, limit: int) -> int:
    """Gates of a fusion kernel grown from a ready gate: each time the wires that bring most gates a wire."""
    wires = stage.wires[first]
    got = stage.fused(done, wires)
    while wires.bit_count() < limit:
        room = limit - wires.bit_count()
        options = _neighbours(stage, done | got, wires, room)
        if not options:
            options = {stage.wires[i] & ~wires for i in ready if not got >> i & 1}
            options = {extra for extra in options if extra and extra.bit_count() <= room}
        if not options:
            break
        likely = sorted(options, key=lambda extra: (-(stage.inside(wires | extra) & ~done).bit_count()
                                                    / extra.bit_count(), extra))
        count = got.bit_count()
        best = (-1.0, 0, 0)
        for extra in likely[:_OPTIONS]:
            more = stage.fused(done, wires | extra)
            gain = (more.bit_count() - count) / extra.bit_count()
            if gain > best[0]:
                best = (gain, extra, more)
        wires |= best[1]
        got = best[2]
    return got


def _neighbours(stage: StageGates, done: int, wires: int, room: int) -> set[int]:
    """Sets of further wires that the next gates on ``wires`` wait for, if nothing on ``wires`` comes before them."""
    before, touching = stage.before, stage.touching
    touched = 0
    for q in bits(wires):
        touched |= touching[q]
    touched &= ~done
    found: set[int] = set()
    for q in bits(wires):
        left = touching[q] & touched
        for _ in range(_ADJACENT):
            if not left:
                break
            low = left & -left
            left ^= low
            i = low.bit_length() - 1
            if before[i] & touched:
                break
            extra = stage.wires[i] & ~wires
            if extra and extra.bit_count() <= room:
                found.add(extra)
    return found


def _tile_sets(stage: StageGates, done: int) -> list[int]:
    """Active free wires for tiles: unions of what remaining gates want, by three greedy rules."""
    wanted = _wants(stage, done)
    sets: list[int] = []
    for rule in (_densest, _lowest, _highest):
        chosen = 0
        room = stage.free_limit
        fitting = list(wanted)
        while fitting:
            fitting = [mask for mask in fitting if 0 < (mask & ~chosen).bit_count() <= room]
            if fitting:
                chosen |= min((rule(mask, wanted[mask], (mask & ~chosen).bit_count()), mask) for mask in fitting)[1]
                room = stage.free_limit - chosen.bit_count()
        if chosen not in sets:
            sets.append(chosen)
    return sets


def _densest(mask: int, count: int, more: int) -> tuple[float, int]:
    return (-count / more, mask)


def _lowest(mask: int, count: int, more: int) -> tuple[float, int]:
    return (more, mask & -mask)


def _highest(mask: int, count: int, more: int) -> tuple[float, int]:
    return (more, -mask.bit_length())


def _wants(stage: StageGates, done: int) -> dict[int, int]:
    """Sets of free wires that must be active for some remaining gates to run in the next tile, with how many gates."""
    limit = stage.free_limit
    wants: list[int] = []
    counts: dict[int, int] = {}
    for mask, direct, gates in stage.nodes:
        left = gates & ~done
        if not left:
            wants.append(0)
            continue
        for u in direct:
            mask |= wants[u]
        if mask.bit_count() <= limit:
            counts[mask] = counts.get(mask, 0) + left.bit_count()
        wants.append(mask)
    return counts

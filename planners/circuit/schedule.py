"""Stages without a solver: list scheduling by deadline, then the cheapest layouts for what each stage needs.

``list_schedule`` fills stage after stage: nodes whose window ends must run, then those of nearest deadline that bring
in the fewest wires, within a budget for the transition. ``complete`` turns the wires each stage needs into layouts:
evicting the wire needed furthest in the future is optimal for the number of wires that become local, and keeping the
wires away longest global for those that become global (both by exchange). ``improve`` alternates earliest and latest
execution under the same layouts. Wire sets are bit masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from planners.circuit.dag import StageDag, bits, mask_of
from planners.circuit.windows import Shape, Windows

__all__ = ["Layouts", "complete", "improve", "layout_cost", "list_schedule", "needs_of"]


class Layouts(NamedTuple):
    """Local and global wires of each stage, and the communication they cost."""

    local: tuple[int, ...]
    globals: tuple[int, ...]
    cost: float


def layout_cost(local: Sequence[int], global_: Sequence[int], shape: Shape) -> float:
    """Wires that become local plus c times those that become global, over all transitions."""
    pairs = range(1, len(local))
    return (sum((local[k] & ~local[k - 1]).bit_count() for k in pairs)
            + shape.global_cost * sum((global_[k] & ~global_[k - 1]).bit_count() for k in pairs))


def list_schedule(dag: StageDag, shape: Shape, limits: Windows, *, luck: Sequence[float],
                  budgets: Sequence[int]) -> list[int] | None:
    """Wires needed in each stage of a schedule inside the windows, or ``None`` where the greedy choice fails.

    Args:
        dag: the contracted order.
        shape: wires by level.
        limits: windows for the number of stages wanted.
        luck: a tie-breaker for each node, lowest first.
        budgets: for each transition, how many wires optional nodes may bring in; what must run is not held to it.
    """
    stages = max(limits.last, default=0) + 1
    done = [False] * dag.size
    left: list[int] = list(range(dag.size))
    needed: list[int] = []
    present = (1 << shape.wires) - 1
    for stage in range(stages):
        wants = _wants(dag, left, done)
        chosen = 0
        for v in left:
            if limits.last[v] <= stage:
                chosen |= wants[v]
        if chosen.bit_count() > shape.local:
            return None
        optional = [v for v in left if limits.last[v] > stage]
        incoming = budgets[stage - 1] if stage else shape.wires
        chosen = _fill(chosen, optional, wants, room=shape.local, incoming=incoming, present=present,
                       rank=[(limits.last[v], luck[v]) for v in range(dag.size)])
        rest = []
        for v in left:
            done[v] = not wants[v] & ~chosen
            if not done[v]:
                rest.append(v)
        left = rest
        needed.append(chosen)
        present = chosen | _most_urgent(dag, left, limits, candidates=present & ~chosen,
                                        count=shape.local - chosen.bit_count())
    return None if left else needed


def _wants(dag: StageDag, left: Sequence[int], done: Sequence[bool]) -> dict[int, int]:
    """Wires that must be local for each remaining node to run now, its remaining ancestors included."""
    wants: dict[int, int] = {}
    for v in left:
        mask = dag.masks[v]
        for u in dag.before[v]:
            if not done[u]:
                mask |= wants[u]
        wants[v] = mask
    return wants


def _fill(chosen: int, optional: Sequence[int], wants: dict[int, int], *, room: int, incoming: int, present: int,
          rank: Sequence[tuple[int, float]]) -> int:
    """Add the wants of optional nodes while they fit: nearest deadline, fewest incoming, fewest wires, then luck."""
    while optional:
        free, allowed = room - chosen.bit_count(), incoming - (chosen & ~present).bit_count()
        best: tuple[int, int, int, float] | None = None
        pick = 0
        still = []
        for v in optional:
            extra = wants[v] & ~chosen
            more, new = extra.bit_count(), (extra & ~present).bit_count()
            if not more or more > free or new > allowed:
                continue
            still.append(v)
            key = (rank[v][0], new, more, rank[v][1])
            if best is None or key < best:
                best, pick = key, v
        if best is None:
            break
        chosen |= wants[pick]
        optional = still
    return chosen


def _most_urgent(dag: StageDag, left: Sequence[int], limits: Windows, *, candidates: int, count: int) -> int:
    """``count`` of the candidate wires: those whose remaining nodes have the nearest deadlines."""
    deadline: dict[int, int] = {}
    for v in left:
        for q in bits(dag.masks[v] & candidates):
            deadline[q] = min(deadline.get(q, limits.last[v]), limits.last[v])
    ranked = sorted(bits(candidates), key=lambda q: (q not in deadline, deadline.get(q, 0), q))
    return mask_of(ranked[:count])


def complete(needed: Sequence[int], shape: Shape) -> Layouts:
    """Layouts of least cost in which stage k has ``needed[k]`` local (fewest moves to local first)."""
    everything = (1 << shape.wires) - 1
    local: list[int] = []
    for stage, mask in enumerate(needed):
        kept = local[-1] if local else everything
        local.append(mask | _soonest(kept & ~mask, needed[stage + 1:], shape.local - mask.bit_count()))
    away = [everything & ~mask for mask in local]
    global_: list[int] = []
    for stage, mask in enumerate(away):
        before = global_[-1] if global_ else 0
        stays = before & mask
        wanted = shape.globals - stays.bit_count()
        global_.append(stays | _longest_away(mask & ~stays, away[stage + 1:], wanted))
    return Layouts(tuple(local), tuple(global_), layout_cost(local, global_, shape))


def _soonest(candidates: int, following: Sequence[int], count: int) -> int:
    """``count`` of the candidate wires: those needed soonest, lowest index first."""
    chosen = 0
    for mask in (*following, -1):
        for q in bits(candidates & mask & ~chosen):
            if count == 0:
                return chosen
            chosen |= 1 << q
            count -= 1
    return chosen


def _longest_away(candidates: int, following: Sequence[int], count: int) -> int:
    """``count`` of the candidate wires: those that stay away longest from now on, lowest index first."""
    runs = [candidates]
    for mask in following:
        runs.append(runs[-1] & mask)
    chosen = 0
    for mask in reversed(runs):
        for q in bits(mask & ~chosen):
            if count == 0:
                return chosen
            chosen |= 1 << q
            count -= 1
    return chosen


def needs_of(dag: StageDag, local: Sequence[int], *, late: bool) -> list[int]:
    """Wires each stage needs when nodes run as late (or as early) as the local sets allow."""
    needed = [0] * len(local)
    place = [0] * dag.size
    if late:
        for v in range(dag.size - 1, -1, -1):
            stage = min((place[w] for w in dag.after[v]), default=len(local) - 1)
            while dag.masks[v] & ~local[stage]:
                stage -= 1
            place[v] = stage
    else:
        for v in range(dag.size):
            stage = max((place[u] for u in dag.before[v]), default=0)
            while dag.masks[v] & ~local[stage]:
                stage += 1
            place[v] = stage
    for v, stage in enumerate(place):
        needed[stage] |= dag.masks[v]
    return needed


def improve(dag: StageDag, layouts: Layouts, shape: Shape, *, rounds: int = 8) -> Layouts:
    """Cheaper layouts for the same circuit, by moving nodes to their latest and earliest stages in turn."""
    best = layouts
    for turn in range(rounds):
        found = complete(needs_of(dag, best.local, late=turn % 2 == 0), shape)
        if found.cost < best.cost:
            best = found
        elif turn % 2:
            break
    return best

"""Better plans from ranked ones, each change kept if it shortens the simulated iteration.

Stages are split over the devices that are left. Improvement changes one stage at a time (micro-batch, k, replicas on
idle devices), moves operators, merges stages and relieves the longest one, from the best plan and some others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

from planners.pipeline.assembly import Draft, draft, draft_if_acyclic, with_stage
from planners.pipeline.graph import bits
from planners.pipeline.pricing import Prices, ring_s
from planners.pipeline.ranking import Ranking
from planners.pipeline.reading import Chosen

__all__ = ["refine", "shift", "spread", "spread_runners_up"]

_ROUNDS = 4
_RUNNERS_UP = 10
_STARTS = 4
# Operators also move between stages that do not talk if there are so few stages.
_FEW_STAGES = 6


def spread(ranking: Ranking) -> None:
    """Split stages of the best plan over idle devices while that helps: the search uses as few as a bottleneck needs,
    but shorter stages fill and drain a pipeline sooner. Where branches are alike no single split helps, so the longest
    stages are also split one after the other until no device is left."""
    while ranking.best is not None and not ranking.late():
        found, before = ranking.best.draft, ranking.limit
        ranking.take(*(_split(ranking.prices, found, x) for x in _splittable(ranking.prices, found)))
        if ranking.limit >= before:
            ranking.take(*_splits(ranking.prices, found))
        if ranking.limit >= before:
            return


def spread_runners_up(ranking: Ranking) -> None:
    """Where the stages of plans next to the best one, once split, are better, go on from there."""
    runners_up = sorted(ranking.simulated, key=lambda run: run[0])[1:1 + _RUNNERS_UP]
    spread(ranking)
    for _, found in runners_up:
        if ranking.late():
            return
        before = ranking.limit
        ranking.take(*(_split(ranking.prices, found, x) for x in _splittable(ranking.prices, found)))
        if ranking.limit < before:
            spread(ranking)


def _splittable(prices: Prices, found: Draft) -> list[int]:
    """Stages that idle devices can take half of; of those alike and between the same stages only the first."""
    idle = prices.cluster.devices - sum(s.replicas for s in found.stages)
    around: list[list[int]] = [[] for _ in found.stages]
    for u, v in found.flows:
        around[u].append(v)
        around[v].append(~u)
    kept: dict[object, int] = {}
    for x, s in enumerate(found.stages):
        if s.replicas <= idle and s.mask & (s.mask - 1):
            alike = (prices.sums(s.mask), prices.compute_s(s.mask, s.micro, s.replicas), s.micro, s.replicas,
                     found.turns[x], tuple(around[x]))
            kept.setdefault(alike, x)
    return list(kept.values())


def _splits(prices: Prices, found: Draft) -> Iterator[Draft]:
    """The draft with its longest stage split, that one's longest stage split, and so on."""
    while open_ := _splittable(prices, found):
        longest = max(open_, key=lambda x: sum(prices.compute_s(
            found.stages[x].mask, found.stages[x].micro, found.stages[x].replicas)) / found.stages[x].micro)
        found = _split(prices, found, longest)
        yield found


def _split(prices: Prices, found: Draft, x: int) -> Draft:
    """The draft with stage ``x`` cut in two, as evenly as its operators' order allows."""
    stage = found.stages[x]
    first = _first_half(prices, stage)
    halves = [Chosen(mask, stage.micro, stage.replicas) for mask in (first, stage.mask ^ first)]
    turns = [*found.turns[:x], found.turns[x], *found.turns[x:]]
    return draft(prices, [*found.stages[:x], *halves, *found.stages[x + 1:]], sequential=found.sequential,
                 turns=turns)


def _first_half(prices: Prices, stage: Chosen) -> int:
    """The first operators of a stage that take as near as possible half of its time."""
    members = bits(stage.mask)
    at = prices.column[stage.micro // stage.replicas]
    work = (prices.forward[members, at] + prices.backward[members, at]).cumsum()
    cut = min(range(1, len(members)), key=lambda k: abs(2 * work[k - 1] - work[-1]))
    return sum(1 << v for v in members[:cut])


def refine(ranking: Ranking) -> None:
    """Improve the best plan, and the best ones of some other micro-batches and numbers of stages, step by step."""
    starts: dict[tuple[int, int], Draft] = {}
    for _, found in sorted(ranking.simulated, key=lambda run: run[0]):
        starts.setdefault((found.stages[0].micro, len(found.stages)), found)
    _refine(ranking)
    for start in [*starts.values()][1:_STARTS]:
        if ranking.late():
            return
        other = Ranking(ranking.prices, ranking.deadline)
        other.take(start)
        spread(other)
        _refine(other)
        ranking.tried += other.tried
        if other.limit < ranking.limit:
            ranking.best = other.best


def _refine(ranking: Ranking) -> None:
    """Change single stages and move operators between them, in turn, while that helps."""
    while ranking.best is not None and not ranking.late():
        before = ranking.limit
        improve(ranking)
        shift(ranking)
        if ranking.limit >= before:
            return
        spread(ranking)


def shift(ranking: Ranking) -> None:
    """Move single operators of the best plan to a neighbouring stage, merge two stages, or relieve the longest stage of
    its first, last or half of its operators, also on devices that a merge frees, while that helps."""
    while ranking.best is not None and not ranking.late():
        before, found, prices = ranking.limit, ranking.best.draft, ranking.prices
        merged = list(_merges(prices, found))
        ranking.take(*_moves(prices, found), *merged, *_relieved(prices, found))
        ranking.take(*(made for freed in merged for made in _relieved(prices, freed)))
        if ranking.limit >= before:
            return


def _moves(prices: Prices, found: Draft) -> Iterator[Draft]:
    """The draft with one operator in another stage."""
    graph, stages = prices.graph, found.stages
    pairs = [*found.flows]
    if len(stages) <= _FEW_STAGES:
        pairs += [ends for ends in permutations(range(len(stages)), 2) if ends not in found.flows]
    for u, v in pairs:
        one, two = stages[u], stages[v]
        moves = [(0, 1 << o) for o in bits(two.mask) if not graph.above[o] & two.mask]
        moves += [(1 << o, 0) for o in bits(one.mask) if not graph.below[o] & one.mask]
        for away, come in moves:
            yield from _with(prices, found, {u: [Chosen(one.mask ^ away | come, one.micro, one.replicas)],
                                             v: [Chosen(two.mask ^ come | away, two.micro, two.replicas)]})


def _merges(prices: Prices, found: Draft) -> Iterator[Draft]:
    """The draft with two stages as one; of pairs alike only the first."""
    idle = prices.cluster.devices - sum(s.replicas for s in found.stages)
    seen: set[object] = set()
    for u, v in found.flows:
        one, two = found.stages[u], found.stages[v]
        alike = prices.sums(one.mask), prices.sums(two.mask), one[1:], two[1:]
        if alike not in seen:
            seen.add(alike)
            for d in prices.replica_counts(one.micro):
                if max(one.replicas, two.replicas) <= d <= one.replicas + two.replicas + idle:
                    yield from _with(prices, found, {u: [Chosen(one.mask | two.mask, one.micro, d)], v: []})


def _relieved(prices: Prices, found: Draft) -> Iterator[Draft]:
    """The draft with some operators of its longest stage on idle devices."""
    graph, batch = prices.graph, prices.problem.batch_samples
    idle = prices.cluster.devices - sum(s.replicas for s in found.stages)

    def busy_s(s: Chosen) -> float:
        sums = prices.sums(s.mask)
        return (batch // s.micro * sum(prices.compute_s(s.mask, s.micro, s.replicas))
                + ring_s(sums.weight_bytes, s.replicas, prices.ring_link(s.replicas)) + sums.update_s)

    x = max(range(len(found.stages)), key=lambda y: busy_s(found.stages[y]))
    stage = found.stages[x]
    if not idle or not stage.mask & (stage.mask - 1):
        return
    parts = {_first_half(prices, stage)}
    parts |= {1 << o for o in bits(stage.mask) if not graph.above[o] & stage.mask}
    parts |= {stage.mask ^ 1 << o for o in bits(stage.mask) if not graph.below[o] & stage.mask}
    for first in sorted(parts):
        for d in prices.replica_counts(stage.micro):
            if d <= min(idle, stage.replicas):
                for a, b in {(d, stage.replicas), (stage.replicas, d)}:
                    yield from _with(prices, found, {x: [Chosen(first, stage.micro, a),
                                                         Chosen(stage.mask ^ first, stage.micro, b)]})


def _with(prices: Prices, found: Draft, new: Mapping[int, Sequence[Chosen]]) -> Iterator[Draft]:
    """The draft with other stages in place of some; none where stages would wait on each other."""
    kept = [(s, k) for x, (stage, k) in enumerate(zip(found.stages, found.turns, strict=True))
            for s in new.get(x, (stage,)) if s.mask]
    made = draft_if_acyclic(prices, [s for s, _ in kept], sequential=found.sequential, turns=[k for _, k in kept])
    if made is not None:
        yield made


def improve(ranking: Ranking) -> None:
    """Change single stages of the best plan while that helps."""
    for _ in range(_ROUNDS):
        if ranking.best is None or ranking.late():
            return
        before = ranking.limit
        for x in range(len(ranking.best.draft.stages)):
            if ranking.late():
                return
            ranking.take(*_changes(ranking.prices, ranking.best.draft, x))
        if ranking.limit >= before:
            return


def _changes(prices: Prices, found: Draft, x: int) -> Iterator[Draft]:
    """Neighbours of a draft at stage ``x``."""
    stage, turn = found.stages[x], found.turns[x]
    problem = prices.problem
    idle = prices.cluster.devices - sum(s.replicas for s in found.stages)
    for b in problem.menu:
        if stage.micro // 4 <= b <= stage.micro * 4:
            for d in prices.replica_counts(b):
                if (b, d) != (stage.micro, stage.replicas) and d <= stage.replicas + idle and d >= stage.replicas:
                    yield with_stage(found, x, Chosen(stage.mask, b, d))
    for k in range(1, problem.max_forwards_per_turn + 1):
        if k != turn and k * stage.micro <= problem.batch_samples:
            yield replace(found, turns=(*found.turns[:x], k, *found.turns[x + 1:]))

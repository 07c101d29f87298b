"""From bottlenecks to plans: candidates of several bottlenecks and micro-batches, ranked by simulated iteration time.

A plan of bottleneck T takes at least B T, so thresholds rise from the least T of a micro-batch as long as that is below
an iteration that its plans are likely to reach. The iteration falls and then rises with the micro-batch (less overhead,
longer fill), so sizes are tried outwards from the most promising one. Drafts are bounded before they are placed on
devices, and of those of a micro-batch the one with the least bound is simulated first. Stages are then split over the
devices that are left. Improvement changes one stage at a time (micro-batch, k, replicas on idle devices), moves
operators, merges stages and relieves the longest one, from the best plan and some others, and keeps what shortens the
simulated iteration.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise, permutations

from planners.pipeline.assembly import Candidate, Draft, draft, draft_if_acyclic, hope_s, placed, simulated, with_stage
from planners.pipeline.clock import least_s
from planners.pipeline.decomposition import Node
from planners.pipeline.graph import bits
from planners.pipeline.pricing import Prices, ring_s
from planners.pipeline.probe import Chosen, Shape, Work
from planners.pipeline.search import Line, Tree, least_of, searcher

__all__ = ["Ranking", "line_cuts", "rank", "refine", "shift", "spread", "spread_runners_up"]

# Thresholds above the least bottleneck, each over the one before.
_FIRST_RISE, _LARGEST_RISE, _LARGEST = 1.05, 1.2, 8.0
# An iteration over its bound.
_LIKELY = 1.05
_PATIENCE = 2
# Share of the least bottleneck to which the search goes; the simulated iteration decides what is finer.
_WITHIN = 0.015
_ROUNDS = 4
_RUNNERS_UP = 10
_STARTS = 4
# Operators also move between stages that do not talk if there are so few stages.
_FEW_STAGES = 6
# Balancing the stages beside the bottleneck ends at this ratio.
_EVEN = 1.1
# Least bottleneck over its bound from which on slow links are to blame.
_FAR = 1.1


@dataclass
class Ranking:
    """The best candidate so far and how many were simulated; after ``deadline`` nothing new is tried."""

    prices: Prices
    deadline: float
    best: Candidate | None = None
    tried: int = 0
    simulated: list[tuple[float, Draft]] = field(default_factory=list)
    _seen: set[object] = field(default_factory=set)

    @property
    def limit(self) -> float:
        """Iteration to beat."""
        return float("inf") if self.best is None else self.best.iteration_s

    def over(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() > self.deadline

    def late(self) -> bool:
        """Whether the time is up and there is something to return: a quick search goes on until it has a plan."""
        return self.best is not None and self.over()

    def take(self, *drafts: Draft) -> None:
        """Simulate those of some drafts that may be a new best, the most promising first."""
        self.simulate(self.hopes(drafts))

    def hopes(self, drafts: Iterable[Draft]) -> list[tuple[float, Draft]]:
        """New drafts, each with a bound on its iteration."""
        found = []
        for made in drafts:
            key = (made.stages, made.turns, made.sequential)
            if key not in self._seen:
                self._seen.add(key)
                self.tried += 1
                found.append((hope_s(self.prices, made), made))
        return found

    def simulate(self, hopes: list[tuple[float, Draft]]) -> float:
        """``take`` of drafts with their bounds; the least that is known of any of them in the end."""
        least = math.inf
        for hope, found in sorted(hopes, key=lambda pair: pair[0]):
            if hope >= self.limit:
                return min(least, hope)
            made = placed(self.prices, found)
            hope = math.inf if made is None else least_s(made.graph, made.held)
            if made is None or hope >= self.limit:
                least = min(least, hope)
                continue
            new = simulated(made)
            least = min(least, new.iteration_s)
            self.simulated.append((new.iteration_s, made.draft))
            if new.iteration_s < self.limit:
                self.best = new
        return least


def rank(ranking: Ranking, root: Node, menus: list[tuple[int, ...]], *, patient: bool = False) -> None:
    """Candidates of the menus of micro-batches (ascending): from the most promising one outwards, on each side until
    ``_PATIENCE`` menus in a row find nothing better, or one none of whose plans can be better by its bound unless
    ``patient``; then the best stages at every other micro-batch."""
    prices, batch = ranking.prices, ranking.prices.problem.batch_samples
    shape, works = Shape(root), [Work(prices, menu) for menu in menus]
    hopes = [batch * work.floor for work in works]
    # Replicas of a machine halve the depth of a pipeline again and again, as far as they divide the micro-batch.
    deep = min(_longest_path(prices), prices.cluster.devices)
    near = prices.cluster.devices_per_machine
    guesses = [hope * (1 + (max(1.0, deep / min(near, menu[0])) - 1) * menu[0] / batch)
               for hope, menu in zip(hopes, menus, strict=True)]
    start = min(range(len(menus)), key=guesses.__getitem__)
    for side in (range(start, len(menus)), range(start - 1, -1, -1)):
        failures = 0
        for m in side:
            before, likely = ranking.limit, hopes[m]
            if not ranking.late() and hopes[m] < before:
                likely = _one_menu(ranking, works[m], partial(searcher, shape=shape, menu=menus[m]))
            if math.isfinite(ranking.limit):
                failures = 0 if ranking.limit < before else failures + 1
            if failures == _PATIENCE or (failures and not patient and likely >= ranking.limit):
                break
    if ranking.best is not None:
        best = ranking.best.draft
        ranking.take(*_drafts(prices, [[Chosen(s.mask, menu[0], s.replicas) for s in best.stages] for menu in menus
                                       if len(menu) == 1 and all(menu[0] % s.replicas == 0 for s in best.stages)]))


def line_cuts(ranking: Ranking) -> None:
    """Runs of the operators in their order as a stage graph, for every micro-batch that may win: they take operators
    of several branches, which the tree's stages do not."""
    prices = ranking.prices
    for b in prices.problem.menu:
        work = Work(prices, (b,))
        if prices.problem.batch_samples * work.floor < ranking.limit and not ranking.late():
            _one_menu(ranking, work, partial(Line, micro=b))
            even = Line(prices, work, b).evenest()
            if even is not None:
                ranking.take(draft(prices, even, sequential=False))


def _longest_path(prices: Prices) -> int:
    """Operators on the longest path."""
    length: list[int] = []
    for reads in prices.graph.reads:
        length.append(1 + max((length[u] for u, _ in reads), default=0))
    return max(length)


def _one_menu(ranking: Ranking, work: Work, search: Callable[[Prices, Work], Line | Tree]) -> float:
    """Plans at the least bottleneck of a menu and somewhat above it; where slow links are what keeps it from being
    less, also those of a search that hopes for neighbours in one machine (the simulation knows better).

    Returns:
        The least bound on the iteration of any of them.
    """
    prices = ranking.prices
    least, likely = _over_some_links(ranking, search(prices, work))
    cluster = prices.cluster
    if not prices.one_machine and cluster.inside != cluster.between and least > _FAR * work.floor:
        likely = min(likely, _over_some_links(ranking, search(prices.nearby, Work(prices.nearby, work.menu)))[1])
    return likely


def _over_some_links(ranking: Ranking, search: Line | Tree) -> tuple[float, float]:
    """``_one_menu`` with links as the search takes them; the least bottleneck and the least bound it found."""
    batch = ranking.prices.problem.batch_samples
    first = least_of(search, within=_WITHIN, at_most=ranking.limit / batch, late=ranking.late)
    if first is None:
        return math.inf, math.inf
    least, fronts = first
    hopes = ranking.hopes(_drafts(ranking.prices, [*fronts, *_balanced(ranking, search, least)]))
    limits, step, limit = [], _FIRST_RISE, least
    # What lies above one threshold takes longer than that: no need to look above an iteration that is likely.
    most = min(ranking.limit, *[hope * _LIKELY for hope, _ in hopes], batch * least * _LARGEST) / batch
    while limit < most:
        limits.append(limit := min(limit * step, most))
        step = min(step * _FIRST_RISE, _LARGEST_RISE)
    if isinstance(search, Line):
        hopes += ranking.hopes(_drafts(ranking.prices, search.rising(limits)))
        limits = []
    for below, limit in pairwise((least, *limits)):
        if below > most or ranking.late():
            break
        new = ranking.hopes(_drafts(ranking.prices, search.fronts(min(limit, most))))
        most = min([most, *(hope * _LIKELY / batch for hope, _ in new)])
        hopes += new
    return least, ranking.simulate(hopes)


def _balanced(ranking: Ranking, search: Line | Tree, least: float) -> list[list[Chosen]]:
    """Stages shorter than the bottleneck ``least``, where only operators too large for that keep it from being less:
    they stand alone, and all others share the devices left as evenly as they can."""
    low, high, found = search.work.total / ranking.prices.cluster.devices, least, []
    while high > low * _EVEN and not ranking.late():
        middle = math.sqrt(low * high)
        stages = search.fronts(middle, least)
        if stages:
            high = middle
            found += stages
        else:
            low = middle
    return found


def _drafts(prices: Prices, fronts: Iterable[list[Chosen]]) -> Iterator[Draft]:
    different = {frozenset(stages): stages for stages in fronts}
    return (draft(prices, stages, sequential=False) for stages in different.values())


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
    members = list(bits(stage.mask))
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

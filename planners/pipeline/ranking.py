"""From bottlenecks to plans: candidates of several bottlenecks and micro-batches, ranked by simulated iteration time.

A plan of bottleneck T takes at least B T, so thresholds rise from the least T of a micro-batch as long as that is below
an iteration that its plans are likely to reach. The iteration falls and then rises with the micro-batch (less overhead,
longer fill), so sizes are tried outwards from the most promising one. Drafts are bounded before they are placed on
devices, and of those of a micro-batch the one with the least bound is simulated first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from planners.pipeline.assembly import Candidate, Draft, draft, hope_s, placed, simulated
from planners.pipeline.clock import least_s
from planners.pipeline.decomposition import Node
from planners.pipeline.pricing import Prices
from planners.pipeline.reading import Chosen
from planners.pipeline.search import Line, Tree, least_of, searcher
from planners.pipeline.shape import Shape
from planners.pipeline.work import Work

__all__ = ["Ranking", "line_cuts", "rank"]

# Thresholds above the least bottleneck, each over the one before.
_FIRST_RISE, _LARGEST_RISE, _LARGEST = 1.05, 1.2, 8.0
# An iteration over its bound.
_LIKELY = 1.05
_PATIENCE = 2
# Share of the least bottleneck to which the search goes; the simulated iteration decides what is finer.
_WITHIN = 0.015
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

"""What others would do, by name; all are priced, placed and simulated like our own plans.

pipedream: operators in one line, PipeDream's dynamic program over (prefix, devices) for the least bottleneck, with its
stash rule (devices from here on / replicas, rounded up), one b for all; then 1F1B over the chain.
piper: dynamic program over downsets (sets closed under predecessors) and devices; stages may take operators of several
branches; chained. Refuses graphs of more than ``DOWNSETS`` downsets, as the original does.
balance: as many equal-work contiguous stages of the line as devices, one device each, 1F1B (the rule of GPipe-like
libraries). data-parallel: one stage on as many devices as divide the micro-batch.
sequential: the stages of our plans, chained (the ablation of the paper), at the micro-batch that suits the chain best.
sequential-refined: that chain after operators have moved between its stages while that helped, as in our plans: against
it only parallel stages themselves gain.
Deviations: PipeDream's and Piper's planners see our cost model (TPS of a stage, idle devices allowed).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from planners.pipeline.assembly import Draft, draft
from planners.pipeline.decomposition import Node
from planners.pipeline.graph import OperatorGraph, bits
from planners.pipeline.improving import shift, spread
from planners.pipeline.pricing import Prices
from planners.pipeline.ranking import Ranking, rank
from planners.pipeline.reading import Chosen
from workbench.errors import SolverError

__all__ = ["DOWNSETS", "balance", "chained", "data_parallel", "downsets", "pipedream",
           "pipedream_stages", "piper", "piper_stages", "sequential"]

DOWNSETS = 40_000
# Plans of ours whose stages are chained.
_CHAINED = 24


def pipedream(ranking: Ranking) -> None:
    """PipeDream's plan for every micro-batch; the ranking keeps the best simulated one."""
    for b in ranking.prices.problem.menu:
        if ranking.late():
            return
        stages = pipedream_stages(ranking.prices, b)
        if stages is not None:
            ranking.take(draft(ranking.prices, stages, sequential=True))


def pipedream_stages(prices: Prices, micro: int) -> list[Chosen] | None:
    """Least bottleneck of runs of the operator line; best[j][m]: operators j … on at most m devices."""
    n, devices = len(prices.graph), prices.cluster.devices
    best = [[(math.inf, 0, 0)] * (devices + 1) for _ in range(n)]
    best.append([(0.0, 0, 0)] * (devices + 1))
    for j in reversed(range(n)):
        mask = 0
        for end in range(j + 1, n + 1):
            mask |= 1 << (end - 1)
            options = prices.options(mask, micro)
            for m in range(1, devices + 1):
                for o in options:
                    if o.replicas > m or o.most_held < min(micro * -(-m // o.replicas), prices.problem.batch_samples):
                        continue
                    slowest = max(o.seconds_per_sample, best[end][m - o.replicas][0])
                    if slowest < best[j][m][0]:
                        best[j][m] = (slowest, end, o.replicas)
    if math.isinf(best[0][devices][0]):
        return None
    stages, j, m = [], 0, devices
    while j < n:
        _, end, d = best[j][m]
        stages.append(Chosen((1 << end) - (1 << j), micro, d))
        j, m = end, m - d
    return stages


def downsets(graph: OperatorGraph, most: int = DOWNSETS) -> list[int]:
    """All sets of operators closed under predecessors, smallest first.

    Raises:
        SolverError: there are more than ``most``.
    """
    parents = [sum(1 << u for u, _ in reads) for reads in graph.reads]
    found = {0}
    frontier = [0]
    while frontier:
        fresh = []
        for mask in frontier:
            for v in bits(graph.everything & ~mask):
                larger = mask | 1 << v
                if parents[v] & ~mask == 0 and larger not in found:
                    found.add(larger)
                    fresh.append(larger)
        if len(found) > most:
            raise SolverError(f"planner 'piper' gives up: the model has more than {most} downsets",
                              hint="downsets grow as (layers + 1) to the power of branches; use planner 'graph'")
        frontier = fresh
    return sorted(found, key=lambda m: (m.bit_count(), m))


def piper(ranking: Ranking) -> None:
    """Piper's plan for every micro-batch; the ranking keeps the best simulated one.

    Raises:
        SolverError: too many downsets, or the time is up before the first plan.
    """
    sets = downsets(ranking.prices.graph)
    for b in ranking.prices.problem.menu:
        stages = piper_stages(ranking, sets, b)
        if stages is not None:
            ranking.take(draft(ranking.prices, stages, sequential=True))
    if ranking.best is None and ranking.over():
        raise SolverError(f"planner 'piper' has no plan when its time is up: it compares pairs of {len(sets)} downsets",
                          hint="more time in planner.time_limit_s, or planner 'graph'")


def piper_stages(ranking: Ranking, sets: list[int], micro: int) -> list[Chosen] | None:
    """Least bottleneck of a chain of differences of downsets; best[D][m]: what follows D on at most m devices.

    ``None`` where nothing fits or the time is up.
    """
    prices = ranking.prices
    devices, everything = prices.cluster.devices, prices.graph.everything
    best: dict[int, list[tuple[float, int, int]]] = {everything: [(0.0, 0, 0)] * (devices + 1)}
    for low in reversed(sets[:-1]):
        if ranking.over():
            return None
        mine = [(math.inf, 0, 0)] * (devices + 1)
        for high in sets:
            if high == low or low & ~high:
                continue
            after = best[high]
            for o in prices.options(high & ~low, micro):
                for m in range(o.replicas, devices + 1):
                    if o.most_held < min(micro * -(-m // o.replicas), prices.problem.batch_samples):
                        continue
                    slowest = max(o.seconds_per_sample, after[m - o.replicas][0])
                    if slowest < mine[m][0]:
                        mine[m] = (slowest, high, o.replicas)
        best[low] = mine
    if math.isinf(best[0][devices][0]):
        return None
    stages, low, m = [], 0, devices
    while low != everything:
        _, high, d = best[low][m]
        stages.append(Chosen(high & ~low, micro, d))
        low, m = high, m - d
    return stages


def balance(ranking: Ranking) -> None:
    """Contiguous stages of the operator line with the least largest work, one device each."""
    prices = ranking.prices
    n = len(prices.graph)
    for b in prices.problem.menu:
        work = [sum(prices.compute_s(1 << v, b, 1)) for v in range(n)]
        low, high = max(work), math.fsum(work) * (1 + 1e-9)
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            if len(list(_cuts(work, middle))) <= prices.cluster.devices:
                high = middle
            else:
                low = middle
        masks = [(1 << end) - (1 << start) for start, end in _cuts(work, high)]
        ranking.take(draft(prices, [Chosen(m, b, 1) for m in masks], sequential=True))


def _cuts(work: list[float], most: float) -> Iterator[tuple[int, int]]:
    """Runs of the line filled up to ``most``."""
    start, total = 0, 0.0
    for v, seconds in enumerate(work):
        if total + seconds > most and v > start:
            yield start, v
            start, total = v, 0.0
        total += seconds
    yield start, len(work)


def data_parallel(ranking: Ranking) -> None:
    """The whole model on every device that divides the micro-batch."""
    prices = ranking.prices
    for b in prices.problem.menu:
        for d in prices.replica_counts(b):
            ranking.take(draft(prices, [Chosen(prices.graph.everything, b, d)], sequential=False))


def sequential(ranking: Ranking, root: Node, *, refined: bool = False) -> None:
    """The stages of our uniform plan in one chain, at the micro-batch that suits the chain best; also those of plans
    next to it, since what is a good graph need not be a good chain. ``refined``: then operators move between the
    chain's stages as they do in our plans (``improving.shift``)."""
    ours = Ranking(ranking.prices, ranking.deadline)
    rank(ours, root, [(b,) for b in ranking.prices.problem.menu])
    spread(ours)
    if ours.best is not None:
        chained(ranking, ours.best.draft)
    ranking.take(*(draft(ranking.prices, found.stages, sequential=True)
                   for _, found in sorted(ours.simulated, key=lambda run: run[0])[:_CHAINED]))
    if refined:
        shift(ranking)


def chained(ranking: Ranking, found: Draft) -> None:
    """The stages of ``found`` in one chain, at every micro-batch their replicas divide."""
    for b in ranking.prices.problem.menu:
        if all(b % s.replicas == 0 for s in found.stages):
            stages = [Chosen(s.mask, b, s.replicas) for s in found.stages]
            ranking.take(draft(ranking.prices, stages, sequential=True))

"""The smallest bottleneck of a sub-graph: probes of the dynamic program (``probe``) between bounds, until they meet.

With one micro-batch size a search without in-flight samples goes first, and operators in a line are searched with
arrays (``Line``).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from planners.pipeline.decomposition import Node
from planners.pipeline.graph import bits
from planners.pipeline.pricing import Prices
from planners.pipeline.probe import Chosen, Probe, Shape, Work

__all__ = ["Line", "Tree", "least_of", "searcher", "smallest_bottleneck"]

_CLOSE = 1e-3
_PROBES = 60
_FIRST_STEP = 1.03


class Line:
    """The search where operators form a line and there is one micro-batch size: one array operation an operator.

    best[i, m] is the fewest devices of operators i … in m stages; the first of them holds min(m b, B) samples.
    """

    def __init__(self, prices: Prices, shape: Shape, menu: tuple[int, ...], work: Work) -> None:
        self.prices, (self.micro,), self.work = prices, menu, work
        self.masks = [item.mask for item in shape.root.parts]
        self.batch, self.devices = prices.problem.batch_samples, prices.cluster.devices
        n = len(self.masks)
        self.held = np.minimum(self.micro * np.arange(1, min(n, self.devices) + 1), self.batch)
        seconds, most, replicas = prices.runs(self.micro)
        ends, ways = np.meshgrid(np.arange(1, n + 1), replicas, indexing="ij")
        # By first operator: end of the run, replicas, seconds a sample, most samples held, as columns.
        every = np.stack([np.broadcast_to(ends, seconds.shape), np.broadcast_to(ways, seconds.shape), seconds, most],
                         axis=-1)
        self.runs = [every[i, i:].reshape(-1, 4) for i in range(n)]

    def fronts(self, limit: float) -> list[list[Chosen]]:
        """Stages of every number of stages that no smaller number beats in devices; fewest stages first."""
        n, most = len(self.masks), len(self.held)
        best = np.full((n + 1, most + 1), np.inf)
        best[n, 0] = 0.0
        chosen = np.zeros((n, most + 1), dtype=int)
        fitting = []
        for i in reversed(range(n)):
            rows = self.runs[i][self.runs[i][:, 2] <= limit]
            fitting.append(rows)
            if len(rows):
                total = best[rows[:, 0].astype(int), :-1] + rows[:, 1:2]
                total[rows[:, 3:4] < self.held] = np.inf
                chosen[i, 1:] = total.argmin(axis=0)
                best[i, 1:] = total.min(axis=0)
        fitting.reverse()
        found, fewest = [], math.inf
        for m in range(1, most + 1):
            if best[0, m] <= self.devices and best[0, m] < fewest:
                fewest = best[0, m]
                found.append(self._stages(fitting, chosen, m))
        return found

    def some(self, limit: float) -> list[list[Chosen]]:
        """See ``Tree``."""
        return self.fronts(limit)

    def _stages(self, fitting: list[np.ndarray], chosen: np.ndarray, m: int) -> list[Chosen]:
        stages, i = [], 0
        while m:
            end, replicas = fitting[i][chosen[i, m], :2]
            stages.append(Chosen(sum(self.masks[i:int(end)]), self.micro, int(replicas)))
            i, m = int(end), m - 1
        return stages


class Tree:
    """The search over the whole tree."""

    def __init__(self, prices: Prices, shape: Shape, menu: tuple[int, ...], work: Work) -> None:
        self.prices, self.shape, self.menu, self.work = prices, shape, menu, work

    def fronts(self, limit: float) -> list[list[Chosen]]:
        """Stages of every entry of the front within a bottleneck of ``limit``.

        With one micro-batch size they are first sought as if memory held any depth; where all of those fit, they are
        the front.
        """
        if len(self.menu) == 1:
            quick = self._read(self._probe(limit, "depth"))
            if all(_fits_all_the_same(self.prices, stages) for stages in quick):
                return quick
        return self._read(self._probe(limit, "in-flight"))

    def some(self, limit: float) -> list[list[Chosen]]:
        """Some stages within ``limit`` if there are any, the shallowest first.

        First as if a stage held one micro-batch: where that finds nothing there is nothing, and where its stages fit
        all the same they are an answer. Only between the two does the whole program run.
        """
        if len(self.menu) == 1:
            quick = self._read(self._probe(limit, "one"))
            if not quick or _fits_all_the_same(self.prices, quick[0]):
                return quick
        return self.fronts(limit)

    def _probe(self, limit: float, memory: Literal["in-flight", "one", "depth"]) -> Probe:
        return Probe(self.prices, self.shape, self.work, self.menu, limit, memory=memory)

    def _read(self, probe: Probe) -> list[list[Chosen]]:
        found = sorted(probe.front().items(), key=lambda e: (e[0] or (0, 0), e[1][0]))
        return [probe.stages(choice) for _, (_, choice) in found]


def searcher(prices: Prices, shape: Shape, menu: tuple[int, ...], work: Work) -> Line | Tree:
    """The search for a model and a menu of micro-batches."""
    is_line = len(menu) == 1 and all(item.shape == "operator" for item in shape.root.parts)
    return (Line if is_line else Tree)(prices, shape, menu, work)


def smallest_bottleneck(prices: Prices, root: Node, menu: tuple[int, ...], *, within: float = 0.0,
                        at_most: float = math.inf) -> tuple[float, list[list[Chosen]]] | None:
    """The least T for which stages exist, to a share ``within`` of it, and such stages; 0 finds the exact optimum.

    ``None`` when memory or devices allow no stages at any T up to ``at_most``.
    """
    return least_of(searcher(prices, Shape(root), menu, Work(prices, menu)), within=within, at_most=at_most)


def least_of(search: Line | Tree, *, within: float, at_most: float) -> tuple[float, list[list[Chosen]]] | None:
    """``smallest_bottleneck`` with a search made before."""
    low = max(search.work.floor, 1e-12) * (1 - 1e-12)
    if low > at_most or math.isinf(low):
        return None

    def achieved(limit: float) -> tuple[float, list[list[Chosen]]] | None:
        found = search.some(limit)
        return (max(_seconds(search.prices, s) for s in found[0]), found) if found else None

    # From below: what is too small is found so at little cost, and the bound is often near.
    best, limit, step = None, min(low * (1 + max(within, _CLOSE)), at_most), _FIRST_STEP
    for _ in range(_PROBES):
        if (best := achieved(limit)) or limit == at_most:
            break
        low, limit, step = limit, min(limit * step, at_most), step * step if step < 4 else step
    if best is None:
        return None
    for _ in range(_PROBES):
        if best[0] - low <= within * best[0]:
            break
        wide = best[0] - low > _CLOSE * best[0]
        # Most of the range is too small: a step from below finds that at little cost.
        limit = math.sqrt(low * best[0]) if wide else best[0] * (1 - 1e-12)
        if limit <= low:
            break
        better = achieved(limit)
        if better is not None:
            best = better
        elif wide:
            low = limit
        else:
            break
    return best


def _fits_all_the_same(prices: Prices, stages: list[Chosen]) -> bool:
    """Whether stages of one micro-batch hold what their places in the stage graph ask for: b times the longest path."""
    owner = {v: x for x, s in enumerate(stages) for v in bits(s.mask)}
    after: list[set[int]] = [set() for _ in stages]
    before = [0] * len(stages)
    for u, v, _ in prices.graph.edges:
        x, y = owner[u], owner[v]
        if x != y and y not in after[x]:
            after[x].add(y)
            before[y] += 1
    order = [x for x, n in enumerate(before) if not n]
    for x in order:
        for y in after[x]:
            before[y] -= 1
            if not before[y]:
                order.append(y)
    depth = [1] * len(stages)
    for x in reversed(order):
        s = stages[x]
        depth[x] = 1 + max((depth[y] for y in after[x]), default=0)
        held = min(depth[x] * s.micro, prices.problem.batch_samples)
        if prices.memory_bytes(s.mask, held, s.replicas) > prices.cluster.memory_bytes:
            return False
    return True


def _seconds(prices: Prices, stage: Chosen) -> float:
    return next(o.seconds_per_sample for o in prices.options(stage.mask, stage.micro) if o.replicas == stage.replicas)

"""The smallest bottleneck of a sub-graph: probes of the dynamic program (``probe``) between bounds, until they meet.

With one micro-batch size a search without in-flight samples goes first, and operators in a line are searched with
arrays (``Line``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Literal

import numpy as np

from planners.pipeline.assembly import fits_memory
from planners.pipeline.decomposition import Node
from planners.pipeline.pricing import Prices
from planners.pipeline.probe import Probe
from planners.pipeline.reading import Chosen
from planners.pipeline.shape import Shape
from planners.pipeline.work import Work

__all__ = ["Line", "Tree", "least_of", "searcher", "smallest_bottleneck"]

_CLOSE = 1e-3
_PROBES = 60
# The steps from below grow by this power.
_GROWTH = 1.5


class Line:
    """The search over runs of operators in their order, with one micro-batch size: one array operation a stage.

    best[m, i] is the fewest devices of operators i … in m stages; the first of them holds min(m b, B) samples.
    """

    def __init__(self, prices: Prices, work: Work, micro: int) -> None:
        self.prices, self.work, self.micro = prices, work, micro
        self.batch, self.devices = prices.problem.batch_samples, prices.cluster.devices
        n = len(prices.graph)
        self.held = np.minimum(self.micro * np.arange(1, min(n, self.devices) + 1), self.batch)
        # Runs of operators by first and last one and way to replicate.
        self.seconds, self.most, self.replicas = prices.runs(self.micro)
        self.way_of = {d: way for way, d in enumerate(self.replicas.tolist())}

    def fronts(self, limit: float, alone: float = 0.0) -> list[list[Chosen]]:
        """Stages of every number of stages that no smaller number beats in devices; fewest stages first.

        Operators that ``limit`` is too small for may take up to ``alone`` as stages of their own.
        """
        fits = self.seconds <= limit
        if alone > limit:
            single = np.flatnonzero(np.array(self.work.alone) > limit)
            fits[single, single] |= self.seconds[single, single] <= alone
        return self._fronts(fits[None])[0]

    def rising(self, limits: Sequence[float]) -> list[list[Chosen]]:
        """The fronts of several limits."""
        if not limits:
            return []
        return list(chain.from_iterable(self._fronts(self.seconds <= np.array(limits)[:, None, None, None])))

    def _fronts(self, fits: np.ndarray) -> list[list[list[Chosen]]]:
        """``fronts`` of several sets of stages that fit, by set, first operator, last operator and way."""
        n, most, sets = len(self.prices.graph), len(self.held), range(len(fits))
        best = np.full((most + 1, len(fits), n + 1), np.inf)
        best[0, :, n] = 0.0
        # Where memory holds what the deepest pipeline asks for, a run's fewest replicas do not depend on its place.
        ample = bool((self.most >= self.held[-1])[fits.any(axis=0)].all())
        runs = self._fewest(fits)
        found: list[list[list[Chosen]]] = [[] for _ in sets]
        least = [math.inf for _ in sets]
        for m in range(1, most + 1):
            if not ample:
                runs = self._fewest(fits & (self.most >= self.held[m - 1]))
            (runs + best[m - 1, :, None, 1:]).min(axis=2, out=best[m, :, :n])
            for k, devices in enumerate(best[m, :, 0].tolist()):
                if devices <= self.devices and devices < least[k]:
                    least[k] = devices
                    found[k].append(self._stages(fits[k], best[:, k], m))
        return found

    def some(self, limit: float) -> list[list[Chosen]]:
        """See ``Tree``."""
        n, fits = len(self.prices.graph), self.seconds <= limit
        fewest = self._fewest(fits)
        best = np.zeros(n + 1)
        for i in reversed(range(n)):
            best[i] = (fewest[i, i:] + best[i + 1:]).min()
        if best[0] > self.devices:
            return []
        ends, i = [0], 0
        while i < n:
            i += 1 + int((fewest[i, i:] + best[i + 1:]).argmin())
            ends.append(i)
        stages = [Chosen((1 << j) - (1 << i), self.micro, int(fewest[i, j - 1])) for i, j in pairwise(ends)]
        deep = all(self.most[self._at(s)] >= held for s, held in zip(reversed(stages), self.held, strict=False))
        return [stages] if deep or fits_memory(self.prices, stages) else self.fronts(limit)

    def slowest(self, stages: list[Chosen]) -> float:
        """Seconds a sample of the bottleneck."""
        return max([float(self.seconds[self._at(s)]) for s in stages])

    def _at(self, stage: Chosen) -> tuple[int, int, int]:
        """Where the arrays have a stage: its first operator, its last one, and its way to replicate."""
        last = stage.mask.bit_length() - 1
        return last + 1 - stage.mask.bit_count(), last, self.way_of[stage.replicas]

    def evenest(self) -> list[Chosen] | None:
        """Stages of least bottleneck that also are the least from every operator on, in the devices left to it, as
        PipeDream has it (with its rule for memory, see ``baselines``); ``None`` where nothing fits."""
        n, devices = len(self.prices.graph), self.devices
        left = np.arange(devices + 1)
        asked = np.minimum(self.micro * -(-left // self.replicas[:, None]), self.batch)
        after = left - self.replicas[:, None]
        best, at = np.full((n + 1, devices + 1), np.inf), np.zeros((n, devices + 1), dtype=int)
        best[n] = 0.0
        for i in reversed(range(n)):
            slowest = np.maximum(self.seconds[i, i:, :, None], best[i + 1:, np.maximum(after, 0)])
            slowest[:, after < 0] = np.inf
            slowest[self.most[i, i:, :, None] < asked] = np.inf
            flat = slowest.reshape(-1, devices + 1)
            at[i] = flat.argmin(axis=0)
            best[i] = np.take_along_axis(flat, at[i][None], axis=0)[0]
        if math.isinf(best[0, devices]):
            return None
        stages, i, m = [], 0, devices
        while i < n:
            length, way = divmod(int(at[i, m]), len(self.replicas))
            stages.append(Chosen((2 << i + length) - (1 << i), self.micro, int(self.replicas[way])))
            i, m = i + length + 1, m - int(self.replicas[way])
        return stages

    def _fewest(self, fits: np.ndarray) -> np.ndarray:
        """Fewest replicas of runs that fit, infinite where none do."""
        fewest = np.full(fits.shape[:-1], np.inf)
        for d, way in reversed(self.way_of.items()):
            fewest[fits[..., way]] = d
        return fewest

    def _stages(self, fits: np.ndarray, best: np.ndarray, m: int) -> list[Chosen]:
        stages, i = [], 0
        while m:
            runs = self._fewest(fits[i] & (self.most[i] >= self.held[m - 1]))
            last = int((runs + best[m - 1, 1:]).argmin())
            stages.append(Chosen((2 << last) - (1 << i), self.micro, int(runs[last])))
            i, m = last + 1, m - 1
        return stages


class Tree:
    """The search over the whole tree."""

    def __init__(self, prices: Prices, shape: Shape, menu: tuple[int, ...], work: Work) -> None:
        self.prices, self.shape, self.menu, self.work = prices, shape, menu, work

    def fronts(self, limit: float, alone: float = 0.0) -> list[list[Chosen]]:
        """Stages of every entry of the front within a bottleneck of ``limit``; for ``alone`` see ``Line``.

        With one micro-batch size they are first sought as if memory held any depth; where all of those fit, they are
        the front.
        """
        if len(self.menu) == 1:
            quick = self._read(self._probe(limit, "depth", alone))
            if all(fits_memory(self.prices, stages) for stages in quick):
                return quick
        return self._read(self._probe(limit, "in-flight", alone))

    def rising(self, limits: Sequence[float]) -> list[list[Chosen]]:
        """The fronts of several limits."""
        return [stages for limit in limits for stages in self.fronts(limit)]

    def some(self, limit: float) -> list[list[Chosen]]:
        """Some stages within ``limit`` if there are any, the shallowest first.

        First as if a stage held one micro-batch: where that finds nothing there is nothing, and where its stages fit
        all the same they are an answer. Only between the two does the whole program run.
        """
        if len(self.menu) == 1:
            quick = self._read(self._probe(limit, "one"))
            if not quick or fits_memory(self.prices, quick[0]):
                return quick
        return self.fronts(limit)

    def slowest(self, stages: list[Chosen]) -> float:
        """Seconds a sample of the bottleneck."""
        return max([self.prices.seconds_of(s.mask, s.micro, s.replicas) for s in stages])

    def _probe(self, limit: float, memory: Literal["in-flight", "one", "depth"], alone: float = 0.0) -> Probe:
        return Probe(self.prices, self.shape, self.work, self.menu, limit, alone=alone, memory=memory)

    def _read(self, probe: Probe) -> list[list[Chosen]]:
        found = sorted(probe.front().items(), key=lambda e: (e[0] or (0, 0), e[1][0]))
        return [probe.stages(choice) for _, (_, choice) in found]


def searcher(prices: Prices, work: Work, shape: Shape, menu: tuple[int, ...]) -> Line | Tree:
    """The search for a model and a menu of micro-batches."""
    if len(menu) == 1 and all(item.shape == "operator" for item in shape.root.parts):
        return Line(prices, work, menu[0])
    return Tree(prices, shape, menu, work)


def smallest_bottleneck(prices: Prices, root: Node, menu: tuple[int, ...], *, within: float = 0.0,
                        at_most: float = math.inf) -> tuple[float, list[list[Chosen]]] | None:
    """The least T for which stages exist, to a share ``within`` of it, and such stages; 0 finds the exact optimum.

    ``None`` when memory or devices allow no stages at any T up to ``at_most``.
    """
    return least_of(searcher(prices, Work(prices, menu), Shape(root), menu), within=within, at_most=at_most)


def least_of(search: Line | Tree, *, within: float, at_most: float,
             late: Callable[[], bool] = lambda: False) -> tuple[float, list[list[Chosen]]] | None:
    """``smallest_bottleneck`` with a search made before, or the least so far when it is ``late``."""
    low = max(search.work.floor, 1e-12) * (1 - 1e-12)
    if low > at_most or math.isinf(low):
        return None

    def achieved(limit: float) -> tuple[float, list[list[Chosen]]] | None:
        found = search.some(limit)
        return (search.slowest(found[0]), found) if found else None

    # From below: what is too small is found so at little cost, and the bound is often near.
    step = 1 + max(within, _CLOSE)
    best, limit = None, min(low * step, at_most)
    for _ in range(_PROBES):
        if (best := achieved(limit)) or limit == at_most or late():
            break
        low, limit, step = limit, min(limit * step, at_most), step ** _GROWTH if step < 4 else step
    if best is None:
        return None
    for _ in range(_PROBES):
        if best[0] - low <= within * best[0] or late():
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

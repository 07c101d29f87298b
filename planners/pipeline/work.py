"""Least device-seconds of sets of operators: lower bounds on the devices and on the bottleneck of any stages."""

from __future__ import annotations

import math
from copy import copy
from functools import cached_property

import numpy as np

from planners.pipeline.graph import bits
from planners.pipeline.pricing import Prices, ring_s
from workbench.costtables import Floats

__all__ = ["Work"]

# A ring of (almost) no bytes takes its latencies; none of them would take nothing.
_NO_BYTES = 1e-12
_ROUNDING = 1e-9
_CLOSE = 1e-3
_HALVINGS = 12


class Work:
    """Least device-seconds a sample of sets of operators, for lower bounds on devices; ``floor`` is one on T."""

    def __init__(self, prices: Prices, menu: tuple[int, ...]) -> None:
        self.prices, self.menu = prices, menu
        ways = [(b, d) for b in menu for d in prices.replica_counts(b)]
        local = np.array([b // d for b, d in ways], dtype=float)
        columns = [prices.column[b // d] for b, d in ways]
        compute = (prices.forward[:, columns] + prices.backward[:, columns]) / local
        self.least: list[float] = compute.min(axis=1).tolist()
        self.floor = _floor(prices, ways, compute)
        self.total = math.fsum(self.least)
        self._of: dict[int, float] = {}

    def of(self, mask: int) -> float:
        """Device-seconds a sample of all operators in ``mask``."""
        found = self._of.get(mask)
        if found is None:
            found = self._of[mask] = math.fsum([self.least[v] for v in bits(mask)])
        return found

    @cached_property
    def alone(self) -> list[float]:
        """Least seconds a sample of every operator as a stage of its own, transfers among them."""
        return [min((o.seconds_per_sample for b in self.menu for o in self.prices.options(1 << v, b)), default=math.inf)
                for v in range(len(self.least))]

    def relieved(self, limit: float) -> Work:
        """The work where operators that ``limit`` is too small for take a device or more each."""
        made = copy(self)
        made.least = [min(x, limit) if alone > limit else x for x, alone in zip(self.least, self.alone, strict=True)]
        made.total, made._of = math.fsum(made.least), {}
        return made


def _floor(prices: Prices, ways: list[tuple[int, int]], compute: Floats) -> float:
    """No stages have a smaller T: within T each operator takes the fewest device-seconds of the micro-batches and
    replicas that bring it alone under T, gradients' bytes and update among them; all together |D| T at most.

    ``compute`` is device-seconds a sample by operator and way (micro-batch, replicas).
    """
    batch = prices.problem.batch_samples
    replicas = np.array([d for _, d in ways], dtype=float)
    slope = np.array([ring_s(1.0, d, prices.ring_link(d)) - ring_s(_NO_BYTES, d, prices.ring_link(d))
                      for _, d in ways])
    weight, saved = prices.weights[:, None], prices.saved[:, None]
    local = np.array([b / d for b, d in ways])
    alone = compute / replicas + (weight * slope + np.array(prices.update)[:, None]) / batch
    alone[weight * prices.copies + local * saved > prices.room * (1 + _ROUNDING)] = math.inf
    taken = alone * replicas
    low = max(float(alone.min(axis=1).max()), float(taken.min(axis=1).sum()) / prices.cluster.devices)
    if math.isinf(low):
        return low
    devices = prices.cluster.devices

    def possible(limit: float) -> bool:
        return float(np.where(alone <= limit, taken, math.inf).min(axis=1).sum()) <= devices * limit

    if possible(low * (1 + _ROUNDING)):
        return low
    high = float(np.take_along_axis(taken, alone.argmin(axis=1)[:, None], axis=1).sum()) / devices
    for _ in range(_HALVINGS):
        if high - low <= _CLOSE * low:
            break
        middle = (low + high) / 2
        low, high = (low, middle) if possible(middle) else (middle, high)
    return low

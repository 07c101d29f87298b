"""A lower bound on the iteration of every plan, from the operators' times alone.

No plan is faster than (a) all operators at their most efficient local batch, spread evenly over all devices, (b) the
slowest operator on as many replicas as any micro-batch allows, or (c) one smallest micro-batch through the longest
path, forward and back.
"""

from __future__ import annotations

from planners.pipeline.pricing import Prices
from planners.pipeline.search import Work

__all__ = ["iteration_bound"]


def iteration_bound(prices: Prices) -> float:
    """Seconds that no iteration of the problem can undercut."""
    menu, batch = prices.problem.menu, prices.problem.batch_samples
    work = Work(prices, menu)
    area = batch * work.of(prices.graph.everything) / prices.cluster.devices
    slowest = batch * work.largest_op
    fastest = (prices.forward + prices.backward).min(axis=1)
    path = [0.0] * len(prices.graph)
    for v in range(len(path)):
        path[v] = float(fastest[v]) + max((path[u] for u, _ in prices.graph.reads[v]), default=0.0)
    return max(area, slowest, max(path))

"""Lower bounds on the iteration of every plan, for any kFkB and any in-flight samples; the largest is reported.

area: within T, every operator takes the fewest device-seconds of the micro-batches and replicas that finish it in T,
its gradients' all-reduce and update among them; together they need at most |D| T. path: one smallest micro-batch
through the longest path and back.
chain: where operators are totally ordered, stages are runs of them. A stage of b samples on r devices works
(B/b)(f + g)(b/r), with its transfers where they block; before and after that it waits while the first micro-batch comes
through the stages before it and the last one's gradients go back, one micro-batch of each, or it has its all-reduce and
update to do. A dynamic program finds the least such T over all cuts, micro-batches and replicas: F[i, d] is the least
wait of a stage that begins at operator i when those before it have d devices.
partitions: with few operators, the same over every set partition whose stage graph is acyclic, the replicas chosen
freely for each; a stage waits for the longest path of its predecessors' shortest micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import NamedTuple

import numpy as np

from planners.pipeline.graph import OperatorGraph, bits
from planners.pipeline.pricing import Prices, ring_s, transfer_s
from planners.pipeline.problem import LinkRate

__all__ = ["area_bound", "chain_bound", "iteration_bound", "partition_bound"]

_MOST_PARTITIONED = 8
_MOST_CHAINED = 160
_CLOSE = 3e-3
_FINE = 1e-6
_HOPELESS = 1e3
_ROUNDING = 1e-9


def iteration_bound(prices: Prices) -> float:
    """Seconds that no iteration of the problem can undercut."""
    fastest = (prices.forward + prices.backward).min(axis=1)
    path = [0.0] * len(prices.graph)
    for v in range(len(path)):
        path[v] = float(fastest[v]) + max((path[u] for u, _ in prices.graph.reads[v]), default=0.0)
    least = max(area_bound(prices), max(path))
    if _totally_ordered(prices.graph) and len(prices.graph) <= _MOST_CHAINED:
        return chain_bound(prices, least)
    if len(prices.graph) <= _MOST_PARTITIONED:
        return max(least, partition_bound(prices))
    return least


def area_bound(prices: Prices) -> float:
    """The bound ``area``, from below, to a millionth."""
    alone = [_ways(prices, 1 << v, part=True) for v in range(len(prices.graph))]
    if not all(alone):
        return 0.0
    costs = [np.array([(w.work_s + w.end_s, w.replicas * (w.work_s + w.end_s)) for w in ways]) for ways in alone]

    def possible(limit: float) -> bool:
        total = 0.0
        for rows in costs:
            fit = rows[rows[:, 0] <= limit, 1]
            if not len(fit):
                return False
            total += float(fit.min())
        return total <= prices.cluster.devices * limit * (1 + 1e-12)

    low = max(float(rows[:, 0].min()) for rows in costs)
    low = max(low, sum(float(rows[:, 1].min()) for rows in costs) / prices.cluster.devices) * (1 - 1e-12)
    high = max(low, sum(float(rows[rows[:, 0].argmin(), 1]) for rows in costs) / prices.cluster.devices) * (1 + 1e-9)
    while high - low > _FINE * low:
        middle = (low + high) / 2
        low, high = (low, middle) if possible(middle) else (middle, high)
    return low


def _totally_ordered(graph: OperatorGraph) -> bool:
    return all((graph.above[v] | graph.below[v] | 1 << v) == graph.everything for v in range(len(graph)))


class _Way(NamedTuple):
    """A stage on ``replicas`` devices: its work an iteration, what follows its last backward, one micro-batch."""

    replicas: int
    work_s: float
    end_s: float
    once_s: float


def _ways(prices: Prices, mask: int, *, part: bool = False) -> list[_Way]:
    """How a stage can run if it holds but one micro-batch; those that another one beats in everything are left out.

    ``part``: the operators may be part of a larger stage. Then only what a stage adds up over its operators counts:
    of the all-reduce its bytes; neither transfers nor the memory of received tensors, which may come from within.
    """
    sums, batch, cluster = prices.sums(mask), prices.problem.batch_samples, prices.cluster
    found = []
    for b in prices.problem.menu:
        for r in prices.replica_counts(b):
            held = b / r * (sums.saved_bytes + (0.0 if part else sums.received))
            if sums.weight_bytes * prices.copies + held > prices.room * (1 + _ROUNDING):
                continue
            once = sum(prices.compute_s(mask, b, r))
            if not part and prices.problem.transfers == "blocking":
                once += sum(min(transfer_s(size * b / r, link) for link in (cluster.inside, cluster.between))
                            for size in (sums.received, sums.sent))
            ring = min(ring_s(sums.weight_bytes, r, LinkRate(latency_s=0.0, bytes_per_s=link.bytes_per_s)
                              if part else link) for link in _ring_links(prices, r))
            found.append(_Way(r, batch // b * once, ring + sums.update_s, once))
    found.sort()
    kept: list[_Way] = []
    for way in found:
        if not any(k.work_s <= way.work_s and k.end_s <= way.end_s and k.once_s <= way.once_s for k in kept):
            kept.append(way)
    return kept


def _ring_links(prices: Prices, replicas: int) -> list[LinkRate]:
    """Links that an all-reduce may go over: more replicas than a machine holds stand in several."""
    cluster = prices.cluster
    if replicas > cluster.devices_per_machine:
        return [cluster.between]
    return [cluster.inside] if prices.one_machine else [cluster.inside, cluster.between]


def chain_bound(prices: Prices, least: float) -> float:
    """The bound ``chain``, from below, to 0.3 %; ``least`` is a bound already known."""
    n, devices = len(prices.graph), prices.cluster.devices
    alike: dict[Hashable, list[_Way]] = {}
    # By first operator and replicas: end of the run, work, what follows it, one micro-batch, as columns.
    runs: list[dict[int, np.ndarray]] = []
    for i in range(n):
        rows: dict[int, list[tuple[float, ...]]] = {}
        for j in range(i + 1, n + 1):
            sums = prices.sums((1 << j) - (1 << i))
            if sums not in alike:
                alike[sums] = _ways(prices, (1 << j) - (1 << i))
            for way in alike[sums]:
                rows.setdefault(way.replicas, []).append((j, way.work_s, way.end_s, way.once_s))
        runs.append({r: np.array(found) for r, found in rows.items() if r <= devices})

    def possible(limit: float) -> bool:
        wait = np.full((n + 1, devices + 1), np.inf)
        wait[0, 0] = 0.0
        for i in range(n):
            lowest = wait[i].min()
            if math.isinf(lowest):
                continue
            for r, columns in runs[i].items():
                fit = columns[columns[:, 1] + np.maximum(columns[:, 2], lowest) <= limit]
                if len(fit):
                    before = wait[i, :devices + 1 - r][None, :]
                    after = np.where(before + fit[:, 1:2] <= limit, before + fit[:, 3:4], np.inf)
                    np.minimum.at(wait[:, r:], fit[:, 0].astype(int), after)
        return bool(np.isfinite(wait[n]).any())

    low, high = least, least * 1.05
    while not possible(high):
        low, high = high, high * 1.2
        if high > least * _HOPELESS:
            return low
    while high - low > _CLOSE * low:
        middle = (low + high) / 2
        low, high = (low, middle) if possible(middle) else (middle, high)
    return low


def partition_bound(prices: Prices) -> float:
    """The bound ``partitions``; infinite where no partition fits memory."""
    graph, devices = prices.graph, prices.cluster.devices
    ways: dict[int, list[_Way]] = {}
    best = math.inf
    for parts in _partitions(len(graph), devices):
        before = _reads(graph, parts)
        order = _order(before)
        if order is None:
            continue
        wait = [0.0] * len(parts)
        needs = []
        for x in order:
            mask = parts[x]
            if mask not in ways:
                ways[mask] = _ways(prices, mask)
            wait[x] = max((wait[y] + min((w.once_s for w in ways[parts[y]]), default=math.inf) for y in before[x]),
                          default=0.0)
            needs.append([(w.replicas, w.work_s + max(w.end_s, wait[x])) for w in ways[mask]])
        best = min(best, _shared(needs, devices))
    return best


def _shared(needs: list[list[tuple[int, float]]], devices: int) -> float:
    """Least largest time when stages share the devices: the slowest one gets more of them while that helps."""
    if not all(needs):
        return math.inf
    for ways in needs:
        ways.sort()
    at = [0] * len(needs)
    left = devices - sum(ways[0][0] for ways in needs)
    if left < 0:
        return math.inf
    while True:
        slowest = max(range(len(needs)), key=lambda x: needs[x][at[x]][1])
        ways = needs[slowest]
        replicas, now = ways[at[slowest]]
        faster = next((k for k, (r, t) in enumerate(ways) if t < now and r - replicas <= left), None)
        if faster is None:
            return now
        left -= ways[faster][0] - replicas
        at[slowest] = faster


def _partitions(n: int, most: int) -> Iterator[list[int]]:
    """Set partitions of n operators into at most ``most`` sets, as masks."""
    parts: list[int] = []

    def grow(v: int) -> Iterator[list[int]]:
        if v == n:
            yield parts
            return
        for k in range(len(parts)):
            parts[k] |= 1 << v
            yield from grow(v + 1)
            parts[k] ^= 1 << v
        if len(parts) < most:
            parts.append(1 << v)
            yield from grow(v + 1)
            parts.pop()

    yield from grow(0)


def _reads(graph: OperatorGraph, parts: list[int]) -> list[set[int]]:
    owner = {v: x for x, part in enumerate(parts) for v in bits(part)}
    before: list[set[int]] = [set() for _ in parts]
    for u, v, _ in graph.edges:
        if owner[u] != owner[v]:
            before[owner[v]].add(owner[u])
    return before


def _order(before: list[set[int]]) -> list[int] | None:
    """Topological order, or ``None`` with a cycle."""
    done: list[int] = []
    left = set(range(len(before)))
    while left:
        ready = [x for x in left if before[x] <= set(done)]
        if not ready:
            return None
        done += ready
        left.difference_update(ready)
    return done

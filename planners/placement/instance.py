"""The problem as arrays: what every planner of this study searches over, and dominance pruning.

A candidate c is dominated when an integer bundle of other candidates of its model fits into the GPUs of one replica
of c and is at least as fast on every workload type taken alone. The loads a bundle can carry in unit time form a
convex set, so a bundle that covers the pure loads of c covers every mix of them: pruning never changes the optimum.
Bundles tried are k equal replicas, and one replica beside k equal ones in what room it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planners.placement.problem import Problem, Rate, StageLayout, Workload

__all__ = ["Candidate", "Instance", "build", "covered", "prune", "uncovered"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration a planner may start replicas of."""

    name: str
    model: str
    devices: Mapping[str, int]
    throughputs: Mapping[str, Rate]
    stages: tuple[StageLayout, ...] = ()
    kv_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instance:
    """Arrays over candidates C, workload types W (only those with requests) and GPU types N.

    ``devices`` int [C, N]; ``cost`` [C] $/h; ``rate`` [C, W] requests/s, 0 where c cannot serve w; ``requests`` [W];
    ``available`` int [N]; ``price`` [N] $/h; ``budget`` $/h or inf; ``required`` requests/s or ``None``.
    """

    candidates: tuple[Candidate, ...]
    workloads: tuple[Workload, ...]
    device_names: tuple[str, ...]
    devices: Integers
    cost: Floats
    rate: Floats
    requests: Floats
    available: Integers
    price: Floats
    budget: float
    required: float | None

    @property
    def total_requests(self) -> float:
        """Requests over all workload types."""
        return float(self.requests.sum())

    @property
    def mix(self) -> Floats:
        """Share of each workload type in all requests, [W]."""
        return self.requests / self.requests.sum()

    def most_replicas(self) -> Integers:
        """Replicas of each candidate that availability and budget allow if nothing else is rented, int [C]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            by_type = np.where(self.devices > 0, self.available // np.maximum(self.devices, 1), np.iinfo(np.int64).max)
            by_budget = np.where(self.cost > 0, self.budget / self.cost, np.inf)
        whole = np.floor(np.minimum(by_budget * (1 + 1e-12), 2**53))
        return np.minimum(by_type.min(axis=1, initial=np.iinfo(np.int64).max), whole.astype(np.int64))

    def take(self, keep: NDArray[np.bool_] | Integers) -> Instance:
        """The same instance with only these candidates."""
        rows = np.flatnonzero(keep) if keep.dtype == np.bool_ else keep
        return replace(self, candidates=tuple(self.candidates[i] for i in rows), devices=self.devices[rows],
                       cost=self.cost[rows], rate=self.rate[rows])


def build(problem: Problem, workloads: Sequence[Workload], candidates: Sequence[Candidate]) -> Instance:
    """Arrays of ``problem`` with its demand sorted into ``workloads`` and these candidates, in their order."""
    asked = tuple(w for w in workloads if w.requests > 0)
    names = tuple(d.name for d in problem.devices)
    price = np.array([d.price_usd_per_h for d in problem.devices])
    devices = np.array([[c.devices.get(n, 0) for n in names] for c in candidates], dtype=np.int64)
    devices = devices.reshape(len(candidates), len(names))
    rate = np.array([[c.throughputs[w.name].per_s if c.model == w.model and w.name in c.throughputs else 0.0
                      for w in asked] for c in candidates]).reshape(len(candidates), len(asked))
    return Instance(
        candidates=tuple(candidates), workloads=asked, device_names=names, devices=devices, cost=devices @ price,
        rate=rate, requests=np.array([w.requests for w in asked]),
        available=np.array([d.available for d in problem.devices], dtype=np.int64), price=price,
        budget=np.inf if problem.budget_usd_per_h is None else problem.budget_usd_per_h,
        required=problem.required_rate_per_s)


def prune(instance: Instance) -> tuple[Instance, int]:
    """The instance without dominated candidates, and how many were dropped (useless ones included)."""
    kept = uncovered(instance, instance.rate)
    return instance.take(kept), len(instance.candidates) - len(kept)


def uncovered(instance: Instance, worth: Floats) -> Integers:
    """Candidates that no bundle of others covers, ascending: a bundle fits in their GPUs and has at least their worth.

    ``worth`` is [C, K]: the rates on K workload types, or the values under K valid inequalities. Rates of another
    model's types are 0, so a candidate is never covered by one of another model.
    """
    speed = worth / np.maximum(worth.max(axis=0, initial=0.0), 1e-300)
    order = np.lexsort((np.arange(len(worth)), -speed.sum(axis=1), instance.devices.sum(axis=1)))
    kept: list[int] = []
    for i in order:
        if worth[i].any() and not covered(instance.devices[i], worth[i], instance.devices[kept], worth[kept]):
            kept.append(int(i))
    return np.array(sorted(kept), dtype=np.int64)


def covered(room: Integers, rate: Floats, devices: Integers, rates: Floats) -> bool:
    """Whether a bundle of rivals (``devices`` [R, N], ``rates`` [R, K]) fits ``room`` [N] and covers ``rate`` [K]."""
    copies = _copies(room[None, :], devices)
    fits = copies[0] > 0
    devices, rates, copies = devices[fits], rates[fits], copies[0][fits]
    if not len(copies):
        return False
    if (copies[:, None] * rates >= rate).all(axis=1).any():
        return True
    if len(copies) < 2:
        return False
    beside = _copies(room - devices, devices)
    together = rates[:, None, :] + beside[:, :, None] * rates[None, :, :]
    return bool((together >= rate).all(axis=2).any())


def _copies(rooms: Integers, devices: Integers) -> Integers:
    """How many replicas of each rival fit in each room, int [rooms, K]."""
    if not len(devices):
        return np.zeros((len(rooms), 0), dtype=np.int64)
    fit = np.where(devices[None, :, :] > 0, rooms[:, None, :] // np.maximum(devices, 1)[None, :, :],
                   np.iinfo(np.int64).max)
    return fit.min(axis=2)

"""Random small placement problems with given throughputs, as a spec value and as arrays for the oracles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planners.placement import Problem
from planners.placement.problem import GivenConfiguration, Offer, Workload
from workbench.costs import TableCosts

NO_COSTS = TableCosts(())


@dataclass(frozen=True)
class Case:
    """One problem twice: ``problem`` for the planners, arrays for the oracles (in the same order)."""

    problem: Problem
    devices: np.ndarray
    price: np.ndarray
    available: np.ndarray
    rate: np.ndarray
    requests: np.ndarray
    budget: float


def case(devices: np.ndarray, price: np.ndarray, available: np.ndarray, rate: np.ndarray, requests: np.ndarray,
         budget: float, *, models: tuple[str, ...] | None = None, required_per_s: float | None = None) -> Case:
    """A case from arrays: devices [C, N], rate [C, W] (0: cannot serve), models [W] of the workload types."""
    models = models or ("m",) * len(requests)
    owner = [models[int(np.flatnonzero(row)[0])] if row.any() else models[0] for row in rate]
    problem = Problem(
        objective="least-makespan" if required_per_s is None else "least-cost",
        required_rate_per_s=required_per_s,
        budget_usd_per_h=None if np.isinf(budget) else float(budget),
        devices=tuple(Offer(name=f"t{n}", available=int(a), price_usd_per_h=float(p))
                      for n, (a, p) in enumerate(zip(available, price, strict=True))),
        workloads=tuple(Workload(name=f"w{k}", model=m, requests=float(f))
                        for k, (m, f) in enumerate(zip(models, requests, strict=True))),
        configurations=tuple(
            GivenConfiguration(name=f"c{c}", model=owner[c],
                               devices={f"t{n}": int(d) for n, d in enumerate(row) if d},
                               throughputs_per_s={f"w{k}": float(h) for k, h in enumerate(rate[c])
                                                  if models[k] == owner[c]})
            for c, row in enumerate(devices)))
    return Case(problem, devices, price, available, rate, requests, budget)


def random_case(rng: np.random.Generator, *, types: int = 2, models: int = 1, required: bool = False) -> Case:
    """2-3 GPU types, 3-6 configurations, a few dozen fleets at most."""
    kinds, configurations = int(rng.integers(2, 4)), int(rng.integers(3, 7))
    devices = np.zeros((configurations, kinds), dtype=int)
    for c in range(configurations):
        devices[c, rng.integers(kinds)] = rng.integers(1, 3)
        if rng.random() < 0.3:
            devices[c, rng.integers(kinds)] += 1
    price = np.round(rng.uniform(0.3, 4.0, kinds), 2)
    available = rng.integers(1, 5, kinds)
    names = tuple(f"m{k % models}" for k in range(types))
    rate = np.round(rng.uniform(0.2, 3.0, (configurations, types)) * devices.sum(axis=1, keepdims=True), 2)
    rate[rng.random(rate.shape) < 0.1] = 0.0
    for c in range(configurations):
        model = f"m{c % models}"
        for k in range(types):
            if names[k] != model:
                rate[c, k] = 0.0
    for k in range(types):  # some configuration serves every type
        owners = [c for c in range(configurations) if f"m{c % models}" == names[k]]
        rate[owners[0], k] = max(rate[owners[0], k], 0.5)
    requests = rng.integers(1, 200, types).astype(float)
    budget = float(np.round(rng.uniform(2.0, 12.0), 2))
    required_per_s = float(np.round(rng.uniform(0.3, 4.0), 2)) if required else None
    return case(devices, price, available, rate, requests, budget, models=names, required_per_s=required_per_s)

"""The paper's own search: bisection on the makespan T, one feasibility check a step (arXiv 2502.00722, appendix F).

For T fixed, equations 2-6 are linear in y and x. ``exact`` checks them with a mixed-integer program; ``knapsack``
packs replicas greedily by the demand they still serve per dollar. The paper's fast check is a knapsack-style
approximation too, but its exact rule is not public, so this one is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planners.placement.exact import Search
from planners.placement.formulation import assign, fleet_model, relaxation
from planners.placement.instance import Floats, Instance, Integers
from workbench.milp import solve

__all__ = ["Bisected", "by_knapsack", "by_program"]

Check = Callable[[Instance, float, Search], Integers | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bisected:
    """Fleet [C] with its assignment ``work`` [C, W], its makespan, and the largest T found infeasible."""

    replicas: Integers
    work: Floats
    makespan_s: float
    infeasible_s: float
    closed: bool


def by_program(instance: Instance, search: Search, *, tolerance: float) -> Bisected | None:
    """Bisection with the exact check; ``None`` when no fleet serves every type."""
    return _bisect(instance, search, program_check, tolerance=tolerance)


def by_knapsack(instance: Instance, search: Search, *, tolerance: float) -> Bisected | None:
    """Bisection with the greedy check; its ``infeasible_s`` proves nothing."""
    return _bisect(instance, search, knapsack_check, tolerance=tolerance)


def _bisect(instance: Instance, search: Search, check: Check, *, tolerance: float) -> Bisected | None:
    optimum = relaxation(instance).rate
    if optimum <= 0:
        return None
    low = 0.0
    high = instance.total_requests / optimum
    best = None
    while best is None:
        best = check(instance, high, search)
        if best is None:
            low, high = high, high * 2
            if search.over() or high > 1e6 * instance.total_requests / optimum:
                return None
    makespan = instance.total_requests / assign(instance, best).rate
    high = min(high, makespan)
    while high - low > tolerance * high and not search.over():
        middle = (low + high) / 2
        found = check(instance, middle, search)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    final = assign(instance, best)
    return Bisected(replicas=best, work=final.work, makespan_s=instance.total_requests / final.rate, infeasible_s=low,
                    closed=high - low <= tolerance * high)


def program_check(instance: Instance, makespan_s: float, search: Search) -> Integers | None:
    """A fleet that finishes within ``makespan_s``, or ``None``: equations 2-6 with T a constant."""
    c, w = np.nonzero(instance.rate)
    model = fleet_model(instance)
    share = model.variables("share", len(c), upper=1.0)
    from scipy.sparse import csr_array

    columns = np.arange(len(c))
    served = csr_array((np.ones(len(c)), (w, columns)), shape=(len(instance.workloads), len(c)))
    busy = csr_array((instance.requests[w] / instance.rate[c, w] / makespan_s, (c, columns)),
                     shape=(len(instance.candidates), len(c)))
    model.add("served", served @ share, "==", 1.0)
    model.add("busy", busy @ share - model["replicas"], "<=", 0.0)
    model.minimise(0.0)
    solution = solve(model, solver=search.solver, time_limit_s=search.left_s(), seed=search.seed)
    return None if solution.x is None else np.asarray(solution["replicas"])


def knapsack_check(instance: Instance, makespan_s: float, search: Search) -> Integers | None:
    """A fleet packed greedily that finishes within ``makespan_s``, or ``None`` when the greedy packing fails."""
    demand = instance.requests / makespan_s
    # What a served request is worth: its price on the configuration that serves its type most cheaply.
    with np.errstate(divide="ignore"):
        price = np.where(instance.rate > 0, np.maximum(instance.cost, 1e-9)[:, None] / instance.rate, np.inf)
    worth = price.min(axis=0)
    left, money = instance.available.copy(), instance.budget * (1 + 1e-12)
    replicas = np.zeros(len(instance.candidates), dtype=np.int64)
    while demand.max() > 1e-9 * instance.requests.max() / makespan_s:
        fits = (instance.devices <= left).all(axis=1) & (instance.cost <= money)
        best, gain, taken = -1, 0.0, demand
        for c in np.flatnonzero(fits):
            served = _fill(instance.rate[c], demand, worth)
            value = float(worth @ served) / max(float(instance.cost[c]), 1e-9)
            if value > gain:
                best, gain, taken = int(c), value, served
        if best < 0:
            return None
        demand = np.maximum(demand - taken, 0.0)
        replicas[best] += 1
        left = left - instance.devices[best]
        money -= float(instance.cost[best])
    return replicas


def _fill(rate: Floats, demand: Floats, worth: Floats) -> Floats:
    """Demand one replica serves in unit time, the most valuable per second first."""
    served = np.zeros(len(demand))
    time = 1.0
    for w in np.argsort(-worth * rate, kind="stable"):
        if time <= 0 or rate[w] <= 0:
            break
        served[w] = min(demand[w], rate[w] * time)
        time -= served[w] / rate[w]
    return served



"""Why there is no plan, and the smallest change that gives one.

The candidates are enumerated anew as if money and GPUs were unlimited; over them three small programs ask for the
least budget at today's availability, the fewest dollars' worth of further GPUs at today's budget, and both at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planners.placement.configurations import Candidates, candidates_of
from planners.placement.formulation import typical_rate, with_work
from planners.placement.instance import Instance
from planners.placement.problem import Problem, Workload
from workbench.costs import CostModel
from workbench.errors import Infeasible
from workbench.milp import Model, solve

__all__ = ["explain"]


def explain(problem: Problem, workloads: Sequence[Workload], costs: CostModel, candidates: Candidates) -> Infeasible:
    """The error to raise for a problem without a plan."""
    relaxed = candidates_of(_unlimited(problem), workloads, costs)
    instance = relaxed.instance
    unserved = [w for k, w in enumerate(instance.workloads) if not (instance.rate[:, k] > 0).any()]
    if unserved:
        return _too_small(problem, unserved[0], candidates)
    available = np.array([d.available for d in problem.devices])
    budget = np.inf if problem.budget_usd_per_h is None else problem.budget_usd_per_h
    dearer = _least(instance, available=available, budget=np.inf, required=problem.required_rate_per_s)
    more = _least(instance, available=None, budget=budget, required=problem.required_rate_per_s, now=available)
    goal = ("no fleet serves every workload type" if problem.required_rate_per_s is None
            else f"no fleet sustains {problem.required_rate_per_s:g} requests/s")
    bindings, ways = [], []
    if dearer is not None:
        bindings.append("budget")
        ways.append(f"raise budget_usd_per_h from {budget:g} to {dearer[0]:.4g}")
    if more is not None:
        bindings.append("availability")
        ways.append("raise " + ", ".join(
            f"available {d.name} from {d.available} to {int(n)}" for d, n in zip(problem.devices, more[1], strict=True)
            if n > d.available))
    if not ways:
        both = _least(instance, available=None, budget=np.inf, required=problem.required_rate_per_s, now=available)
        bindings = ["budget and availability together"]
        if both is not None:
            listed = ", ".join(f"{int(n)} {d.name}" for d, n in zip(problem.devices, both[1], strict=True) if n)
            ways.append(f"a fleet of {listed} for {both[0]:.4g} $/h would do")
    return Infeasible(f"{goal}; binding: {' or '.join(bindings)}", where="placement", hint="; or ".join(ways) or None,
                      next_command="wb schema placement")


def _unlimited(problem: Problem) -> Problem:
    most = max([problem.enumeration.max_devices, *(n for c in problem.configurations for n in c.devices.values())])
    if problem.required_rate_per_s is not None:
        most = 10**6
    return replace(problem, budget_usd_per_h=None, devices=tuple(
        replace(d, available=max(d.available, most)) for d in problem.devices))


def _least(instance: Instance, *, available: np.ndarray | None, budget: float, required: float | None,
           now: np.ndarray | None = None) -> tuple[float, np.ndarray] | None:
    """(rent, GPUs [N]) of the fleet that serves every type, or the required rate, with the least rent.

    With ``available`` absent the rent of GPUs beyond ``now`` counts first.
    """
    names = instance.device_names
    model = Model("shortage")
    replicas = model.variables("replicas", len(instance.candidates), integer=True)
    gpus = model.variables("gpus", names, integer=True, upper=np.inf if available is None else available)
    model.add("rented", instance.devices.T @ replicas - gpus, "==", 0.0)
    if np.isfinite(budget):
        model.add("budget", instance.price @ gpus, "<=", budget)
    if required is None:
        model.add("serves", (instance.rate > 0).T.astype(float) @ replicas, ">=", 1.0)
    else:
        unit = typical_rate(instance)
        with_work(model, instance, unit)
        model.bound(model["rate"], lower=required / unit)
    rent = (instance.price + 1e-6) @ gpus
    if available is None:
        assert now is not None, "without availability there is something to compare with"
        extra = model.variables("extra", names)
        model.add("beyond", gpus - extra, "<=", now)
        rent = rent * 1e-3 + (instance.price + 1e-3) @ extra
    model.minimise(rent)
    found = solve(model, gap=1e-4, time_limit_s=10.0)
    if found.x is None:
        return None
    count = found["gpus"]
    return float(instance.price @ count), count


def _too_small(problem: Problem, workload: Workload, candidates: Candidates) -> Infeasible:
    reasons = ", ".join(f"{n} {reason}" for reason, n in candidates.space.infeasible.items())
    closest = candidates.closest.get(workload.model)
    options = problem.enumeration
    hint = f"closest: {closest}; " if closest else ""
    if not problem.configurations:
        hint += (f"allow larger replicas (enumeration.max_devices = {options.max_devices}, max_stages = "
                 f"{options.max_stages}) or offer GPUs with more memory")
    return Infeasible(f"no configuration serves workload {workload.name!r} of {workload.model}; binding: memory"
                      if not problem.configurations else
                      f"no given configuration serves workload {workload.name!r} of {workload.model}",
                      where=f"placement ({reasons})" if reasons else "placement", hint=hint or None,
                      next_command="wb schema placement")

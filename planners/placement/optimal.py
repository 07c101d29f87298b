"""The optimal plan of a problem, with its certificate; every other planner starts from what is prepared here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from planners.placement.assembly import assemble, shares_of_work
from planners.placement.configurations import Candidates, MemoCosts, candidates_of
from planners.placement.demand import workloads_of
from planners.placement.exact import Fleet, Search, cheapest, fastest, leanest
from planners.placement.formulation import fleet_model, relaxation, typical_rate, with_work
from planners.placement.instance import Instance
from planners.placement.problem import Plan, Problem, Workload
from planners.placement.program import fleet_by_program
from planners.placement.shortage import explain
from workbench.costs import CostModel
from workbench.errors import Infeasible
from workbench.milp import Solution, relax, solve

__all__ = ["Prepared", "exact_plan", "fractional_cost", "no_plan", "prepare", "program_plan", "servable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A problem with its demand sorted into types, its candidates, and a cost model that remembers."""

    problem: Problem
    workloads: tuple[Workload, ...]
    costs: MemoCosts
    candidates: Candidates


def prepare(problem: Problem, costs: CostModel) -> Prepared:
    """Demand and candidates of ``problem``.

    Raises:
        SpecError: a device, model or trace is unknown.
        MissingProfile: the cost model lacks a kernel of an offered device.
    """
    memo = costs if isinstance(costs, MemoCosts) else MemoCosts(costs)
    workloads = workloads_of(problem)
    return Prepared(problem=problem, workloads=workloads, costs=memo,
                    candidates=candidates_of(problem, workloads, memo))


def servable(instance: Instance) -> bool:
    """Whether every workload type has a candidate that can serve it."""
    return bool(len(instance.candidates)) and bool((instance.rate > 0).any(axis=0).all())


def no_plan(ready: Prepared) -> Infeasible:
    """The error that says what binds and what would have to change."""
    return explain(ready.problem, ready.workloads, ready.costs, ready.candidates)


def exact_plan(ready: Prepared, search: Search) -> Plan:
    """The optimal plan of prepared candidates, with its certificate."""
    return _certified(ready, search, _exact_fleet, planner="exact")


def program_plan(ready: Prepared, search: Search) -> Plan:
    """The plan of the linear model solved in one piece, with its certificate."""
    return _certified(ready, search, fleet_by_program, planner="program")


def _certified(ready: Prepared, search: Search, find: Callable[[Instance, float | None, Search], Fleet | None], *,
               planner: str) -> Plan:
    start = time.perf_counter()
    instance, required = ready.candidates.instance, ready.problem.required_rate_per_s
    fleet = find(instance, required, search) if servable(instance) else None
    if fleet is None:
        raise no_plan(ready)
    return assemble(ready.problem, ready.workloads, ready.candidates, fleet.replicas,
                    shares_of_work(instance, fleet.assignment.work),
                    bound=instance.total_requests / fleet.bound if required is None else fleet.bound,
                    status="optimal" if fleet.proven else "feasible", planner=planner, solver=search.solver,
                    seconds=time.perf_counter() - start,
                    shadow_prices=_makespan_prices(instance) if required is None else _cost_prices(instance, required))


def _exact_fleet(instance: Instance, required: float | None, search: Search) -> Fleet | None:
    return (_fastest_then_cheapest(instance, search) if required is None
            else _cheapest_then_fastest(instance, required, search))


def _fastest_then_cheapest(instance: Instance, search: Search) -> Fleet | None:
    """The fastest fleet; among those as fast, the cheapest."""
    best = fastest(instance, search)
    return best if best is None or search.over() else leanest(instance, best, search)


def _cheapest_then_fastest(instance: Instance, required: float, search: Search) -> Fleet | None:
    """The cheapest fleet for the rate; among those as cheap, the fastest."""
    lean = cheapest(instance, required, search)
    if lean is None or search.over():
        return lean
    best = fastest(replace(instance, budget=lean.cost * (1 + 1e-9)), search)
    if best is None or best.assignment.rate < lean.assignment.rate:
        return lean
    return Fleet(replicas=best.replicas, assignment=best.assignment, cost=best.cost, bound=lean.bound,
                 proven=lean.proven, cuts=best.cuts)


def _makespan_prices(instance: Instance) -> dict[str, float]:
    """Seconds of makespan that one more $/h, and one more GPU of each type, would save (linear relaxation)."""
    linear = relaxation(instance)
    per_rate = instance.total_requests / linear.rate**2
    prices = {} if np.isinf(instance.budget) else {"budget_usd_per_h": linear.budget_price * per_rate}
    return prices | {n: float(p) * per_rate for n, p in zip(instance.device_names, linear.device_price, strict=True)}


def _cost_prices(instance: Instance, required: float) -> dict[str, float]:
    """$/h that asking for 1 request/s less, and one more GPU of each type, would save (linear relaxation)."""
    found = fractional_cost(instance, required)
    if found.reduced_costs is None:
        return {}
    prices = np.maximum(found.reduced_costs["gpus"], 0.0)
    demand = max(0.0, -float(found.reduced_costs["rate"])) / typical_rate(instance)
    return {"required_rate_per_s": demand} | {
        n: float(p) for n, p in zip(instance.device_names, prices, strict=True)}


def fractional_cost(instance: Instance, required: float) -> Solution:
    """Least rent, $/h, of a fleet for ``required`` requests/s if replicas could be fractional."""
    unit = typical_rate(instance)
    model = relax(with_work(fleet_model(instance), instance, unit))
    model.bound(model["rate"], lower=required / unit)
    model.minimise(instance.price @ model["gpus"])
    return solve(model)

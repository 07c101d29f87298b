"""The plans ours is measured against: homogeneous fleets, ablations of each decision, and Melange.

Ablations take one decision away (arXiv 2502.00722, section 5): *uniform-composition* spends the budget evenly;
*uniform-deployment* rents our GPUs but groups each type into its smallest replicas; *fixed-composition* (how HexGen was
run on our GPUs) deploys for a router that sends every type to all replicas of its model alike; *round-robin* sends
every replica of ours equally many requests. Melange (arXiv 2404.14527) knows one replica layout a type and
assigns demand in slices; its integer program has no availability, ours limits it like every other plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from planners.placement.assembly import assemble, rented, shares_of_work
from planners.placement.configurations import Candidates, candidates_of
from planners.placement.exact import Fleet, Search, fastest
from planners.placement.formulation import fleet_model
from planners.placement.instance import Floats, Instance, Integers
from planners.placement.optimal import Prepared, exact_plan
from planners.placement.problem import Plan, Problem
from workbench.errors import Infeasible, SpecError
from workbench.milp import solve

__all__ = ["homogeneous", "make"]

_SLICES = 8
_MELANGE_STEPS = 30


def make(planner: str, ready: Prepared, search: Search, *, ours: Plan | None = None) -> Plan:
    """The plan of one baseline; ``ours`` saves planning again where the baseline starts from our plan.

    Raises:
        Infeasible: the baseline cannot serve the demand.
        SpecError: the baseline is not defined for this problem.
    """
    if planner in ("homogeneous-limited", "homogeneous-unlimited"):
        plans = homogeneous(ready, search, unlimited=planner == "homogeneous-unlimited")
        if not plans:
            raise Infeasible(f"no single GPU type serves the demand ({planner})", where="placement")
        return min(plans.values(), key=lambda p: p.certificate.objective)
    if ready.problem.objective != "least-makespan":
        if planner == "melange":
            return _melange(ready, search)
        raise SpecError(f"the baseline {planner!r} is defined for objective least-makespan", where="planner.name")
    if planner == "uniform-composition":
        return _uniform_composition(ready, search)
    if planner == "melange":
        return _melange(ready, search)
    ours = ours or exact_plan(ready, search)
    after: Mapping[str, Callable[[Prepared, Search, Plan], Plan]] = {
        "uniform-deployment": _uniform_deployment, "fixed-composition": _fixed_composition, "round-robin": _round_robin}
    return after[planner](ready, search, ours)


def homogeneous(ready: Prepared, search: Search, *, unlimited: bool) -> dict[str, Plan]:
    """The best plan of each GPU type on its own, by type; types that cannot serve the demand are left out.

    Raises:
        SpecError: unlimited availability needs a budget or a required rate.
    """
    problem = ready.problem
    if unlimited and problem.budget_usd_per_h is None and problem.required_rate_per_s is None:
        raise SpecError("homogeneous-unlimited needs a budget", where="budget_usd_per_h")
    name = "homogeneous-unlimited" if unlimited else "homogeneous-limited"
    plans = {}
    for offer in problem.devices:
        start = time.perf_counter()
        count = offer.available
        if unlimited:
            count = 10**6
            if problem.budget_usd_per_h is not None and offer.price_usd_per_h > 0:
                count = int(problem.budget_usd_per_h / offer.price_usd_per_h + 1e-9)
        alone = _only(problem, offer.name, count)
        if alone is None:
            continue
        part = replace(ready, problem=alone, candidates=candidates_of(alone, ready.workloads, ready.costs))
        try:
            found = exact_plan(part, search)
        except Infeasible:
            continue
        plans[offer.name] = _relabelled(found, name, start, waived=("availability",) if unlimited else ())
    return plans


def _only(problem: Problem, device: str, count: int) -> Problem | None:
    """The problem with one GPU type; ``None`` when given configurations leave nothing."""
    offer = next(d for d in problem.devices if d.name == device)
    given = tuple(c for c in problem.configurations if set(c.devices) == {device})
    if problem.configurations and not given:
        return None
    return replace(problem, devices=(replace(offer, available=count),), configurations=given)


def _relabelled(plan: Plan, planner: str, start: float, *, waived: tuple[str, ...] = ()) -> Plan:
    """A plan optimal for a smaller problem, as a heuristic for the whole one."""
    certificate = replace(plan.certificate, planner=planner, status="heuristic", bound=None, shadow_prices={},
                          seconds=time.perf_counter() - start)
    return replace(plan, certificate=certificate, waived=waived)


def _heuristic(ready: Prepared, candidates: Candidates, replicas: Integers, shares: Floats, planner: str,
               start: float) -> Plan:
    return assemble(ready.problem, ready.workloads, candidates, replicas, shares, bound=None, status="heuristic",
                    planner=planner, solver=None, seconds=time.perf_counter() - start, shadow_prices={})


def _fastest(instance: Instance, search: Search, planner: str) -> Fleet:
    able = len(instance.candidates) and (instance.rate > 0).any(axis=0).all()
    found = fastest(instance, search) if able else None
    if found is None:
        raise Infeasible(f"the GPUs left to the baseline {planner!r} cannot serve every workload type",
                         where="placement")
    return found


def _uniform_composition(ready: Prepared, search: Search) -> Plan:
    """GPUs worth an equal share of the budget of each type, as far as available."""
    start = time.perf_counter()
    problem = ready.problem
    if problem.budget_usd_per_h is None:
        raise SpecError("uniform-composition needs a budget", where="budget_usd_per_h")
    share = problem.budget_usd_per_h / len(problem.devices)
    counts = [d.available if d.price_usd_per_h == 0 else min(d.available, int(share / d.price_usd_per_h + 1e-9))
              for d in problem.devices]
    limited = replace(ready.candidates.instance, available=np.array(counts, dtype=np.int64))
    fleet = _fastest(limited, search, "uniform-composition")
    return _heuristic(ready, ready.candidates, fleet.replicas, shares_of_work(limited, fleet.assignment.work),
                      "uniform-composition", start)


def _on_our_gpus(ready: Prepared, ours: Plan) -> Instance:
    used = rented(ours)
    instance = ready.candidates.instance
    counts = np.array([used.get(n, 0) for n in instance.device_names], dtype=np.int64)
    return replace(instance, available=counts)


def _smallest(instance: Instance) -> Integers:
    """For each model and GPU type the candidate of only that type with the fewest GPUs that serves all types."""
    chosen: dict[tuple[str, int], int] = {}
    for i, c in enumerate(instance.candidates):
        own = [k for k, w in enumerate(instance.workloads) if w.model == c.model]
        types = np.flatnonzero(instance.devices[i])
        if len(types) != 1 or not (instance.rate[i, own] > 0).all():
            continue
        key = (c.model, int(types[0]))
        size = instance.devices[i].sum()
        if key not in chosen or size < instance.devices[chosen[key]].sum():
            chosen[key] = i
    return np.array(sorted(chosen.values()), dtype=np.int64)


def _uniform_deployment(ready: Prepared, search: Search, ours: Plan) -> Plan:
    start = time.perf_counter()
    limited = _on_our_gpus(ready, ours)
    rows = _smallest(limited)
    fleet = _fastest(limited.take(rows), search, "uniform-deployment")
    replicas = np.zeros(len(limited.candidates), dtype=np.int64)
    work = np.zeros(limited.rate.shape)
    replicas[rows], work[rows] = fleet.replicas, fleet.assignment.work
    return _heuristic(ready, ready.candidates, replicas, shares_of_work(limited, work), "uniform-deployment", start)


def _fixed_composition(ready: Prepared, search: Search, ours: Plan) -> Plan:
    start = time.perf_counter()
    instance = _on_our_gpus(ready, ours)
    models = list(dict.fromkeys(w.model for w in instance.workloads))
    mixed = np.zeros((len(instance.candidates), len(models)))
    requests = np.zeros(len(models))
    for m, model in enumerate(models):
        own = [k for k, w in enumerate(instance.workloads) if w.model == model]
        requests[m] = instance.requests[own].sum()
        with np.errstate(divide="ignore"):
            mixed[:, m] = requests[m] / (instance.requests[own] / instance.rate[:, own]).sum(axis=1)
    # To such a router a model's demand is one type, served at the rate of its whole mix.
    whole = [replace(next(w for w in instance.workloads if w.model == m), name=m, requests=float(f))
             for m, f in zip(models, requests, strict=True)]
    blind = replace(instance, workloads=tuple(whole), rate=mixed, requests=requests)
    fleet = _fastest(blind, search, "fixed-composition")
    capacity = fleet.replicas[:, None] * mixed
    by_model = capacity / capacity.sum(axis=0)
    shares = np.column_stack([by_model[:, models.index(w.model)] for w in instance.workloads])
    return _heuristic(ready, ready.candidates, fleet.replicas, shares, "fixed-composition", start)


def _round_robin(ready: Prepared, search: Search, ours: Plan) -> Plan:
    start = time.perf_counter()
    instance = ready.candidates.instance
    count = {d.configuration: d.replicas for d in ours.deployments}
    replicas = np.array([count.get(c.name, 0) for c in instance.candidates], dtype=np.int64)
    turns = np.where(instance.rate > 0, replicas[:, None], 0).astype(float)
    return _heuristic(ready, ready.candidates, replicas, turns / turns.sum(axis=0), "round-robin", start)


def _melange(ready: Prepared, search: Search) -> Plan:
    """The largest rate (by bisection) whose cheapest sliced fleet fits the budget; or the required rate's fleet."""
    start = time.perf_counter()
    problem = ready.problem
    rows = _smallest(ready.candidates.instance)
    instance = ready.candidates.instance.take(rows)
    if not len(rows) or not (instance.rate > 0).any(axis=0).all():
        raise Infeasible("no GPU type serves the demand with one replica layout (melange)", where="placement")
    if problem.required_rate_per_s is not None:
        found = _sliced(instance, problem.required_rate_per_s, search)
    else:
        found, low, high = None, 0.0, _fastest(instance, search, "melange").bound
        for _ in range(_MELANGE_STEPS):
            middle = (low + high) / 2
            fits = _sliced(instance, middle, search)
            if fits is None:
                high = middle
            else:
                found, low = fits, middle
            if high - low <= 1e-4 * high:
                break
    if found is None:
        raise Infeasible("the sliced demand fits no fleet (melange)", where="placement")
    replicas = np.zeros(len(ready.candidates.instance.candidates), dtype=np.int64)
    shares = np.zeros(ready.candidates.instance.rate.shape)
    replicas[rows], shares[rows] = found
    return _heuristic(ready, ready.candidates, replicas, shares, "melange", start)


def _sliced(instance: Instance, rate: float, search: Search) -> tuple[Integers, Floats] | None:
    """The cheapest fleet for ``rate`` when each type's demand comes in equal slices that no two candidates share."""
    c, w = np.nonzero(instance.rate)
    model = fleet_model(instance)
    slices = model.variables("slices", len(c), upper=float(_SLICES), integer=True)
    from scipy.sparse import csr_array

    columns = np.arange(len(c))
    load = rate * instance.mix[w] / instance.rate[c, w] / _SLICES
    model.add("served", csr_array((np.ones(len(c)), (w, columns)), shape=(len(instance.workloads), len(c))) @ slices,
              "==", float(_SLICES))
    model.add("busy", csr_array((load, (c, columns)), shape=(len(instance.candidates), len(c))) @ slices
              - model["replicas"], "<=", 0.0)
    model.minimise(instance.price @ model["gpus"])
    found = solve(model, solver=search.solver, gap=1e-3, time_limit_s=min(search.left_s(), 5.0), seed=search.seed)
    if found.x is None:
        return None
    shares = np.zeros(instance.rate.shape)
    shares[c, w] = found["slices"] / _SLICES
    return np.asarray(found["replicas"]), shares



"""What a reader asks next: against which baselines, at which other budgets, with which other GPUs, how robust.

``comparison`` is what ``wb report`` prints; ``pareto``, ``what_if`` and ``robustness`` are for notebooks and
benchmarks. All of them price the candidates once and solve many times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from planners.placement import baselines
from planners.placement.assembly import composition
from planners.placement.exact import Search, fastest
from planners.placement.formulation import assign
from planners.placement.instance import Candidate, Instance, build
from planners.placement.optimal import Prepared, exact_plan, prepare, servable
from planners.placement.problem import Plan, Problem
from workbench.costs import CostModel
from workbench.errors import Infeasible, SpecError

__all__ = ["comparison", "pareto", "robustness", "what_if"]

Row = dict[str, Any]
Table = tuple[str, list[Row]]
_ALONE = ("uniform-composition", "uniform-deployment", "fixed-composition", "round-robin", "melange")


def comparison(problem: Problem, costs: CostModel, plan: Plan) -> list[Table]:
    """Titled tables: the plan beside every baseline, and where its numbers come from.

    Homogeneous rows show every GPU type; a baseline that cannot serve the demand says so.
    """
    ready = prepare(problem, costs)
    return [("Beside the baselines", _beside(ready, plan)),
            ("Throughputs and where they come from", _throughputs(plan)),
            ("Candidate configurations", _space(plan))]


def _beside(ready: Prepared, plan: Plan) -> list[Row]:
    search = Search(gap=ready.problem.relative_gap)
    rows = [_row("this plan", plan, plan)]
    for unlimited in (False, True):
        title = "homogeneous, availability " + ("unlimited" if unlimited else "limited")
        try:
            plans = baselines.homogeneous(ready, search, unlimited=unlimited)
        except SpecError as error:
            rows.append({"plan": title, "remark": error.message})
            continue
        rows += [_row(f"{title}: {d.name}", plans.get(d.name), plan) for d in ready.problem.devices]
    for name in _ALONE:
        try:
            rows.append(_row(name, baselines.make(name, ready, search, ours=plan), plan))
        except (Infeasible, SpecError) as error:
            rows.append({"plan": name, "remark": error.message})
    return rows


def _row(title: str, found: Plan | None, plan: Plan) -> Row:
    if found is None:
        return {"plan": title, "remark": "cannot serve the demand"}
    requests = math.fsum(w.requests for w in plan.workloads)
    return {"plan": title, "makespan_s": found.makespan_s, "rate_per_s": requests / found.makespan_s,
            "rate over this plan's": plan.makespan_s / found.makespan_s, "cost_usd_per_h": found.cost_usd_per_h,
            "usd_per_1000_requests": found.cost_usd_per_h / 3.6 * found.makespan_s / requests,
            "GPUs": composition(found)}


def _throughputs(plan: Plan) -> list[Row]:
    rows = []
    for d in plan.deployments:
        for name, rate in d.throughputs.items():
            rows.append({"configuration": d.configuration, "workload": name, "rate_per_s": rate.per_s,
                         "share sent here": d.shares.get(name, 0.0),
                         **{str(s): f"{part:.0%}" for s, part in rate.sources.items()}})
    return rows


def _space(plan: Plan) -> list[Row]:
    space = plan.space
    counts = {"considered": space.considered, **{f"left out: {r}": n for r, n in space.infeasible.items()},
              "dominated": space.dominated, "kept": space.kept}
    return [{"layouts": what, "number": number} for what, number in counts.items()]


def pareto(problem: Problem, costs: CostModel, budgets_usd_per_h: Sequence[float], *, time_limit_s: float = 60.0
           ) -> list[Row]:
    """Best rate at each budget, one row a budget; one without a plan carries a ``remark`` in place of the numbers.

    Keys: ``budget_usd_per_h cost_usd_per_h rate_per_s makespan_s gap GPUs``.

    Raises:
        SpecError: the problem asks for least cost, which has no budget to vary.
    """
    if problem.objective != "least-makespan":
        raise SpecError("a curve over budgets needs objective least-makespan", where="objective")
    widest = replace(problem, budget_usd_per_h=max(budgets_usd_per_h))
    ready = prepare(widest, costs)
    rows: list[Row] = []
    for budget in budgets_usd_per_h:
        part = _limited(ready, replace(problem, budget_usd_per_h=budget))
        try:
            if not servable(part.candidates.instance):
                raise Infeasible("no configuration serves every workload type")
            found = exact_plan(part, Search(gap=problem.relative_gap, deadline=time.perf_counter() + time_limit_s))
        except Infeasible as error:
            rows.append({"budget_usd_per_h": budget, "remark": error.message})
            continue
        requests = math.fsum(w.requests for w in found.workloads)
        rows.append({"budget_usd_per_h": budget, "cost_usd_per_h": found.cost_usd_per_h,
                     "rate_per_s": requests / found.makespan_s, "makespan_s": found.makespan_s,
                     "gap": found.certificate.gap, "GPUs": composition(found)})
    return rows


def _limited(ready: Prepared, problem: Problem) -> Prepared:
    """The same candidates under tighter limits (what dominates, dominates under any limits)."""
    instance = replace(
        ready.candidates.instance, available=np.array([d.available for d in problem.devices], dtype=np.int64),
        budget=math.inf if problem.budget_usd_per_h is None else problem.budget_usd_per_h)
    within = instance.take(instance.most_replicas() > 0)
    return replace(ready, problem=problem, candidates=replace(ready.candidates, instance=within))


def what_if(problem: Problem, costs: CostModel, plan: Plan, *, extra_usd_per_h: float = 1.0) -> list[Row]:
    """The optimum with one more GPU of each type, and with more budget: rows ``{change, objective, unit, saved}``.

    Unlike shadow prices these count whole replicas.
    """
    budget = problem.budget_usd_per_h
    widest = replace(problem, budget_usd_per_h=None if budget is None else budget + extra_usd_per_h,
                     devices=tuple(replace(d, available=d.available + 1) for d in problem.devices))
    ready = prepare(widest, costs)
    changed = {f"one more {offer.name}": replace(problem, devices=tuple(
        replace(d, available=d.available + (d.name == offer.name)) for d in problem.devices))
        for offer in problem.devices}
    if budget is not None:
        changed[f"{extra_usd_per_h:g} $/h more"] = replace(problem, budget_usd_per_h=budget + extra_usd_per_h)
    return [_saved(title, _limited(ready, other), plan) for title, other in changed.items()]


def _saved(title: str, ready: Prepared, plan: Plan) -> Row:
    found = exact_plan(ready, Search(gap=ready.problem.relative_gap))
    return {"change": title, "objective": found.certificate.objective, "unit": found.certificate.unit,
            "saved": plan.certificate.objective - found.certificate.objective}


def robustness(problem: Problem, costs: CostModel, plan: Plan, *, noise: float, samples: int,
               rng: np.random.Generator) -> list[Row]:
    """How much is lost when throughputs are not what the plan took them for.

    Each sample multiplies every h of every candidate by an independent factor, uniform in [1 - noise, 1 + noise],
    and compares three makespans: the plan's fleet and shares as they are, its fleet with shares chosen anew, and the
    optimum for the true throughputs. ``regret`` is the makespan over the optimum's, less 1.

    Raises:
        SpecError: ``noise`` not in (0, 1), or objective least-cost.
    """
    if not 0 < noise < 1 or problem.objective != "least-makespan":
        raise SpecError("robustness wants noise between 0 and 1 and objective least-makespan", where="robustness")
    ready = prepare(problem, costs)
    instance = _with_plan(ready, plan)
    names = [c.name for c in instance.candidates]
    deployed = {d.configuration: d for d in plan.deployments}
    replicas = np.array([deployed[n].replicas if n in deployed else 0 for n in names], dtype=np.int64)
    shares = np.array([[deployed[n].shares.get(w.name, 0.0) if n in deployed else 0.0 for w in instance.workloads]
                       for n in names])
    rows: list[Row] = []
    for sample in range(samples):
        true = replace(instance, rate=instance.rate * rng.uniform(1 - noise, 1 + noise, instance.rate.shape))
        best = fastest(true, Search(gap=1e-4))
        assert best is not None, "noise does not make a rate vanish"
        fixed = _makespan(true, replicas, shares)
        routed = true.total_requests / assign(true, replicas).rate
        optimum = true.total_requests / best.assignment.rate
        rows.append({"sample": sample, "optimum_s": optimum, "as_planned_s": fixed, "routed_anew_s": routed,
                     "regret_as_planned": fixed / optimum - 1, "regret_routed_anew": routed / optimum - 1})
    return rows


def _with_plan(ready: Prepared, plan: Plan) -> Instance:
    """The candidates, and the plan's own configurations if they are not among them."""
    instance = ready.candidates.instance
    known = {c.name for c in instance.candidates}
    missing = [Candidate(name=d.configuration, model=d.model, devices=d.devices, throughputs=d.throughputs,
                         stages=d.stages, kv_tokens=d.kv_tokens)
               for d in plan.deployments if d.configuration not in known]
    return build(ready.problem, ready.workloads, (*instance.candidates, *missing))


def _makespan(instance: Instance, replicas: np.ndarray, shares: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        busy = np.where(shares > 0, shares * instance.requests / instance.rate, 0.0).sum(axis=1)
    on = replicas > 0
    return float((busy[on] / replicas[on]).max())

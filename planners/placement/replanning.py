"""A new plan when availability, prices or demand change, without starting everything anew.

Of all fleets within ``accepted_loss`` of the new optimal rate (or, for least cost, that reach the required rate), the
one of least

    rent over the horizon + sum_c (start_usd * replicas started + stop_usd * replicas stopped)

is taken: an integer program over the new candidates and the configurations that run now. With ``accepted_loss`` 0 the
result is optimal and moves least; with a larger one running replicas stay where the gain is small.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planners.placement.assembly import assemble, shares_of_work
from planners.placement.exact import TIE, Search, fastest
from planners.placement.formulation import assign, fleet_model, typical_rate, with_work
from planners.placement.instance import Candidate, Instance, Integers, build
from planners.placement.optimal import no_plan, prepare, servable
from planners.placement.problem import Plan, Problem
from workbench.costs import CostModel
from workbench.milp import solve
from workbench.spec import about, spec

__all__ = ["Change", "Switching", "changes", "moved", "replan"]


@spec
class Switching:
    """What changing a running fleet costs."""

    start_usd: float = about("Cost of starting one replica: loading weights, warming up, traffic lost.", default=0.0)
    stop_usd: float = about("Cost of stopping one replica: draining it.", default=0.0)
    horizon_h: float = about("Hours the new fleet is expected to run.", default=1.0)
    accepted_loss: float = about("Share of the best rate that may be given up to change less.", default=0.02)

    def __post_init__(self) -> None:
        if min(self.start_usd, self.stop_usd) < 0 or self.horizon_h <= 0 or not 0 <= self.accepted_loss < 1:
            raise ValueError("costs must not be negative, horizon_h above 0, accepted_loss in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Replicas of one configuration before and after."""

    configuration: str
    before: int
    after: int


def replan(problem: Problem, previous: Plan, costs: CostModel, switching: Switching, *, solver: str = "highs",
           time_limit_s: float = 60.0, seed: int = 0) -> Plan:
    """The plan of ``problem`` that moves least away from ``previous``.

    The certificate states the best rate (or cost) any fleet has as its bound, so its gap shows what was given up.

    Raises:
        Infeasible: no fleet serves the changed problem.
    """
    start = time.perf_counter()
    search = Search(solver=solver, gap=problem.relative_gap, deadline=start + time_limit_s, seed=seed)
    ready = prepare(problem, costs)
    known = {c.name for c in ready.candidates.instance.candidates}
    served = {w.name for w in ready.workloads}
    running = [Candidate(name=d.configuration, model=d.model, devices=d.devices, stages=d.stages, kv_tokens=d.kv_tokens,
                         throughputs=d.throughputs)
               for d in previous.deployments
               if d.configuration not in known and served & set(d.throughputs)
               and set(d.devices) <= {o.name for o in problem.devices}]
    instance = build(problem, ready.workloads, (*ready.candidates.instance.candidates, *running))
    ready = replace(ready, candidates=replace(ready.candidates, instance=instance))
    if not servable(instance):
        raise no_plan(ready)
    before = np.array([next((d.replicas for d in previous.deployments if d.configuration == c.name), 0)
                       for c in instance.candidates], dtype=np.int64)
    best = fastest(instance, search)
    if best is None or (problem.required_rate_per_s or 0.0) > best.bound * (1 + TIE):
        raise no_plan(ready)
    target = problem.required_rate_per_s or best.assignment.rate * (1 - switching.accepted_loss)
    replicas = _least_change(ready.candidates.instance, target, before, switching, search, start=best.replicas)
    final = assign(instance, replicas)
    bound = instance.total_requests / best.bound if problem.required_rate_per_s is None else None
    return assemble(problem, ready.workloads, ready.candidates, replicas, shares_of_work(instance, final.work),
                    bound=bound, status="feasible", planner="replan", solver=solver,
                    seconds=time.perf_counter() - start, shadow_prices={})


def _least_change(instance: Instance, target: float, before: Integers, switching: Switching, search: Search, *,
                  start: Integers) -> Integers:
    unit = typical_rate(instance)
    model = with_work(fleet_model(instance), instance, unit)
    model.bound(model["rate"], lower=target * (1 - TIE) / unit)
    count = len(before)
    started, stopped = model.variables("started", count), model.variables("stopped", count)
    model.add("moves", model["replicas"] - started + stopped, "==", before.astype(float))
    rent = switching.horizon_h * (instance.price @ model["gpus"])
    # Where moves are free they still count a trifle, so that a tie changes nothing.
    model.minimise(rent + (switching.start_usd + 1e-6) * started.sum() + (switching.stop_usd + 1e-6) * stopped.sum())
    found = solve(model, solver=search.solver, gap=max(search.gap, 1e-6), time_limit_s=search.left_s(),
                  seed=search.seed)
    return start if found.x is None else np.asarray(found["replicas"])


def changes(previous: Plan, plan: Plan) -> list[Change]:
    """What to start and stop, one row a configuration of either plan."""
    def counts(of: Plan) -> dict[str, int]:
        return {d.configuration: d.replicas for d in of.deployments}

    old, new = counts(previous), counts(plan)
    return [Change(configuration=n, before=old.get(n, 0), after=new.get(n, 0)) for n in dict.fromkeys([*old, *new])]


def moved(rows: Sequence[Change]) -> int:
    """Replicas started and stopped in all."""
    return sum(abs(r.after - r.before) for r in rows)

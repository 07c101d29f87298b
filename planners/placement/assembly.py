"""From a fleet and its assignment to a plan, and from a plan to rows and metrics for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from planners.placement.configurations import Candidates
from planners.placement.demand import origins
from planners.placement.instance import Floats, Instance, Integers
from planners.placement.problem import Deployment, Plan, Problem, Workload, source_shares
from workbench.outcome import Metric
from workbench.plan import Certificate, Status

__all__ = ["assemble", "decision", "predicted", "rented", "shares_of_work"]

_NEGLIGIBLE_SHARE = 1e-9
_NOISE = 1e-9


def shares_of_work(instance: Instance, work: Floats) -> Floats:
    """x [C, W] from u [C, W]: shares of the served rates h u, each type adding up to 1."""
    served = instance.rate * work
    shares: Floats = served / served.sum(axis=0)
    shares[shares < _NEGLIGIBLE_SHARE] = 0.0
    return shares / shares.sum(axis=0)


def assemble(problem: Problem, workloads: tuple[Workload, ...], candidates: Candidates, replicas: Integers,
             shares: Floats, *, bound: float | None, status: Status, planner: str, solver: str | None, seconds: float,
             shadow_prices: Mapping[str, float], waived: tuple[str, ...] = ()) -> Plan:
    """The plan of a fleet ``replicas`` [C] under an assignment ``shares`` [C, W].

    ``bound`` is in the objective's unit; where it differs from the objective by rounding noise it becomes equal.
    """
    instance = candidates.instance
    deployments = tuple(
        Deployment(configuration=c.name, model=c.model, devices=dict(c.devices), stages=c.stages, kv_tokens=c.kv_tokens,
                   replicas=int(replicas[i]), cost_usd_per_h=float(instance.cost[i]), throughputs=dict(c.throughputs),
                   shares={w.name: float(shares[i, k]) for k, w in enumerate(instance.workloads) if shares[i, k] > 0})
        for i, c in enumerate(instance.candidates) if replicas[i] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        busy = np.where(shares > 0, shares * instance.requests / instance.rate, 0.0).sum(axis=1)
    on = replicas > 0
    makespan = float((busy[on] / replicas[on]).max(initial=0.0))
    cost = float(replicas @ instance.cost)
    objective, unit = (makespan, "s") if problem.objective == "least-makespan" else (cost, "$/h")
    if bound is not None:
        bound = objective if math.isclose(bound, objective, rel_tol=_NOISE) else min(bound, objective)
    certificate = Certificate(
        objective=objective, bound=bound, sense="min", unit=unit, status=status, planner=planner, solver=solver,
        seconds=seconds, shadow_prices=dict(shadow_prices))
    return Plan(objective=problem.objective, deployments=deployments, workloads=workloads, demand=origins(problem),
                makespan_s=makespan, cost_usd_per_h=cost, waived=waived, sources=source_shares(deployments, workloads),
                space=candidates.space, certificate=certificate)


def rented(plan: Plan) -> dict[str, int]:
    """GPUs of each type the plan rents."""
    used: Counter[str] = Counter()
    for d in plan.deployments:
        for name, count in d.devices.items():
            used[name] += count * d.replicas
    return dict(used)


def composition(plan: Plan) -> str:
    """The rented GPUs in one line."""
    return " + ".join(f"{count} {name}" for name, count in rented(plan).items()) or "nothing"


def decision(plan: Plan) -> list[dict[str, Any]]:
    """What to start, one row a configuration, and which share of which workload type it takes."""
    requests = {w.name: w.requests for w in plan.workloads}
    rows = []
    for d in sorted(plan.deployments, key=lambda d: -d.replicas * d.cost_usd_per_h):
        busy = math.fsum(x * requests[n] / d.throughputs[n].per_s for n, x in d.shares.items()) / d.replicas
        takes = ", ".join(f"{x:.0%} of {n}" if x < 0.9995 else f"all {n}" for n, x in d.shares.items())
        rows.append({
            "replicas": d.replicas, "model": d.model, "configuration": d.configuration,
            "GPUs": " + ".join(f"{n * d.replicas} {name}" for name, n in d.devices.items()),
            "$/h": d.replicas * d.cost_usd_per_h, "busy": f"{busy / plan.makespan_s:.0%}" if plan.makespan_s else "",
            "takes": takes or "nothing"})
    return rows


def predicted(problem: Problem, plan: Plan) -> tuple[Metric, ...]:
    """What the plan promises."""
    requests = math.fsum(w.requests for w in plan.workloads)
    rate = requests / plan.makespan_s
    return (
        Metric(name="makespan_s", value=plan.makespan_s, unit="s", about="Time to serve all requests, all there at 0."),
        Metric(name="rate_per_s", value=rate, unit="requests/s", about="Requests finished per second."),
        Metric(name="cost_usd_per_h", value=plan.cost_usd_per_h, unit="$/h", about="Rent of the fleet."),
        Metric(name="usd_per_1000_requests", value=plan.cost_usd_per_h / 3.6 / rate, unit="$/1000 requests",
               about="Rent over requests served."),
        Metric(name="gpus", value=float(sum(rented(plan).values())), unit="", about="GPUs rented."),
        Metric(name="replicas", value=float(sum(d.replicas for d in plan.deployments)), unit="",
               about="Model replicas."),
    )

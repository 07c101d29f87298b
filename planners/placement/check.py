"""Does a plan keep the rules of its problem? Everything is re-derived from the plan's own numbers.

Nothing here is shared with the search: costs, GPU counts, coverage, makespan, memory and certificate are recomputed
by plain sums over the plan, each against the problem's own statement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from planners.placement.demand import workloads_of
from planners.placement.problem import Deployment, Plan, Problem
from workbench.plan import Violation, relative_gap

__all__ = ["TOLERANCE", "check"]

TOLERANCE = 1e-6
_MAY_WAIVE = {"homogeneous-unlimited": {"availability"}}


def check(problem: Problem, plan: Plan) -> list[Violation]:
    """Every rule of ``problem`` that ``plan`` breaks; empty when it keeps them all."""
    found = [*_demand(problem, plan), *_replicas(problem, plan), *_layout(problem, plan)]
    if found:
        return found
    return [*_rent(problem, plan), *_coverage(plan), *_speed(problem, plan), *_certificate(problem, plan)]


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)


def _demand(problem: Problem, plan: Plan) -> Iterator[Violation]:
    if plan.objective != problem.objective:
        yield Violation(rule="objective", where="plan",
                        detail=f"{plan.objective}, the problem asks for {problem.objective}")
    if plan.workloads != workloads_of(problem):
        yield Violation(rule="demand", where="plan", detail="its workload types are not those of the problem")
    strange = set(plan.waived) - _MAY_WAIVE.get(plan.certificate.planner, set())
    for rule in sorted(strange):
        yield Violation(rule="waived", where=plan.certificate.planner, detail=f"may not ignore the rule {rule!r}")


def _replicas(problem: Problem, plan: Plan) -> Iterator[Violation]:
    offered = {d.name: d for d in problem.devices}
    given = {c.name: c for c in problem.configurations}
    models = {w.name: w.model for w in plan.workloads}
    twice = [n for n, k in Counter(d.configuration for d in plan.deployments).items() if k > 1]
    for name in twice:
        yield Violation(rule="deployment", where=name, detail="listed more than once")
    for d in plan.deployments:
        if d.replicas < 1:
            yield Violation(rule="deployment", where=d.configuration,
                            detail=f"{d.replicas} replicas, at least 1 needed")
        for device in sorted(set(d.devices) - set(offered)):
            yield Violation(rule="devices", where=d.configuration, detail=f"{device} is not on offer")
        for name in d.shares:
            if models.get(name) != d.model:
                yield Violation(rule="model", where=d.configuration,
                                detail=f"serves {d.model}, workload {name!r} asks for {models.get(name)}")
            elif name not in d.throughputs or d.throughputs[name].per_s <= 0:
                yield Violation(rule="throughput", where=d.configuration, detail=f"cannot serve workload {name!r}")
        if problem.configurations:
            yield from _as_given(given.get(d.configuration), d)


def _as_given(given: object, d: Deployment) -> Iterator[Violation]:
    stated = (getattr(given, "model", None), dict(getattr(given, "devices", {})),
              {n: h for n, h in getattr(given, "throughputs_per_s", {}).items() if h > 0})
    planned = (d.model, dict(d.devices), {n: r.per_s for n, r in d.throughputs.items() if r.per_s > 0})
    if stated != planned:
        yield Violation(rule="configuration", where=d.configuration, detail="differs from the one the problem gives")


def _layout(problem: Problem, plan: Plan) -> Iterator[Violation]:
    lengths = {w.name: (w.input_tokens or 0) + (w.output_tokens or 0) for w in plan.workloads}
    layers: dict[str, int] = {}
    for d in plan.deployments:
        if d.kv_tokens is not None:
            longest = max((lengths[n] for n in d.shares), default=0)
            if d.kv_tokens < longest:
                yield Violation(rule="memory", where=d.configuration,
                                detail=f"holds {d.kv_tokens:.0f} KV tokens, its longest request needs {longest}")
        if not d.stages:
            continue
        used: Counter[str] = Counter()
        for s in d.stages:
            used[s.device] += s.tensor_parallel
            if s.weight_bytes > s.usable_bytes:
                yield Violation(rule="memory", where=f"{d.configuration}: {s.device}",
                                detail=f"{s.weight_bytes / 2**30:.1f} GiB of weights a GPU, usable are "
                                       f"{s.usable_bytes / 2**30:.1f} GiB")
            if s.tensor_parallel not in problem.enumeration.tensor_parallel or s.layers < 1:
                yield Violation(rule="layout", where=f"{d.configuration}: {s.device}",
                                detail=f"{s.layers} layers with tensor parallelism {s.tensor_parallel}")
        if dict(used) != dict(d.devices):
            yield Violation(rule="layout", where=d.configuration,
                            detail=f"its stages use {dict(used)}, it claims {dict(d.devices)}")
        if len(d.stages) > problem.enumeration.max_stages:
            yield Violation(rule="layout", where=d.configuration,
                            detail=f"{len(d.stages)} stages, allowed are {problem.enumeration.max_stages}")
        total = sum(s.layers for s in d.stages)
        if layers.setdefault(d.model, total) != total:
            yield Violation(rule="layout", where=d.configuration,
                            detail=f"{total} layers of {d.model}, other replicas hold {layers[d.model]}")


def _rent(problem: Problem, plan: Plan) -> Iterator[Violation]:
    price = {d.name: d.price_usd_per_h for d in problem.devices}
    rented: Counter[str] = Counter()
    for d in plan.deployments:
        one = math.fsum(count * price[n] for n, count in d.devices.items())
        if not _close(one, d.cost_usd_per_h):
            yield Violation(rule="price", where=d.configuration,
                            detail=f"claims {d.cost_usd_per_h:g} $/h a replica, its GPUs cost {one:g} $/h")
        for name, count in d.devices.items():
            rented[name] += count * d.replicas
    total = math.fsum(count * price[n] for n, count in rented.items())
    if not _close(total, plan.cost_usd_per_h):
        yield Violation(rule="price", where="plan", detail=f"claims {plan.cost_usd_per_h:g} $/h, costs {total:g} $/h")
    if problem.budget_usd_per_h is not None and total > problem.budget_usd_per_h * (1 + TOLERANCE):
        yield Violation(rule="budget", where="plan",
                        detail=f"costs {total:g} $/h, the budget is {problem.budget_usd_per_h:g} $/h")
    if "availability" not in plan.waived:
        for offer in problem.devices:
            if rented[offer.name] > offer.available:
                yield Violation(rule="availability", where=offer.name,
                                detail=f"rents {rented[offer.name]}, available are {offer.available}")


def _coverage(plan: Plan) -> Iterator[Violation]:
    for w in plan.workloads:
        shares = [d.shares[w.name] for d in plan.deployments if w.name in d.shares]
        if any(x < 0 for x in shares):
            yield Violation(rule="coverage", where=w.name, detail="a share is negative")
        if w.requests > 0 and not _close(math.fsum(shares), 1.0):
            yield Violation(rule="coverage", where=w.name, detail=f"shares add up to {math.fsum(shares):.9g}, not 1")


def _makespan(plan: Plan) -> float:
    """max over c of sum_w x f / (y h), from the plan alone."""
    requests = {w.name: w.requests for w in plan.workloads}
    return max((math.fsum(x * requests[n] / d.throughputs[n].per_s for n, x in d.shares.items()) / d.replicas
                for d in plan.deployments), default=math.inf)


def _speed(problem: Problem, plan: Plan) -> Iterator[Violation]:
    makespan = _makespan(plan)
    if not _close(makespan, plan.makespan_s):
        yield Violation(rule="makespan", where="plan", detail=f"claims {plan.makespan_s:.9g} s, takes {makespan:.9g} s")
    if problem.required_rate_per_s is not None:
        rate = math.fsum(w.requests for w in plan.workloads) / makespan
        if rate < problem.required_rate_per_s * (1 - TOLERANCE):
            yield Violation(rule="rate", where="plan", detail=f"sustains {rate:.6g} requests/s, "
                                                              f"required are {problem.required_rate_per_s:g}")


def _certificate(problem: Problem, plan: Plan) -> Iterator[Violation]:
    c = plan.certificate
    objective, unit = ((plan.makespan_s, "s") if problem.objective == "least-makespan"
                       else (plan.cost_usd_per_h, "$/h"))
    if not _close(c.objective, objective) or c.unit != unit or c.sense != "min":
        yield Violation(rule="certificate", where="objective",
                        detail=f"{c.sense} {c.objective:.9g} {c.unit}, the plan gives min {objective:.9g} {unit}")
    if c.bound is not None and c.bound > c.objective * (1 + TOLERANCE):
        yield Violation(rule="certificate", where="bound",
                        detail=f"bound {c.bound:.9g} lies above the objective {c.objective:.9g}")
    if c.status == "optimal":
        gap = math.inf if c.bound is None else relative_gap(c.objective, c.bound)
        if gap > problem.relative_gap + TOLERANCE:
            yield Violation(rule="certificate", where="status", detail=f"optimal, yet the gap is {gap:.2%}")
    if plan.sources and not _close(math.fsum(plan.sources.values()), 1.0):
        yield Violation(rule="sources", where="plan", detail="shares by source do not add up to 1")

"""The decision in words: a title, and sentences a person can act on."""

from __future__ import annotations

import math

from planners.placement.assembly import composition
from planners.placement.problem import Plan

__all__ = ["headline", "in_words"]


def headline(plan: Plan) -> str:
    """The fleet in a few words."""
    gpus = composition(plan)
    priced = f"{gpus} for {plan.cost_usd_per_h:.2f} $/h"
    return priced if len(priced) <= 80 else f"{len(plan.deployments)} configurations for {plan.cost_usd_per_h:.2f} $/h"


def in_words(plan: Plan) -> str:
    """What to rent, what to start, what it will do, and how sure that is."""
    replicas = sum(d.replicas for d in plan.deployments)
    requests = math.fsum(w.requests for w in plan.workloads)
    started = "; ".join(f"{d.replicas} x {d.configuration}" for d in plan.deployments)
    proof = {"optimal": "No fleet of the candidate configurations does better: proven.",
             "feasible": "The proof is not closed: see the gap.",
             "heuristic": "This planner proves nothing about better fleets."}[plan.certificate.status]
    return (f"Rent {composition(plan)} for {plan.cost_usd_per_h:.2f} $/h and start {replicas} "
            f"{'replica' if replicas == 1 else 'replicas'} ({started}). They serve {requests:,.0f} requests in "
            f"{plan.makespan_s:,.0f} s, {requests / plan.makespan_s:.3g} requests/s sustained. {proof}"
            + "".join(f" Demand: {source}." for source in plan.demand))

"""The exactly linear model of ``formulation`` handed to a solver in one piece, for comparison and for other solvers.

No bisection and no tolerance: max R over replicas, GPUs and work, or least rent at a required R. Ties between optimal
fleets are the solver's choice.
"""

from __future__ import annotations

import math

import numpy as np

from planners.placement.exact import Fleet, Search
from planners.placement.formulation import assign, fleet_model, typical_rate, with_work
from planners.placement.instance import Instance
from workbench.milp import solve

__all__ = ["fleet_by_program"]


def fleet_by_program(instance: Instance, required: float | None, search: Search) -> Fleet | None:
    """The solver's optimal fleet, or ``None`` when there is none (or none was found in time)."""
    unit = typical_rate(instance)
    model = with_work(fleet_model(instance), instance, unit)
    if required is None:
        model.maximise(model["rate"])
    else:
        model.bound(model["rate"], lower=required / unit)
        model.minimise(instance.price @ model["gpus"])
    found = solve(model, solver=search.solver, time_limit_s=search.left_s(), gap=search.gap, seed=search.seed)
    if found.x is None:
        return None
    replicas = np.asarray(found["replicas"])
    best = assign(instance, replicas)
    if best.rate <= 0:
        return None
    cost = float(replicas @ instance.cost)
    if required is None:
        bound = math.inf if found.bound is None else max(found.bound * unit, best.rate)
    else:
        bound = 0.0 if found.bound is None else min(found.bound, cost)
    return Fleet(replicas=replicas, assignment=best, cost=cost, bound=bound, proven=found.status == "optimal",
                 cuts=np.zeros((0, len(replicas))))

"""``plan`` and ``bound``: which planner does what."""

from __future__ import annotations

import time
from collections.abc import Mapping

from planners.placement import baselines
from planners.placement.assembly import assemble, shares_of_work
from planners.placement.bisect import by_knapsack, by_program
from planners.placement.exact import Search
from planners.placement.formulation import relaxation
from planners.placement.optimal import Prepared, exact_plan, fractional_cost, no_plan, prepare, program_plan, servable
from planners.placement.problem import Plan, Problem
from workbench.costs import CostModel
from workbench.errors import SpecError, nearest
from workbench.plan import Bound

__all__ = ["PLANNERS", "bound", "plan"]

PLANNERS: Mapping[str, str] = {
    "exact": "optimal fleet and assignment with proof; among optimal fleets the cheapest",
    "program": "the same optimum from the linear model handed to the solver in one piece",
    "bisect": "the paper's search: bisection on T, a mixed-integer feasibility check a step",
    "bisect-knapsack": "the paper's fast search: bisection on T with a greedy packing check (our rule)",
    "homogeneous-limited": "baseline: the best single GPU type within its availability",
    "homogeneous-unlimited": "baseline: the best single GPU type as if availability were unlimited",
    "uniform-composition": "baseline: budget spread evenly over the GPU types; deployment and assignment optimal",
    "uniform-deployment": "baseline: our GPUs, every type in its smallest replicas; assignment optimal",
    "fixed-composition": "baseline: our GPUs, deployment optimal for a router that does not know workload types",
    "round-robin": "baseline: our GPUs and deployment, every replica gets equally many requests",
    "melange": "baseline: one replica layout a GPU type, demand in indivisible slices (integer program)",
}


def plan(problem: Problem, costs: CostModel, *, planner: str = "exact", solver: str = "highs",
         time_limit_s: float = 60.0, seed: int = 0) -> Plan:
    """Choose GPUs, replicas and assignment.

    Args:
        problem: what to serve, with what.
        costs: kernel costs, for problems without given configurations.
        planner: a name of ``PLANNERS``.
        solver: MILP back-end.
        time_limit_s: time after which the best plan so far is returned, with its bound.
        seed: of the solver's tie-breaks.

    Raises:
        Infeasible: names the binding constraint and the smallest relaxation.
        MissingProfile, SpecError, SolverError: see their classes.
    """
    start = time.perf_counter()
    search = Search(solver=solver, gap=problem.relative_gap, deadline=start + time_limit_s, seed=seed)
    if planner not in PLANNERS:
        close = nearest(planner, PLANNERS)
        raise SpecError(f"no planner is called {planner!r}", where="planner.name", allowed=PLANNERS,
                        hint=f"did you mean {close!r}?" if close else None)
    if planner == "exact":
        return exact_plan(prepare(problem, costs), search)
    if planner == "program":
        return program_plan(prepare(problem, costs), search)
    if planner in ("bisect", "bisect-knapsack"):
        return _bisected(prepare(problem, costs), search, planner)
    return baselines.make(planner, prepare(problem, costs), search)


def bound(problem: Problem, costs: CostModel) -> Bound:
    """Linear relaxation: no fleet finishes sooner (or, for least-cost, costs less).

    Raises:
        Infeasible: even fractional replicas serve nothing, or not the required rate.
    """
    ready = prepare(problem, costs)
    start = time.perf_counter()
    instance = ready.candidates.instance
    if not servable(instance):
        raise no_plan(ready)
    if problem.required_rate_per_s is None:
        value = instance.total_requests / relaxation(instance).rate
    else:
        solution = fractional_cost(instance, problem.required_rate_per_s)
        if solution.x is None:
            raise no_plan(ready)
        value = float(solution.objective or 0.0)
    return Bound(value=value, kind="lp", seconds=time.perf_counter() - start)


def _bisected(ready: Prepared, search: Search, planner: str) -> Plan:
    start = time.perf_counter()
    problem, instance = ready.problem, ready.candidates.instance
    if problem.objective != "least-makespan":
        raise SpecError(f"planner {planner!r} searches for a makespan", where="planner.name",
                        hint='use planner "exact" for objective least-cost')
    method = by_program if planner == "bisect" else by_knapsack
    found = method(instance, search, tolerance=problem.bisect_tolerance) if servable(instance) else None
    if found is None:
        raise no_plan(ready)
    proves = planner == "bisect"
    return assemble(problem, ready.workloads, ready.candidates, found.replicas, shares_of_work(instance, found.work),
                    bound=found.infeasible_s if proves else None, status="feasible" if proves else "heuristic",
                    planner=planner, solver=search.solver if proves else None, seconds=time.perf_counter() - start,
                    shadow_prices={})

"""Gurobi through gurobipy's matrix interface. Its free licence takes models of up to 2,000 variables and rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.errors import SolverError
from workbench.milp.expressions import Floats
from workbench.milp.model import Problem
from workbench.milp.search import Answer, Limits, Watch

__all__ = ["search"]

OTHERS = ("highs", "cbc", "cpsat")
NEXT = "wb plan SPEC --set planner.solver=highs"


def search(problem: Problem, limits: Limits, start: Floats | None, watch: Watch) -> Answer:
    """Minimise with Gurobi.

    Raises:
        SolverError: there is no licence, or none for a model of this size.
    """
    import gurobipy

    try:
        with gurobipy.Env(params={"OutputFlag": 0}) as environment, gurobipy.Model(env=environment) as model:
            return _search(gurobipy, model, problem, limits=limits, start=start, watch=watch)
    except gurobipy.GurobiError as error:
        rows, columns = problem.matrix.shape
        if error.errno == gurobipy.GRB.Error.SIZE_LIMIT_EXCEEDED:
            raise SolverError(f"the Gurobi licence found does not cover a model of {columns:,} variables and {rows:,} "
                              "rows (the free one ends at 2,000 of each)", where="gurobi",
                              allowed=OTHERS, next_command=NEXT) from None
        if error.errno == gurobipy.GRB.Error.NO_LICENSE:
            raise SolverError(f"no valid Gurobi licence: {error}", where="gurobi", allowed=OTHERS,
                              next_command=NEXT) from None
        raise SolverError(f"Gurobi failed: {error}", where="gurobi", allowed=OTHERS, next_command=NEXT) from None


def _search(g: Any, model: Any, problem: Problem, *, limits: Limits, start: Floats | None, watch: Watch) -> Answer:
    codes, status = g.GRB.Callback, g.GRB.Status
    model.Params.MIPGap, model.Params.MIPGapAbs, model.Params.Seed = limits.gap, 0.0, limits.seed
    model.Params.IntFeasTol = 1e-6
    x = model.addMVar(len(problem.cost), lb=problem.lower, ub=problem.upper, obj=problem.cost,
                      vtype=np.where(problem.integer, "I", "C"))
    model.ObjCon = problem.offset
    if len(problem.rhs):
        rows = model.addMConstr(problem.matrix, x, np.array(["<", "=", ">"])[problem.sense + 1], problem.rhs)
    if start is not None and problem.integer.any():
        x.Start = np.where(np.isnan(start), g.GRB.UNDEFINED, start)

    if math.isfinite(limits.deadline):
        model.Params.TimeLimit = limits.left_s()

    def hear(running: Any, where: int) -> None:
        if where == codes.MIP:
            watch.report(_finite(running.cbGet(codes.MIP_OBJBST)), _finite(running.cbGet(codes.MIP_OBJBND)))
        if watch.stopping.is_set():
            running.terminate()

    model.optimize(hear)
    if model.Status == status.INFEASIBLE:
        return Answer(claim="infeasible")
    if model.Status in (status.INF_OR_UNBD, status.UNBOUNDED):
        return Answer(claim="infeasible or unbounded")
    if model.Status == status.INTERRUPTED:  # Gurobi hears Ctrl-C itself, before we do
        watch.stopping.set()
    stopped = (status.TIME_LIMIT, status.INTERRUPTED, status.SUBOPTIMAL)
    if model.Status not in (status.OPTIMAL, *stopped):
        raise SolverError(f"Gurobi ended with status {model.Status}", where="gurobi")
    proven = model.Status == status.OPTIMAL
    bound = _finite(model.ObjBound) if model.IsMIP else model.ObjVal if proven else -math.inf
    duals = proven and not model.IsMIP
    return Answer(claim="proven" if proven else "stopped", x=np.asarray(x.X) if model.SolCount else None, bound=bound,
                  row_duals=(np.asarray(rows.Pi) if len(problem.rhs) else np.zeros(0)) if duals else None,
                  column_duals=np.asarray(x.RC) if duals else None)


def _finite(value: float) -> float:
    """Gurobi writes 1e100 for infinity."""
    return math.copysign(math.inf, value) if abs(value) >= 1e100 else value

"""HiGHS as SciPy ships it.

SciPy's own binding gives progress, starting points and Ctrl-C, but is not part of its public interface; where a
release of SciPy has changed it, ``scipy.optimize.milp`` and ``linprog`` take over and those three are missing.
"""

from __future__ import annotations

import math
import warnings
from types import ModuleType
from typing import Any

import numpy as np

from workbench.errors import SolverError
from workbench.milp.expressions import Floats
from workbench.milp.model import Problem
from workbench.milp.search import Answer, Limits, Watch

__all__ = ["search"]


def search(problem: Problem, limits: Limits, start: Floats | None, watch: Watch) -> Answer:
    """Minimise with HiGHS."""
    binding = _binding()
    if binding is None:
        watch.can_stop = False
        return _public_mip(problem, limits) if problem.integer.any() else _public_lp(problem, limits)
    return _direct(binding, problem, limits, start, watch)


def _binding() -> ModuleType | None:
    """SciPy's binding of HiGHS, if this SciPy has one that offers what is used here."""
    try:
        from scipy.optimize._highspy import _core
    except ImportError:
        return None
    wanted = ("setCallback", "startCallback", "setSolution", "passOptions", "passModel", "getSolution")
    return _core if all(hasattr(_core._Highs, name) for name in wanted) else None


def _direct(h: Any, problem: Problem, limits: Limits, start: Floats | None, watch: Watch) -> Answer:
    """Through SciPy's binding."""
    engine, options = h._Highs(), h.HighsOptions()
    options.output_flag = False
    options.threads = 1  # one result for one seed, whatever the machine
    options.random_seed = limits.seed
    options.mip_rel_gap = limits.gap
    options.mip_abs_gap = 0.0  # the default, 1e-6, is the whole objective of a plan that takes a microsecond
    lp = _highs_lp(h, problem)
    if math.isfinite(limits.deadline):
        options.time_limit = limits.left_s()
    engine.passOptions(options)
    if engine.passModel(lp) == h.HighsStatus.kError:
        raise SolverError("HiGHS refused the model", where="highs")
    whole = bool(problem.integer.any())
    if start is not None and whole:
        known = np.flatnonzero(~np.isnan(start)).astype(np.int32)
        engine.setSolution(len(known), known, start[known])

    def hear(kind: int, _message: str, out: Any, into: Any, _data: object) -> None:
        if whole:
            watch.report(out.mip_primal_bound, out.mip_dual_bound)
        if into is not None and watch.stopping.is_set():
            into.user_interrupt = True

    engine.setCallback(hear, None)
    for event in ("MipInterrupt", "MipImprovingSolution", "SimplexInterrupt", "IpmInterrupt"):
        engine.startCallback(getattr(h.cb.HighsCallbackType, f"kCallback{event}"))
    engine.run()
    status, info = engine.getModelStatus(), engine.getInfo()
    statuses = h.HighsModelStatus
    if status == statuses.kInfeasible:
        return Answer(claim="infeasible")
    if status in (statuses.kUnbounded, statuses.kUnboundedOrInfeasible):
        return Answer(claim="infeasible or unbounded")
    stopped = (statuses.kTimeLimit, statuses.kInterrupt, statuses.kIterationLimit)
    if status not in (statuses.kOptimal, statuses.kModelEmpty, *stopped):
        raise SolverError(f"HiGHS ended with {engine.modelStatusToString(status)!r}", where="highs",
                          hint="scale the data so that coefficients lie within a few powers of ten of 1")
    proven = status not in stopped
    bound = info.mip_dual_bound if whole else info.objective_function_value if proven else -math.inf
    x = None
    solution = engine.getSolution()
    if proven or info.primal_solution_status == h.SolutionStatus.kSolutionStatusFeasible:
        x = np.array(solution.col_value)
    duals = proven and not whole
    return Answer(claim="proven" if proven else "stopped", x=x, bound=bound,
                  row_duals=np.array(solution.row_dual) if duals else None,
                  column_duals=np.array(solution.col_dual) if duals else None)


def _highs_lp(h: Any, problem: Problem) -> Any:
    lp = h.HighsLp()
    columns = problem.matrix.tocsc()
    lp.num_row_, lp.num_col_ = columns.shape
    lp.a_matrix_.num_row_, lp.a_matrix_.num_col_ = columns.shape
    lp.a_matrix_.format_ = h.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = columns.indptr, columns.indices, columns.data
    lp.row_lower_, lp.row_upper_ = problem.row_limits()
    lp.col_cost_, lp.offset_ = problem.cost, problem.offset
    lp.col_lower_, lp.col_upper_ = problem.lower, problem.upper
    kinds = (h.HighsVarType.kContinuous, h.HighsVarType.kInteger)
    lp.integrality_ = [kinds[whole] for whole in problem.integer.astype(int)]
    return lp


def _public_mip(problem: Problem, limits: Limits) -> Answer:
    """Through ``scipy.optimize.milp``."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    options: dict[str, Any] = {"mip_rel_gap": limits.gap, "mip_abs_gap": 0.0, "random_seed": limits.seed}
    if math.isfinite(limits.deadline):
        options["time_limit"] = limits.left_s()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # milp hands options it does not know to HiGHS, and says so
        found = milp(problem.cost, integrality=problem.integer.astype(int),
                     bounds=Bounds(problem.lower, problem.upper),
                     constraints=LinearConstraint(problem.matrix, *problem.row_limits()), options=options)
    claim = _public_claim(found)
    bound = -math.inf if found.mip_dual_bound is None else found.mip_dual_bound + problem.offset
    return Answer(claim=claim, x=found.x, bound=bound) if claim in ("proven", "stopped") else Answer(claim=claim)


def _public_lp(problem: Problem, limits: Limits) -> Answer:
    """Through ``scipy.optimize.linprog``, which wants ``<=`` and ``==`` rows apart."""
    from scipy.optimize import linprog

    equal = problem.sense == 0
    sign = np.where(problem.sense > 0, -1.0, 1.0)
    signed = problem.matrix.multiply(sign[:, None]).tocsr()
    found = linprog(problem.cost, A_ub=signed[~equal], b_ub=(sign * problem.rhs)[~equal], A_eq=problem.matrix[equal],
                    b_eq=problem.rhs[equal], bounds=np.column_stack((problem.lower, problem.upper)), method="highs",
                    options={"time_limit": limits.left_s()} if math.isfinite(limits.deadline) else {})
    claim = _public_claim(found)
    if claim != "proven":
        return Answer(claim=claim)
    duals = np.zeros(len(equal))
    duals[equal], duals[~equal] = found.eqlin.marginals, sign[~equal] * found.ineqlin.marginals
    return Answer(claim="proven", x=found.x, bound=found.fun + problem.offset, row_duals=duals,
                  column_duals=found.lower.marginals + found.upper.marginals)


def _public_claim(found: Any) -> Any:
    """SciPy's status number in our words."""
    claims = {0: "proven", 1: "stopped", 2: "infeasible", 3: "infeasible or unbounded"}
    if found.status in claims:
        return claims[found.status]
    if "nfeasible" in found.message:  # HiGHS could not tell the two apart
        return "infeasible or unbounded"
    raise SolverError(f"HiGHS ended with {found.message!r}", where="highs")

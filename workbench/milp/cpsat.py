"""CP-SAT of OR-Tools, for models whose variables are all bounded integers.

Rows must be whole numbers after multiplication by a common denominator: decimals of up to 12 digits and fractions with
a denominator of up to a million are recognised, and then the row is exact. Objective coefficients that are no such
numbers are rounded to a fine grid, and the largest error this can cause is taken off the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from workbench.errors import SolverError
from workbench.milp.expressions import Floats
from workbench.milp.model import Problem
from workbench.milp.search import Answer, Limits, Watch

__all__ = ["search"]

LARGEST = 2**53  # of any sum: well inside 64 bits, and every coefficient stays exact as a double
OTHERS = "use another solver: highs, cbc or gurobi"


def search(problem: Problem, limits: Limits, start: Floats | None, watch: Watch) -> Answer:
    """Minimise with CP-SAT.

    Raises:
        SolverError: a variable is continuous or unbounded, or a row cannot be written in whole numbers.
    """
    from ortools.sat.python import cp_model

    _check_variables(problem)
    lower, upper = np.ceil(problem.lower).astype(np.int64), np.floor(problem.upper).astype(np.int64)
    reach = np.maximum(abs(lower), abs(upper)).astype(float)
    model = cp_model.CpModel()
    x = [model.new_int_var(low, high, "") for low, high in zip(lower.tolist(), upper.tolist(), strict=True)]
    _add_rows(cp_model, model, x, problem=problem, reach=reach)
    grid, weights, error = whole_objective(problem.cost, reach)
    used = np.flatnonzero(weights).tolist()
    if used:
        model.minimize(cp_model.LinearExpr.weighted_sum([x[j] for j in used], [weights[j] for j in used]))
    if start is not None:
        for j in np.flatnonzero(~np.isnan(start)).tolist():
            model.add_hint(x[j], round(float(start[j])))

    def unscaled(value: float) -> float:
        return value / grid + problem.offset

    solver = _solver(cp_model, limits)
    watch.on_stop = solver.stop_search
    solver.best_bound_callback = lambda bound: watch.report(watch.incumbent, unscaled(bound) - error)

    class Hear(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            watch.report(unscaled(self.objective_value), watch.bound)

    status = solver.solve(model, Hear())
    if status == cp_model.INFEASIBLE:
        return Answer(claim="infeasible")
    if status == cp_model.MODEL_INVALID:
        raise SolverError(f"CP-SAT refused the model: {model.validate()}", where="cpsat", hint=OTHERS)
    bound = unscaled(solver.best_objective_bound) - error if used else problem.offset
    if status == cp_model.UNKNOWN:
        return Answer(claim="stopped", bound=bound)
    return Answer(claim="proven" if status == cp_model.OPTIMAL else "stopped", bound=bound,
                  x=np.array([float(solver.value(v)) for v in x]))


def _solver(cp_model: Any, limits: Limits) -> Any:
    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.random_seed = limits.seed
    parameters.relative_gap_limit, parameters.absolute_gap_limit = limits.gap, 0.0
    # One worker, so that a seed has one result; it keeps up with eight if the linear relaxation holds every row.
    parameters.num_workers, parameters.linearization_level = 1, 2
    parameters.catch_sigint_signal = False
    if math.isfinite(limits.deadline):
        parameters.max_time_in_seconds = limits.left_s()
    return solver


def _check_variables(problem: Problem) -> None:
    continuous = int((~problem.integer).sum())
    if continuous:
        raise SolverError(f"CP-SAT takes integers only; {continuous:,} variables of the model are continuous",
                          where="cpsat", hint=OTHERS)
    unbounded = ~(np.isfinite(problem.lower) & np.isfinite(problem.upper))
    if unbounded.any():
        raise SolverError(f"CP-SAT takes bounded variables only; {int(unbounded.sum()):,} have no upper or no lower "
                          "bound", where="cpsat", hint=f"give variables lower= and upper=, or {OTHERS}")
    if max(abs(problem.lower).max(), abs(problem.upper).max()) > LARGEST:
        raise SolverError("CP-SAT takes values of up to 2**53", where="cpsat", hint=OTHERS)


def _add_rows(cp_model: Any, model: Any, x: list[Any], *, problem: Problem, reach: Floats) -> None:
    matrix = problem.matrix
    ends, cols = matrix.indptr.tolist(), matrix.indices.tolist()
    rounded = np.rint(matrix.data)
    whole = (rounded == matrix.data) & (abs(rounded) < LARGEST)
    weights = np.where(whole, rounded, 0.0).astype(np.int64).tolist()
    fractional = np.unique(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[~whole])
    scale = dict.fromkeys(fractional.tolist(), 1)
    for i in scale:
        part = slice(ends[i], ends[i + 1])
        scale[i], weights[part] = whole_numbers(matrix.data[part].tolist(), f"row {i}")
    sizes = np.bincount(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)),
                        weights=abs(np.array(weights, dtype=float)) * reach[matrix.indices], minlength=matrix.shape[0])
    if sizes.max(initial=0.0) > LARGEST:
        raise SolverError(f"row {int(sizes.argmax())} in whole numbers sums to more than 2**53", where="cpsat",
                          hint=f"choose a coarser unit for it, or {OTHERS}")
    for i, (sense, rhs) in enumerate(zip(problem.sense.tolist(), problem.rhs.tolist(), strict=True)):
        part = slice(ends[i], ends[i + 1])
        low, high = _whole_limits(sense, rhs * scale.get(i, 1))
        if low > high:
            model.add_bool_or([])  # no whole number lies there
            continue
        row = cp_model.LinearExpr.weighted_sum([x[j] for j in cols[part]], weights[part])
        model.add_linear_constraint(row, low, high)


def _whole_limits(sense: int, rhs: float) -> tuple[int, int]:
    """Whole-number range of a row's activity; the right-hand side may be off by the noise of its arithmetic."""
    noise = 1e-9 * max(1.0, abs(rhs))
    reach = min(max(abs(rhs) + 1, LARGEST), 2.0**62)
    low = -reach if sense < 0 else max(rhs - noise, -reach)
    high = reach if sense > 0 else min(rhs + noise, reach)
    return math.ceil(low), math.floor(high)


def rational(value: float) -> Fraction | None:
    """The simple fraction that ``value`` stands for, or ``None``: 12 digits, or a denominator of up to a million."""
    for simple in (Fraction(f"{value:.12g}"), Fraction(value).limit_denominator(10**6)):
        if abs(float(simple) - value) <= 4 * math.ulp(value):  # the noise of an operation or two
            return simple
    return None


def whole_numbers(values: Sequence[float], where: str) -> tuple[int, list[int]]:
    """Scale and scaled values: ``scale * values``, all whole.

    Raises:
        SolverError: a value is no simple fraction, or the whole numbers grow beyond 2**53.
    """
    fractions = [rational(v) for v in values]
    scale = 1
    for value, fraction in zip(values, fractions, strict=True):
        if fraction is None:
            raise SolverError(f"{value!r} is no simple fraction, so CP-SAT cannot have its row exactly",
                              where=f"cpsat, {where}", hint=f"round the data, or {OTHERS}")
        scale = math.lcm(scale, fraction.denominator)
    scaled = [int(f * scale) for f in fractions if f is not None]
    if scale > LARGEST or max(map(abs, scaled), default=0) > LARGEST:
        raise SolverError("the common denominator of its coefficients is too large for whole numbers",
                          where=f"cpsat, {where}", hint=f"round the data, or {OTHERS}")
    return scale, scaled


def whole_objective(cost: Floats, reach: Floats) -> tuple[float, list[int], float]:
    """Scale, whole weights, and by how much ``weights @ x / scale`` can differ from ``cost @ x`` at any point."""
    distinct, back = np.unique(cost, return_inverse=True)
    try:
        scale, weights = whole_numbers(distinct.tolist(), "objective")
        chosen = [weights[k] for k in back.tolist()]
        if float(abs(np.array(chosen, dtype=float)) @ reach) <= LARGEST:
            return float(scale), chosen, 0.0
    except SolverError:
        pass  # not exact: fall through to the grid
    largest = float(abs(cost) @ reach) + float(reach.sum()) * 2.0**-40
    grid = 2.0 ** math.floor(math.log2(LARGEST / 4 / largest)) if largest > 0 else 1.0
    rounded = np.rint(cost * grid)
    error = float((abs(cost * grid - rounded)) @ reach) / grid
    return grid, rounded.astype(np.int64).tolist(), error

"""Solve a model with one of the back-ends, and believe nothing it says without a look.

Before: rows without effect are left out, rows and objective are scaled by powers of two so that absolute tolerances of
the solvers mean something whatever the units. After: integers are rounded, the point is checked against the unscaled
rows (and its continuous part solved again if rounding broke one), objective and gap are computed here.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import SolverError, nearest
from workbench.milp.expressions import Affine, Floats
from workbench.milp.model import Model, Problem, row_max
from workbench.milp.search import Answer, Limits, Search, Watch, watched
from workbench.plan import Certificate, Sense, relative_gap

__all__ = ["FEASIBILITY_TOLERANCE", "SOLVERS", "Progress", "Solution", "empty_ranges", "minimise", "missing_solvers",
           "search_by", "solve"]

Status = Literal["optimal", "feasible", "infeasible", "unbounded", "time limit without solution"]
FEASIBILITY_TOLERANCE = 1e-6


class _BackEnd(NamedTuple):
    package: str
    extra: str | None  # of this project, that installs the package; absent for hard dependencies
    scaled: bool  # floating-point solvers want scaled rows, exact ones the numbers as they were written


SOLVERS: Mapping[str, _BackEnd] = {
    "highs": _BackEnd("scipy", None, True),
    "cbc": _BackEnd("mip", None, True),
    "gurobi": _BackEnd("gurobipy", None, True),
    "cpsat": _BackEnd("ortools", "cpsat", False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a search is; ``None`` for what is not known yet."""

    seconds: float
    objective: float | None
    bound: float | None
    gap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a solver found, checked.

    ``solution["replicas"]`` is the block's array (``int64`` for integer blocks, ``float64`` otherwise).
    ``duals`` (linear models only; by row block, in its shape) are improvements of the objective per unit of right-hand
    side, ``reduced_costs`` (by variable block) the same per unit of the bound a variable sits at.
    ``bound`` is absent when none was proven; ``stopped_by`` says what ended a search early.
    """

    status: Status
    sense: Sense
    objective: float | None
    bound: float | None
    solver: str
    seconds: float
    gap_tolerance: float
    stopped_by: Literal["time limit", "interrupt"] | None = None
    duals: Mapping[str, Floats] | None = None
    reduced_costs: Mapping[str, Floats] | None = None
    x: Floats | None = field(default=None, repr=False)
    model: Model = field(repr=False, compare=False)

    @property
    def gap(self) -> float | None:
        """Relative gap as in ``workbench.plan``; absent without objective or bound."""
        return None if self.objective is None or self.bound is None else relative_gap(self.objective, self.bound)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Values of the block of variables called ``name``, in its shape.

        Raises:
            SolverError: there is no solution (``require`` says why).
            KeyError: no such block.
        """
        where = self.model[name]
        values = self._point()[where.index]
        return np.rint(values).astype(np.int64) if self.model.blocks[name].integer else values

    def value(self, expression: Affine) -> Floats:
        """Value of an expression in the model's variables, in its shape."""
        return expression.value(self._point())

    def certificate(self, *, planner: str, unit: str, shadow_prices: Mapping[str, float] | None = None) -> Certificate:
        """Objective, bound and status as a plan carries them."""
        self._point()
        return Certificate(objective=float(self.objective or 0.0), bound=self.bound, sense=self.sense, unit=unit,
                           status="optimal" if self.status == "optimal" else "feasible", planner=planner,
                           solver=self.solver, seconds=self.seconds, shadow_prices=dict(shadow_prices or {}))

    def _point(self) -> Floats:
        if self.x is None:
            raise SolverError(f"there is no solution: {self.status}", where=f"model {self.model.name!r}")
        return self.x


def missing_solvers() -> dict[str, str]:
    """Back-ends that cannot be loaded here, each with what would install it (licences are not looked at)."""
    return {name: _remedy(b) for name, b in SOLVERS.items() if importlib.util.find_spec(b.package) is None}


def _remedy(back_end: _BackEnd) -> str:
    return f"pip install 'planner-workbench[{back_end.extra}]'" if back_end.extra else f"pip install {back_end.package}"


def search_by(solver: str) -> Search:
    """The back-end called ``solver``.

    Raises:
        SolverError: there is none of that name, or its package is not installed.
    """
    if solver not in SOLVERS:
        close = nearest(solver, SOLVERS)
        raise SolverError(f"no solver is called {solver!r}", allowed=SOLVERS,
                          hint=f"did you mean {close!r}?" if close else None)
    missing = missing_solvers()
    if solver in missing:
        raise SolverError(f"solver {solver!r} is not installed", next_command=missing[solver],
                          hint="or use another: " + ", ".join(s for s in SOLVERS if s not in missing))
    return cast(Search, importlib.import_module(f"workbench.milp.{solver}").search)


def solve(model: Model, *, solver: str = "highs", time_limit_s: float | None = 60.0, gap: float = 1e-6, seed: int = 0,
          start: Solution | Mapping[str, ArrayLike] | None = None,
          on_progress: Callable[[Progress], None] | None = None) -> Solution:
    """Solve a model.

    Args:
        model: what to solve; the solution keeps a copy.
        solver: ``highs``, ``cbc``, ``gurobi`` or ``cpsat``.
        time_limit_s: wall time after which the incumbent is returned; absent for none.
        gap: relative gap at which a solution counts as optimal.
        seed: of the solver's tie-breaks.
        start: a known solution, or values of some blocks (NaN where unknown); used as an incumbent when it is complete
            and feasible, else as a hint.
        on_progress: told, in the caller's thread, of each new incumbent and bound (``cbc`` knows none until the end).

    Raises:
        SolverError: the back-end is missing, has no licence for the size, broke, or returned an infeasible point.
        KeyboardInterrupt: Ctrl-C before there was an incumbent, or with a back-end that cannot be stopped (``cbc``).
    """
    search = search_by(solver)
    begin = time.perf_counter()
    model, problem = model.copy(), model.problem()
    sign = -1.0 if model.sense == "max" else 1.0
    known = _start_point(model, start)

    def told(seconds: float, incumbent: float, bound: float) -> None:
        if on_progress is not None:
            on_progress(_progress(seconds, incumbent, bound, sign=sign))

    def row_name(row: int) -> str:
        return f"row {model.row_names()[row]!r}"

    watch = Watch()
    limits = Limits(deadline=math.inf if time_limit_s is None else begin + time_limit_s, gap=gap, seed=seed)
    answer = minimise(search, problem, limits=limits, start=known, scaled=SOLVERS[solver].scaled, watch=watch,
                      tell=told, row_name=row_name)
    if answer.x is None and watch.stopping.is_set():
        raise KeyboardInterrupt
    ended: Literal["time limit", "interrupt"] | None = None
    if answer.claim == "stopped":
        ended = "interrupt" if watch.stopping.is_set() else "time limit"
    bare = Solution(status=_status_without_point(answer), objective=None, solver=solver, sense=model.sense, model=model,
                    bound=sign * answer.bound if answer.claim == "stopped" and math.isfinite(answer.bound) else None,
                    seconds=time.perf_counter() - begin, gap_tolerance=gap, stopped_by=ended)
    return bare if answer.x is None else _with_point(bare, problem, answer, answer.x)


def _status_without_point(answer: Answer) -> Status:
    if answer.claim == "infeasible":
        return "infeasible"
    return "unbounded" if answer.claim == "infeasible or unbounded" else "time limit without solution"


def _with_point(bare: Solution, problem: Problem, answer: Answer, x: Floats) -> Solution:
    """The solution with its point, objective, bound and duals, all in the model's own sense."""
    model, sign = bare.model, -1.0 if bare.sense == "max" else 1.0
    minimum = float(problem.cost @ x + problem.offset)
    lowest = _honest_bound(problem, answer, x, minimum=minimum)
    rows, columns = answer.row_duals, answer.column_duals
    return replace(
        bare, status="optimal" if relative_gap(minimum, lowest) <= bare.gap_tolerance else "feasible", x=x,
        objective=sign * minimum, bound=sign * lowest if math.isfinite(lowest) else None,
        duals=None if rows is None else {b.name: -rows[s].reshape(b.shape) for b, s in model.row_slices()},
        reduced_costs=None if columns is None else {
            b.name: -columns[b.start:b.stop].reshape(b.shape) for b in model.blocks.values()})


def minimise(search: Search, problem: Problem, *, limits: Limits, start: Floats | None = None, scaled: bool = True,
             watch: Watch | None = None, tell: Callable[[float, float, float], None] | None = None,
             row_name: Callable[[int], str] = "row {}".format) -> Answer:
    """Minimise arrays with a back-end: scaling before, rounding and checking after; never returns an unchecked point.

    Raises:
        SolverError: the back-end broke or returned an infeasible point.
    """
    watch = watch or Watch()
    effective = np.isfinite(problem.rhs)
    if not effective.all():
        place = np.flatnonzero(effective)
        inner = minimise(search, problem.only_rows(effective), limits=limits, start=start, scaled=scaled, watch=watch,
                         tell=tell, row_name=lambda row: row_name(int(place[row])))
        if inner.row_duals is None:
            return inner
        duals = np.zeros(len(effective))
        duals[effective] = inner.row_duals
        return replace(inner, row_duals=duals)
    if empty_ranges(problem).any():
        return Answer(claim="infeasible")
    if not len(problem.cost):
        wrong = np.where(problem.sense < 0, problem.rhs < 0, np.where(problem.sense > 0, problem.rhs > 0,
                                                                      problem.rhs != 0))
        return Answer(claim="infeasible") if wrong.any() else Answer(
            claim="proven", x=np.zeros(0), bound=problem.offset, row_duals=np.zeros(len(wrong)),
            column_duals=np.zeros(0))
    row_scale, cost_scale = _scales(problem) if scaled else (np.ones(len(problem.rhs)), 1.0)
    posed = _scaled(problem, row_scale, cost_scale)

    def rescaled(seconds: float, incumbent: float, bound: float) -> None:
        if tell is not None:
            tell(seconds, incumbent / cost_scale, bound / cost_scale)

    answer = watched(lambda: search(posed, limits, start, watch), watch, rescaled)
    if answer.claim == "infeasible or unbounded" and posed.cost.any():
        exists = watched(lambda: search(posed.feasibility(), _at_least(limits, 1.0), None, watch), watch, None)
        return Answer(claim="infeasible") if exists.claim == "infeasible" else answer
    if answer.claim == "infeasible or unbounded":  # with nothing to optimise there is nothing unbounded
        return Answer(claim="infeasible")
    answer = replace(
        answer, bound=answer.bound / cost_scale,
        row_duals=None if answer.row_duals is None else answer.row_duals * row_scale / cost_scale,
        column_duals=None if answer.column_duals is None else answer.column_duals / cost_scale,
        x=None if answer.x is None else _checked(problem, answer.x, limits, row_name))
    return _with_start(problem, answer, start)


def empty_ranges(problem: Problem) -> NDArray[np.bool_]:
    """Variables whose bounds cross, or leave no whole number between them."""
    low, high = problem.lower, problem.upper
    whole = problem.integer
    slack = FEASIBILITY_TOLERANCE
    return (low > high) | (whole & (np.ceil(low - slack) > np.floor(high + slack)))


def _scales(problem: Problem) -> tuple[Floats, float]:
    """Powers of two: rows whose coefficients are all below 1 are scaled up, objectives to between 1 and a million.

    Rows are never scaled down: in ``x <= 1e6 y`` that would allow x = 1 with y = 0.
    """
    largest = row_max(abs(problem.matrix.data), problem.matrix.indptr)
    small = (largest > 0.0) & (largest < 1.0)
    rows = np.ones(len(largest))
    rows[small] = np.exp2(np.ceil(-np.log2(largest[small])))
    dearest = float(abs(problem.cost).max(initial=0.0))
    if dearest == 0.0 or 1.0 <= dearest <= 2.0**20:
        return rows, 1.0
    return rows, 2.0 ** (10 - math.floor(math.log2(dearest)))


def _scaled(problem: Problem, rows: Floats, cost: float) -> Problem:
    from scipy.sparse import csr_array

    matrix = problem.matrix
    factors = np.repeat(rows, np.diff(matrix.indptr))
    return replace(problem, cost=problem.cost * cost, offset=problem.offset * cost, rhs=problem.rhs * rows,
                   matrix=csr_array((matrix.data * factors, matrix.indices, matrix.indptr), shape=matrix.shape))


def _checked(problem: Problem, x: Floats, limits: Limits, row_name: Callable[[int], str]) -> Floats:
    """The point with whole integers and no broken row.

    Raises:
        SolverError: it is infeasible, and no continuous part makes it feasible.
    """
    x = np.where(problem.integer, np.rint(x), x)
    x = np.clip(x, problem.lower, problem.upper)
    violation, where = problem.worst_violation(x)
    if violation > FEASIBILITY_TOLERANCE and problem.integer.any() and not problem.integer.all():
        fixed = replace(problem.without_integrality(), lower=np.where(problem.integer, x, problem.lower),
                        upper=np.where(problem.integer, x, problem.upper))
        answer = search_by("highs")(fixed, _at_least(limits, 2.0), None, Watch())
        if answer.x is not None:
            x = np.clip(np.where(problem.integer, x, answer.x), problem.lower, problem.upper)
            violation, where = problem.worst_violation(x)
    if violation > FEASIBILITY_TOLERANCE:
        place = "a bound" if where is None else row_name(where)
        raise SolverError(f"solver returned an infeasible point: {place} is broken by {violation:.2g} (relative)",
                          hint="scale the data so that coefficients lie within a few powers of ten of 1, "
                               "or use another solver: " + ", ".join(SOLVERS))
    return x


def _at_least(limits: Limits, seconds: float) -> Limits:
    """The same limits with a little time in any case, for work without which the result would be lost."""
    return replace(limits, deadline=max(limits.deadline, time.perf_counter() + seconds))


def _with_start(problem: Problem, answer: Answer, start: Floats | None) -> Answer:
    """The better of the answer's point and a complete, feasible start."""
    if start is None or np.isnan(start).any():
        return answer
    whole = np.where(problem.integer, np.rint(start), start)
    if abs(whole - start).max(initial=0.0) > FEASIBILITY_TOLERANCE:
        return answer
    if problem.worst_violation(whole)[0] > FEASIBILITY_TOLERANCE:
        return answer
    if answer.x is not None and problem.cost @ answer.x <= problem.cost @ whole:
        return answer
    return replace(answer, x=whole) if answer.claim in ("proven", "stopped") else answer


def _honest_bound(problem: Problem, answer: Answer, x: Floats, *, minimum: float) -> float:
    """The proven bound; never beyond the objective, and equal to it when they differ by rounding noise alone."""
    terms = max(abs(problem.offset), float(abs(problem.cost) @ abs(x)), float(abs(problem.cost).max(initial=0.0)))
    closed = answer.claim == "proven" and minimum - answer.bound <= 1e-9 * terms
    return minimum if closed else min(answer.bound, minimum)


def _start_point(model: Model, start: Solution | Mapping[str, ArrayLike] | None) -> Floats | None:
    if start is None:
        return None
    x = np.full(len(model.lower), math.nan)
    given: Mapping[str, ArrayLike] = start if not isinstance(start, Solution) else {
        name: start[name] for name in start.model.blocks if start.x is not None and name in model.blocks}
    for name, values in given.items():
        block = model[name]
        x[block.cols] = np.broadcast_to(np.asarray(values, dtype=float), block.shape).ravel()
    return None if np.isnan(x).all() else x


def _progress(seconds: float, incumbent: float, bound: float, *, sign: float) -> Progress:
    def known(v: float) -> float | None:
        return sign * v if abs(v) < 1e50 else None

    objective, proven = known(incumbent), known(bound)
    gap = None if objective is None or proven is None else relative_gap(objective, proven)
    return Progress(seconds=seconds, objective=objective, bound=proven, gap=gap)

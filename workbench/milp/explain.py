"""Why a model has no feasible point: a set of rows and bounds that cannot hold together, and what would have to give.

1. The smallest relaxation: each row may be broken, and the total break is minimised. A break counts relative to its
   row's right-hand side, so that dollars and bytes can be weighed against each other.
2. A set that clashes. Where the linear relaxation is infeasible: the support of a vertex of the polyhedron of Farkas
   multipliers, which is irreducible (Gleeson and Ryan 1990). Otherwise integrality is part of the trouble: rows that
   break are made unbreakable one round after the other until they clash (Chinneck's elastic filter).
3. Deletion by halves (QuickXplain, Junker 2004) until no row and no bound can be spared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np

from workbench.errors import Infeasible, SolverError
from workbench.milp.expressions import Floats, Ints
from workbench.milp.model import Model, Problem, row_max
from workbench.milp.search import Answer, Limits
from workbench.milp.solve import SOLVERS, Solution, empty_ranges, minimise, search_by

__all__ = ["Explanation", "InfeasibleModel", "explain_infeasible", "require"]

T = TypeVar("T")
Bound = tuple[int, Literal["lower", "upper"]]
MOST_ALONE = 12
SHOWN = 8
BY_DELETION = 64  # members of a linear clash up to which the vertex's irreducibility is checked by deletion


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why there is no feasible point.

    ``rows`` and ``bounds`` (written as ``replicas[a] <= 3``) cannot hold together; when ``irreducible``, dropping any
    one of them resolves this clash. ``kind`` says whether whole numbers are part of the trouble.
    ``relaxation`` maps row names to signed changes of their right-hand sides that together make the model feasible, of
    least total relative to the right-hand sides (``proven_least``). ``alone`` maps each row of the clash to the
    smallest change of it that suffices when nothing else gives; a row where none does is left out.
    """

    model: str
    kind: Literal["linear", "integer"]
    rows: tuple[str, ...]
    bounds: tuple[str, ...]
    irreducible: bool
    relaxation: Mapping[str, float]
    proven_least: bool
    alone: Mapping[str, float]
    rhs: Mapping[str, float] = field(repr=False)
    seconds: float

    def __str__(self) -> str:
        members = _listed(_by_block(self.rows) + _by_block(self.bounds))
        whole = ", in whole numbers" if self.kind == "integer" else ""
        minimal = "" if self.irreducible else " (perhaps not all of these are needed)"
        lines = [f"these cannot hold together{whole}: {members}{minimal}"]
        if self.relaxation:
            lines.append(("smallest" if self.proven_least else "a") + " relaxation: " + self._changes(self.relaxation))
        given = {name: change for name, change in self.alone.items() if self.rhs[name] != 0.0}
        if given:
            lines.append("or any one of: " + self._changes(given))
        return "\n".join(lines)

    def _changes(self, changes: Mapping[str, float]) -> str:
        return _listed([f"{'raise' if d > 0 else 'lower'} {name} by {abs(d):.6g} ({self.rhs[name]:.6g} -> "
                        f"{self.rhs[name] + d:.6g})" for name, d in changes.items()])


class InfeasibleModel(Infeasible):
    """A model without feasible points, with its ``explanation`` (absent when none was found in time)."""

    def __init__(self, model: str, explanation: Explanation | None) -> None:
        self.explanation = explanation
        first, *rest = str(explanation or "why was not found within the time limit").split("\n")
        super().__init__("no feasible point; " + first, where=f"model {model!r}", hint="; ".join(rest) or None)


def require(solution: Solution, *, explain_s: float = 20.0) -> Solution:
    """The solution itself if it has a point.

    Raises:
        InfeasibleModel: there is none; the explanation takes up to about ``explain_s`` seconds.
        SolverError: unbounded, or the time limit came first.
    """
    if solution.x is not None:
        return solution
    where = f"model {solution.model.name!r}"
    if solution.status == "infeasible":
        try:
            explanation = explain_infeasible(solution.model, time_limit_s=explain_s)
        except SolverError:
            raise InfeasibleModel(solution.model.name, None) from None
        raise InfeasibleModel(solution.model.name, explanation)
    if solution.status == "unbounded":
        raise SolverError("the objective has no bound", where=where,
                          hint="a variable that improves it lacks a bound or a row")
    raise SolverError(f"no solution within {solution.seconds:.1f} s", where=where,
                      hint="raise the time limit, give a start, or use another solver: " + ", ".join(SOLVERS))


def explain_infeasible(model: Model, *, time_limit_s: float = 20.0) -> Explanation:
    """Explain why ``model`` has no feasible point; what the time limit cuts short is marked as such.

    Raises:
        SolverError: the model has a feasible point, or whether it has was not settled in time.
    """
    begin = time.perf_counter()
    probe = _Probe(deadline=begin + time_limit_s, longest_s=time_limit_s / 4)
    effective = np.flatnonzero(np.isfinite(model.problem().rhs))
    posed, names = model.problem().only_rows(effective), np.array(model.row_names(), dtype=object)[effective]
    problem = posed.feasibility()
    if empty_ranges(problem).any():
        return _explain_bounds(model, problem, begin)
    linear = problem.without_integrality()
    kind: Literal["linear", "integer"] = "linear" if probe.infeasible(linear) else "integer"
    if kind == "integer" and not probe.infeasible(posed, longest_s=time_limit_s / 2):  # its objective helps to prove it
        raise SolverError("not known to be infeasible: " + (
            "the time limit came first" if probe.unsure else "it has a feasible point"), where=f"model {model.name!r}")
    every = np.arange(len(problem.rhs))
    relaxation, proven = _relaxation(problem, every, probe)
    clash, bounds = _linear_clash(linear, probe) if kind == "linear" else _integer_clash(problem, probe)
    alone: dict[str, float] = {}
    for i in sorted(clash, key=lambda i: problem.rhs[i] == 0.0)[:MOST_ALONE]:  # a row like x <= y is seldom negotiable
        change, _ = _relaxation(problem, np.array([i]), probe)
        alone |= {str(names[i]): amount for amount in change.values()}
    return Explanation(
        model=model.name, kind=kind, rows=tuple(names[clash]), irreducible=not probe.unsure,
        bounds=tuple(_bound_text(model, problem, b) for b in bounds),
        relaxation={str(names[i]): amount for i, amount in relaxation.items()}, proven_least=proven, alone=alone,
        rhs={str(names[i]): float(problem.rhs[i]) for i in {*relaxation, *clash}},
        seconds=time.perf_counter() - begin)


def _explain_bounds(model: Model, problem: Problem, begin: float) -> Explanation:
    """One variable's own bounds leave it no value."""
    column = int(np.flatnonzero(empty_ranges(problem))[0])
    crossed = bool(problem.lower[column] > problem.upper[column])
    return Explanation(
        model=model.name, kind="linear" if crossed else "integer", rows=(), irreducible=True, relaxation={},
        bounds=tuple(_bound_text(model, problem, (column, side)) for side in ("lower", "upper")), proven_least=True,
        alone={}, rhs={}, seconds=time.perf_counter() - begin)


@dataclass(slots=True)
class _Probe:
    """Feasibility questions within one deadline; ``unsure`` once one of them stayed open."""

    deadline: float
    longest_s: float
    unsure: bool = False

    def solve(self, problem: Problem, *, longest_s: float | None = None) -> Answer | None:
        """The answer, or ``None`` when the question stayed open."""
        if not self.spent():
            until = min(self.deadline, time.perf_counter() + (longest_s or self.longest_s))
            limits = Limits(deadline=until, gap=1e-9, seed=0)
            try:
                answer = minimise(search_by("highs"), problem, limits=limits)
            except SolverError:
                answer = Answer(claim="stopped")
            if answer.claim != "stopped" or answer.x is not None:
                return answer
        self.unsure = True
        return None

    def spent(self) -> bool:
        """Whether no question will be answered any more."""
        return time.perf_counter() >= self.deadline

    def infeasible(self, problem: Problem, *, longest_s: float | None = None) -> bool:
        """Whether ``problem`` is proven to have no point."""
        answer = self.solve(problem, longest_s=longest_s)
        return answer is not None and answer.claim == "infeasible"


def _elastic(problem: Problem, rows: Sequence[int] | Ints) -> Problem:
    """Minimise the total break of ``rows``, each in units of its right-hand side; two new columns for each row.

    The units are in the matrix and all prices are 1, so that no price falls below a solver's tolerance.
    """
    from scipy.sparse import csr_array, hstack

    chosen = np.asarray(rows, dtype=np.intp)
    count, old = len(chosen), len(problem.cost)
    units = _units(problem)[chosen]
    columns = np.arange(count)
    up = csr_array((-units, (chosen, columns)), shape=(len(problem.rhs), count))
    senses = problem.sense[chosen]
    most = np.concatenate((np.where(senses <= 0, np.inf, 0.0), np.where(senses >= 0, np.inf, 0.0)))
    return replace(
        problem, matrix=hstack([problem.matrix, up, -up], format="csr"),
        cost=np.concatenate((np.zeros(old), np.ones(2 * count))), upper=np.concatenate((problem.upper, most)),
        lower=np.concatenate((problem.lower, np.zeros(2 * count))),
        integer=np.concatenate((problem.integer, np.zeros(2 * count, dtype=bool))))


def _units(problem: Problem) -> Floats:
    """What a break of each row is measured against: its right-hand side, or its largest coefficient where that is 0."""
    largest = row_max(abs(problem.matrix.data), problem.matrix.indptr)
    return np.where(problem.rhs != 0.0, abs(problem.rhs), np.where(largest > 0.0, largest, 1.0))


def _relaxation(problem: Problem, rows: Sequence[int] | Ints, probe: _Probe) -> tuple[dict[int, float], bool]:
    """Signed changes of right-hand sides of least total among ``rows``, and whether that is proven; {} if none does."""
    answer = probe.solve(_elastic(problem, rows))
    if answer is None or answer.x is None:
        return {}, False
    breaks = answer.x[len(problem.cost):].reshape(2, -1)
    shift = (breaks[0] - breaks[1]) * _units(problem)[rows]
    big = np.flatnonzero(abs(breaks[0] - breaks[1]) > 1e-9)
    return {int(np.asarray(rows)[k]): float(shift[k]) for k in big}, answer.claim == "proven"


def _linear_clash(problem: Problem, probe: _Probe) -> tuple[list[int], list[Bound]]:
    """Rows and bounds that cannot hold together, of an infeasible linear program."""
    rows, bounds = _farkas_support(problem, probe)
    if not rows and not bounds:  # the multipliers were out of reach numerically
        rows = list(range(len(problem.rhs)))
        bounds = _finite_bounds(problem, rows)
    elif len(rows) + len(bounds) > BY_DELETION:
        return rows, bounds
    return _by_deletion(problem, rows, bounds, probe)


def _farkas_support(problem: Problem, probe: _Probe) -> tuple[list[int], list[Bound]]:
    """Support of a vertex of ``{y >= 0: y'A = 0, y'b = -1}`` over rows and bounds, all written as ``<=``.

    Rows are divided by their largest coefficient and right-hand sides by the largest of all, so that multipliers are
    of the order of 1. Both lists are empty when no such vertex was found, or its support does not clash.
    """
    from scipy import sparse

    largest = row_max(abs(problem.matrix.data), problem.matrix.indptr)
    scale = np.where(problem.sense > 0, -1.0, 1.0) / np.where(largest > 0.0, largest, 1.0)
    rows = sparse.csr_array(problem.matrix.multiply(scale[:, None]))
    equal = np.flatnonzero(problem.sense == 0)
    lower, upper = np.flatnonzero(np.isfinite(problem.lower)), np.flatnonzero(np.isfinite(problem.upper))
    eye = sparse.eye_array(len(problem.cost), format="csr")
    every_row = sparse.vstack([rows, -rows[equal], -eye[lower], eye[upper]], format="csr")
    rhs = np.concatenate((scale * problem.rhs, -(scale * problem.rhs)[equal], -problem.lower[lower],
                          problem.upper[upper]))
    rhs /= abs(rhs).max(initial=0.0) or 1.0
    count, size = len(rhs), len(problem.cost)
    of_rows = len(problem.rhs) + len(equal)
    multipliers = Problem(
        cost=np.where(np.arange(count) < of_rows, 1.0, 0.01), offset=0.0,  # rather a bound more than a row
        matrix=sparse.vstack([every_row.T, rhs[None, :]], format="csr"), sense=np.zeros(size + 1, dtype=np.int8),
        rhs=np.concatenate((np.zeros(size), [-1.0])), lower=np.zeros(count), upper=np.full(count, np.inf),
        integer=np.zeros(count, dtype=bool))
    answer = probe.solve(multipliers)
    if answer is None or answer.x is None:
        return [], []
    used = answer.x > 1e-7 * answer.x.max()
    chosen = np.flatnonzero(used[:of_rows])
    support = sorted({int(i) for i in np.concatenate((np.arange(len(problem.rhs)), equal))[chosen]})
    low, high = np.split(used[of_rows:], [len(lower)])
    bounds: list[Bound] = [(j, "lower") for j in lower[low].tolist()] + [(j, "upper") for j in upper[high].tolist()]
    return (support, sorted(bounds)) if probe.infeasible(_with_bounds(problem, support, bounds)) else ([], [])


def _integer_clash(problem: Problem, probe: _Probe) -> tuple[list[int], list[Bound]]:
    """Rows and bounds that cannot hold together in whole numbers."""
    rows = _filtered_rows(problem, probe)
    return _by_deletion(problem, rows, _finite_bounds(problem, rows), probe)


def _filtered_rows(problem: Problem, probe: _Probe) -> list[int]:
    """Rows that clash, found by making those that break unbreakable; not yet irreducible."""
    every = list(range(len(problem.rhs)))
    held: set[int] = set()
    while len(held) < len(every):
        soft = [i for i in every if i not in held]
        answer = probe.solve(_elastic(problem, soft))
        if answer is None:
            return every
        if answer.x is None:
            return sorted(held)
        breaks = answer.x[len(problem.cost):].reshape(2, -1).max(axis=0)
        broken = [i for i, b in zip(soft, breaks.tolist(), strict=True) if b > 1e-9]
        if not broken:
            return every
        held.update(broken)
    return every


def _irreducible(items: Sequence[T], clashes: Callable[[list[T]], bool], probe: _Probe) -> list[T]:
    """A subset of clashing ``items`` that clashes and of which nothing can be spared (if ``probe`` stays sure)."""

    def needed(background: list[T], candidates: Sequence[T], *, grown: bool) -> list[T]:
        if grown and not probe.spent() and clashes(background):
            return []
        if len(candidates) == 1 or probe.spent():
            probe.unsure = probe.unsure or probe.spent()
            return list(candidates)
        half = len(candidates) // 2
        first, second = candidates[:half], candidates[half:]
        of_second = needed([*background, *first], second, grown=True)
        of_first = needed([*background, *of_second], first, grown=bool(of_second))
        return of_first + of_second

    return needed([], items, grown=True) if items else []


def _by_deletion(problem: Problem, rows: list[int], bounds: list[Bound],
                 probe: _Probe) -> tuple[list[int], list[Bound]]:
    """Those of ``rows`` and ``bounds``, which clash, that a clash needs."""
    needed = sorted(_irreducible(rows, lambda some: probe.infeasible(_with_bounds(problem, some, bounds)),
                                 probe))
    touched = set(problem.only_rows(needed).matrix.indices.tolist())
    near = [b for b in bounds if b[0] in touched]
    return needed, sorted(_irreducible(near, lambda some: probe.infeasible(_with_bounds(problem, needed, some)),
                                       probe))


def _finite_bounds(problem: Problem, rows: Sequence[int]) -> list[Bound]:
    """All bounds of the variables in ``rows``."""
    columns = np.unique(problem.only_rows(rows).matrix.indices)
    lower, upper = np.isfinite(problem.lower[columns]), np.isfinite(problem.upper[columns])
    return [(j, "lower") for j in columns[lower].tolist()] + [(j, "upper") for j in columns[upper].tolist()]


def _with_bounds(problem: Problem, rows: Sequence[int], bounds: Sequence[Bound]) -> Problem:
    """``rows`` over the variables that occur in them or in ``bounds``, no other bound holding."""
    part = problem.only_rows(sorted(rows))
    columns = np.unique(np.concatenate((part.matrix.indices, np.array([j for j, _ in bounds], dtype=np.intp))))
    held: dict[str, Ints] = {side: np.array([j for j, s in bounds if s == side], dtype=np.intp)
                             for side in ("lower", "upper")}
    lower, upper = np.full(len(problem.cost), -math.inf), np.full(len(problem.cost), math.inf)
    lower[held["lower"]], upper[held["upper"]] = problem.lower[held["lower"]], problem.upper[held["upper"]]
    return replace(part, matrix=part.matrix[:, columns], cost=part.cost[columns], lower=lower[columns],
                   upper=upper[columns], integer=part.integer[columns])


def _bound_text(model: Model, problem: Problem, bound: Bound) -> str:
    column, side = bound
    sign, value = (">=", problem.lower[column]) if side == "lower" else ("<=", problem.upper[column])
    return f"{model.variable_name(column)} {sign} {value:.6g}"


def _by_block(names: Sequence[str]) -> list[str]:
    """Names, those of one block put together when there are more than two."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        block, bracket, _ = name.partition("[")
        blocks.setdefault(block if bracket else name, []).append(name)
    return [text for block, own in blocks.items()
            for text in (own if len(own) <= 2 else [f"{own[0]} and {len(own) - 1} more of {block!r}"])]


def _listed(items: Sequence[str]) -> str:
    more = f", … and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more

"""The neutral model: named blocks of variables and rows, bounds, integrality, an objective.

Building is vectorised: a block of rows is one array of affine expressions, stored as coordinate triples and put
together once, in ``Model.problem``. Blocks are immutable, so that ``copy`` costs a few array copies and the second
stage of a lexicographic optimisation is a copy with one row more and another objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import nearest
from workbench.milp.expressions import Affine, Axis, AxisLike, Floats, Ints, Variables, element_name
from workbench.plan import Sense

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Model", "Problem", "RowSense", "relax", "row_max"]

RowSense = Literal["<=", "==", ">="]
SIGNS: Mapping[str, int] = {"<=": -1, "==": 0, ">=": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A model as arrays, for a back-end: minimise ``cost @ x + offset`` s.t. ``matrix @ x (sense) rhs`` and bounds.

    ``sense`` holds -1, 0, 1 for <=, ==, >=. A model to maximise arrives here with its objective negated.
    """

    cost: Floats
    offset: float
    matrix: csr_array
    sense: NDArray[np.int8]
    rhs: Floats
    lower: Floats
    upper: Floats
    integer: NDArray[np.bool_]

    def row_limits(self) -> tuple[Floats, Floats]:
        """Lower and upper limit of each row's activity."""
        return np.where(self.sense >= 0, self.rhs, -np.inf), np.where(self.sense <= 0, self.rhs, np.inf)

    def feasibility(self) -> Problem:
        """The same set of points with nothing to optimise."""
        return replace(self, cost=np.zeros_like(self.cost), offset=0.0)

    def without_integrality(self) -> Problem:
        """The linear relaxation."""
        return replace(self, integer=np.zeros_like(self.integer))

    def only_rows(self, rows: Any) -> Problem:
        """The same problem with only ``rows`` (mask or positions)."""
        return replace(self, matrix=self.matrix[rows], sense=self.sense[rows], rhs=self.rhs[rows])

    def worst_violation(self, x: Floats) -> tuple[float, int | None]:
        """Largest violation at ``x`` and its row (``None``: a bound).

        A row's violation is relative to the largest of 1 and the terms of the row at ``x``, after the row was
        scaled up so that its largest coefficient is at least 1; a bound's is relative to 1 or the bound.
        """
        rows = self.matrix
        terms = abs(rows.data * x[rows.indices])
        largest_term, largest = row_max(terms, rows.indptr), row_max(abs(rows.data), rows.indptr)
        unit = np.maximum(np.minimum(largest, 1.0), np.maximum(largest_term, abs(self.rhs)))
        unit[unit == 0.0] = 1.0
        excess = (rows @ x - self.rhs) / unit
        broken = np.where(self.sense < 0, excess, np.where(self.sense > 0, -excess, abs(excess)))
        worst, where = 0.0, None
        if broken.size and broken.max() > 0.0:
            where = int(broken.argmax())
            worst = float(broken[where])
        outside = max(float(_excess(self.lower - x, self.lower)), float(_excess(x - self.upper, self.upper)))
        return (outside, None) if outside > worst else (worst, where)


def row_max(data: Floats, indptr: Ints) -> Floats:
    """Largest entry of each row of a csr matrix; 0 for empty rows."""
    result = np.zeros(len(indptr) - 1)
    filled = np.flatnonzero(np.diff(indptr))
    if filled.size:
        result[filled] = np.maximum.reduceat(data, indptr[filled])
    return result


def _excess(amount: Floats, bound: Floats) -> float:
    finite = np.isfinite(bound)
    return float((amount[finite] / np.maximum(1.0, abs(bound[finite]))).max(initial=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableBlock:
    """Where a named block lies in x."""

    name: str
    axes: tuple[Axis, ...]
    start: int
    stop: int
    integer: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(a.size for a in self.axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """A named block of rows: coordinate triples (rows counted from 0 in the block), one sense, right-hand sides."""

    name: str
    axes: tuple[Axis, ...]
    sense: RowSense
    rows: Ints
    cols: Ints
    vals: Floats
    rhs: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(a.size for a in self.axes)


class Model:
    """A sparse mixed-integer linear model.

    >>> m = Model("diet")
    >>> food = m.variables("food", ["bread", "milk"], upper=10)
    >>> m.add("protein", [4, 3] @ food, ">=", 12)
    >>> m.minimise([2, 1] @ food)
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sense: Sense = "min"
        self.objective: Affine | None = None
        self.blocks: dict[str, VariableBlock] = {}
        self.rows: dict[str, RowBlock] = {}
        self.lower: Floats = np.zeros(0)
        self.upper: Floats = np.zeros(0)
        self.integer: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self._family = object()
        self._built: tuple[csr_array, NDArray[np.int8], Floats] | None = None

    def variables(self, name: str, *axes: AxisLike, lower: ArrayLike = 0.0, upper: ArrayLike = math.inf,
                  integer: bool = False) -> Variables:
        """Add a block of variables.

        Args:
            name: the block's name, used in messages and solutions.
            axes: one size or list of distinct labels for each dimension; none for a single variable.
            lower: lower bounds, a number or anything that broadcasts to the block's shape; ``-inf`` for none.
            upper: upper bounds likewise; ``inf`` for none.
            integer: whether all variables of the block take whole values.

        Raises:
            ValueError: the name is taken, a label occurs twice, or a bound is not a number.
        """
        if name in self.blocks:
            raise ValueError(f"model {self.name!r} already has variables {name!r}")
        block = VariableBlock(name=name, axes=tuple(Axis(a) for a in axes), start=len(self.lower),
                              stop=len(self.lower) + math.prod(Axis(a).size for a in axes), integer=integer)
        self.blocks[name] = block
        self.lower = np.concatenate((self.lower, _bounds(lower, block.shape)))
        self.upper = np.concatenate((self.upper, _bounds(upper, block.shape)))
        self.integer = np.concatenate((self.integer, np.full(block.stop - block.start, integer)))
        self._built = None
        return self[name]

    def __getitem__(self, name: str) -> Variables:
        """The block of variables called ``name``."""
        block = self.blocks[self._known(name, self.blocks, "variables")]
        return Variables(name=name, index=np.arange(block.start, block.stop).reshape(block.shape), axes=block.axes,
                         family=self._family)

    def add(self, name: str, left: Affine, sense: RowSense, right: Affine | ArrayLike = 0.0, *,
            labels: Sequence[AxisLike] | None = None) -> None:
        """Add a named block of rows ``left (sense) right``, one for each entry after broadcasting.

        Args:
            name: the block's name; a row is called ``name[label,...]``.
            left: array of expressions.
            sense: ``"<="``, ``"=="`` or ``">="``.
            right: numbers or expressions; an infinite one leaves its row without effect.
            labels: sizes or labels of the axes, in place of those the expressions carry.

        Raises:
            ValueError: name taken, unknown sense, shapes that do not fit, or a coefficient that is not finite.
        """
        if name in self.rows:
            raise ValueError(f"model {self.name!r} already has rows {name!r}")
        if sense not in SIGNS:
            raise ValueError(f"rows {name!r}: sense {sense!r} is not one of {', '.join(SIGNS)}")
        difference = self._own(left, f"rows {name!r}") - right
        axes = difference.axes if labels is None else tuple(Axis(a) for a in labels)
        if tuple(a.size for a in axes) != difference.shape:
            raise ValueError(f"rows {name!r}: labels of shape {tuple(a.size for a in axes)} for {difference.shape}")
        if not np.isfinite(difference.vals).all():
            raise ValueError(f"rows {name!r}: a coefficient is not finite")
        rhs = 0.0 - difference.const  # not -const: that prints as -0
        hopeless = np.isinf(rhs) & (rhs != (math.inf if sense == "<=" else -math.inf if sense == ">=" else math.nan))
        if np.isnan(rhs).any() or hopeless.any():
            bad = int(np.flatnonzero(np.isnan(rhs) | hopeless)[0])
            raise ValueError(f"row {element_name(name, axes, bad)}: no point satisfies {sense} {rhs[bad]}")
        self.rows[name] = RowBlock(name=name, axes=axes, sense=sense, rows=difference.rows, cols=difference.cols,
                                   vals=difference.vals, rhs=rhs)
        self._built = None

    def minimise(self, objective: Affine | float) -> None:
        """Set the objective, a single expression to be made small."""
        self._aim("min", objective)

    def maximise(self, objective: Affine | float) -> None:
        """Set the objective, a single expression to be made large."""
        self._aim("max", objective)

    def bound(self, where: Variables, *, lower: ArrayLike | None = None, upper: ArrayLike | None = None) -> None:
        """Replace bounds of some variables (a block or a slice of one); an absent side stays as it is."""
        index = self._own(where, "bound").cols
        for given, side in ((lower, "lower"), (upper, "upper")):
            if given is not None:
                changed = getattr(self, side).copy()
                changed[index] = _bounds(given, where.shape)
                setattr(self, side, changed)

    def fix(self, where: Variables, values: ArrayLike) -> None:
        """Hold some variables at ``values``, which broadcast to the shape of ``where``."""
        self.bound(where, lower=values, upper=values)

    def shift_rhs(self, changes: Mapping[str, float]) -> None:
        """Add to right-hand sides, by row name (``"budget"``, ``"capacity[a100]"``); what ``Explanation`` proposes.

        Raises:
            KeyError: no row has that name; the nearest is named.
        """
        places = {name: (block, i) for block in self.rows for i, name in enumerate(self.row_names(block))}
        for name, amount in changes.items():
            block_name, i = places[self._known(name, places, "row")]
            rhs = self.rows[block_name].rhs.copy()
            rhs[i] += amount
            self.rows[block_name] = replace(self.rows[block_name], rhs=rhs)
        self._built = None

    def copy(self) -> Model:
        """A model that can be changed without touching this one; blocks and expressions of one work in the other."""
        twin = Model(self.name)
        twin.sense, twin.objective, twin._family, twin._built = self.sense, self.objective, self._family, self._built
        twin.blocks, twin.rows = dict(self.blocks), dict(self.rows)
        twin.lower, twin.upper, twin.integer = self.lower.copy(), self.upper.copy(), self.integer.copy()
        return twin

    def problem(self) -> Problem:
        """The model as arrays, to be minimised; rows in the order they were added."""
        if self._built is None:
            self._built = self._assemble()
        matrix, sense, rhs = self._built
        sign = -1.0 if self.sense == "max" else 1.0
        cost: Floats = np.zeros(len(self.lower))
        offset = 0.0
        if self.objective is not None:
            totals = np.bincount(self.objective.cols, weights=self.objective.vals, minlength=len(self.lower))
            cost = np.asarray(sign * totals, dtype=float)
            offset = sign * float(self.objective.const[0])
        return Problem(cost=cost, offset=offset, matrix=matrix, sense=sense, rhs=rhs, lower=self.lower,
                       upper=self.upper, integer=self.integer)

    def row_names(self, block: str | None = None) -> list[str]:
        """Names of the rows of one block, or of all in the order of ``problem``."""
        blocks = self.rows.values() if block is None else (self.rows[block],)
        return [element_name(b.name, b.axes, i) for b in blocks for i in range(len(b.rhs))]

    def variable_name(self, column: int) -> str:
        """Name of one variable by its place in x."""
        block = next(b for b in self.blocks.values() if column < b.stop)
        return element_name(block.name, block.axes, column - block.start)

    def row_slices(self) -> Iterator[tuple[RowBlock, slice]]:
        """Each row block with its rows in ``problem``."""
        start = 0
        for block in self.rows.values():
            yield block, slice(start, start + len(block.rhs))
            start += len(block.rhs)

    def __repr__(self) -> str:
        return (f"Model {self.name!r}: {len(self.lower)} variables ({int(self.integer.sum())} integer), "
                f"{sum(len(b.rhs) for b in self.rows.values())} rows")

    def __str__(self) -> str:
        from workbench.milp.printing import as_text

        return as_text(self)

    def _repr_latex_(self) -> str:
        from workbench.milp.printing import as_latex

        return as_latex(self)

    def _aim(self, sense: Sense, objective: Affine | float) -> None:
        if isinstance(objective, int | float):
            nothing = np.zeros(0, dtype=np.intp)
            objective = Affine(rows=nothing, cols=nothing, vals=np.zeros(0), const=np.array([float(objective)]),
                               axes=(), family=self._family)
        self._own(objective, "objective")
        if objective.size != 1:
            raise ValueError(f"the objective is one expression, not an array of shape {objective.shape}")
        if not (np.isfinite(objective.vals).all() and np.isfinite(objective.const).all()):
            raise ValueError("a coefficient of the objective is not finite")
        self.sense, self.objective = sense, objective

    def _own(self, expression: Affine, where: str) -> Affine:
        if not isinstance(expression, Affine):
            raise TypeError(f"{where}: not an expression in the model's variables: {expression!r}")
        if expression.family is not self._family or expression.cols.max(initial=-1) >= len(self.lower):
            raise ValueError(f"{where}: the expression belongs to another model")
        return expression

    def _known(self, name: str, names: Mapping[str, Any], kind: str) -> str:
        if name in names:
            return name
        close = nearest(name, names)
        raise KeyError(f"model {self.name!r} has no {kind} {name!r}" + (f"; did you mean {close!r}?" if close else ""))

    def _assemble(self) -> tuple[csr_array, NDArray[np.int8], Floats]:
        from scipy.sparse import csr_array

        def joined(of: Callable[[RowBlock], Any], dtype: Any) -> Any:
            parts = [np.asarray(of(b)) for b in self.rows.values()]
            return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)

        start = {b.name: s.start for b, s in self.row_slices()}
        rhs = joined(lambda b: b.rhs, float)
        triples = (joined(lambda b: b.vals, float),
                   (joined(lambda b: b.rows + start[b.name], np.intp), joined(lambda b: b.cols, np.intp)))
        matrix = csr_array(triples, shape=(len(rhs), len(self.lower)))
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix, joined(lambda b: np.full(len(b.rhs), SIGNS[b.sense]), np.int8), rhs


def relax(model: Model) -> Model:
    """The linear relaxation: a copy whose variables may all be fractional; solving it gives duals."""
    relaxed = model.copy()
    relaxed.integer = np.zeros_like(model.integer)
    relaxed.blocks = {name: replace(block, integer=False) for name, block in model.blocks.items()}
    return relaxed


def _bounds(values: ArrayLike, shape: tuple[int, ...]) -> Floats:
    numbers = np.asarray(values, dtype=float)
    if np.isnan(numbers).any():
        raise ValueError("a bound is not a number")
    return np.broadcast_to(numbers, shape).ravel()

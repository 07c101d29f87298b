"""Costs with a source: what an operation takes, and how we know.

A ``CostModel`` answers ``cost(op, **point)``; the answer is never a silent guess: its ``source`` says whether it was
measured at that very point, interpolated between measured points, extrapolated beyond them, or computed from a
data sheet. A point nobody measured, with no analytic fallback asked for, is a ``MissingProfile`` error.

``ProfileTable`` holds the measurements of one op under one set of exact keys, over nested and possibly ragged axes.
Interpolation is multilinear in each axis' own scale, so an answer never leaves the range of its cell's corners and
monotone data give monotone answers. Above an axis' last point the slope of its last octave goes on (never
downhill); below its first point the first value stays. Both are flagged as extrapolated.

A table may have a ``Prior``: t0(x) = sum_j c_j prod_i x_i^e_ij with c_j >= 0, a fixed launch cost plus terms for bytes
and operations (alpha-beta for messages, the sum form of a roofline for kernels). Then what is interpolated is
log(t / t0), and the answer is held within the range of its cell's corners; outside the knots the nearest ratio stays
and t0 goes on. On one axis monotone data still give monotone answers, because log t0 is convex in log x.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import math
import pkgutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from annotated_types import Ge
from numpy.typing import ArrayLike, NDArray

from workbench.errors import MissingProfile, SpecError, TraceError, nearest
from workbench.spec import about, spec

__all__ = [
    "SOURCES",
    "Axis",
    "Cost",
    "CostModel",
    "CountedCosts",
    "FallbackCosts",
    "JudgedCosts",
    "Prior",
    "ProfileTable",
    "Provenance",
    "Source",
    "SweepCosts",
    "TableCosts",
    "asked_point",
    "held_out_errors",
    "open_costs",
    "sweep",
    "weaker",
]

Source = Literal["measured", "interpolated", "extrapolated", "analytic"]
SOURCES: tuple[Source, ...] = ("measured", "interpolated", "extrapolated", "analytic")
_RANK = {name: rank for rank, name in enumerate(SOURCES)}
Scale = Literal["linear", "log"]
Key = str | int | float
# Up to so many points one at a time are quicker than arrays.
_FEW = 256
Floats = NDArray[np.float64]
Ranks = NDArray[np.int8]


def weaker(first: Source, second: Source) -> Source:
    """The less certain of two sources."""
    return first if _RANK[first] >= _RANK[second] else second


class Cost(NamedTuple):
    """A time and how it is known; ``plus`` keeps the less certain source."""

    seconds: float
    source: Source

    def plus(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(self.seconds + other.seconds, weaker(self.source, other.source))

    def times(self, factor: float) -> Cost:
        """The same operation ``factor`` times."""
        return Cost(self.seconds * factor, self.source)


@spec
class Provenance:
    """Where a table of costs comes from."""

    id: str = about("Content id or package version of the table.")
    origin: str = about("Who measured it: this machine, a package, a public repository.")
    device: str = about("Device name in the hardware catalogue.")
    date: str | None = about("Day of measurement, ISO 8601; absent when the origin does not say.", default=None)
    licence: str | None = about("Licence of the table, SPDX id; absent for own measurements.", default=None)
    conditions: tuple[str, ...] = about("What was held fixed while measuring, as key=value texts.", default=())
    error_median: float | None = about("Median relative error of predicting a left-out row from its neighbours.",
                                       default=None)
    error_p90: float | None = about("90th percentile of the same errors.", default=None)
    error_point: float | None = about("90th percentile of the points' own uncertainty (half-width of the median's 95 % "
                                      "confidence interval over the median).", default=None)


class CostModel(Protocol):
    """Anything that answers what an operation costs."""

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Time of ``op`` at ``point`` (categorical and numeric keys by name).

        Raises:
            MissingProfile: no table covers the point and no analytic fallback was asked for.
        """
        ...

    def provenance(self) -> Mapping[str, Provenance]:
        """The tables behind the answers, by op."""
        ...


@runtime_checkable
class SweepCosts(Protocol):
    """A cost model that answers many points of one op at once."""

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """Times of ``op`` at ``point`` with the arrays of ``over`` (broadcast) in it, and ranks of their sources."""
        ...


def sweep(model: CostModel, op: str, over: Mapping[str, ArrayLike],
          **point: float | int | str) -> tuple[Floats, Ranks]:
    """Times of ``op`` over broadcast arrays of some of its axes, and for each the index of its source in ``SOURCES``.

    Raises:
        MissingProfile: as ``model.cost`` does.
    """
    if isinstance(model, SweepCosts):
        return model.sweep(op, over, **point)
    grids = np.broadcast_arrays(*(np.asarray(v) for v in over.values()))
    rows = zip(*(g.ravel().tolist() for g in grids), strict=True)
    found = [model.cost(op, **point, **dict(zip(over, row, strict=True))) for row in rows]
    shape = grids[0].shape
    return (np.array([c.seconds for c in found]).reshape(shape),
            np.array([_RANK[c.source] for c in found], dtype=np.int8).reshape(shape))


class Axis(NamedTuple):
    """One numeric axis: its name in a point, and the scale in which times are close to straight lines."""

    name: str
    scale: Scale = "linear"


@spec
class Prior:
    """The shape a kernel's time has before it is looked at closely: a sum of non-negative power terms of the axes."""

    exponents: tuple[tuple[Annotated[int, Ge(0)], ...], ...] = about(
        "Exponents of each term, one per axis, outermost first.")
    coefficients: tuple[float, ...] = about("Seconds of each term where all axes are 1; the constant is a launch.")

    def seconds(self, points: Floats) -> Floats:
        """t0 at (rows, axes) points."""
        terms = np.prod(points[:, None, :] ** np.array(self.exponents, dtype=float)[None], axis=2)
        return np.asarray(terms @ np.array(self.coefficients))

    @classmethod
    def fit(cls, points: Floats, seconds: Floats) -> Prior | None:
        """The least squares fit of relative errors over terms with exponents 0 or 1 (the last axis: 0 to 2).

        ``None`` when there are fewer rows than axes and two more. The constant is at least a thousandth of the least
        time, so that t0 is positive everywhere.
        """
        from scipy.optimize import nnls

        axes = points.shape[1]
        if not axes or len(points) < axes + 2:
            return None
        exponents = np.array(list(itertools.product(*[(0, 1)] * (axes - 1), (0, 1, 2))), dtype=float)
        terms = np.prod(points[:, None, :] ** exponents[None], axis=2) / seconds[:, None]
        scale = terms.max(axis=0)
        found, _ = nnls(terms / scale, np.ones(len(points)))
        found /= scale
        found[0] = max(found[0], seconds.min() / 1000)
        kept = np.flatnonzero(found)
        return cls(exponents=tuple(tuple(int(e) for e in exponents[j]) for j in kept),
                   coefficients=tuple(float(found[j]) for j in kept))


@dataclass(frozen=True, kw_only=True)
class ProfileTable:
    """Measured seconds of one op under one set of exact keys, over nested numeric axes (outermost first).

    ``points`` is (rows, axes) in the axes' own units, ``seconds`` is (rows,). The grid may be ragged: each outer
    value has its own inner values. A point measured more than once counts with its median; without axes all rows
    are one point.

    Raises:
        TraceError: shapes disagree, no rows, values that are not finite, a time <= 0, a log axis with a value <= 0, or
            a prior for times that are not on a log scale.
    """

    op: str
    keys: Mapping[str, Key]
    axes: tuple[Axis, ...]
    points: Floats
    seconds: Floats
    provenance: Provenance
    times: Scale = "linear"
    prior: Prior | None = None
    _index: _Grid = field(init=False, repr=False, compare=False)
    _knots: dict[str, list[float]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        points = np.asarray(self.points, dtype=np.float64)
        seconds = np.asarray(self.seconds, dtype=np.float64)
        _check_rows(self, points, seconds)
        points, seconds = _sorted_medians(points, seconds)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "_index", _Grid(self.axes, points, seconds, self.times, self.prior))

    def at(self, *coordinates: float) -> Cost:
        """Time at one point, coordinates in the order of ``axes``."""
        seconds, rank = self._index.at(coordinates)
        return Cost(seconds, SOURCES[rank])

    def many(self, *coordinates: ArrayLike) -> tuple[Floats, Ranks]:
        """Times at broadcast coordinate arrays, and for each the index of its source in ``SOURCES``."""
        return self._index.many(coordinates)

    def knots(self, axis: str) -> list[float]:
        """The values of ``axis`` that were measured, sorted.

        Raises:
            SpecError: the table has no such axis.
        """
        if axis not in self._knots:
            names = [a.name for a in self.axes]
            if axis not in names:
                raise SpecError(f"{self.label()} has no axis {axis!r}", allowed=names)
            self._knots[axis] = np.unique(self.points[:, names.index(axis)]).tolist()
        return self._knots[axis]

    def label(self) -> str:
        """Op and keys in one short text."""
        return f"{self.op}({', '.join(f'{k}={v}' for k, v in self.keys.items())})"


def _check_rows(table: ProfileTable, points: Floats, seconds: Floats) -> None:
    where = table.label()
    if points.ndim != 2 or points.shape != (len(seconds), len(table.axes)):
        raise TraceError(f"points have shape {points.shape}, seconds {seconds.shape}, for {len(table.axes)} axes",
                         where=where)
    if not len(seconds):
        raise TraceError("a profile table needs at least one row", where=where)
    if table.prior is not None and (table.times != "log"
                                    or {len(e) for e in table.prior.exponents} != {len(table.axes)}):
        raise TraceError("a prior needs times on a log scale, and an exponent for each axis", where=where)
    bad = ~np.isfinite(points).all(axis=1) | ~np.isfinite(seconds) | (seconds <= 0)
    for column, axis in enumerate(table.axes):
        if axis.scale == "log":
            bad |= points[:, column] <= 0
    if bad.any():
        rows = ", ".join(map(str, np.flatnonzero(bad)[:5]))
        raise TraceError(f"{int(bad.sum())} impossible rows (first: {rows}): values must be finite, times and log "
                         "axes above 0", where=where)


def _sorted_medians(points: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Rows in lexicographic order of the axes, repeated points merged into their median."""
    if _in_order(points):
        return points, seconds
    order = np.lexsort((seconds, *points.T[::-1]))
    points, seconds = points[order], seconds[order]
    new = np.ones(len(points), dtype=bool)
    new[1:] = (points[1:] != points[:-1]).any(axis=1)
    if new.all():
        return points, seconds
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(points)))
    low, high = first + (count - 1) // 2, first + count // 2
    return points[first], (seconds[low] + seconds[high]) / 2


def _in_order(points: Floats) -> bool:
    """Whether the rows are in strict lexicographic order, as tables read from a cache are."""
    if not points.shape[1]:
        return len(points) == 1
    differs = points[1:] != points[:-1]
    first = differs.argmax(axis=1)[:, None]
    return bool((np.take_along_axis(points[1:], first, 1) > np.take_along_axis(points[:-1], first, 1)).all())


class _Grid:
    """Nested sorted axes in compressed rows: children of node ``i`` of a level are ``first[i]:first[i+1]`` below it."""

    def __init__(self, axes: tuple[Axis, ...], points: Floats, seconds: Floats, times: Scale,
                 prior: Prior | None) -> None:
        self.log_axes = tuple(a.scale == "log" for a in axes)
        self.log_times = times == "log"
        self.seconds, self.prior = seconds, prior
        self.heights = np.log(seconds / prior.seconds(points) if prior else seconds) if self.log_times else seconds
        self.values: list[Floats] = []
        self.firsts: list[NDArray[np.intp]] = []
        starts = np.zeros(1, dtype=np.intp)
        new = np.zeros(len(points), dtype=bool)
        new[0] = True
        for column in range(len(axes)):
            new[1:] |= points[1:, column] != points[:-1, column]
            nodes = np.flatnonzero(new)
            self.firsts.append(np.append(np.searchsorted(nodes, starts), len(nodes)))
            self.values.append(points[nodes, column])
            starts = nodes

    @cached_property
    def _terms(self) -> list[tuple[float, list[int]]]:
        """Coefficient of each term of the prior, and the axes to multiply it with (twice for a square)."""
        assert self.prior is not None
        return [(c, [i for i, e in enumerate(powers) for _ in range(e)])
                for c, powers in zip(self.prior.coefficients, self.prior.exponents, strict=True)]

    def _prior_at(self, x: Sequence[float]) -> float:
        total = 0.0
        for coefficient, factors in self._terms:
            product = coefficient
            for i in factors:
                product *= x[i]
            total += product
        return total

    @cached_property
    def _lists(self) -> tuple[list[list[float]], list[list[int]], list[float]]:
        return ([v.tolist() for v in self.values], [f.tolist() for f in self.firsts], self.heights.tolist())

    def at(self, x: Sequence[float]) -> tuple[float, int]:
        values, firsts, heights = self._lists
        logs, last = self.log_axes, len(values) - 1
        prior = self.prior
        corners: list[int] = []

        def height(level: int, node: int) -> tuple[float, int]:
            """Interpolated height below ``node`` of the level above, and the rank of its source."""
            axis, wanted = values[level], x[level]
            low, high = firsts[level][node], firsts[level][node + 1]
            i = bisect_right(axis, wanted, low, high) - 1
            if i < low or axis[i] == wanted or high - low == 1:
                i = max(i, low)
                if level == last:
                    corners.append(i)
                found, rank = (heights[i], 0) if level == last else height(level + 1, i)
                return found, rank if axis[i] == wanted else 2
            beyond = i == high - 1
            if beyond and prior is not None:
                found, _ = (heights[i], 0) if level == last else height(level + 1, i)
                return found, 2
            j = i + 1
            if beyond:
                j = i
                i = min(max(bisect_right(axis, axis[j] / 2, low, high) - 1, low), j - 1)
            left, right = axis[i], axis[j]
            share = (math.log(wanted / left) / math.log(right / left) if logs[level]
                     else (wanted - left) / (right - left))
            if level == last:
                corners.extend((i, j))
                a, b, rank = heights[i], heights[j], 1
            else:
                a, rank_a = height(level + 1, i)
                b, rank_b = height(level + 1, j)
                rank = max(1, rank_a, rank_b)
            if beyond:
                return max(b, a + share * (b - a)), 2
            return a + share * (b - a), rank

        found, rank = height(0, 0) if values else (heights[0], 0)
        if prior is not None:
            return self._within(self._prior_at(x) * math.exp(found), rank, corners), rank
        return (math.exp(found) if self.log_times else found), rank

    def _within(self, found: float, rank: int, corners: Sequence[int]) -> float:
        """What is not extrapolated, within the range of its cell's corners."""
        if rank == 0:  # the very value, without the rounding of a logarithm
            return float(self.seconds[corners[0]])
        if rank > 1:
            return found
        near = self.seconds[corners]
        return float(min(max(found, near.min()), near.max()))

    def many(self, coordinates: Sequence[ArrayLike]) -> tuple[Floats, Ranks]:
        if not coordinates:
            return np.array(self.at(())[0]), np.array(0, dtype=np.int8)
        grids = np.broadcast_arrays(*(np.asarray(c, dtype=np.float64) for c in coordinates))
        flat, shape = [g.ravel() for g in grids], grids[0].shape
        if flat[0].size <= _FEW:
            answers = [self.at(row) for row in zip(*(g.tolist() for g in flat), strict=True)]
            return (np.array([a[0] for a in answers]).reshape(shape),
                    np.array([a[1] for a in answers], dtype=np.int8).reshape(shape))
        corners: list[NDArray[np.intp]] = []
        found, rank = self._heights(0, np.zeros(flat[0].size, dtype=np.intp), flat, corners)
        if self.prior is not None:
            near = self.seconds[np.stack(corners)]
            found = self.prior.seconds(np.stack(flat, axis=1)) * np.exp(found)
            found = np.where(rank <= 1, np.clip(found, near.min(axis=0), near.max(axis=0)), found)
        elif self.log_times:
            found = np.exp(found)
        return found.reshape(shape), rank.reshape(shape)

    def _heights(self, level: int, node: NDArray[np.intp], x: Sequence[Floats],
                 corners: list[NDArray[np.intp]]) -> tuple[Floats, Ranks]:
        axis, wanted = self.values[level], x[level]
        low, high = self.firsts[level][node], self.firsts[level][node + 1]
        raw = _last_at_most(axis, wanted, low, high)
        i = np.maximum(raw, low)
        single = (axis[i] == wanted) | (raw < low) | (high - low == 1)
        beyond = ~single & (raw == high - 1)
        j = np.where(single | beyond, i, i + 1)
        octave = np.clip(_last_at_most(axis, axis[j] / 2, low, high), low, np.maximum(j - 1, low))
        i = np.where(beyond, octave if self.prior is None else j, i)
        a, rank = self._below(level, i, x, corners)
        b, rank_b = self._below(level, j, x, corners)
        left, right = axis[i], axis[j]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (np.log(wanted / left) / np.log(right / left) if self.log_axes[level]
                     else (wanted - left) / (right - left))
        share = np.where(single | (i == j), 0.0, share)
        found = a + share * (b - a)
        found = np.where(beyond, np.maximum(b, found), found)
        rank = np.where(single, rank, np.maximum(np.maximum(rank, rank_b), 1))
        outside = beyond | (single & (axis[i] != wanted))
        return found, np.where(outside, 2, rank).astype(np.int8)

    def _below(self, level: int, node: NDArray[np.intp], x: Sequence[Floats],
               corners: list[NDArray[np.intp]]) -> tuple[Floats, Ranks]:
        if level == len(self.values) - 1:
            corners.append(node)
            return self.heights[node], np.zeros(len(node), dtype=np.int8)
        return self._heights(level + 1, node, x, corners)


def _last_at_most(axis: Floats, wanted: Floats, low: NDArray[np.intp], high: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each query the last index in ``low:high`` whose value is <= ``wanted`` (``low - 1`` if there is none)."""
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        right = open_ & (axis[np.minimum(middle, len(axis) - 1)] <= wanted)
        low = np.where(right, middle + 1, low)
        high = np.where(open_ & ~right, middle, high)
    return low - 1


def held_out_errors(table: ProfileTable, axis: str) -> Floats:
    """Relative errors of predicting each interior value of ``axis`` from a table without it (one per row held out).

    Raises:
        SpecError: the table has no such axis.
    """
    inside = table.knots(axis)[1:-1]
    column = table.points[:, [a.name for a in table.axes].index(axis)]
    errors = []
    for value in inside:
        held = column == value
        points, seconds = table.points[~held], table.seconds[~held]
        rest = replace(table, points=points, seconds=seconds,
                       prior=None if table.prior is None else Prior.fit(points, seconds))
        predicted, rank = rest.many(*table.points[held].T)
        known = rank <= _RANK["interpolated"]
        errors.append(predicted[known] / table.seconds[held][known] - 1)
    return np.concatenate(errors) if errors else np.empty(0)


class TableCosts:
    """Costs from many profile tables; a point is answered by the table whose keys it matches exactly.

    Args:
        tables: at most one per op and keys; later ones replace earlier ones.
        next_command: what to type when a point is missing; ``{op}`` is replaced by the op's name.
        assumed: keys of points that do not name them, such as the device of planners that know only one.
    """

    def __init__(self, tables: Iterable[ProfileTable], *, next_command: str = "wb profile {op}",
                 assumed: Mapping[str, Key] | None = None) -> None:
        self._next_command, self._assumed = next_command, dict(assumed or {})
        self._by_op: dict[str, dict[tuple[str, ...], dict[tuple[Key, ...], ProfileTable]]] = {}
        for table in tables:
            self.add(table)

    def add(self, table: ProfileTable) -> None:
        """Take in one more table."""
        names = tuple(sorted(table.keys))
        by_keys = self._by_op.setdefault(table.op, {}).setdefault(names, {})
        by_keys[tuple(table.keys[n] for n in names)] = table

    def tables(self) -> list[ProfileTable]:
        """Every table, by op and keys in order of arrival."""
        return [t for by_names in self._by_op.values() for by_keys in by_names.values() for t in by_keys.values()]

    def table(self, op: str, point: Mapping[str, Any]) -> ProfileTable:
        """The table that answers ``op`` at ``point``.

        Raises:
            MissingProfile: there is none.
        """
        for names, by_keys in self._by_op.get(op, {}).items():
            try:
                return by_keys[tuple(point[n] if n in point else self._assumed[n] for n in names)]
            except KeyError:
                continue
        raise self._missing(op, {**self._assumed, **point})

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Time of ``op`` at ``point``; see ``CostModel``."""
        table = self.table(op, point)
        return table.at(*self._coordinates(table, point))

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """Times of ``op`` over arrays of some axes; see ``SweepCosts``."""
        everything = {**point, **over}
        table = self.table(op, everything)
        return table.many(*self._coordinates(table, everything))

    def knots(self, op: str, axis: str, **point: float | int | str) -> list[float]:
        """The values of ``axis`` at which the table that answers ``op`` at ``point`` was measured, sorted.

        Raises:
            MissingProfile: there is no such table; ``SpecError`` when it has no such axis.
        """
        return self.table(op, point).knots(axis)

    def _coordinates(self, table: ProfileTable, point: Mapping[str, Any]) -> list[Any]:
        names = [a.name for a in table.axes]
        keys = len(table.keys) - sum(n not in point for n in self._assumed if n in table.keys)
        if len(point) != len(names) + keys or not all(n in point for n in names):
            strange = sorted(set(point) - set(names) - set(table.keys))
            absent = sorted(set(names) - set(point))
            raise SpecError(f"{table.label()} was asked at {sorted(point)}",
                            allowed=[*table.keys, *names],
                            hint="; ".join(part for part in (
                                f"no value for {', '.join(absent)}" if absent else "",
                                f"it does not depend on {', '.join(strange)}" if strange else "") if part))
        return [point[n] for n in names]

    def provenance(self) -> Mapping[str, Provenance]:
        """The tables behind the answers; several tables of one op are told apart by their keys."""
        return {t.label(): t.provenance for t in self.tables()}

    def _missing(self, op: str, point: Mapping[str, Any]) -> MissingProfile:
        asked = asked_point(op, point)
        command = self._next_command.format(op=op)
        if op not in self._by_op:
            close = nearest(op, self._by_op)
            hint = f"did you mean {close!r}?" if close else None
            if not self._by_op:
                hint = "there are no tables at all: name a source in the spec's [costs] section"
            return MissingProfile(f"no profile of op {op!r}", keys=[asked], allowed=sorted(self._by_op) or None,
                                  hint=hint, next_command=command)
        faults = []
        for names, by_keys in self._by_op[op].items():
            known = {n: sorted({k[i] for k in by_keys}, key=str) for i, n in enumerate(names)}
            for n in names:
                if point.get(n) not in known[n]:
                    close = nearest(str(point.get(n)), map(str, known[n]))
                    listed = ", ".join(map(str, known[n][:12]))
                    faults.append(f"{n}={point.get(n)} is not among {listed}" + (f"; nearest {close}" if close else ""))
        hint = "; or ".join(dict.fromkeys(faults)) or "each key is known, this combination of them is not"
        return MissingProfile(f"no profile of {op!r} with these keys", keys=[asked], hint=hint, next_command=command)


def asked_point(op: str, point: Mapping[str, Any]) -> str:
    """A point as text, for messages; arrays are named only."""
    return f"{op}({', '.join(f'{k}={v}' if isinstance(v, str | int | float) else f'{k}=…' for k, v in point.items())})"


class FallbackCosts:
    """First answer wins: measured tables first, then what was explicitly asked for (usually the analytic roofline)."""

    def __init__(self, *models: CostModel) -> None:
        self._models = models

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Time of ``op`` at ``point`` by the first model that knows it.

        Raises:
            MissingProfile: none does; the first model's complaint, which lists what was measured.
        """
        complaint: MissingProfile | None = None
        for model in self._models:
            try:
                return model.cost(op, **point)
            except MissingProfile as error:
                complaint = complaint or error
        raise complaint or MissingProfile("no cost model to ask", keys=[op])

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """Times of ``op`` over arrays by the first model that knows it; see ``SweepCosts``."""
        complaint: MissingProfile | None = None
        for model in self._models:
            try:
                return sweep(model, op, over, **point)
            except MissingProfile as error:
                complaint = complaint or error
        raise complaint or MissingProfile("no cost model to ask", keys=[op])

    def knots(self, op: str, axis: str, **point: float | int | str) -> list[float]:
        """Measured values of ``axis`` in the first model with tables that knows the point.

        Raises:
            MissingProfile: none does.
        """
        for model in self._models:
            with contextlib.suppress(MissingProfile):
                return _knots(model, op, axis, **point)
        raise MissingProfile(f"no table of {op!r} at this point", keys=[op])

    def provenance(self) -> Mapping[str, Provenance]:
        """The tables of all models; the first one's names win."""
        merged: dict[str, Provenance] = {}
        for model in reversed(self._models):
            merged.update(model.provenance())
        return merged


def _knots(model: CostModel, op: str, axis: str, **point: float | int | str) -> list[float]:
    """Measured values of ``axis``; models without tables have none, which is a ``MissingProfile``."""
    ask: Callable[..., list[float]] | None = getattr(model, "knots", None)
    if ask is None:
        raise MissingProfile(f"no table of {op!r} at this point", keys=[op])
    return ask(op, axis, **point)


class CountedCosts:
    """A cost model that remembers how its answers were known, for the shares a plan reports."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self.answers: Counter[Source] = Counter()

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """The inner model's answer, counted."""
        found = self._model.cost(op, **point)
        self.answers[found.source] += 1
        return found

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """The inner model's answers, counted; see ``SweepCosts``."""
        seconds, ranks = sweep(self._model, op, over, **point)
        for rank, count in zip(*np.unique(ranks, return_counts=True), strict=True):
            self.answers[SOURCES[rank]] += int(count)
        return seconds, ranks

    def knots(self, op: str, axis: str, **point: float | int | str) -> list[float]:
        """Measured values of ``axis`` in the inner model; ``MissingProfile`` when it has no such table."""
        return _knots(self._model, op, axis, **point)

    def provenance(self) -> Mapping[str, Provenance]:
        """The inner model's tables."""
        return self._model.provenance()

    def shares(self) -> dict[Source, float]:
        """Share of the answers by source (sums to 1; empty when nothing was asked)."""
        total = sum(self.answers.values())
        return {s: self.answers[s] / total for s in SOURCES if self.answers[s]}


class JudgedCosts:
    """A cost model that remembers how uncertain its answers were, by the seconds they stand for.

    A measured answer is as uncertain as its table's points, an interpolated one as the table's left-out points at
    their 90th percentile; what is extrapolated, analytic, or from a table without errors has none that is known.
    """

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._seconds = self._off = self._unknown = 0.0

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """The inner model's answer."""
        found = self._model.cost(op, **point)
        self._take(op, point, np.array([found.seconds]), np.array([_RANK[found.source]]))
        return found

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """The inner model's answers; see ``SweepCosts``."""
        seconds, ranks = sweep(self._model, op, over, **point)
        self._take(op, {**point, **over}, np.ravel(seconds), np.ravel(ranks))
        return seconds, ranks

    def knots(self, op: str, axis: str, **point: float | int | str) -> list[float]:
        """Measured values of ``axis`` in the inner model; ``MissingProfile`` when it has no such table."""
        return _knots(self._model, op, axis, **point)

    def provenance(self) -> Mapping[str, Provenance]:
        """The inner model's tables."""
        return self._model.provenance()

    def _take(self, op: str, point: Mapping[str, Any], seconds: Floats, ranks: NDArray[Any]) -> None:
        errors: tuple[float | None, ...] = ()
        if isinstance(self._model, TableCosts):
            where = self._model.table(op, point).provenance
            errors = (where.error_point, where.error_p90)
        for rank in range(len(SOURCES)):
            total = float(seconds[ranks == rank].sum())
            error = errors[rank] if rank < len(errors) else None
            if error is None:
                self._unknown += total
            else:
                self._off += error * total
                self._seconds += total

    def error(self) -> float | None:
        """Mean relative error of the answers, weighted by seconds; ``None`` unless every answer's error is known.

        Errors of one table are taken to have one sign, so nothing cancels.
        """
        return None if self._unknown or not self._seconds else self._off / self._seconds


SOURCES_PACKAGE = "traces.profiles"


def open_costs(section: Mapping[str, Any]) -> CostModel:
    """The cost model of a spec's ``[costs]`` section: ``source`` names a module of ``traces/profiles``.

    The module has a spec class ``Options`` and a function ``open(options)``. The key ``fallback = "analytic"``
    (any source's name) is taken here: it answers what the first source does not know.

    Raises:
        SpecError: no such source (names the nearest), or its options are wrong.
    """
    from workbench.spec import parse

    options = dict(section)
    fallback = options.pop("fallback", None)
    name = options.pop("source", None)
    module = _source_module(name)
    model: CostModel = module.open(parse(module.Options, options, where="costs"))
    if fallback is None:
        return model
    second = _source_module(fallback)
    return FallbackCosts(model, second.open(parse(second.Options, {}, where="costs.fallback")))


def _source_module(name: Any) -> Any:
    package = importlib.util.find_spec(SOURCES_PACKAGE)
    folders = list(package.submodule_search_locations or []) if package else []
    known = sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_"))
    if name not in known:
        close = nearest(str(name), known)
        raise SpecError("a cost source is needed" if name is None else f"no cost source is called {name!r}",
                        where="costs.source", allowed=known, hint=f"did you mean {close!r}?" if close else None)
    return importlib.import_module(f"{SOURCES_PACKAGE}.{name}")

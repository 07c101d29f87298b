"""Profile tables: measurements of one op over nested, possibly ragged axes, and what they say between their points.

Interpolation is multilinear in each axis' own scale, so an answer never leaves the range of its cell's corners and
monotone data give monotone answers. Above an axis' last point the slope of its last octave goes on (never
downhill); below its first point the first value stays. Both are flagged as extrapolated.

A table may have a ``Prior``: t0(x) = sum_j c_j prod_i x_i^e_ij with c_j >= 0, a fixed launch cost plus terms for bytes
and operations (alpha-beta for messages, the sum form of a roofline for kernels). Then what is interpolated is
log(t / t0), and the answer is held within the range of its cell's corners; outside the knots the nearest ratio stays
and t0 goes on. On one axis monotone data still give monotone answers, because log t0 is convex in log x (unless a term
has a threshold: behind it t0 may bend down again).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge
from numpy.typing import ArrayLike, NDArray

from workbench.errors import SpecError, TraceError
from workbench.spec import about, spec

__all__ = ["RANK", "SOURCES", "Axis", "Cost", "Floats", "Key", "Prior", "ProfileTable", "Provenance", "Ranks",
           "Scale", "Source", "Term", "held_out_errors", "weaker"]

Source = Literal["measured", "interpolated", "extrapolated", "analytic"]
SOURCES: tuple[Source, ...] = ("measured", "interpolated", "extrapolated", "analytic")
RANK = {name: rank for rank, name in enumerate(SOURCES)}
Scale = Literal["linear", "log"]
Key = str | int | float
# Up to so many points one at a time are quicker than arrays.
_FEW = 256
Floats = NDArray[np.float64]
Ranks = NDArray[np.int8]


def weaker(first: Source, second: Source) -> Source:
    """The less certain of two sources."""
    return first if RANK[first] >= RANK[second] else second


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


class Axis(NamedTuple):
    """One numeric axis: its name in a point, and the scale in which times are close to straight lines."""

    name: str
    scale: Scale = "linear"


class Term(NamedTuple):
    """One term of a prior: a product of powers of the axes, of which the first ``threshold`` cost nothing."""

    exponents: tuple[int, ...]
    threshold: float = 0.0


@spec
class Prior:
    """The shape a kernel's time has before it is looked at closely: a sum of non-negative power terms of the axes.

    A term counts from its threshold on: what an operand takes beyond a cache, and nothing before.
    """

    exponents: tuple[tuple[Annotated[int, Ge(0)], ...], ...] = about(
        "Exponents of each term, one per axis, outermost first.")
    coefficients: tuple[float, ...] = about("Seconds of each term where all axes are 1; the constant is a launch.")
    thresholds: tuple[float, ...] = about("What is subtracted from each term, as far as it goes; none: nothing.",
                                          default=())

    def seconds(self, points: Floats) -> Floats:
        """t0 at (rows, axes) points."""
        terms = _values(points, np.array(self.exponents, dtype=float), np.array(self.thresholds or 0.0))
        return np.asarray(terms @ np.array(self.coefficients))

    @classmethod
    def fit(cls, points: Floats, seconds: Floats, terms: Sequence[Term] = ()) -> Prior | None:
        """The least squares fit of relative errors over a constant and ``terms``.

        Without terms: those with exponents 0 or 1 (the last axis: 0 to 2). ``None`` when there are fewer rows than
        axes and two more. The constant is at least a thousandth of the least time, so that t0 is positive everywhere.
        """
        from scipy.optimize import nnls

        axes = points.shape[1]
        if not axes or len(points) < axes + 2:
            return None
        tried = [Term((0,) * axes), *terms] if terms else [
            Term(e) for e in itertools.product(*[(0, 1)] * (axes - 1), (0, 1, 2))]
        thresholds = np.array([term.threshold for term in tried])
        values = _values(points, np.array([term.exponents for term in tried], dtype=float), thresholds)
        values /= seconds[:, None]
        scale = values.max(axis=0)
        scale[scale == 0] = 1.0
        found, _ = nnls(values / scale, np.ones(len(points)))
        found /= scale
        found[0] = max(found[0], seconds.min() / 1000)
        kept = np.flatnonzero(found)
        return cls(exponents=tuple(tried[j].exponents for j in kept), coefficients=tuple(found[kept].tolist()),
                   thresholds=tuple(thresholds[kept].tolist()) if thresholds[kept].any() else ())


def _values(points: Floats, exponents: Floats, thresholds: Floats) -> Floats:
    """(rows, terms) products of powers, less their thresholds and at least 0."""
    products = np.prod(points[:, None, :] ** exponents[None], axis=2)
    return np.asarray(np.maximum(products - thresholds, 0.0))


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
                                    or {len(e) for e in table.prior.exponents} != {len(table.axes)}
                                    or len(table.prior.thresholds) not in (0, len(table.prior.exponents))):
        raise TraceError("a prior needs times on a log scale, an exponent for each axis, and a threshold for each term "
                         "or none", where=where)
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
    def _terms(self) -> list[tuple[float, float, list[int]]]:
        """Coefficient and threshold of each term of the prior, and the axes in its product (twice for a square)."""
        assert self.prior is not None
        prior = self.prior
        return [(c, threshold, [i for i, e in enumerate(powers) for _ in range(e)])
                for c, threshold, powers in zip(prior.coefficients, prior.thresholds or itertools.repeat(0.0),
                                                prior.exponents, strict=False)]

    def _prior_at(self, x: Sequence[float]) -> float:
        total = 0.0
        for coefficient, threshold, factors in self._terms:
            product = 1.0
            for i in factors:
                product *= x[i]
            if product > threshold:
                total += coefficient * (product - threshold)
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


def held_out_errors(table: ProfileTable, axis: str, fit: Callable[[Floats, Floats], Prior | None] = Prior.fit
                    ) -> Floats:
    """Relative errors of predicting each interior value of ``axis`` from a table without it (one per row held out).

    A table with a prior gets a new one from what is left, by ``fit`` of points and seconds.

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
                       prior=None if table.prior is None else fit(points, seconds))
        predicted, rank = rest.many(*table.points[held].T)
        known = rank <= RANK["interpolated"]
        errors.append(predicted[known] / table.seconds[held][known] - 1)
    return np.concatenate(errors) if errors else np.empty(0)

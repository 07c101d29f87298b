"""One table in the making: the points of one op under one set of keys, and where its interpolation is least sure.

A series interpolates as its table will (``workbench.costs``): around a prior fitted to its points where leaving points
out says that this is the better way, else straight between them.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from profilers.family import GridAxis, Op
from profilers.harness import CROWDED, Measurement
from profilers.journal import Journal
from workbench.costs import Prior, ProfileTable, Provenance, held_out_errors
from workbench.costtables import Floats, Key

__all__ = ["At", "Series", "agreed"]

At = tuple[int, ...]
# Knots nearer than this ratio are not split: the difference would be noise.
_NARROWEST = 1.2
_EDGE = 2.0
_COMMITTEE = 0.5
# A point is measured at two times at least, and at most so often while they disagree.
_VISITS, _MOST_VISITS = 2, 4
_AGREE = 0.10


class Series:
    """Points of one op under one set of keys."""

    def __init__(self, op: Op, keys: Mapping[str, str | int]) -> None:
        self.op, self.keys = op, dict(keys)
        self._terms = op.prior_terms(self.keys)
        self.points: dict[At, Measurement] = {}
        self._visits: dict[At, list[Measurement]] = defaultdict(list)
        self.grid = dict(_by_level([a.start for a in op.axes]))
        self.levels = max(self.grid.values()) + 1
        self.failed: dict[At, str] = {}
        self.spent_s = 0.0
        self._worst: tuple[float, list[At]] | None = None
        self._prior: Prior | None = None
        self._shape: dict[At, float] = {}

    def label(self) -> str:
        """Op and keys in one short text."""
        return f"{self.op.name}({', '.join(f'{k}={v}' for k, v in self.keys.items())})"

    def point(self, at: At) -> dict[str, Any]:
        """Keys and axes by name."""
        return {**self.keys, **{axis.name: value for axis, value in zip(self.op.axes, at, strict=True)}}

    def recall(self, journal: Journal) -> int:
        """Take what the journal knows; returns how many points."""
        for at, found in journal.read(self.label()):
            self._visits[at].append(found)
            self.points[at] = agreed(self._visits[at])
        self._worst = None
        return len(self.points)

    def add(self, at: At, found: Measurement, journal: Journal) -> None:
        """Take one new measurement of a point."""
        journal.write(self.label(), at, found)
        self._visits[at].append(found)
        self.points[at] = agreed(self._visits[at])
        self._worst = None

    def give_up(self, at: At, error: Exception) -> None:
        """Never ask for a point again whose call cannot be made."""
        self.failed[at] = f"{type(error).__name__}: {error}"
        self._worst = None

    def missing(self, level: int) -> list[At]:
        """Points of the starting grid at one level that are not known yet."""
        return [at for at, its in self.grid.items() if its == level and at not in self.points and at not in self.failed]

    def noisy(self) -> list[At]:
        """Points that are marked as noisy."""
        return [at for at, found in self.points.items() if found.noise is not None]

    def visits(self, at: At) -> int:
        """At how many times a point was measured."""
        return len(self._visits[at])

    def unsure(self) -> list[At]:
        """Points to measure once more: those seen at one time only, and noisy ones not yet given up."""
        return [at for at, found in self.points.items() if at not in self.failed and len(self._visits[at]) < (
            _VISITS if found.noise is None else _MOST_VISITS)]

    def table(self, device: str, provenance: Provenance) -> ProfileTable:
        """The points as a profile table; every table is keyed by device."""
        keys: dict[str, Key] = {"device": device, **self.keys}
        points, seconds = self._arrays()
        return ProfileTable(op=self.op.name, keys=keys, axes=self.op.table_axes(), times=self.op.times, points=points,
                            seconds=seconds, prior=self.prior(), provenance=provenance)

    def errors(self) -> Floats:
        """Relative errors of the table at each point when all points with its value of one axis are left out."""
        whole = self.table("any", Provenance(id="", origin="", device="any"))
        return np.concatenate([held_out_errors(whole, axis.name, self._fit) for axis in self.op.axes])

    def prior(self) -> Prior | None:
        """The shape to interpolate around; absent where it would make predictions of left-out points worse.

        As long as no axis has three values, nothing can be left out, and what the op says of its shape is believed.
        """
        self._prior, self._shape = None, {}
        if self.op.times != "log":
            return None
        points, seconds = self._arrays()
        found = self._fit(points, seconds)
        if found is None:
            return None
        straight = self._mean_error()
        self._shape = dict(zip(self.points, found.seconds(points).tolist(), strict=True))
        if self._mean_error() < straight or (straight == math.inf and self._terms):
            self._prior = found
        else:
            self._shape = {}
        return self._prior

    def _fit(self, points: Floats, seconds: Floats) -> Prior | None:
        return Prior.fit(points, seconds, self._terms)

    def _mean_error(self) -> float:
        """Mean error of points left out of their lines; infinite where no line has three."""
        return float(np.mean([abs(e) for _, _, _, errors in self._left_out() for e, _ in errors] or [math.inf]))

    def _arrays(self) -> tuple[Floats, Floats]:
        return (np.array(list(self.points), dtype=float).reshape(len(self.points), len(self.op.axes)),
                np.array([m.median_s for m in self.points.values()]))

    def worst_gap(self) -> tuple[float, list[At]]:
        """(estimated error of interpolating in the least sure gap, the points to measure for it).

        Those are its ends as long as some were seen at one time only, later the points that split it: what a
        disturbance of seconds did to a knot looks like a bend, and the knots put around it would be for nothing.
        """
        if self._worst is None:
            self.prior()
            self._worst = max(self._gaps(), key=lambda gap: gap[0], default=(0.0, []))
        return self._worst

    def _gaps(self) -> Iterator[tuple[float, list[At]]]:
        for (j, prefix), group in itertools.groupby(self._left_out(), key=lambda row: row[:2]):
            size = {value: float(np.quantile([max(abs(e) - noise, 0.0) for e, noise in errors], 0.9))
                    for _, _, value, errors in group if errors}
            lines = self._lines(j)[prefix]
            values = sorted(lines)
            for low, high in itertools.pairwise(values):
                middle = _between(self.op.axes[j], low, high)
                if middle is None:
                    continue
                suffixes = sorted(lines[low] & lines[high])
                split = [at for suffix in suffixes if (at := (*prefix, middle, *suffix)) not in self.failed]
                if split:
                    share = _share(self.op.axes[j], low, middle, high)
                    ends = [((*prefix, low, *at[j + 1:]), (*prefix, high, *at[j + 1:])) for at in split]
                    doubt = [self._doubt(first, at, last, share) for at, (first, last) in zip(split, ends, strict=True)]
                    once = [at for pair in ends for at in pair if self.visits(at) < _VISITS and at not in self.failed]
                    yield (max(size.get(low, 0.0) / _EDGE, size.get(high, 0.0) / _EDGE, max(doubt) * _COMMITTEE),
                           once or split)

    def _doubt(self, low: At, middle: At, high: At, share: float) -> float:
        """How far apart the two ways of interpolating are in the middle of a gap."""
        if self._prior is None:
            return 0.0
        shape = float(self._prior.seconds(np.array([middle], dtype=float))[0])
        return abs(self._blend(low, high, share, shape) / self._blend(low, high, share, None) - 1)

    def _left_out(self) -> Iterator[tuple[int, At, int, list[tuple[float, float]]]]:
        """(axis, outer values, value left out, errors over the inner values all three lines have).

        An error is relative, and comes with what the uncertainty of the three points explains of it.
        """
        for j, axis in enumerate(self.op.axes):
            for prefix, lines in self._lines(j).items():
                for low, value, high in zip(s := sorted(lines), s[1:], s[2:], strict=False):
                    share = _share(axis, low, value, high)
                    both = lines[low] & lines[value] & lines[high]
                    yield j, prefix, value, [self._error(
                        ((*prefix, low, *x), (*prefix, value, *x), (*prefix, high, *x)), share) for x in both]

    def _error(self, line: tuple[At, At, At], share: float) -> tuple[float, float]:
        low, middle, high = (self.points[at] for at in line)
        noise = middle.half_width + (1 - share) * low.half_width + share * high.half_width
        return self._blend(line[0], line[2], share, self._shape.get(line[1])) / middle.median_s - 1, noise

    def _blend(self, low: At, high: At, share: float, shape_s: float | None) -> float:
        """Seconds between two points as the table would say; ``shape_s``: of the prior there, absent: straight."""
        low_s, high_s = self.points[low].median_s, self.points[high].median_s
        if self.op.times != "log":
            return (1 - share) * low_s + share * high_s
        if shape_s is None:
            return math.exp((1 - share) * math.log(low_s) + share * math.log(high_s))
        found = shape_s * math.exp((1 - share) * math.log(low_s / self._shape[low])
                                   + share * math.log(high_s / self._shape[high]))
        return min(max(found, min(low_s, high_s)), max(low_s, high_s))

    def _lines(self, j: int) -> dict[At, dict[int, set[At]]]:
        """outer values -> value of axis ``j`` -> inner values measured there."""
        lines: dict[At, dict[int, set[At]]] = defaultdict(lambda: defaultdict(set))
        for at in self.points:
            lines[at[:j]][at[j]].add(at[j + 1:])
        return lines


def agreed(visits: Sequence[Measurement]) -> Measurement:
    """What several measurements of one point, taken at different times, say together.

    Whatever disturbs a measurement makes it longer, also for the whole of its fraction of a second: the least median
    of those without noise counts, and is marked when the next one is not near it. Where other programs ran every time,
    their blocks that nothing interrupted are the nearest to the truth: the least of all counts, and stays marked. What
    varies by itself (bimodal, too wide) counts with its tightest median.
    """
    clean = sorted((m for m in visits if m.noise is None), key=lambda m: m.median_s)
    if not clean:
        crowded = [m for m in visits if m.noise is not None and m.noise.startswith(CROWDED)]
        if len(crowded) < len(visits):
            return min(visits, key=lambda m: m.half_width)
        least = min(crowded, key=lambda m: m.min_s)
        return replace(least, median_s=least.min_s, interval_s=(least.min_s, least.interval_s[1]))
    if len(clean) > 1 and clean[1].median_s > clean[0].median_s * (1 + _AGREE):
        apart = clean[1].median_s / clean[0].median_s - 1
        return replace(clean[0], noise=f"{apart:.0%} apart at different times")
    return clean[0]


def _share(axis: GridAxis, low: float, value: float, high: float) -> float:
    if axis.scale == "log":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _between(axis: GridAxis, low: int, high: int) -> int | None:
    """The value that may be measured half-way in the axis' own scale; absent when the gap is too narrow."""
    if axis.scale == "log" and high / low < _NARROWEST**2:
        return None
    middle = axis.nearest(math.sqrt(low * high) if axis.scale == "log" else (low + high) / 2)
    return middle if low < middle < high else None


def _by_level(starts: list[tuple[int, ...]]) -> list[tuple[At, int]]:
    """All points of a grid with the round in which they are measured: corners first, then ever finer."""
    depth = [{i: _depth(i, len(values)) for i in range(len(values))} for values in starts]
    cells = itertools.product(*(range(len(values)) for values in starts))
    return [(tuple(values[i] for values, i in zip(starts, cell, strict=True)),
             max((d[i] for d, i in zip(depth, cell, strict=True)), default=0)) for cell in cells]


def _depth(index: int, count: int) -> int:
    """0 for both ends, 1 for the middle, 2 for the quarters …"""
    low, high, level = 0, count - 1, 0
    while index not in (low, high):
        middle = (low + high) // 2
        low, high = (low, middle) if index <= middle else (middle, high)
        level += 1
    return level

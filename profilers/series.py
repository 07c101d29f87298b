"""One table in the making: the points of one op under one set of keys, and where its interpolation is least sure.

A series interpolates as its table will (``workbench.costs``): around a prior fitted to its points where leaving points
out says that this is the better way, else straight between them.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from profilers.family import GridAxis, Op
from profilers.harness import Measurement
from profilers.journal import Journal
from workbench.costs import Floats, Key, Prior, ProfileTable, Provenance, held_out_errors

__all__ = ["Series"]

At = tuple[int, ...]
# Knots nearer than this ratio are not split: the difference would be noise.
_NARROWEST = 1.2
_EDGE = 4.0


class Series:
    """Points of one op under one set of keys."""

    def __init__(self, op: Op, keys: Mapping[str, str | int]) -> None:
        self.op, self.keys = op, dict(keys)
        self.points: dict[At, Measurement] = {}
        self.grid = dict(_by_level([a.start for a in op.axes]))
        self.levels = max(self.grid.values()) + 1
        self._again: set[At] = set()
        self._worst: tuple[float, list[At]] | None = None
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
            self.points[at] = found
        self._worst = None
        return len(self.points)

    def add(self, at: At, found: Measurement, journal: Journal) -> None:
        """Take one new point; a second measurement replaces the first when it is less noisy or tighter."""
        old = self.points.get(at)
        if old is not None:
            self._again.add(at)
        if old is None or found.noise is None or found.half_width < old.half_width:
            self.points[at] = found
            journal.write(self.label(), at, found)
        self._worst = None

    def missing(self, level: int) -> list[At]:
        """Points of the starting grid at one level that are not known yet."""
        return [at for at, its in self.grid.items() if its == level and at not in self.points]

    def noisy(self) -> list[At]:
        """Points that are marked as noisy and were not tried again in this campaign."""
        return [at for at, found in self.points.items() if found.noise is not None and at not in self._again]

    def table(self, device: str, provenance: Provenance) -> ProfileTable:
        """The points as a profile table; every table is keyed by device."""
        keys: dict[str, Key] = {"device": device, **self.keys}
        points, seconds = self._arrays()
        return ProfileTable(op=self.op.name, keys=keys, axes=self.op.table_axes(), times=self.op.times, points=points,
                            seconds=seconds, prior=self.prior(), provenance=provenance)

    def errors(self) -> Floats:
        """Relative errors of the table at each point when all points with its value of one axis are left out."""
        whole = self.table("any", Provenance(id="", origin="", device="any"))
        return np.concatenate([held_out_errors(whole, axis.name) for axis in self.op.axes])

    def prior(self) -> Prior | None:
        """The shape to interpolate around; absent where it would make predictions of left-out points worse."""
        if self.op.times != "log":
            return None
        points, seconds = self._arrays()
        found = Prior.fit(points, seconds)
        if found is None:
            return None
        self._shape = {}
        straight = self._mean_error()
        self._shape = dict(zip(self.points, found.seconds(points).tolist(), strict=True))
        return found if self._mean_error() < straight else None

    def _mean_error(self) -> float:
        return float(np.mean([abs(e) for _, _, _, errors in self._left_out() for e in errors] or [0.0]))

    def _arrays(self) -> tuple[Floats, Floats]:
        return (np.array(list(self.points), dtype=float).reshape(len(self.points), -1),
                np.array([m.median_s for m in self.points.values()]))

    def worst_gap(self) -> tuple[float, list[At]]:
        """(estimated error of interpolating in the least sure gap, the points that would split it)."""
        if self._worst is None:
            if self.prior() is None:
                self._shape = {}
            self._worst = max(self._gaps(), key=lambda gap: gap[0], default=(0.0, []))
        return self._worst

    def _gaps(self) -> Iterator[tuple[float, list[At]]]:
        for (j, prefix), group in itertools.groupby(self._left_out(), key=lambda row: row[:2]):
            size = {value: float(np.quantile(np.abs(errors), 0.9)) for _, _, value, errors in group if len(errors)}
            lines = self._lines(j)[prefix]
            values = sorted(lines)
            for low, high in itertools.pairwise(values):
                middle = _between(self.op.axes[j], low, high)
                if middle is None:
                    continue
                suffixes = sorted(lines[low].keys() & lines[high].keys())
                yield (max(size.get(low, 0.0), size.get(high, 0.0)) / _EDGE,
                       [(*prefix, middle, *suffix) for suffix in suffixes])

    def _left_out(self) -> Iterator[tuple[int, At, int, list[float]]]:
        """(axis, outer values, value left out, relative errors over the inner values all three lines have)."""
        for j, axis in enumerate(self.op.axes):
            for prefix, lines in self._lines(j).items():
                for low, value, high in zip(s := sorted(lines), s[1:], s[2:], strict=False):
                    share = _share(axis, low, value, high)
                    both = lines[low].keys() & lines[value].keys() & lines[high].keys()
                    errors = [self._blend(((*prefix, low, *x), (*prefix, value, *x), (*prefix, high, *x)), share)
                              / lines[value][x] - 1 for x in both]
                    yield j, prefix, value, errors

    def _blend(self, line: tuple[At, At, At], share: float) -> float:
        """Seconds at the middle of three points from the outer two, as the table would say."""
        low_s, high_s = (self.points[at].median_s for at in (line[0], line[2]))
        if self.op.times != "log":
            return (1 - share) * low_s + share * high_s
        if not self._shape:
            return math.exp((1 - share) * math.log(low_s) + share * math.log(high_s))
        low, middle, high = (self._shape[at] for at in line)
        found = middle * math.exp((1 - share) * math.log(low_s / low) + share * math.log(high_s / high))
        return min(max(found, min(low_s, high_s)), max(low_s, high_s))

    def _lines(self, j: int) -> dict[At, dict[int, dict[At, float]]]:
        """outer values -> value of axis ``j`` -> inner values -> seconds."""
        lines: dict[At, dict[int, dict[At, float]]] = defaultdict(lambda: defaultdict(dict))
        for at, found in self.points.items():
            lines[at[:j]][at[j]][at[j + 1:]] = found.median_s
        return lines


def _share(axis: GridAxis, low: float, value: float, high: float) -> float:
    if axis.scale == "log":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _between(axis: GridAxis, low: int, high: int) -> int | None:
    """The value half-way in the axis' own scale, a multiple of its step; absent when the gap is too narrow."""
    if axis.scale == "log" and high / low < _NARROWEST**2:
        return None
    exact = math.sqrt(low * high) if axis.scale == "log" else (low + high) / 2
    middle = round(exact / axis.step) * axis.step
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

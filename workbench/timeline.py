"""What ran where and when: spans on the streams of devices, with what each waited for.

A span occupies one lane, a (device, stream) pair, from ``start_s`` to ``end_s``; spans of one lane never overlap, and
a span starts no earlier than every span in its ``after`` ends. ``violations`` checks both. A ``Level`` is a step
function of time that stands beside the spans: memory in use, requests in flight.

Columns are NumPy arrays, so that a million spans are a few tens of megabytes. The files are Chrome Trace Event JSON
(opens in ui.perfetto.dev) and Parquet; both come back equal to what was written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from workbench.errors import SpecError
from workbench.plan import Violation

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Lane", "Level", "Span", "Timeline", "natural_key"]

RESERVED = frozenset({"id", "bytes", "after", "at_s"})


class Lane(NamedTuple):
    """Where one thing happens at a time: a stream of a device, a channel of a link."""

    device: str
    stream: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One piece of work.

    ``bytes`` is what it moves; ``after`` holds the positions, in the same timeline, of the spans it waited for;
    ``args`` are facts for whoever looks at the trace (JSON values).
    """

    device: str
    stream: str
    name: str
    start_s: float
    end_s: float
    bytes: int = 0
    after: tuple[int, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """Length of the span in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """A step function: the value is ``value[i]`` from ``time_s[i]`` (ascending) until ``time_s[i + 1]``."""

    name: str
    unit: str
    device: str
    time_s: np.ndarray
    value: np.ndarray

    def __post_init__(self) -> None:
        for column in ("time_s", "value"):
            object.__setattr__(self, column, _frozen(getattr(self, column), np.float64))
        if self.time_s.shape != self.value.shape or self.time_s.ndim != 1:
            raise SpecError("time_s and value must be two columns of one length", where=f"level {self.name}")
        if not (np.isfinite(self.time_s).all() and np.isfinite(self.value).all()):
            raise SpecError("times and values must be finite", where=f"level {self.name}")
        if (np.diff(self.time_s) < 0).any():
            raise SpecError("times must not descend", where=f"level {self.name}")

    @property
    def peak(self) -> float:
        """Largest value; 0 for an empty level."""
        return float(self.value.max()) if self.value.size else 0.0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Level):
            return NotImplemented
        return self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def key(self) -> tuple[str, str, str, bytes, bytes]:
        """Everything the level says, for comparisons."""
        return self.name, self.unit, self.device, self.time_s.tobytes(), self.value.tobytes()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Timeline:
    """Spans in columns; build it from a list with ``from_spans`` or pass the columns.

    ``lanes[lane[i]]`` and ``names[name[i]]`` say where span i ran and what it is called; it waited for the spans
    ``after[after_from[i]:after_from[i + 1]]``. ``args`` holds only the spans that have some.

    Raises:
        SpecError: columns of different lengths, positions that do not exist, times that are not finite.
    """

    lanes: tuple[Lane, ...]
    lane: np.ndarray
    names: tuple[str, ...]
    name: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    bytes: np.ndarray
    after_from: np.ndarray
    after: np.ndarray
    args: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    levels: tuple[Level, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "lanes", tuple(Lane(*lane) for lane in self.lanes))
        for column, dtype in (("lane", np.int32), ("name", np.int32), ("start_s", np.float64), ("end_s", np.float64),
                              ("bytes", np.int64), ("after_from", np.int64), ("after", np.int64)):
            object.__setattr__(self, column, _frozen(getattr(self, column), dtype))
        self._require(all(len(c) == len(self) for c in (self.lane, self.name, self.end_s, self.bytes)),
                      "every column needs one entry a span")
        self._require(len(self.after_from) == len(self) + 1 and self.after_from[0] == 0
                      and self.after_from[-1] == len(self.after) and bool((np.diff(self.after_from) >= 0).all()),
                      "after_from must ascend from 0 to the length of after, one entry more than spans")
        for label, ids, size in (("lane", self.lane, len(self.lanes)), ("name", self.name, len(self.names)),
                                 ("after", self.after, len(self))):
            self._require(ids.size == 0 or (ids.min() >= 0 and ids.max() < size),
                          f"{label} points outside 0 … {size - 1}")
        self._require(bool(np.isfinite(self.start_s).all() and np.isfinite(self.end_s).all()),
                      "start_s and end_s must be finite")
        taken = sorted({key for args in self.args.values() for key in args} & RESERVED)
        self._require(not taken, f"args may not be called {', '.join(taken)}")

    def _require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise SpecError(rule, where="timeline")

    @classmethod
    def from_spans(cls, spans: Iterable[Span], *, levels: Sequence[Level] = ()) -> Timeline:
        """Columns of ``spans``, in their order; lanes are sorted by name with numbers in numeric order."""
        spans = list(spans)
        lanes = sorted({Lane(s.device, s.stream) for s in spans}, key=lambda lane: [natural_key(part) for part in lane])
        lane_id = {lane: i for i, lane in enumerate(lanes)}
        name_id: dict[str, int] = {}
        return cls(
            lanes=tuple(lanes),
            lane=np.array([lane_id[Lane(s.device, s.stream)] for s in spans], np.int32),
            name=np.array([name_id.setdefault(s.name, len(name_id)) for s in spans], np.int32),
            names=tuple(name_id),
            start_s=np.array([s.start_s for s in spans], np.float64),
            end_s=np.array([s.end_s for s in spans], np.float64),
            bytes=np.array([s.bytes for s in spans], np.int64),
            after_from=np.cumsum([0, *(len(s.after) for s in spans)]),
            after=np.array([a for s in spans for a in s.after], np.int64),
            args={i: dict(s.args) for i, s in enumerate(spans) if s.args},
            levels=tuple(levels),
        )

    @classmethod
    def merge(cls, timelines: Iterable[Timeline]) -> Timeline:
        """One timeline of several (the ranks of a run); span positions shift, times stay as they are."""
        spans: list[Span] = []
        levels: list[Level] = []
        for part in timelines:
            shift = len(spans)
            spans += [_shifted(span, shift) for span in part]
            levels += part.levels
        return cls.from_spans(spans, levels=levels)

    def __len__(self) -> int:
        return len(self.start_s)

    def __getitem__(self, i: int) -> Span:
        i = range(len(self))[i]
        device, stream = self.lanes[self.lane[i]]
        return Span(device=device, stream=stream, name=self.names[self.name[i]], start_s=float(self.start_s[i]),
                    end_s=float(self.end_s[i]), bytes=int(self.bytes[i]), after=self.waited_for(i),
                    args=self.args.get(i, {}))

    def __iter__(self) -> Iterator[Span]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Timeline):
            return NotImplemented
        return self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"<Timeline: {len(self)} spans on {len(self.lanes)} lanes, {self.makespan_s:.6g} s>"

    def _repr_html_(self) -> str:
        """The Gantt chart, in a notebook."""
        from workbench import notebook

        return notebook.timeline(self)

    def waited_for(self, i: int) -> tuple[int, ...]:
        """Positions of the spans that span ``i`` waited for."""
        return tuple(self.after[self.after_from[i]:self.after_from[i + 1]].tolist())

    def digest(self) -> str:
        """sha256 of everything the timeline says; equal timelines, and only those, have equal digests."""
        lanes, lane = _ranked(self.lanes, self.lane)
        names, name = _ranked(self.names, self.name)
        head = json.dumps([sorted(self.lanes), lanes, names, sorted(self.args.items())], sort_keys=True, default=repr)
        state = hashlib.sha256(head.encode())
        for column in (lane, name, self.start_s, self.end_s, self.bytes, self.after_from, self.after):
            state.update(column.tobytes())
        for level in self.levels:
            state.update(repr(level.key()).encode())
        return state.hexdigest()

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices, in the order of their lanes."""
        return tuple(dict.fromkeys(lane.device for lane in self.lanes))

    @property
    def begin_s(self) -> float:
        """Start of the first span; 0 for an empty timeline."""
        return float(self.start_s.min()) if len(self) else 0.0

    @property
    def makespan_s(self) -> float:
        """From the start of the first span to the end of the last."""
        return float(self.end_s.max()) - self.begin_s if len(self) else 0.0

    def busy_s(self, device: str) -> float:
        """Seconds during which at least one stream of ``device`` runs a span."""
        mine = np.flatnonzero(self._on(device))
        if not mine.size:
            return 0.0
        order = mine[np.argsort(self.start_s[mine], kind="stable")]
        start, reach = self.start_s[order], np.maximum.accumulate(self.end_s[order])
        idle = np.maximum(0.0, start[1:] - reach[:-1]).sum()
        return float(reach[-1] - start[0] - idle)

    def busy_share(self) -> dict[str, float]:
        """Per device, the share of the makespan in which at least one of its streams is busy; 0 … 1."""
        whole = self.makespan_s
        return {device: self.busy_s(device) / whole if whole > 0 else 0.0 for device in self.devices}

    def peak_bytes(self, device: str | None = None) -> int:
        """Largest sum of ``bytes`` over spans running at one time, on one device or on all together."""
        long = self.end_s > self.start_s
        chosen = np.flatnonzero(long if device is None else long & self._on(device))
        times = np.concatenate([self.start_s[chosen], self.end_s[chosen]])
        change = np.concatenate([self.bytes[chosen], -self.bytes[chosen]])
        # At one instant what ends leaves before what starts arrives.
        running = np.cumsum(change[np.lexsort((change > 0, times))])
        return max(0, int(running.max())) if running.size else 0

    def critical_path(self) -> tuple[int, ...]:
        """Positions of the spans that made the last one end when it did, first span first.

        Walks back from the span that ends last, each time to the latest-ending span among those it waited for and
        the one before it on its lane.
        """
        if not len(self):
            return ()
        order = self._by_lane()
        before = np.full(len(self), -1)
        before[order[1:]] = np.where(self.lane[order[1:]] == self.lane[order[:-1]], order[:-1], -1)
        at = int(np.argmax(self.end_s))
        path = [at]
        seen = {at}
        while True:
            candidates = {*self.waited_for(at), int(before[at])} - seen - {-1}
            if not candidates:
                return tuple(reversed(path))
            at = max(sorted(candidates), key=lambda i: self.end_s[i])
            seen.add(at)
            path.append(at)

    def violations(self, *, tolerance_s: float = 0.0, at_most: int = 1000) -> list[Violation]:
        """Broken rules, each rule's first ``at_most``: 'length', 'overlap' (one lane), 'dependency'.

        ``tolerance_s`` forgives the skew between the clocks of a measured run; a simulated one needs none.
        """
        return [*self._reversed_spans(at_most), *self._overlaps(tolerance_s, at_most),
                *self._early_starts(tolerance_s, at_most)]

    def _reversed_spans(self, at_most: int) -> Iterator[Violation]:
        for i in np.flatnonzero(self.end_s < self.start_s)[:at_most]:
            yield Violation(rule="length", where=self._place(i),
                            detail=f"ends at {self.end_s[i]:.9g} s, before its start at {self.start_s[i]:.9g} s")

    def _overlaps(self, tolerance_s: float, at_most: int) -> Iterator[Violation]:
        order = self._by_lane()
        lane, start, end = self.lane[order], self.start_s[order], self.end_s[order]
        for first in np.flatnonzero(np.r_[True, lane[1:] != lane[:-1]]) if len(order) else ():
            mine = slice(first, int(np.searchsorted(lane, lane[first], side="right")))
            reach = np.maximum.accumulate(end[mine])
            for k in np.flatnonzero(start[mine][1:] < reach[:-1] - tolerance_s):
                if at_most <= 0:
                    return
                at_most -= 1
                i = order[mine][k + 1]
                holder = order[mine][int(np.argmax(end[mine][:k + 1]))]
                yield Violation(rule="overlap", where=self._place(i),
                                detail=f"starts at {self.start_s[i]:.9g} s while {self.names[self.name[holder]]} runs "
                                       f"until {self.end_s[holder]:.9g} s")

    def _early_starts(self, tolerance_s: float, at_most: int) -> Iterator[Violation]:
        waiting = np.repeat(np.arange(len(self)), np.diff(self.after_from))
        early = np.flatnonzero(self.start_s[waiting] < self.end_s[self.after] - tolerance_s)
        for k in early[:at_most]:
            i, j = waiting[k], self.after[k]
            yield Violation(rule="dependency", where=self._place(i),
                            detail=f"starts at {self.start_s[i]:.9g} s, before {self._place(j)} ends at "
                                   f"{self.end_s[j]:.9g} s")

    def _place(self, i: int) -> str:
        device, stream = self.lanes[self.lane[i]]
        return f"{self.names[self.name[i]]} on {device}/{stream}"

    def _on(self, device: str) -> np.ndarray:
        of_device = np.array([lane.device == device for lane in self.lanes], bool)
        return of_device[self.lane] if len(self) else np.zeros(0, bool)

    def _by_lane(self) -> np.ndarray:
        return np.lexsort((self.end_s, self.start_s, self.lane))

    def to_frame(self) -> pd.DataFrame:
        """One row a span: device, stream, name, start_s, end_s, bytes, after (tuple of row numbers), args (mapping)."""
        import pandas as pd

        return pd.DataFrame({
            "device": self._texts([lane.device for lane in self.lanes], self.lane),
            "stream": self._texts([lane.stream for lane in self.lanes], self.lane),
            "name": self._texts(self.names, self.name),
            "start_s": self.start_s, "end_s": self.end_s, "bytes": self.bytes,
            "after": [self.waited_for(i) for i in range(len(self))],
            "args": [self.args.get(i, {}) for i in range(len(self))],
        })

    @staticmethod
    def _texts(table: Sequence[str], ids: np.ndarray) -> pd.Categorical:
        import pandas as pd

        texts, ranks = _ranked(table, ids)
        return pd.Categorical.from_codes(ranks, categories=texts)

    def to_parquet(self, path: Path | str) -> Path:
        """Write spans, one row each, and levels (in the schema's metadata); the file is whole or absent."""
        from workbench.tracefiles import write_parquet

        return write_parquet(self, Path(path))

    @classmethod
    def from_parquet(cls, path: Path | str) -> Timeline:
        """Read what ``to_parquet`` wrote.

        Raises:
            TraceError: not a Parquet file, or not one of a timeline.
        """
        from workbench.tracefiles import read_parquet

        return read_parquet(Path(path))

    def to_chrome_trace(self, path: Path | str) -> Path:
        """Write Chrome Trace Event JSON (gzip if the name ends in .gz); the file is whole or absent."""
        from workbench.tracefiles import write_chrome_trace

        return write_chrome_trace(self, Path(path))

    @classmethod
    def from_chrome_trace(cls, path: Path | str) -> Timeline:
        """Read what ``to_chrome_trace`` wrote, or the X, B and E events of any other Chrome trace.

        Raises:
            TraceError: no JSON, no trace events, or events without the fields they need (the message names them).
        """
        from workbench.tracefiles import read_chrome_trace

        return read_chrome_trace(Path(path))


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort key under which ``gpu2`` comes before ``gpu10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _frozen(values: Any, dtype: type) -> np.ndarray:
    column: np.ndarray = np.array(values, dtype)
    column.setflags(write=False)
    return column


def _ranked(table: Sequence[Any], ids: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The entries of ``table`` that ``ids`` uses, sorted and without repeats, and ``ids`` as positions among them."""
    used = sorted({table[i] for i in np.unique(ids)})
    rank = {entry: k for k, entry in enumerate(used)}
    return used, np.array([rank.get(entry, -1) for entry in table], np.int64)[ids] if used else ids


def _shifted(span: Span, shift: int) -> Span:
    return Span(device=span.device, stream=span.stream, name=span.name, start_s=span.start_s, end_s=span.end_s,
                bytes=span.bytes, after=tuple(a + shift for a in span.after), args=span.args)

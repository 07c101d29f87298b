"""A profiling campaign: cover every op's grid, refine where interpolation is least sure, until time is up.

Order: corners of every grid first, round robin over the ops, then the values between, of ops that use one CPU and of
those that use all; then the gap with the largest estimated error of interpolation for the time its table has had (its
ends once more before it is split), in turn with points to see again: every point is seen at two times at least (a
disturbance of seconds looks like a steady kernel), noisy ones at up to four. It ends when every gap is below the target
and every point was seen often enough.

A gap's estimate is half the leave-one-out error at its ends beyond what noise explains (leaving one out doubles the
distance of the knots, and at a kink the error grows with that distance), or half of what the two ways of interpolating
differ by in its middle, whichever is larger. Every point goes to a journal at once, so an interrupted campaign goes on
where it stopped; tables are written at the end, also after an interrupt.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profilers.datasheet import write_device
from profilers.family import Prepared, ops_of
from profilers.harness import (
    WATCHED_S,
    Conditions,
    CpuTimer,
    CudaTimer,
    Timer,
    available_cpus,
    fixed_conditions,
    measure,
)
from profilers.journal import Journal
from profilers.series import At, Series
from workbench.costfiles import load_tables, remove_stale, save_tables
from workbench.costs import Provenance
from workbench.errors import WorkbenchError
from workbench.runs import machine_facts, versions
from workbench.spec import content_id

__all__ = ["Campaign", "conditions_text", "measured"]

_POINT_S = 0.25
_TRY_S = 0.12
_TARGET = 0.02
_HEAD_START_S = 2.0
_SHOW_S = 5.0
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "sve", "asimd")

Say = Callable[[str], None]


class Campaign:
    """What will be measured on one device into one folder, and the measuring.

    Args:
        names: families or ops; none means all that run on the device.
        device: ``cpu`` or ``cuda``. ``left_out`` says which ops it cannot run here, and why.
        folder: the profile folder; its journal is read, so that nothing is measured twice.
        error_target: estimated interpolation error below which a gap is left alone.

    Raises:
        SpecError: no such family or op.
        WorkbenchError: no CUDA device.
    """

    def __init__(self, names: Iterable[str], *, device: str, folder: Path | str, error_target: float = 0.03) -> None:
        if device == "cuda":
            CudaTimer()
        self.device, self.folder, self.error_target = device, Path(folder), error_target
        found = ops_of(list(names), device)
        self.left_out = {op.name: why for _, op in found if (why := op.lacking(device)) is not None}
        found = [(family, op) for family, op in found if op.name not in self.left_out]
        if not found:
            reasons = "; ".join(f"{name} {why}" for name, why in self.left_out.items())
            raise WorkbenchError(f"none of these kernels runs on {device}" + (f": {reasons}" if reasons else ""))
        self.family_of = {op.name: family for family, op in found}
        self.series = [Series(op, keys) for _, op in found for keys in op.variants]

    @property
    def section(self) -> str:
        """The ``[costs]`` section that reads what was measured."""
        return f'source = "measured", folder = "{self.folder}"'

    def plan_rows(self) -> list[dict[str, Any]]:
        """What will be measured: op, tables, points of the starting grids, and the least time for them."""
        rows: dict[str, dict[str, Any]] = {}
        for series in self.series:
            row = rows.setdefault(series.op.name, {"op": series.op.name, "what": series.op.about, "tables": 0,
                                                   "points": 0})
            row["tables"] += 1
            row["points"] += len(series.grid)
        return [{**row, "about_s": round(row["points"] * _POINT_S)} for row in rows.values()]

    def run(self, budget_s: float, say: Say) -> list[dict[str, Any]]:
        """Measure until the target is met or ``budget_s`` is spent; writes the tables and returns their summary.

        Ops that use all CPUs are measured apart from those that use one: first the starting grids of all, then the
        rest of the budget is divided by the seconds that these took; what the first leave over, the others have.
        """
        deadline = time.monotonic() + budget_s
        groups = [self._group(threads, [s for s in self.series if s.op.threads == threads], say)
                  for threads in sorted({s.op.threads for s in self.series}, reverse=True)]
        try:
            for group in groups:
                self._measure(group, _covering(group.series), deadline, "the starting grids are covered", say)
            for i, group in enumerate(groups):
                share = group.weight() / sum(later.weight() for later in groups[i:])
                until = time.monotonic() + share * max(0.0, deadline - time.monotonic())
                self._measure(group, _refining(group.series, self.error_target), until,
                              f"every gap is estimated below {self.error_target:.0%}, or cannot be split", say)
        finally:
            for finish in {s.op.finish for s in self.series if s.op.finish is not None}:
                finish()
            rows = [row for group in groups for row in self._save(group.series, group.facts)]
        if self.device == "cpu" and rows:
            write_device(self.folder, load_tables(self.folder), name=self.device, date=_today())
        return rows

    def _group(self, threads: int, series: Sequence[Series], say: Say) -> _Group:
        """Series with what earlier runs under the same conditions measured."""
        threads = threads or len(available_cpus())
        with fixed_conditions(device=self.device, threads=threads) as conditions:
            facts = conditions_text(conditions)
        journal = Journal(self.folder / "journal.jsonl", content_id(list(facts)))
        cpus = ", ".join(map(str, conditions.cpus))
        say(f"{len(series)} tables on {conditions.device}, {threads} thread{'s' * (threads > 1)} bound to CPU "
            f"{cpus}; malloc: {conditions.malloc}")
        known = sum(s.recall(journal) for s in series)
        if known:
            say(f"{known} points of an earlier run under the same conditions are kept")
        return _Group(threads, series, facts, journal)

    def _measure(self, group: _Group, turns: Iterator[tuple[Series, At, str]], deadline: float, achieved: str,
                 say: Say) -> None:
        with fixed_conditions(device=self.device, threads=group.threads):
            timer: Timer = CpuTimer() if self.device == "cpu" else CudaTimer()
            started, done, shown = time.monotonic(), 0, time.monotonic()
            for series, at, why in turns:
                if time.monotonic() > deadline:
                    say(f"the budget is spent after {done} measurements")
                    return
                done += 1
                self._visit(series, at, timer, group.journal, say)
                if time.monotonic() - shown > _SHOW_S:
                    shown = time.monotonic()
                    noisy = sum(len(s.noisy()) for s in group.series)
                    say(f"{done} measurements in {shown - started:.0f} s, at most {max(0.0, deadline - shown):.0f} s "
                        f"left{f', {noisy} points noisy' if noisy else ''}; {why} {series.label()}")
        say(f"{done} measurements; {achieved}")

    def _visit(self, series: Series, at: At, timer: Timer, journal: Journal, say: Say) -> None:
        """Measure one point; one kernel's fault must not cost what the others have measured."""
        began = time.monotonic()
        try:
            found = measured(series, at, self.device, timer)
        except Exception as error:
            series.give_up(at, error)
            say(f"cannot be measured: {series.label()} at {at}: {type(error).__name__}: {error}")
        else:
            series.add(at, found, journal)
        series.spent_s += time.monotonic() - began

    def _save(self, measured: Sequence[Series], facts: tuple[str, ...]) -> list[dict[str, Any]]:
        tables, rows = [], []
        today = _today()
        for series in measured:
            if not series.points:
                continue
            errors = np.abs(series.errors())
            middle, high = (float(np.quantile(errors, q)) if len(errors) else None for q in (0.5, 0.9))
            name = content_id([series.label(), list(facts), today])
            where = Provenance(id=name, origin="this machine", device=self.device, date=today, conditions=facts,
                               error_median=middle, error_p90=high, error_point=float(np.quantile(
                                   [m.half_width for m in series.points.values()], 0.9)))
            tables.append(series.table(self.device, where))
            rows.append({"table": series.label(), "points": len(series.points), "noisy": len(series.noisy()),
                         "error_median": middle, "error_p90": high})
        if tables:
            written = save_tables(self.folder, tables)
            remove_stale(self.folder, written, {t.op for t in tables}, device=self.device)
        return rows


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


@dataclass(frozen=True)
class _Group:
    """Series that are measured under one set of conditions."""

    threads: int
    series: Sequence[Series]
    facts: tuple[str, ...]
    journal: Journal

    def weight(self) -> float:
        """Seconds spent on it so far; a millisecond a point where an earlier run had measured all."""
        return sum(max(s.spent_s, 1e-3 * len(s.grid)) for s in self.series)


def _covering(wanted: Sequence[Series]) -> Iterator[tuple[Series, At, str]]:
    """Corners of every starting grid, round robin over the series, then the values between."""
    for level in range(max(s.levels for s in wanted)):
        queues = [[(series, at) for at in series.missing(level)] for series in wanted]
        for turn in itertools.zip_longest(*queues):
            for series, at in filter(None, turn):
                yield series, at, "covering"


def _refining(wanted: Sequence[Series], error_target: float) -> Iterator[tuple[Series, At, str]]:
    """The next points, most useful first; ends when every gap is sure enough and every point was seen again."""
    while True:
        gap, again = _least_sure(wanted, error_target), _to_see_again(wanted)
        if not gap and not again:
            return
        for batch, why in ((gap, "refining"), (again[:max(len(gap), 1)], "measuring again")):
            for series, at in batch:
                yield series, at, why


def _least_sure(wanted: Sequence[Series], error_target: float) -> list[tuple[Series, At]]:
    """The points to measure for the least sure gap; none when every gap is sure enough.

    Gaps count less the longer their table was measured, so that a kernel whose time is no smooth curve (a library that
    changes its ways from size to size) does not use up the time of all others.
    """
    open_gaps = [s for s in wanted if s.worst_gap()[0] > error_target]
    series = max(open_gaps, key=lambda s: s.worst_gap()[0] / (_HEAD_START_S + s.spent_s), default=None)
    return [] if series is None else [(series, at) for at in series.worst_gap()[1]]


def _to_see_again(wanted: Sequence[Series]) -> list[tuple[Series, At]]:
    """Points to measure at another time: those seen least often first, of these the noisy ones."""
    found = [(series, at) for series in wanted for at in series.unsure()]
    return sorted(found, key=lambda turn: (turn[0].visits(turn[1]), turn[0].points[turn[1]].noise is None))


def measured(series: Series, at: At, device: str, timer: Timer) -> Any:
    """Measure one point; the arguments of every point are drawn from the same seed.

    Any other program disturbs a kernel that uses all CPUs, so these are watched for long enough to tell.
    """
    made: Prepared = series.op.prepare(series.point(at), device, np.random.default_rng(0))
    try:
        return measure(made.run, timer=made.timer or timer, target=_TARGET, seconds=_TRY_S, attempts=1,
                       least_s=WATCHED_S if series.op.threads == 0 else 0.0)
    finally:
        if made.close is not None:
            made.close()


def conditions_text(conditions: Conditions) -> tuple[str, ...]:
    """What was held fixed, as ``key=value`` texts: device, processor and its flags, threads, allocator, versions."""
    facts = machine_facts()
    found = {"device": conditions.device, "cpu": facts["cpu"], "cpu_flags": " ".join(cpu_flags()),
             "threads": conditions.threads, "malloc": conditions.malloc,
             **{f"version.{name}": v for name, v in versions().items() if name in ("torch", "numpy", "triton", "cupy")}}
    return tuple(f"{key}={value}" for key, value in found.items())


def cpu_flags() -> list[str]:
    """Those vector and matrix extensions of the processor that decide which kernels its libraries choose."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    line = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    present = set(line.partition(":")[2].split())
    return [flag for flag in _FLAGS if flag in present]


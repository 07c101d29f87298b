"""The page of rooflines of a profile folder: measured points against this machine's measured peaks, family by family.

Roofline model: Williams et al., CACM 2009. The roofs are the best rates found among the points themselves: arithmetic
of ``gemm`` and bytes of ``memory_copy``. Both are therefore what one measured thread count reached, not a data sheet's.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from profilers.family import Op, families
from workbench.costfiles import load_tables
from workbench.costs import ProfileTable
from workbench.errors import MissingProfile
from workbench.files import write_atomic
from workbench.plots import Peak, Picture, lines, picture, roofline
from workbench.report import Cell, Figure, Manifest, Notes, Report, Section, Table, Text

__all__ = ["best_rate", "peaks_of", "write_page"]

_Cloud = tuple[list[float], list[float]]
_PAST_CACHES = 1 << 26
_LINES = 7
# Kernels that move next to nothing (a gate more in a tile) have no place under a roof of memory.
_MOST_INTENSE = 1e4


def write_page(folder: Path | str) -> Path:
    """Write ``profile.html`` and one page a family into ``folder``; returns the first one's path.

    Raises:
        TraceError: the folder has no tables.
        MissingProfile: gemm or memory_copy were not measured, so there is no roof.
    """
    folder = Path(folder)
    tables = load_tables(folder)
    peaks = peaks_of(tables)
    its = {family: found for family, ops in families().items()
           if (found := {op: mine for op in ops if (mine := [t for t in tables if t.op == op.name])})}
    pages = [_page(family, ops, peaks).write(folder / f"profile-{family}.html") for family, ops in its.items()]
    overview = Report("Measured kernels of this machine", _lead(peaks), sections=[
        Section("Roofline", [Figure(_best(its, peaks), "The quickest point of each table that counts operations.")]),
        Section("Tables", [Table.of("Every table with its leave-one-out errors", [_row(t) for t in tables])]),
        Section("How to read it", [Notes([
            "The roofs are this machine's best measured rates on one thread, not a data sheet's; kernels that use all "
            "cores (circuit) may stand above them.",
            "Leave-one-out errors come from knots twice as far apart as the table's, so they are pessimistic.",
            "Points above a roof had their data in caches nearer than memory."])]),
        Section("Pages", [Notes([f"`{page.name}`" for page in pages])]),
    ], about={"written": datetime.datetime.now(datetime.UTC).date().isoformat()})
    return write_atomic(folder / "profile.html", overview.html())


def peaks_of(tables: list[ProfileTable]) -> dict[str, Peak]:
    """The best measured rates by number format: operations of gemm, bytes of memory_copy past the caches (64 MiB).

    Raises:
        MissingProfile: one of them was not measured.
    """
    flops: dict[str, float] = {}
    for table in tables:
        if table.op == "gemm":
            dtype = str(table.keys["dtype"])
            flops[dtype] = max(flops.get(dtype, 0.0), best_rate(table))
    moved = max((best_rate(t) for t in tables if t.op == "memory_copy"), default=0.0)
    absent = [op for op, found in (("gemm", flops), ("memory_copy", moved)) if not found]
    if absent:
        raise MissingProfile("a roofline needs measured peaks", keys=absent,
                             next_command=f"wb profile {' '.join('memory' if a != 'gemm' else a for a in absent)}")
    return {dtype: Peak(name=f"measured here, {dtype}", flops_per_s=rate, bytes_per_s=moved)
            for dtype, rate in sorted(flops.items(), key=lambda item: item[1])}


def _peak(peaks: Mapping[str, Peak], table: ProfileTable) -> Peak:
    """The roof of a table's number format; the lowest one where it names none."""
    dtype = table.keys.get("dtype", table.keys.get("kv_dtype"))
    return peaks.get(str(dtype), next(iter(peaks.values())))


def best_rate(table: ProfileTable) -> float:
    """The best of a table of gemm (operations/s) or memory_copy (bytes/s past the caches); 0 without such a point."""
    op = next(op for ops in families().values() for op in ops if op.name == table.op)
    counted = [(op.work(point), seconds) for point, seconds in _points(table)
               if table.op == "gemm" or point["bytes"] >= _PAST_CACHES]
    return max(((work.flops if table.op == "gemm" else work.bytes) / seconds for work, seconds in counted), default=0.0)


def _points(table: ProfileTable) -> list[tuple[dict[str, Any], float]]:
    names = [axis.name for axis in table.axes]
    return [({**table.keys, **{n: int(v) for n, v in zip(names, row, strict=True)}}, float(seconds))
            for row, seconds in zip(table.points.tolist(), table.seconds.tolist(), strict=True)]


def _best(its: Mapping[str, Mapping[Op, list[ProfileTable]]], peaks: Mapping[str, Peak]) -> Picture:
    """The quickest point of each table, by family."""
    clouds = {}
    for family, ops in its.items():
        best = [max(done, key=lambda at: at[1]) for op, tables in ops.items() for table in tables
                if (done := _places(op, table))]
        if best:
            clouds[family] = ([x for x, _ in best], [y for _, y in best])
    clouds = _few(clouds, _LINES - len(peaks))
    return picture(roofline, {}, list(peaks.values()), clouds=clouds, label="Roofline of the best point of each table")


def _few(clouds: Mapping[str, _Cloud], most: int) -> dict[str, _Cloud]:
    """At most so many clouds as colours can tell apart: those with the fewest points become one."""
    if len(clouds) <= most:
        return dict(clouds)
    small = sorted(clouds, key=lambda name: len(clouds[name][0]))[:len(clouds) - most + 1]
    rest = ([x for name in small for x in clouds[name][0]], [y for name in small for y in clouds[name][1]])
    return {name: cloud for name, cloud in clouds.items() if name not in small} | {", ".join(small): rest}


def _places(op: Op, table: ProfileTable) -> list[tuple[float, float]]:
    """(operations a byte, operations/s) of each point that counts both, and more than a trace of bytes."""
    done = [(op.work(point), seconds) for point, seconds in _points(table)]
    return [(w.flops / w.bytes, w.flops / s) for w, s in done if w.flops and w.flops < _MOST_INTENSE * w.bytes]


def _page(family: str, its: Mapping[Op, list[ProfileTable]], peaks: Mapping[str, Peak]) -> Report:
    """One family: its points under the roofs, then op by op; what only moves bytes is shown by its rate."""
    held = [dict(text.partition("=")[::2] for text in found[0].provenance.conditions) for found in its.values()]
    return Report(f"Measured kernels: {family}", _lead(peaks), sections=[
        *_under_the_roofs(its, peaks), *(_section(op, found, peaks) for op, found in its.items()),
        Section("Held fixed", [Manifest(facts) for i, facts in enumerate(held) if facts not in held[:i]])])


def _under_the_roofs(its: Mapping[Op, list[ProfileTable]], peaks: Mapping[str, Peak]) -> list[Section]:
    clouds = {}
    for op, tables in its.items():
        if done := [place for table in tables for place in _places(op, table)]:
            clouds[op.name] = ([x for x, _ in done], [y for _, y in done])
    if not clouds:
        return []
    clouds = _few(clouds, _LINES - len(peaks))
    drawn = picture(roofline, {}, list(peaks.values()), clouds=clouds, label=f"Roofline of {', '.join(clouds)}")
    return [Section("Roofline", [Figure(drawn, "Every measured point.")])]


def _section(op: Op, tables: list[ProfileTable], peaks: Mapping[str, Peak]) -> Section:
    rows: list[dict[str, Cell]] = []
    curves = {}
    axis = op.axes[-1].name
    for table in tables:
        points = _points(table)
        outer = [{n: p[n] for n in (a.name for a in op.axes[:-1])} for p, _ in points]
        last = [(p[axis], s) for (p, s), o in zip(points, outer, strict=True) if o == outer[-1]]
        peak = _peak(peaks, table)
        curves[_named(table, tables) or op.name] = ([x for x, _ in last], [s for _, s in last])
        for point, seconds in points:
            work = op.work(point)
            roof_s = max(work.flops / peak.flops_per_s, work.bytes / peak.bytes_per_s)
            rows.append({**{k: v for k, v in point.items() if k != "device"}, "us": seconds * 1e6,
                         **({"GFLOP/s": work.flops / seconds / 1e9} if work.flops else {}),
                         "GB/s": work.bytes / seconds / 1e9,
                         "of roof": roof_s / seconds})
    names = list(curves)
    figures = [Figure(picture(lines, {name: curves[name] for name in names[i:i + _LINES]}, x_label=axis,
                              y_label="seconds", x_scale="log", y_scale="log", label=f"Time of {op.name} over {axis}"),
                      f"Time over {axis}, the other axes at their largest values.")
               for i in range(0, len(names), _LINES)]
    return Section(op.name, [Text(op.about[0].upper() + op.about[1:] + "."), *figures,
                             Table.of("Measured points", rows)])


def _named(table: ProfileTable, among: Sequence[ProfileTable]) -> str:
    """The keys in which a table differs from the others of its op."""
    return ", ".join(str(v) for k, v in table.keys.items() if any(other.keys[k] != v for other in among))


def _row(table: ProfileTable) -> dict[str, Cell]:
    return {"table": table.label(), "points": len(table.seconds), "error, median": table.provenance.error_median,
            "error, P90": table.provenance.error_p90, "date": table.provenance.date}


def _lead(peaks: Mapping[str, Peak]) -> str:
    rates = ", ".join(f"{p.flops_per_s / 1e9:.1f} GFLOP/s in {dtype}" for dtype, p in peaks.items())
    moved = next(iter(peaks.values())).bytes_per_s
    return f"Roofs as measured: {rates}, and {moved / 1e9:.1f} GB/s of memory."

"""The page of rooflines of a profile folder: measured points against this machine's measured peaks, family by family.

Roofline model: Williams et al., CACM 2009. The roofs are the best rates found among the points themselves: arithmetic
of ``gemm`` and bytes of ``memory_copy``. Both are therefore what one measured thread count reached, not a data sheet's.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from profilers.family import Op, families
from workbench.costfiles import load_tables
from workbench.costs import ProfileTable
from workbench.errors import MissingProfile
from workbench.files import write_atomic
from workbench.plots import Peak, Picture, lines, picture, roofline
from workbench.report import Cell, Figure, Manifest, Notes, Report, Section, Table, Text

__all__ = ["peak_of", "write_page"]


def write_page(folder: Path | str) -> Path:
    """Write ``profile.html`` and one page a family into ``folder``; returns the first one's path.

    Raises:
        TraceError: the folder has no tables.
        MissingProfile: gemm or memory_copy were not measured, so there is no roof.
    """
    folder = Path(folder)
    tables = load_tables(folder)
    peak = peak_of(tables)
    pages = []
    for family, ops in families().items():
        its = {op: [t for t in tables if t.op == op.name] for op in ops}
        if any(its.values()):
            sections = [_section(op, found, peak) for op, found in its.items() if found]
            conditions = dict(text.partition("=")[::2] for text in tables[0].provenance.conditions)
            report = Report(f"Measured kernels: {family}", _lead(peak), sections=[
                *sections, Section("Held fixed", [Manifest(conditions)])])
            pages.append(report.write(folder / f"profile-{family}.html"))
    overview = Report("Measured kernels of this machine", _lead(peak), sections=[
        Section("Roofline", [Figure(_best(tables, peak), "The best point of each table that counts operations.")]),
        Section("Tables", [Table.of("Every table with its leave-one-out errors", [_row(t) for t in tables])]),
        Section("How to read it", [Notes([
            "The roofs are this machine's best measured rates, not a data sheet's.",
            "Leave-one-out errors come from knots twice as far apart as the table's, so they are pessimistic.",
            "Points above a roof had their data in caches nearer than memory."])]),
        Section("Pages", [Text(", ".join(f"`{page.name}`" for page in pages))]),
    ], about={"written": datetime.datetime.now(datetime.UTC).date().isoformat()})
    return write_atomic(folder / "profile.html", overview.html())


def peak_of(tables: list[ProfileTable]) -> Peak:
    """The best measured rates: operations of gemm, bytes of memory_copy beyond 16 MiB (past most caches).

    Raises:
        MissingProfile: one of them was not measured.
    """
    rates = {"gemm": 0.0, "memory_copy": 0.0}
    ops = {op.name: op for ops in families().values() for op in ops}
    for table in tables:
        if table.op not in rates:
            continue
        for point, seconds in _points(table):
            work = ops[table.op].work(point)
            if table.op == "gemm" or point["bytes"] >= 1 << 24:
                amount = work.flops if table.op == "gemm" else work.bytes
                rates[table.op] = max(rates[table.op], amount / seconds)
    absent = [name for name, rate in rates.items() if not rate]
    if absent:
        raise MissingProfile("a roofline needs measured peaks", keys=absent,
                             next_command=f"wb profile {' '.join('memory' if a != 'gemm' else a for a in absent)}")
    return Peak(name="measured here", flops_per_s=rates["gemm"], bytes_per_s=rates["memory_copy"])


def _points(table: ProfileTable) -> list[tuple[dict[str, Any], float]]:
    names = [axis.name for axis in table.axes]
    return [({**table.keys, **{n: int(v) for n, v in zip(names, row, strict=True)}}, float(seconds))
            for row, seconds in zip(table.points.tolist(), table.seconds.tolist(), strict=True)]


def _rate(op: Op, table: ProfileTable) -> tuple[float, float] | None:
    """(operations a byte, operations/s) of the table's quickest point; absent when the op counts no operations."""
    best = None
    for point, seconds in _points(table):
        work = op.work(point)
        if work.flops and (best is None or work.flops / seconds > best[1]):
            best = (work.flops / work.bytes, work.flops / seconds)
    return best


def _best(tables: list[ProfileTable], peak: Peak) -> Picture:
    ops = {op.name: op for ops in families().values() for op in ops}
    found: dict[str, tuple[float, float]] = {}
    for table in tables:
        rate = _rate(ops[table.op], table) if table.op in ops else None
        if rate is not None and rate[1] > found.get(table.op, (0.0, 0.0))[1]:
            found[table.op] = rate
    return picture(roofline, found, [peak], label="Roofline of the best point of each op")


def _section(op: Op, tables: list[ProfileTable], peak: Peak) -> Section:
    rows: list[dict[str, Cell]] = []
    curves = {}
    axis = op.axes[-1].name
    for table in tables:
        points = _points(table)
        outer = [{n: p[n] for n in (a.name for a in op.axes[:-1])} for p, _ in points]
        last = [(p[axis], s) for (p, s), o in zip(points, outer, strict=True) if o == outer[-1]]
        curves[", ".join(f"{v}" for k, v in table.keys.items() if k != "device") or op.name] = (
            [x for x, _ in last], [s for _, s in last])
        for point, seconds in points:
            work = op.work(point)
            roof_s = max(work.flops / peak.flops_per_s, work.bytes / peak.bytes_per_s)
            rows.append({**{k: v for k, v in point.items() if k != "device"}, "us": seconds * 1e6,
                         "GFLOP/s": work.flops / seconds / 1e9, "GB/s": work.bytes / seconds / 1e9,
                         "of roof": roof_s / seconds})
    drawn = picture(lines, curves, x_label=axis, y_label="seconds", x_scale="log", y_scale="log",
                    label=f"Time of {op.name} over {axis}")
    return Section(op.name, [Text(op.about[0].upper() + op.about[1:] + "."),
                             Figure(drawn, f"Time over {axis}, the other axes at their largest values."),
                             Table.of("Measured points", rows)])


def _row(table: ProfileTable) -> dict[str, Cell]:
    return {"table": table.label(), "points": len(table.seconds), "error, median": table.provenance.error_median,
            "error, P90": table.provenance.error_p90, "date": table.provenance.date}


def _lead(peak: Peak) -> str:
    return (f"Roofs as measured: {peak.flops_per_s / 1e9:.1f} GFLOP/s of arithmetic and "
            f"{peak.bytes_per_s / 1e9:.1f} GB/s of memory.")

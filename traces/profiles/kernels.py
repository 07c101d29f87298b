"""Measured times of kernels by structure and back-end (``source = "kernels"``): the cost store of a machine.

Operations: ``kernel(structure, backend)``, where ``structure`` is the digest of
``planners.orchestration.candidates.Structure``; infinite when the back-end cannot run it. ``kernel_boundary(bytes,
backend)`` is what one kernel adds to a program beyond its own time, by the bytes it stores; fitted from programs.

A store is one file of JSON lines for one set of conditions. Its first line is the head,
``{"format": 1, "conditions": {"device": "cpu", "processor": "…", "threads": 1, "torch": "2.13.0", "date": "…"}}``;
every other line is a row, and a later row replaces an earlier one for the same key:
``{"kernel": digest, "backend": "eager", "seconds": 1.2e-05}``, with ``"seconds": null`` and ``"why"`` where it cannot
run; ``{"boundary": {"per_kernel_s": 1e-06, "per_byte_s": 1e-12}}``, of all back-ends or, with a key ``backend`` inside,
of one; ``{"tuned": name, "seconds": 0.004}``, a tuning that came to its end, and what its program takes. Rows may hold
more keys (spread, runs); readers pass over them. A last line without its end (the writer was stopped) is passed over
too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.costs import Cost, Provenance
from workbench.errors import MissingProfile, SpecError, TraceError, nearest
from workbench.spec import about, content_id, spec

__all__ = ["FORMAT", "KernelCosts", "Options", "open", "read"]

FORMAT = 1
_FOLDER = Path(__file__).parent.parent / "kernels"


@spec
class Options:
    """Options of ``[costs] source = "kernels"``."""

    table: str | None = about("Name of a table that is shipped here.", default=None)
    store: str | None = about("File of JSON lines, or a folder with one such file for each set of conditions.",
                              default=None)
    device: str | None = about("Which file of a folder: its device.", default=None)
    threads: int | None = about("Which file of a folder: its threads.", default=None)

    def __post_init__(self) -> None:
        if (self.table is None) == (self.store is None):
            raise ValueError("give either table or store")


@dataclass
class KernelCosts:
    """A cost model over one store; ``seconds[structure, backend]`` may grow while kernels are measured."""

    conditions: Mapping[str, str | int]
    origin: str
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    boundaries: dict[str | None, tuple[float, float]] = field(default_factory=dict)
    """Seconds a kernel adds, and seconds a byte it stores adds, by back-end (``None``: those not named)."""
    tuned: dict[str, float] = field(default_factory=dict)
    """Seconds of the programs of tunings that came to their ends, by the names of what these were asked."""

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Seconds of a kernel (infinite where the back-end cannot run it) or of a boundary.

        Raises:
            MissingProfile: nobody measured it.
        """
        if op == "kernel":
            key = str(point.get("structure")), str(point.get("backend"))
            if key in self.seconds:
                return Cost(self.seconds[key], "measured")
        elif op == "kernel_boundary":
            found = self.boundaries.get(str(point.get("backend")), self.boundaries.get(None))
            if found is not None:
                return Cost(found[0] + found[1] * float(point.get("bytes", 0)), "interpolated")
        known = ["kernel", "kernel_boundary"]
        raise MissingProfile(f"{self.origin} has no such time", keys=[f"{op}({dict(point)})"],
                             allowed=None if op in known else known, next_command="wb profile orchestration")

    def provenance(self) -> Mapping[str, Provenance]:
        """The one store behind every answer."""
        date = self.conditions.get("date")
        told = tuple(f"{k}={v}" for k, v in self.conditions.items() if k not in ("device", "date"))
        known = Provenance(id=content_id(dict(self.conditions)), origin=self.origin, conditions=told,
                           device=str(self.conditions.get("processor", self.conditions.get("device", "unknown"))),
                           date=None if date is None else str(date))
        return {"kernel": known, "kernel_boundary": known}


def read(path: Path | str) -> KernelCosts:
    """The store in ``path``.

    Raises:
        TraceError: no head, another format, or a broken line that is not the last.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end was never finished
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TraceError(f"line {number} is not JSON: {error}", where=str(path)) from None
        if not isinstance(row, dict):
            raise TraceError(f"line {number} is not a row", where=str(path))
        rows.append(row)
    if not rows or rows[0].get("format") != FORMAT or not isinstance(rows[0].get("conditions"), dict):
        raise TraceError("not a store of kernel times", where=str(path),
                         allowed=[f'a first line with "format": {FORMAT} and "conditions"'])
    found = KernelCosts(conditions=rows[0]["conditions"], origin=str(path.name))
    for number, row in enumerate(rows[1:], start=2):
        try:
            if "kernel" in row:
                seconds = row["seconds"]
                found.seconds[str(row["kernel"]), str(row["backend"])] = (
                    math.inf if seconds is None else float(seconds))
            elif "boundary" in row:
                fitted = row["boundary"]
                found.boundaries[fitted.get("backend")] = float(fitted["per_kernel_s"]), float(fitted["per_byte_s"])
            elif "tuned" in row:
                found.tuned[str(row["tuned"])] = float(row["seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"line {number} lacks or garbles {error}", where=str(path),
                             allowed=["kernel, backend, seconds", "boundary", "tuned, seconds"]) from None
    return found


def open(options: Options) -> KernelCosts:
    """The named table, or the store of the wanted conditions.

    Raises:
        SpecError: there is none, or several fit.
        TraceError: it is broken.
    """
    if options.table is not None:
        known = sorted(path.stem for path in _FOLDER.glob("*.jsonl"))
        if options.table not in known:
            close = nearest(options.table, known)
            raise SpecError(f"no table of kernel times is called {options.table!r}", where="costs.table",
                            allowed=known, hint=f"did you mean {close!r}?" if close else None)
        return read(_FOLDER / f"{options.table}.jsonl")
    path = Path(str(options.store))
    if path.is_file():
        return read(path)
    stores = [read(file) for file in sorted(path.glob("*.jsonl"))] if path.is_dir() else []
    if not stores:
        raise SpecError(f"no store of kernel times at {path}", where="costs.store",
                        next_command="wb profile orchestration")
    wanted = {"device": options.device, "threads": options.threads}
    fits = [s for s in stores if all(v is None or s.conditions.get(k) == v for k, v in wanted.items())]
    if len(fits) != 1:
        raise SpecError(f"{len(fits)} stores in {path} fit; one must", where="costs",
                        allowed=[f"device = {s.conditions.get('device')!r}, threads = {s.conditions.get('threads')} "
                                 f"({s.origin})" for s in stores])
    return fits[0]

"""Costs of gate kernels by class: how they are measured, kept and asked.

A tile kernel reads its amplitudes once, runs operations on them, and writes them once. ``fit`` times programs that
repeat one class of operation 0 and r times and takes the difference, so that reading, writing and launching fall out;
what runs the programs is the caller's (``TileRunner``), since this folder knows no executor.
Unit: seconds an amplitude on all threads together; a table holds for one precision, tile size and machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol

from workbench.errors import MissingProfile
from workbench.spec import about, spec

__all__ = ["GateCosts", "TileRunner", "fit", "mean_absolute_error"]


@spec
class GateCosts:
    """Measured costs of operation classes inside a tile kernel."""

    device: str = about("Processor and engine.")
    amplitude_bytes: int = about("8 single, 16 double precision.")
    tile_qubits: int = about("Tile of 2^this amplitudes.")
    threads: int = about("Threads that shared the work.")
    load_s: float = about("Seconds an amplitude that is read from memory.")
    store_s: float = about("Seconds an amplitude that is written (read share taken out).")
    class_s: Mapping[str, float] = about("Seconds an amplitude of one operation, by class.")

    def operation_s(self, name: str) -> float:
        """Seconds an amplitude of one operation.

        Raises:
            MissingProfile: the class was not measured.
        """
        if name not in self.class_s:
            raise MissingProfile(f"no measured cost of gate class {name!r}", keys=[name], allowed=sorted(self.class_s))
        return self.class_s[name]


class TileRunner(Protocol):
    """Runs one tile kernel over a whole state."""

    amplitudes: int

    def seconds(self, name: str | None, count: int) -> float:
        """One timed run of a kernel with ``count`` operations of a class (``None``: load and store alone)."""
        ...

    def seconds_without_load(self) -> float:
        """One timed run of a kernel that writes all amplitudes but reads none of them."""
        ...


def fit(runner: TileRunner, classes: Sequence[str], *, device: str, amplitude_bytes: int, tile_qubits: int,
        threads: int, repeats: int = 5, count: int = 8) -> GateCosts:
    """Measure every class as (least time with ``count`` operations - least time with none) / count.

    Runs with and without operations alternate, so that a drift of the machine hits both; the least of ``repeats`` is
    the run that nothing disturbed.
    """
    base = min(runner.seconds(None, 0) for _ in range(repeats))
    unread = min(runner.seconds_without_load() for _ in range(repeats))
    costs = {}
    for name in classes:
        without, with_ = [], []
        for _ in range(repeats):
            without.append(runner.seconds(None, 0))
            with_.append(runner.seconds(name, count))
        base = min(base, *without)
        costs[name] = max(min(with_) - min(without), 0.0) / count / runner.amplitudes
    store = min(unread, base) / runner.amplitudes
    return GateCosts(device=device, amplitude_bytes=amplitude_bytes, tile_qubits=tile_qubits, threads=threads,
                     load_s=base / runner.amplitudes - store, store_s=store, class_s=costs)


def mean_absolute_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean of |predicted - measured| / measured."""
    return statistics.fmean(abs(p - m) / m for p, m in zip(predicted, measured, strict=True))

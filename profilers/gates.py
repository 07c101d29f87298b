"""Costs of gate kernels by class: how they are measured, kept and asked.

A tile kernel reads its amplitudes once (those known to be zero not at all), runs operations on them, and writes them
once. ``fit`` times programs that repeat one class of operation 0 and r times and takes the difference, so that reading,
writing and launching fall out; what runs the programs is the caller's (``TileRunner``), since this folder knows no
executor. Memory costs depend on whether the state fits a cache, operations on a tile do not.
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
    load_s: float = about("Seconds an amplitude that is read, of a state that fits the last-level cache.")
    store_s: float = about("Seconds an amplitude that is written (read share taken out), of such a state.")
    far_load_s: float = about("Seconds an amplitude that is read, of a larger state.")
    far_store_s: float = about("Seconds an amplitude that is written, of a larger state.")
    class_s: Mapping[str, float] = about("Seconds an amplitude of one operation, by class.")

    def operation_s(self, name: str) -> float:
        """Seconds an amplitude of one operation.

        Raises:
            MissingProfile: the class was not measured.
        """
        if name not in self.class_s:
            raise MissingProfile(f"no measured cost of gate class {name!r}", keys=[name], allowed=sorted(self.class_s),
                                 next_command="wb profile circuit")
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


def fit(runner: TileRunner, classes: Sequence[str], *, far: TileRunner, device: str, amplitude_bytes: int,
        tile_qubits: int, threads: int, repeats: int = 5, count: int = 8) -> GateCosts:
    """Measure every class as the median of (time with ``count`` operations - time with none right before) / count.

    Rounds over all classes follow each other, so that something that disturbs the machine for a while spoils one of
    ``repeats`` values of many classes and not all values of one.

    Args:
        runner: on a state that fits the last-level cache.
        classes: names it knows.
        far: on a state that does not fit.
        device: goes into the table, as do ``amplitude_bytes``, ``tile_qubits`` and ``threads``.
        repeats: rounds.
        count: operations a kernel.
    """
    more: dict[str, list[float]] = {name: [] for name in classes}
    near_pass: list[float] = []
    near_unread, far_pass, far_unread = [], [], []
    for _ in range(repeats):
        for name in classes:
            near_pass.append(runner.seconds(None, 0))
            more[name].append(runner.seconds(name, count) - near_pass[-1])
            near_unread.append(runner.seconds_without_load())
        far_pass.append(far.seconds(None, 0))
        far_unread.append(far.seconds_without_load())
    store, far_store = (_median(part) / of.amplitudes for part, of in ((near_unread, runner), (far_unread, far)))
    return GateCosts(device=device, amplitude_bytes=amplitude_bytes, tile_qubits=tile_qubits, threads=threads,
                     load_s=_median(near_pass) / runner.amplitudes - store, store_s=store,
                     far_load_s=_median(far_pass) / far.amplitudes - far_store, far_store_s=far_store,
                     class_s={n: max(_median(d), 0.0) / count / runner.amplitudes for n, d in more.items()})


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def mean_absolute_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean of |predicted - measured| / measured."""
    return statistics.fmean(abs(p - m) / m for p, m in zip(predicted, measured, strict=True))

"""Costs of gate kernels by class: how they are fitted, kept and asked.

A tile kernel reads its amplitudes (those known to be zero not at all), runs operations on them, and writes them once.
Its seconds are taken as a sum over cost classes, t = sum_c x_c w_c, where x_c counts the amplitudes that class c acts
on and w_c >= 0 is what one of them takes. ``fit`` finds w from synthetic kernels of known x: least squares of the
relative errors. Which classes there are, and what runs the kernels, is the caller's: this folder knows no executor.
Unit of w: seconds an amplitude on all threads together; a table holds for one precision, tile size and machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import nnls

from workbench.errors import MissingProfile
from workbench.spec import about, spec

__all__ = ["GateCosts", "fit", "mean_absolute_error"]


@spec
class GateCosts:
    """Measured costs of the classes of a tile kernel's work."""

    device: str = about("Processor and engine.")
    amplitude_bytes: int = about("8 single, 16 double precision.")
    tile_qubits: int = about("Tile of 2^this amplitudes.")
    threads: int = about("Threads that shared the work.")
    start_s: float = about("Seconds beyond its work of a program's first kernel, if that is one tile: caches are cold.")
    class_s: Mapping[str, float] = about("Seconds an amplitude, by class of memory access or operation.")

    def seconds(self, name: str) -> float:
        """Seconds an amplitude of one class.

        Raises:
            MissingProfile: the class was not measured.
        """
        if name not in self.class_s:
            raise MissingProfile(f"no measured cost of gate class {name!r}", keys=[name], allowed=sorted(self.class_s),
                                 next_command="wb profile circuit")
        return self.class_s[name]


def fit(amplitudes: Sequence[Mapping[str, float]], seconds: Sequence[float]) -> dict[str, float]:
    """Seconds an amplitude of every class, none negative, that meet the measured kernels best.

    Args:
        amplitudes: for each kernel, the amplitudes that each class acts on.
        seconds: what each kernel took.
    """
    names = sorted({name for kernel in amplitudes for name in kernel})
    rows = np.array([[kernel.get(name, 0.0) for name in names] for kernel in amplitudes])
    relative = rows / np.asarray(seconds)[:, None]
    # seconds an amplitude are around 1e-11: columns of one size keep the solver's tolerances meaningful
    size = np.linalg.norm(relative, axis=0)
    found, _ = nnls(relative / size, np.ones(len(rows)))
    return {name: float(value) for name, value in zip(names, found / size, strict=True)}


def mean_absolute_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean of |predicted - measured| / measured."""
    return statistics.fmean(abs(p - m) / m for p, m in zip(predicted, measured, strict=True))

"""A hardware file from measured tables: this machine as a device of the catalogue, for plans that ask for one.

Peaks are the best rates among the points (``roofpage.peaks_of``), the smallest kernel is the least time of a sum of two
arrays, and the link is the alpha-beta line through the messages between two ranks, fitted to relative errors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from profilers.roofpage import best_rate
from workbench.costs import ProfileTable
from workbench.costtables import Floats
from workbench.files import write_atomic

__all__ = ["alpha_beta", "write_device"]

_LEAST_MESSAGES = 3


def alpha_beta(sizes: Floats, seconds: Floats) -> tuple[float, float]:
    """(alpha s, beta s/byte), both >= 0, of t = alpha + beta n with the least squares of relative errors."""
    from scipy.optimize import nnls

    rows = np.column_stack([np.ones_like(sizes), sizes]) / seconds[:, None]
    scale = rows.max(axis=0)
    found, _ = nnls(rows / scale, np.ones(len(sizes)))
    return tuple(found / scale)


def write_device(folder: Path | str, tables: Sequence[ProfileTable], *, name: str, date: str) -> Path | None:
    """Write ``hardware/<name>.toml`` below ``folder`` (``enumeration.hardware`` of a spec reads it).

    ``None`` when gemm, memory_copy or elementwise was not measured.
    """
    mine = [t for t in tables if t.keys.get("device") == name]
    peaks = {str(t.keys["dtype"]): best_rate(t) for t in mine if t.op == "gemm"}
    copies = [best_rate(t) for t in mine if t.op == "memory_copy"]
    small = [float(t.seconds.min()) for t in mine if t.op == "elementwise"]
    if not (peaks and copies and small):
        return None
    rates = ", ".join(f"{dtype} = {rate:.4g}" for dtype, rate in sorted(peaks.items()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = [
        "# Written by wb profile from the tables beside this folder.",
        f"[devices.{name}]", f"memory_bytes = {memory}", f"memory_bytes_per_s = {max(copies):.4g}",
        f"peak_flops_per_s = {{ {rates} }}", "memory_efficiency = 1.0", f"kernel_s = {min(small):.3g}",
        f'link = "{name}-ranks"', "devices_per_machine = 1", f'source = "measured by wb profile on {date}"']
    messages = [t for t in mine if t.op == "p2p" and len(t.seconds) >= _LEAST_MESSAGES]
    if messages:
        alpha, beta = alpha_beta(messages[0].points[:, 0], messages[0].seconds)
        about = f"alpha-beta fit of {len(messages[0].seconds)} messages between two ranks of this machine on {date}"
    else:
        alpha, beta = min(small), 1 / max(copies)
        about = f"no messages measured; the memory's own rate on {date}"
    lines += ["", f"[links.{name}-ranks]", f"latency_s = {alpha:.3g}", f"bytes_per_s = {1 / max(beta, 1e-15):.4g}",
              f'source = "{about}"']
    return write_atomic(Path(folder) / "hardware" / f"{name}.toml", "\n".join(lines) + "\n")

"""Kernels in C for what no library call does in one pass; ``None`` without a compiler, and callers then keep to slower
ways with equal results."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from workbench.errors import NotBuilt
from workbench.native import built

__all__ = ["library"]

_FAST = ("-march=native", "-mprefer-vector-width=512")


@functools.cache
def library(name: str) -> Any:
    """The shared library built from ``<name>.c``, or ``None`` where nothing can be built."""
    source = Path(__file__).with_name(f"{name}.c")
    # Options of one processor family are unknown to another's compiler, and not every compiler has OpenMP.
    for options in ((*_FAST, "-fopenmp"), _FAST, ()):
        try:
            return ctypes.CDLL(str(built(source, options)))
        except (OSError, NotBuilt):
            continue
    return None

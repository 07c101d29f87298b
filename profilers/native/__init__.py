"""Kernels in C for what no library call does in one pass: built once for this processor, cached, called by ctypes.

A library's name in the cache is the hash of its source, flags, compiler and processor, so machines that share a home
never mix. ``library`` gives ``None`` without a compiler; callers then keep to slower ways with equal results.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["library"]

_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-march=native", "-mprefer-vector-width=512")
_PLAIN = ("-O3", "-std=gnu11", "-fPIC", "-shared")


@functools.cache
def library(name: str) -> Any:
    """The shared library built from ``<name>.c``, or ``None`` where nothing can be built."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    source = Path(__file__).with_name(f"{name}.c")
    for flags in (_FLAGS, _PLAIN):  # options of one processor family are unknown to another's compiler
        try:
            return ctypes.CDLL(str(_built(source, compiler, flags)))
        except (OSError, subprocess.CalledProcessError):
            continue
    return None


def _built(source: Path, compiler: str, flags: tuple[str, ...]) -> Path:
    key = hashlib.sha256(source.read_bytes() + repr((flags, compiler, _processor())).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path.home() / ".cache") / "planner-workbench" / "native"
    target = folder / f"{source.stem}-{key}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / target.name
            subprocess.run([compiler, *flags, str(source), "-o", str(made)], check=True, capture_output=True)
            made.replace(target)
    return target


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = [line for line in lines[:64] if line.startswith(("model name", "flags", "Features"))]
    return " ".join([os.uname().machine, *facts])

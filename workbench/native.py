"""C sources compiled on this machine: built once, cached, whole or absent.

A library's name in the cache is the hash of its sources, options, compiler and processor, so processes, versions and
machines that share a home never mix.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import NotBuilt

__all__ = ["built"]

_COMMON = ("-O3", "-std=gnu11", "-fPIC", "-shared")


def built(source: Path, options: Sequence[str], *, headers: Sequence[Path] = ()) -> Path:
    """Path of the shared library of ``source``, compiled if the cache has none.

    Args:
        source: a C file.
        options: of the compiler, beyond those every library gets.
        headers: files that the source includes.

    Raises:
        NotBuilt: no C compiler, or it fails on the source.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    options = (*_COMMON, *options)
    text = b"".join(path.read_bytes() for path in (source, *headers))
    key = hashlib.sha256(text + repr((options, compiler, sys.platform, _processor())).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path.home() / ".cache") / "planner-workbench" / "native"
    target = folder / f"{source.stem}-{key}.so"
    if target.exists():
        return target
    if compiler is None:
        raise NotBuilt(f"no C compiler found for {source.name}", hint="install gcc or clang, or set CC")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / target.name
        done = subprocess.run([compiler, *options, str(source), "-o", str(made)], capture_output=True, text=True,
                              check=False)
        if done.returncode:
            raise NotBuilt(f"the C compiler failed on {source.name}: {done.stderr.strip()[-400:]}", where=compiler)
        made.replace(target)
    return target


def _processor() -> str:
    """The processor's kind, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines()[:64] if info.exists() else []
    return " ".join([platform.machine(), *(k for k in lines if k.startswith(("model name", "flags", "Features")))])

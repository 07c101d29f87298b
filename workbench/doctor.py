"""What this machine and installation can do, and what each missing piece would enable."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench import study
from workbench.errors import NotBuilt
from workbench.runs import machine_facts

__all__ = ["benchmark_module", "examine"]

_PACKAGES = (
    ("scipy", "scipy", "solver highs; interpolation"),
    ("simpy", "simpy", "simulation of task graphs"),
    ("mip", "mip", "solver cbc"),
    ("gurobipy", "gurobipy", "solver gurobi (small models without a licence)"),
    ("ortools", "ortools", "solver cpsat: pip install 'planner-workbench[cpsat]'"),
    ("aiconfigurator-core", "aiconfigurator_core",
     "measured GPU tables: pip install 'planner-workbench[gpu-tables]'"),
    ("torch", "torch", "real runs: pip install 'planner-workbench[run]'"),
    ("cupy", "cupy", "GPU kernels: pip install 'planner-workbench[gpu]'"),
    ("triton", "triton", "GPU kernels: pip install 'planner-workbench[gpu]'"),
    ("distributed", "distributed", "wb sweep on Dask workers: pip install 'planner-workbench[dask]'"),
    ("submitit", "submitit", "wb sweep as Slurm jobs: pip install 'planner-workbench[slurm]'"),
    ("nbclient", "nbclient", "executing the notebooks: pip install 'planner-workbench[notebooks]'"),
)


def examine() -> list[dict[str, Any]]:
    """Rows ``{what, state, detail}``: interpreter, machine, packages, GPU, data, writable folders."""
    machine = machine_facts()
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else ""
    rows = [
        _row("python", sys.version_info >= (3, 11), sys.version.split()[0]),
        _row("machine", True, f"{machine['cpu']}, {machine['cores']} cores{memory}, {machine['system']}"),
    ]
    rows += [_package(*p) for p in _PACKAGES]
    driver = shutil.which("nvidia-smi")
    rows.append(_row("NVIDIA GPU", driver is not None, driver or "none found: runs use the CPU"))
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    rows.append(_row("C compiler", compiler is not None, compiler or "none found: CPU kernels need gcc or clang"))
    mirror = os.environ.get("WB_DATA_MIRROR")
    rows.append(_row("data mirror", mirror is not None and Path(mirror).is_dir(),
                     mirror or "WB_DATA_MIRROR is not set: real traces are downloaded, or synthetic ones used"))
    rows.append(_writable(Path.cwd()))
    return rows


def _row(what: str, good: bool, detail: str) -> dict[str, Any]:
    return {"what": what, "state": "yes" if good else "no", "detail": detail}


def _package(distribution: str, module: str, enables: str) -> dict[str, Any]:
    if importlib.util.find_spec(module) is None:
        return _row(distribution, False, enables)
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = "version unknown"
    return _row(distribution, True, f"{version}: {enables.split(': pip')[0]}")


def _writable(folder: Path) -> dict[str, Any]:
    free = shutil.disk_usage(folder).free / 2**30
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return _row("run folders", False, f"{folder} cannot be written: {error.strerror}; use --runs FOLDER")
    return _row("run folders", True, f"written below {folder}, {free:.0f} GiB free")


def benchmark_module(name: str) -> str:
    """Module of the study's benchmarks, to be run from a source checkout.

    Raises:
        NotBuilt: the study has none, or this is not a checkout.
    """
    study.load(name)
    module = f"tests.bench.{name}"
    if not Path("tests/bench", f"{name}.py").exists():
        raise NotBuilt(f"no benchmarks for {name!r} here", where="tests/bench",
                       hint="benchmarks live in the source checkout, not in an installed package",
                       next_command=f"cd {Path(__file__).parents[1]} && wb bench {name}")
    return module

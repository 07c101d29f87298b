"""Data flows one way through the rooms: imports are held to the picture in DESIGN.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("workbench", "profilers", "planners", "executors", "traces")
MAY_IMPORT = {
    "workbench": {"workbench"},
    "traces": {"traces", "workbench"},
    "profilers": {"profilers", "workbench"},
    "planners": {"planners", "workbench", "traces"},
    "executors": {"executors", "workbench", "traces", "planners", "profilers"},
}
ACCELERATED = {"torch", "cupy", "triton", "numba"}


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    wrong = [f"{path.relative_to(ROOT)} imports {name}" for path in modules(room) for name in imported(path)
             if name.split(".")[0] in ROOMS and name.split(".")[0] not in MAY_IMPORT[room]]
    assert not wrong


@pytest.mark.parametrize("room", ["workbench", "traces", "planners"])
def test_only_executors_and_profilers_touch_accelerators(room: str) -> None:
    wrong = [f"{path.relative_to(ROOT)} imports {name}" for path in modules(room) for name in imported(path)
             if name.split(".")[0] in ACCELERATED]
    assert not wrong


def test_the_spine_names_no_study() -> None:
    from workbench import study

    wrong = [f"{path.name} names {name}" for path in modules("workbench") for name in study.names()
             if f'"{name}"' in path.read_text(encoding="utf-8")]
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_no_printing_outside_the_command_line(room: str) -> None:
    allowed = {ROOT / "workbench" / "cli.py"}
    wrong = [str(path.relative_to(ROOT)) for path in modules(room) if path not in allowed
             and any(isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"
                     for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))]
    assert not wrong


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pandas", "pydantic", "scipy", "matplotlib")
    code = ("import sys; from workbench.cli import parser; parser().format_help(); "
            f"print([m for m in {heavy} if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Studies are found, not registered: a module in ``planners/`` is a study; the file of the same name in
``executors/`` simulates and runs it, ``traces/specs/<study>.toml`` is its demo problem and
``traces/published/<study>.toml`` holds its paper's claims.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from workbench.errors import NotBuilt, SpecError, nearest

__all__ = ["Study", "data_folder", "load", "names", "profiled"]


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SpecError(f"the package {package!r} is not installed", next_command="make install")
    return Path(next(iter(found.submodule_search_locations)))


def names() -> list[str]:
    """Names of all studies, sorted; nothing is imported."""
    modules = pkgutil.iter_modules([str(_package_folder("planners"))])
    return sorted(m.name for m in modules if not m.name.startswith("_"))


def data_folder(kind: str) -> Path:
    """Folder ``traces/<kind>`` (``specs``, ``published``, ``hardware`` …)."""
    return _package_folder("traces") / kind


@dataclass(frozen=True, slots=True)
class Study:
    """One column of the picture in DESIGN.md."""

    name: str
    planner: ModuleType

    @property
    def title(self) -> str:
        """First line of the planner's docstring."""
        return (self.planner.__doc__ or "").strip().split("\n")[0]

    @property
    def demo_spec(self) -> Path:
        """The study's demo problem."""
        return data_folder("specs") / f"{self.name}.toml"

    @property
    def claims(self) -> Path:
        """The paper's published values."""
        return data_folder("published") / f"{self.name}.toml"

    def has_executor(self) -> bool:
        """Whether ``executors/<study>`` exists (nothing is imported)."""
        return importlib.util.find_spec(f"executors.{self.name}") is not None

    def executor(self) -> ModuleType:
        """The study's executor module.

        Raises:
            NotBuilt: there is none yet.
        """
        if not self.has_executor():
            raise NotBuilt(f"study {self.name!r} has no executor yet", next_command=f"wb plan {self.name}")
        return importlib.import_module(f"executors.{self.name}")


def profiled() -> dict[str, ModuleType]:
    """Modules ``executors/<study>/profiled.py``: what a study measures on its own kernels, by study."""
    found = {}
    for name in names():
        spec = importlib.util.find_spec(f"executors.{name}")
        if spec is not None and any((Path(folder) / "profiled.py").is_file()
                                    for folder in spec.submodule_search_locations or ()):
            found[name] = importlib.import_module(f"executors.{name}.profiled")
    return found


def load(name: str) -> Study:
    """Import the planner of study ``name``.

    Raises:
        SpecError: no such study; names the nearest.
    """
    known = names()
    if name not in known:
        close = nearest(name, known)
        raise SpecError(f"no study is called {name!r}", allowed=known,
                        hint=f"did you mean {close!r}?" if close else None, next_command="wb list")
    planner = importlib.import_module(f"planners.{name}")
    if not hasattr(planner.Plan, "_repr_html_"):
        planner.Plan._repr_html_ = lambda plan: _plan_html(planner, plan)
    return Study(name, planner)


def _plan_html(planner: ModuleType, plan: object) -> str:
    """What a notebook shows of a plan; every study's plan gets it, so that none has to write it."""
    from workbench import notebook

    return notebook.plan(planner, plan)

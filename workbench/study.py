"""Studies are found, not registered: a module in ``planners/`` is a study; the file of the same name in
``executors/`` simulates and runs it, ``traces/specs/<study>.toml`` is its demo problem and
``traces/published/<study>.toml`` holds its paper's claims.

Studies of your own need not live in this checkout: ``WB_STUDIES`` names folders (divided as in ``PATH``) with the same
rooms, ``planners/`` ``executors/`` ``traces/specs/`` ``traces/published/``, without ``__init__.py``; they join ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from workbench.errors import NotBuilt, SpecError, nearest

__all__ = ["Study", "data_file", "data_folder", "load", "names", "own_campaign", "profiled"]


def _package_folders(package: str) -> list[Path]:
    """Where modules of a room are looked for: the checkout's folder, then those of ``WB_STUDIES``.

    Raises:
        SpecError: the room is not installed, or a folder of ``WB_STUDIES`` does not exist.
    """
    try:
        path = importlib.import_module(package).__path__
    except ModuleNotFoundError:
        raise SpecError(f"the package {package!r} is not installed", next_command="make install") from None
    for folder in filter(None, os.environ.get("WB_STUDIES", "").split(os.pathsep)):
        if not Path(folder).is_dir():
            raise SpecError(f"no such folder: {folder}", where="WB_STUDIES",
                            allowed=["folders that hold planners/ and executors/"], next_command="unset WB_STUDIES")
        room = str(Path(folder).resolve() / package)
        if room not in path:
            path.append(room)
    return [Path(folder) for folder in path]


def names() -> list[str]:
    """Names of all studies, sorted; nothing is imported."""
    modules = pkgutil.iter_modules([str(folder) for folder in _package_folders("planners")])
    return sorted({m.name for m in modules if not m.name.startswith("_")})


def data_folder(kind: str) -> Path:
    """Folder ``traces/<kind>`` (``specs``, ``published``, ``hardware`` …) of this checkout."""
    return _package_folders("traces")[0] / kind


def data_file(kind: str, name: str) -> Path:
    """File ``traces/<kind>/<name>`` of this checkout or of ``WB_STUDIES``; of this checkout when there is none."""
    places = [folder / kind / name for folder in _package_folders("traces")]
    return next((path for path in places if path.exists()), places[0])


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
        return data_file("specs", f"{self.name}.toml")

    @property
    def claims(self) -> Path:
        """The paper's published values."""
        return data_file("published", f"{self.name}.toml")

    def has_executor(self) -> bool:
        """Whether ``executors/<study>`` exists (nothing is imported)."""
        _package_folders("executors")
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


def own_campaign(names: Sequence[str]) -> ModuleType | None:
    """The module that measures for ``wb profile`` when it is asked about one study, or one spec file of a study, whose
    ``profiled.py`` has a ``Campaign`` of its own; else ``None``."""
    if len(names) != 1:
        return None
    name = names[0]
    if name.endswith(".toml"):
        from workbench.spec import read_toml

        name = str(read_toml(Path(name)).get("study"))
    found = profiled().get(name)
    return found if found is not None and hasattr(found, "Campaign") else None


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

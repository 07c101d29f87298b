"""A paper's claims beside our own values: ``traces/published/<study>.toml`` against functions of the study.

A study computes claims where it has ``CLAIMS``, a mapping from claim id to a function without arguments: in
``planners/<study>/claims.py``, in ``executors/<study>/claims.py``, or in the module itself when the study is one file.
``tolerance`` is a share of the published value (absolute where that is 0); ``sense`` says whether ours should equal
it, stay below or stay above. A claim that nobody computes says what it ``needs``; none is dropped.
Rows are stored as they come, in ``<runs>/<study>-claims/claims.json``; longer claims wait for ``full``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from workbench.errors import SpecError, WorkbenchError, nearest
from workbench.files import make_folder, write_atomic
from workbench.runs import _git_revision, machine_facts, versions
from workbench.spec import about, parse, read_toml, spec
from workbench.study import Study

__all__ = ["Claim", "Computation", "Reproduced", "Verdict", "claims_of", "computations", "counted", "reproduce",
           "untested", "verdict"]

LONG_MINUTES = 0.5
Verdict = Literal["reproduced", "differs", "not tested"]


@spec
class Claim:
    """One published value."""

    id: str = about("Short name, unique in the study.")
    claim: str = about("What is claimed, in one sentence.")
    value: float = about("The published value.")
    unit: str = about("Its unit.")
    tolerance: float = about("Accepted distance as a share of the value; absolute where the value is 0.")
    sense: Literal["equal", "at most", "at least"] = about("How ours should stand to it.", default="equal")
    source: str = about("Where in the paper it stands.")
    known_from: str | None = about("How the value is known here, if not from the paper's text.", default=None)
    needs: str | None = about("What a test takes that is not here; absent when the study computes it.", default=None)
    minutes: float = about("Time to compute it on two cores.")


@spec
class Reproduced:
    """Our value of one claim, and on which clock it was found."""

    value: float = about("The value, in the claim's unit.")
    clock: Literal["planned", "simulated", "measured"] = about("planned: by the cost model; simulated; or measured.")
    note: str = about("Conditions that a reader must know: costs, sizes, what differs from the paper's set-up.",
                      default="")


@spec
class _Published:
    paper: str | None = about("The paper.", default=None)
    claims: tuple[Claim, ...] = about("Its claims.")


Computation = Callable[[], Reproduced]


def claims_of(found: Study) -> tuple[Claim, ...]:
    """The study's published claims, in the file's order.

    Raises:
        SpecError: no file, or a faulty one.
    """
    if not found.claims.exists():
        raise SpecError(f"study {found.name!r} has no published claims", where=str(found.claims),
                        next_command=f"wb report {found.name}")
    return parse(_Published, read_toml(found.claims), where=str(found.claims)).claims


def computations(found: Study) -> dict[str, Computation]:
    """Functions of the study that compute a claim, by claim id."""
    modules = [found.planner]
    if found.has_executor():
        modules.append(found.executor())
    return {name: function for module in modules for part in (module, _claims_module(module)) if part is not None
            for name, function in getattr(part, "CLAIMS", {}).items()}


def _claims_module(module: ModuleType) -> ModuleType | None:
    name = f"{module.__name__}.claims"
    if not hasattr(module, "__path__") or importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name)


def verdict(claim: Claim, ours: float) -> Verdict:
    """Whether ``ours`` reproduces the claim."""
    room = claim.tolerance * (abs(claim.value) or 1.0) + 1e-12
    good = {"equal": abs(ours - claim.value) <= room, "at most": ours <= claim.value + room,
            "at least": ours >= claim.value - room}[claim.sense]
    return "reproduced" if good else "differs"


def reproduce(found: Study, folder: Path, *, only: str | None = None, full: bool = False,
              tell: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Compute claims and store every row as it comes; returns one row a claim, in the file's order.

    Args:
        found: the study.
        folder: where ``claims.json`` lives; rows stored earlier stay for claims that are not computed now.
        only: compute this claim alone, however long it takes, and return its row alone.
        full: also compute claims that take more than half a minute.
        tell: called with one line before each computation.

    Raises:
        SpecError: no claims, or none called ``only``.
    """
    claims = claims_of(found)
    if only is not None and only not in {c.id for c in claims}:
        close = nearest(only, [c.id for c in claims])
        raise SpecError(f"{found.name} has no claim {only!r}", where=str(found.claims), allowed=[c.id for c in claims],
                        hint=f"did you mean {close!r}?" if close else None, next_command=f"wb reproduce {found.name}")
    known = computations(found)
    stored = _stored(make_folder(folder))
    asked = [c for c in claims if only in (None, c.id)]
    for claim in asked:
        long = claim.minutes > LONG_MINUTES and not full and only is None
        if claim.id in known and long and stored.get(claim.id, {}).get("ours") is not None:
            continue
        stored[claim.id] = _row(claim, known.get(claim.id), found.name, long=long, tell=tell)
        _store(folder, found.name, [stored[c.id] for c in claims if c.id in stored])
    return [stored[c.id] for c in asked]


def counted(rows: list[dict[str, Any]]) -> str:
    """How many rows have each verdict, in words."""
    return ", ".join(f"{sum(r['verdict'] == v for r in rows)} {v}" for v in ("reproduced", "differs", "not tested"))


def _row(claim: Claim, computation: Computation | None, study: str, *, long: bool,
         tell: Callable[[str], None]) -> dict[str, Any]:
    row: dict[str, Any] = {"claim": claim.id, "published": claim.value, "sense": claim.sense, "ours": None,
                           "unit": claim.unit, "clock": None, "verdict": "not tested", "tolerance": claim.tolerance,
                           "about": claim.claim, "source": claim.source, "note": "", "seconds": None}
    if computation is None:
        return row | {"note": f"needs {claim.needs}" if claim.needs else "no test is written"}
    if long:
        return row | {"note": f"about {claim.minutes:g} min: wb reproduce {study} --claim {claim.id}"}
    tell(f"{claim.id}: about {claim.minutes * 60:.0f} s …")
    start = time.perf_counter()
    try:
        ours = computation()
    except WorkbenchError as error:
        row["note"] = " ".join(str(error).split())
    except ModuleNotFoundError as error:
        row["note"] = f"needs the package {error.name} (wb doctor)"
    else:
        row |= {"ours": ours.value, "clock": ours.clock, "verdict": verdict(claim, ours.value), "note": ours.note}
    return row | {"seconds": round(time.perf_counter() - start, 3),
                  "written": datetime.now(UTC).isoformat(timespec="seconds"), "revision": _git_revision()}


def _stored(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "claims.json"
    try:
        return {row["claim"]: row for row in json.loads(path.read_text(encoding="utf-8"))["claims"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise SpecError("not a file of claims", where=str(path), hint="remove it; every row can be computed again",
                        next_command=f"rm {path}") from None


def _store(folder: Path, study: str, rows: list[Mapping[str, Any]]) -> None:
    body = {"study": study, "machine": machine_facts(), "versions": versions(), "claims": rows}
    write_atomic(folder / "claims.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def untested(found: Study) -> Iterator[str]:
    """Claims that neither a function computes nor ``needs`` explains; there should be none."""
    known = computations(found)
    return (c.id for c in claims_of(found) if c.id not in known and c.needs is None)

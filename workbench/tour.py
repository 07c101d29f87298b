"""The tour: every study on a toy input, plan -> check -> simulate -> run, predicted beside simulated and measured.

A study's toy is ``traces/specs/toy/<study>.toml``, or its demo spec where there is none. What a study has not built,
or this machine cannot do, is said in its row; nothing stops the tour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench import study as studies
from workbench.errors import NotBuilt, WorkbenchError
from workbench.files import make_folder
from workbench.job import Job, open_job
from workbench.outcome import Outcome, side_by_side
from workbench.runs import RunFolder

__all__ = ["tour", "toy_spec"]

_CLOCKS = ("predicted", "simulated", "measured")
_METRICS = 3


def toy_spec(name: str) -> Path:
    """The small problem of study ``name``."""
    toy = studies.data_file("specs/toy", f"{name}.toml")
    return toy if toy.exists() else studies.data_file("specs", f"{name}.toml")


def tour(root: Path | str, *, tell: Callable[[str], None] = lambda _: None
         ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Walk every study; returns the rows of metrics and one row a study.

    Args:
        root: where run folders live.
        tell: called with a line before each study.

    Metric rows have ``study metric predicted simulated measured unit``, those on most clocks first; study rows say how
    each step went, how long all took, and for which device the costs are.

    Raises:
        WorkbenchError: ``root`` cannot be made.
    """
    metrics: list[dict[str, Any]] = []
    went: list[dict[str, Any]] = []
    make_folder(root)
    for name in studies.names():
        tell(f"{name} …")
        rows, row = _visit(name, Path(root))
        metrics += rows
        went.append(row)
    return metrics, went


def _visit(name: str, root: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    row: dict[str, Any] = {"study": name, "plan": "", "check": "", "simulate": "", "run": "", "seconds": 0.0,
                           "costs of": "", "note": "", "folder": ""}
    start = time.perf_counter()
    step = "plan"
    found: list[Outcome] = []
    predicted: tuple[Any, ...] = ()
    try:
        job = open_job(str(toy_spec(name)))
        folder = RunFolder.of(job, root)
        plan = job.plan()
        predicted = job.study.planner.predicted(job.problem, plan)
        row |= {"plan": plan.certificate.status, "costs of": _devices(job), "folder": str(folder.path)}
        step = "check"
        job.check(plan)
        folder.save_plan(job, plan)
        row["check"] = "no violation"
        for step, play in (("simulate", lambda: job.simulate(plan)), ("run", lambda: job.run(plan, "auto"))):
            outcome = play()
            folder.save_outcome(outcome)
            found.append(outcome)
            row[step] = "done" if step == "simulate" else "verified"
    except WorkbenchError as error:
        row |= {step: "not built" if isinstance(error, NotBuilt) else type(error).__name__, "note": error.message}
    except ModuleNotFoundError as error:
        row |= {step: "not here", "note": f"needs the package {error.name} (wb doctor)"}
    row["seconds"] = round(time.perf_counter() - start, 2)
    rows = sorted(side_by_side(predicted, *found), key=lambda r: -sum(r[c] is not None for c in _CLOCKS))
    return [{"study": name, "metric": r["metric"], **{c: r[c] for c in _CLOCKS}, "unit": r["unit"]}
            for r in rows[:_METRICS]], row


def _devices(job: Job) -> str:
    """Which device the predicted times are of, when tables say so."""
    return ", ".join(dict.fromkeys(p.device for p in job.costs.provenance().values())) or "stated in the spec"

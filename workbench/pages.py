"""The report page of one run: what every study shows in the same order, and between it what only this study shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.job import Job
from workbench.outcome import side_by_side
from workbench.report import (
    Cell,
    Checks,
    Column,
    Commands,
    Decision,
    Fact,
    Facts,
    Manifest,
    Report,
    Section,
    Sources,
    Table,
    Text,
)
from workbench.runs import RunFolder

__all__ = ["write_page"]

_KEY_FACTS = 4


def write_page(job: Job, folder: RunFolder, plan: Any) -> Path:
    """Write ``report.html`` into the run folder from its stored plan and outcomes; returns its path."""
    planner = job.study.planner
    predicted = planner.predicted(job.problem, plan)
    outcomes = [o for o in (folder.load_outcome(clock) for clock in ("simulated", "measured")) if o is not None]
    what = Section("What to do", [
        Decision(planner.in_words(plan)),
        Facts([Fact(m.name.replace("_", " "), m.value, m.unit, m.about) for m in predicted[:_KEY_FACTS]]),
        Table.of("The decision", planner.decision(plan)),
    ])
    why = Section("Why to believe it", [
        plan.certificate,
        Checks("the plan", planner.check(job.problem, plan)),
        Sources(plan.sources),
    ])
    first, *others = (Table.of(title, rows) for title, rows in planner.comparison(job.problem, job.costs, plan))
    against = Section("Beside the alternatives", [first])
    clocks = Section("Predicted against simulated against measured", [_clocks(predicted, outcomes)])
    own = [s for o in outcomes for s in job.study.executor().sections(job.problem, plan, job.costs, o)]
    repeat = Section("How to repeat it", [
        Commands([f"wb report {job.source}", f"wb check {folder.path}"]), Manifest(folder.manifest())])
    title = f"{job.study.name}: {planner.headline(plan)}"
    lead = job.study.title.removeprefix(f"{job.study.name}: ")
    details = [Section("Behind the numbers", others)] if others else []
    report = Report(title, lead, sections=[what, why, against, *own, clocks, *details, repeat])
    return report.write(folder.path / "report.html")


def _clocks(predicted: Any, outcomes: list[Any]) -> Table | Text:
    present = ["predicted", *(o.clock for o in outcomes)]
    rows: list[list[Cell]] = [[r["metric"], *(r[c] for c in present), r["unit"]]
                              for r in side_by_side(predicted, *outcomes)]
    if not rows:
        return Text("Nothing was predicted or run.")
    return Table("One row a metric, one column a clock", [Column(c) for c in ("metric", *present, "unit")], rows,
                 alike="rows")

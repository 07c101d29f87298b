"""The report page of one run: what every study shows in the same order, and between it what only this study shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import plots
from workbench.job import Job
from workbench.outcome import Metric, Outcome, side_by_side
from workbench.report import (
    Block,
    Cell,
    Checks,
    Column,
    Commands,
    Decision,
    Fact,
    Facts,
    Figure,
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
_CLOCKS = ("predicted", "simulated", "measured")


def write_page(job: Job, folder: RunFolder, plan: Any) -> Path:
    """Write ``report.html`` into the run folder from its stored plan and outcomes; returns its path."""
    planner = job.study.planner
    predicted = planner.predicted(job.problem, plan)
    outcomes = [o for o in (folder.load_outcome(clock) for clock in _CLOCKS[1:]) if o is not None]
    together, alone = _clocks(predicted, outcomes)
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
    clocks = Section("Predicted against simulated against measured", [together])
    first, *others = (Table.of(title, rows, marked=_ours(rows))
                      for title, rows in planner.comparison(job.problem, job.costs, plan))
    against = Section("Beside the alternatives", [first])
    own = [section for o in outcomes
           for section in _with_gantt(job.study.executor().sections(job.problem, plan, job.costs, o), o)]
    behind = [*([alone] if alone is not None else []), *others]
    report = Report(
        f"{job.study.name}: {planner.headline(plan)}", job.study.title.removeprefix(f"{job.study.name}: "),
        sections=[what, why, clocks, against, *own, *_claims(job, folder),
                  *([Section("Behind the numbers", behind)] if behind else []),
                  Section("How to repeat it", [Commands(_commands(job, folder)), Manifest(folder.manifest())])],
        about=_about(job, folder))
    return report.write(folder.path / "report.html")


def _about(job: Job, folder: RunFolder) -> dict[str, str]:
    """Short facts for the head of the page."""
    manifest = folder.manifest()
    facts = {"study": job.study.name, "run": folder.path.name, "planned": str(manifest.get("written", ""))[:10],
             "revision": manifest.get("revision"), "machine": manifest.get("machine", {}).get("cpu")}
    return {name: str(value) for name, value in facts.items() if value}


def _commands(job: Job, folder: RunFolder) -> list[str]:
    """From the spec while it has a file of its own, else from the run folder."""
    return [f"wb report {job.source}", f"wb check {folder.path}", f"wb run {folder.path}"]


def _ours(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The row of a comparison that is this plan's own, if one says so."""
    return [k for k, row in enumerate(rows) if str(next(iter(row.values()), "")).startswith("this plan")]


def _clocks(predicted: Sequence[Metric], outcomes: Sequence[Outcome]) -> tuple[Table | Text, Table | None]:
    """Metrics known on several clocks with their distance from the prediction, and those known on one only."""
    present = ["predicted", *(o.clock for o in outcomes)]
    rows = side_by_side(tuple(predicted), *outcomes)
    several = [r for r in rows if sum(r[c] is not None for c in present) > 1]
    single = [r for r in rows if r not in several]
    if not several:
        return _side_by_side("Predicted, not yet played or run", present, rows, apart=()), None
    alone = _side_by_side("Metrics of one clock", present, single, apart=()) if single else None
    return _side_by_side("One row a metric, one column a clock", present, several, apart=present[1:]), alone


def _side_by_side(caption: str, present: Sequence[str], rows: Sequence[Mapping[str, Any]], *,
                  apart: Sequence[str]) -> Table | Text:
    if not rows:
        return Text("Nothing was predicted or run.")
    cells: list[list[Cell]] = [[r["metric"], *(r[c] for c in present), r["unit"],
                                *(_apart(r["predicted"], r[c]) for c in apart)] for r in rows]
    names = ("metric", *present, "unit", *(f"{clock} − predicted" for clock in apart))
    return Table(caption, [Column(name) for name in names], cells, alike="rows")


def _apart(predicted: float | None, found: float | None) -> str:
    """Distance from the prediction as a share of it."""
    if predicted is None or found is None:
        return "–"
    if predicted == found:
        return "0 %"
    if predicted == 0 or not 0.01 <= abs(found / predicted) <= 10:
        return f"× {found / predicted:,.3g}" if predicted else "–"
    return f"{100 * (found / predicted - 1):+.2g} %".replace("-", "−")


def _with_gantt(sections: list[Section], outcome: Outcome) -> list[Section]:
    """The study's sections of an outcome, and the Gantt chart of its timeline where the study draws nothing itself."""
    line = outcome.timeline
    if line is None or not len(line) or any(isinstance(b, Figure) for s in sections for b in s.blocks):
        return sections
    chart = Figure(plots.picture(plots.gantt, line, label=f"Gantt chart, {outcome.clock}"),
                   f"Who works when, {outcome.clock}; beside each row the share of time it is busy")
    return [*sections, Section(f"Timeline, {outcome.clock}", [chart])]


def _claims(job: Job, folder: RunFolder) -> list[Section]:
    """The paper's claims beside our values, when ``wb reproduce`` has left them beside the run."""
    stored = folder.path.parent / f"{job.study.name}-claims" / "claims.json"
    if not stored.exists():
        return []
    rows = json.loads(stored.read_text(encoding="utf-8"))["claims"]
    columns = [Column(name) for name in ("claim", "published", "ours", "unit", "known by", "verdict", "note")]
    cells: list[list[Cell]] = [[r["about"], r["published"], r["ours"], r["unit"], r["clock"], r["verdict"], r["note"]]
                               for r in rows]
    blocks: list[Block] = [Table("Published values and ours", columns, cells, alike="rows")]
    return [Section("Beside the paper", blocks)]

"""The report page of one run: what every study shows in the same order, and between it what only this study shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench import plots
from workbench.job import Job
from workbench.outcome import Metric, Outcome, predicted_range, side_by_side, whose_times
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
_UNITS = {"_usd_per_h": "$/h", "_bytes_per_s": "bytes/s", "_flops_per_s": "FLOP/s", "_per_s": "1/s", "_bytes": "bytes",
          "_s": "s"}
_PREFIXED = {"s": "s", "bytes": "B", "bytes/s": "B/s", "FLOP/s": "FLOP/s"}
_CLOCKS = ("predicted", "simulated", "measured")


def write_page(job: Job, folder: RunFolder, plan: Any) -> Path:
    """Write ``report.html`` into the run folder from its stored plan and outcomes; returns its path."""
    planner = job.study.planner
    predicted = planner.predicted(job.problem, plan)
    outcomes = [replace(o, timeline=folder.load_timeline(o.clock))
                for o in (folder.load_outcome(clock) for clock in _CLOCKS[1:]) if o is not None]
    what = Section("What to do", [
        Decision(planner.in_words(plan)),
        Facts([_fact(m, plan.certificate.cost_error) for m in predicted[:_KEY_FACTS]]),
        _table("The decision", planner.decision(plan)),
    ])
    why = Section("Why to believe it", [
        plan.certificate,
        Checks("the plan", planner.check(job.problem, plan)),
        Sources(plan.sources),
        *_how_sure(plan.certificate.cost_error),
    ])
    together, alone = _clocks(predicted, outcomes)
    clocks = Section("Predicted, simulated, measured", [*together, *_whose_times(job, plan, outcomes),
                                                             *_not_yet(job, outcomes)])
    first, *others = (_table(title, rows) for title, rows in planner.comparison(job.problem, job.costs, plan))
    against = Section("Beside the alternatives", [first])
    own = [section for o in outcomes
           for section in _with_gantt(job.study.executor().sections(job.problem, plan, job.costs, o), o)]
    behind: list[Block] = [*alone, *others]
    report = Report(
        f"{job.study.name}: {planner.headline(plan)}", job.study.title.removeprefix(f"{job.study.name}: "),
        sections=[what, why, clocks, against, *own, *_claims(job, folder),
                  *([Section("Behind the numbers", behind)] if behind else []),
                  Section("How to repeat it", [Commands(_commands(job, folder)), Manifest(folder.manifest())])],
        about=_about(job, folder))
    return report.write(folder.path / "report.html")


def _fact(metric: Metric, cost_error: float | None = None) -> Fact:
    """A metric as a key number with its range; very small and very large ones with a metric prefix."""
    name, value, note = _name_and_unit(metric.name)[0], metric.value, metric.about
    prefix = _PREFIXED.get(metric.unit)
    if (between := predicted_range(metric, cost_error)) is not None:
        low, high = (plots.si(x, prefix) if prefix else f"{x:.4g} {metric.unit}" for x in between)
        note = f"{note} Between {low} and {high}."
    if prefix and value and not 0.1 <= abs(value) < 10_000:
        return Fact(name, plots.si(value, prefix), note=note)
    return Fact(name, value, metric.unit, note)


def _how_sure(cost_error: float | None) -> list[Block]:
    """What the cost tables' own errors allow, where all of them have some."""
    if cost_error is None:
        return []
    return [Text(f"Predicted times and rates hold within {100 * cost_error:.2g} %: so far off are nine in ten "
                 "predictions of points left out of the cost tables, weighed by the seconds each was asked for.")]


def _about(job: Job, folder: RunFolder) -> dict[str, str]:
    """Short facts for the head of the page."""
    manifest = folder.manifest()
    facts = {"study": job.study.name, "run": folder.path.name, "planned": str(manifest.get("written", ""))[:10],
             "revision": manifest.get("revision"), "machine": manifest.get("machine", {}).get("cpu")}
    return {name: str(value) for name, value in facts.items() if value}


def _commands(job: Job, folder: RunFolder) -> list[str]:
    """From the spec while it has a file of its own, else from the run folder."""
    return [f"wb report {job.source}", f"wb check {folder.path}", f"wb run {folder.path}"]


def _clocks(predicted: Sequence[Metric], outcomes: Sequence[Outcome]) -> tuple[list[Block], list[Block]]:
    """Metrics known on several clocks with their distance from the prediction, and those known on one only."""
    present = ["predicted", *(o.clock for o in outcomes)]
    rows = side_by_side(tuple(predicted), *outcomes)
    if not rows:
        return [Text("Nothing was predicted, simulated or measured.")], []
    several = [r for r in rows if sum(r[c] is not None for c in present) > 1]
    if not several:
        return [_side_by_side("What is known so far", present, rows)], []
    single: list[list[Cell]] = [[_words(r), next(r[c] for c in present if r[c] is not None),
                                 next(c for c in present if r[c] is not None)] for r in rows if r not in several]
    columns = [Column(name) for name in ("metric", "value", "known by")]
    alone: list[Block] = [Table("Metrics that one clock alone has", columns, single, alike="rows")] if single else []
    return [_side_by_side("Metrics that several clocks have, and how far they lie from the prediction", present,
                          several, apart=present[1:])], alone


def _side_by_side(caption: str, present: Sequence[str], rows: Sequence[Mapping[str, Any]], *,
                  apart: Sequence[str] = ()) -> Table:
    cells: list[list[Cell]] = [
        [_words(r), r["predicted"], *(c for clock in present[1:]
                                      for c in (r[clock], *((_apart(r["predicted"], r[clock]),) if apart else ())))]
        for r in rows]
    names = ["metric", "predicted"]
    for clock in present[1:]:
        names += [clock, "apart"] if apart else [clock]
    return Table(caption, [Column(name) for name in names], cells, alike="rows")


def _words(row: Mapping[str, Any]) -> str:
    """A metric's name in words, with its unit unless the words say it."""
    name = _name_and_unit(row["metric"])[0]
    return f"{name} ({row['unit']})" if row["unit"] and " per " not in name else name


def _whose_times(job: Job, plan: Any, outcomes: Sequence[Outcome]) -> list[Block]:
    said = whose_times((p.device for p in job.costs.provenance().values()), plan.sources, outcomes)
    return [] if said is None else [Text(said)]


def _not_yet(job: Job, outcomes: Sequence[Outcome]) -> list[Block]:
    """What is missing beside the prediction, and what would add it."""
    there = {o.clock for o in outcomes}
    said = {"simulated": f"Nothing simulated yet: `wb simulate {job.source}` plays the plan on the virtual clock.",
            "measured": f"Nothing measured yet: `wb run {job.source}` runs the plan for real, where the study can."}
    return [Text(text) for clock, text in said.items() if clock not in there]


def _apart(predicted: float | None, found: float | None) -> str:
    """Distance from the prediction: as a share of it, or as a multiple where it is large."""
    if predicted is None or found is None:
        return "–"
    if math.isclose(predicted, found, rel_tol=1e-6):  # sums in another order
        return "0 %"
    ratio = found / predicted if predicted else 0.0
    if 0.5 <= ratio < 2:
        return f"{100 * (ratio - 1):+.2g} %".replace("-", "−")
    return f"× {_multiple(ratio)}" if ratio > 0 else "–"


def _multiple(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"


def _with_gantt(sections: list[Section], outcome: Outcome) -> list[Section]:
    """The study's sections of an outcome; the first gets the timeline's Gantt chart where the study draws nothing."""
    line = outcome.timeline
    if line is None or not len(line) or any(isinstance(b, Figure) for s in sections for b in s.blocks):
        return sections
    chart = Figure(plots.picture(plots.gantt, line, label=f"Gantt chart, {outcome.clock}"),
                   f"Who works when, {outcome.clock}; beside each row the share of time it is busy")
    first, *rest = sections or [Section(f"Timeline, {outcome.clock}", [])]
    return [Section(first.heading, [*first.blocks, chart]), *rest]


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of a study as a table: keys such as ``makespan_s`` become a name and a unit, this plan's row stands out."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    own = [k for k, row in enumerate(rows) if str(next(iter(row.values()), "")).startswith("this plan")]
    return Table(title, [Column(*_name_and_unit(key)) for key in keys],
                 [[row.get(key) for key in keys] for row in rows], marked=own)


def _name_and_unit(key: str) -> tuple[str, str]:
    """The words and the unit of a key: ``rent_usd_per_h`` is the rent in $/h."""
    for ending, unit in _UNITS.items():
        if key.endswith(ending):
            if ending == "_per_s" and key != "rate_per_s":
                break  # samples per second are not samples
            return key.removesuffix(ending).replace("_", " "), unit
    return key.replace("_", " "), ""


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

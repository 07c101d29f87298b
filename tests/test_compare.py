"""Comparisons of runs, and what plans, outcomes, models and timelines look like in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from workbench import notebook
from workbench.compare import compare, differences
from workbench.errors import SpecError
from workbench.job import open_job
from workbench.milp import Model
from workbench.outcome import Metric, Outcome
from workbench.runs import RunFolder
from workbench.timeline import Span, Timeline

LINE = Timeline.from_spans([Span(device="gpu 0", stream="compute", name="F0", start_s=0.0, end_s=1.0),
                            Span(device="gpu 1", stream="compute", name="<b>", start_s=1.0, end_s=2.0)])


class Balance(HTMLParser):
    """Names of elements, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.seen: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def shown(value: object) -> Balance:
    page = Balance(value._repr_html_())  # type: ignore[attr-defined]
    assert page.stack == []
    return page


def planned(spec: Path, root: Path, *assignments: str) -> RunFolder:
    job = open_job(str(spec), assignments)
    folder = RunFolder.of(job, root)
    plan = job.plan()
    folder.save_plan(job, plan)
    folder.save_outcome(job.simulate(plan))
    return folder


def test_differences_find_changed_added_and_missing_keys_by_name() -> None:
    a = {"x": 1, "devices": [{"name": "p", "n": 1}, {"name": "q", "n": 2}], "list": [1, 2], "gone": 0}
    b = {"x": 1, "devices": [{"name": "q", "n": 2}, {"name": "p", "n": 3}, {"name": "r", "n": 4}], "list": [2, 1]}
    assert list(differences(a, b)) == [("devices.p.n", 1, 3), ("devices.r", None, {"n": 4}), ("list", [1, 2], [2, 1]),
                                       ("gone", 0, None)]
    assert list(differences(a, a)) == []


def test_a_comparison_has_spec_decision_and_metrics_of_every_clock(small_spec: Path, tmp_path: Path) -> None:
    a, b = planned(small_spec, tmp_path), planned(small_spec, tmp_path, "budget_usd_per_h=12", "devices.0.available=1")
    found = compare(a, b)
    assert [(r["key"], r[found.left], r[found.right]) for r in found.spec] == [
        ("problem.devices.t1.available", "2", "1"), ("problem.budget_usd_per_h", "8.0", "12.0")]
    rows = {(r["clock"], r["metric"]): r for r in found.metrics}
    assert {clock for clock, _ in rows} == {"planned", "simulated"}
    assert rows["planned", "proven bound"][found.left] == pytest.approx(1450 / 51)
    for row in rows.values():
        if row["ratio"] is not None:
            assert row["ratio"] * row[found.left] == pytest.approx(row[found.right])
    page = shown(found)
    assert page.seen.count("table") == 2
    assert "budget_usd_per_h" in page.words


def test_a_run_beside_itself_differs_in_nothing(small_spec: Path, tmp_path: Path) -> None:
    folder = planned(small_spec, tmp_path)
    found = compare(folder, folder)
    assert found.spec == []
    assert {r["ratio"] for r in found.metrics} <= {1.0, None}
    with pytest.raises(SpecError, match="not a run folder"):
        compare(folder, RunFolder(tmp_path / "nothing"))


def test_a_plan_shows_decision_and_certificate(small_spec: Path) -> None:
    job = open_job(str(small_spec))
    plan = job.plan()
    page = shown(plan)
    assert job.study.planner.in_words(plan)[:40] in page.words
    assert plan.certificate.line() in page.words
    assert page.seen.count("table") >= 1
    assert plan.certificate.line() in shown(plan.certificate).words


def test_a_timeline_and_an_outcome_show_their_gantt_and_escape_names() -> None:
    page = shown(LINE)
    assert page.seen.count("svg") == 1
    assert "b" not in page.seen
    outcome = Outcome(clock="simulated", metrics=(Metric(name="total_s", value=2.0, unit="s", about="<i>all</i>"),),
                      timeline=LINE)
    page = shown(outcome)
    assert page.seen.count("svg") == 1
    assert "<i>all</i>" in page.words
    assert "no spans" in shown(Timeline.from_spans([])).words


def test_long_tables_are_cut_and_say_so() -> None:
    text = notebook.table([{"k": k} for k in range(100)], "rows")
    assert text.count("<tr>") == 61
    assert "40 more rows" in text


def test_a_model_shows_itself_as_mathematics() -> None:
    model = Model("diet")
    food = model.variables("food", ["bread", "milk"], upper=10, integer=True)
    model.add("protein", [4, 3] @ food, ">=", 12)
    model.minimise([2, 1] @ food)
    latex = model._repr_latex_()
    for part in (r"\min", r"\ge", "protein", "food"):
        assert part in latex

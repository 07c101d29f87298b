"""The tour: every study appears, under a minute in all, and what is not built is said instead of raised."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench import study
from workbench import tour as module
from workbench.errors import Infeasible, NotBuilt
from workbench.job import Job, open_job
from workbench.tour import tour, toy_spec

Wb = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", study.names())
def test_every_study_has_a_toy_of_its_own_problem(name: str) -> None:
    assert open_job(str(toy_spec(name))).study.name == name


@pytest.mark.dist
def test_the_tour_visits_every_study_within_a_minute(wb: Wb) -> None:
    """Bar: wb tour < 60 s; plans are checked, simulations and runs stand beside the prediction."""
    pytest.importorskip("torch", reason="real runs need the extra 'run'")
    start = time.perf_counter()
    code, out, err = wb("tour", "--json")
    assert time.perf_counter() - start < 60
    assert code == 0, err
    told = json.loads(out)
    assert [row["study"] for row in told["studies"]] == study.names()
    for row in told["studies"]:
        assert row["plan"] in ("optimal", "feasible", "heuristic"), row
        assert row["check"] == "no violation", row
        assert row["simulate"] == "done", row
        assert row["run"] == "verified" or (row["run"] == "not built" and row["note"]), row
        assert (Path(row["folder"]) / "simulated.json").exists()
    for name in study.names():
        rows = [r for r in told["metrics"] if r["study"] == name]
        assert rows
        assert rows[0]["predicted"] is not None
        assert rows[0]["simulated"] is not None
    paced = next(r for r in told["metrics"] if r["metric"] == "iteration_s")
    assert paced["simulated"] == pytest.approx(paced["predicted"], rel=1e-6)
    assert paced["measured"] > 0.95 * paced["predicted"], "real messages and sleeps cannot beat the closed form"


@pytest.mark.parametrize(("error", "said"), [
    (NotBuilt("no engine yet"), "not built"), (Infeasible("too little memory"), "Infeasible"),
    (ModuleNotFoundError("No module named 'torch'", name="torch"), "not here")])
def test_a_step_that_fails_is_told_and_stops_nothing(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, said: str) -> None:
    def fail(self: Job, plan: Any, device: str) -> None:
        raise error

    monkeypatch.setattr(Job, "run", fail)
    monkeypatch.setattr(module.studies, "names", lambda: ["placement"])
    metrics, (row,) = tour(tmp_path)
    assert (row["simulate"], row["run"]) == ("done", said)
    assert row["note"]
    assert {m["measured"] for m in metrics} == {None}

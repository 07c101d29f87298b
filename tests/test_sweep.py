"""Bar 6: a kill at any moment of a sweep loses no finished result, and the rerun runs only what is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench import engines
from workbench.errors import SpecError, WorkbenchError
from workbench.sweep import open_sweep, run_sweep

Wb = Callable[..., tuple[int, str, str]]
BUDGETS = [4 + 0.25 * k for k in range(40)]


@pytest.fixture
def sweep_spec(small_spec: Path) -> Path:
    small_spec.write_text(small_spec.read_text() + f"\n[sweep.over]\nbudget_usd_per_h = {BUDGETS}\n")
    return small_spec


def test_rows_come_in_product_order_and_a_rerun_does_nothing(sweep_spec: Path, tmp_path: Path) -> None:
    sweep, tasks, folder = open_sweep(str(sweep_spec), ("sweep.engine=serial",), tmp_path)
    seen: list[str] = []
    rows = run_sweep(sweep, tasks, folder, on_result=lambda row, _done, _total: seen.append(row["id"]))
    assert [r["budget_usd_per_h"] for r in rows] == BUDGETS
    assert len(seen) == len(BUDGETS)
    objectives = [r["objective"] for r in rows]
    assert objectives == sorted(objectives, reverse=True), "more budget never slows the fleet down"
    seen.clear()
    assert run_sweep(sweep, tasks, folder, on_result=lambda row, _d, _t: seen.append(row["id"])) == rows
    assert seen == []


def test_an_infeasible_point_is_a_result(sweep_spec: Path, tmp_path: Path) -> None:
    sweep, tasks, folder = open_sweep(
        str(sweep_spec), ("sweep.engine=serial", "sweep.over.budget_usd_per_h=[0.5, 8.0]"), tmp_path)
    rows = run_sweep(sweep, tasks, folder, on_result=lambda *_: None)
    assert [r["status"] for r in rows] == ["Infeasible", "optimal"]
    assert "budget" in rows[0]["error"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_sweep_keeps_every_finished_result(sweep_spec: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workbench", "sweep", str(sweep_spec), "--runs", str(tmp_path / "runs"),
               "--set", "sweep.workers=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "runs").glob("sweep-*/records/[0-9a-f]*.json"))) < 5:
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline, "no results within a minute"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    records = sorted((tmp_path / "runs").glob("sweep-*/records/[0-9a-f]*.json"))
    finished = {p.stem: p.read_text() for p in records}
    assert 5 <= len(finished) < len(BUDGETS)
    for text in finished.values():
        assert json.loads(text)["status"] == "optimal", "a record on disk is whole"
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)) == len(BUDGETS)
    assert done.stderr.count("] ") == len(BUDGETS) - len(finished), "only missing tasks were run"
    assert {p.stem: p.read_text() for p in records} == finished, "finished records were not touched"


def test_ctrl_c_keeps_results_and_says_how_to_go_on(sweep_spec: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workbench", "sweep", str(sweep_spec), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "runs").glob("sweep-*/records/[0-9a-f]*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline, "no results within a minute"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "finished results are kept" in err
    assert "Traceback" not in err


# -- engines: each gives the rows that this process gives ------------------------------------------------------------

FEW = "sweep.over.budget_usd_per_h=[0.5, 6.0, 8.0]"


def rows_of(spec: Path, root: Path, *assignments: str) -> list[dict[str, object]]:
    sweep, tasks, folder = open_sweep(str(spec), (FEW, *assignments), root)
    rows = run_sweep(sweep, tasks, folder, on_result=lambda *_: None)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


ENGINES = {"processes": None, "dask": "distributed", "slurm": "submitit"}


@pytest.mark.parametrize(("engine", "package"), ENGINES.items())
def test_every_engine_gives_the_rows_of_this_process(
        sweep_spec: Path, tmp_path: Path, engine: str, package: str | None) -> None:
    if package is not None:
        pytest.importorskip(package, reason=f"pip install 'planner-workbench[{engine}]'")
    options = ("sweep.workers=2", f"sweep.engine={engine}", *(["sweep.slurm.cluster=local"] * (engine == "slurm")))
    rows = rows_of(sweep_spec, tmp_path / engine, *options)
    assert rows == rows_of(sweep_spec, tmp_path / "serial", "sweep.engine=serial")
    assert [row["status"] for row in rows] == ["Infeasible", "optimal", "optimal"]


def test_a_running_dask_scheduler_is_used(sweep_spec: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="pip install 'planner-workbench[dask]'")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=40) as here:
        address = f"sweep.scheduler={here.scheduler_address}"
        rows = rows_of(sweep_spec, tmp_path / "dask", "sweep.engine=dask", address)
    assert rows == rows_of(sweep_spec, tmp_path / "serial", "sweep.engine=serial")


def test_no_scheduler_at_the_address_is_told(
        sweep_spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="pip install 'planner-workbench[dask]'")
    monkeypatch.setattr(engines, "_CONNECT_S", 0.5)
    with pytest.raises(SpecError, match="no Dask scheduler answers at"):
        rows_of(sweep_spec, tmp_path, "sweep.engine=dask", "sweep.scheduler=tcp://127.0.0.1:1")


def test_no_slurm_on_this_machine_is_told(sweep_spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="pip install 'planner-workbench[slurm]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpecError, match="no Slurm here"):
        rows_of(sweep_spec, tmp_path, "sweep.engine=slurm")


@pytest.mark.parametrize("engine", ["dask", "slurm"])
def test_an_engine_that_is_not_installed_names_its_extra(
        wb: Wb, sweep_spec: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setitem(sys.modules, ENGINES[engine], None)
    code, out, err = wb("sweep", str(sweep_spec), "--set", f"sweep.engine={engine}")
    assert (code, out) == (2, "")
    assert f"planner-workbench[{engine}]" in err
    assert "next: wb sweep" in err


def kill_or_answer(what: str) -> str:
    """A task that ends its worker, for the tests below."""
    if what == "die":
        os._exit(3)
    return what


@pytest.mark.parametrize(("engine", "package"), [
    ("processes", None), ("dask", "distributed"), pytest.param("slurm", "submitit", marks=pytest.mark.slow)])
def test_a_worker_that_dies_is_told_with_the_next_command(tmp_path: Path, engine: engines.Engine,
                                                          package: str | None) -> None:
    if package is not None:
        pytest.importorskip(package, reason=f"pip install 'planner-workbench[{engine}]'")
    results = engines.run(engine, kill_or_answer, [("die",), ("die",)], workers=1, scheduler=None,
                          slurm=engines.Slurm(cluster="local"), folder=tmp_path)
    with pytest.raises(WorkbenchError, match="a worker died"):
        list(results)

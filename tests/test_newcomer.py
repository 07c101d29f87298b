"""A newcomer's faults: each gives its exit code and, on one screen, what is wrong, what is allowed, and what to type.

Every message's ``next:`` line must itself be a command that ``wb`` understands.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL_SPEC
from workbench.cli import parser

Wb = Callable[..., tuple[int, str, str]]
Prepare = Callable[[Path, pytest.MonkeyPatch], None]
SCREEN_LINES, SCREEN_COLUMNS = 24, 120
SPECS = Path(__file__).parents[1] / "traces/specs"
DEMO = (SPECS / "placement.toml").read_text()
TOY = (SPECS / "toy/circuit.toml").read_text()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is typed in a folder with ``small.toml``; what the message must name, allow and propose."""

    typed: str
    code: int
    names: str
    allows: str
    next: str
    prepare: Prepare | None = None
    files: dict[str, str] = field(default_factory=dict)


def _plan_of_small(folder: Path) -> Path:
    """A planned run of small.toml, below runs/ under the name ``mine``."""
    from workbench.job import open_job
    from workbench.runs import RunFolder

    job = open_job(str(folder / "small.toml"))
    run = RunFolder.of(job, folder / "runs")
    run.save_plan(job, job.plan())
    return run.path.rename(folder / "runs" / "mine")


def _edit(change: Callable[[dict[str, Any]], None]) -> Prepare:
    def prepare(folder: Path, _: pytest.MonkeyPatch) -> None:
        path = _plan_of_small(folder) / "plan.json"
        envelope = json.loads(path.read_text())
        change(envelope)
        path.write_text(json.dumps(envelope))

    return prepare


def _halve_the_makespan(envelope: dict[str, Any]) -> None:
    envelope["plan"]["makespan_s"] *= 0.5


def _age(envelope: dict[str, Any]) -> None:
    envelope["version"] = 99


def _tear(folder: Path, _: pytest.MonkeyPatch) -> None:
    path = _plan_of_small(folder) / "plan.json"
    path.write_text(path.read_text()[:200])


def _forget_the_plan(folder: Path, _: pytest.MonkeyPatch) -> None:
    (_plan_of_small(folder) / "plan.json").unlink()


def _two_studies(folder: Path, _: pytest.MonkeyPatch) -> None:
    _plan_of_small(folder)
    other = folder / "runs" / "other"
    other.mkdir()
    (other / "spec.json").write_text(json.dumps({"study": "pipeline"}))


def _run_folder(folder: Path, _: pytest.MonkeyPatch) -> None:
    _plan_of_small(folder)


def _gurobi_without(errno: str) -> Prepare:
    """Gurobi as a machine without a licence for the model sees it."""
    def prepare(_: Path, patch: pytest.MonkeyPatch) -> None:
        gurobipy = pytest.importorskip("gurobipy", reason="the Gurobi back-end is not installed")

        def refuse(*arguments: object, **options: object) -> None:
            raise gurobipy.GurobiError(getattr(gurobipy.GRB.Error, errno), "license refused")

        patch.setattr(gurobipy, "Env", refuse)

    return prepare


def _no_ortools(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "ortools", None)
    patch.setitem(sys.modules, "ortools.sat.python", None)


def _no_gpu(_: Path, patch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="measuring a GPU needs the extra 'run'")
    patch.setattr(torch.cuda, "is_available", lambda: False)


def _latin(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "latin.toml").write_bytes('study = "é"'.encode("latin-1"))


def _needs_tables(_: Path, __: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiconfigurator_core", reason="GPU kernel tables need the extra 'gpu-tables'")


FAULTS = {
    "misspelt study": Fault(typed="plan placment", code=2, names="placment", allows="placement", next="wb list"),
    "misspelt verb": Fault(typed="pln small.toml", code=2, names="pln", allows="simulate", next="wb --help"),
    "misspelt option": Fault(typed="plan small.toml --sett a=1", code=2, names="--sett", allows="--set",
                             next="wb --help"),
    "misspelt key": Fault(typed="plan small.toml --set budget_usd_per_hour=3", code=2, names="budget_usd_per_hour",
                          allows="budget_usd_per_h", next="wb schema placement"),
    "wrong unit": Fault(typed="plan small.toml --set simulation.duration_s=10min", code=2, names="'10min'",
                        allows="duration_s = 10", next="wb schema placement"),
    "word for a number": Fault(typed="plan small.toml --set budget_usd_per_h=much", code=2, names="'much'",
                               allows="a valid number", next="wb schema placement"),
    "value out of range": Fault(typed="plan small.toml --set devices.0.available=-1", code=2,
                                names="devices.0.available", allows="greater than or equal to 0",
                                next="wb schema placement"),
    "parts that cannot be together": Fault(typed="plan circuit --set machine.local_qubits=0", code=2, names="machine",
                                           allows="at least one local qubit", next="wb schema circuit"),
    "no time to search": Fault(typed="plan small.toml --set planner.time_limit_s=0", code=2,
                               names="planner.time_limit_s", allows="greater than 0", next="wb schema placement"),
    "index too large": Fault(typed="plan small.toml --set devices.7.available=1", code=2, names="'7'",
                             allows="0, 1, 2", next="wb schema STUDY"),
    "missing spec file": Fault(typed="plan smal.toml", code=2, names="smal.toml", allows="small.toml", next="wb list"),
    "missing required key": Fault(typed="plan nodevices.toml", code=2, names="devices", allows="required",
                                  next="wb schema placement", files={"nodevices.toml": 'study = "placement"\n'}),
    "no study named": Fault(typed="plan nostudy.toml", code=2, names='study = "NAME"', allows="placement",
                            next="wb list", files={"nostudy.toml": "budget_usd_per_h = 8.0\n"}),
    "broken TOML": Fault(typed="plan broken.toml", code=2, names="line 2", allows="reads: budget_usd_per_h = = 8",
                         next="wb schema STUDY",
                         files={"broken.toml": 'study = "placement"\nbudget_usd_per_h = = 8\n'}),
    "a text that is not UTF-8": Fault(typed="plan latin.toml", code=2, names="latin.toml", allows="UTF-8",
                                      next="wb schema STUDY",
                                      prepare=_latin),
    "unwritable folder": Fault(typed="plan small.toml --runs small.toml/runs", code=1, names="Not a directory",
                               allows="a folder you can write to", next="wb plan small.toml --runs FOLDER"),
    "unwritable folder for claims": Fault(typed="reproduce placement --claim worked-example-uniform --runs small.toml",
                                          code=1, names="Not a directory", allows="a folder you can write to",
                                          next="wb reproduce placement --claim worked-example-uniform --runs FOLDER"),
    "unwritable folder for the tour": Fault(typed="tour --runs small.toml/x", code=1, names="Not a directory",
                                            allows="a folder you can write to", next="wb tour --runs FOLDER"),
    "no GPU to measure": Fault(typed="profile --device cuda", code=1, names="no CUDA device", allows="cpu",
                               next="wb doctor", prepare=_no_gpu),
    "no GPU to run on": Fault(typed="run toy.toml --device cuda", code=2, names="no CUDA device", allows="cpu",
                              next="wb doctor", prepare=_no_gpu,
                              files={"toy.toml": TOY}),
    "no such device": Fault(typed="run toy.toml --device tpu", code=2, names="'tpu'", allows="auto, cpu, cuda",
                            next="wb run --help",
                            files={"toy.toml": TOY}),
    "no solver licence": Fault(typed="plan small.toml --set planner.solver=gurobi --set planner.name=program", code=6,
                               names="no valid Gurobi licence", allows="highs, cbc, cpsat",
                               next="wb plan SPEC --set planner.solver=highs",
                               prepare=_gurobi_without("NO_LICENSE")),
    "licence for small models only": Fault(
        typed="plan small.toml --set planner.solver=gurobi --set planner.name=program", code=6,
        names="does not cover a model of", allows="highs, cbc, cpsat", next="wb plan SPEC --set planner.solver=highs",
        prepare=_gurobi_without("SIZE_LIMIT_EXCEEDED")),
    "solver not installed": Fault(typed="plan small.toml --set planner.solver=cpsat --set planner.name=program",
                                  code=6, names="cpsat", allows="highs, cbc, gurobi", next="pip install",
                                  prepare=_no_ortools),
    "unknown solver": Fault(typed="plan small.toml --set planner.solver=hihgs", code=2, names="'hihgs'",
                            allows="highs, cbc, gurobi, cpsat", next="wb schema placement"),
    "unknown planner": Fault(typed="plan small.toml --set planner.name=exakt", code=2, names="'exakt'",
                             allows="did you mean 'exact'", next="wb schema placement"),
    "unknown cost source": Fault(typed="plan placement --set costs.source=aiconfig", code=2, names="'aiconfig'",
                                 allows="aiconfigurator", next="wb schema placement"),
    "no profile for a device": Fault(typed="plan placement --set devices.2.name=RTX4090", code=4,
                                     names="no tables of RTX4090", allows="costs.fallback",
                                     next="wb plan SPEC --set costs.fallback=analytic", prepare=_needs_tables),
    "no costs at all": Fault(typed="plan nocosts.toml", code=4, names="no profile of op 'gemm'", allows="[costs]",
                             next="wb profile gemm",
                             files={"nocosts.toml": DEMO.replace('[costs]\nsource = "aiconfigurator"\n', "")}),
    "no kernel times": Fault(typed="plan toy.toml", code=4, names="no measured times", allows="a100-atlas",
                             next="wb profile circuit",
                             files={"toy.toml": TOY[:TOY.index("[costs]")]}),
    "no profile folder": Fault(typed="plan placement --set costs.source=measured --set costs.folder=profiles", code=2,
                               names="no profile tables here", allows="wb profile", next="wb profile --help"),
    "infeasible budget": Fault(typed="plan small.toml --set budget_usd_per_h=1", code=3, names="budget",
                               allows="from 1 to 2", next="wb schema placement"),
    "empty trace": Fault(typed="plan traced.toml", code=2, names="empty.csv: the file is empty",
                         allows="at least one request", next="wb traces list",
                         files={"traced.toml": DEMO.replace('"azure-2023-conv"', '"empty.csv"'), "empty.csv": ""}),
    "trace without rows": Fault(typed="plan traced.toml", code=2, names="there are no requests in it",
                                allows="requests", next="wb traces list",
                                files={"traced.toml": DEMO.replace('"azure-2023-conv"', '"rows.csv"'),
                                       "rows.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n"}),
    "misspelt trace": Fault(typed="plan traced.toml", code=2, names="'azure-2023-con'", allows="azure-2023-conv",
                            next="wb traces list",
                            files={"traced.toml": DEMO.replace('"azure-2023-conv"', '"azure-2023-con"')}),
    "misspelt data set": Fault(typed="traces fetch azure-2023-con", code=2, names="azure-2023-con",
                               allows="azure-2023-conv", next="wb traces list"),
    "nothing named to fetch": Fault(typed="traces fetch", code=2, names="wants a name", allows="name",
                                    next="wb traces list"),
    "plan edited by hand": Fault(typed="check mine", code=5, names="changed after the planner wrote it",
                                 allows="certificate no longer holds", next="wb plan runs/mine",
                                 prepare=_edit(_halve_the_makespan)),
    "wrong plan version": Fault(typed="check runs/mine", code=2, names="version 99", allows="version 1",
                                next="wb plan runs/mine", prepare=_edit(_age)),
    "torn plan": Fault(typed="simulate runs/mine", code=2, names="not valid JSON", allows="plan.json",
                       next="wb plan runs/mine", prepare=_tear),
    "run folder without a plan": Fault(typed="check runs/mine", code=2, names="there is no plan yet",
                                       allows="plan.json", next="wb plan runs/mine", prepare=_forget_the_plan),
    "folder that is no run": Fault(typed="check .", code=2, names="no run folder", allows="a TOML file",
                                   next="wb plan SPEC"),
    "a key set on a run folder": Fault(typed="plan runs/mine --set budget_usd_per_h=9", code=2, names="--set",
                                       allows="a spec file", next="wb plan SPEC --set budget_usd_per_h=9",
                                       prepare=_run_folder),
    "runs of different studies": Fault(typed="compare mine other", code=2, names="'pipeline'",
                                       allows="two runs of one study", next="wb plan placement --set KEY=VALUE",
                                       prepare=_two_studies),
    "no such run": Fault(typed="compare mine mien", code=2, names="'mien'", allows="mine", next="wb plan SPEC",
                         prepare=_run_folder),
    "verb not built": Fault(typed="run small.toml", code=7, names="not built", allows="simulated",
                            next="wb simulate small.toml"),
    "nothing to sweep": Fault(typed="sweep small.toml", code=2, names="no [sweep] section", allows="sweep.over",
                              next="wb sweep small.toml --set"),
    "unknown kernel": Fault(typed="profile gem", code=2, names="'gem'", allows="gemm", next="wb profile --help"),
    "budget that is no time": Fault(typed="profile --budget soon", code=2, names="'soon'", allows="5m",
                                    next="wb profile --budget 90s"),
    "unknown claim": Fault(typed="reproduce placement --claim speed", code=2, names="'speed'",
                           allows="worked-example", next="wb reproduce placement"),
    "no benchmarks here": Fault(typed="bench placement", code=7, names="no benchmarks", allows="source checkout",
                                next="cd "),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_screen_that_names_it_and_says_what_to_type(
        name: str, wb: Wb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    (tmp_path / "small.toml").write_text(SMALL_SPEC)
    for file, text in fault.files.items():
        (tmp_path / file).write_text(text)
    if fault.prepare is not None:
        fault.prepare(tmp_path, monkeypatch)
    try:
        code, out, err = wb(*shlex.split(fault.typed))
    except SystemExit as left:  # the command line's own faults
        code, out, err = int(str(left.code)), "", wb_said(wb)
    assert code == fault.code, err
    assert out == "", "data only on success"
    check_message(fault, err)


def wb_said(wb: Wb) -> str:
    """What was printed before the parser left: the runner's capture still holds it."""
    capture = next(c.cell_contents for c in wb.__closure__ or () if hasattr(c.cell_contents, "readouterr"))
    return str(capture.readouterr().err)


def check_message(fault: Fault, err: str) -> None:
    lines = err.splitlines()
    shown = sum(max(1, math.ceil(len(line) / SCREEN_COLUMNS)) for line in lines)
    assert shown <= SCREEN_LINES, f"{shown} lines of {SCREEN_COLUMNS} columns:\n{err}"
    assert "Traceback" not in err
    for part in (fault.names, fault.allows):
        assert part in err, f"{part!r} is not in:\n{err}"
    proposed = [line.strip().removeprefix("next: ") for line in lines if line.strip().startswith("next: ")]
    assert proposed, f"no next command in:\n{err}"
    assert any(command.startswith(fault.next) for command in proposed), proposed
    for command in proposed:
        assert understood(command), f"wb does not understand {command!r}"


def understood(command: str) -> bool:
    """Whether a proposed command has verbs and options that exist (placeholders in capitals stand for words)."""
    words = shlex.split(command.split("&&")[-1])
    if words[0] != "wb":
        return words[0] in ("pip", "rm", "make")
    try:
        args = parser().parse_args(words[1:])
    except SystemExit as left:
        return left.code == 0  # --help
    if args.verb == "profile":
        from profilers.family import ops_of

        ops_of(args.kernels, args.device)
    return True


def test_a_fault_reads_the_same_from_the_shell(tmp_path: Path) -> None:
    """Through a process of its own: exit code, nothing on stdout, the message on stderr."""
    done = subprocess.run([sys.executable, "-m", "workbench", "plan", "placment"], cwd=tmp_path, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert (done.returncode, done.stdout) == (2, "")
    check_message(FAULTS["misspelt study"], done.stderr)


def test_there_are_more_faults_than_the_bar_asks_for() -> None:
    assert len(FAULTS) >= 15

"""The command line: frozen options, data on stdout, and a clear error with the next command for every fault."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.cli import parser, table

Wb = Callable[..., tuple[int, str, str]]

OPTIONS = {
    "doctor": {"--json"},
    "list": {"--json"},
    "schema": {"--json"},
    "plan": {"--json", "--set", "--runs"},
    "check": {"--json", "--set", "--runs"},
    "simulate": {"--json", "--set", "--runs"},
    "run": {"--json", "--set", "--runs", "--device"},
    "report": {"--json", "--set", "--runs"},
    "compare": {"--json", "--runs"},
    "reproduce": {"--json", "--claim", "--full", "--runs"},
    "tour": {"--json", "--runs"},
    "sweep": {"--json", "--set", "--runs"},
    "traces": {"--json"},
    "profile": {"--json", "--device", "--budget", "--profiles", "--report"},
    "bench": {"--json"},
}


def test_the_option_set_is_frozen() -> None:
    """New knobs go into the spec; changing an option is a deliberate act that edits this table."""
    verbs = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    found = {name: {o for a in sub._actions for o in a.option_strings if o.startswith("--")} - {"--help"}
             for name, sub in verbs.items()}
    assert found == OPTIONS


def test_wb_and_python_m_workbench_are_the_same_program() -> None:
    script = Path(sys.executable).with_name("wb")
    if not script.exists():
        pytest.skip("the package is not installed; make install puts wb beside python")
    helps = [subprocess.run(command, capture_output=True, text=True, check=True).stdout
             for command in ([str(script), "--help"], [sys.executable, "-m", "workbench", "--help"])]
    assert helps[0] == helps[1]


def test_help_is_quick() -> None:
    """Bar: wb --help < 0.3 s. Processor time, the least of five: on a quiet machine it is the wall time."""
    resource = pytest.importorskip("resource", reason="processor time of children needs POSIX")
    least = 9.0
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "workbench", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert least < 0.3


def test_plan_check_and_compare_of_a_small_spec(wb: Wb, small_spec: Path) -> None:
    code, out, err = wb("plan", str(small_spec), "--json")
    assert code == 0, err
    data = json.loads(out)
    assert data["plan"]["certificate"]["status"] == "optimal"
    first = Path(data["run"])
    assert {p.name for p in first.iterdir()} >= {"spec.json", "plan.json", "manifest.json"}
    assert wb("check", str(first))[0] == 0
    code, out, _ = wb("plan", str(small_spec), "--set", "budget_usd_per_h=12", "--json")
    second = Path(json.loads(out)["run"])
    assert first != second
    code, out, _ = wb("compare", first.name, second.name, "--json")
    compared = json.loads(out)
    assert [row["key"] for row in compared["spec"]] == ["problem.budget_usd_per_h"]
    makespan = next(r for r in compared["metrics"] if (r["metric"], r["clock"]) == ("makespan_s", "planned"))
    assert makespan[second.name] / makespan[first.name] == makespan["ratio"] < 1, "more budget, sooner done"
    assert len(compared["decided"]) == 2
    assert code == 0


def test_the_same_question_lands_in_the_same_folder(wb: Wb, small_spec: Path) -> None:
    runs = {json.loads(wb("plan", str(small_spec), "--json")[1])["run"] for _ in range(2)}
    assert len(runs) == 1


def test_a_plan_edited_by_hand_or_of_another_version_is_refused(wb: Wb, small_spec: Path) -> None:
    run = Path(json.loads(wb("plan", str(small_spec), "--json")[1])["run"])
    envelope = json.loads((run / "plan.json").read_text())
    changed = json.loads(json.dumps(envelope))
    changed["plan"]["makespan_s"] *= 0.5
    (run / "plan.json").write_text(json.dumps(changed))
    code, _, err = wb("check", str(run))
    assert code == 5
    assert "changed after the planner wrote it" in err
    assert "next: wb plan" in err
    (run / "plan.json").write_text(json.dumps(envelope | {"version": 99}))
    code, _, err = wb("check", str(run))
    assert code == 2
    assert "version 99" in err


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (["plan", "placment"], 2, "did you mean 'placement'"),
    (["plan", "nowhere.toml"], 2, "no such file"),
    (["schema", "circus"], 2, "next: wb list"),
    (["compare", "a", "b"], 2, "no run folder"),
    (["sweep", "SPEC"], 2, "no [sweep] section"),
    (["plan", "SPEC", "--set", "budget_usd_per_hour=3"], 2, "did you mean 'budget_usd_per_h'"),
    (["plan", "SPEC", "--set", "planner.name=exakt"], 2, "did you mean 'exact'"),
    (["plan", "SPEC", "--set", "planner.solver=hihgs"], 2, "did you mean 'highs'"),
    (["plan", "SPEC", "--set", "budget_usd_per_h=1"], 3, "budget"),
    (["run", "SPEC"], 7, "not built"),
    (["plan", "SPEC", "--runs", "SPEC"], 1, "cannot write"),
])
def test_each_fault_has_its_exit_code_and_a_helpful_message(
        wb: Wb, small_spec: Path, arguments: list[str], code: int, says: str) -> None:
    found, out, err = wb(*(str(small_spec) if a == "SPEC" else a for a in arguments))
    assert (found, out) == (code, ""), err
    assert says in err
    assert len(err.splitlines()) <= 24, "one screen"


def test_several_faults_are_listed_together(wb: Wb, small_spec: Path) -> None:
    text = small_spec.read_text().replace("budget_usd_per_h", "budget").replace("available = 2", "avail = 2", 1)
    small_spec.write_text(text + '\n[planner]\nname = "exakt"\n')
    code, _, err = wb("plan", str(small_spec))
    assert code == 2
    for part in ("budget", "devices.0.avail", "planner.name", "wb schema placement"):
        assert part in err


def test_list_and_schema_and_doctor_give_data(wb: Wb) -> None:
    names = [row["study"] for row in json.loads(wb("list", "--json")[1])]
    assert "placement" in names
    fields = {row["key"] for row in json.loads(wb("schema", "placement", "--json")[1])["fields"]}
    assert {"budget_usd_per_h", "devices[].price_usd_per_h", "planner.solver", "sweep.over"} <= fields
    assert {row["state"] for row in json.loads(wb("doctor", "--json")[1])} <= {"yes", "no"}


def test_tables_align_numbers_right_and_show_absent_as_blank() -> None:
    assert table([{"name": "a", "value": 12345.6}, {"name": "bc", "value": None}]).splitlines() == [
        "name   value", "----  ------", "a     12,346", "bc"]

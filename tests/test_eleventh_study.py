"""Another study is new files and nothing else: it is listed, toured, reproduced and held to the contract.

The stub lives in a folder of its own, which ``WB_STUDIES`` names; not one file of the checkout changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PLANNER = '''"""boxes: which boxes to carry so that they are worth most and fit.

Maximise the worth of the boxes taken under one capacity, by looking at every subset (arXiv 0000.00000, an invention).
"""

import itertools
import time

from workbench.errors import SpecError
from workbench.outcome import Metric
from workbench.plan import Bound, Certificate, Violation
from workbench.spec import about, spec

PLANNERS = {"all": "every subset", "greedy": "heaviest last"}


@spec
class Box:
    name: str = about("What is in it.")
    weight_kg: float = about("What it weighs.")
    worth_usd: float = about("What it is worth.")


@spec
class Problem:
    capacity_kg: float = about("What can be carried.")
    boxes: tuple[Box, ...] = about("The boxes.")


@spec
class Plan:
    taken: tuple[str, ...] = about("Names of the boxes taken.")
    certificate: Certificate = about("Proof.")
    sources: dict[str, float] = about("Shares of cost sources.")


def _subsets(problem):
    for count in range(len(problem.boxes) + 1):
        for chosen in itertools.combinations(problem.boxes, count):
            if sum(b.weight_kg for b in chosen) <= problem.capacity_kg:
                yield sum(b.worth_usd for b in chosen), tuple(b.name for b in chosen)


def plan(problem, costs, *, planner="all", solver="highs", time_limit_s=60.0, seed=0):
    start = time.perf_counter()
    worth, taken = max(_subsets(problem))
    proof = Certificate(objective=worth, bound=worth, sense="max", unit="$", status="optimal", planner=planner,
                        seconds=time.perf_counter() - start)
    return Plan(taken=taken, certificate=proof, sources={"analytic": 1.0})


def check(problem, plan):
    weight = sum(b.weight_kg for b in problem.boxes if b.name in plan.taken)
    if weight > problem.capacity_kg:
        return [Violation(rule="capacity", where="plan", detail=f"{weight} kg of {problem.capacity_kg} kg")]
    return []


def bound(problem, costs):
    return Bound(value=sum(b.worth_usd for b in problem.boxes), kind="combinatorial", seconds=0.0)


def predicted(problem, plan):
    return (Metric(name="carry_s", value=float(len(plan.taken)), unit="s", about="One second a box."),)


def decision(plan):
    return [{"take": name} for name in plan.taken]


def headline(plan):
    return f"take {len(plan.taken)} boxes"


def in_words(plan):
    return f"Take {', '.join(plan.taken)}."


def comparison(problem, costs, plan):
    return [("Beside nothing", [{"plan": "this plan", "worth_usd": plan.certificate.objective}])]
'''

EXECUTOR = '''"""boxes: carry them one after the other."""

from workbench.errors import NotBuilt
from workbench.outcome import Metric, Outcome
from workbench.report import Section, Text
from workbench.reproduce import Reproduced
from workbench.timeline import Span, Timeline

CLAIMS = {"worth": lambda: Reproduced(value=7.0, clock="planned")}


def simulate(problem, plan, costs):
    line = Timeline.from_spans([Span(device="porter", stream="carry", name=name, start_s=k, end_s=k + 1.0)
                                for k, name in enumerate(plan.taken)])
    return Outcome(clock="simulated", metrics=(Metric(name="carry_s", value=line.makespan_s, unit="s"),), timeline=line)


def run(problem, plan, *, device):
    raise NotBuilt("there is no porter", next_command="wb simulate boxes")


def verify(problem, plan, outcome):
    return []


def sections(problem, plan, costs, outcome):
    return [Section("On the stairs", [Text("One after the other.")])]
'''

SPEC = '''study = "boxes"
capacity_kg = 5.0
boxes = [
    { name = "lamp", weight_kg = 3.0, worth_usd = 4.0 },
    { name = "books", weight_kg = 4.0, worth_usd = 5.0 },
    { name = "kettle", weight_kg = 2.0, worth_usd = 3.0 },
]
'''

CLAIMS = '''paper = "An invention"
[[claims]]
id = "worth"
claim = "The best load is worth 7 $."
value = 7.0
unit = "$"
tolerance = 0.0
source = "table 1"
minutes = 0.01
'''

FILES = {"planners/boxes.py": PLANNER, "executors/boxes.py": EXECUTOR, "traces/specs/boxes.toml": SPEC,
         "traces/published/boxes.toml": CLAIMS}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stub's files and no others."""
    folder = tmp_path_factory.mktemp("studies")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def python(home: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, text=True, capture_output=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "WB_STUDIES": str(home)})


def wb(home: Path, *arguments: str, cwd: Path) -> str:
    done = python(home, "-m", "workbench", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_beside_the_others(home: Path, tmp_path: Path) -> None:
    rows = {row["study"]: row for row in json.loads(wb(home, "list", "--json", cwd=tmp_path))}
    assert rows["boxes"] == {"study": "boxes", "plans": "which boxes to carry so that they are worth most and fit.",
                             "planners": "all, greedy", "executor": "yes"}
    assert "placement" in rows


def test_the_tour_visits_it(home: Path, tmp_path: Path) -> None:
    told = json.loads(wb(home, "tour", "--json", cwd=tmp_path))
    (row,) = [row for row in told["studies"] if row["study"] == "boxes"]
    assert (row["plan"], row["check"], row["simulate"], row["run"], row["note"]) == (
        "optimal", "no violation", "done", "not built", "there is no porter")
    assert {"study": "boxes", "metric": "carry_s", "predicted": 2.0, "simulated": 2.0, "measured": None,
            "unit": "s"} in told["metrics"]


def test_it_passes_the_contract(home: Path) -> None:
    done = python(home, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "-k", "boxes", "tests/test_contract.py",
                  cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout and "skipped" not in done.stdout
    passed = int(done.stdout.strip().splitlines()[-1].split(" passed")[0].split()[-1])
    functions = [line for line in (ROOT / "tests/test_contract.py").read_text().splitlines()
                 if line.startswith("def test_") and ("found" in line or "planned" in line)]
    assert passed == len(functions) >= 9


def test_it_has_a_page_and_its_claims(home: Path, tmp_path: Path) -> None:
    claims = json.loads(wb(home, "reproduce", "boxes", "--json", cwd=tmp_path))
    assert [(row["claim"], row["verdict"]) for row in claims] == [("worth", "reproduced")]
    page = Path(json.loads(wb(home, "report", "boxes", "--json", cwd=tmp_path))["report"])
    text = (tmp_path / page).read_text()
    for part in ("take 2 boxes", "On the stairs", "Gantt chart, simulated", "The best load is worth 7 $."):
        assert part in text


def test_without_the_folder_there_is_no_such_study(home: Path, tmp_path: Path) -> None:
    done = python(tmp_path, "-m", "workbench", "plan", "boxes", cwd=tmp_path)
    assert done.returncode == 2
    assert "neither a spec file nor a study" in done.stderr
    done = python(tmp_path / "absent", "-m", "workbench", "list", cwd=tmp_path)
    assert done.returncode == 2
    assert "WB_STUDIES" in done.stderr

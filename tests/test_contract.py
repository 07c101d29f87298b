"""Every study keeps the contract of DESIGN.md; a new study is tested here without an edit."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
import typing

import pytest

from workbench import study
from workbench.errors import MissingProfile, NotBuilt
from workbench.job import Job, open_job
from workbench.plan import Bound, Certificate
from workbench.spec import dump, fields_of, parse

STUDIES = study.names()
CLAIM_KEYS = {"id", "claim", "value", "unit", "tolerance", "source", "minutes"}


@pytest.fixture(scope="module", params=STUDIES)
def found(request: pytest.FixtureRequest) -> study.Study:
    return study.load(request.param)


@pytest.fixture(scope="module")
def planned(found: study.Study) -> tuple[Job, typing.Any]:
    job = open_job(found.name)
    try:
        return job, job.plan()
    except MissingProfile as error:
        pytest.skip(f"the demo's cost tables are not installed: {error}")


def parameters(function: typing.Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_there_is_a_study() -> None:
    assert STUDIES


def test_planner_exports_the_contract(found: study.Study) -> None:
    planner = found.planner
    assert parameters(planner.plan) == ["problem", "costs", "planner", "solver", "time_limit_s", "seed"]
    assert parameters(planner.check) == ["problem", "plan"]
    assert parameters(planner.bound) == ["problem", "costs"]
    assert parameters(planner.predicted) == ["problem", "plan"]
    assert parameters(planner.decision) == ["plan"]
    assert parameters(planner.comparison) == ["problem", "costs", "plan"]
    assert parameters(planner.headline) == parameters(planner.in_words) == ["plan"]
    assert planner.PLANNERS
    assert all(planner.PLANNERS.values())
    assert typing.get_type_hints(planner.Plan)["certificate"] is Certificate
    assert "sources" in typing.get_type_hints(planner.Plan)


def test_executor_exports_the_contract(found: study.Study) -> None:
    try:
        executor = found.executor()
    except NotBuilt:
        pytest.skip(f"{found.name} has no executor yet")
    assert parameters(executor.simulate) == ["problem", "plan", "costs"]
    assert parameters(executor.run) == ["problem", "plan", "device"]
    assert parameters(executor.verify) == ["problem", "plan", "outcome"]
    assert parameters(executor.sections) == ["problem", "plan", "costs", "outcome"]


def test_every_field_of_a_problem_is_described(found: study.Study) -> None:
    assert [f.path for f in fields_of(found.planner.Problem) if not f.about] == []
    assert [f.path for f in fields_of(found.planner.Plan) if not f.about] == []
    assert dataclasses.fields(found.planner.Problem)


def test_the_module_head_is_short_and_names_the_paper(found: study.Study) -> None:
    head = found.planner.__doc__ or ""
    assert len(head.strip().splitlines()) <= 15
    assert "arXiv" in head
    assert found.title.startswith(f"{found.name}: ")


def test_published_claims_have_value_unit_tolerance_and_source(found: study.Study) -> None:
    claims = tomllib.loads(found.claims.read_text(encoding="utf-8"))["claims"]
    assert claims
    for claim in claims:
        assert set(claim) >= CLAIM_KEYS, f"{claim.get('id')}: missing {CLAIM_KEYS - set(claim)}"
    ids = [c["id"] for c in claims]
    assert len(ids) == len(set(ids))


def test_the_demo_plan_keeps_its_own_rules_and_its_bound(planned: tuple[Job, typing.Any]) -> None:
    job, plan = planned
    assert job.study.planner.check(job.problem, plan) == []
    bound = job.study.planner.bound(job.problem, job.costs)
    assert isinstance(bound, Bound)
    slack = 1e-6 * abs(plan.certificate.objective)
    if plan.certificate.sense == "min":
        assert bound.value <= plan.certificate.objective + slack
    else:
        assert bound.value >= plan.certificate.objective - slack


def test_problem_and_plan_survive_the_trip_to_disk(planned: tuple[Job, typing.Any]) -> None:
    job, plan = planned
    assert parse(type(plan), dump(plan)) == plan
    assert parse(type(job.problem), dump(job.problem)) == job.problem


def test_planning_twice_gives_the_same_plan(planned: tuple[Job, typing.Any]) -> None:
    job, plan = planned
    again = dump(open_job(job.study.name).plan())
    first = dump(plan)
    for body in (again, first):
        body["certificate"].pop("seconds")
    assert again == first


def test_decision_and_prediction_are_rows_for_people(planned: tuple[Job, typing.Any]) -> None:
    job, plan = planned
    assert job.study.planner.decision(plan)
    assert len(job.study.planner.headline(plan)) <= 80
    assert job.study.planner.in_words(plan).endswith(".")
    assert sum(plan.sources.values()) == pytest.approx(1)
    metrics = job.study.planner.predicted(job.problem, plan)
    assert metrics
    assert all(m.about for m in metrics)
    assert len({m.name for m in metrics}) == len(metrics)

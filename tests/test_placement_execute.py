"""placement: the planned fleet on the virtual clock keeps the plan's shares, its makespan and its own invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from executors import placement as executor
from planners import placement
from planners.placement.problem import Enumeration, Offer, Problem, Simulation, Traffic, Workload
from tests.placement_cases import NO_COSTS, random_case
from tests.test_placement_plan import worked_example
from traces.profiles import analytic
from workbench.errors import CheckFailed, Infeasible, NotBuilt

COSTS = analytic.open(analytic.Options())
BRIEF = Simulation(duration_s=120.0, load=0.5)


def grown(problem: Problem, factor: float) -> Problem:
    return replace(problem, simulation=BRIEF,
                   workloads=tuple(replace(w, requests=w.requests * factor) for w in problem.workloads))


def test_simulated_makespan_tends_to_the_planned_one_as_demand_grows() -> None:
    errors = []
    for factor in (1, 10, 100):
        problem = grown(worked_example(), factor)
        plan = placement.plan(problem, NO_COSTS)
        outcome = executor.simulate(problem, plan, NO_COSTS)
        # Whole requests cannot be split: at most one of each type on each replica beyond its share.
        slack = sum(1 / r.per_s for d in plan.deployments for r in d.throughputs.values())
        assert abs(outcome["makespan_s"] - plan.makespan_s) <= slack
        errors.append(abs(outcome["makespan_s"] / plan.makespan_s - 1))
    assert errors[2] < 0.005
    assert errors[2] <= errors[0]


def test_simulated_makespan_of_random_plans_is_the_planned_one_up_to_whole_requests() -> None:
    played = 0
    for seed in range(12):
        problem = grown(random_case(np.random.default_rng(seed), types=3).problem, 20)
        try:
            plan = placement.plan(problem, NO_COSTS)
        except Infeasible:
            continue
        outcome = executor.simulate(problem, plan, NO_COSTS)
        slack = max(math.fsum(1 / r.per_s for r in d.throughputs.values()) for d in plan.deployments)
        # Replicas of one configuration get requests by tokens outstanding, which is not quite their time.
        assert outcome["makespan_s"] == pytest.approx(plan.makespan_s, rel=0.03, abs=2 * slack), f"seed {seed}"
        played += 1
    assert played > 6


def test_the_router_keeps_the_planned_shares_to_within_one_request() -> None:
    problem = grown(worked_example(), 10)
    plan = placement.plan(problem, NO_COSTS)
    frame = executor.simulate(problem, plan, NO_COSTS).tables["requests"]
    group = [d.configuration for d in plan.deployments for _ in range(d.replicas)]
    kind = frame["input_tokens"].to_numpy() - 1  # stated throughputs: the type is written as the prompt length
    where = np.array(group)[frame["replica"].to_numpy()]
    for k, w in enumerate(plan.workloads):
        for d in plan.deployments:
            sent = int(((kind == k) & (where == d.configuration)).sum())
            assert abs(sent - d.shares.get(w.name, 0.0) * (kind == k).sum()) <= 1.0


def test_the_same_plan_plays_the_same_way() -> None:
    problem = grown(worked_example(), 3)
    plan = placement.plan(problem, NO_COSTS)
    first, second = (executor.simulate(problem, plan, NO_COSTS) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.tables["requests"].equals(second.tables["requests"])


def test_the_outcome_verifies_and_a_tampered_one_does_not() -> None:
    problem = grown(worked_example(), 3)
    plan = placement.plan(problem, NO_COSTS)
    outcome = executor.simulate(problem, plan, NO_COSTS)
    assert executor.verify(problem, plan, outcome) == []
    early = outcome.tables["requests"].copy()
    early.loc[3, "finish_s"] = early.loc[3, "arrival_s"] - 1.0
    found = executor.verify(problem, plan, replace(outcome, tables={"requests": early}))
    assert {v.rule for v in found} == {"finished after the first token"}
    with pytest.raises(CheckFailed):
        executor.verify(problem, plan, replace(outcome, tables={}))


def test_running_for_real_says_plainly_that_it_is_not_built() -> None:
    problem = worked_example()
    with pytest.raises(NotBuilt, match="not built"):
        executor.run(problem, placement.plan(problem, NO_COSTS), device="cpu")


# --- replicas on the serving simulator --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def served() -> tuple[Problem, placement.Plan]:
    problem = Problem(
        devices=(Offer(name="H100-SXM", available=2, price_usd_per_h=2.99),
                 Offer(name="A40", available=4, price_usd_per_h=0.55)),
        budget_usd_per_h=6.0,
        workloads=(Workload(name="long", model="llama-3.1-8b", requests=300, input_tokens=1500, output_tokens=200),
                   Workload(name="short", model="llama-3.1-8b", requests=700, input_tokens=300, output_tokens=50)),
        enumeration=Enumeration(max_stages=2), simulation=BRIEF)
    return problem, placement.plan(problem, COSTS)


def test_replicas_with_continuous_batching_finish_near_the_plan(served: tuple[Problem, placement.Plan]) -> None:
    problem, plan = served
    outcome = executor.simulate(problem, plan, COSTS)
    assert executor.verify(problem, plan, outcome) == []
    # The plan takes types one after the other at full batches; mixing them, and the tail, may differ.
    assert outcome["makespan_s"] == pytest.approx(plan.makespan_s, rel=0.3)
    assert 0 < outcome["ttft_median_s"] <= outcome["ttft_p99_s"]
    assert len(outcome.tables["replicas"]) == sum(d.replicas for d in plan.deployments)


def test_less_load_means_shorter_waits(served: tuple[Problem, placement.Plan]) -> None:
    problem, plan = served
    waits = [executor.simulate(replace(problem, simulation=replace(BRIEF, load=load)), plan, COSTS)["ttft_mean_s"]
             for load in (0.2, 0.9)]
    assert waits[0] < waits[1]


def test_a_trace_is_replayed_with_its_own_lengths() -> None:
    problem = Problem(
        devices=(Offer(name="H100-SXM", available=2, price_usd_per_h=2.99),), budget_usd_per_h=6.0,
        traffic=(Traffic(model="llama-3.1-8b", trace="azure-conv-like", requests=400),), simulation=BRIEF)
    plan = placement.plan(problem, COSTS)
    assert placement.check(problem, plan) == []
    outcome = executor.simulate(problem, plan, COSTS)
    lengths = set(outcome.tables["requests"]["input_tokens"])
    assert len(lengths) > len(plan.workloads)
    total = sum(w.requests * (w.input_tokens or 0) for w in plan.workloads)
    from planners.placement.demand import requests_of

    assert total == pytest.approx(int(requests_of(problem.traffic[0])[0].input_tokens.sum()), rel=0.002)


def test_the_report_has_its_sections(served: tuple[Problem, placement.Plan]) -> None:
    problem, plan = served
    outcome = executor.simulate(problem, plan, COSTS)
    titles = [s.heading for s in executor.sections(problem, plan, COSTS, outcome)]
    assert titles == ["What other budgets buy", "Latency", "Utilisation"]

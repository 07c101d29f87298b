"""placement: the optimum, its proof, and the rules every plan keeps."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners import placement
from planners.placement import baselines
from planners.placement.exact import Search, fastest
from planners.placement.fleets import fleets_worth
from planners.placement.formulation import assign, relaxation, values
from planners.placement.instance import build, prune
from planners.placement.optimal import prepare
from planners.placement.problem import Plan, Problem
from tests import oracles_placement as oracle
from tests.conftest import SMALL_SPEC
from tests.placement_cases import NO_COSTS, Case, case, random_case
from workbench.errors import Infeasible, SolverError, SpecError
from workbench.spec import dump, parse

SEEDS_OF_200 = range(200)


def worked_example() -> Problem:
    data = tomllib.loads(SMALL_SPEC)
    del data["study"]
    return parse(Problem, data)


def best(c: Case) -> tuple[float, float]:
    return oracle.least_makespan(c.devices, c.price, c.available, c.budget, c.rate, c.requests)


# --- the paper's worked example ---------------------------------------------------------------------------------------

RATE = np.array([[1.0, 1.2], [0.9, 0.9], [0.3, 0.5], [2.4, 1.5]])
REQUESTS = np.array([80.0, 20.0])


@pytest.mark.parametrize(("fleet", "published"), [((1, 1, 1, 0), 44.06), ((1, 2, 0, 0), 35.24), ((1, 0, 0, 1), 30.94)])
def test_worked_example_proportional_assignment_gives_the_published_makespans(
        fleet: tuple[int, ...], published: float) -> None:
    assert oracle.proportional_makespan(fleet, RATE, REQUESTS) == pytest.approx(published, abs=0.005)


def test_worked_example_published_plan_takes_the_published_time_and_ours_is_optimal() -> None:
    problem = worked_example()
    plan = placement.plan(problem, NO_COSTS)
    published = placement.plan(problem, NO_COSTS)
    shares = {"t1": {"w1": 0.15, "w2": 1.0}, "TP2 x t2": {"w1": 0.85}}
    published = replace(published, deployments=tuple(replace(d, shares=shares[d.configuration])
                                                     for d in published.deployments),
                        makespan_s=28.0 + 2 / 3)
    published = replace(published, certificate=replace(published.certificate, objective=28.0 + 2 / 3,
                                                       status="heuristic"))
    assert placement.check(problem, published) == []  # 28.67 s, recomputed by the checker
    assert plan.certificate.status == "optimal"
    assert plan.certificate.gap == 0
    assert plan.makespan_s == pytest.approx(1450 / 51, rel=1e-9)  # by hand: 20/1.2 + x 80/1 = (1 - x) 80/2.4
    assert plan.makespan_s < published.makespan_s


# --- exactness --------------------------------------------------------------------------------------------------------

def test_two_type_closed_form_agrees_with_the_linear_program() -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        rate, y = rng.uniform(0.2, 3.0, (4, 2)), rng.integers(0, 3, 4)
        if y.any():
            requests = rng.uniform(1, 100, 2)
            assert oracle.two_type_makespan(y, rate, requests) == pytest.approx(
                oracle.assignment_makespan(y, rate, requests), rel=1e-9)


@pytest.mark.parametrize("block", range(10))
def test_exact_equals_brute_force(block: int) -> None:
    for seed in SEEDS_OF_200[block * 20:(block + 1) * 20]:
        rng = np.random.default_rng(seed)
        c = random_case(rng, types=int(rng.integers(1, 4)), models=1)
        makespan, cost = best(c)
        if math.isinf(makespan):
            with pytest.raises(Infeasible):
                placement.plan(c.problem, NO_COSTS)
            continue
        plan = placement.plan(c.problem, NO_COSTS)
        assert plan.makespan_s == pytest.approx(makespan, rel=1e-6), f"seed {seed}"
        assert plan.cost_usd_per_h <= cost * (1 + 1e-9), f"seed {seed}: a cheaper fleet is as fast"
        assert plan.certificate.status == "optimal"
        assert plan.certificate.gap == pytest.approx(0, abs=1e-6)
        assert placement.check(c.problem, plan) == []


def test_exact_equals_brute_force_with_several_models_under_one_makespan() -> None:
    for seed in range(15):
        c = random_case(np.random.default_rng(1000 + seed), types=4, models=2)
        makespan, _ = best(c)
        if math.isinf(makespan):
            with pytest.raises(Infeasible):
                placement.plan(c.problem, NO_COSTS)
            continue
        plan = placement.plan(c.problem, NO_COSTS)
        assert plan.makespan_s == pytest.approx(makespan, rel=1e-6), f"seed {seed}"
        assert placement.check(c.problem, plan) == []


def test_least_cost_equals_brute_force() -> None:
    for seed in range(25):
        c = random_case(np.random.default_rng(2000 + seed), types=2, required=True)
        required = c.problem.required_rate_per_s
        assert required is not None
        cost = oracle.least_cost(c.devices, c.price, c.available, c.budget, c.rate, c.requests, required)
        if math.isinf(cost):
            with pytest.raises(Infeasible, match="requests/s"):
                placement.plan(c.problem, NO_COSTS)
            continue
        plan = placement.plan(c.problem, NO_COSTS)
        assert plan.cost_usd_per_h == pytest.approx(cost, rel=1e-9), f"seed {seed}"
        assert placement.check(c.problem, plan) == []
        assert placement.bound(c.problem, NO_COSTS).value <= cost * (1 + 1e-9)


@pytest.mark.parametrize("solver", ["highs", "gurobi"])
def test_the_model_in_one_piece_has_the_same_optimum(solver: str) -> None:
    for seed in range(8):
        c = random_case(np.random.default_rng(9000 + seed), types=3)
        if math.isinf(best(c)[0]):
            continue
        try:
            plan = placement.plan(c.problem, NO_COSTS, planner="program", solver=solver)
        except SolverError as error:
            pytest.skip(f"no {solver} here: {error}")
        assert plan.makespan_s == pytest.approx(best(c)[0], rel=1e-6)
        assert plan.certificate.status == "optimal"
        assert placement.check(c.problem, plan) == []


def test_enumeration_finds_a_fleet_worth_the_target_whenever_there_is_one() -> None:
    rng = np.random.default_rng(13)
    for _ in range(60):
        c = random_case(rng, types=2)
        instance = build(c.problem, c.problem.workloads, _candidates(c))
        cuts = rng.uniform(0.1, 3.0, (int(rng.integers(1, 4)), len(c.devices))) * c.devices.sum(axis=1)
        every = np.array(list(oracle.fleets(c.devices, c.price, c.available, c.budget)))
        worth = (every @ cuts.T).min(axis=1)
        if worth.max() <= 0:
            continue
        target = float(np.quantile(worth, rng.uniform(0.5, 1.0)))
        found = fleets_worth(instance, cuts, target, most_rows=10**6)
        assert found is not None
        assert (found @ cuts.T).min(axis=1).max() == pytest.approx(worth.max())
        assert ((found @ cuts.T).min(axis=1) >= target * (1 - 1e-6)).all()
        assert (found @ c.devices <= c.available).all()
        assert (found @ instance.cost <= c.budget * (1 + 1e-9)).all()
        above = fleets_worth(instance, cuts, float(worth.max()) * (1 + 1e-6), most_rows=10**6)
        assert above is not None
        assert not len(above)
        limit = float(np.quantile(every @ instance.cost, 0.5))
        cheap = fleets_worth(instance, cuts, target, most_rows=10**6, cheaper_than=limit)
        assert cheap is not None
        within = worth[every @ instance.cost < limit - 1e-6]
        assert bool(len(cheap)) == bool((within >= target).any())
        assert (cheap @ instance.cost < limit).all()


def test_enumeration_gives_up_rather_than_keep_too_many_rows() -> None:
    c = case(np.eye(2, dtype=int), np.array([1.0, 1.1]), np.array([9, 9]), np.ones((2, 1)), np.array([1.0]), 15.0)
    instance = build(c.problem, c.problem.workloads, _candidates(c))
    assert fleets_worth(instance, np.array([[1.0, 1.0], [1.0, 1.1]]), 0.1, most_rows=2) is None


def test_where_fleets_are_too_many_the_solver_takes_over_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planners.placement.exact.small_enough", lambda instance: False)
    for seed in range(25):
        c = random_case(np.random.default_rng(seed), types=2)
        makespan, cost = best(c)
        if math.isinf(makespan):
            continue
        plan = placement.plan(c.problem, NO_COSTS)
        assert plan.makespan_s == pytest.approx(makespan, rel=2e-6), f"seed {seed}"
        assert plan.cost_usd_per_h <= cost * (1 + 1e-9)
        assert plan.certificate.status == "optimal"


def test_out_of_time_the_best_fleet_so_far_comes_with_its_honest_bound() -> None:
    for seed in range(5):
        c = random_case(np.random.default_rng(seed), types=2)
        makespan, _ = best(c)
        if math.isinf(makespan):
            continue
        try:
            plan = placement.plan(c.problem, NO_COSTS, time_limit_s=0.0)
        except (Infeasible, SolverError):
            continue
        assert placement.check(c.problem, plan) == []
        assert plan.makespan_s >= makespan * (1 - 1e-9)
        assert (plan.certificate.bound or 0.0) <= makespan * (1 + 1e-6)


def test_one_type_one_configuration_is_the_closed_form() -> None:
    c = case(np.array([[2]]), np.array([1.5]), np.array([9]), np.array([[0.7]]), np.array([100.0]), 10.0)
    plan = placement.plan(c.problem, NO_COSTS)
    assert plan.makespan_s == pytest.approx(oracle.pure_makespan(100.0, 0.7, 1.5, 2, 9, 10.0), rel=1e-12)


def test_pruning_never_changes_the_optimum() -> None:
    dropped = 0
    for seed in range(30):
        c = random_case(np.random.default_rng(3000 + seed), types=2)
        whole = build(c.problem, c.problem.workloads, _candidates(c))
        smaller, count = prune(whole)
        dropped += count
        full, part = best(c)[0], math.inf
        keep = [int(x.name[1:]) for x in smaller.candidates]
        if keep:
            part = oracle.least_makespan(c.devices[keep], c.price, c.available, c.budget, c.rate[keep], c.requests)[0]
        assert part == pytest.approx(full, rel=1e-9) or (math.isinf(part) and math.isinf(full))
    assert dropped > 10  # the test would be empty otherwise


def _candidates(c: Case) -> list[placement.instance.Candidate]:  # type: ignore[name-defined]
    from planners.placement.instance import Candidate
    from planners.placement.problem import Rate

    return [Candidate(name=g.name, model=g.model, devices=g.devices,
                      throughputs={n: Rate(per_s=h, sources={"analytic": 1.0})
                                   for n, h in g.throughputs_per_s.items() if h > 0})
            for g in c.problem.configurations]


def test_every_inequality_is_valid_and_tight_where_it_was_made() -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        c = random_case(rng, types=3)
        instance = build(c.problem, c.problem.workloads, _candidates(c))
        fleets = list(oracle.fleets(c.devices, c.price, c.available, c.budget))
        y = np.array(fleets[int(rng.integers(len(fleets)))])
        made = assign(instance, y)
        cut = values(instance, made.prices)
        assert float(cut @ y) == pytest.approx(made.rate, rel=1e-7, abs=1e-9)
        for other in fleets[:: max(1, len(fleets) // 10)]:
            makespan = oracle.assignment_makespan(other, c.rate, c.requests)
            rate = 0.0 if math.isinf(makespan) else c.requests.sum() / makespan
            assert rate <= float(cut @ np.array(other)) * (1 + 1e-7) + 1e-9


def test_relaxation_bounds_every_plan() -> None:
    for seed in range(20):
        c = random_case(np.random.default_rng(4000 + seed), types=3)
        makespan, _ = best(c)
        if math.isfinite(makespan):
            assert placement.bound(c.problem, NO_COSTS).value <= makespan * (1 + 1e-9)


# --- the paper's bisection --------------------------------------------------------------------------------------------

def test_bisection_agrees_with_the_exact_plan_and_brackets_it() -> None:
    for seed in range(12):
        c = random_case(np.random.default_rng(5000 + seed), types=2)
        makespan, _ = best(c)
        if math.isinf(makespan):
            continue
        problem = replace(c.problem, bisect_tolerance=1e-4)
        plan = placement.plan(problem, NO_COSTS, planner="bisect")
        assert placement.check(problem, plan) == []
        assert plan.certificate.bound is not None
        assert plan.certificate.bound <= makespan * (1 + 1e-6)
        assert makespan <= plan.makespan_s * (1 + 1e-9)
        assert plan.makespan_s <= makespan * (1 + 2e-4)


def test_greedy_check_is_never_better_than_the_optimum() -> None:
    for seed in range(12):
        c = random_case(np.random.default_rng(6000 + seed), types=3)
        makespan, _ = best(c)
        if math.isinf(makespan):
            continue
        try:
            plan = placement.plan(c.problem, NO_COSTS, planner="bisect-knapsack")
        except Infeasible:
            continue
        assert placement.check(c.problem, plan) == []
        assert plan.certificate.status == "heuristic"
        assert plan.makespan_s >= makespan * (1 - 1e-9)


# --- invariants -------------------------------------------------------------------------------------------------------

seeds = st.integers(0, 10**6)


def _feasible(seed: int, types: int = 2) -> Case | None:
    c = random_case(np.random.default_rng(seed), types=types)
    return c if math.isfinite(best(c)[0]) else None


@settings(max_examples=8, deadline=None)
@given(seed=seeds, factor=st.floats(0.01, 1000))
def test_more_requests_take_proportionally_longer_and_faster_replicas_proportionally_less(
        seed: int, factor: float) -> None:
    c = _feasible(seed)
    if c is None:
        return
    base = placement.plan(c.problem, NO_COSTS).makespan_s
    more = replace(c.problem, workloads=tuple(replace(w, requests=w.requests * factor) for w in c.problem.workloads))
    fast = replace(c.problem, configurations=tuple(
        replace(g, throughputs_per_s={n: h * factor for n, h in g.throughputs_per_s.items()})
        for g in c.problem.configurations))
    assert placement.plan(more, NO_COSTS).makespan_s == pytest.approx(base * factor, rel=1e-6)
    assert placement.plan(fast, NO_COSTS).makespan_s == pytest.approx(base / factor, rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(seed=seeds, extra=st.floats(0, 10), which=st.integers(0, 1))
def test_money_gpus_and_configurations_never_hurt(seed: int, extra: float, which: int) -> None:
    c = _feasible(seed)
    if c is None:
        return
    base = placement.plan(c.problem, NO_COSTS).makespan_s * (1 + 1e-6)
    richer = replace(c.problem, budget_usd_per_h=c.budget + extra)
    offers = list(c.problem.devices)
    offers[which] = replace(offers[which], available=offers[which].available + 1)
    fewer = c.problem.configurations[:-1]
    assert placement.plan(richer, NO_COSTS).makespan_s <= base
    assert placement.plan(replace(c.problem, devices=tuple(offers)), NO_COSTS).makespan_s <= base
    try:
        without = placement.plan(replace(c.problem, configurations=fewer), NO_COSTS).makespan_s
    except Infeasible:
        return
    assert without * (1 + 1e-6) >= placement.plan(c.problem, NO_COSTS).makespan_s


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_two_types_with_equal_throughputs_are_one(seed: int) -> None:
    c = _feasible(seed, types=1)
    if c is None:
        return
    split = case(c.devices, c.price, c.available, np.repeat(c.rate, 2, axis=1), c.requests.repeat(2) / 2, c.budget)
    assert placement.plan(split.problem, NO_COSTS).makespan_s == pytest.approx(
        placement.plan(c.problem, NO_COSTS).makespan_s, rel=1e-6)


def test_few_workloads_are_split() -> None:
    # A vertex of the transportation polytope: at most W + |active| - 1 positive shares.
    for seed in range(10):
        c = random_case(np.random.default_rng(7000 + seed), types=3)
        if math.isinf(best(c)[0]):
            continue
        plan = placement.plan(c.problem, NO_COSTS)
        pairs = sum(len(d.shares) for d in plan.deployments)
        active = sum(bool(d.shares) for d in plan.deployments)
        assert pairs <= 3 + active - 1


def test_prices_without_a_common_cent_are_handled() -> None:
    c = case(np.array([[1, 0], [0, 1]]), np.array([math.pi, math.e]), np.array([3, 3]),
             np.array([[1.0], [0.9]]), np.array([10.0]), 6 * math.e / 2)
    assert placement.plan(c.problem, NO_COSTS).makespan_s == pytest.approx(best(c)[0], rel=1e-9)


# --- certificates -----------------------------------------------------------------------------------------------------

def test_shadow_prices_are_the_slopes_of_the_makespan() -> None:
    c = case(np.array([[1, 0], [0, 1]]), np.array([2.0, 1.0]), np.array([3, 50]),
             np.array([[3.0], [1.0]]), np.array([100.0]), 20.0)
    prices = placement.plan(c.problem, NO_COSTS).certificate.shadow_prices
    # 14 t1 beside 3 t0: a dollar more buys one t1, 1 req/s at 23 req/s
    assert prices["budget_usd_per_h"] == pytest.approx(100 / 23**2, rel=1e-6)
    # 3 of t0 (9 req/s, 6 $/h) and 14 of t1 (14 req/s): one t0 more displaces 2 t1, +1 req/s
    assert prices["t0"] == pytest.approx(100 / 23**2 * 1.0, rel=1e-6)
    assert prices["t1"] == 0


def test_a_coarser_gap_is_accepted_and_reported() -> None:
    c = next(x for s in range(50) if (x := _feasible(s)) is not None)
    plan = placement.plan(replace(c.problem, relative_gap=0.2), NO_COSTS)
    assert plan.certificate.gap is not None
    assert plan.certificate.gap <= 0.25  # on T; the search's gap is on the rate
    assert best(c)[0] >= (plan.certificate.bound or 0) * (1 - 1e-9)


def test_plan_survives_the_trip_to_disk() -> None:
    plan = placement.plan(worked_example(), NO_COSTS)
    assert parse(Plan, dump(plan)) == plan


# --- the checker ------------------------------------------------------------------------------------------------------

def _edited(plan: Plan, **changes: object) -> Plan:
    first, *rest = plan.deployments
    return replace(plan, deployments=(replace(first, **changes), *rest))  # type: ignore[arg-type]


@pytest.mark.parametrize(("rule", "edit"), [
    ("availability", lambda p: replace(_edited(p, replicas=3), cost_usd_per_h=16.0)),
    ("budget", lambda p: replace(_edited(p, replicas=2), cost_usd_per_h=12.0)),
    ("price", lambda p: _edited(p, cost_usd_per_h=3.0)),
    ("price", lambda p: replace(p, cost_usd_per_h=7.0)),
    ("deployment", lambda p: _edited(p, replicas=0)),
    ("deployment", lambda p: replace(p, deployments=p.deployments + p.deployments[:1])),
    ("coverage", lambda p: _edited(p, shares={"w1": 0.1, "w2": 1.0})),
    ("coverage", lambda p: _edited(p, shares={"w1": -0.1, "w2": 1.0})),
    ("makespan", lambda p: replace(p, makespan_s=20.0)),
    ("configuration", lambda p: _edited(p, devices={"t1": 2})),
    ("configuration", lambda p: _edited(p, configuration="unheard of")),
    ("devices", lambda p: _edited(p, devices={"t9": 1})),
    ("model", lambda p: _edited(p, model="other")),
    ("throughput", lambda p: _edited(p, throughputs={})),
    ("demand", lambda p: replace(p, workloads=p.workloads[:1])),
    ("objective", lambda p: replace(p, objective="least-cost")),
    ("waived", lambda p: replace(p, waived=("budget",))),
    ("certificate", lambda p: replace(p, certificate=replace(p.certificate, bound=40.0))),
    ("certificate", lambda p: replace(p, certificate=replace(p.certificate, bound=20.0))),
    ("certificate", lambda p: replace(p, certificate=replace(p.certificate, objective=20.0))),
    ("sources", lambda p: replace(p, sources={"measured": 0.5})),
])
def test_checker_finds_every_broken_rule(rule: str, edit: object) -> None:
    problem = worked_example()
    plan = placement.plan(problem, NO_COSTS)
    assert placement.check(problem, plan) == []
    broken = edit(plan)  # type: ignore[operator]
    assert rule in {v.rule for v in placement.check(problem, broken)}


# --- infeasible problems ----------------------------------------------------------------------------------------------

def test_a_budget_too_small_is_named_with_the_least_that_would_do() -> None:
    problem = replace(worked_example(), budget_usd_per_h=1.0)
    with pytest.raises(Infeasible, match="binding: budget") as caught:
        placement.plan(problem, NO_COSTS)
    assert caught.value.hint == "raise budget_usd_per_h from 1 to 2"
    assert placement.plan(replace(problem, budget_usd_per_h=2.0), NO_COSTS).makespan_s > 0
    with pytest.raises(Infeasible):
        placement.bound(problem, NO_COSTS)


def test_missing_gpus_are_named() -> None:
    problem = worked_example()
    none_left = replace(problem, devices=tuple(replace(d, available=0) for d in problem.devices))
    with pytest.raises(Infeasible, match="binding: availability") as caught:
        placement.plan(none_left, NO_COSTS)
    assert "available t3 from 0 to 1" in (caught.value.hint or "")


def test_a_rate_out_of_reach_names_the_fleet_that_reaches_it() -> None:
    problem = replace(worked_example(), objective="least-cost", required_rate_per_s=4.5, budget_usd_per_h=8.0)
    with pytest.raises(Infeasible, match=r"4\.5 requests/s.*binding: budget") as caught:
        placement.plan(problem, NO_COSTS)
    budget = float((caught.value.hint or "").split(" to ")[1].split(";")[0])
    assert placement.plan(replace(problem, budget_usd_per_h=budget), NO_COSTS).cost_usd_per_h == pytest.approx(budget)


def test_every_fault_of_a_spec_names_its_place() -> None:
    data = tomllib.loads(SMALL_SPEC)
    del data["study"]
    data["configurations"][0]["devices"] = {"t9": 1}
    with pytest.raises(SpecError, match="'t9', which devices do not offer"):
        parse(Problem, data)
    with pytest.raises(SpecError, match="no planner is called 'exakt'"):
        placement.plan(worked_example(), NO_COSTS, planner="exakt")


# --- baselines --------------------------------------------------------------------------------------------------------

SEARCHES = {"exact", "program", "bisect", "bisect-knapsack"}


@pytest.mark.parametrize("name", [n for n in placement.PLANNERS if n not in SEARCHES])
def test_baselines_keep_the_rules_and_do_not_beat_the_optimum(name: str) -> None:
    problem = worked_example()
    ours = placement.plan(problem, NO_COSTS)
    plan = placement.plan(problem, NO_COSTS, planner=name)
    assert placement.check(problem, plan) == []
    assert plan.certificate.planner == name
    assert plan.certificate.status == "heuristic"
    if name != "homogeneous-unlimited":
        assert plan.makespan_s >= ours.makespan_s * (1 - 1e-9)


def test_fixed_composition_is_the_best_fleet_for_a_router_that_cannot_tell_types_apart() -> None:
    for seed in range(8):
        c = _feasible(8000 + seed)
        if c is None:
            continue
        ours = placement.plan(c.problem, NO_COSTS)
        used = placement.assembly.rented(ours)  # type: ignore[attr-defined]
        gpus = np.array([used.get(d.name, 0) for d in c.problem.devices])
        try:
            plan = baselines.make("fixed-composition", prepare(c.problem, NO_COSTS), Search(), ours=ours)
        except Infeasible:
            continue
        able = (c.rate > 0).all(axis=1)
        mixed = np.where(able, c.requests.sum() / (c.requests / np.maximum(c.rate, 1e-300)).sum(axis=1), 0.0)
        fastest_blind = max(float(np.dot(y, mixed)) for y in oracle.fleets(c.devices, c.price, gpus, math.inf))
        assert plan.makespan_s == pytest.approx(c.requests.sum() / fastest_blind, rel=1e-6)


def test_homogeneous_unlimited_is_the_closed_form() -> None:
    plans = baselines.homogeneous(prepare(worked_example(), NO_COSTS), Search(), unlimited=True)
    # 8 $/h buy two t1, four t2 (two pairs of TP2) or four t3
    assert plans["t1"].makespan_s == pytest.approx((80 / 1.0 + 20 / 1.2) / 2)
    assert plans["t2"].makespan_s == pytest.approx((80 / 2.4 + 20 / 1.5) / 2)
    assert plans["t3"].makespan_s == pytest.approx((80 / 0.3 + 20 / 0.5) / 4)


# --- replanning, curves, robustness -----------------------------------------------------------------------------------

def test_replanning_an_unchanged_problem_changes_nothing() -> None:
    problem = worked_example()
    plan = placement.plan(problem, NO_COSTS)
    again = placement.replan(problem, plan, NO_COSTS, placement.Switching(start_usd=1.0, stop_usd=1.0))
    assert all(c.before == c.after for c in placement.changes(plan, again))
    assert placement.check(problem, again) == []


def test_replanning_trades_rate_for_fewer_moves_within_the_accepted_loss() -> None:
    problem = worked_example()
    plan = placement.plan(problem, NO_COSTS)
    drifted = replace(problem, workloads=(replace(problem.workloads[0], requests=20.0),
                                          replace(problem.workloads[1], requests=80.0)))
    optimal = placement.plan(drifted, NO_COSTS)
    still = placement.replan(drifted, plan, NO_COSTS, placement.Switching(start_usd=100.0, accepted_loss=0.99))
    assert all(c.after <= c.before for c in placement.changes(plan, still))
    exact = placement.replan(drifted, plan, NO_COSTS, placement.Switching(accepted_loss=0.0))
    assert exact.makespan_s == pytest.approx(optimal.makespan_s, rel=1e-5)
    for accepted in (0.05, 0.3):
        some = placement.replan(drifted, plan, NO_COSTS, placement.Switching(start_usd=100.0, accepted_loss=accepted))
        assert some.makespan_s <= optimal.makespan_s / (1 - accepted) * (1 + 1e-5)
        assert placement.check(drifted, some) == []


def test_replanning_copes_with_lost_gpus() -> None:
    problem = worked_example()
    plan = placement.plan(problem, NO_COSTS)
    lost = replace(problem, devices=tuple(replace(d, available=1) if d.name == "t2" else d for d in problem.devices))
    after = placement.replan(lost, plan, NO_COSTS, placement.Switching(start_usd=1.0))
    assert placement.check(lost, after) == []


def test_a_larger_budget_is_never_slower_along_the_curve() -> None:
    budgets = [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0]
    rows = placement.pareto(worked_example(), NO_COSTS, budgets)
    assert "remark" in rows[0]
    rates = [r["rate_per_s"] for r in rows[1:]]
    assert rates == sorted(rates)
    for row in rows[1:]:
        alone = placement.plan(replace(worked_example(), budget_usd_per_h=row["budget_usd_per_h"]), NO_COSTS)
        assert row["makespan_s"] == pytest.approx(alone.makespan_s, rel=1e-6)


def test_regret_is_never_negative_and_routing_anew_helps() -> None:
    problem = worked_example()
    plan = placement.plan(problem, NO_COSTS)
    rows = placement.robustness(problem, NO_COSTS, plan, noise=0.3, samples=10, rng=np.random.default_rng(0))
    for row in rows:
        assert row["regret_routed_anew"] >= -1e-4
        assert row["regret_as_planned"] >= row["regret_routed_anew"] - 1e-9


def test_what_one_more_gpu_saves_is_what_planning_with_it_saves() -> None:
    problem = worked_example()
    plan = placement.plan(problem, NO_COSTS)
    rows = {r["change"]: r for r in placement.what_if(problem, NO_COSTS, plan)}
    more = replace(problem, devices=tuple(replace(d, available=4) if d.name == "t2" else d for d in problem.devices))
    assert rows["1 $/h more"]["saved"] >= 0
    assert rows["one more t2"]["saved"] <= plan.makespan_s - placement.plan(more, NO_COSTS).makespan_s + 1e-9


def test_comparison_lists_every_baseline_and_every_gpu_type() -> None:
    problem = worked_example()
    tables = dict(placement.comparison(problem, NO_COSTS, placement.plan(problem, NO_COSTS)))
    named = [r["plan"] for r in tables["Beside the baselines"]]
    assert named[0] == "this plan"
    assert sum("homogeneous" in n for n in named) == 2 * len(problem.devices)
    assert {"uniform-composition", "uniform-deployment", "fixed-composition", "round-robin", "melange"} <= set(named)


def test_fastest_needs_no_budget() -> None:
    c = case(np.array([[1, 0], [0, 1]]), np.array([2.0, 1.0]), np.array([3, 5]),
             np.array([[3.0], [1.0]]), np.array([100.0]), math.inf)
    instance = prepare(c.problem, NO_COSTS).candidates.instance
    found = fastest(instance, Search())
    assert found is not None
    assert found.assignment.rate == pytest.approx(3 * 3.0 + 5 * 1.0)
    assert relaxation(instance).rate == pytest.approx(14.0)

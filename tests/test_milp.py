"""The linear model, its back-ends and its explanations, against enumeration, finite differences and planted facts."""

from __future__ import annotations

import itertools
import math
import os
import signal
import threading
import time
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import SolverError
from workbench.milp import (
    SOLVERS,
    InfeasibleModel,
    Model,
    explain_infeasible,
    missing_solvers,
    relax,
    require,
    solve,
)
from workbench.milp import highs as highs_back_end
from workbench.milp.search import Answer
from workbench.plan import relative_gap

SEARCH = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LINEAR = [s for s in SOLVERS if s != "cpsat"]


@cache
def why_not(solver: str) -> str | None:
    """What keeps a back-end from solving the smallest of models here."""
    if solver in missing_solvers():
        return f"{solver} is not installed; enable with: {missing_solvers()[solver]}"
    model = Model("smallest")
    model.variables("x", upper=1, integer=True)
    try:
        solve(model, solver=solver)
    except SolverError as error:
        return f"{solver} does not work here: {error}"
    return None


def available(solver: str) -> str:
    if why_not(solver):
        pytest.skip(str(why_not(solver)))
    return solver


@pytest.fixture(params=list(SOLVERS))
def solver(request) -> str:
    return available(request.param)


@pytest.fixture(params=[*LINEAR, "highs through scipy.optimize"])
def lp_solver(request, monkeypatch) -> str:
    if request.param in SOLVERS:
        return available(request.param)
    monkeypatch.setattr(highs_back_end, "_binding", lambda: None)
    return "highs"


# --- enumeration --------------------------------------------------------------------------------------------


def random_ip(rng: np.random.Generator) -> tuple[Model, np.ndarray]:
    """A model of two to four integers in small boxes, and all points of its box."""
    count = int(rng.integers(2, 5))
    lower = rng.integers(-2, 1, count)
    upper = lower + rng.integers(0, 5, count)
    model = Model("random")
    x = model.variables("x", count, lower=lower, upper=upper, integer=True)
    grid = np.array([1.0, 1.0, 0.5, 0.1])
    for i in range(int(rng.integers(1, 5))):
        row = rng.integers(-5, 6, count) * rng.choice(grid)
        inside = row @ rng.integers(lower, upper + 1)
        sense = rng.choice(["<=", ">=", "=="], p=[0.45, 0.45, 0.1])
        model.add(f"r{i}", x @ row, sense, inside + rng.choice([0, 0, 0.25]))
    objective = x @ (rng.integers(-9, 10, count) * rng.choice(grid)) + float(rng.integers(-3, 4))
    (model.minimise if rng.random() < 0.5 else model.maximise)(objective)
    boxes = (range(a, b + 1) for a, b in zip(lower, upper, strict=True))
    return model, np.array(list(itertools.product(*boxes)), dtype=float)


def feasible_points(model: Model, points: np.ndarray) -> np.ndarray:
    problem = model.problem()
    excess = points @ problem.matrix.toarray().T - problem.rhs
    broken = np.where(problem.sense < 0, excess, np.where(problem.sense > 0, -excess, abs(excess)))
    return points[(broken <= 1e-7).all(axis=1)]


def test_optimum_of_random_integer_programs_is_the_enumerated_one(solver):
    rng = np.random.default_rng(20250)
    infeasible = 0
    for _ in range(200):
        model, points = random_ip(rng)
        found, inside = solve(model, solver=solver), feasible_points(model, points)
        if not len(inside):
            infeasible += 1
            assert found.status == "infeasible", model
            continue
        problem = model.problem()
        least = float((inside @ problem.cost + problem.offset).min())
        best = least if model.sense == "min" else -least
        assert found.status == "optimal", model
        assert found.objective == pytest.approx(best, abs=1e-7), model
        assert (inside == found["x"]).all(axis=1).any(), model
        assert found.gap <= 1e-6
        assert found.bound <= best + 1e-7 if model.sense == "min" else found.bound >= best - 1e-7
    assert 10 < infeasible < 150  # both outcomes were exercised


@pytest.mark.parametrize("solver", LINEAR)
def test_optimum_of_mixed_programs_is_the_best_over_enumerated_integers(solver):
    available(solver)
    from scipy.optimize import linprog

    rng = np.random.default_rng(7)
    for _ in range(8):
        model = Model("mixed")
        y = model.variables("y", 3, upper=2, integer=True)
        z = model.variables("z", 3, upper=[5.0, math.inf, 4.0], lower=[-1.0, 0.0, -4.0])
        by, bz, c = rng.normal(size=(4, 3)), rng.uniform(0.2, 2, (4, 3)), rng.normal(size=6)
        model.add("r", by @ y + bz @ z, "<=", rng.uniform(2, 5, 4))
        model.add("floor", z.sum(), ">=", -3.5)
        model.maximise(c[:3] @ y + abs(c[3:]) @ z)
        rows = model.problem()
        sign = np.where(rows.sense > 0, -1.0, 1.0)
        dense, rhs = rows.matrix.toarray() * sign[:, None], rows.rhs * sign
        best = -math.inf
        for point in itertools.product(range(3), repeat=3):
            inner = linprog(-abs(c[3:]), A_ub=dense[:, 3:], b_ub=rhs - dense[:, :3] @ point,
                            bounds=[(-1, 5), (0, None), (-4, 4)])
            best = max(best, c[:3] @ point - inner.fun) if inner.status == 0 else best
        found = solve(model, solver=solver)
        if best == -math.inf:
            assert found.status == "infeasible"
            continue
        assert found.objective == pytest.approx(best, rel=1e-6)
        assert found.bound >= best - 1e-6


def test_statuses_without_a_point(solver):
    model = Model("box")
    x = model.variables("x", 2, upper=3, integer=True)
    model.add("parity", [2, 2] @ x, "==", 3)
    assert solve(model, solver=solver).status == "infeasible"
    if solver == "cpsat":
        return
    for whole in (False, True):
        free = Model("free")
        y = free.variables("y", 2, integer=whole)
        free.add("difference", y[0] - y[1], "<=", 1.5)
        free.maximise(y.sum())
        assert solve(free, solver=solver).status == "unbounded"
        free.add("above", y[0], "<=", 2)
        free.add("below", y[0], ">=", 3)
        assert solve(free, solver=solver).status == "infeasible"
    with pytest.raises(SolverError, match="no solution: infeasible"):
        solve(free, solver=solver)["y"]


def test_models_without_variables_or_rows(solver):
    empty = Model("empty")
    empty.minimise(4.0)
    assert solve(empty, solver=solver).objective == 4.0
    free = Model("no rows")
    x = free.variables("x", 3, lower=-1, upper=[1, 2, 3], integer=True)
    free.maximise([1, 1, -1] @ x)
    assert solve(free, solver=solver).objective == 4.0
    free.variables("w", lower=2, upper=1, integer=True)
    assert solve(free, solver=solver).status == "infeasible"


def test_every_back_end_works_in_one_process_and_keeps_standard_output_clean(capfd):
    model = Model("tiny")
    x = model.variables("x", 2, upper=3, integer=True)
    model.add("r", x.sum(), "<=", 4.5)
    model.maximise([2, 1] @ x)
    others = [s for s in SOLVERS if not why_not(s)]
    for name in [*others, *reversed(others)]:
        assert solve(model, solver=name).objective == 7.0
        if name != "cpsat":
            assert solve(relax(model), solver=name).objective == pytest.approx(7.5)
    assert capfd.readouterr().out == ""


# --- duals --------------------------------------------------------------------------------------------------


def random_lp(seed: int) -> Model:
    rng = np.random.default_rng(seed)
    model = Model("lp")
    x = model.variables("x", 6, upper=rng.uniform(1, 3, 6))
    model.add("use", rng.uniform(0.1, 2, (3, 6)) @ x, "<=", rng.uniform(2, 5, 3))
    model.add("need", rng.uniform(0, 1, 6) @ x, ">=", 0.4)
    model.add("mix", rng.normal(size=6) @ x, "==", 0.1)
    (model.minimise if seed % 2 else model.maximise)((rng.normal(size=6) + 0.3) @ x)
    return model


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e5], ids=lambda u: f"objective x {u:g}")
def test_duals_are_improvements_per_unit_of_right_hand_side(lp_solver, unit):
    step = 1e-5
    for seed in range(4):
        model = random_lp(seed)
        model.objective = model.objective * unit
        sign = 1 if model.sense == "max" else -1
        base = solve(model, solver=lp_solver)
        assert base.status == "optimal"
        for block in model.rows:
            for i, name in enumerate(model.row_names(block)):
                moved = []
                for change in (step, -step):
                    other = model.copy()
                    other.shift_rhs({name: change})
                    moved.append(solve(other, solver=lp_solver).objective)
                slope = sign * (moved[0] - moved[1]) / (2 * step)
                assert np.ravel(base.duals[block])[i] == pytest.approx(slope, abs=1e-4 * unit), (seed, name)
        for i in range(6):
            if base.reduced_costs["x"][i] == pytest.approx(0, abs=1e-9 * unit):
                continue
            at = base["x"][i]
            moved = []
            for change in (step, -step):
                other = model.copy()
                other.fix(other["x"][i], at + change)
                moved.append(solve(other, solver=lp_solver).objective)
            slope = sign * (moved[0] - moved[1]) / (2 * step)
            assert base.reduced_costs["x"][i] == pytest.approx(slope, abs=1e-4 * unit)


def test_dual_signs_follow_the_row_sense(lp_solver):
    for seed in range(10):
        found = solve(random_lp(seed), solver=lp_solver)
        assert (found.duals["use"] >= -1e-9).all()
        assert found.duals["need"] <= 1e-9


def test_integer_models_have_no_duals_and_relax_gives_them():
    model = Model("knapsack")
    x = model.variables("x", ["a", "b", "c"], upper=1, integer=True)
    model.add("weight", [3, 4, 5] @ x, "<=", 6)
    model.maximise([4, 5, 6] @ x)
    assert solve(model).duals is None
    relaxed = solve(relax(model))
    assert relaxed.duals["weight"] == pytest.approx(5 / 4)  # a whole, b for the rest: b's value per weight
    assert relaxed["x"] == pytest.approx([1, 0.75, 0])
    assert relaxed.objective >= solve(model).objective
    assert model["x"].shape == (3,)
    assert model.integer.all()


# --- infeasibility ------------------------------------------------------------------------------------------


def test_explanation_names_exactly_the_planted_rows_and_bound():
    model = Model("plant")
    x = model.variables("x", ["a", "b", "c"], upper=[4, 10, 10])
    model.add("cheap", x.sum(), "<=", 25)
    model.add("need", x[["a", "b"]].sum(), ">=", 9)
    model.add("link", x["b"] - 0.5 * x["a"], "<=", 2)
    model.add("idle", x["c"], "<=", 7)
    why = explain_infeasible(model)
    assert why.kind == "linear"
    assert set(why.rows) == {"need", "link"}
    assert why.bounds == ("x[a] <= 4",)
    assert why.irreducible
    assert why.proven_least
    assert why.alone == pytest.approx({"need": -1.0, "link": 1.0})  # at a = 4: b <= 4, so a + b <= 8


def chain_model(rng: np.random.Generator, count: int) -> tuple[Model, set[str]]:
    """Differences around a cycle that add up to more than 0, among rows that can all hold."""
    steps = rng.uniform(0.5, 2, count)
    model = Model("cycle")
    t = model.variables("t", count + 3, lower=-100, upper=100)
    cycle = [*range(count), 0]
    for i in range(count - 1):
        model.add(f"step{i}", t[cycle[i + 1]] - t[cycle[i]], ">=", steps[i])
    model.add("back", t[0] - t[count - 1], ">=", -steps[:-1].sum() + steps[-1])
    inner = rng.uniform(-1, 1, count + 3)
    noise = rng.normal(size=(6, count + 3))
    model.add("noise", noise @ t, "<=", noise @ inner + 500)
    return model, {*(f"step{i}" for i in range(count - 1)), "back"}


def with_changes(model: Model, changes: dict[str, float], factor: float) -> Model:
    changed = model.copy()
    changed.shift_rhs({name: factor * amount for name, amount in changes.items()})
    return changed


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7, 8, 9, 30, 90])
def test_explanation_of_a_contradictory_cycle_is_the_cycle(count):
    model, cycle = chain_model(np.random.default_rng(count), count)
    why = explain_infeasible(model)
    assert set(why.rows) == cycle
    assert why.bounds == ()
    assert solve(with_changes(model, why.relaxation, 1.0)).status == "optimal"
    assert solve(with_changes(model, why.relaxation, 0.99)).status == "infeasible"


@pytest.mark.parametrize("seed", range(25))
def test_relaxation_suffices_exactly_and_no_member_of_the_clash_can_be_spared(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        model = Model("random")
        x = model.variables("x", 4, upper=4, integer=bool(seed % 2))
        model.add("cover", rng.integers(0, 6, (4, 4)) @ x, ">=", rng.integers(4, 15, 4))
        model.add("limit", rng.integers(0, 6, (3, 4)) @ x, "<=", rng.integers(3, 12, 3))
        if solve(model).status == "infeasible":
            break
    why = explain_infeasible(model)
    assert why.irreducible
    assert why.proven_least
    assert solve(with_changes(model, why.relaxation, 1.0)).status == "optimal"
    assert solve(with_changes(model, why.relaxation, 0.99)).status == "infeasible"
    for name, amount in why.alone.items():
        assert solve(with_changes(model, {name: amount}, 1.0)).status == "optimal"
        assert solve(with_changes(model, {name: amount}, 0.99)).status == "infeasible"
    problem, names = model.problem(), model.row_names()
    members = [names.index(row) for row in why.rows]

    def clashes(rows: list[int]) -> bool:
        lower, upper = np.full(4, -50.0), np.full(4, 50.0)
        for bound in why.bounds:
            at = int(bound[2])
            (lower if ">=" in bound else upper)[at] = float(bound.split()[-1])
        other = Model("part")
        y = other.variables("y", 4, lower=lower, upper=upper, integer=why.kind == "integer")
        for i in rows:
            sense = "<=" if problem.sense[i] < 0 else ">="
            other.add(str(i), problem.matrix[[i]].toarray().ravel() @ y, sense, problem.rhs[i])
        return solve(other).status == "infeasible"

    assert clashes(members)
    assert not any(clashes([i for i in members if i != gone]) for gone in members)


def test_integrality_is_named_where_it_is_the_trouble():
    model = Model("parity")
    x = model.variables("x", 2, upper=9, integer=True)
    model.add("odd", [2, 4] @ x, "==", 7)
    model.add("wide", x.sum(), "<=", 15)
    why = explain_infeasible(model)
    assert why.kind == "integer"
    assert why.rows == ("odd",)
    assert abs(why.relaxation["odd"]) == pytest.approx(1.0)


def test_relaxation_weighs_rows_relative_to_their_right_hand_sides():
    model = Model("units")
    x = model.variables("x", upper=10)
    model.add("memory", 1e9 * x, "<=", 3e9)
    model.add("need", x, ">=", 4)
    why = explain_infeasible(model)
    assert why.relaxation == pytest.approx({"need": -1.0})  # 25 % of 4, against 33 % of 3e9
    assert why.alone == pytest.approx({"need": -1.0, "memory": 1e9})


def test_require_raises_with_rows_and_relaxation_in_the_message():
    model = Model("fleet")
    y = model.variables("replicas", ["a", "b"], upper=4, integer=True)
    model.add("budget", [3, 5] @ y, "<=", 10)
    model.add("demand", [1, 2] @ y, ">=", 5)
    with pytest.raises(InfeasibleModel) as caught:
        require(solve(model))
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert all(word in text for word in ("fleet", "budget", "demand", "raise budget by"))
    assert solve(with_changes(model, dict(caught.value.explanation.relaxation), 1.0)).status == "optimal"
    model.shift_rhs({"budget": 5})
    assert require(solve(model)).status == "optimal"


def test_explanations_keep_their_time_limit_and_infeasible_stays_the_verdict():
    model = hard_cover(1500, 200)
    model.add("few", model["x"].sum(), "<=", 60)
    with pytest.raises(SolverError, match="time limit came first"):
        explain_infeasible(model, time_limit_s=0.0)
    with pytest.raises(InfeasibleModel, match="time limit") as caught:
        require(solve(model), explain_s=0.0)
    assert caught.value.explanation is None
    begin = time.perf_counter()
    why = explain_infeasible(model, time_limit_s=2.0)
    assert time.perf_counter() - begin < 5
    assert "few" in why.rows


def test_bounds_that_leave_no_value_are_the_explanation():
    model = Model("bounds")
    model.variables("x", 2, lower=[0, 3], upper=[1, 2])
    assert explain_infeasible(model).bounds == ("x[1] >= 3", "x[1] <= 2")
    whole = Model("between")
    whole.variables("y", lower=0.2, upper=0.8, integer=True)
    assert explain_infeasible(whole).kind == "integer"
    fine = Model("fine")
    fine.maximise(fine.variables("z"))
    with pytest.raises(SolverError, match="feasible point"):
        explain_infeasible(fine)


# --- limits, progress, interruption -------------------------------------------------------------------------


def hard_cover(variables: int, rows: int, seed: int = 3) -> Model:
    """A knapsack cover no solver closes in seconds."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((rows, variables))
    for row in weights:
        row[rng.choice(variables, variables // 20, replace=False)] = rng.integers(5, 40, variables // 20)
    model = Model("cover")
    x = model.variables("x", variables, upper=1, integer=True)
    model.add("cover", weights @ x, ">=", np.floor(weights.sum(axis=1) * 0.37))
    model.minimise(rng.integers(20, 90, variables) @ x)
    return model


def test_time_limit_is_kept_and_incumbents_and_bounds_agree_across_back_ends():
    model = hard_cover(1500, 200)
    lowest, highest = math.inf, -math.inf
    for name in SOLVERS:
        if why_not(name):
            continue
        begin = time.perf_counter()
        found = solve(model, solver=name, time_limit_s=0.8)
        assert time.perf_counter() - begin < 5, name
        assert found.status in ("feasible", "time limit without solution"), name
        assert found.stopped_by == "time limit"
        if found.x is not None:
            assert found.gap == relative_gap(found.objective, found.bound) > 1e-6
            lowest = min(lowest, found.objective)
        highest = max(highest, -math.inf if found.bound is None else found.bound)
    assert math.isfinite(highest)
    assert highest <= lowest + 1e-6


def test_progress_comes_in_the_callers_thread_and_bounds_only_rise():
    seen = []
    solve(hard_cover(1500, 200), time_limit_s=1.5, on_progress=lambda p: seen.append((threading.current_thread(), p)))
    assert {thread for thread, _ in seen} == {threading.current_thread()}
    bounds = [p.bound for _, p in seen if p.bound is not None]
    objectives = [p.objective for _, p in seen if p.objective is not None]
    assert bounds == sorted(bounds)
    assert objectives == sorted(objectives, reverse=True)
    assert any(p.gap is not None and p.gap > 0 for _, p in seen)


def test_an_error_in_the_progress_callback_reaches_the_caller():
    def fail(_progress: object) -> None:
        raise RuntimeError("told")

    with pytest.raises(RuntimeError, match="told"):
        solve(hard_cover(1500, 200), time_limit_s=20, on_progress=fail)


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to its own process")
def test_interrupt_returns_the_incumbent(solver):
    model = hard_cover(1900, 200)
    solve(hard_cover(40, 3), solver=solver)  # imports are done
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    begin = time.perf_counter()
    timer.start()
    try:
        found = solve(model, solver=solver, time_limit_s=60, start={"x": np.ones(1900)})
    finally:
        timer.cancel()
    assert time.perf_counter() - begin < 15
    assert found.status == "feasible"
    assert found.stopped_by == "interrupt"


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to its own process")
def test_interrupt_without_an_incumbent_is_an_interrupt():
    available("cbc")  # which gives up its incumbent with its process
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        solve(hard_cover(1900, 200), solver="cbc", time_limit_s=60)
    timer.cancel()


@pytest.fixture(scope="module")
def known_cover():
    return solve(hard_cover(1500, 200), time_limit_s=1.0, start={"x": np.ones(1500)})


def test_a_complete_start_is_never_lost(solver, known_cover):
    again = solve(known_cover.model, solver=solver, time_limit_s=0.5, start=known_cover)
    assert again.objective <= known_cover.objective


def test_a_partial_start_is_only_a_hint(solver):
    model = hard_cover(60, 4)
    best = solve(model, solver=solver)
    partial = np.full(60, np.nan)
    partial[:30] = 1 - best["x"][:30]
    assert solve(model, solver=solver, start={"x": partial}).objective == best.objective


def test_gurobi_says_when_a_model_is_too_large_for_its_licence():
    available("gurobi")
    model = Model("large")
    x = model.variables("x", 2001, upper=1, integer=True)
    model.add("some", x.sum(), ">=", 3)
    model.minimise(x.sum())
    try:
        found = solve(model, solver="gurobi")
    except SolverError as error:
        assert "2,001 variables" in str(error)
        assert "highs, cbc, cpsat" in str(error)
    else:
        assert found.objective == 3
        pytest.skip("a Gurobi licence without size limit is present")


# --- what is believed ---------------------------------------------------------------------------------------


def test_an_infeasible_point_of_a_solver_is_refused_by_row_name(monkeypatch):
    from workbench.milp import highs

    model = Model("trust")
    x = model.variables("x", ["a", "b"], upper=5, integer=True)
    model.add("free", x.sum(), "<=", math.inf)
    model.add("cap", x, "<=", [3, 4])
    monkeypatch.setattr(highs, "search", lambda *_: Answer(claim="proven", x=np.array([1.0, 5.0]), bound=0.0))
    with pytest.raises(SolverError, match=r"infeasible point: row 'cap\[b\]'"):
        solve(model)


def test_bound_beyond_the_objective_is_clipped_and_gap_decides_the_status(monkeypatch):
    from workbench.milp import highs

    model = Model("claims")
    x = model.variables("x", upper=5, integer=True)
    model.minimise(10.0 * x + 10.0)
    point = np.array([1.0])
    monkeypatch.setattr(highs, "search", lambda *_: Answer(claim="proven", x=point, bound=20.0 + 1e-12))
    assert solve(model).bound == 20.0
    monkeypatch.setattr(highs, "search", lambda *_: Answer(claim="proven", x=point, bound=19.0))
    assert solve(model).status == "feasible"
    assert solve(model, gap=0.06).status == "optimal"


def test_rounding_of_integers_is_repaired_in_the_continuous_part(monkeypatch):
    from workbench.milp import highs

    model = Model("leak")
    y = model.variables("y", upper=1, integer=True)
    x = model.variables("x", upper=1e6)
    model.add("open", x, "<=", 1e6 * y)
    model.add("need", x, ">=", 0.0)
    model.maximise(x - 2e6 * y)
    honest = highs.search
    answers = [Answer(claim="proven", x=np.array([1e-7, 0.1]), bound=-0.1)]
    monkeypatch.setattr(highs, "search", lambda *a: answers.pop() if answers else honest(*a))
    assert solve(model)["x"] == pytest.approx(0.0, abs=1e-9)


def test_tiny_and_huge_units_do_not_change_the_optimum(solver):
    rng = np.random.default_rng(5)
    cost, weight = rng.integers(20, 60, 25), rng.integers(10, 50, (3, 25))
    best = None
    for unit in (1.0, 1e-9, 1e7):
        model = Model("units")
        x = model.variables("x", 25, upper=1, integer=True)
        model.add("w", (weight * unit) @ x, ">=", weight.sum(axis=1) // 3 * unit)
        model.minimise((cost * unit) @ x)
        found = solve(model, solver=solver)
        assert found.status == "optimal"
        best = best or found.objective
        assert found.objective / unit == pytest.approx(best, rel=1e-9)


def test_the_same_call_gives_the_same_point(solver):
    model = hard_cover(120, 12)
    first, second = (solve(model, solver=solver, gap=0.02, seed=4) for _ in range(2))
    assert (first["x"] == second["x"]).all()
    assert first.bound == second.bound


def test_public_scipy_interface_agrees_with_the_binding(monkeypatch):
    rng = np.random.default_rng(11)
    models = [random_ip(rng)[0] for _ in range(40)] + [random_lp(s) for s in range(5)]
    for whole in (True, False):
        rowless = Model("no rows")
        rowless.maximise(rowless.variables("x", 2, upper=2.5, integer=whole).sum() + 1)
        models.append(rowless)
    direct = [solve(m) for m in models]
    monkeypatch.setattr(highs_back_end, "_binding", lambda: None)
    for model, known in zip(models, direct, strict=True):
        found = solve(model)
        assert found.status == known.status, model
        assert known.x is None or found.objective == pytest.approx(known.objective, abs=1e-7)


def test_missing_and_misspelt_solvers_say_what_to_do(monkeypatch):
    import importlib.util

    model = Model("any")
    with pytest.raises(SolverError, match="did you mean 'gurobi'"):
        solve(model, solver="gurobbi")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ortools" else real(name, *a))
    with pytest.raises(SolverError, match=r"planner-workbench\[cpsat\]"):
        solve(model, solver="cpsat")


# --- whole numbers for CP-SAT -------------------------------------------------------------------------------


def test_cpsat_takes_decimals_and_fractions_exactly():
    available("cpsat")
    model = Model("tenths")
    x = model.variables("x", 2, upper=9, integer=True)
    model.add("tenths", [0.1, 0.2] @ x, ">=", 0.1 + 0.2)  # 0.30000000000000004 in doubles
    model.add("thirds", [1 / 3, 2 / 7] @ x, "==", 1 / 3 + 2 / 7)
    model.minimise(x.sum())
    assert solve(model, solver="cpsat")["x"].tolist() == [1, 1]


def test_cpsat_refuses_what_it_cannot_have_exactly_and_says_why():
    available("cpsat")
    model = Model("refused")
    x = model.variables("x", upper=9, integer=True)
    model.add("pi", math.pi * x, "<=", 20)
    with pytest.raises(SolverError, match="no simple fraction"):
        solve(model, solver="cpsat")
    model.variables("y", integer=True)
    with pytest.raises(SolverError, match="bounded variables only"):
        solve(model, solver="cpsat")
    model.variables("z")
    with pytest.raises(SolverError, match="integers only"):
        solve(model, solver="cpsat")


def test_cpsat_bound_stays_valid_for_objectives_off_the_grid():
    available("cpsat")
    rng = np.random.default_rng(2)
    for _ in range(10):
        model = Model("irrational")
        x = model.variables("x", 6, upper=3, integer=True)
        model.add("r", rng.integers(1, 9, (2, 6)) @ x, ">=", rng.integers(5, 30, 2))
        model.minimise(rng.uniform(1e-6, 2e-6, 6) @ x)
        found, other = solve(model, solver="cpsat"), solve(model)
        assert found.status == "optimal"
        assert found.objective == pytest.approx(other.objective, rel=1e-9)
        assert found.bound <= other.objective * (1 + 1e-12)


# --- building -----------------------------------------------------------------------------------------------


def test_expressions_evaluate_like_numpy_arrays():
    from scipy import sparse

    rng = np.random.default_rng(0)
    model = Model("algebra")
    a = model.variables("a", ["p", "q", "r"], 4)
    b = model.variables("b", 4)
    s = model.variables("s")
    x = rng.normal(size=17)
    A, B, S = x[:12].reshape(3, 4), x[12:16], x[16]
    w3, w4, m = rng.normal(size=3), rng.normal(size=4), rng.normal(size=(5, 3))
    thin = sparse.csr_array(rng.random((6, 4)) * (rng.random((6, 4)) < 0.5))
    mask = A > 0
    pairs = [
        (a + b, A + B), (2 - a * w4, 2 - A * w4), (w3 @ a, w3 @ A), (a @ w4, A @ w4), (m @ a, m @ A),
        (thin @ b, thin @ B), (b @ thin.T, B @ thin.T.toarray()), (a @ thin.T, A @ thin.T.toarray()),
        (thin[:2, :] @ (b - 1), thin[:2, :] @ (B - 1)),
        (a.sum(axis=0) - s, A.sum(axis=0) - S), (a.sum(), A.sum()), (a.sum(axis=(0, 1)), A.sum()),
        (a[:, 1:] - a[:, :-1], A[:, 1:] - A[:, :-1]), (a["q"], A[1]), (a["q", 2], A[1, 2]), (a[["r", "p"]], A[[2, 0]]),
        (a[..., -1], A[..., -1]), (b[:, None] + b, B[:, None] + B), (a[mask], A[mask]),
        (a[[0, 2], [1, 3]], A[[0, 2], [1, 3]]),
        ((a / 4 + 1)[1:, ::2], (A / 4 + 1)[1:, ::2]), (-(a + a)[::-1], -(A + A)[::-1]), (a[0] * s.value(x), A[0] * S),
        ((a @ w4)[[0, 0, 2]], (A @ w4)[[0, 0, 2]]), (b[B > 9], B[B > 9]), (a[[]], A[[]]),
    ]
    for expression, values in pairs:
        assert expression.shape == np.shape(values)
        assert expression.value(x) == pytest.approx(values)


def test_labels_name_the_rows_made_from_labelled_variables():
    model = Model("names")
    z = model.variables("z", ["a", "b"], ["chat", "code", "sum"])
    y = model.variables("y", 2)
    model.add("served", z.sum(axis=0), "==", 1)
    model.add("link", z[:, ["code", "chat"]], "<=", y[:, None])
    model.add("own", z @ [1, 2, 3], ">=", 0, labels=[["first", "second"]])
    model.add("one", y.sum(), "<=", 3)
    assert model.row_names() == ["served[chat]", "served[code]", "served[sum]", "link[a,code]", "link[a,chat]",
                                 "link[b,code]", "link[b,chat]", "own[first]", "own[second]", "one"]
    assert model.variable_name(4) == "z[b,code]"
    with pytest.raises(KeyError, match="did you mean 'code'"):
        z["a", "cod"]
    with pytest.raises(KeyError, match=r"did you mean 'served\[code\]'"):
        model.shift_rhs({"served[cod]": 1.0})


def test_tuple_and_integer_labels_are_found_before_positions():
    model = Model("labels")
    x = model.variables("x", [("h100", 2), ("h100", 4)])
    n = model.variables("n", [8, 4, 2])
    assert x["h100", 4].index == 1
    assert n[2].index == 4
    assert n[[4, 8]].index.tolist() == [3, 2]


def test_wrong_models_are_refused_where_they_are_written():
    model, other = Model("one"), Model("two")
    x, y = model.variables("x", 3), other.variables("y", 3)
    for wrong in (lambda: model.add("r", y, "<=", 1), lambda: x + y, lambda: model.variables("x"),
                  lambda: model.add("r", x, "<", 1), lambda: model.variables("z", ["a", "a"]),
                  lambda: model.add("r", x, "<=", [1, 2]), lambda: model.minimise(x), lambda: x * math.nan,
                  lambda: model.add("r", x, "==", math.inf), lambda: model.add("r", math.inf * x, "<=", 1),
                  lambda: model.fix(x, math.nan), lambda: model.add("r", x, "<=", 1, labels=[["a"]])):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(TypeError, match="not linear"):
        _ = x * x
    with pytest.raises(TypeError, match="not linear"):
        _ = x @ x
    assert not model.rows


def test_a_copy_changes_alone_and_serves_as_the_second_stage():
    model = Model("stages")
    y = model.variables("y", 4, upper=3, integer=True)
    speed, price = np.array([3, 3, 2, 4]), np.array([5, 4, 2, 9])
    model.add("slots", y.sum(), "<=", 4)
    model.maximise(speed @ y)
    first = solve(model)
    second = model.copy()
    second.add("keep", speed @ y, ">=", first.objective)
    second.minimise(price @ y)
    cheapest = solve(second, start=first)
    points = feasible_points(second, np.array(list(itertools.product(range(4), repeat=4)), dtype=float))
    assert cheapest.objective == min(points @ price)
    assert "keep" not in model.rows
    second.fix(y[0], 1)
    assert solve(second)["y"][0] == 1
    assert solve(model).objective == first.objective


def test_infinite_right_hand_sides_leave_a_row_without_effect(solver):
    model = Model("some")
    x = model.variables("x", 3, upper=9, integer=True)
    model.add("available", x, "<=", [2, math.inf, 3])
    model.maximise(x.sum())
    assert solve(model, solver=solver)["x"].tolist() == [2, 9, 3]
    if solver != "cpsat":
        relaxed = solve(relax(model), solver=solver)
        assert relaxed.duals["available"] == pytest.approx([1, 0, 1])


def test_certificate_carries_objective_bound_and_sense():
    model = Model("proof")
    x = model.variables("x", upper=7.5, integer=True)
    model.maximise(2.0 * x)
    certificate = solve(model).certificate(planner="milp", unit="requests/s", shadow_prices={"budget": 2.0})
    assert (certificate.objective, certificate.bound, certificate.sense) == (14.0, 14.0, "max")
    assert certificate.status == "optimal"
    assert certificate.gap == 0.0


def median_s(build) -> float:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        build()
        times.append(time.perf_counter() - begin)
    return sorted(times)[2]


def test_large_models_are_built_in_a_fraction_of_a_second():
    from scipy import sparse

    rng = np.random.default_rng(0)
    cover = sparse.csr_array(sparse.random(1000, 8000, 0.0015, random_state=0))
    load, price = rng.uniform(0.1, 2, (150, 9)), rng.uniform(1, 4, 150)

    def binaries() -> None:
        model = Model("cover")
        x = model.variables("x", 8000, upper=1, integer=True)
        model.add("cover", cover @ x, ">=", 1)
        model.minimise(x.sum())
        model.problem()

    def blocks() -> None:
        model = Model("blocks")
        y = model.variables("y", [f"c{i}" for i in range(150)], upper=8, integer=True)
        z = model.variables("z", [f"c{i}" for i in range(150)], 9)
        rate = model.variables("rate")
        model.add("served", z.sum(axis=0), "==", rate)
        model.add("capacity", (z * load).sum(axis=1), "<=", y)
        model.add("budget", price @ y, "<=", 60)
        model.maximise(rate)
        model.problem()

    assert median_s(binaries) < 0.1
    assert median_s(blocks) < 0.1


# --- invariants ---------------------------------------------------------------------------------------------


@SEARCH
@given(st.integers(0, 10**6))
def test_a_row_more_never_improves_and_the_relaxation_never_worsens(seed):
    rng = np.random.default_rng(seed)
    model, _ = random_ip(rng)
    base, relaxed = solve(model), solve(relax(model))
    sign = 1 if model.sense == "min" else -1
    if base.x is not None:
        assert sign * relaxed.objective <= sign * base.objective + 1e-7
        tighter = model.copy()
        tighter.add("more", model["x"] @ rng.integers(-3, 4, model["x"].size), "<=", 1)
        narrowed = solve(tighter)
        assert narrowed.x is None or sign * narrowed.objective >= sign * base.objective - 1e-7
    else:
        assert explain_infeasible(model).kind == ("linear" if relaxed.status == "infeasible" else "integer")


@SEARCH
@given(st.integers(0, 10**6), st.sampled_from([1e-8, 0.3, 17.0, 1e6]), st.floats(-50, 50))
def test_the_optimum_is_affine_in_the_objective_and_flips_with_the_sense(seed, factor, shift):
    model, _ = random_ip(np.random.default_rng(seed))
    base = solve(model)
    if base.x is None:
        return
    scaled = model.copy()
    (scaled.minimise if model.sense == "min" else scaled.maximise)(model.objective * factor + shift)
    assert solve(scaled).objective == pytest.approx(base.objective * factor + shift, rel=1e-9, abs=1e-9 * factor)
    flipped = model.copy()
    (flipped.maximise if model.sense == "min" else flipped.minimise)(-model.objective)
    assert solve(flipped).objective == pytest.approx(-base.objective, abs=1e-9)


@SEARCH
@given(st.integers(0, 10**6))
def test_strong_duality_holds_with_our_signs(seed):
    model = random_lp(seed % 1000)
    found = solve(model)
    if found.x is None:
        return
    sign = 1 if model.sense == "max" else -1
    at = found["x"]
    total = sum(float(np.sum(found.duals[b.name].ravel() * b.rhs)) for b in model.rows.values())
    total += float(found.reduced_costs["x"] @ at)
    assert sign * total == pytest.approx(found.objective, abs=1e-6)


# --- printing -----------------------------------------------------------------------------------------------


def small_model() -> Model:
    model = Model("diet")
    food = model.variables("food", ["bread", "milk"], upper=10)
    k = model.variables("k_days", lower=-math.inf, integer=True)
    model.add("protein", [4, 3] @ food, ">=", 12)
    model.add("plan", food - k, "<=", [2, 0.5])
    model.minimise([2, 1.5] @ food + k * 0 + 7)
    return model


def test_small_models_print_as_mathematics():
    assert str(small_model()).splitlines() == [
        "Model 'diet': 3 variables (1 integer), 3 rows",
        "minimise  2 food[bread] + 1.5 food[milk] + 7",
        "subject to",
        "  protein:  4 food[bread] + 3 food[milk] >= 12",
        "  plan[bread]:  food[bread] - k_days <= 2",
        "  plan[milk]:  food[milk] - k_days <= 0.5",
        "with",
        "  0 <= food <= 10, 2",
        "  k_days, integer",
    ]


def test_latex_is_an_aligned_display_with_balanced_braces():
    text = small_model()._repr_latex_()
    assert text.startswith("$$\\begin{aligned}")
    assert text.count("{") == text.count("}")
    assert r"\mathrm{k\_days}" in text
    assert r"4\,\mathrm{food}_{\text{bread}} + 3\,\mathrm{food}_{\text{milk}} \ge 12" in text


def test_large_models_print_briefly_and_say_what_is_left_out():
    model = hard_cover(400, 50)
    begin = time.perf_counter()
    text = str(model)
    assert time.perf_counter() - begin < 0.5
    assert len(text.splitlines()) < 12
    assert "47 more rows of 'cover'" in text
    assert "392 more terms" in text

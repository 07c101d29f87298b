"""Kernels of tensor programs: the binary program and its parts, alternatives, lazy profiling, plans and checks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planners.orchestration import PLANNERS, blp, bound, check, plan, profile
from planners.orchestration.blp import Search, choose, relaxed
from planners.orchestration.candidates import Structure, structure
from planners.orchestration.claims import figure_12, figure_13
from planners.orchestration.enumeration import Kernels, enumerate_kernels
from planners.orchestration.graph import (
    PrimitiveGraph,
)
from planners.orchestration.masks import bits
from planners.orchestration.options import Option
from planners.orchestration.pricing import SAFETY, Prices
from planners.orchestration.problem import Limits, Problem, Program
from planners.orchestration.work import work_of
from tests.oracles_orchestration import (
    options_of,
    shortest,
    targets_of,
)
from tests.orchestration_graphs import FIGURE_4, FIGURE_4_LINEAR, FREE, PAPER, dag, random_dag, with_alternatives
from workbench.costs import Cost, Provenance
from workbench.errors import Infeasible, MissingProfile


class Oracle:
    """A cost model over structures; ``seconds(structure)`` is the truth, told only for what was measured."""

    def __init__(self, seconds: Callable[[Structure], float], *, everything: bool = True) -> None:
        self.truth, self.everything = seconds, everything
        self.measured: dict[str, float] = {}
        self.structures: dict[str, Structure] = {}

    def measure(self, kernels: Sequence[tuple[str, Structure]]) -> None:
        for digest, found in kernels:
            assert digest == found.digest()
            assert digest not in self.measured, "measured twice"
            self.measured[digest] = self.truth(found)

    def known_to(self, kernels: Kernels) -> Oracle:
        """The same oracle after it measured every candidate."""
        for kind in range(kernels.kinds):
            self.measured.setdefault(kernels.digest(kind), self.truth(kernels.structure(kind)))
        return self

    def cost(self, op: str, **point: float | int | str) -> Cost:
        digest = str(point.get("structure"))
        if op == "kernel" and point["backend"] == "eager" and digest in self.measured:
            return Cost(self.measured[digest], "measured")
        raise MissingProfile("not measured", keys=[op])

    def provenance(self) -> Mapping[str, Provenance]:
        return {}


def traffic(found: Structure, *, launch: float = 1e-6, rate: float = 1e9) -> float:
    """A launch, and the bytes a kernel moves."""
    work = work_of(found)
    return launch + (work.read_bytes + work.stored_bytes) / rate


def noisy(rng: np.random.Generator, spread: float = 1.0) -> Callable[[Structure], float]:
    """Traffic times a factor of its own for each structure, at least 1."""
    factors: dict[str, float] = {}

    def seconds(found: Structure) -> float:
        digest = found.digest()
        if digest not in factors:
            factors[digest] = 1.0 + spread * float(rng.random())
        return traffic(found) * factors[digest]

    return seconds


def problem_of(graph: PrimitiveGraph, limits: Limits = FREE, **changes: object) -> Problem:
    return Problem(program=Program(inline=graph), limits=limits, backends=("eager",), **changes)  # type: ignore[arg-type]


# --- the binary program against a shortest path over sets of stored tensors -----------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_optimum_equals_the_shortest_path_on_random_programs(seed: int) -> None:
    """300 random DAGs of 4 to 9 primitives (50 a case): cone and convex, with barriers, random costs."""
    rng = np.random.default_rng(seed)
    strictly = 0
    for _ in range(50):
        preds = random_dag(rng)
        graph = dag(preds, linear=[i for i in range(len(preds)) if rng.random() < 0.3])
        limits = replace(FREE, most_linear=0, largest=4)
        cones, convex = (enumerate_kernels(graph, replace(limits, space=space)) for space in ("cone", "convex"))
        times = {g.members: 1.0 + g.reads.bit_count() + float(rng.random()) for g in cones.grown}
        targets = targets_of(cones)
        best = []
        for kernels in (cones, convex):
            options = options_of(kernels, {g: times[g.members] for g in kernels.grown}.__getitem__)
            found = choose(options, targets, Search())
            assert found.proven
            assert found.seconds == pytest.approx(shortest(options, targets), rel=1e-9)
            assert relaxed(options, targets, Search()) <= found.seconds * (1 + 1e-9)
            best.append(found.seconds)
        singles = choose([o for o in options if o.members.bit_count() == 1], targets, Search()).seconds
        assert best[0] <= best[1] * (1 + 1e-9)
        assert best[1] <= singles * (1 + 1e-9)
        strictly += best[0] < best[1] * (1 - 1e-9)
    assert strictly > 0, "on some of 50 programs a kernel that is not convex is worth it"


def test_adding_candidates_never_raises_the_optimum_and_a_cover_never_beats_it() -> None:
    rng = np.random.default_rng(7)
    for _ in range(40):
        graph = dag(random_dag(rng), linear=[1])
        kernels = enumerate_kernels(graph, replace(FREE, most_linear=1))
        times = {g.kind: 1.0 + float(rng.random()) for g in kernels.grown}
        options = options_of(kernels, {g: times[g.kind] for g in kernels.grown}.__getitem__)
        targets = targets_of(kernels)
        everything = choose(options, targets, Search()).seconds
        some = [o for o in options if o.members.bit_count() == 1 or rng.random() < 0.5]
        assert everything <= choose(some, targets, Search()).seconds * (1 + 1e-9)
        once = choose(options, targets, Search(once=kernels.needed))
        assert everything <= once.seconds * (1 + 1e-9)
        ran = [p for i in once.chosen for p in bits(options[i].members)]
        assert sorted(ran) == list(bits(kernels.needed))


def test_parts_between_stored_tensors_add_up_to_the_whole() -> None:
    """Compute-bound primitives that run alone cut the program; the sum over the parts is the optimum."""
    preds = [[], [0], [1], [2], [3], [4], [5], [6]]
    kernels = enumerate_kernels(dag(preds, linear=(2, 5)), replace(FREE, most_linear=0))
    rng = np.random.default_rng(3)
    times = {g.kind: 1.0 + float(rng.random()) for g in kernels.grown}
    options, targets = options_of(kernels, lambda g: times[g.kind]), targets_of(kernels)
    found = choose(options, targets, Search())
    assert found.parts == 5
    assert found.seconds == pytest.approx(shortest(options, targets))


def test_the_sum_of_rows_bounds_better_than_the_papers_rows() -> None:
    """Figure 4 with unit costs: the paper's relaxation proves less than half of the optimum."""
    from scipy.optimize import linprog

    kernels = enumerate_kernels(dag(FIGURE_4, linear=FIGURE_4_LINEAR), PAPER)
    options, targets = options_of(kernels, lambda g: 1.0), targets_of(kernels)
    best = choose(options, targets, Search()).seconds
    rows, right = [], []
    for t in bits(targets):
        rows.append([-float(t in o.makes) for o in options])
        right.append(-1.0)
    for k, o in enumerate(options):
        for t in bits(o.reads):
            rows.append([float(i == k) - float(t in other.makes) for i, other in enumerate(options)])
            right.append(0.0)
    paper = linprog([1.0] * len(options), A_ub=rows, b_ub=right, bounds=(0, 1)).fun
    assert paper <= 0.5 * best
    assert relaxed(options, targets, Search()) >= 1.2 * paper


def test_rows_for_states_and_windows_cut_off_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of 16 to 24 primitives have the same optimum with them as with the paper's rows, and a tighter bound."""
    rng = np.random.default_rng(12)
    cases = []
    for _ in range(12):
        preds = random_dag(rng, least=16, most=24)
        linear = [i for i in range(len(preds)) if rng.random() < 0.2]
        kernels = enumerate_kernels(dag(preds, linear=linear), Limits(largest=5, whole=False))
        times = 1.0 + rng.random(kernels.kinds)
        options = options_of(kernels, {g: float(times[g.kind]) for g in kernels.grown}.__getitem__)
        targets = targets_of(kernels)
        cases.append((options, targets, choose(options, targets, Search()).seconds,
                      relaxed(options, targets, Search())))
    monkeypatch.setattr(blp, "_state_rows", lambda *_: [])
    monkeypatch.setattr(blp, "_window_rows", lambda *_: [])
    for options, targets, seconds, bound_s in cases:
        assert choose(options, targets, Search()).seconds == pytest.approx(seconds, rel=1e-9)
        assert relaxed(options, targets, Search()) <= bound_s * (1 + 1e-9) <= seconds * (1 + 2e-9)
    assert any(relaxed(o, t, Search()) < 0.999 * b for o, t, _, b in cases)


@pytest.mark.parametrize("core", [1, 8])
def test_beginning_with_few_options_finds_the_same_optimum(core: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Branch and bound in two steps, on the paper's weak relaxation, where there is much to branch on."""
    rng = np.random.default_rng(21)
    monkeypatch.setattr(blp, "_state_rows", lambda *_: [])
    monkeypatch.setattr(blp, "_window_rows", lambda *_: [])
    inner, branched = blp._branched, []

    def watched(*given: Any) -> Any:
        branched.append(inner(*given))
        return branched[-1]

    monkeypatch.setattr(blp, "_branched", watched)
    for _ in range(10):
        kernels = enumerate_kernels(dag(random_dag(rng, least=10, most=14)), Limits(largest=5, whole=False))
        times = 1.0 + rng.random(kernels.kinds)
        options = options_of(kernels, {g: float(times[g.kind]) for g in kernels.grown}.__getitem__)
        targets = targets_of(kernels)
        monkeypatch.setattr(blp, "_CORE", len(options))
        wanted = choose(options, targets, Search())
        monkeypatch.setattr(blp, "_CORE", core)
        found = choose(options, targets, Search())
        assert found.proven
        assert found.seconds == pytest.approx(wanted.seconds, rel=1e-9)
        assert found.bound == pytest.approx(wanted.seconds, rel=1e-6)
        loose = choose(options, targets, Search(gap=0.05))
        assert loose.bound <= wanted.seconds * (1 + 1e-9) <= loose.seconds * (1 + 2e-9)
        assert loose.seconds - loose.bound <= 0.05 * loose.seconds * (1 + 1e-9)
    assert len(branched) > 10, "the relaxations were not whole"


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_a_chain_is_one_kernel() -> None:
    """n elementwise primitives at L + 2B a kernel: the optimum is one kernel of L + 2B."""
    chain: list[list[int]] = [[], *([i] for i in range(7))]
    kernels = enumerate_kernels(dag(chain), FREE)
    found = plan(problem_of(dag(chain)), Oracle(traffic).known_to(kernels))
    assert len(found.kernels) == 1
    assert found.certificate.objective == pytest.approx(1e-6 + 2 * 8 * 8 * 4 / 1e9)
    assert found.certificate.status == "optimal"


@pytest.mark.parametrize("extra_s", [1e-9, 1e-6])
def test_a_diamond_with_an_opaque_middle_recomputes_what_is_cheaper_than_storing_it(extra_s: float) -> None:
    """p0 -> opaque p1 -> p2, and p0 -> p2: {p0, p2} costs ``extra_s`` more than p2 alone, and saves its read of p0."""
    graph = dag([[], [0], [0, 1]], opaque=(1,))
    saved_s = 8 * 8 * 4 / 1e9

    def seconds(found: Structure) -> float:
        two = len(found.steps) == 2
        return traffic(found) + (extra_s if two else 0.0)

    kernels = enumerate_kernels(graph, FREE)
    found = plan(problem_of(graph), Oracle(seconds).known_to(kernels))
    recomputed = any(len(k.primitives) == 2 for k in found.kernels)
    # {p0, p2} reads x and t1 where p2 alone reads t0 and t1: no traffic saved, so only a gain can pay for it
    assert not recomputed
    with_gain = Oracle(lambda s: seconds(s) - (saved_s if len(s.steps) == 2 else 0.0)).known_to(kernels)
    again = plan(problem_of(graph), with_gain)
    assert any(len(k.primitives) == 2 for k in again.kernels) == (extra_s < saved_s)
    assert again.redundant == int(extra_s < saved_s)


# --- alternatives and kernels of several outputs --------------------------------------------------------------------


def test_alternatives_that_wait_for_each_other_are_never_chosen_together() -> None:
    """The rows alone are satisfied by a from b and b from a; the cuts forbid it, and one of them is used."""
    graph = with_alternatives()
    kernels = enumerate_kernels(graph, replace(FREE, largest=1))
    cheap = {"a-from-b", "b-from-a"}
    names = [p.name for p in graph.primitives]
    options = options_of(kernels, lambda g: 1.0 if names[g.members.bit_length() - 1] in cheap else 5.0)
    targets = targets_of(kernels)
    found = choose(options, targets, Search())
    assert found.cuts > 0
    assert found.seconds == shortest(options, targets) == 11.0
    assert found.proven


def test_alternatives_inside_kernels_make_no_circle() -> None:
    kernels = enumerate_kernels(with_alternatives(), FREE)
    for g in kernels.grown:
        structure(kernels.index, kernels.candidate(g))  # raises when members wait for each other
    rng = np.random.default_rng(0)
    times = {g.kind: 1.0 + float(rng.random()) for g in kernels.grown}
    options, targets = options_of(kernels, lambda g: times[g.kind]), targets_of(kernels)
    assert choose(options, targets, Search()).seconds == pytest.approx(shortest(options, targets))


def test_two_convex_kernels_of_two_outputs_that_wait_for_each_other_are_rejected() -> None:
    """A = {a1, a2}, B = {b1, b2}, a1 -> b2, b1 -> a2: tensors 0..3 = a1, a2, b1, b2; A reads b1, B reads a1."""
    both = [Option((0, 1), 1 << 2, 0b0011, 1.0), Option((2, 3), 1 << 0, 0b1100, 1.0)]
    with pytest.raises(Infeasible):
        choose(both, 0b1010, Search())
    single = [Option((0,), 0, 0b0001, 5.0), Option((2,), 0, 0b0100, 6.0)]
    found = choose([*both, *single], 0b1010, Search())
    assert found.seconds == shortest([*both, *single], 0b1010) == 7.0


def test_circles_across_parts_are_cut_too() -> None:
    """Random kernels of one or two outputs over six tensors, circles welcome: the optimum is the shortest path."""
    rng = np.random.default_rng(1)
    cut = 0
    for _ in range(150):
        options: list[Option] = []
        for _ in range(14):
            makes = tuple(sorted(rng.choice(6, size=int(rng.integers(1, 3)), replace=False).tolist()))
            reads = sum(1 << int(t) for t in range(6) if t not in makes and rng.random() < 0.35)
            options.append(Option(makes, reads, 1 << len(options), 0.5 + float(rng.random())))
        expected = shortest(options, 0b110000)
        if math.isinf(expected):
            with pytest.raises(Infeasible):
                choose(options, 0b110000, Search())
            continue
        found = choose(options, 0b110000, Search())
        assert found.seconds == pytest.approx(expected)
        cut += found.cuts > 0
    assert cut > 0


def test_unsafe_rewrites_are_offered_on_request_only() -> None:
    graph = with_alternatives()
    unsafe = replace(graph, primitives=tuple(replace(p, rewrite="unsafe-swap") if p.rewrite else p
                                             for p in graph.primitives))
    fast = Oracle(lambda s: 1e-7 if "from" in s.steps[0].op and s.inputs[0].role == "data" else 1e-6)
    for allowed in (False, True):
        problem = problem_of(unsafe, replace(FREE, largest=1, unsafe=allowed))
        fast.known_to(enumerate_kernels(unsafe, problem.limits))
        found = plan(problem, fast)
        assert check(problem, found) == []
        assert found.rewrites in (((), ("unsafe-swap",)) if allowed else ((),))
        assert found.enumerated == (5 if allowed else 3)


# --- published choices -----------------------------------------------------------------------------------------------


def test_figure_12_replayed_gives_the_published_plan() -> None:
    """Of TensorRT's three kernels and the paper's four, the four are taken: 0.0692 ms, 1.32 times as fast."""
    found = figure_12()
    assert found.certificate.status == "optimal"
    assert found.certificate.objective == pytest.approx(0.0692e-3, rel=1e-9)
    assert [k.seconds for k in found.kernels] == [0.0076e-3, 0.0184e-3, 0.0075e-3, 0.0357e-3]
    assert found.redundant == 1, "the deviation from the mean is computed twice"


def test_figure_13_replayed_flips_with_the_batch_size() -> None:
    one, ratio_1 = figure_13(1)
    sixteen, ratio_16 = figure_13(16)
    assert len(one.kernels) == 1
    assert len(sixteen.kernels) == 5
    assert ratio_1 == pytest.approx(1.25)
    assert ratio_16 == pytest.approx(2.88)


# --- lazy profiling -------------------------------------------------------------------------------------------------


def test_lazy_profiling_measures_a_fifth_and_finds_the_same_optimum() -> None:
    """On random programs and costs whose floors are true; enumerated over measured is at least 5 in all."""
    rng = np.random.default_rng(4)
    enumerated = measured = 0
    for _ in range(12):
        preds = random_dag(rng, least=14, most=20)
        graph = dag(preds, linear=[3, 9])
        limits = Limits(largest=6, per_output=200)
        truth = noisy(rng, spread=0.25)
        lazy, full = Oracle(truth), Oracle(truth).known_to(enumerate_kernels(graph, limits))
        problem = problem_of(graph, limits)
        found = profile(problem, lazy, lazy.measure)
        expected = plan(problem, full)
        assert found.certificate.status == expected.certificate.status == "optimal"
        assert found.certificate.objective == pytest.approx(expected.certificate.objective, rel=1e-9)
        assert check(problem, found) == []
        again = plan(problem, lazy)
        assert [k.structure for k in again.kernels] == [k.structure for k in found.kernels]
        assert again.certificate.status == "optimal", "planning again needs no measurement"
        enumerated += found.enumerated
        measured += len(lazy.measured)
    assert enumerated >= 5 * measured, f"{enumerated} kernels, {measured} measured"


def test_floors_lie_under_every_measured_time() -> None:
    rng = np.random.default_rng(6)
    graph = dag(random_dag(rng, least=12, most=12))
    kernels = enumerate_kernels(graph, Limits())
    problem = problem_of(graph, Limits())
    oracle = Oracle(noisy(rng)).known_to(kernels)
    prices = Prices(problem, kernels, oracle)
    known = {g.kind: (g, price.seconds) for g in kernels.grown if (price := prices.known(g)) is not None}
    floors = prices.floors(list(known.values()))
    assert all(floors.floor_s(g) <= SAFETY * seconds * (1 + 1e-9) for g, seconds in known.values())
    assert max(floors.floor_s(g) / seconds for g, seconds in known.values()) > 0.5 * SAFETY


def test_with_some_kernels_measured_the_plan_is_the_best_of_those_and_its_bound_says_so() -> None:
    rng = np.random.default_rng(8)
    graph = dag(random_dag(rng, least=10, most=12))
    problem = problem_of(graph, Limits(whole=False))
    kernels = enumerate_kernels(graph, problem.limits)
    oracle = Oracle(noisy(rng))
    with pytest.raises(MissingProfile, match="no plan can be made"):
        plan(problem, oracle)
    singles = {g.kind for g in kernels.grown if g.members.bit_count() == 1}
    oracle.measure([(kernels.digest(k), kernels.structure(k)) for k in sorted(singles)])
    some = plan(problem, oracle)
    everything = plan(problem, Oracle(oracle.truth).known_to(kernels))
    assert some.certificate.status == "feasible"
    assert some.certificate.bound is not None
    assert some.certificate.bound <= everything.certificate.objective <= some.certificate.objective


# --- plans ----------------------------------------------------------------------------------------------------------


def measured_case(seed: int = 9) -> tuple[Problem, Oracle]:
    rng = np.random.default_rng(seed)
    graph = dag(random_dag(rng, least=12, most=14), linear=[3, 7])
    problem = problem_of(graph, Limits())
    oracle = Oracle(noisy(rng, spread=0.4))
    for limits in (Limits(), Limits(space="convex"), PAPER, Limits(largest=1)):
        oracle.known_to(enumerate_kernels(graph, limits))
    return problem, oracle


@pytest.mark.parametrize("planner", PLANNERS)
def test_every_planner_keeps_the_rules_and_none_beats_the_optimum(planner: str) -> None:
    problem, oracle = measured_case()
    best = plan(problem, oracle)
    found = plan(problem, oracle, planner=planner)
    assert check(problem, found) == []
    assert best.certificate.objective <= found.certificate.objective * (1 + 1e-9)
    assert bound(problem, oracle).value <= best.certificate.objective * (1 + 1e-9)


def test_convex_kernels_are_cones_and_single_primitives_are_convex() -> None:
    for seed in range(5):
        problem, oracle = measured_case(seed)
        times = {name: plan(problem, oracle, planner=name).certificate.objective
                 for name in ("optimal", "convex", "cover", "singletons", "greedy-fusion", "whole-graph")}
        assert times["optimal"] <= times["convex"] * (1 + 1e-9)
        assert times["convex"] <= times["singletons"] * (1 + 1e-9)
        assert all(times["optimal"] <= t * (1 + 1e-9) for t in times.values())


def test_among_ties_the_plan_with_fewest_executions_is_taken() -> None:
    problem, oracle = measured_case(2)
    best = plan(problem, oracle)
    simple = plan(replace(problem, tie_tolerance=0.1), oracle)
    executions = [sum(len(k.primitives) for k in p.kernels) for p in (best, simple)]
    assert executions[1] <= executions[0]
    assert simple.certificate.objective <= 1.1 * best.certificate.objective
    assert simple.certificate.bound == pytest.approx(best.certificate.objective)


def test_the_fitted_boundary_is_added_to_every_kernel() -> None:
    class WithBoundary(Oracle):
        def cost(self, op: str, **point: float | int | str) -> Cost:
            if op == "kernel_boundary":
                return Cost(1e-5 + 1e-9 * float(point["bytes"]), "interpolated")
            return super().cost(op, **point)

    preds = [[], [0], [1, 0], [2], [2, 3]]
    graph = dag(preds)
    kernels = enumerate_kernels(graph, FREE)
    costs = WithBoundary(traffic).known_to(kernels)
    found = plan(problem_of(graph), costs)
    assert len(found.kernels) == 1, "a boundary ten times a launch leaves one kernel"
    assert found.kernels[0].boundary_s == pytest.approx(1e-5 + 1e-9 * 8 * 8 * 4)
    assert check(problem_of(graph), found) == []
    without = plan(problem_of(graph, boundaries=False), costs)
    assert all(k.boundary_s == 0 for k in without.kernels)


def test_check_finds_what_is_wrong_with_a_plan() -> None:
    problem, oracle = measured_case()
    good = plan(problem, oracle, planner="singletons")
    assert check(problem, good) == []
    first, *rest = good.kernels

    def rules(kernels: Sequence[object], **changes: object) -> set[str]:
        return {v.rule for v in check(problem, replace(good, kernels=tuple(kernels), **changes))}  # type: ignore[arg-type]

    assert "order" in rules([*rest, first])
    assert {"coverage", "objective"} <= rules(good.kernels[:-1])
    assert "outputs" in rules([replace(first, outputs=("t3",)), *rest])
    assert "inputs" in rules([replace(first, inputs=()), *rest])
    assert "primitives" in rules([replace(first, primitives=("nobody",)), *rest])
    assert "cone" in rules([replace(rest[0], primitives=(*rest[0].primitives, "p9")), first, *rest])
    assert "objective" in rules([replace(first, seconds=2 * first.seconds), *rest])
    assert "backend" in rules([replace(first, backend="magic"), *rest])
    assert "counts" in {v.rule for v in check(problem, replace(good, redundant=3))}
    assert "program" in {v.rule for v in check(problem, replace(good, graph="0" * 64))}


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_program_of_672_primitives_is_enumerated_in_five_seconds_and_proven_in_ten() -> None:
    """Blocks like those of a vision transformer, every operation distinct: nothing is shared by structure."""
    preds: list[list[int]] = [[]]
    linear: list[int] = []
    for _ in range(28):
        x = len(preds) - 1
        norm = [[x], [x, x + 1], [x + 2], [x + 3], [x + 4], [x + 2, x + 5]]
        preds += norm
        y = len(preds) - 1
        preds += [[y], [y], [y], [y + 1, y + 2], [y + 4], [y + 4, y + 5], [y + 6], [y + 7], [y + 6, y + 8],
                  [y + 9, y + 3], [y + 10], [y + 11, x], [y + 12], [y + 13], [y + 14], [y + 15], [y + 16],
                  [y + 12, y + 17]]
        linear += [y + 1, y + 2, y + 3, y + 4, y + 10, y + 11, y + 13, y + 17]
    graph = dag(preds, linear=linear)
    began = time.process_time()
    kernels = enumerate_kernels(graph, Limits())
    enumerated_s = time.process_time() - began
    rng = np.random.default_rng(0)
    factor = 1.0 + 0.5 * rng.random(kernels.kinds)
    options = options_of(kernels, lambda g: (1.0 + g.reads.bit_count()) * factor[g.kind])
    began = time.process_time()
    found = choose(options, targets_of(kernels), Search())
    assert len(graph.primitives) >= 672
    assert found.proven
    assert enumerated_s < 5.0
    assert time.process_time() - began < 10.0

"""Pipeline planning: enumeration, closed forms, published schedules, and a checker that must notice every fault."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from planners import pipeline
from planners.pipeline import layers
from planners.pipeline.assembly import candidate, draft, draft_if_acyclic, hope_s
from planners.pipeline.baselines import downsets, pipedream_stages
from planners.pipeline.bounds import area_bound, chain_bound, iteration_bound, partition_bound
from planners.pipeline.clock import Link, StageGraph, iteration_s, least_s
from planners.pipeline.decomposition import decompose, is_series_parallel
from planners.pipeline.graph import bits, build
from planners.pipeline.inflight import held_by_all, order
from planners.pipeline.loaders import graph_of, load
from planners.pipeline.models import generate
from planners.pipeline.planning import priced
from planners.pipeline.pricing import Prices
from planners.pipeline.problem import Cluster, Edge, FileModel, Layer, LinkRate, Model, Operator, Problem
from planners.pipeline.reading import Chosen
from planners.pipeline.search import Line, Tree, smallest_bottleneck
from planners.pipeline.shape import Shape
from planners.pipeline.work import Work
from tests import oracles_pipeline as oracles
from workbench.costs import Axis, ProfileTable, Provenance, TableCosts, open_costs
from workbench.errors import Infeasible, MissingProfile, SolverError, SpecError

NO_COSTS = TableCosts(())
MIRROR = os.environ.get("WB_DATA_MIRROR")


def enumerated(problem: Problem, micro: int, *, inside: bool) -> float:
    prices, root = priced(problem, NO_COSTS)
    graph = prices.graph

    def times(mask: int, d: int) -> float:
        n = micro // d
        compute = sum(graph.operators[v].forward_s[n] + graph.operators[v].backward_s[n] for v in bits(mask))
        members = list(bits(mask))
        moved = max(graph.received(mask, members), graph.sent(mask, members)) * micro / d
        wire = 1e-6 + moved / 1e12 if moved else 0.0
        weight = sum(graph.operators[v].weight_bytes for v in bits(mask))
        ring = 2 * (d - 1) * (1e-6 + weight / d / 1e12) if d > 1 else 0.0
        return max(compute, wire) / micro + ring / problem.batch_samples

    o = graph.operators
    return oracles.least_bottleneck(
        problem, [(u, v) for u, v, _ in graph.edges], [x.weight_bytes for x in o],
        [x.saved_bytes_per_sample for x in o], [x.output_bytes_per_sample for x in o], times, micro,
        (lambda mask: oracles.in_space(mask, root)) if inside else (lambda mask: True))


def compared(count: int, seed: int, operators: int) -> list[tuple[float, float, float]]:
    """(ours, optimum of the space, optimum of all stage graphs) of random problems."""
    rows = []
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        problem = oracles.random_problem(
            rng, operators=int(rng.integers(2, operators + 1)), devices=int(rng.integers(1, 5)),
            memory_bytes=float(rng.choice([400.0, 700.0, 1e9])))
        micro = int(rng.choice([1, 2, 4]))
        prices, root = priced(problem, NO_COSTS)
        found = smallest_bottleneck(prices, root, (micro,))
        rows.append((math.inf if found is None else found[0], enumerated(problem, micro, inside=True),
                     enumerated(problem, micro, inside=False)))
    return rows


def assert_optimal(rows: list[tuple[float, float, float]]) -> None:
    for ours, space, _ in rows:
        assert ours == pytest.approx(space, rel=1e-9), "the dynamic program missed the optimum of its own space"
    ratios = [ours / free for ours, _, free in rows if math.isfinite(free) and math.isfinite(ours)]
    assert sum(math.isfinite(free) and not math.isfinite(ours) for ours, _, free in rows) <= len(rows) // 100
    assert math.exp(np.mean(np.log(ratios))) <= 1.05


def test_search_is_optimal_on_small_graphs() -> None:
    assert_optimal(compared(120, 1, 6))


@pytest.mark.slow
def test_search_is_optimal_on_500_graphs_of_up_to_8_operators() -> None:
    assert_optimal(compared(500, 2, 8))


PUBLISHED = [
    # Strategy files of flexflow-train PR 308: CANDLE-Uno as a chain, and as a graph whose stage 0 joins the branches.
    ([64] * 6, [1] * 6, [[1], [2], [3], [4], [5], []], [384, 320, 256, 192, 128, 64]),
    ([64] * 6, [1] * 6, [[4], [4], [4], [4], [5], []], [192, 192, 192, 192, 128, 64]),
    # ResNet: first stage micro-batch 1 with 2F2B, then 2 with 1F1B; and with micro-batch 2 throughout.
    ([1, 2, 2, 2, 2, 2, 2, 2], [2] + [1] * 7, [[x + 1] for x in range(7)] + [[]], [16, 14, 12, 10, 8, 6, 4, 2]),
    ([2] * 7, [1] * 7, [[x + 1] for x in range(6)] + [[]], [14, 12, 10, 8, 6, 4, 2]),
    ([128] * 3, [1] * 3, [[1], [2], []], [384, 256, 128]),
    # Figure 5 of the paper.
    ([1, 2, 4], [1, 1, 1], [[1], [2], []], [10, 8, 4]),
    ([4, 4, 4], [1, 1, 1], [[1], [2], []], [12, 8, 4]),
]


@pytest.mark.parametrize("micro, turn, after, held", PUBLISHED)
def test_published_in_flight_numbers(micro: list[int], turn: list[int], after: list[list[int]],
                                     held: list[int]) -> None:
    assert held_by_all(micro, turn, after, 1024) == held


def stages(micro: list[int], turn: list[int], edges: list[tuple[int, int]], *, batch: int = 48,
           forward: float = 1.0, backward: float = 2.0) -> StageGraph:
    return StageGraph(batch, micro, turn, [forward * b for b in micro], [backward * b for b in micro],
                      [0.0] * len(micro), [Link(u, v, 0.0, 0.0) for u, v in edges])


@pytest.mark.parametrize("backward", [1.0, 2.0])
def test_in_flight_rule_stalls_no_chain_of_three_stages(backward: float) -> None:
    for micro in itertools.product([1, 2, 4], repeat=3):
        for turn in itertools.product([1, 2], repeat=3):
            graph = stages(list(micro), list(turn), [(0, 1), (1, 2)], backward=backward)
            # Holding more at the stages before the last cannot help.
            free = [graph.batch, graph.batch, turn[2] * micro[2]]
            assert iteration_s(graph, graph.held()) <= iteration_s(graph, free) * (1 + 1e-9), (micro, turn)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_uniform_chain_takes_the_closed_form(depth: int) -> None:
    graph = stages([4] * depth, [1] * depth, [(x, x + 1) for x in range(depth - 1)])
    assert iteration_s(graph, graph.held()) == pytest.approx((48 // 4 + depth - 1) * 12.0)


def test_order_of_a_stage_is_warm_up_then_k_back_k_forward() -> None:
    got = "".join(kind for kind, _ in order(8, 1, 2, 3))
    assert got == "FFFBBFFBBFFBBFBB"


def test_the_n_graph_is_not_series_parallel_and_is_planned_all_the_same() -> None:
    problem = oracles.random_problem(np.random.default_rng(3), operators=4, devices=3)
    n = [Edge(producer=f"o{u}", consumer=f"o{v}") for u, v in ((0, 2), (0, 3), (1, 3))]
    problem = dataclasses.replace(problem, edges=tuple(n))
    graph = graph_of(problem)
    assert not is_series_parallel(graph)
    assert decompose(graph)[1] > 0
    assert pipeline.check(problem, pipeline.plan(problem, NO_COSTS)) == []


def test_random_series_parallel_graphs_are_recognised() -> None:
    for k in range(60):
        graph = graph_of(oracles.random_problem(np.random.default_rng([5, k]), operators=9, devices=2))
        assert is_series_parallel(graph)
        tree, added = decompose(graph)
        assert added == 0
        assert tree.mask == graph.everything


def test_a_skip_over_layers_keeps_a_chain_a_chain() -> None:
    operators = [Operator(name=n, forward_s_per_sample=1.0, backward_s_per_sample=1.0) for n in "abcd"]
    edges = [Edge(producer=u, consumer=v) for u, v in ("ab", "bc", "cd", "ad", "ac")]
    tree, added = decompose(build(operators, edges))
    assert (tree.shape, len(tree.items), added) == ("series", 4, 0)


def test_equal_branches_share_a_kind() -> None:
    tree, _ = decompose(build(*generate(Model(family="dlrm"))))
    assert sorted(len(group) for group in tree.items[0].groups) == [7, 7]


@pytest.mark.parametrize("family, operators, parameters", [
    # 12.6 M parameters a transformer layer (4 h^2 + 8 h^2 and the small ones), 32 layers: about 403 M.
    ("multi-modal", 33, 403e6), ("transformer", 32, 403e6),
    # 7 tables of 1M x 64 and 7 x 4 layers of 4096 x 4096 besides the tail.
    ("dlrm", 40, 7 * 64e6 + 28 * 4096**2 + 4096 * (7 * 4096 + 7 * 6400) + 3 * 4096**2),
    ("candle-uno", 33, 28 * 4096**2 + 4096 * 7 * 4096 + 3 * 4096**2)])
def test_families_have_the_papers_shapes(family: str, operators: int, parameters: float) -> None:
    made, _ = generate(Model(family=family))  # type: ignore[arg-type]
    assert len(made) == operators
    assert sum(o.weight_bytes for o in made) / 4 == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize("planner", list(pipeline.PLANNERS))
def test_every_planner_keeps_the_rules(planner: str) -> None:
    for k in range(12):
        rng = np.random.default_rng([7, k])
        problem = oracles.random_problem(rng, operators=int(rng.integers(1, 9)), devices=int(rng.integers(1, 6)))
        found = pipeline.plan(problem, NO_COSTS, planner=planner)
        assert pipeline.check(problem, found) == []
        assert pipeline.bound(problem, NO_COSTS).value <= found.iteration_s * (1 + 1e-9)


@pytest.mark.parametrize("transfers", ["overlapped", "blocking"])
def test_slow_links_between_machines_are_replayed_as_ranked(transfers: Literal["overlapped", "blocking"]) -> None:
    for k in range(8):
        rng = np.random.default_rng([8, k])
        problem = oracles.random_problem(rng, operators=8, devices=5)
        cluster = dataclasses.replace(problem.cluster, devices_per_machine=2,
                                      between=LinkRate(latency_s=1e-3, bytes_per_s=1e4))
        problem = dataclasses.replace(problem, cluster=cluster, transfers=transfers)
        assert pipeline.check(problem, pipeline.plan(problem, NO_COSTS, planner="graph-mixed")) == []


def test_no_baseline_beats_the_default_on_a_branched_demo() -> None:
    for k in range(10):
        problem = oracles.random_problem(np.random.default_rng([9, k]), operators=8, devices=4)
        ours = pipeline.plan(problem, NO_COSTS).iteration_s
        for name in ("sequential", "balance"):
            assert ours <= pipeline.plan(problem, NO_COSTS, planner=name).iteration_s * (1 + 1e-9)


def test_chains_have_pipedreams_bottleneck() -> None:
    for k in range(20):
        rng = np.random.default_rng([10, k])
        problem = oracles.random_problem(rng, operators=7, devices=4)
        chain = tuple(Edge(producer=f"o{i}", consumer=f"o{i + 1}") for i in range(6))
        prices, root = priced(dataclasses.replace(problem, edges=chain), NO_COSTS)
        found = smallest_bottleneck(prices, root, (2,))
        theirs = pipedream_stages(prices, 2)
        assert found is not None
        assert theirs is not None
        slowest = max(o.seconds_per_sample for s in theirs for o in prices.options(s.mask, 2)
                      if o.replicas == s.replicas)
        assert found[0] == pytest.approx(slowest, rel=1e-9)


def test_even_stages_of_a_line_are_pipedreams() -> None:
    for k in range(20):
        rng = np.random.default_rng([19, k])
        problem = oracles.random_problem(rng, operators=8, devices=5, memory_bytes=float(rng.choice([300.0, 1e9])))
        prices, _ = priced(problem, NO_COSTS)
        for micro in (1, 4):
            assert Line(prices, Work(prices, (micro,)), micro).evenest() == pipedream_stages(prices, micro)


def test_lines_are_searched_as_trees_are() -> None:
    for k in range(20):
        rng = np.random.default_rng([17, k])
        problem = oracles.random_problem(rng, operators=7, devices=4, memory_bytes=float(rng.choice([400.0, 1e9])))
        chain = tuple(Edge(producer=f"o{i}", consumer=f"o{i + 1}") for i in range(6))
        prices, root = priced(dataclasses.replace(problem, edges=chain), NO_COSTS)
        least = smallest_bottleneck(prices, root, (2,))
        if least is None:
            assert Tree(prices, Shape(root), (2,), Work(prices, (2,))).some(1.0) == []
            continue
        for rise in (0.99, 1.0, 1.1, 1.5):
            work = Work(prices, (2,))
            line, tree = (search.fronts(least[0] * rise)
                          for search in (Line(prices, work, 2), Tree(prices, Shape(root), (2,), work)))
            assert [(len(x), sum(s.replicas for s in x)) for x in line] == [
                (len(x), sum(s.replicas for s in x)) for x in tree]
        line, limits = Line(prices, Work(prices, (2,)), 2), [least[0], least[0] * 1.2, least[0] * 3]
        assert line.rising(limits) == [stages for limit in limits for stages in line.fronts(limit)]


def test_runs_of_a_line_are_priced_as_arrays_to_the_bit() -> None:
    for k in range(12):
        rng = np.random.default_rng([18, k])
        problem = oracles.random_problem(rng, operators=6, devices=4, memory_bytes=float(rng.choice([200.0, 1e9])))
        cluster = dataclasses.replace(problem.cluster, devices_per_machine=2,
                                      between=LinkRate(latency_s=1e-3, bytes_per_s=1e4))
        prices, _ = priced(dataclasses.replace(problem, cluster=cluster,
                                               transfers=("overlapped", "blocking")[k % 2]), NO_COSTS)
        for micro in (1, 2, 4):
            seconds, most, replicas = prices.runs(micro)
            for first, last in itertools.combinations_with_replacement(range(6), 2):
                singly = {o.replicas: o for o in prices.options((2 << last) - (1 << first), micro)}
                for way, d in enumerate(replicas):
                    option = singly.get(d)
                    assert seconds[first, last, way] == (math.inf if option is None else option.seconds_per_sample)
                    assert option is None or most[first, last, way] == option.most_held


def test_equal_branches_have_the_prices_of_the_first() -> None:
    problem = Problem(
        model=Model(family="dlrm", branches=3), batch_samples=64, micro_batches=(16,), cluster=Cluster(
            devices=8, devices_per_machine=4, memory_bytes=16e9, device="V100", inside=oracles.FAST,
            between=LinkRate(latency_s=1e-5, bytes_per_s=1e10)))
    costs = open_costs({"source": "analytic"})
    prices, root = priced(problem, costs)
    found = smallest_bottleneck(prices, root, (16,))
    assert found is not None
    fresh, _ = priced(problem, costs)
    for stages in found[1]:
        assert len(stages) > 3
        for s in stages:
            assert prices.sums(s.mask)[1:] == pytest.approx(fresh.sums(s.mask)[1:])
            ours, theirs = prices.options(s.mask, 16), fresh.options(s.mask, 16)
            assert [o.replicas for o in ours] == [o.replicas for o in theirs]
            assert [o.seconds_per_sample for o in ours] == pytest.approx([o.seconds_per_sample for o in theirs])


def test_no_devices_let_a_draft_take_less_than_its_hope() -> None:
    finite = 0
    for k in range(100):
        prices, _ = priced(small_problem(np.random.default_rng([58, k])), NO_COSTS)
        for parts in oracles.partitions(len(prices.graph), prices.cluster.devices):
            made = draft_if_acyclic(prices, [Chosen(part, 2, 1) for part in parts], sequential=False)
            if made is not None:
                found = candidate(prices, made)
                hope = hope_s(prices, made)
                assert (found is None) == math.isinf(hope)
                assert found is None or hope <= found.iteration_s * (1 + 1e-12)
                finite += found is not None
    assert finite > 100


def test_plans_of_small_problems_are_near_the_best_of_all() -> None:
    ratios = []
    for k in range(60):
        problem = small_problem(np.random.default_rng([59, k]))
        best = best_of_all(priced(problem, NO_COSTS)[0])
        if math.isfinite(best):
            ratios.append(pipeline.plan(problem, NO_COSTS).iteration_s / best)
    assert len(ratios) > 40
    assert min(ratios) >= 1 - 1e-9
    assert math.exp(np.mean(np.log(ratios))) < 1.005


def test_more_devices_and_more_memory_never_raise_the_bottleneck() -> None:
    for k in range(10):
        problem = oracles.random_problem(np.random.default_rng([11, k]), operators=7, devices=1)
        last = math.inf
        for devices, memory in ((1, 600.0), (2, 600.0), (2, 900.0), (3, 900.0), (4, 1e9)):
            cluster = dataclasses.replace(problem.cluster, devices=devices, memory_bytes=memory)
            prices, root = priced(dataclasses.replace(problem, cluster=cluster), NO_COSTS)
            found = smallest_bottleneck(prices, root, (2,))
            value = math.inf if found is None else found[0]
            assert value <= last * (1 + 1e-9)
            last = value


def test_check_notices_every_kind_of_fault() -> None:
    problem = oracles.random_problem(np.random.default_rng(12), operators=8, devices=4)
    problem = dataclasses.replace(problem, micro_batches=(2, 4))
    good = pipeline.plan(problem, NO_COSTS, planner="balance")
    assert len(good.stages) > 2
    a, b, *rest = good.stages
    moved = dataclasses.replace(a, operators=b.operators), dataclasses.replace(b, operators=a.operators)
    faults = {
        "partition": (dataclasses.replace(a, operators=a.operators[:-1]), b),
        "devices": (a, dataclasses.replace(b, devices=a.devices)),
        "micro-batch": (dataclasses.replace(a, micro_batch_samples=1), b),
        "in flight": (dataclasses.replace(a, in_flight_samples=a.in_flight_samples + 1), b),
        "memory": (dataclasses.replace(a, memory_bytes=a.memory_bytes / 2), b),
        "iteration": (dataclasses.replace(a, forward_s=a.forward_s * 3), b),
        "flows": moved,
    }
    for rule, (first, second) in faults.items():
        bad = dataclasses.replace(good, stages=(first, second, *rest))
        assert rule in {v.rule for v in pipeline.check(problem, bad)}, rule
    for change in ({"iteration_s": good.iteration_s * 0.9}, {"flows": good.flows[1:]},
                   {"certificate": dataclasses.replace(good.certificate, bound=good.iteration_s * 2)}):
        assert pipeline.check(problem, dataclasses.replace(good, **change))


def test_check_notices_a_stage_that_is_not_convex() -> None:
    operators = tuple(Operator(name=n, forward_s_per_sample=1e-3, backward_s_per_sample=1e-3) for n in "abc")
    problem = Problem(operators=operators, edges=(Edge(producer="a", consumer="b"), Edge(producer="b", consumer="c")),
                      batch_samples=4, micro_batches=(1,), cluster=Cluster(
                          devices=2, devices_per_machine=2, memory_bytes=1e9, inside=oracles.FAST,
                          between=oracles.FAST))
    good = pipeline.plan(problem, NO_COSTS, planner="balance")
    x, y = good.stages[:2]
    bad = dataclasses.replace(good, stages=(dataclasses.replace(x, operators=("a", "c")),
                                            dataclasses.replace(y, operators=("b",))),
                              flows=(good.flows[0], dataclasses.replace(good.flows[0], producer=1, consumer=0)))
    assert "convexity" in {v.rule for v in pipeline.check(problem, bad)}


def test_memory_too_small_names_the_operator() -> None:
    problem = oracles.random_problem(np.random.default_rng(13), operators=4, devices=2, memory_bytes=5.0)
    with pytest.raises(Infeasible, match="alone needs"):
        pipeline.plan(problem, NO_COSTS)


def test_missing_times_are_an_error_that_names_them() -> None:
    problem = Problem(model=Model(family="candle-uno", branches=2), batch_samples=8, cluster=Cluster(
        devices=2, devices_per_machine=2, memory_bytes=1e12, inside=oracles.FAST, between=oracles.FAST, device="V100"))
    with pytest.raises(MissingProfile):
        pipeline.plan(problem, NO_COSTS)
    assert pipeline.plan(problem, open_costs({"source": "analytic"})).sources == {"analytic": 1.0}
    table = oracles.random_problem(np.random.default_rng(1), operators=3, devices=2, batch=16)
    with pytest.raises(MissingProfile, match="local batch"):
        pipeline.plan(table, NO_COSTS)


def best_of_all(prices: Prices) -> float:
    """Least simulated iteration over every partition, micro-batch, replicas and k up to 2; inf where nothing fits."""
    problem, best = prices.problem, math.inf
    for parts in oracles.partitions(len(prices.graph), problem.cluster.devices):
        try:
            for sizes in itertools.product(problem.menu, repeat=len(parts)):
                for replicas in itertools.product(*[prices.replica_counts(b) for b in sizes]):
                    if sum(replicas) > problem.cluster.devices:
                        continue
                    chosen = [Chosen(m, b, d) for m, b, d in zip(parts, sizes, replicas, strict=True)]
                    for turns in itertools.product((1, 2), repeat=len(parts)):
                        if all(k * b <= problem.batch_samples for k, b in zip(turns, sizes, strict=True)):
                            made = candidate(prices, draft(prices, chosen, sequential=False, turns=turns))
                            best = min(best, math.inf if made is None else made.iteration_s)
        except AssertionError:
            continue  # a cycle of stages
    return best


def small_problem(rng: np.random.Generator) -> Problem:
    """Up to four operators on up to three devices, with little memory or slow links here and there."""
    operators, devices, batch = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.choice([2, 4, 8]))
    problem = oracles.random_problem(rng, operators=operators, devices=devices, batch=batch,
                                     memory_bytes=float(rng.choice([150.0, 300.0, 1e9])))
    if rng.random() < 0.4:
        chain = tuple(Edge(producer=f"o{i}", consumer=f"o{i + 1}") for i in range(operators - 1))
        problem = dataclasses.replace(problem, edges=chain)
    links = [LinkRate(latency_s=float(rng.choice([1e-6, 2e-3])), bytes_per_s=float(rng.choice([1e12, 2e4, 3e3])))
             for _ in range(2)]
    cluster = dataclasses.replace(problem.cluster, devices_per_machine=int(rng.integers(1, devices + 1)),
                                  inside=links[0], between=links[1])
    menu = [tuple(b for b in (1, 2, 4, 8) if batch % b == 0), (2,), (1, 2)][int(rng.integers(3))]
    return dataclasses.replace(problem, cluster=cluster, micro_batches=menu, max_forwards_per_turn=2,
                               transfers=("overlapped", "blocking")[int(rng.integers(2))])


def assert_bounded(prices: Prices) -> float:
    """No bound lies above the best plan; the share of it that is reached."""
    best = best_of_all(prices)
    found = [iteration_bound(prices), area_bound(prices), partition_bound(prices)]
    if math.isfinite(best):
        work = Work(prices, prices.problem.menu)
        found.append(work.floor * prices.problem.batch_samples)
    assert max(found) <= best * (1 + 1e-9)
    return found[0] / best if math.isfinite(best) else 1.0


def test_no_schedule_beats_the_bounds() -> None:
    """Operator 3 of problem 3108 fits memory only beside the operator whose output it reads."""
    reached = [assert_bounded(priced(small_problem(np.random.default_rng([55, k])), NO_COSTS)[0])
               for k in (*range(250), 3108)]
    assert np.median(reached) > 0.95


def test_no_schedule_beats_the_bounds_where_optimizers_take_time() -> None:
    for k in range(40):
        rng = np.random.default_rng([56, k])
        problem = small_problem(rng)
        bare = tuple(dataclasses.replace(o, forward_s={}, backward_s={}) for o in problem.operators)
        # Layers of some ten nanoseconds: as much as their update.
        links = [LinkRate(latency_s=1e-9, bytes_per_s=float(rng.choice([1e9, 1e12]))) for _ in range(2)]
        cluster = dataclasses.replace(problem.cluster, device="cpu", inside=links[0], between=links[1])
        prices, _ = priced(dataclasses.replace(problem, operators=bare, cluster=cluster), layer_tables())
        assert max(prices.update) > 0
        assert_bounded(prices)


def test_the_last_of_equal_blocking_stages_sends_nothing() -> None:
    problem = oracles.random_problem(np.random.default_rng(57), operators=3, devices=3, batch=4)
    alike = tuple(dataclasses.replace(problem.operators[0], name=o.name, weight_bytes=100.0, saved_bytes_per_sample=1.0)
                  for o in problem.operators)
    slow = LinkRate(latency_s=5e-3, bytes_per_s=1e3)
    # Memory for one operator a device, and one micro-batch: the stages work one after the other.
    cluster = dataclasses.replace(problem.cluster, inside=slow, between=slow, memory_bytes=300.0)
    prices, _ = priced(dataclasses.replace(
        problem, operators=alike, edges=tuple(Edge(producer=f"o{i}", consumer=f"o{i + 1}") for i in range(2)),
        cluster=cluster, transfers="blocking", micro_batches=(4,), max_forwards_per_turn=2), NO_COSTS)
    assert assert_bounded(prices) > 0.6


def test_replicas_in_several_machines_reduce_over_slow_links() -> None:
    operator = Operator(name="o", forward_s={n: 1.0 * n for n in (1, 2, 4)}, backward_s={n: 1.0 * n for n in (1, 2, 4)},
                        weight_bytes=100.0)
    problem = Problem(operators=(operator,), batch_samples=4, cluster=Cluster(
        devices=4, devices_per_machine=2, memory_bytes=1e9, inside=oracles.FAST,
        between=LinkRate(latency_s=0.0, bytes_per_s=100.0)))
    # Four replicas would take 2 s and 2 x 3 x 0.25 s, two take 4 s.
    assert pipeline.bound(problem, NO_COSTS).value == pytest.approx(3.5, rel=1e-5)
    assert pipeline.plan(problem, NO_COSTS).iteration_s == pytest.approx(3.5)


@pytest.mark.parametrize("family, batch, most", [("dlrm", 4096, 0.03), ("candle-uno", 4096, 0.06),
                                                 ("transformer", 256, 0.06)])
def test_the_bound_of_the_papers_models_is_near_their_plans(family: str, batch: int, most: float) -> None:
    problem = Problem(
        model=Model(family=family), batch_samples=batch,  # type: ignore[arg-type]
        micro_batches=tuple(b for b in (4, 16, 64, 128, 256) if b < batch), cluster=Cluster(
            devices=32, devices_per_machine=4, memory_bytes=16e9, device="V100",
            inside=LinkRate(latency_s=1e-5, bytes_per_s=5e10), between=LinkRate(latency_s=1e-5, bytes_per_s=12.5e9)))
    found = pipeline.plan(problem, open_costs({"source": "analytic"})).certificate
    assert found.gap is not None
    assert found.gap < most


def test_the_chain_bound_is_that_of_all_partitions() -> None:
    for k in range(6):
        problem = oracles.random_problem(np.random.default_rng([15, k]), operators=5, devices=3)
        chain = tuple(Edge(producer=f"o{i}", consumer=f"o{i + 1}") for i in range(4))
        prices, _ = priced(dataclasses.replace(problem, edges=chain), NO_COSTS)
        by_cuts, by_partitions = chain_bound(prices, area_bound(prices)), partition_bound(prices)
        # A chain waits for the sum of its own predecessors' micro-batches, a partition for the shortest there are.
        assert by_partitions * (1 - 0.004) <= by_cuts
        assert by_cuts <= pipeline.plan(dataclasses.replace(problem, edges=chain), NO_COSTS).iteration_s


def test_the_fill_of_a_stage_graph_is_a_lower_bound_of_its_clock() -> None:
    rng = np.random.default_rng(16)
    near = []
    for _ in range(300):
        count = int(rng.integers(1, 6))
        edges = [(u, v) for v in range(1, count) for u in range(v) if rng.random() < 0.5]
        graph = stages([int(rng.choice([1, 2, 4])) for _ in range(count)],
                       [int(rng.integers(1, 3)) for _ in range(count)], edges, forward=float(rng.uniform(0.5, 2)))
        graph = dataclasses.replace(
            graph, forward_s=[t * rng.uniform(0.5, 2) for t in graph.forward_s],
            backward_s=[t * rng.uniform(0.5, 2) for t in graph.backward_s],
            at_end_s=[float(rng.choice([0.0, 5.0])) for _ in range(count)],
            links=[Link(u, v, *rng.choice([0.0, 0.3, 2.0], 2)) for u, v in edges])
        held = graph.held()
        for samples in (held, [min(graph.batch, i + b) for i, b in zip(held, graph.micro, strict=True)]):
            took = iteration_s(graph, samples)
            assert least_s(graph, samples) <= took * (1 + 1e-9)
            near.append(least_s(graph, samples) / took)
    assert np.median(near) > 0.9


def test_the_fill_counts_the_way_of_samples_in_flight_over_slow_messages() -> None:
    graph = dataclasses.replace(stages([4] * 4, [1] * 4, []), links=[Link(x, x + 1, 3.0, 3.0) for x in range(3)])
    # The first stage holds 4 of 12 micro-batches; three times four stages of 12 s and three links there and back.
    assert least_s(graph, graph.held()) >= 3 * (4 * 12.0 + 3 * 6.0)
    assert least_s(graph, graph.held()) >= 0.85 * iteration_s(graph, graph.held())


def layer_tables(device: str = "cpu") -> TableCosts:
    """Layers that take 1 ns a multiplication, whose update takes 1 ns a byte; everything else is free."""
    where = Provenance(id="made", origin="test", device=device)

    def table(op: str, names: tuple[str, ...], each: Callable[..., float], **keys: str) -> ProfileTable:
        points = np.array(list(itertools.product(*[(1.0, 4096.0)] * len(names))))
        return ProfileTable(op=op, keys={"device": device, "dtype": "fp32", **keys}, times="log", provenance=where,
                            axes=tuple(Axis(n, "log") for n in names), points=points,
                            seconds=np.array([each(*p) for p in points]))

    dense = ("inputs", "width", "samples")
    free = [table(f"{op}_{way}", ("bytes",), lambda b: 1e-15) for op in ("join", "loss") for way in ("forward",
                                                                                                    "backward")]
    return TableCosts([
        table("dense_forward", dense, lambda i, w, n: 1e-9 * i * w * n), *free,
        table("dense_backward", dense, lambda i, w, n: 2e-9 * i * w * n, input_gradient="yes"),
        table("dense_backward", dense, lambda i, w, n: 1e-9 * i * w * n, input_gradient="no"),
        table("weight_update", ("bytes",), lambda b: 1e-9 * b, optimizer="sgd")])


@pytest.mark.parametrize("device", ["cpu", "V100"])
@pytest.mark.parametrize(("inputs", "dtype", "aliased"), [(511, "fp32", False), (512, "fp32", True),
                                                          (1536, "fp32", True), (512, "bf16", False)])
def test_a_backward_with_rows_that_alias_on_a_cpu_has_a_table_of_its_own(device: str, inputs: int, dtype: str,
                                                                        aliased: bool) -> None:
    layer = Layer(kind="dense", inputs=inputs, width=8)
    graph = build((Operator(name="only", layer=layer),), ())
    found = layers.calls(graph, 0, dtype, device)
    assert found is not None
    assert found[0][0].op == "dense_forward"
    assert found[1][0].op == ("dense_backward_aliased" if aliased and device == "cpu" else "dense_backward")


def test_layers_without_times_are_priced_by_measured_layers() -> None:
    problem = oracles.random_problem(np.random.default_rng(2), operators=5, devices=1)
    bare = tuple(dataclasses.replace(o, forward_s={}, backward_s={}) for o in problem.operators)
    cluster = dataclasses.replace(problem.cluster, device="cpu")
    problem = dataclasses.replace(problem, operators=bare, cluster=cluster, micro_batches=(2,))
    found = pipeline.plan(problem, layer_tables(), planner="data-parallel")
    assert pipeline.check(problem, found) == []
    assert set(found.sources) <= {"measured", "interpolated"}
    graph = graph_of(problem)
    # Inputs of 3 columns of their own, 4 from each operator that is read; no input gradient without one.
    inner = [3 + 4 * len(reads) for reads in graph.reads]
    forward = sum(1e-9 * i * 4 * 2 for i in inner)
    backward = sum((2e-9 if reads else 1e-9) * i * 4 * 2 for i, reads in zip(inner, graph.reads, strict=True))
    update = sum(1e-9 * o.weight_bytes for o in bare)
    assert found.stages[0].update_s == pytest.approx(update, rel=1e-6)
    assert found.iteration_s == pytest.approx(4 * (forward + backward) + update, rel=1e-6)


def test_layers_nobody_measured_name_the_command() -> None:
    problem = oracles.random_problem(np.random.default_rng(2), operators=3, devices=2)
    bare = tuple(dataclasses.replace(o, forward_s={}, backward_s={}) for o in problem.operators)
    problem = dataclasses.replace(problem, operators=bare)
    with pytest.raises(MissingProfile, match="names no device"):
        pipeline.plan(problem, NO_COSTS)
    cluster = dataclasses.replace(problem.cluster, device="cpu")
    with pytest.raises(MissingProfile, match="dense_forward"):
        pipeline.plan(dataclasses.replace(problem, cluster=cluster), NO_COSTS)


def test_a_cycle_is_refused() -> None:
    with pytest.raises(SpecError, match="cycle"):
        build([Operator(name="a"), Operator(name="b")],
              [Edge(producer="a", consumer="b"), Edge(producer="b", consumer="a")])


@pytest.mark.parametrize("branches, layers", [(1, 5), (2, 4), (3, 3)])
def test_downsets_of_branches_and_a_join(branches: int, layers: int) -> None:
    graph = build(*generate(Model(family="candle-uno", branches=branches, layers=layers, tail=0)))
    assert len(downsets(graph)) == (layers + 1) ** branches + 1


def test_piper_refuses_the_papers_uno() -> None:
    with pytest.raises(SolverError, match="downsets"):
        downsets(build(*generate(Model(family="candle-uno"))))


def test_piper_gives_up_when_its_time_is_up() -> None:
    problem = Problem(
        model=Model(family="candle-uno", branches=4, layers=5), batch_samples=64, cluster=Cluster(
            devices=8, devices_per_machine=8, memory_bytes=16e9, device="V100", inside=oracles.FAST,
            between=oracles.FAST))
    costs = open_costs({"source": "analytic"})
    start = time.process_time()
    with pytest.raises(SolverError, match="time is up"):
        pipeline.plan(problem, costs, planner="piper", time_limit_s=0.2)
    # The whole search takes far longer.
    assert time.process_time() - start < 5
    assert pipeline.check(problem, pipeline.plan(problem, costs, planner="graph", time_limit_s=1e-3)) == []


@pytest.mark.skipif(not MIRROR, reason="set WB_DATA_MIRROR to a folder with the registry's files")
@pytest.mark.parametrize("name, kind, operators", [
    ("dnn-partitioning/layer/bert24_training.json", "dnn-partitioning", 32),
    ("dnn-partitioning/layer/resnet50_training.json", "dnn-partitioning", 177),
    ("dnn-partitioning/operator/bert_l-3_training.json", "dnn-partitioning", 235),
    ("piper/bert32a100.json", "piper", 37), ("piper/gnmt.json", "piper", 78), ("piper/resnet.json", "piper", 177)])
def test_public_graphs_load_with_all_their_operators(name: str, kind: str, operators: int) -> None:
    path = str(Path(str(MIRROR)) / "pipelines" / name)
    made, edges = load(FileModel(path=path, format=kind))  # type: ignore[arg-type]
    graph = build(made, edges)
    assert len(graph) == operators
    tree, _ = decompose(graph)
    assert tree.mask == graph.everything


@pytest.mark.skipif(not MIRROR, reason="set WB_DATA_MIRROR to a folder with the registry's files")
@pytest.mark.parametrize("name, kind", [("dnn-partitioning/layer/bert24_training.json", "dnn-partitioning"),
                                        ("piper/bert32a100.json", "piper")])
def test_public_graphs_are_planned(name: str, kind: str) -> None:
    problem = Problem(
        model=FileModel(path=str(Path(str(MIRROR)) / "pipelines" / name), format=kind),  # type: ignore[arg-type]
        batch_samples=64, micro_batches=(1, 2, 4), cluster=Cluster(
            devices=8, devices_per_machine=8, memory_bytes=64e9, inside=oracles.FAST, between=oracles.FAST))
    found = pipeline.plan(problem, NO_COSTS)
    assert pipeline.check(problem, found) == []
    assert found.sources == {"extrapolated": 1.0}

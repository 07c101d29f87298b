"""placement: which layouts are considered, how layers are split, and what each replica's throughput rests on."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from planners import placement
from planners.placement.configurations import MemoCosts, Pricing, candidates_of, pipeline
from planners.placement.layouts import Kind, Layout, Memory, fastest_split, layouts, roomiest_split, stage_kinds
from planners.placement.problem import Enumeration, Offer, Problem, StageLayout, Workload
from traces.profiles import analytic
from workbench.costs import TableCosts
from workbench.errors import Infeasible, MissingProfile, SpecError
from workbench.hardware import load_catalogue
from workbench.llmcosts import Formats, Stage
from workbench.llmrates import kv_capacity_tokens, stage_weight_bytes
from workbench.models import load_model

MODEL_70B, MODEL_8B = "llama-3.1-70b", "llama-3.1-8b"
COSTS = analytic.open(analytic.Options())


def problem(model: str = MODEL_70B, *, budget: float | None = 40.0, **options: object) -> Problem:
    return Problem(
        devices=(Offer(name="H100-SXM", available=4, price_usd_per_h=2.99),
                 Offer(name="A40", available=8, price_usd_per_h=0.55)),
        budget_usd_per_h=budget,
        workloads=(Workload(name="long", model=model, requests=30, input_tokens=2455, output_tokens=510),
                   Workload(name="short", model=model, requests=70, input_tokens=496, output_tokens=18)),
        enumeration=Enumeration(**{"max_stages": 2, **options}))  # type: ignore[arg-type]


# --- layouts ----------------------------------------------------------------------------------------------------------

def test_layouts_are_all_stage_lists_of_at_most_two_types_within_the_limits() -> None:
    asked = problem(max_stages=3)
    catalogue, shape = load_catalogue(), load_model(MODEL_70B)
    kinds = stage_kinds(asked, shape, catalogue, Counter())
    found = layouts(asked, kinds, Counter())
    assert len({x.kinds for x in found}) == len(found)
    price = {d.name: d.price_usd_per_h for d in asked.devices}
    available = {d.name: d.available for d in asked.devices}
    expected = set()
    for depth in range(1, 4):
        for stages in itertools.product(kinds, repeat=depth):
            runs = [k for k, _ in itertools.groupby(stages)]
            if len(runs) > 2 or (len(runs) == 2 and (runs[0].device == runs[1].device or kinds.index(runs[0])
                                                      > kinds.index(runs[1]))):
                continue
            used = Counter[str]()
            for k in stages:
                used[k.device] += k.degree
            if (all(n <= available[d] for d, n in used.items()) and sum(used.values()) <= 16
                    and sum(n * price[d] for d, n in used.items()) <= 40.0):
                expected.add(stages)
    assert {x.kinds for x in found} == expected


def test_tensor_parallelism_stays_in_the_machine_divides_the_model_and_is_available() -> None:
    dropped: Counter[str] = Counter()
    kinds = stage_kinds(problem(tensor_parallel=(1, 3, 4, 8, 16)), load_model(MODEL_70B), load_catalogue(), dropped)
    assert {k.degree for k in kinds if k.device == "H100-SXM"} == {1, 4}
    assert {k.degree for k in kinds if k.device == "A40"} == {1, 4, 8}
    assert dropped == {"tensor parallelism leaves the machine": 2, "not enough GPUs available": 1,
                       "tensor parallelism does not divide the model": 2}


# --- splitting layers -------------------------------------------------------------------------------------------------

def memories(rng: np.random.Generator, stages: int) -> Memory:
    return Memory(layer_bytes=tuple(rng.uniform(1, 3, stages)), table_bytes=tuple(rng.uniform(0, 2, stages)),
                  kv_bytes_per_token=tuple(rng.uniform(0.01, 0.05, stages)),
                  usable_bytes=tuple(rng.uniform(10, 40, stages)))


def every_split(layers: int, stages: int) -> list[tuple[int, ...]]:
    return [s for s in itertools.product(range(1, layers + 1), repeat=stages) if sum(s) == layers]


@pytest.mark.parametrize("stages", [2, 3])
def test_splits_equal_brute_force(stages: int) -> None:
    rng = np.random.default_rng(stages)
    seen = 0
    for _ in range(60):
        memory, layers = memories(rng, stages), 12
        pace, tokens = rng.uniform(0.5, 2.0, stages), float(rng.uniform(0, 60))
        fitting = [s for s in every_split(layers, stages) if memory.tokens(s) >= tokens]
        fast = fastest_split(memory, pace.tolist(), layers, tokens)
        if not fitting:
            assert fast is None
        else:
            assert fast is not None
            assert memory.tokens(fast) >= tokens * (1 - 1e-9)
            assert max(n * t for n, t in zip(fast, pace, strict=True)) == pytest.approx(
                min(max(n * t for n, t in zip(s, pace, strict=True)) for s in fitting))
            seen += 1
        roomy = roomiest_split(memory, layers)
        whole = [s for s in every_split(layers, stages) if memory.tokens(s) >= 0]
        if not whole:
            assert roomy is None
        else:
            assert roomy is not None
            assert memory.tokens(roomy[0]) == pytest.approx(max(memory.tokens(s) for s in whole), rel=1e-9, abs=1e-9)
            assert memory.pooled_tokens(layers) >= memory.tokens(roomy[0]) - 1e-9
    assert seen > 10


def test_memory_of_a_layout_is_that_of_the_cost_model() -> None:
    shape, catalogue = load_model(MODEL_70B), load_catalogue()
    layout = Layout((Kind("H100-SXM", 2), Kind("A40", 4)))
    memory = Memory.of(shape, layout, catalogue, Enumeration())
    stages = [Stage(device="H100-SXM", tensor_parallel=2, layers=30), Stage(device="A40", tensor_parallel=4, layers=50)]
    held = [n * memory.layer_bytes[s] + memory.table_bytes[s] for s, n in enumerate((30, 50))]
    assert held == pytest.approx(stage_weight_bytes(shape, stages, Formats()))
    assert math.floor(memory.tokens((30, 50))) == kv_capacity_tokens(
        shape, stages, catalogue=catalogue, formats=Formats(), utilisation=0.9)


def test_neighbours_in_one_machine_use_its_own_link() -> None:
    catalogue = load_catalogue()

    def stage(device: str, degree: int) -> StageLayout:
        return StageLayout(device=device, tensor_parallel=degree, layers=10, weight_bytes=1.0, usable_bytes=2.0)

    own = catalogue.device("H100-SXM").link
    assert [s.link for s in pipeline([stage("H100-SXM", 4), stage("H100-SXM", 4)], catalogue)] == [own, None]
    assert [s.link for s in pipeline([stage("H100-SXM", 8), stage("H100-SXM", 8)], catalogue)] == [None, None]
    assert [s.link for s in pipeline([stage("H100-SXM", 4), stage("A40", 4)], catalogue)] == [None, None]
    three = pipeline([stage("H100-SXM", 4), stage("H100-SXM", 4), stage("H100-SXM", 4)], catalogue)
    assert [s.link for s in three] == [own, None, None]


# --- throughputs ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def found() -> placement.configurations.Candidates:  # type: ignore[name-defined]
    asked = problem()
    return candidates_of(asked, asked.workloads, COSTS)


def test_every_candidate_fits_and_says_what_its_numbers_rest_on(found: object) -> None:
    space = found.space  # type: ignore[attr-defined]
    assert space.kept == len(found.instance.candidates) > 3  # type: ignore[attr-defined]
    assert space.infeasible["too little memory"] > 0
    for c in found.instance.candidates:  # type: ignore[attr-defined]
        assert sum(s.layers for s in c.stages) == 80
        assert all(s.weight_bytes <= s.usable_bytes for s in c.stages)
        assert c.kv_tokens >= 496 + 18
        for rate in c.throughputs.values():
            assert rate.per_s > 0
            assert sum(rate.sources.values()) == pytest.approx(1.0)


def test_optimistic_throughput_is_never_exceeded() -> None:
    asked = problem(max_stages=4)
    catalogue, shape = load_catalogue(), load_model(MODEL_70B)
    pricing = Pricing(asked, shape, asked.workloads, MemoCosts(COSTS), catalogue)
    priced = 0
    for layout in layouts(asked, stage_kinds(asked, shape, catalogue, Counter()), Counter())[::3]:
        memory = Memory.of(shape, layout, catalogue, asked.enumeration)
        for layers in pricing.splits(layout, memory):
            made = pricing.candidate(layout, layers, memory, name="x")
            for w, kind in enumerate(asked.workloads):
                if kind.name in made.throughputs:
                    assert made.throughputs[kind.name].per_s <= pricing.optimistic(layout, layers, memory, w)
                    priced += 1
    assert priced > 20


def test_leaving_out_dominated_layouts_does_not_change_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(budget=15.0)
    lean = placement.plan(asked, COSTS)
    monkeypatch.setattr("planners.placement.configurations.covered", lambda *arrays: False)
    monkeypatch.setattr("planners.placement.configurations.prune", lambda instance: (instance, 0))
    full = placement.plan(asked, COSTS)
    assert full.space.kept > lean.space.kept
    assert lean.makespan_s == pytest.approx(full.makespan_s, rel=1e-6)


def test_an_enumerated_plan_keeps_every_rule_and_survives_the_checker() -> None:
    asked = problem()
    plan = placement.plan(asked, COSTS)
    assert placement.check(asked, plan) == []
    assert plan.certificate.status == "optimal"
    first = plan.deployments[0]
    thin = replace(first, stages=tuple(replace(s, usable_bytes=1.0) for s in first.stages))
    short = replace(first, kv_tokens=10.0)
    fewer = replace(first, stages=first.stages[:-1] if len(first.stages) > 1 else
                    (replace(first.stages[0], layers=3), replace(first.stages[0], layers=3)))
    for broken, rule in ((thin, "memory"), (short, "memory"), (fewer, "layout")):
        bad = replace(plan, deployments=(broken, *plan.deployments[1:]))
        assert rule in {v.rule for v in placement.check(asked, bad)}


def test_more_memory_or_more_layouts_never_hurt() -> None:
    base = placement.plan(problem(max_stages=1, mixed_pipelines=False), COSTS).makespan_s
    assert placement.plan(problem(), COSTS).makespan_s <= base * (1 + 1e-9)
    tight = placement.plan(problem(memory_share=0.8), COSTS).makespan_s
    assert placement.plan(problem(memory_share=0.9), COSTS).makespan_s <= tight * (1 + 1e-9)


def test_memo_asks_each_question_once_and_repeats_refusals() -> None:
    class Counting(TableCosts):
        asked = 0

        def sweep(self, op, over, **point):  # type: ignore[no-untyped-def]
            Counting.asked += 1
            return super().sweep(op, over, **point)

    memo = MemoCosts(Counting(()))
    for _ in range(3):
        with pytest.raises(MissingProfile):
            memo.sweep("gemm", {"m": [1.0, 2.0]}, device="X")
    assert Counting.asked == 1


# --- what cannot be served, and what is not known ---------------------------------------------------------------------

def test_a_model_too_large_for_every_layout_says_what_is_missing() -> None:
    small = replace(problem(), devices=(Offer(name="A40", available=2, price_usd_per_h=0.55),),
                    enumeration=Enumeration(max_stages=1, max_devices=2))
    with pytest.raises(Infeasible, match=r"binding: memory") as caught:
        placement.plan(small, COSTS)
    assert "GiB" in (caught.value.hint or "")


def test_too_few_gpus_for_the_model_names_how_many_would_do() -> None:
    few = replace(problem(), devices=(Offer(name="A40", available=2, price_usd_per_h=0.55),))
    with pytest.raises(Infeasible, match="binding: availability") as caught:
        placement.plan(few, COSTS)
    assert "available A40 from 2 to" in (caught.value.hint or "")


def test_unknown_names_and_missing_profiles_are_named() -> None:
    strange = replace(problem(), devices=(Offer(name="H100", available=4, price_usd_per_h=1.0),))
    with pytest.raises(SpecError, match="H100-SXM"):
        placement.plan(strange, COSTS)
    with pytest.raises(SpecError, match="no model is called"):
        placement.plan(problem("llama-9"), COSTS)
    with pytest.raises(MissingProfile, match="gemm"):
        placement.plan(problem(), TableCosts(()))

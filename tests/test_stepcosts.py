"""Ramps are exact in whole ticks, composed iterations follow the rules by hand, and measured serving runs are near."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.costs import Cost, CostModel, Provenance, open_costs
from workbench.endtoend import EndToEndSteps
from workbench.errors import MissingProfile, SpecError
from workbench.hardware import load_catalogue
from workbench.llmcosts import Formats, KernelSteps, Stage
from workbench.llmrates import kv_capacity_tokens, stage_weight_bytes, throughput
from workbench.models import LlmShape, load_model
from workbench.stepcosts import TICKS_PER_S, Chunk, Ramp, ramp_maximum, ramp_sum, to_ticks

CATALOGUE = load_catalogue()
BF16 = Formats()
TINY = LlmShape(name="tiny", layers=12, hidden=64, heads=8, kv_heads=4, head_dim=8, intermediate=128, vocab=1000)


@st.composite
def ramps(draw: st.DrawFn) -> Ramp:
    start = [0, *sorted(draw(st.sets(st.integers(1, 200), max_size=5)))]
    base = [draw(st.integers(0, 10**6)) for _ in start]
    slope = [draw(st.integers(-50, 50)) for _ in start]
    return Ramp(tuple(start), tuple(base), tuple(slope))


@given(ramps(), st.integers(0, 300), st.integers(0, 60), st.integers(0, 80))
def test_a_sum_in_closed_form_is_the_sum_one_by_one(ramp: Ramp, first: int, step: int, count: int) -> None:
    assert ramp_sum(ramp, first, step, count) == sum(ramp(first + i * step) for i in range(count))


@given(st.lists(ramps(), min_size=1, max_size=4))
def test_the_largest_ramp_is_the_largest_at_every_whole_point(several: list[Ramp]) -> None:
    top = ramp_maximum(several)
    assert all(top(k) == max(r(k) for r in several) for k in range(400))


class Bill:
    """Times that make sums readable: each op has a price, attention also one per pair or context token."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = {"gemm": 0.0, "attention_prefill": 0.0, "attention_decode": 0.0, "all_reduce": 0.0, "norm": 0.0,
                        "add": 0.0, "rope": 0.0, "act": 0.0, "embedding": 0.0, **seconds}

    def cost(self, op: str, **p: float | int | str) -> Cost:
        if op not in self.seconds:
            raise MissingProfile(f"no {op}", keys=[op])
        size = {"gemm": lambda: float(p["m"]), "all_reduce": lambda: 1.0,
                "attention_decode": lambda: float(p["batch"]) * float(p["context"]),
                "attention_prefill": lambda: float(p["batch"]) * float(p["tokens"]) ** 2}
        return Cost(self.seconds[op] * size.get(op, lambda: float(p["tokens"]))(), "measured")

    def provenance(self) -> Mapping[str, Provenance]:
        return {}


def steps_of(costs: CostModel, *stages: Stage, shape: LlmShape = TINY, network: str = "NVLink",
             iteration_overhead_s: float = 0.0) -> KernelSteps:
    return KernelSteps(shape, stages, costs, catalogue=CATALOGUE, formats=BF16, network=network,
                       iteration_overhead_s=iteration_overhead_s)


def one(device: str = "H100-SXM", tp: int = 1, layers: int = 12) -> Stage:
    return Stage(device=device, tensor_parallel=tp, layers=layers)


def test_an_iteration_is_its_kernels_counted_once_each() -> None:
    """12 layers of 4 products and the output projection, for 10 decodes: 49 products of 10 rows."""
    assert steps_of(Bill(gemm=1e-6), one()).decode(10)(1) == to_ticks(49 * 10e-6)
    mixed = steps_of(Bill(gemm=1e-6), one()).mixed(10, 10, [Chunk(22, 0)])
    assert mixed == to_ticks(48 * 32e-6 + 11e-6), "the output projection runs for 10 decodes and one prompt"
    assert steps_of(Bill(all_reduce=1e-6), one(tp=4)).decode(10)(1) == to_ticks((2 * 12 + 1) * 1e-6)
    assert steps_of(Bill(norm=1e-6), one()).decode(1)(1) == to_ticks(25e-6), "two a layer and the last"
    assert steps_of(Bill(embedding=1e-6), one()).decode(3)(1) == to_ticks(3e-6)
    assert steps_of(Bill(), one(), iteration_overhead_s=2e-3).decode(3)(1) == to_ticks(2e-3)


def test_decode_attention_grows_with_the_contexts_held_in_all() -> None:
    ramp = steps_of(Bill(attention_decode=1e-9), one()).decode(4)
    assert ramp(4000) == pytest.approx(to_ticks(12 * 4000e-9), rel=1e-9)
    assert ramp(40_000) == pytest.approx(to_ticks(12 * 40_000e-9), rel=1e-9)


def test_a_chunk_costs_the_pairs_it_adds() -> None:
    """With A(t) = t^2 the chunk from s to s + t adds (s + t)^2 - s^2; at table points this is exact."""
    steps = steps_of(Bill(attention_prefill=1e-12), one())
    whole = steps.mixed(0, 0, [Chunk(512, 0)])
    assert whole == to_ticks(12 * 512**2 * 1e-12)
    assert steps.mixed(0, 0, [Chunk(256, 256)]) == pytest.approx(to_ticks(12 * (512**2 - 256**2) * 1e-12), rel=1e-9)
    two = steps.mixed(0, 0, [Chunk(512, 0), Chunk(512, 0)])
    assert two == 2 * whole


def test_an_iteration_without_prompts_is_the_same_from_both_doors() -> None:
    for stages in [(one(),), (one(layers=5), one("L40S", layers=7))]:
        steps = steps_of(open_costs({"source": "analytic"}), *stages)
        for n in (1, 2, 7, 64):
            for context in (n, 100 * n + 3, 5000 * n):
                assert steps.mixed(n, context, []) == steps.decode(n)(context)


def test_a_pipeline_round_is_bound_by_the_longer_of_latency_and_bottleneck() -> None:
    """Only products count: a stage of l layers needs 4 l b us for b rows, the last one b more.

    8 decodes over 2 stages: micro-batches of 4. Latency: all 49 products of 4 rows. Bottleneck: twice the slower stage.
    """
    costs = Bill(gemm=1e-6)
    even = steps_of(costs, one(layers=6), one(layers=6)).decode(8)(8)
    send = CATALOGUE.link("NVLink").seconds(4 * 64 * 2)
    assert even == to_ticks(max(49 * 4e-6 + send, 2 * max(24 * 4e-6 + send, 25 * 4e-6)))
    skewed = steps_of(costs, one(layers=2), one(layers=10)).decode(8)(8)
    assert skewed == to_ticks(2 * 41 * 4e-6)
    single = steps_of(costs, one(layers=6), one(layers=6)).decode(1)(1)
    assert single == to_ticks(49e-6 + CATALOGUE.link("NVLink").seconds(64 * 2)), "one request cannot be split"


def test_prompts_are_dealt_to_the_micro_batches() -> None:
    costs = Bill(gemm=1e-6)
    steps = steps_of(costs, one(layers=6), one(layers=6))
    alone = steps.mixed(0, 0, [Chunk(100, 0)])
    pair = steps.mixed(0, 0, [Chunk(100, 0), Chunk(100, 0)])
    send = CATALOGUE.link("NVLink").seconds(100 * 64 * 2)
    assert alone == to_ticks(48 * 100e-6 + 1e-6 + send)
    assert pair == to_ticks(max(48 * 100e-6 + 1e-6 + send, 2 * (24 * 100e-6 + send)))


def test_stages_that_do_not_fit_are_refused() -> None:
    costs = Bill()
    with pytest.raises(SpecError, match="has 12"):
        steps_of(costs, one(layers=11))
    with pytest.raises(SpecError, match="leaves the machine"):
        steps_of(costs, one(tp=16))
    with pytest.raises(SpecError, match="cannot be split"):
        steps_of(costs, one(tp=3))
    with pytest.raises(MissingProfile, match="all_reduce"):
        bill = Bill()
        del bill.seconds["all_reduce"]
        steps_of(bill, one(tp=2))


def test_light_kernels_without_a_table_are_analytic_and_say_so() -> None:
    bill = Bill()
    for name in ("norm", "add", "rope", "act", "embedding"):
        del bill.seconds[name]
    steps = steps_of(bill, one())
    assert 0.1 < steps.sources()["analytic"] < 0.9
    assert sum(steps.sources().values()) == pytest.approx(1)
    device = CATALOGUE.device("H100-SXM")
    moved = 12 * (2 * 8 * 64 + 4 * (8 + 2 * 4) * 8 + 6 * 128) + 4 * 64 + 4 * 64
    expected = moved / (device.memory_bytes_per_s * 0.8) + (12 * 4 + 2) * device.kernel_s
    assert steps.decode(1)(1) == pytest.approx(to_ticks(expected), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["H100-SXM", "L40S"]), st.integers(1, 128), st.integers(1, 4000), st.integers(1, 2000))
def test_more_work_never_takes_less_time(device: str, n: int, context: int, prompt: int) -> None:
    steps = steps_of(open_costs({"source": "analytic"}), one(device, layers=32), shape=load_model("llama-3.1-8b"))
    assert steps.decode(n)(n * context) <= steps.decode(n)(n * context + 100)
    assert steps.decode(n)(n * context) <= steps.decode(n + 1)((n + 1) * context)
    assert steps.mixed(n, n * context, [Chunk(prompt, 0)]) <= steps.mixed(n, n * context, [Chunk(prompt + 1, 0)])
    assert steps.mixed(n, n * context, [Chunk(prompt, 0)]) <= steps.mixed(n, n * context, [Chunk(prompt, 64)]) * 1.001


def test_weights_and_cache_fill_the_memory_as_by_hand() -> None:
    """Llama-3.1-70B on 4 H100: 35.28 GB of weights a device, 80 KiB of cache a token on each."""
    shape = load_model("llama-3.1-70b")
    stages = [Stage(device="H100-SXM", tensor_parallel=4, layers=80)]
    weights = stage_weight_bytes(shape, stages, BF16)
    assert weights == [pytest.approx(shape.parameters * 2 / 4, rel=1e-4)]
    capacity = kv_capacity_tokens(shape, stages, catalogue=CATALOGUE, formats=BF16, runtime_reserve_bytes=0)
    assert capacity == int((0.9 * 80 * 2**30 - weights[0]) // (80 * 1024))
    halved = kv_capacity_tokens(shape, stages, catalogue=CATALOGUE, formats=Formats(kv="fp8"), runtime_reserve_bytes=0)
    assert halved == pytest.approx(2 * capacity, abs=1)
    assert kv_capacity_tokens(shape, [Stage(device="H100-SXM", layers=80)], catalogue=CATALOGUE, formats=BF16) < 0


def test_the_tightest_stage_bounds_the_cache() -> None:
    shape = load_model("llama-3.1-8b")
    both = [Stage(device="H100-SXM", layers=16), Stage(device="RTX4090", layers=16)]
    capacity = kv_capacity_tokens(shape, both, catalogue=CATALOGUE, formats=BF16, runtime_reserve_bytes=0)
    small = 0.9 * CATALOGUE.device("RTX4090").memory_bytes - stage_weight_bytes(shape, both, BF16)[1]
    assert capacity == int(small // (shape.kv_bytes_per_token() / 2))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 60_000), st.integers(1, 64))
def test_throughput_is_the_batch_over_the_time_it_takes_step_by_step(i: int, o: int, kv: int, most: int) -> None:
    steps = steps_of(open_costs({"source": "analytic"}), one("A100-80G-SXM", layers=32),
                     shape=load_model("llama-3.1-8b"))
    found = throughput(steps, input_tokens=i, output_tokens=o, kv_capacity_tokens=kv, max_sequences=most,
                       token_budget=1024)
    batch = min(most, kv // (i + o))
    assert found.batch == batch
    if batch == 0:
        assert found.requests_per_s == 0
        return
    group = min(batch, max(1, 1024 // i))
    prefill = sum(steps.mixed(0, 0, [Chunk(min(1024, i - done), done)] * group) for done in range(0, i, 1024))
    decode = sum(steps.decode(batch)(batch * (i + k)) for k in range(1, o))
    assert found.requests_per_s == pytest.approx(batch * TICKS_PER_S / (prefill * batch / group + decode))


def test_more_memory_never_lowers_the_throughput() -> None:
    steps = steps_of(open_costs({"source": "analytic"}), one("L40S", layers=32), shape=load_model("llama-3.1-8b"))
    rates = [throughput(steps, input_tokens=500, output_tokens=200, kv_capacity_tokens=kv, max_sequences=256,
                        token_budget=8192).requests_per_s for kv in (100, 700, 7_000, 70_000, 700_000)]
    assert rates[0] == 0
    assert rates == sorted(rates)
    with pytest.raises(SpecError, match="at least 1"):
        throughput(steps, input_tokens=0, output_tokens=1, kv_capacity_tokens=1, max_sequences=1, token_budget=1)


def test_end_to_end_steps_read_the_two_tables() -> None:
    rows = [{"op": op, "device": "d", "model": "m", "tensor_parallel": 2, axis: x, "seconds": s}
            for op, axis, x, s in [("prompt", "tokens", 128, 0.1), ("prompt", "tokens", 1128, 1.1),
                                   ("token", "batch", 1, 0.05), ("token", "batch", 11, 0.06)]]
    costs = open_costs({"source": "given", "rows": rows, "axes": ["tokens", "batch"]})
    steps = EndToEndSteps(costs, device="d", model="m", tensor_parallel=2)
    assert steps.decode(6)(10**6) == to_ticks(0.055)
    assert steps.mixed(6, 99, []) == to_ticks(0.055)
    assert steps.mixed(10, 99, [Chunk(300, 0), Chunk(318, 7)]) == pytest.approx(to_ticks(0.6), rel=1e-12)
    assert sum(steps.sources().values()) == pytest.approx(1)


def kernel_costs(backend: str = "vllm") -> CostModel:
    pytest.importorskip("aiconfigurator_core", reason="pip install planner-workbench[gpu-tables]")
    return open_costs({"source": "aiconfigurator", "backend": backend})


def test_a_fleet_of_models_loads_within_the_time_of_a_plan() -> None:
    """Three GPU types, four degrees, two models: 1.5 s on an idle core is the aim, doubled here for a busy machine."""
    costs = kernel_costs()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for name in ("llama-3.1-8b", "llama-3.1-70b"):
            shape = load_model(name)
            for device in ("H100-SXM", "A100-80G-SXM", "L40S"):
                for tp in (1, 2, 4, 8):
                    steps_of(costs, one(device, tp, shape.layers), shape=shape)
        best = min(best, time.perf_counter() - start)
    assert best < 3.0


def test_one_throughput_query_takes_a_millisecond() -> None:
    """1 ms is the bar, three times that leaves room for a busy machine. Every query has another, uncached batch."""
    shape = load_model("llama-3.1-8b")
    steps = steps_of(kernel_costs(), one(layers=32), shape=shape)
    seconds = []
    for most in range(40, 100):
        start = time.perf_counter()
        throughput(steps, input_tokens=824, output_tokens=253, kv_capacity_tokens=450_000, max_sequences=most,
                   token_budget=8192)
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[len(seconds) // 2] < 3e-3


@pytest.mark.skipif("WB_DATA_MIRROR" not in os.environ, reason="set WB_DATA_MIRROR to a folder with vidur's files")
def test_two_bodies_of_measurements_give_one_iteration_time() -> None:
    """Llama-2-70B on two A100: vidur's own kernels against aiconfigurator's, decode and prefill."""
    shape, stage = load_model("llama-2-70b"), one("A100-80G-SXM", 2, 80)
    theirs = steps_of(open_costs({"source": "vidur", "model": "llama-2-70b", "fallback": "analytic"}), stage,
                      shape=shape)
    ours = steps_of(kernel_costs(), stage, shape=shape)
    assert theirs.sources()["measured"] > 0.9
    for n, context in [(1, 512), (32, 600), (100, 1500)]:
        assert ours.decode(n)(n * context) == pytest.approx(theirs.decode(n)(n * context), rel=0.25)
    for chunks in [[Chunk(512, 0)], [Chunk(2048, 0)], [Chunk(512, 1536)]]:
        assert ours.mixed(0, 0, chunks) == pytest.approx(theirs.mixed(0, 0, chunks), rel=0.3)


@pytest.mark.slow
def test_measured_serving_runs_on_h100_are_near() -> None:
    """Bar: mean absolute error of TPOT and TTFT at most 20 % for each Llama model, never fitted on the runs.

    TTFT of the 8B runs is not held to it: most of them wait for the generation of other requests, which no server with
    a slot for each client does (``waits_for_others``); the table printed by ``tests.bench.costmodel`` shows them all.
    """
    from tests.bench import costmodel

    rows = costmodel.silicon_rows()
    if rows is None:
        pytest.skip("pip install planner-workbench[gpu-tables]")
    judged = costmodel.judge([r for r in rows if "Llama" in r["model_path"]])
    large = [j for j in judged if "70b" in j.model]
    small = [j for j in judged if "8b" in j.model]
    assert (len(large), len(small)) == (45, 177)
    assert costmodel.mape([j.error("tpot") for j in large]) <= 20
    assert costmodel.mape([j.error("ttft") for j in large]) <= 20
    assert costmodel.mape([j.error("tpot") for j in small]) <= 20
    assert costmodel.mape([j.error("rate") for j in large]) <= 10, "what the planner uses: requests per second"
    odd = costmodel.waits_for_others([j.row for j in small])
    assert len(odd) > len(small) / 2

"""A real vLLM run on an RTX 4090 (300 ShareGPT requests, Llama-3.1-8B), replayed from the card's layer times alone.

Nothing is fitted: lengths, arrivals and engine limits go in, profile tables price the iterations, and every one of the
fifteen published figures of the run (mean, P50, P90, P95, P99 of TTFT, TPOT and latency) must come out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.bench.serving import RUN_FILES, measured, percent_off, recorded_run, replay
from traces.profiles import llmservingsim
from traces.registry import available, fetch
from workbench.errors import MissingProfile, SpecError
from workbench.hardware import load_catalogue
from workbench.llmcosts import KernelSteps, Stage
from workbench.models import load_model
from workbench.stepcosts import TICKS_PER_S, Chunk

NAME = "rtx4090-llama-3.1-8b"
PARTS = [f"profiles/llmservingsim/{NAME}/tp1/{part}.csv" for part in ("attention", "dense", "per_sequence")]

profiled = pytest.mark.skipif(any(available(p) is None for p in PARTS),
                              reason="needs the LLMServingSim profile: set WB_DATA_MIRROR, or wb traces fetch it")
recorded = pytest.mark.skipif(any(available(p) is None for p in (*PARTS, *RUN_FILES)),
                              reason="needs the recorded vLLM run and its profile: set WB_DATA_MIRROR")


def frame(part: str) -> pd.DataFrame:
    return pd.read_csv(fetch(f"profiles/llmservingsim/{NAME}/tp1/{part}.csv"))


@recorded
def test_measured_figures_are_the_published_ones() -> None:
    """Our reading of the recorded run gives the vLLM column of the run's own summary."""
    published = [line.split()[-3] for line in fetch(RUN_FILES[1]).read_text().splitlines() if "%" in line][1:]
    ours = [value for row in measured(recorded_run()).values() for value in row.values()]
    assert [f"{value:.1f}" for value in ours] == published


@recorded
def test_every_figure_of_the_run_comes_out_within_one_percent() -> None:
    """Bar: 5 % each; claimed: 1 % each."""
    off = percent_off(measured(recorded_run()), measured(replay("profile")))
    assert len(off) == 15
    assert max(map(abs, off.values())) <= 1.0, off


@recorded
def test_kernels_composed_one_by_one_come_within_two_percent() -> None:
    """The general composition of kernel times, which knows nothing of mixed attention or captured graphs."""
    off = percent_off(measured(recorded_run()), measured(replay("kernels")))
    assert max(map(abs, off.values())) <= 2.0, off


@recorded
def test_the_engine_composes_the_iterations_that_the_real_one_did() -> None:
    """Requests that the real engine took in together (or apart) are taken in together (or apart)."""
    real, ours = recorded_run(), replay("profile")
    burst = real[(real.queued_s > 1.0) & (real.queued_s < 3.5)].index
    assert len(burst) > 25
    together_real = np.diff(real.scheduled_s[burst]) < 1e-3
    together_ours = np.diff(ours.scheduled_s[burst]) < 1e-3
    assert (together_real == together_ours).all()
    answered_real = np.diff(real.first_token_s[burst]) < 1e-3
    assert (answered_real == (np.diff(ours.first_token_s[burst]) < 1e-3)).all()


@profiled
def test_iteration_times_are_sums_of_the_raw_rows() -> None:
    """At measured points: 32 layers, embedding, final norm, output projection and sampler, read without our tables."""
    dense = frame("dense").pivot_table(index="tokens", columns="layer", values="time_us")
    heads = frame("per_sequence").pivot_table(index="sequences", columns="layer", values="time_us").sum(axis=1)
    attention = frame("attention").set_index(["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"])["time_us"]
    per_layer = dense.drop(columns=["embedding", "final_layernorm"]).sum(axis=1) + dense["layernorm"]
    once = dense["embedding"] + dense["final_layernorm"]
    steps = llmservingsim.open_steps(NAME)

    def expected(tokens: int, sequences: int, point: tuple[int, int, int, int]) -> float:
        sampled = float(np.interp(sequences, heads.index, heads))
        return (32 * (per_layer[tokens] + attention[point]) + once[tokens] + sampled) * 1e-6

    assert steps.decode(32)(32 * 1024) / TICKS_PER_S == pytest.approx(expected(32, 32, (0, 0, 32, 1024)), rel=1e-9)
    assert steps.mixed(0, 0, [Chunk(512, 1024)]) / TICKS_PER_S == pytest.approx(
        expected(512, 1, (512, 1024, 0, 0)), rel=1e-9)
    assert steps.mixed(16, 16 * 512, [Chunk(1024, 256)]) / TICKS_PER_S == pytest.approx(
        expected(1040, 17, (1024, 256, 16, 512)), rel=1e-9)
    assert sum(steps.sources().values()) == pytest.approx(1.0)


@profiled
def test_captured_graphs_round_small_batches_up_and_leave_large_ones() -> None:
    padded, plain = llmservingsim.open_steps(NAME, capture_sizes=[8, 64]), llmservingsim.open_steps(NAME)
    head = [plain.mixed(n, 64 * n, []) - padded.mixed(n, 64 * n, []) for n in (8, 64)]
    assert head == [0, 0]
    assert padded.decode(33)(0) > plain.decode(33)(0)
    assert padded.mixed(0, 0, [Chunk(65, 0)]) == plain.mixed(0, 0, [Chunk(65, 0)])


@profiled
def test_short_prompts_together_attend_less_than_one_long_prompt() -> None:
    steps = llmservingsim.open_steps(NAME)
    one = steps.mixed(0, 0, [Chunk(2048, 0)])
    four = steps.mixed(0, 0, [Chunk(512, 0)] * 4)
    continued = steps.mixed(0, 0, [Chunk(2048, 2048)])
    assert four < one < continued
    # Attention in proportion to pairs: a quarter of one long prompt's for four short ones.
    body = one - round(4 * (one - four) / 3)
    assert 0.85 < body / four < 1.0


@profiled
def test_the_profile_and_the_composed_kernels_agree_on_iterations() -> None:
    """Two routes through the same measurements: decode alike, prompts within the fixed cost of a launch."""
    grid = llmservingsim.open_steps(NAME)
    kernels = KernelSteps(load_model("llama-3.1-8b"), [Stage(device="RTX4090", layers=32)],
                          llmservingsim.open(llmservingsim.Options(profiles=(NAME,))), catalogue=load_catalogue())
    for n, context in ((1, 1000), (8, 700), (30, 2000), (200, 300)):
        assert kernels.decode(n)(n * context) == pytest.approx(grid.decode(n)(n * context), rel=0.01)
    for chunk in (Chunk(512, 0), Chunk(2048, 0), Chunk(600, 1500)):
        assert kernels.mixed(0, 0, [chunk]) == pytest.approx(grid.mixed(0, 0, [chunk]), rel=0.01)


def test_wrong_profiles_are_named_with_what_there_is() -> None:
    with pytest.raises(SpecError, match="did you mean 'rtx4090"):
        llmservingsim.open(llmservingsim.Options(profiles=("rtx4090-llama-3-8b",)))
    with pytest.raises(SpecError, match="KernelSteps"):
        llmservingsim.open_steps("a6000-llama-3.1-8b")
    with pytest.raises(MissingProfile, match="tensor_parallel=2"):
        llmservingsim.open_steps(NAME, tensor_parallel=2)


@pytest.mark.skipif(available("profiles/llmservingsim/a6000-llama-3.1-8b/tp1/layers.csv.gz") is None
                    or available("profiles/llmservingsim/a6000-llama-3.1-8b/tp1/attention.csv.gz") is None,
                    reason="needs the A6000 profile: set WB_DATA_MIRROR")
def test_the_older_layout_adds_up_what_engines_fuse() -> None:
    costs = llmservingsim.open(llmservingsim.Options(profiles=("a6000-llama-3.1-8b",)))
    raw = pd.read_csv(fetch("profiles/llmservingsim/a6000-llama-3.1-8b/tp1/layers.csv.gz"))
    at_64 = raw[raw["input"] == 64].set_index("layer_name")["latency(ns)"] / 1e9
    qkv = costs.cost("gemm", device="A6000", dtype="bf16", n=6144, k=4096, m=64)
    assert qkv.seconds == pytest.approx(at_64[["q_proj", "k_proj", "v_proj"]].sum())
    assert qkv.source == "measured"
    attention = pd.read_csv(fetch("profiles/llmservingsim/a6000-llama-3.1-8b/tp1/attention.csv.gz"))
    row = attention[(attention.batch_size == 32) & (attention.kv_cache_size == 1024) & ~attention.is_prefill]
    found = costs.cost("attention_decode", device="A6000", kv_heads=8, head_dim=128, kv_dtype="bf16", heads=32,
                       batch=32, context=1024)
    assert found.seconds == pytest.approx(row["time_stats.attn_decode.median"].median() / 1e3)

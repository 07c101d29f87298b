"""Adapters give back what was measured, in our units and names, and independent measurements agree with each other."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from workbench.costs import TableCosts, held_out_errors, open_costs
from workbench.errors import MissingProfile, SpecError, TraceError

MIRROR = os.environ.get("WB_DATA_MIRROR")
with_mirror = pytest.mark.skipif(MIRROR is None, reason="set WB_DATA_MIRROR to a folder with the public profile files")
PAIRS = [(device, backend) for device in ("H100-SXM", "A100-80G-SXM", "L40S") for backend in ("vllm", "trtllm")]


@pytest.fixture
def core() -> Path:
    package = pytest.importorskip("aiconfigurator_core", reason="pip install planner-workbench[gpu-tables]")
    return Path(package.__file__).parent / "systems" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WB_DATA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def raw(path: Path) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    return {name: column.to_numpy() for name, column in zip(pq.read_schema(path).names,
                                                           pq.read_table(path).columns, strict=True)}


def test_gemm_rows_come_back_as_they_are_in_the_package(core: Path) -> None:
    rows = raw(core / "a100_sxm/gemm/vllm/0.14.0/gemm_perf.parquet")
    costs = open_costs({"source": "aiconfigurator"})
    for i in np.random.default_rng(0).integers(0, len(rows["m"]), 50):
        found = costs.cost("gemm", device="A100-80G-SXM", dtype="bf16", m=int(rows["m"][i]), n=int(rows["n"][i]),
                           k=int(rows["k"][i]))
        assert found.source == "measured"
        same = (rows["m"] == rows["m"][i]) & (rows["n"] == rows["n"][i]) & (rows["k"] == rows["k"][i])
        assert found.seconds == pytest.approx(float(np.median(rows["latency"][same])) / 1e3, rel=1e-12)


def test_decode_attention_counts_the_token_being_made(core: Path) -> None:
    rows = raw(core / "h100_sxm/attention/vllm/0.24.0/generation_attention_perf.parquet")
    plain = ((rows["window_size"] == 0) & (rows["head_dim"] == 128) & (rows["kv_cache_dtype"] == "bfloat16")
             & (rows["num_heads"] == 32) & (rows["num_key_value_heads"] == 8) & (rows["batch_size"] == 16)
             & (rows["step"] == 1023))
    found = open_costs({"source": "aiconfigurator"}).cost(
        "attention_decode", device="H100-SXM", kv_dtype="bf16", kv_heads=8, head_dim=128, heads=32, batch=16,
        context=1024)
    assert found.source == "measured"
    assert found.seconds == pytest.approx(float(np.median(rows["latency"][plain])) / 1e3)


@pytest.mark.parametrize(("device", "backend"), PAIRS)
def test_every_paper_gpu_has_the_kernels_of_both_paper_models(core: Path, device: str, backend: str) -> None:
    costs = open_costs({"source": "aiconfigurator", "backend": backend})
    for heads, kv_heads in [(32, 8), (64, 8)]:
        for tp in (1, 2, 4, 8):
            point = {"device": device, "kv_dtype": "bf16", "head_dim": 128, "kv_heads": kv_heads // tp,
                     "heads": heads // tp}
            assert costs.cost("attention_prefill", batch=2, tokens=1000, **point).source == "interpolated"
            assert costs.cost("attention_decode", batch=48, context=1000, **point).source == "interpolated"
            if tp > 1:
                assert costs.cost("all_reduce", device=device, ranks=tp, bytes=2**20).source == "measured"


def test_the_second_start_reads_the_compact_copy_and_gives_the_same_times(core: Path, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WB_DATA_CACHE", str(tmp_path))
    point = {"device": "L40S", "dtype": "bf16", "m": 77, "n": 6000, "k": 4096}
    first = open_costs({"source": "aiconfigurator"}).cost("gemm", **point)
    copies = list(tmp_path.rglob("*.npz"))
    assert copies
    monkeypatch.setattr("traces.profiles.aiconfigurator._read_columns", None)
    assert open_costs({"source": "aiconfigurator"}).cost("gemm", **point) == first


def test_a_cache_that_cannot_be_written_is_no_error(core: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("WB_DATA_CACHE", str(blocked))
    costs = open_costs({"source": "aiconfigurator"})
    assert costs.cost("all_gather", device="H100-SXM", ranks=8, bytes=2**20).seconds > 0


def test_what_was_not_measured_is_named_with_what_was(core: Path) -> None:
    costs = open_costs({"source": "aiconfigurator"})
    with pytest.raises(MissingProfile, match="bf16") as caught:
        costs.cost("gemm", device="A100-80G-SXM", dtype="fp8", m=1, n=64, k=64)
    assert "A100-80G-SXM" in str(caught.value)
    with pytest.raises(MissingProfile, match="did you mean 'H100-SXM'"):
        costs.cost("gemm", device="H100-SMX", dtype="bf16", m=1, n=64, k=64)
    with pytest.raises(MissingProfile, match="attention_prefill"):
        costs.cost("attention_prefil", device="H100-SXM")
    with pytest.raises(SpecError, match="did you mean 'vllm'"):
        open_costs({"source": "aiconfigurator", "backend": "vlm"})


def test_a_version_bound_is_kept(core: Path) -> None:
    costs = open_costs({"source": "aiconfigurator", "version": "0.19.0"})
    costs.cost("all_reduce", device="H100-SXM", ranks=8, bytes=4096)
    assert [p.id.split(": ")[1] for p in costs.provenance().values()] == ["h100_sxm/comm/vllm/0.19.0"]


@pytest.mark.parametrize(("axis", "bar"), [("n", 0.08), ("k", 0.08), ("m", 0.08)])
def test_leaving_out_a_value_of_a_gemm_axis_costs_little(core: Path, axis: str, bar: float) -> None:
    """Median error of predicting measured products from their neighbours, a whole value of one axis left out."""
    costs = open_costs({"source": "aiconfigurator"})
    table = costs.table("gemm", {"device": "A100-80G-SXM", "dtype": "bf16"})  # type: ignore[attr-defined]
    assert np.median(np.abs(held_out_errors(table, axis))) < bar


@with_mirror
def test_two_independent_measurements_of_the_a100_agree(core: Path) -> None:
    """vidur (its own harness, 2024) and aiconfigurator (vLLM, 2026): GEMMs and all-reduces of Llama-2-70B.

    Also holds our reading of the package's message sizes as elements of two bytes.
    """
    ours = open_costs({"source": "aiconfigurator"})
    theirs = open_costs({"source": "vidur", "model": "llama-2-70b"})
    ratios = [ours.cost("gemm", device="A100-80G-SXM", dtype="bf16", m=m, n=n, k=k).seconds
              / theirs.cost("gemm", device="A100-80G-SXM", dtype="bf16", m=m, n=n, k=k).seconds
              for n, k in [(10240, 8192), (8192, 8192), (57344, 8192), (28672, 8192), (8192, 14336)]
              for m in (1, 16, 64, 256, 1024, 4096)]
    assert 0.8 < np.median(ratios) < 1.25
    assert min(ratios) > 0.6
    assert max(ratios) < 1.7
    for device in ("A100-80G-SXM", "H100-SXM"):
        for ranks in (2, 4, 8):
            ratio = (ours.cost("all_reduce", device=device, ranks=ranks, bytes=60e6).seconds
                     / theirs.cost("all_reduce", device=device, ranks=ranks, bytes=60e6).seconds)
            assert 0.6 < ratio < 1.7, (device, ranks)


@with_mirror
def test_vidur_rows_come_back_under_our_names() -> None:
    path = Path(str(MIRROR)) / "profiles/vidur/compute/a100/llama-2-70b/mlp.csv.gz"
    with gzip.open(path, "rt") as stream:
        row = next(r for r in csv.DictReader(stream)
                   if r["num_tensor_parallel_workers"] == "4" and r["num_tokens"] == "512")
    costs = open_costs({"source": "vidur", "model": "llama-2-70b"})
    device = "A100-80G-SXM"
    for name, n, k in [("attn_pre_proj", 2560, 8192), ("attn_post_proj", 8192, 2048), ("mlp_up_proj", 14336, 8192),
                       ("mlp_down_proj", 8192, 7168)]:
        found = costs.cost("gemm", device=device, dtype="bf16", m=512, n=n, k=k)
        assert found == (pytest.approx(float(row[f"time_stats.{name}.median"]) / 1e3), "measured")
    assert costs.cost("act", device=device, width=7168, tokens=512).seconds == pytest.approx(
        float(row["time_stats.mlp_act.median"]) / 1e3)
    with pytest.raises(SpecError, match="llama-2-70b"):
        open_costs({"source": "vidur", "model": "llama-2-70"})


@with_mirror
def test_splitwise_times_are_medians_of_the_repeats() -> None:
    with (Path(str(MIRROR)) / "profiles/splitwise-sim/perf_model.csv").open() as stream:
        rows = [r for r in csv.DictReader(stream) if (r["model"], r["hardware"], r["tensor_parallel"]) ==
                ("llama2-70b", "h100-80gb", "8")]
    costs = open_costs({"source": "splitwise"})
    point = {"device": "H100-SXM", "model": "llama2-70b", "tensor_parallel": 8}
    alone = [float(r["prompt_time"]) for r in rows if r["batch_size"] == "1" and r["prompt_size"] == "2048"]
    assert costs.cost("prompt", tokens=2048, **point).seconds == pytest.approx(np.median(alone) / 1e3)
    many = [float(r["token_time"]) for r in rows if (r["prompt_size"], r["batch_size"], r["token_size"]) ==
            ("512", "32", "128")]
    assert costs.cost("token", batch=32, **point).seconds == pytest.approx(np.median(many) / 1e3)
    capped = open_costs({"source": "splitwise", "power_capped": True})
    assert capped.cost("prompt", tokens=8192, **point).seconds > costs.cost("prompt", tokens=8192, **point).seconds


@pytest.mark.parametrize(("text", "complaint"), [
    ("model,hardware\nx,a100\n", "columns are missing"),
    ("model,hardware,tensor_parallel,prompt_size,batch_size,token_size,prompt_time,token_time\n"
     "m,a100,2,512,1,128,fast,1\n", "line 2")])
def test_a_broken_profile_file_is_named_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    from traces.profiles.splitwise import read

    path = tmp_path / "perf_model.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=complaint):
        read(path, {"a100": "A100"})


def test_a_broken_vidur_file_is_named_with_its_line(tmp_path: Path) -> None:
    from traces.profiles.vidur import read_network

    path = tmp_path / "all_reduce.csv"
    path.write_text("num_workers,devices_per_node,size\n2,2,10\n")
    with pytest.raises(TraceError, match="columns are missing"):
        read_network(path, "d")
    path.write_text("num_workers,devices_per_node,size,time_stats.all_reduce.median\n2,2,10,0.1\n2,2,20,slow\n")
    with pytest.raises(TraceError, match="line 3"):
        read_network(path, "d")
    path.write_text("num_workers,devices_per_node,size,time_stats.all_reduce.median\n2,2,10,0.1\n4,2,10,0.9\n")
    assert [t.keys for t in read_network(path, "d")] == [{"device": "d", "ranks": 2}], "across machines is left out"
    assert TableCosts(read_network(path, "d")).cost("all_reduce", device="d", ranks=2, bytes=10).seconds == 1e-4

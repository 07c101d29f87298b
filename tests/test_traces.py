"""Request tables: the readers believe nothing, the operations keep what they should, loading takes one door."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import catalogue, formats, registry, synthetic
from traces.requests import PLACEMENT_INPUT_TOKENS, PLACEMENT_OUTPUT_TOKENS, PrefixBlocks, RequestTable, make_table
from workbench.errors import TraceError

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:15:46.6805900,374,44\r
2023-11-16 18:15:50.9951690,396,109\r
2023-11-16 18:15:51.2224670,879,55"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
2024-05-10 02:00:02.509930+02:00,76,15
"""
BURSTGPT = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,a1,43,GPT-4,906,446,1352,Conversation log
19440161.5,,2,ChatGPT,36,29,65,API log
"""
BURSTGPT_V1 = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1300, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 2997, "input_length": 1600, "output_length": 7, "hash_ids": [0, 1, 3, 4]}
"""
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,2\n1.75,20,3\n"
SPLITWISE = ("request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
             "0,2,0,0.25,1,7,8\n1,2,0,0.75,1,9,10\n")
CANONICAL = "arrival_s,input_tokens,output_tokens,model\n0,1,2,small\n1.5,3,4,large\n"
LENGTHS = "input_tokens,output_tokens\n29,202\n14,58\n"

FIXTURES = {
    "azure-2023": (AZURE_2023, "azure", [0.0, 4.314579, 4.541877], [374, 396, 879], [44, 109, 55]),
    "azure-2024": (AZURE_2024, "azure", [0.0, 0.99007, 2.5], [2162, 2399, 76], [5, 6, 15]),
    "burstgpt-2": (BURSTGPT, "burstgpt", [0.0, 51.5], [906, 36], [446, 29]),
    "burstgpt-1": (BURSTGPT_V1, "burstgpt", [0.0, 40.0], [472, 1087], [18, 230]),
    "mooncake": (MOONCAKE, "mooncake", [0.0, 2.997], [1300, 1600], [5, 7]),
    "vidur": (VIDUR, "vidur", [0.0, 1.25], [10, 20], [2, 3]),
    "splitwise": (SPLITWISE, "splitwise-sim", [0.0, 0.5], [7, 9], [8, 10]),
    "canonical": (CANONICAL, "canonical", [0.0, 1.5], [1, 3], [2, 4]),
    "lengths": (LENGTHS, "lengths", [0.0, 0.0], [29, 14], [202, 58]),
}


def vllm_result(**changes: object) -> dict[str, object]:
    """A result of vllm bench serve --save-result --save-detailed, with its keys."""
    return {"date": "20260101-000000", "backend": "vllm", "model_id": "meta-llama/Llama-3.1-8B", "num_prompts": 3,
            "request_rate": 2.0, "burstiness": 1.0, "max_concurrency": None, "duration": 4.0, "completed": 3,
            "total_input_tokens": 60, "total_output_tokens": 6, "input_lens": [10, 20, 30], "output_lens": [1, 2, 3],
            "ttfts": [0.1, 0.2, 0.3], "itls": [[], [0.01], [0.01, 0.02]], "start_times": [100.0, 100.5, 102.0],
            "queue_times": [0.0, 0.25, 0.5], "generated_texts": ["a", "b", "c"], "errors": ["", "", ""], **changes}


def saved(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def table(arrival_s: object, inputs: object, outputs: object, blocks: PrefixBlocks | None = None) -> RequestTable:
    return make_table(arrival_s=arrival_s, input_tokens=inputs, output_tokens=outputs, blocks=blocks, name="t",
                      source="test", licence="none")


@st.composite
def tables(draw: st.DrawFn) -> RequestTable:
    n = draw(st.integers(1, 30))
    times = np.cumsum(draw(st.lists(st.floats(0, 50), min_size=n, max_size=n)))
    lengths = st.lists(st.integers(1, 20000), min_size=n, max_size=n)
    blocks = PrefixBlocks.from_lists(draw(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=n, max_size=n)))
    return table(times, draw(lengths), draw(lengths), draw(st.sampled_from([None, blocks])))


@pytest.fixture
def mirror() -> Path:
    folder = os.environ.get(registry.MIRROR_VARIABLE)
    if not folder:
        pytest.skip(f"public traces needed: set {registry.MIRROR_VARIABLE} to a mirror of them")
    return Path(folder)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FIXTURES)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_every_format_is_recognised_by_its_columns_and_read(case: str, zipped: bool, tmp_path: Path) -> None:
    text, format_name, times, inputs, outputs = FIXTURES[case]
    # the misleading name shows that only the content counts
    path = tmp_path / "data.bin"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    read = formats.read(path)
    assert formats.detect(path) == format_name
    assert formats.read(path, format=format_name).equals(read)
    np.testing.assert_allclose(read.arrival_s, times, atol=1e-9)
    assert (read.input_tokens.tolist(), read.output_tokens.tolist()) == (inputs, outputs)
    assert (read.arrival_s.dtype, read.input_tokens.dtype, read.output_tokens.dtype) == (float, np.int64, np.int64)
    assert read.arrivals == ("absent" if case == "lengths" else "recorded")


def test_optional_columns_and_blocks_are_kept(tmp_path: Path) -> None:
    burst = formats.read(saved(tmp_path, BURSTGPT)).frame
    assert burst["model"].tolist() == ["GPT-4", "ChatGPT"]
    assert burst["session"][0] == "a1" and burst["session"].isna()[1]
    assert burst["latency_s"].tolist() == [43.0, 2.0]
    blocks = formats.read(saved(tmp_path, MOONCAKE, "m.jsonl")).blocks
    assert blocks is not None and blocks.block_tokens == 512
    assert [b.tolist() for b in blocks] == [[0, 1, 2], [0, 1, 3, 4]]
    assert blocks.reuse_share() == 2 / 7


def test_vllm_bench_arrivals_exclude_the_clients_own_queue(tmp_path: Path) -> None:
    read = formats.read(saved(tmp_path, json.dumps(vllm_result()), "result.json"))
    assert read.arrival_s.tolist() == [0.0, 0.25, 1.5]
    assert read.frame["ttft_s"].tolist() == [0.1, 0.2, 0.3]
    np.testing.assert_allclose(read.frame["latency_s"], [0.1, 0.21, 0.33])
    assert set(read.frame["model"]) == {"meta-llama/Llama-3.1-8B"}
    pretty = saved(tmp_path, json.dumps(vllm_result(), indent=2), "pretty.json")
    assert formats.detect(pretty) == "vllm-bench" and formats.read(pretty).equals(read)
    early = {k: v for k, v in vllm_result().items() if k not in ("start_times", "queue_times")}
    assert formats.read(saved(tmp_path, json.dumps(early), "early.json")).arrivals == "absent"


def test_vllm_bench_without_details_names_the_option_that_saves_them(tmp_path: Path) -> None:
    brief = {k: v for k, v in vllm_result().items() if k not in ("input_lens", "output_lens", "ttfts", "itls")}
    with pytest.raises(TraceError, match=r"input_lens, output_lens[\s\S]*--save-detailed"):
        formats.read(saved(tmp_path, json.dumps(brief), "result.json"))
    appended = json.dumps(vllm_result()) + "\n" + json.dumps(vllm_result())
    with pytest.raises(TraceError, match="several results"):
        formats.read(saved(tmp_path, appended, "appended.json"))
    failed = vllm_result(output_lens=[1, 0, 3])
    with pytest.raises(TraceError, match=r"output_tokens is zero or less in 1 row \(request 2"):
        formats.read(saved(tmp_path, json.dumps(failed), "failed.json"))


BAD_INPUT = {
    "missing column": ("TIMESTAMP,ContextTokens,GenTokens\n2023-11-16 18:15:46,1,2\n",
                       r"missing for the azure format: GeneratedTokens; found: TIMESTAMP, ContextTokens, GenTokens"
                       r"[\s\S]*'GenTokens' is near 'GeneratedTokens'"),
    "semicolons": ("arrival_s;input_tokens;output_tokens\n0;1;2\n", "separated by commas"),
    "not a number": ("arrival_s,input_tokens,output_tokens\n0,1,2\n1,many,2\n2,3,x\n",
                     r"input_tokens is not a number in 1 row \(line 3; found many\)[\s\S]*"
                     r"output_tokens is not a number in 1 row \(line 4; found x\)"),
    "missing value": ("arrival_s,input_tokens,output_tokens\n0,1,2\n\n\n1,,2\n2,4\n",
                      r"input_tokens is missing in 1 row \(line 5\)[\s\S]*"
                      r"output_tokens is missing in 1 row \(line 6\)"),
    "zero length": (CANONICAL + "2,0,1,m\n3,-4,1,m\n",
                    r"input_tokens is zero or less in 2 rows \(lines 4, 5; found 0, -4\)[\s\S]*lengths=\"drop\""),
    "fraction": (CANONICAL + "2,1.5,1,m\n", r"not a whole number in 1 row \(line 4; found 1.5\)"),
    "infinite": (CANONICAL + "inf,1,1,m\n", r"arrival_s is infinite in 1 row \(line 4\)"),
    "huge": (CANONICAL + "2,1e300,1,m\n", r"larger than any real request in 1 row \(line 4"),
    "negative time": ("arrival_s,input_tokens,output_tokens\n-1,1,2\n",
                      r"the arrival time is negative in 1 row \(line 2"),
    "unsorted": (CANONICAL + "1,5,5,m\n", r"runs backwards in 1 row \(line 4\)[\s\S]*unsorted=\"sort\""),
    "not a date": (AZURE_2024 + "yesterday,1,1\n",
                   r"TIMESTAMP is not a date and time in 1 row \(line 5; found yesterday\)"),
    "many": (LENGTHS + "0,1\n" * 7, r"in 7 rows \(lines 4, 5, 6, 7, 8, …"),
    "empty": ("", "the file is empty"),
    "header only": ("input_tokens,output_tokens\n", "no requests"),
    "long row": ("input_tokens,output_tokens\n1,2\n1,2,3\n", "line 3|more fields"),
    "all rows long": ("input_tokens,output_tokens\n1,2,3\n1,2,3\n", "line 2|more fields"),
    "twice": ("input_tokens,output_tokens,input_tokens\n1,2,3\n", "occur twice: input_tokens"),
    "not text": ("input_tokens,output_tokens\n1,\udcff\n", "not UTF-8|not a number"),
    "broken json line": (MOONCAKE + "{broken\n[]\n", r"not a JSON object in 2 rows \(lines 3, 4\)"),
    "bad block ids": (MOONCAKE + '{"timestamp": 3000, "input_length": 9, "output_length": 5, "hash_ids": ["a"]}\n',
                      r"hash_ids is not a list of block ids in 1 row \(line 3\)"),
    "no block ids": (MOONCAKE + '{"timestamp": 3000, "input_length": 9, "output_length": 5}\n',
                     r"hash_ids is not a list of block ids in 1 row \(line 3\)"),
    "not json": ("{", "not valid JSON"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_with_the_rows_in_question(case: str, tmp_path: Path) -> None:
    text, message = BAD_INPUT[case]
    path = tmp_path / "bad.trace"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TraceError, match=message) as caught:
        formats.read(path)
    assert "bad.trace" in str(caught.value) and caught.value.exit_code == 2


def test_faults_of_all_kinds_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        formats.read(saved(tmp_path, CANONICAL + "1,0,1.5,m\n"))
    assert len(caught.value.faults) == 3


def test_policies_drop_and_sort_and_say_so(tmp_path: Path) -> None:
    path = saved(tmp_path, CANONICAL + "1,5,6,m\n2,7,0,m\n")
    read = formats.read(path, unsorted="sort", lengths="drop")
    assert read.input_tokens.tolist() == [1, 5, 3] and read.arrival_s.tolist() == [0.0, 1.0, 1.5]
    assert read.history == ("dropped 1 requests with a length of zero or less", "sorted by arrival time")
    with pytest.raises(TraceError, match="no request is left"):
        formats.read(saved(tmp_path, "input_tokens,output_tokens\n1,0\n"), lengths="drop")


def test_absent_damaged_and_mismatched_files_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, LENGTHS, "lengths.csv")
    with pytest.raises(TraceError, match=r"no such file[\s\S]*did you mean 'lengths.csv'"):
        formats.read(tmp_path / "length.csv")
    with pytest.raises(TraceError, match="is a folder"):
        formats.read(tmp_path)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(AZURE_2023.encode() * 50)[:-9])
    with pytest.raises(TraceError, match="damaged gzip"):
        formats.read(tmp_path / "cut.gz")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TraceError, match="damaged Parquet"):
        formats.read(tmp_path / "cut.parquet")
    with pytest.raises(TraceError, match=r"no trace format is called 'azur'[\s\S]*did you mean 'azure'"):
        formats.read(tmp_path / "lengths.csv", format="azur")
    with pytest.raises(TraceError, match="missing for the azure format"):
        formats.read(tmp_path / "lengths.csv", format="azure")
    with pytest.raises(TraceError, match="this is JSON"):
        formats.read(saved(tmp_path, MOONCAKE, "m.jsonl"), format="azure")


@settings(max_examples=30, deadline=None)
@given(original=tables(), ending=st.sampled_from([".csv", ".csv.gz", ".parquet"]))
def test_what_is_written_is_read_back(original: RequestTable, ending: str,
                                      tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / f"t{ending}"
    formats.write(original, path)
    first_bytes = path.read_bytes()
    back = formats.read(path)
    assert back.equals(original) and back.content_id() == original.content_id()
    formats.write(original, path)
    assert path.read_bytes() == first_bytes


def test_byte_order_marks_blank_headers_and_gzipped_parquet_are_understood(tmp_path: Path) -> None:
    plain = formats.read(saved(tmp_path, LENGTHS))
    assert formats.read(saved(tmp_path, "\ufeff" + LENGTHS)).equals(plain)
    assert formats.read(saved(tmp_path, LENGTHS.replace(",", " , "))).equals(plain)
    assert formats.read(saved(tmp_path, LENGTHS.replace("\n", "\r\n\r\n"))).equals(plain)
    stored = formats.write(plain, tmp_path / "t.parquet")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress(stored.read_bytes()))
    assert formats.read(tmp_path / "t.parquet.gz").equals(plain)
    assert formats.detect(tmp_path / "t.parquet.gz") == "lengths"


def test_parquet_keeps_labels_and_lengths_stay_lengths(tmp_path: Path) -> None:
    labelled = table([0, 1, 2], [1, 2, 3], [4, 5, 6]).scale_rate(2)
    back = formats.read(formats.write(labelled, tmp_path / "t.parquet"))
    assert (back.name, back.source, back.licence, back.history) == ("t", "test", "none", ("rate x 2",))
    bare = make_table(input_tokens=[1, 2], output_tokens=[3, 4], name="t", source="test", licence="none")
    assert formats.read(formats.write(bare, tmp_path / "t.csv")).arrivals == "absent"
    with pytest.raises(TraceError, match=r"\.parquet"):
        formats.write(bare, tmp_path / "t.xlsx")


# --- operations ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(t=tables(), factor=st.floats(0.01, 100))
def test_scaling_the_rate_divides_times_and_touches_nothing_else(t: RequestTable, factor: float) -> None:
    fast = t.scale_rate(factor)
    np.testing.assert_allclose(fast.arrival_s * factor, t.arrival_s, rtol=1e-12)
    assert fast.frame.drop(columns="arrival_s").equals(t.frame.drop(columns="arrival_s"))


@settings(max_examples=60, deadline=None)
@given(t=tables(), cut=st.floats(0, 1))
def test_two_adjacent_windows_hold_every_request_once(t: RequestTable, cut: float) -> None:
    middle, end = cut * t.span_s, t.span_s + 1
    parts = []
    for start, stop in ((0.0, middle), (middle, end)):
        if ((t.arrival_s >= start) & (t.arrival_s < stop)).any():
            parts.append(t.window(start, stop))
            assert parts[-1].arrival_s[0] == 0.0 and parts[-1].span_s <= stop - start
    assert np.concatenate([p.input_tokens for p in parts]).tolist() == t.input_tokens.tolist()
    if t.blocks is not None:
        pieces = [b.tolist() for p in parts if p.blocks is not None for b in p.blocks]
        assert pieces == [b.tolist() for b in t.blocks]


@settings(max_examples=60, deadline=None)
@given(t=tables(), seed=st.integers(0, 2**32), share=st.floats(0.01, 1))
def test_a_sample_keeps_order_and_draws_nobody_twice(t: RequestTable, seed: int, share: float) -> None:
    numbered = t.frame.assign(output_tokens=np.arange(1, len(t) + 1))
    t = make_table(arrival_s=numbered["arrival_s"], input_tokens=numbered["input_tokens"],
                   output_tokens=numbered["output_tokens"], name="t", source="test", licence="none")
    some = t.sample(max(1, int(share * len(t))), np.random.default_rng(seed))
    assert (np.diff(some.output_tokens) > 0).all()
    assert some.input_tokens.tolist() == t.input_tokens[some.output_tokens - 1].tolist()


@settings(max_examples=40, deadline=None)
@given(centres=st.lists(st.integers(1, 9999), min_size=1, max_size=5, unique=True))
def test_types_are_the_nearest_on_a_log_scale(centres: list[int]) -> None:
    lengths = np.unique(np.geomspace(1, 20_000, 500).astype(int))
    bins = table(np.zeros(len(lengths)), lengths, lengths[::-1]).bin_types(centres, PLACEMENT_OUTPUT_TOKENS)
    for values, options, column in ((lengths, centres, 0), (lengths[::-1], PLACEMENT_OUTPUT_TOKENS, 1)):
        distance = np.abs(np.log(values[:, None] / np.array(options)))
        got = np.array([bins.types[k][column] for k in bins.index])
        assert (np.abs(np.log(values / got)) <= distance.min(axis=1) + 1e-12).all()
    assert bins.shares.sum() == pytest.approx(1) and bins.counts.sum() == len(lengths)


def test_the_nine_types_stand_row_by_row() -> None:
    types = [(i, o) for i in PLACEMENT_INPUT_TOKENS for o in PLACEMENT_OUTPUT_TOKENS]
    exact = table(range(9), [i for i, _ in types], [o for _, o in types])
    assert exact.bin_types().index.tolist() == list(range(9))
    assert [(r["order"], r["input_tokens"], r["output_tokens"]) for r in exact.bin_types().rows()] == [
        (k + 1, *pair) for k, pair in enumerate(types)]
    halfway = table([0], [100], [20]).bin_types([400, 25], [20])
    assert halfway.types[halfway.index[0]] == (25, 20)  # a tie goes to the shorter
    with pytest.raises(TraceError, match="different positive lengths"):
        exact.bin_types([5, 5])


def test_statistics_of_regular_and_poisson_arrivals_are_the_textbooks() -> None:
    regular = table(np.arange(1000) * 0.5, np.full(1000, 7), np.full(1000, 3)).statistics()
    assert regular.rate_per_s == pytest.approx(2.0) and regular.arrival_cv == pytest.approx(0, abs=1e-9)
    assert regular.burstiness == pytest.approx(-1) and regular.dispersion_60s == pytest.approx(0)
    assert regular.length_rank_correlation is None and regular.input_p99_tokens == 7
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.exponential(0.1, 50_000))
    poisson = table(times, np.arange(1, 50_001), np.arange(1, 50_001)).statistics()
    assert poisson.arrival_cv == pytest.approx(1, abs=0.03) and poisson.burstiness == pytest.approx(0, abs=0.02)
    assert poisson.dispersion_60s == pytest.approx(1, abs=0.5)
    assert poisson.length_rank_correlation == pytest.approx(1)
    assert {r["unit"] for r in poisson.rows()} == {"", "s", "1/s", "tokens"}


def test_a_trace_without_times_refuses_time_operations() -> None:
    bare = make_table(input_tokens=[1, 2], output_tokens=[3, 4], name="t", source="test", licence="none")
    assert bare.statistics().rate_per_s is None
    for operation in (lambda: bare.scale_rate(2), lambda: bare.window(0, 1), lambda: bare.at_rate(1)):
        with pytest.raises(TraceError, match="no arrival times"):
            operation()
    timed = bare.with_arrivals(np.array([0.0, 2.0]), "by hand")
    assert timed.arrivals == "generated" and timed.at_rate(4).span_s == pytest.approx(0.25)
    with pytest.raises(TraceError, match="never decreasing"):
        bare.with_arrivals(np.array([1.0, 0.0]), "by hand")


def test_operations_refuse_what_they_cannot_do() -> None:
    t = table([0, 1], [1, 2], [3, 4])
    for operation, message in ((lambda: t.scale_rate(0), "positive number"), (lambda: t.window(5, 6), "no request"),
                               (lambda: t.first(3), "cannot take 3"), (lambda: t.scale_rate(float("nan")), "positive"),
                               (lambda: table([0], [1], [2]).at_rate(1), "two different times"),
                               (lambda: table([0, 1], [1], [2, 3]), "differ in length")):
        with pytest.raises(TraceError, match=message):
            operation()


# --- one door --------------------------------------------------------------------------------------------------------


def test_load_takes_files_workloads_and_refuses_unknown_names(tmp_path: Path) -> None:
    path = saved(tmp_path, AZURE_2023)
    assert catalogue.load(path).equals(formats.read(path))
    assert len(catalogue.load("trace1", requests=17)) == 17
    own = saved(tmp_path, (synthetic.WORKLOADS_FOLDER / "trace2.toml").read_text(), "mine.toml")
    assert catalogue.load(own, requests=9).equals(catalogue.load("trace2", requests=9))
    with pytest.raises(TraceError, match="did you mean 'azure-conv-like'"):
        catalogue.load("azure-conv-lke")
    with pytest.raises(TraceError, match="not a request trace"):
        catalogue.load("splitwise-sim-perf_model")
    with pytest.raises(TraceError, match="no such file"):
        catalogue.load("folder/absent.csv")


def test_load_shapes_recorded_traces_and_bare_lengths(tmp_path: Path) -> None:
    rows = "".join(f"{k},{k + 1},1\n" for k in range(101))
    recorded = saved(tmp_path, "arrival_s,input_tokens,output_tokens\n" + rows)
    assert catalogue.load(recorded, rate_per_s=4).statistics().rate_per_s == pytest.approx(4)
    assert len(catalogue.load(recorded, duration_s=10)) == 10
    assert catalogue.load(recorded, requests=3).input_tokens.tolist() == [1, 2, 3]
    bare = saved(tmp_path, "input_tokens,output_tokens\n" + "".join(f"{k + 1},1\n" for k in range(2000)), "l.csv")
    assert catalogue.load(bare).arrivals == "absent"
    poisson = catalogue.load(bare, rate_per_s=5, seed=3)
    assert poisson.statistics().rate_per_s == pytest.approx(5, rel=0.1) and poisson.arrivals == "generated"
    assert poisson.equals(catalogue.load(bare, rate_per_s=5, seed=3))
    assert not poisson.equals(catalogue.load(bare, rate_per_s=5, seed=4))
    with pytest.raises(TraceError, match="requests must be a positive number"):
        catalogue.load(bare, requests=0)


def test_rows_and_facts_of_all_names() -> None:
    rows = catalogue.list_rows()
    assert len({r["name"] for r in rows}) == len(rows)
    assert {"name", "kind", "rows", "licence", "where", "stand_in", "description"} == set(rows[0])
    assert {r["name"] for r in rows if r["kind"] == "synthetic"} == set(synthetic.names())
    shown = catalogue.show("trace1")
    assert shown["source"].startswith("synthetic:") and len(shown["mix"]) == 9 and shown["statistics"]
    assert catalogue.show("helix-bs2time")["licence"] == "Apache-2.0"


def test_importing_the_package_loads_no_heavy_module() -> None:
    code = ("import sys; import traces.catalogue, traces.fit;"
            "print([m for m in ('pandas', 'scipy', 'pyarrow', 'pooch', 'pydantic', 'requests') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- public traces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "requests", "inputs", "outputs", "span_s"), [
    ("azure-2023-conv", 19366, 1154.7, 211.1, 3501.7), ("azure-2023-code", 8819, 2047.8, 27.9, 3435.9),
    ("mooncake-conversation", 12031, 12035, 343, 3537.0), ("mooncake-synthetic", 3993, 15325, 149, 1022.0)])
def test_public_traces_have_their_published_statistics(name: str, requests: int, inputs: float, outputs: float,
                                                       span_s: float, mirror: Path) -> None:
    found = catalogue.load(name).statistics()
    assert found.requests == requests and found.span_s == pytest.approx(span_s, abs=0.1)
    assert found.input_mean_tokens == pytest.approx(inputs, rel=1e-4)
    assert found.output_mean_tokens == pytest.approx(outputs, rel=2e-3)


def test_every_registered_request_trace_reads(mirror: Path) -> None:
    for name, file in registry.registry().files.items():
        if file.format is not None:
            read = catalogue.load(name)
            assert len(read) == file.rows, name
            assert formats.detect(registry.fetch(name)) == file.format, name


def test_mooncake_prompts_have_one_block_for_each_512_tokens(mirror: Path) -> None:
    read = catalogue.load("mooncake-conversation")
    assert read.blocks is not None
    assert (np.diff(read.blocks.offsets) == -(-read.input_tokens // read.blocks.block_tokens)).all()


def test_the_azure_chat_trace_reads_in_a_fifth_of_a_second(mirror: Path) -> None:
    path = registry.fetch("azure-2023-conv")
    formats.read(path)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        formats.read(path)
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[2] < 0.2, seconds


def test_the_demo_gets_the_public_trace_or_its_stand_in(mirror: Path, monkeypatch: pytest.MonkeyPatch,
                                                        tmp_path: Path) -> None:
    assert catalogue.load_or_synthetic("azure-2023-conv", requests=5).source.startswith("public:")
    monkeypatch.delenv(registry.MIRROR_VARIABLE)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path))
    assert catalogue.load_or_synthetic("azure-2023-conv", requests=5).source.startswith("synthetic:")
    with pytest.raises(TraceError, match="no synthetic stand-in"):
        catalogue.load_or_synthetic("wildchat-lengths")

"""A timeline says who overlaps and who started too early, adds up correctly, and survives its files unchanged."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import SpecError, TraceError
from workbench.timeline import Level, Span, Timeline, natural_key


def span(name, start_s, end_s, *, device="gpu0", stream="compute", moved=0, after=(), **args):
    return Span(device=device, stream=stream, name=name, start_s=start_s, end_s=end_s, bytes=moved, after=after,
                args=args)


seconds = st.floats(0, 1e4, allow_nan=False, allow_infinity=False)
labels = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
json_values = st.one_of(st.integers(-9, 9), labels, st.booleans(), st.none(), st.floats(-1e9, 1e9))


@st.composite
def timelines(draw, max_spans=14, touching=False):
    """Any spans at all; with ``touching`` times are small whole numbers, so that ends meet starts."""
    time = st.integers(0, 9).map(float) if touching else seconds
    spans = []
    for i in range(draw(st.integers(0, max_spans))):
        start, length = draw(time), draw(time)
        spans.append(span(
            draw(labels), start, start + length, device=draw(st.sampled_from(["gpu2", "gpu10", 'li"nk é'])),
            stream=draw(st.sampled_from(["compute", "send"])), moved=draw(st.integers(0, 5)),
            after=tuple(draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True))) if i else (),
            **draw(st.dictionaries(st.sampled_from(["step", "note", "x y"]), json_values, max_size=2))))
    count = draw(st.integers(1, 4))
    level = Level(name="memory", unit="bytes", device="gpu2", time_s=np.sort(draw(st.lists(seconds, min_size=count,
                                                                                          max_size=count))),
                  value=draw(st.lists(st.floats(0, 1e12), min_size=count, max_size=count)))
    return Timeline.from_spans(spans, levels=draw(st.sampled_from([(), (level,)])))


def brute_violations(timeline):
    """Every (rule, span) by comparing all pairs."""
    found = set()
    for i, a in enumerate(timeline):
        if a.end_s < a.start_s:
            found.add(("length", i))
        found.update(("dependency", i) for j in a.after if a.start_s < timeline[j].end_s)
    return found


def brute_overlap(timeline):
    """Whether two spans of one lane share time, or one of no length lies inside another."""
    return any(a.device == b.device and a.stream == b.stream
               and max(a.start_s, b.start_s) < min(a.end_s, b.end_s)
               for i, a in enumerate(timeline) for b in list(timeline)[i + 1:])


@given(timelines(touching=True))
@settings(deadline=None)
def test_violations_are_those_of_comparing_all_pairs(timeline):
    found = timeline.violations()
    by_rule = {rule: sum(v.rule == rule for v in found) for rule in ("length", "dependency", "overlap")}
    expected = brute_violations(timeline)
    assert by_rule["length"] == sum(rule == "length" for rule, _ in expected)
    assert len({v.where for v in found if v.rule == "dependency"}) <= len(expected)
    assert bool(by_rule["dependency"]) == any(rule == "dependency" for rule, _ in expected)
    points_inside = any(a.device == b.device and a.stream == b.stream and b.start_s < a.start_s == a.end_s < b.end_s
                        for a in timeline for b in timeline)
    assert bool(by_rule["overlap"]) == (brute_overlap(timeline) or points_inside)


def test_each_rule_names_the_spans_and_the_times():
    timeline = Timeline.from_spans([
        span("a", 0, 2), span("b", 1, 3), span("c", 5, 4, device="gpu1"), span("d", 1, 2, device="gpu2", after=(1,)),
    ])
    told = {v.rule: f"{v.where}: {v.detail}" for v in timeline.violations()}
    assert told == {
        "length": "c on gpu1/compute: ends at 4 s, before its start at 5 s",
        "overlap": "b on gpu0/compute: starts at 1 s while a runs until 2 s",
        "dependency": "d on gpu2/compute: starts at 1 s, before b on gpu0/compute ends at 3 s",
    }


def test_a_long_span_overlaps_all_it_covers_not_only_its_neighbour():
    timeline = Timeline.from_spans([span("long", 0, 10), span("x", 1, 2), span("y", 5, 6)])
    assert [v.where for v in timeline.violations()] == ["x on gpu0/compute", "y on gpu0/compute"]


def test_tolerance_forgives_clock_skew_and_no_more():
    timeline = Timeline.from_spans([span("a", 0, 1), span("b", 0.999, 2, after=(0,))])
    assert len(timeline.violations()) == 2
    assert not timeline.violations(tolerance_s=0.0011)


@given(timelines(touching=True), st.sampled_from(["gpu2", "gpu10"]))
@settings(deadline=None)
def test_busy_time_and_peak_bytes_equal_counting_tick_by_tick(timeline, device):
    spans = list(timeline)
    ticks = [t + 0.5 for t in range(20)]
    mine = [s for s in spans if s.device == device]
    assert timeline.busy_s(device) == sum(any(s.start_s < t < s.end_s for s in mine) for t in ticks)
    assert timeline.peak_bytes(device) == max(sum(s.bytes for s in mine if s.start_s < t < s.end_s) for t in ticks)
    assert timeline.peak_bytes() == max(sum(s.bytes for s in spans if s.start_s < t < s.end_s) for t in ticks)
    if timeline.makespan_s:
        assert all(0 <= share <= 1 for share in timeline.busy_share().values())


def test_critical_path_follows_waits_and_lanes():
    timeline = Timeline.from_spans([
        span("a", 0, 1), span("b", 1, 4, device="gpu1", after=(0,)), span("idle", 0, 2, device="gpu2"),
        span("c", 4, 5, device="gpu1"), span("d", 5, 6, after=(3, 2)),
    ])
    assert [timeline[i].name for i in timeline.critical_path()] == ["a", "b", "c", "d"]


@given(timelines())
@settings(max_examples=60, deadline=None)
def test_chrome_trace_and_parquet_give_back_what_was_written(tmp_path_factory, timeline):
    folder = tmp_path_factory.mktemp("files")
    assert Timeline.from_chrome_trace(timeline.to_chrome_trace(folder / "t.json")) == timeline
    assert Timeline.from_chrome_trace(timeline.to_chrome_trace(folder / "t.json.gz")) == timeline
    assert Timeline.from_parquet(timeline.to_parquet(folder / "t.parquet")) == timeline
    assert Timeline.from_spans(list(timeline), levels=timeline.levels) == timeline


def test_equal_timelines_have_equal_files_and_a_changed_one_does_not(tmp_path):
    spans = [span("a", 0, 1), span("b", 1, 2, moved=3, after=(0,), note="x")]
    one, same = Timeline.from_spans(spans), Timeline.from_spans(spans)
    for name in ("t.json", "t.json.gz", "t.parquet"):
        write = "to_parquet" if name.endswith("parquet") else "to_chrome_trace"
        first = getattr(one, write)(tmp_path / f"1{name}").read_bytes()
        assert first == getattr(same, write)(tmp_path / f"2{name}").read_bytes()
    for changed in (span("b", 1, 2.5, moved=3, after=(0,), note="x"), span("b", 1, 2, moved=4, after=(0,), note="x"),
                    span("b", 1, 2, moved=3, note="x"), span("b", 1, 2, moved=3, after=(0,), note="y"),
                    span("c", 1, 2, moved=3, after=(0,), note="x")):
        assert Timeline.from_spans([spans[0], changed]) != one


def test_chrome_trace_obeys_the_trace_event_format(tmp_path):
    """The fields the format asks for, spans that touch still touch in whole nanoseconds, and a flow each wait."""
    third = 1 / 3
    timeline = Timeline.from_spans(
        [span("a", 0, third), span("b", third, 2 * third, after=(0,)), span("sync", 2 * third, 2 * third, after=(1,)),
         span("c", 2 * third, 1, stream="send", moved=7, after=(1, 2))],
        levels=[Level(name="memory", unit="bytes", device="gpu0", time_s=[0.0, 1.0], value=[4.0, 0.0])])
    data = json.loads(timeline.to_chrome_trace(tmp_path / "t.json").read_text())
    assert isinstance(data["traceEvents"], list) and data["displayTimeUnit"] in ("ms", "ns")
    by_phase = {}
    for event in data["traceEvents"]:
        by_phase.setdefault(event["ph"], []).append(event)
        assert isinstance(event["pid"], int) and event["pid"] > 0
    assert set(by_phase) == {"M", "X", "s", "f", "C"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in by_phase["M"] if e["name"] == "thread_name"}
    assert {threads[e["pid"], e["tid"]] for e in by_phase["X"]} == {"compute", "send"}
    spans = sorted((e for e in by_phase["X"] if threads[e["pid"], e["tid"]] == "compute"), key=lambda e: e["ts"])
    for before, then in pairwise(spans):
        assert round((before["ts"] + before["dur"]) * 1000) == round(then["ts"] * 1000)
    starts, ends = ({e["id"]: e for e in by_phase[ph]} for ph in "sf")
    assert len(starts) == len(ends) == 4 and starts.keys() == ends.keys()
    # A flow event binds to the span opened last on its thread at that moment, in the order of the file.
    opened, ties = {}, {"s": {}, "f": {}}
    for event in data["traceEvents"]:
        if event["ph"] == "X":
            opened[event["pid"], event["tid"]] = event
        elif event["ph"] in "sf":
            ties[event["ph"]][event["id"]] = opened[event["pid"], event["tid"]]["name"]
            assert event["ts"] == opened[event["pid"], event["tid"]]["ts"]
    assert sorted((ties["s"][k], ties["f"][k]) for k in ties["s"]) == [
        ("a", "b"), ("b", "c"), ("b", "sync"), ("sync", "c")]
    assert all(event["bp"] == "e" for event in by_phase["f"])
    assert [e["args"] for e in by_phase["C"]] == [{"bytes": 4.0}, {"bytes": 0.0}]


def test_spans_of_another_tools_trace_are_read(tmp_path):
    """Complete events, begin/end pairs with nesting, text ids, missing names: as torch's profiler and others write."""
    events = [
        {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "python"}},
        {"ph": "X", "name": "gemm", "pid": 7, "tid": "stream 3", "ts": 10.5, "dur": 2, "args": {"id": 4, "bytes": 64}},
        {"ph": "B", "name": "outer", "pid": 0, "tid": 1, "ts": 0},
        {"ph": "B", "name": "inner", "pid": 0, "tid": 1, "ts": 1},
        {"ph": "i", "name": "mark", "pid": 0, "tid": 1, "ts": 2},
        {"ph": "E", "pid": 0, "tid": 1, "ts": 3}, {"ph": "E", "pid": 0, "tid": 1, "ts": 9},
    ]
    (tmp_path / "t.json").write_text(json.dumps(events))
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    for name in ("t.json", "t.json.gz"):
        spans = list(Timeline.from_chrome_trace(tmp_path / name))
        assert [(s.device, s.stream, s.name) for s in spans] == [
            ("0", "1", "outer"), ("0", "1", "inner"), ("python", "stream 3", "gemm")]
        assert [(round(s.start_s * 1e6, 6), round(s.end_s * 1e6, 6)) for s in spans] == [(0, 9), (1, 3), (10.5, 12.5)]
        assert spans[2].bytes == 64 and spans[2].args == {"id_": 4, "bytes_": 64}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"traceEvents": 3}', "3", '[{"ph": "X", "pid": 1, "tid": 1}]',
                                  '[{"ph": "X", "name": "a", "pid": 1, "tid": 1, "ts": "soon", "dur": 1}]'])
def test_a_broken_trace_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TraceError, match=r"t\.json"):
        Timeline.from_chrome_trace(tmp_path / "t.json")
    with pytest.raises(TraceError, match=r"t\.json"):
        Timeline.from_parquet(tmp_path / "t.json")
    with pytest.raises(TraceError, match="no such file"):
        Timeline.from_chrome_trace(tmp_path / "absent.json")


@pytest.mark.parametrize("bad", [span("a", 0, float("nan")), span("a", 0, 1, after=(1,)), span("a", 0, 1, id=3)])
def test_an_impossible_span_is_refused(bad):
    with pytest.raises(SpecError):
        Timeline.from_spans([bad])


def test_args_that_are_not_json_are_refused_and_leave_no_file(tmp_path):
    timeline = Timeline.from_spans([span("a", 0, 1, what={1, 2})])
    with pytest.raises(SpecError, match="span 0"):
        timeline.to_chrome_trace(tmp_path / "t.json")
    assert not list(tmp_path.iterdir())


def test_columns_cannot_be_changed():
    timeline = Timeline.from_spans([span("a", 0, 1)])
    with pytest.raises(ValueError, match="read-only"):
        timeline.start_s[0] = 5.0
    with pytest.raises(AttributeError):
        timeline.start_s = np.zeros(1)


def test_merge_keeps_every_wait():
    parts = [Timeline.from_spans([span("a", 0, 1, device=d), span("b", 1, 2, device=d, after=(0,))]) for d in "xy"]
    merged = Timeline.merge(parts)
    assert [s.after for s in merged] == [(), (0,), (), (2,)]
    assert merged.makespan_s == 2 and not merged.violations()


def test_frame_has_a_row_a_span():
    timeline = Timeline.from_spans([span("a", 0, 1), span("b", 1, 2, stream="send", moved=3, after=(0,))])
    frame = timeline.to_frame()
    assert frame["name"].tolist() == ["a", "b"] and frame["stream"].tolist() == ["compute", "send"]
    assert frame["after"].tolist() == [(), (0,)] and frame["bytes"].sum() == 3


def test_names_sort_as_people_count():
    names = ["gpu10", "gpu2", "link", "gpu2a"]
    assert sorted(names, key=natural_key) == ["gpu2", "gpu2a", "gpu10", "link"]


def test_importing_the_module_loads_no_heavy_package():
    code = "import sys, workbench.timeline; print([m for m in ('pandas', 'pyarrow', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_a_million_spans_are_checked_and_written(tmp_path):
    n = 1_000_000
    start = np.arange(n) // 8 * 1e-3
    timeline = Timeline(
        lanes=tuple((f"gpu{k}", "compute") for k in range(8)), lane=np.arange(n) % 8, names=("k",), name=np.zeros(n),
        start_s=start, end_s=start + 1e-3, bytes=np.ones(n), after_from=np.zeros(n + 1), after=np.zeros(0))
    assert not timeline.violations(tolerance_s=1e-9)
    assert timeline.peak_bytes() >= 8
    written = timeline.to_parquet(tmp_path / "t.parquet")
    assert written.stat().st_size < 100e6 and Timeline.from_parquet(written) == timeline

"""Timelines on disk: Chrome Trace Event JSON (opens in ui.perfetto.dev) and Parquet.

In the JSON a device is a process, a stream a thread, a dependency a flow arrow, a level a counter. Viewers read
whole nanoseconds; ``ts`` and ``dur`` are rounded to them so that touching spans still touch, and where that loses
digits the exact seconds stand in ``args.at_s``. Format: "Trace Event Format", Chromium project.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import SpecError, TraceError
from workbench.files import atomic_path
from workbench.timeline import RESERVED, Lane, Level, Span, Timeline

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_chrome_trace", "read_parquet", "write_chrome_trace", "write_parquet"]

FORMAT = "workbench.timeline"
VERSION = 1


def write_chrome_trace(timeline: Timeline, path: Path) -> Path:
    """Write ``timeline`` as Chrome Trace Event JSON, one event a line; gzip if the name ends in .gz."""
    with atomic_path(path) as part, part.open("wb") as raw:
        # No file name and no date in the gzip header: equal timelines give equal files.
        packed = (gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0)
                  if path.suffix == ".gz" else raw)
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n", write_through=False) as text:
            head = json.dumps({"format": FORMAT, "version": VERSION, "spans": len(timeline)})
            text.write(f'{{"displayTimeUnit": "ms", "otherData": {head}, "traceEvents": [\n')
            comma = ""
            for event in _events(timeline):
                text.write(comma + event)
                comma = ",\n"
            text.write("\n]}\n")
            text.flush()
            if packed is not raw:
                packed.close()
    return path


def _events(timeline: Timeline) -> Iterator[str]:
    """Every event as JSON text: names of processes and threads, then spans by start with their flows, then counters."""
    devices = list(dict.fromkeys([*timeline.devices, *(level.device for level in timeline.levels)]))
    pid = {device: 1 + i for i, device in enumerate(devices)}
    # Thread ids are unique across processes: some viewers look a thread up by its id alone.
    tid = {lane: 1 + len(devices) + i for i, lane in enumerate(timeline.lanes)}
    for device in devices:
        yield from _names("process", {"pid": pid[device]}, device, pid[device])
    for lane in timeline.lanes:
        yield from _names("thread", {"pid": pid[lane.device], "tid": tid[lane]}, lane.stream, tid[lane])
    places = [f'"pid":{pid[lane.device]},"tid":{tid[lane]}' for lane in timeline.lanes]
    yield from _span_events(timeline, places)
    for level in timeline.levels:
        label = json.dumps(level.name, ensure_ascii=False)
        unit = json.dumps(level.unit or "value", ensure_ascii=False)
        stamps = np.round(level.time_s * 1e9).astype(np.int64).tolist()
        for stamp, at_s, value in zip(stamps, level.time_s.tolist(), level.value.tolist(), strict=True):
            exact = "" if stamp / 1e9 == at_s else f',"at_s":{at_s!r}'
            yield (f'{{"ph":"C","name":{label},"pid":{pid[level.device]},"tid":0,"ts":{_micro(stamp)}{exact},'
                   f'"args":{{{unit}:{value!r}}}}}')


def _names(kind: str, place: Mapping[str, int], name: str, rank: int) -> Iterator[str]:
    yield json.dumps({"ph": "M", "name": f"{kind}_name", **place, "args": {"name": name}}, ensure_ascii=False)
    yield json.dumps({"ph": "M", "name": f"{kind}_sort_index", **place, "args": {"sort_index": rank}})


def _span_events(timeline: Timeline, places: Sequence[str]) -> Iterator[str]:
    """A viewer binds a flow to the innermost span open at that moment, so each flow stands right after its span."""
    names = [json.dumps(name, ensure_ascii=False) for name in timeline.names]
    lane, name = timeline.lane.tolist(), timeline.name.tolist()
    start_s, end_s, moved = timeline.start_s.tolist(), timeline.end_s.tolist(), timeline.bytes.tolist()
    start_ns = np.round(timeline.start_s * 1e9).astype(np.int64).tolist()
    end_ns = np.round(timeline.end_s * 1e9).astype(np.int64).tolist()
    waited, first = timeline.after.tolist(), timeline.after_from.tolist()
    leaving = np.argsort(timeline.after, kind="stable").tolist()
    leaving_from = np.searchsorted(timeline.after[leaving], np.arange(len(timeline) + 1)).tolist()
    for i in np.lexsort((timeline.end_s, timeline.start_s)).tolist():
        facts = [f'"id":{i}']
        if moved[i]:
            facts.append(f'"bytes":{moved[i]}')
        if first[i] < first[i + 1]:
            facts.append(f'"after":{waited[first[i]:first[i + 1]]}')
        if start_ns[i] / 1e9 != start_s[i] or end_ns[i] / 1e9 != end_s[i]:
            facts.append(f'"at_s":[{start_s[i]!r},{end_s[i]!r}]')
        if i in timeline.args:
            facts.append(_json(timeline.args[i], f"args of span {i}")[1:-1])
        place, ts = places[lane[i]], _micro(start_ns[i])
        yield (f'{{"ph":"X","cat":"span","name":{names[name[i]]},{place},"ts":{ts},'
               f'"dur":{_micro(max(0, end_ns[i] - start_ns[i]))},"args":{{{",".join(facts)}}}}}')
        flow = f'"cat":"after","name":"after",{place},"ts":{ts}'
        for edge in range(first[i], first[i + 1]):
            yield f'{{"ph":"f","bp":"e","id":{edge},{flow}}}'
        for edge in leaving[leaving_from[i]:leaving_from[i + 1]]:
            yield f'{{"ph":"s","id":{edge},{flow}}}'


def _micro(nanoseconds: int) -> str:
    whole, rest = divmod(abs(nanoseconds), 1000)
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{whole}.{rest:03d}" if rest else f"{sign}{whole}"


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise SpecError(f"not JSON: {error}", where=where,
                        allowed=["text, finite numbers, true, false, null, lists and tables of them"]) from None


def read_chrome_trace(path: Path) -> Timeline:
    """Read our own trace exactly, or the spans (X, and B with E) and counters of a foreign one."""
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        data = json.loads(text)
    except FileNotFoundError:
        raise TraceError("no such file", where=str(path)) from None
    except (OSError, EOFError, ValueError) as error:
        raise TraceError(f"not a Chrome trace: {error}", where=str(path)) from None
    events = data.get("traceEvents") if isinstance(data, dict) else data
    if not isinstance(events, list) or not all(isinstance(e, dict) for e in events):
        raise TraceError("no list of trace events", where=str(path), allowed=['{"traceEvents": [...]}', "[...]"])
    ours = isinstance(data, dict) and data.get("otherData", {}).get("format") == FORMAT
    try:
        lanes = _lanes(events)
        levels = _levels(events)
        if not ours:
            return Timeline.from_spans(_foreign_spans(events, lanes), levels=levels)
        spans = sorted(((e["args"]["id"], e) for e in events if e["ph"] == "X"), key=lambda pair: pair[0])
        return _columns([event for _, event in spans], lanes, levels)
    except KeyError as error:
        raise TraceError(f"an event lacks the field {error}", where=str(path)) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise TraceError(f"an event has a field of the wrong kind: {error}", where=str(path)) from None


def _lanes(events: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, Any], Lane]:
    """Lane of each (pid, tid), named by the metadata events where there are any; equal names are told apart by id."""
    process = {e["pid"]: str(e["args"]["name"]) for e in events if e.get("ph") == "M" and e["name"] == "process_name"}
    thread = {(e["pid"], e["tid"]): str(e["args"]["name"]) for e in events
              if e.get("ph") == "M" and e["name"] == "thread_name"}
    used = [(e["pid"], e.get("tid", 0)) for e in events if e.get("ph") in ("X", "B")]
    lanes: dict[tuple[Any, Any], Lane] = {}
    taken: set[Lane] = set()
    for pid, tid in dict.fromkeys([*thread, *used]):
        lane = Lane(process.get(pid, str(pid)), thread.get((pid, tid), str(tid)))
        if lane in taken:
            lane = Lane(lane.device, f"{lane.stream} ({tid})")
        taken.add(lane)
        lanes[pid, tid] = lane
    return lanes


def _levels(events: Sequence[Mapping[str, Any]]) -> list[Level]:
    process = {e["pid"]: str(e["args"]["name"]) for e in events if e.get("ph") == "M" and e["name"] == "process_name"}
    points: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for e in events:
        if e.get("ph") == "C":
            for unit, value in e["args"].items():
                key = (process.get(e["pid"], str(e["pid"])), e["name"], "" if unit == "value" else unit)
                points.setdefault(key, []).append((e.get("at_s", e["ts"] / 1e6), float(value)))
    levels = []
    for (device, name, unit), steps in points.items():
        steps.sort(key=lambda step: step[0])
        levels.append(Level(name=name, unit=unit, device=device, time_s=np.array([t for t, _ in steps]),
                            value=np.array([v for _, v in steps])))
    return levels


def _columns(events: Sequence[Mapping[str, Any]], lanes: Mapping[tuple[Any, Any], Lane],
             levels: Sequence[Level]) -> Timeline:
    """The columns of a trace of ours, whose events come in the order of their ids."""
    position = {key: i for i, key in enumerate(lanes)}
    names: dict[str, int] = {}
    times = [_exact_times(e) for e in events]
    after = [e["args"].get("after", ()) for e in events]
    args = {i: {k: v for k, v in e["args"].items() if k not in RESERVED} for i, e in enumerate(events)}
    return Timeline(
        lanes=tuple(lanes.values()), lane=np.array([position[e["pid"], e["tid"]] for e in events], np.int32),
        name=np.array([names.setdefault(e["name"], len(names)) for e in events], np.int32), names=tuple(names),
        start_s=np.array([t[0] for t in times]), end_s=np.array([t[1] for t in times]),
        bytes=np.array([e["args"].get("bytes", 0) for e in events], np.int64),
        after_from=np.cumsum([0, *(len(a) for a in after)]), after=np.array([j for a in after for j in a], np.int64),
        args={i: a for i, a in args.items() if a}, levels=tuple(levels),
    )


def _exact_times(event: Mapping[str, Any]) -> tuple[float, float]:
    if "at_s" in event["args"]:
        start, end = event["args"]["at_s"]
        return float(start), float(end)
    start_ns = round(event["ts"] * 1000)
    return start_ns / 1e9, (start_ns + round(event["dur"] * 1000)) / 1e9


def _foreign_spans(events: Sequence[Mapping[str, Any]], lanes: Mapping[tuple[Any, Any], Lane]) -> list[Span]:
    spans = []
    open_spans: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for e in events:
        key = (e.get("pid"), e.get("tid", 0))
        if e.get("ph") == "X":
            spans.append(_foreign_span(e, lanes[key], e["ts"] + e.get("dur", 0)))
        elif e.get("ph") == "B":
            open_spans.setdefault(key, []).append(e)
        elif e.get("ph") == "E" and open_spans.get(key):
            spans.append(_foreign_span(open_spans[key].pop(), lanes[key], e["ts"]))
    return sorted(spans, key=lambda span: (span.start_s, span.end_s))


def _foreign_span(event: Mapping[str, Any], lane: Lane, end_us: float) -> Span:
    args = event.get("args") or {}
    moved = args.get("bytes", 0)
    kept = {f"{key}_" if key in RESERVED else key: value for key, value in args.items()}
    return Span(device=lane.device, stream=lane.stream, name=str(event["name"]), start_s=event["ts"] / 1e6,
                end_s=end_us / 1e6, bytes=moved if isinstance(moved, int) else 0, args=kept)


def write_parquet(timeline: Timeline, path: Path) -> Path:
    """Write one row a span; lanes and levels go into the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def texts(table: Sequence[str], ids: np.ndarray) -> pa.Array:
        position = {text: i for i, text in enumerate(dict.fromkeys(table))}
        codes = np.array([position[text] for text in table], np.int32)[ids]
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([*position], pa.string()))

    args = [_json(timeline.args[i], f"args of span {i}") if i in timeline.args else None for i in range(len(timeline))]
    columns = {
        "device": texts([lane.device for lane in timeline.lanes], timeline.lane),
        "stream": texts([lane.stream for lane in timeline.lanes], timeline.lane),
        "name": texts(timeline.names, timeline.name),
        "start_s": pa.array(timeline.start_s), "end_s": pa.array(timeline.end_s), "bytes": pa.array(timeline.bytes),
        "after": pa.LargeListArray.from_arrays(pa.array(timeline.after_from), pa.array(timeline.after)),
        "args": pa.array(args, pa.string()),
    }
    levels = [{"name": v.name, "unit": v.unit, "device": v.device, "time_s": v.time_s.tolist(),
               "value": v.value.tolist()} for v in timeline.levels]
    head = {"format": FORMAT, "version": VERSION, "lanes": timeline.lanes, "levels": levels}
    table = pa.table(columns).replace_schema_metadata({FORMAT: json.dumps(head)})
    with atomic_path(path) as part:
        pq.write_table(table, part, compression="zstd")
    return path


def read_parquet(path: Path) -> Timeline:
    """Read what ``write_parquet`` wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise TraceError("no such file", where=str(path)) from None
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"not a Parquet file: {error}", where=str(path)) from None
    head = json.loads((table.schema.metadata or {}).get(FORMAT.encode(), b"{}"))
    if head.get("version") != VERSION:
        raise TraceError(f"no timeline of version {VERSION} in this Parquet file", where=str(path))
    table = table.unify_dictionaries().combine_chunks()
    column = {name: pa.concat_arrays(table[name].chunks) if table[name].num_chunks else pa.array([], table[name].type)
              for name in table.column_names}
    lanes = tuple(Lane(*lane) for lane in head["lanes"])
    devices, streams, names = (column[name].dictionary.to_pylist() for name in ("device", "stream", "name"))
    lane_of = np.zeros((max(1, len(devices)), max(1, len(streams))), np.int32)
    for i, (device, stream) in enumerate(lanes):
        if device in devices and stream in streams:
            lane_of[devices.index(device), streams.index(stream)] = i
    with_args = np.flatnonzero(column["args"].is_valid().to_numpy(zero_copy_only=False)).tolist()
    return Timeline(
        lanes=lanes, lane=lane_of[_codes(column["device"]), _codes(column["stream"])],
        names=tuple(names), name=_codes(column["name"]), start_s=column["start_s"].to_numpy(),
        end_s=column["end_s"].to_numpy(), bytes=column["bytes"].to_numpy(),
        after_from=column["after"].offsets.to_numpy() if len(table) else np.zeros(1),
        after=column["after"].values.to_numpy() if len(table) else np.zeros(0),
        args={i: json.loads(column["args"][i].as_py()) for i in with_args},
        levels=tuple(Level(**{**v, "time_s": np.array(v["time_s"]), "value": np.array(v["value"])})
                     for v in head["levels"]),
    )


def _codes(column: pa.DictionaryArray) -> np.ndarray:
    codes: np.ndarray = column.indices.to_numpy(zero_copy_only=False)
    return codes

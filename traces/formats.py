"""Readers and writers of request tables: public trace formats in, our own CSV and Parquet in and out.

A format is a row in ``FORMATS``: which columns it must have, what they are called here and how its clock counts.
``read`` tells the formats apart by their columns (or JSON keys), never by the file's name; gzip is seen by its magic.

Schemas: Azure LLM inference traces 2023 and 2024 (TIMESTAMP without and with time zone); Mooncake FAST'25 (JSON lines,
ms, ids of 512-token blocks); BurstGPT v1 and v2; ``vllm bench serve --save-result --save-detailed``; vidur processed
traces; splitwise-sim traces; AdaServe and LLMServingSim tables as derived in the registry.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from traces.requests import (
    OPTIONAL_COLUMNS,
    Arrivals,
    Lengths,
    PrefixBlocks,
    RequestTable,
    RowNames,
    Unsorted,
    make_table,
)
from workbench.errors import TraceError, WorkbenchError, nearest
from workbench.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "Format", "detect", "read", "write"]

_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_METADATA_KEY = b"request_table"
_BLOCKS_COLUMN = re.compile(r"prefix_blocks_(\d+)")
_MOONCAKE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One trace format: the source's name of each of our columns, and how its clock counts.

    ``clock`` is "iso" for date and time text, "s" or "ms" for numbers, absent when the format has no arrival times.
    """

    name: str
    about: str
    input_tokens: str
    output_tokens: str
    arrival_s: str | None = None
    clock: Literal["iso", "s", "ms"] | None = None
    optional: Mapping[str, str] = field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """Columns (or keys) a file of this format must have."""
        return tuple(c for c in (self.arrival_s, self.input_tokens, self.output_tokens) if c is not None)


# Most specific first: the first format whose required columns are all there is taken.
_COLUMN_FORMATS = (
    Format(name="azure", about="Azure LLM inference trace, 2023 and 2024", arrival_s="TIMESTAMP", clock="iso",
           input_tokens="ContextTokens", output_tokens="GeneratedTokens"),
    Format(name="burstgpt", about="BurstGPT v1 and v2 (failed requests have 0 response tokens)",
           arrival_s="Timestamp", clock="s", input_tokens="Request tokens", output_tokens="Response tokens",
           optional={"model": "Model", "session": "Session ID", "category": "Log Type", "latency_s": "Elapsed time"}),
    Format(name="vidur", about="vidur processed trace", arrival_s="arrived_at", clock="s",
           input_tokens="num_prefill_tokens", output_tokens="num_decode_tokens"),
    Format(name="splitwise-sim", about="splitwise-sim trace", arrival_s="arrival_timestamp", clock="s",
           input_tokens="prompt_size", output_tokens="token_size"),
    Format(name="adaserve", about="AdaServe emission table (output lengths are caps)", arrival_s="arrival_s", clock="s",
           input_tokens="input_tokens", output_tokens="output_cap_tokens",
           optional={"category": "category", "slo_ratio": "slo_ratio", "slo_ms": "slo_ms"}),
    Format(name="llmservingsim", about="LLMServingSim workload table", arrival_s="planned_arrival_s", clock="s",
           input_tokens="input_tokens", output_tokens="output_tokens"),
    Format(name="canonical", about="this project's own table", arrival_s="arrival_s", clock="s",
           input_tokens="input_tokens", output_tokens="output_tokens", optional={k: k for k in OPTIONAL_COLUMNS}),
    Format(name="lengths", about="lengths without arrival times", input_tokens="input_tokens",
           output_tokens="output_tokens", optional={k: k for k in OPTIONAL_COLUMNS}),
)
_MOONCAKE = Format(name="mooncake", about="Mooncake FAST'25 trace, JSON lines", arrival_s="timestamp", clock="ms",
                   input_tokens="input_length", output_tokens="output_length")
_VLLM_BENCH = Format(name="vllm-bench", about="result file of vllm bench serve --save-result --save-detailed",
                     input_tokens="input_lens", output_tokens="output_lens")
FORMATS: Mapping[str, Format] = {f.name: f for f in (*_COLUMN_FORMATS, _MOONCAKE, _VLLM_BENCH)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """What a reader needs to know besides the file's content."""

    where: str
    name: str
    source: str
    licence: str
    unsorted: Unsorted
    lengths: Lengths


def read(path: Path | str, *, format: str | None = None, name: str | None = None, source: str | None = None,
         licence: str | None = None, unsorted: Unsorted = "error", lengths: Lengths = "error") -> RequestTable:
    """Read a request trace; plain or gzip.

    Args:
        path: the file.
        format: a name in ``FORMATS``; absent: told from the columns.
        name, source, licence: labels of the table; by default the file's name and "not stated".
        unsorted: refuse times that run backwards, or sort by time.
        lengths: refuse lengths of zero or less, or drop those rows.

    Raises:
        TraceError: the file is missing, empty, damaged, of no known format, or has impossible rows (all kinds of
            fault are listed, each with its first line numbers, 1-based, and their count).
    """
    path = Path(path)
    wanted = _format(format) if format is not None else None
    stem = path.name.split(".")[0] or path.name
    labels = _Labels(where=str(path), name=name or stem, source=source or path.name,
                     licence=licence or "not stated", unsorted=unsorted, lengths=lengths)
    try:
        container, head = _sniff(path)
        if container == "parquet":
            return _read_parquet(path, wanted, labels)
        if container == "csv":
            return _read_csv(path, head, wanted, labels)
        if (wanted or (_MOONCAKE if container == "jsonl" else _VLLM_BENCH)) is _MOONCAKE:
            return _read_mooncake(_text(path), labels)
        if wanted not in (None, _VLLM_BENCH):
            raise TraceError(f"this is JSON, which the {wanted.name} format is not", where=str(path),
                             allowed=[_MOONCAKE.name, _VLLM_BENCH.name])
        return _read_vllm_bench(_text(path), labels)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"damaged gzip file: {error}", where=str(path), hint="fetch or copy it again") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"not UTF-8 text: {error}", where=str(path)) from None


def detect(path: Path | str) -> str:
    """Name of the format ``read`` would take.

    Raises:
        TraceError: as for ``read``, but the rows are not looked at.
    """
    path = Path(path)
    container, head = _sniff(path)
    if container == "parquet":
        return _match(_parquet(path).column_names, None, str(path)).name
    if container == "csv":
        return _match(_header(head, str(path)), None, str(path)).name
    return (_MOONCAKE if container == "jsonl" else _VLLM_BENCH).name


def write(table: RequestTable, path: Path | str) -> Path:
    """Write ``table`` as our own CSV (``.csv``, ``.csv.gz``) or Parquet (``.parquet``); ``read`` gives it back.

    Parquet also keeps name, source, licence and history. Tables without arrival times are written without the column.

    Raises:
        TraceError: the ending is none of these.
    """
    path = Path(path)
    frame = table.frame if table.arrivals != "absent" else table.frame.drop(columns="arrival_s")
    if table.blocks is not None:
        lists = [blocks.tolist() for blocks in table.blocks]
        column = f"prefix_blocks_{table.blocks.block_tokens}"
        frame = frame.assign(**{column: lists if path.suffix == ".parquet" else [" ".join(map(str, b)) for b in lists]})
    with atomic_path(path) as part:
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            labels = {"name": table.name, "source": table.source, "licence": table.licence,
                      "arrivals": table.arrivals, "history": list(table.history)}
            schema = pa.Table.from_pandas(frame, preserve_index=False)
            pq.write_table(schema.replace_schema_metadata({_METADATA_KEY: json.dumps(labels)}), part)
        elif path.name.endswith(".csv"):
            frame.to_csv(part, index=False)
        elif path.name.endswith(".csv.gz"):
            # no name and time stamp 0 in the gzip header: the same table gives the same bytes
            with part.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as stream:
                frame.to_csv(stream, index=False)
        else:
            raise TraceError(f"cannot tell the format from the name {path.name!r}",
                             allowed=[".csv", ".csv.gz", ".parquet"])
    return path


def _format(name: str) -> Format:
    if name in FORMATS:
        return FORMATS[name]
    close = nearest(name, FORMATS)
    raise TraceError(f"no trace format is called {name!r}", allowed=FORMATS,
                     hint=f"did you mean {close!r}?" if close else None)


def _stream(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _text(path: Path) -> str:
    with _stream(path) as stream:
        return stream.read().decode("utf-8-sig")


def _sniff(path: Path) -> tuple[Literal["parquet", "csv", "jsonl", "json"], str]:
    """What kind of file this is, and its first line."""
    try:
        with _stream(path) as stream:
            magic = stream.read(4)
            if magic == _PARQUET_MAGIC:
                return "parquet", ""
            head = (magic + stream.readline()).decode("utf-8-sig")
            if "\n" in head[:-1]:  # a first line shorter than the magic
                head = head.split("\n", 1)[0]
    except FileNotFoundError:
        close = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise TraceError(f"no such file: {path}", hint=f"did you mean {close!r}?" if close else None,
                         next_command="wb traces list") from None
    except IsADirectoryError:
        raise TraceError(f"{path} is a folder, not a trace", next_command="wb traces list") from None
    if not magic:
        raise TraceError("the file is empty", where=str(path), allowed=["a trace with at least one request"],
                         next_command="wb traces list")
    if not head.lstrip().startswith(("{", "[")):
        return "csv", head
    return ("jsonl" if f'"{_MOONCAKE.input_tokens}"' in head else "json"), head


def _header(line: str, where: str) -> list[str]:
    """Column names of a CSV file, blanks around them stripped."""
    names = [name.strip() for name in next(csv.reader([line.rstrip("\r\n")]), [])]
    if not any(names):
        raise TraceError("the first line is blank; it must hold the column names", where=where)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TraceError(f"column names occur twice: {', '.join(twice)}", where=where)
    return names


def _match(found: Sequence[str], wanted: Format | None, where: str) -> Format:
    """The format these columns fit, or an error that names what is missing."""
    candidates = (wanted,) if wanted is not None else _COLUMN_FORMATS
    for candidate in candidates:
        if all(column in found for column in candidate.required):
            return candidate

    def likeness(f: Format) -> float:
        return sum(1.0 if c in found else 0.5 if nearest(c, found) else 0.0 for c in f.required) / len(f.required)

    best = max(candidates, key=likeness)
    missing = [c for c in best.required if c not in found]
    close = {c: nearest(c, found) for c in missing}
    hints = [f"{there!r} is near {c!r}" for c, there in close.items() if there]
    if len(found) == 1 and any(mark in found[0] for mark in ";\t|"):
        hints.append("columns must be separated by commas")
    raise TraceError(
        f"missing for the {best.name} format: {', '.join(missing)}; found: {', '.join(found)}", where=where,
        allowed=[f"{f.name} ({', '.join(f.required)})" for f in candidates],
        hint="; ".join(hints) or None)


def _read_csv(path: Path, head: str, wanted: Format | None, labels: _Labels) -> RequestTable:
    import pandas as pd

    columns = _header(head, labels.where)
    chosen = _match(columns, wanted, labels.where)
    texts = {c: "str" for c in columns if _BLOCKS_COLUMN.fullmatch(c)}
    try:
        with _stream(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Blank lines are kept while reading so that line numbers stay right; no usecols, because with it the
            # parser lets rows with too many fields pass.
            frame = pd.read_csv(stream, header=0, names=columns, dtype=texts, index_col=False, skip_blank_lines=False,
                                encoding="utf-8-sig", low_memory=False)
    except pd.errors.ParserWarning:
        raise TraceError(f"rows have more fields than the {len(columns)} column names", where=labels.where) from None
    except pd.errors.ParserError as error:
        raise TraceError(f"broken table: {str(error).strip().removeprefix('Error tokenizing data. C error: ')}",
                         where=labels.where) from None
    except pd.errors.EmptyDataError:
        raise TraceError("there are no requests in it", where=labels.where) from None
    frame = frame.dropna(how="all")
    return _from_frame(frame, chosen, RowNames("line", frame.index.to_numpy() + 2), labels)


def _read_parquet(path: Path, wanted: Format | None, labels: _Labels) -> RequestTable:
    stored = _parquet(path)
    chosen = _match(stored.column_names, wanted, labels.where)
    frame = stored.to_pandas()
    kept = json.loads((stored.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    if kept:
        labels = replace(labels, name=kept["name"], source=kept["source"], licence=kept["licence"])
    return _from_frame(frame, chosen, RowNames("row", np.arange(1, len(frame) + 1)), labels,
                       arrivals=kept.get("arrivals", "recorded"), history=kept.get("history", ()))


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _stream(path) as stream:
            return pq.read_table(pa.BufferReader(stream.read()))
    except (pa.ArrowInvalid, OSError) as error:
        raise TraceError(f"damaged Parquet file: {error}", where=str(path)) from None


def _from_frame(frame: pd.DataFrame, chosen: Format, rows: RowNames, labels: _Labels, *,
                arrivals: Arrivals = "recorded", history: Sequence[str] = ()) -> RequestTable:
    faults: list[WorkbenchError] = []
    times = None
    if chosen.arrival_s is not None:
        times = _seconds(frame[chosen.arrival_s], chosen, rows, faults)
    return make_table(
        arrival_s=times, input_tokens=frame[chosen.input_tokens], output_tokens=frame[chosen.output_tokens],
        optional={ours: frame[theirs].to_numpy() for ours, theirs in chosen.optional.items() if theirs in frame},
        blocks=_blocks(frame, rows, faults), arrivals=arrivals, history=history, rows=rows, faults=faults,
        where=labels.where, name=labels.name, source=labels.source, licence=labels.licence,
        unsorted=labels.unsorted, lengths=labels.lengths)


def _seconds(column: pd.Series, chosen: Format, rows: RowNames, faults: list[WorkbenchError]) -> Any:
    """Arrival times in seconds; date texts count from the earliest of them."""
    import pandas as pd

    if chosen.clock != "iso":
        return column if chosen.clock == "s" else pd.to_numeric(column, errors="coerce") / 1e3
    text = column.astype("string")
    stamps = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    strange = (stamps.isna() & column.notna()).to_numpy()
    if strange.any():
        faults.append(rows.fault(f"{chosen.arrival_s} is not a date and time", strange, text.to_numpy()))
    # whole nanoseconds until the subtraction: a float holds no date to better than 0.2 us
    seconds = (stamps - stamps.min()).dt.as_unit("ns").to_numpy().astype(np.int64) / 1e9
    return np.where(strange, 0.0, np.where(stamps.isna(), np.nan, seconds))


def _blocks(frame: pd.DataFrame, rows: RowNames, faults: list[WorkbenchError]) -> PrefixBlocks | None:
    """The prompt blocks of our own formats: lists in Parquet, blank-separated ids in CSV."""
    for column in frame.columns:
        found = _BLOCKS_COLUMN.fullmatch(column)
        if found:
            return _pack([_cell(c) for c in frame[column]], int(found[1]), column, rows, faults)
    return None


def _cell(cell: Any) -> Any:
    if isinstance(cell, str | int):
        return str(cell).split()
    return [] if np.ndim(cell) == 0 else cell


def _pack(cells: Sequence[Any], block_tokens: int, column: str, rows: RowNames,
          faults: list[WorkbenchError]) -> PrefixBlocks | None:
    try:
        flat = np.array(list(itertools.chain.from_iterable(cells)))
        if flat.dtype.kind in "iu":
            offsets = np.cumsum([0, *map(len, cells)], dtype=np.int64)
            return PrefixBlocks(flat.astype(np.int64), offsets, block_tokens)
    except (TypeError, ValueError):
        pass  # some cell is no list of ids: the slow way below finds which
    lists = [_ids(cell) for cell in cells]
    broken = np.fromiter((x is None for x in lists), dtype=bool, count=len(lists))
    if broken.any():
        faults.append(rows.fault(f"{column} is not a list of block ids", broken))
        return None
    return PrefixBlocks.from_lists([x for x in lists if x is not None], block_tokens)


def _ids(cell: Any) -> list[int] | None:
    """``cell`` as whole numbers, or ``None`` when it is not a list of them."""
    try:
        ids = [int(block) for block in cell]
    except (TypeError, ValueError):
        return None
    return ids if all(isinstance(block, str) or block == own for block, own in zip(cell, ids, strict=True)) else None


def _read_mooncake(text: str, labels: _Labels) -> RequestTable:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = RowNames("line", np.array([number for number, _ in lines], dtype=np.int64))
    parsed = [_record(line) for _, line in lines]
    broken = np.fromiter((record is None for record in parsed), dtype=bool, count=len(parsed))
    faults = [rows.fault("not a JSON object", broken)] if broken.any() else []
    records, rows = [record for record in parsed if record is not None], rows.take(~broken)
    columns = {key: [r.get(key) for r in records] for key in _MOONCAKE.required}
    blocks = None
    if any("hash_ids" in r for r in records):
        blocks = _pack([r.get("hash_ids") for r in records], _MOONCAKE_BLOCK_TOKENS, "hash_ids", rows, faults)
    import pandas as pd

    times = pd.Series(columns["timestamp"])
    return make_table(
        arrival_s=times / 1e3 if pd.api.types.is_numeric_dtype(times.dtype) else times,
        input_tokens=columns["input_length"], output_tokens=columns["output_length"], blocks=blocks,
        rows=rows, faults=faults, where=labels.where, name=labels.name, source=labels.source, licence=labels.licence,
        unsorted=labels.unsorted, lengths=labels.lengths)


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _read_vllm_bench(text: str, labels: _Labels) -> RequestTable:
    try:
        result = json.loads(text)
    except ValueError as error:
        several = "Extra data" in str(error)
        raise TraceError("several results in one file (written with --append-result)" if several
                         else f"not valid JSON: {error}", where=labels.where,
                         hint="keep one result a file" if several else None) from None
    if not isinstance(result, dict):
        raise TraceError("not a JSON object", where=labels.where, allowed=["a result of vllm bench serve"])
    missing = [key for key in _VLLM_BENCH.required if not isinstance(result.get(key), list)]
    if missing:
        raise TraceError(
            f"missing for the {_VLLM_BENCH.name} format: {', '.join(missing)}; found: {', '.join(list(result)[:12])}",
            where=labels.where, hint="per-request lists are only saved with --save-detailed",
            next_command="vllm bench serve … --save-result --save-detailed")
    optional: dict[str, Any] = {}
    count = len(result["input_lens"])
    if result.get("model_id") is not None:
        optional["model"] = [str(result["model_id"])] * count
    if isinstance(result.get("ttfts"), list):
        optional["ttft_s"] = result["ttfts"]
        if isinstance(result.get("itls"), list) and len(result["itls"]) == len(result["ttfts"]):
            optional["latency_s"] = [t + sum(gaps) for t, gaps in zip(result["ttfts"], result["itls"], strict=True)]
    return make_table(
        arrival_s=_vllm_arrivals(result), input_tokens=result["input_lens"], output_tokens=result["output_lens"],
        optional=optional, rows=RowNames("request", np.arange(1, count + 1)), where=labels.where, name=labels.name,
        source=labels.source, licence=labels.licence, unsorted=labels.unsorted, lengths=labels.lengths)


def _vllm_arrivals(result: Mapping[str, Any]) -> Any:
    """When requests arrived: when they were sent, less their wait in the client's own queue where that was kept.

    Older vLLM versions keep no start times: the arrivals are then absent.
    """
    sent = result.get("start_times")
    if not isinstance(sent, list):
        return None
    waits = result.get("queue_times")
    if isinstance(waits, list) and len(waits) == len(sent):
        return [s - w for s, w in zip(sent, waits, strict=True)]
    return sent

"""Request tables: who asked when, how many tokens came in and went out, and which prompt blocks are shared.

``RequestTable`` is the one form in which every planner and simulator sees a workload, whether it was read from a file
(``traces.formats``), fetched (``traces.registry``) or drawn from a seed (``traces.synthetic``).

Columns: ``arrival_s`` float64, seconds from the first request, never decreasing; ``input_tokens`` and
``output_tokens`` int64, at least 1; optional ones are listed in ``OPTIONAL_COLUMNS``.
Shared prompt prefixes are block ids (equal ids mean equal blocks *and* equal everything before them), kept as one flat
array with offsets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.errors import TraceError, WorkbenchError
from workbench.spec import about, spec

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OPTIONAL_COLUMNS", "PLACEMENT_INPUT_TOKENS", "PLACEMENT_OUTPUT_TOKENS", "Arrivals", "Lengths",
           "PrefixBlocks", "RequestTable", "RowNames", "TraceStatistics", "TypeBins", "Unsorted", "make_table"]

Arrivals = Literal["recorded", "generated", "absent"]
Unsorted = Literal["error", "sort"]
Lengths = Literal["error", "drop"]

OPTIONAL_COLUMNS: Mapping[str, str] = {
    "model": "model asked for",
    "session": "conversation the request belongs to",
    "category": "class of the request (coding, chat, …)",
    "slo_ratio": "limit on time per output token, as a multiple of the unloaded one",
    "slo_ms": "limit on time per output token, ms",
    "ttft_s": "measured time to first token, s",
    "latency_s": "measured time to last token, s",
}
_NUMERIC_OPTIONAL = ("slo_ratio", "slo_ms", "ttft_s", "latency_s")

PLACEMENT_INPUT_TOKENS = (2455, 824, 496)
PLACEMENT_OUTPUT_TOKENS = (510, 253, 18)

_SHOWN_ROWS = 5
_LARGEST_LENGTH = 2**53


@dataclass(frozen=True, slots=True, eq=False)
class PrefixBlocks:
    """Ids of the ``block_tokens``-token blocks of each prompt; the last block of a prompt may be part-filled.

    ``ids`` int64 [sum of blocks]; ``offsets`` int64 [requests + 1]; request ``i`` owns
    ``ids[offsets[i]:offsets[i + 1]]``.
    """

    ids: np.ndarray
    offsets: np.ndarray
    block_tokens: int = 512

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]], block_tokens: int = 512) -> PrefixBlocks:
        """Pack one list of block ids a request."""
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, lists), dtype=np.int64, count=len(lists)), out=offsets[1:])
        flat = (block for blocks in lists for block in blocks)
        return cls(np.fromiter(flat, dtype=np.int64, count=int(offsets[-1])), offsets, block_tokens)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, request: int) -> np.ndarray:
        if not -len(self) <= request < len(self):
            raise IndexError(f"request {request} of {len(self)}")
        request %= len(self)
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def take(self, requests: np.ndarray) -> PrefixBlocks:
        """The blocks of the requests at these positions, in this order."""
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[requests])])
        ids = np.concatenate([np.empty(0, dtype=np.int64), *(self[int(i)] for i in requests)])
        return PrefixBlocks(ids, offsets, self.block_tokens)

    def reuse_share(self) -> float:
        """Share of all blocks that lie in the longest already-seen prefix of their prompt (cache without limit)."""
        seen: set[int] = set()
        reused = 0
        for blocks in self:
            listed = blocks.tolist()
            reused += next((k for k, block in enumerate(listed) if block not in seen), len(listed))
            seen.update(listed)
        return reused / max(len(self.ids), 1)


@spec
class TraceStatistics:
    """What a workload looks like in numbers; the arrival figures are absent when arrivals are."""

    requests: int = about("Number of requests.")
    span_s: float | None = about("Seconds from the first to the last request.")
    rate_per_s: float | None = about("Requests per second: (requests - 1) / span.")
    arrival_cv: float | None = about("Coefficient of variation of the times between requests; 1 for Poisson.")
    burstiness: float | None = about("(cv - 1) / (cv + 1): -1 regular, 0 Poisson, towards 1 bursty.")
    dispersion_60s: float | None = about("Variance over mean of the requests per minute; 1 for Poisson.")
    input_mean_tokens: float = about("Mean prompt length.")
    input_median_tokens: float = about("Median prompt length.")
    input_p90_tokens: float = about("90th percentile of the prompt length.")
    input_p99_tokens: float = about("99th percentile of the prompt length.")
    input_max_tokens: int = about("Longest prompt.")
    output_mean_tokens: float = about("Mean output length.")
    output_median_tokens: float = about("Median output length.")
    output_p90_tokens: float = about("90th percentile of the output length.")
    output_p99_tokens: float = about("99th percentile of the output length.")
    output_max_tokens: int = about("Longest output.")
    length_rank_correlation: float | None = about("Spearman correlation of prompt and output length.")
    prefix_reuse_share: float | None = about("Share of prompt blocks an unlimited prefix cache would hold already.")

    def rows(self) -> list[dict[str, Any]]:
        """One row ``{metric, value, unit, about}`` a statistic that is present."""
        units = {"tokens": "tokens", "per_s": "1/s", "span_s": "s"}
        return [{"metric": f.name, "value": value,
                 "unit": next((unit for ending, unit in units.items() if f.name.endswith(ending)), ""),
                 "about": f.metadata["about"]}
                for f in dataclasses.fields(self) if (value := getattr(self, f.name)) is not None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TypeBins:
    """Requests sorted into input x output length types (type ``i * len(output_centres) + j``).

    ``index`` int64 [requests] is each request's type, 0-based.
    """

    input_centres: tuple[int, ...]
    output_centres: tuple[int, ...]
    index: np.ndarray

    @property
    def types(self) -> tuple[tuple[int, int], ...]:
        """``(input_tokens, output_tokens)`` of each type."""
        return tuple((i, o) for i in self.input_centres for o in self.output_centres)

    @property
    def counts(self) -> np.ndarray:
        """Requests of each type, int64 [types]."""
        return np.bincount(self.index, minlength=len(self.types))

    @property
    def shares(self) -> np.ndarray:
        """Share of each type, float64 [types], adding up to 1."""
        return self.counts / len(self.index)

    def rows(self) -> list[dict[str, Any]]:
        """One row ``{order, input_tokens, output_tokens, requests, share}`` a type; ``order`` counts from 1."""
        return [{"order": k + 1, "input_tokens": i, "output_tokens": o, "requests": int(count), "share": float(share)}
                for k, ((i, o), count, share) in enumerate(zip(self.types, self.counts, self.shares, strict=True))]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestTable:
    """A workload. Build one with ``make_table`` (checked) or load one; every operation returns a new table.

    ``arrivals`` says whether the arrival times were recorded, generated, or are absent (all requests at time 0, as in
    an offline batch). ``history`` lists what was done to the table since it was read or drawn.
    """

    frame: pd.DataFrame
    name: str
    source: str
    licence: str
    arrivals: Arrivals = "recorded"
    blocks: PrefixBlocks | None = None
    history: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def arrival_s(self) -> np.ndarray:
        """Arrival times, float64 [requests], s from the first request."""
        return self.frame["arrival_s"].to_numpy()

    @property
    def input_tokens(self) -> np.ndarray:
        """Prompt lengths, int64 [requests]."""
        return self.frame["input_tokens"].to_numpy()

    @property
    def output_tokens(self) -> np.ndarray:
        """Output lengths, int64 [requests]."""
        return self.frame["output_tokens"].to_numpy()

    @property
    def span_s(self) -> float:
        """Seconds from the first to the last request."""
        return float(self.arrival_s[-1])

    def content_id(self) -> str:
        """12 hexadecimal digits that change when any arrival, length or block changes."""
        digest = hashlib.sha256()
        for values in (self.arrival_s, self.input_tokens, self.output_tokens):
            digest.update(np.ascontiguousarray(values).tobytes())
        if self.blocks is not None:
            digest.update(self.blocks.ids.tobytes() + self.blocks.offsets.tobytes())
        return digest.hexdigest()[:12]

    def scale_rate(self, factor: float) -> RequestTable:
        """The same requests arriving ``factor`` times as fast.

        Raises:
            TraceError: ``factor`` is not a positive number, or the trace has no arrival times.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise TraceError(f"a rate factor must be a positive number, not {factor!r}", where=self.name)
        self._need_arrivals("scale the rate")
        return self._with(f"rate x {factor:g}", arrival_s=self.arrival_s / factor)

    def at_rate(self, rate_per_s: float) -> RequestTable:
        """The same requests with the mean rate ``rate_per_s`` (shape of the arrivals kept)."""
        self._need_arrivals("scale the rate")
        if len(self) < 2 or self.span_s == 0:
            raise TraceError("a rate needs requests at two different times", where=self.name)
        return self.scale_rate(rate_per_s * self.span_s / (len(self) - 1))

    def window(self, start_s: float, end_s: float) -> RequestTable:
        """The requests with ``start_s <= arrival_s < end_s``; times count from the first of them.

        Raises:
            TraceError: no request lies in the window.
        """
        self._need_arrivals("cut a window")
        first, last = np.searchsorted(self.arrival_s, [start_s, end_s])
        if last <= first:
            raise TraceError(f"no request arrives in [{start_s:g}, {end_s:g}) s", where=self.name,
                             allowed=[f"a window inside [0, {self.span_s:g}] s"])
        return self._with(f"window [{start_s:g}, {end_s:g}) s", rows=np.arange(first, last))

    def first(self, requests: int) -> RequestTable:
        """The first ``requests`` requests."""
        self._need_count(requests)
        return self._with(f"first {requests}", rows=np.arange(requests))

    def sample(self, requests: int, rng: np.random.Generator) -> RequestTable:
        """``requests`` requests drawn without replacement, in order of arrival (the rate falls with the share kept)."""
        self._need_count(requests)
        return self._with(f"sample of {requests}", rows=np.sort(rng.choice(len(self), requests, replace=False)))

    def with_arrivals(self, arrival_s: np.ndarray, note: str) -> RequestTable:
        """The same requests at other times (never decreasing, one a request), marked as generated."""
        times = np.asarray(arrival_s, dtype=np.float64)
        if times.shape != (len(self),) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise TraceError(f"{len(self)} finite, never decreasing arrival times are needed", where=self.name)
        return dataclasses.replace(self._with(note, arrival_s=times), arrivals="generated")

    def bin_types(self, input_centres: Sequence[int] = PLACEMENT_INPUT_TOKENS,
                  output_centres: Sequence[int] = PLACEMENT_OUTPUT_TOKENS) -> TypeBins:
        """Sort every request into the input x output type whose lengths are nearest on a log scale.

        A request exactly between two centres goes to the shorter one.

        Raises:
            TraceError: a list of centres is empty, has duplicates or non-positive values.
        """
        position = [_nearest_log(values, tuple(centres), self.name) for values, centres in
                    ((self.input_tokens, input_centres), (self.output_tokens, output_centres))]
        return TypeBins(input_centres=tuple(input_centres), output_centres=tuple(output_centres),
                        index=position[0] * len(output_centres) + position[1])

    def statistics(self) -> TraceStatistics:
        """Counts, rate, burstiness and length percentiles."""
        timed = self.arrivals != "absent" and len(self) > 2 and self.span_s > 0
        gaps = np.diff(self.arrival_s)
        cv = float(gaps.std() / gaps.mean()) if timed else None
        i, o = self.input_tokens, self.output_tokens
        return TraceStatistics(
            requests=len(self), span_s=self.span_s if timed else None,
            rate_per_s=(len(self) - 1) / self.span_s if timed else None,
            arrival_cv=cv, burstiness=None if cv is None else (cv - 1) / (cv + 1),
            dispersion_60s=dispersion(self.arrival_s, window_s=60.0) if timed else None,
            input_mean_tokens=float(i.mean()), input_median_tokens=float(np.median(i)),
            input_p90_tokens=float(np.percentile(i, 90)), input_p99_tokens=float(np.percentile(i, 99)),
            input_max_tokens=int(i.max()),
            output_mean_tokens=float(o.mean()), output_median_tokens=float(np.median(o)),
            output_p90_tokens=float(np.percentile(o, 90)), output_p99_tokens=float(np.percentile(o, 99)),
            output_max_tokens=int(o.max()),
            length_rank_correlation=rank_correlation(i, o),
            prefix_reuse_share=None if self.blocks is None else self.blocks.reuse_share())

    def equals(self, other: RequestTable) -> bool:
        """Whether both hold the same requests: every column and every block (names and history aside)."""
        if not self.frame.equals(other.frame) or (self.blocks is None) != (other.blocks is None):
            return False
        if self.blocks is None or other.blocks is None:
            return True
        return (self.blocks.block_tokens == other.blocks.block_tokens
                and np.array_equal(self.blocks.ids, other.blocks.ids)
                and np.array_equal(self.blocks.offsets, other.blocks.offsets))

    def _with(self, note: str, *, rows: np.ndarray | None = None, arrival_s: np.ndarray | None = None) -> RequestTable:
        frame, blocks = self.frame, self.blocks
        if rows is not None:
            frame = frame.iloc[rows].reset_index(drop=True)
            blocks = blocks.take(rows) if blocks is not None else None
        times = frame["arrival_s"].to_numpy() if arrival_s is None else arrival_s
        frame = frame.assign(arrival_s=times - times[0])
        return dataclasses.replace(self, frame=frame, blocks=blocks, history=(*self.history, note))

    def _need_arrivals(self, what: str) -> None:
        if self.arrivals == "absent":
            raise TraceError(f"cannot {what}: this trace has lengths but no arrival times", where=self.name,
                             hint="give it arrivals first: load it with rate_per_s, or RequestTable.with_arrivals")

    def _need_count(self, requests: int) -> None:
        if not 1 <= requests <= len(self):
            raise TraceError(f"cannot take {requests} requests", where=self.name, allowed=[f"1 to {len(self)}"])


def dispersion(arrival_s: np.ndarray, *, window_s: float) -> float | None:
    """Variance over mean of the requests per whole window; ``None`` with fewer than five whole windows."""
    windows = int(arrival_s[-1] // window_s)
    if windows < 5:
        return None
    counts = np.bincount((arrival_s // window_s).astype(np.int64), minlength=windows)[:windows]
    return float(counts.var() / counts.mean())


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman correlation (ties share their mean rank); ``None`` when either side is constant."""
    import pandas as pd

    ranks = [pd.Series(x).rank().to_numpy() for x in (a, b)]
    if any(r.std() == 0 for r in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _nearest_log(values: np.ndarray, centres: tuple[int, ...], name: str) -> np.ndarray:
    if not centres or len(set(centres)) != len(centres) or min(centres) <= 0:
        raise TraceError(f"type centres must be different positive lengths, not {centres}", where=name)
    ascending = np.argsort(centres)
    c = np.asarray(centres, dtype=np.float64)[ascending]
    # x is nearer to the upper of two neighbours on a log scale when x * x > lower * upper
    squares = c[:-1] * c[1:]
    return ascending[np.searchsorted(squares, values.astype(np.float64) ** 2, side="left")]


@dataclass(frozen=True, slots=True)
class RowNames:
    """How to name row ``k`` in messages: the word and the numbers as a reader of the file counts them."""

    unit: str
    numbers: np.ndarray

    def take(self, keep: np.ndarray) -> RowNames:
        """The names of the kept rows."""
        return RowNames(self.unit, self.numbers[keep])

    def fault(self, what: str, bad: np.ndarray, values: np.ndarray | None = None,
              hint: str | None = None) -> WorkbenchError:
        """A fault that lists the first rows where ``bad`` holds, and how many there are."""
        at = np.flatnonzero(bad)
        listed = ", ".join(str(n) for n in self.numbers[at[:_SHOWN_ROWS]]) + (", …" if len(at) > _SHOWN_ROWS else "")
        seen = ""
        if values is not None:
            seen = "; found " + ", ".join(str(v)[:30] for v in values[at[:_SHOWN_ROWS]])
        plural = "s" if len(at) > 1 else ""
        return WorkbenchError(f"{what} in {len(at)} row{plural} ({self.unit}{plural} {listed}{seen})", hint=hint)


def make_table(*, input_tokens: Any, output_tokens: Any, arrival_s: Any | None = None, name: str, source: str,
               licence: str, arrivals: Arrivals = "recorded", optional: Mapping[str, Any] | None = None,
               blocks: PrefixBlocks | None = None, unsorted: Unsorted = "error", lengths: Lengths = "error",
               rows: RowNames | None = None, where: str | None = None,
               history: Sequence[str] = (), faults: Sequence[WorkbenchError] = ()) -> RequestTable:
    """Check columns and make a table of them.

    Args:
        input_tokens, output_tokens: array-likes [requests]; whole numbers, at least 1.
        arrival_s: array-like [requests], s, or absent (all requests at time 0).
        name, source, licence: what the table is called, where it comes from, and under which licence.
        arrivals: whether the given times were recorded or generated; "absent" follows from ``arrival_s=None``.
        optional: further columns, by the names in ``OPTIONAL_COLUMNS``.
        blocks: prompt block ids, one list a request.
        unsorted: refuse arrival times that run backwards, or sort the rows by time (stable).
        lengths: refuse lengths of zero or less, or drop those rows.
        rows: how rows are named in messages; by default "row" counted from 1.
        where: file the columns come from, for messages.
        history: what was done to the requests before.
        faults: faults a reader has found already; they are reported together with those found here.

    Raises:
        TraceError: lists every kind of fault with its first rows and their number.
    """
    import pandas as pd

    where = where or name
    count = len(input_tokens)
    rows = rows or RowNames("row", np.arange(1, count + 1))
    given = {"arrival_s": arrival_s, "input_tokens": input_tokens, "output_tokens": output_tokens, **(optional or {})}
    columns = {key: values for key, values in given.items() if values is not None}
    sizes = {key: len(values) for key, values in columns.items()} | ({"blocks": len(blocks)} if blocks else {})
    if len(set(sizes.values())) > 1:
        raise TraceError("columns differ in length: " + ", ".join(f"{k} {n}" for k, n in sizes.items()), where=where)
    if count == 0:
        raise TraceError("there are no requests in it", where=where, next_command="wb traces list")

    faults, notes = list(faults), list(history)
    for key in (k for k in columns if k not in OPTIONAL_COLUMNS or k in _NUMERIC_OPTIONAL):
        columns[key] = _numbers(key, columns[key], rows=rows, faults=faults, may_miss=key in _NUMERIC_OPTIONAL)
    _raise(faults, where)

    keep = np.ones(count, dtype=bool)
    for key in ("input_tokens", "output_tokens"):
        columns[key] = _whole(key, columns[key], rows=rows, faults=faults)
        keep &= columns[key] > 0
        if lengths == "error" and (columns[key] <= 0).any():
            faults.append(rows.fault(f"{key} is zero or less", columns[key] <= 0, columns[key],
                                     hint='a failed request counts no tokens; lengths="drop" leaves such rows out'))
    if arrival_s is not None and (columns["arrival_s"] < 0).any():
        faults.append(rows.fault("the arrival time is negative", columns["arrival_s"] < 0, columns["arrival_s"]))
    if lengths == "drop" and not keep.all():
        notes.append(f"dropped {int((~keep).sum())} requests with a length of zero or less")
        columns = {key: np.asarray(values)[keep] for key, values in columns.items()}
        blocks = blocks.take(np.flatnonzero(keep)) if blocks is not None else None
        rows = rows.take(keep)
        if not keep.any():
            faults.append(WorkbenchError("no request is left after dropping those with a length of zero or less"))
    if arrival_s is not None and (np.diff(columns["arrival_s"]) < 0).any():
        if unsorted == "error":
            times = columns["arrival_s"]
            faults.append(rows.fault("the arrival time runs backwards", np.r_[False, np.diff(times) < 0],
                                     hint='unsorted="sort" puts the rows in order of arrival'))
        else:
            order = np.argsort(columns["arrival_s"], kind="stable")
            columns = {key: np.asarray(values)[order] for key, values in columns.items()}
            blocks = blocks.take(order) if blocks is not None else None
            notes.append("sorted by arrival time")
    _raise(faults, where)

    times = np.zeros(len(columns["input_tokens"])) if arrival_s is None else columns.pop("arrival_s")
    frame = pd.DataFrame({"arrival_s": times - times[0], **columns})
    return RequestTable(frame=frame, name=name, source=source, licence=licence, blocks=blocks, history=tuple(notes),
                        arrivals="absent" if arrival_s is None else arrivals)


def _raise(faults: list[WorkbenchError], where: str) -> None:
    if faults:
        raise TraceError(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}", faults=faults, where=where)


def _numbers(key: str, values: Any, *, rows: RowNames, faults: list[WorkbenchError], may_miss: bool) -> np.ndarray:
    """``values`` as numbers; what is no number, missing or infinite becomes a fault."""
    import pandas as pd

    given = pd.Series(values).reset_index(drop=True)
    number = given
    if given.dtype == bool or not pd.api.types.is_numeric_dtype(given.dtype):
        truth = given.map(lambda value: isinstance(value, bool | np.bool_))
        number = pd.to_numeric(given.astype("object").where(~truth, "a truth value"), errors="coerce")
    missing, infinite = given.isna().to_numpy(), np.isinf(number.to_numpy(dtype=np.float64, na_value=np.nan))
    strange = number.isna().to_numpy() & ~missing
    if strange.any():
        faults.append(rows.fault(f"{key} is not a number", strange, given.to_numpy()))
    if missing.any() and not may_miss:
        faults.append(rows.fault(f"{key} is missing", missing))
    if infinite.any():
        faults.append(rows.fault(f"{key} is infinite", infinite))
    whole = key.endswith("_tokens") and not (missing.any() or strange.any())
    return number.to_numpy() if whole else number.to_numpy(dtype=np.float64, na_value=np.nan)


def _whole(key: str, values: np.ndarray, *, rows: RowNames, faults: list[WorkbenchError]) -> np.ndarray:
    """``values`` as int64; fractions and lengths no request can have become faults."""
    broken = values != np.floor(values)
    if broken.any():
        faults.append(rows.fault(f"{key} is not a whole number", broken, values))
    huge = values > _LARGEST_LENGTH
    if huge.any():
        faults.append(rows.fault(f"{key} is larger than any real request", huge, values))
    return np.where(broken | huge, 1, values).astype(np.int64)

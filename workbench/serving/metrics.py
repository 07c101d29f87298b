"""Metrics of a served workload, named and defined as ``vllm bench serve`` names and defines them.

TTFT: arrival to first token. TPOT: (E2EL - TTFT) / (output tokens - 1), over requests of more than one token. ITL:
times between tokens of a request, over all tokens of all requests. E2EL: arrival to last token. Throughputs: totals
over the time from the first arrival to the last token. Goodput: requests per second that keep every limit (TPOT counts
as 0 for one-token requests). Peak concurrency: most requests in the system at one instant, departures first.
Percentiles interpolate linearly between order statistics; ITL percentiles are exact although tokens are never listed:
the order statistics of the series of gaps are found by bisection on whole ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.outcome import Metric
from workbench.serving.workload import PS_PER_S
from workbench.stepcosts import TICKS_PER_S

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PERCENTILES", "ReplicaUse", "Served", "Slo", "TokenGaps"]

PERCENTILES = (50, 90, 95, 99)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits a good request keeps, all of them; absent ones do not count."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenGaps:
    """Times between tokens of one request, over all requests, mostly as arithmetic series in ticks.

    Row (n, first, increment, count, …) of ``stretches`` stands for n gaps of each ``first + increment * j``,
    0 <= j < count; ``single`` are gaps by themselves, ``long`` those beyond 64 bits.
    """

    stretches: Ints
    single: Ints
    long: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Number of gaps."""
        return int((self.stretches[:, 0] * self.stretches[:, 3]).sum()) + len(self.single) + len(self.long)

    def order_statistics(self, ranks: Sequence[int]) -> list[int]:
        """The gaps at these 0-based ranks of the sorted list of all gaps, in ticks."""
        inside = len(self) - len(self.long)
        wanted = sorted({r for r in ranks if r < inside})
        found = dict(zip(wanted, _Series(self).select(wanted), strict=True)) if wanted else {}
        beyond = sorted(self.long)
        return [found[r] if r < inside else beyond[r - inside] for r in ranks]

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation, in ticks; (0, 0) without gaps."""
        total = len(self)
        if not total:
            return 0.0, 0.0
        parts = [self.stretches[i:i + _CHUNK] for i in range(0, len(self.stretches), _CHUNK)]
        mean = (sum(_weighted_sum(rows) for rows in parts) + float(self.single.sum(dtype=np.float64))
                + float(sum(self.long))) / total
        squares = (sum(_weighted_squares(rows, mean) for rows in parts)
                   + float(((self.single - mean) ** 2).sum()) + sum((g - mean) ** 2 for g in self.long))
        return mean, (squares / total) ** 0.5

    def expanded(self) -> list[int]:
        """Every gap, sorted (for small runs)."""
        return sorted([first + increment * j for n, first, increment, count, _ in self.stretches.tolist()
                       for j in range(count) for _ in range(n)] + self.single.tolist() + list(self.long))


_CHUNK = 1 << 18


def _weighted_sum(rows: Ints) -> float:
    n, first, increment, count = (rows[:, i].astype(np.float64) for i in range(4))
    return float((n * (count * first + increment * count * (count - 1) / 2)).sum())


def _weighted_squares(rows: Ints, mean: float) -> float:
    """Sum of squared distances from ``mean``."""
    n, first, increment, count = (rows[:, i].astype(np.float64) for i in range(4))
    off, pairs = first - mean, count * (count - 1)
    return float((n * (count * off * off + increment * pairs * (off + increment * (2 * count - 1) / 6))).sum())


class _Series:
    """Ascending arithmetic series with weights, and selection among all their values by bisection."""

    def __init__(self, gaps: TokenGaps) -> None:
        rows = gaps.stretches[gaps.stretches[:, 0] > 0]
        ones = np.ones(len(gaps.single), dtype=np.int64)
        self.weight = np.concatenate([rows[:, 0], ones])
        self.count = np.concatenate([rows[:, 3], ones])
        self.step = np.concatenate([np.abs(rows[:, 2]), ones])
        falling = np.minimum(rows[:, 2], 0) * (rows[:, 3] - 1)
        self.low = np.concatenate([rows[:, 1] + falling, gaps.single])
        self.high = self.low + self.step * (self.count - 1)

    def select(self, ranks: Sequence[int]) -> list[int]:
        """Values at ascending 0-based ranks."""
        rows = np.arange(len(self.low))
        return self._between(rows, int(self.low.min()), int(self.high.max()), 0, list(ranks))

    def _between(self, rows: Ints, least: int, most: int, below: int, ranks: list[int]) -> list[int]:
        """Values at ``ranks``, known to lie in [least, most].

        ``rows`` are the series with values in that range (and perhaps outside); ``below`` values of other series are
        less than ``least``.
        """
        while least < most:
            middle = (least + most) // 2
            counted = below + int((self.weight[rows] * self._at_most(rows, middle)).sum())
            left = [r for r in ranks if r < counted]
            if left and len(left) < len(ranks):
                return (self._between(*self._narrow(rows, least, middle, below), left)
                        + self._between(*self._narrow(rows, middle + 1, most, below), ranks[len(left):]))
            rows, least, most, below = self._narrow(rows, least if left else middle + 1, middle if left else most,
                                                    below)
        return [least] * len(ranks)

    def _at_most(self, rows: Ints, value: int) -> Ints:
        """How many values of each row are at most ``value``."""
        reached = (value - self.low[rows]) // np.maximum(self.step[rows], 1) + 1
        return np.where(self.high[rows] <= value, self.count[rows], np.maximum(reached, 0))

    def _narrow(self, rows: Ints, least: int, most: int, below: int) -> tuple[Ints, int, int, int]:
        """Drop the rows without a value in [least, most]; those wholly under it are counted in ``below``."""
        under = self.high[rows] < least
        below += int((self.weight[rows[under]] * self.count[rows[under]]).sum())
        return rows[~under & (self.low[rows] <= most)], least, most, below


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaUse:
    """What one replica did. Sums are over its iterations.

    ``sequences_sum`` decoding requests; ``sequence_ticks`` decoding requests times the iteration's ticks;
    ``context_sum`` tokens the decoding requests had in cache before the iteration; ``prompt_tokens`` tokens computed in
    prompt chunks, recomputed ones too; ``peak_blocks`` most KV blocks in use.
    """

    group: str
    requests: int
    iterations: int
    busy_ticks: int
    sequences_sum: int
    sequence_ticks: int
    context_sum: int
    prompt_tokens: int
    peak_blocks: int
    kv_blocks: int
    block_size: int

    def row(self, duration_s: float) -> dict[str, Any]:
        """One table row: shares of ``duration_s``, means over iterations."""
        steps = max(self.iterations, 1)
        return {"group": self.group, "requests": self.requests, "iterations": self.iterations,
                "busy_share": self.busy_ticks / TICKS_PER_S / duration_s if duration_s else 0.0,
                "batch_mean": self.sequences_sum / steps,
                "kv_use_mean": self.context_sum / steps / (self.kv_blocks * self.block_size),
                "kv_use_peak": self.peak_blocks / self.kv_blocks, "prompt_tokens": self.prompt_tokens}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """What became of each request (columns in the order of the requests) and of each replica.

    ``*_ps`` int64 [n], picoseconds from time 0 of the arrivals; ``replica`` and ``preemptions`` int32 [n];
    ``reused_tokens`` int64 [n], prompt tokens found in the prefix cache.
    """

    arrival_ps: Ints
    scheduled_ps: Ints
    first_token_ps: Ints
    finish_ps: Ints
    input_tokens: Ints
    output_tokens: Ints
    replica: NDArray[np.int32]
    preemptions: NDArray[np.int32]
    reused_tokens: Ints
    gaps: TokenGaps
    replicas: tuple[ReplicaUse, ...]

    @property
    def duration_s(self) -> float:
        """First arrival to last token."""
        return int(self.finish_ps.max() - self.arrival_ps.min()) / PS_PER_S

    @property
    def ttft_s(self) -> Floats:
        """Time to first token of each request."""
        return (self.first_token_ps - self.arrival_ps) / PS_PER_S

    @property
    def e2el_s(self) -> Floats:
        """End-to-end latency of each request."""
        return (self.finish_ps - self.arrival_ps) / PS_PER_S

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first, of each request; 0 for one-token requests."""
        return (self.finish_ps - self.first_token_ps) / PS_PER_S / np.maximum(self.output_tokens - 1, 1)

    def good(self, slo: Slo) -> NDArray[np.bool_]:
        """Which requests keep every limit of ``slo``."""
        kept = np.ones(len(self.finish_ps), dtype=bool)
        for limit, values in ((slo.ttft_s, self.ttft_s), (slo.tpot_s, self.tpot_s), (slo.e2el_s, self.e2el_s)):
            if limit is not None:
                kept &= values <= limit
        return kept

    def peak_concurrency(self) -> int:
        """Most requests in the system at one instant; a departure at that instant comes first."""
        left = np.searchsorted(np.sort(self.finish_ps), self.arrival_ps, side="right")
        return int((np.arange(1, len(left) + 1) - left).max())

    def concurrency(self) -> pd.DataFrame:
        """Requests in the system and requests waiting for their first iteration, after each change: for plots."""
        import pandas as pd

        times = np.concatenate([self.arrival_ps, self.scheduled_ps, self.finish_ps])
        n = len(self.arrival_ps)
        zeros, ones = np.zeros(n, dtype=np.int64), np.ones(n, dtype=np.int64)
        order = np.argsort(times, kind="stable")
        return pd.DataFrame({
            "time_s": times[order] / PS_PER_S,
            "requests": np.cumsum(np.concatenate([ones, zeros, -ones])[order]),
            "waiting": np.cumsum(np.concatenate([ones, -ones, zeros])[order])})

    def frame(self) -> pd.DataFrame:
        """Per-request table: times in seconds."""
        import pandas as pd

        return pd.DataFrame({
            "arrival_s": self.arrival_ps / PS_PER_S, "scheduled_s": self.scheduled_ps / PS_PER_S,
            "first_token_s": self.first_token_ps / PS_PER_S, "finish_s": self.finish_ps / PS_PER_S,
            "input_tokens": self.input_tokens, "output_tokens": self.output_tokens, "replica": self.replica,
            "preemptions": self.preemptions, "reused_tokens": self.reused_tokens})

    def replica_frame(self) -> pd.DataFrame:
        """Per-replica table: busy share, mean batch, KV use."""
        import pandas as pd

        return pd.DataFrame([use.row(self.duration_s) for use in self.replicas])

    def metrics(self, *, slo: Slo | None = None) -> tuple[Metric, ...]:
        """Every metric, the goodput too when ``slo`` is given."""
        seconds = self.duration_s
        n, tokens_in, tokens_out = len(self.finish_ps), int(self.input_tokens.sum()), int(self.output_tokens.sum())
        several = self.output_tokens > 1
        rows = [*_spread("ttft", "time to first token", self.ttft_s),
                *_spread("tpot", "time per output token after the first", self.tpot_s[several]),
                *self._itl(),
                *_spread("e2el", "end-to-end latency", self.e2el_s),
                Metric(name="request_throughput_per_s", value=n / seconds, unit="requests/s"),
                Metric(name="input_throughput_tokens_per_s", value=tokens_in / seconds, unit="tokens/s"),
                Metric(name="output_throughput_tokens_per_s", value=tokens_out / seconds, unit="tokens/s"),
                Metric(name="total_throughput_tokens_per_s", value=(tokens_in + tokens_out) / seconds,
                       unit="tokens/s"),
                Metric(name="duration_s", value=seconds, unit="s", about="first arrival to last token"),
                Metric(name="completed", value=n, unit="requests"),
                Metric(name="peak_concurrency", value=self.peak_concurrency(), unit="requests"),
                Metric(name="preemptions", value=int(self.preemptions.sum()), unit="",
                       about="times a running request lost its KV blocks")]
        if slo is not None:
            rows.append(Metric(name="goodput_per_s", value=int(self.good(slo).sum()) / seconds, unit="requests/s",
                               about="requests that keep every limit"))
        return tuple(rows)

    def _itl(self) -> list[Metric]:
        total = len(self.gaps)
        if not total:
            return []
        ranks = [(p, p / 100 * (total - 1)) for p in PERCENTILES]
        wanted = [r for _, rank in ranks for r in (int(rank), min(int(rank) + 1, total - 1))]
        found = iter(self.gaps.order_statistics(wanted))
        mean, std = self.gaps.moments()
        values = {"mean": mean, "std": std}
        for p, rank in ranks:
            low, high = next(found), next(found)
            values["median" if p == 50 else f"p{p}"] = low + (high - low) * (rank - int(rank))
        return [Metric(name=f"itl_{key}_s", value=value / TICKS_PER_S, unit="s", about=f"inter-token latency, {key}")
                for key, value in values.items()]


def _spread(name: str, about: str, values: Floats) -> list[Metric]:
    """Mean, standard deviation, median and percentiles of one latency; nothing for no values."""
    if not len(values):
        return []
    found = {"mean": float(values.mean()), "std": float(values.std())}
    for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True):
        found["median" if p == 50 else f"p{p}"] = float(value)
    return [Metric(name=f"{name}_{key}_s", value=value, unit="s", about=f"{about}, {key}")
            for key, value in found.items()]

"""Metrics of a served workload, named and defined as ``vllm bench serve`` names and defines them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.outcome import Metric

__all__ = ["Served", "Slo", "TokenGaps"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits a good request keeps, all of them; absent ones do not count."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenGaps:
    """Times between tokens of one request, over all requests, as arithmetic series in ticks.

    Row i stands for ``weight[i]`` gaps of each ``first[i] + step[i] * j``, 0 <= j < ``count[i]``.
    """

    weight: Ints
    first: Ints
    step: Ints
    count: Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """What became of each request (columns in the order of the requests) and of each replica.

    ``*_ps`` int64 [n], picoseconds; ``replica`` and ``preemptions`` int32 [n].
    """

    arrival_ps: Ints
    scheduled_ps: Ints
    first_token_ps: Ints
    finish_ps: Ints
    input_tokens: Ints
    output_tokens: Ints
    replica: NDArray[np.int32]
    preemptions: NDArray[np.int32]
    gaps: TokenGaps

    def metrics(self, *, slo: Slo | None = None) -> tuple[Metric, ...]:
        """Every metric as (name, value, unit, about)."""
        raise NotImplementedError

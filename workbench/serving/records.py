"""What the replicas of one simulation write down: request columns, and stretches of alike iterations.

Columns are flat machine integers, not objects, so that a million requests fit in little memory. A stretch is
(n, ticks, increment, count, context): ``count`` iterations in a row that each decode the same n requests, the first in
``ticks``, every next one in ``increment`` more; ``context`` is the tokens the n had in cache at its start.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench.serving.workload import Requests

__all__ = ["NEVER", "Ledger", "StretchSums", "column", "pack_stretch", "stretches", "sums"]

NEVER = 1 << 200
_LARGEST = 2**63 - 1
pack_stretch = Struct("5q").pack


class Ledger:
    """Columns of one simulation, shared by its replicas; ``prompt`` … ``shared_tokens`` are read, the rest written.

    ``total`` is the tokens in cache when a request ends: prompt and output but for the last token. ``done`` collects
    ``(finish ticks, request)`` for a router that watches the replicas, and is absent otherwise.
    """

    def __init__(self, requests: Requests, *, done: list[tuple[int, int]] | None = None) -> None:
        self.count = len(requests)
        self.prompt: list[int] = requests.input_tokens.tolist()
        self.output: list[int] = requests.output_tokens.tolist()
        self.total: list[int] = (requests.input_tokens + requests.output_tokens - 1).tolist()
        self.prefix_of: list[int] = requests.prefix_of.tolist()
        self.shared_tokens: list[int] = requests.shared_tokens.tolist()
        self.scheduled, self.first, self.finish = (array("q", [-1]) * self.count for _ in range(3))
        self.hits = array("q", bytes(8 * self.count))
        self.replica, self.preemptions = (array("i", bytes(4 * self.count)) for _ in range(2))
        self.done = done
        self.single_gaps = array("q")
        self.long_gaps: list[int] = []

    def single_gap(self, ticks: int) -> None:
        """One request waited this long from one token to the next; beyond 64 bits (2.5 hours) kept apart."""
        if ticks <= _LARGEST:
            self.single_gaps.append(ticks)
        else:
            self.long_gaps.append(ticks)


def column(values: array[int]) -> NDArray[Any]:
    """The array's own memory as a numpy column."""
    return np.frombuffer(values, dtype=f"i{values.itemsize}") if len(values) else np.empty(0, dtype=np.int64)


def stretches(packed: bytearray) -> NDArray[np.int64]:
    """Rows (n, ticks, increment, count, context)."""
    return np.frombuffer(packed, dtype=np.int64).reshape(-1, 5)


class StretchSums(NamedTuple):
    """Sums over all iterations of a replica; see ``metrics.ReplicaUse``."""

    iterations: int
    busy_ticks: int
    sequences_sum: int
    sequence_ticks: int
    context_sum: int


def sums(rows: NDArray[np.int64]) -> StretchSums:
    """Exact sums over stretches."""
    n, ticks, increment, count, context = rows.astype(np.float64).T
    longest = np.max(n * count * (ticks + np.abs(increment) * count) + count * (context + n * count), initial=0.0)
    n, ticks, increment, count, context = (rows if longest < _LARGEST / 2 else rows.astype(object)).T
    pairs = count * (count - 1) // 2
    lasting = count * ticks + increment * pairs
    return StretchSums(iterations=_sum(count), busy_ticks=_sum(lasting), sequences_sum=_sum(n * count),
                       sequence_ticks=_sum(n * lasting), context_sum=_sum(count * context + n * pairs))


def _sum(values: NDArray[Any]) -> int:
    """Exact even where the sum of 64-bit numbers has more."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())

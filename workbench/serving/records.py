"""What the replicas of one simulation write down: request columns, and the times between tokens as series.

Columns are flat arrays of machine integers, not objects, so that a million requests fit in little memory.
"""

from __future__ import annotations

from array import array
from heapq import heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.serving.workload import TICKS_PER_PS, Requests

__all__ = ["NEVER", "Ledger", "column"]

NEVER = 1 << 200
_LARGEST = 2**63 - 1


class Ledger:
    """Columns of one simulation, shared by its replicas; ``prompt`` … ``shared_tokens`` are read, the rest written.

    ``done`` collects ``(finish ticks, request)`` for a router that watches the replicas, and is absent otherwise.
    ``gaps`` are the rows of ``TokenGaps``; ``long_gaps`` single gaps beyond 64 bits of ticks (2.5 hours).
    """

    def __init__(self, requests: Requests, *, done: list[tuple[int, int]] | None = None) -> None:
        self.count = len(requests)
        self.prompt: list[int] = requests.input_tokens.tolist()
        self.output: list[int] = requests.output_tokens.tolist()
        self.prefix_of: list[int] = requests.prefix_of.tolist()
        self.shared_tokens: list[int] = requests.shared_tokens.tolist()
        self.scheduled, self.first, self.finish = (array("q", [-1]) * self.count for _ in range(3))
        self.hits = array("q", bytes(8 * self.count))
        self.replica, self.preemptions = (array("i", bytes(4 * self.count)) for _ in range(2))
        self.done = done
        self.weight, self.ticks, self.increment, self.repeats = (array("q") for _ in range(4))
        self.long_gaps: list[int] = []

    def gap(self, weight: int, ticks: int, increment: int, repeats: int) -> None:
        """``weight`` requests saw ``repeats`` gaps of ``ticks``, ``ticks + increment``, …"""
        self.weight.append(weight)
        self.ticks.append(ticks)
        self.increment.append(increment)
        self.repeats.append(repeats)

    def single_gap(self, ticks: int) -> None:
        """One request saw one gap, of any length."""
        if ticks <= _LARGEST:
            self.gap(1, ticks, 0, 1)
        else:
            self.long_gaps.append(ticks)

    def finished(self, request: int, ticks: int) -> None:
        """The last token of ``request`` came at ``ticks``."""
        self.finish[request] = ticks // TICKS_PER_PS
        if self.done is not None:
            heappush(self.done, (ticks, request))


def column(values: array[int]) -> NDArray[Any]:
    """The array's own memory as a numpy column."""
    return np.frombuffer(values, dtype=f"i{values.itemsize}") if len(values) else np.empty(0, dtype=np.int64)

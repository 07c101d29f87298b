"""Time of one engine iteration of an LLM replica: the interface between cost models and the serving simulator.

The clock counts whole femtoseconds (``TICKS_PER_S``), so that adding k iterations one by one and adding them in
closed form give the same integer: a simulator may skip ahead and still be exact.

A decode-only iteration of n sequences holding K context tokens in all costs ``decode(n)(K)``, a piecewise-linear
``Ramp`` in K. An iteration that also prefills has its own entry point, ``mixed``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from workbench.costs import Source

__all__ = ["TICKS_PER_S", "Chunk", "Ramp", "StepModel", "to_ticks"]

TICKS_PER_S = 10**15


def to_ticks(seconds: float) -> int:
    """Nearest whole number of ticks."""
    return round(seconds * TICKS_PER_S)


class Ramp(NamedTuple):
    """Piecewise-linear integer function: ``base[i] + slope[i] * (k - start[i])`` for ``start[i] <= k < start[i+1]``.

    ``start[0]`` is 0 and the last piece has no end.
    """

    start: tuple[int, ...]
    base: tuple[int, ...]
    slope: tuple[int, ...]

    def __call__(self, k: int) -> int:
        """Value at ``k`` >= 0."""
        i = bisect_right(self.start, k) - 1
        return self.base[i] + self.slope[i] * (k - self.start[i])


class Chunk(NamedTuple):
    """Part of one prompt prefilled in an iteration: ``tokens`` new ones after ``history`` cached ones."""

    tokens: int
    history: int


class StepModel(Protocol):
    """Iteration times of one replica (one model on one set of devices under one parallel strategy), in ticks."""

    def decode(self, sequences: int) -> Ramp:
        """Decode-only iteration of ``sequences`` (>= 1) requests, as a function of their total context tokens."""
        ...

    def mixed(self, sequences: int, context_tokens: int, chunks: Sequence[Chunk]) -> int:
        """Iteration decoding ``sequences`` (>= 0) requests of ``context_tokens`` in all while prefilling ``chunks``."""
        ...

    def sources(self) -> Mapping[Source, float]:
        """Share of the model's tabulated entries by source; sums to 1."""
        ...

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

__all__ = ["TICKS_PER_S", "Chunk", "Ramp", "StepModel", "ramp_maximum", "ramp_sum", "to_ticks"]

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


def ramp_sum(ramp: Ramp, first: int, step: int, count: int) -> int:
    """``sum(ramp(first + i * step) for i in range(count))`` in closed form (first >= 0, step >= 0), exactly."""
    if step == 0:
        return count * ramp(first)
    total, done = 0, 0
    piece = bisect_right(ramp.start, first) - 1
    while done < count:
        end = ramp.start[piece + 1] if piece + 1 < len(ramp.start) else None
        upto = count if end is None else min(count, -(-(end - first) // step))
        steps = upto - done
        offset = steps * (first - ramp.start[piece]) + step * (upto * (upto - 1) - done * (done - 1)) // 2
        total += steps * ramp.base[piece] + ramp.slope[piece] * offset
        done, piece = max(done, upto), piece + 1
    return total


def ramp_maximum(ramps: Sequence[Ramp]) -> Ramp:
    """The pointwise largest of ``ramps`` at every whole ``k``, as one ramp."""
    if len(ramps) == 1:
        return ramps[0]
    starts = sorted({s for r in ramps for s in r.start})
    start: list[int] = []
    base: list[int] = []
    slope: list[int] = []
    for k, end in zip(starts, [*starts[1:], None], strict=True):
        lines = [(r(k), r.slope[bisect_right(r.start, k) - 1]) for r in ramps]
        at: int | None = k
        while at is not None:
            height, rise = max((b + s * (at - k), s) for b, s in lines)
            start.append(at)
            base.append(height)
            slope.append(rise)
            # The next whole point at which a steeper line lies strictly above this one.
            crossings = [at + (height - (b + s * (at - k))) // (s - rise) + 1 for b, s in lines if s > rise]
            at = min(crossings, default=None)
            if at is not None and end is not None and at >= end:
                at = None
    return Ramp(tuple(start), tuple(base), tuple(slope))


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

"""How many samples a stage holds, and in which order it works: kFkB schedules over a DAG of stages.

In-flight samples, last stages first (b micro-batch, k forwards a turn, y over the successors of x):
    i_x = roundup_to_multiple_of_b_x( max_y [ i_y + max(k_x b_x, b_y) + max(0, b_x - b_y) ] ),   last stage: k b    (R)
With one b and k = 1 that is b times the longest path to a last stage, the paper's 1F1B rule. For mixed b and k it is
our reconstruction (the paper's table is an image): it stalls no chain of three stages, see tests/test_pipeline_plan.py.
Order: i / b forwards, then k backwards and k forwards in turn, then the remaining backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

__all__ = ["held_by_all", "need", "order", "rounded"]


def need(micro: int, turn: int, held_next: int, micro_next: int) -> int:
    """What one successor asks of a stage, before rounding to whole micro-batches."""
    return held_next + max(turn * micro, micro_next) + max(0, micro - micro_next)


def rounded(samples: int, micro: int, batch: int) -> int:
    """``samples`` in whole micro-batches, at most the mini-batch."""
    return min(-(-samples // micro) * micro, batch)


def held_by_all(micro: Sequence[int], turn: Sequence[int], after: Sequence[Iterable[int]], batch: int) -> list[int]:
    """In-flight samples of every stage; stages are in topological order and ``after[x]`` are the successors of x."""
    held = [0] * len(micro)
    for x in reversed(range(len(micro))):
        b, k = micro[x], turn[x]
        asked = k * b
        for y in after[x]:
            asked = max(asked, need(b, k, held[y], micro[y]))
        held[x] = rounded(asked, b, batch)
    return held


@lru_cache(maxsize=256)
def order(batch: int, micro: int, turn: int, held: int) -> tuple[tuple[str, int], ...]:
    """The tasks of a stage in its static order: ('F' or 'B', index of the micro-batch)."""
    count = batch // micro
    forward = min(held // micro, count)
    tasks = [("F", m) for m in range(forward)]
    backward = 0
    while backward < count:
        stop = min(backward + turn, forward)
        tasks += [("B", m) for m in range(backward, stop)]
        backward = stop
        stop = min(forward + turn, count)
        tasks += [("F", m) for m in range(forward, stop)]
        forward = stop
    return tuple(tasks)

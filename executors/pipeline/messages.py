"""Who sends which samples to whom, fixed before the run: the same table on every rank.

A slice is what one replica takes of one micro-batch. A message is the overlap of a producer's slice and a consumer's
slice of one flow: forward it carries activations, backward the gradients of the same samples. Overlaps make different
micro-batch sizes and different numbers of replicas one case. The position in the table is the message's tag.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planners.pipeline.problem import Plan, Problem

__all__ = ["Message", "RankTable", "ranks", "table"]


@dataclass(frozen=True, slots=True)
class Message:
    """Samples ``first`` … ``last`` - 1 of flow ``flow`` between two ranks."""

    number: int
    flow: int
    producer: int
    consumer: int
    first: int
    last: int

    def tag(self, kind: str) -> int:
        """gloo's tag: activations (F) and gradients (B) of a message differ."""
        return 2 * self.number + (kind == "B")


@dataclass(frozen=True, slots=True)
class RankTable:
    """The messages of one rank by flow and by the first sample of its own slice."""

    produced: dict[tuple[int, int], list[Message]] = field(default_factory=dict)
    consumed: dict[tuple[int, int], list[Message]] = field(default_factory=dict)


def ranks(plan: Plan) -> list[tuple[int, int]]:
    """(stage, replica) of every rank."""
    return [(x, r) for x, s in enumerate(plan.stages) for r in range(len(s.devices))]


def table(problem: Problem, plan: Plan) -> list[RankTable]:
    """Each rank's messages in the order of samples."""
    rank_of = {place: rank for rank, place in enumerate(ranks(plan))}
    tables = [RankTable() for _ in rank_of]
    number = 0
    for i, f in enumerate(plan.flows):
        if not f.bytes_per_sample:
            continue
        for r, first, last in _slices(problem, plan, f.producer):
            for q, begin, end in _slices(problem, plan, f.consumer):
                if begin >= last or first >= end:
                    continue
                a, b = rank_of[f.producer, r], rank_of[f.consumer, q]
                message = Message(number, i, a, b, max(first, begin), min(last, end))
                number += 1
                tables[a].produced.setdefault((i, first), []).append(message)
                tables[b].consumed.setdefault((i, begin), []).append(message)
    return tables


def _slices(problem: Problem, plan: Plan, stage: int) -> list[tuple[int, int, int]]:
    """(replica, first sample, end) of every slice of a stage, in the order of samples."""
    s = plan.stages[stage]
    size = s.micro_batch_samples // len(s.devices)
    return [(k % len(s.devices), k * size, (k + 1) * size) for k in range(problem.batch_samples // size)]

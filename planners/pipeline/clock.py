"""Iteration time of a stage graph, quickly: the longest path through its static orders and messages.

Every stage works through its kFkB order; a message leaves when its micro-batch is done, messages of one flow and
direction follow each other, flows do not disturb one another. A consumer's micro-batch needs the producer's messages
that cover its samples; gradients likewise. Ranks candidates; ``replay`` plays the chosen plan on the task-graph clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planners.pipeline.inflight import held_by_all, order

__all__ = ["Link", "StageGraph", "iteration_s", "least_s"]


class Link(NamedTuple):
    """A flow between two stages: seconds of one message forward (producer's micro-batch) and back (consumer's)."""

    producer: int
    consumer: int
    forward_s: float
    backward_s: float


@dataclass(frozen=True, slots=True)
class StageGraph:
    """Stages in topological order with the times of one micro-batch, and of all-reduce and update at the end."""

    batch: int
    micro: Sequence[int]
    turn: Sequence[int]
    forward_s: Sequence[float]
    backward_s: Sequence[float]
    at_end_s: Sequence[float]
    links: Sequence[Link]

    def held(self) -> list[int]:
        """In-flight samples by the rule (R)."""
        after: list[list[int]] = [[] for _ in self.micro]
        for link in self.links:
            after[link.producer].append(link.consumer)
        return held_by_all(self.micro, self.turn, after, self.batch)


def least_s(graph: StageGraph, held: Sequence[int]) -> float:
    """No schedule of these stages is faster while they hold so many samples: some stage's first micro-batch comes
    through those before it, the stage does all its work, and its last gradients go back to the first stages.

    Its work takes as long as its forwards and backwards, and, with n micro-batches held, as every n-th one's way to the
    last stages and back: the forward of m + n follows the backward of m.
    """
    n = len(graph.micro)
    come, leave, trip = [0.0] * n, list(graph.at_end_s), [0.0] * n
    links = sorted(graph.links)
    for u, v, forward_s, backward_s in links:
        # Forward of as many of the producer's micro-batches as the consumer's first one needs.
        first = come[u] - (-graph.micro[v] // graph.micro[u]) * graph.forward_s[u] + forward_s
        if first > come[v]:
            come[v] = first
        # The producer's last gradients come with the consumer's last micro-batch.
        last = backward_s + max(1, graph.micro[v] // graph.micro[u]) * graph.backward_s[u] + leave[u]
        if last > leave[v]:
            leave[v] = last
    for u, v, forward_s, backward_s in reversed(links):
        there_and_back = forward_s + trip[v] + graph.forward_s[v] + graph.backward_s[v] + backward_s
        if there_and_back > trip[u]:
            trip[u] = there_and_back
    least = 0.0
    for x in range(n):
        forward, backward, count = graph.forward_s[x], graph.backward_s[x], graph.batch // graph.micro[x]
        turns, rest = divmod(count - 1, held[x] // graph.micro[x])
        work = max(count * (forward + backward), rest * forward + (turns + 1) * (forward + trip[x] + backward))
        least = max(least, come[x] + work + leave[x])
    return least


def iteration_s(graph: StageGraph, held: Sequence[int]) -> float:
    """Seconds from the first forward to the last weight update; infinite when the orders wait on each other."""
    n = len(graph.micro)
    orders = [order(graph.batch, graph.micro[x], graph.turn[x], held[x]) for x in range(n)]
    into: list[list[tuple[list[float], int]]] = [[] for _ in range(n)]
    back: list[list[tuple[list[float], int]]] = [[] for _ in range(n)]
    sends: list[list[tuple[list[float], float]]] = [[] for _ in range(n)]
    returns: list[list[tuple[list[float], float]]] = [[] for _ in range(n)]
    beside: list[list[int]] = [[] for _ in range(n)]
    for u, v, forward_s, backward_s in graph.links:
        there: list[float] = []
        here: list[float] = []
        into[v].append((there, graph.micro[u]))
        back[u].append((here, graph.micro[v]))
        sends[u].append((there, forward_s))
        returns[v].append((here, backward_s))
        beside[u].append(v)
        beside[v].append(u)
    at, now, waiting = [0] * n, [0.0] * n, [True] * n
    awake = list(range(n))
    while awake:
        x = awake.pop()
        waiting[x] = False
        tasks, i, clock = orders[x], at[x], now[x]
        micro, count = graph.micro[x], len(tasks)
        forward = into[x], sends[x], graph.forward_s[x]
        backward = back[x], returns[x], graph.backward_s[x]
        while i < count:
            kind, m = tasks[i]
            needs, outs, took = forward if kind == "F" else backward
            start = clock
            for arrivals, size in needs:
                k = m if size == micro else -(-(m + 1) * micro // size) - 1
                if k >= len(arrivals):
                    break
                if arrivals[k] > start:
                    start = arrivals[k]
            else:
                clock = start + took
                for arrivals, seconds in outs:
                    leaves = arrivals[-1] if arrivals and arrivals[-1] > clock else clock
                    arrivals.append(leaves + seconds)
                i += 1
                continue
            break
        if i > at[x]:
            at[x], now[x] = i, clock
            for y in beside[x]:
                if not waiting[y] and at[y] < len(orders[y]):
                    waiting[y] = True
                    awake.append(y)
    if any(at[x] < len(orders[x]) for x in range(n)):
        return float("inf")
    return max(now[x] + graph.at_end_s[x] for x in range(n))

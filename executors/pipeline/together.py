"""All stage replicas in one process on one device: what runs when a machine has fewer GPUs than the plan has replicas.

Every replica works on a stream of its own, in its static order; a message is a tensor handed on together with an event
that its reader's stream waits for. The host starts one task of every stage in turn, as far as messages allow, so that
streams overlap. On a CPU there are no streams and tasks run one after the other: the same numbers, no concurrency.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from executors.pipeline.channels import clock_of
from executors.pipeline.messages import Message, RankTable, ranks, table
from executors.pipeline.rank import Done, note, weights_of
from executors.pipeline.training import Replica, one_thread
from planners.pipeline.loaders import graph_of
from planners.pipeline.problem import Plan, Problem
from planners.pipeline.replay import ScheduledTask, schedule
from workbench.errors import WorkbenchError

__all__ = ["execute_together"]


class _Member:
    """A replica with its stream and its position in its order."""

    def __init__(self, problem: Problem, plan: Plan, place: tuple[int, int], messages: RankTable, device: str) -> None:
        self.stage, self.replica = place
        self.messages = messages
        self.part = Replica(problem, plan, graph_of(problem), self.stage, device)
        self.stream = torch.cuda.Stream() if device.startswith("cuda") else None
        self.done = Done(self.stage, self.replica)
        self.size = plan.stages[self.stage].micro_batch_samples // len(plan.stages[self.stage].devices)
        self.marks: list[tuple[str, Any, Any]] = []

    def working(self) -> contextlib.AbstractContextManager[Any]:
        """The replica's stream as the current one."""
        return torch.cuda.stream(self.stream) if self.stream is not None else contextlib.nullcontext()

    def slice(self, t: ScheduledTask) -> tuple[int, int]:
        """The replica's samples of a task."""
        return t.first + self.replica * self.size, t.first + (self.replica + 1) * self.size

    def needs(self, t: ScheduledTask) -> dict[int, list[Message]]:
        """Messages of a task by flow."""
        first, _ = self.slice(t)
        flows, came = ((self.part.into, self.messages.consumed) if t.kind == "F" else
                       (self.part.out, self.messages.produced))
        return {i: came[i, first] for i in flows}


def execute_together(problem: Problem, plan: Plan, device: str) -> list[Done]:
    """Train ``problem.run.steps`` mini-batches on one thread; what ranks would bring back.

    Raises:
        WorkbenchError: the stages' orders wait on each other.
    """
    with one_thread():
        return _execute(problem, plan, device)


def _execute(problem: Problem, plan: Plan, device: str) -> list[Done]:
    tables = table(problem, plan)
    members = [_Member(problem, plan, place, messages, device)
               for place, messages in zip(ranks(plan), tables, strict=True)]
    clock = clock_of(device)
    for number in range(problem.run.steps):
        for m in members:
            m.part.begin(number)
            m.marks = []
        clock.begin()
        _step(problem, plan, members, clock)
        for m in members:
            with m.working():
                if m.part.optimizer is not None:
                    begun = clock.mark()
                    m.part.optimizer.step()
                    m.marks.append(("update", begun, clock.mark()))
        for m in members:
            m.done.spans.append([(name, clock.settled(a), clock.settled(b), "compute") for name, a, b in m.marks])
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        for m in members:
            note(m.done, m.part)
    for m in members:
        m.done.weights = weights_of(m.part) if m.replica == 0 else {}
    return [m.done for m in members]


def _step(problem: Problem, plan: Plan, members: list[_Member], clock: Any) -> None:
    orders = schedule(problem, plan)
    at = [0] * len(orders)
    held = [0] * len(orders)
    mail: dict[tuple[str, int], tuple[torch.Tensor, Any]] = {}
    of_stage = [[m for m in members if m.stage == x] for x in range(len(orders))]
    while any(i < len(order) for i, order in zip(at, orders, strict=True)):
        moved = False
        for x, order in enumerate(orders):
            if at[x] == len(order):
                continue
            t = order[at[x]]
            if all((t.kind, message.number) in mail for m in of_stage[x] for mine in m.needs(t).values()
                   for message in mine):
                held[x] += (t.last - t.first) * (1 if t.kind == "F" else -1)
                for m in of_stage[x]:
                    _task(m, t, mail, clock)
                    m.done.peak_samples = max(m.done.peak_samples, held[x])
                at[x] += 1
                moved = True
        if not moved:
            raise WorkbenchError("the stages' orders wait on each other", where="executors.pipeline")
    for mine in of_stage:
        if len(mine) > 1:
            _reduce(mine, clock)


def _task(m: _Member, t: ScheduledTask, mail: dict[tuple[str, int], tuple[torch.Tensor, Any]], clock: Any) -> None:
    first, last = m.slice(t)
    with m.working():
        received = {}
        for flow, messages in m.needs(t).items():
            parts = []
            for message in sorted(messages, key=lambda message: message.first):
                tensor, event = mail.pop((t.kind, message.number))
                if event is not None and m.stream is not None:
                    m.stream.wait_event(event)
                    tensor.record_stream(m.stream)
                parts.append(tensor)
            received[flow] = parts[0] if len(parts) == 1 else torch.cat(parts)
        begun = clock.mark()
        made = (m.part.forward if t.kind == "F" else m.part.backward)(first, last, received)
        ended = clock.mark()
        m.marks.append((f"{t.kind} {t.first}", begun, ended))
        goes = m.messages.produced if t.kind == "F" else m.messages.consumed
        for flow, packed in made.items():
            for message in goes[flow, first]:
                # A copy, as a message is one: a slice would keep the whole tensor alive at its reader.
                piece = packed[message.first - first:message.last - first].clone()
                event = m.stream.record_event() if m.stream is not None else None
                mail[t.kind, message.number] = piece, event
                m.done.messages += 1
                m.done.sent_bytes += piece.numel() * piece.element_size()


def _reduce(members: list[_Member], clock: Any) -> None:
    """Sum the replicas' gradients, first to last, and give every replica the sum."""
    first = members[0]
    marks = [m.stream.record_event() for m in members if m.stream is not None]
    with first.working():
        for event in marks:
            if first.stream is not None:
                first.stream.wait_event(event)
        begun = clock.mark()
        for together in zip(*(m.part.module.parameters() for m in members), strict=True):
            total = together[0].grad.clone()
            for p in together[1:]:
                total += p.grad
            for p in together:
                p.grad.copy_(total)
        first.marks.append(("all-reduce", begun, clock.mark()))
        ready = first.stream.record_event() if first.stream is not None else None
    for m in members[1:]:
        if ready is not None and m.stream is not None:
            m.stream.wait_event(ready)

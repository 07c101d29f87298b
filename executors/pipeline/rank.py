"""One rank: its static order of tasks, receives posted before the step, sends kept alive until they are done.

The rank never waits for a send while working, and waits for a receive only when a task needs it, so ranks that meet
in different orders cannot block each other: what blocks is only what the plan's own order makes wait.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from executors.pipeline.channels import Channels, Ordered, Tagged, clock_of
from executors.pipeline.messages import Message, ranks, table
from executors.pipeline.modules import dtype_of
from executors.pipeline.training import Replica
from planners.pipeline.loaders import graph_of
from planners.pipeline.problem import Plan, Problem
from planners.pipeline.replay import ScheduledTask, schedule
from profilers.harness import available_cpus, fixed_conditions

__all__ = ["Done", "execute", "note", "weights_of"]

_YIELDING = 5


@dataclass
class Done:
    """What a rank brings back: spans (name, start, end, stream) a step, peaks, gradients, weights, traffic."""

    stage: int
    replica: int
    spans: list[list[tuple[str, float, float, str]]] = field(default_factory=list)
    peak_samples: int = 0
    peak_bytes: int = 0
    messages: int = 0
    sent_bytes: int = 0
    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)


class _Paced:
    """Stands in for a replica: sleeps as long as the plan predicts, and sends as many bytes."""

    def __init__(self, problem: Problem, plan: Plan, stage: int, device: str) -> None:
        self.device = device
        self.into = [i for i, f in enumerate(plan.flows) if f.consumer == stage and f.bytes_per_sample]
        self.out = [i for i, f in enumerate(plan.flows) if f.producer == stage and f.bytes_per_sample]
        self.widths = {i: max(1, int(f.bytes_per_sample / 4)) for i, f in enumerate(plan.flows)}
        mine, scale = plan.stages[stage], problem.run.time_scale
        self.seconds = {"F": mine.forward_s * scale, "B": mine.backward_s * scale}
        self.peak_bytes = 0

    def columns(self, flow: int) -> int:
        """Packed width of a flow in four-byte numbers."""
        return self.widths[flow]

    def forward(self, first: int, last: int, received: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Sleep; activations of the right size."""
        time.sleep(self.seconds["F"])
        return {i: torch.zeros(last - first, self.widths[i], device=self.device) for i in self.out}

    def backward(self, first: int, last: int, received: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Sleep; gradients of the right size."""
        time.sleep(self.seconds["B"])
        return {i: torch.zeros(last - first, self.widths[i], device=self.device) for i in self.into}


class _Worker:
    def __init__(self, problem: Problem, plan: Plan, rank: int, group: Any, channels: Channels, device: str) -> None:
        self.problem, self.plan, self.group, self.channels, self.device = problem, plan, group, channels, device
        self.clock = clock_of(device)
        self.marks: list[tuple[str, Any, Any, str]] = []
        self.stage, self.replica = ranks(plan)[rank]
        self.done = Done(self.stage, self.replica)
        self.mine = plan.stages[self.stage]
        self.messages = table(problem, plan)[rank]
        self.tasks = schedule(problem, plan)[self.stage]
        self.computes = problem.run.mode == "compute"
        self.part: Replica | _Paced = (Replica(problem, plan, graph_of(problem), self.stage, device) if self.computes
                                       else _Paced(problem, plan, self.stage, device))
        self.dtype = dtype_of(problem) if self.computes else torch.float32
        self.patience = timedelta(seconds=problem.run.timeout_s)
        self.jitter = random.Random(problem.run.seed * 1009 + rank)
        self.waiting: dict[tuple[str, int], tuple[Any, torch.Tensor]] = {}
        self.sends: list[tuple[Any, torch.Tensor]] = []

    def step(self, number: int) -> None:
        """One mini-batch."""
        if isinstance(self.part, Replica):
            self.part.begin(number)
        self._post()
        self.marks = []
        dist.barrier()
        self.clock.begin()
        in_flight = 0
        for t in self.tasks:
            if self.problem.run.jitter_s:
                time.sleep(self.jitter.random() * self.problem.run.jitter_s)
            self._task(t)
            in_flight += (t.last - t.first) * (1 if t.kind == "F" else -1)
            self.done.peak_samples = max(self.done.peak_samples, in_flight)
        self._reduce()
        self._update()
        for work, _ in self.sends:
            work.wait(self.patience)
        self.sends.clear()
        self.done.spans.append([(name, self.clock.settled(a), self.clock.settled(b), stream)
                                for name, a, b, stream in self.marks])
        if isinstance(self.part, Replica):
            note(self.done, self.part)

    def _slice(self, t: ScheduledTask) -> tuple[int, int]:
        size = (t.last - t.first) // len(self.mine.devices)
        return t.first + self.replica * size, t.first + (self.replica + 1) * size

    def _post(self) -> None:
        """Post every receive of the step in the order of samples, so that no sender waits for this rank."""
        for kind, flows, messages in (("F", self.part.into, self.messages.consumed),
                                      ("B", self.part.out, self.messages.produced)):
            mine = [m for (flow, _), some in messages.items() if flow in flows for m in some]
            for m in sorted(mine, key=lambda m: m.first):
                buffer = torch.empty(m.last - m.first, self.part.columns(m.flow), dtype=self.dtype, device=self.device)
                self.waiting[kind, m.number] = self.channels.receive(m, kind, buffer), buffer

    def _task(self, t: ScheduledTask) -> None:
        first, last = self._slice(t)
        came, goes = ((self.messages.consumed, self.messages.produced) if t.kind == "F" else
                      (self.messages.produced, self.messages.consumed))
        begun = self.clock.mark()
        flows = self.part.into if t.kind == "F" else self.part.out
        received = {i: self._gather(came[i, first], t.kind, first, last) for i in flows}
        ready = self.clock.mark()
        made = (self.part.forward if t.kind == "F" else self.part.backward)(first, last, received)
        ended = self.clock.mark()
        for i, packed in made.items():
            for m in goes[i, first]:
                self._send(m, t.kind, packed[m.first - first:m.last - first])
        self.marks += [("wait", begun, ready, "wait"), (f"{t.kind} {t.first}", ready, ended, "compute")]

    def _gather(self, messages: list[Message], kind: str, first: int, last: int) -> torch.Tensor:
        parts = []
        for m in messages:
            work, buffer = self.waiting.pop((kind, m.number))
            work.wait(self.patience)
            parts.append((m.first, buffer))
        parts.sort(key=lambda p: p[0])
        return parts[0][1] if len(parts) == 1 else torch.cat([p for _, p in parts])

    def _send(self, m: Message, kind: str, packed: torch.Tensor) -> None:
        mine = packed.contiguous()
        self.sends.append((self.channels.send(m, kind, mine), mine))
        self.done.messages += 1
        self.done.sent_bytes += mine.numel() * mine.element_size()

    def _reduce(self) -> None:
        begun = self.clock.mark()
        if not self.computes:
            time.sleep(self.mine.all_reduce_s * self.problem.run.time_scale)
        elif self.group is not None and isinstance(self.part, Replica):
            for p in self.part.module.parameters():
                dist.all_reduce(p.grad, group=self.group)
        if self.group is not None or self.mine.all_reduce_s:
            self.marks.append(("all-reduce", begun, self.clock.mark(), "compute"))

    def _update(self) -> None:
        if isinstance(self.part, Replica) and self.part.optimizer is not None:
            begun = self.clock.mark()
            self.part.optimizer.step()
            self.marks.append(("update", begun, self.clock.mark(), "compute"))


def note(done: Done, part: Replica) -> None:
    """What a run is judged by; copied when the step is over, so that no clock counts it."""
    done.peak_bytes = part.peak_bytes
    done.losses.append(float(part.loss))
    if done.replica == 0:
        done.gradients.append({k: g.float().cpu().numpy() for k, g in part.gradients().items()})


def weights_of(part: Replica) -> dict[str, Any]:
    """Weights by 'operator/parameter'."""
    return {name: p.detach().float().cpu().numpy() for name, p in part.module.names()}


def execute(problem: Problem, plan: Plan, rank: int, *, device: str = "cpu", neighbours: int | None = None,
            ordered: bool = False) -> Done | None:
    """This rank's part of the run; ``None`` if the plan does not use it. Every rank of the world must call it.

    One thread, and the allocator as while measuring; with a CPU for every rank of this machine (``neighbours``), each
    keeps to its own. ``ordered`` matches messages by their order, as NCCL needs it.
    """
    if device != "cpu":
        torch.cuda.set_device(device)
        return _execute(problem, plan, rank, device=device, ordered=ordered)
    cpus = available_cpus()
    here = dist.get_world_size() if neighbours is None else neighbours
    with fixed_conditions(threads=1):
        own = {cpus[rank % here]} if here <= len(cpus) else set(cpus)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, own)
            # Of this thread alone: gloo's own threads, made before, then need not wait for a time slice to pass.
            os.setpriority(os.PRIO_PROCESS, 0, _YIELDING)
        return _execute(problem, plan, rank, device=device, ordered=ordered)


def _execute(problem: Problem, plan: Plan, rank: int, *, device: str, ordered: bool) -> Done | None:
    places = ranks(plan)
    channels = Ordered(table(problem, plan), device) if ordered else Tagged()
    group = None
    for x, s in enumerate(plan.stages):
        if len(s.devices) > 1:
            members = [r for r, (stage, _) in enumerate(places) if stage == x]
            made = dist.new_group(members)
            if rank in members:
                group = made
                dist.all_reduce(torch.zeros(1, device=device), group=made)
    worker = _Worker(problem, plan, rank, group, channels, device) if rank < len(places) else None
    for number in range(problem.run.steps):
        if worker is not None:
            worker.step(number)
        else:
            dist.barrier()
    dist.barrier()
    if worker is not None and isinstance(worker.part, Replica) and worker.replica == 0:
        worker.done.weights = weights_of(worker.part)
    return None if worker is None else worker.done

"""A plan as a task graph: a compute stream a stage, a link a flow and direction, all-reduce and update at the end.

Written from the plan alone. A message carries one micro-batch of its sender; a task waits for every message whose
samples it needs. ``Replay.tasks`` says which task is which, so that checks can look at samples instead of names.
"""

from __future__ import annotations

from dataclasses import dataclass

from planners.pipeline.problem import Plan, Problem
from workbench.taskgraph import GraphRun, Link, Pool, Resource, Task, TaskGraph, TaskList, simulate

__all__ = ["Replay", "ScheduledTask", "replay", "schedule"]


@dataclass(frozen=True, slots=True)
class ScheduledTask:
    """Forward (F) or backward (B) of samples ``first`` … ``last`` - 1 at a stage."""

    stage: int
    kind: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Replay:
    """The played graph; ``tasks`` maps each compute task to its position."""

    run: GraphRun
    tasks: dict[ScheduledTask, int]

    def peak_samples(self, stage: int) -> int:
        """Most samples in flight at a stage."""
        return int(self.run.pool_peak[_pool(stage)])


def schedule(problem: Problem, plan: Plan) -> list[list[ScheduledTask]]:
    """Each stage's tasks in its static order: warm-up forwards, k backwards and k forwards in turn, the rest."""
    out = []
    for x, s in enumerate(plan.stages):
        b, k = s.micro_batch_samples, s.forwards_per_turn
        count = problem.batch_samples // b
        done = {"F": 0, "B": 0}
        tasks: list[ScheduledTask] = []
        turns = [("F", s.in_flight_samples // b)]
        while done["B"] < count:
            for kind, n in turns:
                top = count if kind == "F" else done["F"]
                tasks += [ScheduledTask(x, kind, m * b, (m + 1) * b)
                          for m in range(done[kind], min(done[kind] + n, top))]
                done[kind] = min(done[kind] + n, top)
            turns = [("B", k), ("F", k)]
        out.append(tasks)
    return out


def replay(problem: Problem, plan: Plan) -> Replay:
    """Play the plan.

    Raises:
        CheckFailed: its schedules wait on each other.
    """
    orders = schedule(problem, plan)
    tasks = TaskList()
    index: dict[ScheduledTask, int] = {}
    for order in orders:
        for t in order:
            index[t] = len(index)
    links, sent = [], {}
    messages: list[tuple[str, int, ScheduledTask]] = []
    into: list[list[tuple[int, int, str]]] = [[] for _ in plan.stages]
    for i, f in enumerate(plan.flows):
        u, v = f.producer, f.consumer
        narrow = min(len(plan.stages[u].devices), len(plan.stages[v].devices))
        rate = getattr(problem.cluster, f.link)
        carried = f.bytes_per_sample and problem.transfers == "overlapped"
        for kind, sender, receiver in (("F", u, v), ("B", v, u)):
            name = f"{u}>{v}" if kind == "F" else f"{v}>{u}"
            if carried:
                links.append(Link(name=name, alpha_s=rate.latency_s, bytes_per_s=rate.bytes_per_s * narrow))
            into[receiver].append((i, sender, kind))
            for t in orders[sender]:
                if t.kind == kind:
                    if carried:
                        sent[i, t] = len(index) + len(messages)
                        messages.append((name, int(f.bytes_per_sample * (t.last - t.first)), t))
                    else:
                        sent[i, t] = index[t]
    for x, order in enumerate(orders):
        s = plan.stages[x]
        for t in order:
            tasks.add(_compute(problem, plan, t, orders, into[x], sent, index,
                               s.forward_s if t.kind == "F" else s.backward_s))
    for name, size, t in messages:
        tasks.add(Task(name=f"send {name} {t.first}", link=name, bytes=size, after=(index[t],)))
    resources = {_device(x): [index[t] for t in order] for x, order in enumerate(orders)}
    for x, s in enumerate(plan.stages):
        for what, seconds in (("all-reduce", s.all_reduce_s), ("update", s.update_s)):
            if seconds:
                mine = resources[_device(x)]
                at = tasks.add(Task(name=what, duration_s=seconds, on=(_device(x),), after=(mine[-1],),
                                    bytes=int(s.weight_bytes)))
                mine.append(at)
    pools = [Pool(name=_pool(x), capacity=float("inf"), unit="samples", device=f"stage {x}")
             for x in range(len(plan.stages))]
    return Replay(simulate(TaskGraph(tasks=tasks, links=links, pools=pools, orders=resources)), index)


def _compute(problem: Problem, plan: Plan, t: ScheduledTask, orders: list[list[ScheduledTask]],
             into: list[tuple[int, int, str]], sent: dict[tuple[int, ScheduledTask], int],
             index: dict[ScheduledTask, int], seconds: float) -> Task:
    after = []
    for flow, sender, kind in into:
        if kind == t.kind:
            b = plan.stages[sender].micro_batch_samples
            after += [sent[flow, ScheduledTask(sender, kind, first, first + b)]
                      for first in range(t.first // b * b, t.last, b)]
    if t.kind == "B":
        after.append(index[ScheduledTask(t.stage, "F", t.first, t.last)])
    size = t.last - t.first
    return Task(name=f"{t.kind} {t.first}", duration_s=seconds, on=(_device(t.stage),), after=tuple(after),
                acquire={_pool(t.stage): size} if t.kind == "F" else {},
                release={_pool(t.stage): size} if t.kind == "B" else {})


def _device(stage: int) -> Resource:
    return Resource(f"stage {stage}")


def _pool(stage: int) -> str:
    return f"in flight at stage {stage}"

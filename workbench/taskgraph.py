"""Play a DAG of tasks on resources, links and pools, on SimPy's clock.

Theory. Whatever is scarce is a counting semaphore: a resource has one unit, an exclusive link one a channel, a pool
(memory, in-flight credits) its capacity. A task is *ready* when all it comes ``after`` has ended and its
``not_before_s`` has passed. At one instant first every end is booked, then the ready tasks are tried in the order
(priority, position in the graph); a task takes all its units and starts, or takes none and waits. It runs
``duration_s``, or alpha + bytes/beta on its link, is never interrupted, and gives its units back at its end. This is
list scheduling (Graham 1969). A static order on a resource is nothing but one precedence edge from each task to the
next, so a set of orders that wait on each other is a cycle, and is reported as one.

A shared link divides its rate equally among the n transfers past their latency (processor sharing): with
dV/dt = beta/n, a transfer that joins at V0 with b bytes leaves when V = V0 + b.

The clock counts whole femtoseconds, events are ordered by (time, priority, sequence): one graph, one timeline.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from workbench.plan import Bound
from workbench.stepcosts import TICKS_PER_S, to_ticks
from workbench.timeline import Timeline

__all__ = ["GraphRun", "Link", "Pool", "Resource", "Task", "TaskGraph", "TaskList", "makespan_bound", "simulate"]


class Resource(NamedTuple):
    """Runs one task at a time: a stream of a device."""

    device: str
    stream: str = "compute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Carries a message of b bytes in ``alpha_s + b / bytes_per_s`` when nothing else wants it.

    Exclusive: at most ``channels`` messages at a time, each at the full rate. Shared: any number at a time, which
    divide the rate equally once their latency is over.
    """

    name: str
    alpha_s: float
    bytes_per_s: float
    sharing: Literal["exclusive", "shared"] = "exclusive"
    channels: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Memory with a capacity, or a limit of things in flight (unit '1'); ``held`` units are taken from the start.

    Capacity ``inf`` limits nothing and still records the peak. Viewers show the level below ``device``.
    """

    name: str
    capacity: float
    held: int = 0
    unit: str = "bytes"
    device: str = "pools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of work; positions in ``after`` refer to the graph's task list.

    It occupies every resource in ``on``, and its link if it has one, for ``duration_s`` (without a link) or as long
    as its ``bytes`` take on the link. It takes ``acquire`` (pool: units) at its start and gives ``release`` back at
    its end; what one task acquires another may release. Smaller ``priority`` goes first.
    """

    name: str
    duration_s: float = 0.0
    on: tuple[Resource, ...] = ()
    link: str | None = None
    bytes: int = 0
    after: tuple[int, ...] = ()
    priority: int = 0
    not_before_s: float = 0.0
    acquire: Mapping[str, int] = field(default_factory=dict)
    release: Mapping[str, int] = field(default_factory=dict)


class TaskList(list[Task]):
    """Tasks being collected; ``add`` hands out positions."""

    def add(self, task: Task) -> int:
        """Append ``task``; its position, for others to come after."""
        self.append(task)
        return len(self) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGraph:
    """Tasks, what they share, and the static order (all its tasks, by position) of some or no resources."""

    tasks: Sequence[Task]
    links: Sequence[Link] = ()
    pools: Sequence[Pool] = ()
    orders: Mapping[Resource, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRun:
    """What happened: start and end of every task (seconds, shape [tasks]) and what was moved and held.

    ``span[i]`` is the position in ``timeline`` of task i's first span; a task on several resources has one span on
    each, the ones after the first without dependencies and bytes.
    """

    timeline: Timeline
    start_s: np.ndarray
    end_s: np.ndarray
    span: np.ndarray
    link_bytes: Mapping[str, int]
    link_messages: Mapping[str, int]
    pool_peak: Mapping[str, float]

    @property
    def makespan_s(self) -> float:
        """End of the last task, from time 0; 0 without tasks."""
        return float(self.end_s.max()) if self.end_s.size else 0.0

    @property
    def counters(self) -> dict[str, float]:
        """Flat names for an ``Outcome``: 'bytes/LINK', 'messages/LINK', 'peak/POOL'."""
        return {**{f"bytes/{k}": float(v) for k, v in self.link_bytes.items()},
                **{f"messages/{k}": float(v) for k, v in self.link_messages.items()},
                **{f"peak/{k}": float(v) for k, v in self.pool_peak.items()}}


def simulate(graph: TaskGraph) -> GraphRun:
    """Play ``graph`` to its end.

    Raises:
        SpecError: the graph names things that are not there, or numbers that cannot be; all faults at once.
        CheckFailed: tasks wait on each other in a cycle, a pool is too small for a task, is never refilled for the
            tasks that wait for it, or is given back more than was taken.
    """
    from workbench.graphcheck import require_sound
    from workbench.graphclock import Engine

    require_sound(graph)
    engine = Engine(graph)
    engine.run()
    return engine.result()


def makespan_bound(graph: TaskGraph) -> Bound:
    """Lower bound in seconds on ``makespan_s``: the longest path (orders included) and the load of each resource.

    Raises:
        SpecError: as ``simulate``.
        CheckFailed: the graph has a cycle.
    """
    from workbench.graphcheck import edges, require_sound, topological

    began = time.perf_counter()
    require_sound(graph)
    durations = alone_ticks(graph)
    _, outgoing = edges(graph)
    finish = [to_ticks(task.not_before_s) for task in graph.tasks]
    for i in topological(graph):
        finish[i] += durations[i]
        for j in outgoing[i]:
            finish[j] = max(finish[j], finish[i])
    load: dict[Resource | str, int] = {}
    links = {link.name: link for link in graph.links}
    for task, ticks in zip(graph.tasks, durations, strict=True):
        for resource in task.on:
            load[resource] = load.get(resource, 0) + ticks
        if task.link is not None:
            link = links[task.link]
            share = to_ticks(task.bytes / link.bytes_per_s) if link.sharing == "shared" else ticks / link.channels
            load[task.link] = load.get(task.link, 0) + int(share)
    value = max([*finish, *load.values()], default=0) / TICKS_PER_S
    return Bound(value=value, kind="combinatorial", seconds=time.perf_counter() - began)


def alone_ticks(graph: TaskGraph) -> list[int]:
    """Ticks each task takes when it has everything to itself."""
    links = {link.name: link for link in graph.links}
    return [to_ticks(t.duration_s) if t.link is None
            else to_ticks(links[t.link].alpha_s + t.bytes / links[t.link].bytes_per_s) for t in graph.tasks]

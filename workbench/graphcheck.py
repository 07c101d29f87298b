"""Before a task graph is played: are its names and numbers possible, and can its tasks be put in a row?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import NoReturn

from workbench.errors import CheckFailed, SpecError, WorkbenchError, nearest
from workbench.taskgraph import Resource, Task, TaskGraph

__all__ = ["edges", "require_sound", "topological"]


def require_sound(graph: TaskGraph) -> None:
    """All names, positions and numbers of the graph are possible; otherwise a ``SpecError`` lists what is not."""
    faults = [*_link_and_pool_faults(graph), *_task_faults(graph), *_order_faults(graph)]
    if faults:
        raise SpecError(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}", faults=faults[:20], where="task graph")


def _link_and_pool_faults(graph: TaskGraph) -> list[WorkbenchError]:
    faults = [WorkbenchError("two have this name", where=f"{kind} {name}")
              for kind, things in (("link", graph.links), ("pool", graph.pools))
              for name in sorted({t.name for t in things if sum(o.name == t.name for o in things) > 1})]
    faults += [WorkbenchError("needs alpha_s >= 0, bytes_per_s > 0 and channels >= 1", where=f"link {link.name}")
               for link in graph.links if not (link.alpha_s >= 0 and link.bytes_per_s > 0 and link.channels >= 1)]
    faults += [WorkbenchError("needs 0 <= held <= capacity", where=f"pool {pool.name}")
               for pool in graph.pools if not 0 <= pool.held <= pool.capacity]
    return faults


def _task_faults(graph: TaskGraph) -> list[WorkbenchError]:
    links = {link.name for link in graph.links}
    pools = {pool.name for pool in graph.pools}
    faults: list[WorkbenchError] = []
    for i, task in enumerate(graph.tasks):
        if not (0 <= task.duration_s < inf and 0 <= task.not_before_s < inf and task.bytes >= 0):
            faults.append(_fault(i, task, "times and bytes must be finite and not negative"))
        if task.after and (min(task.after) < 0 or max(task.after) >= len(graph.tasks)):
            faults.append(_fault(i, task, f"comes after a task outside 0 … {len(graph.tasks) - 1}"))
        if len(task.on) > 1 and len(set(task.on)) < len(task.on):
            faults.append(_fault(i, task, "names a resource twice"))
        if task.link is not None:
            if task.link not in links:
                faults.append(_unknown(i, task, f"no link is called {task.link!r}", task.link, links))
            if task.duration_s:
                faults.append(_fault(i, task, "has a link and a duration_s; the link gives its time"))
        if task.acquire or task.release:
            for name, amount in (*task.acquire.items(), *task.release.items()):
                if name not in pools:
                    faults.append(_unknown(i, task, f"no pool is called {name!r}", name, pools))
                if amount < 0:
                    faults.append(_fault(i, task, f"takes or gives {amount} of pool {name}"))
    return faults


def _fault(i: int, task: Task, message: str) -> WorkbenchError:
    return WorkbenchError(message, where=f"task {i} ({task.name})")


def _unknown(i: int, task: Task, message: str, name: str, known: set[str]) -> WorkbenchError:
    close = nearest(name, known)
    return WorkbenchError(message, where=f"task {i} ({task.name})", allowed=sorted(known),
                          hint=f"did you mean {close!r}?" if close else None)


def _order_faults(graph: TaskGraph) -> list[WorkbenchError]:
    members: dict[Resource, list[int]] = {resource: [] for resource in graph.orders}
    for i, task in enumerate(graph.tasks if graph.orders else ()):
        for resource in task.on:
            if resource in members:
                members[resource].append(i)
    faults = []
    for resource, order in graph.orders.items():
        where = f"order of {resource.device}/{resource.stream}"
        missing = set(members[resource]) - set(order)
        strange = set(order) - set(members[resource])
        if missing or strange or len(order) != len(members[resource]):
            faults.append(WorkbenchError(
                f"must name each task on the resource once; missing {sorted(missing)[:8]}, not on it "
                f"{sorted(strange)[:8]}, {len(order)} entries for {len(members[resource])} tasks", where=where))
    return faults


def edges(graph: TaskGraph) -> tuple[list[int], list[list[int]]]:
    """How many edges (dependencies and orders) lead into each task, and the tasks each one leads to."""
    incoming = [len(task.after) for task in graph.tasks]
    outgoing: list[list[int]] = [[] for _ in graph.tasks]
    for i, task in enumerate(graph.tasks):
        for j in task.after:
            outgoing[j].append(i)
    for order in graph.orders.values():
        for first, then in pairwise(order):
            incoming[then] += 1
            outgoing[first].append(then)
    return incoming, outgoing


def topological(graph: TaskGraph) -> list[int]:
    """The tasks, each behind all it waits for; a cycle is a ``CheckFailed`` that spells it out."""
    incoming, outgoing = edges(graph)
    order = [i for i, count in enumerate(incoming) if count == 0]
    for i in order:
        for j in outgoing[i]:
            incoming[j] -= 1
            if incoming[j] == 0:
                order.append(j)
    if len(order) < len(graph.tasks):
        _report_cycle(graph, incoming)
    return order


def _report_cycle(graph: TaskGraph, incoming: Sequence[int]) -> NoReturn:
    """Walk back along edges that were never served; ``incoming`` counts them."""
    before: list[dict[int, str]] = [{} for _ in graph.tasks]
    for resource, order in graph.orders.items():
        for first, then in pairwise(order):
            before[then][first] = f"order of {resource.device}/{resource.stream}"
    for i, task in enumerate(graph.tasks):
        before[i].update(dict.fromkeys(task.after, "dependency"))
    at = next(i for i, count in enumerate(incoming) if count)
    path: dict[int, None] = {}
    while at not in path:
        path[at] = None
        at = next(j for j in before[at] if incoming[j])
    cycle = [*path][[*path].index(at):]
    lines = [f"\n  {graph.tasks[i].name} waits for {graph.tasks[j].name} ({before[i][j]})"
             for i, j in pairwise([*cycle, at])]
    more = f"\n  … and {len(lines) - 12} more" if len(lines) > 12 else ""
    raise CheckFailed(f"deadlock: {len(cycle)} tasks wait on each other in a cycle" + "".join(lines[:12]) + more,
                      where="task graph")

"""The clock of ``taskgraph``: SimPy plays a sound, acyclic graph by the rules stated there.

Tasks are SimPy events with a callback, not processes: a generator a task would cost several times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, NoReturn

import numpy as np
import simpy
from simpy.events import NORMAL, EventPriority

from workbench.errors import CheckFailed
from workbench.graphcheck import edges, topological
from workbench.stepcosts import TICKS_PER_S, to_ticks
from workbench.taskgraph import GraphRun, Link, Resource, Task, TaskGraph, alone_ticks
from workbench.timeline import Lane, Level, Timeline, natural_key

__all__ = ["Engine"]

# At one instant every end is booked before anything is started.
_BOOK, _DISPATCH = NORMAL, EventPriority(NORMAL + 1)


class _Event(simpy.Event):
    """Calls ``callback(event)`` after ``delay`` ticks; events of one instant by ``priority``, then as scheduled."""

    def __init__(self, env: simpy.Environment, callback: Any, value: Any, delay: int, priority: EventPriority) -> None:
        self.env = env
        self.callbacks = [callback]
        self._value = value
        self._ok = True
        env.schedule(self, priority, delay)


class _Sharing:
    """The transfers now dividing one shared link: virtual work ``v`` done for each since it was last idle."""

    __slots__ = ("flows", "last", "per_tick", "v", "version")

    def __init__(self, link: Link) -> None:
        self.per_tick = link.bytes_per_s / TICKS_PER_S
        self.flows: list[tuple[float, int]] = []
        self.v = 0.0
        self.last: float = 0
        self.version = 0

    def advance(self, now: float) -> None:
        if self.flows:
            self.v += (now - self.last) * self.per_tick / len(self.flows)
        else:
            self.v = 0.0
        self.last = now

    def ticks_to_next(self) -> int:
        return max(0, round((self.flows[0][0] - self.v) * len(self.flows) / self.per_tick))

    def leave(self, now: float) -> list[int]:
        """The transfers that end now: the next one due and all that end with it."""
        self.v, self.last = self.flows[0][0], now
        gone = []
        while self.flows and self.flows[0][0] <= self.v:
            gone.append(heappop(self.flows)[1])
        return sorted(gone)


class Engine:
    """State of one simulation. Gates (semaphores) are numbered: resources, then links, then pools."""

    def __init__(self, graph: TaskGraph) -> None:
        self.graph = graph
        self.env = simpy.Environment(0)
        tasks = graph.tasks
        used = sorted({r for t in tasks for r in t.on}, key=lambda r: [natural_key(part) for part in r])
        self.resources = {r: g for g, r in enumerate(used)}
        self.links = {link.name: len(used) + k for k, link in enumerate(graph.links)}
        self.first_pool = len(used) + len(graph.links)
        self.pools = {pool.name: self.first_pool + k for k, pool in enumerate(graph.pools)}
        self.room: list[float] = [
            *[1] * len(used),
            *[float("inf") if link.sharing == "shared" else link.channels for link in graph.links],
            *[pool.capacity - pool.held for pool in graph.pools]]
        self.sharing = {self.links[link.name]: _Sharing(link) for link in graph.links if link.sharing == "shared"}
        self.places: dict[tuple[tuple[Resource, ...], str | None], list[tuple[int, float]]] = {}
        self.takes = [self._units(t, t.acquire) for t in tasks]
        self.gives = [self._units(t, t.release) for t in tasks]
        self.least = [float("inf")] * len(self.room)
        for i, takes in enumerate(self.takes):
            for gate, amount in takes:
                self.least[gate] = min(self.least[gate], amount)
                if gate >= self.first_pool:
                    self._require_capacity(i, gate, amount)
        self.ticks = alone_ticks(graph)
        by_rank = sorted(range(len(tasks)), key=lambda i: tasks[i].priority)
        self.by_rank = by_rank
        self.rank = [0] * len(tasks)
        for r, i in enumerate(by_rank):
            self.rank[i] = r
        self.missing, self.successors = edges(graph)
        self.parked: list[list[int]] = [[] for _ in self.room]
        self.freed: set[int] = set()
        self.fresh: list[int] = []
        self.dispatching = False
        # Whole ticks; SimPy's type of a time is wider.
        self.start: list[float] = [-1] * len(tasks)
        self.end: list[float] = [-1] * len(tasks)
        self.lane_of = [0] * len(tasks)
        self.free_lanes: dict[int, list[int]] = {gate: [] for gate in (*self.links.values(), -1)}
        self.lanes_made: dict[int, int] = dict.fromkeys(self.free_lanes, 0)
        self.lane_gate = [self.links[t.link] if t.link is not None else (-1 if not t.on else None) for t in tasks]
        self.held = [pool.held for pool in graph.pools]
        self.peak = list(self.held)
        self.steps: list[dict[float, int]] = [{0: pool.held} for pool in graph.pools]

    def _units(self, task: Task, of_pools: Mapping[str, int]) -> list[tuple[int, float]]:
        """The (gate, units) that a task takes or gives; tasks in the same place share one list."""
        key = (task.on, task.link)
        units = self.places.get(key)
        if units is None:
            units = self.places[key] = [(self.resources[resource], 1) for resource in task.on]
            if task.link is not None:
                units.append((self.links[task.link], 1))
        return [*units, *((self.pools[name], n) for name, n in of_pools.items() if n)] if of_pools else units

    def _require_capacity(self, i: int, gate: int, amount: float) -> None:
        pool = self.graph.pools[gate - self.first_pool]
        if amount > pool.capacity:
            raise CheckFailed(f"{self.graph.tasks[i].name} takes {amount:g} {pool.unit} of pool {pool.name}, which "
                              f"holds {pool.capacity:g}", where="task graph")

    def run(self) -> None:
        """Play until nothing more can happen; tasks left over then are a deadlock."""
        for i, task in enumerate(self.graph.tasks):
            if task.not_before_s > 0:
                self.missing[i] += 1
                _Event(self.env, self._wake, i, to_ticks(task.not_before_s), _BOOK)
            elif not self.missing[i]:
                self.fresh.append(self.rank[i])
        if self.fresh:
            self._call_dispatch()
        self.env.run()
        if any(end < 0 for end in self.end):
            # Only a cycle or a pool can hold tasks back for ever; the first call reports the cycle if there is one.
            topological(self.graph)
            self._report_starvation()

    def _call_dispatch(self) -> None:
        if not self.dispatching:
            self.dispatching = True
            _Event(self.env, self._dispatch, None, 0, _DISPATCH)

    def _wake(self, event: Any) -> None:
        i = event.value
        self.missing[i] -= 1
        if not self.missing[i]:
            self.fresh.append(self.rank[i])
        self._call_dispatch()

    def _dispatch(self, _: Any) -> None:
        """Try, in rank order, the tasks that became ready and those parked at gates with new room.

        The others are parked at a gate that got no room since they were last refused, so they need not be asked.
        """
        self.dispatching = False
        room, parked, least, takes_of = self.room, self.parked, self.least, self.takes
        candidates = [(rank, -1) for rank in self.fresh]
        self.fresh = []
        candidates += [(heappop(parked[gate]), gate) for gate in self.freed if parked[gate]]
        self.freed.clear()
        heapify(candidates)
        refused: list[tuple[int, int]] = []
        while candidates:
            rank, source = heappop(candidates)
            i = self.by_rank[rank]
            for gate, amount in takes_of[i]:
                if room[gate] < amount:
                    refused.append((gate, rank))
                    break
            else:
                self._begin(i)
            # Room only shrinks within this loop, so a gate without room for its least asker is done for now.
            if source >= 0 and parked[source] and room[source] >= least[source]:
                heappush(candidates, (heappop(parked[source]), source))
        for gate, rank in refused:
            heappush(parked[gate], rank)

    def _begin(self, i: int) -> None:
        self.start[i] = self.env.now
        for gate, amount in self.takes[i]:
            self.room[gate] -= amount
            if gate >= self.first_pool:
                self._book(gate - self.first_pool, int(amount))
        lanes = self.lane_gate[i]
        if lanes is not None:
            free = self.free_lanes[lanes]
            if not free:
                heappush(free, self.lanes_made[lanes])
                self.lanes_made[lanes] += 1
            self.lane_of[i] = heappop(free)
            if lanes in self.sharing:
                latency_s = self.graph.links[lanes - len(self.resources)].alpha_s
                _Event(self.env, self._join, i, to_ticks(latency_s), _BOOK)
                return
        _Event(self.env, self._finish, i, self.ticks[i], _BOOK)

    def _finish(self, event: Any) -> None:
        self._end(event.value)
        if not self.dispatching:
            self._call_dispatch()

    def _end(self, i: int) -> None:
        self.end[i] = self.env.now
        room, freed = self.room, self.freed
        for gate, amount in self.gives[i]:
            room[gate] += amount
            freed.add(gate)
            if gate >= self.first_pool:
                self._book(gate - self.first_pool, -int(amount))
                if self.held[gate - self.first_pool] < 0:
                    pool = self.graph.pools[gate - self.first_pool]
                    raise CheckFailed(f"{self.graph.tasks[i].name} gives {amount:g} {pool.unit} back to pool "
                                      f"{pool.name}, more than was taken from it", where="task graph")
        lanes = self.lane_gate[i]
        if lanes is not None:
            heappush(self.free_lanes[lanes], self.lane_of[i])
        missing = self.missing
        for j in self.successors[i]:
            missing[j] -= 1
            if not missing[j]:
                self.fresh.append(self.rank[j])

    def _book(self, k: int, change: int) -> None:
        held = self.held[k] = self.held[k] + change
        self.steps[k][self.env.now] = held
        self.peak[k] = max(self.peak[k], held)

    def _join(self, event: Any) -> None:
        i, now = event.value, self.env.now
        gate = self.links[self.graph.tasks[i].link]
        sharing = self.sharing[gate]
        sharing.advance(now)
        heappush(sharing.flows, (sharing.v + self.graph.tasks[i].bytes, i))
        self._await_next(gate, sharing)

    def _await_next(self, gate: int, sharing: _Sharing) -> None:
        sharing.version += 1
        if sharing.flows:
            _Event(self.env, self._leave, (gate, sharing.version), sharing.ticks_to_next(), _BOOK)

    def _leave(self, event: Any) -> None:
        gate, version = event.value
        sharing = self.sharing[gate]
        # Someone joined or left since this was foreseen; a newer event stands for it.
        if version != sharing.version:
            return
        for i in sharing.leave(self.env.now):
            self._end(i)
        self._await_next(gate, sharing)
        self._call_dispatch()

    def _report_starvation(self) -> NoReturn:
        tasks, lines = self.graph.tasks, []
        for name, gate in self.pools.items():
            waiting = [self.by_rank[rank] for rank in sorted(self.parked[gate])]
            if not waiting:
                continue
            pool = self.graph.pools[gate - self.first_pool]
            givers = [t.name for t, end in zip(tasks, self.end, strict=True) if end < 0 and t.release.get(name)]
            held = self.held[gate - self.first_pool]
            lines.append(f"\n  pool {name} holds {held} of {pool.capacity:g} {pool.unit}; waiting for room: "
                         + _some([f"{tasks[i].name} ({tasks[i].acquire[name]})" for i in waiting])
                         + "; still to give back: " + (_some(givers) if givers else "no task"))
        left = sum(end < 0 for end in self.end)
        raise CheckFailed(f"deadlock: {left} of {len(tasks)} tasks never start" + "".join(lines), where="task graph",
                          hint="give the pool more room, or order the tasks so that those that give back go first")

    def result(self) -> GraphRun:
        """Columns of the timeline, in task order, and the counters."""
        tasks, links = self.graph.tasks, self.graph.links
        lanes = [Lane(*resource) for resource in self.resources]
        first_lane: dict[int, int] = {}
        for gate, made in self.lanes_made.items():
            first_lane[gate] = len(lanes)
            label = "share" if gate in self.sharing else "channel"
            lanes += [Lane("unbound", f"slot {k}") if gate < 0 else
                      Lane(links[gate - len(self.resources)].name, f"{label} {k}") for k in range(made)]
        lane: list[int] = []
        of_task: list[int] = []
        span: list[int] = []
        for i, task in enumerate(tasks):
            span.append(len(lane))
            lanes_of = self.lane_gate[i]
            if lanes_of is not None:
                lane.append(first_lane[lanes_of] + self.lane_of[i])
            lane += [self.resources[resource] for resource in task.on]
            of_task += [i] * (len(lane) - span[i])
        names: dict[str, int] = {}
        name = np.array([names.setdefault(t.name, len(names)) for t in tasks], np.int32)
        start_s = np.array([tick / TICKS_PER_S for tick in self.start])
        end_s = np.array([tick / TICKS_PER_S for tick in self.end])
        moved, waits = np.zeros(len(lane), np.int64), np.zeros(len(lane), np.int64)
        moved[span] = [t.bytes for t in tasks]
        waits[span] = [len(t.after) for t in tasks]
        levels = [Level(name=pool.name, unit=pool.unit, device=pool.device,
                        time_s=np.array([tick / TICKS_PER_S for tick in steps]), value=np.array([*steps.values()]))
                  for pool, steps in zip(self.graph.pools, self.steps, strict=True)]
        timeline = Timeline(
            lanes=tuple(lanes), lane=np.array(lane, np.int32), names=tuple(names), name=name[of_task],
            start_s=start_s[of_task], end_s=end_s[of_task], bytes=moved,
            after_from=np.concatenate([[0], np.cumsum(waits)]),
            after=np.array([span[j] for t in tasks for j in t.after], np.int64), levels=tuple(levels))
        carried = [[t.bytes for t in tasks if t.link == link.name] for link in links]
        return GraphRun(
            timeline=timeline, start_s=start_s, end_s=end_s, span=np.array(span, np.int64),
            link_bytes={link.name: sum(sizes) for link, sizes in zip(links, carried, strict=True)},
            link_messages={link.name: len(sizes) for link, sizes in zip(links, carried, strict=True)},
            pool_peak={p.name: float(peak) for p, peak in zip(self.graph.pools, self.peak, strict=True)})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

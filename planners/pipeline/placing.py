"""Devices for stages: replicas of one stage in one machine where they fit, talking stages near each other.

Stages are taken widest first (then in topological order); each goes to the machine that has room and shares most bytes
with the stages already there, the fullest such machine on a tie; a stage no machine has room for takes the lowest free
devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planners.pipeline.problem import Cluster

__all__ = ["place", "together"]


def together(devices: Sequence[int], cluster: Cluster) -> bool:
    """Whether all ``devices`` stand in one machine."""
    return len({d // cluster.devices_per_machine for d in devices}) <= 1


def place(replicas: Sequence[int], flows: Mapping[tuple[int, int], float], cluster: Cluster) -> list[tuple[int, ...]]:
    """Devices of every stage; ``flows`` are bytes a sample by (producer, consumer)."""
    machines: list[list[int]] = []
    for d in range(cluster.devices):
        if d % cluster.devices_per_machine == 0:
            machines.append([])
        machines[-1].append(d)
    near: list[dict[int, float]] = [{} for _ in replicas]
    for (u, v), size in flows.items():
        near[u][v] = near[u].get(v, 0.0) + size
        near[v][u] = near[v].get(u, 0.0) + size
    home: dict[int, int] = {}
    out: list[tuple[int, ...]] = [()] * len(replicas)
    for x in sorted(range(len(replicas)), key=lambda x: (-replicas[x], x)):
        shared = [0.0] * len(machines)
        for y, size in near[x].items():
            if y in home:
                shared[home[y]] += size
        fitting = [m for m, free in enumerate(machines) if len(free) >= replicas[x]]
        if fitting:
            home[x] = best = min(fitting, key=lambda m: (-shared[m], len(machines[m]), m))
            out[x] = tuple(machines[best][:replicas[x]])
            del machines[best][:replicas[x]]
            continue
        taken: list[int] = []
        for free in machines:
            while free and len(taken) < replicas[x]:
                taken.append(free.pop(0))
        out[x] = tuple(taken)
    return out

"""Devices for stages: replicas of one stage in one machine where they fit, talking stages near each other.

Stages are taken widest first, each to the machine that has room and shares most bytes with the stages already there,
the fullest such machine on a tie; a stage no machine has room for takes the lowest free devices. That is done twice:
with stages of one width in topological order, and with those that should share a machine one after the other (the
largest flows bring stages together as long as a machine holds them), if the largest flow between machines shrinks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planners.pipeline.problem import Cluster

__all__ = ["places", "together"]


def together(devices: Sequence[int], cluster: Cluster) -> bool:
    """Whether all ``devices`` stand in one machine."""
    return len({d // cluster.devices_per_machine for d in devices}) <= 1


def places(replicas: Sequence[int], flows: Mapping[tuple[int, int], float],
           cluster: Cluster) -> list[list[tuple[int, ...]]]:
    """One or two ways to choose devices of every stage; ``flows`` are bytes a sample by (producer, consumer)."""
    near: list[dict[int, float]] = [{} for _ in replicas]
    for (u, v), size in flows.items():
        near[u][v] = near[u].get(v, 0.0) + size
        near[v][u] = near[v].get(u, 0.0) + size
    first = _placed(sorted(range(len(replicas)), key=lambda x: (-replicas[x], x)), replicas, near, cluster)
    far = _largest_far(first, replicas, flows, cluster)
    if not far:
        return [first]
    groups = _groups(replicas, flows, cluster.devices_per_machine)
    widths = {g: sum(replicas[x] for x in groups if groups[x] == g) for g in groups.values()}
    order = sorted(groups, key=lambda x: (-max(replicas[x], widths[groups[x]]), groups[x], -replicas[x], x))
    second = _placed(order, replicas, near, cluster)
    return [first, second] if _largest_far(second, replicas, flows, cluster) < far else [first]


def _groups(replicas: Sequence[int], flows: Mapping[tuple[int, int], float], room: int) -> dict[int, int]:
    """A number for every stage, equal for those that the largest flows bring together on ``room`` devices."""
    group = {x: x for x in range(len(replicas))}
    width = list(replicas)
    for (u, v), size in sorted(flows.items(), key=lambda flow: -flow[1]):
        a, b = group[u], group[v]
        if size and a != b and width[a] + width[b] <= room:
            width[a] += width[b]
            for x, g in group.items():
                if g == b:
                    group[x] = a
    return group


def _largest_far(devices: Sequence[Sequence[int]], replicas: Sequence[int], flows: Mapping[tuple[int, int], float],
                 cluster: Cluster) -> float:
    """Most bytes a sample that a device sends over one flow between machines."""
    return max((size / min(replicas[u], replicas[v]) for (u, v), size in flows.items()
                if not together((*devices[u], *devices[v]), cluster)), default=0.0)


def _placed(order: Sequence[int], replicas: Sequence[int], near: Sequence[Mapping[int, float]],
            cluster: Cluster) -> list[tuple[int, ...]]:
    machines: list[list[int]] = []
    for d in range(cluster.devices):
        if d % cluster.devices_per_machine == 0:
            machines.append([])
        machines[-1].append(d)
    home: dict[int, int] = {}
    out: list[tuple[int, ...]] = [()] * len(replicas)
    for x in order:
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

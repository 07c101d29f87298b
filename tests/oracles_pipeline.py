"""Small-graph optima of pipeline planning by enumeration, and random series-parallel problems.

Every partition of the operators into at most |D| sets is looked at; a partition counts when its stage graph is acyclic
(which makes every stage convex) and memory holds with i = b times the longest path to a last stage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from planners.pipeline.decomposition import Node
from planners.pipeline.problem import Cluster, Edge, Layer, LinkRate, Operator, Problem

FAST = LinkRate(latency_s=1e-6, bytes_per_s=1e12)


def random_problem(rng: np.random.Generator, *, operators: int, devices: int, batch: int = 8,
                   memory_bytes: float = 1e9) -> Problem:
    """A random series-parallel graph with times that grow slower than the batch."""
    names, edges = [f"o{i}" for i in range(operators)], []

    def compose(part: list[str]) -> tuple[list[str], list[str]]:
        """Sources and sinks of a random composition of ``part``."""
        if len(part) == 1:
            return part, part
        cut = int(rng.integers(1, len(part)))
        (a_in, a_out), (b_in, b_out) = compose(part[:cut]), compose(part[cut:])
        if rng.random() < 0.5:
            return a_in + b_in, a_out + b_out
        edges.extend(Edge(producer=u, consumer=v) for u in a_out for v in b_in)
        return a_in, b_out

    compose(names)
    made = []
    for name in names:
        fixed, each = rng.uniform(0, 2e-3), rng.uniform(0.5e-3, 3e-3)
        forward = {n: float(fixed + each * n) for n in (1, 2, 4, 8)}
        made.append(Operator(
            name=name, forward_s=forward, backward_s={n: 2 * t for n, t in forward.items()},
            weight_bytes=float(rng.integers(1, 50)), saved_bytes_per_sample=float(rng.integers(1, 20)),
            output_bytes_per_sample=float(rng.integers(1, 10)), layer=Layer(kind="dense", inputs=3, width=4)))
    return Problem(operators=tuple(made), edges=tuple(edges), batch_samples=batch,
                   cluster=Cluster(devices=devices, devices_per_machine=devices, memory_bytes=memory_bytes,
                                   inside=FAST, between=FAST))


def partitions(n: int, most: int) -> Iterator[list[int]]:
    """Set partitions of n operators into at most ``most`` sets, as masks."""

    def grow(v: int, parts: list[int]) -> Iterator[list[int]]:
        if v == n:
            yield list(parts)
            return
        for k in range(len(parts)):
            parts[k] |= 1 << v
            yield from grow(v + 1, parts)
            parts[k] ^= 1 << v
        if len(parts) < most:
            parts.append(1 << v)
            yield from grow(v + 1, parts)
            parts.pop()

    yield from grow(0, [])


def least_bottleneck(problem: Problem, edges: list[tuple[int, int]], weights: list[float], saved: list[float],
                     output: list[float], times: Callable[[int, int], float], micro: int,
                     allowed: Callable[[int], bool]) -> float:
    """Smallest bottleneck in seconds a sample over all partitions whose sets are ``allowed``; inf if none fits."""
    n, devices = len(weights), problem.cluster.devices
    best = math.inf
    for parts in partitions(n, devices):
        owner = {v: k for k, part in enumerate(parts) for v in range(n) if part >> v & 1}
        follow: list[set[int]] = [set() for _ in parts]
        for u, v in edges:
            if owner[u] != owner[v]:
                follow[owner[u]].add(owner[v])
        depth = _depths(follow)
        if depth is None or not all(map(allowed, parts)):
            continue
        choices = []
        for k, part in enumerate(parts):
            members = [v for v in range(n) if part >> v & 1]
            reads = {u for u, v in edges if v in members and u not in members}
            each = sum(saved[v] for v in members) + sum(output[u] for u in reads)
            static = problem.weight_copies * sum(weights[v] for v in members)
            choices.append([(d, times(part, d)) for d in range(1, devices + 1) if micro % d == 0
                            and static + min(micro * depth[k], problem.batch_samples) / d * each
                            <= problem.cluster.memory_bytes])
        for combination in itertools.product(*choices):
            if sum(d for d, _ in combination) <= devices:
                best = min(best, max(t for _, t in combination))
    return best


def _depths(follow: list[set[int]]) -> list[int] | None:
    """Longest path to an end in nodes; ``None`` with a cycle."""
    depth: dict[int, int] = {}
    open_: set[int] = set()

    def visit(x: int) -> int | None:
        if x in open_:
            return None
        if x not in depth:
            open_.add(x)
            below = [visit(y) for y in follow[x]]
            open_.discard(x)
            if None in below:
                return None
            depth[x] = 1 + max((b for b in below if b is not None), default=0)
        return depth[x]

    found = [visit(x) for x in range(len(follow))]
    return None if None in found else [d for d in found if d is not None]


def in_space(mask: int, node: Node) -> bool:
    """Whether a set of operators is a stage the dynamic program looks at."""
    for item in node.items:
        if mask & ~item.mask == 0:
            return in_space(mask, item)
    if not node.items:
        return True
    touched = [i for i, item in enumerate(node.items) if item.mask & mask]
    whole = [i for i in touched if node.items[i].mask & ~mask == 0]
    if node.shape == "parallel":
        return touched == whole
    if touched != list(range(touched[0], touched[-1] + 1)) or not whole:
        return False
    partial = [i for i in touched if i not in whole]
    if any(i not in (touched[0], touched[-1]) for i in partial):
        return False
    return all(_edge_part(mask, node.items[i], at_end=i == touched[0]) for i in partial)


def _edge_part(mask: int, fork: Node, *, at_end: bool) -> bool:
    """Before a run (``at_end``) whole branches or the tail of one; after it the head of one."""
    if fork.shape != "parallel":
        return False
    inside = [child for child in fork.items if child.mask & mask]
    if at_end and all(child.mask & ~mask == 0 for child in inside):
        return True
    if len(inside) != 1:
        return False
    parts = inside[0].parts if not at_end else inside[0].parts[::-1]
    taken = [part.mask & ~mask == 0 for part in parts]
    count = taken.index(False) if False in taken else len(taken)
    return count > 0 and all(not part.mask & mask for part in parts[count:])

"""Does a plan keep the rules of its problem? Everything is re-derived from the plan and the operator graph.

Nothing is shared with the search: reachability by walking the edges, in-flight samples, memory and iteration by playing
the plan on the task-graph clock, sample dependencies by looking at the played times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from planners.pipeline.graph import OperatorGraph
from planners.pipeline.loaders import graph_of
from planners.pipeline.problem import Plan, Problem
from planners.pipeline.replay import Replay, ScheduledTask, replay
from workbench.errors import CheckFailed
from workbench.plan import Violation, relative_gap

__all__ = ["TOLERANCE", "check"]

TOLERANCE = 1e-6


def check(problem: Problem, plan: Plan) -> list[Violation]:
    """Every rule of ``problem`` that ``plan`` breaks; empty when it keeps them all."""
    graph = graph_of(problem)
    found = [*_partition(graph, plan), *_devices(problem, plan), *_schedules(problem, plan)]
    if found:
        return found
    found = [*_flows(problem, graph, plan), *_convexity(graph, plan)]
    if found:
        return found
    try:
        played = replay(problem, plan)
    except CheckFailed as error:
        return [Violation(rule="schedule", where="plan", detail=str(error))]
    return [*_samples(plan, played), *_memory(problem, graph, plan, played), *_times(problem, plan, played)]


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)


def _partition(graph: OperatorGraph, plan: Plan) -> Iterator[Violation]:
    held = Counter(name for s in plan.stages for name in s.operators)
    known = {o.name for o in graph.operators}
    for name in sorted(known - set(held)):
        yield Violation(rule="partition", where=name, detail="is in no stage")
    for name, count in held.items():
        if name not in known:
            yield Violation(rule="partition", where=name, detail="is no operator of the model")
        elif count > 1:
            yield Violation(rule="partition", where=name, detail=f"is in {count} stages")


def _devices(problem: Problem, plan: Plan) -> Iterator[Violation]:
    used = Counter(d for s in plan.stages for d in s.devices)
    for d, count in used.items():
        if not 0 <= d < problem.cluster.devices:
            yield Violation(rule="devices", where=f"device {d}", detail=f"there are {problem.cluster.devices}")
        if count > 1:
            yield Violation(rule="devices", where=f"device {d}", detail=f"belongs to {count} stages")
    for x, s in enumerate(plan.stages):
        if not s.devices:
            yield Violation(rule="devices", where=f"stage {x}", detail="has none")
        elif s.micro_batch_samples % len(s.devices):
            yield Violation(rule="devices", where=f"stage {x}",
                            detail=f"{len(s.devices)} replicas cannot share {s.micro_batch_samples} samples evenly")


def _schedules(problem: Problem, plan: Plan) -> Iterator[Violation]:
    for x, s in enumerate(plan.stages):
        where, b = f"stage {x}", s.micro_batch_samples
        if b not in problem.menu:
            yield Violation(rule="micro-batch", where=where, detail=f"{b} is not among {problem.menu}")
            continue
        if not 1 <= s.forwards_per_turn <= problem.batch_samples // b:
            yield Violation(rule="schedule", where=where, detail=f"k is {s.forwards_per_turn}")
        if s.in_flight_samples % b or not b <= s.in_flight_samples <= problem.batch_samples:
            yield Violation(rule="in flight", where=where,
                            detail=f"{s.in_flight_samples} samples are not whole micro-batches of {b} within the batch")


def _flows(problem: Problem, graph: OperatorGraph, plan: Plan) -> Iterator[Violation]:
    owner = {name: x for x, s in enumerate(plan.stages) for name in s.operators}
    tensors: dict[tuple[int, int], dict[int, float]] = {}
    for u, v, size in graph.edges:
        ends = owner[graph.operators[u].name], owner[graph.operators[v].name]
        if ends[0] != ends[1]:
            sizes = tensors.setdefault(ends, {})
            sizes[u] = max(size, sizes.get(u, 0.0))
    wanted = {ends: sum(sizes.values()) for ends, sizes in tensors.items()}
    given = Counter((f.producer, f.consumer) for f in plan.flows)
    for ends in sorted(set(wanted) - set(given)):
        yield Violation(rule="flows", where=f"stages {ends[0]} -> {ends[1]}", detail="no flow for the edges between")
    chain = {(x, x + 1) for x in range(len(plan.stages) - 1)} if plan.sequential else set()
    for f in plan.flows:
        ends, where = (f.producer, f.consumer), f"stages {f.producer} -> {f.consumer}"
        if given[ends] > 1:
            yield Violation(rule="flows", where=where, detail="listed more than once")
        if ends not in wanted and ends not in chain:
            yield Violation(rule="flows", where=where, detail="no operator of one reads the other")
        elif not _close(f.bytes_per_sample, wanted.get(ends, 0.0)):
            yield Violation(rule="flows", where=where,
                            detail=f"{f.bytes_per_sample:g} bytes a sample, the edges carry {wanted.get(ends, 0.0):g}")
        if ends in wanted or ends in chain:
            devices = [d for x in ends for d in plan.stages[x].devices]
            near = len({d // problem.cluster.devices_per_machine for d in devices}) == 1
            if near != (f.link == "inside"):
                yield Violation(rule="flows", where=where, detail=f"link {f.link!r} does not match the devices")
    for x, y in sorted(chain - set(given)):
        yield Violation(rule="flows", where=f"stages {x} -> {y}", detail="chained stages need an order")


def _convexity(graph: OperatorGraph, plan: Plan) -> Iterator[Violation]:
    """Stages are convex and their graph is acyclic: no walk along edges leaves a stage and returns to it."""
    owner = {name: x for x, s in enumerate(plan.stages) for name in s.operators}
    of = [owner[o.name] for o in graph.operators]
    follow: list[set[int]] = [set() for _ in plan.stages]
    for u, v, _ in graph.edges:
        if of[u] != of[v]:
            follow[of[u]].add(of[v])
    for x in range(len(plan.stages)):
        seen: set[int] = set()
        walk = list(follow[x])
        while walk:
            y = walk.pop()
            if y not in seen:
                seen.add(y)
                walk.extend(follow[y])
        if x in seen:
            yield Violation(rule="convexity", where=f"stage {x}", detail="a path leaves the stage and returns to it")


def _samples(plan: Plan, played: Replay) -> Iterator[Violation]:
    """No task starts before what it needs for the same samples has ended."""
    start, end = played.run.start_s, played.run.end_s
    by_stage: dict[tuple[int, str], list[ScheduledTask]] = {}
    for t in played.tasks:
        by_stage.setdefault((t.stage, t.kind), []).append(t)
    needs = [(f.consumer, "F", f.producer, "F") for f in plan.flows]
    needs += [(f.producer, "B", f.consumer, "B") for f in plan.flows]
    needs += [(x, "B", x, "F") for x in range(len(plan.stages))]
    for x, kind, y, other in needs:
        for t in by_stage[x, kind]:
            for p in by_stage[y, other]:
                if p.first < t.last and t.first < p.last and start[played.tasks[t]] < end[played.tasks[p]]:
                    yield Violation(rule="samples", where=f"stage {x}", detail=f"{kind} of samples {t.first} … starts "
                                    f"before stage {y} ends {other} of {p.first} …")


def _memory(problem: Problem, graph: OperatorGraph, plan: Plan, played: Replay) -> Iterator[Violation]:
    operators = {o.name: o for o in graph.operators}
    into: dict[int, float] = {}
    for f in plan.flows:
        into[f.consumer] = into.get(f.consumer, 0.0) + f.bytes_per_sample
    for x, s in enumerate(plan.stages):
        where = f"stage {x}"
        weights = sum(operators[n].weight_bytes for n in s.operators)
        saved = sum(operators[n].saved_bytes_per_sample for n in s.operators) + into.get(x, 0.0)
        peak = played.peak_samples(x)
        if not _close(weights, s.weight_bytes) or not _close(saved, s.saved_bytes_per_sample):
            yield Violation(rule="memory", where=where, detail=f"claims {s.weight_bytes:g} bytes of weights and "
                            f"{s.saved_bytes_per_sample:g} a sample, holds {weights:g} and {saved:g}")
        if peak != s.in_flight_samples:
            yield Violation(rule="in flight", where=where,
                            detail=f"claims {s.in_flight_samples} samples, the replay holds {peak}")
        needed = weights * problem.weight_copies + peak / len(s.devices) * saved + problem.workspace_bytes
        if not _close(needed, s.memory_bytes):
            yield Violation(rule="memory", where=where, detail=f"claims {s.memory_bytes:g} bytes, needs {needed:g}")
        if needed > problem.cluster.memory_bytes * (1 + TOLERANCE):
            yield Violation(rule="memory", where=where,
                            detail=f"needs {needed:g} bytes, a device has {problem.cluster.memory_bytes:g}")


def _times(problem: Problem, plan: Plan, played: Replay) -> Iterator[Violation]:
    c, took = plan.certificate, played.run.makespan_s
    if not _close(took, plan.iteration_s):
        yield Violation(rule="iteration", where="plan", detail=f"claims {plan.iteration_s:.9g} s, takes {took:.9g} s")
    slowest = max((s.forward_s + s.backward_s) / s.micro_batch_samples
                  + (s.all_reduce_s + s.update_s) / problem.batch_samples for s in plan.stages)
    if not _close(slowest, plan.bottleneck_s_per_sample):
        yield Violation(rule="bottleneck", where="plan",
                        detail=f"claims {plan.bottleneck_s_per_sample:.9g} s a sample, has {slowest:.9g}")
    if not _close(c.objective, plan.iteration_s) or c.unit != "s" or c.sense != "min":
        yield Violation(rule="certificate", where="objective", detail=f"{c.sense} {c.objective:.9g} {c.unit}")
    if c.bound is not None and c.bound > c.objective * (1 + TOLERANCE):
        yield Violation(rule="certificate", where="bound", detail=f"{c.bound:.9g} lies above {c.objective:.9g}")
    if c.status == "optimal" and (c.bound is None or relative_gap(c.objective, c.bound) > TOLERANCE):
        yield Violation(rule="certificate", where="status", detail="optimal, yet the gap is open")
    if not _close(math.fsum(plan.sources.values()), 1.0):
        yield Violation(rule="sources", where="plan", detail="shares by source do not add up to 1")

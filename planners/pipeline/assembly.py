"""From chosen stages to a plan (order, flows, devices, schedule, memory, times), and from a plan to words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from planners.pipeline.clock import Link, StageGraph, iteration_s, least_s
from planners.pipeline.graph import bits
from planners.pipeline.inflight import held_by_all
from planners.pipeline.placing import places, together
from planners.pipeline.pricing import Prices, ring_s, transfer_s
from planners.pipeline.problem import Flow, LinkRate, Plan, Problem, Stage
from planners.pipeline.reading import Chosen
from workbench.outcome import Metric
from workbench.plan import Certificate, Status

__all__ = ["Candidate", "Draft", "Placed", "assemble", "candidate", "decision", "draft", "draft_if_acyclic",
           "fits_memory", "headline", "hope_s", "in_words", "placed", "predicted", "simulated"]


@dataclass(frozen=True, slots=True)
class Draft:
    """Stages in topological order with k and what flows between them, before times."""

    stages: tuple[Chosen, ...]
    turns: tuple[int, ...]
    flows: dict[tuple[int, int], float]
    sequential: bool


@dataclass(frozen=True, slots=True)
class Placed:
    """A draft on devices, with the times of its stages and what they hold."""

    draft: Draft
    devices: tuple[tuple[int, ...], ...]
    graph: StageGraph
    all_reduce_s: tuple[float, ...]
    update_s: tuple[float, ...]
    held: tuple[int, ...]
    memory_bytes: tuple[float, ...]
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placed draft and its simulated iteration."""

    placed: Placed
    iteration_s: float

    @property
    def draft(self) -> Draft:
        """The stages before they were placed."""
        return self.placed.draft


def draft(prices: Prices, stages: Sequence[Chosen], *, sequential: bool, turns: Sequence[int] | None = None) -> Draft:
    """Stages sorted topologically (a branch's stages together), with their flows; sequential chains them."""
    key = tuple(stages), sequential, None if turns is None else tuple(turns)
    made = prices.drafts.get(key)
    if made is None:
        made = prices.drafts[key] = draft_if_acyclic(prices, stages, sequential=sequential, turns=turns)
    assert made is not None, "the stages form a cycle"
    return made


def fits_memory(prices: Prices, stages: Sequence[Chosen]) -> bool:
    """Whether stages hold what their places in the stage graph ask for."""
    return _holding(prices, draft(prices, stages, sequential=False)) is not None


def draft_if_acyclic(prices: Prices, stages: Sequence[Chosen], *, sequential: bool,
                     turns: Sequence[int] | None = None) -> Draft | None:
    """``draft``, or ``None`` when the stages wait on each other."""
    owner = {v: x for x, s in enumerate(stages) for v in bits(s.mask)}
    after: list[list[int]] = [[] for _ in stages]
    waits = [0] * len(stages)
    # Bytes a sample between two stages, of each tensor once.
    tensors: dict[tuple[int, int], dict[int, float]] = {}
    for u, v, size in prices.graph.edges:
        a, b = owner[u], owner[v]
        if a != b:
            sizes = tensors.setdefault((a, b), {})
            if not sizes:
                after[a].append(b)
                waits[b] += 1
            sizes[u] = max(size, sizes.get(u, 0.0))
    ready = sorted((x for x in range(len(stages)) if not waits[x]), key=lambda x: -_first(stages[x].mask))
    rank: list[int] = []
    while ready:
        x = ready.pop()
        rank.append(x)
        freed = []
        for y in after[x]:
            waits[y] -= 1
            if not waits[y]:
                freed.append(y)
        ready += sorted(freed, key=lambda y: -_first(stages[y].mask))
    if len(rank) < len(stages):
        return None
    ordered = tuple(stages[x] for x in rank)
    place_of = {x: i for i, x in enumerate(rank)}
    flows = {(place_of[x], place_of[y]): sum(sizes.values()) for (x, y), sizes in tensors.items()}
    if sequential:
        for x in range(len(rank) - 1):
            flows.setdefault((x, x + 1), 0.0)
    kept = tuple(turns[x] for x in rank) if turns is not None else (1,) * len(rank)
    return Draft(ordered, kept, dict(sorted(flows.items())), sequential)


def _first(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def candidate(prices: Prices, found: Draft) -> Candidate | None:
    """The draft placed and simulated; ``None`` when some stage does not fit its memory."""
    made = placed(prices, found)
    return None if made is None else simulated(made)


def simulated(made: Placed) -> Candidate:
    """A placed draft with its iteration."""
    return Candidate(made, iteration_s(made.graph, made.held))


def placed(prices: Prices, found: Draft) -> Placed | None:
    """Devices, times and memory of a draft; ``None`` when some stage does not fit its memory."""
    holding = _holding(prices, found)
    if holding is None:
        return None
    ways = places([s.replicas for s in found.stages], found.flows, prices.cluster)
    made = [_on(prices, found, devices, *holding) for devices in ways]
    return min(made, key=lambda p: least_s(p.graph, p.held)) if len(made) > 1 else made[0]


def hope_s(prices: Prices, found: Draft) -> float:
    """No devices let a draft take less (see ``clock.least_s``): it talks over the faster of both links wherever it may.

    Infinite when some stage does not fit its memory.
    """
    holding = _holding(prices, found)
    if holding is None:
        return float("inf")
    near = prices.cluster.devices_per_machine
    rings = [prices.fast_link if s.replicas <= near else prices.cluster.between for s in found.stages]
    graph, _, _ = _graph(prices, found, [prices.fast_link] * len(found.flows), rings)
    return least_s(graph, holding[0])


def _holding(prices: Prices, found: Draft) -> tuple[list[int], list[float]] | None:
    """In-flight samples and memory of every stage; ``None`` when some stage does not fit."""
    after: list[list[int]] = [[] for _ in found.stages]
    for u, v in found.flows:
        after[u].append(v)
    held = held_by_all([s.micro for s in found.stages], found.turns, after, prices.problem.batch_samples)
    memory = [prices.memory_bytes(s.mask, i, s.replicas) for s, i in zip(found.stages, held, strict=True)]
    return None if max(memory) > prices.cluster.memory_bytes * (1 + 1e-12) else (held, memory)


def _graph(prices: Prices, found: Draft, links: Sequence[LinkRate],
           rings: Sequence[LinkRate]) -> tuple[StageGraph, list[float], list[float]]:
    """The stages with their times, all-reduce and update; ``links`` of the flows, ``rings`` of the all-reduces."""
    stages, forward, backward, reduce, update, flows = found.stages, [], [], [], [], []
    blocking = prices.problem.transfers == "blocking"
    for s, ring in zip(stages, rings, strict=True):
        f, g = prices.compute_s(s.mask, s.micro, s.replicas)
        forward.append(f)
        backward.append(g)
        sums = prices.sums(s.mask)
        reduce.append(ring_s(sums.weight_bytes, s.replicas, ring))
        update.append(sums.update_s)
    for ((u, v), size), link in zip(found.flows.items(), links, strict=True):
        narrow = min(stages[u].replicas, stages[v].replicas)
        there = transfer_s(size * stages[u].micro / narrow, link)
        back = transfer_s(size * stages[v].micro / narrow, link)
        if blocking:
            forward[v] += back
            backward[u] += there
            there = back = 0.0
        flows.append(Link(u, v, there, back))
    graph = StageGraph(prices.problem.batch_samples, [s.micro for s in stages], found.turns, forward, backward,
                       [a + b for a, b in zip(reduce, update, strict=True)], flows)
    return graph, reduce, update


def _on(prices: Prices, found: Draft, devices: Sequence[tuple[int, ...]], held: Sequence[int],
        memory: Sequence[float]) -> Placed:
    cluster = prices.cluster
    near = [together((*devices[u], *devices[v]), cluster) for u, v in found.flows]
    graph, reduce, update = _graph(
        prices, found, [cluster.inside if n else cluster.between for n in near],
        [cluster.inside if together(mine, cluster) else cluster.between for mine in devices])
    flows = [Flow(producer=u, consumer=v, bytes_per_sample=size, link="inside" if n else "between")
             for ((u, v), size), n in zip(found.flows.items(), near, strict=True)]
    return Placed(found, tuple(devices), graph, tuple(reduce), tuple(update), tuple(held), tuple(memory), tuple(flows))


def assemble(prices: Prices, best: Candidate, *, bound: float | None, planner: str, status: Status, seconds: float,
             candidates: int) -> Plan:
    """The plan of a candidate."""
    problem, made = prices.problem, best.placed
    graph = made.graph
    stages = []
    for x, s in enumerate(made.draft.stages):
        sums = prices.sums(s.mask)
        stages.append(Stage(
            operators=tuple(prices.graph.operators[v].name for v in bits(s.mask)), devices=made.devices[x],
            micro_batch_samples=s.micro, forwards_per_turn=made.draft.turns[x], in_flight_samples=made.held[x],
            forward_s=graph.forward_s[x], backward_s=graph.backward_s[x], update_s=made.update_s[x],
            all_reduce_s=made.all_reduce_s[x], weight_bytes=sums.weight_bytes,
            saved_bytes_per_sample=sums.saved_bytes + sums.received,
            memory_bytes=made.memory_bytes[x]))
    slowest = max((s.forward_s + s.backward_s) / s.micro_batch_samples
                  + (s.all_reduce_s + s.update_s) / problem.batch_samples for s in stages)
    certificate = Certificate(
        objective=best.iteration_s, bound=None if bound is None else min(bound, best.iteration_s), sense="min",
        unit="s", status=status, planner=planner, seconds=seconds)
    return Plan(stages=tuple(stages), flows=made.flows, iteration_s=best.iteration_s, bottleneck_s_per_sample=slowest,
                sequential=made.draft.sequential, candidates=candidates,
                sources=prices.shares((s.mask, s.micro, s.replicas) for s in made.draft.stages),
                certificate=certificate)


def with_stage(found: Draft, x: int, stage: Chosen) -> Draft:
    """The draft with other micro-batch or replicas at stage ``x`` (the operators stay)."""
    return replace(found, stages=(*found.stages[:x], stage, *found.stages[x + 1:]))


def depth(plan: Plan) -> int:
    """Stages on the longest path."""
    level = [1] * len(plan.stages)
    for f in plan.flows:
        level[f.consumer] = max(level[f.consumer], level[f.producer] + 1)
    return max(level)


def decision(plan: Plan) -> list[dict[str, Any]]:
    """One row a stage: what it holds, where, and its schedule."""
    before: list[list[str]] = [[] for _ in plan.stages]
    for f in plan.flows:
        before[f.consumer].append(str(f.producer))
    return [{"stage": x, "after": " ".join(before[x]) or "-", "operators": _span(s.operators),
             "devices": " ".join(map(str, s.devices)), "micro-batch": s.micro_batch_samples,
             "schedule": f"{s.forwards_per_turn}F{s.forwards_per_turn}B", "in flight": s.in_flight_samples,
             "ms a micro-batch": (s.forward_s + s.backward_s) * 1e3, "memory GB": s.memory_bytes / 1e9}
            for x, s in enumerate(plan.stages)]


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]} ({len(names)})"


def predicted(problem: Problem, plan: Plan) -> tuple[Metric, ...]:
    """What the plan promises."""
    used = sum(len(s.devices) for s in plan.stages)
    busy = sum((problem.batch_samples // s.micro_batch_samples) * (s.forward_s + s.backward_s) * len(s.devices)
               for s in plan.stages)
    return (
        Metric(name="iteration_s", value=plan.iteration_s, unit="s", about="Time of one mini-batch."),
        Metric(name="samples_per_s", value=problem.batch_samples / plan.iteration_s, unit="samples/s",
               about="Training throughput."),
        Metric(name="bubble_share", value=1 - busy / (used * plan.iteration_s), unit="",
               about="Share of the used devices' time without compute."),
        Metric(name="peak_memory_bytes", value=max(s.memory_bytes for s in plan.stages), unit="bytes",
               about="Largest memory of any device."),
        Metric(name="stages", value=float(len(plan.stages)), unit="", about="Pipeline stages."),
        Metric(name="depth", value=float(depth(plan)), unit="", about="Stages on the longest path."),
        Metric(name="devices", value=float(used), unit="", about="Devices used."),
    )


def headline(plan: Plan) -> str:
    """The plan in a few words."""
    used = sum(len(s.devices) for s in plan.stages)
    kind = "chained stages" if plan.sequential else "stages"
    return f"{len(plan.stages)} {kind}, depth {depth(plan)}, on {used} devices"


def in_words(plan: Plan) -> str:
    """What to do, in sentences."""
    sizes = sorted({s.micro_batch_samples for s in plan.stages})
    turns = sorted({s.forwards_per_turn for s in plan.stages})
    micro = f"micro-batches of {' and '.join(map(str, sizes))} samples"
    schedule = " and ".join(f"{k}F{k}B" for k in turns)
    wide = sum(len(s.devices) > 1 for s in plan.stages)
    copies = f", {wide} of them replicated" if wide else ""
    return (f"Cut the model into {len(plan.stages)} stages ({depth(plan)} deep) on "
            f"{sum(len(s.devices) for s in plan.stages)} devices{copies}; run {micro} with {schedule} schedules. "
            f"One mini-batch takes {plan.iteration_s * 1e3:.4g} ms.")

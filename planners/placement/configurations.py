"""Candidate configurations with their throughputs: given in the spec, or enumerated and priced by the cost model.

Each layout of ``layouts`` is looked at in order of its GPU count, with two splits of its layers. First comes an
optimistic throughput: a pipeline of P stages decodes b requests in rounds of at least P micro-batches of its slowest
stage, whose l_s of L layers take l_s/L of what a whole replica on that stage's GPUs takes for b/P requests, so
h <= min_s h_s(b/P) L/l_s. What a bundle of kept candidates covers even so is dominated and never priced; the rest is
priced by the cost model and kept unless covered.

Deviation: the paper measures h once on its engine; here ``workbench.llmrates`` derives it from kernel times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from planners.placement.instance import Candidate, Instance, Integers, build, covered, prune
from planners.placement.layouts import (
    Kind,
    Layout,
    Memory,
    fastest_split,
    layouts,
    roomiest_split,
    stage_kinds,
)
from planners.placement.problem import Problem, Rate, SearchSpace, StageLayout, Workload
from workbench.costs import Cost as KernelCost
from workbench.costs import CostModel, Provenance, sweep
from workbench.costtables import Floats, Ranks
from workbench.errors import MissingProfile
from workbench.hardware import Catalogue, load_catalogue
from workbench.llmcosts import Formats, KernelSteps, Stage
from workbench.llmrates import kv_capacity_tokens, throughput
from workbench.models import LlmShape, load_model

__all__ = ["Candidates", "candidates_of", "formats_of", "pipeline"]

_UNLIMITED_TOKENS = 10**12
# The optimistic throughput spreads embedding and output projection over all stages.
_OPTIMISM = 1.02
_BATCH_STEP = 2 ** (1 / 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What a planner chooses from, how it came about, and for each model the layout that came closest to fitting."""

    instance: Instance
    space: SearchSpace
    closest: Mapping[str, str] = field(default_factory=dict)


def candidates_of(problem: Problem, workloads: Sequence[Workload], costs: CostModel) -> Candidates:
    """Every configuration worth considering.

    Raises:
        SpecError: a device or model is not in the catalogues.
        MissingProfile: the cost model lacks a kernel of an offered device.
    """
    if problem.configurations:
        return _given(problem, workloads)
    catalogue = load_catalogue(*problem.enumeration.hardware)
    memo = MemoCosts(costs)
    dropped: Counter[str] = Counter()
    kept: list[Candidate] = []
    closest: dict[str, str] = {}
    considered = dominated = 0
    for model in dict.fromkeys(w.model for w in workloads if w.requests > 0):
        asked = [w for w in workloads if w.model == model and w.requests > 0]
        pricing = Pricing(problem, load_model(model), asked, memo, catalogue)
        before = dropped.total()
        options = layouts(problem, stage_kinds(problem, pricing.shape, catalogue, dropped), dropped)
        considered += dropped.total() - before + len(options)
        found = _worth_keeping(problem, pricing, options, dropped)
        kept += found.candidates
        dominated += found.dominated
        if not found.candidates and found.closest:
            closest[model] = found.closest
    instance, again = prune(build(problem, workloads, kept))
    space = SearchSpace(considered=considered, infeasible=dict(sorted(dropped.items())), dominated=dominated + again,
                        kept=len(instance.candidates))
    return Candidates(instance=instance, space=space, closest=closest)


def _given(problem: Problem, workloads: Sequence[Workload]) -> Candidates:
    stated = [Candidate(name=c.name, model=c.model, devices=c.devices,
                        throughputs={n: Rate(per_s=h, sources={c.source: 1.0})
                                     for n, h in c.throughputs_per_s.items() if h > 0})
              for c in problem.configurations]
    dropped: Counter[str] = Counter()
    whole = build(problem, workloads, stated)
    room = whole.most_replicas() > 0
    if not room.all():
        dropped["does not fit budget and availability"] = int((~room).sum())
    instance, dominated = prune(whole.take(room))
    return Candidates(instance=instance, space=SearchSpace(
        considered=len(stated), infeasible=dict(dropped), dominated=dominated, kept=len(instance.candidates)))


class MemoCosts:
    """A cost model that never computes an answer twice: equal stages of different pipelines ask the same."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._answers: dict[Any, Any] = {}

    def cost(self, op: str, **point: float | int | str) -> KernelCost:
        """The inner model's answer."""
        found: KernelCost = self._once(("cost", op, *sorted(point.items())), lambda: self._model.cost(op, **point))
        return found

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """The inner model's answer over arrays."""
        arrays = {n: np.asarray(v, dtype=np.float64) for n, v in over.items()}
        key = ("sweep", op, *sorted(point.items()), *((n, a.shape, a.tobytes()) for n, a in sorted(arrays.items())))
        found: tuple[Floats, Ranks] = self._once(key, lambda: sweep(self._model, op, arrays, **point))
        return found

    def knots(self, op: str, axis: str, **point: float | int | str) -> list[float]:
        """Where the inner model's tables have points.

        Raises:
            MissingProfile: they do not say.
        """
        ask = getattr(self._model, "knots", None)
        if ask is None:
            raise MissingProfile("the cost model has no knots", keys=[op])
        found: list[float] = self._once(("knots", op, axis, *sorted(point.items())), lambda: ask(op, axis, **point))
        return found

    def provenance(self) -> Mapping[str, Provenance]:
        """The inner model's tables."""
        return self._model.provenance()

    def _once(self, key: Any, ask: Any) -> Any:
        if key not in self._answers:
            try:
                self._answers[key] = ask()
            except MissingProfile as missing:
                self._answers[key] = missing
        answer = self._answers[key]
        if isinstance(answer, MissingProfile):
            raise answer
        return answer


def formats_of(problem: Problem, shape: LlmShape) -> Formats:
    """Number formats of weights and KV cache: the problem's, else the model's own."""
    options = problem.enumeration
    return Formats(weights=options.weights or shape.number_format, kv=options.kv or shape.number_format)


def pipeline(stages: Sequence[StageLayout], catalogue: Catalogue) -> list[Stage]:
    """The stages as the cost model wants them: neighbours that fit one machine talk over the machine's own link."""
    made = []
    used = 0
    for i, s in enumerate(stages):
        device = catalogue.device(s.device)
        used = (used if i and stages[i - 1].device == s.device else 0) + s.tensor_parallel
        together = (i + 1 < len(stages) and stages[i + 1].device == s.device
                    and used + stages[i + 1].tensor_parallel <= device.devices_per_machine)
        if not together:
            used = 0
        made.append(Stage(device=s.device, tensor_parallel=s.tensor_parallel, layers=s.layers,
                          link=device.link if together else None))
    return made


class Pricing:
    """Throughputs of one model's replicas on its workload types."""

    def __init__(self, problem: Problem, shape: LlmShape, workloads: Sequence[Workload], costs: MemoCosts,
                 catalogue: Catalogue) -> None:
        self.problem, self.shape, self.catalogue = problem, shape, catalogue
        self.workloads = tuple(workloads)
        self.lengths = [(w.input_tokens or 1, w.output_tokens or 1) for w in workloads]
        self._costs, self._formats = costs, formats_of(problem, shape)
        self._whole: dict[Kind, KernelSteps] = {}
        self._alone: dict[tuple[Kind, int, int], float] = {}

    def alone(self, kind: Kind, workload: int, batch: float) -> float:
        """Requests/s of one whole replica on one stage's GPUs decoding ``batch`` requests, memory aside."""
        whole = math.ceil(_BATCH_STEP ** math.ceil(math.log(batch, _BATCH_STEP) - 1e-9) - 1e-9)
        key = (kind, workload, whole)
        if key not in self._alone:
            if kind not in self._whole:
                stage = Stage(device=kind.device, tensor_parallel=kind.degree, layers=self.shape.layers)
                self._whole[kind] = self._steps([stage])
            i, o = self.lengths[workload]
            self._alone[key] = throughput(
                self._whole[kind], input_tokens=i, output_tokens=o, kv_capacity_tokens=_UNLIMITED_TOKENS,
                max_sequences=whole, token_budget=self.problem.enumeration.token_budget).requests_per_s
        return self._alone[key]

    def optimistic(self, layout: Layout, layers: Sequence[int], memory: Memory, workload: int) -> float:
        """Throughput on one workload type that the pipeline with these layers does not exceed."""
        i, o = self.lengths[workload]
        batch = min(self.problem.enumeration.max_sequences, int(memory.tokens(layers) // (i + o)))
        if batch < 1:
            return 0.0
        share = max(1.0, batch / len(layout.kinds))
        return _OPTIMISM * min(self.alone(k, workload, share) * self.shape.layers / n
                               for k, n in zip(layout.kinds, layers, strict=True))

    def splits(self, layout: Layout, memory: Memory) -> list[list[int]]:
        """Layers of each stage: the roomiest split, and the fastest one that holds the longest request."""
        found = roomiest_split(memory, self.shape.layers)
        if found is None:
            return []
        roomy, tokens = found
        if tokens < min(i + o for i, o in self.lengths):
            return []
        if len(layout.kinds) == 1:
            return [roomy]
        longest = max(i + o for i, o in self.lengths)
        pace = [self._seconds_per_layer(k, len(layout.kinds)) for k in layout.kinds]
        fast = fastest_split(memory, pace, self.shape.layers, longest)
        return [roomy] if fast is None or fast == roomy else [fast, roomy]

    def _seconds_per_layer(self, kind: Kind, depth: int) -> float:
        """Time one layer takes for the whole mix of requests, at a batch a pipeline of ``depth`` stages may run."""
        share = max(1.0, self.problem.enumeration.max_sequences / 4 / depth)
        requests = [w.requests for w in self.workloads]
        return math.fsum(f / self.alone(kind, w, share) for w, f in enumerate(requests)) / self.shape.layers

    def candidate(self, layout: Layout, layers: Sequence[int], memory: Memory, *, name: str) -> Candidate:
        """The layout with these layers, priced by the cost model."""
        stages = tuple(
            StageLayout(device=k.device, tensor_parallel=k.degree, layers=n, usable_bytes=memory.usable_bytes[s],
                        weight_bytes=n * memory.layer_bytes[s] + memory.table_bytes[s])
            for s, (k, n) in enumerate(zip(layout.kinds, layers, strict=True)))
        piped = pipeline(stages, self.catalogue)
        options = self.problem.enumeration
        steps = self._steps(piped)
        tokens = kv_capacity_tokens(self.shape, piped, catalogue=self.catalogue, formats=self._formats,
                                    utilisation=options.memory_share)
        found = {w.name: throughput(steps, input_tokens=i, output_tokens=o, kv_capacity_tokens=tokens,
                                    max_sequences=options.max_sequences, token_budget=options.token_budget,
                                    pipeline_stages=len(stages))
                 for w, (i, o) in zip(self.workloads, self.lengths, strict=True)}
        return Candidate(name=name, model=self.workloads[0].model, devices=layout.devices, stages=stages,
                         kv_tokens=float(tokens),
                         throughputs={n: Rate(per_s=t.requests_per_s, sources=t.sources)
                                      for n, t in found.items() if t.requests_per_s > 0})

    def _steps(self, stages: Sequence[Stage]) -> KernelSteps:
        return KernelSteps(self.shape, stages, self._costs, catalogue=self.catalogue, formats=self._formats,
                           network=self.problem.enumeration.network,
                           reach=(self.problem.enumeration.max_sequences, max(i + o for i, o in self.lengths)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    candidates: list[Candidate]
    dominated: int
    closest: str | None


def _worth_keeping(problem: Problem, pricing: Pricing, options: Sequence[Layout], dropped: Counter[str]) -> _Found:
    """Candidates of one model that nothing before them covers, fewest GPUs first."""
    names = [d.name for d in problem.devices]
    several = len({w.model for w in problem.workloads} | {t.model for t in problem.traffic}) > 1
    devices = np.zeros((0, len(names)), dtype=np.int64)
    rates = np.zeros((0, len(pricing.workloads)))
    kept: list[Candidate] = []
    dominated = 0
    best_tokens, closest = -math.inf, None
    for layout in options:
        memory = Memory.of(pricing.shape, layout, pricing.catalogue, problem.enumeration)
        tokens = memory.pooled_tokens(pricing.shape.layers)
        if tokens < min(i + o for i, o in pricing.lengths):
            dropped["too little memory"] += 1
            if tokens > best_tokens:
                best_tokens, closest = tokens, _shortage(pricing, layout, memory, tokens)
            continue
        room = np.array([layout.devices.get(n, 0) for n in names], dtype=np.int64)
        splits = pricing.splits(layout, memory)
        if not splits:
            dropped["too little memory"] += 1
        for layers in splits:
            if _hopeless(pricing, layout, layers, memory, room, devices, rates):
                dominated += 1
                continue
            name = layout.name if len(splits) == 1 else f"{layout.name} ({'+'.join(map(str, layers))} layers)"
            made = pricing.candidate(layout, layers, memory, name=f"{pricing.shape.name}: {name}" if several else name)
            rate = np.array([made.throughputs[w.name].per_s if w.name in made.throughputs else 0.0
                             for w in pricing.workloads])
            if covered(room, rate, devices, rates):
                dominated += 1
                continue
            kept.append(made)
            devices, rates = np.vstack([devices, room]), np.vstack([rates, rate])
    return _Found(candidates=kept, dominated=dominated, closest=closest)


def _hopeless(pricing: Pricing, layout: Layout, layers: Sequence[int], memory: Memory, room: Integers,
              devices: Integers, rates: Floats) -> bool:
    """Whether kept candidates (``devices`` [R, N], ``rates`` [R, W]) cover even the optimistic throughputs.

    One workload type after the other, because most layouts that are worth pricing show it at the first.
    """
    hopes: list[float] = []
    for w in range(len(pricing.workloads)):
        hopes.append(pricing.optimistic(layout, layers, memory, w))
        if not covered(room, np.array(hopes), devices, rates[:, :w + 1]):
            return False
    return True


def _shortage(pricing: Pricing, layout: Layout, memory: Memory, tokens: float) -> str:
    """How much memory the layout lacks, in words."""
    need = min(i + o for i, o in pricing.lengths)
    per_token = math.fsum(k * n.degree for k, n in zip(memory.kv_bytes_per_token, layout.kinds, strict=True))
    lacking = (need - tokens) * pricing.shape.layers * per_token / len(layout.kinds) / 2**30
    return f"{layout.name} lacks about {lacking:.1f} GiB for weights and one request"

"""Replica layouts before any cost is known: which GPUs form the stages of a pipeline, and how layers are split.

A layout is one tensor-parallel group a stage; stages of one GPU type lie next to each other and share one degree, and
at most two types are mixed. Rules (appendix D of arXiv 2502.00722, as far as known): tensor parallelism stays inside a
machine and divides the model (R2); machines meet only between stages (R3); a layout fits availability and budget (R5).

Layer splits under the memory rule (R1): ``fastest`` minimises the slowest stage, ``roomiest`` maximises the KV cache.
Both are exact: layers a stage can take are whole multiples, so a threshold is feasible when the floors add up to L.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from planners.placement.problem import Enumeration, Problem
from workbench.errors import SpecError
from workbench.hardware import Catalogue
from workbench.llmrates import RUNTIME_RESERVE_BYTES
from workbench.models import LlmShape, format_bytes

__all__ = ["Kind", "Layout", "Memory", "fastest_split", "layouts", "roomiest_split", "stage_kinds"]


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """A kind of stage: a GPU type and a tensor-parallel degree."""

    device: str
    degree: int


@dataclass(frozen=True)
class Layout:
    """Stages of a replica in order, without layers."""

    kinds: tuple[Kind, ...]

    @cached_property
    def devices(self) -> dict[str, int]:
        """GPUs of each type."""
        used: Counter[str] = Counter()
        for kind in self.kinds:
            used[kind.device] += kind.degree
        return dict(used)

    @property
    def name(self) -> str:
        """E.g. ``2xH100-SXM`` (tensor parallelism 2) or ``2xL40S > 2xL40S`` (two such stages)."""
        return " > ".join(f"{k.degree}x{k.device}" for k in self.kinds)


def stage_kinds(problem: Problem, shape: LlmShape, catalogue: Catalogue, dropped: Counter[str]) -> list[Kind]:
    """Kinds of stages that offers, machines and the model allow; ``dropped`` counts the others by reason."""
    kinds = []
    for offer in problem.devices:
        machine = catalogue.device(offer.name).devices_per_machine
        for degree in sorted(set(problem.enumeration.tensor_parallel)):
            if degree > machine:
                dropped["tensor parallelism leaves the machine"] += 1
            elif degree > offer.available:
                dropped["not enough GPUs available"] += 1
            elif not _divides(shape, degree):
                dropped["tensor parallelism does not divide the model"] += 1
            else:
                kinds.append(Kind(offer.name, degree))
    return kinds


def _divides(shape: LlmShape, degree: int) -> bool:
    try:
        shape.check_tensor_parallel(degree)
    except SpecError:
        return False
    return True


def layouts(problem: Problem, kinds: Sequence[Kind], dropped: Counter[str]) -> list[Layout]:
    """Every layout within availability, budget and size, fewest GPUs first; ``dropped`` counts the others by reason."""
    price = {d.name: d.price_usd_per_h for d in problem.devices}
    available = {d.name: d.available for d in problem.devices}
    budget = problem.budget_usd_per_h
    kept = []
    for stages in _stage_lists(kinds, problem.enumeration):
        layout = Layout(stages)
        if sum(layout.devices.values()) > problem.enumeration.max_devices:
            dropped["more GPUs than max_devices"] += 1
        elif any(count > available[n] for n, count in layout.devices.items()):
            dropped["not enough GPUs available"] += 1
        elif budget is not None and sum(n * price[d] for d, n in layout.devices.items()) > budget * (1 + 1e-12):
            dropped["dearer than the budget"] += 1
        else:
            kept.append(layout)
    return sorted(kept, key=lambda x: (sum(x.devices.values()), len(x.kinds)))


def _stage_lists(kinds: Sequence[Kind], options: Enumeration) -> Iterator[tuple[Kind, ...]]:
    for kind in kinds:
        for depth in range(1, options.max_stages + 1):
            yield (kind,) * depth
    if not options.mixed_pipelines:
        return
    for first, second in itertools.combinations(kinds, 2):
        if first.device == second.device:
            continue
        for depth in range(2, options.max_stages + 1):
            for ahead in range(1, depth):
                yield (first,) * ahead + (second,) * (depth - ahead)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes a model needs on the GPUs of each stage of one layout."""

    layer_bytes: tuple[float, ...]
    table_bytes: tuple[float, ...]
    kv_bytes_per_token: tuple[float, ...]
    usable_bytes: tuple[float, ...]

    @classmethod
    def of(cls, shape: LlmShape, layout: Layout, catalogue: Catalogue, options: Enumeration) -> Memory:
        """Weights and KV of one layer, embedding or output projection, and usable memory, on each GPU of a stage."""
        weights = format_bytes((options.weights or shape.number_format).split("_")[0])
        kv = format_bytes(options.kv or shape.number_format)
        table = 2.0 * shape.vocab * shape.hidden
        last = len(layout.kinds) - 1
        tables = [(i == 0) + (i == last) if last or not shape.tied_embeddings else 1 for i in range(last + 1)]
        return cls(
            layer_bytes=tuple(shape.layer_parameters * weights / k.degree for k in layout.kinds),
            table_bytes=tuple(n * table / k.degree for n, k in zip(tables, layout.kinds, strict=True)),
            kv_bytes_per_token=tuple(2.0 * shape.kv_heads_per_device(k.degree) * shape.head_dim * kv
                                     for k in layout.kinds),
            usable_bytes=tuple(catalogue.device(k.device).memory_bytes * options.memory_share - RUNTIME_RESERVE_BYTES
                               for k in layout.kinds))

    def most_layers(self, stage: int, tokens: float) -> int:
        """Layers a stage holds beside the KV cache of ``tokens`` tokens."""
        room = self.usable_bytes[stage] - self.table_bytes[stage]
        return max(0, int(room / (self.layer_bytes[stage] + tokens * self.kv_bytes_per_token[stage])))

    def tokens(self, layers: Sequence[int]) -> float:
        """KV tokens that fit beside ``layers`` on every stage."""
        return min((self.usable_bytes[s] - self.table_bytes[s] - n * self.layer_bytes[s])
                   / (n * self.kv_bytes_per_token[s]) for s, n in enumerate(layers))

    def pooled_tokens(self, layers: int) -> float:
        """KV tokens if the memory of all stages were one pool; no split of the layers holds more."""
        share = [(u - t) / k for u, t, k in zip(self.usable_bytes, self.table_bytes, self.kv_bytes_per_token,
                                               strict=True)]
        weight = min(b / k for b, k in zip(self.layer_bytes, self.kv_bytes_per_token, strict=True))
        return sum(share) / layers - weight


def fastest_split(memory: Memory, seconds_per_layer: Sequence[float], layers: int, tokens: float) -> list[int] | None:
    """Layers of each stage with the least slowest stage, each holding ``tokens`` KV tokens; ``None``: impossible."""
    caps = [memory.most_layers(s, tokens) for s in range(len(seconds_per_layer))]
    if sum(caps) < layers or min(caps) < 1 or layers < len(caps):
        return None
    candidates = sorted({n * t for t, cap in zip(seconds_per_layer, caps, strict=True) for n in range(1, cap + 1)})

    def held(limit: float) -> list[int]:
        return [min(cap, int(limit / t * (1 + 1e-12))) for t, cap in zip(seconds_per_layer, caps, strict=True)]

    return _trimmed(held(_least(candidates, lambda limit: sum(held(limit)) >= layers and min(held(limit)) >= 1)),
                    layers)


def roomiest_split(memory: Memory, layers: int) -> tuple[list[int], float] | None:
    """Layers of each stage with the largest KV cache, and its tokens; ``None`` when the weights do not fit."""
    stages = range(len(memory.usable_bytes))

    def held(tokens: float) -> list[int]:
        return [memory.most_layers(s, tokens) for s in stages]

    if sum(held(0.0)) < layers or min(held(0.0)) < 1 or layers < len(stages):
        return None
    # A stage's cap falls by one layer at these token counts only.
    steps = sorted({(memory.usable_bytes[s] - memory.table_bytes[s] - n * memory.layer_bytes[s])
                    / (n * memory.kv_bytes_per_token[s]) for s in stages for n in range(1, layers + 1)} | {0.0})
    steps = [t * (1 - 1e-12) for t in steps if t >= 0]
    tokens = -_least([-t for t in reversed(steps)], lambda t: sum(held(-t)) >= layers and min(held(-t)) >= 1)
    return _trimmed(held(tokens), layers), tokens


def _least(ascending: Sequence[float], good: Callable[[float], bool]) -> float:
    """The smallest value that is good; the last one is, and so is all above a good one."""
    low, high = 0, len(ascending) - 1
    while low < high:
        middle = (low + high) // 2
        if good(ascending[middle]):
            high = middle
        else:
            low = middle + 1
    return ascending[low]


def _trimmed(held: list[int], layers: int) -> list[int]:
    """Take surplus layers from the fullest stages, so that exactly ``layers`` are held."""
    for _ in range(sum(held) - layers):
        held[max(range(len(held)), key=lambda s: (held[s], s))] -= 1
    return held

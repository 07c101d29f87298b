"""Operators as torch modules, their data, and stages of them.

Weights come from the run's seed and the operator's number in the model, data from the seed, the step and that number,
so every rank and the single-process reference make the same ones. All inputs of an operator are joined along the last
axis: its own data first, then its producers in topological order. Dropout is off, so micro-batch sizes do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from planners.pipeline.graph import OperatorGraph
from planners.pipeline.layers import joined_width
from planners.pipeline.problem import Layer, Operator, Problem
from workbench.errors import SpecError

__all__ = ["StageModule", "data_of", "dtype_of", "layer_module", "sample_shape", "target_of"]


def dtype_of(problem: Problem) -> torch.dtype:
    """Number format of weights and activations."""
    return torch.float32 if problem.run.dtype == "fp32" else torch.bfloat16


def _layer(o: Operator) -> Layer:
    if o.layer is None:
        raise SpecError(f"operator {o.name!r} does not say what it computes", where="operators.layer",
                        hint='give it a layer, or set run.mode = "paced"')
    return o.layer


def sample_shape(o: Operator) -> tuple[int, ...]:
    """Shape of one sample of the operator's output."""
    layer = _layer(o)
    return (layer.tokens, layer.width) if layer.tokens > 1 else (layer.width,)


class _Bag(nn.Module):
    """Rows of a table, concatenated."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.table = nn.Embedding(layer.rows, layer.width // layer.bag)

    def forward(self, ids_NK: torch.Tensor) -> torch.Tensor:
        return self.table(ids_NK).flatten(1)


def layer_module(layer: Layer, joined: int) -> nn.Module:
    """The module of a layer that reads ``joined`` columns."""
    if layer.kind == "dense":
        return nn.Sequential(nn.Linear(joined, layer.width), nn.Tanh())
    if layer.kind == "embedding":
        return _Bag(layer)
    if layer.kind == "concat":
        return nn.Identity()
    return nn.TransformerEncoderLayer(layer.width, layer.heads, layer.hidden, dropout=0.0, batch_first=True)


def _module(graph: OperatorGraph, number: int, seed: int, dtype: torch.dtype) -> nn.Module:
    o = graph.operators[number]
    layer, joined = _layer(o), joined_width(graph, number)
    if layer.kind == "concat":
        _require(joined == layer.width, o, f"joins {joined} columns, its width is {layer.width}")
    if layer.kind == "transformer":
        _require(joined == layer.width, o, f"reads {joined} columns, a transformer layer keeps its {layer.width}")
    torch.manual_seed(seed * 1_000_003 + number)
    return layer_module(layer, joined).to(dtype)


def _require(holds: bool, o: Operator, detail: str) -> None:
    if not holds:
        raise SpecError(f"operator {o.name!r} {detail}", where="operators.layer")


class StageModule(nn.Module):
    """The operators ``numbers`` of a model; ``forward`` gives the outputs of those in ``wanted``."""

    def __init__(self, problem: Problem, graph: OperatorGraph, numbers: Sequence[int], wanted: Sequence[int]) -> None:
        super().__init__()
        self.graph, self.numbers, self.wanted = graph, tuple(numbers), tuple(wanted)
        self.operators = nn.ModuleDict({str(v): _module(graph, v, problem.run.seed, dtype_of(problem))
                                        for v in numbers})

    def forward(self, inputs: Mapping[int, torch.Tensor], data: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """Outputs of ``wanted`` from other stages' outputs (by operator) and the operators' own data."""
        known = dict(inputs)
        for v in self.numbers:
            parts = ([data[v]] if v in data else []) + [known[u] for u, _ in self.graph.reads[v]]
            known[v] = self.operators[str(v)](parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))
        return [known[v] for v in self.wanted]


def data_of(problem: Problem, graph: OperatorGraph, number: int, step: int) -> torch.Tensor | None:
    """An operator's own data for the whole mini-batch; ``None`` if it has none."""
    layer = _layer(graph.operators[number])
    if layer.kind == "embedding":
        return torch.randint(layer.rows, (problem.batch_samples, layer.bag), generator=_random(problem, step, number))
    if not layer.inputs:
        return None
    shape = (layer.tokens, layer.inputs) if layer.tokens > 1 else (layer.inputs,)
    return torch.randn((problem.batch_samples, *shape), generator=_random(problem, step, number)).to(dtype_of(problem))


def target_of(problem: Problem, graph: OperatorGraph, number: int, step: int) -> torch.Tensor:
    """What the output of a last operator should be, for the whole mini-batch."""
    shape = sample_shape(graph.operators[number])
    made = torch.randn((problem.batch_samples, *shape), generator=_random(problem, step, number + len(graph)))
    return made.to(dtype_of(problem))


def _random(problem: Problem, step: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((problem.run.seed * 10_007 + step) * 1_000_003 + number)

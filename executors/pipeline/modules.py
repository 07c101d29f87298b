"""Operators as torch modules (built-in layers, parts of an imported module), their data, and stages of them.

Weights come from the run's seed and the operator's number in the model, data from the seed, the step and that number,
so every rank and the single-process reference make the same ones. All inputs of an operator are joined along the last
axis: its own data first, then its producers in topological order; parts of an imported module take theirs apart
themselves. Dropout is off, so micro-batch sizes do not matter. Random numbers are drawn on the CPU for every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from executors.pipeline.importing import ImportedLayer, numbers, parts_of
from planners.pipeline.graph import OperatorGraph
from planners.pipeline.layers import joined_width
from planners.pipeline.problem import Layer, Operator, Problem
from workbench.errors import SpecError

__all__ = ["Data", "StageModule", "dtype_of", "layer_module", "sample_shape", "sliced", "target_of"]


Data = tuple[torch.Tensor, ...]
"""An operator's own data: one tensor of a built-in layer, the arguments an imported part takes."""


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


def _imported(o: Operator, seed: int, device: str, dtype: torch.dtype) -> ImportedLayer:
    source = _layer(o).imported
    assert source is not None
    parts, made = parts_of(source, seed, device)
    part = next((p for p in parts.parts if p.name == o.name), None)
    if part is None:
        raise SpecError(f"the module has no part {o.name!r} any more", where=source.module,
                        hint="the module changed after its graph was written; import it again")
    return ImportedLayer(parts, part, made).to(dtype)


def _require(holds: bool, o: Operator, detail: str) -> None:
    if not holds:
        raise SpecError(f"operator {o.name!r} {detail}", where="operators.layer")


class StageModule(nn.Module):
    """The operators ``numbers`` of a model; ``forward`` gives the outputs of those in ``wanted``."""

    def __init__(self, problem: Problem, graph: OperatorGraph, members: Sequence[int], wanted: Sequence[int],
                 device: str = "cpu") -> None:
        super().__init__()
        self.graph, self.numbers, self.wanted = graph, tuple(members), tuple(wanted)
        seed, dtype = problem.run.seed, dtype_of(problem)
        self.operators = nn.ModuleDict({
            str(v): _imported(graph.operators[v], seed, device, dtype)
            if _layer(graph.operators[v]).kind == "imported" else _module(graph, v, seed, dtype) for v in members})
        self.to(device)

    def forward(self, inputs: Mapping[int, torch.Tensor], data: Mapping[int, Data]) -> list[torch.Tensor]:
        """Outputs of ``wanted`` from other stages' outputs (by operator) and the operators' own data."""
        known = dict(inputs)
        for v in self.numbers:
            layer = self.operators[str(v)]
            if isinstance(layer, ImportedLayer):
                named = {self.graph.operators[u].name: known[u] for u, _ in self.graph.reads[v]}
                known[v] = layer(data.get(v, ()), named)
                continue
            parts = [*data.get(v, ()), *(known[u] for u, _ in self.graph.reads[v])]
            known[v] = layer(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))
        return [known[v] for v in self.wanted]

    def names(self) -> list[tuple[str, nn.Parameter]]:
        """Weights by 'operator/parameter'."""
        return [(f"{self.graph.operators[int(v)].name}/{name}", p)
                for v, module in self.operators.items() for name, p in module.named_parameters()]

    def data(self, problem: Problem, step: int, device: str = "cpu") -> dict[int, Data]:
        """The operators' own data for the whole mini-batch, for those that have some."""
        made = {v: _data_of(problem, self.graph, v, self.operators[str(v)], step) for v in self.numbers}
        return {v: tuple(t.to(device) for t in d) for v, d in made.items() if d}


def sliced(data: Mapping[int, Data], first: int, last: int) -> dict[int, Data]:
    """Samples first … last - 1 of every operator's data."""
    return {v: tuple(t[first:last] for t in d) for v, d in data.items()}


def _data_of(problem: Problem, graph: OperatorGraph, number: int, module: nn.Module, step: int) -> Data:
    layer, dtype = _layer(graph.operators[number]), dtype_of(problem)
    if isinstance(module, ImportedLayer):
        # An argument that several parts take is drawn alike for each.
        assert layer.imported is not None
        drawn = [numbers(layer.imported.arguments[i], problem.batch_samples, _random(problem, step, i))
                 for i in module.argument_numbers]
        return tuple(t.to(dtype) if t.is_floating_point() else t for t in drawn)
    if layer.kind == "embedding":
        return (torch.randint(layer.rows, (problem.batch_samples, layer.bag),
                              generator=_random(problem, step, number)),)
    if not layer.inputs:
        return ()
    shape = (layer.tokens, layer.inputs) if layer.tokens > 1 else (layer.inputs,)
    return (torch.randn((problem.batch_samples, *shape), generator=_random(problem, step, number)).to(dtype),)


def target_of(problem: Problem, graph: OperatorGraph, number: int, step: int) -> torch.Tensor:
    """What the output of a last operator should be, for the whole mini-batch."""
    shape = sample_shape(graph.operators[number])
    made = torch.randn((problem.batch_samples, *shape), generator=_random(problem, step, number + len(graph)))
    return made.to(dtype_of(problem))


def _random(problem: Problem, step: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((problem.run.seed * 10_007 + step) * 1_000_003 + number)

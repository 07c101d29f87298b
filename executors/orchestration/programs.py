"""The real program behind a problem: values of its weights, the module it came from, inputs to run it on.

A problem that names a captured model has that model's module (seeded random weights, the same every time); a graph from
a file or inline has seeded random weights and no module, so that its captured primitives stand in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from executors.orchestration.kernels import dtype_of
from planners.orchestration.graph import PrimitiveGraph
from planners.orchestration.load import program_graph
from planners.orchestration.problem import Problem

__all__ = ["Behind", "behind", "example_inputs", "random_weights"]

LARGE = 100.0
"""Scale of the inputs that make logits large."""


@dataclass(frozen=True)
class Behind:
    """Graph, weights by name, and the module they come from (``None``: only the graph is known)."""

    graph: PrimitiveGraph
    weights: Mapping[str, torch.Tensor]
    module: torch.nn.Module | None


def behind(problem: Problem, *, device: str = "cpu") -> Behind:
    """What there is behind a problem.

    Raises:
        SpecError: no such graph.
    """
    graph = program_graph(problem)
    return Behind(graph, random_weights(graph, device=device), None)


def random_weights(graph: PrimitiveGraph, *, seed: int = 0, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Values for the graph's weights: positive, scaled so that sums over them stay near one."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for tensor in graph.tensors:
        if tensor.role != "weight":
            continue
        value = torch.empty_strided(tensor.shape, tensor.layout.strides, dtype=dtype_of(tensor.dtype), device=device)
        if value.dtype.is_floating_point:
            inner = max(1, tensor.elements // max(1, tensor.shape[0] if tensor.shape else 1))
            value.copy_(torch.rand(tensor.shape, generator=generator) / inner**0.5)
        else:
            value.zero_()
        made[tensor.name] = value
    return made


def example_inputs(graph: PrimitiveGraph, *, seed: int = 0, device: str = "cpu", scale: float = 1.0
                   ) -> list[torch.Tensor]:
    """Inputs of the program: normal numbers times ``scale``, zeros for integers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {t.name: t for t in graph.tensors}
    made = []
    for name in graph.inputs:
        tensor = tensors[name]
        value = torch.empty_strided(tensor.shape, tensor.layout.strides, dtype=dtype_of(tensor.dtype), device=device)
        if value.dtype.is_floating_point:
            value.copy_(torch.randn(tensor.shape, generator=generator) * scale)
        else:
            value.zero_()
        made.append(value)
    return made


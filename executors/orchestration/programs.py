"""The real program behind a problem: values of its weights, the module it came from, inputs to run it on.

A problem that names a captured model has that model's module (seeded random weights, the same every time); a graph from
a file has the weights that lie beside it (``.pt``), if there are any; others have seeded random weights and no module,
so that their captured primitives stand in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from executors.orchestration.capture import captured_model, load_captured
from executors.orchestration.kernels import dtype_of
from executors.orchestration.models import MODELS, build
from planners.orchestration.graph import PrimitiveGraph
from planners.orchestration.load import program_graph
from planners.orchestration.problem import Problem
from workbench.errors import SpecError

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
        SpecError: no such graph, or the graph that is shipped for a model is not the one captured from it here.
    """
    graph = program_graph(problem)
    name = problem.program.captured
    if name is not None and name in MODELS:
        side = _resolution(problem, graph)
        found = captured_model(name, batch=problem.program.batch, resolution=side)
        lacking = [t for t in graph.tensors if t.role == "weight"
                   and (t.name not in found.weights or tuple(found.weights[t.name].shape) != tuple(t.shape))]
        if lacking:
            raise SpecError(f"the shipped graph of {name!r} names a weight {lacking[0].name!r} that the model does not "
                            "have", where="program", hint="the graph was captured by another version",
                            next_command=f"python -m executors.orchestration.capture {name}")
        module, _ = build(name, batch=problem.program.batch, resolution=side)
        weights = {key: value.to(device) for key, value in found.weights.items()}
        return Behind(graph, weights, module.to(device))
    if problem.program.file is not None and Path(problem.program.file).with_suffix(".pt").exists():
        weights = {key: value.to(device) for key, value in load_captured(problem.program.file).weights.items()}
        return Behind(graph, weights, None)
    return Behind(graph, random_weights(graph, device=device), None)


def _resolution(problem: Problem, graph: PrimitiveGraph) -> int:
    """The resolution of a captured graph: the problem's, or the one the graph says it has.

    Raises:
        SpecError: neither says.
    """
    told = problem.program.resolution or graph.provenance.get("resolution")
    if told is None:
        raise SpecError("the graph does not say at which resolution it was captured", where="program.resolution")
    return int(told)


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


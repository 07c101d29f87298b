"""The same training in one process, by autograd of the whole model: what a run's gradients and weights should be.

Micro-batches of one size and unreplicated stages are added up in the order of the run, so the numbers must be equal to
the bit; otherwise the whole mini-batch goes through at once and the numbers must agree to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from executors.pipeline.modules import StageModule, sliced, target_of
from executors.pipeline.training import loss_of, one_thread, optimizer_of
from planners.pipeline.loaders import graph_of
from planners.pipeline.problem import Plan, Problem

__all__ = ["Reference", "adds_alike", "train"]


@dataclass
class Reference:
    """Gradients by step and weights at the end, by 'operator/parameter'."""

    gradients: list[dict[str, Any]]
    weights: dict[str, Any]


def adds_alike(problem: Problem, plan: Plan) -> bool:
    """Whether the run adds the same numbers in the same order as one process does."""
    if len({s.micro_batch_samples for s in plan.stages}) > 1 or any(len(s.devices) > 1 for s in plan.stages):
        return False
    graph = graph_of(problem)
    owner = {name: x for x, s in enumerate(plan.stages) for name in s.operators}
    of = [owner[o.name] for o in graph.operators]
    for u in range(len(graph)):
        outside = [of[v] for v, _ in graph.read_by[u] if of[v] != of[u]]
        # A stage that reads a tensor twice adds its two gradients before they meet those of other stages.
        if len(outside) > len(set(outside)) and len(graph.read_by[u]) > 2:
            return False
    return True


def train(problem: Problem, plan: Plan, *, device: str = "cpu") -> Reference:
    """All steps of the run in this process, on one device."""
    with one_thread():
        return _train(problem, plan, device)


def _train(problem: Problem, plan: Plan, device: str) -> Reference:
    graph = graph_of(problem)
    number = {o.name: v for v, o in enumerate(graph.operators)}
    # Stage after stage, so that autograd meets the consumers of a tensor in the order of the stages.
    order = [v for s in plan.stages for v in sorted(number[name] for name in s.operators)]
    last = [v for v in range(len(graph)) if not graph.read_by[v]]
    model = StageModule(problem, graph, order, last, device)
    optimizer = optimizer_of(problem, model.parameters())
    size = plan.stages[0].micro_batch_samples if adds_alike(problem, plan) else problem.batch_samples
    gradients = []
    for step in range(problem.run.steps):
        data = model.data(problem, step, device)
        targets = {v: target_of(problem, graph, v, step).to(device) for v in last}
        for p in model.parameters():
            p.grad = None
        for first in range(0, problem.batch_samples, size):
            mine = slice(first, first + size)
            outputs = model({}, sliced(data, first, first + size))
            losses = [loss_of(o, targets[v][mine], problem.batch_samples) for v, o in zip(last, outputs, strict=True)]
            torch.autograd.backward(losses)
        gradients.append({name: p.grad.detach().float().cpu().numpy().copy() for name, p in model.names()
                          if p.grad is not None})
        if optimizer is not None:
            optimizer.step()
    return Reference(gradients, {name: p.detach().float().cpu().numpy() for name, p in model.names()})


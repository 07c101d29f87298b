"""What a stage replica computes: forward and backward of slices, with everything held between them counted.

The loss is the sum over last operators of half the squared distance to a target, over the mini-batch: slices add up.
An output read by several stages gets its gradients summed from the last successor to the first, which is the order in
which autograd of the whole model adds them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from executors.pipeline.modules import Data, StageModule, sample_shape, sliced, target_of
from planners.pipeline.graph import OperatorGraph
from planners.pipeline.problem import Plan, Problem

__all__ = ["Replica", "loss_of", "one_thread", "optimizer_for", "optimizer_of"]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread meanwhile, so that sums are added in the order in which a rank adds them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def loss_of(output: torch.Tensor, target: torch.Tensor, batch: int) -> torch.Tensor:
    """Half the squared distance, over the mini-batch."""
    return 0.5 * (output - target).square().sum() / batch


def optimizer_of(problem: Problem, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer | None:
    """The problem's optimizer; ``None`` for a stage without parameters."""
    mine = list(parameters)
    return optimizer_for(problem.optimizer, mine, rate=problem.run.learning_rate) if mine else None


def optimizer_for(kind: str, parameters: list[torch.nn.Parameter], *, rate: float) -> torch.optim.Optimizer:
    """An optimizer that updates one tensor after the other."""
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=rate, foreach=False)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9 if kind == "momentum" else 0.0, foreach=False)


@dataclass(slots=True)
class _Held:
    leaves: dict[int, torch.Tensor]
    outputs: list[torch.Tensor]
    loss: torch.Tensor | None
    bytes: int


class Replica:
    """One replica of one stage in compute mode; tensors of a flow are packed side by side, [samples, columns]."""

    def __init__(self, problem: Problem, plan: Plan, graph: OperatorGraph, stage: int, device: str = "cpu") -> None:
        self.problem, self.graph, self.device = problem, graph, device
        number = {o.name: v for v, o in enumerate(graph.operators)}
        owner = {number[name]: x for x, s in enumerate(plan.stages) for name in s.operators}
        mine = sorted(v for v, x in owner.items() if x == stage)
        # Operators whose outputs each flow carries, in topological order.
        self.carried = {i: sorted({u for v in range(len(graph)) if owner[v] == f.consumer
                                   for u, _ in graph.reads[v] if owner[u] == f.producer})
                        for i, f in enumerate(plan.flows) if stage in (f.producer, f.consumer)}
        self.into = [i for i, f in enumerate(plan.flows) if f.consumer == stage and self.carried[i]]
        self.out = sorted((i for i, f in enumerate(plan.flows) if f.producer == stage and self.carried[i]),
                          key=lambda i: plan.flows[i].consumer)
        self.last = [v for v in mine if not graph.read_by[v]]
        self.wanted = sorted({u for i in self.out for u in self.carried[i]} | set(self.last))
        self.module = StageModule(problem, graph, mine, self.wanted, device)
        self.optimizer = optimizer_of(problem, self.module.parameters())
        self.weights = {t.untyped_storage().data_ptr() for t in (*self.module.parameters(), *self.module.buffers())}
        self.held: dict[int, _Held] = {}
        self.held_bytes = self.peak_bytes = 0
        self.loss: torch.Tensor | float = 0.0
        self.data: dict[int, Data] = {}
        self.targets: dict[int, torch.Tensor] = {}

    def columns(self, flow: int) -> int:
        """Packed width of a flow."""
        return sum(torch.Size(sample_shape(self.graph.operators[u])).numel() for u in self.carried[flow])

    def begin(self, step: int) -> None:
        """Make the step's data."""
        self.loss = 0.0
        self.data = self.module.data(self.problem, step, self.device)
        self.targets = {v: target_of(self.problem, self.graph, v, step).to(self.device) for v in self.last}
        for p in self.module.parameters():
            p.grad = None

    def forward(self, first: int, last: int, received: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Samples first … last - 1: packed activations by out-flow from packed activations by in-flow."""
        leaves: dict[int, torch.Tensor] = {}
        for i in self.into:
            at = 0
            for u in self.carried[i]:
                shape = sample_shape(self.graph.operators[u])
                width = torch.Size(shape).numel()
                part = received[i][:, at:at + width].reshape(last - first, *shape)
                leaves[u] = part.contiguous().requires_grad_()
                at += width
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in leaves.values()}

        def keep(t: torch.Tensor) -> torch.Tensor:
            where = t.untyped_storage().data_ptr()
            if where not in self.weights:
                storages[where] = t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            outputs = self.module(leaves, sliced(self.data, first, last))
        by_number = dict(zip(self.wanted, outputs, strict=True))
        losses = [loss_of(by_number[v], self.targets[v][first:last], self.problem.batch_samples) for v in self.last]
        loss = torch.stack(losses).sum() if losses else None
        if loss is not None:
            self.loss = self.loss + loss.detach()
        self.held[first] = _Held(leaves, outputs, loss, sum(storages.values()))
        self.held_bytes += self.held[first].bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return {i: torch.cat([by_number[u].detach().flatten(1) for u in self.carried[i]], dim=1) for i in self.out}

    def backward(self, first: int, last: int, received: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Samples first … last - 1: packed gradients by in-flow from packed gradients by out-flow."""
        held = self.held.pop(first)
        self.held_bytes -= held.bytes
        gradients: dict[int, torch.Tensor] = {}
        for i in reversed(self.out):
            at = 0
            for u in self.carried[i]:
                shape = sample_shape(self.graph.operators[u])
                width = torch.Size(shape).numel()
                part = received[i][:, at:at + width].reshape(last - first, *shape)
                gradients[u] = gradients[u] + part if u in gradients else part
                at += width
        roots = [t for v, t in zip(self.wanted, held.outputs, strict=True) if v in gradients]
        given: list[torch.Tensor | None] = [gradients[v] for v in self.wanted if v in gradients]
        if held.loss is not None:
            roots.append(held.loss)
            given.append(None)
        torch.autograd.backward(roots, given)
        out = {}
        for i in self.into:
            parts = [held.leaves[u] for u in self.carried[i]]
            out[i] = torch.cat([(t.grad if t.grad is not None else torch.zeros_like(t)).flatten(1) for t in parts], 1)
        return out

    def gradients(self) -> dict[str, torch.Tensor]:
        """Weight gradients by 'operator/parameter' (copies)."""
        return {name: p.grad.detach().clone() for name, p in self.module.names() if p.grad is not None}

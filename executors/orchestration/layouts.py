"""A program's images stored with their channels next to each other, where every reader can live with it.

Which layout a tensor is stored in decides what its kernels cost: oneDNN's convolutions make and prefer channels last,
reductions over pixels do not care, reshapes of an image into rows of pixels need it. ``channels_last`` changes the
strides of every four-dimensional value of a graph for which all views that its readers take stay metadata-only;
inputs and outputs of the program keep theirs. The graph is another one then, with costs of its own; which of the two
is better is measured.
"""

from __future__ import annotations

import dataclasses

from executors.orchestration.kernels import channels_last_strides, view_layout
from planners.orchestration.graph import Operand, PrimitiveGraph, Tensor
from planners.orchestration.views import Layout

__all__ = ["channels_last"]


def channels_last(graph: PrimitiveGraph) -> PrimitiveGraph:
    """The graph with channels-last strides on its images; the same graph when it convolves nothing."""
    if not any(p.op == "aten.convolution.default" for p in graph.primitives):
        return graph
    readers: dict[str, list[Operand]] = {}
    for primitive in graph.primitives:
        for operand in primitive.inputs:
            readers.setdefault(operand.tensor, []).append(operand)
    kept = {operand.tensor for operand in graph.outputs}
    tensors = tuple(_converted(t) if t.name not in kept and _fits(t, readers.get(t.name, [])) else t
                    for t in graph.tensors)
    return dataclasses.replace(graph, tensors=tensors,
                               provenance={**graph.provenance, "layout": "channels last"})


def _fits(tensor: Tensor, readers: list[Operand]) -> bool:
    """Whether ``tensor`` is an image whose readers can take it with its channels last."""
    if tensor.role != "value" or len(tensor.shape) != 4 or tensor.strides is not None:
        return False
    _, channels, height, width = tensor.shape
    if channels == 1 or height * width == 1:
        return False
    stored = Layout(tuple(tensor.shape), channels_last_strides(tensor.shape), 0)
    return all(view_layout(stored, operand.views) is not None for operand in readers)


def _converted(tensor: Tensor) -> Tensor:
    return dataclasses.replace(tensor, strides=channels_last_strides(tensor.shape))

"""Kernels without names, in torch: from a ``Structure`` to an ATen graph, to example operands, to straight-line Python.

A back-end turns a structure into a ``Fragment``: lines of Python that compute the outputs from variables, and the
objects that those lines name. Fragments are joined into one function (``stitched``) or compiled alone to be timed, so a
kernel costs in the program what it cost when it was measured: no wrapper, no dispatch of ours, no unpacking.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from planners.orchestration.candidates import StoredValue, Structure
from planners.orchestration.views import Layout, View, contiguous_strides, viewed

__all__ = ["Cannot", "Fragment", "Operands", "dtype_of", "examples", "filled", "first_line", "function", "graph_module",
           "in_double", "overload", "plain_argument", "strided", "view_call"]

_FORMATS = {"contiguous_format": torch.contiguous_format, "channels_last": torch.channels_last,
            "preserve_format": torch.preserve_format}


class Cannot(Exception):
    """A back-end's way to say that it has no kernel for a structure; the text says why."""


def first_line(error: BaseException) -> str:
    """The beginning of what a library's exception says, which may be pages or nothing."""
    return (str(error).strip().splitlines() or [""])[0][:200]


@dataclass(frozen=True, slots=True)
class Operands:
    """Tensors of a structure's inputs that never change (weights and constants), by input number."""

    fixed: Mapping[int, torch.Tensor]
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Fragment:
    """Statements that compute a kernel.

    ``lines`` use ``{0}``, ``{1}`` … for the variables of the structure's inputs (fixed ones are objects and never
    appear), ``{out0}`` … for the outputs, and names that start with ``{p}`` for everything else of their own, such as
    the objects in ``objects`` (by the name after ``{p}``). A fragment deletes its own variables but the outputs.
    """

    lines: tuple[str, ...]
    objects: Mapping[str, Any] = field(default_factory=dict)
    launches: int = 1

    def placed(self, prefix: str, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
        """The lines with their variables' names filled in."""
        names = {f"out{i}": name for i, name in enumerate(outputs)}
        return [line.format(*inputs, p=prefix, **names) for line in self.lines]


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype by its name."""
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def strided(value: StoredValue, device: str = "cpu") -> torch.Tensor:
    """An uninitialised tensor stored as ``value`` says."""
    return torch.empty_strided(value.shape, value.strides, dtype=dtype_of(value.dtype), device=device)


def filled(value: StoredValue, device: str = "cpu") -> torch.Tensor:
    """The tensor of a constant."""
    assert value.fill is not None
    return strided(value, device).fill_(value.fill)


def examples(structure: Structure, *, device: str = "cpu", seed: int = 0) -> list[torch.Tensor]:
    """Operands to time or compare a kernel with: normal numbers, zeros for integers, constants as they are.

    Weights are scaled by what is summed over them, so that values stay of order one through a whole model.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made = []
    for value in structure.inputs:
        if value.role == "constant":
            made.append(filled(value, device))
            continue
        tensor = strided(value, device)
        if tensor.dtype.is_floating_point:
            scale = math.prod(value.shape[1:]) ** -0.5 if value.role == "weight" else 1.0
            tensor.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float32) * scale)
        else:
            tensor.zero_()
        made.append(tensor)
    return made


def overload(name: str) -> Callable[..., Any]:
    """The operator overload called ``namespace.packet.overload``.

    Raises:
        Cannot: this torch has no such operator.
    """
    space, packet, variant = name.split(".")
    try:
        found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, space), packet), variant)
    except AttributeError:
        raise Cannot(f"torch {torch.__version__} has no operator {name}") from None
    return found


def plain_argument(value: Any, operands: Sequence[Any]) -> Any:
    """An argument of a step with its operands, dtypes and memory formats filled in."""
    if isinstance(value, Mapping):
        (kind, what), = value.items()
        if kind == "input":
            return operands[what]
        return dtype_of(what) if kind == "dtype" else _FORMATS[what]
    if isinstance(value, (list, tuple)):
        return [plain_argument(v, operands) for v in value]
    return value


def call_of(step: Any, operands: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a step for given operands."""
    positional = list(operands) if step.arguments is None else [plain_argument(a, operands) for a in step.arguments]
    return positional, {k: plain_argument(v, operands) for k, v in step.attributes.items()}


def graph_module(structure: Structure) -> GraphModule:
    """The structure as an ATen graph: placeholders are all its inputs but the constants, which are folded in.

    Outputs come as one tuple, each stored with the strides its structure says. Views that no stride can express in
    the layout an operation happens to give are reshaped (copied) there.
    """
    graph = Graph()
    inputs: list[Node] = [graph.placeholder(f"in{i}") for i, v in enumerate(structure.inputs) if v.role != "constant"]
    given = iter(inputs)
    outside = [graph.call_function(torch.ops.aten.full.default, (list(v.shape), v.fill), {"dtype": dtype_of(v.dtype)})
               if v.role == "constant" else next(given) for v in structure.inputs]
    steps: list[Node] = []
    for step in structure.steps:
        operands = [_viewed_node(graph, outside[r.number] if r.origin == "in" else steps[r.number], r.views)
                    for r in step.operands]
        positional, named = call_of(step, operands)
        node = graph.call_function(overload(step.op), tuple(positional), named)
        steps.append(node if step.result is None else graph.call_function(operator.getitem, (node, step.result)))
    graph.output(tuple(graph.call_function(_stored_as, (steps[o], structure.steps[o].value.strides))
                       for o in structure.outputs))
    return GraphModule(torch.nn.Module(), graph)


def in_double(structure: Structure) -> Structure:
    """The same calls in double precision: constants, and single precision where an argument names it."""
    inputs = tuple(dataclasses.replace(v, dtype="float64") if v.dtype == "float32" else v for v in structure.inputs)
    steps = tuple(dataclasses.replace(s, arguments=_argument_in_double(s.arguments),
                                      attributes=_argument_in_double(s.attributes)) for s in structure.steps)
    return dataclasses.replace(structure, inputs=inputs, steps=steps)


def _argument_in_double(value: Any) -> Any:
    if value == {"dtype": "float32"}:
        return {"dtype": "float64"}
    if isinstance(value, Mapping):
        return {k: _argument_in_double(v) for k, v in value.items()}
    return tuple(map(_argument_in_double, value)) if isinstance(value, (list, tuple)) else value


def _viewed_node(graph: Graph, node: Node, views: Sequence[View]) -> Node:
    for view in views:
        target, arguments = view_call(view)
        node = graph.call_function(target, (node, *arguments))
    return node


def view_call(view: View) -> tuple[Callable[..., Any], list[Any]]:
    """What to call on a tensor for a view, with which arguments after it; a tensor that lies otherwise than the graph
    stores it is copied where no strides express the view."""
    target = torch.reshape if view.op == "aten.view.default" else overload(view.op)
    return target, [list(a) if isinstance(a, tuple) else a for a in view.arguments]


def _stored_as(tensor: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """``tensor`` with the wanted strides: itself, or a copy.

    Raises:
        Cannot: the strides are neither row-major nor channels last.
    """
    if same_strides(tensor.shape, tensor.stride(), strides):
        return tensor
    if same_strides(tensor.shape, contiguous_strides(tensor.shape), strides):
        return tensor.clone(memory_format=torch.contiguous_format)
    if tensor.dim() == 4 and same_strides(tensor.shape, channels_last_strides(tensor.shape), strides):
        return tensor.clone(memory_format=torch.channels_last)
    raise Cannot(f"stores neither row-major nor channels last: strides {tuple(strides)}")


def channels_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a (N, C, H, W) tensor whose channels are next to each other."""
    _, c, h, w = shape
    return (h * w * c, 1, w * c, c)


def same_strides(shape: Sequence[int], first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two strides say the same where they matter: a dimension of one element may have any."""
    return all(a == b for n, a, b in zip(shape, first, second, strict=True) if n != 1)


def function(fragment: Fragment, structure: Structure, *, name: str = "kernel") -> Callable[..., Any]:
    """The fragment alone as a function of the structure's data inputs, in order; gives the output, or a tuple."""
    inputs = [f"x{i}" for i in range(len(structure.inputs))]
    outputs = [f"y{i}" for i in range(len(structure.outputs))]
    data = [x for x, v in zip(inputs, structure.inputs, strict=True) if v.role == "data"]
    body = fragment.placed("k_", inputs, outputs)
    result = outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
    text = "\n    ".join([f"def {name}({', '.join(data)}):", *body, f"return {result}"])
    space: dict[str, Any] = {f"k_{k}": v for k, v in fragment.objects.items()}
    exec(compile(text, f"<{name}>", "exec"), space)
    made: Callable[..., Any] = space[name]
    return made


def stored_layout(value: StoredValue) -> Layout:
    """Layout of a stored value."""
    return Layout(tuple(value.shape), tuple(value.strides), 0)


def view_layout(layout: Layout, views: Sequence[View]) -> Layout | None:
    """Layout after ``views``, or ``None`` where no strides express it."""
    from workbench.errors import SpecError

    try:
        return viewed(layout, views)
    except SpecError:
        return None

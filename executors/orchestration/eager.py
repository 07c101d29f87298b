"""ATen calls as a back-end: the structure's steps one after the other, as plain Python statements.

An elementwise step writes into an operand that nobody reads any more (``add_`` for ``add``), which saves an allocation
and a pass through memory. Views of an operand become one re-interpretation of its storage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensorMode

from executors.orchestration.kernels import (
    Cannot,
    Fragment,
    Operands,
    call_of,
    channels_last_strides,
    dtype_of,
    filled,
    overload,
    same_strides,
    view_layout,
)
from planners.orchestration.candidates import Step, StoredValue, Structure, ValueRef
from planners.orchestration.views import Layout, contiguous_strides

__all__ = ["REINTERPRET", "Emitter", "fragment", "viewed_tensor"]

_IN_PLACE = frozenset({
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "add.Scalar", "sub.Scalar", "mul.Scalar", "div.Scalar",
    "relu.default", "exp.default", "sigmoid.default", "tanh.default", "sqrt.default", "rsqrt.default", "neg.default",
    "erf.default", "silu.default", "hardswish.default", "hardsigmoid.default", "leaky_relu.default", "clamp.default",
    "clamp_min.default", "clamp_max.default", "hardtanh.default", "pow.Tensor_Scalar", "abs.default", "log.default",
    "reciprocal.default", "elu.default"})
"""Overloads that have an in-place form with the same arguments."""

_guards: Any = torch._C._dynamo.guards
REINTERPRET = _guards._reinterpret_tensor
"""(tensor, shape, strides, offset) -> another view of its storage, at half of ``as_strided``'s cost."""
Special = Mapping[str, Callable[["Emitter", Step, Sequence[str]], tuple[str, Layout]]]


class Emitter:
    """Writes the statements of one structure.

    Args:
        structure: the kernel.
        operands: values of weights (constants are made here).
        special: how to emit operators that are no ATen overload, by name.
    """

    def __init__(self, structure: Structure, operands: Operands, special: Special) -> None:
        self.structure, self.operands, self.special = structure, operands, special
        self.lines: list[str] = []
        self.objects: dict[str, Any] = {"view": REINTERPRET}
        self.layouts: list[Layout] = []
        self.names: list[str] = []
        self.last: dict[int, int] = {}
        for at, step in enumerate(structure.steps):
            self.last.update({r.number: at for r in step.operands if r.origin == "step"})
        self.last.update({o: len(structure.steps) for o in structure.outputs})

    def keep(self, value: Any) -> str:
        """A name for an object that the statements use; equal objects share it."""
        name = next((n for n, held in self.objects.items() if held is value), None)
        if name is None:
            name = f"o{len(self.objects)}"
            self.objects[name] = value
        return "{p}" + name

    def fixed(self, number: int) -> torch.Tensor | None:
        """The tensor of an input that never changes."""
        value = self.structure.inputs[number]
        return filled(value, self.operands.device) if value.role == "constant" else self.operands.fixed.get(number)

    def emit(self) -> Fragment:
        """All steps, then the outputs in the layout the structure says."""
        for at, step in enumerate(self.structure.steps):
            self._step(at, step)
        for i, o in enumerate(self.structure.outputs):
            self._store(i, o)
        used = "\n".join(self.lines)
        objects = {k: v for k, v in self.objects.items() if re.search(rf"\{{p\}}{k}\b", used)}
        return Fragment(tuple(self.lines), objects, launches=len(self.structure.steps))

    def _step(self, at: int, step: Step) -> None:
        name = f"{{p}}s{at}"
        operands = [self.operand(r) for r in step.operands]
        if step.op in self.special:
            call, layout = self.special[step.op](self, step, operands)
        else:
            layout = self._natural(step)
            call = self._call(at, step, operands, layout)
        self.lines.append(f"{name} = {call}")
        self.layouts.append(layout)
        self.names.append(name)
        gone = [self.names[n] for n in range(at) if self.last.get(n) == at]
        if gone:
            self.lines.append(f"del {', '.join(gone)}")

    def operand(self, ref: ValueRef) -> str:
        """The expression that reads an operand."""
        if ref.origin == "in":
            tensor = self.fixed(ref.number)
            if tensor is not None:
                return self.keep(viewed_tensor(tensor, ref))
            name, layout = f"{{{ref.number}}}", _layout_of(self.structure.inputs[ref.number])
        else:
            name, layout = self.names[ref.number], self.layouts[ref.number]
        if not ref.views:
            return name
        seen = view_layout(layout, ref.views)
        if seen is None:
            layout = Layout(layout.shape, contiguous_strides(layout.shape), 0)
            name = f"{name}.contiguous()"
            seen = view_layout(layout, ref.views)
            if seen is None:
                raise Cannot(f"no strides express a view of {layout.shape}")
        return f"{{p}}view({name}, {tuple(seen.shape)}, {tuple(seen.strides)}, {seen.offset})"

    def layout_of(self, ref: ValueRef) -> Layout:
        """How the value behind ``ref`` is stored, before its views."""
        return _layout_of(self.structure.inputs[ref.number]) if ref.origin == "in" else self.layouts[ref.number]

    def _natural(self, step: Step) -> Layout:
        """Shape and strides that the operator itself gives its result, by running it on tensors without values."""
        with torch.no_grad(), FakeTensorMode() as _:
            operands = [self._fake(r) for r in step.operands]
            positional, named = call_of(step, operands)
            made = overload(step.op)(*positional, **named)
        tensor = made if step.result is None else made[step.result]
        if tuple(tensor.shape) != tuple(step.value.shape):
            raise Cannot(f"{step.op} gives shape {tuple(tensor.shape)}, the structure says {step.value.shape}")
        return Layout(tuple(tensor.shape), tuple(tensor.stride()), 0)

    def _fake(self, ref: ValueRef) -> torch.Tensor:
        inside = ref.origin == "step"
        dtype = (self.structure.steps[ref.number].value if inside else self.structure.inputs[ref.number]).dtype
        layout = self.layout_of(ref)
        seen = view_layout(layout, ref.views)
        if seen is None:
            seen = view_layout(Layout(layout.shape, contiguous_strides(layout.shape), 0), ref.views)
        assert seen is not None
        return torch.empty_strided(seen.shape, seen.strides, dtype=dtype_of(dtype), device=self.operands.device)

    def _call(self, at: int, step: Step, operands: Sequence[str], layout: Layout) -> str:
        free = self._reusable(at, step, layout)
        positional = list(operands) if step.arguments is None else _texts(self, step.arguments, operands)
        named = [f"{k}={_text(self, v, operands)}" for k, v in step.attributes.items()]
        suffix = "" if step.result is None else f"[{step.result}]"
        if free is not None:
            others = [p for i, p in enumerate(positional) if i != free]
            packet = step.op.split(".")[1]
            return f"{positional[free]}.{packet}_({', '.join([*others, *named])})" if hasattr(
                torch.Tensor, packet + "_") else f"{self.keep(_in_place(step.op))}({', '.join([*positional, *named])})"
        return f"{self.keep(_quick(step.op))}({', '.join([*positional, *named])}){suffix}"

    def _reusable(self, at: int, step: Step, layout: Layout) -> int | None:
        """Position of the operand in whose place the result may be written, or ``None``."""
        space, _, variant = step.op.partition(".")
        if space != "aten" or variant not in _IN_PLACE or (step.arguments is not None and (
                not step.arguments or step.arguments[0] != {"input": 0})):
            return None
        either = 2 if variant in ("add.Tensor", "mul.Tensor") and not step.attributes and len(step.operands) == 2 and (
            step.arguments is None or tuple(step.arguments) == ({"input": 0}, {"input": 1})) else 1
        for i, ref in enumerate(step.operands[:either]):
            if ref.origin != "step" or ref.views or self.last[ref.number] != at:
                continue
            others = sum(1 for r in step.operands if r.origin == "step" and r.number == ref.number)
            same = self.structure.steps[ref.number].value.dtype == step.value.dtype
            if others == 1 and same and self.layouts[ref.number] == layout and _dense(layout) \
                    and not self._aliased(ref.number):
                return i
        return None

    def _aliased(self, number: int) -> bool:
        """Whether a value may share its storage with another (an operator that returns a view of its operand)."""
        return self.structure.steps[number].kind == "layout" or self.structure.steps[number].op in self.special

    def _store(self, i: int, o: int) -> None:
        wanted, layout, name = self.structure.steps[o].value, self.layouts[o], self.names[o]
        if same_strides(layout.shape, layout.strides, wanted.strides):
            call = name
        elif same_strides(wanted.shape, contiguous_strides(wanted.shape), wanted.strides):
            call = f"{name}.contiguous()"
        elif len(wanted.shape) == 4 and same_strides(wanted.shape, channels_last_strides(wanted.shape), wanted.strides):
            call = f"{name}.contiguous(memory_format={self.keep(torch.channels_last)})"
        else:
            raise Cannot(f"stores neither row-major nor channels last: strides {tuple(wanted.strides)}")
        self.lines += [f"{{out{i}}} = {call}", f"del {name}"]


def fragment(structure: Structure, operands: Operands, special: Special | None = None) -> Fragment:
    """The structure as ATen calls.

    Raises:
        Cannot: an operator is not in this torch, or a layout cannot be made.
    """
    return Emitter(structure, operands, special or {}).emit()


def _layout_of(value: StoredValue) -> Layout:
    return Layout(tuple(value.shape), tuple(value.strides), 0)


def viewed_tensor(tensor: torch.Tensor, ref: ValueRef) -> torch.Tensor:
    """A tensor after the views of ``ref``."""
    layout = view_layout(Layout(tuple(tensor.shape), tuple(tensor.stride()), 0), ref.views)
    if layout is None:
        raise Cannot(f"no strides express a view of {tuple(tensor.shape)}")
    return tensor if not ref.views else torch.as_strided(tensor, layout.shape, layout.strides, layout.offset)


def _dense(layout: Layout) -> bool:
    """Whether every element has a place of its own."""
    return all(s != 0 or n == 1 for n, s in zip(layout.shape, layout.strides, strict=True))


def _texts(emitter: Emitter, arguments: Sequence[Any], operands: Sequence[str]) -> list[str]:
    return [_text(emitter, a, operands) for a in arguments]


def _text(emitter: Emitter, value: Any, operands: Sequence[str]) -> str:
    """An argument as Python text."""
    if isinstance(value, Mapping):
        (kind, what), = value.items()
        if kind == "input":
            return operands[what]
        return emitter.keep(call_argument(value))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_texts(emitter, value, operands))}]"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return emitter.keep(value)
    return repr(value)


def call_argument(value: Mapping[str, Any]) -> Any:
    """A dtype or memory format by its description."""
    from executors.orchestration.kernels import plain_argument

    return plain_argument(value, ())


def _quick(op: str) -> Any:
    """The function torch offers for an overload, which parses its arguments faster than the overload's dispatcher."""
    space, packet, variant = op.split(".")
    found = overload(op)
    if space == "aten" and op in _BY_FUNCTION:
        return getattr(torch, packet)
    del variant
    return found


_BY_FUNCTION = frozenset(f"aten.{name}" for name in (
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "relu.default", "exp.default", "sigmoid.default",
    "tanh.default", "sqrt.default", "rsqrt.default", "bmm.default", "mm.default", "addmm.default", "erf.default"))


def _in_place(op: str) -> Any:
    space, packet, variant = op.split(".")
    return overload(f"{space}.{packet}_.{variant}")

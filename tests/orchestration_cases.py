"""Small kernels and programs that the tests of ``orchestration`` run: built by hand, without a capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planners.orchestration.candidates import Step, StoredValue, Structure, ValueRef
from planners.orchestration.graph import Operand, Primitive, PrimitiveGraph, Tensor
from planners.orchestration.views import View, contiguous_strides

Shape = Sequence[int]


def value(shape: Shape, role: str = "data", fill: float | None = None) -> StoredValue:
    return StoredValue(shape=tuple(shape), strides=contiguous_strides(shape), dtype="float32", role=role, fill=fill)  # type: ignore[arg-type]


def outside(number: int, *views: View) -> ValueRef:
    return ValueRef(origin="in", number=number, views=views)


def made(number: int, *views: View) -> ValueRef:
    return ValueRef(origin="step", number=number, views=views)


def step(op: str, kind: str, operands: Sequence[ValueRef], shape: Shape, arguments: Any = None, **named: Any) -> Step:
    return Step(op=f"aten.{op}", kind=kind, operands=tuple(operands), arguments=arguments, attributes=named,
                value=value(shape))


def structure(inputs: Sequence[StoredValue], steps: Sequence[Step], *outputs: int) -> Structure:
    return Structure(inputs=tuple(inputs), steps=tuple(steps), outputs=outputs or (len(steps) - 1,))


def a(number: int) -> dict[str, int]:
    """Operand ``number`` among arguments."""
    return {"input": number}


def instance_norm(channels: int = 4, side: int = 8, *, pad: bool = True) -> Structure:
    x, one = (1, channels, side, side), (1, channels, 1, 1)
    per_channel = View(op="aten.view.default", arguments=(one,))
    steps = [
        step("mean.dim", "reduce", [outside(0)], one, (a(0), (2, 3), True)),
        step("sub.Tensor", "elementwise", [outside(0), made(0)], x),
        step("mul.Tensor", "elementwise", [made(1), made(1)], x),
        step("mean.dim", "reduce", [made(2)], one, (a(0), (2, 3), True)),
        step("add.Scalar", "elementwise", [made(3)], one, (a(0), 1e-5)),
        step("rsqrt.default", "elementwise", [made(4)], one),
        step("mul.Tensor", "elementwise", [made(1), made(5)], x),
        step("mul.Tensor", "elementwise", [made(6), outside(1, per_channel)], x),
        step("add.Tensor", "elementwise", [made(7), outside(2, per_channel)], x),
        step("relu.default", "elementwise", [made(8)], x)]
    if pad:
        steps.append(step("reflection_pad2d.default", "layout", [made(9)], (1, channels, side + 2, side + 2),
                          (a(0), (1, 1, 1, 1))))
    return structure([value(x), value((channels,), "weight"), value((channels,), "weight")], steps)


def attention(rows: int = 16, keys: int = 12, width: int = 8, heads: int = 2) -> Structure:
    back = View(op="aten.permute.default", arguments=((0, 2, 1),))
    scores, column = (heads, rows, keys), (heads, rows, 1)
    steps = [
        step("bmm.default", "linear", [outside(0), outside(1, back)], scores),
        step("mul.Scalar", "elementwise", [made(0)], scores, (a(0), width**-0.5)),
        step("amax.default", "reduce", [made(1)], column, (a(0), (-1,), True)),
        step("sub.Tensor", "elementwise", [made(1), made(2)], scores),
        step("exp.default", "elementwise", [made(3)], scores),
        step("sum.dim_IntList", "reduce", [made(4)], column, (a(0), (-1,), True)),
        step("div.Tensor", "elementwise", [made(4), made(5)], scores),
        step("bmm.default", "linear", [made(6), outside(2)], (heads, rows, width))]
    return structure([value((heads, rows, width)), value((heads, keys, width)), value((heads, keys, width))], steps)


def convolution() -> Structure:
    y = (1, 8, 6, 6)
    per_channel = View(op="aten.view.default", arguments=((1, 8, 1, 1),))
    steps = [
        step("convolution.default", "linear", [outside(0), outside(1)], y,
             (a(0), a(1), None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1)),
        step("add.Tensor", "elementwise", [made(0), outside(2, per_channel)], y),
        step("sigmoid.default", "elementwise", [made(1)], y),
        step("mul.Tensor", "elementwise", [made(1), made(2)], y)]
    return structure([value((1, 4, 6, 6)), value((8, 4, 3, 3), "weight"), value((8,), "weight")], steps)


def linear() -> Structure:
    rows, turned = View(op="aten.view.default", arguments=((10, 6),)), View(op="aten.permute.default",
                                                                          arguments=((1, 0),))
    steps = [
        step("mm.default", "linear", [outside(0, rows), outside(1, turned)], (10, 12)),
        step("add.Tensor", "elementwise", [made(0), outside(2)], (10, 12)),
        step("gelu.default", "elementwise", [made(1)], (10, 12))]
    return structure([value((2, 5, 6)), value((12, 6), "weight"), value((12,), "weight")], steps)


CASES = {"instance norm": instance_norm(), "attention": attention(), "convolution": convolution(), "linear": linear()}


def program(kernel: Structure, name: str = "case") -> PrimitiveGraph:
    """The kernel's steps as a program of their own."""
    def at(ref: ValueRef) -> Operand:
        return Operand(tensor=("in" if ref.origin == "in" else "t") + str(ref.number), views=ref.views)

    tensors = [Tensor(name=f"in{i}", shape=v.shape, fill=v.fill, role="input" if v.role == "data" else v.role)
               for i, v in enumerate(kernel.inputs)]
    tensors += [Tensor(name=f"t{i}", shape=s.value.shape) for i, s in enumerate(kernel.steps)]
    primitives = [Primitive(name=f"p{i}", op=s.op, kind=s.kind, inputs=tuple(map(at, s.operands)), output=f"t{i}",  # type: ignore[arg-type]
                            arguments=s.arguments, attributes=s.attributes) for i, s in enumerate(kernel.steps)]
    return PrimitiveGraph(name=name, tensors=tuple(tensors), primitives=tuple(primitives),
                          inputs=tuple(f"in{i}" for i, v in enumerate(kernel.inputs) if v.role == "data"),
                          outputs=tuple(Operand(tensor=f"t{o}") for o in kernel.outputs))

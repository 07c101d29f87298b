"""Patterns in structures: primitives that together are what a library has one kernel for, put back together.

``collapsed`` rewrites a structure with composite operators in place of softmax (with its maximum), layer, group and
instance norms, SiLU, scaled dot product attention, biases and activations behind convolutions and matrix products.
A group of primitives is replaced only when nothing outside it reads what is inside. Composites are ATen overloads
where torch has one with the same operands; the others are named ``wb.…`` and emitted by ``library``:

    wb.attention(q, k, v[, mask]; scale)       (B, L, D), (B, S, D), (B, S, D) -> (B, L, D)
    wb.convolution(x, w[, bias], a…; affine)   aten.convolution, then channels scaled and shifted by weights a, then an
                                               activation (a batch norm behind a convolution is such a scale and shift)
    wb.linear(x, w[, bias], a…; affine)        (M, K), (K, N) -> (M, N), w a weight, and the same behind it
    wb.bmm(a, b)                               aten.bmm
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from executors.orchestration.kernels import view_layout
from planners.orchestration.candidates import Step, StoredValue, Structure, ValueRef
from planners.orchestration.views import Layout, View

__all__ = ["PATTERNS", "collapsed"]

_ACTIVATIONS: Mapping[str, str] = {
    "aten.relu.default": "relu", "aten.sigmoid.default": "sigmoid", "aten.tanh.default": "tanh",
    "aten.silu.default": "swish", "aten.hardswish.default": "hardswish", "aten.gelu.default": "gelu",
    "aten.leaky_relu.default": "leaky_relu", "aten.hardtanh.default": "hardtanh"}


class Work:
    """A structure being rewritten; removed steps are ``None``."""

    def __init__(self, structure: Structure) -> None:
        self.inputs, self.outputs = structure.inputs, structure.outputs
        self.steps: list[Step | None] = list(structure.steps)
        self.changed = False

    def users(self, number: int) -> list[int]:
        """Steps that read a step's value, once for each operand; -1 for the outside."""
        found = [i for i, s in enumerate(self.steps) if s is not None
                 for r in s.operands if r.origin == "step" and r.number == number]
        return found + [-1 for o in self.outputs if o == number]

    def only(self, number: int, *users: int) -> bool:
        """Whether nothing but ``users`` reads a step's value."""
        return set(self.users(number)) <= set(users)

    def maker(self, ref: ValueRef, *ops: str) -> int | None:
        """The step that makes an operand read without views, if it calls one of ``ops``."""
        if ref.origin != "step" or ref.views:
            return None
        step = self.steps[ref.number]
        return ref.number if step is not None and step.op in ops else None

    def at(self, number: int) -> Step:
        """A step that is there."""
        step = self.steps[number]
        assert step is not None
        return step

    def shape(self, ref: ValueRef) -> tuple[int, ...]:
        """Shape that a reader of ``ref`` sees."""
        layout = view_layout(self.layout(ref), ref.views)
        return () if layout is None else tuple(layout.shape)

    def layout(self, ref: ValueRef) -> Layout:
        """Layout of the value behind ``ref``, without its views."""
        value = self.value(ref)
        return Layout(tuple(value.shape), tuple(value.strides), 0)

    def value(self, ref: ValueRef) -> StoredValue:
        """The value behind ``ref``."""
        return self.inputs[ref.number] if ref.origin == "in" else self.at(ref.number).value

    def scalar(self, value: Any, step: Step) -> float | None:
        """The number an argument is: a plain one, or a constant operand of one element or many."""
        if isinstance(value, Mapping) and "input" in value:
            ref = step.operands[value["input"]]
            held = self.inputs[ref.number] if ref.origin == "in" else None
            return float(held.fill) if held is not None and held.role == "constant" and held.fill is not None else None
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def replace(self, number: int, step: Step, gone: Iterable[int]) -> None:
        """Put ``step`` in place of step ``number`` and take ``gone`` away."""
        self.steps[number] = step
        for g in gone:
            self.steps[g] = None
        self.changed = True

    def done(self) -> Structure:
        """The rewritten structure, renumbered; inputs stay as they were."""
        number: dict[int, int] = {}
        steps: list[Step] = []
        for i, step in enumerate(self.steps):
            if step is None:
                continue
            operands = tuple(r if r.origin == "in" else dataclasses.replace(r, number=number[r.number])
                             for r in step.operands)
            number[i] = len(steps)
            steps.append(dataclasses.replace(step, operands=operands))
        return Structure(inputs=self.inputs, steps=tuple(steps), outputs=tuple(number[o] for o in self.outputs))


def positional(step: Step) -> tuple[Any, ...]:
    """A step's positional arguments, operands as ``{"input": i}``."""
    return tuple({"input": i} for i in range(len(step.operands))) if step.arguments is None else tuple(step.arguments)


def argument(step: Step, index: int, name: str, default: Any = None) -> Any:
    """A step's argument by position or name."""
    found = positional(step)
    return found[index] if index < len(found) else step.attributes.get(name, default)


def dims(step: Step, rank: int, index: int = 1) -> tuple[int, ...]:
    """Dimensions a reduction is over, counted from 0, ascending; none given means all."""
    found = argument(step, index, "dim")
    if found is None or found == [] or found == ():
        return tuple(range(rank))
    chosen = [found] if isinstance(found, int) else found
    return tuple(sorted(d % rank for d in chosen))


def keeps(step: Step) -> bool:
    """Whether a reduction keeps its dimensions."""
    return bool(argument(step, 2, "keepdim", False))


def _softmax(work: Work, at: int) -> bool:
    step = work.at(at)
    if step.op != "aten.div.Tensor" or len(step.operands) != 2:
        return False
    e, s = work.maker(step.operands[0], "aten.exp.default"), work.maker(step.operands[1], "aten.sum.dim_IntList")
    if e is None or s is None or work.maker(work.at(s).operands[0], "aten.exp.default") != e:
        return False
    b = work.maker(work.at(e).operands[0], "aten.sub.Tensor")
    if b is None or len(work.at(b).operands) != 2:
        return False
    x, top = work.at(b).operands
    m = work.maker(top, "aten.amax.default")
    if m is None or work.at(m).operands[0] != x:
        return False
    rank = len(step.value.shape)
    over = dims(work.at(s), rank)
    if len(over) != 1 or dims(work.at(m), rank) != over or not (keeps(work.at(s)) and keeps(work.at(m))):
        return False
    if not (work.only(e, s, at) and work.only(s, at) and work.only(b, e) and work.only(m, b)):
        return False
    work.replace(at, Step(op="aten._softmax.default", kind="reduce", operands=(x,),
                          arguments=({"input": 0}, over[0], False), value=step.value), (e, s, b, m))
    return True


def _silu(work: Work, at: int) -> bool:
    step = work.at(at)
    if step.op != "aten.mul.Tensor" or len(step.operands) != 2:
        return False
    for x, other in (step.operands, reversed(step.operands)):
        s = work.maker(other, "aten.sigmoid.default")
        if s is not None and work.at(s).operands[0] == x and work.only(s, at):
            work.replace(at, Step(op="aten.silu.default", kind="elementwise", operands=(x,), value=step.value), (s,))
            return True
    return False


def _centred(work: Work, ref: ValueRef) -> tuple[int, int, ValueRef, tuple[int, ...]] | None:
    """(difference, mean, x, dimensions) when ``ref`` is x - mean(x)."""
    c = work.maker(ref, "aten.sub.Tensor")
    if c is None or len(work.at(c).operands) != 2 or work.at(c).attributes:
        return None
    x, mean = work.at(c).operands
    m = work.maker(mean, "aten.mean.dim")
    if m is None or work.at(m).operands[0] != x or not keeps(work.at(m)):
        return None
    return c, m, x, dims(work.at(m), len(work.shape(x)))


def _inverse_deviation(work: Work, ref: ValueRef, *, divides: bool) -> tuple[int, int, float, list[int]] | None:
    """(end, variance, epsilon, steps) when ``ref`` is rsqrt(v + eps), 1 / sqrt(v + eps), or (divides) sqrt(v + eps)."""
    end = work.maker(ref, *(("aten.sqrt.default",) if divides else ("aten.rsqrt.default", "aten.reciprocal.default")))
    if end is None:
        return None
    inside = [end]
    below = work.at(end).operands[0]
    if work.at(end).op == "aten.reciprocal.default":
        root = work.maker(below, "aten.sqrt.default")
        if root is None or not work.only(root, end):
            return None
        inside.append(root)
        below = work.at(root).operands[0]
    a = work.maker(below, "aten.add.Tensor", "aten.add.Scalar")
    if a is None or not work.only(a, inside[-1]):
        return None
    given = positional(work.at(a))
    eps = work.scalar(given[1], work.at(a))
    first = work.at(a).operands[0]
    if eps is None or first.origin != "step" or first.views:
        return None
    return end, first.number, eps, [*inside, a]


def _variance(work: Work, number: int, centre: int, x: ValueRef, over: tuple[int, ...]) -> list[int] | None:
    """Steps of the biased variance of x around its mean, the last one first."""
    step = work.steps[number]
    if step is None:
        return None
    if step.op == "aten.var.correction":
        correct = step.attributes.get("correction", 1)
        same = step.operands[0] == x and dims(step, len(work.shape(x))) == over
        return [number] if same and correct == 0 and bool(step.attributes.get("keepdim", False)) else None
    if step.op != "aten.mean.dim" or not keeps(step) or dims(step, len(work.shape(x))) != over:
        return None
    square = work.maker(step.operands[0], "aten.mul.Tensor", "aten.pow.Tensor_Scalar", "aten.square.default")
    if square is None or not work.only(square, number):
        return None
    made = work.at(square)
    if any(r.origin != "step" or r.number != centre or r.views for r in made.operands):
        return None
    if made.op == "aten.pow.Tensor_Scalar" and work.scalar(positional(made)[1], made) != 2:
        return None
    return [number, square]


def _norm(work: Work, at: int) -> bool:
    step = work.at(at)
    if step.op not in ("aten.mul.Tensor", "aten.div.Tensor") or len(step.operands) != 2:
        return False
    divides = step.op == "aten.div.Tensor"
    pairs = [tuple(step.operands)] if divides else [tuple(step.operands), tuple(reversed(step.operands))]
    for centred, deviation in pairs:
        c = _centred(work, centred)
        d = _inverse_deviation(work, deviation, divides=divides)
        if c is None or d is None:
            continue
        centre, mean, x, over = c
        end, variance, eps, inside = d
        squares = _variance(work, variance, centre, x, over)
        if squares is None or not (work.only(centre, at, *squares) and work.only(mean, centre) and work.only(end, at)
                                   and work.only(variance, inside[-1])):
            continue
        return _as_norm(work, at, x, over, eps, [centre, mean, *inside, *squares])
    return False


def _as_norm(work: Work, at: int, x: ValueRef, over: tuple[int, ...], eps: float, gone: list[int]) -> bool:
    shape = work.shape(x)
    rank = len(shape)
    trailing = over == tuple(range(rank - len(over), rank))
    if not trailing:
        return False
    per_channel = rank >= 4 and rank - len(over) == 2
    last, weight, bias = at, None, None
    affine: list[int] = []
    for op in ("aten.mul.Tensor", "aten.add.Tensor"):
        following = work.users(last)
        if len(following) != 1 or following[0] == -1:
            break
        after = work.at(following[0])
        if after.op != op or len(after.operands) != 2 or after.attributes or after.arguments not in (
                None, ({"input": 0}, {"input": 1})):
            break
        other = next((r for r in after.operands if r.origin == "in"), None)
        mine = next((r for r in after.operands if r.origin == "step" and r.number == last and not r.views), None)
        if other is None or mine is None:
            break
        wanted = (shape[1],) if per_channel else shape[rank - len(over):]
        seen = work.shape(other)
        fits = work.inputs[other.number].shape == wanted and (
            seen == (*((1,) if len(seen) == rank else ()), shape[1], *((1,) * (rank - 2))) if per_channel
            else seen[-len(wanted):] == wanted and all(n == 1 for n in seen[:-len(wanted)]))
        if not fits:
            break
        plain = ValueRef(origin="in", number=other.number)
        weight, bias = (plain, bias) if op == "aten.mul.Tensor" else (weight, plain)
        affine.append(following[0])
        last = following[0]
    operands = (x, *(r for r in (weight, bias) if r is not None))
    slots = iter({"input": i} for i in range(1, len(operands)))
    w, b = (next(slots) if weight is not None else None), (next(slots) if bias is not None else None)
    value = work.at(last).value
    if per_channel:
        pixels = 1
        for n in shape[2:]:
            pixels *= n
        made = Step(op="aten.native_group_norm.default", kind="reduce", operands=operands, result=0, value=value,
                    arguments=({"input": 0}, w, b, shape[0], shape[1], pixels, shape[1], eps))
    else:
        made = Step(op="aten.native_layer_norm.default", kind="reduce", operands=operands, result=0, value=value,
                    arguments=({"input": 0}, list(shape[rank - len(over):]), w, b, eps))
    work.replace(last, made, [*gone, *(n for n in (at, *affine) if n != last)])
    return True


def _attention(work: Work, at: int) -> bool:
    step = work.at(at)
    if step.op != "aten.bmm.default":
        return False
    p = work.maker(step.operands[0], "aten._softmax.default")
    if p is None or not work.only(p, at) or work.at(p).arguments != ({"input": 0}, 2, False):
        return False
    scale, ref, gone = 1.0, work.at(p).operands[0], [p]
    mask: ValueRef | None = None
    reader = p
    while True:
        n = work.maker(ref, "aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar",
                       "aten.add.Tensor", "aten.bmm.default")
        if n is None or not work.only(n, reader):
            return False
        inner = work.at(n)
        gone.append(n)
        if inner.op == "aten.bmm.default":
            break
        given = positional(inner)
        factor = work.scalar(given[1], inner) if len(given) > 1 else None
        if inner.op == "aten.add.Tensor":
            if mask is not None or scale != 1.0 or len(inner.operands) != 2 or inner.attributes:
                return False
            mask = inner.operands[1]
            if len(work.shape(mask)) not in (2, 3) or mask.origin != "in":
                return False
        elif factor is None or not factor:
            return False
        else:
            scale *= factor if ".mul." in f".{inner.op.removeprefix('aten.')}" or "mul" in inner.op else 1 / factor
        ref, reader = inner.operands[0], n
    q, kt = work.at(gone[-1]).operands
    back = View(op="aten.permute.default", arguments=((0, 2, 1),))
    k = ValueRef(origin=kt.origin, number=kt.number, views=(*kt.views, back))
    operands = (q, k, step.operands[1], *((mask,) if mask is not None else ()))
    work.replace(at, Step(op="wb.attention", kind="linear", operands=operands, attributes={"scale": scale},
                          value=step.value), gone)
    return True


def _weight(work: Work, ref: ValueRef) -> bool:
    return ref.origin == "in" and work.inputs[ref.number].role == "weight"


def _post(work: Work, at: int) -> tuple[str, list[float], str, int]:
    """(name, scalars, algorithm, last step) of an activation that is all that reads step ``at``; 'none' without one."""
    users = work.users(at)
    if len(users) == 1 and users[0] >= 0:
        after = work.at(users[0])
        name = _ACTIVATIONS.get(after.op)
        if name is not None and not after.operands[0].views and len(after.operands) == 1:
            if name == "leaky_relu":
                return name, [float(argument(after, 1, "negative_slope", 0.01))], "", users[0]
            if name == "hardtanh":
                return name, [float(argument(after, 1, "min_val", -1.0)), float(argument(after, 2, "max_val", 1.0))], \
                    "", users[0]
            if name == "gelu":
                return name, [], str(argument(after, 1, "approximate", "none")), users[0]
            return name, [], "", users[0]
    return "none", [], "", at


_AFFINE = {"aten.add.Tensor": "add", "aten.sub.Tensor": "sub", "aten.mul.Tensor": "mul", "aten.div.Tensor": "div"}


def _affine_behind(work: Work, at: int, channels: int, seen: Sequence[tuple[int, ...]]
                   ) -> list[tuple[str, ValueRef, int]]:
    """What is done to each channel of step ``at`` by weights, one step after the other: (operation, weight, step).

    A weight has ``channels`` elements and is read in one of the shapes ``seen``; nothing else may read the steps.
    """
    found: list[tuple[str, ValueRef, int]] = []
    while True:
        users = work.users(at)
        if len(users) != 1 or users[0] < 0:
            return found
        after = work.at(users[0])
        if after.op not in _AFFINE or len(after.operands) != 2 or after.attributes or after.arguments not in (
                None, ({"input": 0}, {"input": 1})):
            return found
        first, second = after.operands
        if first.origin == "in" and after.op in ("aten.add.Tensor", "aten.mul.Tensor"):
            first, second = second, first
        if first.origin != "step" or first.views or not _weight(work, second) or work.shape(second) not in seen \
                or math.prod(work.inputs[second.number].shape) != channels:
            return found
        found.append((_AFFINE[after.op], second, users[0]))
        at = users[0]


def _convolution(work: Work, at: int) -> bool:
    step = work.at(at)
    if step.op != "aten.convolution.default" or len(step.value.shape) != 4 or not _weight(work, step.operands[1]):
        return False
    given = positional(step)
    if argument(step, 6, "transposed"):
        return False
    bias = step.operands[2] if isinstance(given[2], Mapping) else None
    channels = step.value.shape[1]
    affine = _affine_behind(work, at, channels, ((channels, 1, 1), (1, channels, 1, 1)))
    last = affine[-1][2] if affine else at
    post, scalars, algorithm, end = _post(work, last)
    gone = {at, last, *(n for _, _, n in affine)} - {end}
    attributes = {"stride": list(given[3]), "padding": list(given[4]), "dilation": list(given[5]),
                  "groups": argument(step, 8, "groups"), "bias": bias is not None,
                  "affine": [name for name, _, _ in affine], "post": post, "scalars": scalars, "algorithm": algorithm}
    operands = (*step.operands[:2], *((bias,) if bias is not None else ()), *(ref for _, ref, _ in affine))
    work.replace(end, Step(op="wb.convolution", kind="linear", operands=operands, attributes=attributes,
                           value=work.at(end).value), gone)
    return True


def _linear(work: Work, at: int) -> bool:
    step = work.at(at)
    if step.op == "aten.mm.default" and _weight(work, step.operands[1]):
        x, w, bias = *step.operands, None
    elif step.op == "aten.addmm.default" and not step.attributes and step.arguments is None and _weight(
            work, step.operands[2]) and len(work.shape(step.operands[0])) == 1:
        bias, x, w = step.operands
    else:
        return False
    n = step.value.shape[1]
    affine = _affine_behind(work, at, n, ((n,), (1, n)))
    last = affine[-1][2] if affine else at
    post, scalars, algorithm, end = _post(work, last)
    gone = {at, last, *(number for _, _, number in affine)} - {end}
    operands = (x, w, *((bias,) if bias is not None else ()), *(ref for _, ref, _ in affine))
    work.replace(end, Step(op="wb.linear", kind="linear", operands=operands, value=work.at(end).value,
                           attributes={"bias": bias is not None, "affine": [name for name, _, _ in affine],
                                       "post": post, "scalars": scalars, "algorithm": algorithm}), gone)
    return True


def _bmm(work: Work, at: int) -> bool:
    step = work.at(at)
    if step.op != "aten.bmm.default" or step.value.shape[0] > 16:
        return False
    work.replace(at, dataclasses.replace(step, op="wb.bmm"), ())
    return True


PATTERNS: Mapping[str, Callable[[Work, int], bool]] = {
    "softmax": _softmax, "silu": _silu, "norm": _norm, "attention": _attention, "convolution": _convolution,
    "linear": _linear, "bmm": _bmm}
"""Patterns by name, in the order in which they are tried."""


def collapsed(structure: Structure, patterns: Sequence[str]) -> Structure | None:
    """The structure with composites for every occurrence of ``patterns``; ``None`` where there is none."""
    work = Work(structure)
    for name in patterns:
        for at in range(len(work.steps)):
            if work.steps[at] is not None:
                PATTERNS[name](work, at)
    return work.done() if work.changed else None

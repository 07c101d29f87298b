"""Library kernels as a back-end: the structure with its patterns put back together (``collapse``), as ATen calls.

Convolutions and matrix products with a weight go to oneDNN with the weight packed once for its shape, and with bias
and activation inside; products of two values go to oneDNN one batch after the other. (On processors other than
Intel's the MKL behind ``aten.mm`` leaves AVX-512 unused; oneDNN does not.) Which patterns pay is measured: a payload
names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from executors.orchestration import eager
from executors.orchestration.collapse import collapsed
from executors.orchestration.kernels import Cannot, Fragment, Operands, dtype_of, view_layout
from planners.orchestration.candidates import Step, Structure, ValueRef
from planners.orchestration.views import Layout, contiguous_strides

__all__ = ["VARIANTS", "fragment", "variants"]

_PLAIN = "softmax silu norm"
VARIANTS = (f"{_PLAIN} attention convolution linear", f"{_PLAIN} convolution linear bmm", f"{_PLAIN} attention",
            _PLAIN)
"""Sets of patterns worth trying, most specialised first."""


def variants(structure: Structure, device: str) -> list[str]:
    """Those of ``VARIANTS`` that give different kernels for a structure.

    Raises:
        Cannot: nothing in the structure is recognised.
    """
    found: dict[str, str] = {}
    for names in VARIANTS:
        if device != "cpu" and any(p in names for p in ("convolution", "linear", "bmm")):
            continue
        made = collapsed(structure, names.split())
        if made is not None:
            found.setdefault(made.digest(), names)
    if not found:
        raise Cannot("no pattern of a library kernel")
    return list(found.values())


def fragment(structure: Structure, names: str, operands: Operands) -> Fragment:
    """The structure with the patterns in ``names`` collapsed, as ATen and oneDNN calls.

    Raises:
        Cannot: nothing is recognised, or a weight cannot be packed.
    """
    made = collapsed(structure, names.split())
    if made is None:
        raise Cannot("no pattern of a library kernel")
    return eager.fragment(made, operands, _SPECIAL)


def _tensor(emitter: eager.Emitter, ref: ValueRef) -> torch.Tensor:
    """The value of a weight as it is read."""
    held = emitter.fixed(ref.number) if ref.origin == "in" else None
    if held is None:
        raise Cannot("its weight is not fixed")
    return eager.viewed_tensor(held, ref)


def _seen(emitter: eager.Emitter, ref: ValueRef) -> Layout:
    """Shape and strides in which a step reads an operand."""
    layout = emitter.layout_of(ref)
    seen = view_layout(layout, ref.views)
    return seen if seen is not None else Layout(*_row_major(emitter, ref))


def _row_major(emitter: eager.Emitter, ref: ValueRef) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    layout = emitter.layout_of(ref)
    seen = view_layout(Layout(layout.shape, contiguous_strides(layout.shape), 0), ref.views)
    if seen is None:
        raise Cannot(f"no strides express a view of {layout.shape}")
    return seen


def _like(emitter: eager.Emitter, ref: ValueRef) -> torch.Tensor:
    """A tensor of zeros with the shape and strides in which a step reads an operand."""
    seen = _seen(emitter, ref)
    value = (emitter.structure.inputs if ref.origin == "in" else [s.value for s in emitter.structure.steps])[ref.number]
    return torch.empty_strided(seen.shape, seen.strides, dtype=dtype_of(value.dtype)).zero_()


def _layout(tensor: torch.Tensor) -> Layout:
    return Layout(tuple(tensor.shape), tuple(tensor.stride()), 0)


def _folded(emitter: eager.Emitter, step: Step, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight (outputs first) and bias with the step's affine tail folded in, computed in double precision."""
    a = step.attributes
    tail = list(step.operands[2:])
    if not a["bias"] and not a["affine"]:
        return weight.contiguous(), None
    first = tail.pop(0) if a["bias"] else None
    scale = torch.ones(weight.shape[0], dtype=torch.float64, device=weight.device)
    shift = _tensor(emitter, first).double().reshape(-1) if first is not None else torch.zeros_like(scale)
    for name, ref in zip(a["affine"], tail, strict=True):
        value = _tensor(emitter, ref).double().reshape(-1)
        if name in ("add", "sub"):
            shift = shift + value if name == "add" else shift - value
        else:
            factor = value if name == "mul" else 1 / value
            scale, shift = scale * factor, shift * factor
    rows = scale.reshape(-1, *(1,) * (weight.dim() - 1))
    return (weight.double() * rows).to(weight.dtype).contiguous(), shift.to(weight.dtype).contiguous()


def _convolution(emitter: eager.Emitter, step: Step, operands: Sequence[str]) -> tuple[str, Layout]:
    a = step.attributes
    stride, padding, dilation, groups = list(a["stride"]), list(a["padding"]), list(a["dilation"]), int(a["groups"])
    x = _like(emitter, step.operands[0])
    weight, bias = _folded(emitter, step, _tensor(emitter, step.operands[1]))
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, list(x.shape))
    call = torch.ops.mkldnn._convolution_pointwise.default
    rest = (padding, stride, dilation, groups, a["post"], list(a["scalars"]), a["algorithm"])
    layout = _layout(call(x, packed, bias, *rest))
    named = [emitter.keep(v) for v in (call, packed)] + [emitter.keep(bias) if bias is not None else "None"]
    return f"{named[0]}({operands[0]}, {named[1]}, {named[2]}, {', '.join(map(repr, rest))})", layout


def _linear(emitter: eager.Emitter, step: Step, operands: Sequence[str]) -> tuple[str, Layout]:
    a = step.attributes
    x = _like(emitter, step.operands[0])
    weight, bias = _folded(emitter, step, _tensor(emitter, step.operands[1]).t())
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    call = torch.ops.mkldnn._linear_pointwise.default
    rest = (a["post"], list(a["scalars"]), a["algorithm"])
    layout = _layout(call(x, packed, bias, *rest))
    named = [emitter.keep(v) for v in (call, packed)] + [emitter.keep(bias) if bias is not None else "None"]
    return f"{named[0]}({operands[0]}, {named[1]}, {named[2]}, {', '.join(map(repr, rest))})", layout


def _bmm(emitter: eager.Emitter, step: Step, operands: Sequence[str]) -> tuple[str, Layout]:
    call = emitter.keep(torch.ops.mkldnn._linear_pointwise.default)
    batch, rows, columns = step.value.shape
    layout = Layout((batch, rows, columns), contiguous_strides((batch, rows, columns)), 0)
    a, b = operands
    if batch == 1:
        return f"{call}({a}[0], {b}[0].t(), None, 'none', [], '')[None]", layout
    each = f"{call}(a, b, None, 'none', [], '') for a, b in zip({a}.unbind(0), {b}.transpose(1, 2).unbind(0))"
    return f"{emitter.keep(torch.stack)}([{each}])", layout


def _attention(emitter: eager.Emitter, step: Step, operands: Sequence[str]) -> tuple[str, Layout]:
    call = emitter.keep(torch.nn.functional.scaled_dot_product_attention)
    q, k, v = (f"{o}.unsqueeze(1)" for o in operands[:3])
    mask = "None"
    if len(operands) > 3:
        mask = f"{operands[3]}.unsqueeze(1)" if len(_seen(emitter, step.operands[3]).shape) == 3 else operands[3]
    text = f"{call}({q}, {k}, {v}, {mask}, 0.0, False, scale={step.attributes['scale']!r}).squeeze(1)"
    given = [_like(emitter, r).unsqueeze(1) for r in step.operands[:3]]
    found = torch.nn.functional.scaled_dot_product_attention(
        given[0], given[1], given[2], _like(emitter, step.operands[3]) if len(operands) > 3 else None,
        scale=step.attributes["scale"])
    return text, _layout(found.squeeze(1))


_SPECIAL: dict[str, Callable[[eager.Emitter, Step, Sequence[str]], tuple[str, Layout]]] = {
    "wb.convolution": _convolution, "wb.linear": _linear, "wb.bmm": _bmm, "wb.attention": _attention}


def operators(structure: Structure, names: Iterable[str]) -> list[str]:
    """Operators of the collapsed structure, in order; those of the structure itself where nothing is recognised."""
    made: Any = collapsed(structure, list(names))
    return [step.op for step in (structure if made is None else made).steps]

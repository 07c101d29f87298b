"""Metadata-only views of stored tensors, followed without torch: shape, strides and offset, all in elements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from workbench.errors import SpecError, nearest
from workbench.spec import about, spec

__all__ = ["VIEWS", "Layout", "View", "contiguous_strides", "viewed"]

VIEWS = ("aten.view.default", "aten.permute.default", "aten.transpose.int", "aten.t.default", "aten.expand.default",
         "aten.unsqueeze.default", "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.select.int",
         "aten.slice.Tensor", "aten.unfold.default", "aten.as_strided.default")
"""Overloads allowed as views of an operand."""


@spec
class View:
    """A metadata-only operation on a stored tensor."""

    op: str = about("ATen overload, one of VIEWS.")
    arguments: tuple[Any, ...] = about("Its arguments after the tensor: numbers and lists of numbers.", default=())

    def __post_init__(self) -> None:
        # lists of a file become tuples, so that equal views are equal and have a hash wherever they come from
        object.__setattr__(self, "arguments", _tuples(self.arguments))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


class Layout(NamedTuple):
    """Shape, strides and offset, in elements, of a tensor or of a view of one."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        """Number of elements a reader sees."""
        return math.prod(self.shape)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides, as torch counts them (a dimension of no elements counts as one)."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def viewed(layout: Layout, views: Sequence[View]) -> Layout:
    """The layout a reader sees after ``views``.

    Raises:
        SpecError: an overload is not of ``VIEWS``, an argument does not fit, or no strides express the view.
    """
    for view in views:
        try:
            step = _STEPS[view.op]
        except KeyError:
            close = nearest(view.op, VIEWS)
            hint = f"did you mean {close!r}?" if close else "make it a primitive of kind layout"
            raise SpecError(f"{view.op!r} is not a metadata-only view", allowed=VIEWS, hint=hint) from None
        try:
            layout = step(layout, *view.arguments)
        except (TypeError, ValueError, IndexError) as error:
            raise SpecError(f"{view.op}{tuple(view.arguments)} does not fit shape {list(layout.shape)} with strides "
                            f"{list(layout.strides)}: {error}") from None
    return layout


def _axis(dim: int, rank: int) -> int:
    if not -rank <= dim < rank:
        raise ValueError(f"dimension {dim} of {rank}")
    return dim % rank


def _permute(x: Layout, dims: Sequence[int]) -> Layout:
    order = [_axis(d, len(x.shape)) for d in dims]
    if sorted(order) != list(range(len(x.shape))):
        raise ValueError(f"{list(dims)} is no permutation")
    return Layout(tuple(x.shape[d] for d in order), tuple(x.strides[d] for d in order), x.offset)


def _transpose(x: Layout, first: int, second: int) -> Layout:
    order = list(range(len(x.shape)))
    a, b = _axis(first, len(order)), _axis(second, len(order))
    order[a], order[b] = order[b], order[a]
    return _permute(x, order)


def _t(x: Layout) -> Layout:
    if len(x.shape) > 2:
        raise ValueError("more than two dimensions")
    return _permute(x, list(reversed(range(len(x.shape)))))


def _expand(x: Layout, sizes: Sequence[int], implicit: bool = False) -> Layout:
    new = len(sizes) - len(x.shape)
    if new < 0:
        raise ValueError("fewer dimensions than before")
    shape, strides = list(sizes), [0] * new + list(x.strides)
    for d, (size, old) in enumerate(zip(sizes[new:], x.shape, strict=True), start=new):
        if size == -1 or size == old:
            shape[d] = old
        elif old == 1:
            strides[d] = 0
        else:
            raise ValueError(f"dimension {d} has {old} elements, not 1")
    return Layout(tuple(shape), tuple(strides), x.offset)


def _unsqueeze(x: Layout, dim: int) -> Layout:
    d = _axis(dim, len(x.shape) + 1)
    stride = x.shape[d] * x.strides[d] if d < len(x.shape) else 1
    return Layout((*x.shape[:d], 1, *x.shape[d:]), (*x.strides[:d], stride, *x.strides[d:]), x.offset)


def _squeeze(x: Layout, dims: int | Sequence[int] | None = None) -> Layout:
    chosen = range(len(x.shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {_axis(d, len(x.shape)) for d in chosen if x.shape[_axis(d, len(x.shape))] == 1}
    keep = [d for d in range(len(x.shape)) if d not in gone]
    return Layout(tuple(x.shape[d] for d in keep), tuple(x.strides[d] for d in keep), x.offset)


def _select(x: Layout, dim: int, index: int) -> Layout:
    d = _axis(dim, len(x.shape))
    i = _axis(index, x.shape[d])
    return Layout(x.shape[:d] + x.shape[d + 1:], x.strides[:d] + x.strides[d + 1:], x.offset + i * x.strides[d])


def _slice(x: Layout, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Layout:
    d = _axis(dim, len(x.shape))
    if step < 1:
        raise ValueError("step below 1")
    first, last, _ = slice(start, end).indices(x.shape[d])
    count = max(0, -(-(last - first) // step))
    return Layout((*x.shape[:d], count, *x.shape[d + 1:]), (*x.strides[:d], x.strides[d] * step, *x.strides[d + 1:]),
                  x.offset + first * x.strides[d])


def _unfold(x: Layout, dim: int, size: int, step: int) -> Layout:
    d = _axis(dim, len(x.shape))
    if not 0 < size <= x.shape[d] or step < 1:
        raise ValueError(f"windows of {size} in {x.shape[d]}")
    return Layout((*x.shape[:d], (x.shape[d] - size) // step + 1, *x.shape[d + 1:], size),
                  (*x.strides[:d], x.strides[d] * step, *x.strides[d + 1:], x.strides[d]), x.offset)


def _as_strided(x: Layout, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> Layout:
    if len(size) != len(stride):
        raise ValueError("as many sizes as strides")
    return Layout(tuple(size), tuple(stride), x.offset if offset is None else offset)


def _view(x: Layout, sizes: Sequence[int]) -> Layout:
    """Split and merge dimensions where strides allow: every run of old dimensions that merges is split anew."""
    shape = list(sizes)
    known = math.prod(s for s in shape if s != -1)
    if -1 in shape:
        if known == 0 or x.elements % known:
            raise ValueError(f"{x.elements} elements")
        shape[shape.index(-1)] = x.elements // known
    if math.prod(shape) != x.elements:
        raise ValueError(f"{x.elements} elements")
    if x.elements == 0:
        return Layout(tuple(shape), contiguous_strides(shape), x.offset)
    strides: list[int] = []
    new = len(shape) - 1
    old = [(n, s) for n, s in zip(x.shape, x.strides, strict=True) if n != 1]
    end = len(old)
    while end:
        begin = end - 1
        while begin and old[begin - 1][1] == old[begin][0] * old[begin][1]:
            begin -= 1
        left, step = math.prod(n for n, _ in old[begin:end]), old[end - 1][1]
        while new >= 0 and (left > 1 or shape[new] == 1):
            if left % shape[new]:
                raise ValueError("no strides express it")
            strides.append(step)
            step *= shape[new]
            left //= shape[new]
            new -= 1
        if left != 1:
            raise ValueError("no strides express it")
        end = begin
    strides += [strides[-1] if strides else 1] * (new + 1)
    return Layout(tuple(shape), tuple(reversed(strides)), x.offset)


_STEPS: Mapping[str, Any] = {
    "aten.view.default": _view, "aten.permute.default": _permute, "aten.transpose.int": _transpose,
    "aten.t.default": _t, "aten.expand.default": _expand, "aten.unsqueeze.default": _unsqueeze,
    "aten.squeeze.default": _squeeze, "aten.squeeze.dim": _squeeze, "aten.squeeze.dims": _squeeze,
    "aten.select.int": _select, "aten.slice.Tensor": _slice, "aten.unfold.default": _unfold,
    "aten.as_strided.default": _as_strided}

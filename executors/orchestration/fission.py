"""Fission: operators that hide several steps, written as the primitives they consist of.

Paper: Korch, arXiv 2406.09465, section 3. ``TABLE`` maps ATen overloads to functions of tensors (what make_fx puts in
their place); ``Fission`` does the same for functions that ATen would take apart in ways of its own before anyone sees
them. Softmax keeps its maximum, so that large logits stay finite; ``UNSAFE_TABLE`` leaves it out (the paper's form).

A unary elementwise function (SiLU, GELU, Mish, hardswish) stays one primitive: no kernel could use a part of it alone.
Padding, resizing and pooling stay single primitives too: their index arithmetic would be dozens of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["TABLE", "UNSAFE_TABLE", "Fission"]

_A = torch.ops.aten


def _exponentials(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """exp(x - max x) along ``dim``, and x - max x."""
    below = _A.sub.Tensor(x, _A.amax.default(x, [dim], True))
    return _A.exp.default(below), below


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    e, _ = _exponentials(x.float() if half_to_float else x, dim)
    return _A.div.Tensor(e, _A.sum.dim_IntList(e, [dim], True))


def _unsafe_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    e = _A.exp.default(x.float() if half_to_float else x)
    return _A.div.Tensor(e, _A.sum.dim_IntList(e, [dim], True))


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    e, below = _exponentials(x.float() if half_to_float else x, dim)
    return _A.sub.Tensor(below, _A.log.default(_A.sum.dim_IntList(e, [dim], True)))


def _masked_softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax whose rows of nothing but -inf are zeros, as attention with a mask has it."""
    top = _A.amax.default(x, [dim], True)
    empty = _A.lt.Scalar(top, torch.finfo(x.dtype).min)
    e = _A.exp.default(_A.sub.Tensor(x, _A.masked_fill.Scalar(top, empty, 0.0)))
    return _A.div.Tensor(e, _A.masked_fill.Scalar(_A.sum.dim_IntList(e, [dim], True), empty, 1.0))


def _standardised(x: Tensor, dims: Sequence[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) over ``dims``; the mean; 1 / sqrt(variance + eps)."""
    mean = _A.mean.dim(x, dims, True)
    centred = _A.sub.Tensor(x, mean)
    variance = _A.mean.dim(_A.mul.Tensor(centred, centred), dims, True)
    inverse = _A.rsqrt.default(_A.add.Scalar(variance, eps))
    return _A.mul.Tensor(centred, inverse), mean, inverse


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else _A.mul.Tensor(x, weight)
    return x if bias is None else _A.add.Tensor(x, bias)


def _per_channel(value: Tensor | None, rank: int) -> Tensor | None:
    return None if value is None else _A.view.default(value, [1, value.shape[0], *(1,) * (rank - 2)])


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    made, mean, inverse = _standardised(x, list(range(x.dim() - len(shape), x.dim())), eps)
    return _affine(made, weight, bias), mean, inverse


def _group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, pixels: int, groups: int,
                eps: float) -> Any:
    if groups == c:
        made, mean, inverse = _standardised(x, list(range(2, x.dim())), eps)
    else:
        rows, mean, inverse = _standardised(x.reshape(n, groups, c // groups * pixels), [2], eps)
        made = rows.reshape(x.shape)
    made = _affine(made, _per_channel(weight, x.dim()), _per_channel(bias, x.dim()))
    return made, mean.reshape(n, groups), inverse.reshape(n, groups)


def _fixed_batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor,
                      eps: float) -> Tensor:
    """Scale and shift by channel; both only depend on weights and are computed once, in double precision."""
    scale = torch.rsqrt(variance.double() + eps)
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale if bias is None else bias.double() - mean.double() * scale
    scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    return _affine(x, _per_channel(scale, x.dim()), _per_channel(shift, x.dim()))


def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None,
                training: bool, momentum: float, eps: float) -> Any:
    if training:
        if mean is not None:
            return NotImplemented
        made, seen, inverse = _standardised(x, [0, *range(2, x.dim())], eps)
        made = _affine(made, _per_channel(weight, x.dim()), _per_channel(bias, x.dim()))
        return made, seen.reshape(-1), inverse.reshape(-1)
    assert mean is not None and variance is not None
    made = _fixed_batch_norm(x, weight, bias, mean, variance, eps)
    return made, x.new_empty((0,)), x.new_empty((0,))


def _no_training(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor,
                 momentum: float, eps: float) -> Any:
    return _batch_norm(x, weight, bias, mean, variance, False, momentum, eps)


def _variance_and_mean(x: Tensor, dims: Sequence[int] | None, correction: float | None, keep: bool
                       ) -> tuple[Tensor, Tensor]:
    over = sorted(d % x.dim() for d in dims) if dims else list(range(x.dim()))
    mean = _A.mean.dim(x, over, True)
    centred = _A.sub.Tensor(x, mean)
    variance = _A.mean.dim(_A.mul.Tensor(centred, centred), over, True)
    count = math.prod(x.shape[d] for d in over)
    less = 1 if correction is None else correction
    if less:
        variance = _A.mul.Scalar(variance, count / (count - less) if count > less else math.nan)
    return (variance, mean) if keep else (variance.squeeze(over), mean.squeeze(over))


def _var(x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
         ) -> Tensor:
    return _variance_and_mean(x, dim, correction, keepdim)[0]


def _var_mean(x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
              ) -> tuple[Tensor, Tensor]:
    return _variance_and_mean(x, dim, correction, keepdim)


def _std(x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
         ) -> Tensor:
    return _A.sqrt.default(_var(x, dim, correction=correction, keepdim=keepdim))


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    if bias is None:
        return NotImplemented
    made = _A.convolution.default(x, weight, None, *rest)
    return _A.add.Tensor(made, _A.view.default(bias, [bias.shape[0], *(1,) * (weight.dim() - 2)]))


def _plus(product: Tensor, addend: Tensor, beta: float, alpha: float) -> Tensor:
    product = product if alpha == 1 else _A.mul.Scalar(product, alpha)
    if beta == 0:
        return product
    return _A.add.Tensor(product, addend if beta == 1 else _A.mul.Scalar(addend, beta))


def _addmm(addend: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _plus(_A.mm.default(a, b), addend, beta, alpha)


def _baddbmm(addend: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _plus(_A.bmm.default(a, b), addend, beta, alpha)


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    dim %= tensors[0].dim() + 1
    return _A.cat.default([_A.unsqueeze.default(t, dim) for t in tensors], dim)


def _masked_fill(x: Tensor, mask: Tensor, value: float) -> Tensor:
    return _A.where.self(mask, torch.full((), value, dtype=x.dtype, device=x.device), x)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, *,
                     attn_mask: Tensor | None = None, scale: float | None = None) -> Any:
    if dropout:
        return NotImplemented
    return _attention(q, k, v, attn_mask, causal=causal, scale=scale), q.new_empty((0,))


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, scale: float | None) -> Tensor:
    """softmax(q k^T scale + mask) v, as torch defines ``scaled_dot_product_attention``."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = _A.mul.Scalar(torch.matmul(q, k.transpose(-2, -1)), scale)
    if causal:
        rows, columns = q.shape[-2], k.shape[-2]
        allowed = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril()
        scores = scores + torch.zeros(rows, columns, dtype=q.dtype, device=q.device).masked_fill(~allowed, -math.inf)
    if mask is None:
        return torch.matmul(torch.softmax(scores, -1), v)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -math.inf)
    return torch.matmul(_masked_softmax(scores + mask, -1), v)


TABLE: Mapping[Any, Callable[..., Any]] = {
    _A._softmax.default: _softmax, _A._log_softmax.default: _log_softmax,
    _A.native_layer_norm.default: _layer_norm, _A.native_group_norm.default: _group_norm,
    _A.native_batch_norm.default: _batch_norm, _A._native_batch_norm_legit.default: _batch_norm,
    _A._native_batch_norm_legit_no_training.default: _no_training,
    _A.var.correction: _var, _A.var_mean.correction: _var_mean, _A.std.correction: _std,
    _A.convolution.default: _convolution, _A.addmm.default: _addmm, _A.baddbmm.default: _baddbmm,
    _A.stack.default: _stack, _A.masked_fill.Scalar: _masked_fill,
    _A._scaled_dot_product_flash_attention_for_cpu.default: _flash_attention}
"""Fission of ATen overloads; a function may return ``NotImplemented`` to leave a call as it is."""

UNSAFE_TABLE: Mapping[Any, Callable[..., Any]] = {**TABLE, _A._softmax.default: _unsafe_softmax}
"""The same with exp(x) / sum exp(x), which overflows for logits above 88 in single precision."""


def _instance_norm(x: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
                   weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
                   momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
    if not use_input_stats:
        assert running_mean is not None and running_var is not None
        return _fixed_batch_norm(x, weight, bias, running_mean, running_var, eps)
    made, _, _ = _standardised(x, list(range(2, x.dim())), eps)
    return _affine(made, _per_channel(weight, x.dim()), _per_channel(bias, x.dim()))


def _scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None,
                                  dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                                  enable_gqa: bool = False) -> Tensor:
    if enable_gqa:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
    return _attention(q, k, v, attn_mask, causal=is_causal, scale=scale)


class Fission(TorchFunctionMode):
    """While active, functions that ATen takes apart before make_fx sees them are taken apart here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, or what stands for it."""
        kwargs = kwargs or {}
        if func is F.instance_norm and (kwargs.get("use_input_stats", True) is False or kwargs.get(
                "running_mean", args[1] if len(args) > 1 else None) is None):
            return _instance_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention and not kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0):
            return _scaled_dot_product_attention(*args, **kwargs)
        return func(*args, **kwargs)

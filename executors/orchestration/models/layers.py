"""Layers several models share, and the seeded random weights all of them get."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["ConvUnit", "calibrate", "initialise", "parameters", "softmax_attention"]


class ConvUnit(nn.Module):
    """Convolution ("same" padding), optional batch norm, optional activation.

    Args:
        channels_in, channels_out: channels.
        kernel: odd side of the square kernel.
        stride: stride in both directions.
        groups: groups of the convolution; ``channels_in`` makes it depthwise.
        bias: whether the convolution has a bias.
        norm: whether a batch norm follows.
        eps: added to the variance by the batch norm.
        activation: last step, ``None`` for none.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1,
                 bias: bool = False, norm: bool = True, eps: float = 1e-5, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(channels_out, eps=eps) if norm else None
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, h, w) -> (batch, channels_out, h / stride, w / stride), rounded up."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def initialise(module: nn.Module, *, seed: int) -> None:
    """Fill every parameter of ``module`` from ``seed``; the global generator is left alone.

    Weights are uniform with variance 2 / fan-in (convolutions; He et al. 2015) or 1 / fan-in (linear layers). Norms get
    scales and shifts away from one and zero: a step that forgot one of them must not go unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(value: Tensor | None, low: float, high: float) -> None:
        if value is not None:
            value.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                gain = 2.0 if isinstance(part, nn.Conv2d) else 1.0
                limit = math.sqrt(3 * gain / math.prod(part.weight.shape[1:]))
                fill(part.weight, -limit, limit)
                fill(part.bias, -0.1, 0.1)
            elif isinstance(part, nn.BatchNorm2d | nn.InstanceNorm2d | nn.LayerNorm):
                fill(part.weight, 0.5, 1.5)
                fill(part.bias, -0.1, 0.5)
            else:
                for parameter in part.parameters(recurse=False):
                    fill(cast(Tensor, parameter), -0.5, 0.5)


def calibrate(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Set the statistics of every batch norm from its input on ``inputs``: signals stay of order one at any depth.

    Each channel's mean is a tenth of the one seen; the variance, shared by a layer's channels, is what is left about
    it. Exact statistics of a few random images would make a random network chaotic (rounding errors of 5e-5 of
    the output, and hundredfold outputs at other resolutions); fixed ones let deep signals die or explode. Computed in
    double precision, so that the order in which threads add does not matter.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms:
        return

    def observe(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        mean = arguments[0].mean(dim=(0, 2, 3)) / 10
        cast(Tensor, norm.running_mean).copy_(mean)
        cast(Tensor, norm.running_var).copy_((arguments[0] - mean[:, None, None]).square().mean())

    hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
    try:
        with torch.no_grad():
            module.double()(*(value.double() for value in inputs))
    finally:
        module.float()
        for hook in hooks:
            hook.remove()


def parameters(module: nn.Module) -> int:
    """How many numbers the parameters of ``module`` hold (statistics of norms are not parameters)."""
    return sum(p.numel() for p in module.parameters())


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention in its textbook form, softmax(q k^T / sqrt(d)) v, head by head.

    Args:
        q: (batch, queries, heads * d).
        k, v: (batch, keys, heads * d).
        heads: how many heads share the last dimension.
        mask: added to the scores, (queries, keys).

    Returns:
        (batch, queries, heads * d).
    """
    batch, queries, width = q.shape
    d = width // heads
    q, k, v = (t.reshape(batch, t.shape[1], heads, d).transpose(1, 2) for t in (q, k, v))
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(d)
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), v).transpose(1, 2).reshape(batch, queries, width)

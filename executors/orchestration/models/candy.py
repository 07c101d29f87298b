"""Candy: the image transformation network of fast neural style, at 224 x 224.

Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and super-resolution" (ECCV 2016), in the
form most published weights use: reflection padding, instance norm (Ulyanov et al., arXiv 1607.08022) and nearest
upsampling in place of transposed convolutions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Candy", "ReflectConv"]


class ReflectConv(nn.Module):
    """Nearest upsampling (when ``upsample`` > 1), reflection padding, convolution."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, upsample: int = 1) -> None:
        super().__init__()
        self.upsample = upsample
        self.pad = nn.ReflectionPad2d(kernel // 2)
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, h, w) -> (batch, channels_out, h * upsample / stride, w * upsample / stride)."""
        if self.upsample > 1:
            x = F.interpolate(x, scale_factor=float(self.upsample), mode="nearest")
        return self.conv(self.pad(x))


class _Stage(nn.Module):
    """``ReflectConv``, instance norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, upsample: int = 1) -> None:
        super().__init__()
        self.conv = ReflectConv(channels_in, channels_out, kernel, stride=stride, upsample=upsample)
        self.norm = nn.InstanceNorm2d(channels_out, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions with instance norm; no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _Stage(channels, channels, 3)
        self.conv = ReflectConv(channels, channels, 3)
        self.norm = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.first(x))) + x


class Candy(nn.Module):
    """The whole network: 1,679,235 parameters.

    Args:
        width: channels of the first stage; the second and third have twice and four times as many.
        residuals: residual blocks between down- and upsampling.
    """

    def __init__(self, *, width: int = 32, residuals: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Stage(3, width, 9),
            _Stage(width, 2 * width, 3, stride=2),
            _Stage(2 * width, 4 * width, 3, stride=2),
            *(_Residual(4 * width) for _ in range(residuals)),
            _Stage(4 * width, 2 * width, 3, upsample=2),
            _Stage(2 * width, width, 3, upsample=2),
        )
        self.last = ReflectConv(width, 3, 9)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 3, h, w) -> the image in the other style, same shape; sides are multiples of 8."""
        return self.last(self.body(image))

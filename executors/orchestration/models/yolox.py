"""YOLOX-nano for 80 classes at 416 x 416.

Ge et al., "YOLOX: exceeding YOLO series in 2021" (arXiv 2107.08430): CSPDarknet with a Focus stem, a path aggregation
network and a decoupled head without anchors; nano is width 0.25, depth 0.33 with depthwise convolutions (table 5:
0.91 million parameters).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executors.orchestration.models.layers import ConvUnit

__all__ = ["CSPLayer", "YoloxNano"]

_EPS = 1e-3


def _unit(channels_in: int, channels_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> ConvUnit:
    return ConvUnit(channels_in, channels_out, kernel, stride=stride, groups=groups, eps=_EPS, activation=nn.SiLU())


def _separable(channels_in: int, channels_out: int, kernel: int = 3, *, stride: int = 1) -> nn.Sequential:
    """Depthwise convolution, then 1 x 1; norm and SiLU after each."""
    return nn.Sequential(_unit(channels_in, channels_in, kernel, stride=stride, groups=channels_in),
                         _unit(channels_in, channels_out))


class _Focus(nn.Module):
    """Every second pixel in both directions as four times the channels, then a 3 x 3 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = _unit(4 * channels_in, channels_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(parts, dim=1))


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.first, self.second = _unit(channels, channels), _separable(channels, channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.shortcut else y


class CSPLayer(nn.Module):
    """Cross-stage partial layer: half the channels pass the bottlenecks, half pass by; concatenated and mixed."""

    def __init__(self, channels_in: int, channels_out: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        hidden = channels_out // 2
        self.main, self.side = _unit(channels_in, hidden), _unit(channels_in, hidden)
        self.bottlenecks = nn.Sequential(*(_Bottleneck(hidden, shortcut=shortcut) for _ in range(depth)))
        self.mix = _unit(2 * hidden, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, h, w) -> (batch, channels_out, h, w)."""
        return self.mix(torch.cat([self.bottlenecks(self.main(x)), self.side(x)], dim=1))


class _Pyramid(nn.Module):
    """Spatial pyramid pooling: the map beside its maxima over 5, 9 and 13 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow, self.mix = _unit(channels, channels // 2), _unit(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        return self.mix(torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))], dim=1))


class _Head(nn.Module):
    """Box, object and class outputs of one level, box and class with convolutions of their own."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = _unit(channels, width)
        self.boxes = nn.Sequential(_separable(width, width), _separable(width, width))
        self.classes = nn.Sequential(_separable(width, width), _separable(width, width))
        self.box, self.objectness = nn.Conv2d(width, 4, 1), nn.Conv2d(width, 1, 1)
        self.label = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        boxes = self.boxes(x)
        return torch.cat([self.box(boxes), self.objectness(boxes), self.label(self.classes(x))], dim=1)


class YoloxNano(nn.Module):
    """Backbone, path aggregation, three heads.

    Args:
        width: channels after the stem (nano: 64 x 0.25).
        depth: bottlenecks of the shallow layers (nano: 3 x 0.33).
        classes: classes.
    """

    def __init__(self, *, width: int = 16, depth: int = 1, classes: int = 80) -> None:
        super().__init__()
        c2, c3, c4, c5 = (width * n for n in (2, 4, 8, 16))
        self.shallow = nn.Sequential(
            _Focus(3, width),
            _separable(width, c2, stride=2), CSPLayer(c2, c2, depth),
            _separable(c2, c3, stride=2), CSPLayer(c3, c3, 3 * depth),
        )
        self.middle = nn.Sequential(_separable(c3, c4, stride=2), CSPLayer(c4, c4, 3 * depth))
        self.deep = nn.Sequential(_separable(c4, c5, stride=2), _Pyramid(c5), CSPLayer(c5, c5, depth, shortcut=False))
        self.lateral5, self.lateral4 = _unit(c5, c4), _unit(c4, c3)
        self.up4 = CSPLayer(2 * c4, c4, depth, shortcut=False)
        self.up3 = CSPLayer(2 * c3, c3, depth, shortcut=False)
        self.step3, self.step4 = _separable(c3, c3, stride=2), _separable(c4, c4, stride=2)
        self.down4 = CSPLayer(2 * c3, c4, depth, shortcut=False)
        self.down5 = CSPLayer(2 * c4, c5, depth, shortcut=False)
        self.heads = nn.ModuleList(_Head(c, c3, classes) for c in (c3, c4, c5))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, 3, h, w) -> raw (batch, 5 + classes, h / s, w / s) for s = 8, 16, 32; sides are multiples of 32.

        Channels: box (4), objectness, classes; no sigmoid, no decoding.
        """
        x3 = self.shallow(image)
        x4 = self.middle(x3)
        l5 = self.lateral5(self.deep(x4))
        l4 = self.lateral4(self.up4(torch.cat([_twice(l5), x4], dim=1)))
        p3 = self.up3(torch.cat([_twice(l4), x3], dim=1))
        p4 = self.down4(torch.cat([self.step3(p3), l4], dim=1))
        p5 = self.down5(torch.cat([self.step4(p4), l5], dim=1))
        return self.heads[0](p3), self.heads[1](p4), self.heads[2](p5)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")

"""YOLOv4 for 80 classes at 416 x 416.

Bochkovskiy, Wang and Liao, "YOLOv4: optimal speed and accuracy of object detection" (arXiv 2004.10934, 3.4):
CSPDarknet53 with Mish, spatial pyramid pooling, PANet with concatenation, YOLOv3 heads. 64.4 million parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executors.orchestration.models.layers import ConvUnit

__all__ = ["CSPStage", "YoloV4"]


def _mish(channels_in: int, channels_out: int, kernel: int = 1, *, stride: int = 1) -> ConvUnit:
    return ConvUnit(channels_in, channels_out, kernel, stride=stride, activation=nn.Mish())


def _leaky(channels_in: int, channels_out: int, kernel: int = 1, *, stride: int = 1) -> ConvUnit:
    return ConvUnit(channels_in, channels_out, kernel, stride=stride, activation=nn.LeakyReLU(0.1))


def _alternating(channels_in: int, width: int, units: int) -> nn.Sequential:
    """1 x 1 to ``width``, 3 x 3 to twice that, and so on; an odd number of ``units`` ends with ``width``."""
    widths = [channels_in, *(width * (1 + i % 2) for i in range(units))]
    return nn.Sequential(*(_leaky(widths[i], widths[i + 1], 1 + 2 * (i % 2)) for i in range(units)))


class _Residual(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.narrow, self.wide = _mish(channels, hidden), _mish(hidden, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.wide(self.narrow(x))


class CSPStage(nn.Module):
    """Cross-stage partial stage of CSPDarknet53, after its strided convolution.

    Args:
        channels: channels in and out.
        depth: residual blocks.
        halve: whether each path has half the channels (all stages but the first).
    """

    def __init__(self, channels: int, depth: int, *, halve: bool = True) -> None:
        super().__init__()
        path = channels // 2 if halve else channels
        hidden = path if halve else path // 2
        self.side, self.main = _mish(channels, path), _mish(channels, path)
        self.blocks = nn.Sequential(*(_Residual(path, hidden) for _ in range(depth)))
        self.after, self.mix = _mish(path, path), _mish(2 * path, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> same shape."""
        return self.mix(torch.cat([self.after(self.blocks(self.main(x))), self.side(x)], dim=1))


def _stage(channels: int, depth: int, *, halve: bool = True) -> nn.Sequential:
    return nn.Sequential(_mish(channels // 2, channels, 3, stride=2), CSPStage(channels, depth, halve=halve))


class _Up(nn.Module):
    """A deeper map, narrowed and doubled, beside the shallower one of the backbone; five convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deep, self.shallow = _leaky(2 * channels, channels), _leaky(2 * channels, channels)
        self.mix = _alternating(2 * channels, channels, 5)

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        doubled = F.interpolate(self.deep(deep), scale_factor=2.0, mode="nearest")
        return self.mix(torch.cat([self.shallow(shallow), doubled], dim=1))


class _Down(nn.Module):
    """A shallower map, halved, beside the deeper one of the neck; five convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.halve = _leaky(channels // 2, channels, 3, stride=2)
        self.mix = _alternating(2 * channels, channels, 5)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        return self.mix(torch.cat([self.halve(shallow), deep], dim=1))


def _head(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_leaky(channels, 2 * channels, 3), nn.Conv2d(2 * channels, outputs, 1))


class YoloV4(nn.Module):
    """Backbone, pyramid, path aggregation, three heads with three anchors each.

    Args:
        width: channels of the first convolution.
        depths: residual blocks of the five stages.
        classes: classes.
    """

    def __init__(self, *, width: int = 32, depths: tuple[int, ...] = (1, 2, 8, 8, 4), classes: int = 80) -> None:
        super().__init__()
        stages = [_stage(width * 2 ** (i + 1), depth, halve=i > 0) for i, depth in enumerate(depths)]
        self.shallow = nn.Sequential(_mish(3, width, 3), *stages[:3])
        self.middle, self.deep = stages[3], stages[4]
        c3, c4, c5 = 4 * width, 8 * width, 16 * width
        self.before, self.after = _alternating(2 * c5, c5, 3), _alternating(4 * c5, c5, 3)
        self.up4, self.up3 = _Up(c4), _Up(c3)
        self.down4, self.down5 = _Down(c4), _Down(c5)
        self.heads = nn.ModuleList(_head(c, 3 * (5 + classes)) for c in (c3, c4, c5))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, 3, h, w) -> raw (batch, 3 * (5 + classes), h / s, w / s), s = 8, 16, 32; sides multiples of 32."""
        x3 = self.shallow(image)
        x4 = self.middle(x3)
        x5 = self.before(self.deep(x4))
        x5 = self.after(torch.cat([*(F.max_pool2d(x5, k, 1, k // 2) for k in (13, 9, 5)), x5], dim=1))
        x4 = self.up4(x5, x4)
        x3 = self.up3(x4, x3)
        p4 = self.down4(x3, x4)
        p5 = self.down5(p4, x5)
        return self.heads[0](x3), self.heads[1](p4), self.heads[2](p5)

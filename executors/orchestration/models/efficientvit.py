"""EfficientViT-B0 with the segmentation head for street scenes (19 classes).

Cai et al., "EfficientViT: lightweight multi-scale attention for high-resolution dense prediction" (ICCV 2023, arXiv
2205.14756): ReLU linear attention (3.1, eq. 2 and 3) over tokens of several scales (figure 2), MBConv blocks with
hardswish, widths and depths of B0. 0.7 million parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executors.orchestration.models.layers import ConvUnit

__all__ = ["EfficientViT", "ReluLinearAttention"]

_EPS = 1e-15


class ReluLinearAttention(nn.Module):
    """relu(q) (relu(k)^T v) / relu(q) sum(relu(k)), head by head, linear in the number of tokens.

    Args:
        dim: channels of a head's q, k and v.
        padded: whether a channel of ones is put under v, so that one product gives numerator and denominator (as the
            authors' code does), or the sum of the keys is taken by itself (as eq. 3 is written).
    """

    def __init__(self, dim: int = 16, *, padded: bool = True) -> None:
        super().__init__()
        self.dim, self.padded = dim, padded

    def forward(self, qkv: Tensor) -> Tensor:
        """(batch, heads * 3 * dim, tokens), each head's q, k, v side by side -> (batch, heads * dim, tokens)."""
        batch, channels, tokens = qkv.shape
        heads = qkv.reshape(batch, channels // (3 * self.dim), 3 * self.dim, tokens)
        q, k, v = heads[:, :, :self.dim], heads[:, :, self.dim:2 * self.dim], heads[:, :, 2 * self.dim:]
        q, k = F.relu(q), F.relu(k)
        if self.padded:
            v = F.pad(v, (0, 0, 0, 1), value=1.0)
            both = torch.matmul(torch.matmul(v, k.transpose(-1, -2)), q)
            numerator, denominator = both[:, :, :self.dim], both[:, :, self.dim:]
        else:
            numerator = torch.matmul(torch.matmul(v, k.transpose(-1, -2)), q)
            denominator = torch.matmul(k.sum(dim=-1, keepdim=True).transpose(-1, -2), q)
        return (numerator / (denominator + _EPS)).reshape(batch, channels // 3, tokens)


class _MBConv(nn.Module):
    """1 x 1 expansion, depthwise 3 x 3, 1 x 1 projection; hardswish after the first two.

    Args:
        channels_in, channels_out: channels.
        stride: of the depthwise convolution.
        expansion: hidden channels over ``channels_in``.
        norms: whether the first two convolutions have a norm (otherwise a bias); the projection always has one.
        residual: whether the input is added.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, expansion: int = 4, norms: bool = True,
                 residual: bool = False) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = ConvUnit(channels_in, hidden, bias=not norms, norm=norms, activation=nn.Hardswish())
        self.depthwise = ConvUnit(hidden, hidden, 3, stride=stride, groups=hidden, bias=not norms, norm=norms,
                                  activation=nn.Hardswish())
        self.project = ConvUnit(hidden, channels_out)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class _DSConv(nn.Module):
    """Depthwise 3 x 3 with hardswish, 1 x 1 projection, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = ConvUnit(channels, channels, 3, groups=channels, activation=nn.Hardswish())
        self.project = ConvUnit(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.depthwise(x))


class _MultiScaleAttention(nn.Module):
    """ReLU linear attention over the tokens and over their 5 x 5 aggregates, projected, added to the input."""

    def __init__(self, channels: int, dim: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        heads = channels // dim
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.aggregates = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3 * channels, 3 * channels, scale, padding=scale // 2, groups=3 * channels, bias=False),
                nn.Conv2d(3 * channels, 3 * channels, 1, groups=3 * heads, bias=False),
            ) for scale in scales)
        self.attention = ReluLinearAttention(dim)
        self.project = ConvUnit(channels * (1 + len(scales)), channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, *(aggregate(qkv) for aggregate in self.aggregates)], dim=1)
        out = self.attention(qkv.flatten(2))
        return x + self.project(out.reshape(x.shape[0], out.shape[1], x.shape[2], x.shape[3]))


class _SegmentationHead(nn.Module):
    """Features of strides 8, 16 and 32 to one width, resized to stride 8, summed, one MBConv, classes."""

    def __init__(self, widths: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(ConvUnit(w, width) for w in widths)
        self.middle = _MBConv(width, width, residual=True)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        total, size = self.inputs[0](features[0]), features[0].shape[2:]
        for feature, unit in zip(features[1:], self.inputs[1:], strict=True):
            total = total + F.interpolate(unit(feature), size=size, mode="bicubic", align_corners=False)
        return self.classify(self.middle(total))


class EfficientViT(nn.Module):
    """Stem, two convolutional stages, two with attention, segmentation head; the defaults are B0.

    Args:
        widths: channels of the stem and of the four stages.
        depths: blocks of the stem and, beside the strided one, of the stages with attention; the convolutional
            stages have as many in all.
        dim: channels of an attention head.
        scales: side of each aggregate of tokens.
        head: channels of the segmentation head.
        classes: output channels.
    """

    def __init__(self, *, widths: tuple[int, ...] = (8, 16, 32, 64, 128), depths: tuple[int, ...] = (1, 2, 2, 2, 2),
                 dim: int = 16, scales: tuple[int, ...] = (5,), head: int = 32, classes: int = 19) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvUnit(3, widths[0], 3, stride=2, activation=nn.Hardswish()),
                                  *(_DSConv(widths[0]) for _ in range(depths[0])))
        self.stages = nn.ModuleList()
        for i in (1, 2):
            blocks = [_MBConv(widths[i - 1], widths[i], stride=2)]
            blocks += [_MBConv(widths[i], widths[i], residual=True) for _ in range(depths[i] - 1)]
            self.stages.append(nn.Sequential(*blocks))
        for i in (3, 4):
            stage: list[nn.Module] = [_MBConv(widths[i - 1], widths[i], stride=2, norms=False)]
            for _ in range(depths[i]):
                stage += [_MultiScaleAttention(widths[i], dim, scales),
                          _MBConv(widths[i], widths[i], norms=False, residual=True)]
            self.stages.append(nn.Sequential(*stage))
        self.head = _SegmentationHead(widths[2:], head, classes)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 3, h, w) -> logits (batch, classes, h / 8, w / 8); sides are multiples of 32."""
        x, features = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.head(features[1:])

"""Segformer-B0 for 150 classes at 512 x 512.

Xie et al., "SegFormer: simple and efficient design for semantic segmentation with transformers" (NeurIPS 2021, arXiv
2105.15203): overlapping patch embedding (3.1), attention with sequence reduction (eq. 2), Mix-FFN (eq. 3) and the
all-MLP decode head (eq. 4); sizes of B0 from its appendix. 3.75 million parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executors.orchestration.models.layers import softmax_attention

__all__ = ["DecodeConcat", "Segformer"]


class _PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution, then tokens and layer norm."""

    def __init__(self, channels: int, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, patch, stride, patch // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        x = self.conv(image)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2], x.shape[3]


class _Attention(nn.Module):
    """Self-attention whose keys and values come from a map ``reduction`` times smaller in each direction."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.reduce = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width) if reduction > 1 else None
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        source = x
        if self.reduce is not None and self.norm is not None:
            batch, _, width = x.shape
            smaller = self.reduce(x.transpose(1, 2).reshape(batch, width, h, w))
            source = self.norm(smaller.flatten(2).transpose(1, 2))
        return self.out(softmax_attention(self.query(x), self.key(source), self.value(source), self.heads))


class _MixFFN(nn.Module):
    """Linear, depthwise 3 x 3 convolution (it carries the positions), GELU, linear."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        hidden = width * expansion
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = self.up(x)
        batch, _, hidden = x.shape
        x = self.conv(x.transpose(1, 2).reshape(batch, hidden, h, w)).flatten(2).transpose(1, 2)
        return self.down(F.gelu(x))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, reduction: int, expansion: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads, reduction)
        self.ffn = _MixFFN(width, expansion)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = x + self.attention(self.norm1(x), h, w)
        return x + self.ffn(self.norm2(x), h, w)


class _Stage(nn.Module):
    def __init__(self, channels: int, width: int, *, patch: int, stride: int, depth: int, heads: int, reduction: int,
                 expansion: int) -> None:
        super().__init__()
        self.embedding = _PatchEmbedding(channels, width, patch, stride)
        self.blocks = nn.ModuleList(_Block(width, heads, reduction, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        x, h, w = self.embedding(image)
        for block in self.blocks:
            x = block(x, h, w)
        return self.norm(x).transpose(1, 2).reshape(x.shape[0], x.shape[2], h, w)


def _resized(tokens: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(batch, tokens, width) of a map of ``shape`` -> (batch, width, *size), bilinear."""
    x = tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *shape)
    return x if shape == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class DecodeConcat(nn.Module):
    """Four branches of (batch, side^2, width) tokens: add the bias, make maps, resize to the largest, concatenate.

    What follows the branches' matrix products in the decode head; the coarsest branch comes first.

    Args:
        width: channels of a branch.
        sides: side of each branch's square map, finest first.
    """

    def __init__(self, width: int, sides: tuple[int, ...]) -> None:
        super().__init__()
        self.sides = sides
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in sides)

    def forward(self, *branches: Tensor) -> Tensor:
        """-> (batch, branches * width, sides[0], sides[0])."""
        size = (self.sides[0], self.sides[0])
        maps = []
        for tokens, bias, side in zip(branches, self.biases, self.sides, strict=True):
            maps.append(_resized(tokens + bias, (side, side), size))
        return torch.cat(maps[::-1], dim=1)


class _DecodeHead(nn.Module):
    def __init__(self, widths: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.fuse = nn.Conv2d(width * len(widths), width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        sizes = [(feature.shape[2], feature.shape[3]) for feature in features]
        maps = [_resized(branch(feature.flatten(2).transpose(1, 2)), size, sizes[0])
                for feature, branch, size in zip(features, self.branches, sizes, strict=True)]
        return self.classify(F.relu(self.norm(self.fuse(torch.cat(maps[::-1], dim=1)))))


class Segformer(nn.Module):
    """Four stages and the decode head; the defaults are B0.

    Args:
        widths, depths, heads, reductions: of each stage.
        expansion: hidden width of Mix-FFN over its width.
        decoder: channels of the decode head.
        classes: output channels.
    """

    def __init__(self, *, widths: tuple[int, ...] = (32, 64, 160, 256), depths: tuple[int, ...] = (2, 2, 2, 2),
                 heads: tuple[int, ...] = (1, 2, 5, 8), reductions: tuple[int, ...] = (8, 4, 2, 1), expansion: int = 4,
                 decoder: int = 256, classes: int = 150) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        before = 3
        for i, (width, depth, n, reduction) in enumerate(zip(widths, depths, heads, reductions, strict=True)):
            patch, stride = (7, 4) if i == 0 else (3, 2)
            self.stages.append(_Stage(before, width, patch=patch, stride=stride, depth=depth, heads=n,
                                      reduction=reduction, expansion=expansion))
            before = width
        self.head = _DecodeHead(widths, decoder, classes)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 3, h, w) -> logits (batch, classes, h / 4, w / 4); sides are multiples of 32."""
        features, x = [], image
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.head(features)

"""The part of each model its kernels are decided in, by itself.

The case studies of Hu et al., "Optimal kernel orchestration for tensor programs with Korch" (ASPLOS 2024), look at
Candy's norm, EfficientViT's attention, Segformer's attention and decode head; the detectors' cross-stage partial
blocks and the GPT-2 block stand for the rest. Those without a class here are parts of their model, taken as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from executors.orchestration.models.layers import softmax_attention

__all__ = ["NormReluPad", "SoftmaxAttention"]


class NormReluPad(nn.Module):
    """Candy between two convolutions: instance norm, ReLU, reflection padding.

    Args:
        channels: channels.
        pad: pixels added on each side.
    """

    def __init__(self, channels: int = 64, pad: int = 1) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=True)
        self.pad = nn.ReflectionPad2d(pad)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> (batch, channels, h + 2 pad, w + 2 pad)."""
        return self.pad(F.relu(self.norm(x)))


class SoftmaxAttention(nn.Module):
    """Segformer's attention between its linear layers.

    Args:
        heads: attention heads.
    """

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(batch, queries, heads * d), twice (batch, keys, heads * d) -> (batch, queries, heads * d)."""
        return softmax_attention(q, k, v, self.heads)

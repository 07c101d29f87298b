"""A stack of GPT-2 blocks over embedded tokens, sizes of GPT-2 small.

Radford et al., "Language models are unsupervised multitask learners" (2019, section 2.3): layer norm before attention
and before the MLP, causal attention, GELU in its tanh form. Embeddings and the output product are left out: a lookup
and one matrix product leave nothing to fuse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from executors.orchestration.models.layers import softmax_attention

__all__ = ["Gpt2", "Gpt2Block", "causal_mask"]


def causal_mask(tokens: int) -> Tensor:
    """(tokens, tokens): zero up to the diagonal, the least finite number above it.

    Finite, because a rewrite may multiply what it stands in by zero.
    """
    return torch.full((tokens, tokens), torch.finfo(torch.float32).min).triu(1)


class Gpt2Block(nn.Module):
    """One block: 12 width^2 + 13 width parameters.

    Args:
        width: channels of a token.
        heads: attention heads.
    """

    def __init__(self, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, tokens, width) and a mask (tokens, tokens) added to the scores -> (batch, tokens, width)."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(softmax_attention(q, k, v, self.heads, mask))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """Blocks and the last layer norm.

    Args:
        tokens: length of the sequence (the mask is a constant of the program).
        depth: blocks.
        width: channels of a token.
        heads: attention heads.
        final_norm: whether a layer norm ends the stack.
    """

    mask: Tensor

    def __init__(self, tokens: int, *, depth: int = 12, width: int = 768, heads: int = 12, final_norm: bool = True
                 ) -> None:
        super().__init__()
        self.register_buffer("mask", causal_mask(tokens))
        self.blocks = nn.ModuleList(Gpt2Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if final_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> same shape."""
        for block in self.blocks:
            x = block(x, self.mask)
        return x if self.norm is None else self.norm(x)

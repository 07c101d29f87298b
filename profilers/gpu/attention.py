"""Triton: one decode step over selected rows of each KV head, without gathering them first (flash decoding).

A program handles one KV head: it walks the selected indices in blocks, loads those rows of K and V, and keeps a
running maximum and sum (online softmax, arXiv 2205.14135). The G query heads of the KV head are padded to 16 rows, the
least a tensor core takes. D and BLOCK are powers of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["decode_selected", "decode_selected_kernel"]


@triton.jit
def decode_selected_kernel(q, k, v, selected, out, scale, rows, count, GROUP: tl.constexpr, HEADS: tl.constexpr,  # type: ignore[no-untyped-def]
                           D: tl.constexpr, BLOCK: tl.constexpr, IEEE: tl.constexpr):
    """q, out (N, GROUP, D); k, v (N, rows, D); selected (N, count) int32; HEADS = GROUP padded to at least 16."""
    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    head = tl.program_id(0)
    g = tl.arange(0, HEADS)
    d = tl.arange(0, D)
    q_GD = tl.load(q + (head * GROUP + g[:, None]) * D + d[None, :], mask=g[:, None] < GROUP, other=0.0)
    top = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    sums = tl.zeros((HEADS, D), tl.float32)
    base = head.to(tl.int64) * rows * D
    for start in range(0, count, BLOCK):
        j = start + tl.arange(0, BLOCK)
        row = tl.load(selected + head * count + j, mask=j < count, other=0).to(tl.int64)
        k_KD = tl.load(k + base + row[:, None] * D + d[None, :], mask=j[:, None] < count, other=0.0)
        scores = tl.dot(q_GD, tl.trans(k_KD), input_precision=precision) * scale
        scores = tl.where(j[None, :] < count, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        v_KD = tl.load(v + base + row[:, None] * D + d[None, :], mask=j[:, None] < count, other=0.0)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v_KD.dtype), v_KD, input_precision=precision)
        top = higher
    found = sums / total[:, None]
    tl.store(out + (head * GROUP + g[:, None]) * D + d[None, :], found.to(out.dtype.element_ty),
             mask=g[:, None] < GROUP)


def decode_selected(q_NGD: torch.Tensor, k_NSD: torch.Tensor, v_NSD: torch.Tensor,
                    selected_NK: torch.Tensor) -> torch.Tensor:
    """One new token over selected rows of each KV head, (N, G, D); see ``profilers.attention.decode_selected``."""
    n, g, d = q_NGD.shape
    out = torch.empty_like(q_NGD)
    chosen = selected_NK.to(torch.int32).contiguous()
    decode_selected_kernel[(n,)](q_NGD.contiguous(), k_NSD.contiguous(), v_NSD.contiguous(), chosen, out, d**-0.5,
                                 k_NSD.shape[1], chosen.shape[1], GROUP=g,
                                 HEADS=max(16, triton.next_power_of_2(g)), D=d, BLOCK=64,
                                 IEEE=q_NGD.dtype == torch.float32)
    return out

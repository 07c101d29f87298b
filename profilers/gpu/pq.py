"""Triton: look-up-table scan of product-quantised keys, score(t) = sum_i table[i, code(t, i)].

A program scores BLOCK tokens for all G query heads of one KV head; codes are one byte each and are read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["scan", "scan_kernel"]


@triton.jit
def scan_kernel(table, codes, out, tokens, GROUP: tl.constexpr, SUBSPACES: tl.constexpr, CENTROIDS: tl.constexpr,  # type: ignore[no-untyped-def]
                BLOCK: tl.constexpr):
    """table (N, GROUP, SUBSPACES, CENTROIDS) float32; codes (N, SUBSPACES, tokens) uint8; out (N, GROUP, tokens)."""
    head = tl.program_id(0)
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = t < tokens
    for g in tl.static_range(GROUP):
        score = tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(SUBSPACES):
            code = tl.load(codes + (head * SUBSPACES + i) * tokens + t, mask=inside, other=0).to(tl.int32)
            score += tl.load(table + ((head * GROUP + g) * SUBSPACES + i) * CENTROIDS + code)
        tl.store(out + (head * GROUP + g) * tokens + t, score, mask=inside)


def scan(table_NGMC: torch.Tensor, codes_NMS: torch.Tensor) -> torch.Tensor:
    """(N, G, S) scores of all tokens; see ``profilers.pq.scan``."""
    n, g, m, c = table_NGMC.shape
    s = codes_NMS.shape[2]
    out = torch.empty(n, g, s, device=table_NGMC.device)
    block = 1024
    scan_kernel[(n, triton.cdiv(s, block))](table_NGMC.float().contiguous(), codes_NMS.contiguous(), out, s, GROUP=g,
                                            SUBSPACES=m, CENTROIDS=c, BLOCK=block)
    return out

"""Triton: one decode step over all cached rows or over selected ones, without gathering them first (flash decoding).

A program handles one part of one KV head's rows: it walks them in blocks, loads K and V, and keeps a running maximum
and sum (online softmax, arXiv 2205.14135); a second kernel joins the parts. Parts are as many as fill the device twice.
The G query heads of a KV head are padded to 16 rows, the least a tensor core takes. D and BLOCK are powers of two.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

__all__ = ["decode", "decode_kernel", "decode_selected", "join_kernel", "rows_a_step"]

_LEAST_ROWS = 256
_LAUNCHES_WITHOUT_DEVICE = 8


@triton.jit
def decode_kernel(q, k, v, selected, sums, tops, totals, scale, rows, count, part, PARTS: tl.constexpr,  # type: ignore[no-untyped-def]
                  GROUP: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
                  SELECTED: tl.constexpr, IEEE: tl.constexpr):
    """q (N, GROUP, D); k, v (N, rows, D); selected (N, count) int32, unused unless SELECTED.

    Program (n, s) reads rows [s part, (s + 1) part) of the count and writes sums (N, PARTS, GROUP, D), tops and totals
    (N, PARTS, GROUP), all float32; HEADS = GROUP padded to at least 16.
    """
    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    head = tl.program_id(0)
    share = tl.program_id(1)
    g = tl.arange(0, HEADS)
    d = tl.arange(0, D)
    q_GD = tl.load(q + (head * GROUP + g[:, None]) * D + d[None, :], mask=g[:, None] < GROUP, other=0.0)
    top = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    acc = tl.zeros((HEADS, D), tl.float32)
    base = head.to(tl.int64) * rows * D
    end = tl.minimum(count, (share + 1) * part)
    for start in range(share * part, end, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < end
        if SELECTED:
            row = tl.load(selected + head.to(tl.int64) * count + j, mask=inside, other=0).to(tl.int64)
        else:
            row = j.to(tl.int64)
        k_KD = tl.load(k + base + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        v_KD = tl.load(v + base + row[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        scores = tl.dot(q_GD, tl.trans(k_KD), input_precision=precision) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(v_KD.dtype), v_KD, input_precision=precision)
        top = higher
    at = (head * PARTS + share) * GROUP + g
    tl.store(sums + at[:, None].to(tl.int64) * D + d[None, :], acc, mask=g[:, None] < GROUP)
    tl.store(tops + at, top, mask=g < GROUP)
    tl.store(totals + at, total, mask=g < GROUP)


@triton.jit
def join_kernel(sums, tops, totals, out, GROUP: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr,  # type: ignore[no-untyped-def]
                D: tl.constexpr):
    """Parts weighed by exp(their maximum - the largest): out (N, GROUP, D); PADDED = PARTS to a power of two."""
    head = tl.program_id(0)
    g = tl.program_id(1)
    s = tl.arange(0, PADDED)
    d = tl.arange(0, D)
    at = (head * PARTS + s) * GROUP + g
    top = tl.load(tops + at, mask=s < PARTS, other=float("-inf"))
    weight = tl.exp(top - tl.max(top, 0))
    total = tl.sum(weight * tl.load(totals + at, mask=s < PARTS, other=0.0), 0)
    part = tl.load(sums + at[:, None].to(tl.int64) * D + d[None, :], mask=s[:, None] < PARTS, other=0.0)
    found = tl.sum(part * weight[:, None], 0) / total
    tl.store(out + (head * GROUP + g) * D + d, found.to(out.dtype.element_ty))


@functools.cache
def _programs(device: torch.device) -> int:
    """Programs that keep a device busy: two a multiprocessor."""
    if device.type != "cuda":
        return _LAUNCHES_WITHOUT_DEVICE
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def rows_a_step(head_dim: int, item_bytes: int) -> int:
    """Cached rows a step: fewer where three steps of keys and values would not fit in shared memory."""
    return max(16, min(64, (1 << 15) // (head_dim * item_bytes)))


def _split(heads: int, count: int, device: torch.device, block: int) -> tuple[int, int]:
    """(rows a part, parts): enough parts to fill the device, none shorter than ``_LEAST_ROWS`` rows."""
    wanted = max(1, min(-(-_programs(device) // heads), count // _LEAST_ROWS))
    part = -(-count // wanted // block) * block if wanted > 1 else count
    part = max(part, -(-count // wanted))
    return part, -(-count // part)


def _run(q_NGD: torch.Tensor, k_NSD: torch.Tensor, v_NSD: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    n, g, d = q_NGD.shape
    rows = k_NSD.shape[1]
    count = rows if chosen is None else chosen.shape[1]
    block = rows_a_step(d, k_NSD.element_size())
    part, parts = _split(n, count, q_NGD.device, block)
    device = q_NGD.device
    sums = torch.empty(n, parts, g, d, device=device)
    tops, totals = (torch.empty(n, parts, g, device=device) for _ in range(2))
    out = torch.empty_like(q_NGD)
    decode_kernel[(n, parts)](q_NGD.contiguous(), k_NSD.contiguous(), v_NSD.contiguous(),
                              tops if chosen is None else chosen, sums, tops, totals, d**-0.5, rows, count, part,
                              PARTS=parts, GROUP=g, HEADS=max(16, triton.next_power_of_2(g)), D=d, BLOCK=block,
                              SELECTED=chosen is not None, IEEE=q_NGD.dtype == torch.float32)
    join_kernel[(n, g)](sums, tops, totals, out, GROUP=g, PARTS=parts, PADDED=triton.next_power_of_2(parts), D=d)
    return out


def decode(q_BNGD: torch.Tensor, k_BNSD: torch.Tensor, v_BNSD: torch.Tensor) -> torch.Tensor:
    """One new token a sequence over all cached rows, (B, N, G, D); see ``profilers.attention.decode``."""
    found = _run(q_BNGD.flatten(0, 1), k_BNSD.flatten(0, 1), v_BNSD.flatten(0, 1), None)
    return found.view(q_BNGD.shape)


def decode_selected(q_NGD: torch.Tensor, k_NSD: torch.Tensor, v_NSD: torch.Tensor,
                    selected_NK: torch.Tensor) -> torch.Tensor:
    """One new token over selected rows of each KV head, (N, G, D); see ``profilers.attention.decode_selected``."""
    return _run(q_NGD, k_NSD, v_NSD, selected_NK.to(torch.int32).contiguous())

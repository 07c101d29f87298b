"""Triton: cross-polytope codes fused with their projection, and sums of rows by segment.

``hash_kernel`` multiplies a block of rows with one hash's rotation and keeps only the signed place of the largest
coordinate, so the projection never reaches memory; float32 products are three tensor-core products of their split
operands, as exact as one in float32, since a code must not depend on the device. ``segment_sum_kernel`` adds each
sorted row of a bucket: one program owns one bucket, so no atomics and a fixed order of summation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["codes", "hash_kernel", "rows_a_program", "segment_centroids", "segment_sum_kernel"]


@triton.jit
def hash_kernel(x, rotations, out, rows, width, HASHES: tl.constexpr, ROTATION: tl.constexpr, BT: tl.constexpr,  # type: ignore[no-untyped-def]
                BK: tl.constexpr, FULL: tl.constexpr):
    """x (rows, width); rotations (width, HASHES ROTATION); out (rows, HASHES) int64."""
    precision: tl.constexpr = "tf32x3" if FULL else "tf32"
    hash_ = tl.program_id(1)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    r = tl.arange(0, ROTATION)
    y = tl.zeros((BT, ROTATION), tl.float32)
    for start in range(0, width, BK):
        i = start + tl.arange(0, BK)
        part = tl.load(x + t[:, None].to(tl.int64) * width + i[None, :],
                       mask=(t[:, None] < rows) & (i[None, :] < width), other=0.0)
        spin = tl.load(rotations + i[:, None] * (HASHES * ROTATION) + hash_ * ROTATION + r[None, :],
                       mask=i[:, None] < width, other=0.0)
        y = tl.dot(part, spin, y, input_precision=precision)
    place = tl.argmax(tl.abs(y), 1, tie_break_left=True)
    value = tl.sum(tl.where(r[None, :] == place[:, None], y, 0.0), 1)
    tl.store(out + t.to(tl.int64) * HASHES + hash_, (place + tl.where(value < 0, ROTATION, 0)).to(tl.int64),
             mask=t < rows)


@triton.jit
def segment_sum_kernel(x, order, first, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Mean of rows ``order[first[b]:first[b + 1]]`` of x (rows, width) into out (buckets, width) float32."""
    bucket = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(first + bucket)
    end = tl.load(first + bucket + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(start, end):
        row = tl.load(order + i)
        total += tl.load(x + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(out + bucket.to(tl.int64) * width + column, total / (end - start).to(tl.float32), mask=column < width)


def rows_a_program(rotation: int) -> int:
    """Rows of a block: wide rotations take fewer, whose products would not stay in registers otherwise."""
    return max(16, min(64, 4096 // rotation))


def codes(x_TH: torch.Tensor, rotations_HLR: torch.Tensor, hashes: int) -> torch.Tensor:
    """(T, L) codes; see ``profilers.lsh.codes``. The rotation width must be a power of two, at least 16."""
    rows, width = x_TH.shape
    rotation = rotations_HLR.shape[1] // hashes
    out = torch.empty(rows, hashes, dtype=torch.int64, device=x_TH.device)
    block = rows_a_program(rotation)
    hash_kernel[(triton.cdiv(rows, block), hashes)](x_TH.contiguous(), rotations_HLR.contiguous(), out, rows, width,
                                                    HASHES=hashes, ROTATION=rotation, BT=block, BK=32,
                                                    FULL=x_TH.dtype == torch.float32)
    return out


def segment_centroids(x_TH: torch.Tensor, inverse_T: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
    """(B, H) float32 means of the rows of each bucket."""
    order = torch.argsort(inverse_T, stable=True)
    first = torch.zeros(len(counts_B) + 1, dtype=torch.int64, device=x_TH.device)
    first[1:] = counts_B.cumsum(0)
    out = torch.empty(len(counts_B), x_TH.shape[1], device=x_TH.device)
    block = 256
    segment_sum_kernel[(len(counts_B), triton.cdiv(x_TH.shape[1], block))](x_TH.contiguous(), order, first, out,
                                                                           x_TH.shape[1], BLOCK=block)
    return out

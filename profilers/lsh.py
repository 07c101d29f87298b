"""Cross-polytope hashing of rows, bucket centroids and residuals, and restoring rows (arXiv 2411.08446, eq. 3, alg. 1).

code_l(x) = argmax_i |x R_l|_i, plus r when that coordinate is negative: 2 r codes a hash; L hashes are combined into
one 64-bit key, so rows share a bucket only when all L codes agree. Centroid c = mean of a bucket; residual = x - c;
restored row = E(c) + residual.

Shape suffixes: T rows, H width, L hashes, R rotation width, B buckets. Deviation from the paper: the rotation width R
is a parameter (the paper leaves it open). Ties take the lowest index, on every device.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import torch

from profilers.family import GridAxis, Op, Point, Prepared, Work
from profilers.gpu import kernels_for
from profilers.native import library
from workbench.errors import SpecError

__all__ = ["OPS", "Buckets", "bucket", "codes", "combine", "restore", "rotations"]

_ROWS_AT_ONCE = 512
_LEAST_TENSOR_CORE = 16


class Buckets(NamedTuple):
    """Rows grouped by key: centroids (B, H) in float32, rows' buckets (T,), sizes (B,), residuals (T, H)."""

    centroids_BH: torch.Tensor
    inverse_T: torch.Tensor
    counts_B: torch.Tensor
    residual_TH: torch.Tensor


def rotations(width: int, hashes: int, rotation: int, rng: np.random.Generator) -> torch.Tensor:
    """(H, L R) random matrices with orthonormal columns within each hash.

    Raises:
        SpecError: the rotation is wider than the rows.
    """
    if rotation > width:
        raise SpecError(f"a rotation of width {rotation} needs rows at least as wide, not {width}")
    blocks = [np.linalg.qr(rng.standard_normal((width, rotation)))[0] for _ in range(hashes)]
    return torch.from_numpy(np.concatenate(blocks, axis=1).astype(np.float32))


def codes(x_TH: torch.Tensor, rotations_HLR: torch.Tensor, hashes: int) -> torch.Tensor:
    """(T, L) codes in [0, 2 R), int64.

    On a CPU one pass in C finds each place (``native/places.c``). Without a C compiler the largest magnitude is found
    by a vectorised maximum, and its place from one bit a coordinate: several times quicker than an arg-max over short
    rows. All ways agree, ties included.
    """
    kernels = kernels_for(x_TH, "lsh")
    width = rotations_HLR.shape[1] // hashes
    if kernels is not None and width >= _LEAST_TENSOR_CORE and width & (width - 1) == 0:
        return kernels.codes(x_TH.float(), rotations_HLR, hashes)
    y = x_TH.float() @ rotations_HLR
    y_TLR = y.view(len(y), hashes, width)
    native = library("places") if y.device.type == "cpu" else None
    if native is not None:
        out = torch.empty(len(y), hashes, dtype=torch.int64)
        native.signed_places(ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(len(y) * hashes), ctypes.c_int64(width),
                             ctypes.c_void_p(out.data_ptr()))
        return out
    if y.device.type == "cpu" and width in (8, 16, 32, 64):
        return _codes_by_bits(y_TLR)
    place = y_TLR.abs().argmax(-1)
    negative = y_TLR.gather(-1, place[..., None]).squeeze(-1) < 0
    return place + negative * y_TLR.shape[-1]


def _codes_by_bits(y_TLR: torch.Tensor) -> torch.Tensor:
    rows, hashes, width = y_TLR.shape
    at_once = max(1, min(rows, _ROWS_AT_ONCE))
    size, top = torch.empty(at_once, hashes, width), torch.empty(at_once, hashes)
    is_top = np.empty((at_once, hashes, width), dtype=bool)
    bits = np.empty(rows * hashes * width // 8, dtype=np.uint8)
    for start in range(0, rows, at_once):
        part = y_TLR[start:start + at_once]
        n = len(part)
        torch.abs(part, out=size[:n])
        torch.amax(size[:n], -1, out=top[:n])
        np.equal(size[:n].numpy(), top[:n].numpy()[..., None], out=is_top[:n])
        packed = np.packbits(is_top[:n].reshape(-1), bitorder="little")
        bits[start * hashes * width // 8:][:len(packed)] = packed
    words = bits.view(f"<u{width // 8}").astype(np.uint64)
    # The exponent of the lowest set bit as a float64 is its position; powers of two are exact. A row of
    # not-a-number equals nothing, has no bit, and gets code 0.
    lowest = (words & (~words + np.uint64(1))).astype(np.float64)
    place = np.maximum((lowest.view(np.int64) >> 52) - 1023, 0)
    chosen = y_TLR.numpy().reshape(-1).take(np.arange(0, len(place) * width, width) + place)
    place += width * (chosen < 0)
    return torch.from_numpy(place.reshape(rows, hashes))


def combine(codes_TL: torch.Tensor, *, base: int, first_T: torch.Tensor | None = None) -> torch.Tensor:
    """(T,) keys of code tuples below ``base``, optionally with a leading number (an expert) a row.

    Mixed radix where that fits 63 bits (no collisions), else multiply-and-xor mixing of 64 bits.
    """
    columns = list(codes_TL.unbind(1))
    exact = base ** len(columns)
    leading = 1 if first_T is None or not len(first_T) else int(first_T.max()) + 1
    key = torch.zeros_like(columns[0]) if first_T is None else first_T.to(columns[0].dtype)
    if exact * leading < 2**63:
        for column in columns:
            key = key * base + column
        return key
    for column in columns:
        key = (key ^ (column + 1)) * -7046029254386353131
        key = key ^ ((key >> 29) & 0x7FFFFFFFF)
    return key


def bucket(x_TH: torch.Tensor, keys_T: torch.Tensor) -> Buckets:
    """Rows with equal keys share a bucket; buckets are in order of key. Sums are in float32.

    The residual is taken against the centroid as it will travel (in the rows' own format), so that
    centroid + residual gives the row back.
    """
    _, inverse, counts = torch.unique(keys_T, return_inverse=True, return_counts=True)
    kernels = kernels_for(x_TH, "lsh")
    if kernels is not None:  # fixed order of summation, where index_add's atomics have none
        centroids = kernels.segment_centroids(x_TH, inverse, counts)
    else:
        sums = torch.zeros(len(counts), x_TH.shape[1], device=x_TH.device).index_add_(0, inverse, x_TH.float())
        centroids = sums.div_(counts[:, None])
    residual = x_TH - centroids.to(x_TH.dtype).index_select(0, inverse)
    return Buckets(centroids, inverse, counts, residual)


def restore(outputs_BH: torch.Tensor, inverse_T: torch.Tensor, residual_TH: torch.Tensor) -> torch.Tensor:
    """E(c) + residual for each row, (T, H)."""
    return outputs_BH.index_select(0, inverse_T).add_(residual_TH)


def _rows(point: Point, device: str, rng: np.random.Generator) -> torch.Tensor:
    """Rows around one centre in four: close enough to share buckets."""
    centres = rng.standard_normal((max(1, point["rows"] // 4), point["width"]), dtype=np.float32)
    noise = 0.05 * rng.standard_normal((point["rows"], point["width"]), dtype=np.float32)
    return torch.from_numpy(centres[rng.integers(0, len(centres), point["rows"])] + noise).to(device)


def _prepare_hash(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    x = _rows(point, device, rng)
    spun = rotations(point["width"], point["hashes"], point["rotation"], rng).to(device)
    return Prepared(lambda: codes(x, spun, point["hashes"]))


def _prepare_bucket(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    x = _rows(point, device, rng)
    keys = torch.from_numpy(rng.integers(0, max(1, point["rows"] // 4), point["rows"]))
    keys = keys.to(device)
    return Prepared(lambda: bucket(x, keys))


def _prepare_restore(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    x = _rows(point, device, rng)
    made = bucket(x, torch.from_numpy(rng.integers(0, max(1, point["rows"] // 4), point["rows"])).to(device))
    return Prepared(lambda: restore(made.centroids_BH, made.inverse_T, made.residual_TH))


def _hash_work(p: Point) -> Work:
    total = p["hashes"] * p["rotation"]
    return Work(2.0 * p["rows"] * p["width"] * total,
                4.0 * (p["rows"] * p["width"] + p["width"] * total) + 8.0 * p["rows"] * p["hashes"])


_ROWS = GridAxis("rows", (256, 1024, 4096))
_WIDTH = GridAxis("width", (256, 768, 2048), step=16)
_LARGER = {"axes": (GridAxis("width", (768, 2048, 6144), step=64), GridAxis("rows", (1024, 4096, 16384)))}
OPS = (
    Op(name="lsh_hash", about="cross-polytope codes of rows", prepare=_prepare_hash, work=_hash_work,
       variants=({"rotation": 32, "hashes": 2}, {"rotation": 32, "hashes": 6}, {"rotation": 8, "hashes": 6}),
       terms=("rows", "width rows", "width"), axes=(_WIDTH, _ROWS), on_cuda=_LARGER),
    Op(name="lsh_bucket", about="unique keys, centroids and residuals", prepare=_prepare_bucket, axes=(_WIDTH, _ROWS),
       terms=("rows", "width rows"), held=(("width rows", lambda keys: 12.0),), on_cuda=_LARGER,
       work=lambda p: Work(2.0 * p["rows"] * p["width"], 12.0 * p["rows"] * p["width"])),
    Op(name="lsh_restore", about="rows from expert outputs and residuals", prepare=_prepare_restore,
       terms=("rows", "width rows"), held=(("width rows", lambda keys: 9.0),), axes=(_WIDTH, _ROWS), on_cuda=_LARGER,
       work=lambda p: Work(1.0 * p["rows"] * p["width"], 9.0 * p["rows"] * p["width"])),
)

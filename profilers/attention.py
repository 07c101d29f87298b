"""Attention of prompts, of single decode steps and of drafts, with grouped KV heads, over all or selected cached rows.

out = softmax(q K^T / sqrt(D)) V. Query heads that share a KV head are folded into the query length, so K and V are
read once and never expanded.

Shape suffixes: B sequences, N KV heads, G query heads a KV head, S cached rows, T prompt tokens, K selected rows,
D head width. On a CPU three formulations of a decode step trade places between processors: one pass over the rows in C
(``native/decode.c``, which also reads selected rows where they are), torch's fused attention, and plain products K q^T,
softmax, weights V. The quickest one is found once a process for each format, shape of head and number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from profilers.family import GridAxis, Op, Point, Prepared, Work, drawn, in_turn
from profilers.gemm import DTYPES
from profilers.gpu import kernels_for
from profilers.native import library
from profilers.pq import gather_rows

__all__ = ["OPS", "decode", "decode_selected", "prefill", "verify"]

_TRIAL_ROWS, _TRIALS = 8192, 7
_LANES = 32
_BLOCK_ROWS, _MOST_ADDED = 16, 3
_THREADED_BYTES = 1 << 18
_PART_ROWS = 256
_LINE = 64


def prefill(q_BHTD: torch.Tensor, k_BNTD: torch.Tensor, v_BNTD: torch.Tensor) -> torch.Tensor:
    """Causal attention of whole prompts, (B, H, T, D) with H = N G; shared KV heads are not expanded.

    A CPU's products work in blocks of 16 rows, and the last rows of a block that is not whole one after the other: up
    to three are added (nobody sees rows after its own), which takes as little as half the time.
    """
    missing = -q_BHTD.shape[2] % _BLOCK_ROWS if q_BHTD.device.type == "cpu" else 0
    if not 0 < missing <= _MOST_ADDED:
        return _causal(q_BHTD, k_BNTD, v_BNTD)
    longer = (torch.nn.functional.pad(x, (0, 0, 0, missing)) for x in (q_BHTD, k_BNTD, v_BNTD))
    return _causal(*longer)[:, :, :-missing]


def _causal(q_BHTD: torch.Tensor, k_BNTD: torch.Tensor, v_BNTD: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q_BHTD, k_BNTD, v_BNTD, is_causal=True, enable_gqa=True)


def decode(q_BNGD: torch.Tensor, k_BNSD: torch.Tensor, v_BNSD: torch.Tensor) -> torch.Tensor:
    """One new token a sequence over all cached rows: (B, N, G, D)."""
    kernels = kernels_for(q_BNGD, "attention")
    if kernels is not None and _power_of_two(q_BNGD.shape[3]):
        return kernels.decode(q_BNGD, k_BNSD, v_BNSD)
    if q_BNGD.device.type != "cpu":
        return _fused(q_BNGD, k_BNSD, v_BNSD)
    return _way_for(q_BNGD, k_BNSD, v_BNSD)(q_BNGD, k_BNSD, v_BNSD)


def _power_of_two(width: int) -> bool:
    return width & (width - 1) == 0


def _fused(q_BNGD: torch.Tensor, k_BNSD: torch.Tensor, v_BNSD: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q_BNGD, k_BNSD, v_BNSD)


def _products(q_BNGD: torch.Tensor, k_BNSD: torch.Tensor, v_BNSD: torch.Tensor) -> torch.Tensor:
    """A tall matrix times a narrow one streams K quicker than the transposed product does."""
    b, n, g, d = q_BNGD.shape
    s = k_BNSD.shape[2]
    scaled = (q_BNGD * d**-0.5).reshape(b * n, g, d).transpose(1, 2).contiguous()
    scores = torch.bmm(k_BNSD.reshape(b * n, s, d), scaled)
    weights = torch.softmax(scores.transpose(1, 2).contiguous(), -1)
    return torch.bmm(weights, v_BNSD.reshape(b * n, s, d)).view(b, n, g, d)


def _one_pass(q_BNGD: torch.Tensor, k_BNSD: torch.Tensor, v_BNSD: torch.Tensor,
              selected_NK: torch.Tensor | None = None) -> torch.Tensor:
    """All rows, or the selected ones of a single sequence, each read once; work is shared out among torch's threads.

    Heads that do not divide evenly among the threads have their rows cut in parts that do. Keys and values may be views
    of larger caches, as long as a row's own numbers are next to each other.
    """
    b, n, g, d = q_BNGD.shape
    q = q_BNGD.contiguous()
    out = torch.empty_like(q)
    chosen = None if selected_NK is None else selected_NK.to(torch.int32).contiguous()
    rows = k_BNSD.shape[2] if chosen is None else chosen.shape[1]
    size = q.element_size()
    strides = [stride * size for x in (k_BNSD, v_BNSD) for stride in x.stride()[:3]]
    threads = torch.get_num_threads() if 2 * b * n * rows * d * size >= _THREADED_BYTES else 1
    parts = max(1, min(threads // math.gcd(threads, b * n), rows // _PART_ROWS))
    native = _native()
    room = torch.empty(b * n * parts * native.walk_bytes(g, d) + _LINE, dtype=torch.uint8)
    native.decode(q.data_ptr(), k_BNSD.data_ptr(), v_BNSD.data_ptr(), 0 if chosen is None else chosen.data_ptr(),
                  *strides, b, n, rows, g, d, size, math.log2(math.e) / d**0.5, min(threads, b * n * parts), parts,
                  room.data_ptr() + -room.data_ptr() % _LINE, out.data_ptr())
    return out


@functools.cache
def _native() -> Any:
    """The functions of ``native/decode.c``, or ``None`` where nothing can be built."""
    made = library("decode")
    if made is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    made.decode.argtypes = [pointer] * 4 + [number] * 12 + [ctypes.c_float, number, number, pointer, pointer]
    made.decode.restype = None
    made.walk_bytes.argtypes, made.walk_bytes.restype = [number, number], number
    return made


def _takes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether the pass in C knows these formats and widths."""
    return (q.dtype == k.dtype == v.dtype and q.dtype in DTYPES.values() and q.shape[-1] % _LANES == 0
            and k.shape[-2] > 0 and k.stride(-1) == v.stride(-1) == 1 and _native() is not None)


def _way_for(q_BNGD: torch.Tensor, k_BNSD: torch.Tensor, v_BNSD: torch.Tensor) -> Callable[..., torch.Tensor]:
    ways = (_one_pass, _fused, _products) if _takes(q_BNGD, k_BNSD, v_BNSD) else (_fused, _products)
    return _quickest(ways, q_BNGD.dtype, *q_BNGD.shape[2:], torch.get_num_threads())


@functools.cache
def _quickest(ways: tuple[Callable[..., torch.Tensor], ...], dtype: torch.dtype, group: int, head_dim: int,
              threads: int) -> Callable[..., torch.Tensor]:
    """The formulation with the least time of interleaved trials over a cache larger than the processor's own.

    Whatever else runs only lengthens a trial, so the least one is the formulation's own. ``threads`` are torch's.
    """
    q = torch.ones(1, 8, group, head_dim, dtype=dtype)
    k, v = (torch.ones(1, 8, _TRIAL_ROWS, head_dim, dtype=dtype) for _ in range(2))
    spent: dict[int, list[float]] = {i: [] for i in range(len(ways))}
    for _, i in itertools.product(range(_TRIALS), range(len(ways))):
        start = time.perf_counter()
        ways[i](q, k, v)
        spent[i].append(time.perf_counter() - start)
    return ways[min(spent, key=lambda i: min(spent[i]))]


def decode_selected(q_NGD: torch.Tensor, k_NSD: torch.Tensor, v_NSD: torch.Tensor,
                    selected_NK: torch.Tensor) -> torch.Tensor:
    """One new token over selected rows of each KV head: (N, G, D)."""
    kernels = kernels_for(q_NGD, "attention")
    if kernels is not None and _power_of_two(q_NGD.shape[2]):
        return kernels.decode_selected(q_NGD, k_NSD, v_NSD, selected_NK)
    if q_NGD.device.type == "cpu" and _way_for(q_NGD[None], k_NSD[None], v_NSD[None]) is _one_pass:
        return _one_pass(q_NGD[None], k_NSD[None], v_NSD[None], selected_NK)[0]
    k, v = gather_rows(k_NSD, selected_NK), gather_rows(v_NSD, selected_NK)
    return decode(q_NGD[None], k[None], v[None])[0]


def verify(q_BNGTD: torch.Tensor, k_BNSD: torch.Tensor, v_BNSD: torch.Tensor, tree_TT: torch.Tensor) -> torch.Tensor:
    """T drafted tokens over the rows of their sequence, the last T of which are their own: (B, N, G, T, D).

    ``tree_TT`` says which drafted tokens each one sees (itself and its ancestors; a chain: the lower triangle); rows
    before them are seen by all. Query heads that share a KV head are folded into the query length.
    """
    b, n, g, t, d = q_BNGTD.shape
    seen = torch.ones(t, k_BNSD.shape[2], dtype=torch.bool, device=q_BNGTD.device)
    seen[:, -t:] = tree_TT
    folded = q_BNGTD.reshape(b, n, g * t, d)
    out = torch.nn.functional.scaled_dot_product_attention(folded, k_BNSD, v_BNSD, attn_mask=seen.repeat(g, 1))
    return out.view(b, n, g, t, d)


def _random(rng: np.random.Generator, shape: tuple[int, ...], device: str, dtype: str) -> torch.Tensor:
    if device == "cuda":  # gigabytes of caches are drawn where they are used
        source = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
        return torch.randn(shape, device=device, dtype=DTYPES[dtype], generator=source)
    return torch.from_numpy(drawn(rng, shape)).to(device, DTYPES[dtype])


def _prepare_prefill(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    q = _random(rng, (point["batch"], point["heads"], point["tokens"], point["head_dim"]), device, point["kv_dtype"])
    shape = (point["batch"], point["kv_heads"], point["tokens"], point["head_dim"])
    k, v = (_random(rng, shape, device, point["kv_dtype"]) for _ in range(2))
    return Prepared(lambda: prefill(q, k, v))


def _cache(p: Point, rows: int, device: str, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    group = p["heads"] // p["kv_heads"]
    q = _random(rng, (p.get("batch", 1), p["kv_heads"], group, p["head_dim"]), device, p["kv_dtype"])
    k, v = (_random(rng, (p.get("batch", 1), p["kv_heads"], rows, p["head_dim"]), device, p["kv_dtype"])
            for _ in range(2))
    return q, k, v


def _prepare_decode(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    q, k, v = _cache(point, point["context"], device, rng)

    def one() -> Callable[[], torch.Tensor]:
        keys, values = k.clone(), v.clone()
        return lambda: decode(q, keys, values)

    return in_turn(one, k.nbytes + v.nbytes, device)


def _prepare_selected(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    q, k, v = (x[0] for x in _cache(point, point["context"], device, rng))
    chosen = torch.from_numpy(rng.integers(0, point["context"], (point["kv_heads"], point["selected"]))).to(device)

    def one() -> Callable[[], torch.Tensor]:
        keys, values = k.clone(), v.clone()
        return lambda: decode_selected(q, keys, values, chosen)

    return in_turn(one, k.nbytes + v.nbytes, device)


def _prepare_verify(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    q, k, v = _cache(point, point["context"], device, rng)
    tokens = point["tokens"]
    q = _random(rng, (*q.shape[:3], tokens, q.shape[3]), device, point["kv_dtype"])
    tree = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()

    def one() -> Callable[[], torch.Tensor]:
        keys, values = k.clone(), v.clone()
        return lambda: verify(q, keys, values, tree)

    return in_turn(one, k.nbytes + v.nbytes, device)


def _prefill_work(p: Point) -> Work:
    t, size = p["tokens"], DTYPES[p["kv_dtype"]].itemsize
    pairs = p["batch"] * t * (t + 1) / 2
    rows = p["batch"] * t * (2 * p["heads"] + 2 * p["kv_heads"])
    return Work(4.0 * pairs * p["heads"] * p["head_dim"], float(size * rows * p["head_dim"]))


def _over_rows(p: Point, rows: float) -> Work:
    size = DTYPES[p["kv_dtype"]].itemsize
    return Work(4.0 * rows * p["heads"] * p["head_dim"], 2.0 * size * rows * p["kv_heads"] * p["head_dim"])


def _row_bytes(keys: Point) -> float:
    return 2.0 * DTYPES[keys["kv_dtype"]].itemsize * keys["kv_heads"] * keys["head_dim"]


_HEADS: tuple[dict[str, str | int], ...] = tuple(
    {"heads": 32, "kv_heads": 8, "head_dim": 128, "kv_dtype": dtype} for dtype in ("fp32", "bf16"))
_SMALL: tuple[dict[str, str | int], ...] = tuple(
    {"heads": 9, "kv_heads": 3, "head_dim": 64, "kv_dtype": dtype} for dtype in ("fp32", "bf16"))
# Prompts are of any length, and the last rows of a block of 16 are dear: every knot has half a block of them.
_PROMPT = GridAxis("tokens", (8, 24, 72, 152, 520))
OPS = (
    Op(name="attention_prefill", about="causal attention of prompts", variants=_SMALL + _HEADS[:1],
       prepare=_prepare_prefill, work=_prefill_work,
       terms=("batch", "batch tokens", "batch tokens tokens"),
       axes=(GridAxis("batch", (1, 4)), _PROMPT),
       on_cuda={"variants": _HEADS[1:], "axes": (GridAxis("batch", (1, 8)), GridAxis("tokens", (128, 1024, 8192)))}),
    Op(name="attention_decode", about="one token over all cached rows", variants=_SMALL + _HEADS,
       prepare=_prepare_decode, work=lambda p: _over_rows(p, p["batch"] * p["context"]),
       terms=("batch", "batch context"), held=(("batch context", _row_bytes),),
       axes=(GridAxis("batch", (1, 4, 16)), GridAxis("context", (64, 512, 4096))),
       on_cuda={"variants": _HEADS[1:],
                "axes": (GridAxis("batch", (1, 8, 64)), GridAxis("context", (256, 2048, 16384)))}),
    Op(name="attention_verify", about="drafted tokens of one sequence over its cached rows", variants=_SMALL,
       prepare=_prepare_verify,
       work=lambda p: Work(*(x * y for x, y in zip(_over_rows(p, p["context"]), (p["tokens"], 1), strict=True))),
       terms=("tokens", "context", "tokens context"), held=(("context", _row_bytes),),
       axes=(GridAxis("tokens", (1, 8, 64)), GridAxis("context", (64, 512, 4096))),
       on_cuda={"variants": _HEADS[1:],
                "axes": (GridAxis("tokens", (1, 8, 64)), GridAxis("context", (256, 2048, 16384)))}),
    Op(name="attention_selected", about="one token over selected rows, gathered", variants=_HEADS[:1],
       prepare=_prepare_selected, work=lambda p: _over_rows(p, p["selected"]),
       terms=("selected",), held=(("selected", _row_bytes),),
       axes=(GridAxis("context", (4096, 32768)), GridAxis("selected", (64, 512, 4096))),
       on_cuda={"variants": _HEADS[1:],
                "axes": (GridAxis("context", (32768, 131072)), GridAxis("selected", (64, 1024, 16384)))}),
)

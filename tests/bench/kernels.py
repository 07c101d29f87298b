"""Bars of the CPU kernels against their peers, interleaved in one process: run ``python -m tests.bench.kernels``.

PQ search by joint code against faiss's PQ search of the same codes (skipped without the package faiss-cpu), dense
decode against torch's fused attention and plain products (also over many shapes, on one thread and on two),
cross-polytope hashing against its bare matrix product. Times are medians of interleaved repeats, on one thread where
nothing else is said; on a busy machine only the ratios mean anything.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from profilers import attention, lsh, pq
from profilers.harness import available_cpus, fixed_conditions

REPEATS = 15
KV_HEADS, GROUP, WIDTH, BITS = 8, 4, 128, 6
COLD_ROWS = 1 << 17


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each call, all of them once a round, after one round that is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def show(title: str, found: Mapping[str, float], against: str) -> None:
    print(title)
    for name, seconds in found.items():
        print(f"  {name:34s} {seconds * 1e3:9.3f} ms   {seconds / found[against]:6.2f} x {against}")


def quantised(tokens: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Centroids (N, M, C, D) and codes (N, M, S) of clustered keys."""
    centres = rng.standard_normal((256, WIDTH), dtype=np.float32)
    noise = rng.standard_normal((KV_HEADS, tokens, WIDTH), dtype=np.float32)
    keys = centres[rng.integers(0, 256, (KV_HEADS, tokens))] + 0.7 * noise
    halves = torch.from_numpy(keys.reshape(KV_HEADS, tokens, 2, WIDTH // 2)).transpose(1, 2).contiguous()
    centroids = torch.stack([torch.stack([pq.kmeans(part[:4096], clusters=1 << BITS, iterations=4, rng=rng)
                                          for part in head]) for head in halves])
    codes = torch.stack([torch.stack([pq.assign(part, its) for part, its in zip(head, theirs, strict=True)])
                         for head, theirs in zip(halves, centroids, strict=True)])
    return centroids, codes.to(torch.uint8)


def search(tokens: int, k: int) -> None:
    rng = np.random.default_rng(0)
    scale = WIDTH**-0.5
    centroids, codes = quantised(tokens, rng)
    q = torch.from_numpy(rng.standard_normal((KV_HEADS, GROUP, WIDTH), dtype=np.float32))
    groups = pq.Inverted.of(codes, 1 << BITS)

    def by_code(queries: torch.Tensor) -> torch.Tensor:
        return groups.search(pq.lookup_table(queries, centroids), k=k, scale=scale)

    calls: dict[str, Callable[[], Any]] = {
        "by joint code, 4 queries a head": lambda: by_code(q),
        "by joint code, 1 query a head": lambda: by_code(q[:, :1]),
        "every token, 4 queries a head": lambda: pq.search_scan(pq.lookup_table(q, centroids), codes, k=k, scale=scale)}
    if importlib.util.find_spec("faiss") is not None:
        calls["faiss PQ, 1 query a head"] = faiss_search(centroids, codes, q[:, 0], k)
    show(f"PQ search and select, {tokens} keys, 8 KV heads, m = 2, b = 6, k = {k}", interleaved(calls),
         "by joint code, 4 queries a head")


def faiss_search(centroids_NMCD: torch.Tensor, codes_NMS: torch.Tensor, q_ND: torch.Tensor,
                 k: int) -> Callable[[], Any]:
    """faiss's search of the same codes and centroids, one index and one query a KV head."""
    import faiss

    faiss.omp_set_num_threads(1)
    indexes = []
    for centroids, codes in zip(centroids_NMCD.numpy(), codes_NMS.numpy(), strict=True):
        index = faiss.IndexPQ(WIDTH, 2, BITS, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(centroids.ravel().astype(np.float32), index.pq.centroids)
        index.is_trained = True
        joint = codes[0].astype(np.uint16) | codes[1].astype(np.uint16) << BITS
        packed = np.ascontiguousarray(joint.astype("<u2").view(np.uint8).reshape(-1, 2))
        index.add_sa_codes(packed)
        indexes.append(index)
    queries = [np.ascontiguousarray(q[None]) for q in q_ND.numpy()]
    return lambda: [index.search(query, k) for index, query in zip(indexes, queries, strict=True)]


def cache(rows: int, heads: int, group: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values of one sequence."""
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.standard_normal((1, heads, n, width), dtype=np.float32)).to(dtype)
            for n in (group, rows, rows)]


def decode() -> None:
    fused = torch.nn.functional.scaled_dot_product_attention
    for rows, heads, group, width, dtype in ((32768, KV_HEADS, GROUP, WIDTH, torch.float32),
                                             (32768, KV_HEADS, GROUP, WIDTH, torch.bfloat16),
                                             (2048, KV_HEADS, GROUP, WIDTH, torch.float32),
                                             (8192, KV_HEADS, 1, WIDTH, torch.float32),
                                             (2048, 3, 3, 64, torch.float32), (2048, 3, 3, 64, torch.bfloat16)):
        q, k, v = cache(rows, heads, group, width, dtype)
        found = interleaved({
            "ours": lambda q=q, k=k, v=v: attention.decode(q, k, v),
            "torch fused, folded": lambda q=q, k=k, v=v: fused(q, k, v),
            "bmm, softmax, bmm": lambda q=q, k=k, v=v: products(q, k, v, q.shape[3]**-0.5)})
        show(f"Dense decode, {rows} rows of {width} {str(dtype)[6:]}, {heads} KV heads, queries each: {group}", found,
             "ours")
    q, k, v = (x[0] for x in cache(131072, KV_HEADS, GROUP, WIDTH, torch.float32))
    rng = np.random.default_rng(0)
    chosen = torch.from_numpy(np.stack([rng.permutation(131072)[:6553] for _ in range(KV_HEADS)]))
    show("Decode over 6553 of 131072 rows", interleaved({
        "ours": lambda: attention.decode_selected(q, k, v, chosen),
        "gather, torch fused": lambda: fused(q[None], pq.gather_rows(k, chosen)[None], pq.gather_rows(v, chosen)[None])
    }), "ours")


def decode_shapes(threads: int) -> None:
    """Dense decode over shapes and formats: how many times as long the better of torch's two ways takes.

    Every call reads another copy of the cache than the call before, so that none finds what another one left behind.
    """
    ratios: dict[str, list[float]] = {}
    fused = torch.nn.functional.scaled_dot_product_attention
    for rows, heads, group, width, dtype in itertools.product((4096, 32768), (1, 3, 8), (1, 4, 16), (64, 128),
                                                              (torch.float32, torch.bfloat16)):
        copies = [cache(rows, heads, group, width, dtype) for _ in range(max(2, COLD_ROWS // (rows * heads)))]
        turns = itertools.cycle(copies)
        scale = width**-0.5
        found = interleaved({
            "ours": lambda turns=turns: attention.decode(*next(turns)),
            "fused": lambda turns=turns: fused(*next(turns)),
            "products": lambda turns=turns, scale=scale: products(*next(turns), scale)}, repeats=9)
        ratio = min(found["fused"], found["products"]) / found["ours"]
        ratios.setdefault(str(dtype)[6:], []).append(ratio)
        if ratio < 1:
            print(f"  not the fastest: {rows} rows of {width} {str(dtype)[6:]}, {heads} KV heads, "
                  f"queries each: {group}: {ratio:.2f}")
    for name, of in ratios.items():
        print(f"Dense decode, {threads} threads, {len(of)} shapes, {name}: the better of torch's ways takes "
              f"{min(of):.2f} to {max(of):.2f} times as long, median {statistics.median(of):.2f}")


def products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(2, 3) * scale, -1) @ v


def hashing() -> None:
    rng = np.random.default_rng(0)
    rows, width, hashes = 4096, 768, 6
    centres = rng.standard_normal((1000, width), dtype=np.float32)
    x = torch.from_numpy(centres[rng.integers(0, 1000, rows)]
                         + 0.05 * rng.standard_normal((rows, width), dtype=np.float32))
    spun = lsh.rotations(width, hashes, 32, rng)

    def whole() -> torch.Tensor:
        made = lsh.bucket(x, lsh.combine(lsh.codes(x, spun, hashes), base=64))
        return lsh.restore(made.centroids_BH, made.inverse_T, made.residual_TH)

    found = interleaved({"product": lambda: x @ spun, "hash": lambda: lsh.codes(x, spun, hashes),
                         "hash to restore": whole})
    show("Cross-polytope hash, r = 32, L = 6, T = 4096, h = 768", found, "product")


def main() -> None:
    with fixed_conditions(threads=1):
        for tokens, k in ((32768, 1638), (131072, 1638), (131072, 6553)):
            search(tokens, k)
        decode()
        hashing()
    for threads in range(1, min(2, len(available_cpus())) + 1):
        with fixed_conditions(threads=threads):
            decode_shapes(threads)


if __name__ == "__main__":
    sys.exit(main())

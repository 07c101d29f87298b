"""Product quantisation of keys and retrieval by it (arXiv 2407.12820; Jegou et al. 2011 for the quantiser).

score(t) = sum_i q_i . centroid[i, code(t, i)]. Search follows the paper's rule: softmax over the candidates for each
query head, summed over the heads that share a KV head, the k largest tokens a KV head.

``search_scan`` scores every token. ``Inverted`` groups tokens by their joint code (all m codes together, m b <= 16
bits): tokens of one group have equal scores, so scores, normaliser and selection run over the 2^(m b) groups, whatever
the number of tokens. Both give the same scores.

Shape suffixes: N kv heads, G query heads a KV head, M sub-spaces, C centroids (2^b), D width of a sub-space, S tokens,
J joint codes, K selected. Codes are one byte each.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from profilers.family import GridAxis, Op, Point, Prepared, Work, drawn, in_turn
from profilers.gpu import kernels_for
from profilers.native import library
from workbench.errors import SpecError

__all__ = ["OPS", "Inverted", "assign", "gather_rows", "kmeans", "largest", "lookup_table", "scan",
           "search_scan"]

_MOST_JOINT_BITS = 16
_LANES = 16


def kmeans(x_SD: torch.Tensor, *, clusters: int, iterations: int, rng: np.random.Generator) -> torch.Tensor:
    """Lloyd's algorithm from distinct random rows: (C, D) centroids; an empty cluster keeps its centroid.

    Raises:
        SpecError: fewer rows than clusters.
    """
    if len(x_SD) < clusters:
        raise SpecError(f"{clusters} clusters need as many rows, not {len(x_SD)}")
    centroids = x_SD[torch.from_numpy(rng.permutation(len(x_SD))[:clusters]).to(x_SD.device)].float()
    ones = torch.ones(len(x_SD), device=x_SD.device)
    for _ in range(iterations):
        nearest = assign(x_SD, centroids)
        counts = torch.zeros(clusters, device=x_SD.device).index_add_(0, nearest, ones)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, x_SD.float())
        centroids = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centroids)
    return centroids


def assign(x_SD: torch.Tensor, centroids_CD: torch.Tensor) -> torch.Tensor:
    """(S,) index of the nearest centroid in squared distance; ties take the lowest index."""
    half = 0.5 * centroids_CD.square().sum(1)
    return torch.addmm(half, x_SD.float(), centroids_CD.T, alpha=-1.0).argmin(1)


def lookup_table(q_NGD: torch.Tensor, centroids_NMCD: torch.Tensor) -> torch.Tensor:
    """(N, G, M, C) inner products of query parts with centroids."""
    n, g, _ = q_NGD.shape
    _, m, _, d = centroids_NMCD.shape
    parts = q_NGD.reshape(n, g, m, d).transpose(1, 2)
    return (parts @ centroids_NMCD.transpose(2, 3)).transpose(1, 2)


def scan(table_NGMC: torch.Tensor, codes_NMS: torch.Tensor) -> torch.Tensor:
    """(N, G, S) scores of all tokens: table rows [centroid, G] gathered by code, summed over sub-spaces."""
    kernels = kernels_for(table_NGMC, "pq")
    if kernels is not None:
        return kernels.scan(table_NGMC, codes_NMS)
    heads = []
    for table_GMC, codes_MS in zip(table_NGMC, codes_NMS, strict=True):
        rows_MCG = table_GMC.permute(1, 2, 0).contiguous()
        total = rows_MCG[0].index_select(0, codes_MS[0].int())
        for rows_CG, codes_S in zip(rows_MCG[1:], codes_MS[1:], strict=True):
            total += rows_CG.index_select(0, codes_S.int())
        heads.append(total.T)
    return torch.stack(heads)


def search_scan(table_NGMC: torch.Tensor, codes_NMS: torch.Tensor, *, k: int, scale: float) -> torch.Tensor:
    """(N, K) tokens of the largest summed probabilities, by scoring every token."""
    return largest(torch.softmax(scan(table_NGMC, codes_NMS) * scale, -1).sum(1), k)


def largest(x_NS: torch.Tensor, k: int) -> torch.Tensor:
    """(N, K) places of the k largest float32 numbers of each row, none of them not-a-number, in no order.

    torch changes its way where k exceeds a 64th of a row, and both ways cost more than finding the least number to take
    by halving the range of its bits (``native/joint.c``), as is done on a CPU.

    Raises:
        SpecError: fewer numbers than ``k``, or ``k`` below 1.
    """
    n, s = x_NS.shape
    _check_count(k, s)
    native = _native("largest") if x_NS.device.type == "cpu" and x_NS.dtype == torch.float32 else None
    if native is None:
        return x_NS.topk(k, -1, sorted=False).indices
    x = x_NS.contiguous()
    memory, chosen = torch.empty(3 * (s + _LANES), dtype=torch.int32), torch.empty(n, k, dtype=torch.int32)
    native(x.data_ptr(), n, s, k, memory.data_ptr(), chosen.data_ptr())
    return chosen


def _check_count(k: int, tokens: int) -> None:
    if not 1 <= k <= tokens:
        raise SpecError(f"{k} of {tokens} tokens cannot be selected", allowed=[f"1 to {tokens}"])


def gather_rows(rows_NSD: torch.Tensor, selected_NK: torch.Tensor) -> torch.Tensor:
    """(N, K, D) selected rows of each head, by one flat row gather."""
    n, s, d = rows_NSD.shape
    flat = selected_NK + torch.arange(n, device=selected_NK.device)[:, None] * s
    return rows_NSD.reshape(n * s, d).index_select(0, flat.ravel()).view(n, -1, d)


@dataclass(frozen=True, eq=False)
class Inverted:
    """Tokens of each KV head in order of joint code; ``first_NJ`` (N, J + 1) says where each code's tokens start.

    Both int32 and on the device of the codes.
    """

    tokens_NS: torch.Tensor
    first_NJ: torch.Tensor
    clusters: int

    @classmethod
    def of(cls, codes_NMS: torch.Tensor, clusters: int) -> Inverted:
        """Group tokens by joint code.

        Raises:
            SpecError: more than 2^16 joint codes; use ``search_scan``.
        """
        codes = codes_NMS.cpu().numpy()
        n, m, s = codes.shape
        joint_codes = clusters**m
        if joint_codes > 1 << _MOST_JOINT_BITS:
            raise SpecError(f"{m} codes of {clusters} have {joint_codes} joint values",
                            allowed=[f"at most {1 << _MOST_JOINT_BITS}"], hint="score every token instead")
        joint = np.zeros((n, s), dtype=np.uint16)
        for part in codes.transpose(1, 0, 2):
            joint = joint * np.uint16(clusters % 65536) + part
        first = np.zeros((n, joint_codes + 1), dtype=np.int32)
        for head in range(n):
            np.cumsum(np.bincount(joint[head], minlength=joint_codes), out=first[head, 1:])
        tokens = np.argsort(joint, axis=1, kind="stable").astype(np.int32)
        return cls(torch.from_numpy(tokens).to(codes_NMS.device), torch.from_numpy(first).to(codes_NMS.device),
                   clusters)

    def shares(self, table_NGMC: torch.Tensor, scale: float) -> torch.Tensor:
        """(N, J) probability of one token of each joint code, summed over the query heads."""
        n, g, m, _ = table_NGMC.shape
        powers = _powers(table_NGMC, scale)
        counts = self.first_NJ.diff().float()
        joint = powers[:, :, 0]
        for i in range(1, m):
            joint = (joint[..., None] * powers[:, :, i, None, :]).reshape(n, g, -1)
        total = torch.bmm(joint, counts[..., None])
        return torch.bmm(total.reciprocal_().transpose(1, 2), joint).squeeze(1)

    def search(self, table_NGMC: torch.Tensor, *, k: int, scale: float) -> torch.Tensor:
        """(N, K) tokens of the largest summed probabilities, in no order; of the last joint code the earliest tokens.

        Int32. On a CPU one pass in C finds them (``native/joint.c``); the time it takes grows with ``k`` only.

        Raises:
            SpecError: fewer tokens than ``k``, or ``k`` below 1.
        """
        n, s = self.tokens_NS.shape
        _check_count(k, s)
        native = _native("joint_search") if table_NGMC.device.type == "cpu" else None
        if native is not None:
            _, g, m, c = table_NGMC.shape
            codes = self.first_NJ.shape[1] - 1
            powers = _powers(table_NGMC, scale).contiguous()
            memory = torch.empty(4 * (codes + _LANES))
            chosen = torch.empty(n, k, dtype=torch.int32)
            native(powers.data_ptr(), self.first_NJ.data_ptr(), self.tokens_NS.data_ptr(), n, g, m, c, codes, s, k,
                   memory.data_ptr(), chosen.data_ptr())
            return chosen
        shares = self.shares(table_NGMC, scale)
        if shares.device.type != "cpu":
            return self._fill_all(shares, k)
        chosen = torch.empty(n, k, dtype=torch.int32)
        first, tokens = self.first_NJ.numpy(), self.tokens_NS.numpy()
        for head, share in enumerate(shares.numpy()):
            chosen.numpy()[head] = _fill(share, first[head], tokens[head], k)
        return chosen

    def _fill_all(self, shares_NJ: torch.Tensor, k: int) -> torch.Tensor:
        """The same rule for all heads at once, without a size that depends on values (no wait for the device)."""
        sizes = self.first_NJ.long().diff()
        order = torch.where(sizes > 0, shares_NJ, -1.0).argsort(dim=1, descending=True, stable=True)
        taken = sizes.gather(1, order)
        ends = taken.cumsum(1)
        place = torch.arange(k, device=shares_NJ.device).expand(len(shares_NJ), k).contiguous()
        group = torch.searchsorted(ends, place, right=True)
        inside = place - (ends - taken).gather(1, group)
        return self.tokens_NS.gather(1, self.first_NJ.gather(1, order.gather(1, group)) + inside)


@functools.cache
def _native(name: str) -> Any:
    """A function of ``native/joint.c``, or ``None`` where nothing can be built."""
    made = library("joint")
    if made is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function = getattr(made, name)
    function.argtypes = {"joint_search": [pointer] * 3 + [number] * 7 + [pointer] * 2,
                         "largest": [pointer, *[number] * 3, pointer, pointer]}[name]
    function.restype = None
    return function


def _powers(table_NGMC: torch.Tensor, scale: float) -> torch.Tensor:
    """e to the scaled entries, the largest of each sub-space 1.

    The exponential of a sum is a product: one exponential a table entry instead of one a joint code.
    """
    table = table_NGMC * scale
    return table.sub_(table.amax(-1, keepdim=True)).exp_()


def _fill(share_J: np.ndarray, first_J: np.ndarray, tokens_S: np.ndarray, k: int) -> np.ndarray:
    """The first ``k`` tokens, going through the groups by falling share."""
    held = np.flatnonzero(first_J[1:] > first_J[:-1])
    order = held[np.argsort(-share_J[held])]
    sizes = first_J[order + 1] - first_J[order]
    ends = np.cumsum(sizes)
    last = int(np.searchsorted(ends, k))
    order, sizes, ends = order[:last + 1], sizes[:last + 1], ends[:last + 1]
    # Positions in tokens_S: each group's start, then consecutive.
    return tokens_S[(np.repeat(first_J[order] - (ends - sizes), sizes) + np.arange(ends[-1]))[:k]]


def _codes(point: Point, rng: np.random.Generator) -> torch.Tensor:
    """Codes of two-level popularity, as clustered keys have: (N, M, S)."""
    c = 1 << point["bits"]
    weights = 1.0 / np.arange(1, c + 1) ** 0.5
    shape = (point["kv_heads"], point["subspaces"], point["tokens"])
    return torch.from_numpy(rng.choice(c, size=shape, p=weights / weights.sum()).astype(np.uint8))


def _prepare_kmeans(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    x = torch.from_numpy(drawn(rng, (point["tokens"], point["width"]))).to(device)
    return Prepared(lambda: kmeans(x, clusters=1 << point["bits"], iterations=1, rng=np.random.default_rng(0)))


def _table(point: Point, device: str, rng: np.random.Generator) -> torch.Tensor:
    shape = (point["kv_heads"], point["group"], point["subspaces"], 1 << point["bits"])
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device)


def _prepare_scan(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    table, codes = _table(point, device, rng), _codes(point, rng).to(device)
    return Prepared(lambda: scan(table, codes))


def _prepare_search(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    table = _table(point, device, rng)
    groups = Inverted.of(_codes(point, rng).to(device), 1 << point["bits"])
    return Prepared(lambda: groups.search(table, k=max(1, point["tokens"] // 20), scale=1.0))


def _prepare_topk(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    shares = torch.from_numpy(rng.random((8, point["tokens"]), dtype=np.float32)).to(device)
    return Prepared(lambda: largest(shares, point["k"]))


def _prepare_gather(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    rows = torch.from_numpy(drawn(rng, (8, point["tokens"], 128))).to(device)
    chosen = torch.from_numpy(rng.integers(0, point["tokens"], (8, point["k"]))).to(device)

    def one() -> Callable[[], torch.Tensor]:
        own = rows.clone()
        return lambda: gather_rows(own, chosen)

    return in_turn(one, rows.nbytes, device)


def _scan_work(p: Point) -> Work:
    cells = p["kv_heads"] * p["tokens"] * p["subspaces"]
    return Work(1.0 * cells * p["group"], cells + 4.0 * p["kv_heads"] * p["group"] * p["tokens"])


_TOKENS = GridAxis("tokens", (2048, 8192, 32768))
_SHAPE = {"kv_heads": 8, "group": 4, "subspaces": 2, "bits": 6}
OPS = (
    Op(name="pq_kmeans", about="one Lloyd iteration for one head and sub-space", prepare=_prepare_kmeans,
       variants=({"bits": 6}, {"bits": 8}), terms=("tokens", "width tokens"),
       axes=(GridAxis("width", (32, 64), step=8), _TOKENS),
       work=lambda p: Work(2.0 * p["tokens"] * p["width"] * (1 << p["bits"]), 8.0 * p["tokens"] * p["width"])),
    Op(name="pq_scan", about="scores of all tokens by table look-up", variants=(_SHAPE,), axes=(_TOKENS,),
       terms=("tokens",), prepare=_prepare_scan, work=_scan_work),
    Op(name="pq_search", about="the best 5 % of the tokens by joint code", variants=(_SHAPE,),
       prepare=_prepare_search, terms=("tokens",), axes=(GridAxis("tokens", (8192, 32768, 131072)),),
       work=lambda p: Work(2.0 * p["kv_heads"] * p["group"] * (1 << p["bits"] * p["subspaces"]),
                           8.0 * p["kv_heads"] * (1 << p["bits"] * p["subspaces"]))),
    Op(name="pq_topk", about="k largest of each of 8 rows", prepare=_prepare_topk, terms=("tokens", "k"),
       axes=(GridAxis("tokens", (2048, 8192, 32768)), GridAxis("k", (32, 128, 512))),
       work=lambda p: Work(0.0, 32.0 * p["tokens"])),
    Op(name="gather_rows", about="k rows of 128 floats for each of 8 heads", prepare=_prepare_gather,
       terms=("k",), held=(("k", lambda keys: 8.0 * 128 * 8),),
       axes=(GridAxis("tokens", (2048, 32768)), GridAxis("k", (32, 512, 2048))),
       work=lambda p: Work(0.0, 8.0 * p["k"] * 128 * 8)),
)

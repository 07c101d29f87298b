"""Kernel times measured for the simulator vidur (microsoft/vidur, MIT; Agrawal et al., MLSys 2024) as profile tables.

Its linear layers become ``gemm`` tables at their exact (n, k); norms, rotary embedding, activation, residual add and
embedding become light kernels by ``width``; attention becomes ``attention_extend`` and ``attention_decode`` (one table
exists: A100, hidden 8192, 64/8 heads, two devices); all-reduce keeps its runs inside one machine. Times are medians,
in ms there, of one layer. The 16-bit runs answer as "bf16". No output projection was measured: use
``fallback = "analytic"`` for it.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from traces import registry
from workbench.costs import Axis, ProfileTable, Provenance, TableCosts
from workbench.costtables import Floats
from workbench.errors import MissingProfile, SpecError, TraceError, nearest
from workbench.hardware import Catalogue, load_catalogue
from workbench.spec import about, spec

__all__ = ["Options", "open", "read_attention", "read_layers", "read_network"]

_MODELS = ("llama-2-7b", "llama-2-70b", "meta-llama-3-8b")
# Machine whose collectives go with a device's compute profiles.
_MACHINES = {"a100": "a100_dgx", "h100": "h100_dgx", "a40": "a40"}
_ATTENTION = {("a100", "llama-2-70b"): "vidur-compute-a100-attention-8192x64x8-tp2"}

Key = str | int | float
_Found = list[tuple[str, dict[str, Key], Floats, Floats]]


@spec
class Options:
    """Options of ``[costs] source = "vidur"``."""

    model: str = about("Which model's layers: llama-2-7b, llama-2-70b or meta-llama-3-8b.")
    hardware: tuple[str, ...] = about("Hardware files to read on top of the catalogue.", default=())


def open(options: Options) -> TableCosts:
    """All registered tables of one model, over the devices that have them.

    Raises:
        SpecError: no such model; TraceError: a file cannot be had.
    """
    if options.model not in _MODELS:
        close = nearest(options.model, _MODELS)
        raise SpecError(f"vidur's files have no model {options.model!r}", where="costs.model", allowed=_MODELS,
                        hint=f"did you mean {close!r}?" if close else None)
    catalogue = load_catalogue(*options.hardware)
    tables: list[ProfileTable] = []
    for theirs, machine in _MACHINES.items():
        name = f"vidur-compute-{theirs}-{options.model}-mlp"
        device = _ours(catalogue, theirs)
        known = registry.registry().files
        if name not in known:
            continue
        tables += read_layers(registry.fetch(name), device)
        network = f"vidur-network-{machine}-all_reduce"
        if network in known:
            tables += read_network(registry.fetch(network), device)
        if (theirs, options.model) in _ATTENTION:
            tables += read_attention(registry.fetch(_ATTENTION[theirs, options.model]), device)
    return TableCosts(tables)


def _ours(catalogue: Catalogue, theirs: str) -> str:
    name = catalogue.called("vidur", theirs)
    if name is None:
        raise MissingProfile(f"no device of the catalogue is vidur's {theirs!r}", keys=[theirs],
                             hint=f'give one names = {{ vidur = "{theirs}" }} in a hardware file')
    return name


def read_layers(path: Path, device: str) -> list[ProfileTable]:
    """Tables of an ``mlp.csv``: gemm, norm, add, rope, act, embedding.

    Raises:
        TraceError: a column is missing or holds something else than numbers.
    """
    ops = ("emb", "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "post_attention_layernorm",
           "mlp_up_proj", "mlp_act", "mlp_down_proj", "add")
    facts = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "use_gated_mlp", "num_tokens",
             "num_tensor_parallel_workers")
    columns = _columns(path, facts, ops)
    found: _Found = []
    for at, (heads, kv, h, f, gated, tp) in _groups(columns, [*facts[:5], facts[6]]):
        d, mine, cached = h // heads, heads // tp, max(1, kv // tp)
        tokens = columns["num_tokens"][at][:, None]
        for name, n, k in (("attn_pre_proj", (mine + 2 * cached) * d, h), ("attn_post_proj", h, mine * d),
                           ("mlp_up_proj", (1 + gated) * f // tp, h), ("mlp_down_proj", h, f // tp)):
            found.append(("gemm", {"dtype": "bf16", "n": n, "k": k}, tokens, columns[name][at]))
        for op, name, width in (("norm", "input_layernorm", h), ("norm", "post_attention_layernorm", h),
                                ("add", "add", h), ("rope", "attn_rope", (mine + cached) * d),
                                ("act", "mlp_act", f // tp), ("embedding", "emb", h)):
            found.append((op, {"width": width}, tokens, columns[name][at]))
    return [*_tables([r for r in found if r[0] == "gemm"], (Axis("m"),), device, path),
            *_tables([r for r in found if r[0] != "gemm"], (Axis("tokens"),), device, path)]


def read_attention(path: Path, device: str) -> list[ProfileTable]:
    """Tables of an ``attention.csv``: attention_extend (history, tokens) and attention_decode (batch, context)."""
    shape = ("n_q_head", "n_kv_head", "n_embd", "num_tensor_parallel_workers", "is_prefill")
    sizes = ("batch_size", "prefill_chunk_size", "kv_cache_size")
    columns = _columns(path, (*shape, *sizes), ("attn_prefill", "attn_decode", "attn_input_reshape",
                                               "attn_output_reshape"))
    extend: _Found = []
    decode: _Found = []
    for at, (heads, kv, h, tp, is_prefill) in _groups(columns, shape):
        keys: dict[str, Key] = {"heads": heads // tp, "kv_heads": max(1, kv // tp), "head_dim": h // heads,
                                "kv_dtype": "bf16"}
        around = columns["attn_input_reshape"][at] + columns["attn_output_reshape"][at]
        history = columns["kv_cache_size"][at]
        if is_prefill:
            points = np.column_stack([history, columns["prefill_chunk_size"][at]])
            extend.append(("attention_extend", keys, points, columns["attn_prefill"][at] + around))
        else:
            points = np.column_stack([columns["batch_size"][at], history])
            decode.append(("attention_decode", keys, points, columns["attn_decode"][at] + around))
    return [*_tables(extend, (Axis("history"), Axis("tokens")), device, path),
            *_tables(decode, (Axis("batch"), Axis("context")), device, path)]


def read_network(path: Path, device: str) -> list[ProfileTable]:
    """Tables of an ``all_reduce.csv``: the runs whose ranks share one machine."""
    columns = _columns(path, ("num_workers", "devices_per_node", "size"), ("all_reduce",))
    found: _Found = [("all_reduce", {"ranks": ranks}, columns["size"][at][:, None], columns["all_reduce"][at])
                     for at, (ranks, together) in _groups(columns, ("num_workers", "devices_per_node"))
                     if ranks == together]
    return _tables(found, (Axis("bytes"),), device, path)


def _tables(found: _Found, axes: tuple[Axis, ...], device: str, path: Path) -> list[ProfileTable]:
    """One table for each op and keys; what was measured under equal keys goes into one."""
    provenance = Provenance(id=path.name, origin="microsoft/vidur data/profiling", device=device, licence="MIT")
    merged: dict[str, _Found] = {}
    for row in found:
        merged.setdefault(f"{row[0]} {sorted(row[1].items())}", []).append(row)
    return [ProfileTable(op=rows[0][0], keys={"device": device, **rows[0][1]}, axes=axes, provenance=provenance,
                         points=np.concatenate([r[2] for r in rows]), seconds=np.concatenate([r[3] for r in rows]))
            for rows in merged.values()]


def _groups(columns: Mapping[str, Floats], names: Sequence[str]) -> Iterator[tuple[NDArray[np.intp], list[int]]]:
    """Row indices of each combination of whole-numbered columns, with the combination."""
    kinds, which = np.unique(np.column_stack([columns[n] for n in names]), axis=0, return_inverse=True)
    for i, kind in enumerate(kinds.astype(int).tolist()):
        yield np.flatnonzero(which.ravel() == i), kind


def _columns(path: Path, facts: Sequence[str], ops: Sequence[str]) -> dict[str, Floats]:
    """Fact columns by name, and the median times of ``ops`` in seconds (absent cells are not-a-number)."""
    with (gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="")) as stream:
        header, *rows = list(csv.reader(stream)) or [[]]
    wanted = {**{name: name for name in facts}, **{op: f"time_stats.{op}.median" for op in ops}}
    missing = [name for name in wanted.values() if name not in header]
    if missing:
        raise TraceError(f"columns are missing: {', '.join(missing)}", where=str(path), allowed=header)
    columns = {}
    for ours, theirs in wanted.items():
        at = header.index(theirs)
        try:
            values = np.array([_number(row[at]) for row in rows])
        except (ValueError, IndexError) as error:
            line = next(i for i, row in enumerate(rows, start=2) if not _is_number(row, at))
            raise TraceError(f"line {line}, column {theirs!r}: {error}", where=str(path)) from None
        columns[ours] = values / 1e3 if ours in ops else values
    return columns


def _number(cell: str) -> float:
    words = {"True": 1.0, "False": 0.0, "": np.nan}
    return words[cell] if cell in words else float(cell)


def _is_number(row: Sequence[str], at: int) -> bool:
    try:
        _number(row[at])
    except (ValueError, IndexError):
        return False
    return True

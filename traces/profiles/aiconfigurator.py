"""Measured GPU kernels of the package ``aiconfigurator-core`` (Apache-2.0, NVIDIA): GEMM, attention, collectives.

The package holds Parquet files ``systems/data/<system>/<family>/<backend>/<version>/<op>_perf.parquet`` measured on
A100, H100, H200, L40S and others under vLLM, TensorRT-LLM and SGLang. Its systems get the names of the hardware
catalogue (``names.aiconfigurator``); a system the catalogue does not know keeps its own name.

Units there: latency in ms; messages in elements of 2 bytes; a decode step of ``step`` cached tokens attends step + 1.
16-bit tables are measured in bf16 and answer as "bf16". Of several all-reduce variants the CUDA-graph one is read,
as engines decode. Tables load when first asked for, from a compact copy in the cache folder after the first time.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from traces.registry import cache_folder
from workbench.costs import Axis, Cost, ProfileTable, Provenance, TableCosts, asked_point
from workbench.costtables import Floats, Ranks
from workbench.errors import MissingProfile, SpecError, WorkbenchError, nearest
from workbench.files import atomic_path
from workbench.hardware import Catalogue, load_catalogue
from workbench.spec import about, spec

__all__ = ["Aiconfigurator", "Options", "open"]

PACKAGE = "aiconfigurator_core"
DISTRIBUTION = "aiconfigurator-core"


@spec
class Options:
    """Options of ``[costs] source = "aiconfigurator"``."""

    backend: str = about("Engine whose kernels were measured: vllm, trtllm or sglang.", default="vllm")
    version: str | None = about("Engine version, at most this one; absent: the newest of each table.", default=None)
    hardware: tuple[str, ...] = about("Hardware files to read on top of the catalogue.", default=())


class _Family(NamedTuple):
    """How one op lies in the package."""

    folder: str
    file: str
    keys: Mapping[str, str]
    axes: tuple[tuple[Axis, str], ...]
    keep: Mapping[str, tuple[str, ...]] = {}
    factors: Mapping[str, float] = {}
    shifts: Mapping[str, float] = {}
    any_backend: str | None = None


_HEADS = {"kv_heads": "num_key_value_heads", "head_dim": "head_dim", "kv_dtype": "kv_cache_dtype"}
_PLAIN_ATTENTION = {"attn_dtype": ("bfloat16",), "window_size": ("0",), "beam_width": ("1",)}


def _collective(name: str, file: str, dtype: str, backend: str | None, keep: Mapping[str, tuple[str, ...]]) -> _Family:
    return _Family("comm", file, {"ranks": "num_gpus"}, ((Axis("bytes"), "message_size"),),
                   {"op_name": (name,), dtype: ("half", "bfloat16"), **keep}, {"message_size": 2.0}, {}, backend)


# The families of one op in order of preference: an engine's own all-reduce picks its method by message size,
# plain NCCL stands in where no such table exists.
FAMILIES: Mapping[str, tuple[_Family, ...]] = {
    "gemm": (_Family("gemm", "gemm", {"dtype": "gemm_dtype"},
                     ((Axis("n"), "n"), (Axis("k"), "k"), (Axis("m"), "m"))),),
    "quantize": (_Family("quantize", "scale_matrix", {"dtype": "quant_dtype"}, ((Axis("k"), "k"), (Axis("m"), "m"))),),
    "attention_prefill": (_Family("attention", "context_attention", _HEADS,
                                  ((Axis("heads"), "num_heads"), (Axis("batch"), "batch_size"),
                                   (Axis("tokens"), "isl")), {**_PLAIN_ATTENTION, "step": ("0",)}),),
    "attention_decode": (_Family("attention", "generation_attention", _HEADS,
                                 ((Axis("heads"), "num_heads"), (Axis("batch"), "batch_size"),
                                  (Axis("context"), "step")), _PLAIN_ATTENTION, {}, {"step": 1.0}),),
    "all_reduce": (
        _collective("all_reduce", "custom_allreduce", "allreduce_dtype", None,
                    {"backend": ("vllm_graph", "sglang_graph")}),
        _collective("all_reduce", "nccl", "nccl_dtype", "nccl", {}),
    ),
    "all_gather": (_collective("all_gather", "nccl", "nccl_dtype", "nccl", {}),),
    "reduce_scatter": (_collective("reduce_scatter", "nccl", "nccl_dtype", "nccl", {}),),
    "all_to_all": (_collective("alltoall", "nccl", "nccl_dtype", "nccl", {}),),
}
# Changes whenever the compact copies are laid out in another way.
_LAYOUT = "v2"
_FORMATS = {"bfloat16": "bf16", "float16": "fp16", "half": "bf16"}


def open(options: Options) -> Aiconfigurator:
    """The package's tables of one backend.

    Raises:
        MissingProfile: the package is not installed.
        SpecError: no system was measured with that backend.
    """
    return Aiconfigurator(_data_folder(), load_catalogue(*options.hardware), backend=options.backend,
                          newest=options.version)


class Aiconfigurator:
    """``CostModel`` over the package's folder; keys of every op include ``device``."""

    def __init__(self, folder: Path, catalogue: Catalogue, *, backend: str, newest: str | None = None) -> None:
        self._folder = folder
        self._backend = backend
        self._newest = newest
        names = sorted(p.name for p in folder.iterdir() if (p / "gemm" / backend).is_dir())
        if not names:
            known = sorted({p.name for p in folder.glob("*/gemm/*")})
            close = nearest(backend, known)
            raise SpecError(f"nothing was measured with the backend {backend!r}", where="costs.backend", allowed=known,
                            hint=f"did you mean {close!r}?" if close else None)
        self._systems = {catalogue.called("aiconfigurator", n) or n: n for n in names}
        self._tables = TableCosts(())
        self._rows: dict[tuple[str, str], _Rows] = {}

    @property
    def devices(self) -> list[str]:
        """Devices that have tables."""
        return sorted(self._systems)

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Time of ``op`` at ``point``; see ``workbench.costs.CostModel``."""
        self._ensure(op, point)
        return self._tables.cost(op, **point)

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """Times over arrays of some axes; see ``workbench.costs.SweepCosts``."""
        self._ensure(op, {**point, **over})
        return self._tables.sweep(op, over, **point)

    def knots(self, op: str, axis: str, **point: float | int | str) -> list[float]:
        """Measured values of an axis; see ``workbench.costs.TableCosts.knots``."""
        self._ensure(op, point)
        return self._tables.knots(op, axis, **point)

    def table(self, op: str, point: Mapping[str, Any]) -> ProfileTable:
        """The table that answers ``op`` at ``point``."""
        self._ensure(op, point)
        return self._tables.table(op, point)

    def provenance(self) -> Mapping[str, Provenance]:
        """The tables read so far."""
        return self._tables.provenance()

    def _ensure(self, op: str, point: Mapping[str, Any]) -> None:
        """Load the table of ``op`` with the keys of ``point`` unless it is there.

        Raises:
            MissingProfile: the package has no such op, device, or key.
        """
        if op not in FAMILIES:
            close = nearest(op, FAMILIES)
            raise MissingProfile(f"{DISTRIBUTION} has no op {op!r}", keys=[asked_point(op, point)],
                                 allowed=sorted(FAMILIES),
                                 hint=f"did you mean {close!r}?" if close else None)
        device = str(point.get("device"))
        rows = self._rows.get((op, device))
        if rows is None:
            rows = self._rows[op, device] = self._read(op, device, point)
        wanted = tuple(point.get(name) for name in rows.keys)
        if wanted in rows.built:
            return
        if wanted not in rows.groups:
            raise MissingProfile(f"{DISTRIBUTION} has no {op!r} with these keys for {device}",
                                 keys=[asked_point(op, point)], hint="measured: " + _listed(rows))
        self._tables.add(rows.table(op, device, wanted))

    def _read(self, op: str, device: str, point: Mapping[str, Any]) -> _Rows:
        if device not in self._systems:
            close = nearest(device, self._systems)
            raise MissingProfile(f"{DISTRIBUTION} has no tables of {device} with {self._backend}",
                                 keys=[asked_point(op, point)],
                                 allowed=sorted(self._systems), hint=f"did you mean {close!r}?" if close
                                 else 'costs.fallback = "analytic" computes what nobody measured from the data sheet',
                                 next_command="wb plan SPEC --set costs.fallback=analytic")
        for family in FAMILIES[op]:
            parent = self._folder / self._systems[device] / family.folder / (family.any_backend or self._backend)
            found = _newest(parent, f"{family.file}_perf.parquet", self._newest)
            if found is not None:
                rows = _Rows(family, found)
                if rows.groups:
                    return rows
        raise MissingProfile(f"{DISTRIBUTION} has no {op!r} of {device} with {self._backend}",
                             keys=[asked_point(op, point)])


class _Rows:
    """The kept rows of one file, grouped by key values."""

    def __init__(self, family: _Family, path: Path) -> None:
        self.keys = tuple(family.keys)
        self.built: set[tuple[Any, ...]] = set()
        self._axes = tuple(axis for axis, _ in family.axes)
        self._source = f"{DISTRIBUTION} {version(DISTRIBUTION)}: {'/'.join(path.parts[-5:-1])}"
        stored = _grouped(path, family)
        self._points, self._seconds = stored["points"], stored["seconds"]
        values = zip(*(stored[f"key {name}"].tolist() for name in self.keys), strict=True)
        ends = stored["first"].tolist()
        self.groups = {key: slice(*ends[i:i + 2]) for i, key in enumerate(values)}

    def table(self, op: str, device: str, wanted: tuple[Any, ...]) -> ProfileTable:
        members = self.groups[wanted]
        self.built.add(wanted)
        return ProfileTable(
            op=op, keys={"device": device, **dict(zip(self.keys, wanted, strict=True))}, axes=self._axes,
            points=self._points[members], seconds=self._seconds[members],
            provenance=Provenance(id=self._source, origin="NVIDIA, in the package " + DISTRIBUTION, device=device,
                                  licence="Apache-2.0"))


def _listed(rows: _Rows) -> str:
    names = ", ".join(rows.keys)
    shown = sorted(rows.groups, key=str)
    return f"({names}) in " + ", ".join(str(g) for g in shown[:8]) + (" …" if len(shown) > 8 else "")


@lru_cache(maxsize=1)
def _data_folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingProfile(f"the package {DISTRIBUTION} is not installed", keys=["every op"],
                             next_command='pip install "planner-workbench[gpu-tables]"')
    return Path(next(iter(found.submodule_search_locations))) / "systems" / "data"


def _newest(parent: Path, file: str, at_most: str | None) -> Path | None:
    """The file in the newest version folder below ``parent`` (no newer than ``at_most``), if there is one."""
    folders = sorted((p for p in parent.glob("*") if (p / file).is_file()), key=lambda p: _ordinal(p.name))
    if at_most is not None:
        folders = [p for p in folders if _ordinal(p.name) <= _ordinal(at_most)] or folders[:1]
    return folders[-1] / file if folders else None


def _ordinal(text: str) -> tuple[tuple[int, int], ...]:
    """Sort key of a version: numbers by size, and rc before post before nothing else of the same number."""
    words = {"rc": -2, "dev": -3, "post": 1}
    return tuple((int(number), 0) if number else (0, words.get(word, -1))
                 for number, word in re.findall(r"(\d+)|([a-z]+)", text.lower()))


def _grouped(path: Path, family: _Family) -> Mapping[str, NDArray[Any]]:
    """Kept rows of one file in groups of equal keys, through a compact copy in the cache folder.

    ``key <name>`` has one value a group, ``first`` the groups' bounds in ``points`` and ``seconds``.
    """
    stamp = f"{version(DISTRIBUTION)}-{path.stat().st_mtime_ns}-{family.keep.get('op_name', ('',))[0]}"
    copy = cache_folder() / "aiconfigurator" / f"{_LAYOUT}-{'-'.join(path.parts[-5:-1])}-{family.file}-{stamp}.npz"
    if copy.is_file():
        with np.load(copy, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    groups = _group(_read_columns(path, family), family)
    try:
        with atomic_path(copy) as part, part.open("wb") as stream:
            np.savez(stream, **groups)  # type: ignore[arg-type]
    except WorkbenchError:
        # A cache that cannot be written costs time at the next start, nothing else.
        pass
    return groups


def _group(columns: Mapping[str, NDArray[Any]], family: _Family) -> dict[str, NDArray[Any]]:
    keep = np.ones(len(columns["latency"]), dtype=bool)
    for name, allowed in family.keep.items():
        if name in columns:
            keep &= np.isin(columns[name].astype(str), allowed)
    code = np.zeros(int(keep.sum()), dtype=np.intp)
    parts = [np.unique(columns[column][keep], return_inverse=True) for column in family.keys.values()]
    for values, inverse in parts:
        code = code * len(values) + inverse
    points = np.column_stack([columns[column][keep] * family.factors.get(column, 1.0) + family.shifts.get(column, 0.0)
                              for _, column in family.axes])
    order = np.lexsort((*points.T[::-1], code))
    first = np.flatnonzero(np.diff(code[order], prepend=-1))
    groups = {f"key {name}": _our_names(values[inverse[order[first]]])
              for name, (values, inverse) in zip(family.keys, parts, strict=True)}
    return {**groups, "first": np.append(first, len(order)), "points": points[order],
            "seconds": columns["latency"][keep][order] / 1e3}


def _our_names(values: NDArray[Any]) -> NDArray[Any]:
    return np.array([_FORMATS.get(v, v) for v in values.tolist()])


def _read_columns(path: Path, family: _Family) -> dict[str, NDArray[Any]]:
    import pyarrow.parquet as pq

    needed = {"latency", *family.keys.values(), *(column for _, column in family.axes), *family.keep}
    file = pq.ParquetFile(path)
    table = file.read(columns=[name for name in file.schema_arrow.names if name in needed])
    return {name: _array(table.column(name)) for name in table.column_names}


def _array(column: Any) -> NDArray[Any]:
    """A column of numbers or texts; texts are few, so they are spelt out from their codes."""
    if str(column.type) not in ("string", "large_string"):
        return np.asarray(column.to_numpy())
    texts = column.combine_chunks().dictionary_encode()
    return np.array(texts.dictionary.to_pylist(), dtype=np.str_)[texts.indices.to_numpy()]

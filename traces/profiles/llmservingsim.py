"""Layer times of LLMServingSim's profiles (MIT): RTX 4090, RTX A6000 and H100 under vLLM or Hugging Face kernels.

Two layouts. The newer one (vLLM 0.19) has ``dense.csv`` (time of each layer by tokens in the batch),
``per_sequence.csv`` (output projection and sampler by sequences) and ``attention.csv``, a grid over the tokens of a
prompt chunk, its history, the number of decoding requests and their history. The older one has ``layers.csv`` (kernels
one by one, unfused: products that vLLM fuses are added) and ``attention.csv`` in vidur's columns.

``open`` gives the ops of ``workbench.llmcosts`` (gemm, attention_extend, attention_decode, norm, rope, act, embedding).
``ProfiledSteps`` prices whole iterations of the newer layout straight from its grid, mixed iterations included, with
batches padded to the sizes an engine captures CUDA graphs for. Several chunks in one iteration count as one with the
same tokens and the same attended pairs; decoding requests count by their mean history.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from traces.registry import available, fetch, registry
from workbench.costs import SOURCES, Axis, ProfileTable, Provenance, Source, TableCosts
from workbench.errors import MissingProfile, SpecError, TraceError, nearest
from workbench.models import LlmShape, load_model
from workbench.spec import about, spec
from workbench.stepcosts import TICKS_PER_S, Chunk, Ramp, to_ticks

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PROFILES", "Options", "Profile", "ProfiledSteps", "open", "open_steps"]

_FOLDER = "profiles/llmservingsim"


class Profile(NamedTuple):
    """One profiled model on one device; ``layout`` is "grid" (newer) or "kernels" (older)."""

    device: str
    model: str
    layout: str
    tensor_parallel: tuple[int, ...]


PROFILES: Mapping[str, Profile] = {
    "rtx4090-llama-3.1-8b": Profile("RTX4090", "llama-3.1-8b", "grid", (1,)),
    "a6000-llama-3.1-8b": Profile("A6000", "llama-3.1-8b", "kernels", (1, 2)),
    "h100-llama-3.1-70b": Profile("H100-SXM", "llama-3.1-70b", "kernels", (4,)),
}


@spec
class Options:
    """Options of ``[costs] source = "llmservingsim"``."""

    profiles: tuple[str, ...] = about("Profiles to open; absent: every one that lies on this machine.", default=())


def open(options: Options) -> TableCosts:
    """Kernel times of the chosen profiles as tables.

    Raises:
        SpecError: no profile has that name.
        MissingProfile: none was named and none lies on this machine.
    """
    names = options.profiles or tuple(n for n, p in PROFILES.items() if _present(n, p))
    if not names:
        raise MissingProfile("no LLMServingSim profile lies on this machine", keys=list(PROFILES),
                             next_command=f"wb traces fetch {_key('rtx4090-llama-3.1-8b', 1, 'attention')}")
    costs = TableCosts(())
    for name in names:
        profile = _profile(name)
        for degree in profile.tensor_parallel:
            for table in (_grid_tables if profile.layout == "grid" else _kernel_tables)(name, profile, degree):
                costs.add(table)
    return costs


def open_steps(name: str, *, tensor_parallel: int = 1, capture_sizes: Sequence[int] = ()) -> ProfiledSteps:
    """Iteration times of a whole model from a profile in the newer layout.

    Raises:
        SpecError: no profile of that name, or it is of the older layout (use ``llmcosts.KernelSteps`` over ``open``).
        MissingProfile: not measured at this tensor-parallel degree.
    """
    profile = _profile(name)
    if profile.layout != "grid":
        raise SpecError(f"{name} has kernels one by one, not whole layers", where="profile",
                        allowed=[n for n, p in PROFILES.items() if p.layout == "grid"],
                        hint="compose iterations with workbench.llmcosts.KernelSteps")
    if tensor_parallel not in profile.tensor_parallel:
        raise MissingProfile(f"{name} is not measured at this degree", keys=[f"tensor_parallel={tensor_parallel}"],
                             allowed=[str(t) for t in profile.tensor_parallel])
    return ProfiledSteps(_GridFiles(name, tensor_parallel), layers=load_model(profile.model).layers,
                         capture_sizes=capture_sizes)


def _profile(name: str) -> Profile:
    if name not in PROFILES:
        close = nearest(name, PROFILES)
        raise SpecError(f"no LLMServingSim profile is called {name!r}", where="costs.profiles", allowed=PROFILES,
                        hint=f"did you mean {close!r}?" if close else None)
    return PROFILES[name]


def _path_in_mirror(name: str, degree: int, part: str) -> str:
    packed = ".csv" if PROFILES[name].layout == "grid" else ".csv.gz"
    return f"{_FOLDER}/{name}/tp{degree}/{part}{packed}"


def _key(name: str, degree: int, part: str) -> str:
    return registry().name_of(_path_in_mirror(name, degree, part))


def _present(name: str, profile: Profile) -> bool:
    parts = ("attention", "dense", "per_sequence") if profile.layout == "grid" else ("attention", "layers")
    return all(available(_path_in_mirror(name, t, part)) is not None for t in profile.tensor_parallel for part in parts)


def _read(name: str, degree: int, part: str, columns: Sequence[str]) -> pd.DataFrame:
    """One file of a profile; a ``TraceError`` names the columns it lacks."""
    import pandas as pd

    path = fetch(_path_in_mirror(name, degree, part))
    frame = pd.read_csv(path)
    lacking = [c for c in columns if c not in frame.columns]
    if lacking:
        raise TraceError(f"columns are missing: {', '.join(lacking)}", where=str(path), allowed=columns)
    return frame


def _provenance(name: str, degree: int, part: str) -> Provenance:
    key = _key(name, degree, part)
    return Provenance(id=registry().origin(key), origin="LLMServingSim", device=PROFILES[name].device,
                      licence=registry().licence(key))


class _GridFiles:
    """The three files of the newer layout; times in seconds."""

    def __init__(self, name: str, degree: int) -> None:
        self.name, self.degree = name, degree

    def curve(self, part: str, axis: str) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Each layer of ``dense`` (by tokens) or ``per_sequence`` (by sequences) as (sizes, seconds)."""
        frame = _read(self.name, self.degree, part, ("layer", axis, "time_us"))
        return {str(layer): (rows[axis].to_numpy(float), rows["time_us"].to_numpy(float) / 1e6)
                for layer, rows in frame.sort_values(axis).groupby("layer")}

    @cached_property
    def attention(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Points (chunk tokens, their history, decoding requests, history of each) and seconds of one layer."""
        axes = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"]
        frame = _read(self.name, self.degree, "attention", [*axes, "time_us"])
        return frame[axes].to_numpy(float), frame["time_us"].to_numpy(float) / 1e6

    def table(self, op: str, keys: Mapping[str, str | int], axes: Sequence[str], points: NDArray[np.float64],
              seconds: NDArray[np.float64], part: str) -> ProfileTable:
        profile = PROFILES[self.name]
        return ProfileTable(op=op, keys={"device": profile.device, **keys}, axes=tuple(Axis(a) for a in axes),
                            points=points, seconds=seconds, provenance=_provenance(self.name, self.degree, part))


def _grid_tables(name: str, profile: Profile, degree: int) -> Iterator[ProfileTable]:
    files, shape = _GridFiles(name, degree), load_model(profile.model)
    dense, heads = files.curve("dense", "tokens"), files.curve("per_sequence", "sequences")
    names = {"qkv": "qkv_proj", "o": "o_proj", "gate_up": "gate_up_proj", "down": "down_proj"}
    for gemm in shape.layer_gemms(degree):
        tokens, seconds = dense[names[gemm.name]]
        yield files.table("gemm", {"dtype": "bf16", "n": gemm.n, "k": gemm.k}, ["m"], tokens[:, None], seconds, "dense")
    head = shape.lm_head(degree)
    rows, seconds = heads["lm_head"]
    yield files.table("gemm", {"dtype": "bf16", "n": head.n, "k": head.k}, ["m"], rows[:, None], seconds,
                      "per_sequence")
    for op, layer, width in _light_ops(shape, degree, norm="layernorm", rope="rotary_emb"):
        tokens, seconds = dense[layer]
        yield files.table(op, {"width": width}, ["tokens"], tokens[:, None], seconds, "dense")
    points, seconds = files.attention
    keys = _attention_keys(shape, degree)
    own = np.full((len(points), 1), shape.heads // degree)
    pure = points[:, 2] == 0
    yield files.table("attention_extend", keys, ["heads", "tokens", "history"],
                      np.hstack([own, points[:, :2]])[pure], seconds[pure], "attention")
    pure = points[:, 0] == 0
    yield files.table("attention_decode", keys, ["heads", "batch", "context"],
                      np.hstack([own, points[:, 2:]])[pure], seconds[pure], "attention")


def _attention_keys(shape: LlmShape, degree: int) -> dict[str, str | int]:
    return {"kv_heads": shape.kv_heads_per_device(degree), "head_dim": shape.head_dim, "kv_dtype": "bf16"}


def _light_ops(shape: LlmShape, degree: int, *, norm: str, rope: str) -> list[tuple[str, str, int]]:
    """(op, layer's name in the profile, width) of the kernels that are no products."""
    rotated = (shape.heads // degree + shape.kv_heads_per_device(degree)) * shape.head_dim
    return [("norm", norm, shape.hidden), ("rope", rope, rotated), ("act", "act_fn", shape.intermediate // degree),
            ("embedding", "embedding", shape.hidden)]


def _kernel_tables(name: str, profile: Profile, degree: int) -> Iterator[ProfileTable]:
    shape = load_model(profile.model)
    frame = _read(name, degree, "layers", ("layer_name", "input", "latency(ns)"))
    layers = frame.pivot_table(index="input", columns="layer_name", values="latency(ns)") / 1e9
    tokens = layers.index.to_numpy(float)[:, None]

    def table(op: str, keys: Mapping[str, str | int], axes: Sequence[str], points: NDArray[np.float64],
              seconds: NDArray[np.float64], part: str = "layers") -> ProfileTable:
        return ProfileTable(op=op, keys={"device": profile.device, **keys}, axes=tuple(Axis(a) for a in axes),
                            points=points, seconds=seconds, provenance=_provenance(name, degree, part))

    parts = {"qkv": ["q_proj", "k_proj", "v_proj"], "o": ["o_proj"], "gate_up": ["gate_proj", "up_proj"],
             "down": ["down_proj"]}
    for gemm in shape.layer_gemms(degree):
        yield table("gemm", {"dtype": "bf16", "n": gemm.n, "k": gemm.k}, ["m"], tokens,
                    layers[parts[gemm.name]].sum(axis=1).to_numpy())
    head = shape.lm_head(degree)
    yield table("gemm", {"dtype": "bf16", "n": head.n, "k": head.k}, ["m"], tokens, layers["lm_head"].to_numpy())
    for op, layer, width in _light_ops(shape, degree, norm="input_layernorm", rope="rope"):
        yield table(op, {"width": width}, ["tokens"], tokens, layers[layer].to_numpy())
    keys = _attention_keys(shape, degree)
    columns = ("is_prefill", "batch_size", "prefill_chunk_size", "kv_cache_size")
    times = {True: "time_stats.attn_prefill.median", False: "time_stats.attn_decode.median"}
    attention = _read(name, degree, "attention", [*columns, *times.values()])
    for prefill, op, size in ((True, "attention_extend", "prefill_chunk_size"), (False, "attention_decode",
                                                                                 "batch_size")):
        rows = attention[attention["is_prefill"] == prefill]
        points = rows[[size, "kv_cache_size"]].to_numpy(float)
        axes = ["heads", "tokens", "history"] if prefill else ["heads", "batch", "context"]
        yield table(op, keys, axes, np.column_stack([np.full(len(points), shape.heads // degree), points]),
                    rows[times[prefill]].to_numpy(float) / 1e3, "attention")


class ProfiledSteps:
    """``StepModel`` of one replica from a profile in the newer layout.

    An iteration of n decoding requests and chunks of t tokens in all costs: every dense layer at n + t tokens (padded
    to the next of ``capture_sizes``, as an engine that replays CUDA graphs does), attention from the grid, output
    projection and sampler at one row a request.

    Args:
        files: the profile.
        layers: decoder layers of the model (the profile has one).
        capture_sizes: token counts with a captured graph; larger batches are not padded.
    """

    def __init__(self, files: _GridFiles, *, layers: int, capture_sizes: Sequence[int] = ()) -> None:
        dense, heads = files.curve("dense", "tokens"), files.curve("per_sequence", "sequences")
        counts = {"layernorm": 2 * layers, "embedding": 1, "final_layernorm": 1}
        sizes = np.arange(_LARGEST_BATCH + 1)
        self._captured = sorted(capture_sizes)
        self._body = _ticks(sizes, [(curve, counts.get(layer, layers)) for layer, curve in dense.items()])
        self._head = _ticks(sizes, [(curve, 1) for curve in heads.values()])
        points, seconds = files.attention
        axes = tuple(np.unique(points[:, i]) for i in range(4))
        grid = files.table("attention", {}, ["chunk", "history", "decoding", "context"], points, seconds, "attention")
        values, ranks = grid.many(*np.meshgrid(*axes, indexing="ij"))
        self._shares = np.bincount(ranks.ravel(), minlength=len(SOURCES)) / ranks.size
        self._attention = _Grid4(axes, values * layers * TICKS_PER_S)
        self._ramps: dict[int, Ramp] = {}

    def decode(self, sequences: int) -> Ramp:
        """Decode-only iteration; see ``StepModel``. Linear between the measured histories."""
        if sequences not in self._ramps:
            histories = [0.0, *self._attention.axes[3][1:]]
            base = [self._fixed(sequences, sequences) + round(self._attention(0, 0, sequences, history))
                    for history in histories]
            start = [int(history) * sequences for history in histories]
            slope = [(b - a) // (k - j) for a, b, j, k in zip(base, base[1:], start, start[1:], strict=False)]
            self._ramps[sequences] = Ramp(tuple(start), tuple(base), (*slope, max(slope[-1], 0)))
        return self._ramps[sequences]

    def mixed(self, sequences: int, context_tokens: int, chunks: Sequence[Chunk]) -> int:
        """Iteration with prompt chunks; see ``StepModel``."""
        if not chunks:
            return self.decode(sequences)(context_tokens)
        history: float
        if len(chunks) == 1:
            tokens, history = chunks[0]
        else:
            tokens = sum([c.tokens for c in chunks])
            history = (sum([t * (2 * h + t) for t, h in chunks]) / tokens - tokens) / 2
        context = context_tokens / sequences if sequences else 0.0
        attention = self._attention(tokens, history, sequences, context)
        if history < 0:
            # Several short prompts attend fewer pairs than one of the same tokens: back along the line in pairs.
            per_token = (self._attention(tokens, tokens, sequences, context) - attention) / tokens
            attention = max(attention + per_token * history, self._attention(0, 0, sequences, context))
        return self._fixed(sequences + tokens, sequences + len(chunks)) + round(attention)

    def sources(self) -> Mapping[Source, float]:
        """Shares of the attention grid: its corners that were not run (large mixed batches) are extrapolated."""
        return {s: float(share) for s, share in zip(SOURCES, self._shares, strict=True) if share}

    def _fixed(self, tokens: int, sequences: int) -> int:
        """Ticks of everything but attention."""
        if self._captured and tokens <= self._captured[-1]:
            tokens = self._captured[bisect_left(self._captured, tokens)]
        return self._body[tokens] + self._head[sequences]


_LARGEST_BATCH = 16384


def _ticks(sizes: NDArray[np.int64], curves: Sequence[tuple[tuple[NDArray[np.float64], NDArray[np.float64]], int]]
           ) -> list[int]:
    """Sum of the curves times their counts at every size, beyond the last point along its last slope."""
    total = np.zeros(len(sizes))
    for (x, y), count in curves:
        inside = np.interp(sizes, x, y)
        slope = max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2]))
        total += count * (inside + slope * np.maximum(0, sizes - x[-1]))
    return [to_ticks(s) for s in total.tolist()]


class _Grid4:
    """Multilinear interpolation on a full grid of four axes; clamped below, along the last slope above."""

    def __init__(self, axes: Sequence[NDArray[np.float64]], values: NDArray[np.float64]) -> None:
        self.axes = [axis.tolist() for axis in axes]
        self._flat: list[float] = values.ravel().tolist()
        self._strides = [math.prod(values.shape[i + 1:]) for i in range(4)]
        self._found: list[dict[float, tuple[int, int, float]]] = [{}, {}]

    def _cell(self, which: int, at: float) -> tuple[int, int, float]:
        """Offset of the cell's lower end, distance to its upper end, and the position between them."""
        axis, stride = self.axes[which], self._strides[which]
        i = min(max(bisect_right(axis, at) - 1, 0), len(axis) - 2)
        return i * stride, stride, max(0.0, (at - axis[i]) / (axis[i + 1] - axis[i]))

    def __call__(self, a: float, b: float, c: float, d: float) -> float:
        # The first and third axis count tokens and requests: few values, asked for again and again.
        found_a, found_c = self._found
        cell_a, cell_c = found_a.get(a), found_c.get(c)
        if cell_a is None:
            cell_a = found_a[a] = self._cell(0, a)
        if cell_c is None:
            cell_c = found_c[c] = self._cell(2, c)
        offset_d, _, share = self._cell(3, d)
        low = cell_a[0] + cell_c[0] + offset_d
        if b <= self.axes[1][0]:
            return self._plane(low, cell_a, cell_c, share)
        offset_b, up_b, share_b = self._cell(1, b)
        near = self._plane(low + offset_b, cell_a, cell_c, share)
        return near + share_b * (self._plane(low + offset_b + up_b, cell_a, cell_c, share) - near)

    def _plane(self, low: int, cell_a: tuple[int, int, float], cell_c: tuple[int, int, float], share: float) -> float:
        """At one value of the second axis: the eight corners around a, c and d, whose neighbours lie side by side."""
        flat = self._flat
        _, up_a, share_a = cell_a
        _, up_c, share_c = cell_c
        x = flat[low]
        x += share * (flat[low + 1] - x)
        y = flat[low + up_c]
        y += share * (flat[low + up_c + 1] - y)
        x += share_c * (y - x)
        if not share_a:
            return x
        low += up_a
        z = flat[low]
        z += share * (flat[low + 1] - z)
        y = flat[low + up_c]
        y += share * (flat[low + up_c + 1] - y)
        z += share_c * (y - z)
        return x + share_a * (z - x)

"""Iteration times of LLM replicas from kernel costs: tensor and pipeline parallelism, mixed prefill and decode.

A stage is a group of ``tensor_parallel`` equal devices holding consecutive layers. One layer on m tokens costs its
four GEMMs, attention, two all-reduces of m h activations, and its light kernels (norms, rotary, activation); the first
stage adds the embedding, the last the final norm and the output projection. Attention of a prompt chunk of t tokens
after s cached ones is A(s + t) - A(s), never below A(t), unless the costs know ``attention_extend``; A is the measured
attention of whole prompts, with the number of chunks as its batch.

Pipelines (P stages): an iteration is one round in which the work is split evenly into P micro-batches (fewer when
there are fewer requests); it lasts as long as one micro-batch needs through all stages, or the slowest stage
needs for all micro-batches, whichever is longer. A stage's time includes sending its activations on.

Light kernels that no table knows are analytic (bytes over the catalogue's bandwidth); the rest must be in ``costs``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from workbench.costs import SOURCES, CostModel, Source, sweep
from workbench.costtables import Floats
from workbench.errors import MissingProfile, SpecError
from workbench.hardware import Catalogue
from workbench.models import Gemm, LlmShape
from workbench.roofline import Roofline
from workbench.spec import about, spec
from workbench.stepcosts import Chunk, Ramp, ramp_maximum, to_ticks

__all__ = ["Formats", "KernelSteps", "Stage", "check_stages"]

_ACTIVATION_BYTES = 2.0
_TOKEN_KNOTS = tuple(sorted({1, 2, 3, 4, 6, *(2**i * s // 4 for i in range(3, 16) for s in (4, 5, 6, 7))}))
_CONTEXT_KNOTS = tuple(2**i for i in range(18))
_REFERENCE_BATCHES = tuple(2**i for i in range(9))
_REFERENCE_CONTEXTS = tuple(2**i for i in range(7, 14))
_Over = Mapping[str, ArrayLike]
_Point = Mapping[str, float | int | str]


@spec
class Stage:
    """Consecutive layers on one group of equal devices in one machine."""

    device: str = about("Device in the hardware catalogue.")
    tensor_parallel: int = about("Devices that share each layer.", default=1)
    layers: int = about("Number of layers held.")
    link: str | None = about("Link to the next stage; absent: the network's.", default=None)


@spec
class Formats:
    """Number formats of a deployment; activations are 16 bit."""

    weights: str = about("Format of the layers' weights: bf16, fp8, fp8_block …", default="bf16")
    kv: str = about("Format of the KV cache: bf16 or fp8.", default="bf16")


class _Curve:
    """Piecewise-linear seconds over a size; beyond the last knot its last slope goes on (never downhill)."""

    def __init__(self, x: Floats, y: Floats) -> None:
        self.x, self.y = x.tolist(), y.tolist()

    def many(self, at: Floats) -> Floats:
        """At every point of an array."""
        return np.array([self(value) for value in at.tolist()])

    def __call__(self, at: float) -> float:
        x, y = self.x, self.y
        i = min(max(bisect_right(x, at) - 1, 0), len(x) - 2)
        if at <= x[0]:
            return y[0]
        slope = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
        if at > x[-1]:
            return y[-1] + max(slope, 0.0) * (at - x[-1])
        return y[i] + slope * (at - x[i])


class _Asker:
    """Asks a cost model at one device and counts how the answers were known."""

    def __init__(self, costs: CostModel, analytic: Roofline, device: str) -> None:
        self.costs, self.device = costs, device
        self._analytic = analytic
        self.counts = np.zeros(len(SOURCES))

    def uncounted(self, op: str, over: _Over, point: _Point) -> Floats:
        """Times over arrays, left out of the shares."""
        return sweep(self.costs, op, over, device=self.device, **point)[0]

    def __call__(self, op: str, over: _Over, point: _Point) -> Floats:
        """Times over arrays."""
        seconds, ranks = sweep(self.costs, op, over, device=self.device, **point)
        self.counts += np.bincount(ranks.ravel(), minlength=len(SOURCES))
        return seconds

    def light(self, op: str, tokens: Floats, width: int, bytes_per_token: float) -> Floats:
        """A memory-bound kernel: measured where some table knows it or any kernel of so many bytes, else analytic.

        Without bytes it is fused into another.
        """
        try:
            return self(op, {"tokens": tokens}, {"width": width})
        except MissingProfile:
            if not bytes_per_token:
                return np.zeros(len(tokens))
        try:
            return self("elementwise", {"bytes": tokens * bytes_per_token}, {})
        except MissingProfile:
            pass
        seconds, ranks = self._analytic.sweep("elementwise", {"bytes": tokens * bytes_per_token}, device=self.device)
        self.counts += np.bincount(ranks, minlength=len(SOURCES))
        return seconds

    def knows(self, op: str, over: _Over, point: _Point) -> bool:
        """Whether there is a profile."""
        try:
            self.uncounted(op, over, point)
        except MissingProfile:
            return False
        return True

    def knots(self, op: str, axis: str, point: _Point, default: Sequence[float]) -> Floats:
        """Where the tables have points, so that nothing measured is smoothed over."""
        ask: Callable[..., list[float]] | None = getattr(self.costs, "knots", None)
        if ask is not None:
            try:
                return np.array(ask(op, axis, device=self.device, **point))
            except MissingProfile:
                pass
        return np.array(default, dtype=float)


class _StageCost:
    """Seconds of one stage as functions of tokens, sequences and contexts."""

    def __init__(self, shape: LlmShape, stage: Stage, formats: Formats, ask: _Asker, *, ends: _Ends,
                 reach: tuple[int, int]) -> None:
        self._layers, self._ask, self._send = stage.layers, ask, ends.send
        self._bytes_per_token = shape.hidden * _ACTIVATION_BYTES
        tp = stage.tensor_parallel
        dtype = _sixteen(formats.weights)
        gemms = shape.layer_gemms(tp)
        tokens = np.unique(np.concatenate([_gemm_knots(ask, g, dtype) for g in gemms]))
        layer = _light_kernels(ask, shape, tp, tokens) + _quantising(ask, gemms, dtype, tokens)
        for g in gemms:
            layer = layer + ask("gemm", {"m": tokens}, {"n": g.n, "k": g.k, "dtype": dtype})
        reduce = np.zeros(len(tokens))
        if tp > 1:
            reduce = ask("all_reduce", {"bytes": tokens * self._bytes_per_token}, {"ranks": tp})
        total = stage.layers * (layer + 2 * reduce)
        if ends.first:
            total = total + ask.light("embedding", tokens, shape.hidden, 4.0 * shape.hidden) + reduce
        self._head: _Curve | None = None
        if ends.last:
            total = total + ask.light("norm", tokens, shape.hidden, 4.0 * shape.hidden)
            head = shape.lm_head(tp)
            rows = _gemm_knots(ask, head, "bf16")
            self._head = _Curve(rows, ask("gemm", {"m": rows}, {"n": head.n, "k": head.k, "dtype": "bf16"}))
        self._body = _Curve(tokens, total)
        self._point: _Point = {"heads": shape.heads // tp, "kv_heads": shape.kv_heads_per_device(tp),
                               "head_dim": shape.head_dim, "kv_dtype": _sixteen(formats.kv)}
        self.contexts = ask.knots("attention_decode", "context", self._point, _CONTEXT_KNOTS)
        self._extends = ask.knows("attention_extend", {"tokens": [128.0]}, {**self._point, "history": 0})
        batches, contexts = (np.array([x for x in grid if x <= most] or grid[:1]) for grid, most in zip(
            (_REFERENCE_BATCHES, _REFERENCE_CONTEXTS), reach, strict=True))
        ask("attention_decode", {"batch": batches[:, None], "context": contexts[None, :]}, self._point)
        self._decoding: dict[float, _Curve] = {}
        self._prompts: dict[int, _Curve] = {}

    def decode_attention(self, sequences: float) -> _Curve:
        """Attention of all layers of a decode batch, over the context of each sequence."""
        if sequences not in self._decoding:
            seconds = self._ask.uncounted("attention_decode", {"context": self.contexts},
                                          {**self._point, "batch": sequences})
            self._decoding[sequences] = _Curve(self.contexts, self._layers * seconds)
        return self._decoding[sequences]

    def _prompt_attention(self, batch: int) -> _Curve:
        """Attention of all layers over ``batch`` whole prompts, by their length."""
        if batch not in self._prompts:
            lengths = self._ask.knots("attention_prefill", "tokens", self._point, _TOKEN_KNOTS)
            seconds = self._ask.uncounted("attention_prefill", {"tokens": lengths}, {**self._point, "batch": batch})
            self._prompts[batch] = _Curve(lengths, self._layers * seconds)
        return self._prompts[batch]

    def _chunk_attention(self, chunks: Sequence[Chunk]) -> float:
        if not chunks:
            return 0.0
        if self._extends:
            over = {"tokens": [c.tokens for c in chunks], "history": [c.history for c in chunks]}
            return self._layers * float(self._ask.uncounted("attention_extend", over, self._point).sum())
        whole = self._prompt_attention(len(chunks))
        return sum(max(whole(c.history + c.tokens) - (whole(c.history) if c.history else 0.0), whole(c.tokens))
                   for c in chunks) / len(chunks)

    def fixed(self, tokens: float, sampled: float) -> float:
        """Everything but attention, for ``tokens`` tokens of which ``sampled`` need the output projection."""
        seconds = self._body(tokens)
        if self._head is not None:
            seconds += self._head(sampled)
        if self._send is not None:
            seconds += self._send(tokens * self._bytes_per_token)
        return seconds

    def seconds(self, sequences: float, context: float, chunks: Sequence[Chunk]) -> float:
        """One micro-batch: ``sequences`` decodes at ``context`` tokens each, and ``chunks``."""
        tokens = sequences + sum(c.tokens for c in chunks)
        seconds = self.fixed(tokens, sequences + len(chunks)) + self._chunk_attention(chunks)
        if sequences > 0:
            seconds += self.decode_attention(sequences)(context)
        return seconds


class _Ends(NamedTuple):
    """What a stage does besides its layers."""

    first: bool
    last: bool
    send: Callable[[float], float] | None


def _sixteen(number_format: str) -> str:
    """Tables measure bf16; fp16 moves the same bytes at the same rate."""
    return "bf16" if number_format == "fp16" else number_format


def _gemm_knots(ask: _Asker, gemm: Gemm, dtype: str) -> Floats:
    return ask.knots("gemm", "m", {"dtype": dtype, "n": gemm.n, "k": gemm.k}, _TOKEN_KNOTS)


def _quantising(ask: _Asker, gemms: Sequence[Gemm], dtype: str, tokens: Floats) -> Floats:
    """Casting the inputs of the qkv and gate_up products to fp8; the other two take theirs from fused kernels."""
    seconds = np.zeros(len(tokens))
    if dtype == "fp8" and ask.knows("quantize", {"m": [1.0]}, {"k": gemms[0].k, "dtype": dtype}):
        for gemm in gemms:
            if gemm.name in ("qkv", "gate_up"):
                seconds = seconds + ask("quantize", {"m": tokens}, {"k": gemm.k, "dtype": dtype})
    return seconds


def _light_kernels(ask: _Asker, shape: LlmShape, tp: int, tokens: Floats) -> Floats:
    """Two norms (fused with the residual adds unless both are measured), rotary embedding, activation."""
    h, d, f = shape.hidden, shape.head_dim, shape.intermediate // tp
    heads, kv = shape.heads // tp, shape.kv_heads_per_device(tp)
    seconds = 2 * ask.light("norm", tokens, h, 8.0 * h) + 2 * ask.light("add", tokens, h, 0.0)
    seconds = seconds + ask.light("rope", tokens, (heads + kv) * d, 4.0 * (heads + 2 * kv) * d)
    seconds = seconds + ask.light("act", tokens, f, 6.0 * f)
    if shape.qk_norm:
        seconds = seconds + ask.light("qk_norm", tokens, (heads + kv) * d, 4.0 * (heads + kv) * d)
    return seconds


class KernelSteps:
    """``StepModel`` of one replica, composed from kernel costs; see the module's head for the rules.

    Args:
        shape: the model.
        stages: pipeline stages in order; their layers sum to the model's.
        costs: kernel costs (ops gemm, attention_prefill, attention_decode, all_reduce; light ones if measured).
        catalogue: devices and links.
        formats: number formats of weights and KV cache.
        network: link between stages that do not name their own.
        iteration_overhead_s: host time that no kernel hides, added to every iteration.
        reach: most sequences and context tokens of a decode step; only ``sources`` asks, which looks no further.

    Raises:
        SpecError: layers do not add up, or a tensor-parallel degree does not fit the model or the machine.
        MissingProfile: a kernel of this deployment has no profile.
    """

    def __init__(self, shape: LlmShape, stages: Sequence[Stage], costs: CostModel, *, catalogue: Catalogue,
                 formats: Formats | None = None, network: str = "Ethernet", iteration_overhead_s: float = 0.0,
                 reach: tuple[int, int] = (_REFERENCE_BATCHES[-1], _REFERENCE_CONTEXTS[-1])) -> None:
        check_stages(shape, stages, catalogue)
        formats = formats or Formats(weights=shape.number_format, kv=shape.number_format)
        analytic = Roofline(catalogue)
        self._overhead_s = iteration_overhead_s
        self._stages: list[_StageCost] = []
        self._counts = np.zeros(len(SOURCES))
        for i, stage in enumerate(stages):
            last = i == len(stages) - 1
            ends = _Ends(first=i == 0, last=last, send=None if last else catalogue.link(stage.link or network).seconds)
            ask = _Asker(costs, analytic, stage.device)
            self._stages.append(_StageCost(shape, stage, formats, ask, ends=ends, reach=reach))
            self._counts += ask.counts
        self._contexts = np.unique(np.concatenate([s.contexts for s in self._stages]))
        self._ramps: dict[int, Ramp] = {}

    def decode(self, sequences: int) -> Ramp:
        """Decode-only iteration of ``sequences`` requests over their total context; see ``StepModel``."""
        if sequences not in self._ramps:
            self._ramps[sequences] = self._decode(sequences)
        return self._ramps[sequences]

    def _decode(self, sequences: int) -> Ramp:
        micro = min(len(self._stages), sequences)
        each = sequences / micro
        start = [0, *np.ceil(self._contexts * sequences).astype(int).tolist()]
        lines = [stage.fixed(each, each) + stage.decode_attention(each).many(np.array(start) / sequences)
                 for stage in self._stages]
        through = sum(lines, np.zeros(len(start)))
        bottlenecks = [] if micro == 1 else [micro * line for line in lines]
        return ramp_maximum([_ramp(start, line + self._overhead_s) for line in (through, *bottlenecks)])

    def mixed(self, sequences: int, context_tokens: int, chunks: Sequence[Chunk]) -> int:
        """Iteration of ``sequences`` decodes and ``chunks``, in ticks; see ``StepModel``."""
        if not chunks:
            return self.decode(sequences)(context_tokens)
        micro = min(len(self._stages), sequences + len(chunks))
        each, context = sequences / micro, context_tokens / sequences if sequences else 0.0
        table = [[stage.seconds(each, context, part) for stage in self._stages] for part in _dealt(chunks, micro)]
        longest = max(sum(row) for row in table)
        slowest = max(sum(column) for column in zip(*table, strict=True))
        return to_ticks(max(longest, slowest) + self._overhead_s)

    def sources(self) -> Mapping[Source, float]:
        """Share of the tabulated kernel times by source: all token counts, and decode attention on a reference grid."""
        total = self._counts.sum()
        return {s: float(n / total) for s, n in zip(SOURCES, self._counts, strict=True) if n}


def check_stages(shape: LlmShape, stages: Sequence[Stage], catalogue: Catalogue) -> None:
    """``SpecError`` unless the stages hold all layers once and each group fits its machine and the model."""
    held = [s.layers for s in stages]
    if sum(held) != shape.layers or min(held) < 1:
        raise SpecError(f"the stages hold {held} layers; {shape.name} has {shape.layers}, and no stage may be empty")
    for i, stage in enumerate(stages):
        limit = catalogue.device(stage.device).devices_per_machine
        if stage.tensor_parallel > limit:
            raise SpecError(f"tensor parallelism over {stage.tensor_parallel} devices leaves the machine",
                            where=f"stages[{i}]", allowed=[f"at most {limit} {stage.device}"])
        shape.check_tensor_parallel(stage.tensor_parallel)


def _dealt(chunks: Sequence[Chunk], hands: int) -> list[list[Chunk]]:
    """Chunks cut into micro-batches of equally many tokens, in order.

    A prompt cut in two is right in a pipeline: every stage sees its first part before the second.
    """
    total = sum(c.tokens for c in chunks)
    dealt: list[list[Chunk]] = [[] for _ in range(hands)]
    done = 0
    for chunk in chunks:
        tokens, history = chunk
        while tokens:
            hand = done * hands // total
            taken = min(tokens, -(-total * (hand + 1) // hands) - done)
            dealt[hand].append(Chunk(taken, history))
            tokens, history, done = tokens - taken, history + taken, done + taken
    return dealt


def _ramp(start: Sequence[int], seconds: Floats) -> Ramp:
    """The ramp through ``seconds`` at ``start``; its last slope is the one before, never downhill."""
    base = [to_ticks(s) for s in seconds.tolist()]
    slope = [round((b1 - b0) / (k1 - k0)) for b0, b1, k0, k1 in zip(base, base[1:], start, start[1:], strict=False)]
    return Ramp(tuple(start), tuple(base), (*slope, max(slope[-1], 0) if slope else 0))

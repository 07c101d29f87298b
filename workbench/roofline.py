"""Analytic costs from data sheets: the longer of computing and moving bytes, never less than the smallest kernel.

t = max(flops / peak, bytes / (memory_efficiency bandwidth)) + kernel_s, with peak, bandwidth, efficiency and kernel_s
of the hardware catalogue (roofline model, Williams et al. 2009). Every answer's source is ``analytic``; nothing
is fitted. Collectives use ring schedules over the device's own link (alpha-beta).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.costs import SOURCES, Cost, Provenance
from workbench.costtables import Floats, Ranks
from workbench.errors import MissingProfile, SpecError, nearest
from workbench.hardware import Catalogue, Device
from workbench.models import format_bytes

__all__ = ["Roofline"]

_ANALYTIC = SOURCES.index("analytic")
# Passes over the message and messages sent, for r ranks in a ring: (r - 1) / r of the bytes and r - 1 messages a pass.
_RING_PASSES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}


class Roofline:
    """``CostModel`` over the devices and links of a catalogue.

    Ops and their points (besides ``device``):
    ``gemm`` (dtype, m, n, k); ``attention_prefill`` (heads, kv_heads, head_dim, kv_dtype, batch, tokens);
    ``attention_extend`` (the same with tokens, history, one sequence); ``attention_decode`` (heads, kv_heads,
    head_dim, kv_dtype, batch, context); ``elementwise`` (bytes); ``all_reduce``, ``all_gather``, ``reduce_scatter``,
    ``all_to_all`` (ranks, bytes); and ``p2p`` (link in place of device, bytes).
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Analytic time of ``op``; ``MissingProfile`` when the data sheet lacks what it needs."""
        seconds, _ = self.sweep(op, {}, **point)
        return Cost(float(seconds), "analytic")

    def sweep(self, op: str, over: Mapping[str, Any], **point: float | int | str) -> tuple[Floats, Ranks]:
        """Times over broadcast arrays; see ``workbench.costs.SweepCosts``."""
        at: dict[str, Any] = {**point, **{name: np.asarray(values, dtype=float) for name, values in over.items()}}
        try:
            seconds = np.asarray(self._seconds(op, at), dtype=float)
        except KeyError as error:
            raise SpecError(f"the analytic cost of {op!r} needs {error.args[0]!r}", allowed=sorted(at)) from None
        return seconds, np.full(seconds.shape, _ANALYTIC, dtype=np.int8)

    def provenance(self) -> Mapping[str, Provenance]:
        """The data sheets, by device."""
        return {f"analytic({name})": Provenance(id="data sheet", origin=device.source, device=name)
                for name, device in self._catalogue.devices.items()}

    def _seconds(self, op: str, at: Mapping[str, Any]) -> Any:
        if op == "p2p":
            return self._catalogue.link(at["link"]).seconds(at["bytes"])
        if op in _RING_PASSES:
            link = self._catalogue.link(self._catalogue.device(at["device"]).link)
            ranks, passes = at["ranks"], _RING_PASSES[op]
            return passes * (ranks - 1) * (link.latency_s + at["bytes"] / ranks / link.bytes_per_s)
        work = {"gemm": _gemm, "attention_prefill": _prefill, "attention_extend": _extend, "attention_decode": _decode,
                "elementwise": lambda a: (0.0, a["bytes"], None)}
        if op not in work:
            known = [*work, *_RING_PASSES, "p2p"]
            close = nearest(op, known)
            raise MissingProfile(f"no analytic cost of op {op!r}", keys=[op], allowed=known,
                                 hint=f"did you mean {close!r}?" if close else None)
        flops, moved, dtype = work[op](at)
        device = self._catalogue.device(at["device"])
        memory_s = moved / (device.memory_bytes_per_s * device.memory_efficiency)
        compute_s = 0.0 if dtype is None else flops / _peak(device, at["device"], dtype)
        return np.maximum(compute_s, memory_s) + device.kernel_s


def _peak(device: Device, name: str, dtype: str) -> float:
    """Peak rate in ``dtype``; 16-bit formats stand in for each other, and fp8 block scaling runs at the fp8 rate."""
    for candidate in (dtype, dtype.split("_")[0], {"bf16": "fp16", "fp16": "bf16"}.get(dtype, dtype)):
        if candidate in device.peak_flops_per_s:
            return device.peak_flops_per_s[candidate]
    raise MissingProfile(f"the data sheet of {name} has no rate for {dtype}", keys=[f"{name}.peak_flops_per_s.{dtype}"],
                         allowed=sorted(device.peak_flops_per_s))


def _gemm(a: Mapping[str, Any]) -> tuple[Any, Any, str]:
    weight = format_bytes(a["dtype"].split("_")[0])
    m, n, k = a["m"], a["n"], a["k"]
    return 2.0 * m * n * k, weight * (n * k + m * k) + 2.0 * m * n, a["dtype"]


def _prefill(a: Mapping[str, Any]) -> tuple[Any, Any, str]:
    length = a["tokens"]
    pairs = a["batch"] * length * (length + 1) / 2
    return _attention(a, a["batch"] * length, a["batch"] * length, pairs)


def _extend(a: Mapping[str, Any]) -> tuple[Any, Any, str]:
    new, old = a["tokens"], a["history"]
    return _attention(a, new, new + old, new * old + new * (new + 1) / 2)


def _decode(a: Mapping[str, Any]) -> tuple[Any, Any, str]:
    return _attention(a, a["batch"], a["batch"] * a["context"], a["batch"] * a["context"])


def _attention(a: Mapping[str, Any], queries: Any, keys: Any, pairs: Any) -> tuple[Any, Any, str]:
    """Operations, bytes and number format: two products over all (query, key) pairs; q, o in 16 bit, k, v cached."""
    moved = 4.0 * queries * a["heads"] * a["head_dim"]
    moved = moved + 2.0 * keys * a["kv_heads"] * a["head_dim"] * format_bytes(a["kv_dtype"])
    return 4.0 * pairs * a["heads"] * a["head_dim"], moved, "bf16"

"""What a set of operators costs as a stage: compute by local batch, transfers, all-reduce, memory.

    TPS(S, b, d) = max( [f(b/d) + g(b/d)] / b, bytes in / b, bytes out / b ) + [all_reduce(W, d) + update(W)] / B
with the transfers added to the compute when they block (not overlapped). f and g come from tables, kernels or whole
layers at the *local* batch b/d; seconds a sample are multiplied only where the source knows nothing else. A gemm's
backward is two gemms (gradients of input and of weight). all_reduce is a ring: 2(d-1)(alpha + W/(d beta)); update is
known of measured layers only. Replicas take equal slices, so d divides b.
    memory(S, i, d) = W (2 + optimizer copies) + (i/d)(saved + received bytes) + workspace
While the neighbours of a stage are unknown, links are taken to be the slow ones unless one machine holds all devices;
``Prices.nearby`` takes them to be the fast ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from planners.pipeline import layers
from planners.pipeline.graph import OperatorGraph, bits
from planners.pipeline.problem import Cluster, Kernel, LinkRate, Operator, Problem
from workbench.costs import SOURCES, CostModel, CountedCosts, Source
from workbench.costtables import Floats
from workbench.errors import MissingProfile

__all__ = ["Option", "Prices", "ring_s", "transfer_s"]


def ring_s(weight_bytes: float, replicas: int, link: LinkRate) -> float:
    """All-reduce of ``weight_bytes`` over ``replicas`` in a ring."""
    if replicas == 1 or not weight_bytes:
        return 0.0
    return 2 * (replicas - 1) * (link.latency_s + weight_bytes / replicas / link.bytes_per_s)


def _rings(weight_bytes: Floats, replicas: int, link: LinkRate) -> Floats:
    """``ring_s`` of many."""
    each = 2 * (replicas - 1) * (link.latency_s + weight_bytes / replicas / link.bytes_per_s)
    return np.where(weight_bytes > 0, each, 0.0)


def transfer_s(size_bytes: float, link: LinkRate) -> float:
    """One message; an order without data takes no time."""
    return link.latency_s + size_bytes / link.bytes_per_s if size_bytes else 0.0


class Option(NamedTuple):
    """A stage on ``replicas`` devices at one micro-batch: seconds per sample, and the in-flight samples that fit."""

    replicas: int
    seconds_per_sample: float
    most_held: int


@dataclass
class Prices:
    """Operators priced at every local batch that can occur; stages are sums over their operators.

    Raises:
        MissingProfile: an operator has no time at some local batch and the cost model cannot price it.
    """

    problem: Problem
    graph: OperatorGraph
    costs: CostModel
    _stages: dict[int, _Sums] = field(default_factory=dict, repr=False)
    _like: dict[int, int] = field(default_factory=dict, repr=False)
    _halves: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict, repr=False)
    _options: dict[tuple[int, int], tuple[Option, ...]] = field(default_factory=dict, repr=False)
    _ways: dict[int, list[tuple[int, int, LinkRate]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._runs: _Runs | None = None
        # What is made of stages with these prices, see ``assembly``.
        self.drafts: dict[Any, Any] = {}
        self.cluster: Cluster = self.problem.cluster
        self.copies = self.problem.weight_copies
        self.room = self.cluster.memory_bytes - self.problem.workspace_bytes
        self.edge_link = self.cluster.inside if self.one_machine else self.cluster.between
        self.fast_link = self.cluster.inside if self.one_machine else LinkRate(
            latency_s=min(self.cluster.inside.latency_s, self.cluster.between.latency_s),
            bytes_per_s=max(self.cluster.inside.bytes_per_s, self.cluster.between.bytes_per_s))
        local = {b // d for b in self.problem.menu for d in self.replica_counts(b)}
        self.local = tuple(sorted(local))
        self.column = {n: i for i, n in enumerate(self.local)}
        self._counted = CountedCosts(self.costs)
        self._priced: dict[tuple[object, ...], tuple[Floats, Floats, np.ndarray]] = {}
        self._asked_before: dict[tuple[object, ...], tuple[Floats, np.ndarray]] = {}
        rows = [self._times(v) for v in range(len(self.graph))]
        updates = [self._update_s(o) for o in self.graph.operators]
        self.update, self.update_ranks = [u[0] for u in updates], [u[1] for u in updates]
        self.forward = np.array([r[0] for r in rows])
        self.backward = np.array([r[1] for r in rows])
        self.ranks = np.array([r[2] for r in rows])
        self._by_local = list(zip(self.forward.T.tolist(), self.backward.T.tolist(), strict=True))
        operators = self.graph.operators
        self.weights = np.array([o.weight_bytes for o in operators])
        self.saved = np.array([o.saved_bytes_per_sample for o in operators])
        # What a stage adds up: forward and backward at each local batch, weights, saved activations, update.
        self._columns = np.column_stack([
            self.forward + self.backward, self.weights, self.saved, self.update])

    @property
    def one_machine(self) -> bool:
        """Whether the fast links connect all devices."""
        return self.cluster.devices <= self.cluster.devices_per_machine

    @cached_property
    def nearby(self) -> Prices:
        """The same prices where stages talk over the fast links although they may stand in several machines."""
        made = copy(self)
        made.edge_link, made._options = self.cluster.inside, {}
        return made

    def replica_counts(self, micro: int) -> list[int]:
        """Numbers of replicas that split a micro-batch evenly."""
        return [d for d in range(1, min(micro, self.cluster.devices) + 1) if micro % d == 0]

    def ring_link(self, replicas: int) -> LinkRate:
        """Link of an all-reduce while the devices are not chosen."""
        return self.cluster.inside if replicas <= self.cluster.devices_per_machine else self.cluster.between

    def sums(self, mask: int) -> _Sums:
        """Totals of a set of operators (kept for next time)."""
        found = self._stages.get(mask)
        if found is None:
            rows = bits(mask)
            *both, weight_bytes, saved_bytes, update_s = self._columns[rows].sum(axis=0).tolist()
            found = self._stages[mask] = _Sums(
                both=tuple(both), weight_bytes=weight_bytes, saved_bytes=saved_bytes, update_s=update_s,
                received=self.graph.received(mask, rows), sent=self.graph.sent(mask, rows))
        return found

    def compute_s(self, mask: int, micro: int, replicas: int) -> tuple[float, float]:
        """Forward and backward of one micro-batch, without transfers."""
        key = mask, self.column[micro // replicas]
        found = self._halves.get(key)
        if found is None:
            if mask in self._like:
                found = self._halves[key] = self.compute_s(self._like[mask], micro, replicas)
                return found
            rows = bits(mask)
            forward, backward = self._by_local[key[1]]
            found = self._halves[key] = (sum([forward[v] for v in rows]), sum([backward[v] for v in rows]))
        return found

    def memory_bytes(self, mask: int, held: int, replicas: int) -> float:
        """Peak on one device with ``held`` samples in flight."""
        sums = self.sums(mask)
        return (sums.weight_bytes * self.copies + held / replicas * (sums.saved_bytes + sums.received)
                + self.problem.workspace_bytes)

    def options(self, mask: int, micro: int) -> tuple[Option, ...]:
        """Ways to run a set of operators at a micro-batch, fewest replicas first; those that never fit are left out."""
        key = (mask, micro)
        found = self._options.get(key)
        if found is None:
            found = self._options[key] = tuple(self._all_options(mask, micro))
        return found

    def alike(self, mask: int, other: int, micro: int) -> None:
        """Take over what is known of ``other``, operators of the same costs with the same edges in and out."""
        if mask != other and (mask, micro) not in self._options:
            root = other
            while root in self._like:
                root = self._like[root]
            if root != mask:
                self._like[mask] = root
            self._stages[mask] = self.sums(other)
            self._options[mask, micro] = self.options(other, micro)

    def seconds_of(self, mask: int, micro: int, replicas: int) -> float:
        """Seconds a sample of one of ``options``."""
        for option in self.options(mask, micro):
            if option.replicas == replicas:
                return option.seconds_per_sample
        raise KeyError(replicas)

    def _all_options(self, mask: int, micro: int) -> list[Option]:
        sums, batch, once = self.sums(mask), self.problem.batch_samples, self.edge_link.latency_s
        weight_bytes, update_s, both = sums.weight_bytes, sums.update_s, sums.both
        free = self.room - weight_bytes * self.copies
        each = sums.saved_bytes + sums.received
        found: list[Option] = []
        if free < 0:
            return found
        come, leave = sums.received * micro / self.edge_link.bytes_per_s, sums.sent * micro / self.edge_link.bytes_per_s
        overlapped = self.problem.transfers == "overlapped"
        wire = max(come, leave) if overlapped else come + leave
        messages = bool(come or leave) if overlapped else bool(come) + bool(leave)
        most = batch
        for d, at, ring in self._ways_of(micro):
            if each:
                most = min(batch, int(free * d / each))
                if most < micro:
                    continue
            busy, moving = both[at], messages * once + wire / d
            if overlapped:
                busy = moving if moving > busy else busy
            else:
                busy += moving
            finish = update_s if d == 1 else ring_s(weight_bytes, d, ring) + update_s
            found.append(Option(d, busy / micro + finish / batch, most))
        return found

    def runs(self, micro: int) -> tuple[Floats, np.ndarray, np.ndarray]:
        """Every run of operators by number as a stage, with every number of replicas: what ``options`` says, as arrays.

        Returns:
            Seconds a sample (infinite where it does not fit or ends before it begins) and most samples held, both by
            first operator, last operator and way to replicate; and the replicas of each way.
        """
        if self._runs is None:
            self._runs = _Runs.of(self)
        r, batch = self._runs, self.problem.batch_samples
        ways = self._ways_of(micro)
        d = np.array([way[0] for way in ways])
        free = self.room - r.weight_bytes * self.copies
        with np.errstate(divide="ignore", invalid="ignore"):
            room = free[..., None] * d / r.each[..., None]
        most = np.where(r.each[..., None] > 0, np.minimum(np.nan_to_num(room), batch), batch).astype(int)
        seconds = r.both[..., [way[1] for way in ways]]
        come, leave = (size[..., None] * micro / self.edge_link.bytes_per_s for size in (r.received, r.sent))
        once = self.edge_link.latency_s
        if self.problem.transfers == "overlapped":
            seconds = np.maximum(seconds, once * ((come > 0) | (leave > 0)) + np.maximum(come, leave) / d)
        else:
            seconds = seconds + (once * ((come > 0) + (leave > 0).astype(int)) + (come + leave) / d)
        ring = np.stack([_rings(r.weight_bytes, k, link) for k, _, link in ways], axis=-1)
        seconds = seconds / micro + (ring + r.update_s[..., None]) / batch
        backwards = np.tri(len(free), k=-1, dtype=bool)
        seconds[(most < micro) | ((free < 0) | backwards)[..., None]] = np.inf
        return seconds, most, d

    def _ways_of(self, micro: int) -> list[tuple[int, int, LinkRate]]:
        """Replicas that split a micro-batch, the column of their local batch, the link of their all-reduce."""
        found = self._ways.get(micro)
        if found is None:
            found = self._ways[micro] = [(d, self.column[micro // d], self.ring_link(d))
                                         for d in self.replica_counts(micro)]
        return found

    def shares(self, chosen: Iterable[tuple[int, int, int]]) -> dict[Source, float]:
        """Share of the time of ``chosen`` (mask, micro-batch, replicas), updates among it, by how it is known."""
        seconds = dict.fromkeys(SOURCES, 0.0)
        for mask, micro, replicas in chosen:
            at = self.column[micro // replicas]
            for v in bits(mask):
                seconds[SOURCES[self.ranks[v, at]]] += float(self.forward[v, at] + self.backward[v, at]) / micro
                seconds[SOURCES[self.update_ranks[v]]] += self.update[v] / self.problem.batch_samples
        total = sum(seconds.values())
        return {s: t / total for s, t in seconds.items() if t} if total else {"analytic": 1.0}

    def _times(self, v: int) -> tuple[Floats, Floats, np.ndarray]:
        o = self.graph.operators[v]
        if layers.measured_by_layer(o):
            return self._layer(v, np.array(self.local, dtype=float))
        # Operators made alike share their kernels, and to compare those takes longest.
        key = (tuple(sorted(o.forward_s.items())), tuple(sorted(o.backward_s.items())), o.forward_s_per_sample,
               o.backward_s_per_sample, id(o.kernels), o.source)
        if key not in self._priced:
            self._priced[key] = self._price(o)
        return self._priced[key]

    def _price(self, o: Operator) -> tuple[Floats, Floats, np.ndarray]:
        local = np.array(self.local, dtype=float)
        if o.forward_s_per_sample is not None and o.backward_s_per_sample is not None:
            ranks = np.full(len(local), SOURCES.index(o.source), dtype=np.int8)
            return o.forward_s_per_sample * local, o.backward_s_per_sample * local, ranks
        if o.forward_s:
            forward, ranks = _table(o.name, "forward_s", o.forward_s, o.source, local)
            backward, _ = _table(o.name, "backward_s", o.backward_s, o.source, local)
            return forward, backward, ranks
        if not o.kernels:
            raise MissingProfile(f"operator {o.name!r} has neither times nor kernels", keys=[o.name],
                                 hint="give forward_s and backward_s by local batch")
        return self._kernels(o, local)

    def _kernels(self, o: Operator, local: Floats) -> tuple[Floats, Floats, np.ndarray]:
        forward, backward = np.zeros(len(local)), np.zeros(len(local))
        ranks = np.zeros(len(local), dtype=np.int8)
        if self.cluster.device is None:
            raise MissingProfile(f"operator {o.name!r} is priced by kernels, and cluster.device names no device",
                                 keys=[f"{o.name}: {k.op}" for k in o.kernels], next_command="wb schema pipeline")
        for k in o.kernels:
            calls = _calls(k, local)
            for seconds, mine in ((forward, calls[:1]), (backward, calls[1:])):
                for op, sizes in mine:
                    found, rank = self._ask(op, sizes)
                    seconds += k.count * found
                    ranks = np.maximum(ranks, rank)
        return forward, backward, ranks

    def _layer(self, v: int, local: Floats) -> tuple[Floats, Floats, np.ndarray]:
        """Forward and backward of a whole layer, from its own tables."""
        o, ranks = self.graph.operators[v], np.zeros(len(local), dtype=np.int8)
        found = layers.calls(self.graph, v, self.problem.run.dtype, self.cluster.device)
        if found is None:
            raise MissingProfile(f"operator {o.name!r} was imported without times or kernels", keys=[o.name],
                                 hint='measure its layers: measure = "cpu" beside module in [model]')
        both = []
        for mine in found:
            seconds = np.zeros(len(local))
            for call in mine:
                got, rank = self._asked(call, call.each * local)
                seconds += got
                ranks = np.maximum(ranks, rank)
            both.append(seconds)
        return both[0], both[1], ranks

    def _update_s(self, o: Operator) -> tuple[float, int]:
        """Seconds of the weight update, and the rank of its source."""
        if not layers.measured_by_layer(o) or not o.weight_bytes:
            return 0.0, 0
        call = layers.update_call(self.problem.optimizer, self.problem.run.dtype, o)
        seconds, ranks = self._asked(call, np.array([call.each]))
        return float(seconds[0]), int(ranks[0])

    def _asked(self, call: layers.Call, sizes: Floats) -> tuple[Floats, np.ndarray]:
        """Times of a layer's operation and ranks of their sources, kept for operators alike."""
        key = call.op, tuple(call.keys.items()), tuple(call.fixed.items()), tuple(sizes)
        if key not in self._asked_before:
            if self.cluster.device is None:
                raise MissingProfile("layers are priced by measurement, and cluster.device names no device",
                                     keys=[call.op], next_command="wb profile pipeline",
                                     hint='device = "cpu" in [cluster]')
            over = {**{n: np.full_like(sizes, x) for n, x in call.fixed.items()}, call.grows: sizes}
            self._asked_before[key] = self._counted.sweep(call.op, over, device=self.cluster.device, **call.keys)
        return self._asked_before[key]

    def _ask(self, op: str, sizes: dict[str, Floats]) -> tuple[Floats, np.ndarray]:
        device = str(self.cluster.device)
        if op == "elementwise":
            return self._counted.sweep(op, sizes, device=device)
        return self._counted.sweep(op, sizes, device=device, dtype=self.cluster.dtype)


def _calls(k: Kernel, local: Floats) -> list[tuple[str, dict[str, Floats]]]:
    """A kernel's forward call, then its backward calls, at each local batch."""
    if k.op == "elementwise":
        return [("elementwise", {"bytes": k.bytes * local})] * 3
    rows, columns, inner = k.rows * local, np.full_like(local, k.columns), np.full_like(local, k.inner)
    return [("gemm", {"m": rows, "n": columns, "k": inner}),
            ("gemm", {"m": rows, "n": inner, "k": columns}),
            ("gemm", {"m": inner, "n": columns, "k": rows})]


def _table(name: str, column: str, rows: Mapping[int, float], source: Source,
           local: Floats) -> tuple[Floats, np.ndarray]:
    """Given seconds by local batch, read at ``local``; between rows they are interpolated, beyond them refused."""
    outside = [int(n) for n in local if not min(rows) <= n <= max(rows)]
    if outside:
        raise MissingProfile(f"operator {name!r}: {column} has no row for some local batches",
                             keys=[f"{column}[{n}]" for n in outside],
                             hint=f"given are {', '.join(map(str, sorted(rows)))}; or restrict micro_batches")
    batches = np.array(sorted(rows), dtype=float)
    seconds = np.interp(np.log(local), np.log(batches), [rows[int(n)] for n in batches])
    given = np.isin(local, batches)
    return seconds, np.where(given, SOURCES.index(source), max(SOURCES.index(source), SOURCES.index("interpolated")))


class _Sums(NamedTuple):
    both: tuple[float, ...]
    weight_bytes: float
    saved_bytes: float
    update_s: float
    received: float
    sent: float


@dataclass(frozen=True, slots=True)
class _Runs:
    """Totals of all runs of operators by number: arrays by first and last operator, meaningless below the diagonal."""

    both: Floats
    weight_bytes: Floats
    each: Floats
    update_s: Floats
    received: Floats
    sent: Floats

    @staticmethod
    def of(prices: Prices) -> _Runs:
        graph, n = prices.graph, len(prices.graph)
        received, left = np.zeros((n, n)), np.zeros((n, n))
        for first in range(n):
            # A tensor that several operators of the run read comes once.
            sizes: dict[int, float] = {}
            for last in range(first, n):
                for u, size in graph.reads[last]:
                    if u < first:
                        sizes[u] = max(size, sizes.get(u, 0.0))
                received[first, last] = sum(sizes.values())
            # left[u, v]: what operators after v read of u.
            for v, size in graph.read_by[first]:
                left[first, first:v] = np.maximum(left[first, first:v], size)
        return _Runs(both=_totals(prices.forward + prices.backward), weight_bytes=_totals(prices.weights),
                     each=_totals(prices.saved) + received, update_s=_totals(np.array(prices.update)),
                     received=received, sent=np.cumsum(np.triu(left)[::-1], axis=0)[::-1])


def _totals(rows: Floats) -> Floats:
    """Sums of rows first … last, by first and last."""
    out = np.zeros((len(rows), *rows.shape))
    for first in range(len(rows)):
        out[first, first:] = np.cumsum(rows[first:], axis=0)
    return out

"""Predicted time of tile programs: the cost classes of their kernels, and synthetic kernels that measure each class.

``classes_of`` names what every kernel does (memory accesses and operations) with the share of its amplitudes each
touches; ``predict`` prices it with a measured table (``profilers.gates``), which a ``Calibration`` makes. Memory is
priced by how contiguous the tile's rows are: neighbouring rows are fetched ahead, rows a page apart are not. A kernel
overlaps its memory accesses with its operations, so what memory costs is measured under operations, never alone.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import CACHED_BYTES, Engine, engine, threads_available
from executors.circuit.emit import KINDS, Layout, Program, emit
from executors.circuit.local import TileShape
from executors.circuit.lower import Dense, Flip, Matrix, Phase, Primitive, Turn
from executors.circuit.state import State, allocate
from executors.circuit.tiling import Step, TileKernel
from profilers.gates import GateCosts, fit

__all__ = ["CLASSES", "MEMORY", "Calibration", "Sampler", "classes_of", "kernel_amplitudes", "predict"]

CLASSES = (
    "rotate_rows1", "rotate_rows2", "rotate_rows3", "rotate_lanes1", "rotate_lanes2", "rotate_lanes4",
    "matrix_row_real", "matrix_row", "matrix_lane", "matrix_row_real_held", "matrix_row_held", "matrix_lane_held",
    "dense_rows", "dense_mixed", "dense_lanes", "dense_any3", "phase_scalar", "phase_table", "phase_product",
    "permute_rows", "permute1", "permute2", "permute4", "permute8", "permute16",
)
"""Operation classes with a cost of their own; ``held``: behind controls inside the tile, an amplitude that they let
through; wider ``dense_any`` doubles with every qubit."""
CONTIGUOUS = (0, 1, 3, 6, 9)
"""Numbers of row bits that follow the row's own without a gap, at which reading is measured."""
MEMORY = (*(f"read{n}" for n in CONTIGUOUS), "unread", "cached_read", "cached_unread")
"""An amplitude read and written, or only written, of a state beyond the cache or (``cached``) in it."""


def classes_of(program: Program, *, lanes: int) -> list[list[tuple[str, float]]]:
    """(class, share of the kernel's amplitudes) of memory accesses and every operation, by kernel."""
    far = 2 * program.dtype.itemsize << program.address_bits > CACHED_BYTES
    result = []
    for kernel in program.kernels:
        first, count, bits = int(kernel["first"]), int(kernel["count"]), int(kernel["bits"])
        parts = _memory(kernel, far=far)
        for op in program.ops[first : first + count]:
            parts += _parts(program, op, bits, lanes)
        result.append(parts)
    return result


def _memory(kernel: np.void, *, far: bool) -> list[tuple[str, float]]:
    """Reading and writing; reading is interpolated between the measured degrees of contiguity."""
    inside, empty, run = int(kernel["inside"]), int(kernel["empty"]), int(kernel["run"])
    read = 0.5 ** (inside & empty & ~((1 << run) - 1)).bit_count()
    if not far:
        return [("cached_read", read), ("cached_unread", 1 - read)]
    rows = inside >> run
    contiguous = min((~rows & rows + 1).bit_length() - 1, CONTIGUOUS[-1])
    above = next(i for i, n in enumerate(CONTIGUOUS) if n >= contiguous)
    high, low = CONTIGUOUS[above], CONTIGUOUS[max(above - 1, 0)]
    part = (contiguous - low) / (high - low) if high > low else 1.0
    return [(f"read{high}", read * part), (f"read{low}", read * (1 - part)), ("unread", 1 - read)]


def _parts(program: Program, op: np.void, bits: int, lanes: int) -> list[tuple[str, float]]:
    kind = KINDS[int(op["kind"])]
    share = 0.5 ** int(op["outside_mask"]).bit_count()
    if kind == "rotate_rows":
        return [(f"rotate_rows{int(op['bits'])}", share)]
    if kind == "rotate_lanes":
        return [(f"rotate_lanes{int(op['bits']) if int(op['bits']) < 3 else 4}", share)]
    if kind in ("matrix_row", "matrix_lane"):
        controls = (int(op["control_mask"]) >> lanes).bit_count()
        name = "matrix_row_real" if kind == "matrix_row" and op["flag"] else kind
        return [(f"{name}_held" if controls else name, share * 0.5**controls)]
    if kind == "dense_any":
        extra = int(op["bits"]) - 3
        return [("dense_any3", share * 2.0**extra * 0.5 ** int(op["control_mask"]).bit_count())]
    if kind == "phase":
        return [(name, share * part) for name, part in _phase_parts(program, op, bits)]
    if kind == "permute":
        return [(_permute_class(program, op, bits, lanes), share)]
    return [(kind, share)]


def _phase_parts(program: Program, op: np.void, bits: int) -> list[tuple[str, float]]:
    """What ``phase`` in ``native/tile_ops.h`` does by block: scale, apply a table, or form a product of tables."""
    low, crossing = int(op["bit"][0]), int(op["control_mask"])
    count, start = int(op["count"]), int(op["ints"])
    masks, coordinates = (program.ints[start + i : start + 2 * count : 2] for i in (0, 1))
    block = np.arange(1 << (bits - low))
    table = 1.0 if op["flag"] else _some_set(masks[(coordinates >= 0) & (coordinates < low)])
    at = int(op["reals"]) + ((2 << low) if op["flag"] else 0) + crossing.bit_count() * (2 << low)
    scalars = program.reals[at : at + 2 * len(block)]
    moved = np.maximum((scalars[::2] != 1) | (scalars[1::2] != 0), _some_set(masks[coordinates < 0]))
    for k in range(low, bits):
        moved[block >> (k - low) & 1 == 1] = np.maximum(moved[block >> (k - low) & 1 == 1],
                                                        _some_set(masks[coordinates == k]))
    tabled = np.where(block & crossing != 0, 1.0, table)
    changes = block & -block  # the highest bit of the walk that turns on here
    formed = (changes & crossing != 0) * np.where(block & crossing & ~(2 * changes - 1) != 0, 1.0, table)
    return [("phase_scalar", float(np.mean(moved * (1 - tabled)))), ("phase_table", float(np.mean(tabled))),
            ("phase_product", float(np.mean(formed)))]


def _some_set(masks: npt.NDArray[np.int64]) -> float:
    """Share of the tiles that have a bit of these outside masks set."""
    return 1 - 0.5 ** int(np.bitwise_or.reduce(masks, initial=0)).bit_count()


def _permute_class(program: Program, op: np.void, bits: int, lanes: int) -> str:
    columns = program.ints[int(op["ints"]) : int(op["ints"]) + bits]
    parts = {0}
    for k in range(lanes):
        parts |= {p ^ (int(columns[k]) >> lanes) for p in parts}
    if len(parts) > 1:
        return f"permute{len(parts)}"
    straight = all(int(columns[k]) == 1 << k for k in range(lanes))
    crossing = any(int(c) & ((1 << lanes) - 1) for c in columns[lanes:])
    return "permute_rows" if straight and not crossing else "permute1"


def far_qubits(dtype: npt.DTypeLike) -> int:
    """Qubits of the smallest state that no cache holds."""
    return (CACHED_BYTES // (2 * np.dtype(dtype).itemsize)).bit_length()


def kernel_amplitudes(program: Program, *, lanes: int, threads: int) -> list[dict[str, float]]:
    """Amplitudes each class acts on, by kernel; fewer tiles than threads leave threads idle, which counts as work."""
    result = []
    for kernel, parts in zip(program.kernels, classes_of(program, lanes=lanes), strict=True):
        across = ((1 << program.address_bits) - 1) & ~int(kernel["inside"]) & ~int(kernel["empty"])
        tiles = 1 << across.bit_count()
        amplitudes = float(max(tiles, threads) << int(kernel["bits"]))
        total: dict[str, float] = {}
        for name, share in parts:
            if share:
                total[name] = total.get(name, 0.0) + share * amplitudes
        result.append(total)
    return result


def predict(program: Program, costs: GateCosts, *, lanes: int) -> list[float]:
    """Predicted seconds of every kernel of a program that is run by itself."""
    kernels = kernel_amplitudes(program, lanes=lanes, threads=costs.threads)
    return [sum(costs.seconds(name) * count for name, count in kernel.items()) + (0.0 if i else costs.start_s)
            for i, kernel in enumerate(kernels)]


class Sampler:
    """Programs of one tile kernel with a repeated operation, on a state of 2^qubits amplitudes."""

    def __init__(self, *, dtype: npt.DTypeLike, qubits: int, on: Engine, threads: int,
                 shape: TileShape | None = None, state: State | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.qubits, self.on, self.threads = qubits, on, threads
        self.shape = shape or TileShape.default(self.dtype)
        self.amplitudes = 1 << qubits
        self.state = allocate(self.amplitudes, np.result_type(self.dtype, np.complex64)) if state is None else state
        self.state[:] = 2.0 ** (-qubits / 2)
        self.wires = self.spread(0)

    def spread(self, contiguous: int) -> list[int]:
        """A tile's wires: the low ones of a row, ``contiguous`` next ones, and the highest: rows far apart."""
        held = self.shape.run + contiguous
        return [*range(held), *range(self.qubits - self.shape.size + held, self.qubits)]

    def seconds(self, name: str | None, count: int) -> float:
        """One timed run of a kernel with ``count`` operations of a class."""
        program = self.program([] if name is None else [self.step(name)] * count)
        began = time.perf_counter()
        self.on.run(program, self.state, shard=0, threads=self.threads)
        return time.perf_counter() - began

    def program(self, steps: list[Step]) -> Program:
        """A program of one kernel."""
        layout = Layout({w: w for w in range(self.qubits)}, set(range(self.qubits)))
        kernel = TileKernel(frozenset(self.wires), tuple(range(self.shape.run)), tuple(steps))
        return emit([kernel], layout, address_bits=self.qubits, lanes=self.on.lanes(self.dtype), run=self.shape.run,
                    dtype=self.dtype)

    def step(self, name: str) -> Step:
        """Operations whose effect on the stored values stays bounded however often they repeat."""
        lanes = self.on.lanes(self.dtype)
        lane, row = self.wires[:lanes], self.wires[lanes:]
        s = np.sqrt(0.5)
        h = np.array([[s, s], [s, -s]], dtype=np.complex128)
        u = np.array([[s, 1j * s], [1j * s, s]], dtype=np.complex128)
        pair = np.asarray(np.kron(u, h), dtype=np.complex128)
        triple = np.asarray(np.kron(u, np.kron(h, u)), dtype=np.complex128)
        spread = [row[len(row) // 4], row[len(row) // 2], row[-1]]
        matrices: dict[str, list[Primitive]] = {
            **{f"rotate_rows{k}": [Turn(w, 1e-3) for w in spread[:k]] for k in (1, 2, 3)},
            **{f"rotate_lanes{k}": [Turn(w, 1e-3) for w in lane[:k]] for k in (1, 2, 4)},
            "matrix_row_real": [Matrix(spread[1], h, ())], "matrix_row": [Matrix(spread[1], u, ())],
            "matrix_lane": [Matrix(lane[0], u, ())],
            "matrix_row_real_held": [Matrix(spread[1], h, ((spread[0], 1),))],
            "matrix_row_held": [Matrix(spread[1], u, ((spread[0], 1),))],
            "matrix_lane_held": [Matrix(lane[0], u, ((spread[0], 1),))],
            "dense_rows": [Dense((spread[0], spread[2]), pair, ())],
            "dense_mixed": [Dense((lane[1 % len(lane)], spread[1]), pair, ())],
            "dense_lanes": [Dense((lane[0], lane[-1]), pair, ())],
            "dense_any3": [Dense((lane[0], spread[0], spread[2]), triple, ())],
        }
        if name in matrices:
            return Step("matrix", tuple(matrices[name]))
        low, high = self.wires[:8], self.wires[8:]
        phases: dict[str, dict[tuple[int, ...], float]] = {
            "phase_scalar": {(w,): 0.3 for w in high},
            "phase_table": {(w,): 0.3 for w in self.wires},
            "phase_product": {**{(w,): 0.3 for w in self.wires}, **{(low[i % 8], w): 0.2 for i, w in enumerate(high)}},
        }
        if name in phases:
            terms = {tuple(sorted(t)): a for t, a in phases[name].items()}
            return Step("phase", (Phase(terms, tuple(self.wires)),))
        flips: dict[str, list[Primitive]] = {
            "permute_rows": [Flip(row[0], row[-1])], "permute1": [Flip(row[-1], lane[0])],
            # every lane goes to a row of its own and to a shared one, as after ladders of CX: no two at one cache set
            **{f"permute{1 << k}": [Flip(lane[i], w) for i in range(k) for w in (row[i], row[-1])]
               for k in range(1, lanes + 1)},
        }
        return Step("flip", tuple(flips[name]))


class _Sample(NamedTuple):
    """A synthetic kernel: where it runs, what it is, and whether all rows but the first count as zero before it."""

    sampler: Sampler
    program: Program
    unread: bool


class Calibration:
    """Synthetic kernels whose times give the table of this machine; least times over all rounds count.

    Rounds may be interleaved with whatever is to be predicted. What disturbs a machine only ever adds, and a shared one
    is disturbed for seconds at a time: the least of several rounds is the kernel's own time.

    ``state``: amplitudes to work on, more than a cache holds; what the system's pages make of a memory then counts on
    both sides. Its contents are lost.
    """

    def __init__(self, *, dtype: npt.DTypeLike, threads: int | None = None, on: Engine | None = None,
                 state: State | None = None) -> None:
        self.on = on or engine()
        self.dtype, self.threads = np.dtype(dtype), threads or threads_available()
        self.lanes = self.on.lanes(self.dtype)
        far = far_qubits(self.dtype)
        qubits = far if state is None else len(state).bit_length() - 1
        assert qubits >= far, "a state that no cache holds"
        self.far = Sampler(dtype=self.dtype, qubits=qubits, on=self.on, threads=self.threads, state=state)
        self.near = Sampler(dtype=self.dtype, qubits=far - _CACHED_LESS, on=self.on, threads=self.threads)
        self.samples = list(self._samples())
        self.seconds: list[list[float]] = [[] for _ in self.samples]
        self.starts: list[float] = []
        self.rng = np.random.default_rng(0)
        self.start = self._start()

    def _samples(self) -> Iterator[_Sample]:
        for name in CLASSES:
            if _usable(name, self.lanes):
                for count in _COUNTS if name != "dense_any3" else (1,):
                    yield _Sample(self.far, self.far.program([self.far.step(name)] * count), False)
        for contiguous in CONTIGUOUS:
            self.far.wires = self.far.spread(contiguous)
            for count in _COUNTS:
                yield _Sample(self.far, self.far.program([self.far.step("rotate_rows3")] * count), False)
        for sampler in (self.far, self.near):
            sampler.wires = sampler.spread(0)
            yield _Sample(sampler, _dense_from_row(sampler), True)
            yield _Sample(sampler, sampler.program([sampler.step("rotate_rows3")] * _COUNTS[0]), False)

    def _start(self) -> Program:
        """A program whose first kernel is one tile, as of a circuit's, and whose second passes over everything."""
        sampler = self.far
        sampler.wires = list(range(sampler.shape.size))
        low, row = sampler.wires[: self.lanes], sampler.wires[self.lanes:]
        turns = Step("matrix", tuple(Turn(w, 1.0) for w in (*low, *row)))
        program = sampler.program([turns, sampler.step("phase_table")])
        kernels = np.concatenate([program.kernels, program.kernels])
        kernels["empty"][0] = (1 << sampler.qubits) - (1 << sampler.shape.run)
        kernels["count"][1], kernels["scale"][1] = 0, 1.0
        program.kernels = kernels
        return program

    def round(self) -> None:
        """Time every kernel once, in another order each round: what slows a round's first kernels then hits others."""
        for i in self.rng.permutation(len(self.samples)):
            sample, times = self.samples[i], self.seconds[i]
            sampler = sample.sampler
            if sample.unread:
                # what it will spread: values must not shrink from round to round, denormal ones are slow
                rows = sampler.shape.size - sampler.shape.run
                sampler.state[: sampler.amplitudes >> rows] = 2.0 ** ((rows - sampler.qubits) / 2)
            times.append(float(self.on.run(sample.program, sampler.state, shard=0, threads=self.threads)[0]))
        for _ in range(_STARTS):
            self.far.state[: 1 << self.far.shape.size] = 2.0 ** (-self.far.qubits / 2)
            self.starts.append(float(self.on.run(self.start, self.far.state, shard=0, threads=self.threads)[0]))

    def costs(self) -> GateCosts:
        """The table of the rounds so far (at least one)."""
        known = [kernel_amplitudes(s.program, lanes=self.lanes, threads=self.threads)[0] for s in self.samples]
        found = fit(known, [min(times) for times in self.seconds])
        table = GateCosts(device=f"{platform.machine()}, {self.on.name}", amplitude_bytes=2 * self.dtype.itemsize,
                          tile_qubits=self.far.shape.size, threads=self.threads, start_s=0.0, class_s=found)
        work = predict(self.start, table, lanes=self.lanes)[0]
        return replace(table, start_s=max(0.0, min(self.starts) - work))


_COUNTS = (2, 8)
_CACHED_LESS = 3
_STARTS = 3


def _usable(name: str, lanes: int) -> bool:
    """Whether vectors of 2^lanes reals have this class of operation."""
    if name.startswith("permute") and name[7:].isdigit():
        return int(name[7:]) <= 1 << lanes
    return name != "rotate_lanes4" or lanes > 2


def _dense_from_row(sampler: Sampler) -> Program:
    """A kernel that spreads the tile's first row over all others, which it does not read."""
    turns = Step("matrix", tuple(Turn(w, 1.0) for w in sampler.wires[sampler.shape.run :]))
    program = sampler.program([turns])
    program.kernels["empty"] = int(program.kernels["inside"][0]) & ~((1 << sampler.shape.run) - 1)
    return program

"""Predicted time of tile programs: the classes of their operations, and programs that measure each class.

``classes_of`` names every operation of a program with the share of amplitudes it touches; ``predict`` prices a program
kernel by kernel with a measured table (``profilers.gates``); ``Sampler`` is what that profiler times.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import CACHED_BYTES, Engine, engine, threads_available
from executors.circuit.emit import KINDS, Layout, Program, emit
from executors.circuit.local import TileShape
from executors.circuit.lower import Dense, Flip, Matrix, Phase, Primitive, Turn
from executors.circuit.state import State, allocate
from executors.circuit.tiling import Step, TileKernel
from planners.circuit import KernelTable
from profilers.gates import GateCosts, fit

__all__ = ["CLASSES", "Sampler", "classes_of", "kernel_table", "measure_costs", "predict",
           "start_seconds"]

CLASSES = (
    "rotate_rows1", "rotate_rows2", "rotate_rows3", "rotate_lanes1", "rotate_lanes2", "rotate_lanes4",
    "matrix_row_real", "matrix_row", "matrix_lane", "dense_rows", "dense_mixed", "dense_lanes", "dense_any3",
    "phase_scalar", "phase_table", "phase_cross1", "phase_cross", "permute_rows", "permute1", "permute2", "permute4",
    "permute8", "permute16",
)
"""Operation classes with a cost of their own; wider ``dense_any`` doubles with every qubit."""


def classes_of(program: Program, *, lanes: int) -> list[list[tuple[str, float]]]:
    """(class, share of the kernel's amplitudes) of every operation, by kernel."""
    result = []
    for kernel in program.kernels:
        first, count = int(kernel["first"]), int(kernel["count"])
        result.append([_class(program, op, int(kernel["bits"]), lanes) for op in program.ops[first : first + count]])
    return result


def _class(program: Program, op: np.void, bits: int, lanes: int) -> tuple[str, float]:
    kind = KINDS[int(op["kind"])]
    share = 0.5 ** int(op["outside_mask"]).bit_count()
    if kind == "rotate_rows":
        return f"rotate_rows{int(op['bits'])}", share
    if kind == "rotate_lanes":
        return f"rotate_lanes{min(int(op['bits']), 3) if int(op['bits']) < 3 else 4}", share
    if kind in ("matrix_row", "matrix_lane"):
        held = share * 0.5 ** (int(op["control_mask"]) >> lanes).bit_count()
        return ("matrix_row_real" if kind == "matrix_row" and op["flag"] else kind), held
    if kind == "dense_any":
        extra = int(op["bits"]) - 3
        return "dense_any3", share * 2.0**extra * 0.5 ** int(op["control_mask"]).bit_count()
    if kind == "phase":
        return _phase_class(program, op, bits, share)
    if kind == "permute":
        return _permute_class(program, op, bits, lanes), share
    return kind, share


def _phase_class(program: Program, op: np.void, bits: int, share: float) -> tuple[str, float]:
    low = int(op["bit"][0])
    crossing = int(op["control_mask"]).bit_count()
    count, start = int(op["count"]), int(op["ints"])
    coordinates = program.ints[start + 1 : start + 2 * count : 2]
    table = bool(op["flag"]) or bool(np.any((coordinates >= 0) & (coordinates < low)))
    at = int(op["reals"]) + ((2 << low) if op["flag"] else 0) + crossing * (2 << low)
    scalars = program.reals[at : at + (2 << (bits - low))]
    plain = not table and bool(np.all(scalars[::2] == 1)) and not np.any(coordinates != -1) and count == 0
    if crossing:
        # blocks in which no crossing bit is set are left alone when nothing else applies
        return "phase_cross1" if crossing == 1 else "phase_cross", share * (1 - 0.5**crossing if plain else 1.0)
    if table:
        return "phase_table", share
    moved = float(np.mean((scalars[::2] != 1) | (scalars[1::2] != 0))) if count == 0 else 1.0
    return "phase_scalar", share * moved


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


def start_seconds(costs: GateCosts, *, dtype: npt.DTypeLike, repeats: int = 25,
                  clock: Callable[[], float] = time.perf_counter) -> float:
    """What a program's first kernel takes beyond its work: threads start, and caches hold what came before.

    It is the median time of a program of one tile without operations, less the tile's load and store; a pass over a
    state beyond the cache lies before each, as before a program that is not run twice.
    """
    on = engine()
    far = Sampler(dtype=dtype, qubits=far_qubits(dtype), on=on, threads=costs.threads)
    one = Sampler(dtype=dtype, qubits=costs.tile_qubits, on=on, threads=costs.threads)
    program, between = one.program([]), far.program([])
    taken = []
    for _ in range(repeats):
        on.run(between, far.state, shard=0, threads=costs.threads)
        began = clock()
        on.run(program, one.state, shard=0, threads=costs.threads)
        taken.append(clock() - began)
    return max(0.0, statistics.median(taken) - predict(program, costs, lanes=on.lanes(dtype))[0])


def far_qubits(dtype: npt.DTypeLike) -> int:
    """Qubits of the smallest state that no cache holds."""
    return (CACHED_BYTES // (2 * np.dtype(dtype).itemsize)).bit_length()


def predict(program: Program, costs: GateCosts, *, lanes: int, start_s: float = 0.0) -> list[float]:
    """Predicted seconds of every kernel; ``start_s`` (``start_seconds``) comes on top of the first."""
    far = costs.amplitude_bytes << program.address_bits > CACHED_BYTES
    load_s, store_s = (costs.far_load_s, costs.far_store_s) if far else (costs.load_s, costs.store_s)
    result: list[float] = []
    for kernel, operations in zip(program.kernels, classes_of(program, lanes=lanes), strict=True):
        inside, empty = int(kernel["inside"]), int(kernel["empty"])
        across = ((1 << program.address_bits) - 1) & ~inside & ~empty
        tiles = 1 << across.bit_count()
        amplitudes = tiles << int(kernel["bits"])
        rows_empty = (empty & inside & ~((1 << int(kernel["run"])) - 1)).bit_count()
        seconds = store_s * amplitudes + load_s * (amplitudes >> rows_empty)
        seconds += sum(costs.operation_s(name) * share for name, share in operations) * amplitudes
        # fewer tiles than threads leave threads idle
        result.append(seconds * max(1.0, costs.threads / tiles) + (0.0 if result else start_s))
    return result


class Sampler:
    """Programs of one tile kernel with a repeated operation, on a state of 2^qubits amplitudes."""

    def __init__(self, *, dtype: npt.DTypeLike, qubits: int, on: Engine, threads: int,
                 clock: Callable[[], float] = time.perf_counter, shape: TileShape | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.qubits, self.on, self.threads, self.clock = qubits, on, threads, clock
        self.shape = shape or TileShape.default(self.dtype)
        self.amplitudes = 1 << qubits
        self.state: State = allocate(self.amplitudes, np.result_type(self.dtype, np.complex64))
        self.state[:] = 2.0 ** (-qubits / 2)
        # the contiguous low wires and the highest ones: rows far apart, as in a real kernel
        self.wires = [*range(self.shape.run), *range(qubits - self.shape.size + self.shape.run, qubits)]

    def seconds(self, name: str | None, count: int) -> float:
        """One timed run of a kernel with ``count`` operations of a class."""
        step = [] if name is None else [self._step(name)]
        return self._time(self.program(step * count))

    def seconds_without_load(self) -> float:
        """One timed run of a kernel whose rows are known to be zero but the first (it is not read)."""
        program = self.program([])
        mask = int(program.kernels["inside"][0]) & ~((1 << self.shape.run) - 1)
        program.kernels["empty"] = mask
        return self._time(program)

    def _time(self, program: Program) -> float:
        began = self.clock()
        self.on.run(program, self.state, shard=0, threads=self.threads)
        return self.clock() - began

    def program(self, steps: list[Step]) -> Program:
        """A program of one kernel."""
        layout = Layout({w: w for w in range(self.qubits)}, set(range(self.qubits)))
        kernel = TileKernel(frozenset(self.wires), tuple(range(self.shape.run)), tuple(steps))
        return emit([kernel], layout, address_bits=self.qubits, lanes=self.on.lanes(self.dtype), run=self.shape.run,
                    dtype=self.dtype)

    def _step(self, name: str) -> Step:
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
            "phase_cross1": {**{(w,): 0.3 for w in high}, **{(w, high[len(high) // 2]): 0.2 for w in low}},
            "phase_cross": {**{(w,): 0.3 for w in self.wires}, **{(low[i % 8], w): 0.2 for i, w in enumerate(high)}},
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


def measure_costs(*, dtype: npt.DTypeLike, qubits: int = 22, threads: int | None = None, repeats: int = 5,
                  clock: Callable[[], float] = time.perf_counter) -> GateCosts:
    """Profile the compiled engine (or the interpreter) on this machine: operations on a state of 2^qubits."""
    on = engine()
    threads = threads or threads_available()
    sampler = Sampler(dtype=dtype, qubits=qubits, on=on, threads=threads, clock=clock)
    far = Sampler(dtype=dtype, qubits=far_qubits(dtype), on=on, threads=threads, clock=clock)
    lanes = on.lanes(dtype)
    usable = [name for name in CLASSES if not (name.startswith("permute") and name[7:].isdigit()
                                               and int(name[7:]) > 1 << lanes)
              and not (name == "rotate_lanes4" and lanes < 3)]
    return fit(sampler, usable, far=far, device=f"{platform.machine()}, {on.name}",
               amplitude_bytes=2 * np.dtype(dtype).itemsize, tile_qubits=sampler.shape.size, threads=threads,
               repeats=repeats)


def kernel_table(costs: GateCosts, *, local_qubits: int, name: str) -> KernelTable:
    """The planner's cost table of this machine: seconds over one shard of 2^local_qubits amplitudes.

    A tile kernel's base is one read and one write. A gate inside is priced at its share of the pass it joins: turns go
    three to a pass, phases and linear maps many to a pass (taken as four), everything else alone. Fused matrices wider
    than two qubits have no fast kernel here and are priced at what the general one takes.
    """
    amplitudes = 1 << local_qubits
    at = costs.class_s
    far = costs.amplitude_bytes << local_qubits > CACHED_BYTES
    base = costs.far_load_s + costs.far_store_s if far else costs.load_s + costs.store_s
    phase, linear, turn = at["phase_table"] / 4, at["permute2"] / 4, at["rotate_rows3"] / 3
    fused = [0.0, at["matrix_row"], at["dense_rows"], *(at["dense_any3"] * 2.0 ** (m - 3) for m in range(3, 8))]
    gates = {
        "diagonal1": phase, "diagonal2": phase, "diagonal3": phase, "permutation1": linear, "permutation2": linear,
        "dense1": turn + phase, "dense2": at["dense_rows"], "controlled1": at["matrix_row"] / 2,
        "controlled2": at["dense_any3"] / 4, "*": at["dense_any3"],
    }
    return KernelTable(
        name=name, fusion_s=(0.0, *((base + f) * amplitudes for f in fused[1:])), tile_s=(base * amplitudes,),
        tile_gate_s={k: v * amplitudes for k, v in gates.items()}, tile_qubits=costs.tile_qubits,
        pinned_qubits=TileShape.default(np.float32 if costs.amplitude_bytes == 8 else np.float64).run,
        origin=costs.device)

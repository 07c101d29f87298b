"""Tile kernels to the flat program that the compiled executor runs (records, a real pool, an integer pool).

Address bit a of the shard's index holds the stored bit of one local wire; the shard's own number sits above. A
kernel's tile coordinates are its wires in ascending address order; the ``run`` lowest are the lowest addresses.
Coordinates below ``lanes`` select an element of a vector, the others a row. A kernel ends by bringing the wires its
successor wants at the lowest addresses there, as part of its last permutation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from executors.circuit.lower import Dense, Flip, Matrix, Phase, Turn
from executors.circuit.tiling import Step, TileKernel

__all__ = ["KERNEL", "KINDS", "OP", "Layout", "Program", "emit"]

KINDS = ("rotate_rows", "rotate_lanes", "matrix_row", "matrix_lane", "dense_rows", "dense_mixed", "dense_lanes",
         "dense_any", "phase", "permute")
"""Operation names; the index is the number in the compiled code's enum."""
KIND = {name: i for i, name in enumerate(KINDS)}

OP = np.dtype([("kind", "i4"), ("bits", "i4"), ("bit", "i4", 6), ("flag", "i4"), ("pad", "i4"),
               ("control_mask", "u8"), ("control_value", "u8"), ("outside_mask", "u8"), ("outside_value", "u8"),
               ("reals", "i8"), ("ints", "i8"), ("count", "i8")])
KERNEL = np.dtype([("bits", "i4"), ("run", "i4"), ("first", "i8"), ("count", "i8"), ("inside", "u8"), ("empty", "u8"),
                   ("scale", "f8")])

LOW_BITS = 8
"""Coordinates below this share one phase table; 2^8 amplitudes of it and its cross factors stay in the first cache."""
GROWTH_BITS = 60.0
"""Unnormalised turns may grow amplitudes by this many binary orders before a rescaling pass (single holds 127)."""


_SWAPPED = np.array([0, 2, 1, 3])


@dataclass(slots=True)
class Layout:
    """Where wires are stored. ``address[w]``: address bit of wire w (shard bits lie above the local ones)."""

    address: dict[int, int]
    live: set[int]

    def empty(self, bits: int) -> int:
        """Mask of local address bits that are still zero everywhere."""
        return sum(1 << a for w, a in self.address.items() if a < bits and w not in self.live)


@dataclass(slots=True)
class Program:
    """A compiled sequence of tile kernels for shards of 2^address_bits amplitudes."""

    address_bits: int
    dtype: np.dtype
    kernels: npt.NDArray[np.void]
    ops: npt.NDArray[np.void]
    reals: npt.NDArray[np.floating]
    ints: npt.NDArray[np.int64]

    @classmethod
    def none(cls, address_bits: int) -> Program:
        """No kernel at all."""
        return cls(address_bits, np.dtype(np.float64), np.zeros(0, KERNEL), np.zeros(0, OP), np.zeros(0),
                   np.zeros(0, np.int64))


@dataclass(slots=True)
class _Emitter:
    layout: Layout
    address_bits: int
    lanes: int
    dtype: np.dtype
    ops: list[tuple] = field(default_factory=list)
    kernels: list[tuple] = field(default_factory=list)
    reals: list[npt.NDArray[np.floating]] = field(default_factory=list)
    real_count: int = 0
    ints: list[npt.NDArray[np.int64]] = field(default_factory=list)
    int_count: int = 0
    coordinate: dict[int, int] = field(default_factory=dict)
    bits: int = 0
    growth: float = 0.0
    log_scale: float = 0.0

    @property
    def width(self) -> int:
        return 1 << self.lanes

    # -- pools -------------------------------------------------------------------------------------------------------

    def _real(self, values: npt.NDArray[np.floating]) -> int:
        """Append to the real pool, 64-byte aligned; returns the offset."""
        at = self.real_count
        room = 64 // self.dtype.itemsize
        padded = np.zeros((max(values.size, 1) + room - 1) // room * room, dtype=self.dtype)
        padded[: values.size] = values.ravel()
        self.reals.append(padded)
        self.real_count += padded.size
        return at

    def _int(self, values: npt.NDArray[np.int64]) -> int:
        at = self.int_count
        self.ints.append(values)
        self.int_count += values.size
        return at

    def _blocked(self, z: npt.NDArray[np.complex128]) -> npt.NDArray[np.floating]:
        """Complex values in tile order: a vector of real parts, then one of imaginary parts."""
        return np.ascontiguousarray(z.view(np.float64).reshape(-1, self.width, 2).swapaxes(1, 2)).ravel()

    def _op(self, kind: str, *, bit: Sequence[int] = (), bits: int | None = None, flag: int = 0,
            control: tuple[int, int] = (0, 0), outside: tuple[int, int] = (0, 0), reals: int = 0, ints: int = 0,
            count: int = 0) -> None:
        self.ops.append((KIND[kind], len(bit) if bits is None else bits, [*bit, *[0] * (6 - len(bit))], flag, 0,
                         *control, *outside, reals, ints, count))

    # -- one kernel --------------------------------------------------------------------------------------------------

    def kernel(self, tile: TileKernel, following: tuple[int, ...] | None, run: int) -> None:
        """Emit one kernel; ``following``: the low wires of the next one."""
        address = self.layout.address
        ordered = sorted(tile.wires, key=lambda w: address[w])
        self.coordinate = {w: i for i, w in enumerate(ordered)}
        self.bits = len(ordered)
        self.growth = self.log_scale = 0.0
        empty, first = self.layout.empty(self.address_bits), len(self.ops)
        inside = sum(1 << address[w] for w in ordered)
        steps = list(tile.steps)
        moved = [] if following is None else [(ordered[k], w) for k, w in enumerate(following) if ordered[k] != w]
        last = steps.pop().primitives if moved and steps and steps[-1].kind == "flip" else ()
        for step in steps:
            self._step(step)
        if last or moved:
            self._permute(last, moved)
        self.kernels.append((self.bits, run, first, len(self.ops) - first, inside, empty, math.exp(self.log_scale)))

    def _step(self, step: Step) -> None:
        if step.kind == "phase":
            self._phases([p for p in step.primitives if isinstance(p, Phase)])
        elif step.kind == "flip":
            self._permute(step.primitives, [])
        else:
            self._matrices(step.primitives)

    # -- matrices ----------------------------------------------------------------------------------------------------

    def _matrices(self, primitives: Iterable) -> None:
        turns: dict[int, float] = {}
        for p in primitives:
            if isinstance(p, Turn):
                if p.wire in turns:
                    self._turns(turns)
                turns[p.wire] = p.slope
                continue
            touched = {p.wire} if isinstance(p, Matrix) else set(p.wires)
            if (touched | {w for w, _ in p.controls}) & turns.keys():
                self._turns(turns)
            if isinstance(p, Matrix):
                self._matrix(p)
            else:
                self._dense(p)
            self.layout.live |= touched
        self._turns(turns)

    def _turns(self, turns: dict[int, float]) -> None:
        """Emit and forget a set of turns on different wires."""
        growth = sum(0.5 * math.log2(1 + t * t) for t in turns.values())
        if self.growth + growth > GROWTH_BITS:
            self._rescale()
        self.growth += growth
        self.log_scale -= growth * math.log(2)
        self.layout.live |= turns.keys()
        placed = sorted((self.coordinate[w], t) for w, t in turns.items())
        turns.clear()
        inner = [(k, t) for k, t in placed if k < self.lanes]
        outer = [(k - self.lanes, t) for k, t in placed if k >= self.lanes]
        if inner:
            self._op("rotate_lanes", bit=[k for k, _ in inner], reals=self._real(np.array([t for _, t in inner])))
        for i in range(0, len(outer), 3):
            part = outer[i : i + 3]
            self._op("rotate_rows", bit=[k for k, _ in part], reals=self._real(np.array([t for _, t in part])))

    def _rescale(self) -> None:
        low = min(LOW_BITS, self.bits)
        scale = np.full(1 << (self.bits - low), math.exp(self.log_scale), dtype=np.complex128)
        self._op("phase", bit=[low], reals=self._real(np.stack([scale.real, scale.imag], axis=1).ravel()))
        self.growth = self.log_scale = 0.0

    def _split(self, controls: Iterable[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """(tile coordinate, value) of the controls inside, and (mask, value) of those outside."""
        inside, mask, value = [], 0, 0
        for w, v in controls:
            if w in self.coordinate:
                inside.append((self.coordinate[w], v))
            else:
                mask |= 1 << self.layout.address[w]
                value |= v << self.layout.address[w]
        return inside, (mask, value)

    def _matrix(self, p: Matrix) -> None:
        inside, outside = self._split(p.controls)
        lane = np.arange(self.width)
        held = np.ones(self.width, dtype=bool)
        rows = (0, 0)
        for k, v in inside:
            if k < self.lanes:
                held &= (lane >> k & 1) == v
            else:
                rows = (rows[0] | 1 << k, rows[1] | v << k)
        target = self.coordinate[p.wire]
        m = p.matrix
        if target < self.lanes:
            value = lane >> target & 1
            same = np.where(held, m[value, value], 1)
            other = np.where(held, m[value, 1 - value], 0)
            data = np.stack([same.real, same.imag, other.real, other.imag])
            self._op("matrix_lane", bit=[target], control=rows, outside=outside, reals=self._real(data))
            return
        entries = [np.where(held, m[i, j], i == j) for i in (0, 1) for j in (0, 1)]
        real = all(np.all(np.abs(e.imag) < 1e-14) for e in entries)
        data = np.stack([e.real for e in entries] if real else [part for e in entries for part in (e.real, e.imag)])
        self._op("matrix_row", bit=[target - self.lanes], flag=int(real), control=rows, outside=outside,
                 reals=self._real(data))

    def _dense(self, p: Dense) -> None:
        inside, outside = self._split(p.controls)
        at = [self.coordinate[w] for w in p.wires]
        if len(at) == 2 and not inside:
            self._dense2(at, p.matrix, outside)
            return
        mask = sum(1 << k for k, _ in inside)
        value = sum(v << k for k, v in inside)
        data = np.ascontiguousarray(p.matrix).view(np.float64)
        self._op("dense_any", bit=at, control=(mask, value), outside=outside, reals=self._real(data))

    def _dense2(self, at: list[int], matrix: npt.NDArray[np.complex128], outside: tuple[int, int]) -> None:
        low, high = sorted(at)
        m = matrix if at[0] == low else matrix[_SWAPPED[:, None], _SWAPPED]
        lane = np.arange(self.width)
        if low >= self.lanes:
            data = np.ascontiguousarray(m).view(np.float64)
            self._op("dense_rows", bit=[low - self.lanes, high - self.lanes], outside=outside, reals=self._real(data))
        elif high >= self.lanes:
            v = lane >> low & 1
            parts = [m[2 * k + v, 2 * j + (v ^ f)] for k in (0, 1) for j in (0, 1) for f in (0, 1)]
            data = np.stack([part for z in parts for part in (z.real, z.imag)])
            self._op("dense_mixed", bit=[high - self.lanes, low], outside=outside, reals=self._real(data))
        else:
            v = (lane >> low & 1) | (lane >> high & 1) << 1
            parts = [m[v, v ^ f] for f in range(4)]
            data = np.stack([part for z in parts for part in (z.real, z.imag)])
            self._op("dense_lanes", bit=[low, high], outside=outside, reals=self._real(data))

    # -- permutations ------------------------------------------------------------------------------------------------

    def _permute(self, flips: Iterable, moved: Sequence[tuple[int, int]]) -> None:
        """One affine map: the CXs in order, then each pair of wires (low now, low next) trades places."""
        column = [1 << k for k in range(self.bits)]
        shift: dict[int, int] = {}
        for p in flips:
            assert isinstance(p, Flip)
            t = self.coordinate[p.target]
            if p.control in self.coordinate:
                column[self.coordinate[p.control]] ^= column[t]
            else:
                mask = 1 << self.layout.address[p.control]
                shift[mask] = shift.get(mask, 0) ^ column[t]
            if p.control in self.layout.live:
                self.layout.live.add(p.target)
        spare = [out for out, _ in moved]
        for position in spare:
            # the wire that must come to this coordinate, wherever the earlier trades have put it
            enters = dict(moved)[position]
            a, b = self._trade(position, enters)
            column[a], column[b] = column[b], column[a]
        shifts = [value for item in shift.items() if item[1] for value in item]
        data = np.array(column + shifts, dtype=np.int64)
        if shifts or any(c != 1 << k for k, c in enumerate(column)):
            self._op("permute", bits=0, ints=self._int(data), count=len(shifts) // 2)

    def _trade(self, leaves: int, enters: int) -> tuple[int, int]:
        """Swap two wires' coordinates and addresses; returns the coordinates."""
        a, b = self.coordinate[leaves], self.coordinate[enters]
        self.coordinate[leaves], self.coordinate[enters] = b, a
        address = self.layout.address
        address[leaves], address[enters] = address[enters], address[leaves]
        return a, b

    # -- phases ------------------------------------------------------------------------------------------------------

    def _phases(self, phases: Sequence[Phase]) -> None:
        """All terms of several diagonals as one pass (more where three-fold products cross the tables)."""
        total = dict(phases[0].terms)
        for p in phases[1:]:
            for term, angle in p.terms.items():
                total[term] = total.get(term, 0.0) + angle
        inner: dict[int, float] = {}
        outer: dict[tuple[int, int], float] = {}
        beyond: dict[int, dict[int, float]] = {}
        live, bit = self.layout.live, {w: 1 << k for w, k in self.coordinate.items()}
        outside = {w: 1 << a for w, a in self.layout.address.items() if w not in bit}
        for term, angle in total.items():
            angle = math.remainder(angle, 2 * math.pi)
            if abs(angle) < 1e-13 or not live.issuperset(term):
                continue
            tile = mask = 0
            for w in term:
                if w in bit:
                    tile |= bit[w]
                else:
                    mask |= outside[w]
            if not mask:
                inner[tile] = inner.get(tile, 0.0) + angle
            elif tile & (tile - 1) == 0:
                key = (mask, tile.bit_length() - 1)
                outer[key] = outer.get(key, 0.0) + angle
            else:
                beyond.setdefault(mask, {})[tile] = angle
        if inner or outer:
            self._phase_pass(inner, outer, (0, 0))
        for mask, terms in beyond.items():
            self._phase_pass(terms, {}, (mask, mask))

    def _phase_pass(self, inner: dict[int, float], outer: dict[tuple[int, int], float],
                    outside: tuple[int, int]) -> None:
        low = min(LOW_BITS, self.bits)
        high = self.bits - low
        base, scalar = np.zeros(1 << low), np.zeros(1 << high)
        cross: dict[int, npt.NDArray[np.float64]] = {}
        for tile, angle in inner.items():
            under, over = tile & ((1 << low) - 1), tile >> low
            if not over:
                base[under] += angle
            elif not under:
                scalar[over] += angle
            elif over & (over - 1) == 0:
                k = over.bit_length() - 1
                if k not in cross:
                    cross[k] = np.zeros(1 << low)
                cross[k][under] += angle
            else:
                self._controlled_phase(tile, angle, outside)
        for table in (base, scalar, *cross.values()):
            _sum_over_subsets(table)
        if not (base.any() or scalar.any() or cross or outer):
            return
        flag = int(base.any())
        parts = [self._blocked(np.exp(1j * base))] if flag else []
        parts += [self._blocked(np.exp(1j * cross[k])) for k in sorted(cross)]
        parts.append(np.exp(1j * scalar).view(np.float64))
        entries = np.array([v for mask, k in outer for v in (mask, k)], dtype=np.int64)
        factors = np.exp(1j * np.array(list(outer.values()))) if outer else np.zeros(0, dtype=np.complex128)
        data = factors.view(np.int64)
        self._op("phase", bit=[low], bits=1, flag=flag, control=(sum(1 << k for k in cross), 0), outside=outside,
                 reals=self._real(np.concatenate(parts)), ints=self._int(np.concatenate([entries, data])),
                 count=len(outer))

    def _controlled_phase(self, tile: int, angle: float, outside: tuple[int, int]) -> None:
        """A product of bits that no table holds: a phase on its highest bit behind all others."""
        by = {k: w for w, k in self.coordinate.items()}
        members = [k for k in range(self.bits) if tile >> k & 1]
        matrix = np.diag([1, np.exp(1j * angle)]).astype(np.complex128)
        controls = tuple((by[k], 1) for k in members[:-1])
        before = len(self.ops)
        self._matrix(Matrix(by[members[-1]], matrix, controls))
        op = list(self.ops[before])
        op[7], op[8] = outside
        self.ops[before] = tuple(op)


def _sum_over_subsets(table: npt.NDArray[np.float64]) -> None:
    """In place, from the coefficient of every product of bits to the angle of every value of the bits."""
    given = np.flatnonzero(table)
    if len(given):
        table[:] = table[given] @ _supersets(len(table))[given]


@functools.cache
def _supersets(size: int) -> npt.NDArray[np.float64]:
    """1 where the column's bits include the row's, shape (size, size)."""
    value = np.arange(size)
    return ((value[:, None] & ~value) == 0).astype(np.float64)


def emit(kernels: Sequence[TileKernel], layout: Layout, *, address_bits: int, lanes: int, run: int,
         dtype: np.dtype, final_low: tuple[int, ...] | None = None) -> Program:
    """Flatten ``kernels``; ``layout`` is brought forward to the state after the last one.

    Args:
        kernels: in order.
        layout: where each wire is stored before the first kernel.
        address_bits: log2 of the shard's amplitudes.
        lanes: log2 of the reals in one vector of the executor that will run it.
        run: contiguous low address bits of every tile.
        dtype: float32 or float64.
        final_low: wires to bring to the lowest addresses at the very end.
    """
    emitter = _Emitter(layout, address_bits, lanes, np.dtype(dtype))
    for i, kernel in enumerate(kernels):
        emitter.kernel(kernel, kernels[i + 1].low if i + 1 < len(kernels) else final_low, run)
    reals = np.concatenate(emitter.reals) if emitter.reals else np.zeros(0, dtype=dtype)
    aligned = np.empty(reals.size + 64, dtype=dtype)
    start = -aligned.ctypes.data % 64 // aligned.itemsize
    aligned[start : start + reals.size] = reals
    return Program(
        address_bits=address_bits, dtype=np.dtype(dtype), kernels=np.array(emitter.kernels, dtype=KERNEL),
        ops=np.array(emitter.ops, dtype=OP), reals=aligned[start : start + reals.size],
        ints=np.concatenate(emitter.ints) if emitter.ints else np.zeros(0, dtype=np.int64))

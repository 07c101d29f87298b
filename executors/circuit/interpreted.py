"""The same programs without a compiler: every operation as numpy array arithmetic on one tile at a time.

It exists so that nothing fails where no C compiler is found, and as an independent reading of the program format for
the tests. Programs must be emitted with ``lanes = 0``: one element a row, no lane operations.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from executors.circuit.emit import KINDS, Program

__all__ = ["Interpreter"]

Tile = npt.NDArray[np.complexfloating]


class Interpreter:
    """Numpy reading of tile programs."""

    name = "numpy interpreter (no C compiler)"

    def lanes(self, dtype: npt.DTypeLike) -> int:
        """One element a row."""
        return 0

    def run(self, program: Program, state: Tile, *, shard: int, threads: int) -> npt.NDArray[np.float64]:
        """Run on the state in place, on one thread; returns the seconds of every kernel."""
        seconds = np.zeros(len(program.kernels))
        for i, kernel in enumerate(program.kernels):
            began = time.perf_counter()
            self._kernel(program, kernel, state, shard)
            seconds[i] = time.perf_counter() - began
        return seconds

    def _kernel(self, program: Program, kernel: np.void, state: Tile, shard: int) -> None:
        inside, empty = int(kernel["inside"]), int(kernel["empty"])
        across = ((1 << program.address_bits) - 1) & ~inside & ~empty
        offsets = _subsets(inside)
        blank = (offsets & empty & ~((1 << int(kernel["run"])) - 1)) != 0
        for start in _subsets(across):
            index = offsets + start
            tile = state[index].astype(np.complex128)
            tile[blank] = 0
            outside = int(start) | shard << program.address_bits
            for op in program.ops[int(kernel["first"]) : int(kernel["first"]) + int(kernel["count"])]:
                if outside & int(op["outside_mask"]) == int(op["outside_value"]):
                    tile = _apply(program, op, tile, outside)
            state[index] = tile * kernel["scale"]


def _subsets(mask: int) -> npt.NDArray[np.int64]:
    """Every value whose bits lie in ``mask``, ascending."""
    values = np.zeros(1, dtype=np.int64)
    bit = 1
    while bit <= mask:
        if mask & bit:
            values = np.concatenate([values, values | bit])
        bit <<= 1
    return values


def _apply(program: Program, op: np.void, tile: Tile, outside: int) -> Tile:
    kind = KINDS[int(op["kind"])]
    data = program.reals[int(op["reals"]) :]
    if kind == "rotate_rows":
        for k in range(int(op["bits"])):
            slope = float(data[k])
            tile = _matrix(tile, [int(op["bit"][k])], np.array([[1, -slope], [slope, 1]]), 0, 0)
        return tile
    mask, value = int(op["control_mask"]), int(op["control_value"])
    bits = [int(b) for b in op["bit"][: int(op["bits"])]]
    if kind == "matrix_row":
        flat = data[:4] + 0j if op["flag"] else data[:8:2] + 1j * data[1:8:2]
        return _matrix(tile, bits, flat.reshape(2, 2), mask, value)
    if kind in ("dense_rows", "dense_any"):
        side = 1 << len(bits)
        flat = data[: 2 * side * side : 2] + 1j * data[1 : 2 * side * side : 2]
        return _matrix(tile, bits, flat.reshape(side, side), mask, value)
    if kind == "phase":
        return tile * _phase(program, op, len(tile).bit_length() - 1, outside)
    if kind == "permute":
        return tile[_source(program, op, len(tile).bit_length() - 1, outside)]
    raise AssertionError(f"{kind} needs lanes, which the interpreter has none of")


def _matrix(tile: Tile, bits: list[int], matrix: npt.NDArray[np.complexfloating], mask: int, value: int) -> Tile:
    index = np.arange(len(tile))
    targets = sum(1 << b for b in bits)
    base = index[(index & targets == 0) & (index & mask == value)]
    rows = [base | sum(1 << b for i, b in enumerate(bits) if j >> i & 1) for j in range(1 << len(bits))]
    tile = tile.copy()
    tile[rows] = matrix @ tile[rows]
    return tile


def _phase(program: Program, op: np.void, bits: int, outside: int) -> Tile:
    low = int(op["bit"][0])
    crossing = int(op["control_mask"])
    at = int(op["reals"])
    size = 1 << low
    index = np.arange(1 << bits)
    under, over = index & (size - 1), index >> low

    def table() -> Tile:
        nonlocal at
        values = program.reals[at : at + 2 * size]
        at += 2 * size
        return values[::2] + 1j * values[1::2]

    factor: Tile = np.ones(1 << bits, dtype=np.complex128)
    if op["flag"]:
        factor *= table()[under]
    for k in range(bits - low):
        if crossing >> k & 1:
            factor *= np.where(over >> k & 1, table()[under], 1)
    scalars = program.reals[at : at + 2 * (1 << (bits - low))]
    factor *= (scalars[::2] + 1j * scalars[1::2])[over]
    count, start = int(op["count"]), int(op["ints"])
    entries = program.ints[start : start + 2 * count]
    factors = program.ints[start + 2 * count : start + 4 * count].view(np.float64)
    for i in range(count):
        needs, k = int(entries[2 * i]), int(entries[2 * i + 1])
        if outside & needs == needs:
            z = complex(factors[2 * i], factors[2 * i + 1])
            factor *= z if k < 0 else np.where(index >> k & 1, z, 1)
    return factor


def _source(program: Program, op: np.void, bits: int, outside: int) -> npt.NDArray[np.int64]:
    start = int(op["ints"])
    column = program.ints[start : start + bits]
    entries = program.ints[start + bits : start + bits + 2 * int(op["count"])]
    index = np.arange(1 << bits)
    source = np.zeros(1 << bits, dtype=np.int64)
    for k in range(bits):
        source ^= np.where(index >> k & 1, column[k], 0)
    for i in range(int(op["count"])):
        if (outside & int(entries[2 * i])).bit_count() & 1:
            source ^= entries[2 * i + 1]
    return source

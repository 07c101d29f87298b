"""One circuit on one shard: lower, tile, emit, run.

``compile_circuit`` is the planning of the CPU's kernels; ``execute`` runs the program on a fresh |0...0>. The tile
holds 2^15 single or 2^14 double amplitudes (256 KiB), so that a tile and its copy under permutation fit a second-level
cache of 1 MiB; rows of 2^6 (2^5) amplitudes are 512 bytes of contiguous memory.
"""

from __future__ import annotations

import cmath
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import Engine, engine, threads_available
from executors.circuit.emit import Layout, Program, emit
from executors.circuit.lower import Lowering
from executors.circuit.state import Placement, State, allocate, clear_empty, prepare_zero
from executors.circuit.tiling import tile_kernels
from planners.circuit import Circuit

__all__ = ["Compilation", "TileShape", "compile_circuit", "execute", "placement_after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileShape:
    """Log2 sizes: amplitudes of a tile, and of a contiguous row of memory."""

    size: int
    run: int

    @classmethod
    def default(cls, dtype: npt.DTypeLike) -> TileShape:
        """The shape measured best for float32 or float64."""
        return cls(size=15, run=6) if np.dtype(dtype).itemsize == 4 else cls(size=14, run=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """A program and how to read the state it leaves."""

    program: Program
    placement: Placement
    qubits: int
    empty: int
    live: bool = False


def compile_circuit(circuit: Circuit, *, dtype: npt.DTypeLike, on: Engine | None = None,
                    shape: TileShape | None = None, live: bool = False) -> Compilation:
    """Lower, tile and emit a whole circuit for one shard.

    ``live``: any start state is possible (wire q at address bit q); otherwise the program is for |0...0>, drops what
    acts on wires that still hold 0, and must be run by ``execute``.
    """
    real = np.dtype(dtype)
    on = on or engine()
    shape = shape or TileShape.default(real)
    bits = max(circuit.qubits, shape.run)
    lowering = Lowering(circuit.qubits)
    if live:
        lowering.live = [True] * circuit.qubits
    for gate in circuit.gates:
        lowering.add(gate)
    wires = list(range(bits))
    kernels = tile_kernels(lowering.take(), wires=wires, size=min(shape.size, bits), run=shape.run,
                           low=wires[: shape.run] if live else None)
    layout = first_layout(kernels[0].low if kernels else (), kernels[0].wires if kernels else (), wires)
    if live:
        layout = Layout({w: w for w in wires}, set(wires))
    program = emit(kernels, layout, address_bits=bits, lanes=on.lanes(real), run=shape.run, dtype=real)
    return Compilation(program=program, placement=placement_after(lowering, layout, circuit), qubits=circuit.qubits,
                       empty=layout.empty(bits), live=live)


def first_layout(low: Iterable[int], tile: Iterable[int], wires: Iterable[int]) -> Layout:
    """A free choice: the first tile's contiguous wires lowest, then its others, then the rest."""
    order = list(dict.fromkeys([*low, *sorted(tile), *wires]))
    return Layout({w: a for a, w in enumerate(order)}, set())


def placement_after(lowering: Lowering, layout: Layout, circuit: Circuit) -> Placement:
    """Where the circuit's logical qubits are, after everything the lowering has taken in."""
    output = circuit.output or tuple(range(circuit.qubits))
    address = tuple(layout.address[lowering.wire[w]] for w in output)
    flip = sum(1 << layout.address[w] for w in range(circuit.qubits) if lowering.flip[w])
    return Placement(address, flip, cmath.exp(1j * lowering.phase))


def execute(compilation: Compilation, *, on: Engine | None = None, threads: int | None = None,
            state: State | None = None) -> tuple[State, npt.NDArray[np.float64]]:
    """Run from |0...0>; returns the stored state, shape (2^address_bits,), and the seconds of every kernel.

    ``state``: an earlier state to reuse; its contents are ignored.
    """
    program = compilation.program
    on = on or engine()
    if state is None:
        state = allocate(1 << program.address_bits, np.result_type(program.dtype, np.complex64))
    run = int(program.kernels[0]["run"]) if len(program.kernels) else program.address_bits
    if compilation.live:
        state[:] = 0
    prepare_zero(state, run)
    seconds = on.run(program, state, shard=0, threads=threads or threads_available())
    clear_empty(state, compilation.empty)
    return state, seconds



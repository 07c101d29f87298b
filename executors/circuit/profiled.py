"""Kernel family ``circuit``: what the planner asks of a device, measured on the kernels that run there.

``fusion_kernel(qubits)`` is one dense matrix over a state, ``tile_kernel(qubits)`` one pass through tiles that runs
nothing, ``tile_gate(gate)`` what one more gate of a class costs inside a tile (a tile with ``GATES`` of them, less an
empty one, divided by their number). On a CPU all cores work and the compiled tile engine runs; on a GPU
the launches of ``executors.circuit.gpu``. States are uniform: every amplitude is read, multiplied and written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from executors.circuit.compiled import engine, threads_available
from executors.circuit.costs import Sampler
from executors.circuit.local import compile_circuit
from executors.circuit.state import allocate
from planners.circuit import Circuit, Gate, Kernel, KernelTable, Machine, Plan, Problem, Source, Stage
from planners.circuit.ir import from_matrix
from planners.circuit.problem import Proof
from profilers.family import GridAxis, Op, Point, Prepared, Work
from workbench.plan import Certificate

__all__ = ["CLASSES", "GATES", "OPS"]

GATES = 8
_REAL: dict[int, np.dtype[Any]] = {8: np.dtype(np.float32), 16: np.dtype(np.float64)}
_LEAST_SHARE = 0.02
_CUDA_TILE = 11
CLASSES = ("diagonal1", "diagonal2", "permutation1", "dense1", "controlled1", "dense2", "*")
"""Gate classes with a cost of their own; ``*`` stands for wider ones and is a dense three-qubit gate."""


def _gates(name: str, qubits: int, rng: np.random.Generator) -> list[Gate]:
    """Gates of a class on distinct qubits from the highest positions down, as far as they reach."""
    wires = list(reversed(range(qubits)))
    width = {"diagonal1": 1, "permutation1": 2, "dense1": 1, "*": 3}.get(name, 2)
    groups = [tuple(wires[(i * width + k) % min(qubits, 9)] for k in range(width)) for i in range(GATES)]
    angles = rng.uniform(0.2, 1.2, GATES)
    named = {"diagonal1": "rz", "diagonal2": "rzz", "permutation1": "cx", "dense1": "ry", "controlled1": "crx"}
    if name in named:
        return [Gate(name=named[name], qubits=group, params=() if name == "permutation1" else (float(angle),))
                for group, angle in zip(groups, angles, strict=True)]
    return [from_matrix(_unitary(width, rng), group) for group in groups]


def _unitary(width: int, rng: np.random.Generator) -> np.ndarray:
    side = 1 << width
    return np.linalg.qr(rng.standard_normal((side, side)) + 1j * rng.standard_normal((side, side)))[0]


@dataclass
class _Clock:
    """Seconds of a call; with ``empty``, what it takes beyond the empty call, never less than ``_LEAST_SHARE``."""

    seconds: Callable[[], float]
    empty: Callable[[], float] | None = None
    parts: int = 1
    processes: int = 1

    def block(self, kernel: Callable[[], Any], calls: int) -> float:
        """See ``profilers.harness.Timer``."""
        whole = sum(self.seconds() for _ in range(calls))
        if self.empty is None:
            return whole
        return max(whole - sum(self.empty() for _ in range(calls)), _LEAST_SHARE * whole) / self.parts


def _on_cpu(gates: Sequence[Gate], qubits: int, real: np.dtype) -> Callable[[], float]:
    """Seconds of one run over a state with every amplitude alive."""
    on, threads = engine(), threads_available()
    if not gates:
        sampler = Sampler(dtype=real, qubits=qubits, on=on, threads=threads)
        return lambda: sampler.seconds(None, 0)
    made = compile_circuit(Circuit(name="kernel", qubits=qubits, gates=tuple(gates)), dtype=real, on=on, live=True)
    state = allocate(1 << qubits, np.result_type(real, np.complex64))
    state[:] = 2.0 ** (-qubits / 2)

    def once() -> float:
        began = time.perf_counter()
        on.run(made.program, state, shard=0, threads=threads)
        return time.perf_counter() - began

    return once


def _on_gpu(gates: Sequence[Gate], qubits: int, real: np.dtype, kind: str) -> Callable[[], float]:
    """Seconds of one launch, by events."""
    import cupy

    from executors.circuit.gpu import Launcher
    from executors.circuit.tileprogram import empty_program, kernel_programs

    launch = Launcher(real)
    state = cupy.full(1 << qubits, 2.0 ** (-qubits / 2), dtype=launch.kind)
    if gates:
        circuit = Circuit(name="kernel", qubits=qubits, gates=tuple(gates))
        problem = Problem(circuit=Source(inline=circuit), machine=Machine(local_qubits=qubits))
        _, stages = kernel_programs(problem, _one_kernel(circuit, kind), live=True)
        call = launch.ready(stages[0], state, 0, qubits)[0]
    else:
        call = launch.launch(state, empty_program(qubits), 0)
    marks = cupy.cuda.Event(), cupy.cuda.Event()

    def once() -> float:
        marks[0].record()
        call()
        marks[1].record()
        marks[1].synchronize()
        return float(cupy.cuda.get_elapsed_time(*marks)) * 1e-3

    return once


def _one_kernel(circuit: Circuit, kind: str) -> Plan:
    """A plan of one stage with one kernel, wires where they are."""
    nothing = Proof(objective=0, unit="", status="heuristic")
    certificate = Certificate(objective=0, sense="min", unit="", status="heuristic", planner="profile", seconds=0)
    table = KernelTable(name="none", fusion_s=(0.0,) * 8, tile_s=(0.0,), tile_gate_s={"*": 0.0}, tile_qubits=_CUDA_TILE)
    active = tuple(sorted({q for gate in circuit.gates for q in gate.qubits}))
    kernel = Kernel(kind="fusion" if kind == "fusion" else "tile", qubits=active,
                    gates=tuple(range(len(circuit.gates))), cost_s=0.0)
    return Plan(stages=(Stage(local=tuple(range(circuit.qubits)), regional=(), global_=(), kernels=(kernel,)),),
                table=table, certificate=certificate, communication=nothing, kernel_time=nothing)


def _seconds(gates: Sequence[Gate], point: Point, device: str, kind: str) -> Callable[[], float]:
    qubits, real = int(point["amplitudes"]).bit_length() - 1, _REAL[int(point["amplitude_bytes"])]
    return _on_cpu(gates, qubits, real) if device == "cpu" else _on_gpu(gates, qubits, real, kind)


def _timed(clock: _Clock) -> Prepared:
    return Prepared(clock.seconds, timer=clock)


def _prepare_fusion(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    width, qubits = int(point["qubits"]), int(point["amplitudes"]).bit_length() - 1
    wires = tuple(qubits - 1 - 2 * k for k in reversed(range(width)))
    return _timed(_Clock(_seconds([from_matrix(_unitary(width, rng), wires)], point, device, "fusion")))


def _prepare_tile(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    return _timed(_Clock(_seconds([], point, device, "tile")))


def _prepare_gate(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    qubits = int(point["amplitudes"]).bit_length() - 1
    gates = _gates(str(point["gate"]), qubits, rng)
    return _timed(_Clock(_seconds(gates, point, device, "tile"), _seconds([], point, device, "tile"), GATES))


def _moved(point: Point) -> float:
    return 2.0 * int(point["amplitudes"]) * int(point["amplitude_bytes"])


def _fusion_work(point: Point) -> Work:
    return Work(8.0 * int(point["amplitudes"]) * (1 << int(point["qubits"])), _moved(point))


def _no_cupy(device: str) -> str | None:
    if device != "cuda":
        return None
    from executors.circuit.gpu import available

    return None if available() else "needs cupy (extra gpu)"


_BYTES: tuple[dict[str, str | int], ...] = ({"amplitude_bytes": 8}, {"amplitude_bytes": 16})
_STATES = GridAxis("amplitudes", (1 << 14, 1 << 18, 1 << 22), base=2)
_GPU_STATES = GridAxis("amplitudes", (1 << 20, 1 << 24, 1 << 28), base=2)
_WIDTHS = GridAxis("qubits", (1, 2, 3, 4, 5, 6), "linear")  # an operation of the compiled engine holds six address bits
_GPU_WIDTHS = GridAxis("qubits", (1, 2, 3, 4, 5, 6, 7), "linear")
_ACTIVE = GridAxis("qubits", (0, 8), "linear")
OPS = (
    Op(name="fusion_kernel", about="one dense matrix over a state", variants=_BYTES, prepare=_prepare_fusion,
       work=_fusion_work, axes=(_WIDTHS, _STATES), on_cuda={"axes": (_GPU_WIDTHS, _GPU_STATES)}, threads=0,
       lacking=_no_cupy),
    Op(name="tile_kernel", about="one pass through tiles that runs nothing", variants=_BYTES, prepare=_prepare_tile,
       work=lambda p: Work(0.0, _moved(p)), axes=(_ACTIVE, _STATES), on_cuda={"axes": (_ACTIVE, _GPU_STATES)},
       threads=0, lacking=_no_cupy),
    Op(name="tile_gate", about="one more gate inside a tile", prepare=_prepare_gate, threads=0, lacking=_no_cupy,
       variants=tuple({**size, "gate": name} for size in _BYTES for name in CLASSES),
       work=lambda p: Work(16.0 * int(p["amplitudes"]), 1.0), axes=(_STATES,), on_cuda={"axes": (_GPU_STATES,)}),
)

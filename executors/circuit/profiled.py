"""Kernel family ``circuit``: what the planner asks of a device, measured on the kernels that run there.

``fusion_kernel(qubits)`` is one dense matrix over a state, ``tile_kernel(qubits)`` one pass through tiles that runs
nothing, ``tile_gate(gate)`` what one more gate of a class costs inside a tile (a tile with ``GATES`` of them, less an
empty one in the same run, divided by their number). On a CPU all cores work and the compiled tile engine runs; on a GPU
the launches of ``executors.circuit.gpu``. States are uniform: every amplitude is read, multiplied and written.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from executors.circuit.compiled import engine, threads_available
from executors.circuit.costs import Sampler
from executors.circuit.local import compile_circuit
from executors.circuit.state import State, allocate
from planners.circuit import Circuit, Gate, Kernel, KernelTable, Machine, Plan, Problem, Source, Stage
from planners.circuit.ir import from_matrix
from planners.circuit.problem import Proof
from profilers.family import GridAxis, Op, Point, Prepared, Work
from workbench.plan import Certificate

__all__ = ["CLASSES", "GATES", "OPS"]

GATES = 8
_REAL: dict[int, np.dtype[Any]] = {8: np.dtype(np.float32), 16: np.dtype(np.float64)}
_REPEATS = 4
_PASSES = 4
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


class _Times(NamedTuple):
    """Seconds of a pass that runs nothing, and of the kernels under test, in one run."""

    empty_s: float
    whole_s: float


@dataclass
class _Clock:
    """Seconds of the kernels under test, or of the empty pass before them, or of what one is beyond the other."""

    once: Callable[[], _Times]
    counts: Literal["empty", "whole", "part"]
    parts: int = GATES
    processes: int = 1

    def block(self, kernel: Callable[[], Any], calls: int) -> float:
        """See ``profilers.harness.Timer``; a part is never less than ``_LEAST_SHARE`` of the whole."""
        times = [self.once() for _ in range(calls)]
        empty, whole = sum(t.empty_s for t in times), sum(t.whole_s for t in times)
        if self.counts == "part":
            return max(whole - empty, _LEAST_SHARE * whole) / self.parts
        return whole if self.counts == "whole" else empty


def _on_cpu(gates: Sequence[Gate], qubits: int, real: np.dtype, repeats: int) -> Callable[[], _Times]:
    """Runs over a state with every amplitude alive; the gates' operations ``repeats`` times over in their kernel.

    Passes that run nothing come first; the last of them is the empty pass. In the ones before it threads start (until
    then the first one takes all tiles) and each one's tiles come into its own caches. Without gates a tile is one
    stretch of memory: where the rows of two threads' tiles alternate, a pass takes up to four times as long on cores
    that do not share a cache, which on a virtual machine changes from minute to minute. Seconds are the engine's own,
    kernel by kernel, as of kernels within a program.
    """
    on, threads = engine(), threads_available()
    made = compile_circuit(Circuit(name="kernel", qubits=qubits, gates=tuple(gates)), dtype=real, on=on, live=True)
    state = _state(qubits, np.dtype(real).itemsize)
    program = made.program
    if gates:
        empty = program.kernels[:1].copy()
        empty["count"], empty["scale"] = 0, 1.0
    else:
        sampler = Sampler(dtype=real, qubits=qubits, on=on, threads=threads, state=state)
        sampler.wires = sampler.spread(sampler.shape.size - sampler.shape.run)
        empty = sampler.program([]).kernels
    kernels = program.kernels.copy()
    if repeats > 1:
        assert len(kernels) == 1, "gates inside one tile"
        kernels["count"] *= repeats
        kernels["scale"] **= repeats
    program = replace(program, kernels=np.concatenate([*[empty] * _PASSES, kernels]), ops=np.tile(program.ops, repeats))

    def once() -> _Times:
        seconds = on.run(program, state, shard=0, threads=threads)
        return _Times(float(seconds[_PASSES - 1]), float(seconds[_PASSES:].sum()))

    return once


@functools.lru_cache(maxsize=2)
def _state(qubits: int, real_bytes: int) -> State:
    """A uniform state, kept from point to point: making one takes longer than most measurements."""
    state = allocate(1 << qubits, np.result_type(np.float32 if real_bytes == 4 else np.float64, np.complex64))
    state[:] = 2.0 ** (-qubits / 2)
    return state


def _on_gpu(gates: Sequence[Gate], qubits: int, real: np.dtype, kind: str) -> Callable[[], _Times]:
    """A launch that runs nothing and the kernel's, by events."""
    import cupy

    from executors.circuit.gpu import Launcher
    from executors.circuit.tileprogram import empty_program, kernel_programs

    launch = Launcher(real)
    state = cupy.full(1 << qubits, 2.0 ** (-qubits / 2), dtype=launch.kind)
    empty = launch.launch(state, empty_program(qubits), 0)
    call = None
    if gates:
        circuit = Circuit(name="kernel", qubits=qubits, gates=tuple(gates))
        problem = Problem(circuit=Source(inline=circuit), machine=Machine(local_qubits=qubits))
        _, stages = kernel_programs(problem, _one_kernel(circuit, kind), live=True)
        call = launch.ready(stages[0], state, 0, qubits)[0]
    marks = cupy.cuda.Event(), cupy.cuda.Event(), cupy.cuda.Event()

    def once() -> _Times:
        marks[0].record()
        empty()
        marks[1].record()
        if call is not None:
            call()
        marks[2].record()
        marks[2].synchronize()
        return _Times(*(float(cupy.cuda.get_elapsed_time(*pair)) * 1e-3 for pair in itertools.pairwise(marks)))

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


def _timed(gates: Sequence[Gate], point: Point, device: str, *, kind: str,
           counts: Literal["empty", "whole", "part"]) -> Prepared:
    qubits, real = int(point["amplitudes"]).bit_length() - 1, _REAL[int(point["amplitude_bytes"])]
    # a class that costs little is lost in what two passes differ by: on a CPU its operations run several times
    repeats = _REPEATS if device == "cpu" and counts == "part" and point["gate"] != "*" else 1
    once = _on_cpu(gates, qubits, real, repeats) if device == "cpu" else _on_gpu(gates, qubits, real, kind)
    return Prepared(once, timer=_Clock(once, counts, GATES * repeats))


def _prepare_fusion(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    width, qubits = int(point["qubits"]), int(point["amplitudes"]).bit_length() - 1
    wires = tuple(qubits - 1 - 2 * k for k in reversed(range(width)))
    return _timed([from_matrix(_unitary(width, rng), wires)], point, device, kind="fusion", counts="whole")


def _prepare_tile(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    return _timed([], point, device, kind="tile", counts="empty")


def _prepare_gate(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    gates = _gates(str(point["gate"]), int(point["amplitudes"]).bit_length() - 1, rng)
    return _timed(gates, point, device, kind="tile", counts="part")


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
_STATES = GridAxis("amplitudes", (1 << 15, 1 << 16, 1 << 19, 1 << 22), base=2)  # one tile, or two, and more
_GPU_STATES = GridAxis("amplitudes", (1 << 20, 1 << 24, 1 << 28), base=2)
_WIDTHS = GridAxis("qubits", (1, 2, 3, 4, 5, 6), "linear")  # an operation of the compiled engine holds six address bits
_GPU_WIDTHS = GridAxis("qubits", (1, 2, 3, 4, 5, 6, 7), "linear")
_ACTIVE = GridAxis("qubits", (0, 8), "linear")
OPS = (
    Op(name="fusion_kernel", about="one dense matrix over a state", variants=_BYTES, prepare=_prepare_fusion,
       work=_fusion_work, axes=(_WIDTHS, _STATES), on_cuda={"axes": (_GPU_WIDTHS, _GPU_STATES)}, threads=0,
       lacking=_no_cupy, finish=_state.cache_clear),
    Op(name="tile_kernel", about="one pass through tiles that runs nothing", variants=_BYTES, prepare=_prepare_tile,
       work=lambda p: Work(0.0, _moved(p)), axes=(_ACTIVE, _STATES), on_cuda={"axes": (_ACTIVE, _GPU_STATES)},
       threads=0, lacking=_no_cupy, finish=_state.cache_clear),
    Op(name="tile_gate", about="one more gate inside a tile", prepare=_prepare_gate, threads=0, lacking=_no_cupy,
       finish=_state.cache_clear,
       variants=tuple({**size, "gate": name} for size in _BYTES for name in CLASSES),
       work=lambda p: Work(16.0 * int(p["amplitudes"]), 1.0), axes=(_STATES,), on_cuda={"axes": (_GPU_STATES,)}),
)

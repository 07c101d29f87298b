"""A plan's own kernels on one GPU: dense fused matrices and tiles in shared memory (CUDA C through cupy).

``kernel_programs`` turns each plan kernel into arguments of the two device functions in ``native/gates.cu``; it needs
no GPU, and the tests run its output through the same source compiled as C++. One process holds all shards in one
device's memory and swaps strided regions between them; a torchrun job holds one shard a rank and exchanges over NCCL.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from executors.circuit.emit import Layout
from executors.circuit.local import placement_after
from executors.circuit.lower import Dense, Flip, Lowering, Matrix, Phase, Primitive, Turn
from executors.circuit.sharded import ShardedCode, StageCode, by_address, transition
from planners.circuit import Plan, Problem, Stage
from planners.circuit.load import planned_circuit
from workbench.errors import SpecError
from workbench.outcome import Outcome

if TYPE_CHECKING:
    from executors.circuit.ranks import RankResult

__all__ = ["GATE", "DenseKernel", "KernelTime", "Launcher", "StageKernels", "TileKernelArguments", "available",
           "kernel_programs", "run", "run_rank", "source", "time_kernels"]

GATE = np.dtype([("kind", "i4"), ("bits", "i4"), ("bit", "i4", 4), ("tile_mask", "u8"), ("tile_value", "u8"),
                 ("address_mask", "u8"), ("address_value", "u8"), ("matrix", "i4"), ("pad", "i4")], align=True)
PINNED = 3
"""Lowest address bits that are in every tile: eight amplitudes fill a memory sector."""
LARGEST_TILE = 12
"""2^12 amplitudes of double precision are 64 KiB, which every GPU since 2017 grants a block on request."""
WIDEST = 4
"""Widest matrix inside a tile (2^4 amplitudes stay in registers)."""
THREADS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseKernel:
    """One fused matrix, shape (2^m, 2^m), on ascending address bits; one matrix a shard number."""

    bits: tuple[int, ...]
    matrices: tuple[npt.NDArray[np.complex128], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileKernelArguments:
    """Gates in order on tiles whose coordinates are the ascending address bits ``bits``."""

    bits: tuple[int, ...]
    gates: npt.NDArray[np.void]
    pool: npt.NDArray[np.complex128]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKernels:
    """One stage: the exchange before it is in the matching ``StageCode``."""

    kernels: tuple[DenseKernel | TileKernelArguments, ...]


def source() -> str:
    """The CUDA C text of both device functions."""
    return Path(__file__).with_name("native").joinpath("gates.cu").read_text(encoding="utf-8")


def available() -> bool:
    """Whether cupy is installed and sees a device."""
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.cuda.is_available())


def kernel_programs(problem: Problem, plan: Plan) -> tuple[ShardedCode, tuple[StageKernels, ...]]:
    """Device arguments of every plan kernel; the first value holds exchanges and placement (its programs are empty)."""
    circuit = planned_circuit(problem, plan)
    local_bits = len(plan.stages[0].local)
    lowering = Lowering(circuit.qubits)
    layout: Layout | None = None
    codes, stages = [], []
    for stage in plan.stages:
        exchange = None
        if layout is None:
            layout = Layout({w: p for p, w in enumerate(stage.layout)}, set())
        else:
            exchange = transition(layout, stage, lowering, local_bits)
        kernels: list[DenseKernel | TileKernelArguments] = []
        for kernel in stage.kernels:
            for g in kernel.gates:
                lowering.add(circuit.gates[g])
            primitives = lowering.take()
            if primitives:
                kernels.append(_kernel(primitives, kernel.kind, layout, plan, stage, circuit.qubits - local_bits))
        stages.append(StageKernels(kernels=tuple(kernels)))
        codes.append(StageCode.without_program(exchange, by_address(layout), local_bits))
    assert layout is not None, "a plan has at least one stage"
    return ShardedCode(qubits=circuit.qubits, local_bits=local_bits, stages=tuple(codes),
                       placement=placement_after(lowering, layout, circuit)), tuple(stages)


def _kernel(primitives: Sequence[Primitive], kind: str, layout: Layout, plan: Plan, stage: Stage, shard_bits: int
            ) -> DenseKernel | TileKernelArguments:
    local_bits = len(stage.local)
    touched = sorted({layout.address[w] for p in primitives for w in wires_of(p) if layout.address[w] < local_bits})
    if kind == "fusion":
        bits = tuple(touched)
        matrices = tuple(_product(primitives, bits, layout, shard << local_bits) for shard in range(1 << shard_bits))
        return DenseKernel(bits=bits, matrices=matrices)
    mixed = {layout.address[w] for p in primitives for w in mixed_of(p)}
    chosen = sorted(mixed | set(range(min(PINNED, local_bits))))
    if len(chosen) > LARGEST_TILE:
        raise SpecError(f"a tile kernel mixes {len(mixed)} qubits: with the {PINNED} lowest positions that is "
                        f"more than the {LARGEST_TILE} of the largest tile")
    size = min(max(plan.table.tile_qubits, len(chosen)), LARGEST_TILE, local_bits)
    spare = (a for a in range(local_bits) if a not in chosen)
    while len(chosen) < size:
        chosen.append(next(spare))
    return _tile(primitives, tuple(sorted(chosen)), layout)


def wires_of(p: Primitive) -> tuple[int, ...]:
    """Every wire a primitive touches."""
    if isinstance(p, Phase):
        return p.wires
    return (*mixed_of(p), *(w for w, _ in controls_of(p)))


def mixed_of(p: Primitive) -> tuple[int, ...]:
    """Wires that must lie in the tile."""
    if isinstance(p, Phase):
        return ()
    if isinstance(p, Flip):
        return (p.target,)
    return p.wires if isinstance(p, Dense) else (p.wire,)


def controls_of(p: Primitive) -> tuple[tuple[int, int], ...]:
    """(wire, stored value) of every control."""
    if isinstance(p, Flip):
        return ((p.control, 1),)
    return p.controls if isinstance(p, Matrix | Dense) else ()


def matrix_of(p: Primitive) -> npt.NDArray[np.complex128]:
    """Unitary on ``mixed_of(p)``."""
    if isinstance(p, Turn):
        c = 1 / np.hypot(1, p.slope)
        return np.array([[c, -c * p.slope], [c * p.slope, c]], dtype=np.complex128)
    if isinstance(p, Flip):
        return np.array([[0, 1], [1, 0]], dtype=np.complex128)
    assert isinstance(p, Matrix | Dense), "phases have no matrix"
    return p.matrix


def _ascending(p: Primitive, place: dict[int, int]) -> tuple[list[int], npt.NDArray[np.complex128]]:
    """Places of the mixed wires in ascending order, and the matrix in that order."""
    at = [place[w] for w in mixed_of(p)]
    order = sorted(range(len(at)), key=lambda i: at[i])
    index = np.arange(1 << len(at))
    old = sum(((index >> k & 1) << i for k, i in enumerate(order)), np.zeros_like(index))
    return [at[i] for i in order], np.ascontiguousarray(matrix_of(p)[np.ix_(old, old)])


def _tile(primitives: Sequence[Primitive], bits: tuple[int, ...], layout: Layout) -> TileKernelArguments:
    coordinate = {a: k for k, a in enumerate(bits)}
    place = {w: coordinate[a] for w, a in layout.address.items() if a in coordinate}
    rows: list[tuple[Any, ...]] = []
    pool: list[npt.NDArray[np.complex128]] = []
    length = 0

    def masks(wires: Sequence[tuple[int, int]]) -> tuple[int, int, int, int]:
        inside = [(place[w], v) for w, v in wires if w in place]
        outside = [(layout.address[w], v) for w, v in wires if w not in place]
        return (sum(1 << k for k, _ in inside), sum(v << k for k, v in inside),
                sum(1 << a for a, _ in outside), sum(v << a for a, v in outside))

    for p in primitives:
        if isinstance(p, Phase):
            for term, angle in p.terms.items():
                rows.append((1, 0, [0] * 4, *masks([(w, 1) for w in term]), length, 0))
                pool.append(np.array([np.exp(1j * angle)]))
                length += 1
            continue
        at, matrix = _ascending(p, place)
        if len(at) > WIDEST:
            raise SpecError(f"a matrix on {len(at)} qubits inside a tile kernel; at most {WIDEST}")
        rows.append((0, len(at), [*at, *[0] * (4 - len(at))], *masks(controls_of(p)), length, 0))
        pool.append(matrix.ravel())
        length += matrix.size
    return TileKernelArguments(bits=bits, gates=np.array(rows, dtype=GATE), pool=np.concatenate(pool))


def _product(primitives: Sequence[Primitive], bits: tuple[int, ...], layout: Layout, shard: int
             ) -> npt.NDArray[np.complex128]:
    """Matrix of several primitives on ``bits``, the shard's bits held fixed."""
    coordinate = {a: k for k, a in enumerate(bits)}
    place = {w: coordinate[a] for w, a in layout.address.items() if a in coordinate}
    index = np.arange(1 << len(bits))
    product = np.eye(len(index), dtype=np.complex128)

    def holds(wires: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        result = np.ones(len(index), dtype=bool)
        for w, v in wires:
            result &= (index >> place[w] & 1) == v if w in place else (shard >> layout.address[w] & 1) == v
        return result

    for p in primitives:
        if isinstance(p, Phase):
            for term, angle in p.terms.items():
                product[holds([(w, 1) for w in term])] *= np.exp(1j * angle)
            continue
        at, matrix = _ascending(p, place)
        targets = sum(1 << k for k in at)
        base = index[(index & targets == 0) & holds(controls_of(p))]
        rows = [base | sum(1 << k for i, k in enumerate(at) if j >> i & 1) for j in range(1 << len(at))]
        product[rows] = np.einsum("ij,jkl->ikl", matrix, product[rows])
    return product


def run(problem: Problem, plan: Plan, *, dtype: np.dtype) -> Outcome:
    """Run on the first GPU, all shards in its memory."""
    import cupy

    from executors.circuit.compiled import threads_available
    from executors.circuit.run import InProcess, exchange_shards, outcome_of

    began = time.perf_counter()
    code, stages = kernel_programs(problem, plan)
    launch = Launcher(dtype)
    state = cupy.zeros(1 << code.qubits, dtype=launch.kind)
    state[0] = 1
    shards = list(state.reshape(code.shards, -1))
    ready = [[call for number, shard in enumerate(shards)
              for call in launch.ready(kernels, shard, number, code.local_bits)] for kernels in stages]
    compile_s = time.perf_counter() - began
    done = InProcess(np.zeros(0, dtype=launch.kind))
    for stage, calls in zip(code.stages, ready, strict=True):
        if stage.exchange is not None:
            began = time.perf_counter()
            done.sent_bytes.append(exchange_shards(shards, stage.exchange))
            cupy.cuda.Device().synchronize()
            done.exchange_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        for call in calls:
            call()
        cupy.cuda.Device().synchronize()
        done.stage_s.append(time.perf_counter() - began)
    done.state = cupy.asnumpy(state)
    return outcome_of(problem, plan, code, done, engine="cupy RawKernel", threads=threads_available(),
                      compile_s=compile_s, passes=[len(s.kernels) for s in stages])


def run_rank(problem: Problem, plan: Plan, *, dtype: np.dtype) -> tuple[ShardedCode, RankResult]:
    """Run this rank's shard on its own GPU (LOCAL_RANK), exchanging over NCCL; the process group must be up."""
    import cupy
    import torch
    import torch.utils.dlpack

    from executors.circuit import ranks

    code, stages = kernel_programs(problem, plan)
    rank = ranks.check_size(code)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    with cupy.cuda.Device(local):
        launch = Launcher(dtype)
        state = cupy.zeros(1 << code.local_bits, dtype=launch.kind)
        state[0] = 1 if rank == 0 else 0
        result = ranks.RankResult(rank, np.zeros(0, dtype=launch.kind))

        def swap(piece: Any, to: int, source: int) -> int:
            out = cupy.ascontiguousarray(piece).reshape(-1).view(cupy.uint8)
            cupy.cuda.Device().synchronize()
            into = ranks.trade(torch.utils.dlpack.from_dlpack(out), to, source)
            torch.cuda.synchronize()
            piece[...] = cupy.from_dlpack(into).view(launch.kind).reshape(piece.shape)
            return int(out.size)

        for stage, kernels in zip(code.stages, stages, strict=True):
            if stage.exchange is not None:
                began = time.perf_counter()
                result.sent_bytes.append(ranks.exchange_regions(state, stage.exchange, rank, swap))
                cupy.cuda.Device().synchronize()
                result.exchange_s.append(time.perf_counter() - began)
            began = time.perf_counter()
            for call in launch.ready(kernels, state, rank, code.local_bits):
                call()
            cupy.cuda.Device().synchronize()
            result.stage_s.append(time.perf_counter() - began)
        result.state = cupy.asnumpy(state)
    return code, result


class Launcher:
    """The device functions for one precision on the current device."""

    def __init__(self, dtype: np.dtype) -> None:
        import cupy

        self.kind = np.result_type(dtype, np.complex64)
        real = "float" if dtype.itemsize == 4 else "double"
        module = cupy.RawModule(code=source(), options=("--std=c++17", f"-DREAL={real}"))
        self.dense, self.tiles = module.get_function("dense"), module.get_function("tiles")
        self.tiles.max_dynamic_shared_size_bytes = self.kind.itemsize << LARGEST_TILE

    def ready(self, kernels: StageKernels, shard: Any, number: int, local_bits: int) -> list[Callable[[], None]]:
        """Launches of a stage's kernels on one shard, in order, their arguments already on the device."""
        return [self._dense(shard, kernel, number) if isinstance(kernel, DenseKernel)
                else self._tiles(shard, kernel, number << local_bits) for kernel in kernels.kernels]

    def _dense(self, shard: Any, kernel: DenseKernel, number: int) -> Callable[[], None]:
        import cupy

        m = len(kernel.bits)
        groups = shard.size >> m
        blocks = min(-(-groups // (256 >> m)), 1 << 30)
        arguments = (shard, cupy.asarray(kernel.matrices[number].astype(self.kind)),
                     cupy.asarray(np.array(kernel.bits, dtype=np.int32)), np.int32(m), np.uint64(groups))
        return lambda: self.dense((blocks,), (THREADS,), arguments)

    def _tiles(self, shard: Any, kernel: TileKernelArguments, above: int) -> Callable[[], None]:
        import cupy

        bits = len(kernel.bits)
        number = shard.size >> bits
        arguments = (shard, cupy.asarray(kernel.gates.view(np.uint8)), np.int32(len(kernel.gates)),
                     cupy.asarray(kernel.pool.astype(self.kind)), cupy.asarray(np.array(kernel.bits, dtype=np.int32)),
                     np.int32(bits), np.uint64(number), np.uint64(above))
        return lambda: self.tiles((min(number, 1 << 30),), (min(THREADS, 1 << bits),), arguments,
                                  shared_mem=self.kind.itemsize << bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """Measured seconds of one planned kernel, and of preparing all of them (matrices, uploads, compilation)."""

    stage: int
    kernel: int
    seconds: float
    prepare_s: float


def time_kernels(problem: Problem, plan: Plan, *, dtype: np.dtype, rounds: int = 5) -> list[KernelTime]:
    """Median time of every planned kernel on the first GPU, one shard, by CUDA events; exchanges are left out."""
    import cupy

    began = time.perf_counter()
    code, stages = kernel_programs(problem, plan)
    launch = Launcher(dtype)
    state = cupy.full(1 << code.local_bits, 2.0 ** (-code.local_bits / 2), dtype=launch.kind)
    ready = [(i, j, call) for i, kernels in enumerate(stages)
             for j, call in enumerate(launch.ready(kernels, state, 0, code.local_bits))]
    prepare_s = time.perf_counter() - began
    spent: list[list[float]] = [[] for _ in ready]
    for turn in range(rounds + 1):
        marks = [cupy.cuda.Event() for _ in range(len(ready) + 1)]
        marks[0].record()
        for mark, (_, _, call) in zip(marks[1:], ready, strict=True):
            call()
            mark.record()
        marks[-1].synchronize()
        if turn:
            for row, (before, after) in zip(spent, itertools.pairwise(marks), strict=True):
                row.append(cupy.cuda.get_elapsed_time(before, after) * 1e-3)
    return [KernelTime(stage=i, kernel=j, seconds=statistics.median(row), prepare_s=prepare_s)
            for (i, j, _), row in zip(ready, spent, strict=True)]

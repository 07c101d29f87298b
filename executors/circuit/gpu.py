"""A plan's own kernels on one GPU: every planned kernel is one launch of ``native/gates.cu`` (CUDA C through cupy).

One process holds all shards in one device's memory and swaps strided regions between them; a torchrun job holds one
shard a rank and exchanges over NCCL. The programs are those of ``tileprogram``, which needs no GPU.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import threads_available
from executors.circuit.outcome import InProcess, exchange_shards, outcome_of
from executors.circuit.sharded import ShardedCode
from executors.circuit.tileprogram import (
    GROUP_SIZES,
    MOST_EDGES,
    GroupMatrix,
    StageKernels,
    TileProgram,
    kernel_programs,
)
from planners.circuit import Plan, Problem
from workbench.outcome import Outcome

if TYPE_CHECKING:
    from executors.circuit.ranks import RankResult

__all__ = ["KernelTime", "Launcher", "available", "run", "run_rank", "source", "time_kernels"]

THREADS = 256
_GROUP_THREADS = 128
_TABLES = 64
_ANGLES = 14 * 16
"""Entries of each half table and partial sums of angles in ``native/gates.cu``."""


def source() -> str:
    """The CUDA C text of the device function."""
    return Path(__file__).with_name("native").joinpath("gates.cu").read_text(encoding="utf-8")


def available() -> bool:
    """Whether cupy is installed and sees a device."""
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.cuda.is_available())


def run(problem: Problem, plan: Plan, *, dtype: np.dtype) -> Outcome:
    """Run on the first GPU, all shards in its memory."""
    import cupy

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
    """The device function for one precision on the current device."""

    def __init__(self, dtype: np.dtype) -> None:
        import cupy

        self.kind = np.result_type(dtype, np.complex64)
        real = "float" if dtype.itemsize == 4 else "double"
        module = cupy.RawModule(code=source(), options=("--std=c++17", f"-DREAL={real}"))
        self.tiles = module.get_function("tiles")
        self.groups = {m: module.get_function(f"group{m}") for m in GROUP_SIZES}
        device = cupy.cuda.Device()
        self.tiles.max_dynamic_shared_size_bytes = device.attributes["MaxSharedMemoryPerBlockOptin"] - 1024
        self.tiles.preferred_shared_memory_carveout = 100
        self.blocks = 16 * device.attributes["MultiProcessorCount"]

    def ready(self, kernels: StageKernels, shard: Any, number: int, local_bits: int) -> list[Callable[[], None]]:
        """Launches of a stage's kernels on one shard, in order, their arguments already on the device."""
        return [self.launch(shard, programs[number], number << local_bits) for programs in kernels.kernels]

    def launch(self, shard: Any, program: TileProgram | GroupMatrix, above: int) -> Callable[[], None]:
        """One launch of a program on a shard whose number, above its address bits, is ``above``."""
        import cupy

        if isinstance(program, GroupMatrix):
            return self._group(shard, program)
        bits = len(program.bits)
        tiles = shard.size >> bits
        parts = [_bytes(program.steps), np.int32(len(program.steps)), _bytes(program.ops), _bytes(program.terms),
                 program.pool.astype(self.kind), np.array(program.bits, dtype=np.int32)]
        arguments = (shard, *(cupy.asarray(x) if isinstance(x, np.ndarray) else x for x in parts), np.int32(bits),
                     np.uint64(tiles), np.uint64(above), np.int32(program.doubled))
        blocks, shared = (min(tiles, self.blocks),), self._shared_bytes(program)
        threads = (min(THREADS, 1 << (bits - 3)),)
        return lambda: self.tiles(blocks, threads, arguments, shared_mem=shared)

    def _group(self, shard: Any, program: GroupMatrix) -> Callable[[], None]:
        import cupy

        m = len(program.bits)
        groups = shard.size >> m
        function, shared = self.groups[m], self.kind.itemsize << 2 * m
        blocks = (min(-(-groups // _GROUP_THREADS), self.blocks * 8),)
        arguments = (shard, cupy.asarray(program.matrix.astype(self.kind)),
                     cupy.asarray(np.array(program.bits, dtype=np.int32)), np.uint64(groups))
        return lambda: function(blocks, (_GROUP_THREADS,), arguments, shared_mem=shared)

    def _shared_bytes(self, program: TileProgram) -> int:
        """One tile or two, the address tables, the angles, the phase tables and the rows of a matrix."""
        tiles = (2 if program.doubled else 1) * self.kind.itemsize << len(program.bits)
        return tiles + 2 * _TABLES * 8 + _ANGLES * 8 + 2 * MOST_EDGES * _TABLES * self.kind.itemsize + 2 * _TABLES * 4


def _bytes(records: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
    """Records as bytes, at least one so that a pointer exists."""
    return np.frombuffer(records.tobytes() or bytes(8), dtype=np.uint8)


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

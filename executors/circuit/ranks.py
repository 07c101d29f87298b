"""A plan on several ranks, one shard a rank, over torch.distributed (gloo on CPU).

The environment is torchrun's (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); without it ``spawn`` starts local processes.
Every exchange is pairwise and in place through a bounded buffer, and every byte sent is counted.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from executors.circuit.compiled import Engine
from executors.circuit.sharded import (
    Exchange,
    ShardedCode,
    compile_plan,
    engine_for,
    moved_shard,
    region,
    region_pieces,
)
from executors.circuit.state import State, allocate, clear_empty, prepare_zero
from planners.circuit import Plan, Problem
from workbench.errors import SpecError
from workbench.processes import deaf_to_interrupts

__all__ = [
    "RankResult", "Swap", "check_size", "exchange_regions", "group", "in_group", "run_rank", "spawn", "summed",
    "summed_complex", "swap_on_host", "trade",
]

Swap = Callable[[Any, int, int], int]
BUFFER_AMPLITUDES = 1 << 20
"""Amplitudes a rank sends at a time: bounds the memory beside the state."""


@dataclass(slots=True)
class RankResult:
    """One rank's part: its shard, what it sent at every transition, and the seconds of stages and transitions."""

    rank: int
    state: State
    sent_bytes: list[int] = field(default_factory=list)
    stage_s: list[float] = field(default_factory=list)
    exchange_s: list[float] = field(default_factory=list)


def run_rank(code: ShardedCode, *, dtype: Any, threads: int, on: Engine) -> RankResult:
    """Run this rank's shard through every stage; the process group must be up and as large as the plan's shards.

    Raises:
        SpecError: the group has another size.
    """
    rank = check_size(code)
    state = allocate(1 << code.local_bits, np.result_type(dtype, np.complex64))
    result = RankResult(rank, state)
    for index, stage in enumerate(code.stages):
        if stage.exchange is not None:
            began = time.perf_counter()
            result.sent_bytes.append(exchange_regions(state, stage.exchange, rank, swap_on_host))
            result.exchange_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        if index == 0:
            kernels = stage.program.kernels
            prepare_zero(state, int(kernels[0]["run"]) if len(kernels) else code.local_bits, first=rank == 0)
        if index or rank == 0:  # before the first exchange every other shard is zero
            on.run(stage.program, state, shard=rank, threads=threads)
            clear_empty(state, stage.empty)
        else:
            state[:] = 0
        result.stage_s.append(time.perf_counter() - began)
    return result


def check_size(code: ShardedCode) -> int:
    """This process's rank in a group as large as the plan's shards.

    Raises:
        SpecError: the group has another size.
    """
    size = dist.get_world_size()
    if size != code.shards:
        raise SpecError(f"the plan has {code.shards} shards but the job has {size} ranks",
                        hint=f"start {code.shards} ranks, or plan for local_qubits = n - log2(ranks)")
    return dist.get_rank()


def exchange_regions(state: Any, exchange: Exchange, rank: int, swap: Swap) -> int:
    """Trade regions with the 2^m - 1 partners, then move the whole shard if its number changes; bytes sent.

    ``state`` is this rank's shard as a NumPy or cupy array; ``swap(piece, to, source)`` sends a piece, overwrites it
    with what ``source`` sends, and returns the bytes sent.
    """
    pairs = exchange.pairs
    mine = sum((rank >> bit & 1) << i for i, (_, bit) in enumerate(pairs))
    rest = rank & ~sum(1 << bit for _, bit in pairs)
    sent = 0
    for step in range(1, 1 << len(pairs)):
        theirs = mine ^ step
        partner = rest | sum((theirs >> i & 1) << bit for i, (_, bit) in enumerate(pairs))
        for piece in region_pieces(region(state, pairs, theirs), BUFFER_AMPLITUDES):
            sent += swap(piece, partner, partner)
    target = moved_shard(rank, exchange)
    if target != rank:
        source = next(s for s in range(dist.get_world_size()) if moved_shard(s, exchange) == rank)
        for piece in region_pieces(state, BUFFER_AMPLITUDES):
            sent += swap(piece, target, source)
    return sent


def swap_on_host(piece: State, to: int, source: int) -> int:
    """``Swap`` for NumPy pieces."""
    out = torch.from_numpy(np.array(piece).reshape(-1).view(np.uint8))
    into = trade(out, to, source)
    piece[...] = into.numpy().view(piece.dtype).reshape(piece.shape)
    return out.numel()


def trade(out: torch.Tensor, to: int, source: int) -> torch.Tensor:
    """Send one tensor and receive its like, both under way at once (gloo or NCCL)."""
    into = torch.empty_like(out)
    operations = [dist.P2POp(dist.isend, out, to), dist.P2POp(dist.irecv, into, source)]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    return into


@contextlib.contextmanager
def group(backend: str = "gloo") -> Iterator[None]:
    """The process group of this job, opened here unless the caller already has one."""
    opened = not dist.is_initialized()
    if opened:
        dist.init_process_group(backend)
    try:
        yield
    finally:
        if opened:
            dist.destroy_process_group()


def summed(values: list[float], *, device: str = "cpu") -> list[float]:
    """Sums over all ranks; ``device`` is where the group's backend works."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(v) for v in tensor]


def summed_complex(values: npt.NDArray[np.complex128], *, device: str = "cpu") -> npt.NDArray[np.complex128]:
    """Sums over all ranks of an array that each rank fills in part."""
    tensor = torch.from_numpy(values.view(np.float64).copy()).to(device)
    dist.all_reduce(tensor)
    return tensor.cpu().numpy().view(np.complex128)


def spawn(problem: Problem, plan: Plan, *, ranks: int, dtype: Any, folder: Path, threads: int = 1) -> list[RankResult]:
    """Run the plan on ``ranks`` local processes over gloo; shards come back through files in ``folder``."""
    context = get_context("spawn")
    port = _free_port()
    processes = [context.Process(target=_member, args=(problem, plan, rank, ranks, port, np.dtype(dtype).name,
                                                       str(folder), threads)) for rank in range(ranks)]
    try:
        with deaf_to_interrupts():
            for process in processes:
                process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():  # after an interrupt
                process.kill()
    failed = [i for i, process in enumerate(processes) if process.exitcode]
    if failed:
        raise RuntimeError(f"ranks {failed} failed")
    return [_load(folder, rank) for rank in range(ranks)]


def _member(problem: Problem, plan: Plan, rank: int, ranks: int, port: int, dtype: str, folder: str, threads: int
            ) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    with group():
        result = in_group(problem, plan, dtype=dtype, threads=threads)
        np.savez(Path(folder) / f"shard{rank}.npz", state=result.state, sent=result.sent_bytes,
                 stage=result.stage_s, exchange=result.exchange_s)
        dist.barrier()


def in_group(problem: Problem, plan: Plan, *, dtype: Any, threads: int) -> RankResult:
    """Compile and run on this rank of an existing process group (the entry under torchrun)."""
    on = engine_for(len(plan.stages[0].local), dtype)
    code = compile_plan(problem, plan, dtype=dtype, on=on)
    return run_rank(code, dtype=dtype, threads=threads, on=on)


def _load(folder: Path, rank: int) -> RankResult:
    with np.load(folder / f"shard{rank}.npz") as data:
        return RankResult(rank, data["state"], data["sent"].tolist(), data["stage"].tolist(),
                          data["exchange"].tolist())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])



"""Collectives and point-to-point messages between ranks of one machine (gloo on CPUs, NCCL with one rank a GPU).

``bytes`` is the size of each rank's input tensor (for an all-gather: of its part). This process is rank 0; the others
are spawned, and are told before every timed block how many calls follow, so no call waits for anything but its peers.
A point-to-point message goes from rank 0 to rank 1 and back; half the time of the pair is one message.

Where ranks outnumber free CPUs, up to a quarter of the calls (of some messages half) wait some milliseconds until the
scheduler has its next tick. So a block counts with the lower quartile of its calls: what a call takes when nobody
waits for a tick.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from profilers.family import GridAxis, Op, Point, Prepared, Work
from workbench.processes import deaf_to_interrupts

__all__ = ["OPS", "call_of", "close_groups"]

_FLOAT_BYTES = 4
_PATIENCE = datetime.timedelta(seconds=60)
_RANKS = 2
_LEAST_CALLS = 4


def call_of(op: str, size_bytes: int, device: str) -> Callable[[], Any]:
    """One call of a collective in the running process group, on tensors of its own.

    The number of elements is rounded up to a multiple of the ranks where every rank gets a part.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    count = max(1, -(-size_bytes // _FLOAT_BYTES))
    whole = -(-count // ranks) * ranks
    x = torch.zeros(whole if op in ("all_to_all", "reduce_scatter") else count, device=device)
    if op == "all_reduce":
        return lambda: dist.all_reduce(x)
    if op == "all_gather":
        gathered = torch.zeros(ranks * count, device=device)
        return lambda: dist.all_gather_single(gathered, x)
    if op == "reduce_scatter":
        part = torch.zeros(whole // ranks, device=device)
        return lambda: dist.reduce_scatter_single(part, x)
    if op == "all_to_all":
        received = torch.zeros_like(x)
        return lambda: dist.all_to_all_single(received, x)
    assert op == "p2p", op
    first, second = (dist.send, dist.recv) if rank == 0 else (dist.recv, dist.send)

    def there_and_back() -> None:
        first(x, 1 - rank)
        second(x, 1 - rank)

    return there_and_back


def _own(device: str, rank: int) -> str:
    """The device of a rank."""
    return f"cuda:{rank}" if device == "cuda" else device


def _too_few_gpus(device: str) -> str | None:
    if device == "cuda" and torch.cuda.device_count() < _RANKS:
        return f"needs {_RANKS} GPUs, this machine has {torch.cuda.device_count()}"
    return None


def _join(store: str, rank: int, ranks: int, device: str) -> None:
    """Join the group. Its threads, made here, may run on every CPU, while the caller is bound to its own again.

    gloo moves data in threads of its own; bound to the CPU of the thread that waits for them, they get their turn
    milliseconds late.
    """
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if bound is not None:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    dist.init_process_group("gloo" if device == "cpu" else "nccl", init_method=Path(store).as_uri(), rank=rank,
                            world_size=ranks, timeout=_PATIENCE)
    if bound is not None:
        os.sched_setaffinity(0, bound)


def _follow(pipe: Connection, store: str, rank: int, ranks: int, device: str) -> None:
    """What ranks above 0 do: prepare the call they are told, join in as many as they are told, until told nothing.

    A spawned process inherits the CPUs its parent is bound to; the main threads of ranks above 0 get all the others.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0) or {0})
    _join(store, rank, ranks, device)
    call: Callable[[], Any] | None = None
    while (told := pipe.recv()) is not None:
        if isinstance(told, tuple):
            op, size_bytes = told
            call = call_of(op, size_bytes, _own(device, rank))
            continue
        assert call is not None
        for _ in range(told):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    dist.destroy_process_group()


class _Group:
    """Rank 0's side of spawned ranks; lives from the first point of a campaign to its end."""

    def __init__(self, ranks: int, device: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="wb-ranks-")
        store = str(Path(self._folder.name) / "store")
        spawn = multiprocessing.get_context("spawn")
        pairs = [spawn.Pipe() for _ in range(ranks - 1)]
        self.pipes = [mine for mine, _ in pairs]
        self._others = [spawn.Process(target=_follow, args=(theirs, store, rank, ranks, device), daemon=True)
                        for rank, (_, theirs) in enumerate(pairs, start=1)]
        with deaf_to_interrupts():
            for process in self._others:
                process.start()
        self.pids = tuple(process.pid or 0 for process in self._others)
        _join(store, 0, ranks, device)

    def close(self) -> None:
        """Send the other ranks home."""
        for pipe in self.pipes:
            pipe.send(None)
        dist.destroy_process_group()
        for process in self._others:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


_running: dict[tuple[int, str], _Group] = {}


def _group(ranks: int, device: str) -> _Group:
    if (ranks, device) not in _running:
        close_groups()
        _running[ranks, device] = _Group(ranks, device)
    return _running[ranks, device]


def close_groups() -> None:
    """End the spawned ranks, if there are any."""
    while _running:
        _running.popitem()[1].close()


class _GroupTimer:
    """Wall time of rank 0, with the other ranks told how many calls to join in."""

    def __init__(self, pipes: list[Connection], pids: tuple[int, ...], messages: int, device: str) -> None:
        self._pipes, self._messages, self.pids = pipes, messages, pids
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.processes = 1 + len(pipes)

    def block(self, kernel: Callable[[], Any], calls: int) -> float:
        """See ``profilers.harness.Timer``."""
        timed = max(calls, _LEAST_CALLS)
        for pipe in self._pipes:
            pipe.send(timed + 1)
        # One call that is not timed: everybody has arrived when it ends.
        kernel()
        self._wait()
        spent = []
        for _ in range(timed):
            start = time.perf_counter()
            kernel()
            self._wait()
            spent.append(time.perf_counter() - start)
        return calls * float(np.quantile(spent, 0.25)) / self._messages


def _prepare(op: str) -> Callable[..., Prepared]:
    def prepare(point: Point, device: str, rng: np.random.Generator) -> Prepared:
        group = _group(point.get("ranks", _RANKS), device)
        for pipe in group.pipes:
            pipe.send((op, point["bytes"]))
        return Prepared(call_of(op, point["bytes"], _own(device, 0)),
                        _GroupTimer(group.pipes, group.pids, 2 if op == "p2p" else 1, device))

    return prepare


def _moved(op: str) -> Callable[[Point], Work]:
    """Bytes a rank sends in the bandwidth-optimal schedule."""
    def work(point: Point) -> Work:
        ranks = point.get("ranks", _RANKS)
        share = {"all_reduce": 2 * (ranks - 1) / ranks, "all_gather": ranks - 1, "p2p": 1}.get(op, (ranks - 1) / ranks)
        return Work(0.0, share * point["bytes"])

    return work


_BYTES = GridAxis("bytes", (1024, 65536, 1 << 18, 1 << 20, 1 << 22, 1 << 24), step=64)
_HELD = (("bytes", lambda keys: 2.0 * _RANKS),)
OPS = (
    *(Op(name=name, about="collective between ranks of one machine", variants=({"ranks": _RANKS},), axes=(_BYTES,),
         terms=("bytes",), held=_HELD, prepare=_prepare(name), work=_moved(name), lacking=_too_few_gpus,
         finish=close_groups)
      for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")),
    Op(name="p2p", about="one message between two ranks of one machine", axes=(_BYTES,), prepare=_prepare("p2p"),
       terms=("bytes",), held=_HELD,
       work=_moved("p2p"), lacking=_too_few_gpus, finish=close_groups),
)

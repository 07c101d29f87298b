"""Collectives and point-to-point messages between ranks of one machine (gloo on CPUs, NCCL with one rank a GPU).

``bytes`` is the size of each rank's input tensor (for an all-gather: of its part). This process is rank 0; the others
are spawned, and are told before every timed block how many calls follow, so no call waits for anything but its peers.
A point-to-point message goes from rank 0 to rank 1 and back; half the time of the pair is one message.

gloo works in threads of its own, and how those share the CPUs decides what a call takes. Left to the system, one call
in four (of some messages every second one) waits milliseconds until the scheduler has its next tick. So every rank
keeps to a CPU of its own, its gloo threads too, and all of them are batch threads (Linux' SCHED_BATCH, open to every
user): none interrupts another that is about to hand over its work, and no call waits for a tick. An all-to-all takes
half as long where one rank always comes late, so ranks come together before each. A block counts with the median of its
calls.
"""

from __future__ import annotations

import datetime
import math
import multiprocessing
import os
import statistics
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
from profilers.harness import available_cpus, fixed_conditions
from workbench.processes import deaf_to_interrupts

__all__ = ["OPS", "call_of", "close_groups"]

_FLOAT_BYTES = 4
_PATIENCE = datetime.timedelta(seconds=60)
_RANKS = 2
_LEAST_CALLS, _MOST_CALLS = 4, 40
_BLOCK_S = 0.01
_UNTIMED = 3


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


def _gather(op: str, device: str) -> Callable[[], Any]:
    """What ranks do before each call of a collective, off the clock."""
    if op != "all_to_all":
        return lambda: None
    token = torch.zeros(1, device=device)
    return lambda: dist.all_reduce(token)


def _own(device: str, rank: int) -> str:
    """The device of a rank."""
    return f"cuda:{rank}" if device == "cuda" else device


def _too_few_gpus(device: str) -> str | None:
    if device == "cuda" and torch.cuda.device_count() < _RANKS:
        return f"needs {_RANKS} GPUs, this machine has {torch.cuda.device_count()}"
    return None


def _join(store: str, rank: int, ranks: int, device: str) -> None:
    """Join the group, on CPUs with all threads in one place (a new thread has the CPUs and the policy of its maker)."""
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    elif hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a spawned process has only its parent's
        cpus = available_cpus()
        os.sched_setaffinity(0, {cpus[rank % len(cpus)]})
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    dist.init_process_group("gloo" if device == "cpu" else "nccl", init_method=Path(store).as_uri(), rank=rank,
                            world_size=ranks, timeout=_PATIENCE)


def _follow(pipe: Connection, store: str, rank: int, ranks: int, device: str) -> None:
    """What ranks above 0 do: prepare the call they are told, join in as many as they are told, until told nothing."""
    with fixed_conditions(device=device):  # as rank 0: gloo allocates in every call
        _join(store, rank, ranks, device)
        call: Callable[[], Any] | None = None
        gather = _gather("", device)
        while (told := pipe.recv()) is not None:
            if isinstance(told, tuple):
                op, size_bytes = told
                call, gather = call_of(op, size_bytes, _own(device, rank)), _gather(op, _own(device, rank))
                continue
            assert call is not None
            for _ in range(told):
                gather()
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
        if hasattr(os, "sched_setscheduler"):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
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

    def __init__(self, pipes: list[Connection], pids: tuple[int, ...], op: str, device: str) -> None:
        self._pipes, self.pids = pipes, pids
        self._messages, self._gather = 2 if op == "p2p" else 1, _gather(op, _own(device, 0))
        self._call_s = math.inf
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.processes = 1 + len(pipes)

    def block(self, kernel: Callable[[], Any], calls: int) -> float:
        """See ``profilers.harness.Timer``."""
        timed = max(calls, _LEAST_CALLS, min(_MOST_CALLS, int(_BLOCK_S / self._call_s)))
        for pipe in self._pipes:
            pipe.send(timed + _UNTIMED)
        # Calls that are not timed: everybody has arrived when the first one ends, and is in step after some more.
        for _ in range(_UNTIMED):
            self._gather()
            kernel()
        self._wait()
        spent = []
        for _ in range(timed):
            self._gather()
            self._wait()
            start = time.perf_counter()
            kernel()
            self._wait()
            spent.append(time.perf_counter() - start)
        self._call_s = statistics.median(spent)
        return calls * self._call_s / self._messages


def _prepare(op: str) -> Callable[..., Prepared]:
    def prepare(point: Point, device: str, rng: np.random.Generator) -> Prepared:
        group = _group(point.get("ranks", _RANKS), device)
        for pipe in group.pipes:
            pipe.send((op, point["bytes"]))
        return Prepared(call_of(op, point["bytes"], _own(device, 0)),
                        _GroupTimer(group.pipes, group.pids, op, device))

    return prepare


def _moved(op: str) -> Callable[[Point], Work]:
    """Bytes a rank sends in the bandwidth-optimal schedule."""
    def work(point: Point) -> Work:
        ranks = point.get("ranks", _RANKS)
        share = {"all_reduce": 2 * (ranks - 1) / ranks, "all_gather": ranks - 1, "p2p": 1}.get(op, (ranks - 1) / ranks)
        return Work(0.0, share * point["bytes"])

    return work


# Around a MiB messages leave the caches of one core.
_BYTES = GridAxis("bytes", (1024, 65536, 1 << 18, 1 << 19, 3 << 18, 1 << 20, 1 << 22, 1 << 24), step=64)
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

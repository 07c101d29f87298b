"""A plan on a state larger than memory: the state is a file, one shard at a time is in memory (the arena).

A layout change costs nothing on its own: file address bits keep their wires, and a stage's arena gathers the shard's
amplitudes from wherever its local bits lie. So every stage reads the whole state once and writes it once: traffic =
stages x 2 x state. Arena and file agree on the order of bits while a shard is moved, which keeps the contiguous pieces
long: before a shard is written the wires that leave in the next stage trade places, in memory, with the highest of its
bits, and after one is read its bits are brought into the order the stage's program expects. Plain reads and writes:
resident memory is the arena and one buffer. ``StoredState`` reads amplitudes afterwards through a memory map.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import Engine, threads_available
from executors.circuit.sharded import ShardedCode
from executors.circuit.state import Placement, State, allocate, clear_empty
from workbench.errors import Infeasible

PIECE = 1 << 16
"""Amplitudes that trade places at a time, so that the copy of them stays in cache."""
__all__ = ["FileRun", "StoredState", "run_on_file", "scratch_folder"]


@dataclass(slots=True)
class FileRun:
    """What a run on a file did. ``placement`` addresses the file."""

    placement: Placement
    read_bytes: int = 0
    written_bytes: int = 0
    stage_s: list[float] = field(default_factory=list)
    smallest_piece_bytes: int = 1 << 62


class StoredState:
    """A state file, read like the one-dimensional array of a state in memory; nothing stays mapped between reads."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.path, self.dtype = path, np.dtype(dtype)

    def as_state(self) -> State:
        """This, for what only reads a state: it takes the length, slices and addresses of it and nothing else."""
        return cast("State", self)

    def __len__(self) -> int:
        return self.path.stat().st_size // self.dtype.itemsize

    def __getitem__(self, index: Any) -> Any:
        """A copy of a contiguous slice, or of amplitudes at integer addresses."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            return np.fromfile(self.path, self.dtype, stop - start, offset=start * self.dtype.itemsize)
        return np.asarray(np.memmap(self.path, self.dtype, mode="r")[index])


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that is gone afterwards, also when the process is told to end (SIGTERM) in between.

    The signal's default would end the process where it stands and leave a file of the state's size behind.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _leave)
    try:
        with tempfile.TemporaryDirectory(prefix="circuit-") as folder:
            yield Path(folder)
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: object) -> NoReturn:
    """Unwind; the exit status is the one shells give a process that a signal ended."""
    raise SystemExit(128 + number)


def run_on_file(code: ShardedCode, path: Path, *, dtype: Any, on: Engine, threads: int | None = None,
                start: Mapping[int, complex] | None = None) -> FileRun:
    """Run from |0...0>; the state ends in ``path`` (2^n amplitudes, native byte order).

    Args:
        code: from ``compile_plan`` for ``on``; the arena holds its 2^local_bits amplitudes.
        path: the file, made anew.
        dtype: float32 or float64.
        on: engine.
        threads: all processors by default.
        start: amplitudes by basis state of the wires, where the start is not |0...0> (``code.live``).

    Raises:
        Infeasible: the disk has no room for the state.
    """
    size = np.result_type(dtype, np.complex64).itemsize << code.qubits
    room = shutil.disk_usage(path.parent).free
    if room < size:
        raise _no_room(path, size, f"the disk has {room} free")
    kind = np.result_type(dtype, np.complex64)
    arena = allocate(1 << code.local_bits, kind)
    bits = code.local_bits
    # file[w]: file address bit of wire w
    file = {w: a for a, w in enumerate(code.stages[0].entry)}
    run = FileRun(code.placement)
    with path.open("w+b", buffering=0) as handle:
        _reserve(handle.fileno(), path, size)
        for basis, amplitude in (start or {0: 1.0}).items():
            handle.seek(kind.itemsize * sum((basis >> w & 1) << a for w, a in file.items()))
            handle.write(np.array([amplitude], dtype=kind).tobytes())
        for index, stage in enumerate(code.stages):
            began = time.perf_counter()
            own = [file[w] for w in stage.entry[:bits]]
            others = [file[w] for w in stage.entry[bits:]]
            following = code.stages[index + 1].entry[bits:] if index + 1 < len(code.stages) else ()
            within = sorted(own)
            enter = _trades(within, own)
            leave, left = _trades_of_leaving(stage.exit[:bits], set(following))
            for shard in range(code.shards):
                base = sum((shard >> i & 1) << a for i, a in enumerate(others))
                run.read_bytes += _transfer(handle.fileno(), arena, within, base, run, write=False)
                for a, b in enter:
                    _swap_bits(arena, a, b)
                if index or not shard or code.live:
                    on.run(stage.program, arena, shard=shard, threads=threads or threads_available())
                    clear_empty(arena, stage.empty)
                for a, b in leave:
                    _swap_bits(arena, a, b)
                run.written_bytes += _transfer(handle.fileno(), arena, within, base, run, write=True)
            file.update(dict(zip(left, within, strict=True)))
            run.stage_s.append(time.perf_counter() - began)
    where = {a: file[w] for a, w in enumerate(code.stages[-1].exit)}
    old = code.placement
    flip = sum(1 << where[a] for a in where if old.flip >> a & 1)
    run.placement = Placement(tuple(where[a] for a in old.address), flip, old.factor)
    return run


def _reserve(descriptor: int, path: Path, size: int) -> None:
    """Give the file its size, and where the system can its room, so that the disk cannot fill in the middle of a run.

    Raises:
        Infeasible: there is no room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.truncate(descriptor, size)
    except OSError as error:
        raise _no_room(path, size, error.strerror or str(error)) from None


def _no_room(path: Path, size: int, reason: str) -> Infeasible:
    return Infeasible(f"the state file takes {size} bytes in {path.parent}: {reason}",
                      hint="point TMPDIR at a larger disk")


def _trades(have: Sequence[int], want: Sequence[int]) -> list[tuple[int, int]]:
    """Swaps of positions, one after the other, that turn one order into another."""
    order, trades = list(have), []
    for i, item in enumerate(want):
        at = order.index(item)
        if at != i:
            trades.append((i, at))
            order[i], order[at] = order[at], order[i]
    return trades


def _trades_of_leaving(wires: Sequence[int], leaving: set[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Swaps that bring the wires about to leave to the highest positions, and the order then."""
    order, trades = list(wires), []
    top = len(order)
    for i in reversed(range(len(order))):
        if order[i] in leaving:
            top -= 1
            if i != top:
                trades.append((i, top))
                order[i], order[top] = order[top], order[i]
    return trades, order


def _swap_bits(arena: State, a: int, b: int) -> None:
    """Exchange two address bits of the arena in place, a piece at a time."""
    low, high = min(a, b), max(a, b)
    view = arena.reshape(-1, 2, 1 << (high - low - 1), 2, 1 << low)
    for block in view:
        step = max(1, PIECE >> low)
        for start in range(0, block.shape[1], step):
            one, other = block[0, start : start + step, 1], block[1, start : start + step, 0]
            held = one.copy()
            one[...] = other
            other[...] = held


def _pieces(bits: Sequence[int], base: int) -> tuple[int, Iterator[tuple[int, int]]]:
    """Contiguous run (log2) shared by arena and file, and (arena start, file start) of every run."""
    run = 0
    while run < len(bits) and bits[run] == run:
        run += 1

    def walk() -> Iterator[tuple[int, int]]:
        # in file order, so that the device sees ascending offsets
        ordered = sorted(range(run, len(bits)), key=lambda a: bits[a])
        for i in range(1 << len(ordered)):
            yield (sum(1 << a for k, a in enumerate(ordered) if i >> k & 1),
                   base + sum(1 << bits[a] for k, a in enumerate(ordered) if i >> k & 1))

    return run, walk()


def _transfer(descriptor: int, arena: State, bits: Sequence[int], base: int, run: FileRun, *, write: bool) -> int:
    """Move one shard between file and arena; bytes moved."""
    length, pieces = _pieces(bits, base)
    size = arena.itemsize
    raw: npt.NDArray[np.uint8] = arena.view(np.uint8)
    run.smallest_piece_bytes = min(run.smallest_piece_bytes, size << length)
    done = 0
    for here, there in pieces:
        part = raw[here * size : (here + (1 << length)) * size].data
        while part.nbytes:
            try:
                count = (os.pwrite(descriptor, part, there * size) if write
                         else os.preadv(descriptor, [part], there * size))
            except OSError as error:
                raise Infeasible(f"the state file failed at byte {there * size}: {error.strerror or error}",
                                 hint="point TMPDIR at another disk") from None
            if not count:
                raise OSError(f"the state file ended at byte {there * size}")
            done += count
            part = part[count:]
            there += count // size
    return done

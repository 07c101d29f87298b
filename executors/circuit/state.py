"""The state vector: 2^address_bits amplitudes of a shard, and where each qubit of the circuit is stored in it."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["Placement", "allocate", "clear_empty", "free_bytes", "gather", "prepare_zero"]

State = npt.NDArray[np.complexfloating]


def free_bytes() -> int:
    """Memory this machine could give now without swapping (all of it where the system does not say)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def allocate(count: int, dtype: npt.DTypeLike) -> State:
    """``count`` amplitudes in fresh zero pages, in huge pages where the system grants them (shape (count,))."""
    size = count * np.dtype(dtype).itemsize
    huge = 1 << 21
    if size < huge:
        raw = np.zeros(size + 64, dtype=np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + size].view(dtype)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        room = mmap.mmap(-1, size + huge, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        room.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(room, dtype=np.uint8)
    else:
        raw = np.zeros(size + huge, dtype=np.uint8)
    start = -raw.ctypes.data % huge
    return raw[start : start + size].view(dtype)


def prepare_zero(state: State, run: int, *, first: bool = True) -> None:
    """|0...0> as the tile executor expects it: only the first row of 2^run amplitudes is written."""
    state[: 1 << run] = 0
    if first:
        state[0] = 1


def clear_empty(state: State, empty: int) -> None:
    """Zero every amplitude whose address has a bit of ``empty`` (bits no kernel has reached)."""
    for a in range(len(state).bit_length() - 1):
        if empty >> a & 1:
            state.reshape(-1, 2, 1 << a)[:, 1] = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """How a basis state of the circuit is addressed.

    ``address[q]``: address bit of qubit q (bits at or above the shard's own count number the shard); ``flip``: mask of
    address bits stored inverted; ``factor``: multiply amplitudes by it (the circuit's global phase).
    """

    address: tuple[int, ...]
    flip: int
    factor: complex

    def index(self, basis: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Addresses of basis states (qubit 0 = least significant bit)."""
        x = np.asarray(basis, dtype=np.int64)
        result = np.zeros_like(x)
        for q, a in enumerate(self.address):
            result |= (x >> q & 1) << a
        return result ^ self.flip

    def basis(self, address: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Basis states at addresses: the inverse of ``index``."""
        a = np.asarray(address, dtype=np.int64) ^ self.flip
        result = np.zeros_like(a)
        for q, bit in enumerate(self.address):
            result |= (a >> bit & 1) << q
        return result


def gather(state: State, placement: Placement, *, qubits: int, chunk_bits: int = 20) -> State:
    """The whole vector in the circuit's own order, shape (2^qubits,); takes as much memory again."""
    result = np.empty(1 << qubits, dtype=state.dtype)
    step = 1 << min(chunk_bits, qubits)
    for start in range(0, 1 << qubits, step):
        result[start : start + step] = state[placement.index(np.arange(start, start + step))]
    result *= np.asarray(placement.factor, dtype=state.dtype)
    return result



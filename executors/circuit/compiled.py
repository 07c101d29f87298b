"""The compiled tile executor: built once for this processor with the system's C compiler, cached, called by ctypes.

Without a compiler ``engine`` gives the numpy interpreter, whose ``name`` says so.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from executors.circuit.emit import Program
from executors.circuit.interpreted import Interpreter
from profilers.harness import available_cpus
from workbench.errors import NotBuilt
from workbench.native import built

__all__ = ["CACHED_BYTES", "Compiled", "Engine", "build", "engine", "native_engine", "threads_available"]

SOURCES = Path(__file__).with_name("native")
COMMON = ("-pthread", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
CACHED_BYTES = 1 << 26
"""A state up to this size may lie in a last-level cache; what a pass writes of a larger one goes around it."""
VECTOR_FLAGS: dict[int, tuple[str, ...]] = {
    64: ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    32: ("-mavx2", "-mfma"),
    16: (),
}


class Engine(Protocol):
    """Runs programs on shards."""

    name: str

    def lanes(self, dtype: npt.DTypeLike) -> int:
        """Log2 of the reals in one vector: programs must be emitted for it."""
        ...

    def run(self, program: Program, state: npt.NDArray[np.complexfloating], *, shard: int, threads: int
            ) -> npt.NDArray[np.float64]:
        """Run on the state in place; returns the seconds of every kernel."""
        ...


class _Header(ctypes.Structure):
    _fields_ = (("address_bits", ctypes.c_int32), ("threads", ctypes.c_int32), ("precision", ctypes.c_int32),
                ("pad", ctypes.c_int32), ("shard", ctypes.c_uint64), ("kernels", ctypes.c_int64),
                ("kernel", ctypes.c_void_p), ("op", ctypes.c_void_p), ("reals", ctypes.c_void_p),
                ("ints", ctypes.c_void_p), ("state", ctypes.c_void_p), ("seconds", ctypes.c_void_p))


class Compiled:
    """The shared library for one vector width."""

    def __init__(self, vector_bytes: int) -> None:
        self.vector_bytes = vector_bytes
        self.name = f"compiled, {8 * vector_bytes}-bit vectors"
        library = ctypes.CDLL(str(build(vector_bytes)))
        self._run = library.run_program
        self._run.argtypes = [ctypes.POINTER(_Header)]
        self._run.restype = ctypes.c_int

    def lanes(self, dtype: npt.DTypeLike) -> int:
        """Log2 of the reals in one vector."""
        return (self.vector_bytes // np.dtype(dtype).itemsize).bit_length() - 1

    def run(self, program: Program, state: npt.NDArray[np.complexfloating], *, shard: int, threads: int
            ) -> npt.NDArray[np.float64]:
        """Run on the state in place; returns the seconds of every kernel.

        Raises:
            MemoryError: no room for the threads' tiles.
        """
        seconds = np.zeros(len(program.kernels))
        assert state.flags.c_contiguous and state.size == 1 << program.address_bits
        assert state.ctypes.data % 64 == 0, "states come from state.allocate"
        header = _Header(program.address_bits, threads, program.dtype.itemsize, 0, shard, len(program.kernels),
                         program.kernels.ctypes.data, program.ops.ctypes.data, program.reals.ctypes.data,
                         program.ints.ctypes.data, state.ctypes.data, seconds.ctypes.data)
        if self._run(ctypes.byref(header)):
            raise MemoryError("no memory for the tiles of the executor's threads")
        return seconds


def threads_available() -> int:
    """Processors this process may run on."""
    return len(available_cpus())


@functools.cache
def engine() -> Engine:
    """The compiled executor for this processor, or the numpy interpreter (with a warning) without a C compiler."""
    try:
        return native_engine()
    except NotBuilt as error:
        warnings.warn(f"{error.message}: circuits run on the numpy interpreter, many times slower", stacklevel=2)
        return Interpreter()


@functools.cache
def native_engine() -> Compiled:
    """The compiled executor.

    Raises:
        NotBuilt: no C compiler, or it fails on the sources.
    """
    probe: Any = ctypes.CDLL(str(built(SOURCES / "cpu.c", COMMON)))
    return Compiled(int(probe.vector_bytes()))


def build(vector_bytes: int) -> Path:
    """Path of the library for one vector width, compiled if the cache has none.

    Raises:
        NotBuilt: no C compiler, or it fails on the sources.
    """
    options = (*COMMON, f"-DVECTOR_BYTES={vector_bytes}", f"-DCACHED_BYTES={CACHED_BYTES}L", "-DENTRY=run_program",
               *VECTOR_FLAGS[vector_bytes])
    return built(SOURCES / "tiles.c", options, headers=[SOURCES / "tile_ops.h"])

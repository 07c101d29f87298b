"""Memory bandwidth and transfers: copies within memory, between host and device, and to and from disk.

Rates count bytes read plus bytes written for a copy within memory, and the bytes that cross for a transfer. The disk
is read past the page cache where the system lets a file's pages be dropped, and written until it is durable.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from profilers.family import GridAxis, Op, Point, Prepared, Work, drawn

__all__ = ["OPS", "add", "copy", "drop_cached", "read_file", "write_file"]

_FLOAT_BYTES = 4
# From a quarter of a MiB to 4 MiB operands leave the caches of one core, and later that of all.
_SIZES = (4096, 65536, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22, 1 << 24, 1 << 27)
_GPU_SIZES = {"axes": (GridAxis("bytes", (4096, 1 << 18, 1 << 24, 1 << 28, 1 << 32), step=64),)}


def copy(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Copy ``source`` into ``target``, across devices too; asynchronous where the host side is pinned."""
    return target.copy_(source, non_blocking=True)


def add(out: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """out = x + y, as in a residual connection: the plainest kernel that only moves data."""
    return torch.add(x, y, out=out)


def write_file(path: Path, data: memoryview) -> None:
    """Write ``data`` and wait until it is durable."""
    with path.open("wb", buffering=0) as stream:
        stream.write(data)
        os.fsync(stream.fileno())


def drop_cached(path: Path) -> None:
    """Ask the system to forget the cached pages of a file; without such a call nothing happens."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_file(path: Path, into: memoryview) -> int:
    """Read a file into a buffer of its size; returns the bytes read."""
    with path.open("rb", buffering=0) as stream:
        return stream.readinto(into)


def _bytes(point: Point, rng: np.random.Generator) -> NDArray[np.uint8]:
    return np.resize(rng.integers(0, 256, min(1 << 20, int(point["bytes"])), dtype=np.uint8), int(point["bytes"]))


def _prepare_copy(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    source = torch.randint(0, 256, (int(point["bytes"]),), dtype=torch.uint8, device=device) if device != "cpu" else (
        torch.from_numpy(_bytes(point, rng)))
    target = torch.zeros_like(source)
    return Prepared(lambda: copy(target, source))


def _prepare_add(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    count = max(1, int(point["bytes"]) // (3 * _FLOAT_BYTES))
    x = torch.from_numpy(drawn(rng, (count,))).to(device)
    y, out = x.clone(), torch.empty_like(x)
    return Prepared(lambda: add(out, x, y))


def _prepare_host(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    host = torch.from_numpy(_bytes(point, rng)).pin_memory()
    there = host.to(device)
    return Prepared((lambda: copy(there, host)) if point["way"] == "to_device" else (lambda: copy(host, there)))


def _prepare_disk(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    handle, name = tempfile.mkstemp(prefix="wb-profile-", dir=Path.cwd())
    os.close(handle)
    path, data = Path(name), _bytes(point, rng)
    write_file(path, data.data)

    def read() -> None:
        drop_cached(path)
        read_file(path, data.data)

    run = read if point["way"] == "read" else lambda: write_file(path, data.data)
    return Prepared(run, close=lambda: path.unlink(missing_ok=True))


OPS = (
    Op(name="memory_copy", about="copy within one memory", prepare=_prepare_copy,
       terms=("bytes",), held=(("bytes", lambda keys: 2.0),),
       axes=(GridAxis("bytes", _SIZES, step=64),), on_cuda=_GPU_SIZES, work=lambda p: Work(0.0, 2.0 * p["bytes"])),
    Op(name="elementwise", about="sum of two arrays; bytes are those read and written", prepare=_prepare_add,
       terms=("bytes",), held=(("bytes", lambda keys: 1.0),),
       axes=(GridAxis("bytes", (768, *_SIZES[1:]), step=96),), on_cuda=_GPU_SIZES,
       work=lambda p: Work(0.0, float(p["bytes"]))),
    Op(name="host_device", about="copy between pinned host memory and the device", prepare=_prepare_host,
       variants=({"way": "to_device"}, {"way": "to_host"}), devices=("cuda",),
       axes=(GridAxis("bytes", _SIZES, step=64),), work=lambda p: Work(0.0, float(p["bytes"]))),
    Op(name="disk", about="file written durably, or read past the cache", prepare=_prepare_disk,
       terms=("bytes",),
       variants=({"way": "read"}, {"way": "write"}), devices=("cpu",),
       axes=(GridAxis("bytes", (65536, 1 << 20, 1 << 24), step=64),), work=lambda p: Work(0.0, float(p["bytes"]))),
)

"""How every kernel is measured: fixed conditions, enough repeats for a stated confidence, and honesty about noise.

A measurement is a set of timed blocks; a block repeats the kernel until it lasts ``BLOCK_S``, so that the timer's own
cost stays below a thousandth. Blocks are added until the 95 % confidence interval of the median (order statistics,
distribution-free) is narrower than the target, or the point's time is spent. A point is *noisy* when the machine was
busy with something else (steal or foreign load), when it needs several processors and these were farther from each
other than before (a host moves virtual ones to cores that share no cache), when its blocks fall into two groups
(bimodal), or when the target was not reached; a noisy point is measured again, and marked if it stays noisy.

Conditions that fake speed are fixed and recorded: threads, CPU affinity, and glibc's malloc thresholds (with the
defaults, megabyte-sized results are returned to the system and faulted in again in some processes and not in others).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from profilers.native import library
from workbench.errors import WorkbenchError
from workbench.spec import about, spec

__all__ = ["BLOCK_S", "CROWDED", "GRAPH_CALLS", "WATCHED_S", "Conditions", "Cores", "CpuTimer", "CudaTimer",
           "Measurement", "Timer", "available_cpus", "bimodal", "fixed_conditions", "last_cache_bytes", "measure",
           "median_interval"]

BLOCK_S = 1e-3
GRAPH_CALLS = 32
"""Calls in one CUDA graph: as many as a family has copies of its operands, so that every copy takes its turn."""
CROWDED = ("steal", "foreign load", "cores far apart")
"""How the complaint begins when other programs had the processors, or the host had moved them."""
WATCHED_S = 0.05
"""What other programs use is counted in ticks of 10 ms: in a shorter time they are not told from nothing."""
_MIN_BLOCKS = 9
_FEWEST_BLOCKS = 6
_LONG_S = 2e-3
_LONG_BLOCK_S = 20e-3
_FOREIGN_SHARE = 0.10
_STEAL_SHARE = 0.02
_FAR, _PAIR, _ROUNDS = 2.0, 2, 400
_MALLOPT = {"mmap_threshold": (-3, 1 << 30), "trim_threshold": (-1, (1 << 31) - 1)}


@spec
class Conditions:
    """What was held fixed while measuring."""

    device: str = about("cpu or the GPU's name.")
    threads: int = about("Threads a kernel may use.")
    cpus: tuple[int, ...] = about("CPUs the process was bound to.")
    malloc: str = about("Allocator thresholds in force.")


@spec
class Measurement:
    """One measured point."""

    median_s: float = about("Median time of one call.")
    min_s: float = about("Least time of one call.")
    interval_s: tuple[float, float] = about("95 % confidence interval of the median.")
    blocks: int = about("Timed blocks.")
    calls: int = about("Calls a block.")
    noise: str | None = about("Why the point is not to be trusted; absent when it is.", default=None)

    @property
    def half_width(self) -> float:
        """Half the confidence interval as a share of the median."""
        return (self.interval_s[1] - self.interval_s[0]) / 2 / self.median_s


class Timer(Protocol):
    """Times ``calls`` calls of a kernel on one device; ``processes`` of ours keep CPUs busy meanwhile.

    A timer may name the others in ``pids``: then what they really used is told from what other programs used.
    """

    processes: int

    def block(self, kernel: Callable[[], Any], calls: int) -> float:
        """Seconds for ``calls`` calls, including their completion on the device."""
        ...


class CpuTimer:
    """Wall time on the host's monotonic clock."""

    processes = 1

    def block(self, kernel: Callable[[], Any], calls: int) -> float:
        """See ``Timer``."""
        start = time.perf_counter_ns()
        for _ in range(calls):
            kernel()
        return (time.perf_counter_ns() - start) * 1e-9


class CudaTimer:
    """Time between two events on the current CUDA stream; the host only waits for the last one.

    Kernels are captured into a CUDA graph, as serving engines run them, so that what is timed is the device and not
    Python's launches; a kernel that cannot be captured (it waits for the device, or copies to the host) is launched
    call by call.
    """

    processes = 1

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            built = torch.version.cuda
            raise WorkbenchError("no CUDA device to measure on", where="--device cuda", allowed=["cpu"],
                                 hint="PyTorch finds no NVIDIA GPU" if built else "this PyTorch is built for CPUs only",
                                 next_command="wb doctor")
        self._cuda = torch.cuda
        self._kernel: Callable[[], Any] | None = None
        self._graph: Any = None

    def block(self, kernel: Callable[[], Any], calls: int) -> float:
        """See ``Timer``."""
        if kernel is not self._kernel:
            self._graph = self._captured(kernel)
            self._kernel = kernel
        replays = max(1, calls // GRAPH_CALLS) if self._graph is not None else calls
        once = kernel if self._graph is None else self._graph.replay
        start, end = self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)
        start.record()
        for _ in range(replays):
            once()
        end.record()
        end.synchronize()
        share = calls / (replays * GRAPH_CALLS) if self._graph is not None else 1.0
        return float(start.elapsed_time(end)) * 1e-3 * share

    def _captured(self, kernel: Callable[[], Any]) -> Any:
        """A graph of ``GRAPH_CALLS`` calls, or ``None`` where launches do not matter or cannot be captured.

        The calls before it compile and allocate.
        """
        self._graph = None
        kernel()
        self._cuda.synchronize()
        began = time.perf_counter()
        kernel()
        self._cuda.synchronize()
        if time.perf_counter() - began > _LONG_S:
            return None
        for _ in range(GRAPH_CALLS):
            kernel()
        self._cuda.synchronize()
        graph = self._cuda.CUDAGraph()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a capture that fails says so twice
                self._capture(graph, kernel)
            graph.replay()
            self._cuda.synchronize()
        except RuntimeError:
            self._cuda.synchronize()
            return None
        return graph

    def _capture(self, graph: Any, kernel: Callable[[], Any]) -> None:
        with self._cuda.graph(graph):
            for _ in range(GRAPH_CALLS):
                kernel()


def available_cpus() -> list[int]:
    """CPUs this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@functools.cache
def last_cache_bytes() -> int | None:
    """Size of the processor's last cache before memory; ``None`` where the system names none.

    Source: Linux' /sys/devices/system/cpu/cpu0/cache.
    """
    found = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            size = (index / "size").read_text().strip()
            found.append(int(size[:-1]) << {"K": 10, "M": 20, "G": 30}.get(size[-1:], 0))
    return max(found, default=None)


@contextlib.contextmanager
def fixed_conditions(*, device: str = "cpu", threads: int = 1) -> Iterator[Conditions]:
    """Bind the process to ``threads`` CPUs, set torch's threads and the allocator, and restore the first two on exit.

    Raises:
        WorkbenchError: fewer CPUs are available to this process than ``threads``.
    """
    import torch

    bindable = hasattr(os, "sched_getaffinity")
    available = available_cpus()
    if threads > len(available):
        raise WorkbenchError(f"{threads} threads asked for, {len(available)} CPUs available to this process",
                             hint=f"at most {len(available)} can be used here")
    before = torch.get_num_threads()
    cpus = tuple(available[:threads])
    torch.set_num_threads(threads)
    if bindable:
        os.sched_setaffinity(0, cpus)
    try:
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        yield Conditions(device=name, threads=threads, cpus=cpus, malloc=_keep_freed_memory())
    finally:
        torch.set_num_threads(before)
        if bindable:
            os.sched_setaffinity(0, available)


def _keep_freed_memory() -> str:
    """Tell glibc's malloc not to give freed memory back; says what was set, or that this libc cannot."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        done = [name for name, (option, value) in _MALLOPT.items() if libc.mallopt(option, value) == 1]
    except (OSError, AttributeError):
        return "default (not glibc)"
    return ", ".join(f"{name}={_MALLOPT[name][1]}" for name in done) or "default"


def measure(kernel: Callable[[], Any], *, timer: Timer, target: float = 0.02, seconds: float = 1.0,
            attempts: int = 3, least_s: float = 0.0) -> Measurement:
    """Measure one kernel until the median is known to ``target`` (half-width as a share), at most ``seconds`` a try.

    A try lasts ``least_s`` at least: below ``WATCHED_S`` nobody can say whether other programs ran meanwhile. The
    kernel is called before the clock starts (compilation, caches, lazy allocation). Of ``attempts`` noisy
    tries the one with the narrowest interval is kept, marked as noisy.
    """
    calls = 1 if timer.block(kernel, 1) > _LONG_BLOCK_S else _calls_a_block(kernel, timer)
    best: Measurement | None = None
    for _ in range(attempts):
        found = _once(kernel, timer, calls, target, (least_s, seconds))
        if found.noise is None:
            return found
        if best is None or found.half_width < best.half_width:
            best = found
    assert best is not None
    return best


def _calls_a_block(kernel: Callable[[], Any], timer: Timer) -> int:
    """Calls until a block counts ``BLOCK_S``, or lasts ten times as long (a timer may count a small part of a call)."""
    calls = 1
    while True:
        began = time.monotonic()
        took = timer.block(kernel, calls)
        lasted = time.monotonic() - began
        if lasted >= 10 * BLOCK_S or took >= BLOCK_S:
            # A block that was held up ends the search too early: the calls it ends with are then far too short.
            again = time.monotonic()
            if timer.block(kernel, calls) >= BLOCK_S or time.monotonic() - again >= 10 * BLOCK_S:
                return calls
        growth = min(16.0, BLOCK_S / max(took, 1e-9), 10 * BLOCK_S / max(lasted, 1e-9))
        calls = max(calls * 2, min(calls * 16, int(calls * growth) + 1))


def _once(kernel: Callable[[], Any], timer: Timer, calls: int, target: float,
          seconds: tuple[float, float]) -> Measurement:
    blocks: list[float] = []
    pids: tuple[int, ...] = getattr(timer, "pids", ())
    activity = _Activity(pids)
    several = timer.processes > 1 or seconds[0] > 0
    far = _CORES.complaint() if several else None
    earliest, deadline = (time.monotonic() + s for s in seconds)
    low = high = middle = 0.0
    while True:
        blocks.append(timer.block(kernel, calls) / calls)
        if len(blocks) >= (_FEWEST_BLOCKS if blocks[0] * calls > _LONG_BLOCK_S else _MIN_BLOCKS):
            low, high = median_interval(blocks)
            middle = statistics.median(blocks)
            now = time.monotonic()
            if now > earliest and ((high - low) / 2 <= target * middle or now > deadline):
                break
    noise = activity.complaint(timer.processes - 1 - len(pids)) or far
    if noise is None and several:
        noise = _CORES.complaint()
    if noise is None and bimodal(blocks):
        noise = "bimodal"
    if noise is None and (high - low) / 2 > target * middle:
        noise = f"median known to {(high - low) / 2 / middle:.1%} only"
    return Measurement(median_s=middle, min_s=min(blocks), interval_s=(low, high), blocks=len(blocks), calls=calls,
                       noise=noise)


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """Distribution-free 95 % confidence interval of the median from order statistics (binomial, normal approximation).

    Six to eight samples give their whole range (covers with at least 97 %); fewer never reach 95 %.
    """
    ordered = sorted(samples)
    n = len(ordered)
    if n < _MIN_BLOCKS:
        return ordered[0], ordered[-1]
    reach = 1.96 * n**0.5 / 2
    return ordered[max(0, int(n / 2 - reach))], ordered[min(n - 1, int(n / 2 + reach))]


def bimodal(samples: Sequence[float], *, least_share: float = 0.2, separation: float = 0.05) -> bool:
    """Whether samples fall into two groups, each at least ``least_share`` of them, with an empty gap in between.

    The gap must exceed ``separation`` of the median and three times the wider group's interquartile range.
    """
    ordered = sorted(samples)
    n = len(ordered)
    first, last = max(2, int(least_share * n)), n - max(2, int(least_share * n))
    if first >= last:
        return False
    cut = max(range(first, last + 1), key=lambda i: ordered[i] - ordered[i - 1])
    gap = ordered[cut] - ordered[cut - 1]
    spread = max(_interquartile(ordered[:cut]), _interquartile(ordered[cut:]))
    return gap > separation * ordered[n // 2] and gap > 3 * spread


def _interquartile(ordered: Sequence[float]) -> float:
    return ordered[(3 * len(ordered)) // 4 - (len(ordered) % 4 == 0)] - ordered[len(ordered) // 4]


def _used(pid: int) -> int:
    """Clock ticks another process has used (proc(5): utime and stime); 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


@dataclass(frozen=True)
class _Ticks:
    wall: float
    own: float
    busy: float
    steal: float


class Cores:
    """How far apart this process' first two CPUs are, by ``there_and_back`` (seconds of a message; 0: not known).

    Seconds are compared with the least ever found: a virtual machine's processors are moved now and then to cores that
    share no cache, and whatever passes data between threads then takes longer, for seconds to minutes.
    """

    def __init__(self, there_and_back: Callable[[], float] | None = None) -> None:
        self._cpus = available_cpus()[:_PAIR]
        self._there_and_back = there_and_back or self._measured
        self._nearest_s = math.inf

    def _measured(self) -> float:
        native = library("cores")
        if native is None or len(self._cpus) < _PAIR:
            return 0.0
        native.there_and_back.restype = ctypes.c_double
        return float(native.there_and_back(*self._cpus, ctypes.c_long(_ROUNDS)))

    def complaint(self) -> str | None:
        """Why what several CPUs do now cannot be trusted, or ``None``."""
        found = self._there_and_back()
        if not found:
            return None
        self._nearest_s = min(self._nearest_s, found)
        return f"cores far apart ({found / self._nearest_s:.1f}x)" if found > _FAR * self._nearest_s else None


_CORES = Cores()


class _Activity:
    """What the machine did besides us and ``pids`` since this was made; needs Linux' /proc/stat, silent elsewhere."""

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._pids = tuple(pids)
        self._start = self._now()

    def _now(self) -> _Ticks | None:
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _idle, _wait, irq, soft, steal, *_ = map(int, stat.open().readline().split()[1:])
        rate = os.sysconf("SC_CLK_TCK")
        own = os.times()
        ours = own.user + own.system + sum(_used(pid) for pid in self._pids) / rate
        return _Ticks(time.monotonic(), ours, (user + nice + system + irq + soft) / rate, steal / rate)

    def complaint(self, helpers: int) -> str | None:
        """Why the time since the start cannot be trusted, or ``None``; ``helpers`` more processes are ours."""
        before, now = self._start, self._now()
        if before is None or now is None or now.wall - before.wall < WATCHED_S:
            return None
        capacity = (now.wall - before.wall) * (os.cpu_count() or 1)
        steal = (now.steal - before.steal) / capacity
        foreign = ((now.busy - before.busy) - (now.own - before.own)) / capacity - helpers / (os.cpu_count() or 1)
        if steal > _STEAL_SHARE:
            return f"steal {steal:.0%}"
        return f"foreign load {foreign:.0%}" if foreign > _FOREIGN_SHARE else None

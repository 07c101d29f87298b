"""One kernel's time as a program will see it: operands as cold and as warm as the kernel before leaves them.

Before every timed call memory for the results is touched and given back, since the allocator hands out what the program
has just freed, and the data operands are written again in order, as the kernels before would. Weights are as cold as a
run of the program leaves them: where a kernel has any, the caches are swept first with as many bytes as a run moves (at
most twice the last level), and a twin of the kernel with other weights runs, so that the sweep does not cool the code
too, which the program's other kernels keep warm. Only the call itself is timed, on the thread's own CPU clock where one
thread works, so that other processes on the machine cost precision and not truth. Conditions and statistics are those
of ``profilers.harness``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from executors.orchestration.backends import BACKENDS, Payload
from executors.orchestration.kernels import Cannot, Operands, examples, first_line, function, graph_module, in_double
from planners.orchestration.candidates import Structure
from profilers.harness import CudaTimer, Measurement, Timer, measure

__all__ = ["CACHES", "TOLERANCE", "Cache", "ContextTimer", "Subject", "cache_for", "largest", "worst_error"]

Cache = Literal["warm", "cold"]
CACHES: dict[str, int] = {"warm": 6 << 20, "cold": 64 << 20}
"""Bytes swept before a timed call of a kernel with weights: beyond the second level of cache, or beyond the last."""
TOLERANCE = 5e-5
"""Error of a kernel that is put down to rounding: about three times the worst that any back-end showed (1.8e-5) where
eager PyTorch itself kept to a third of it, over kernels of all shipped programs."""
_ROUNDING = 4.0
"""Kernels that amplify rounding, such as divisions by what may be nearly zero, may be off by so many times what eager
PyTorch is off; 2.1 times was seen."""
_SMALLEST = 1e-2
"""Errors are shares of the largest wanted value, but of no less than this: operands are of order one, and what cancels
down to nothing keeps their rounding."""
_LAST_LEVEL_BYTES = 24 << 20
_FEW = 3


def cache_for(touched_bytes: int) -> Cache:
    """In which state a program that touches so many bytes in a run finds its weights at the next."""
    return "cold" if touched_bytes > _LAST_LEVEL_BYTES else "warm"


class ContextTimer:
    """Times calls one by one with ``before`` in between; a block of many calls is a sample of a few, scaled.

    ``clock`` gives nanoseconds: the thread's own where one thread works; reading it twice takes ``overhead_ns``.
    """

    processes = 1

    def __init__(self, before: Callable[[], Any], *, threads: int) -> None:
        self.before = before
        self.clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
        self.overhead_ns = min(self._gap() for _ in range(200))

    def _gap(self) -> int:
        began = self.clock()
        return self.clock() - began

    def block(self, kernel: Callable[[], Any], calls: int) -> float:
        """See ``profilers.harness.Timer``."""
        sample = min(calls, _FEW)
        total = 0
        for _ in range(sample):
            self.before()
            began = self.clock()
            kernel()
            total += self.clock() - began - self.overhead_ns
        return max(total, 1) * 1e-9 / sample * calls


def largest(wanted: torch.Tensor) -> float:
    """The largest finite value, or what stands for it where all are tiny: the scale of ``worst_error``."""
    finite = wanted.detach()[torch.isfinite(wanted)]
    return max(_SMALLEST, float(finite.abs().max()) if finite.numel() else 0.0)


def worst_error(found: torch.Tensor, wanted: torch.Tensor, *, scale: float | None = None) -> float:
    """Largest difference as a share of ``scale`` (``largest(wanted)`` by default); infinite where only one is
    finite."""
    found, wanted = found.detach().double(), wanted.detach().double()
    finite = torch.isfinite(wanted)
    if not torch.equal(finite, torch.isfinite(found)):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    return float((found[finite] - wanted[finite]).abs().max()) / (largest(wanted) if scale is None else scale)


@dataclass(slots=True)
class Subject:
    """A structure with operands and reference result, to be measured on several back-ends."""

    structure: Structure
    device: str
    threads: int
    cache: Cache
    inputs: list[torch.Tensor]
    wanted: tuple[torch.Tensor, ...]
    allowed: float
    """Error up to which a result counts as right."""
    sweep: torch.Tensor

    @classmethod
    def of(cls, structure: Structure, *, device: str, threads: int, cache: Cache, sweep: torch.Tensor) -> Subject:
        """Draw operands, compute the reference in double precision, and see what single precision makes of it."""
        inputs = examples(structure, device=device)
        graph = graph_module(structure)
        given = [x for x, v in zip(inputs, structure.inputs, strict=True) if v.role != "constant"]
        with torch.no_grad():
            single = tuple(graph(*given))
            try:
                wanted = tuple(graph_module(in_double(structure))(
                    *[x.double() if x.dtype == torch.float32 else x for x in given]))
            except RuntimeError:  # an operator that only knows single precision
                wanted = single
        rounding = max((worst_error(s, w) for s, w in zip(single, wanted, strict=True)), default=0.0)
        allowed = max(TOLERANCE, _ROUNDING * rounding if math.isfinite(rounding) else 0.0)
        return cls(structure, device, threads, cache, inputs, wanted, allowed, sweep)

    def fixed(self, *, copied: bool = False) -> Operands:
        """The weights among the operands, or copies of them."""
        return Operands({i: x.clone() if copied else x
                         for i, (x, v) in enumerate(zip(self.inputs, self.structure.inputs, strict=True))
                         if v.role == "weight"}, self.device)

    def data(self) -> list[torch.Tensor]:
        """The data among the operands."""
        return [x for x, v in zip(self.inputs, self.structure.inputs, strict=True) if v.role == "data"]

    def before(self, twin: Callable[..., Any] | None = None) -> None:
        """Leave the caches as the program would; ``twin`` is the kernel with other weights, where it has any."""
        if twin is not None:
            torch.sum(self.sweep)
            twin(*self.data())
        torch.sum(self.sweep[:CACHES["warm"] // self.sweep.element_size()])
        touched = [torch.empty_like(w, dtype=torch.float32).fill_(0.0) for w in self.wanted]
        del touched
        for x in self.data():
            if x.dtype.is_floating_point:
                x.mul_(1.0)

    def _call(self, backend: str, payload: Payload, fixed: Operands) -> Callable[..., Any]:
        try:
            return function(BACKENDS[backend].fragment(self.structure, payload, fixed), self.structure)
        except Cannot:
            raise
        except Exception as failure:  # libraries raise what they like
            raise Cannot(f"{type(failure).__name__}: {first_line(failure)}") from failure

    def measure(self, backend: str, payload: Payload, *, best_s: float, seconds: float
                ) -> tuple[Measurement, float]:
        """Time of the structure on a back-end, and the error of its result.

        A kernel whose first calls take more than twice ``best_s`` is measured no further.

        Raises:
            Cannot: no kernel, a wrong result, a wrong layout, or a failure at run time.
        """
        with torch.no_grad():
            data = self.data()
            call = self._call(backend, payload, self.fixed())
            try:
                made = call(*data)
            except Exception as failure:  # libraries raise what they like
                raise Cannot(f"{type(failure).__name__}: {first_line(failure)}") from failure
            error = self._check(made)

            def kernel() -> Any:
                return call(*data)

            timer: Timer = CudaTimer() if self.device == "cuda" else ContextTimer(self.before, threads=self.threads)
            quick = min(timer.block(kernel, 1) for _ in range(2))
            if quick > 2 * best_s:
                return Measurement(median_s=quick, min_s=quick, interval_s=(quick, quick), blocks=2, calls=1,
                                   noise="measured twice only: far above the best"), error
            if self.device != "cuda" and self.fixed().fixed:
                twin = self._call(backend, payload, self.fixed(copied=True))
                timer = ContextTimer(lambda: self.before(twin), threads=self.threads)
            return measure(kernel, timer=timer, target=0.02, seconds=seconds, attempts=1), error

    def _check(self, made: torch.Tensor | Sequence[torch.Tensor]) -> float:
        outputs = [made] if isinstance(made, torch.Tensor) else list(made)
        for got, o in zip(outputs, self.structure.outputs, strict=True):
            value = self.structure.steps[o].value
            if any(n != 1 and a != b for n, a, b in zip(value.shape, got.stride(), value.strides, strict=True)):
                raise Cannot(f"stores strides {got.stride()}, wanted {value.strides}")
        error = max((worst_error(g, w) for g, w in zip(outputs, self.wanted, strict=True)), default=0.0)
        if not error <= self.allowed:
            raise Cannot(f"wrong result: {error:.1e} of the largest value, allowed {self.allowed:.1e}")
        return error

"""Kernels measured when a planner asks for them: prepared by the pool, timed one after the other, kept in the store.

``Workshop.measure`` is the planner's ``lazy.Measure``. For every structure it does not know it tries each back-end:
quick ones first, so that a slow one is dropped after two calls. What cannot run is kept with its reason, and nothing
is compiled or measured twice, in this run or a later one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from executors.orchestration import inductor
from executors.orchestration.backends import BACKENDS, Payload
from executors.orchestration.kernels import Cannot
from executors.orchestration.measure import CACHES, Cache, Subject
from executors.orchestration.pool import Job, Pool
from executors.orchestration.store import Store
from planners.orchestration.candidates import Structure
from profilers.harness import Measurement
from workbench.errors import SpecError

__all__ = ["KERNEL_S", "Workshop"]

KERNEL_S = 0.06
_LIBRARY = ("linear", "opaque")
_FEW_STEPS = 24
"""Kernels with one compute-bound step and at most so many in all are not compiled: what Inductor makes of them is the
library's call and generated code beside it, which a plan gets from two kernels just as well."""


class Workshop:
    """Measures kernels into a store.

    Args:
        store: where times and artifacts are kept.
        backends: names of the back-ends to try.
        device: ``cpu`` or ``cuda``.
        threads: threads a kernel may use.
        cache: state of the caches in which kernels are timed (``measure.cache_for``).
        say: called with a line on progress.
        workers: processes that compile.
        kernel_s: time to spend on a kernel's measurement on one back-end.

    Raises:
        SpecError: no such back-end, or it cannot be used here.
    """

    def __init__(self, store: Store, *, backends: Sequence[str], device: str, threads: int, cache: Cache,
                 say: Callable[[str], None], workers: int = 2, kernel_s: float = KERNEL_S) -> None:
        for name in backends:
            if name not in BACKENDS:
                raise SpecError(f"no back-end is called {name!r}", where="backends", allowed=list(BACKENDS))
            why = BACKENDS[name].lacking()
            if why is not None or device not in BACKENDS[name].devices:
                raise SpecError(f"back-end {name!r} {why or f'does not run on {device}'}", where="backends",
                                allowed=[b.name for b in BACKENDS.values() if device in b.devices])
        self.store, self.say, self.kernel_s = store, say, kernel_s
        self.device, self.threads, self.cache = device, threads, cache
        self.backends = [name for name in BACKENDS if name in backends]
        self.pool = Pool(store.inductor, device=device, threads=threads, workers=workers)
        self.measured = self.compiled = 0
        self.compile_s = self.measure_s = 0.0
        self._sweep = torch.zeros(CACHES[cache] // 4)

    def close(self) -> None:
        """End the pool's processes."""
        self.pool.close()

    def measure(self, wanted: Sequence[tuple[str, Structure]]) -> None:
        """Make the store know every back-end's time of the wanted kernels (digest, structure)."""
        new = {digest: made for digest, made in wanted
               if any(not self.store.known(digest, b) for b in self.backends)}
        if not new:
            return
        began = time.perf_counter()
        jobs = []
        for digest, made in new.items():
            for name in self.backends:
                if not BACKENDS[name].compiles or self.store.known(digest, name):
                    continue
                if len(made.steps) <= _FEW_STEPS and sum(step.kind in _LIBRARY for step in made.steps) == 1:
                    self.store.add(digest, name, None, why="its compute-bound step would be a library call of its own")
                elif self.store.artifact(digest, name) is None:
                    jobs.append(Job(digest, name, made))
        for made_job in self.pool.prepare(jobs):
            self.compiled += 1
            job = made_job.job
            if made_job.payload is None:
                self.store.add(job.digest, job.backend, None, why=made_job.why)
            else:
                self.store.keep(job.digest, job.backend, made_job.payload)
        self.compile_s += time.perf_counter() - began
        began = time.perf_counter()
        with inductor.cache_folder(self.store.inductor):
            for number, (digest, made) in enumerate(new.items(), start=1):
                self._all_backends(digest, made)
                if number % 20 == 0:
                    self.say(f"{number} of {len(new)} kernels measured")
        self.measure_s += time.perf_counter() - began

    def _all_backends(self, digest: str, made: Structure) -> None:
        """Measure one structure on every back-end that is not known yet."""
        missing = [b for b in self.backends if not self.store.known(digest, b)]
        try:
            subject = Subject.of(made, device=self.device, threads=self.threads, cache=self.cache, sweep=self._sweep)
        except Exception as error:  # a graph that torch itself refuses to run
            for name in missing:
                self.store.add(digest, name, None, why=f"reference: {type(error).__name__}: {error}"[:300])
            return
        for name in missing:
            best = min((self.store.costs.seconds.get((digest, b), float("inf")) for b in self.backends),
                       default=float("inf"))
            self._one(digest, name, subject, best)

    def _one(self, digest: str, name: str, subject: Subject, best: float) -> None:
        backend = BACKENDS[name]
        try:
            if backend.alternatives is not None:
                payloads: list[Payload] = list(backend.alternatives(subject.structure, self.device))
            elif backend.compiles:
                payloads = [self.store.artifact(digest, name)]
            else:
                payloads = [backend.prepare(subject.structure, self.device, self.threads)]
        except Cannot as why:
            self.store.add(digest, name, None, why=str(why))
            return
        found: tuple[Measurement, float, Payload] | None = None
        reasons = []
        for payload in payloads:
            try:
                time_, error = subject.measure(name, payload, best_s=best, seconds=self.kernel_s)
            except Cannot as why:
                reasons.append(str(why))
                continue
            self.measured += 1
            if found is None or time_.min_s < found[0].min_s:
                found = time_, error, payload
                best = min(best, time_.min_s)
        if found is None:
            self.store.add(digest, name, None, why="; ".join(reasons))
            return
        time_, error, payload = found
        if not backend.compiles:
            self.store.keep(digest, name, payload)
        self.store.add(digest, name, time_.min_s, median_s=time_.median_s, blocks=time_.blocks, error=error,
                       **({"noise": time_.noise} if time_.noise else {}))

"""Compilation in worker processes: what back-ends prepare for kernels, several at a time, each kept as it is made.

Measuring is serial and happens elsewhere; nothing here is timed. Workers never hear Ctrl-C: the process that asked
hears it, ends them and keeps what was made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple

from planners.orchestration.candidates import Structure
from workbench.processes import deaf_to_interrupts

__all__ = ["Job", "Made", "Pool"]


class Job(NamedTuple):
    """One kernel to prepare for one back-end."""

    digest: str
    backend: str
    structure: Structure


class Made(NamedTuple):
    """What became of a job: a payload, or why there is none."""

    job: Job
    payload: str | bytes | None
    why: str | None


def _start(folder: str) -> None:
    """What a worker does first."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # whoever measures is bound to fewer
    import torch

    torch.set_num_threads(1)


def _prepare(backend: str, structure: Structure, device: str, threads: int) -> tuple[str | bytes | None, str | None]:
    from executors.orchestration.backends import BACKENDS
    from executors.orchestration.kernels import Cannot

    try:
        return BACKENDS[backend].prepare(structure, device, threads), None
    except Cannot as why:
        return None, str(why)


class Pool:
    """Worker processes that prepare kernels; started with the first job, closed with ``close``.

    Args:
        folder: Inductor's cache folder.
        device: device the kernels are for.
        threads: threads a kernel may use.
        workers: processes.
    """

    def __init__(self, folder: Path, *, device: str, threads: int, workers: int = 2) -> None:
        self.folder, self.device, self.threads, self.workers = folder, device, threads, workers
        self._pool: ProcessPoolExecutor | None = None

    def prepare(self, jobs: Iterable[Job]) -> Iterator[Made]:
        """Prepare all jobs; each is given as soon as it is done."""
        jobs = list(jobs)
        if not jobs:
            return
        pool = self._pool = self._pool or ProcessPoolExecutor(
            self.workers, mp_context=get_context("spawn"), initializer=_start, initargs=(str(self.folder),))
        with deaf_to_interrupts():
            waiting: dict[Future[tuple[str | bytes | None, str | None]], Job] = {
                pool.submit(_prepare, job.backend, job.structure, self.device, self.threads): job for job in jobs}
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    job = waiting.pop(future)
                    try:
                        payload, why = future.result()
                    except Exception as error:  # a worker that died took its job with it
                        payload, why = None, f"the compiler's process: {type(error).__name__}: {error}"
                        pool.shutdown(wait=False, cancel_futures=True)
                        self._pool = None
                        yield Made(job, payload, why)
                        yield from self.prepare(list(waiting.values()))
                        return
                    yield Made(job, payload, why)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
            for worker in active_children():
                worker.terminate()  # a compilation may take half a minute
            raise
        except BaseException:
            for future in waiting:
                future.cancel()
            raise

    def close(self) -> None:
        """End the workers; running compilations end first."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

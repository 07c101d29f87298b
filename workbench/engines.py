"""Where tasks of a sweep run: this process, local processes, Dask workers, or Slurm jobs.

An engine is a generator: given a function, its calls and the options of ``[sweep]``, it yields results as they come.
The function writes its own records, so an engine may die at any moment; Dask and Slurm workers must see the same
folder and have the workbench installed. Pending tasks are cancelled when the caller stops listening.
"""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from workbench.errors import SpecError, WorkbenchError
from workbench.spec import about, spec

__all__ = ["ENGINES", "Engine", "Slurm", "run"]

Engine = Literal["serial", "processes", "dask", "slurm"]
Function = Callable[..., Any]
Calls = Sequence[tuple[Any, ...]]
_CONNECT_S = 20


@spec
class Slurm:
    """What a Slurm job of a sweep gets."""

    cluster: Literal["slurm", "local"] = about("slurm: jobs by sbatch; local: the same jobs as processes here.",
                                               default="slurm")
    folder: str = about("Folder of job files, seen by all nodes; relative to the sweep's.", default="slurm")
    partition: str | None = about("Partition; absent: the cluster's default.", default=None)
    minutes: int = about("Time limit of a task.", default=60)
    cpus: int = about("Cores of a task.", default=1)
    memory_gb: float = about("Memory of a task.", default=4.0)


def run(engine: Engine, function: Function, calls: Calls, *, workers: int, scheduler: str | None, slurm: Slurm,
        folder: Path) -> Iterator[Any]:
    """Results of ``function(*call)`` for every call, in the order they finish.

    Args:
        engine: a name of ``ENGINES``.
        function: importable by name where the tasks run.
        calls: arguments of each task.
        workers: tasks at once; 0: as many as there are cores (all at once on Slurm).
        scheduler: address of a running Dask scheduler; absent: workers on this machine.
        slurm: what a Slurm job gets.
        folder: the sweep's folder.

    Raises:
        SpecError: the engine's package is not installed or its cluster does not answer.
        WorkbenchError: a worker died; results so far were yielded.
    """
    if engine == "serial" or (engine == "processes" and len(calls) <= 1):
        return (function(*call) for call in calls)
    if engine == "dask":
        return _dask(function, calls, workers=workers, scheduler=scheduler)
    if engine == "slurm":
        return _slurm(function, calls, workers=workers, wanted=slurm, folder=folder)
    return _processes(function, calls, workers=workers)


ENGINES: Mapping[Engine, str] = {
    "serial": "one after the other in this process",
    "processes": "local processes",
    "dask": "Dask workers, here or behind a scheduler (extra 'dask')",
    "slurm": "one Slurm job a task (extra 'slurm')",
}


def _package(engine: Engine, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise SpecError(f"the engine {engine!r} needs the package {module!r}, which is not installed",
                        where="sweep.engine", allowed=["serial", "processes"],
                        hint=f"pip install 'planner-workbench[{engine}]'",
                        next_command="wb sweep SPEC --set sweep.engine=processes") from None


def _died(error: BaseException, logs: str | None = None) -> WorkbenchError:
    said = str(error).strip().splitlines()
    return WorkbenchError(f"a worker died: {said[-1] if said else type(error).__name__}", where=logs,
                          hint="killed or out of memory? finished results are kept; fewer sweep.workers help",
                          next_command="wb sweep SPEC (does only what is missing)")


def _finished(executor: futures.Executor, function: Function, calls: Calls) -> Iterator[Any]:
    for item in futures.as_completed([executor.submit(function, *call) for call in calls]):
        yield item.result()


# --------------------------------------------------------------------------------------------------- local processes


def _processes(function: Function, calls: Calls, *, workers: int) -> Iterator[Any]:
    executor = futures.ProcessPoolExecutor(workers or os.cpu_count() or 1, initializer=_follow_parent,
                                           mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from _finished(executor, function, calls)
    except futures.BrokenExecutor as error:
        raise _died(error) from None
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def _follow_parent() -> None:
    """End this worker when the sweep that started it is gone, so that a killed sweep leaves nothing running."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# -------------------------------------------------------------------------------------------------------------- Dask


def _dask(function: Function, calls: Calls, *, workers: int, scheduler: str | None) -> Iterator[Any]:
    distributed = _package("dask", "distributed")
    try:
        with _client(distributed, workers=workers, scheduler=scheduler) as client:
            executor = client.get_executor()
            try:
                yield from _finished(executor, function, calls)
            finally:
                executor.shutdown(wait=False)
    except (distributed.scheduler.KilledWorker, distributed.comm.CommClosedError, futures.CancelledError) as error:
        raise _died(error) from None


@contextlib.contextmanager
def _client(distributed: ModuleType, *, workers: int, scheduler: str | None) -> Iterator[Any]:
    """A client of a running scheduler, or of workers started here, one thread each."""
    if scheduler is None:
        with distributed.LocalCluster(n_workers=workers or os.cpu_count() or 1, threads_per_worker=1,
                                      dashboard_address=None, silence_logs=40) as cluster, \
                distributed.Client(cluster) as client:
            yield client
        return
    try:
        client = distributed.Client(scheduler, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        raise SpecError(f"no Dask scheduler answers at {scheduler!r}: {error}", where="sweep.scheduler",
                        allowed=["tcp://HOST:8786"], next_command="dask scheduler") from None
    with client:
        yield client


# ------------------------------------------------------------------------------------------------------------- Slurm


def _slurm(function: Function, calls: Calls, *, workers: int, wanted: Slurm, folder: Path) -> Iterator[Any]:
    submitit = _package("slurm", "submitit")
    logs = (folder / wanted.folder).resolve()
    try:
        executor = submitit.AutoExecutor(folder=str(logs), cluster=wanted.cluster)
    except RuntimeError as error:
        raise SpecError(f"no Slurm here: {error}", where="sweep.slurm.cluster", allowed=["slurm", "local"],
                        next_command="wb sweep SPEC --set sweep.engine=processes") from None
    executor.update_parameters(
        name="wb-sweep", timeout_min=wanted.minutes, cpus_per_task=wanted.cpus, mem_gb=wanted.memory_gb,
        slurm_array_parallelism=workers or len(calls),
        **({"slurm_partition": wanted.partition} if wanted.partition is not None else {}))
    with executor.batch():
        jobs = [executor.submit(function, *call) for call in calls]
    waiting = list(jobs)
    try:
        while waiting:
            for job in [j for j in waiting if j.done()]:
                waiting.remove(job)
                yield _result(submitit, job)
            if waiting:
                time.sleep(0.1 if wanted.cluster == "local" else 5.0)
    finally:
        for job in waiting:
            job.cancel(check=False)


def _result(submitit: ModuleType, job: Any) -> Any:
    try:
        return job.result()
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
        raise _died(error, str(job.paths.stderr)) from None

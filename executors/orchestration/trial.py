"""A stitched plan timed as its users will run it: again and again, in a process that has done nothing else.

A process that has measured hundreds of kernels has its memory in pieces: programs take up to a fifth longer in it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from executors.orchestration import inductor
from executors.orchestration.measure import ContextTimer
from executors.orchestration.programs import example_inputs
from executors.orchestration.stitched import Stitched, stitch
from executors.orchestration.store import Store
from planners.orchestration.graph import PrimitiveGraph
from planners.orchestration.problem import Plan
from profilers.harness import fixed_conditions
from workbench.errors import WorkbenchError
from workbench.processes import deaf_to_interrupts

__all__ = ["Trial", "trial", "trial_here"]

_ROUNDS, _PATIENT_S = 30, 1.0
"""Runs of a program at least, and how long they go on at least: disturbances last tenths of a second."""


class Trial(NamedTuple):
    """What a stitched plan takes."""

    seconds: float
    """Least time of a whole run."""
    kernels_s: list[float]
    """Least time of each kernel in it; empty on a GPU, where the host's clock says nothing of one kernel."""
    launches: int
    stored_bytes: int


def trial(graph: PrimitiveGraph, plan: Plan, weights: Mapping[str, torch.Tensor], store: Store, *, device: str,
          threads: int) -> Trial:
    """Stitch and time a plan in a fresh process.

    Args:
        graph: the program.
        plan: its kernels.
        weights: values of its weights.
        store: where what the back-ends prepared lies.
        device: ``cpu`` or ``cuda``.
        threads: threads a kernel may use.

    Raises:
        Cannot: a back-end has no kernel after all.
        WorkbenchError: the process died.
    """
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    try:
        with deaf_to_interrupts():
            waiting = pool.submit(_trial, graph, plan, dict(weights), store.folder, store.conditions, device, threads)
        return waiting.result()
    except BrokenProcessPool as error:
        raise WorkbenchError(f"the process that timed a plan died: {error}", where="wb profile") from None
    except KeyboardInterrupt:
        for worker in active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _trial(graph: PrimitiveGraph, plan: Plan, weights: Mapping[str, torch.Tensor], folder: Path,
           conditions: Mapping[str, str | int], device: str, threads: int) -> Trial:
    with fixed_conditions(device=device, threads=threads):
        own = {name: x.clone() for name, x in weights.items()}  # what comes from another process is shared memory
        return trial_here(graph, plan, own, Store(folder, conditions), device=device, threads=threads)


def trial_here(graph: PrimitiveGraph, plan: Plan, weights: Mapping[str, torch.Tensor], store: Store, *, device: str,
               threads: int) -> Trial:
    """``trial`` in this process."""
    with inductor.cache_folder(store.inductor):
        program = stitch(graph, plan, weights, store.artifact, device=device)
    inputs = example_inputs(graph, device=device)
    timer = ContextTimer(_nothing, threads=threads)
    program(*inputs)
    whole = min(timer.block(lambda: program(*inputs), 1) for _ in _rounds())
    kernels = _in_place(program, inputs, timer) if device == "cpu" else []
    return Trial(whole, kernels, program.launches, program.stored_bytes)


def _nothing() -> None:
    """A program leaves the caches to itself as it finds them."""


def _rounds() -> Iterator[int]:
    """As many rounds as are wanted, and more until it took as long as is wanted."""
    ends = time.monotonic() + _PATIENT_S
    for turn in itertools.count():
        if turn >= _ROUNDS and time.monotonic() > ends:
            return
        yield turn


def _in_place(program: Stitched, inputs: Sequence[torch.Tensor], timer: ContextTimer) -> list[float]:
    """Seconds of each kernel in its program: the least of several runs."""
    marks = [program.timed(timer.clock, *inputs)[1] for _ in _rounds()][1:]
    taken: list[float] = ((np.diff(np.array(marks), axis=1).min(axis=0) - timer.overhead_ns) * 1e-9).tolist()
    return taken

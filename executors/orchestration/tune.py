"""Tuning: measure the kernels a program's plans could want, fit what boundaries cost, and plan with it.

    floors -> best plan by floors -> measure its kernels -> … -> a plan all measured, which is the best of all
    stitched runs of that plan and of the baselines -> a + b bytes a kernel, by back-end -> plan again
    the stitched plan is off its prediction -> its kernels timed in it -> plan again, a few times

A plan is chosen for what its kernels cost alone, so of kernels that cost about the same it holds those that were lucky
when they were measured: hence the last step, after which the times of a plan's kernels are those that they have in it.

Times, artifacts and the boundary go to the store as soon as they are known: an interrupted tuning goes on where it
stopped, and a second one measures and compiles nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from executors.orchestration import ortsession
from executors.orchestration.kernels import Cannot
from executors.orchestration.measure import Cache, cache_for
from executors.orchestration.programs import behind
from executors.orchestration.store import Store, conditions_of
from executors.orchestration.trial import Trial, trial
from executors.orchestration.workshop import KERNEL_S, Workshop
from planners.orchestration.graph import PrimitiveGraph
from planners.orchestration.planning import plan as make_plan
from planners.orchestration.planning import profile
from planners.orchestration.problem import Plan, Problem
from profilers.harness import fixed_conditions
from workbench.errors import MissingProfile
from workbench.spec import content_id, dump

__all__ = ["BASELINES", "Tuned", "cache_of", "fit_boundaries", "fit_boundary", "open_store", "tune"]

BASELINES = ("singletons", "greedy-fusion", "whole-graph")
"""Planners whose kernels are measured too, so that their plans stand beside the best one."""
_CLOSE, _REPAIRS = 0.05, 3
"""A prediction so near to the stitched time is left alone; otherwise so many plans at most have their kernels timed in
place. The same plan stitched twice differs by a few percent, with the places that memory gets."""
_LEAST_S = 1e-8
_FEW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a tuning gave."""

    plan: Plan
    store: Path
    measured: int
    compiled: int
    compilations: int
    compile_s: float
    measure_s: float
    total_s: float
    predicted_s: float
    stitched_s: float
    launches: int


def cache_of(graph: PrimitiveGraph) -> Cache:
    """In which state one run of the program after the other finds its weights: by what a run touches in between.

    That is all weights, and as much memory as the captured program's values take at most at a time (the allocator
    hands the same memory out again).
    """
    sizes = {t.name: t.nbytes for t in graph.tensors}
    last: dict[str, int] = {}
    made = [p for p in graph.primitives if p.rewrite is None]
    for at, primitive in enumerate(made):
        last.update(dict.fromkeys((*(o.tensor for o in primitive.inputs), primitive.output), at))
    values = {t.name for t in graph.tensors if t.role == "value"}
    held = peak = sum(sizes[name] for name in graph.inputs)
    for at, primitive in enumerate(made):
        held += sizes[primitive.output]
        peak = max(peak, held)
        gone = {primitive.output, *(o.tensor for o in primitive.inputs)}
        held -= sum(sizes[name] for name in gone if last[name] == at and name in values)
    return cache_for(sum(t.nbytes for t in graph.tensors if t.role == "weight") + peak)


def open_store(folder: Path | str, *, device: str, threads: int, cache: Cache) -> Store:
    """The store of this machine in ``folder``, under the conditions in force."""
    with fixed_conditions(device=device, threads=threads) as held:
        return Store(folder, conditions_of(held, cache=cache, onnxruntime=ortsession.version()))


def _corrected(plan: Plan, taken: Sequence[float]) -> dict[tuple[str, str], float]:
    """What the plan's kernels take in its program, boundaries taken off: (structure, back-end) -> seconds.

    A mean over the places where the program has the same kernel.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for kernel, seconds in zip(plan.kernels, taken, strict=True):
        found.setdefault((kernel.structure, kernel.backend), []).append(seconds - kernel.boundary_s)
    return {key: max(_LEAST_S, sum(each) / len(each)) for key, each in found.items()}


def fit_boundaries(rows: Sequence[tuple[str, float, int]]) -> dict[str | None, tuple[float, float]]:
    """Back-end -> (seconds a kernel, seconds a byte) from (back-end, seconds beyond its time alone, bytes stored) of
    kernels in programs: least squares, both not negative, of all (``None``) and of each that has three kernels."""
    found: dict[str | None, tuple[float, float]] = {}
    if not rows:
        return found
    for name in (None, *dict.fromkeys(name for name, _, _ in rows)):
        own = np.array([row[1:] for row in rows if name in (None, row[0])], dtype=float)
        if name is not None and len(own) < _FEW:
            continue
        matrix = np.column_stack([np.ones(len(own)), own[:, 1]])
        scale = matrix.max(axis=0)
        rates, _ = nnls(matrix / scale, own[:, 0])
        found[name] = float(rates[0] / scale[0]), float(rates[1] / scale[1])
    return found


def fit_boundary(rows: Sequence[tuple[float, float, int, int]]) -> tuple[float, float]:
    """(seconds a kernel, seconds a byte) from (stitched s, sum of kernels s, kernels, bytes stored) of several plans,
    where kernels cannot be timed in place (on a GPU).

    Least squares of the relative error of the prediction, both not negative.
    """
    matrix = np.array([[n / whole, stored / whole] for whole, _, n, stored in rows])
    left = np.array([(whole - alone) / whole for whole, alone, _, _ in rows])
    scale = matrix.max(axis=0)
    found, _ = nnls(matrix / scale, left)
    return float(found[0] / scale[0]), float(found[1] / scale[1])


def tune(problem: Problem, *, folder: Path | str, device: str = "cpu", threads: int = 1,
         weights: Mapping[str, torch.Tensor] | None = None, gap: float = 0.0, workers: int = 2,
         time_limit_s: float = 600.0, kernel_s: float = KERNEL_S, say: Callable[[str], None] = lambda _: None) -> Tuned:
    """Measure what the problem's plans need, fit the boundary, and plan.

    Args:
        problem: the program, limits and back-ends.
        folder: the store's folder.
        device: ``cpu`` or ``cuda``.
        threads: threads a kernel may use.
        weights: values of the program's weights; by default those behind the problem.
        gap: share within which a plan of measured kernels is good enough.
        workers: processes that compile.
        time_limit_s: of the search, from the time on when the first kernels are measured; no solving takes longer.
        kernel_s: time to spend on a kernel's measurement on one back-end.
        say: called with a line on progress.

    Raises:
        SpecError: a back-end cannot be used here.
        Infeasible: some primitive runs on no back-end.
    """
    began = time.perf_counter()
    there = behind(problem, device=device)
    graph, held_weights = there.graph, there.weights if weights is None else weights
    cache = cache_of(graph)

    with fixed_conditions(device=device, threads=threads) as held:
        store = Store(folder, conditions_of(held, cache=cache, onnxruntime=ortsession.version()))
        name = content_id({"problem": dump(problem), "gap": gap, "time_limit_s": time_limit_s})
        before = store.compilations()
        shop = Workshop(store, backends=problem.backends, device=device, threads=threads, cache=cache, say=say,
                        workers=workers, kernel_s=kernel_s)

        def run(plan: Plan) -> Trial:
            return trial(graph, plan, held_weights, store, device=device, threads=threads)

        def planned(*planners: str, measure_s: float) -> Plan:
            return profile(problem, store.costs, shop.measure, planners=planners, gap=gap, time_limit_s=time_limit_s,
                           measure_s=measure_s, tell=say)

        def correct(plan: Plan, found: Trial) -> None:
            for (digest, backend), seconds in _corrected(plan, found.kernels_s).items():
                store.add(digest, backend, seconds, in_place=True)

        try:
            done = name in store.costs.tuned
            if not done:
                plan = planned("optimal", *BASELINES, measure_s=0.0)
                if not store.costs.boundaries:
                    _fit(graph, [plan, *_baselines(problem, store, BASELINES)], store, run, say)
            if not done and device == "cpu":
                # The rival of all finer plans, and the kernel that is hardest to time alone.
                for rival in _baselines(problem, store, ("whole-graph",)):
                    correct(rival, run(rival))
            deadline = time.perf_counter() + (0.0 if done else time_limit_s)
            plan = planned("optimal", measure_s=deadline - time.perf_counter())
            found = run(plan)
            in_place: set[tuple[str, str]] = set()
            for _ in range(0 if done or device != "cpu" else _REPAIRS):
                kernels = {(k.structure, k.backend) for k in plan.kernels}
                if abs(plan.certificate.objective / found.seconds - 1) <= _CLOSE or kernels <= in_place:
                    break
                say(f"{plan.certificate.objective * 1e6:.1f} us predicted, {found.seconds * 1e6:.1f} us stitched: "
                    f"{len(kernels)} kernels take their times in it")
                correct(plan, found)
                in_place |= kernels
                plan = planned("optimal", measure_s=deadline - time.perf_counter())
                found = run(plan)
            store.set_tuned(name, found.seconds)
        finally:
            shop.close()
    return Tuned(plan=plan, store=store.path, measured=shop.measured, compiled=shop.compiled,
                 compilations=store.compilations() - before, compile_s=shop.compile_s, measure_s=shop.measure_s,
                 total_s=time.perf_counter() - began, predicted_s=plan.certificate.objective, stitched_s=found.seconds,
                 launches=found.launches)


def _fit(graph: PrimitiveGraph, plans: Sequence[Plan], store: Store, run: Callable[[Plan], Trial],
         say: Callable[[str], None]) -> None:
    """Fit the boundaries from stitched runs of plans."""
    programs: list[tuple[float, float, int, int]] = []
    kernels: list[tuple[str, float, int]] = []
    sizes = {t.name: t.nbytes for t in graph.tensors}
    any_timed = False
    for plan in plans:
        try:
            found = run(plan)
        except Cannot as why:
            say(f"a baseline cannot be stitched: {why}")
            continue
        alone = sum(k.seconds for k in plan.kernels)
        programs.append((found.seconds, alone, len(plan.kernels), found.stored_bytes))
        say(f"{plan.certificate.planner}: {len(plan.kernels)} kernels, {alone * 1e6:.1f} us alone, "
            f"{found.seconds * 1e6:.1f} us stitched")
        any_timed = any_timed or bool(found.kernels_s)
        if len(plan.kernels) > 1:  # a whole program as one kernel has no boundary
            kernels += [(k.backend, seconds - k.seconds, sum(sizes[name] for name in k.outputs))
                        for k, seconds in zip(plan.kernels, found.kernels_s, strict=False)]
    if not any_timed:
        store.set_boundary(None, *fit_boundary(programs), runs=[list(row) for row in programs])
    for backend, rates in fit_boundaries(kernels).items():
        store.set_boundary(backend, *rates, kernels=sum(backend in (None, row[0]) for row in kernels))


def _baselines(problem: Problem, store: Store, names: Sequence[str]) -> list[Plan]:
    found = []
    for name in names:
        try:
            found.append(make_plan(problem, store.costs, planner=name))
        except MissingProfile:
            continue
    return found

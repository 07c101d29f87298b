"""``simulate``: the plan on the virtual clock, kernel after kernel on one stream, with the memory its tensors take.

A kernel lasts as long as the plan says it takes alone; what its boundary adds is a task of its own on the host that
launches it (on a CPU the same thread, so both follow each other). A tensor is acquired by the kernel that stores it and
released by the last one that reads it.
"""

from __future__ import annotations

from typing import Any

from planners.orchestration.load import program_graph
from planners.orchestration.problem import Plan, Problem
from workbench.outcome import Metric, Outcome
from workbench.taskgraph import Pool, Resource, Task, TaskGraph, TaskList
from workbench.taskgraph import simulate as play

__all__ = ["simulate"]

_MEMORY = "values"


def simulate(problem: Problem, plan: Plan, costs: Any) -> Outcome:
    """Play the plan; its kernels carry their times, so ``costs`` are not asked."""
    del costs
    graph = program_graph(problem)
    sizes = {t.name: t.nbytes for t in graph.tensors}
    stream, host = Resource("device 0", "kernels"), Resource("device 0", "boundaries")
    maker: dict[str, int] = {}
    last = {o.tensor: len(plan.kernels) for o in graph.outputs}
    for at, kernel in enumerate(plan.kernels):
        for name in (*kernel.inputs, *kernel.outputs):
            last[name] = max(last.get(name, -1), at)
    tasks = TaskList()
    for at, kernel in enumerate(plan.kernels):
        before = (len(tasks) - 1,) if tasks else ()
        waits = tuple(sorted({*before, *(maker[name] for name in kernel.inputs if name in maker)}))
        if kernel.boundary_s > 0:
            waits = (tasks.add(Task(name=f"boundary {at}", duration_s=kernel.boundary_s, on=(host,), after=waits)),)
        gone = [name for name in (*kernel.inputs, *kernel.outputs) if name in {*maker, *kernel.outputs}
                and last[name] == at]
        done = tasks.add(Task(
            name=f"kernel {at} {kernel.backend}", duration_s=kernel.seconds, on=(stream,), after=waits,
            acquire={_MEMORY: sum(sizes[name] for name in kernel.outputs)},
            release={_MEMORY: sum(sizes[name] for name in dict.fromkeys(gone))}))
        maker.update(dict.fromkeys(kernel.outputs, done))
    made = play(TaskGraph(tasks=tasks, pools=(Pool(name=_MEMORY, capacity=float("inf"), device="device 0"),)))
    moved = sum(sizes[name] for k in plan.kernels for name in k.outputs)
    return Outcome(
        clock="simulated",
        metrics=(
            Metric(name="program_s", value=made.makespan_s, unit="s", about="All kernels, one after the other."),
            Metric(name="kernels", value=len(plan.kernels), unit="", about="Kernels of the program."),
            Metric(name="boundary_s", value=sum(k.boundary_s for k in plan.kernels), unit="s",
                   about="Part of it that kernels add to a program beyond their own times."),
            Metric(name="peak_bytes", value=made.pool_peak[_MEMORY], unit="bytes",
                   about="Most that stored values take at a time, weights and inputs left out."),
        ),
        timeline=made.timeline,
        counters={"kernels": float(len(plan.kernels)), "stored_bytes": float(moved), **made.counters},
    )

"""The plan on the virtual clock: every task, transfer and all-reduce as spans, in-flight samples as levels."""

from __future__ import annotations

from planners.pipeline.problem import Plan, Problem
from planners.pipeline.replay import replay
from workbench.costs import CostModel
from workbench.outcome import Metric, Outcome

__all__ = ["simulate"]


def simulate(problem: Problem, plan: Plan, costs: CostModel) -> Outcome:
    """Play one mini-batch; the plan carries its own times, so ``costs`` are not asked again.

    Raises:
        CheckFailed: the schedules wait on each other.
    """
    played = replay(problem, plan)
    took = played.run.makespan_s
    used = sum(len(s.devices) for s in plan.stages)
    busy = sum(problem.batch_samples // s.micro_batch_samples * (s.forward_s + s.backward_s) * len(s.devices)
               for s in plan.stages)
    peak = max(s.weight_bytes * problem.weight_copies + problem.workspace_bytes
               + played.peak_samples(x) / len(s.devices) * s.saved_bytes_per_sample for x, s in enumerate(plan.stages))
    metrics = (
        Metric(name="iteration_s", value=took, unit="s", about="Time of one mini-batch."),
        Metric(name="samples_per_s", value=problem.batch_samples / took, unit="samples/s",
               about="Training throughput."),
        Metric(name="bubble_share", value=1 - busy / (used * took), unit="",
               about="Share of the used devices' time without compute."),
        Metric(name="peak_memory_bytes", value=peak, unit="bytes", about="Largest memory of any device."),
    )
    return Outcome(clock="simulated", metrics=metrics, timeline=played.run.timeline, counters=played.run.counters)

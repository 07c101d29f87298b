"""pipeline: graph-pipeline training, the same schedule in simulation and on ranks.

Paper: GraphPipe (arXiv 2406.17145). ``simulate`` plays the plan on the task-graph clock; ``run`` starts one process a
stage replica (torch.distributed; gloo, or NCCL with one rank a GPU): static order of forwards and backwards, receives
posted before the step, asynchronous sends, gradients summed in fixed order; ``verify`` trains the same model in one
process and compares. With fewer GPUs than replicas, one process runs all on streams of one GPU.
Reading order: simulating, messages, modules, training, channels, rank, launching, together, reference, running,
sections; coarsening and importing for modules of the user's; profiled for what layers cost here.
"""

from typing import Any

from executors.pipeline.sections import sections
from executors.pipeline.simulating import simulate
from planners.pipeline.problem import Plan, Problem
from workbench.outcome import Outcome
from workbench.plan import Violation

__all__ = ["run", "sections", "simulate", "verify"]


def run(problem: Problem, plan: Plan, *, device: str) -> Outcome:
    """Train on ranks; see ``running.run``."""
    from executors.pipeline import running

    return running.run(problem, plan, device=device)


def verify(problem: Problem, plan: Plan, outcome: Any) -> list[Violation]:
    """The run against one process; see ``running.verify``."""
    from executors.pipeline import running

    return running.verify(problem, plan, outcome)

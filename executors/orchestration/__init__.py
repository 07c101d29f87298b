"""orchestration: the planned kernels, each compiled by its fastest back-end, stitched into one program.

Reading order: kernels (structures in torch, fragments of Python), eager, collapse, library, inductor, ortsession (the
back-ends), backends; measure, store, pool, workshop, tune (what kernels cost); stitched, contenders, programs, running,
simulate, sections, drawing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from executors.orchestration.sections import sections
from executors.orchestration.simulate import simulate

if TYPE_CHECKING:
    from planners.orchestration import Plan, Problem
    from workbench.outcome import Outcome
    from workbench.plan import Violation

__all__ = ["run", "sections", "simulate", "verify"]


def run(problem: Problem, plan: Plan, *, device: str) -> Outcome:
    """See ``executors.orchestration.running.run``; torch is loaded here and not before."""
    from executors.orchestration.running import run as measured

    return measured(problem, plan, device=device)


def verify(problem: Problem, plan: Plan, outcome: Outcome) -> list[Violation]:
    """See ``executors.orchestration.running.verify``."""
    from executors.orchestration.running import verify as checked

    found: list[Any] = checked(problem, plan, outcome)
    return found

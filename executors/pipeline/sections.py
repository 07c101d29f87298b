"""What the report shows of a pipeline beyond the common parts: who works when, and what is held."""

from __future__ import annotations

from typing import Any

from planners.pipeline.problem import Plan, Problem
from workbench import plots
from workbench.costs import CostModel
from workbench.outcome import Outcome

__all__ = ["sections"]

_MOST_SPANS = 20_000


def sections(problem: Problem, plan: Plan, costs: CostModel, outcome: Outcome) -> list[Any]:
    """The schedule of an outcome, and the samples every stage holds."""
    from workbench.report import Figure, Section, Table

    blocks: list[Any] = []
    line = outcome.timeline
    if line is not None and len(line) <= _MOST_SPANS:
        blocks.append(Figure(plots.picture(plots.gantt, line, label=f"Schedule, {outcome.clock}", kind=_kind),
                             "Forwards (F), backwards (B), transfers and all-reduce of one mini-batch."))
    rows = [{"stage": x, "in flight": s.in_flight_samples, "micro-batch": s.micro_batch_samples,
             "held MB": s.in_flight_samples / len(s.devices) * s.saved_bytes_per_sample / 1e6,
             "weights MB": s.weight_bytes * problem.weight_copies / 1e6, "memory MB": s.memory_bytes / 1e6}
            for x, s in enumerate(plan.stages)]
    blocks.append(Table.of("Memory of one device of each stage", rows, units={"in flight": "samples"}))
    return [Section(f"The schedule, {outcome.clock}", blocks)]


def _kind(name: str) -> str:
    """Colour of a span: forwards, backwards, messages, all-reduce, waiting."""
    return name.split(" ")[0]

"""What the report page shows of a program beyond the common parts: kernel by kernel, and the graph in their colours."""

from __future__ import annotations

from typing import Any

from planners.orchestration.load import program_graph
from planners.orchestration.problem import Plan, Problem
from workbench.outcome import Outcome

__all__ = ["sections"]

_MOST_ROWS = 60


def sections(problem: Problem, plan: Plan, costs: Any, outcome: Outcome) -> list[Any]:
    """Simulated: the drawing and the plan's kernels. Measured: predicted beside measured time, and the contenders."""
    from workbench.report import Figure, Section, Table, Text

    del costs
    if outcome.clock == "simulated":
        from executors.orchestration.drawing import picture

        graph = program_graph(problem)
        caption = ("The program's primitives in the colours of the kernels that run them. Striped: several kernels run "
                   "it; dashed: none does; strong lines are tensors that are stored between kernels.")
        return [Section("The program and its kernels", [Figure(picture(graph, plan), caption)])]
    frame = outcome.tables["kernels"].copy()
    frame["error"] = frame["predicted_s"] / frame["measured_s"] - 1
    slowest = frame.sort_values("measured_s", ascending=False).head(_MOST_ROWS).sort_values("kernel")
    rows = [dict(zip(slowest.columns, values, strict=True)) for values in slowest.itertuples(index=False)]
    beside = outcome.tables["beside"]
    others = [dict(zip(beside.columns, values, strict=True)) for values in beside.itertuples(index=False)]
    units = {"predicted_s": "s", "measured_s": "s", "min_s": "s", "median_s": "s"}
    blocks: list[Any] = [Table.of("Predicted and measured time, kernel by kernel", rows, units=units)]
    if len(frame) > len(slowest):
        blocks.append(Text(f"The {len(slowest)} kernels that take longest of {len(frame)}."))
    return [Section("The same program by other means, in one process", [
                Table.of("Called in turn; least and median time", others, units=units)]),
            Section("Kernels on this machine", blocks)]

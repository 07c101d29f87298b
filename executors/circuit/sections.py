"""What the report page shows of a circuit's run beyond the common parts."""

from __future__ import annotations

from typing import Any

from executors.circuit.outputs import TABLES
from planners.circuit import Plan, Problem
from workbench.outcome import Outcome

__all__ = ["sections"]

_ROWS = 64
"""Rows of a table on the page; the run folder has all."""


def sections(problem: Problem, plan: Plan, costs: Any, outcome: Outcome) -> list[Any]:
    """Stage by stage: gates, kernels, predicted and measured time; and the bandwidth against the machine's limit."""
    from workbench.report import Fact, Facts, Section, Table

    if outcome.clock == "simulated":
        rows = [{"stage": i, "gates": len(stage.gates), "kernels": len(stage.kernels),
                 "kernel_s": sum(k.cost_s for k in stage.kernels)} for i, stage in enumerate(plan.stages)]
        return [Section("Stages on the described cluster", [Table.of("Kernel time of one shard", rows)])]
    frame = outcome.tables["stages"]
    rows = [dict(zip(frame.columns, values, strict=True)) for values in frame.itertuples(index=False)]
    facts = Facts([
        Fact("bandwidth", outcome["bandwidth_bytes_per_s"] / 1e9, "GB/s", "state bytes the kernels read and write"),
        Fact("limit", outcome["bandwidth_limit_bytes_per_s"] / 1e9, "GB/s", "a pass that only scales the state"),
        *(Fact(name, str(values.iloc[0])) for name, values in outcome.tables["engine"].items()),
    ])
    stages = Section("Stages on this machine", [facts, Table.of("Predicted and measured time", rows)])
    asked = [Table.of(caption, outcome.tables[name].head(_ROWS).to_dict("records"))
             for name, caption in TABLES.items() if name in outcome.tables]
    return [stages, Section("What was asked of the state", asked)] if asked else [stages]

"""The plan beside its alternatives, as titled tables."""

from __future__ import annotations

from typing import Any

from planners.pipeline import planning
from planners.pipeline.assembly import depth
from planners.pipeline.problem import Plan, Problem
from workbench.costs import CostModel
from workbench.errors import Infeasible, SolverError

__all__ = ["comparison"]

_LIMIT_S = 20.0
# Larger models have too many downsets to wait for.
_MOST_PIPER_OPERATORS = 16


def comparison(problem: Problem, costs: CostModel, plan: Plan) -> list[tuple[str, list[dict[str, Any]]]]:
    """This plan and every baseline: iteration, depth, devices, memory, time of the search."""
    rows = [_row("this plan", plan, plan)]
    for name in planning.PLANNERS:
        if name.startswith("graph") or (name == "piper" and _operators(plan) > _MOST_PIPER_OPERATORS):
            continue
        try:
            other = planning.plan(problem, costs, planner=name, time_limit_s=_LIMIT_S)
        except (Infeasible, SolverError) as error:
            rows.append({"planner": name, "note": error.message})
            continue
        rows.append(_row(name, other, plan))
    return [("Beside other planners, all simulated alike", rows)]


def _operators(found: Plan) -> int:
    return sum(len(s.operators) for s in found.stages)


def _row(name: str, found: Plan, ours: Plan) -> dict[str, Any]:
    return {"planner": name, "iteration ms": found.iteration_s * 1e3,
            "times ours": found.iteration_s / ours.iteration_s, "stages": len(found.stages), "depth": depth(found),
            "devices": sum(len(s.devices) for s in found.stages),
            "micro-batch": " ".join(map(str, sorted({s.micro_batch_samples for s in found.stages}))),
            "peak GB": max(s.memory_bytes for s in found.stages) / 1e9, "search s": found.certificate.seconds}

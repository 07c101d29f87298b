"""A plan for people: rows, metrics, sentences, and tables beside the baselines."""

from __future__ import annotations

from collections import Counter
from typing import Any

from planners.orchestration.load import program_graph
from planners.orchestration.planning import PLANNERS
from planners.orchestration.planning import plan as make_plan
from planners.orchestration.problem import Plan, Problem
from workbench.costs import CostModel
from workbench.errors import WorkbenchError
from workbench.outcome import Metric

__all__ = ["comparison", "decision", "headline", "in_words", "predicted"]

Row = dict[str, Any]
_MOST_NAMES = 4
_COMPARED_S = 20.0


def decision(plan: Plan) -> list[Row]:
    """One row a kernel, in the order in which they run."""
    runs = Counter(name for kernel in plan.kernels for name in kernel.primitives)
    return [{"kernel": i, "primitives": _listed(kernel.primitives), "count": len(kernel.primitives),
             "run again": sum(runs[name] > 1 for name in kernel.primitives), "stores": " ".join(kernel.outputs),
             "backend": kernel.backend, "predicted_s": kernel.seconds + kernel.boundary_s, "cost": kernel.source}
            for i, kernel in enumerate(plan.kernels)]


def _listed(names: tuple[str, ...]) -> str:
    if len(names) <= _MOST_NAMES:
        return " ".join(names)
    return f"{' '.join(names[:2])} … {' '.join(names[-2:])}"


def predicted(problem: Problem, plan: Plan) -> tuple[Metric, ...]:
    """What the plan promises."""
    graph = program_graph(problem)
    sizes = {t.name: t.nbytes for t in graph.tensors}
    roles = {t.name: t.role for t in graph.tensors}
    moved = sum(sizes[t] for k in plan.kernels for t in (*k.inputs, *k.outputs) if roles[t] in ("value", "input"))
    return (
        Metric(name="program_s", value=plan.certificate.objective, unit="s", about="All kernels, one after the other."),
        Metric(name="kernels", value=len(plan.kernels), unit="", about="Kernels of the program."),
        Metric(name="boundary_s", value=sum(k.boundary_s for k in plan.kernels), unit="s",
               about="Part of it that kernels add to a program beyond their own times."),
        Metric(name="executions", value=sum(len(k.primitives) for k in plan.kernels), unit="",
               about="Primitives run, each as often as it runs."),
        Metric(name="moved_bytes", value=moved, unit="bytes",
               about="Values and inputs that kernels read and store, weights left out."),
    )


def headline(plan: Plan) -> str:
    """The plan in a few words."""
    count = len(plan.kernels)
    again = f", {plan.redundant} primitive{'s' if plan.redundant != 1 else ''} repeated" if plan.redundant else ""
    return f"{count} kernel{'s' if count != 1 else ''}, {1e6 * plan.certificate.objective:.4g} us{again}"


def in_words(plan: Plan) -> str:
    """Which kernels run, what is computed twice, and how sure it is that nothing is faster."""
    certificate = plan.certificate
    ran = sum(len(k.primitives) for k in plan.kernels)
    backends = Counter(k.backend for k in plan.kernels)
    told = ", ".join(f"{count} on {name}" for name, count in sorted(backends.items(), key=lambda x: (-x[1], x[0])))
    again = (f" Primitives are run again {plan.redundant} time{'s' if plan.redundant != 1 else ''}, because that costs "
             "less than reading their results." if plan.redundant else "")
    rules = f" Rewrites taken: {', '.join(plan.rewrites)}." if plan.rewrites else ""
    if certificate.status == "optimal":
        sure = f"no plan of the {plan.enumerated} different kernels considered takes less: proven"
    elif certificate.bound is not None:
        sure = f"any plan of the {plan.enumerated} different kernels considered takes {1e6 * certificate.bound:.4g} us"
        sure += " or more"
    else:
        sure = f"planner {certificate.planner} proves nothing"
    kernels = f"{len(plan.kernels)} kernel{'s' if len(plan.kernels) != 1 else ''}"
    return (f"Run {ran} primitives in {kernels} ({told}), {1e6 * certificate.objective:.4g} us in "
            f"all ({sure}; the times of {plan.priced} kernels are known).{again}{rules}")


def comparison(problem: Problem, costs: CostModel, plan: Plan) -> list[tuple[str, list[Row]]]:
    """The plan beside the other planners under the same costs, and what was considered."""
    rows = [_row(f"this plan ({plan.certificate.planner})", plan, plan)]
    for name in PLANNERS:
        if name == plan.certificate.planner:
            continue
        try:
            other = make_plan(problem, costs, planner=name, time_limit_s=_COMPARED_S)
            rows.append(_row(name, other, plan))
        except WorkbenchError as error:
            rows.append({"planner": name, "remark": error.message})
    graph = program_graph(problem)
    own = sum(p.rewrite is None for p in graph.primitives)
    facts = [{"program": graph.name, "primitives": own, "alternatives": len(graph.primitives) - own,
              "kernels considered": plan.enumerated, "with known times": plan.priced, "never run": plan.skipped}]
    return [("Beside the other planners, under the same costs", rows), ("The program", facts)]


def _row(title: str, plan: Plan, ours: Plan) -> Row:
    seconds = plan.certificate.objective
    return {"planner": title, "predicted_s": seconds, "of this plan": seconds / ours.certificate.objective,
            "bound_s": plan.certificate.bound, "kernels": len(plan.kernels), "run again": plan.redundant,
            "considered": plan.enumerated, "planning_s": plan.certificate.seconds}

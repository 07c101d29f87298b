"""A plan for people: rows, metrics, sentences, and tables beside the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planners.circuit.load import source_circuit
from planners.circuit.planning import PLANNERS
from planners.circuit.planning import plan as make_plan
from planners.circuit.problem import Plan, Problem, exchanged_fraction, move
from workbench.costs import CostModel
from workbench.errors import WorkbenchError
from workbench.outcome import Metric

__all__ = ["comparison", "decision", "headline", "in_words", "predicted", "stage_metrics"]

Row = dict[str, Any]


def decision(plan: Plan) -> list[Row]:
    """One row a stage: what comes in, what leaves the node, and its kernels."""
    rows = []
    for k, stage in enumerate(plan.stages):
        before = plan.stages[k - 1] if k else stage
        kinds = [kernel.kind for kernel in stage.kernels]
        rows.append({
            "stage": k, "becomes local": _listed(set(stage.local) - set(before.local)) if k else "free",
            "not local": _listed(set(stage.regional) | set(stage.global_)), "gates": len(stage.gates),
            "fusion kernels": kinds.count("fusion"), "tile kernels": kinds.count("tile"),
            "predicted_s": sum(kernel.cost_s for kernel in stage.kernels)})
    return rows


def _listed(wires: set[int]) -> str:
    return " ".join(map(str, sorted(wires))) or "-"


def _exchanged(problem: Problem, plan: Plan) -> tuple[int, int]:
    """Bytes that leave their shard over all transitions, and the bits exchanged."""
    local = len(plan.stages[0].local)
    state_bytes = problem.machine.amplitude_bytes << len(plan.stages[0].layout)
    total = bits = 0
    for before, after in zip(plan.stages, plan.stages[1:], strict=False):
        swapped = len(move(before.layout, after.layout, local_qubits=local).exchange)
        total += round(state_bytes * exchanged_fraction(swapped))
        bits += swapped
    return total, bits


def predicted(problem: Problem, plan: Plan) -> tuple[Metric, ...]:
    """What the plan promises."""
    sent, bits = _exchanged(problem, plan)
    kernels = [kernel for stage in plan.stages for kernel in stage.kernels]
    return (
        Metric(name="kernel_s", value=plan.kernel_time.objective, unit="s", about="All kernels of one shard."),
        Metric(name="stages", value=len(plan.stages), unit="", about="Stages of the plan."),
        Metric(name="exchanged_bytes", value=sent, unit="bytes", about="Sent by all shards together."),
        Metric(name="exchanged_qubits", value=bits, unit="", about="Qubits that become local, over all transitions."),
        Metric(name="weighted_moves", value=plan.communication.objective, unit="",
               about="Qubits that become local, plus the weight of those that become global."),
        Metric(name="kernels", value=len(kernels), unit="", about="Kernels of one shard."),
        Metric(name="fusion_kernels", value=sum(k.kind == "fusion" for k in kernels), unit="",
               about="Kernels that apply one dense matrix."),
        *stage_metrics([sum(kernel.cost_s for kernel in stage.kernels) for stage in plan.stages]),
    )


def stage_metrics(seconds: Sequence[float]) -> tuple[Metric, ...]:
    """The kernels of every stage as metrics, so that all clocks stand side by side for each."""
    return tuple(Metric(name=f"stage_{k}_s", value=value, unit="s", about=f"Kernels of stage {k}.")
                 for k, value in enumerate(seconds))


def headline(plan: Plan) -> str:
    """The plan in a few words."""
    stages, kernels = len(plan.stages), sum(len(stage.kernels) for stage in plan.stages)
    return (f"{stages} stage{'s' if stages > 1 else ''}, {kernels} kernel{'s' if kernels != 1 else ''}, "
            f"{1e3 * plan.kernel_time.objective:.4g} ms a shard")


def in_words(plan: Plan) -> str:
    """What runs where, and how sure that is."""
    stages = len(plan.stages)
    first = plan.stages[0]
    proof = ("no plan has fewer: proven" if plan.certificate.status == "optimal"
             else f"at least {plan.certificate.bound:.0f} are needed" if plan.certificate.bound is not None
             else "nothing is proven about fewer")
    moved = plan.communication
    talk = ""
    if stages > 1:
        sure = {"optimal": "the least for so many stages", "feasible": f"at least {moved.bound} are needed",
                "heuristic": "no bound known"}[moved.status]
        talk = f" {moved.objective:g} weighted qubit moves between them ({sure})."
    time = plan.kernel_time
    gap = "proven least" if time.status == "optimal" else f"proven to be at least {1e3 * (time.bound or 0.0):.4g} ms"
    merged = f" {len(plan.merged)} groups of gates are merged into diagonal ones." if plan.merged else ""
    return (f"Run {sum(len(stage.gates) for stage in plan.stages)} gates in {stages} stage{'s' if stages > 1 else ''} "
            f"with {len(first.local)} local, {len(first.regional)} regional and {len(first.global_)} global qubits "
            f"({proof}).{talk}{merged} The kernels of one shard take {1e3 * time.objective:.4g} ms with the costs of "
            f"{plan.table.name} ({gap}).")


def comparison(problem: Problem, costs: CostModel, plan: Plan) -> list[tuple[str, list[Row]]]:
    """The plan beside the other planners, and the costs it was made with."""
    rows = [_row("this plan", plan)]
    for name in PLANNERS:
        if name == plan.certificate.planner:
            continue
        try:
            rows.append(_row(name, make_plan(problem, costs, planner=name, solver="highs", time_limit_s=20.0, seed=0)))
        except WorkbenchError as error:
            rows.append({"planner": name, "remark": error.message})
    table = plan.table
    sizes = [{"kernel": f"fusion of {m}", "s": s} for m, s in enumerate(table.fusion_s) if m]
    tiles = [{"kernel": f"tile with {a} free active qubits", "s": s} for a, s in enumerate(table.tile_s)]
    gates = [{"kernel": f"gate in a tile: {name}", "s": s} for name, s in table.tile_gate_s.items()]
    circuit = source_circuit(problem)
    facts = [{"circuit": circuit.name, "qubits": circuit.qubits, "gates": len(circuit.gates),
              "gates planned": sum(len(stage.gates) for stage in plan.stages)}]
    return [("Beside the other planners", rows), ("The circuit", facts),
            (f"Kernel costs: {table.name} ({table.origin})", [*sizes, *tiles, *gates])]


def _row(title: str, plan: Plan) -> Row:
    kernels = [kernel for stage in plan.stages for kernel in stage.kernels]
    return {"planner": title, "stages": len(plan.stages), "weighted moves": plan.communication.objective,
            "kernels": len(kernels), "kernel_s": plan.kernel_time.objective, "planning_s": plan.certificate.seconds}

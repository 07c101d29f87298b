"""``plan`` and ``bound``: the circuit, its stages, each stage's kernels, and what was proven on the way.

Objectives in this order: number of stages, weighted qubit moves, predicted seconds of the kernels. A planner names how
stages are found and how kernels are. ``commutation`` (the default) takes the best of program order, commutation order,
and commutation order with diagonal groups merged, so it is never worse than ``exact`` in the first two objectives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from planners.circuit.costs import kernel_table
from planners.circuit.dag import contract
from planners.circuit.ir import Circuit
from planners.circuit.kernels import to_kernels
from planners.circuit.layouts import positions
from planners.circuit.load import merge_gates, source_circuit
from planners.circuit.peephole import diagonal_groups
from planners.circuit.portfolio import Solved, solve_stage
from planners.circuit.problem import KernelTable, Machine, Plan, Problem, Proof, Stage
from planners.circuit.staging import Staging, check_fits, exact_staging, greedy_staging, ilp_staging, stage_orders
from planners.circuit.windows import Shape, fewest_stages
from workbench.costs import CostModel
from workbench.errors import SpecError, nearest
from workbench.plan import Bound, Certificate

__all__ = ["PLANNERS", "bound", "plan", "shape_of"]

MOVES = "weighted qubit moves"
_FULLY_SOLVED = 2


class _Search(NamedTuple):
    """Solver settings."""

    solver: str
    time_limit_s: float
    seed: int


class _Staged(NamedTuple):
    """A staging, the circuit it is for, and the groups merged in that circuit."""

    staging: Staging
    circuit: Circuit
    merged: tuple[tuple[int, ...], ...]


class _Ordered(NamedTuple):
    """A staging with the gates of each stage."""

    staged: _Staged
    orders: list[list[int]]


def shape_of(machine: Machine, qubits: int) -> Shape:
    """Wires by level for a circuit: a circuit smaller than the machine leaves the outer levels empty."""
    local = machine.shard_qubits(qubits)
    regional = min(machine.regional_qubits, qubits - local)
    return Shape(local, regional, qubits - local - regional, machine.global_cost)


def plan(problem: Problem, costs: CostModel, *, planner: str, solver: str, time_limit_s: float, seed: int) -> Plan:
    """Plan a circuit.

    Args:
        problem: circuit, machine and kernel limits.
        costs: answers ``fusion_kernel``, ``tile_kernel`` and ``tile_gate`` (see ``costs.py``).
        planner: one of ``PLANNERS``.
        solver: MILP back-end, for staging problems whose bounds do not meet.
        time_limit_s: for the stages; kernels take a second or so a stage.
        seed: of tie-breaks.

    Raises:
        SpecError: the problem or the planner's name is wrong.
        Infeasible: a gate is larger than the machine's local qubits or than any kernel.
        MissingProfile: a kernel time is not known.
    """
    begin = time.perf_counter()
    if planner not in _METHODS:
        close = nearest(planner, _METHODS)
        raise SpecError(f"no planner is called {planner!r}", where="planner.name", allowed=_METHODS,
                        hint=f"did you mean {close!r}?" if close else None)
    source = source_circuit(problem)
    problem.outputs.check(source.qubits)
    shape = shape_of(problem.machine, source.qubits)
    stage, kernelizer, _ = _METHODS[planner]
    candidates = stage(source, shape, _Search(solver, time_limit_s, seed))
    gates = Circuit(name="all", qubits=source.qubits, gates=tuple(g for c in candidates for g in c.circuit.gates))
    table, sources = kernel_table(gates, costs, limits=problem.kernels, local_qubits=shape.local,
                                  amplitude_bytes=problem.machine.amplitude_bytes)
    options = [_Ordered(c, orders) for c in candidates for orders in _orders(c, both=kernelizer == "portfolio")]
    staged, stages, kernel_time = _best_kernels(options, shape, table, kernelizer)
    staging = staged.staging
    proven = staging.stage_bound == staging.stages
    return Plan(
        stages=stages, merged=staged.merged, table=table, communication=_communication(staging),
        kernel_time=kernel_time, sources=sources,
        certificate=Certificate(objective=float(staging.stages), bound=float(staging.stage_bound), sense="min",
                                unit="stages", status="optimal" if proven else "feasible", planner=planner,
                                seconds=time.perf_counter() - begin))


def _orders(staged: _Staged, *, both: bool) -> list[list[list[int]]]:
    """Gates by stage, as early as possible; and as late as possible, where that differs."""
    early = stage_orders(staged.circuit, staged.staging, late=False)
    if not both or staged.staging.stages == 1:
        return [early]
    return [early, stage_orders(staged.circuit, staged.staging, late=True)]


def _best_kernels(options: list[_Ordered], shape: Shape, table: KernelTable, kernelizer: str
                  ) -> tuple[_Staged, tuple[Stage, ...], Proof]:
    """The option whose kernels take least; the first is solved in full, others if a quick look ranks them high."""
    chosen = [0]
    if len(options) > 1:
        quick = [sum(x.seconds for x in _solved(option, shape, table, "beam")) for option in options]
        ranked = sorted(range(len(options)), key=lambda k: (quick[k], k))
        chosen = list(dict.fromkeys([0, *ranked[:_FULLY_SOLVED]]))
    solved = {k: _solved(options[k], shape, table, kernelizer) for k in chosen}
    best = min(chosen, key=lambda k: (sum(x.seconds for x in solved[k]), k))
    stages = []
    edge = shape.local + shape.regional
    layouts = positions(options[best].staged.staging.layouts, shape)
    for layout, part in zip(layouts, solved[best], strict=True):
        stages.append(Stage(local=layout[:shape.local], regional=layout[shape.local:edge], global_=layout[edge:],
                            kernels=to_kernels(part.stage, part.steps)))
    seconds = sum(x.seconds for x in solved[best])
    least = sum(x.bound for x in solved[best])
    optimal = seconds <= least * (1 + 1e-9)
    return options[best].staged, tuple(stages), Proof(objective=seconds, bound=least, unit="s",
                                                      status="optimal" if optimal else "feasible")


def _solved(option: _Ordered, shape: Shape, table: KernelTable, kernelizer: str) -> list[Solved]:
    layouts = positions(option.staged.staging.layouts, shape)
    return [solve_stage(option.staged.circuit, order, local=layout[:shape.local], table=table, kernelizer=kernelizer)
            for order, layout in zip(option.orders, layouts, strict=True)]


def _communication(staging: Staging) -> Proof:
    cost, least = staging.layouts.cost, staging.cost_bound
    if least is None:
        return Proof(objective=cost, unit=MOVES, status="heuristic", solver=staging.solver)
    return Proof(objective=cost, bound=least, unit=MOVES, solver=staging.solver,
                 status="optimal" if cost <= least + 1e-6 else "feasible")


def _by_commutation(source: Circuit, shape: Shape, search: _Search) -> list[_Staged]:
    """The views of the circuit with fewest stages and then least communication: at most one merged, one not."""
    share = search.time_limit_s / 3
    strict = exact_staging(source, shape, relation="program", solver=search.solver, time_limit_s=share,
                           seed=search.seed)
    views = [_Staged(strict, source, ())]
    groups = diagonal_groups(source)
    for merged in ((), groups) if groups else ((),):
        circuit = merge_gates(source, merged)
        staging = exact_staging(circuit, shape, relation="commutation", solver=search.solver, time_limit_s=share,
                                seed=search.seed, known=strict.layouts)
        views.append(_Staged(staging, circuit, merged))
    best = min(view.staging.key for view in views)
    least_stages = min(view.staging.stage_bound for view in views)
    # a view that may have a schedule in as many stages, but none was found, leaves the communication unproven
    open_views = any(view.staging.stage_bound <= best[0] < view.staging.stages for view in views)
    known = [view.staging.cost_bound for view in views if view.staging.stages == best[0]]
    costs = [] if open_views else [cost for cost in known if cost is not None]
    kept: dict[tuple[tuple[int, ...], ...], _Staged] = {}
    for view in views:
        if view.staging.key == best:
            kept.setdefault(view.merged, view._replace(staging=view.staging._replace(
                stage_bound=least_stages, cost_bound=min(costs, default=None))))
    return list(kept.values())


def _in_program_order(source: Circuit, shape: Shape, search: _Search) -> list[_Staged]:
    return [_Staged(exact_staging(source, shape, relation="program", solver=search.solver,
                                  time_limit_s=search.time_limit_s, seed=search.seed), source, ())]


def _by_ilp(source: Circuit, shape: Shape, search: _Search) -> list[_Staged]:
    return [_Staged(ilp_staging(source, shape, solver=search.solver, time_limit_s=search.time_limit_s,
                                seed=search.seed), source, ())]


def _greedily(source: Circuit, shape: Shape, search: _Search) -> list[_Staged]:
    return [_Staged(greedy_staging(source, shape), source, ())]


_METHODS: dict[str, tuple[Callable[[Circuit, Shape, _Search], list[_Staged]], str, str]] = {
    "commutation": (_by_commutation, "portfolio",
                    "proven fewest stages where commuting gates may pass each other; best kernels of all searches"),
    "exact": (_in_program_order, "portfolio", "proven fewest stages in program order; best kernels of all searches"),
    "atlas": (_by_ilp, "kernelize", "the paper: staging ILP solved for 1, 2, ... stages; KERNELIZE"),
    "ordered": (_in_program_order, "ordered", "proven fewest stages in program order; ORDERED kernels"),
    "greedy": (_greedily, "greedy", "the paper's baselines: greedy staging; fusion kernels of five qubits in order"),
}
PLANNERS: dict[str, str] = {name: line for name, (_, _, line) in _METHODS.items()}
"""name -> one line; the first is the default."""


def bound(problem: Problem, costs: CostModel) -> Bound:
    """Fewest stages of any plan, in any of the orders the planners use.

    Raises:
        Infeasible: a gate is larger than the machine's local qubits.
    """
    begin = time.perf_counter()
    source = source_circuit(problem)
    shape = shape_of(problem.machine, source.qubits)
    check_fits(source, shape.local)
    views = [source, merge_gates(source, diagonal_groups(source))]
    least = min(fewest_stages(contract(view, "commutation"), shape.local)[0] for view in views)
    return Bound(value=float(least), kind="combinatorial", seconds=time.perf_counter() - begin)

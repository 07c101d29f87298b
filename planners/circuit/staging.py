"""Fewest stages, then least communication: bounds and a list schedule that usually meet, an ILP where they do not.

Also the public heuristic the paper compares with (called SnuQS there): run all that can run, then take the wires with
the most blocked gates. A staging holds bit masks of local and global wires; ``stage_orders`` gives each gate its stage.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from planners.circuit.dag import Relation, StageDag, contract, gate_axes, mask_of, runnable
from planners.circuit.ilp import solve_staging
from planners.circuit.ir import Circuit
from planners.circuit.schedule import Layouts, complete, improve, list_schedule
from planners.circuit.windows import Shape, Windows, cheapest_moves, fewest_stages, windows
from workbench.errors import Infeasible, SolverError

__all__ = ["Staging", "check_fits", "exact_staging", "greedy_staging", "ilp_staging", "stage_orders"]

_TRIES = 64
_TIE = 1e-9


class Staging(NamedTuple):
    """Layouts with what was proven about them.

    ``stage_bound``: proven fewest stages; ``cost_bound``: proven least communication for ``len(layouts.local)`` stages
    (absent when that number is not the proven fewest); ``solver``: what closed the gap, absent if bounds met alone.
    """

    layouts: Layouts
    relation: Relation
    stage_bound: int
    cost_bound: float | None
    solver: str | None
    seconds: float

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.layouts.local)

    @property
    def key(self) -> tuple[int, float]:
        """What staging minimises, in this order."""
        return (self.stages, self.layouts.cost)


def check_fits(circuit: Circuit, local: int) -> None:
    """Every gate's mixing wires must fit into the local qubits.

    Raises:
        Infeasible: names the gate and the number of local qubits that would do.
    """
    for index, gate in enumerate(circuit.gates):
        if len(gate.mixing) > local:
            raise Infeasible(f"gate {index} ({gate.name} on {gate.qubits}) mixes {len(gate.mixing)} qubits, but a "
                             f"shard has only {local} local ones", where="machine.local_qubits",
                             hint=f"at least {len(gate.mixing)} local qubits are needed")


def exact_staging(circuit: Circuit, shape: Shape, *, relation: Relation, solver: str, time_limit_s: float,
                  seed: int) -> Staging:
    """Fewest stages and then least communication under an order relation.

    The ILP runs only where list schedule and bound do not meet, for ``time_limit_s`` in all at most; a number of stages
    that it neither schedules nor rules out in time is given up, and the proven bound stays below.

    Raises:
        Infeasible: a gate does not fit.
    """
    begin = time.perf_counter()
    check_fits(circuit, shape.local)
    dag = contract(circuit, relation)
    stages, limits = fewest_stages(dag, shape.local)
    proven_stages = stages
    while True:
        bound = cheapest_moves(dag, shape, stages).cost
        best = _scheduled(dag, shape, limits, bound=bound, seed=seed)
        solved_by = None
        if best is None or best.cost > bound + _TIE:
            left = time_limit_s - (time.perf_counter() - begin)
            found, bound, status = solve_staging(dag, shape, limits, stages=stages, bound=bound, start=best,
                                                 solver=solver, time_limit_s=max(left, 0.1), seed=seed)
            solved_by = solver
            best = min((x for x in (found, best) if x is not None), key=lambda x: x.cost, default=None)
            if best is None and status == "infeasible" and proven_stages == stages:
                proven_stages += 1
        if best is not None:
            return Staging(best, relation, proven_stages, bound, solved_by, time.perf_counter() - begin)
        stages += 1
        limits = _windows_at(dag, shape, stages)


def ilp_staging(circuit: Circuit, shape: Shape, *, solver: str, time_limit_s: float, seed: int) -> Staging:
    """The paper's loop: its ILP for 1, 2, ... stages until one is feasible, without bounds or windows from elsewhere.

    Raises:
        Infeasible: a gate does not fit.
        SolverError: a number of stages was neither solved nor ruled out in time.
    """
    begin = time.perf_counter()
    check_fits(circuit, shape.local)
    dag = contract(circuit, "program")
    stages = 1
    while True:
        whole = Windows((0,) * dag.size, (stages - 1,) * dag.size)
        left = max(time_limit_s - (time.perf_counter() - begin), 0.1)
        found, bound, status = solve_staging(dag, shape, whole, stages=stages, bound=0.0, start=None, solver=solver,
                                             time_limit_s=left, seed=seed)
        if found is not None:
            return Staging(found, "program", stages, bound, solver, time.perf_counter() - begin)
        if status != "infeasible":
            raise SolverError(f"{stages} stages were neither scheduled nor ruled out in {time_limit_s:g} s",
                              where="planner atlas", hint="planner 'exact' proves it without a solver")
        stages += 1


def _windows_at(dag: StageDag, shape: Shape, stages: int) -> Windows:
    limits = windows(dag, [shape.local] * stages)
    assert limits is not None, "more stages cannot be harder"
    return limits


def _scheduled(dag: StageDag, shape: Shape, limits: Windows, *, bound: float, seed: int) -> Layouts | None:
    """The cheapest of some list schedules: one without budgets, then random budgets and ties; stops at the bound."""
    rng = np.random.default_rng(seed)
    transitions = max(limits.last, default=0)
    luck: list[float] = [float(v) for v in range(dag.size)]
    budgets = [shape.wires] * transitions
    best: Layouts | None = None
    for _ in range(_TRIES):
        needed = list_schedule(dag, shape, limits, luck=luck, budgets=budgets)
        if needed is not None:
            found = improve(dag, complete(needed, shape), shape)
            if best is None or found.cost < best.cost:
                best = found
            if best.cost <= bound + _TIE:
                break
        luck = rng.random(dag.size).tolist()
        budgets = rng.integers(0, shape.away + 1, transitions).tolist()
    return best


def greedy_staging(circuit: Circuit, shape: Shape) -> Staging:
    """The public heuristic: greedy execution, then the wires that block most gates become local.

    Raises:
        Infeasible: a gate does not fit.
    """
    begin = time.perf_counter()
    check_fits(circuit, shape.local)
    ways = gate_axes(circuit, "program")
    needs = [mask_of(gate.mixing) for gate in circuit.gates]
    left = list(range(len(circuit.gates)))
    local: list[int] = []
    chosen = 0
    while True:
        ran, left = runnable(circuit, left, ways, needs=needs, local=chosen)
        if ran and chosen:
            local.append(chosen)
        if not left:
            break
        chosen = _most_blocked(circuit, left, needs=needs, local=chosen, count=shape.local)
    layouts = complete(local or [(1 << shape.local) - 1], shape)
    return Staging(layouts, "program", 1, None, None, time.perf_counter() - begin)


def _most_blocked(circuit: Circuit, left: list[int], *, needs: list[int], local: int, count: int) -> int:
    """Wires ranked by: mixed by the first remaining gate, blocked gates, executable gates, index."""
    blocked, free = [0] * circuit.qubits, [0] * circuit.qubits
    for index in left:
        tally = blocked if needs[index] & ~local else free
        for q in circuit.gates[index].qubits:
            tally[q] += 1
    first = needs[left[0]]
    ranked = sorted(range(circuit.qubits), key=lambda q: (not first >> q & 1, -blocked[q], -free[q], q))
    return mask_of(ranked[:count])


def stage_orders(circuit: Circuit, staging: Staging, *, late: bool) -> list[list[int]]:
    """Gate indices of each stage in execution order, every gate as early (or late) as layouts and relation allow."""
    ways = gate_axes(circuit, staging.relation)
    needs = [mask_of(gate.mixing) for gate in circuit.gates]
    left = list(range(len(circuit.gates)))
    direction = -1 if late else 1
    orders = []
    for local in staging.layouts.local[::direction]:
        ran, left = runnable(circuit, left[::direction], ways, needs=needs, local=local)
        orders.append(ran[::direction])
        left = left[::direction]
    assert not left, "the layouts do not cover the circuit"
    return orders[::direction]

"""``check``: everything a plan promises, derived again from the plan alone; shares no code with the searches.

Order is tested as exact trace equivalence: every pair of gates that shares a wire and runs in another order than in the
circuit must commute, matrix against matrix. The same test, with merged gates taken apart, holds for the merging.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from planners.circuit.ir import Circuit, commute
from planners.circuit.load import merge_gates, source_circuit
from planners.circuit.problem import Kernel, Plan, Problem, Stage
from workbench.errors import MissingProfile
from workbench.plan import Violation

__all__ = ["check", "inverted_pairs"]

_RELATIVE = 1e-9


def check(problem: Problem, plan: Plan) -> list[Violation]:
    """Every broken rule of a plan; empty when it keeps them all."""
    source = source_circuit(problem)
    broken = list(_merges(source, plan))
    if broken:
        return broken
    circuit = merge_gates(source, plan.merged)
    broken = [*_layouts(problem, circuit, plan), *_coverage(circuit, plan)]
    if broken:
        return broken
    return [*_locality(circuit, plan), *_order(source, circuit, plan), *_kernels(circuit, plan),
            *_objectives(problem, plan)]


def _merges(source: Circuit, plan: Plan) -> Iterator[Violation]:
    members = [i for group in plan.merged for i in group]
    if any(not 0 <= i < len(source.gates) for i in members):
        yield Violation(rule="merge", where="merged", detail=f"gate indices leave 0 to {len(source.gates) - 1}")
    elif len(set(members)) != len(members):
        yield Violation(rule="merge", where="merged", detail="a gate is in two groups")
    for group in plan.merged:
        if len(group) < 2 or list(group) != sorted(group):
            yield Violation(rule="merge", where=f"group {group}", detail="a group is two gates or more, ascending")


def _layouts(problem: Problem, circuit: Circuit, plan: Plan) -> Iterator[Violation]:
    local = problem.machine.shard_qubits(circuit.qubits)
    regional = min(problem.machine.regional_qubits, circuit.qubits - local)
    wanted = (local, regional, circuit.qubits - local - regional)
    if not plan.stages:
        yield Violation(rule="layout", where="plan", detail="no stages")
    for k, stage in enumerate(plan.stages):
        sizes = (len(stage.local), len(stage.regional), len(stage.global_))
        if sizes != wanted:
            yield Violation(rule="layout", where=f"stage {k}",
                            detail=f"{sizes} local, regional, global wires; the machine has {wanted}")
        if sorted(stage.layout) != list(range(circuit.qubits)):
            yield Violation(rule="layout", where=f"stage {k}", detail="positions are not a permutation of the wires")


def _coverage(circuit: Circuit, plan: Plan) -> Iterator[Violation]:
    counts = np.zeros(len(circuit.gates), dtype=int)
    for stage in plan.stages:
        for gate in stage.gates:
            if not 0 <= gate < len(circuit.gates):
                yield Violation(rule="gates", where=f"gate {gate}", detail=f"there are {len(circuit.gates)} gates")
                return
            counts[gate] += 1
    for gate in np.flatnonzero(counts != 1)[:20]:
        yield Violation(rule="gates", where=f"gate {gate}", detail=f"runs {counts[gate]} times, not once")


def _locality(circuit: Circuit, plan: Plan) -> Iterator[Violation]:
    for k, stage in enumerate(plan.stages):
        local = set(stage.local)
        for gate in stage.gates:
            away = set(circuit.gates[gate].mixing) - local
            if away:
                yield Violation(rule="local", where=f"stage {k}, gate {gate}", detail=f"mixes wires {sorted(away)}, "
                                "which are not local")


def _order(source: Circuit, circuit: Circuit, plan: Plan) -> Iterator[Violation]:
    """The plan against the planned circuit, and the planned circuit, merged gates taken apart, against the source."""
    yield from _inversions(circuit, [gate for stage in plan.stages for gate in stage.gates], "")
    last = {group[-1]: group for group in plan.merged}
    gone = {i for group in plan.merged for i in group[:-1]}
    apart = [i for k in range(len(source.gates)) if k not in gone for i in last.get(k, (k,))]
    yield from _inversions(source, apart, " for the groups to be merged")


def _inversions(circuit: Circuit, order: Sequence[int], why: str) -> Iterator[Violation]:
    for first, second in inverted_pairs(circuit, order):
        a, b = circuit.gates[first], circuit.gates[second]
        if not commute(a, b):
            yield Violation(rule="order", where=f"gates {first} and {second}",
                            detail=f"{a.name} on {a.qubits} must run before {b.name} on {b.qubits}{why}")


def inverted_pairs(circuit: Circuit, order: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of gates that share a wire and run in the other order than in the circuit, ascending."""
    place = np.empty(len(order), dtype=int)
    place[list(order)] = np.arange(len(order))
    wires: list[list[int]] = [[] for _ in range(circuit.qubits)]
    for i, gate in enumerate(circuit.gates):
        for q in gate.qubits:
            wires[q].append(i)
    pairs: set[tuple[int, int]] = set()
    for gates in wires:
        index = np.array(gates, dtype=int)
        when = place[index]
        a, b = np.nonzero(np.triu(when[:, None] > when[None, :], 1))
        pairs.update(zip(index[a].tolist(), index[b].tolist(), strict=True))
    return sorted(pairs)


def _kernels(circuit: Circuit, plan: Plan) -> Iterator[Violation]:
    for k, stage in enumerate(plan.stages):
        for number, kernel in enumerate(stage.kernels):
            where = f"stage {k}, kernel {number}"
            yield from _limits(circuit, plan, stage, kernel, where)


def _limits(circuit: Circuit, plan: Plan, stage: Stage, kernel: Kernel, where: str) -> Iterator[Violation]:
    """Wires, size and cost of one kernel."""
    local, table = set(stage.local), plan.table
    touched: set[int] = set()
    changed: set[int] = set()
    work = 0.0
    for index in kernel.gates:
        gate = circuit.gates[index]
        near = set(gate.qubits) & local
        keeps = {gate.qubits[p] for p in gate.structure.diagonal}
        touched |= near
        changed |= near - keeps
        if near and kernel.kind == "tile":
            try:
                work += table.gate_s(gate)
            except MissingProfile as error:
                yield Violation(rule="kernel cost", where=f"{where}, gate {index}", detail=error.message)
    listed = touched if kernel.kind == "fusion" else changed
    if set(kernel.qubits) != listed or len(kernel.qubits) != len(listed):
        yield Violation(rule="kernel wires", where=where,
                        detail=f"lists {sorted(kernel.qubits)}, its gates work on {sorted(listed)}")
    if kernel.kind == "fusion":
        largest = len(table.fusion_s) - 1
        if len(touched) > largest:
            yield Violation(rule="kernel size", where=where, detail=f"{len(touched)} wires, at most {largest}")
            return
        cost = table.fusion_s[len(touched)]
    else:
        pinned = set(stage.local[: table.pinned_qubits])
        if len(changed | pinned) > table.tile_qubits:
            yield Violation(rule="kernel size", where=where,
                            detail=f"{len(changed | pinned)} wires with the pinned ones, at most {table.tile_qubits}")
        cost = table.tile_base_s(len(changed - pinned)) + work
    if not np.isclose(kernel.cost_s, cost, rtol=_RELATIVE, atol=0.0):
        yield Violation(rule="kernel cost", where=where, detail=f"claims {kernel.cost_s:.9g} s, costs {cost:.9g} s")


def _objectives(problem: Problem, plan: Plan) -> Iterator[Violation]:
    moves = 0.0
    for before, after in zip(plan.stages, plan.stages[1:], strict=False):
        moves += len(set(after.local) - set(before.local))
        moves += problem.machine.global_cost * len(set(after.global_) - set(before.global_))
    seconds = sum(kernel.cost_s for stage in plan.stages for kernel in stage.kernels)
    for name, claimed, found in (("stages", plan.certificate.objective, float(len(plan.stages))),
                                 ("communication", plan.communication.objective, moves),
                                 ("kernel time", plan.kernel_time.objective, seconds)):
        if not np.isclose(claimed, found, rtol=_RELATIVE, atol=1e-15):
            yield Violation(rule="objective", where=name, detail=f"claims {claimed:.9g}, is {found:.9g}")
    for name, value, least in (("stages", plan.certificate.objective, plan.certificate.bound),
                               ("communication", plan.communication.objective, plan.communication.bound),
                               ("kernel time", plan.kernel_time.objective, plan.kernel_time.bound)):
        if least is not None and value < least * (1 - _RELATIVE):
            yield Violation(rule="bound", where=name, detail=f"{value:.9g} lies below its proven bound {least:.9g}")

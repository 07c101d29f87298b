"""From a problem to the circuit the planner and the executor share.

``source_circuit`` reads or generates the circuit and takes SWAPs out; ``planned_circuit`` also replaces the groups of
gates that a plan merged by one gate each, at the place of the group's last gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planners.circuit.ir import Circuit, Gate, embed, from_matrix, without_swaps
from planners.circuit.problem import Plan, Problem
from workbench.errors import SpecError

__all__ = ["merge_gates", "planned_circuit", "source_circuit"]


def source_circuit(problem: Problem) -> Circuit:
    """The problem's circuit, swaps taken out when the problem says so.

    Raises:
        SpecError: an unknown family, or a file that is no OpenQASM circuit.
    """
    source = problem.circuit
    if source.inline is None:
        raise SpecError("no reader for this source", where="circuit", allowed=["inline"])
    return without_swaps(source.inline) if problem.swaps == "relabel" else source.inline


def planned_circuit(problem: Problem, plan: Plan) -> Circuit:
    """The circuit whose gates a plan's indices count."""
    return merge_gates(source_circuit(problem), plan.merged)


def merge_gates(circuit: Circuit, groups: Sequence[Sequence[int]]) -> Circuit:
    """Replace each group (indices, program order) by its product as one ``unitary`` gate, placed at its last gate."""
    if not groups:
        return circuit
    product = {group[-1]: product_of([circuit.gates[i] for i in group]) for group in groups}
    gone = {i for group in groups for i in group[:-1]}
    gates = tuple(product.get(i, gate) for i, gate in enumerate(circuit.gates) if i not in gone)
    return Circuit(name=circuit.name, qubits=circuit.qubits, gates=gates, output=circuit.output)


def product_of(gates: Sequence[Gate]) -> Gate:
    """One gate with the effect of ``gates`` in order."""
    qubits = tuple(sorted({q for gate in gates for q in gate.qubits}))
    place = {q: i for i, q in enumerate(qubits)}
    matrix = np.eye(1 << len(qubits), dtype=np.complex128)
    for gate in gates:
        matrix = embed(gate.matrix, tuple(place[q] for q in gate.qubits), len(qubits)) @ matrix
    return from_matrix(matrix, qubits)

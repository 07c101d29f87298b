"""From a problem to the circuit the planner and the executor share.

``source_circuit`` reads or generates the circuit and takes SWAPs out; ``planned_circuit`` also replaces the groups of
gates that a plan merged by one gate each, at the place of the group's last gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planners.circuit.generators import generate
from planners.circuit.ir import Circuit, product_of, without_swaps
from planners.circuit.problem import Plan, Problem, Source
from planners.circuit.qasm import read_qasm
from traces.registry import registry

__all__ = ["merge_gates", "planned_circuit", "source_circuit"]


def source_circuit(problem: Problem) -> Circuit:
    """The problem's circuit, swaps taken out when the problem says so.

    Raises:
        SpecError: an unknown family, or a file that is no OpenQASM circuit.
    """
    circuit = _given(problem.circuit)
    return without_swaps(circuit) if problem.swaps == "relabel" else circuit


def _given(source: Source) -> Circuit:
    if source.inline is not None:
        return source.inline
    if source.file is not None:
        return read_qasm(source.file)
    if source.trace is not None:
        return read_qasm(registry().fetch(source.trace))
    assert source.family is not None and source.qubits is not None  # held by Source itself
    return generate(source.family, qubits=source.qubits, rng=np.random.default_rng(source.seed), layers=source.layers)


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

"""Circuits of other libraries as ``Circuit`` values: Qiskit (``from_qiskit``) and Cirq (``from_cirq``).

Only the circuit object's own library is needed, and only when an adapter is called.
"""

from __future__ import annotations

import cmath
import importlib
import itertools
from typing import Any

from planners.circuit.gateset import BUILDERS
from planners.circuit.ir import Circuit, Gate, from_matrix
from planners.circuit.qasm import with_phase
from workbench.errors import SpecError

__all__ = ["from_cirq", "from_qiskit"]


def from_qiskit(circuit: Any) -> Circuit:
    """A ``qiskit.QuantumCircuit`` with bound parameters; composite gates are expanded until they have a matrix.

    Raises:
        SpecError: free parameters, classical control, or measurement and reset inside the circuit.
    """
    index = {qubit: i for i, qubit in enumerate(circuit.qubits)}
    gates: list[Gate] = [Gate(name="gphase", qubits=(), params=(float(circuit.global_phase),))]
    measured: set[int] = set()

    def add(operation: Any, qubits: tuple[int, ...], place: str) -> None:
        name = operation.name
        if name == "barrier":
            return
        if name == "measure":
            measured.update(qubits)
            return
        if measured & set(qubits):
            raise SpecError(f"{name} on a measured qubit: measurement inside a circuit is not supported", where=place)
        if getattr(operation, "params", None) and any(getattr(p, "parameters", None) for p in operation.params):
            raise SpecError(f"{name} has a free parameter", where=place, hint="bind it first: assign_parameters")
        if name in BUILDERS and _all_ones(operation):
            gates.append(Gate(name=name, qubits=qubits, params=tuple(float(p) for p in operation.params)))
        elif len(qubits) <= 4 and hasattr(operation, "__array__"):
            gates.append(from_matrix(operation.to_matrix(), qubits))
        elif getattr(operation, "definition", None) is not None:
            inner = operation.definition
            position = {qubit: qubits[i] for i, qubit in enumerate(inner.qubits)}
            gates.append(Gate(name="gphase", qubits=(), params=(float(inner.global_phase),)))
            for step in inner.data:
                add(step.operation, tuple(position[q] for q in step.qubits), place)
        else:
            raise SpecError(f"{name} is not supported", where=place)

    for number, step in enumerate(circuit.data):
        add(step.operation, tuple(index[q] for q in step.qubits), f"instruction {number}")
    return Circuit(name=circuit.name or "qiskit", qubits=circuit.num_qubits, gates=with_phase(gates))


def _all_ones(operation: Any) -> bool:
    """Whether every control of a Qiskit gate triggers on 1 (its matrix is then the one its name says)."""
    controls = getattr(operation, "num_ctrl_qubits", 0)
    return getattr(operation, "ctrl_state", None) in (None, (1 << controls) - 1)


def from_cirq(circuit: Any) -> Circuit:
    """A ``cirq.Circuit`` without free parameters; qubits are numbered in Cirq's sorted order, the first is qubit 0.

    Raises:
        SpecError: an operation without a unitary that is not a final measurement.
    """
    cirq = importlib.import_module("cirq")

    order = sorted(circuit.all_qubits())
    index = {qubit: i for i, qubit in enumerate(order)}
    gates: list[Gate] = []
    measured: set[int] = set()
    for moment, operation in enumerate(itertools.chain.from_iterable(circuit)):
        qubits = tuple(index[q] for q in operation.qubits)
        if cirq.is_measurement(operation):
            measured.update(qubits)
            continue
        matrix = cirq.unitary(operation, None) if len(qubits) <= 6 else None
        if matrix is None or measured & set(qubits):
            raise SpecError(f"{operation} is not supported: only unitary gates and final measurements are",
                            where=f"operation {moment}")
        # Cirq's first qubit is the most significant bit of the matrix
        gates.append(from_matrix(matrix, qubits[::-1]) if qubits else
                     Gate(name="gphase", qubits=(), params=(cmath.phase(complex(matrix.ravel()[0])),)))
    return Circuit(name="cirq", qubits=len(order), gates=with_phase(gates))

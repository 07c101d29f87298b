"""What ``verify`` compares a run's amplitudes with, strongest first; every method knows circuits, none a plan's stages.

``gate by gate``: numpy on a dense double-precision vector, in program order. ``sum over paths``: exact, for Clifford
circuits. ``closed form``: the state the family is known to end in. ``inverse``: the probed basis states x with random
unit weights w run back through the inverse circuit as one tile program from a general start, since
    <0| U^-1 sum_x w_x |x> = sum_x w_x conj(<x| U |0>),
so one run holds every probed amplitude against other gates in the opposite order; ``inverse on a file`` does so out of
core, where it reuses the plan's local sets backwards. ``none`` is left where not even that fits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import engine, threads_available
from executors.circuit.local import compile_circuit
from executors.circuit.measure import amplitudes
from executors.circuit.outofcore import StoredState, run_on_file, scratch_folder
from executors.circuit.sharded import compile_plan, engine_for
from executors.circuit.stabiliser import path_sum
from executors.circuit.state import allocate
from planners.circuit import Circuit, Gate, Plan, Problem, Source
from planners.circuit.ir import from_matrix
from planners.circuit.load import planned_circuit, source_circuit
from workbench.plan import Violation

__all__ = ["Method", "Place", "amplitude_faults", "chosen_method", "dense_state"]

Method = Literal["gate by gate", "sum over paths", "closed form", "inverse", "inverse on a file", "none"]
Amplitudes = npt.NDArray[np.complex128]
DENSE_QUBITS = 20
"""Up to this many qubits every circuit is simulated gate by gate."""
DENSE_WORK = 2**32
"""Above that, circuits with gates times amplitudes up to this: some ten seconds of numpy."""
RELATIVE = {8: 1e-5, 16: 1e-10}
"""Allowed error by bytes of an amplitude, against the largest amplitude probed or the mean size 2^(-n/2)."""


class Place(NamedTuple):
    """Where a run was. ``memory_bytes``: room for amplitudes; ``alone``: not one of several ranks."""

    memory_bytes: float
    alone: bool


def chosen_method(problem: Problem, at: Place) -> Method:
    """The strongest method that fits in time and memory."""
    circuit = source_circuit(problem)
    n = circuit.qubits
    if n <= DENSE_QUBITS:
        return "gate by gate"
    if path_sum(circuit) is not None:
        return "sum over paths"
    if problem.circuit.family in CLOSED_FORMS:
        return "closed form"
    if len(circuit.gates) << n <= DENSE_WORK and 3 * 16 << n <= at.memory_bytes:
        return "gate by gate"
    if problem.machine.amplitude_bytes << n <= at.memory_bytes:
        return "inverse"
    return "inverse on a file" if at.alone else "none"


def amplitude_faults(problem: Problem, plan: Plan, method: Method, basis: Sequence[int], got: Amplitudes
                     ) -> list[Violation]:
    """Compare amplitudes of basis states (qubit 0 = least significant bit) by a method."""
    if method == "none":
        return []
    circuit = source_circuit(problem)
    relative = RELATIVE[problem.machine.amplitude_bytes]
    size = float(np.max(np.abs(got), initial=2.0 ** (-circuit.qubits / 2)))
    wires = [_on_wires(circuit, x) for x in basis]
    if method in ("inverse", "inverse on a file"):
        weights = np.exp(2j * math.pi * np.random.default_rng(0).random(len(basis))) / math.sqrt(len(basis))
        run_back = _inverse if method == "inverse" else _inverse_on_file
        back = run_back(problem, plan, wires, weights)
        off = abs(back - complex(np.sum(weights * np.conj(got))))
        allowed = relative * size
        return [] if off <= allowed else [Violation(
            rule="amplitudes", where=f"{len(basis)} basis states",
            detail=f"run back, their overlap with |0...0> is off by {off:.3g}, allowed {allowed:.3g}")]
    wanted = _reference(problem, circuit, method, basis, wires)
    wrong = np.abs(got - wanted)
    worst = int(np.argmax(wrong))
    allowed = relative * max(size, float(np.max(np.abs(wanted))))
    return [] if wrong[worst] <= allowed else [Violation(
        rule="amplitudes", where=f"basis state {basis[worst]}",
        detail=f"off by {wrong[worst]:.3g}, allowed {allowed:.3g}")]


def _reference(problem: Problem, circuit: Circuit, method: Method, basis: Sequence[int], wires: Sequence[int]
               ) -> Amplitudes:
    if method == "gate by gate":
        return np.asarray(dense_state(circuit)[np.array(wires)])
    if method == "sum over paths":
        paths = path_sum(circuit)
        assert paths is not None, "chosen only for Clifford circuits"
        return np.array([paths.amplitude(x) for x in wires])
    return np.array([CLOSED_FORMS[problem.circuit.family or ""](circuit.qubits, x) for x in basis])


def _on_wires(circuit: Circuit, basis: int) -> int:
    """The values of the wires where the circuit's logical qubits hold a basis state."""
    output = circuit.output or range(circuit.qubits)
    return sum((basis >> q & 1) << w for q, w in enumerate(output))


CLOSED_FORMS: dict[str, Callable[[int, int], complex]] = {
    "qft": lambda n, x: 2.0 ** (-n / 2) + 0j,
    "wstate": lambda n, x: (n**-0.5 if x.bit_count() == 1 else 0.0) + 0j,
}
"""Amplitude of basis state x after the generated circuit of a family on n qubits."""


def dense_state(circuit: Circuit) -> Amplitudes:
    """The state of the wires after every gate in program order, shape (2^n,), in place on one vector."""
    n = circuit.qubits
    state = np.zeros(1 << n, dtype=np.complex128)
    state[0] = 1
    for gate in circuit.gates:
        blocks = _blocks(state, gate.qubits)
        matrix = gate.matrix
        changed = [r for r in range(len(matrix)) if np.any(np.abs(matrix[r] - np.eye(len(matrix))[r]) > 0)]
        rows = {r: [c for c in range(len(matrix)) if matrix[r, c] != 0] for r in changed}
        if all(columns == [r] for r, columns in rows.items()):
            for r in changed:
                blocks[r] *= matrix[r, r]
            continue
        fresh = {}
        for r, columns in rows.items():
            total = matrix[r, columns[0]] * blocks[columns[0]]
            for c in columns[1:]:
                total += matrix[r, c] * blocks[c]
            fresh[r] = total
        for r, values in fresh.items():
            blocks[r][...] = values
    return state


def _blocks(state: Amplitudes, qubits: Sequence[int]) -> list[Amplitudes]:
    """Views of the amplitudes by the value of some qubits (the first is the least significant bit)."""
    shape: list[int] = []
    top = len(state).bit_length() - 1
    order = sorted(qubits, reverse=True)
    for q in order:
        shape += [1 << (top - q - 1), 2]
        top = q
    view = state.reshape(*shape, 1 << top)
    return [view[tuple(x for q in order for x in (slice(None), value >> qubits.index(q) & 1))]
            for value in range(1 << len(qubits))]


def _dagger(gate: Gate) -> Gate:
    return from_matrix(gate.matrix.conj().T, gate.qubits)


def _inverse(problem: Problem, plan: Plan, wires: Sequence[int], weights: Amplitudes) -> complex:
    circuit = source_circuit(problem)
    back = Circuit(name="inverse", qubits=circuit.qubits, gates=tuple(map(_dagger, reversed(circuit.gates))))
    real = np.dtype(np.float32 if problem.machine.amplitude_bytes == 8 else np.float64)
    on = engine()
    code = compile_circuit(back, dtype=real, on=on, live=True)
    state = allocate(1 << code.program.address_bits, np.result_type(real, np.complex64))
    state[list(wires)] = weights
    on.run(code.program, state, shard=0, threads=threads_available())
    return complex(amplitudes(state, code.placement, [0])[0])


def _inverse_on_file(problem: Problem, plan: Plan, wires: Sequence[int], weights: Amplitudes) -> complex:
    circuit = planned_circuit(problem, plan)
    last = len(circuit.gates) - 1
    back = Circuit(name="inverse", qubits=circuit.qubits, gates=tuple(map(_dagger, reversed(circuit.gates))))
    stages = tuple(dataclasses.replace(stage, kernels=tuple(
        dataclasses.replace(kernel, gates=tuple(last - g for g in reversed(kernel.gates)))
        for kernel in reversed(stage.kernels))) for stage in reversed(plan.stages))
    real = np.dtype(np.float32 if problem.machine.amplitude_bytes == 8 else np.float64)
    on = engine_for(len(stages[0].local), real)
    code = compile_plan(Problem(circuit=Source(inline=back), machine=problem.machine, swaps="keep"),
                        dataclasses.replace(plan, stages=stages, merged=()), dtype=real, on=on, live=True)
    with scratch_folder() as folder:
        path = folder / "state"
        done = run_on_file(code, path, dtype=real, on=on, start=dict(zip(wires, map(complex, weights), strict=True)))
        state = StoredState(path, np.result_type(real, np.complex64)).as_state()
        return complex(amplitudes(state, done.placement, [0])[0])

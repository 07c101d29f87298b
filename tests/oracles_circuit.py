"""Brute force and closed forms for the study ``circuit``; nothing here is clever, and nothing is shared with planners.

States are dense vectors, qubit 0 the least significant bit. Orders are pairs of gates; stages and kernels are searched
over all down-sets of gates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from planners.circuit.ir import Circuit, Gate, from_matrix
from planners.circuit.problem import KernelTable

Vector = npt.NDArray[np.complex128]


def apply_gate(state: Vector, matrix: npt.NDArray[np.complex128], qubits: Sequence[int]) -> Vector:
    """One gate on a dense vector, entry by entry."""
    k = len(qubits)
    result = np.zeros_like(state)
    for index in range(len(state)):
        column = sum((index >> q & 1) << i for i, q in enumerate(qubits))
        rest = index & ~sum(1 << q for q in qubits)
        for row in range(1 << k):
            target = rest | sum((row >> i & 1) << q for i, q in enumerate(qubits))
            result[target] += matrix[row, column] * state[index]
    return result


def dense_state(circuit: Circuit, order: Sequence[int] | None = None) -> Vector:
    """State after the circuit's gates in an order, from |0...0>."""
    n = circuit.qubits
    state = np.zeros((2,) * n, dtype=complex)
    state[(0,) * n] = 1
    for i in range(len(circuit.gates)) if order is None else order:
        gate = circuit.gates[i]
        k = len(gate.qubits)
        axes = [n - 1 - q for q in reversed(gate.qubits)]
        state = np.moveaxis(np.tensordot(gate.matrix.reshape((2,) * (2 * k)), state, axes=(range(k, 2 * k), axes)),
                            range(k), axes)
    return state.reshape(-1)


def permuted(state: Vector, output: Sequence[int] | None) -> Vector:
    """The state with logical qubit q read from wire output[q]."""
    if output is None:
        return state
    n = len(output)
    index = np.arange(len(state))
    source = sum(((index >> q & 1) << output[q] for q in range(n)), np.zeros_like(index))
    return state[source]


def unitary_of(gates: Sequence[Gate], qubits: int) -> npt.NDArray[np.complex128]:
    """The matrix of a gate sequence, column by column."""
    columns = []
    for start in range(1 << qubits):
        state = np.zeros(1 << qubits, dtype=complex)
        state[start] = 1
        for gate in gates:
            state = apply_gate(state, gate.matrix, gate.qubits)
        columns.append(state)
    return np.array(columns).T


def haar(rng: np.random.Generator, side: int) -> npt.NDArray[np.complex128]:
    """A Haar-random unitary."""
    q, r = np.linalg.qr(rng.normal(size=(side, side)) + 1j * rng.normal(size=(side, side)))
    return np.asarray(q * (np.diag(r) / abs(np.diag(r))))


def random_circuit(rng: np.random.Generator, *, qubits: int, gates: int, kinds: Sequence[str] | None = None) -> Circuit:
    """Gates of every kind on random qubits."""
    from planners.circuit.gateset import BUILDERS

    names = [*(kinds or [n for n, (k, _, _) in BUILDERS.items() if 1 <= k <= min(3, qubits)]),
             *([] if kinds else ["matrix1", "matrix2", "diagonal2", "flip", "controlled"])]
    found: list[Gate] = []
    while len(found) < gates:
        name = str(rng.choice(names))
        if name == "controlled":
            count = int(rng.integers(1, min(3, qubits)))
            wires = tuple(int(q) for q in rng.choice(qubits, count + 1, replace=False))
            found.append(Gate(name="ry", qubits=wires, params=(float(rng.uniform(-3, 3)),),
                              controls=tuple(int(v) for v in rng.integers(0, 2, count))))
            continue
        k = {"matrix1": 1, "matrix2": 2, "diagonal2": 2, "flip": 1}.get(name) or BUILDERS[name][0]
        if k > qubits:
            continue
        wires = tuple(int(q) for q in rng.choice(qubits, k, replace=False))
        if name.startswith("matrix"):
            found.append(from_matrix(haar(rng, 1 << k), wires))
        elif name == "diagonal2":
            found.append(from_matrix(np.diag(np.exp(1j * rng.uniform(0, 6, 4))), wires))
        elif name == "flip":
            phases = np.exp(1j * rng.uniform(0, 6, 2))
            found.append(from_matrix(np.array([[0, phases[0]], [phases[1], 0]]), wires))
        else:
            found.append(Gate(name=name, qubits=wires, params=tuple(float(a) for a in
                                                                    rng.uniform(-3, 3, BUILDERS[name][1]))))
    return Circuit(name="random", qubits=qubits, gates=tuple(found))


def mixing_by_definition(matrix: npt.NDArray[np.complex128]) -> set[int]:
    """Positions whose output value is not a function of their input value, from the matrix's entries one by one."""
    side = len(matrix)
    count = side.bit_length() - 1
    found = set()
    entries = [(r, c) for r in range(side) for c in range(side) if abs(matrix[r, c]) > 1e-9]
    for p in range(count):
        if len({(r >> p & 1) == (c >> p & 1) for r, c in entries}) == 2:
            found.add(p)
    return found


def wire_order(circuit: Circuit) -> list[set[int]]:
    """For each gate, the earlier gates it shares a wire with."""
    return [{j for j in range(i) if set(circuit.gates[j].qubits) & set(gate.qubits)}
            for i, gate in enumerate(circuit.gates)]


def commuting_order(circuit: Circuit) -> list[set[int]]:
    """For each gate, the earlier gates it shares a wire with and does not commute with, by 2^n x 2^n matrices."""
    full = [unitary_of([gate], circuit.qubits) for gate in circuit.gates]
    return [{j for j in range(i) if set(circuit.gates[j].qubits) & set(gate.qubits)
             and np.abs(full[i] @ full[j] - full[j] @ full[i]).max() > 1e-9} for i, gate in enumerate(circuit.gates)]


def closure(done: frozenset[int], before: Sequence[set[int]], allowed: Callable[[int], bool]) -> frozenset[int]:
    """Everything that can run after ``done`` among the allowed gates."""
    grown = set(done)
    for i in range(len(before)):
        if i not in grown and allowed(i) and before[i] <= grown:
            grown.add(i)
    return frozenset(grown)


def best_staging(circuit: Circuit, before: Sequence[set[int]], *, local: int, regional: int, global_cost: float
                 ) -> tuple[int, float]:
    """Fewest stages and then least communication, over all choices of local and global wires in every stage."""
    n, count = circuit.qubits, len(circuit.gates)
    mixed = [set(gate.mixing) for gate in circuit.gates]
    spare = n - local - regional if n - local > regional else 0
    levels = []
    for inside in itertools.combinations(range(n), min(local, n)):
        rest = [q for q in range(n) if q not in inside]
        levels += [(frozenset(inside), frozenset(far)) for far in itertools.combinations(rest, max(0, spare))]
    states: dict[tuple[frozenset[int], tuple[frozenset[int], frozenset[int]]], float] = {}
    for level in levels:
        states[closure(frozenset(), before, lambda i, level=level: mixed[i] <= level[0]), level] = 0.0
    stages = 1
    while True:
        costs = [cost for (done, _), cost in states.items() if len(done) == count]
        if costs:
            return stages, min(costs)
        following: dict[tuple[frozenset[int], tuple[frozenset[int], frozenset[int]]], float] = {}
        for (done, old), cost in states.items():
            for level in levels:
                moved = cost + len(level[0] - old[0]) + global_cost * len(level[1] - old[1])
                key = (closure(done, before, lambda i, level=level: mixed[i] <= level[0]), level)
                if moved < following.get(key, math.inf):
                    following[key] = moved
        states = following
        stages += 1


def best_kernels(circuit: Circuit, before: Sequence[set[int]], *, local: Sequence[int], table: KernelTable) -> float:
    """Least cost over all sequences of kernels, each any set of gates that can run next."""
    count = len(circuit.gates)
    near = set(local)
    pinned = set(list(local)[: table.pinned_qubits])

    def price(gates: frozenset[int]) -> float:
        touched = {q for i in gates for q in circuit.gates[i].qubits} & near
        changed = set()
        work = 0.0
        for i in gates:
            gate = circuit.gates[i]
            keeps = {gate.qubits[p] for p in gate.structure.diagonal}
            changed |= (set(gate.qubits) & near) - keeps
            work += table.gate_s(gate) if set(gate.qubits) & near else 0.0
        fused = table.fusion_s[len(touched)] if len(touched) < len(table.fusion_s) else math.inf
        free = changed - pinned
        fits = len(free) <= table.tile_qubits - len(pinned)
        return min(fused, table.tile_base_s(len(free)) + work if fits else math.inf)

    prices: dict[frozenset[int], float] = {}
    best = {frozenset[int](): 0.0}
    ideals = sorted(_down_sets(count, before), key=len)
    for done in ideals:
        if done not in best:
            continue
        for wider in ideals:
            if done < wider:
                step = wider - done
                if step not in prices:
                    prices[step] = price(step)
                cost = best[done] + prices[step]
                if cost < best.get(wider, math.inf):
                    best[wider] = cost
    return best[frozenset(range(count))]


def _down_sets(count: int, before: Sequence[set[int]]) -> set[frozenset[int]]:
    found = {frozenset[int]()}
    layer = set(found)
    while layer:
        layer = {done | {i} for done in layer for i in range(count) if i not in done and before[i] <= done}
        found |= layer
    return found


def fourier_state(qubits: int, value: int) -> Vector:
    """The Fourier transform of a basis state, most significant output on the lowest wire (no swaps)."""
    size = 1 << qubits
    amplitudes = np.exp(2j * np.pi * value * np.arange(size) / size) / math.sqrt(size)
    reverse = [int(format(k, f"0{qubits}b")[::-1], 2) for k in range(size)]
    return amplitudes[reverse]

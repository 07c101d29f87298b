"""Groups of neighbouring gates on one or two wires whose product is diagonal although their parts are not.

CX RZ CX is a ZZ rotation, H CX H a CZ: as one gate they are insular on every wire, so they ask for no local qubit.
A group is contiguous on its wires, so it may stand at the place of its last gate without passing anything.
"""

from __future__ import annotations

import numpy as np

from planners.circuit.ir import TOLERANCE, Circuit, embed

__all__ = ["diagonal_groups"]

_LONGEST = 5


def diagonal_groups(circuit: Circuit) -> tuple[tuple[int, ...], ...]:
    """Disjoint groups (indices in program order), the shortest from each first gate, earliest first."""
    following = _next_on_wires(circuit)
    used: set[int] = set()
    groups = []
    for index, gate in enumerate(circuit.gates):
        if index in used or not gate.mixing or len(gate.qubits) > 2:
            continue
        group = _group_from(circuit, index, following, used)
        if group:
            groups.append(group)
            used.update(group)
    return tuple(groups)


def _next_on_wires(circuit: Circuit) -> list[dict[int, int]]:
    """For each gate and each of its wires, the next gate on that wire."""
    following: list[dict[int, int]] = [{} for _ in circuit.gates]
    last: dict[int, int] = {}
    for index, gate in enumerate(circuit.gates):
        for q in gate.qubits:
            if q in last:
                following[last[q]][q] = index
            last[q] = index
    return following


def _group_from(circuit: Circuit, first: int, following: list[dict[int, int]], used: set[int]) -> tuple[int, ...]:
    """The shortest diagonal group that starts at a gate; empty if there is none."""
    members = [first]
    wires = circuit.gates[first].qubits
    ahead = dict(following[first])
    product = circuit.gates[first].matrix
    while ahead and len(members) < _LONGEST:
        index = min(ahead.values())
        gate = circuit.gates[index]
        reach = wires + tuple(q for q in gate.qubits if q not in wires)
        if index in used or len(reach) > 2:
            return ()
        if len(reach) > len(wires):
            product = embed(product, (0,), 2)
            wires = reach
        product = embed(gate.matrix, tuple(wires.index(q) for q in gate.qubits), len(wires)) @ product
        members.append(index)
        for q in gate.qubits:
            ahead.pop(q, None)
        ahead.update(following[index])
        if np.all(np.abs(product - np.diag(np.diag(product))) <= TOLERANCE):
            return tuple(members)
    return ()

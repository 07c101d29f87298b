"""Groups of neighbouring gates on one or two wires whose product is diagonal although their parts are not.

CX RZ CX is a ZZ rotation, H CX H a CZ: as one gate they are insular on every wire, so they ask for no local qubit.
A group is contiguous on its wires, so it may stand at the place of its last gate without passing anything.
"""

from __future__ import annotations

from planners.circuit.ir import Circuit, product_of, structure_of

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
    wires = set(circuit.gates[first].qubits)
    ahead = dict(following[first])
    while ahead and len(members) < _LONGEST:
        index = min(ahead.values())
        reach = wires | set(circuit.gates[index].qubits)
        if index in used or len(reach) > 2:
            return ()
        wires = reach
        members.append(index)
        for q in circuit.gates[index].qubits:
            ahead.pop(q, None)
        ahead.update(following[index])
        if len(members) > 2 or len(wires) == 1:
            product = product_of([circuit.gates[i] for i in members])
            if not structure_of(product.matrix).mixing:
                return tuple(members)
    return ()

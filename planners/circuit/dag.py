"""What must come before what, and the small graph of it that staging needs.

Order relations: ``program`` (gates that share a wire keep their order: the paper's) and ``commutation`` (only gates
whose axes differ on a shared wire do: diagonals pass diagonals, CX targets pass X rotations; a trace monoid).
Contraction keeps the optima of staging: (a) gates that are insular on all wires vanish, the precedence through them
stays; (b) a gate joins its only maximal predecessor if it needs no more local wires; (c) likewise its only minimal
successor, seen backwards; (d) only direct precedences remain. Wire sets are bit masks (bit q = wire q).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from planners.circuit.ir import Axis, Circuit, axes

__all__ = ["Relation", "StageDag", "bits", "contract", "contract_forward", "direct_of", "gate_axes", "mask_of",
           "runnable"]

Relation = Literal["program", "commutation"]


class StageDag(NamedTuple):
    """Nodes in topological order: wires ``masks[v]`` must be local when v runs; ``before``, ``after``: direct ones."""

    masks: tuple[int, ...]
    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.masks)


def bits(mask: int) -> Iterator[int]:
    """Positions of the set bits, ascending."""
    while mask:
        low = mask & -mask
        mask ^= low
        yield low.bit_length() - 1


def mask_of(wires: Sequence[int]) -> int:
    """Bit mask of some wires."""
    mask = 0
    for q in wires:
        mask |= 1 << q
    return mask


def gate_axes(circuit: Circuit, relation: Relation) -> list[tuple[Axis, ...]]:
    """Each gate's axis on each of its qubits; under ``program`` no two gates may pass each other."""
    if relation == "program":
        nothing: Axis = "none"
        return [(nothing,) * len(gate.qubits) for gate in circuit.gates]
    return [axes(gate) for gate in circuit.gates]


def runnable(circuit: Circuit, order: Sequence[int], ways: Sequence[tuple[Axis, ...]], *,
             needs: Sequence[int], local: int) -> tuple[list[int], list[int]]:
    """Split gates (indices in ``order``) into those that can run while ``local`` wires are local, and the rest.

    A gate runs when ``needs[gate]`` is local and no gate that stays behind before it must precede it.
    """
    run: list[int] = []
    rest: list[int] = []
    waiting: dict[int, set[Axis]] = {}
    for index in order:
        qubits, way = circuit.gates[index].qubits, ways[index]
        blocked = bool(needs[index] & ~local)
        if not blocked and waiting:
            blocked = any(q in waiting and a != "i" and (a == "none" or waiting[q] != {a})
                          for q, a in zip(qubits, way, strict=True))
        if not blocked:
            run.append(index)
            continue
        rest.append(index)
        for q, a in zip(qubits, way, strict=True):
            if a != "i":
                waiting.setdefault(q, set()).add(a)
    return run, rest


def contract(circuit: Circuit, relation: Relation) -> StageDag:
    """The contracted precedence graph of a circuit's gates with non-insular qubits."""
    needs = [mask_of(gate.mixing) for gate in circuit.gates]
    masks, ancestors, _ = contract_forward([gate.qubits for gate in circuit.gates], gate_axes(circuit, relation), needs)
    return _link(*_backward(masks, ancestors))


def contract_forward(qubits: Sequence[Sequence[int]], ways: Sequence[tuple[Axis, ...]],
                     needs: Sequence[int]) -> tuple[list[int], list[int], list[int | None]]:
    """Masks and ancestor sets of nodes after rules (a) and (b), and the node of each gate (absent: needs nothing).

    On each wire the gates form runs of one axis. A gate follows all gates of the last run of another axis; through
    them it follows everything before. ``settled`` holds the nodes of the runs before the current one, ``latest`` those
    of the current run (their ancestors include the settled ones).
    """
    masks: list[int] = []
    ancestors: list[int] = []
    nodes: list[int | None] = []
    kind: dict[int, Axis] = {}
    settled: dict[int, int] = {}
    latest: dict[int, int] = {}
    for wires, way, mask in zip(qubits, ways, needs, strict=True):
        direct = 0
        for q, a in zip(wires, way, strict=True):
            if a != "i":
                direct |= settled[q] if a != "none" and a == kind.get(q) else latest.get(q, 0)
        direct = _maximal(direct, ancestors)
        node = None
        if mask:
            node = direct.bit_length() - 1
            if not (direct and direct == 1 << node and not mask & ~masks[node]):
                above = direct
                for u in bits(direct):
                    above |= ancestors[u]
                node = len(masks)
                masks.append(mask)
                ancestors.append(above)
                direct = 1 << node
        nodes.append(node)
        for q, a in zip(wires, way, strict=True):
            if a == "i":
                continue
            if a != "none" and a == kind.get(q):
                latest[q] |= direct
            else:
                kind[q], settled[q], latest[q] = a, latest.get(q, 0), direct
    return masks, ancestors, nodes


def _maximal(nodes: int, ancestors: Sequence[int]) -> int:
    """Those of ``nodes`` that precede no other of them."""
    if not nodes & (nodes - 1):
        return nodes
    kept = nodes
    for u in bits(nodes):
        kept &= ~ancestors[u]
    return kept


def _backward(masks: list[int], ancestors: list[int]) -> tuple[list[int], list[int]]:
    """Rule (c): a node whose successors all follow one of them, which needs its wires anyway, may wait for that one."""
    count = len(masks)
    descendants = [0] * count
    for v in range(count):
        for u in bits(ancestors[v]):
            descendants[u] |= 1 << v
    gone = 0
    for v in range(count - 1, -1, -1):
        below = descendants[v] & ~gone
        if not below:
            continue
        first = (below & -below).bit_length() - 1
        if not below & ~(descendants[first] | 1 << first) and not masks[v] & ~masks[first]:
            gone |= 1 << v
    kept = [v for v in range(count) if not gone >> v & 1]
    place = {v: i for i, v in enumerate(kept)}
    return [masks[v] for v in kept], [mask_of([place[u] for u in bits(ancestors[v] & ~gone)]) for v in kept]


def direct_of(ancestors: Sequence[int]) -> list[tuple[int, ...]]:
    """Direct predecessors from ancestor sets."""
    return [tuple(bits(_maximal(above, ancestors))) for above in ancestors]


def _link(masks: list[int], ancestors: list[int]) -> StageDag:
    before = direct_of(ancestors)
    after: list[list[int]] = [[] for _ in masks]
    for v, direct in enumerate(before):
        for u in direct:
            after[u].append(v)
    return StageDag(tuple(masks), tuple(before), tuple(map(tuple, after)))

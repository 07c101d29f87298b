"""What one stage's kernelisation works on: gates as bits, precedence as bit masks, costs of a kernel.

Gate i of the stage is bit i (stage order is topological). ``wires[i]``: local wires it touches; ``active[i]``: those it
mixes or flips; gates on no local wire cost nothing anywhere. ``before[i]``: direct predecessors, through non-local
wires too. Costs: ``table.fusion_s[m]`` for m local wires, ``table.tile_base_s(a) + sum of gate_s`` for a tile with a
active wires that are not pinned (the lowest physical positions always are in the tile).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from planners.circuit.dag import bits, contract_forward, direct_of, mask_of
from planners.circuit.ir import Axis, Circuit
from planners.circuit.problem import Kernel, KernelKind, KernelTable
from workbench.errors import Infeasible

__all__ = ["StageGates", "Step", "Weights", "stage_gates", "to_kernels"]


_AHEAD = 6
"""How many gates of a wire are looked at for one that can run."""


class Step(NamedTuple):
    """One kernel of a solution: which gates (bits) run as what."""

    kind: KernelKind
    gates: int


class Weights:
    """Sums of per-gate values over sets of gates; quick when few values differ."""

    def __init__(self, values: Sequence[float]) -> None:
        classes: dict[float, int] = {}
        for i, value in enumerate(values):
            classes[value] = classes.get(value, 0) | 1 << i
        self._classes = [(value, mask) for value, mask in classes.items() if value]

    def of(self, gates: int) -> float:
        """Sum over a set of gates."""
        return sum(value * (gates & mask).bit_count() for value, mask in self._classes)


class StageGates:
    """One stage's gates as bit masks, with the closures that every kernelisation is made of."""

    def __init__(self, *, gates: Sequence[int], wires: Sequence[int], active: Sequence[int], before: Sequence[int],
                 weight: Sequence[float], local: Sequence[int], table: KernelTable,
                 qubits: Sequence[Sequence[int]]) -> None:
        self.gates = tuple(gates)
        self.wires = list(wires)
        self.active = list(active)
        self.before = list(before)
        self.weights = Weights(weight)
        self.local = tuple(local)
        self.table = table
        self.pinned = mask_of(self.local[: table.pinned_qubits])
        self.free_limit = table.tile_qubits - self.pinned.bit_count()
        self.fusion_limit = len(table.fusion_s) - 1
        self.count = len(self.gates)
        self.everything = (1 << self.count) - 1
        self.free_active = [mask & ~self.pinned for mask in self.active]
        self.touching = dict.fromkeys(self.local, 0)
        self.moving = dict.fromkeys(self.local, 0)
        for i in range(self.count):
            for q in bits(self.wires[i]):
                self.touching[q] |= 1 << i
            for q in bits(self.free_active[i]):
                self.moving[q] |= 1 << i
        # only tile candidates are made from these: the program's order is enough, and has the fewest nodes
        strict: Axis = "none"
        masks, ancestors, nodes = contract_forward(qubits, [(strict,) * len(q) for q in qubits], self.free_active)
        members = [0] * len(masks)
        for i, node in enumerate(nodes):
            if node is not None:
                members[node] |= 1 << i
        self.nodes = list(zip(masks, direct_of(ancestors), members, strict=True))
        self.tile_base_s = [table.tile_base_s(size) for size in range(self.free_limit + 1)]
        self._descendants: list[int] | None = None
        self._far = mask_of([i for i, q in enumerate(qubits) if mask_of(q) & ~mask_of(self.local)])
        self._within: dict[int, int] = {}
        self._touched: dict[int, int] = {}
        self._fused: dict[tuple[int, int], int] = {}

    def inside(self, wires: int) -> int:
        """Gates within a set of local wires (those on no local wire included)."""
        found = self._within.get(wires)
        if found is None:
            outside = 0
            for q, mask in self.touching.items():
                if not wires >> q & 1:
                    outside |= mask
            found = self._within[wires] = self.everything & ~outside
        return found

    def fused(self, done: int, wires: int) -> int:
        """Gates a fusion kernel on ``wires`` can run once ``done`` have run."""
        touched = self._touched.get(wires)
        if touched is None:
            # whatever a gate on these wires waits for shares one of them with it, or a wire that is not local
            touched = self._far
            for q in bits(wires):
                touched |= self.touching[q]
            self._touched[wires] = touched
        key = (wires, done & touched)
        found = self._fused.get(key)
        if found is None:
            found = self._fused[key] = self._closure(done, self.inside(wires) & ~done)
        return found

    def tiled(self, done: int, free: int) -> int:
        """Gates a tile with the pinned and the ``free`` wires active can run once ``done`` have run."""
        descendants = self.descendants
        blocked = 0
        for q, mask in self.moving.items():
            if not free >> q & 1:
                left = mask & ~(done | blocked)
                while left:
                    low = left & -left
                    behind = descendants[low.bit_length() - 1] | low
                    blocked |= behind
                    left &= ~behind
        return self.everything & ~(done | blocked)

    @property
    def descendants(self) -> list[int]:
        """Gates that come after each gate, by any chain of precedences."""
        if self._descendants is None:
            found = [0] * self.count
            for i in range(self.count - 1, -1, -1):
                behind = found[i] | 1 << i
                for u in bits(self.before[i]):
                    found[u] |= behind
            self._descendants = found
        return self._descendants

    def _closure(self, done: int, candidates: int) -> int:
        before = self.before
        got = 0
        while candidates:
            low = candidates & -candidates
            candidates ^= low
            if not before[low.bit_length() - 1] & ~done:
                done |= low
                got |= low
        return got

    def ready(self, done: int) -> list[int]:
        """On each wire, the first gate that can run now, if it is among the next few; ascending, no gate twice."""
        before = self.before
        found = set()
        for mask in self.touching.values():
            left = mask & ~done
            for _ in range(_AHEAD):
                if not left:
                    break
                low = left & -left
                left ^= low
                i = low.bit_length() - 1
                if not before[i] & ~done:
                    found.add(i)
                    break
        return sorted(found)

    def touched(self, gates: int) -> int:
        """Local wires of a set of gates."""
        return _met(self.touching, gates)

    def moved(self, gates: int) -> int:
        """Local wires, pinned ones left out, that a set of gates mixes or flips."""
        return _met(self.moving, gates)

    def cost(self, step: Step) -> float:
        """Predicted seconds of a kernel, infinite where it breaks a limit."""
        if step.kind == "fusion":
            size = self.touched(step.gates).bit_count()
            return self.table.fusion_s[size] if size <= self.fusion_limit else float("inf")
        free = self.moved(step.gates).bit_count()
        if free > self.free_limit:
            return float("inf")
        return self.tile_base_s[free] + self.weights.of(step.gates)

    def replay(self, shapes: Iterable[tuple[KernelKind, int]]) -> list[Step] | None:
        """Kernels of given kinds and wires (a tile's active ones), each taking all it can; absent if gates stay."""
        done = 0
        steps = []
        for kind, wires in shapes:
            got = self.fused(done, wires) if kind == "fusion" else self.tiled(done, wires)
            if got:
                steps.append(Step(kind, got))
                done |= got
        return steps if done == self.everything else None

    def total(self, steps: Iterable[Step]) -> float:
        """Predicted seconds of a solution."""
        return sum(self.cost(step) for step in steps)


def _met(table: Mapping[int, int], gates: int) -> int:
    mask = 0
    for q, others in table.items():
        if others & gates:
            mask |= 1 << q
    return mask


def stage_gates(circuit: Circuit, order: Sequence[int], ways: Sequence[tuple[Axis, ...]], *, local: Sequence[int],
                table: KernelTable) -> StageGates:
    """The gates of a stage (indices in a topological order), for a layout's local wires (low position first).

    Raises:
        Infeasible: a gate fits neither a fusion kernel nor a tile.
    """
    inside = mask_of(local)
    kind: dict[int, Axis] = {}
    settled: dict[int, int] = {}
    latest: dict[int, int] = {}
    wires, active, before, weight = [], [], [], []
    for i, index in enumerate(order):
        gate = circuit.gates[index]
        shape = gate.structure
        direct = 0
        for q, axis in zip(gate.qubits, ways[index], strict=True):
            if axis == "i":
                continue
            if axis != "none" and axis == kind.get(q):
                direct |= settled[q]
                latest[q] |= 1 << i
            else:
                direct |= latest.get(q, 0)
                kind[q], settled[q], latest[q] = axis, latest.get(q, 0), 1 << i
        touched = mask_of(gate.qubits) & inside
        moved = mask_of([gate.qubits[p] for p in shape.mixing + shape.flips]) & inside
        wires.append(touched)
        active.append(moved)
        before.append(direct)
        weight.append(table.gate_s(gate) if touched else 0.0)
    stage = StageGates(gates=order, wires=wires, active=active, before=before, weight=weight, local=local, table=table,
                       qubits=[circuit.gates[index].qubits for index in order])
    for i, index in enumerate(order):
        if wires[i].bit_count() > stage.fusion_limit and stage.free_active[i].bit_count() > stage.free_limit:
            raise Infeasible(f"gate {index} ({circuit.gates[index].name}) touches {wires[i].bit_count()} local qubits "
                             f"and changes {active[i].bit_count()}: no kernel is that large", where="kernels",
                             hint=f"fusion holds {stage.fusion_limit} qubits, a tile {table.tile_qubits}")
    return stage


def to_kernels(stage: StageGates, steps: Iterable[Step]) -> tuple[Kernel, ...]:
    """Kernels of a plan, wires sorted by physical position."""
    place = {q: p for p, q in enumerate(stage.local)}
    kernels = []
    for step in steps:
        mask = stage.touched(step.gates)
        if step.kind == "tile":
            mask = mask_of([q for q in bits(mask) if any(stage.active[i] >> q & 1 for i in bits(step.gates))])
        kernels.append(Kernel(kind=step.kind, qubits=tuple(sorted(bits(mask), key=place.__getitem__)),
                              gates=tuple(stage.gates[i] for i in bits(step.gates)), cost_s=stage.cost(step)))
    return tuple(kernels)

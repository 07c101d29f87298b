"""Plan kernels as programs for ``native/gates.cu``: rounds on three tile bits, permutations, and dense matrices.

A tile is 2^T amplitudes whose coordinates are T address bits (ascending). Phases join the earliest phase they can
reach; operations that mix the same three bits go into one round, runs of CX into one permutation, each moved past
others it commutes with (neither mixes a wire the other touches). A fused kernel is one matrix on its own bits (the
product of its gates), one program a shard. Needs no GPU: the tests run these programs through the same device source
compiled as C++.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from executors.circuit.emit import Layout
from executors.circuit.local import placement_after
from executors.circuit.lower import Dense, Flip, Lowering, Matrix, Phase, Primitive, Turn
from executors.circuit.sharded import ShardedCode, StageCode, by_address, transition
from planners.circuit import Plan, Problem, Stage
from planners.circuit.load import planned_circuit
from workbench.errors import SpecError

__all__ = ["GROUP_SIZES", "LARGEST_TILE", "OP", "PINNED", "STEP", "TERM", "TILE_BITS", "GroupMatrix", "StageKernels",
           "TileProgram", "controls_of", "empty_program", "kernel_programs", "matrix_of", "mixed_of", "wires_of"]

STEP = np.dtype([("kind", "i4"), ("bits", "i4"), ("bit", "i4", 8), ("first", "i4"), ("count", "i4"), ("matrix", "i4"),
                 ("edges", "i4"), ("tile_mask", "u4"), ("tile_value", "u4"), ("address_mask", "u8"),
                 ("address_value", "u8")], align=True)
OP = np.dtype([("kind", "i4"), ("which", "i4"), ("matrix", "i4"), ("first", "i4"), ("count", "i4"), ("held_mask", "i4"),
               ("held_value", "i4"), ("edge", "i4"), ("tile_mask", "u4"), ("tile_value", "u4"), ("address_mask", "u8"),
               ("address_value", "u8")], align=True)
TERM = np.dtype([("mask", "u8"), ("angle", "f8"), ("bit", "i4"), ("pad", "i4")], align=True)
PINNED = 3
"""Lowest address bits that are in every tile: eight amplitudes fill a memory sector."""
TILE_BITS = 11
"""Tiles of 2^11 amplitudes: 256 threads hold one in registers, eight amplitudes each."""
LARGEST_TILE = 12
ROUND_BITS = 3
WIDEST_DENSE = 7
MOST_EDGES = 4
"""Phases across the tile's edge in one round: the device holds so many pairs of tables."""
GROUP_SIZES = (1, 2, 3, 4, 5)
LEAST_GROUP_BIT = 2
"""Lowest bit of a matrix applied from registers: four amplitudes in a row fill a memory sector."""
_LEAST_FLIPS = 4
_WHICH = {(0,): 0, (1,): 1, (2,): 2, (0, 1): 0, (0, 2): 1, (1, 2): 2, (0, 1, 2): 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class TileProgram:
    """One kernel on every tile of a shard; ``doubled`` when a dense step needs a second tile of shared memory."""

    bits: tuple[int, ...]
    steps: npt.NDArray[np.void]
    ops: npt.NDArray[np.void]
    terms: npt.NDArray[np.void]
    pool: npt.NDArray[np.complex128]
    doubled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMatrix:
    """One matrix on up to five address bits (ascending), none of the two lowest: registers hold a group."""

    bits: tuple[int, ...]
    matrix: npt.NDArray[np.complex128]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKernels:
    """One stage's kernels, each a program for every shard number; equal ones are one object."""

    kernels: tuple[tuple[TileProgram | GroupMatrix, ...], ...]


def kernel_programs(problem: Problem, plan: Plan, *, live: bool = False
                    ) -> tuple[ShardedCode, tuple[StageKernels, ...]]:
    """Programs of every plan kernel; the first value holds exchanges and placement (its own programs are empty).

    ``live``: any start state is possible; otherwise the programs start from |0...0> and leave out what does nothing
    to wires that still hold 0.

    Raises:
        SpecError: a kernel mixes more qubits than a tile holds, or the shards have fewer than three qubits.
    """
    circuit = planned_circuit(problem, plan)
    local_bits = len(plan.stages[0].local)
    if local_bits < ROUND_BITS:
        raise SpecError(f"a GPU shard has at least {ROUND_BITS} local qubits, not {local_bits}",
                        where="machine.local_qubits")
    lowering = Lowering(circuit.qubits)
    if live:
        lowering.live = [True] * circuit.qubits
    layout: Layout | None = None
    codes, stages = [], []
    for stage in plan.stages:
        exchange = None
        if layout is None:
            layout = Layout({w: p for p, w in enumerate(stage.layout)}, set())
        else:
            exchange = transition(layout, stage, lowering, local_bits)
        kernels: list[tuple[TileProgram | GroupMatrix, ...]] = []
        for kernel in stage.kernels:
            for g in kernel.gates:
                lowering.add(circuit.gates[g])
            primitives = lowering.take()
            if primitives:
                kernels.append(_kernel(primitives, kernel.kind, layout, stage, circuit.qubits - local_bits))
        stages.append(StageKernels(kernels=tuple(kernels)))
        codes.append(StageCode.without_program(exchange, by_address(layout), local_bits))
    assert layout is not None, "a plan has at least one stage"
    return ShardedCode(qubits=circuit.qubits, local_bits=local_bits, stages=tuple(codes),
                       placement=placement_after(lowering, layout, circuit)), tuple(stages)


def empty_program(local_bits: int) -> TileProgram:
    """One pass through tiles of the lowest bits that runs nothing."""
    bits = tuple(range(min(TILE_BITS, local_bits)))
    return _Builder(bits, Layout({b: b for b in range(local_bits)}, set())).program([])


def _kernel(primitives: Sequence[Primitive], kind: str, layout: Layout, stage: Stage, shard_bits: int
            ) -> tuple[TileProgram | GroupMatrix, ...]:
    local_bits = len(stage.local)
    if kind == "fusion":
        touched = tuple(sorted({layout.address[w] for p in primitives for w in wires_of(p)
                                if layout.address[w] < local_bits}))
        if touched:
            tile = _tile_bits(touched, local_bits)
            matrices = (_product(primitives, touched, layout, s << local_bits) for s in range(1 << shard_bits))
            if len(touched) in GROUP_SIZES and touched[0] >= LEAST_GROUP_BIT:
                return tuple(GroupMatrix(bits=touched, matrix=matrix) for matrix in matrices)
            return tuple(_Builder(tile, layout).dense(touched, matrix) for matrix in matrices)
    mixed = {layout.address[w] for p in primitives for w in mixed_of(p)}
    return (_Builder(_tile_bits(mixed, local_bits), layout).program(primitives),) * (1 << shard_bits)


def _tile_bits(needed: Sequence[int] | set[int], local_bits: int) -> tuple[int, ...]:
    """The address bits of a tile: those needed, the pinned ones, and the lowest others up to its size."""
    chosen = sorted(set(needed) | set(range(min(PINNED, local_bits))))
    if len(chosen) > LARGEST_TILE:
        raise SpecError(f"a tile kernel mixes {len(set(needed))} qubits: with the {PINNED} lowest positions that is "
                        f"more than the {LARGEST_TILE} of the largest tile")
    size = min(max(TILE_BITS, len(chosen)), local_bits)
    spare = (a for a in range(local_bits) if a not in chosen)
    while len(chosen) < size:
        chosen.append(next(spare))
    return tuple(sorted(chosen))


def wires_of(p: Primitive) -> tuple[int, ...]:
    """Every wire a primitive touches."""
    if isinstance(p, Phase):
        return p.wires
    return (*mixed_of(p), *(w for w, _ in controls_of(p)))


def mixed_of(p: Primitive) -> tuple[int, ...]:
    """Wires that must lie in the tile."""
    if isinstance(p, Phase):
        return ()
    if isinstance(p, Flip):
        return (p.target,)
    return p.wires if isinstance(p, Dense) else (p.wire,)


def controls_of(p: Primitive) -> tuple[tuple[int, int], ...]:
    """(wire, stored value) of every control."""
    if isinstance(p, Flip):
        return ((p.control, 1),)
    return p.controls if isinstance(p, Matrix | Dense) else ()


def matrix_of(p: Primitive) -> npt.NDArray[np.complex128]:
    """Unitary on ``mixed_of(p)``."""
    if isinstance(p, Turn):
        c = 1 / np.hypot(1, p.slope)
        return np.array([[c, -c * p.slope], [c * p.slope, c]], dtype=np.complex128)
    if isinstance(p, Flip):
        return np.array([[0, 1], [1, 0]], dtype=np.complex128)
    assert isinstance(p, Matrix | Dense), "phases have no matrix"
    return p.matrix


def _ascending(p: Primitive, place: dict[int, int]) -> tuple[list[int], npt.NDArray[np.complex128]]:
    """Places of the mixed wires in ascending order, and the matrix in that order."""
    at = [place[w] for w in mixed_of(p)]
    order = sorted(range(len(at)), key=lambda i: at[i])
    index = np.arange(1 << len(at))
    old = sum(((index >> k & 1) << i for k, i in enumerate(order)), np.zeros_like(index))
    return [at[i] for i in order], np.ascontiguousarray(matrix_of(p)[np.ix_(old, old)])


@dataclass
class _Builder:
    """Collects one program; ``place`` maps a wire to its tile coordinate."""

    bits: tuple[int, ...]
    layout: Layout
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    ops: list[tuple[Any, ...]] = field(default_factory=list)
    terms: list[tuple[Any, ...]] = field(default_factory=list)
    pool: list[npt.NDArray[np.complex128]] = field(default_factory=list)
    length: int = 0
    edges: int = 0
    doubled: bool = False

    def __post_init__(self) -> None:
        coordinate = {a: k for k, a in enumerate(self.bits)}
        self.coordinate = coordinate
        self.place = {w: coordinate[a] for w, a in self.layout.address.items() if a in coordinate}

    def program(self, primitives: Sequence[Primitive]) -> TileProgram:
        """Steps in an order in which only primitives that commute change places."""
        left = merged_phases(primitives)
        while left:
            if len(mixed_of(left[0])) > ROUND_BITS:
                self._dense_gate(left.pop(0))
                continue
            flips, rest = _reachable(left, lambda p: isinstance(p, Flip))
            if len(flips) >= _LEAST_FLIPS and isinstance(left[0], Flip):
                self._permutation([f for f in flips if isinstance(f, Flip)])
                left = rest
                continue
            chosen, held, left = self._round(left)
            self._emit_round(chosen, held)
        return self._done()

    def dense(self, touched: tuple[int, ...], matrix: npt.NDArray[np.complex128]) -> TileProgram:
        """One matrix on address bits ``touched`` (ascending)."""
        at = [self.coordinate[a] for a in touched]
        if len(at) <= ROUND_BITS:
            held = self._filled(at)
            which = _WHICH[tuple(held.index(b) for b in at)]
            self._start_round(held)
            self._op(len(at), which, self._keep(matrix))
            self._end_round()
        else:
            self._dense_step(at, matrix, (0, 0, 0, 0))
        return self._done()

    def _done(self) -> TileProgram:
        return TileProgram(bits=self.bits, steps=np.array(self.steps, dtype=STEP), ops=np.array(self.ops, dtype=OP),
                           terms=np.array(self.terms, dtype=TERM), doubled=self.doubled,
                           pool=np.concatenate(self.pool) if self.pool else np.zeros(0, dtype=np.complex128))

    def _round(self, left: list[Primitive]) -> tuple[list[Primitive], list[int], list[Primitive]]:
        """(what runs in the next round, its tile bits, what stays)."""
        held: set[int] = set()
        edges = 0

        def joins(p: Primitive) -> bool:
            nonlocal edges
            mixed = {self.place[w] for w in mixed_of(p)}
            crosses = isinstance(p, Phase) and self._crosses(p)
            if len(held | mixed) > ROUND_BITS or (crosses and edges == MOST_EDGES):
                return False
            held.update(mixed)
            edges += crosses
            return True

        chosen, stays = _reachable(left, joins)
        return chosen, self._filled(sorted(held)), stays

    def _permutation(self, flips: Sequence[Flip]) -> None:
        """A run of CX: column k of L is where tile bit k ends up; a control outside flips its target's image."""
        columns = [1 << k for k in range(len(self.bits))]
        outside: dict[int, int] = {}
        for f in flips:
            target = 1 << self.place[f.target]
            if f.control in self.place:
                control = 1 << self.place[f.control]
                columns = [c ^ target if c & control else c for c in columns]
                outside = {a: c ^ target if c & control else c for a, c in outside.items()}
            else:
                address = self.layout.address[f.control]
                outside[address] = outside.get(address, 0) ^ target
        first = len(self.terms)
        self.terms += [(0, 0.0, c, 0) for c in columns]
        self.terms += [(1 << a, 0.0, c, 0) for a, c in outside.items() if c]
        self.doubled = True
        self.steps.append((2, 0, [0] * 8, first, len(self.terms) - first - len(columns), 0, 0, 0, 0, 0, 0))

    def _crosses(self, p: Phase) -> bool:
        return any(sum(w in self.place for w in t) < min(len(t), 2) for t in p.terms)

    def _filled(self, held: Sequence[int]) -> list[int]:
        """Three tile bits: those needed, and the highest others (lanes then differ in low bits)."""
        spare = (k for k in reversed(range(len(self.bits))) if k not in held)
        return sorted([*held, *(next(spare) for _ in range(ROUND_BITS - len(held)))])

    def _emit_round(self, chosen: Sequence[Primitive], held: list[int]) -> None:
        self._start_round(held)
        for p in chosen:
            if isinstance(p, Phase):
                self._phase(p)
                continue
            tile, address = self._masks(controls_of(p))
            held_mask = sum(1 << i for i, b in enumerate(held) if tile[0] >> b & 1)
            held_value = sum(1 << i for i, b in enumerate(held) if tile[1] >> b & 1)
            outside = ~sum(1 << b for b in held)
            masks = {"held": (held_mask, held_value), "tile": (tile[0] & outside, tile[1] & outside),
                     "address": address}
            if isinstance(p, Flip):
                self._op(6, held.index(self.place[p.target]), 0, **masks)
                continue
            at, matrix = _ascending(p, self.place)
            self._op(len(at), _WHICH[tuple(held.index(b) for b in at)], self._keep(matrix), **masks)
        self._end_round()

    def _start_round(self, held: Sequence[int]) -> None:
        self.edges = 0
        self.steps.append((0, ROUND_BITS, [*held, *[0] * (8 - ROUND_BITS)], len(self.ops), 0, 0, 0, 0, 0, 0, 0))

    def _end_round(self) -> None:
        kind, bits, bit, first, _, matrix, _, *rest = self.steps[-1]
        self.steps[-1] = (kind, bits, bit, first, len(self.ops) - first, matrix, self.edges, *rest)

    def _op(self, kind: int, which: int, matrix: int, *, span: tuple[int, int] = (0, 0), held: tuple[int, int] = (0, 0),
            tile: tuple[int, int] = (0, 0), address: tuple[int, int] = (0, 0)) -> None:
        self.ops.append((kind, which, matrix, *span, *held, self.edges, *tile, *address))

    def _keep(self, values: npt.NDArray[np.complex128]) -> int:
        """Offset of values in the pool, even (the device reads pairs)."""
        padded = np.concatenate([values.ravel(), np.zeros(values.size % 2)])
        self.pool.append(padded)
        self.length += len(padded)
        return self.length - len(padded)

    def _masks(self, wires: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
        """(mask, value) among tile coordinates and among address bits outside the tile."""
        inside = [(self.place[w], v) for w, v in wires if w in self.place]
        outside = [(self.layout.address[w], v) for w, v in wires if w not in self.place]
        return ((sum(1 << k for k, _ in inside), sum(v << k for k, v in inside)),
                (sum(1 << a for a, _ in outside), sum(v << a for a, v in outside)))

    def _phase(self, p: Phase) -> None:
        """Terms inside the tile become a table, those that meet one tile bit or none edge terms; others stand alone."""
        index = np.arange(1 << len(self.bits))
        table = np.zeros(len(index))
        tabled, edge, alone = False, [], []
        for wires, angle in p.terms.items():
            (inside, _), (outside, _) = self._masks([(w, 1) for w in wires])
            if not outside:
                table[index & inside == inside] += angle
                tabled = True
            elif inside & (inside - 1):
                alone.append((inside, outside, angle))
            else:
                edge.append((outside, angle, inside.bit_length() - 1, 0))
        first = len(self.terms)
        if edge:
            edge.sort(key=lambda e: e[2])
            begins = np.searchsorted([e[2] for e in edge], range(-1, len(self.bits) + 1)) + first + len(self.bits) + 2
            self.terms += [(0, 0.0, int(b), 0) for b in begins] + edge
        if tabled or edge:
            self._op(4, 0, self._keep(np.exp(1j * table)) if tabled else -1, span=(first, len(edge)))
            self.edges += bool(edge)
        for inside, outside, angle in alone:
            self._op(5, 0, self._keep(np.array([np.exp(1j * angle)])), tile=(inside, inside),
                     address=(outside, outside))

    def _dense_gate(self, p: Primitive) -> None:
        at, matrix = _ascending(p, self.place)
        tile, address = self._masks(controls_of(p))
        self._dense_step(at, matrix, (*tile, *address))

    def _dense_step(self, at: Sequence[int], matrix: npt.NDArray[np.complex128], masks: tuple[int, ...]) -> None:
        if len(at) > WIDEST_DENSE:
            raise SpecError(f"a matrix on {len(at)} qubits; at most {WIDEST_DENSE}")
        self.doubled = True
        self.steps.append((1, len(at), [*at, *[0] * (8 - len(at))], 0, 0, self._keep(np.ascontiguousarray(matrix.T)),
                           0, *masks))


def merged_phases(primitives: Sequence[Primitive]) -> list[Primitive]:
    """The same circuit with every phase joined to the earliest phase it commutes back to."""
    result: list[Primitive] = []
    for p in primitives:
        into = None
        if isinstance(p, Phase):
            for i in reversed(range(len(result))):
                if set(mixed_of(result[i])) & set(p.wires):
                    break
                if isinstance(result[i], Phase):
                    into = i
        if into is None:
            result.append(p)
            continue
        assert isinstance(p, Phase), "only phases merge"
        held = result[into]
        assert isinstance(held, Phase), "only phases merge"
        terms = dict(held.terms)
        for wires, angle in p.terms.items():
            terms[wires] = terms.get(wires, 0.0) + angle
        result[into] = Phase(terms, tuple(sorted({*held.wires, *p.wires})))
    return result


def _reachable(left: Sequence[Primitive], wanted: Callable[[Primitive], bool]
               ) -> tuple[list[Primitive], list[Primitive]]:
    """(wanted primitives that commute with all unwanted ones before them, the rest), both in order."""
    chosen, stays = [], []
    touched: set[int] = set()
    mixed: set[int] = set()
    for p in left:
        own = mixed_of(p)
        if touched.isdisjoint(own) and mixed.isdisjoint(wires_of(p)) and wanted(p):
            chosen.append(p)
        else:
            stays.append(p)
            touched.update(wires_of(p))
            mixed.update(own)
    return chosen, stays


def _product(primitives: Sequence[Primitive], bits: tuple[int, ...], layout: Layout, shard: int
             ) -> npt.NDArray[np.complex128]:
    """Matrix of several primitives on ``bits``, the shard's bits held fixed."""
    coordinate = {a: k for k, a in enumerate(bits)}
    place = {w: coordinate[a] for w, a in layout.address.items() if a in coordinate}
    index = np.arange(1 << len(bits))
    product = np.eye(len(index), dtype=np.complex128)

    def holds(wires: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        result = np.ones(len(index), dtype=bool)
        for w, v in wires:
            result &= (index >> place[w] & 1) == v if w in place else (shard >> layout.address[w] & 1) == v
        return result

    for p in primitives:
        if isinstance(p, Phase):
            for term, angle in p.terms.items():
                product[holds([(w, 1) for w in term])] *= np.exp(1j * angle)
            continue
        at, matrix = _ascending(p, place)
        targets = sum(1 << k for k in at)
        base = index[(index & targets == 0) & holds(controls_of(p))]
        rows = [base | sum(1 << k for i, k in enumerate(at) if j >> i & 1) for j in range(1 << len(at))]
        product[rows] = np.einsum("ij,jkl->ikl", matrix, product[rows])
    return product

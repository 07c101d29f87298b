"""A plan's stages as programs for shards, and the exchanges between them.

A shard is 2^L amplitudes under the L local wires of a stage; its number holds the non-local bits. Inside a stage the
CPU groups the stage's gates into its own tile kernels (``tiling``); gates that read non-local wires are specialised
to the shard's number when the tile runs. Between stages m local bits trade places with m non-local ones: shard u
swaps its region v with region u of shard v, for every pair u, v of the 2^m shards that differ in those bits, and each
shard sends (1 - 2^-m) of its amplitudes. Where the plan moves a wire between two non-local places, whole shards move.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import Engine, engine
from executors.circuit.emit import Layout, Program, emit
from executors.circuit.interpreted import Interpreter
from executors.circuit.local import TileShape, placement_after
from executors.circuit.lower import Lowering
from executors.circuit.state import Placement, State
from executors.circuit.tiling import tile_kernels
from planners.circuit import Plan, Problem, Stage
from planners.circuit.load import planned_circuit
from planners.circuit.problem import Move, move

__all__ = [
    "Exchange", "ShardedCode", "StageCode", "by_address", "compile_plan", "engine_for", "exchange_bytes", "moved_shard",
    "region", "region_pieces", "transition",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One transition. ``pairs``: (local address bit, bit of the shard's number); ``shards[i]``: new place of bit i."""

    pairs: tuple[tuple[int, int], ...]
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCode:
    """What one stage runs on every shard, and the exchange that comes before it (none before the first)."""

    exchange: Exchange | None
    program: Program
    empty: int
    entry: tuple[int, ...]
    exit: tuple[int, ...]

    @classmethod
    def without_program(cls, exchange: Exchange | None, layout: tuple[int, ...], local_bits: int) -> StageCode:
        """A stage whose kernels run elsewhere: it moves no wire and leaves no address empty."""
        return cls(exchange=exchange, program=Program.none(local_bits), empty=0, entry=layout, exit=layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedCode:
    """A whole plan, compiled. ``live``: for any start state; else all shards but the first are zero at the start."""

    qubits: int
    local_bits: int
    stages: tuple[StageCode, ...]
    placement: Placement
    live: bool = False

    @property
    def shards(self) -> int:
        """Number of shards."""
        return 1 << (self.qubits - self.local_bits)


def engine_for(local_bits: int, dtype: npt.DTypeLike) -> Engine:
    """The compiled engine, or the interpreter for shards smaller than a few vectors."""
    best = engine()
    return best if local_bits > best.lanes(dtype) else Interpreter()


def compile_plan(problem: Problem, plan: Plan, *, dtype: npt.DTypeLike, on: Engine | None = None,
                 shape: TileShape | None = None, live: bool = False) -> ShardedCode:
    """Programs and exchanges of every stage.

    Args:
        problem: gives the circuit.
        plan: its stages.
        dtype: float32 or float64.
        on: engine the programs are for; the best one by default.
        shape: tile; the measured default otherwise.
        live: any start state is possible; otherwise the programs are for |0...0>.
    """
    circuit = planned_circuit(problem, plan)
    real = np.dtype(dtype)
    local_bits = len(plan.stages[0].local)
    on = on or engine_for(local_bits, real)
    shape = shape or TileShape.default(real)
    run = min(shape.run, local_bits)
    size = min(shape.size, local_bits)
    lowering = Lowering(circuit.qubits)
    lowering.live = [live] * circuit.qubits
    layout: Layout | None = None
    codes: list[StageCode] = []
    for index, stage in enumerate(plan.stages):
        for g in stage.gates:
            lowering.add(circuit.gates[g])
        primitives = lowering.take()
        exchange = None
        if layout is not None:
            exchange = transition(layout, stage, lowering, local_bits)
        wires = _stored(stage, lowering)[:local_bits] if layout is None else _local(layout, local_bits)
        low = None if layout is None else wires[:run]
        kernels = tile_kernels(primitives, wires=wires, size=size, run=run, low=low)
        if layout is None:
            layout = _first_layout(stage, lowering, kernels[0].low if kernels else (),
                                   kernels[0].wires if kernels else frozenset(), local_bits)
            layout.live = set(range(circuit.qubits)) if live else set()
        entry = by_address(layout)
        program = emit(kernels, layout, address_bits=local_bits, lanes=on.lanes(real), run=run, dtype=real)
        codes.append(StageCode(exchange=exchange, program=program, empty=layout.empty(local_bits), entry=entry,
                               exit=by_address(layout)))
        if index + 1 < len(plan.stages):
            layout.live |= {w for w, a in layout.address.items() if a < local_bits}
    assert layout is not None, "a plan has at least one stage"
    return ShardedCode(qubits=circuit.qubits, local_bits=local_bits, stages=tuple(codes),
                       placement=placement_after(lowering, layout, circuit), live=live)


def _stored(stage: Stage, lowering: Lowering) -> list[int]:
    """Stored wires at the plan's physical positions (swaps executed so far are renamings)."""
    return [lowering.wire[w] for w in stage.layout]


def by_address(layout: Layout) -> tuple[int, ...]:
    """Wires in the order of their addresses."""
    return tuple(sorted(layout.address, key=lambda w: layout.address[w]))


def _local(layout: Layout, local_bits: int) -> list[int]:
    return list(by_address(layout)[:local_bits])


def _first_layout(stage: Stage, lowering: Lowering, low: Sequence[int], tile: frozenset[int], local_bits: int
                  ) -> Layout:
    stored = _stored(stage, lowering)
    local = list(dict.fromkeys([*low, *sorted(tile), *stored[:local_bits]]))
    return Layout({w: a for a, w in enumerate([*local, *stored[local_bits:]])}, set())


def transition(layout: Layout, stage: Stage, lowering: Lowering, local_bits: int) -> Exchange:
    """Bring ``layout`` to the stage's local and non-local sets; wires that stay local keep their address."""
    before = by_address(layout)
    wanted = _stored(stage, lowering)
    place = {w: p for p, w in enumerate(wanted)}
    leaving = [p for p in range(local_bits) if place[before[p]] >= local_bits]
    entering = [p for p in range(local_bits, len(before)) if place[before[p]] < local_bits]
    after = list(before)
    # an entering wire takes the slot of the wire that wants its place; the others pair up in order
    slot_of = {place[before[p]]: p for p in leaving}
    matched = {p: slot_of[p] for p in entering if p in slot_of}
    spare = iter([p for p in leaving if p not in matched.values()])
    for p in entering:
        after[matched[p] if p in matched else next(spare)] = before[p]
    after[local_bits:] = wanted[local_bits:]
    steps: Move = move(before, tuple(after), local_qubits=local_bits)
    assert steps.local == tuple(range(local_bits)), "staying wires keep their addresses"
    layout.address = {w: a for a, w in enumerate(after)}
    return Exchange(pairs=tuple((a, p - local_bits) for a, p in steps.exchange), shards=steps.shards)


def exchange_bytes(code: ShardedCode, amplitude_bytes: int) -> list[int]:
    """Closed form: bytes all shards send at each transition (exchanged regions, then whole shards that move)."""
    shard_bytes = amplitude_bytes << code.local_bits
    result = []
    for stage in code.stages:
        if stage.exchange is None:
            continue
        m = len(stage.exchange.pairs)
        whole = sum(1 for s in range(code.shards) if moved_shard(s, stage.exchange) != s)
        result.append(code.shards * (shard_bytes - (shard_bytes >> m)) + whole * shard_bytes)
    return result


def moved_shard(shard: int, exchange: Exchange) -> int:
    """New number of a shard when its bits move to ``exchange.shards``."""
    return sum((shard >> i & 1) << to for i, to in enumerate(exchange.shards))


def region(state: State, pairs: Sequence[tuple[int, int]], value: int) -> State:
    """View of the amplitudes whose exchanged local bits hold ``value`` (bit i of it: pair i)."""
    shape: list[int] = []
    index: list[int | slice] = []
    top = len(state).bit_length() - 1
    for i, (a, _) in sorted(enumerate(pairs), key=lambda item: -item[1][0]):
        shape += [1 << (top - a - 1), 2]
        index += [slice(None), value >> i & 1]
        top = a
    return state.reshape(*shape, 1 << top)[(*index, slice(None))]


def region_pieces(view: State, most: int) -> Iterator[State]:
    """Parts of a strided view of at most ``most`` amplitudes each, in index order."""
    if view.size <= most or view.ndim == 0:
        yield view
    elif view.shape[0] == 1:
        yield from region_pieces(view[0], most)
    else:
        half = view.shape[0] // 2
        yield from region_pieces(view[:half], most)
        yield from region_pieces(view[half:], most)

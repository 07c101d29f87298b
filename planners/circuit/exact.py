"""The optimum kernels of a small stage, by dynamic programming over all down-sets with one kernel open.

State: gates that have run, kind and wires of the kernel that took the last one. A gate joins the open kernel at the
price of its growth, or closes it and opens another. Every partition into kernels that can run one after the other is
such a path, so the answer is the optimum of the cost model. Exponential in the width of the precedence order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from planners.circuit.dag import bits
from planners.circuit.kernels import StageGates, Step
from planners.circuit.problem import KernelKind

__all__ = ["EXACT_LIMIT", "optimum"]

EXACT_LIMIT = 12
"""Stages of at most this many gates are solved exactly as a matter of course."""

_KINDS: tuple[KernelKind, ...] = ("fusion", "tile")


class _Open(NamedTuple):
    done: int
    kind: KernelKind
    wires: int


class _Entry(NamedTuple):
    """Cost of a state, the state before its last gate, and whether that gate opened the kernel."""

    cost: float
    before: _Open | None
    opened: bool


def optimum(stage: StageGates) -> list[Step]:
    """Cheapest kernels in execution order."""
    layer: dict[_Open, _Entry] = {}
    table: dict[_Open, _Entry] = {}
    closed: dict[int, tuple[float, _Open | None]] = {0: (0.0, None)}
    for _ in range(stage.count):
        following: dict[_Open, _Entry] = {}
        for done, (cost, last) in closed.items():
            for i in _ready(stage, done):
                for kind in _KINDS:
                    wires = stage.wires[i] if kind == "fusion" else stage.free_active[i]
                    opening = cost + _size_price(stage, kind, wires) + _load(stage, kind, i)
                    _offer(following, _Open(done | 1 << i, kind, wires), _Entry(opening, last, True))
        for state, entry in layer.items():
            for i in _ready(stage, state.done):
                wires = state.wires | (stage.wires[i] if state.kind == "fusion" else stage.free_active[i])
                growth = _size_price(stage, state.kind, wires) - _size_price(stage, state.kind, state.wires)
                joined = entry.cost + growth + _load(stage, state.kind, i)
                _offer(following, _Open(state.done | 1 << i, state.kind, wires), _Entry(joined, state, False))
        layer = following
        table.update(layer)
        closed = {}
        for state, entry in layer.items():
            if state.done not in closed or entry.cost < closed[state.done][0]:
                closed[state.done] = (entry.cost, state)
    return _unrolled(table, closed[stage.everything][1])


def _ready(stage: StageGates, done: int) -> list[int]:
    return [i for i in bits(stage.everything & ~done) if not stage.before[i] & ~done]


def _size_price(stage: StageGates, kind: KernelKind, wires: int) -> float:
    size = wires.bit_count()
    if kind == "fusion":
        return stage.table.fusion_s[size] if size <= stage.fusion_limit else math.inf
    return stage.tile_base_s[size] if size <= stage.free_limit else math.inf


def _load(stage: StageGates, kind: KernelKind, gate: int) -> float:
    return stage.weights.of(1 << gate) if kind == "tile" else 0.0


def _offer(layer: dict[_Open, _Entry], state: _Open, entry: _Entry) -> None:
    known = layer.get(state)
    if entry.cost < math.inf and (known is None or entry.cost < known.cost):
        layer[state] = entry


def _unrolled(table: dict[_Open, _Entry], state: _Open | None) -> list[Step]:
    steps: list[Step] = []
    gates = 0
    while state is not None:
        entry = table[state]
        gates |= state.done & ~(entry.before.done if entry.before else 0)
        if entry.opened:
            steps.append(Step(state.kind, gates))
            gates = 0
        state = entry.before
    return steps[::-1]

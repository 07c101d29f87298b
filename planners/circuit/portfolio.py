"""Kernels of one stage: several searches, and the best of them.

``portfolio`` runs greedy packing, ORDERED, KERNELIZE and the beam over down-sets (program and commutation order,
forwards and backwards), moves tile gates into fusion kernels where that is free, and keeps the cheapest; small stages
are solved exactly. It is never worse than any of its members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from planners.circuit.dag import Relation, bits, gate_axes
from planners.circuit.exact import EXACT_LIMIT, optimum
from planners.circuit.frontier import Settings, frontier_search
from planners.circuit.ir import Axis, Circuit
from planners.circuit.kernelbound import kernel_bound
from planners.circuit.kernelize import kernelize
from planners.circuit.kernels import StageGates, Step, stage_gates
from planners.circuit.problem import KernelTable
from planners.circuit.segments import greedy, ordered

__all__ = ["KERNELIZERS", "Solved", "solve_stage"]

_STATES = 16
_BEAM = Settings(width=4, starts=28, fusion=5)
_DIAGONAL_PREMIUM, _MIXING_PREMIUM = 1.04, 1.3
_LEARNING = 0.5
_RELEARNT = 2
_DIRECTIONS: tuple[tuple[Relation, bool], ...] = (
    ("program", False), ("commutation", False), ("program", True), ("commutation", True))


class Solved(NamedTuple):
    """Kernels of one stage: its gates, the steps, their seconds, and a proven lower bound (equal where optimal)."""

    stage: StageGates
    steps: list[Step]
    seconds: float
    bound: float


class _Views:
    """One stage under an order relation and a direction, each made when first asked for.

    Backwards, gate i is the forward gate ``count - 1 - i``.
    """

    def __init__(self, circuit: Circuit, order: Sequence[int], local: Sequence[int], table: KernelTable) -> None:
        self.circuit, self.order, self.local, self.table = circuit, list(order), local, table
        self._ways: dict[Relation, list[tuple[Axis, ...]]] = {}
        self._stages: dict[tuple[Relation, bool], StageGates] = {}

    def stage(self, relation: Relation, *, backwards: bool = False) -> StageGates:
        """The stage's gates in that view."""
        if relation not in self._ways:
            self._ways[relation] = gate_axes(self.circuit, relation)
        key = (relation, backwards)
        if key not in self._stages:
            order = self.order[::-1] if backwards else self.order
            self._stages[key] = stage_gates(self.circuit, order, self._ways[relation], local=self.local,
                                            table=self.table)
        return self._stages[key]

    def forwards(self, steps: Sequence[Step]) -> list[Step]:
        """A backward solution as a forward one."""
        last = len(self.order) - 1
        return [Step(step.kind, sum(1 << last - i for i in bits(step.gates))) for step in reversed(steps)]


def solve_stage(circuit: Circuit, order: Sequence[int], *, local: Sequence[int], table: KernelTable,
                kernelizer: str) -> Solved:
    """Kernels for the gates of one stage (indices in a valid order) by the named kernelizer.

    Raises:
        Infeasible: a gate fits no kernel.
    """
    views = _Views(circuit, order, local, table)
    stage = views.stage("commutation" if kernelizer in ("portfolio", "beam") else "program")
    if not stage.count:
        return Solved(stage, [], 0.0, 0.0)
    steps = KERNELIZERS[kernelizer](views)
    seconds = stage.total(steps)
    if kernelizer == "portfolio" and stage.count <= EXACT_LIMIT:
        return Solved(stage, steps, seconds, seconds)
    return Solved(stage, steps, seconds, 0.0 if kernelizer == "beam" else min(seconds, kernel_bound(stage)))


def _portfolio(views: _Views) -> list[Step]:
    order = views.stage("commutation")
    if order.count <= EXACT_LIMIT:
        return optimum(order)
    found = [_greedy(views), _ordered(views), _kernelize(views)]
    tried: list[tuple[float, int, list[Step]]] = []
    for number, (relation, backwards) in enumerate(_DIRECTIONS):
        stage = views.stage(relation, backwards=backwards)
        steps = frontier_search(stage, first_prices(stage), _BEAM)
        if steps is not None:
            tried.append((stage.total(steps), number, steps))
            found.append(views.forwards(steps) if backwards else steps)
    for _, number, steps in sorted(tried, key=lambda entry: entry[:2])[:_RELEARNT]:
        relation, backwards = _DIRECTIONS[number]
        stage = views.stage(relation, backwards=backwards)
        again = frontier_search(stage, learnt_prices(stage, first_prices(stage), steps), _BEAM)
        if again is not None:
            found.append(views.forwards(again) if backwards else again)
    return min((absorbed(order, steps) for steps in found), key=order.total)


def _beam(views: _Views) -> list[Step]:
    """One beam search: a quick estimate of what the portfolio will find."""
    stage = views.stage("commutation")
    return absorbed(stage, frontier_search(stage, first_prices(stage), _BEAM) or greedy(stage))


def first_prices(stage: StageGates) -> list[float]:
    """What a gate costs in a tile, a little more for those that need an active wire."""
    prices = []
    for i in range(stage.count):
        weight = stage.weights.of(1 << i)
        prices.append(weight * (_MIXING_PREMIUM if stage.active[i] else _DIAGONAL_PREMIUM))
    return prices


def learnt_prices(stage: StageGates, prices: Sequence[float], steps: Sequence[Step]) -> list[float]:
    """Prices moved towards what each gate's kernel cost a gate."""
    moved = list(prices)
    for step in steps:
        rate = stage.cost(step) / step.gates.bit_count()
        for i in bits(step.gates):
            moved[i] += _LEARNING * (rate - prices[i])
    return moved


def absorbed(stage: StageGates, steps: Sequence[Step]) -> list[Step]:
    """Tile gates moved into fusion kernels that hold their wires anyway, where precedence allows."""
    place = [0] * stage.count
    for k, step in enumerate(steps):
        for i in bits(step.gates):
            place[i] = k
    after: list[list[int]] = [[] for _ in range(stage.count)]
    for i, direct in enumerate(stage.before):
        for u in bits(direct):
            after[u].append(i)
    wires = [stage.touched(step.gates) if step.kind == "fusion" else 0 for step in steps]
    moving = True
    while moving:
        moving = False
        for i in range(stage.count):
            if steps[place[i]].kind != "tile":
                continue
            first = max((place[u] for u in bits(stage.before[i])), default=0)
            last = min((place[w] for w in after[i]), default=len(steps) - 1)
            home = next((k for k in range(first, last + 1)
                         if steps[k].kind == "fusion" and not stage.wires[i] & ~wires[k]), None)
            if home is not None:
                place[i] = home
                moving = True
    masks = [0] * len(steps)
    for i, k in enumerate(place):
        masks[k] |= 1 << i
    return [Step(step.kind, mask) for step, mask in zip(steps, masks, strict=True) if mask]


def _greedy(views: _Views) -> list[Step]:
    return greedy(views.stage("program"))


def _ordered(views: _Views) -> list[Step]:
    return ordered(views.stage("program"))


def _kernelize(views: _Views) -> list[Step]:
    stage = views.stage("program")
    return kernelize(stage, states=_STATES) or ordered(stage)


KERNELIZERS: dict[str, Callable[[_Views], list[Step]]] = {
    "portfolio": _portfolio, "beam": _beam, "kernelize": _kernelize, "ordered": _ordered, "greedy": _greedy,
}
"""name -> search over one stage."""

"""Lazy profiling: measure only kernels that a plan could want, and still know the best plan.

Plan with the measured times where there are any and with floors elsewhere (``pricing.Floors``); measure the kernels of
that plan which nobody has measured; repeat. When the plan is all measured it is the best of all plans, as long as the
floors are true: any other plan costs at least as much even by floors. ``gap`` stops sooner, when the best plan of
measured kernels is within that share of the plan by floors.

The first round measures the single primitives (so that there is a plan, and floors), what greedy fusion makes, the
components and the whole program, unless ``measured`` already knows them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planners.orchestration.blp import Search, Selection, choose
from planners.orchestration.candidates import Structure
from planners.orchestration.enumeration import Grown, Kernels
from planners.orchestration.options import Option
from planners.orchestration.pricing import Prices
from workbench.errors import Infeasible, MissingProfile

__all__ = ["FloorModel", "Measure", "Settled", "settle"]

Measure = Callable[[Sequence[tuple[str, Structure]]], None]
"""Measures kernels (digest, structure) so that the cost model answers for them on every back-end afterwards."""
FloorModel = Callable[[Grown], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The best plan of measured kernels, and what is proven about it."""

    selection: Selection
    bound: float
    proven: bool
    rounds: int
    priced: int
    """Structures whose time is known."""


def settle(prices: Prices, allowed: Sequence[int], targets: int, search: Search, *, measure: Measure | None = None,
           within_s: float | None = None, gap: float = 0.0,
           floors: Callable[[Sequence[tuple[Grown, float]]], FloorModel] | None = None,
           tell: Callable[[str], None] = lambda _: None) -> Settled:
    """The best plan of the allowed candidates; unmeasured ones are measured while they could be in it.

    Args:
        prices: prices of the candidates; they grow through ``measure``.
        allowed: candidates, by position in ``prices.kernels.grown``.
        targets: mask of the tensors to store.
        search: how each program is solved.
        measure: measures kernels; absent: the best plan of what is known.
        within_s: time after the first round's measuring at which the best plan of what is measured is returned; absent:
            the search's own limit.
        gap: share of the plan by floors within which a measured plan is good enough.
        floors: makes lower bounds from measured candidates; by default those of ``pricing``.
        tell: called with one line each round.

    Raises:
        MissingProfile: no plan can be made of measured kernels, and there is no ``measure``.
    """
    kernels = prices.kernels
    fit = floors or (lambda measured: prices.floors(measured).floor_s)
    if measure is not None:
        _measure(kernels, [kernels.grown[i] for i in allowed if kernels.grown[i].kind in kernels.seeds], prices,
                 measure)
    deadline = time.perf_counter() + (search.time_limit_s if within_s is None else within_s)
    rounds = 0
    while True:
        rounds += 1
        options, unknown = _options(prices, allowed, fit)
        optimistic = choose(options, targets, search)
        wanted = [i for i in optimistic.chosen if i in unknown]
        priced = len({kernels.grown[i].kind for i in allowed} - {kernels.grown[allowed[i]].kind for i in unknown})
        if not wanted:
            return Settled(selection=optimistic, bound=optimistic.bound, proven=optimistic.proven, rounds=rounds,
                           priced=priced)
        late = time.perf_counter() > deadline
        if measure is None or gap or late:
            known = _known_only(options, unknown, targets, search)
            if known is None:
                raise _missing(kernels, [kernels.grown[allowed[i]] for i in wanted])
            close = known.seconds <= optimistic.bound * (1 + gap)
            if measure is None or close or late:
                return Settled(selection=known, bound=min(optimistic.bound, known.seconds), proven=False,
                               rounds=rounds, priced=priced)
        tell(f"round {rounds}: {optimistic.seconds * 1e6:.1f} us by floors, {len(wanted)} kernels to measure, "
             f"{priced} known")
        _measure(kernels, [kernels.grown[allowed[i]] for i in wanted], prices, measure)


def _measure(kernels: Kernels, grown: Sequence[Grown], prices: Prices, measure: Measure) -> None:
    kinds = dict.fromkeys(g.kind for g in grown if prices.known(g) is None)
    if kinds:
        measure([(kernels.digest(kind), kernels.structure(kind)) for kind in kinds])
        prices.forget(kinds)


def _options(prices: Prices, allowed: Sequence[int], fit: Callable[[Sequence[tuple[Grown, float]]], FloorModel]
             ) -> tuple[list[Option], set[int]]:
    """The allowed candidates with times or floors, and positions of those that have only a floor."""
    grown = [prices.kernels.grown[i] for i in allowed]
    known = [prices.known(g) for g in grown]
    unknown = {i for i, price in enumerate(known) if price is None}
    floor_s: FloorModel = lambda _: 0.0  # noqa: E731 - replaced when anything has only a floor
    if unknown:
        first: dict[int, tuple[Grown, float]] = {}
        for g, price in zip(grown, known, strict=True):
            if price is not None and price.seconds < float("inf"):
                first.setdefault(g.kind, (g, price.seconds))
        floor_s = fit(list(first.values()))
    options = [Option(g.makes, g.reads, g.members,
                      floor_s(g) + prices.boundary_s(g) if price is None else price.total_s)
               for g, price in zip(grown, known, strict=True)]
    return options, unknown


def _known_only(options: Sequence[Option], unknown: set[int], targets: int, search: Search) -> Selection | None:
    """The best plan of measured options, by position in ``options``."""
    places = [i for i in range(len(options)) if i not in unknown]
    try:
        found = choose([options[i] for i in places], targets, search)
    except Infeasible:
        return None
    return Selection(chosen=tuple(places[i] for i in found.chosen), seconds=found.seconds, bound=found.bound,
                     proven=found.proven, parts=found.parts, rows=found.rows, cuts=found.cuts)


def _missing(kernels: Kernels, grown: Sequence[Grown]) -> MissingProfile:
    names = kernels.index.graph.primitives
    keys = ["+".join(names[p].name for p in kernels.candidate(g).members) for g in grown]
    return MissingProfile("no plan can be made of the kernels that were measured", keys=keys, where="costs",
                          hint="or give a device of the hardware catalogue for analytic costs",
                          next_command="wb profile orchestration")

"""The optimal fleet, with proof: cutting planes over replica counts y, then the cheapest of the fleets that tie.

The model of ``formulation`` without the assignment columns is a small knapsack: max R, R <= v_k . y for the
inequalities k found so far. Fleets worth more than the best known rate are priced by the assignment's linear program,
whose dual is the next inequality; when no fleet is worth more, the best one is optimal (Benders 1962). Up to a few
hundred GPUs such fleets are enumerated (``fleets``), beyond that, or where there are too many, the solver finds the
knapsack's optimum, an upper bound that meets the best rate after a few rounds. Before each round, candidates that a
bundle of others covers *under the inequalities of that round*, and for the solver those whose reduced cost exceeds the
gap, are left out: neither can improve.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from planners.placement.fleets import LinearBounds, fleets_worth, small_enough
from planners.placement.formulation import (
    Assignment,
    Relaxation,
    assign,
    fleet_model,
    price_scale,
    relaxation,
    typical_rate,
    values,
    whole_prices,
    with_cuts,
)
from planners.placement.instance import Floats, Instance, Integers, uncovered
from workbench.errors import SolverError
from workbench.milp import Model, relax, solve

__all__ = ["TIE", "Fleet", "Search", "cheapest", "fastest", "leanest"]

TIE = 1e-6
_ROUNDS = 200
_FIRST_ROWS, _MOST_ROWS = 10_000, 100_000
# Rates closer than this are equal; above the slack of the enumeration.
_EQUAL = 1e-8
_PRICED_AT_ONCE = 4
# More inequalities cost more time than they save rows.
_CUTS_AT_ONCE = 14
# So few candidates are not worth a linear program to leave some out.
_FEW = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How to search: back-end, relative gap accepted, clock reading to stop at, seed."""

    solver: str = "highs"
    gap: float = 0.0
    deadline: float = float("inf")
    seed: int = 0

    def left_s(self) -> float:
        """Seconds left, at least a token amount."""
        return max(self.deadline - time.perf_counter(), 0.05)

    def over(self) -> bool:
        """Whether time is up."""
        return time.perf_counter() >= self.deadline


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fleet:
    """Replica counts [C] with their best assignment, and what was proven.

    ``bound`` bounds the rate of every fleet from above (``fastest``) or the cost of every fleet that reaches the rate
    asked for from below (``cheapest``); ``proven`` says whether the search closed its gap.
    """

    replicas: Integers
    assignment: Assignment
    cost: float
    bound: float
    proven: bool
    cuts: Floats = field(repr=False)
    linear: LinearBounds | None = field(default=None, repr=False)


def fastest(instance: Instance, search: Search, *, linear: Relaxation | None = None) -> Fleet | None:
    """The fleet of the largest rate within budget and availability; ``None`` when no fleet serves every type.

    ``linear`` is the instance's relaxation where the caller has it already.
    """
    start = linear or relaxation(instance)
    if start.rate <= 0:
        return None
    race = _Race(instance, search, start)
    if not (small_enough(instance) and race.by_enumeration()):
        race.by_programs()
    if race.best.rate <= 0:
        return None
    return Fleet(replicas=race.fleet, assignment=race.best, cost=float(race.fleet @ instance.cost),
                 bound=race.best.rate if race.proven and search.gap == 0 else max(race.bound, race.best.rate),
                 proven=race.proven, cuts=np.array(race.cuts), linear=race.linear)


class _Race:
    """Inequalities, the best fleet priced so far, and the bound, on their way to each other."""

    def __init__(self, instance: Instance, search: Search, start: Relaxation) -> None:
        self.instance, self.search = instance, search
        self.bound, self.fractional, self.proven = start.rate, start.rate, False
        self.cuts = [values(instance, start.prices)]
        self.linear = LinearBounds(instance)
        self.fleet = np.zeros(len(instance.candidates), dtype=np.int64)
        self.best = assign(instance, self.fleet)
        self.price(_rounded(instance, start.replicas, self.cuts[0]))

    def price(self, fleet: Integers) -> float:
        """The rate of a fleet; learns its inequality."""
        found = assign(self.instance, fleet)
        self.cuts.append(values(self.instance, found.prices))
        if found.rate > self.best.rate:
            self.best, self.fleet = found, fleet
        return found.rate

    @property
    def enough(self) -> float:
        """The rate beyond which a fleet would be an improvement worth having."""
        return max(self.best.rate * (1 + max(self.search.gap, _EQUAL)), _EQUAL * self.fractional)

    def by_enumeration(self) -> bool:
        """Search among all fleets worth more than the best; whether the bound closed."""
        target, most_rows = self.enough, _FIRST_ROWS
        while not self.search.over():
            found = fleets_worth(self.instance, _first_and_latest(self.cuts), target, most_rows=most_rows,
                                 linear=self.linear)
            if found is None:
                most_rows += most_rows // 2
                if most_rows > _MOST_ROWS:
                    return False
                target = (target + self.bound) / 2
            elif not len(found):
                self.bound = min(self.bound, target)
                self.proven = self.bound <= self.enough
                if self.proven:
                    return True
                target = self.enough
            else:
                self._price_the_best_of(found)
                target = max(target, self.enough)
        return False

    def _price_the_best_of(self, fleets: Integers) -> None:
        for _ in range(_PRICED_AT_ONCE):
            worth = (np.array(self.cuts) @ fleets.T).min(axis=0)
            first = int(worth.argmax())
            if worth[first] < self.enough:
                return
            self.price(fleets[first])

    def by_programs(self) -> None:
        """Let the solver find the best fleet under the inequalities, again and again, until it is worth its rate."""
        seen = set[bytes]()
        for _ in range(_ROUNDS):
            y, self.bound, whole = _largest(self.instance, np.array(self.cuts), self.best.rate, self.fleet, self.bound,
                                            self.search)
            self.price(y)
            # The knapsack's optimum a second time: its value there is its rate, and nothing exceeds it.
            again = whole and y.tobytes() in seen
            self.proven = again or self.bound <= self.enough
            if self.proven or self.search.over():
                return
            seen.add(y.tobytes())


def _first_and_latest(cuts: Sequence[Floats]) -> Floats:
    """The relaxation's inequality and the latest ones, [K, C]."""
    return np.array([cuts[0], *cuts[1:][1 - _CUTS_AT_ONCE:]])


def leanest(instance: Instance, fleet: Fleet, search: Search) -> Fleet:
    """The cheapest of the fleets as fast as the optimal ``fleet``, with that fleet's bound and proof."""
    if not small_enough(instance):
        lean = cheapest(instance, fleet.assignment.rate, search, cuts=fleet.cuts, start=fleet)
        return fleet if lean is None else _proven_by(fleet, lean.replicas, lean.assignment, lean.cost)
    cuts = list(fleet.cuts)
    target = fleet.assignment.rate * (1 - _EQUAL)
    best = fleet
    while not search.over():
        cheaper = fleets_worth(instance, _first_and_latest(cuts), target, most_rows=_MOST_ROWS, cheaper_than=best.cost,
                               linear=fleet.linear)
        if cheaper is None or not len(cheaper):
            break
        costs = cheaper @ instance.cost
        for k in np.argsort(costs, kind="stable")[:_PRICED_AT_ONCE]:
            found = assign(instance, cheaper[k])
            if found.rate >= target:
                best = _proven_by(fleet, cheaper[k], found, float(costs[k]))
                break
            cuts.append(values(instance, found.prices))
    return best


def _proven_by(fleet: Fleet, replicas: Integers, assignment: Assignment, cost: float) -> Fleet:
    return replace(fleet, replicas=replicas, assignment=assignment, cost=cost)


def cheapest(instance: Instance, required: float, search: Search, *, cuts: Floats | None = None,
             start: Fleet | None = None) -> Fleet | None:
    """The cheapest fleet whose rate is at least ``required``; ``None`` when there is none.

    Args:
        instance: budget and availability hold as well.
        required: requests/s over all types.
        search: how to search.
        cuts: inequalities [K, C] known already.
        start: a fleet known to reach the rate.
    """
    known = list(cuts) if cuts is not None else [values(instance, relaxation(instance).prices)]
    target = required * (1 - TIE)
    best = None if start is None else (start.replicas, start.assignment)
    bound, proven = 0.0, False
    for _ in range(_ROUNDS):
        found = _cheapest_under(instance, np.array(known), target, None if best is None else best[0], search)
        if found is None:
            return None
        y, bound, whole = found
        priced = assign(instance, y)
        if priced.rate >= target:
            if best is None or y @ instance.cost < best[0] @ instance.cost - 1e-12:
                best = (y, priced)
            proven = whole
            break
        known.append(values(instance, priced.prices))
        if search.over():
            break
    if best is None:
        raise SolverError("no fleet of the required rate was found in time", hint="raise planner.time_limit_s")
    y, priced = best
    cost = float(y @ instance.cost)
    return Fleet(replicas=y, assignment=priced, cost=cost, proven=proven, cuts=np.array(known),
                 bound=cost if proven and search.gap == 0 else min(bound, cost))


def _rounded(instance: Instance, replicas: Floats, worth: Floats) -> Integers:
    """A whole fleet near a fractional one: rounded down, then filled up by worth per share of what is scarce."""
    filled = np.floor(replicas + 1e-9).astype(np.int64)
    left = instance.available - filled @ instance.devices
    money = instance.budget - float(filled @ instance.cost)
    share = (instance.devices / np.maximum(instance.available, 1)).max(axis=1)
    if np.isfinite(instance.budget):
        share = np.maximum(share, instance.cost / instance.budget)
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(-np.where(share > 0, worth / share, np.inf), kind="stable")
    for c in order:
        room = np.where(instance.devices[c] > 0, left // np.maximum(instance.devices[c], 1), np.iinfo(np.int64).max)
        affordable = (money + 1e-9) / instance.cost[c] if instance.cost[c] > 0 else 2.0**53
        count = int(min(room.min(), affordable))
        if count > 0 and worth[c] > 0:
            filled[c] += count
            left, money = left - count * instance.devices[c], money - count * float(instance.cost[c])
    return filled


def _largest(instance: Instance, cuts: Floats, rate: float, fleet: Integers, bound: float,
             search: Search) -> tuple[Integers, float, bool]:
    """A fleet of the largest value under the cuts, a bound on it, and whether it is optimal within the gap.

    ``rate`` is the rate of ``fleet``, the best known; fleets of less value are not looked for.
    """
    unit = typical_rate(instance)
    keep = uncovered(instance, cuts.T)

    def build(rows: Integers) -> Model:
        model = with_cuts(fleet_model(instance.take(rows)), cuts[:, rows], unit)
        model.bound(model["rate"], lower=rate / unit * (1 - 1e-6))
        model.maximise(model["rate"])
        return model

    if len(keep) > _FEW:
        linear = solve(relax(build(keep)))
        highest = float(linear["rate"]) * unit
        bound = min(bound, highest)
        assert linear.reduced_costs is not None, "a linear program has reduced costs"
        worse = linear.reduced_costs["replicas"] * unit < -(highest - rate) - 1e-9 * highest
        keep = keep[~(worse & (linear["replicas"] < 0.5))]
    known = None if fleet[np.setdiff1d(np.arange(len(fleet)), keep)].any() else {"replicas": fleet[keep]}
    solution = solve(build(keep), solver=search.solver, time_limit_s=search.left_s(), gap=search.gap,
                     seed=search.seed, start=known)
    if solution.status == "infeasible":
        return fleet, rate, True  # what was left out cannot improve, and nothing else reaches the rate known
    if solution.x is None:
        return fleet, bound, False
    y = np.zeros_like(fleet)
    y[keep] = solution["replicas"]
    whole = solution.status == "optimal"
    proven = float(solution.bound or np.inf) * unit
    if whole and search.gap == 0:
        # Exact arithmetic at the solver's point: the solver's own bound carries its tolerances.
        proven = max(float((cuts @ y).min()), rate)
    return y, min(bound, max(proven, rate)), whole


def _cheapest_under(instance: Instance, cuts: Floats, target: float, fleet: Integers | None,
                    search: Search) -> tuple[Integers, float, bool] | None:
    """A cheapest fleet whose value under every cut is at least ``target``, a bound, and whether it is optimal."""
    unit = typical_rate(instance)
    keep = uncovered(instance, cuts.T)
    scale = price_scale(instance.price) or 1

    def build(rows: Integers) -> Model:
        model = with_cuts(fleet_model(instance.take(rows)), cuts[:, rows], unit)
        model.bound(model["rate"], lower=target / unit)
        model.minimise(whole_prices(instance) @ model["gpus"])
        return model

    if fleet is not None and len(keep) > _FEW:
        linear = solve(relax(build(keep)))
        if linear.x is None:
            return None
        assert linear.reduced_costs is not None, "a linear program has reduced costs"
        room = float(fleet @ instance.cost) * scale - float(linear.objective or 0.0)
        worse = linear.reduced_costs["replicas"] < -room - 1e-9 * (1 + abs(room))
        keep = keep[~(worse & (linear["replicas"] < 0.5))]
    known = None
    if fleet is not None and not fleet[np.setdiff1d(np.arange(len(fleet)), keep)].any():
        known = {"replicas": fleet[keep]}
    solution = solve(build(keep), solver=search.solver, time_limit_s=search.left_s(), gap=search.gap,
                     seed=search.seed, start=known)
    if solution.status == "infeasible":
        return None
    if solution.x is None:
        return (fleet, 0.0, False) if fleet is not None else None
    y = np.zeros(len(instance.candidates), dtype=np.int64)
    y[keep] = solution["replicas"]
    return y, float(solution.bound or 0.0) / scale, solution.status == "optimal"

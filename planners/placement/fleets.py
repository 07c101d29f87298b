"""Every fleet worth at least a target: a knapsack with several values, solved GPU type by GPU type.

A fleet y is worth min_k v_k . y under the inequalities found so far (``formulation``). Most candidates use one type of
GPU, so that only budget and the few mixed pipelines tie the types together. For each inequality alone, the best a type
makes of g GPUs is a one-dimensional knapsack, and the best the remaining types make of the remaining money a
max-plus convolution of those (Gilmore and Gomory 1966, section 4): exact completion bounds, whole GPUs and whole cents
included. Partial fleets are grown in layers, first mixed pipelines, then type by type, as rows of arrays; a row goes
when a bound falls below the target, or when another row has the same GPUs and money left and is worth no less.

Rows that another row covers are lost, so an answer holds a fleet above the target whenever there is one, not all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planners.placement.formulation import fleet_model
from planners.placement.instance import Floats, Instance, Integers, uncovered
from workbench.milp import relax, solve

__all__ = ["fleets_worth", "small_enough"]

Counts = NDArray[np.int16]
_Options = tuple[Integers, Floats, Counts]

_MOST_GPUS = 256
_GRID = 16_384
_MOST_OPTIONS = 20_000
_SLACK = 1e-9
_LARGEST_KEY = 2.0**62


def small_enough(instance: Instance) -> bool:
    """Whether tables over GPU counts and money are cheap for this instance."""
    return int(instance.available.sum()) <= _MOST_GPUS


def fleets_worth(instance: Instance, cuts: Floats, target: float, *, most_rows: int,
                 cheaper_than: float = np.inf) -> Integers | None:
    """Fleets [M, C] worth at least ``target`` under ``cuts`` [K, C]; none found means that there is none.

    ``None`` when more than ``most_rows`` partial fleets would have to be kept. Fleets that cost ``cheaper_than`` $/h or
    more are left out.
    """
    keep = uncovered(instance, cuts.T)
    part = instance.take(keep)
    found = _Layers(part, cuts[:, keep], target * (1 - _SLACK), most_rows, cheaper_than).grow()
    if found is None:
        return None
    fleets = np.zeros((len(found), len(instance.candidates)), dtype=np.int64)
    fleets[:, keep] = found
    return fleets


@dataclass(slots=True)
class _Rows:
    """Partial fleets: GPUs left [M, N], money left [M], worth so far [M, K], replicas chosen [M, C]."""

    left: Integers
    money: Floats
    worth: Floats
    chosen: Counts

    def __len__(self) -> int:
        return len(self.money)

    def take(self, rows: Integers | np.ndarray) -> _Rows:
        return _Rows(self.left[rows], self.money[rows], self.worth[rows], self.chosen[rows])

    @staticmethod
    def joined(parts: list[_Rows]) -> _Rows:
        return _Rows(np.concatenate([p.left for p in parts]), np.concatenate([p.money for p in parts]),
                     np.concatenate([p.worth for p in parts]), np.concatenate([p.chosen for p in parts]))


class _Layers:
    """One enumeration."""

    def __init__(self, instance: Instance, cuts: Floats, target: float, most_rows: int, cheaper_than: float) -> None:
        self.instance, self.cuts, self.target, self.most_rows = instance, cuts, target, most_rows
        self.spend_limit = cheaper_than - _SLACK * max(1.0, abs(cheaper_than)) if np.isfinite(cheaper_than) else np.inf
        everything = float(instance.available @ instance.price)
        self.budget = min(instance.budget, everything)
        self.unit = self._unit()
        self.last = self._index(np.array([self.budget]))[0]
        kinds = np.count_nonzero(instance.devices, axis=1)
        self.mixed = np.flatnonzero(kinds > 1)
        self.pure = [np.flatnonzero((kinds == 1) & (instance.devices[:, t] > 0))
                     for t in range(len(instance.device_names))]
        self.best = [self._best_of_type(t) for t in range(len(instance.device_names))]
        self.order = sorted((t for t, rows in enumerate(self.pure) if len(rows)), key=lambda t: -self.best[t][-1, 0])
        self.completion = self._completions(self.order)

    def _unit(self) -> float:
        """Money of one step of the tables: the prices' common unit where the tables stay small, else coarser."""
        from planners.placement.formulation import price_scale

        scale = price_scale(self.instance.price)
        finest = 0.0 if scale is None else 1.0 / scale
        return max(finest, self.budget / _GRID, 1e-12)

    def _index(self, money: Floats) -> Integers:
        return np.floor(money / self.unit + 1e-6).astype(np.int64)

    def _best_of_type(self, t: int) -> Floats:
        """Most worth of up to g GPUs of one type in pure replicas, by inequality, [a + 1, K]."""
        best = np.zeros((int(self.instance.available[t]) + 1, len(self.cuts)))
        for g in range(1, len(best)):
            best[g] = best[g - 1]
            for c in self.pure[t]:
                size = int(self.instance.devices[c, t])
                if size <= g:
                    np.maximum(best[g], best[g - size] + self.cuts[:, c], out=best[g])
        return best

    def _with_type(self, table: Floats, t: int) -> Floats:
        """Most worth of money m spent on the types of ``table`` [m, K] and on type t (prices rounded down)."""
        best = table.copy()
        for g in range(1, len(self.best[t])):
            cost = int(self._index(np.array([g * self.instance.price[t]]))[0])
            if cost > self.last:
                break
            np.maximum(best[cost:], table[:self.last + 1 - cost] + self.best[t][g], out=best[cost:])
        return best

    def _completions(self, order: list[int]) -> list[Floats]:
        """Entry j: most worth of money m spent on types ``order[j:]``, [m, K]."""
        tables = [np.zeros((self.last + 1, len(self.cuts)))]
        for t in reversed(order):
            tables.append(self._with_type(tables[-1], t))
        return tables[::-1]

    def grow(self) -> Counts | None:
        """Layer by layer; the replica counts of the rows that are left."""
        rows = self._mixed_rows() if len(self.mixed) else self._start()
        for j, t in enumerate(self.order):
            if rows is None or not len(rows):
                break
            options = self._options(t)
            rows = None if options is None else self._one_type_more(rows, j, t, options)
        return None if rows is None else rows.chosen

    def _start(self) -> _Rows:
        i = self.instance
        return _Rows(i.available[None, :].copy(), np.array([self.budget], dtype=np.float64),
                     np.zeros((1, len(self.cuts))), np.zeros((1, len(i.candidates)), dtype=np.int16))

    def _mixed_rows(self) -> _Rows | None:
        """Numbers of mixed pipelines, under the linear relaxation's bound; then under the completion bounds."""
        i = self.instance
        bounds, rents = self._linear_bounds()
        rows, room = self._start(), bounds[None, :]
        worthwhile = [c for c in self.mixed if (bounds - rents[c]).min() >= self.target]
        for c in sorted(worthwhile, key=lambda c: -int(i.devices[c].sum())):
            parts, rooms = [rows], [room]
            at = np.arange(len(rows))
            for count in range(1, int(i.available.max()) + 1):
                at = at[(rows.left[at] >= count * i.devices[c]).all(axis=1)
                        & (rows.money[at] >= count * i.cost[c] - _SLACK * self.budget)]
                at = at[(room[at] - count * rents[c]).min(axis=1, initial=np.inf) >= self.target]
                if not len(at):
                    break
                more = rows.take(at)
                more.left -= count * i.devices[c]
                more.money -= count * i.cost[c]
                more.worth += count * self.cuts[:, c]
                more.chosen[:, c] = count
                parts.append(more)
                rooms.append(room[at] - count * rents[c])
            if len(parts) > 1:
                rows, room = _Rows.joined(parts), np.concatenate(rooms)
            if len(rows) > self.most_rows:
                return None
        return rows.take(self._reach(rows.worth, rows.money, rows.left, 0))

    def _linear_bounds(self) -> tuple[Floats, Floats]:
        """For each inequality alone: most worth of a fractional fleet [K], and what a replica of c gives up [C, K]."""
        bounds, rents = [], []
        model = relax(fleet_model(self.instance))
        for cut in self.cuts:
            model.maximise(cut @ model["replicas"])
            solution = solve(model)
            assert solution.reduced_costs is not None, "a linear program has reduced costs"
            bounds.append(float(solution.objective or 0.0))
            rents.append(np.maximum(-solution.reduced_costs["replicas"], 0.0))
        return np.array(bounds), np.array(rents).T

    def _reach(self, worth: Floats, money: Floats, left: Integers, j: int) -> NDArray[np.bool_]:
        """Whether worth so far [M, K] and the most that types ``order[j:]`` can add reach the target."""
        table = self.completion[j][np.maximum(self._index(money), 0)]
        reach = (worth + table).min(axis=1, initial=np.inf) >= self.target
        reach &= self.budget - money < self.spend_limit
        if len(self.mixed) and j < len(self.order):  # mixed pipelines have taken GPUs the tables still count
            most = worth.copy()
            for t in self.order[j:]:
                most += self.best[t][left[:, t]]
            reach &= most.min(axis=1) >= self.target
        return reach

    def _options(self, t: int) -> _Options | None:
        """Ways to use type t in pure replicas: GPUs [O], worth [O, K], replica counts [O, pure]; ``None``: too many."""
        i, pure = self.instance, self.pure[t]
        rest = None if len(self.mixed) else self._completions([u for u in self.order if u != t])[0]
        gpus, worth = np.zeros(1, dtype=np.int64), np.zeros((1, len(self.cuts)))
        counts = np.zeros((1, len(pure)), dtype=np.int16)
        most = int(i.available[t])
        for k in sorted(range(len(pure)), key=lambda k: -int(i.devices[pure[k], t])):
            c, size = pure[k], int(i.devices[pure[k], t])
            parts = [(gpus, worth, counts)]
            for count in range(1, most // size + 1):
                used = gpus + count * size
                fits = (used <= most) & (used * i.price[t] <= self.budget * (1 + _SLACK))
                if not fits.any():
                    break
                more = counts[fits].copy()
                more[:, k] = count
                parts.append((used[fits], worth[fits] + count * self.cuts[:, c], more))
            gpus, worth, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
            if rest is not None:
                money = np.maximum(self._index(self.budget - gpus * i.price[t]), 0)
                reach = (worth + self.best[t][most - gpus] + rest[money]).min(axis=1) >= self.target
                gpus, worth, counts = gpus[reach], worth[reach], counts[reach]
            leading = _leading(gpus, worth)
            gpus, worth, counts = gpus[leading], worth[leading], counts[leading]
            if len(gpus) > _MOST_OPTIONS:
                return None
        return gpus, worth, counts

    def _one_type_more(self, rows: _Rows, j: int, t: int, options: _Options) -> _Rows | None:
        i = self.instance
        parts = []
        size = 0
        for gpus, worth, counts in zip(*options, strict=True):
            cost = gpus * i.price[t]
            at = np.flatnonzero((rows.left[:, t] >= gpus) & (rows.money >= cost - _SLACK * self.budget))
            # One inequality first: it turns most rows away.
            near = self._index(rows.money[at] - cost)
            at = at[rows.worth[at, 0] + worth[0] + self.completion[j + 1][np.maximum(near, 0), 0] >= self.target]
            money, total = rows.money[at] - cost, rows.worth[at] + worth
            reach = self._reach(total, money, rows.left[at], j + 1)
            at = at[reach]
            if not len(at):
                continue
            left, chosen = rows.left[at], rows.chosen[at]
            left[:, t] = 0  # what is left of a finished type tells rows apart no longer
            chosen[:, self.pure[t]] = counts
            parts.append(_Rows(left, money[reach], total[reach], chosen))
            size += len(at)
            if size > 4 * self.most_rows:
                return None
        if not parts:
            return rows.take(np.zeros(0, dtype=np.int64))
        rows = _Rows.joined(parts)
        rows = rows.take(_leading(self._keys(rows), rows.worth))
        return None if len(rows) > self.most_rows else rows

    def _keys(self, rows: _Rows) -> Integers:
        """One number for GPUs and money left; all different where such numbers would be too large."""
        radix = self.instance.available + 1
        cents = np.rint(rows.money / max(self.budget, 1e-12) * 2**24).astype(np.int64)
        if float(np.prod(radix.astype(float))) * 2**24 > _LARGEST_KEY:
            return np.arange(len(rows))
        keys = cents
        for t, base in enumerate(radix):
            keys = keys * base + rows.left[:, t]
        return keys


def _leading(keys: Integers, worth: Floats) -> Integers:
    """Rows not covered by the row of the same key with the largest total worth."""
    order = np.lexsort((-worth.sum(axis=1), keys))
    key, value = keys[order], worth[order]
    first = np.ones(len(key), dtype=bool)
    first[1:] = key[1:] != key[:-1]
    leader = np.maximum.accumulate(np.where(first, np.arange(len(key)), 0))
    covered = ~first & (value <= value[leader]).all(axis=1)
    return order[~covered]

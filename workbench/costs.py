"""Costs with a source: what an operation takes, and how we know.

A ``CostModel`` answers ``cost(op, **point)``; the answer is never a silent guess: its ``source`` says whether it was
measured at that very point, interpolated between measured points, extrapolated beyond them, or computed from a
data sheet. A point nobody measured, with no analytic fallback asked for, is a ``MissingProfile`` error. The tables
themselves, and what they say between their points, are in ``costtables``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from workbench.costtables import (
    RANK,
    SOURCES,
    Axis,
    Cost,
    Floats,
    Key,
    Prior,
    ProfileTable,
    Provenance,
    Ranks,
    Source,
    held_out_errors,
    weaker,
)
from workbench.errors import MissingProfile, SpecError, nearest

__all__ = [
    "SOURCES",
    "Axis",
    "Cost",
    "CostModel",
    "CountedCosts",
    "FallbackCosts",
    "Prior",
    "ProfileTable",
    "Provenance",
    "Source",
    "SweepCosts",
    "TableCosts",
    "asked_point",
    "held_out_errors",
    "open_costs",
    "sweep",
    "weaker",
]

class CostModel(Protocol):
    """Anything that answers what an operation costs."""

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Time of ``op`` at ``point`` (categorical and numeric keys by name).

        Raises:
            MissingProfile: no table covers the point and no analytic fallback was asked for.
        """
        ...

    def provenance(self) -> Mapping[str, Provenance]:
        """The tables behind the answers, by op."""
        ...


@runtime_checkable
class SweepCosts(Protocol):
    """A cost model that answers many points of one op at once."""

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """Times of ``op`` at ``point`` with the arrays of ``over`` (broadcast) in it, and ranks of their sources."""
        ...


def sweep(model: CostModel, op: str, over: Mapping[str, ArrayLike],
          **point: float | int | str) -> tuple[Floats, Ranks]:
    """Times of ``op`` over broadcast arrays of some of its axes, and for each the index of its source in ``SOURCES``.

    Raises:
        MissingProfile: as ``model.cost`` does.
    """
    if isinstance(model, SweepCosts):
        return model.sweep(op, over, **point)
    grids = np.broadcast_arrays(*(np.asarray(v) for v in over.values()))
    rows = zip(*(g.ravel().tolist() for g in grids), strict=True)
    found = [model.cost(op, **point, **dict(zip(over, row, strict=True))) for row in rows]
    shape = grids[0].shape
    return (np.array([c.seconds for c in found]).reshape(shape),
            np.array([RANK[c.source] for c in found], dtype=np.int8).reshape(shape))


class TableCosts:
    """Costs from many profile tables; a point is answered by the table whose keys it matches exactly.

    Args:
        tables: at most one per op and keys; later ones replace earlier ones.
        next_command: what to type when a point is missing; ``{op}`` is replaced by the op's name.
        assumed: keys of points that do not name them, such as the device of planners that know only one.
    """

    def __init__(self, tables: Iterable[ProfileTable], *, next_command: str = "wb profile {op}",
                 assumed: Mapping[str, Key] | None = None) -> None:
        self._next_command, self._assumed = next_command, dict(assumed or {})
        self._by_op: dict[str, dict[tuple[str, ...], dict[tuple[Key, ...], ProfileTable]]] = {}
        for table in tables:
            self.add(table)

    def add(self, table: ProfileTable) -> None:
        """Take in one more table."""
        names = tuple(sorted(table.keys))
        by_keys = self._by_op.setdefault(table.op, {}).setdefault(names, {})
        by_keys[tuple(table.keys[n] for n in names)] = table

    def tables(self) -> list[ProfileTable]:
        """Every table, by op and keys in order of arrival."""
        return [t for by_names in self._by_op.values() for by_keys in by_names.values() for t in by_keys.values()]

    def table(self, op: str, point: Mapping[str, Any]) -> ProfileTable:
        """The table that answers ``op`` at ``point``.

        Raises:
            MissingProfile: there is none.
        """
        for names, by_keys in self._by_op.get(op, {}).items():
            try:
                return by_keys[tuple(point[n] if n in point else self._assumed[n] for n in names)]
            except KeyError:
                continue
        raise self._missing(op, {**self._assumed, **point})

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Time of ``op`` at ``point``; see ``CostModel``."""
        table = self.table(op, point)
        return table.at(*self._coordinates(table, point))

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """Times of ``op`` over arrays of some axes; see ``SweepCosts``."""
        everything = {**point, **over}
        table = self.table(op, everything)
        return table.many(*self._coordinates(table, everything))

    def knots(self, op: str, axis: str, **point: float | int | str) -> list[float]:
        """The values of ``axis`` at which the table that answers ``op`` at ``point`` was measured, sorted.

        Raises:
            MissingProfile: there is no such table; ``SpecError`` when it has no such axis.
        """
        return self.table(op, point).knots(axis)

    def _coordinates(self, table: ProfileTable, point: Mapping[str, Any]) -> list[Any]:
        names = [a.name for a in table.axes]
        keys = len(table.keys) - sum(n not in point for n in self._assumed if n in table.keys)
        if len(point) != len(names) + keys or not all(n in point for n in names):
            strange = sorted(set(point) - set(names) - set(table.keys))
            absent = sorted(set(names) - set(point))
            raise SpecError(f"{table.label()} was asked at {sorted(point)}",
                            allowed=[*table.keys, *names],
                            hint="; ".join(part for part in (
                                f"no value for {', '.join(absent)}" if absent else "",
                                f"it does not depend on {', '.join(strange)}" if strange else "") if part))
        return [point[n] for n in names]

    def provenance(self) -> Mapping[str, Provenance]:
        """The tables behind the answers; several tables of one op are told apart by their keys."""
        return {t.label(): t.provenance for t in self.tables()}

    def _missing(self, op: str, point: Mapping[str, Any]) -> MissingProfile:
        asked = asked_point(op, point)
        command = self._next_command.format(op=op)
        if op not in self._by_op:
            close = nearest(op, self._by_op)
            hint = f"did you mean {close!r}?" if close else None
            if not self._by_op:
                hint = "there are no tables at all: name a source in the spec's [costs] section"
            return MissingProfile(f"no profile of op {op!r}", keys=[asked], allowed=sorted(self._by_op) or None,
                                  hint=hint, next_command=command)
        faults = []
        for names, by_keys in self._by_op[op].items():
            known = {n: sorted({k[i] for k in by_keys}, key=str) for i, n in enumerate(names)}
            for n in names:
                if point.get(n) not in known[n]:
                    close = nearest(str(point.get(n)), map(str, known[n]))
                    listed = ", ".join(map(str, known[n][:12]))
                    faults.append(f"{n}={point.get(n)} is not among {listed}" + (f"; nearest {close}" if close else ""))
        hint = "; or ".join(dict.fromkeys(faults)) or "each key is known, this combination of them is not"
        return MissingProfile(f"no profile of {op!r} with these keys", keys=[asked], hint=hint, next_command=command)


def asked_point(op: str, point: Mapping[str, Any]) -> str:
    """A point as text, for messages; arrays are named only."""
    return f"{op}({', '.join(f'{k}={v}' if isinstance(v, str | int | float) else f'{k}=…' for k, v in point.items())})"


class FallbackCosts:
    """First answer wins: measured tables first, then what was explicitly asked for (usually the analytic roofline)."""

    def __init__(self, *models: CostModel) -> None:
        self._models = models

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Time of ``op`` at ``point`` by the first model that knows it.

        Raises:
            MissingProfile: none does; the first model's complaint, which lists what was measured.
        """
        complaint: MissingProfile | None = None
        for model in self._models:
            try:
                return model.cost(op, **point)
            except MissingProfile as error:
                complaint = complaint or error
        raise complaint or MissingProfile("no cost model to ask", keys=[op])

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """Times of ``op`` over arrays by the first model that knows it; see ``SweepCosts``."""
        complaint: MissingProfile | None = None
        for model in self._models:
            try:
                return sweep(model, op, over, **point)
            except MissingProfile as error:
                complaint = complaint or error
        raise complaint or MissingProfile("no cost model to ask", keys=[op])

    def knots(self, op: str, axis: str, **point: float | int | str) -> list[float]:
        """Measured values of ``axis`` in the first model with tables that knows the point.

        Raises:
            MissingProfile: none does.
        """
        for model in self._models:
            with contextlib.suppress(MissingProfile):
                return _knots(model, op, axis, **point)
        raise MissingProfile(f"no table of {op!r} at this point", keys=[op])

    def provenance(self) -> Mapping[str, Provenance]:
        """The tables of all models; the first one's names win."""
        merged: dict[str, Provenance] = {}
        for model in reversed(self._models):
            merged.update(model.provenance())
        return merged


def _knots(model: CostModel, op: str, axis: str, **point: float | int | str) -> list[float]:
    """Measured values of ``axis``; models without tables have none, which is a ``MissingProfile``."""
    ask: Callable[..., list[float]] | None = getattr(model, "knots", None)
    if ask is None:
        raise MissingProfile(f"no table of {op!r} at this point", keys=[op])
    return ask(op, axis, **point)


class CountedCosts:
    """A cost model that remembers how its answers were known: how many by source, and how uncertain, by seconds.

    A measured answer is as uncertain as its table's points, an interpolated one as the table's left-out points at
    their 90th percentile; what is extrapolated, analytic, or from a table without errors has none that is known.
    """

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self.answers: Counter[Source] = Counter()
        self._seconds = self._off = self._unknown = 0.0

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """The inner model's answer, counted."""
        found = self._model.cost(op, **point)
        self._take(op, point, found.source, 1, found.seconds)
        return found

    def sweep(self, op: str, over: Mapping[str, ArrayLike], **point: float | int | str) -> tuple[Floats, Ranks]:
        """The inner model's answers, counted; see ``SweepCosts``."""
        seconds, ranks = sweep(self._model, op, over, **point)
        for rank, count in zip(*np.unique(ranks, return_counts=True), strict=True):
            self._take(op, {**point, **over}, SOURCES[rank], int(count), float(seconds[ranks == rank].sum()))
        return seconds, ranks

    def knots(self, op: str, axis: str, **point: float | int | str) -> list[float]:
        """Measured values of ``axis`` in the inner model; ``MissingProfile`` when it has no such table."""
        return _knots(self._model, op, axis, **point)

    def provenance(self) -> Mapping[str, Provenance]:
        """The inner model's tables."""
        return self._model.provenance()

    def _take(self, op: str, point: Mapping[str, Any], source: Source, count: int, seconds: float) -> None:
        self.answers[source] += count
        error = None
        if isinstance(self._model, TableCosts):
            where = self._model.table(op, point).provenance
            error = {"measured": where.error_point, "interpolated": where.error_p90}.get(source)
        if error is None:
            self._unknown += seconds
        else:
            self._off += error * seconds
            self._seconds += seconds

    def shares(self) -> dict[Source, float]:
        """Share of the answers by source (sums to 1; empty when nothing was asked)."""
        total = sum(self.answers.values())
        return {s: self.answers[s] / total for s in SOURCES if self.answers[s]}

    def error(self) -> float | None:
        """Mean relative error of the answers, weighted by seconds; ``None`` unless every answer's error is known.

        Errors of one table are taken to have one sign, so nothing cancels.
        """
        return None if self._unknown or not self._seconds else self._off / self._seconds


SOURCES_PACKAGE = "traces.profiles"


def open_costs(section: Mapping[str, Any]) -> CostModel:
    """The cost model of a spec's ``[costs]`` section: ``source`` names a module of ``traces/profiles``.

    The module has a spec class ``Options`` and a function ``open(options)``. The key ``fallback = "analytic"``
    (any source's name) is taken here: it answers what the first source does not know.

    Raises:
        SpecError: no such source (names the nearest), or its options are wrong.
    """
    from workbench.spec import parse

    options = dict(section)
    fallback = options.pop("fallback", None)
    name = options.pop("source", None)
    module = _source_module(name)
    model: CostModel = module.open(parse(module.Options, options, where="costs"))
    if fallback is None:
        return model
    second = _source_module(fallback)
    return FallbackCosts(model, second.open(parse(second.Options, {}, where="costs.fallback")))


def _source_module(name: Any) -> Any:
    package = importlib.util.find_spec(SOURCES_PACKAGE)
    folders = list(package.submodule_search_locations or []) if package else []
    known = sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_"))
    if name not in known:
        close = nearest(str(name), known)
        raise SpecError("a cost source is needed" if name is None else f"no cost source is called {name!r}",
                        where="costs.source", allowed=known, hint=f"did you mean {close!r}?" if close else None)
    return importlib.import_module(f"{SOURCES_PACKAGE}.{name}")

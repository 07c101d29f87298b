"""Costs written into the spec itself, for small problems and worked examples (``source = "given"``).

Each row names its ``op``, its ``seconds`` and where it holds. Texts must match exactly; numbers too, unless they are
listed in ``axes``: between rows that differ in those, times are interpolated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from workbench.costs import Axis, ProfileTable, Provenance, TableCosts
from workbench.errors import SpecError
from workbench.spec import about, canonical_json, content_id, spec

__all__ = ["Options", "open"]


@spec
class Options:
    """Options of ``[costs] source = "given"``."""

    rows: tuple[Mapping[str, str | int | float], ...] = about("Rows with op, seconds, and exact keys or axes.")
    axes: tuple[str, ...] = about("Names between whose values times are interpolated.", default=())


def open(options: Options) -> TableCosts:
    """One table for each op and set of exact keys.

    Raises:
        SpecError: a row lacks op or seconds, or an axis holds a text.
    """
    groups: dict[str, list[Mapping[str, str | int | float]]] = defaultdict(list)
    for i, row in enumerate(options.rows):
        if not isinstance(row.get("op"), str) or isinstance(row.get("seconds"), str | None):
            raise SpecError("a row needs op and seconds", where=f"costs.rows[{i}]", allowed=["op", "seconds", "keys …"])
        texts = [name for name in options.axes if isinstance(row.get(name), str)]
        if texts:
            raise SpecError(f"the axis {texts[0]!r} holds a text", where=f"costs.rows[{i}]", allowed=["a number"])
        exact = {k: v for k, v in row.items() if k != "seconds" and k not in options.axes}
        axes = [name for name in options.axes if name in row]
        groups[canonical_json([exact, axes])].append(row)
    return TableCosts(_table(rows, options) for rows in groups.values())


def _table(rows: list[Mapping[str, str | int | float]], options: Options) -> ProfileTable:
    first = rows[0]
    axes = [name for name in options.axes if name in first]
    keys = {k: v for k, v in first.items() if k not in ("op", "seconds") and k not in axes}
    provenance = Provenance(id=content_id([dict(r) for r in rows]), origin="given in the spec",
                            device=str(first.get("device", "any")))
    return ProfileTable(op=str(first["op"]), keys=keys, axes=tuple(map(Axis, axes)), provenance=provenance,
                        points=np.array([[float(r[a]) for a in axes] for r in rows]).reshape(len(rows), len(axes)),
                        seconds=np.array([float(r["seconds"]) for r in rows]))

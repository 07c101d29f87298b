"""Costs with a source: what an operation takes, and how we know.

A ``CostModel`` answers ``cost(op, **point)``; the answer is never a silent guess: its ``source`` says whether it was
measured at that very point, interpolated between measured points, extrapolated beyond them, or computed from a
data sheet. A point nobody measured, with no analytic fallback asked for, is a ``MissingProfile`` error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from workbench.spec import about, spec

__all__ = ["SOURCES", "Cost", "CostModel", "Provenance", "Source"]

Source = Literal["measured", "interpolated", "extrapolated", "analytic"]
SOURCES: tuple[Source, ...] = ("measured", "interpolated", "extrapolated", "analytic")


class Cost(NamedTuple):
    """A time and how it is known. Adding two costs keeps the less certain source."""

    seconds: float
    source: Source


@spec
class Provenance:
    """Where a table of costs comes from."""

    id: str = about("Content id or package version of the table.")
    origin: str = about("Who measured it: this machine, a package, a public repository.")
    device: str = about("Device name in the hardware catalogue.")
    date: str | None = about("Day of measurement, ISO 8601; absent when the origin does not say.", default=None)
    licence: str | None = about("Licence of the table, SPDX id; absent for own measurements.", default=None)


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

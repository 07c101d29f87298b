"""Length-type mixes: which share of the requests has which input and output length.

The placement study (arXiv 2502.00722) describes its three traces by nine types, 3 input x 3 output lengths. The file
``workloads/placement_mixes.toml`` holds one row a type: its order, lengths and percentages, and where they are from.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from workbench.errors import TraceError, nearest
from workbench.spec import about, parse, read_toml, spec

__all__ = ["LengthType", "Mix", "mix", "mixes"]

WORKLOADS_FOLDER = Path(__file__).parent / "workloads"


@spec
class LengthType:
    """One type of request and its share."""

    order: int = about("Position in the source's list of types, from 1.")
    input_tokens: int = about("Prompt length.")
    output_tokens: int = about("Output length.")
    share: float = about("Share of the requests, 0 to 1.")


@spec
class Mix:
    """Shares of request types, adding up to 1."""

    name: str = about("Name of the mix.")
    description: str = about("What it describes.")
    source: str = about("Where the numbers are from, and what is not confirmed.")
    types: tuple[LengthType, ...] = about("The types, by order.")

    def counts(self, requests: int) -> tuple[int, ...]:
        """Whole requests of each type, adding up to ``requests`` (largest remainders get the odd ones)."""
        exact = [t.share * requests for t in self.types]
        counts = [math.floor(x) for x in exact]
        by_remainder = sorted(range(len(exact)), key=lambda k: (counts[k] - exact[k], k))
        for k in by_remainder[: requests - sum(counts)]:
            counts[k] += 1
        return tuple(counts)


@spec
class _Row:
    order: int = about("Position in the source's list.")
    input_tokens: int = about("Prompt length.")
    output_tokens: int = about("Output length.")
    trace1: float = about("Percentage in trace 1.")
    trace2: float = about("Percentage in trace 2.")
    trace3: float = about("Percentage in trace 3.")


@spec
class _MixFile:
    kind: str = about("Always 'mixes'.")
    source: str = about("Where the numbers are from.")
    order_note: str = about("How sure the order of the types is.")
    description: dict[str, str] = about("One line a trace.")
    type: tuple[_Row, ...] = about("One row a type.")


@cache
def mixes() -> dict[str, Mix]:
    """All mixes by name."""
    path = WORKLOADS_FOLDER / "placement_mixes.toml"
    file = parse(_MixFile, read_toml(path), where=str(path))
    rows = sorted(file.type, key=lambda row: row.order)
    return {
        name: Mix(name=name, description=text, source=f"{file.source} {file.order_note}",
                  types=tuple(LengthType(order=row.order, input_tokens=row.input_tokens,
                                         output_tokens=row.output_tokens, share=getattr(row, name) / 100)
                              for row in rows))
        for name, text in file.description.items()
    }


def mix(name: str) -> Mix:
    """The mix called ``name``.

    Raises:
        TraceError: there is none; names the nearest.
    """
    if name in mixes():
        return mixes()[name]
    close = nearest(name, mixes())
    raise TraceError(f"no mix is called {name!r}", allowed=mixes(), hint=f"did you mean {close!r}?" if close else None)

"""Sets of primitives or tensors as bit masks."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["bits"]


def bits(mask: int) -> Iterator[int]:
    """Positions of the set bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low

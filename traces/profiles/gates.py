"""Kernel times of quantum gates from the fact tables in ``traces/circuits`` (``source = "gates"``).

Operations: ``fusion_kernel(qubits)``, ``tile_kernel(qubits)``, ``tile_gate(gate)``, each at ``amplitudes`` of one shard
and ``amplitude_bytes``. A table holds one shard size; others are in proportion to the bytes of the shard, and say so
(extrapolated).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from workbench.costs import Cost, Provenance, Source
from workbench.errors import MissingProfile, SpecError, nearest
from workbench.spec import about, parse, read_toml, spec

__all__ = ["GateTable", "GateTableCosts", "Options", "open"]

_FOLDER = Path(__file__).parent.parent / "circuits"


@spec
class Options:
    """Options of ``[costs] source = "gates"``."""

    table: str = about("Name of a fact table of kernel times.", default="a100-atlas")


@spec
class GateTable:
    """Kernel times of one device for one shard size."""

    name: str = about("Name of the table.")
    device: str = about("Device in the hardware catalogue.")
    origin: str = about("Who published it.")
    licence: str | None = about("Licence of the source, SPDX id.", default=None)
    amplitudes: int = about("Amplitudes of the shard the times hold for.")
    amplitude_bytes: int = about("Bytes of one amplitude.")
    fusion_s: tuple[float, ...] = about("Seconds of a fused kernel by number of qubits, from 0.")
    tile_s: float = about("Seconds of a tile kernel without gates.")
    tile_gate_s: float = about("Seconds of one gate inside a tile kernel.")


class GateTableCosts:
    """A cost model over one table."""

    def __init__(self, table: GateTable) -> None:
        self.table = table

    def cost(self, op: str, **point: float | int | str) -> Cost:
        """Seconds of a kernel or gate.

        Raises:
            MissingProfile: another operation, or a fusion kernel larger than the table's.
        """
        table = self.table
        size = int(point.get("amplitudes", table.amplitudes)), int(point.get("amplitude_bytes", table.amplitude_bytes))
        scale = size[0] * size[1] / (table.amplitudes * table.amplitude_bytes)
        source: Source = "measured" if size == (table.amplitudes, table.amplitude_bytes) else "extrapolated"
        if op == "tile_kernel":
            return Cost(table.tile_s * scale, source)
        if op == "tile_gate":
            return Cost(table.tile_gate_s * scale, source)
        qubits = int(point.get("qubits", -1))
        if op == "fusion_kernel" and 0 <= qubits < len(table.fusion_s):
            return Cost(table.fusion_s[qubits] * scale, source)
        raise MissingProfile(f"table {table.name} has no such time", keys=[f"{op}({dict(point)})"],
                             allowed=[f"fusion_kernel of 0 to {len(table.fusion_s) - 1} qubits", "tile_kernel",
                                      "tile_gate"])

    def provenance(self) -> Mapping[str, Provenance]:
        """The one table behind every answer."""
        table = self.table
        known = Provenance(id=table.name, origin=table.origin, device=table.device, licence=table.licence)
        return dict.fromkeys(("fusion_kernel", "tile_kernel", "tile_gate"), known)


def open(options: Options) -> GateTableCosts:
    """The named table.

    Raises:
        SpecError: there is none of that name.
    """
    known = sorted(path.stem for path in _FOLDER.glob("*.toml"))
    if options.table not in known:
        close = nearest(options.table, known)
        raise SpecError(f"no table of kernel times is called {options.table!r}", where="costs.table", allowed=known,
                        hint=f"did you mean {close!r}?" if close else None)
    path = _FOLDER / f"{options.table}.toml"
    return GateTableCosts(parse(GateTable, read_toml(path), where=str(path)))

"""Kernel tables from cost models, and cost models from kernel tables.

A cost model answers three operations at ``amplitudes`` (of one shard) and ``amplitude_bytes``:
``fusion_kernel(qubits)``; ``tile_kernel(qubits)``, the base of a tile kernel with that many active qubits that are not
pinned; ``tile_gate(gate)``, one gate of a class (``problem.gate_class``) inside a tile, class ``*`` for any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from planners.circuit.ir import Circuit
from planners.circuit.problem import KernelLimits, KernelTable, gate_class
from workbench.costs import SOURCES, Axis, CostModel, CountedCosts, ProfileTable, Provenance, Source
from workbench.errors import MissingProfile

__all__ = ["kernel_table", "profile_tables"]


def kernel_table(circuit: Circuit, costs: CostModel, *, limits: KernelLimits, local_qubits: int,
                 amplitude_bytes: int) -> tuple[KernelTable, dict[Source, float]]:
    """The kernel table a cost model gives for a circuit's gates, and the shares of its entries by source.

    Raises:
        MissingProfile: the model does not know an operation; lists what is missing.
    """
    counted = CountedCosts(costs)
    where = {"amplitudes": 1 << local_qubits, "amplitude_bytes": amplitude_bytes}
    missing: list[str] = []

    def ask(op: str, **point: int | str) -> float:
        try:
            return counted.cost(op, **point, **where).seconds
        except MissingProfile:
            missing.append(f"{op}({', '.join(f'{k}={v}' for k, v in {**point, **where}.items())})")
            return 0.0

    fusion = (0.0, *(ask("fusion_kernel", qubits=m) for m in range(1, limits.fusion_qubits + 1)))
    tile = tuple(ask("tile_kernel", qubits=a) for a in range(limits.tile_qubits - limits.pinned_qubits + 1))
    gates = {}
    for name in sorted({gate_class(gate) for gate in circuit.gates}):
        try:
            gates[name] = counted.cost("tile_gate", gate=name, **where).seconds
        except MissingProfile:
            gates[name] = ask("tile_gate", gate="*")
    if missing:
        raise MissingProfile("the kernels of this circuit have no measured times", keys=missing, where="costs",
                             hint='[costs] source = "gates", table = "a100-atlas" holds published ones',
                             next_command="wb profile circuit")
    used = [source for source in SOURCES if counted.answers[source]]
    origin = "; ".join(dict.fromkeys(p.origin for p in costs.provenance().values()))
    device = ", ".join(dict.fromkeys(p.device for p in costs.provenance().values()))
    table = KernelTable(name=device or "given", fusion_s=fusion, tile_s=tile, tile_gate_s=gates,
                        tile_qubits=limits.tile_qubits, pinned_qubits=limits.pinned_qubits, source=used[-1],
                        origin=origin)
    return table, counted.shares()


def profile_tables(table: KernelTable, *, local_qubits: Iterable[int], amplitude_bytes: int, measured_at: int,
                   provenance: Provenance) -> list[ProfileTable]:
    """A kernel table as profile tables, for ``workbench.costfiles``: times grow with the amplitudes of a shard.

    Args:
        table: seconds over a shard of 2^measured_at amplitudes.
        local_qubits: shard sizes to write down (two at least, so that others extrapolate in proportion).
        amplitude_bytes: bytes of an amplitude when it was measured.
        measured_at: local qubits of the shard the table holds for.
        provenance: who measured it, when, on what.
    """
    sizes = [1 << n for n in local_qubits]
    share = [size / (1 << measured_at) for size in sizes]
    keys = {"amplitude_bytes": amplitude_bytes}

    def made(op: str, names: dict[str, int | str], axes: tuple[Axis, ...], rows: Sequence[tuple[float, ...]]
             ) -> ProfileTable:
        data = np.array(rows)
        return ProfileTable(op=op, keys={**keys, **names}, axes=axes, points=data[:, :-1], seconds=data[:, -1],
                            provenance=provenance)

    by_size = (Axis("qubits"), Axis("amplitudes"))
    fusion = [(float(m), float(size), s * part) for m, s in enumerate(table.fusion_s) if s > 0
              for size, part in zip(sizes, share, strict=True)]
    tile = [(float(a), float(size), s * part) for a in range(table.tile_qubits - table.pinned_qubits + 1)
            for s in [table.tile_base_s(a)] for size, part in zip(sizes, share, strict=True)]
    gates = [made("tile_gate", {"gate": name}, (Axis("amplitudes"),),
                  [(float(size), s * part) for size, part in zip(sizes, share, strict=True)])
             for name, s in table.tile_gate_s.items() if s > 0]
    return [made("fusion_kernel", {}, by_size, fusion), made("tile_kernel", {}, by_size, tile), *gates]

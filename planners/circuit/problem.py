"""What a circuit study is asked and what it answers: problem, kernel cost table, plan, and the move between layouts.

Paper: Atlas, arXiv 2408.09055. Legend: n qubits; L, R, G = local, regional, global qubits (L+R+G = n); physical bit
positions 0..L-1 are local (index inside a shard, position 0 least significant), L..L+R-1 regional (which device of the
node), L+R..n-1 global (which node). A layout is a tuple: ``layout[p]`` is the wire held by position p.

How an executor uses a plan: ``circuit = planned_circuit(problem, plan)``; every gate index in the plan counts in
``circuit.gates``. For each stage: bring the state to ``stage.layout`` (``move``), run ``stage.kernels`` in order, and
the gates of each in order, specialised to the values of the shard's non-local qubits. Logical qubit q of the user's
circuit ends on wire ``circuit.output[q]`` (or q when absent), and that wire lies where the last stage's layout says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from planners.circuit.ir import Circuit, Gate
from planners.circuit.outputs import Outputs
from workbench.costs import Source as CostSource
from workbench.errors import MissingProfile, SpecError
from workbench.plan import Certificate
from workbench.spec import about, spec

__all__ = ["STATE_SHARE", "Kernel", "KernelKind", "KernelLimits", "KernelTable", "Machine", "Move", "Plan", "Problem",
           "Proof", "Source", "Stage", "exchanged_fraction", "gate_class", "move"]

KernelKind = Literal["fusion", "tile"]
STATE_SHARE = 7 / 8
"""Part of the memory limit that amplitudes may take."""


@spec
class Source:
    """Where the circuit comes from: exactly one of ``family``, ``file``, ``trace``, ``inline``."""

    family: str | None = about("Name of a seeded generator, e.g. 'qft'.", default=None)
    qubits: int | None = about("Qubits of the generated circuit.", default=None)
    layers: int | None = about("Layers or repetitions of the generated circuit; absent takes the family's own.",
                               default=None)
    seed: int = about("Seed of the generator's angles, edges and random gates.", default=0)
    file: str | None = about("Path of an OpenQASM 2 or 3 file, plain or gzip.", default=None)
    trace: str | None = about("Name of a public circuit, e.g. 'qasm-qft_n28' (wb traces list).", default=None)
    inline: Circuit | None = about("The circuit itself, as its library adapter gave it.", default=None)

    def __post_init__(self) -> None:
        given = [name for name in ("family", "file", "trace", "inline") if getattr(self, name) is not None]
        if len(given) != 1:
            raise SpecError(f"a circuit comes from exactly one place, not {len(given)}", where="circuit",
                            allowed=["family", "file", "trace", "inline"])
        if self.family is not None and self.qubits is None:
            raise SpecError("a generated circuit needs a number of qubits", where="circuit.qubits")


@spec
class Machine:
    """Shape of the machine: 2^local amplitudes a shard, 2^regional shards a node, 2^(n - local - regional) nodes."""

    local_qubits: int = about("Qubits inside one shard, L.")
    regional_qubits: int = about("Qubits that select the device of a node, at most R; cut to n - L.", default=0)
    global_cost: float = about("Weight of a qubit that becomes global against one that becomes local.", default=3.0)
    amplitude_bytes: Literal[8, 16] = about("Bytes of one amplitude: 8 single, 16 double precision.", default=16)
    regional_bytes_per_s: float | None = about("Send rate of one device inside its node.", default=None)
    global_bytes_per_s: float | None = about("Send rate of one device out of its node.", default=None)
    memory_bytes: float | None = about(
        "Memory for amplitudes where the plan runs: no shard exceeds 7/8 of it (the rest is for tiles and buffers), "
        "and a larger state goes to a file. Absent: shards as given, and four fifths of what is free.", default=None)

    def __post_init__(self) -> None:
        if self.local_qubits < 1 or self.regional_qubits < 0 or self.global_cost < 0:
            raise SpecError("a machine has at least one local qubit and no negative sizes or weights", where="machine")
        if self.memory_bytes is not None and self.memory_bytes * STATE_SHARE < 2 * self.amplitude_bytes:
            raise SpecError(f"{self.memory_bytes:g} bytes hold no two amplitudes", where="machine.memory_bytes")

    def shard_qubits(self, qubits: int) -> int:
        """Local qubits of a circuit: L, cut to the circuit and to what ``memory_bytes`` holds."""
        local = min(self.local_qubits, qubits)
        if self.memory_bytes is None:
            return local
        return min(local, int(self.memory_bytes * STATE_SHARE / self.amplitude_bytes).bit_length() - 1)


@spec
class KernelTable:
    """Predicted seconds of one kernel over one shard of 2^L amplitudes.

    Fusion on m local qubits: ``fusion_s[m]``. Tile with a active qubits that are not pinned:
    ``tile_s[min(a, len - 1)]`` plus ``tile_gate_s`` of each gate's class (``"*"`` where the class has no entry).
    """

    name: str = about("Name of the table, e.g. 'a100-published'.")
    fusion_s: tuple[float, ...] = about("Seconds of a fused dense kernel by number of local qubits, from 0.")
    tile_s: tuple[float, ...] = about("Base seconds of a tile kernel by number of active qubits not pinned, from 0.")
    tile_gate_s: Mapping[str, float] = about("Seconds of one gate inside a tile kernel, by class; '*' is the rest.")
    tile_qubits: int = about("Qubits of a tile: 2^this amplitudes stay on chip.", default=10)
    pinned_qubits: int = about("Lowest physical positions that are always in the tile (cache line).", default=3)
    source: CostSource = about("How the least certain value is known.", default="measured")
    origin: str = about("Who measured them, on what.", default="")

    def gate_s(self, gate: Gate) -> float:
        """Seconds of one gate inside a tile kernel.

        Raises:
            MissingProfile: the table prices neither the gate's class nor ``*``.
        """
        name = gate_class(gate)
        for key in (name, "*"):
            if key in self.tile_gate_s:
                return self.tile_gate_s[key]
        raise MissingProfile(f"table {self.name} has no time for gates of class {name}", keys=[f"tile_gate({name})"],
                             allowed=self.tile_gate_s)

    def tile_base_s(self, free_qubits: int) -> float:
        """Base seconds of a tile kernel with ``free_qubits`` active qubits outside the pinned positions."""
        return self.tile_s[min(free_qubits, len(self.tile_s) - 1)]


def gate_class(gate: Gate) -> str:
    """Class in a kernel table: the matrix's kind and how many qubits it changes, e.g. ``diagonal2``, ``permutation1``.

    The number counts all qubits of a diagonal gate, and those that are not block-diagonal of any other gate (a CX is
    ``permutation1``, a controlled RX ``controlled1``, an SU(4) ``dense2``).
    """
    shape = gate.structure
    count = len(gate.qubits) if shape.kind == "diagonal" else len(shape.mixing) + len(shape.flips)
    return f"{shape.kind}{count}"


@spec
class KernelLimits:
    """What the executor's kernels can hold."""

    fusion_qubits: int = about("Most qubits of a fusion kernel.", default=7)
    tile_qubits: int = about("Qubits of a tile: 2^this amplitudes stay on chip.", default=10)
    pinned_qubits: int = about("Lowest physical positions that are always in the tile (cache line).", default=3)

    def __post_init__(self) -> None:
        if self.fusion_qubits < 1 or not 0 <= self.pinned_qubits < self.tile_qubits:
            raise SpecError("kernels need at least one qubit, and fewer pinned than tile qubits", where="kernels")


@spec
class Problem:
    """Partition a circuit into stages and kernels for a machine."""

    circuit: Source = about("The circuit.")
    machine: Machine = about("The machine's shape.")
    kernels: KernelLimits = about("Sizes of kernels.", default_factory=KernelLimits)
    swaps: Literal["relabel", "keep"] = about(
        "relabel: SWAP gates become renamed wires; keep: they run as gates on local qubits.", default="relabel")
    outputs: Outputs = about("What a run reads from the final state.", default_factory=Outputs)


@spec
class Kernel:
    """Gates that run together on every shard.

    ``qubits``: for ``fusion`` the local wires its gates touch; for ``tile`` the active wires: every local wire that a
    gate of it mixes or flips (pinned positions are in each tile and need not be listed; diagonal wires may lie outside,
    where they hold one value a tile). Sorted by physical position. No local wire at all: a fusion kernel of none.
    """

    kind: KernelKind = about("fusion: one dense matrix; tile: gates one by one on a block that stays on chip.")
    qubits: tuple[int, ...] = about("Local wires the kernel works on, by physical position, low first.")
    gates: tuple[int, ...] = about("Indices into the planned circuit, in execution order.")
    cost_s: float = about("Predicted seconds over one shard.")


@spec
class Stage:
    """A run of kernels under one layout."""

    local: tuple[int, ...] = about("Wires at physical positions 0..L-1, low first.")
    regional: tuple[int, ...] = about("Wires at the next R positions.")
    global_: tuple[int, ...] = about("Wires at the highest G positions.")
    kernels: tuple[Kernel, ...] = about("Kernels in execution order.")

    @property
    def layout(self) -> tuple[int, ...]:
        """Wire at each physical position."""
        return self.local + self.regional + self.global_

    @property
    def gates(self) -> tuple[int, ...]:
        """Gate indices in execution order."""
        return tuple(g for kernel in self.kernels for g in kernel.gates)


@spec
class Proof:
    """A second or third objective of a plan, and what was proven about it given the objectives before it."""

    objective: float = about("The plan's value.")
    bound: float | None = about("Proven lower bound; absent if none was proven.", default=None)
    unit: str = about("Unit of both.")
    status: Literal["optimal", "feasible", "heuristic"] = about("As in a certificate.")
    solver: str | None = about("Which solver closed the gap; absent where bounds met without one.", default=None)


@spec
class Plan:
    """Stages and kernels, with what was proven: fewest stages, then least communication, then kernel time."""

    stages: tuple[Stage, ...] = about("Stages in order; stage 0's layout is free, transitions = stages - 1.")
    merged: tuple[tuple[int, ...], ...] = about(
        "Groups of the circuit's gates that the plan replaces by one gate each (see planned_circuit).", default=())
    table: KernelTable = about("The kernel costs the plan was made with.")
    certificate: Certificate = about("Number of stages.")
    communication: Proof = about("Weighted qubit moves over all transitions, for this number of stages.")
    kernel_time: Proof = about("Predicted seconds of all kernels of one shard, for these stages.")
    sources: Mapping[CostSource, float] = about("Share of the kernel costs by how they are known; sums to 1.",
                                                default_factory=dict)


class Move(NamedTuple):
    """One layout change in three steps; positions are physical.

    1. ``local[p]`` = new local position of the bit at local position p (a permutation inside each shard);
    2. ``exchange``: pairs (local position, non-local position) whose bits trade places: an all-to-all among the
       2^m shards that differ in those m non-local bits, each keeping 2^-m of its amplitudes;
    3. ``shards[i]`` = new non-local position L + shards[i] of the bit at non-local position L + i (whole shards move).
    """

    local: tuple[int, ...]
    exchange: tuple[tuple[int, int], ...]
    shards: tuple[int, ...]


def move(before: tuple[int, ...], after: tuple[int, ...], *, local_qubits: int) -> Move:
    """The steps that turn layout ``before`` into ``after`` (tuples: wire at each physical position)."""
    target = {wire: p for p, wire in enumerate(after)}
    goal = [target[wire] for wire in before]
    leaving = [p for p in range(local_qubits) if goal[p] >= local_qubits]
    entering = [p for p in range(local_qubits, len(before)) if goal[p] < local_qubits]
    # the local slot that partner p fills; a leaving bit that wants p's own place waits there, so no shard moves for it
    slot = {p: goal[p] for p in entering}
    waits = {p: slot.pop(goal[p]) for p in leaving if goal[p] in slot}
    spare = iter(sorted(slot.values()))
    waits.update({p: next(spare) for p in leaving if p not in waits})
    local = tuple(waits[p] if p in waits else goal[p] for p in range(local_qubits))
    arrives = {waits[p]: goal[p] for p in leaving}
    shards = tuple((arrives[goal[p]] if goal[p] < local_qubits else goal[p]) - local_qubits
                   for p in range(local_qubits, len(before)))
    return Move(local, tuple(sorted((goal[p], p) for p in entering)), shards)


def exchanged_fraction(bits: int) -> float:
    """Share of each shard that leaves it when ``bits`` positions are exchanged: 1 - 2^-bits."""
    return 1.0 - 0.5**bits

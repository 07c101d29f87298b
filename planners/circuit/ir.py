"""Quantum circuits as values: gates with matrices, and what the matrices alone say about locality and order.

A gate is *insular* on a qubit when that qubit's output value is a function of its input value (Atlas, arXiv 2408.09055,
section on insular qubits, there for one-qubit gates and controls; here for any matrix): its block off the diagonal
vanishes (``diagonal``: controls, phases) or its block on the diagonal does (``flip``: X, Y). A rank or shard that
holds one value of an insular qubit applies the gate without communication (``specialise``).

Conventions: qubit 0 is the least significant bit of a basis state; ``gate.qubits[0]`` is the least significant bit of
a row or column of ``gate.matrix``. Legend: k = qubits of a gate, U = its 2^k x 2^k matrix, U[row, col] = <row|U|col>.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from planners.circuit.gateset import base_matrix, base_qubits
from workbench.errors import SpecError
from workbench.spec import about, spec

__all__ = ["TOLERANCE", "Axis", "Circuit", "Gate", "GateKind", "Structure", "axes", "commute", "embed",
           "from_matrix", "product_of", "specialise", "structure_of", "without_swaps"]

TOLERANCE = 1e-10
"""Matrix entries below this are zero: far above double rounding of a product of gates, far below any stated angle."""

GateKind = Literal["diagonal", "permutation", "controlled", "dense"]
Axis = Literal["i", "x", "y", "z", "none"]
"""How a gate acts on one qubit: trivially, as a sum of I and one Pauli only, or neither (``none``)."""
Matrix = npt.NDArray[np.complex128]


class Structure(NamedTuple):
    """What a gate's matrix says. Every tuple of positions counts places in ``gate.qubits``, ascending.

    ``kind``: ``diagonal`` (only the diagonal is non-zero), else ``permutation`` (one non-zero entry a row: X, CX, SWAP,
    phases allowed), else ``controlled`` (identity unless some qubits hold given values), else ``dense``.
    """

    kind: GateKind
    diagonal: tuple[int, ...]
    """Positions whose value the gate never changes (block-diagonal: controls, phases)."""
    flips: tuple[int, ...]
    """Positions whose value the gate always inverts (block-anti-diagonal: X, Y)."""
    mixing: tuple[int, ...]
    """Non-insular positions: neither of the above; these must be local."""
    controls: tuple[tuple[int, int], ...]
    """(position, value): the gate is the identity unless that qubit holds that value; a subset of ``diagonal``."""

    @property
    def insular(self) -> tuple[int, ...]:
        """Positions that need not be local."""
        return tuple(sorted(self.diagonal + self.flips))


@spec
class Gate:
    """One unitary gate on named qubits.

    ``controls`` are extra leading control qubits: ``Gate(name="rx", qubits=(4, 2, 0), params=(t,), controls=(1, 0))``
    turns qubit 0 when qubit 4 holds 1 and qubit 2 holds 0. ``name`` is one of ``gateset.NAMES`` or ``unitary``.
    """

    name: str = about("Name in the gate set, or 'unitary' for a given matrix.")
    qubits: tuple[int, ...] = about("Logical qubits; the first is the matrix's least significant bit.")
    params: tuple[float, ...] = about("Angles in radians, in the gate's order.", default=())
    controls: tuple[int, ...] = about("Values (0 or 1) that extra leading control qubits must hold.", default=())
    unitary: tuple[tuple[float, float], ...] | None = about(
        "Row-major (real, imaginary) entries of a 'unitary' gate; absent for named gates.", default=None)

    @property
    def matrix(self) -> Matrix:
        """Unitary, shape (2^k, 2^k), complex128, read-only (shared between equal gates).

        Raises:
            SpecError: unknown name, wrong number of qubits or parameters, or a matrix that is not unitary.
        """
        return _matrix(self.name, self.params, self.controls, self.unitary, len(self.qubits))

    @property
    def structure(self) -> Structure:
        """Classes and insular positions, derived from the matrix alone."""
        return _structure(self.name, self.params, self.controls, self.unitary, len(self.qubits))

    @property
    def mixing(self) -> tuple[int, ...]:
        """Non-insular qubits: they must be local in the gate's stage."""
        return tuple(self.qubits[p] for p in self.structure.mixing)

    @property
    def insular(self) -> tuple[int, ...]:
        """Insular qubits: they may lie anywhere."""
        return tuple(self.qubits[p] for p in self.structure.insular)


@spec
class Circuit:
    """A sequence of gates on ``qubits`` qubits, started in |0...0>."""

    name: str = about("What people call it, e.g. 'qft_n28'.")
    qubits: int = about("Number of qubits n.")
    gates: tuple[Gate, ...] = about("Gates in program order.")
    output: tuple[int, ...] | None = about(
        "output[q] = wire that holds logical qubit q at the end (swaps taken out); absent means wire q.", default=None)

    def __post_init__(self) -> None:
        for index, gate in enumerate(self.gates):
            if not gate.qubits:
                raise SpecError(f"gate {gate.name} acts on no qubit", where=f"gates.{index}",
                                hint="fold a global phase into a one-qubit gate")
            if len(set(gate.qubits)) != len(gate.qubits):
                raise SpecError(f"gate {gate.name} names a qubit twice: {gate.qubits}", where=f"gates.{index}")
            if any(not 0 <= q < self.qubits for q in gate.qubits):
                raise SpecError(f"gate {gate.name} on {gate.qubits} leaves the circuit's qubits",
                                where=f"gates.{index}", allowed=[f"0 to {self.qubits - 1}"])
        if self.output is not None and sorted(self.output) != list(range(self.qubits)):
            raise SpecError("output is not a permutation of the qubits", where="output")


def from_matrix(matrix: npt.ArrayLike, qubits: tuple[int, ...]) -> Gate:
    """A ``unitary`` gate from a (2^k, 2^k) matrix."""
    flat = np.asarray(matrix, dtype=np.complex128).ravel()
    return Gate(name="unitary", qubits=qubits, unitary=tuple((float(z.real), float(z.imag)) for z in flat))


@lru_cache(maxsize=65536)
def _matrix(name: str, params: tuple[float, ...], controls: tuple[int, ...],
            unitary: tuple[tuple[float, float], ...] | None, count: int) -> Matrix:
    if name == "unitary":
        matrix = _given_matrix(unitary, name)
    else:
        expected = base_qubits(name)
        if expected != count - len(controls):
            raise SpecError(f"gate {name} acts on {expected} qubits, not {count - len(controls)}")
        matrix = base_matrix(name, params)
    for value in reversed(controls):
        matrix = _controlled(matrix, value)
    if matrix.shape != (1 << count, 1 << count):
        raise SpecError(f"a gate on {count} qubits needs a {1 << count} x {1 << count} matrix, not {matrix.shape}")
    matrix.flags.writeable = False
    return matrix


def _given_matrix(unitary: tuple[tuple[float, float], ...] | None, name: str) -> Matrix:
    if unitary is None:
        raise SpecError(f"gate {name!r} carries no matrix", hint="fill the field 'unitary'")
    side = math.isqrt(len(unitary))
    if side * side != len(unitary) or side & (side - 1):
        raise SpecError(f"a matrix of {len(unitary)} entries is not 2^k x 2^k")
    matrix = np.array([complex(re, im) for re, im in unitary]).reshape(side, side)
    if not np.all(np.abs(matrix @ matrix.conj().T - _eye(side)) <= 1e-8 + 1e-5 * _eye(side).real):
        raise SpecError("the given matrix is not unitary")
    return matrix


def _controlled(matrix: Matrix, value: int) -> Matrix:
    """Add a control qubit as the new least significant bit."""
    if value not in (0, 1):
        raise SpecError(f"a control value is 0 or 1, not {value}")
    side = matrix.shape[0]
    result = np.eye(2 * side, dtype=np.complex128)
    result[value::2, value::2] = matrix
    return result


@lru_cache(maxsize=65536)
def _structure(name: str, params: tuple[float, ...], controls: tuple[int, ...],
               unitary: tuple[tuple[float, float], ...] | None, count: int) -> Structure:
    return structure_of(_matrix(name, params, controls, unitary, count))


def structure_of(matrix: Matrix) -> Structure:
    """Classify a unitary of shape (2^k, 2^k)."""
    filled, differs = np.abs(matrix) > TOLERANCE, np.abs(matrix - _eye(len(matrix))) > TOLERANCE
    return _structure_of_pattern(len(matrix), filled.tobytes(), differs.tobytes())


@lru_cache
def _eye(side: int) -> Matrix:
    return np.eye(side, dtype=np.complex128)


@lru_cache(maxsize=65536)
def _structure_of_pattern(side: int, filled: bytes, differs: bytes) -> Structure:
    """From where the matrix is not zero and where it is not the identity, row-major: gates of one name share these."""
    count = side.bit_length() - 1
    rows, columns = np.nonzero(np.frombuffer(filled, dtype=np.bool_).reshape(side, side))
    changed = rows ^ columns
    diagonal = tuple(p for p in range(count) if not np.any(changed >> p & 1))
    flips = tuple(p for p in range(count) if np.all(changed >> p & 1))
    mixing = tuple(p for p in range(count) if p not in diagonal and p not in flips)
    index = np.arange(side)
    identity = ~np.frombuffer(differs, dtype=np.bool_).reshape(side, side)
    idle = np.all(identity, axis=1) & np.all(identity, axis=0)
    controls = tuple((p, v) for p in diagonal for v in (0, 1) if np.all(idle[(index >> p & 1) != v]))
    kind: GateKind
    if len(diagonal) == count:
        kind = "diagonal"
    elif len(rows) == side:
        kind = "permutation"
    else:
        kind = "controlled" if controls else "dense"
    # an identity is controlled by everything; that would claim two values for one qubit
    return Structure(kind=kind, diagonal=diagonal, flips=flips, mixing=mixing,
                     controls=() if bool(np.all(identity)) else controls)


def specialise(matrix: Matrix, fixed: Mapping[int, int]) -> tuple[Matrix, dict[int, int]]:
    """The gate that a holder of fixed values of insular qubits applies.

    Args:
        matrix: shape (2^k, 2^k).
        fixed: position -> value held before the gate; every position must be insular.

    Returns:
        The matrix on the other positions in ascending order, shape (2^(k-f), 2^(k-f)), and the values held after the
        gate (inverted at ``flips``: the shard changes its label).

    Raises:
        SpecError: a fixed position is not insular.
    """
    shape = structure_of(matrix)
    held = dict(fixed)
    for p in fixed:
        if p in shape.mixing:
            raise SpecError(f"position {p} of the gate mixes both values: it must be local")
        if p in shape.flips:
            held[p] = 1 - held[p]
    count = matrix.shape[0].bit_length() - 1
    free = [p for p in range(count) if p not in fixed]
    inner = np.arange(1 << len(free))
    spread = sum(((inner >> i & 1) << p for i, p in enumerate(free)), np.zeros_like(inner))
    before = spread | sum(v << p for p, v in fixed.items())
    after = spread | sum(v << p for p, v in held.items())
    return np.ascontiguousarray(matrix[np.ix_(after, before)]), held


def embed(matrix: Matrix, positions: tuple[int, ...], count: int) -> Matrix:
    """The matrix on ``count`` qubits, shape (2^count, 2^count), of a gate whose i-th qubit sits at ``positions[i]``."""
    side = 1 << count
    index = np.arange(side)
    mask = sum(1 << p for p in positions)
    inner = sum(((index >> p & 1) << i for i, p in enumerate(positions)), np.zeros_like(index))
    same_rest = (index[:, None] & ~mask) == (index[None, :] & ~mask)
    return np.where(same_rest, matrix[inner[:, None], inner[None, :]], 0.0)


def product_of(gates: Sequence[Gate]) -> Gate:
    """One gate with the effect of ``gates`` in order."""
    qubits = tuple(sorted({q for gate in gates for q in gate.qubits}))
    place = {q: i for i, q in enumerate(qubits)}
    matrix = np.eye(1 << len(qubits), dtype=np.complex128)
    for gate in gates:
        matrix = embed(gate.matrix, tuple(place[q] for q in gate.qubits), len(qubits)) @ matrix
    return from_matrix(matrix, qubits)


def commute(first: Gate, second: Gate) -> bool:
    """Whether the two gates commute, decided on their matrices (a cached test a pattern of shared qubits)."""
    if not set(first.qubits) & set(second.qubits):
        return True
    place = {q: i for i, q in enumerate(dict.fromkeys(first.qubits + second.qubits))}
    return _commute(_key(first), _key(second), tuple(place[q] for q in second.qubits))


def _key(gate: Gate) -> tuple[Any, ...]:
    return (gate.name, gate.params, gate.controls, gate.unitary, len(gate.qubits))


@lru_cache(maxsize=1 << 20)
def _commute(first: tuple[Any, ...], second: tuple[Any, ...], places: tuple[int, ...]) -> bool:
    count_first = first[-1]
    shared = [(p, i) for i, p in enumerate(places) if p < count_first]
    left, right = _structure(*first), _structure(*second)
    if all(p in left.diagonal and i in right.diagonal for p, i in shared):
        return True
    count = max(count_first, 1 + max(places))
    a = embed(_matrix(*first), tuple(range(count_first)), count)
    b = embed(_matrix(*second), places, count)
    return bool(np.max(np.abs(a @ b - b @ a)) <= 1e-9)


def axes(gate: Gate) -> tuple[Axis, ...]:
    """The axis of each position; gates whose axes agree (and are not ``none``) on every shared qubit commute."""
    return _axes(*_key(gate))


@lru_cache(maxsize=65536)
def _axes(name: str, params: tuple[float, ...], controls: tuple[int, ...],
          unitary: tuple[tuple[float, float], ...] | None, count: int) -> tuple[Axis, ...]:
    matrix = _matrix(name, params, controls, unitary, count)
    return tuple(_axis(matrix, p, count) for p in range(count))


_TO_Z: tuple[tuple[Axis, Matrix], ...] = (
    ("x", np.array([[1, 1], [1, -1]], dtype=np.complex128) / np.sqrt(2)),
    ("y", np.array([[1, -1j], [1, 1j]], dtype=np.complex128) / np.sqrt(2)),
)
"""Basis changes U with U P U^-1 = Z."""


def _axis(matrix: Matrix, position: int, count: int) -> Axis:
    def keeps(candidate: Matrix) -> bool:
        parts = candidate.reshape((1 << (count - 1 - position), 2, 1 << position) * 2)
        return bool(np.all(np.abs(parts[:, 0, :, :, 1]) <= TOLERANCE) and
                    np.all(np.abs(parts[:, 1, :, :, 0]) <= TOLERANCE))

    found: list[Axis] = ["z"] if keeps(matrix) else []
    for name, basis in _TO_Z:
        change = embed(basis, (position,), count)
        if keeps(change @ matrix @ change.conj().T):
            found.append(name)
    if len(found) > 1:
        return "i"
    return found[0] if found else "none"


def without_swaps(circuit: Circuit) -> Circuit:
    """The same circuit with each SWAP taken out by renaming the wires behind it; ``output`` says where qubits end."""
    wire = list(range(circuit.qubits))
    gates = []
    for gate in circuit.gates:
        if gate.name == "swap" and not gate.controls:
            a, b = gate.qubits
            wire[a], wire[b] = wire[b], wire[a]
            continue
        gates.append(Gate(name=gate.name, qubits=tuple(wire[q] for q in gate.qubits), params=gate.params,
                          controls=gate.controls, unitary=gate.unitary))
    before = circuit.output or tuple(range(circuit.qubits))
    output = tuple(wire[w] for w in before)
    return Circuit(name=circuit.name, qubits=circuit.qubits, gates=tuple(gates),
                   output=None if output == tuple(range(circuit.qubits)) else output)

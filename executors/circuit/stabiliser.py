"""Exact amplitudes of Clifford circuits of any size, as sums over paths: no state vector and no tile anywhere.

Every Hadamard opens a path variable; other gates act on affine forms of the variables and on a phase polynomial:
    state = 2^(-h/2) sum_y i^(sum_i L_i y_i + 2 sum_(i<j) Q_ij y_i y_j) |f_0(y), f_1(y), ...>     (y_0 = 1)
An amplitude fixes the forms, and what remains is a Gauss sum, done one variable at a time (Dehaene and De Moor,
quant-ph/0304125, give such states as quadratic forms). Legend: h Hadamards, a form is a bit mask of variables with the
constant in bit 0, L in Z4, Q a symmetric bit matrix kept as row masks.
"""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from planners.circuit import Circuit, Gate

__all__ = ["PathSum", "path_sum"]

Matrix = npt.NDArray[np.complex128]
CLOSE = 1e-9
_H: Matrix = np.array([[1, 1], [1, -1]], dtype=np.complex128) / math.sqrt(2)
_S: Matrix = np.diag([1, 1j]).astype(np.complex128)


@dataclass(slots=True)
class _Phases:
    """i^(linear and quadratic terms) of path variables; ``phase``: radians, ``halvings``: factors 2^(-1/2)."""

    linear: list[int] = field(default_factory=lambda: [0])
    rows: list[int] = field(default_factory=lambda: [0])
    phase: float = 0.0
    halvings: int = 0

    def variable(self) -> int:
        """A new variable's mask."""
        self.linear.append(0)
        self.rows.append(0)
        return 1 << (len(self.linear) - 1)

    def turn(self, form: int, quarters: int) -> None:
        """Multiply by i^(quarters * form): a sum modulo 2 is a sum minus twice its pairs, modulo 4."""
        quarters %= 4
        for i in _members(form):
            self.linear[i] = (self.linear[i] + quarters) % 4
            if quarters & 1:
                self.rows[i] ^= form & ~(1 << i)

    def cross(self, a: int, b: int) -> None:
        """Multiply by (-1)^(a * b)."""
        for i in _members(a):
            self._pair(i, b)

    def _pair(self, i: int, form: int) -> None:
        for j in _members(form):
            if i == j:
                self.linear[i] = (self.linear[i] + 2) % 4
            else:
                self.rows[i] ^= 1 << j
                self.rows[j] ^= 1 << i


@dataclass(slots=True)
class PathSum:
    """A Clifford circuit's state. ``forms[w]``: value of wire w."""

    forms: list[int]
    terms: _Phases = field(default_factory=_Phases)

    def amplitude(self, wires: int) -> complex:
        """Amplitude of the basis state whose bit w is the value of wire w."""
        count = len(self.terms.linear)
        values = _solutions([form ^ (wires >> w & 1) for w, form in enumerate(self.forms)], count)
        if values is None:
            return 0j
        names = sorted({i for form in values for i in _members(form)} - {0})
        rest = _Phases(linear=[0] * (1 + len(names)), rows=[0] * (1 + len(names)))
        place = {0: 1, **{name: 1 << (k + 1) for k, name in enumerate(names)}}
        short = [sum(place[i] for i in _members(form)) for form in values]
        for i, form in enumerate(short):
            rest.turn(form, self.terms.linear[i])
            for j in _members(self.terms.rows[i] >> (i + 1) << (i + 1)):
                rest.cross(form, short[j])
        return _gauss_sum(rest) * cmath.rect(2.0 ** (-self.terms.halvings / 2), self.terms.phase)


def _members(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _solutions(equations: Sequence[int], count: int) -> list[int] | None:
    """Each variable as a form of the free ones, where every equation (a form) is zero; ``None``: no solution."""
    pivots: dict[int, int] = {}
    for equation in equations:
        for pivot, form in pivots.items():
            if equation >> pivot & 1:
                equation ^= form
        if equation == 1:
            return None
        if equation:
            pivot = equation.bit_length() - 1
            for other, form in pivots.items():
                if form >> pivot & 1:
                    pivots[other] = form ^ equation
            pivots[pivot] = equation
    return [pivots[i] ^ 1 << i if i in pivots else 1 << i for i in range(count)]


def _gauss_sum(terms: _Phases) -> complex:
    """Sum over all variables but the constant."""
    linear, rows = list(terms.linear), list(terms.rows)
    left = _Phases(linear=linear, rows=rows)
    alive = set(range(1, len(linear)))
    half_powers, phase = 0, 0.0
    while alive:
        k = alive.pop()
        form, quarters = rows[k], linear[k]
        for j in _members(form):
            rows[j] &= ~(1 << k)
        rows[k] = linear[k] = 0
        if quarters & 1:
            # 1 + i^(+-1) (-1)^g = sqrt2 e^(+-i pi/4) i^(-+g)
            half_powers += 1
            phase += math.pi / 4 if quarters == 1 else -math.pi / 4
            left.turn(form, -quarters)
            continue
        half_powers += 2
        constraint = form ^ (quarters >> 1)
        if constraint == 0:
            continue
        if constraint == 1:
            return 0j
        gone = constraint.bit_length() - 1
        _substitute(left, gone, constraint ^ 1 << gone)
        alive.discard(gone)
    return cmath.rect(2.0 ** (half_powers / 2), phase + math.pi / 2 * linear[0])


def _substitute(terms: _Phases, gone: int, form: int) -> None:
    """Replace a variable by a form of others."""
    row, quarters = terms.rows[gone], terms.linear[gone]
    for j in _members(row):
        terms.rows[j] &= ~(1 << gone)
    terms.rows[gone] = terms.linear[gone] = 0
    terms.turn(form, quarters)
    terms.cross(form, row)


def path_sum(circuit: Circuit) -> PathSum | None:
    """The circuit as a sum over paths; ``None`` where a gate is not a Clifford gate this knows.

    Known are all one-qubit Clifford gates and the two-qubit ones with one non-zero entry a row (CX, CZ, SWAP, iSWAP,
    ...), told by their matrices up to a global phase.
    """
    state = PathSum([0] * circuit.qubits)
    for gate in circuit.gates:
        if not (_one(state, gate) if len(gate.qubits) == 1 else len(gate.qubits) == 2 and _two(state, gate)):
            return None
    return state


def _one(state: PathSum, gate: Gate) -> bool:
    (wire,) = gate.qubits
    for key, word in _words().items():
        candidate = np.array(key).reshape(2, 2)
        phase = np.trace(candidate.conj().T @ gate.matrix) / 2
        if abs(abs(phase) - 1) < CLOSE:
            state.terms.phase += cmath.phase(complex(phase))
            for letter in word:
                if letter == "s":
                    state.terms.turn(state.forms[wire], 1)
                else:
                    fresh = state.terms.variable()
                    state.terms.cross(state.forms[wire], fresh)
                    state.terms.halvings += 1
                    state.forms[wire] = fresh
            return True
    return False


@lru_cache(maxsize=1)
def _words() -> dict[tuple[complex, ...], str]:
    """The 24 one-qubit Clifford gates up to phase, each as a word of h and s with the fewest h (leftmost first)."""
    found: dict[tuple[complex, ...], str] = {}
    words = sorted(("".join(w) for size in range(8) for w in itertools.product("hs", repeat=size)),
                   key=lambda w: (w.count("h"), len(w)))
    for word in words:
        matrix: Matrix = np.eye(2, dtype=np.complex128)
        for letter in word:
            matrix = (_H if letter == "h" else _S) @ matrix
        if all(abs(abs(np.trace(np.array(k).reshape(2, 2).conj().T @ matrix)) / 2 - 1) > CLOSE for k in found):
            found[tuple(complex(z) for z in matrix.ravel())] = word
    return found


def _two(state: PathSum, gate: Gate) -> bool:
    matrix = gate.matrix
    image = [int(row) for row in np.argmax(np.abs(matrix), axis=0)]
    if np.any(np.abs(np.abs(matrix[image, range(4)]) - 1) > CLOSE) or image[0] ^ image[1] ^ image[2] ^ image[3]:
        return False
    a, b = gate.qubits
    first = cmath.phase(complex(matrix[image[0], 0]))
    turns = [(cmath.phase(complex(matrix[image[c], c])) - first) / (math.pi / 2) for c in range(4)]
    quarters = [round(t) for t in turns]
    coupling = (quarters[3] - quarters[1] - quarters[2]) % 4
    if max(abs(t - q) for t, q in zip(turns, quarters, strict=True)) > CLOSE or coupling & 1:
        return False
    state.terms.phase += first
    x, y = state.forms[a], state.forms[b]
    state.terms.turn(x, quarters[1])
    state.terms.turn(y, quarters[2])
    if coupling:
        state.terms.cross(x, y)
    shift, from_x, from_y = image[0], image[1] ^ image[0], image[2] ^ image[0]
    for bit, wire in enumerate((a, b)):
        state.forms[wire] = ((shift >> bit & 1) ^ (x if from_x >> bit & 1 else 0) ^ (y if from_y >> bit & 1 else 0))
    return True

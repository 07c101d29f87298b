"""Gates to primitives: what the tile kernels know how to do, and nothing else.

Every unitary is split into free bookkeeping and five primitives. Free: X (a flip mask on the stored index), SWAP (a
renamed wire), global phase and scale. Primitives: ``Phase`` (diagonal, a polynomial of bits), ``Turn`` (the real
rotation x' = x - t y, y' = y + t x, its factor 1/sqrt(1+t^2) kept aside), ``Flip`` (CX), ``Matrix`` (one-qubit matrix
behind controls) and ``Dense`` (any matrix behind controls).

A one-qubit gate is e^{ia} P(f) RY(2 atan t) P(l) (Z-Y-Z); its two phases merge with their neighbours, so it costs two
multiply-adds an amplitude instead of eight. CX RZ CX is one phase on a parity. Wires that still hold |0> switch
controls and phases off. Legend: s = stored bit, f = flip of its wire, x = s xor f the qubit's value.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planners.circuit import Gate

__all__ = ["Dense", "Flip", "Lowering", "Matrix", "Phase", "Primitive", "Turn"]

Array = npt.NDArray[np.complex128]
TINY = 1e-12
"""Angles and entries below this are dropped: four orders above the rounding of a product of matrices."""
STEEP = 4.0
"""Slopes above this are turned by pi first: it bounds how far the unnormalised amplitudes grow in a kernel."""


@dataclass(slots=True, eq=False)
class Phase:
    """Diagonal exp(i sum angle * product of stored bits); terms: sorted wires -> angle."""

    terms: dict[tuple[int, ...], float]
    wires: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Turn:
    """Real rotation of one wire by slope t, without its factor 1 / sqrt(1 + t^2)."""

    wire: int
    slope: float


@dataclass(slots=True, eq=False)
class Flip:
    """CX on stored bits."""

    control: int
    target: int


@dataclass(slots=True, eq=False)
class Matrix:
    """One-qubit matrix where each control wire stores its value."""

    wire: int
    matrix: Array
    controls: tuple[tuple[int, int], ...]


@dataclass(slots=True, eq=False)
class Dense:
    """Matrix on several wires (first = lowest index bit) where each control wire stores its value."""

    wires: tuple[int, ...]
    matrix: Array
    controls: tuple[tuple[int, int], ...]


Primitive = Phase | Turn | Flip | Matrix | Dense


One = tuple[complex, complex, complex, complex]
"""A one-qubit matrix, row by row: products of such small matrices are fastest as plain numbers."""


class _Anatomy(NamedTuple):
    """A gate of several qubits without its ``flips``: X on these positions comes after.

    ``angles``: phases of a gate that is diagonal, or diagonal up to flips of one qubit (``inverted``: where), by value
    of the fixed qubits and then of the mixed one; a gate of another kind has none.
    """

    matrix: Array
    flips: tuple[int, ...]
    fixed: tuple[int, ...]
    mixing: tuple[int, ...]
    blocks: tuple[Array, ...]
    monomial: bool
    angles: tuple[float, ...]
    inverted: tuple[bool, ...]


@lru_cache(maxsize=65536)
def _anatomy(name: str, params: tuple[float, ...], controls: tuple[int, ...],
             unitary: tuple[tuple[float, float], ...] | None, count: int) -> _Anatomy:
    gate = Gate(name=name, qubits=tuple(range(count)), params=params, controls=controls, unitary=unitary)
    matrix, shape = gate.matrix, gate.structure
    if shape.flips:
        matrix = matrix[np.arange(len(matrix)) ^ sum(1 << p for p in shape.flips)]
    fixed, mixing = tuple(sorted(shape.diagonal + shape.flips)), shape.mixing
    if not mixing:
        angles = tuple(cmath.phase(z) for z in matrix.diagonal().tolist())
        return _Anatomy(matrix, shape.flips, fixed, mixing, (), True, angles, ())
    if not fixed:
        return _Anatomy(matrix, shape.flips, fixed, mixing, (matrix,), _monomial(matrix), (), ())
    inner = [sum(1 << p for j, p in enumerate(mixing) if i >> j & 1) for i in range(1 << len(mixing))]
    blocks = []
    for value in range(1 << len(fixed)):
        held = sum(1 << p for i, p in enumerate(fixed) if value >> i & 1)
        index = np.array([held | i for i in inner])
        blocks.append(matrix[index[:, None], index])
    angles, inverted = _phases_of(blocks) if len(mixing) < 2 else ((), ())
    return _Anatomy(matrix, shape.flips, fixed, mixing, tuple(blocks), _monomial(matrix), angles, inverted)


def _phases_of(blocks: Sequence[Array]) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """(phases, where the mixed qubit turns over) of 2 x 2 blocks with one entry a row."""
    if not all(_monomial(b) for b in blocks):
        return (), ()
    inverted = tuple(bool(abs(b[0, 0]) < TINY) for b in blocks)
    first = [complex(b[1, 0] if turns else b[0, 0]) for b, turns in zip(blocks, inverted, strict=True)]
    second = [complex(b[0, 1] if turns else b[1, 1]) for b, turns in zip(blocks, inverted, strict=True)]
    return tuple(cmath.phase(z) for z in (*first, *second)), inverted


@lru_cache(maxsize=65536)
def _one_of(name: str, params: tuple[float, ...], controls: tuple[int, ...],
            unitary: tuple[tuple[float, float], ...] | None) -> One:
    matrix = Gate(name=name, qubits=(0,), params=params, controls=controls, unitary=unitary).matrix
    return complex(matrix[0, 0]), complex(matrix[0, 1]), complex(matrix[1, 0]), complex(matrix[1, 1])


def _after(u: One, v: One) -> One:
    """The matrix product u v: v acts first."""
    return (u[0] * v[0] + u[1] * v[2], u[0] * v[1] + u[1] * v[3],
            u[2] * v[0] + u[3] * v[2], u[2] * v[1] + u[3] * v[3])


def _beside_identity(u: One, position: int) -> Array:
    """A one-qubit matrix at a position of two qubits, shape (4, 4)."""
    a, b, c, d = u
    rows = ([[a, b, 0, 0], [c, d, 0, 0], [0, 0, a, b], [0, 0, c, d]] if position == 0 else
            [[a, 0, b, 0], [0, a, 0, b], [c, 0, d, 0], [0, c, 0, d]])
    return np.array(rows, dtype=np.complex128)


@dataclass(slots=True)
class Lowering:
    """The running state of the translation; feed gates in order with ``add``, take primitives with ``take``.

    ``flip[w]``, ``wire[q]``: the qubit called q by the circuit is stored on wire ``wire[q]``, inverted if its flip is
    set. ``live[w]``: whether the stored bit of w can be 1. ``phase``: global phase so far.
    """

    qubits: int
    wire: list[int] = field(default_factory=list)
    flip: list[int] = field(default_factory=list)
    live: list[bool] = field(default_factory=list)
    phase: float = 0.0
    out: list[Primitive | None] = field(default_factory=list)
    history: list[list[int]] = field(default_factory=list)
    pending: dict[int, One] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wire = list(range(self.qubits))
        self.flip = [0] * self.qubits
        self.live = [False] * self.qubits
        self.history = [[] for _ in range(self.qubits)]

    def add(self, gate: Gate) -> None:
        """Translate one gate (its qubits are the circuit's names)."""
        names = self.wire
        wires = [names[q] for q in gate.qubits]
        if gate.name == "swap" and not gate.controls:
            a, b = gate.qubits
            self.wire[a], self.wire[b] = self.wire[b], self.wire[a]
            return
        if not wires:
            self.phase += cmath.phase(complex(gate.matrix[0, 0]))
            return
        if len(wires) == 1:
            u = _one_of(gate.name, gate.params, gate.controls, gate.unitary)
            before = self.pending.get(wires[0])
            self.pending[wires[0]] = u if before is None else _after(u, before)
            return
        parts = _anatomy(gate.name, gate.params, gate.controls, gate.unitary, len(wires))
        for p in parts.flips:
            self._flush(wires[p])
        self._multi(wires, parts)
        for p in parts.flips:
            self.flip[wires[p]] ^= 1

    def take(self) -> list[Primitive]:
        """The primitives since the last call; every pending one-qubit gate is flushed first."""
        for w in sorted(self.pending):
            self._flush(w)
        result = [p for p in self.out if p is not None]
        self.out = []
        self.history = [[] for _ in range(self.qubits)]
        return result

    # -- one-qubit gates ---------------------------------------------------------------------------------------------

    def _flush(self, w: int) -> None:
        """Emit the pending product of one-qubit gates on wire w."""
        u = self.pending.pop(w, None)
        if u is None:
            return
        past = self.history[w]
        if past:
            last = self.out[past[-1]]
            if isinstance(last, Dense) and not last.controls and len(last.wires) == 2:
                stored = u[::-1] if self.flip[w] else u
                last.matrix = _beside_identity(stored, 0 if last.wires[0] == w else 1) @ last.matrix
                return
        if abs(u[1]) < TINY and abs(u[2]) < TINY:
            if self.live[w] or self.flip[w] or u[0] != 1:
                self._one_phase(w, cmath.phase(u[0]), cmath.phase(u[3]))
        elif abs(u[0]) < TINY and abs(u[3]) < TINY:
            self._one_phase(w, cmath.phase(u[2]), cmath.phase(u[1]))
            self.flip[w] ^= 1
        else:
            self._turn(w, u)

    def _one_phase(self, w: int, zero: float, one: float) -> None:
        self.phase += zero
        self._emit_phase({(w,): one - zero})

    def _turn(self, w: int, u: One) -> None:
        """U = X^k P(after) RY P(before) with the fewest phases."""
        a, b, c, d = u
        if (a.real * d.real < 0 and -TINY < a.imag < TINY and -TINY < b.imag < TINY and -TINY < c.imag < TINY
                and -TINY < d.imag < TINY and abs(a) <= STEEP * abs(c)):
            # a reflection, e.g. H = X RY(pi/2)
            self._real_turn(w, c.real, a.real)
            self.flip[w] ^= 1
            return
        cosine, sine = abs(a), abs(c)
        first = cmath.phase(a)
        # U = e^{i first} [[cosine, -sine e^{il}], [sine e^{if}, cosine e^{i(f+l)}]]
        after = cmath.phase(c) - first
        before = cmath.phase(-b) - first
        self.phase += first
        if (abs(math.remainder(after - math.pi, 2 * math.pi)) < 1e-9
                and abs(math.remainder(before - math.pi, 2 * math.pi)) < 1e-9):
            after, before, sine = 0.0, 0.0, -sine
        if before:
            self._emit_phase({(w,): before})
        self._real_turn(w, cosine, sine)
        if after:
            self._emit_phase({(w,): after})

    def _real_turn(self, w: int, c: float, s: float) -> None:
        """RY = [[c, -s], [s, c]] on the qubit's value."""
        if abs(s) > STEEP * abs(c):
            # RY(t) = X Z RY(t - pi): cos(t/2 - pi/2) = s, sin(t/2 - pi/2) = -c
            self._real_turn(w, s, -c)
            self._emit_phase({(w,): math.pi})
            self.flip[w] ^= 1
            return
        if c < 0:
            c, s = -c, -s
            self.phase += math.pi
        slope = s / c
        if abs(slope) < TINY:
            return
        self._push_turn(w, -slope if self.flip[w] else slope)

    # -- gates on several qubits -------------------------------------------------------------------------------------

    def _multi(self, wires: Sequence[int], parts: _Anatomy) -> None:
        """A gate that is block-diagonal in the positions ``fixed`` and mixes the others."""
        matrix = parts.matrix
        pending = self.pending
        for p, w in enumerate(wires):
            if w not in pending:
                continue
            u = pending[w]
            if len(wires) == 2 and len(parts.mixing) == 2 and not parts.monomial:
                matrix = matrix @ _beside_identity(u, p)
                del self.pending[w]
            elif p not in parts.fixed or abs(u[1]) > TINY or abs(u[2]) > TINY:
                self._flush(w)  # else it commutes: wait for more
        controls = [wires[p] for p in parts.fixed]
        targets = [wires[p] for p in parts.mixing]
        if not targets:
            self._diagonal(controls, parts.angles)
        elif len(targets) == 1 and parts.inverted:
            self._controlled_flips(controls, targets[0], parts)
        elif len(targets) == 1:
            self._multiplexed(controls, targets[0], parts.blocks)
        elif parts.monomial and not controls and len(targets) == 2:
            self._permutation2(targets, matrix)
        elif not controls:
            self._dense(targets, matrix, ())
        else:
            for value, block in enumerate(parts.blocks):
                if np.max(np.abs(block - np.eye(len(block)))) > TINY:
                    self._dense(targets, block, self._held(controls, value))

    def _held(self, controls: Sequence[int], value: int) -> tuple[tuple[int, int], ...] | None:
        """(wire, stored value) of each control; None when a wire is known never to hold it."""
        held = []
        for i, w in enumerate(controls):
            stored = (value >> i & 1) ^ self.flip[w]
            if not self.live[w]:
                if stored:
                    return None
                continue
            held.append((w, stored))
        return tuple(sorted(held))

    def _diagonal(self, wires: Sequence[int], angles: Sequence[float]) -> None:
        """Moebius transform: angle of every value -> coefficient of every product of bits."""
        if len(wires) == 2:
            none, first, second, both = angles
            a, b = wires
            self.phase += none
            self._emit_phase({(a,): first - none, (b,): second - none,
                              (a, b) if a < b else (b, a): both - first - second + none})
            return
        coefficient = list(angles)
        for i in range(len(wires)):
            for value in range(len(coefficient)):
                if value >> i & 1:
                    coefficient[value] -= coefficient[value ^ (1 << i)]
        self.phase += coefficient[0]
        terms = {}
        for value in range(1, len(coefficient)):
            if abs(coefficient[value]) > TINY:
                terms[tuple(sorted([w for i, w in enumerate(wires) if value >> i & 1]))] = coefficient[value]
        self._emit_phase(terms)

    def _multiplexed(self, controls: Sequence[int], target: int, blocks: Sequence[Array]) -> None:
        """One matrix on ``target`` for every value of the controls."""
        # with no phases to take out, one controlled matrix a value; Z-Y-Z would add two phase terms of higher degree
        for value, block in enumerate(blocks):
            if np.max(np.abs(block - np.eye(2))) < TINY:
                continue
            held = self._held(controls, value)
            if held is None:
                continue
            self._controlled(held, target, block)

    def _controlled(self, held: tuple[tuple[int, int], ...], target: int, block: Array) -> None:
        if not held:
            self.pending[target] = (complex(block[0, 0]), complex(block[0, 1]), complex(block[1, 0]),
                                    complex(block[1, 1]))
            self._flush(target)
            return
        if self.flip[target]:
            block = block[::-1, ::-1]
        self._push(Matrix(target, np.ascontiguousarray(block), held), (target, *(w for w, _ in held)))
        self.live[target] = True

    def _controlled_flips(self, controls: Sequence[int], target: int, parts: _Anatomy) -> None:
        """Every block is diagonal or anti-diagonal: phases first, then X where the controls say so."""
        inverted = parts.inverted
        if any(parts.angles):
            self._diagonal([*controls, target], parts.angles)
        if len(controls) == 1 and inverted[0] != inverted[1]:
            self._cx(controls[0], target)
            if inverted[0]:
                self.flip[target] ^= 1
            return
        for value, turns in enumerate(inverted):
            held = self._held(controls, value)
            if turns and held is not None:
                self._controlled_x(held, target)

    def _controlled_x(self, held: tuple[tuple[int, int], ...], target: int) -> None:
        if not held:
            self.flip[target] ^= 1
        elif len(held) == 1:
            control, value = held[0]
            if not value:
                self.flip[target] ^= 1
            self._flip_pair(control, target)
        else:
            x = np.array([[0, 1], [1, 0]], dtype=np.complex128)
            self._push(Matrix(target, x, held), (target, *(w for w, _ in held)))
            self.live[target] = True

    def _cx(self, control: int, target: int) -> None:
        """CX on values: the target's flip takes the control's."""
        if self.flip[control]:
            self.flip[target] ^= 1
        if self.live[control]:
            self._flip_pair(control, target)

    def _permutation2(self, targets: Sequence[int], matrix: Array) -> None:
        """A two-qubit monomial matrix that mixes both qubits: iSWAP and the linear maps, else dense."""
        image = [int(np.argmax(np.abs(matrix[:, column]))) for column in range(4)]
        if image[1] ^ image[2] ^ image[3] ^ image[0] == 0:
            a, b = targets
            self._diagonal([a, b], [cmath.phase(complex(matrix[image[c], c])) for c in range(4)])
            # x -> M x + image[0] over GF(2), M from the images of the two unit vectors; every M is a few CX and a swap
            first, second = image[1] ^ image[0], image[2] ^ image[0]
            if (first, second) == (2, 1):
                self._rename(a, b)
            elif (first, second) == (2, 3):   # x' = y, y' = x + y
                self._cx(b, a)
                self._rename(a, b)
            elif (first, second) == (3, 1):   # x' = x + y, y' = x
                self._cx(a, b)
                self._rename(a, b)
            elif (first, second) == (3, 2):
                self._cx(a, b)
            elif (first, second) == (1, 3):
                self._cx(b, a)
            if image[0] & 1:
                self.flip[a if (first, second) not in ((2, 1), (2, 3), (3, 1)) else b] ^= 1
            if image[0] & 2:
                self.flip[b if (first, second) not in ((2, 1), (2, 3), (3, 1)) else a] ^= 1
            return
        self._dense(targets, matrix, ())

    def _rename(self, a: int, b: int) -> None:
        """Swap the qubits stored on wires a and b."""
        i, j = self.wire.index(a), self.wire.index(b)
        self.wire[i], self.wire[j] = b, a

    def _dense(self, targets: Sequence[int], matrix: Array, held: tuple[tuple[int, int], ...] | None) -> None:
        if held is None:
            return
        turned = sum(1 << i for i, w in enumerate(targets) if self.flip[w])
        if turned:
            index = np.arange(len(matrix)) ^ turned
            matrix = matrix[index[:, None], index]
        self._push(Dense(tuple(targets), matrix, held), (*targets, *(w for w, _ in held)))
        for w in targets:
            self.live[w] = True

    # -- emission ----------------------------------------------------------------------------------------------------

    def _emit_phase(self, terms: dict[tuple[int, ...], float]) -> None:
        """Terms on values -> terms on stored bits (x = 1 - s on flipped wires); dead wires are 0."""
        stored: dict[tuple[int, ...], float] = {}
        flip, live = self.flip, self.live
        for wires, angle in terms.items():
            angle = math.remainder(angle, 2 * math.pi)
            if abs(angle) < TINY:
                continue
            for w in wires:
                if flip[w] or not live[w]:
                    break
            else:
                stored[wires] = stored.get(wires, 0.0) + angle
                continue
            parts: list[tuple[tuple[int, ...], float]] = [((), angle)]
            for w in wires:
                if self.flip[w]:
                    parts = [*parts, *(((*p, w), -a) for p, a in parts)] if self.live[w] else parts
                else:
                    parts = [((*p, w), a) for p, a in parts] if self.live[w] else []
            for p, a in parts:
                stored[p] = stored.get(p, 0.0) + a
        if () in stored:
            self.phase += stored.pop(())
        for wires in [w for w, a in stored.items() if abs(a) <= TINY]:
            del stored[wires]
        if not stored:
            return
        wires_used = next(iter(stored)) if len(stored) == 1 else tuple(sorted({w for term in stored for w in term}))
        merged = self._mergeable(wires_used)
        if merged is not None:
            for term, angle in stored.items():
                merged.terms[term] = merged.terms.get(term, 0.0) + angle
            return
        self._push(Phase(stored, wires_used), wires_used)

    def _mergeable(self, wires: tuple[int, ...]) -> Phase | None:
        """The last primitive of every wire, when it is one and the same phase on exactly these wires."""
        past = self.history[wires[0]]
        if not past:
            return None
        last = past[-1]
        found = self.out[last]
        if not isinstance(found, Phase) or found.wires != wires:
            return None
        return found if all(self.history[w][-1:] == [last] for w in wires) else None

    def _flip_pair(self, control: int, target: int) -> None:
        """CX on stored bits; closes CX P CX into a phase on the parity, and CX CX into nothing."""
        self.live[target] = True
        past = self.history[target]
        between: list[int] = []
        if len(past) > 1:
            opened = self.out[past[-2]]
            same = isinstance(opened, Flip) and opened.control == control and opened.target == target
            if same and self._close_turn(past[-2], control, target):
                return
        for at in reversed(past):
            found = self.out[at]
            if isinstance(found, Flip) and found.control == control and found.target == target:
                if not self._only_reads(control, at):
                    break
                self._close_parity(at, between, control, target)
                return
            if isinstance(found, Phase) and found.wires == (target,):
                between.append(at)
                continue
            break
        self._push(Flip(control, target), (control, target))

    def _push_turn(self, w: int, slope: float) -> None:
        """A turn; merged with one right before it, and RY(-a) CZ RY(a) becomes one controlled reflection."""
        self.live[w] = True
        past = self.history[w]
        last = self.out[past[-1]] if past else None
        if isinstance(last, Turn):
            angle = math.atan(last.slope) + math.atan(slope)
            if abs(math.tan(angle)) <= STEEP and math.cos(angle) > 0:
                last.slope = math.tan(angle)
                if abs(last.slope) < TINY:
                    self._remove(past[-1], (w,))
                return
        first = self.out[past[-2]] if len(past) > 1 else None
        if isinstance(last, Phase) and isinstance(first, Turn) and abs(first.slope + slope) < TINY:
            control = _signed_pair(last, w)
            if control is not None and self._only_reads(control, past[-1]):
                self._remove(past[-1], (w, control))
                self._remove(past[-1], (w,))
                c, s = _direction(slope)
                back = np.array([[c, s], [-s, c]], dtype=np.complex128)
                z = np.diag([1, -1]).astype(np.complex128)
                self._push(Matrix(w, back.T @ z @ back, ((control, 1),)), (w, control))
                return
        self._push(Turn(w, slope), (w,))

    def _remove(self, at: int, wires: Iterable[int]) -> None:
        self.out[at] = None
        for w in wires:
            self.history[w].remove(at)

    def _close_turn(self, first: int, control: int, target: int) -> bool:
        """CX RY CX: a turn, and twice its inverse where the control is set. Whether the pattern was there."""
        past = self.history[target]
        turn = self.out[past[-1]]
        if not isinstance(turn, Turn) or past[-2:-1] != [first] or not self._only_reads(control, first):
            return False
        self._remove(past[-1], (target,))
        self._remove(first, (control, target))
        self._push_turn(target, turn.slope)
        c, s = _direction(turn.slope)
        inverse = np.array([[c, s], [-s, c]], dtype=np.complex128)
        self._push(Matrix(target, inverse @ inverse, ((control, 1),)), (target, control))
        return True

    def _only_reads(self, wire: int, since: int) -> bool:
        """Whether everything on ``wire`` after primitive ``since`` leaves its value alone."""
        for at in reversed(self.history[wire]):
            if at <= since:
                return True
            found = self.out[at]
            if isinstance(found, Phase) or (isinstance(found, Flip) and found.control == wire):
                continue
            if isinstance(found, Matrix | Dense) and any(w == wire for w, _ in found.controls):
                continue
            return False
        return True

    def _close_parity(self, first: int, between: Iterable[int], control: int, target: int) -> None:
        angle = 0.0
        for at in [first, *between]:
            found = self.out[at]
            if isinstance(found, Phase):
                angle += sum(found.terms.values())
            self.out[at] = None
        for w in (control, target):
            self.history[w] = [at for at in self.history[w] if self.out[at] is not None]
        if abs(math.remainder(angle, 2 * math.pi)) < TINY:
            return
        pair = tuple(sorted((control, target)))
        terms = {(control,): angle, (target,): angle, pair: -2 * angle}
        merged = self._mergeable(pair)
        if merged is not None:
            for term, value in terms.items():
                merged.terms[term] = merged.terms.get(term, 0.0) + value
            return
        self._push(Phase(terms, pair), pair)

    def _push(self, primitive: Primitive, wires: Iterable[int]) -> None:
        at = len(self.out)
        for w in wires:
            self.history[w].append(at)
        self.out.append(primitive)


def _direction(slope: float) -> tuple[float, float]:
    """(cosine, sine) of the half angle whose tangent is ``slope``."""
    length = math.hypot(1.0, slope)
    return 1.0 / length, slope / length


def _signed_pair(phase: Phase, wire: int) -> int | None:
    """The other wire of a phase that is exactly CZ on ``wire`` and one more; else ``None``."""
    if len(phase.terms) != 1 or len(phase.wires) != 2:
        return None
    (term, angle), = phase.terms.items()
    if term != phase.wires or abs(abs(math.remainder(angle, 2 * math.pi)) - math.pi) > TINY:
        return None
    return phase.wires[0] if phase.wires[1] == wire else phase.wires[1]


def _monomial(matrix: Array) -> bool:
    return bool(np.all(np.sum(np.abs(matrix) > TINY, axis=0) == 1))

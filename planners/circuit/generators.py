"""Seeded generators of the benchmark families and of random circuits.

Families as in MQT Bench and NWQBench (the forms Atlas, arXiv 2408.09055, is measured on, SWAPs taken out): ae, dj, ghz,
graphstate, ising, qft, qpeexact, qsvm, su2random, vqc, wstate; and bv, hhl. Random: supremacy (grid with sqrt X,
sqrt Y, T between CZ patterns), quantum_volume (Haar SU(4) on random pairs), clifford_t.
Gates and wires equal the published files' except that angles, secrets and graphs come from the seed, and that
independent gates may stand in another order. Legend: n qubits, layers = repetitions of the family's block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from planners.circuit.ir import Circuit, Gate, from_matrix
from workbench.errors import SpecError, nearest

__all__ = ["BENCHMARKS", "FAMILIES", "generate"]

Random = np.random.Generator
BENCHMARKS = ("ae", "dj", "ghz", "graphstate", "ising", "qft", "qpeexact", "qsvm", "su2random", "vqc", "wstate")
"""The eleven families of the paper's evaluation."""


def generate(family: str, *, qubits: int, rng: Random, layers: int | None = None) -> Circuit:
    """A circuit of ``family`` on ``qubits`` qubits.

    Raises:
        SpecError: unknown family, or too few qubits for it.
    """
    if family not in FAMILIES:
        close = nearest(family, FAMILIES)
        raise SpecError(f"no circuit family is called {family!r}", where="circuit.family", allowed=sorted(FAMILIES),
                        hint=f"did you mean {close!r}?" if close else None)
    fewest, build = FAMILIES[family]
    if qubits < fewest:
        raise SpecError(f"family {family} needs at least {fewest} qubits, not {qubits}", where="circuit.qubits")
    if layers is not None and layers < 1:
        raise SpecError(f"layers must be positive, not {layers}", where="circuit.layers")
    return Circuit(name=f"{family}_n{qubits}", qubits=qubits, gates=tuple(build(qubits, layers, rng)))


def _g(name: str, *qubits: int, params: Iterable[float] = ()) -> Gate:
    return Gate(name=name, qubits=qubits, params=tuple(float(p) for p in params))


def _angles(rng: Random, count: int) -> list[float]:
    return [float(a) for a in rng.uniform(0.1, math.pi, count)]


def _ghz(n: int, layers: int | None, rng: Random) -> list[Gate]:
    return [_g("h", n - 1), *(_g("cx", q, q - 1) for q in range(n - 1, 0, -1))]


def _dj(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """Deutsch-Jozsa with a balanced oracle: the secret conjugates some inputs by X, folded into u2."""
    target, secret = n - 1, rng.integers(0, 2, n - 1)
    first = [_g("u2", q, params=(0, 0)) if secret[q] else _g("h", q) for q in range(n - 1)]
    last = [_g("u2", q, params=(-math.pi, -math.pi)) if secret[q] else _g("h", q) for q in range(n - 1)]
    middle = [g for q in range(n - 1) for g in (_g("cx", q, target), last[q])]
    return [*first, _g("u2", target, params=(-math.pi, -math.pi)), *middle]


def _bv(n: int, layers: int | None, rng: Random) -> list[Gate]:
    target = n - 1
    secret = rng.integers(0, 2, n - 1)
    walls = [_g("h", q) for q in range(n - 1)]
    return [*walls, _g("x", target), _g("h", target), *(_g("cx", q, target) for q in range(n - 1) if secret[q]), *walls]


def _graphstate(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """A random 2-regular graph: cycles of at least three vertices over shuffled labels."""
    order = [int(v) for v in rng.permutation(n)]
    edges = set()
    while order:
        size = len(order) if len(order) < 6 else int(rng.choice([*range(3, len(order) - 2), len(order)]))
        cycle, order = order[:size], order[size:]
        edges |= {(min(a, b), max(a, b)) for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)}
    gates = []
    for q in range(n):
        gates.append(_g("h", q))
        gates.extend(_g("cz", a, b) for a, b in sorted(edges) if b == q)
    return gates


def _phase_ladder(wires: list[int], sign: float) -> list[Gate]:
    """H on each wire, lowest first, and controlled phases of pi/2^d from the wires after it at distance d."""
    gates: list[Gate] = []
    for i, q in enumerate(wires):
        gates.extend(_g("cp", wires[j], q, params=(sign * math.pi / 2 ** (i - j),)) for j in range(i))
        gates.append(_g("h", q))
    return gates


def _qft(n: int, layers: int | None, rng: Random) -> list[Gate]:
    return _phase_ladder(list(range(n - 1, -1, -1)), 1.0)


def _inverse_qft_descending(wires: list[int]) -> list[Gate]:
    """H and then the controlled phases below it, from the highest wire down."""
    gates: list[Gate] = []
    for i in range(len(wires) - 1, -1, -1):
        gates.append(_g("h", wires[i]))
        gates.extend(_g("cp", wires[j], wires[i], params=(-math.pi / 2 ** (i - j),)) for j in range(i - 1, -1, -1))
    return gates


def _qpeexact(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """Phase estimation of a phase that n - 1 bits hold exactly; the eigenstate sits on wire 0."""
    counting = list(range(1, n))
    phase = 2 * math.pi * (2 * int(rng.integers(0, 2 ** min(n - 2, 40))) + 1) / 2 ** (n - 1)
    kicks = [_g("cp", 0, q, params=(math.remainder(phase * 2**k, 2 * math.pi),)) for k, q in enumerate(counting)]
    return [*(_g("h", q) for q in counting), _g("x", 0), *kicks, *_phase_ladder(counting[::-1], -1.0)]


def _ae(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """Amplitude estimation: powers of a rotation on the last wire, then an inverse Fourier transform of the others."""
    target, counting = n - 1, list(range(n - 1))
    theta = 2 * math.asin(math.sqrt(rng.uniform(0.1, 0.9)))
    gates = [_g("u2", q, params=(0, -math.pi)) for q in counting]
    gates.append(_g("u3", target, params=(theta, 0, 0)))
    for k, q in enumerate(counting):
        turn = math.remainder(theta * 2**k, 4 * math.pi)
        gates += [_g("cx", q, target), _g("u3", target, params=(-turn, 0, 0)), _g("cx", q, target),
                  _g("u3", target, params=(turn, 0, 0))]
    return gates + _inverse_qft_descending(counting)


def _ising(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """One Trotter step of the transverse Ising chain a layer; even bonds, then odd bonds, then the field."""
    gates = [_g("h", q) for q in range(n)]
    for _ in range(layers or 1):
        for q in [*range(0, n - 1, 2), *range(1, n - 1, 2)]:
            (a,) = _angles(rng, 1)
            gates += [_g("rz", q, params=(a,)), _g("rz", q + 1, params=(-a,)), _g("rz", q + 1, params=(-a,)),
                      _g("cx", q, q + 1), _g("rz", q + 1, params=(a,)), _g("cx", q, q + 1)]
        field = _angles(rng, 2)
        for q in range(n):
            gates += [_g("h", q), _g("rz", q, params=field[:1]), _g("h", q), _g("rz", q, params=field[1:])]
    return gates


def _zz(a: int, b: int, angle: float) -> list[Gate]:
    return [_g("cx", a, b), _g("rz", b, params=(angle,)), _g("cx", a, b)]


def _qsvm(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """Overlap of two feature maps: one down the chain, the inverse of the other up the chain."""
    down, up, first, last = (_angles(rng, n) for _ in range(4))
    walls = [_g("h", q) for q in range(n)]
    gates = [*walls, *(_g("p", q, params=(first[q],)) for q in range(n))]
    for q in range(n - 1):
        gates += _zz(q, q + 1, down[q])
    for q in range(n - 2, -1, -1):
        gates += _zz(q, q + 1, up[q])
    return [*gates, *(_g("rz", q, params=(last[q],)) for q in range(n)), *walls]


def _su2random(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """Hardware-efficient ansatz with all-to-all CX, 3 repetitions unless ``layers`` says otherwise."""
    def turns() -> list[Gate]:
        return [_g("u3", q, params=(*rng.uniform(0, 1, 2), 0.0)) for q in range(n)]

    gates = turns()
    for _ in range(layers or 3):
        gates += [_g("cx", a, b) for a in range(n) for b in range(a + 1, n)]
        gates += turns()
    return gates


def _vqc(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """A ZZ feature map and ``layers`` (4) blocks of RY, RZ and all-to-all CZ."""
    gates = [_g("h", q) for q in range(n)]
    gates += [_g("rz", q, params=(a,)) for q, a in enumerate(_angles(rng, n))]
    for q, a in enumerate(_angles(rng, n - 1)):
        gates += _zz(q, q + 1, a)
    for _ in range(layers or 4):
        for q in range(n):
            a, b = _angles(rng, 2)
            gates += [_g("ry", q, params=(a,)), _g("rz", q, params=(b,))]
        gates += [_g("cz", a, b) for a in range(n) for b in range(a + 1, n)]
    return gates


def _wstate(n: int, layers: int | None, rng: Random) -> list[Gate]:
    angle = [math.acos(math.sqrt(1 / (q + 2))) for q in range(n - 1)]
    gates = [_g("ry", q, params=(-angle[q],)) for q in range(n - 1)]
    gates.append(_g("x", n - 1))
    for q in range(n - 2, -1, -1):
        gates += [_g("cz", q + 1, q), _g("ry", q, params=(angle[q],))]
    return gates + [_g("cx", q, q + 1) for q in range(n - 2, -1, -1)]


def _hhl(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """Linear solver for a random Hermitian matrix: wire 0 ancilla, then clock wires, then the right-hand side."""
    clock_count = max(1, (n - 1) // 2)
    clock = list(range(1, 1 + clock_count))
    system = tuple(range(1 + clock_count, n))
    side = 1 << len(system)
    spectrum = 2 * math.pi * rng.integers(1, 1 << clock_count, side) / (1 << clock_count)
    basis = _haar(side, rng)

    def powers(sign: int) -> list[Gate]:
        gates = []
        for k, q in enumerate(clock):
            matrix = basis @ np.diag(np.exp(1j * sign * spectrum * 2**k)) @ basis.conj().T
            inner = from_matrix(matrix, system)
            gates.append(Gate(name="unitary", qubits=(q, *system), controls=(1,), unitary=inner.unitary))
        return gates

    estimate = [*(_g("h", q) for q in clock), *powers(1), *_phase_ladder(clock[::-1], -1.0)]
    back = [*_inverse_of_ladder(clock), *powers(-1), *(_g("h", q) for q in clock)]
    turns = []
    for value in range(1, 1 << clock_count):
        # the ladder without swaps leaves the value's bits in reversed order
        bits = tuple(value >> (clock_count - 1 - i) & 1 for i in range(clock_count))
        turns.append(Gate(name="ry", qubits=(*clock, 0), params=(2 * math.asin(1 / value),), controls=bits))
    load = from_matrix(_haar(side, rng), system)
    return [load, *estimate, *turns, *back]


def _inverse_of_ladder(wires: list[int]) -> list[Gate]:
    return [_g(gate.name, *gate.qubits, params=(-p for p in gate.params))
            for gate in reversed(_phase_ladder(wires[::-1], -1.0))]


def _haar(side: int, rng: Random) -> npt.NDArray[np.complex128]:
    """Haar-random unitary: QR of a Ginibre matrix with the phases of R's diagonal taken out."""
    ginibre = rng.normal(size=(side, side)) + 1j * rng.normal(size=(side, side))
    q, r = np.linalg.qr(ginibre)
    phases = np.diag(r) / np.abs(np.diag(r))
    return np.asarray(q * phases, dtype=np.complex128)


def _supremacy(n: int, layers: int | None, rng: Random) -> list[Gate]:
    """H wall, then ``layers`` (20) cycles: one-qubit gates, none twice in a row on a qubit, and CZ in 8 patterns."""
    rows = max(r for r in range(1, math.isqrt(n) + 1) if n % r == 0)
    columns = n // rows
    patterns: list[list[tuple[int, int]]] = [[] for _ in range(8)]
    for r in range(rows):
        for c in range(columns):
            if c + 1 < columns:
                patterns[(c % 2) * 2 + r % 2].append((r * columns + c, r * columns + c + 1))
            if r + 1 < rows:
                patterns[4 + (r % 2) * 2 + c % 2].append((r * columns + c, (r + 1) * columns + c))
    order = [p for p in (0, 5, 3, 6, 1, 4, 2, 7) if patterns[p]]
    gates = [_g("h", q) for q in range(n)]
    root_y = from_matrix(np.array([[1 + 1j, -1 - 1j], [1 + 1j, 1 + 1j]]) / 2, (0,)).unitary
    before = [-1] * n
    for layer in range(layers or 20):
        for q in range(n):
            choice = int(rng.choice([k for k in range(3) if k != before[q]]))
            before[q] = choice
            gates.append((_g("sx", q), Gate(name="unitary", qubits=(q,), unitary=root_y), _g("t", q))[choice])
        gates += [_g("cz", a, b) for a, b in patterns[order[layer % len(order)]]] if order else []
    return gates


def _quantum_volume(n: int, layers: int | None, rng: Random) -> list[Gate]:
    gates = []
    for _ in range(layers or 10):
        order = [int(q) for q in rng.permutation(n)]
        gates += [from_matrix(_haar(4, rng), (a, b)) for a, b in zip(order[::2], order[1::2], strict=False)]
    return gates


def _clifford_t(n: int, layers: int | None, rng: Random) -> list[Gate]:
    gates = []
    for _ in range((layers or 20) * n):
        name = str(rng.choice(["h", "s", "t", "x", "cx", "cz"]))
        count = 2 if name in ("cx", "cz") else 1
        gates.append(_g(name, *(int(q) for q in rng.choice(n, size=count, replace=False))))
    return gates


FAMILIES: dict[str, tuple[int, Callable[[int, int | None, Random], list[Gate]]]] = {
    "ae": (2, _ae), "bv": (2, _bv), "clifford_t": (2, _clifford_t), "dj": (2, _dj), "ghz": (1, _ghz),
    "graphstate": (3, _graphstate), "hhl": (4, _hhl), "ising": (2, _ising), "qft": (1, _qft),
    "qpeexact": (2, _qpeexact), "qsvm": (2, _qsvm), "quantum_volume": (2, _quantum_volume),
    "su2random": (2, _su2random), "supremacy": (2, _supremacy), "vqc": (2, _vqc), "wstate": (2, _wstate),
}
"""name -> (fewest qubits, builder of the gate list from (n, layers, rng))."""

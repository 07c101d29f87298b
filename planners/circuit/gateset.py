"""The named gates and their matrices, in the convention of OpenQASM's standard libraries.

``BUILDERS[name]`` is (qubits, parameters, builder). Control qubits come first in a gate's qubit list, and the first
qubit is the least significant bit of the matrix, so ``cx`` on (control, target) maps index 1 (control set) to 3.
Angles are radians. Sources: the OpenQASM 2 header qelib1 and the OpenQASM 3 library stdgates; ``u2`` and ``u3`` carry
the global phase in which their first entry is real; ``u`` equals ``u3``.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from workbench.errors import SpecError, nearest

__all__ = ["BUILDERS", "NAMES", "base_matrix", "base_parameters", "base_qubits"]

Matrix = npt.NDArray[np.complex128]
Builder = Callable[..., Matrix]


def _array(rows: list[list[complex]]) -> Matrix:
    return np.array(rows, dtype=np.complex128)


def _u3(theta: float, phi: float, lam: float) -> Matrix:
    c, s = math.cos(theta / 2), math.sin(theta / 2)
    return _array([[c, -cmath.exp(1j * lam) * s], [cmath.exp(1j * phi) * s, cmath.exp(1j * (phi + lam)) * c]])


def _u2(phi: float, lam: float) -> Matrix:
    return _u3(math.pi / 2, phi, lam)


def _phase(lam: float) -> Matrix:
    return np.diag([1.0, cmath.exp(1j * lam)]).astype(np.complex128)


def _rz(theta: float) -> Matrix:
    return np.diag([cmath.exp(-0.5j * theta), cmath.exp(0.5j * theta)]).astype(np.complex128)


def _rx(theta: float) -> Matrix:
    return _u3(theta, -math.pi / 2, math.pi / 2)


def _ry(theta: float) -> Matrix:
    return _u3(theta, 0.0, 0.0)


def _r(theta: float, phi: float) -> Matrix:
    return _u3(theta, phi - math.pi / 2, math.pi / 2 - phi)


def _gphase(gamma: float) -> Matrix:
    return _array([[cmath.exp(1j * gamma)]])


_X = _array([[0, 1], [1, 0]])
_Y = _array([[0, -1j], [1j, 0]])
_Z = np.diag([1, -1]).astype(np.complex128)
_I = np.eye(2, dtype=np.complex128)
_H = _array([[1, 1], [1, -1]]) / math.sqrt(2)
_SX = _array([[1 + 1j, 1 - 1j], [1 - 1j, 1 + 1j]]) / 2
_SWAP = _array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
_ISWAP = _array([[1, 0, 0, 0], [0, 0, 1j, 0], [0, 1j, 0, 0], [0, 0, 0, 1]])


def _constant(matrix: Matrix) -> Matrix:
    return matrix.copy()


def _control(builder: Builder, controls: int, *params: float) -> Matrix:
    """``builder``'s matrix behind ``controls`` positive controls on the low bits."""
    inner = builder(*params)
    low = (1 << controls) - 1
    result = np.eye(inner.shape[0] << controls, dtype=np.complex128)
    result[low :: low + 1, low :: low + 1] = inner
    return result


def _cu(theta: float, phi: float, lam: float, gamma: float) -> Matrix:
    return _control(lambda: cmath.exp(1j * gamma) * _u3(theta, phi, lam), 1)


def _pauli_rotation(axis_low: Matrix, axis_high: Matrix, theta: float) -> Matrix:
    """exp(-i theta/2 high (x) low)."""
    product = np.asarray(np.kron(axis_high, axis_low), dtype=np.complex128)
    return np.eye(4, dtype=np.complex128) * complex(math.cos(theta / 2)) - product * complex(0.0, math.sin(theta / 2))


def _ecr() -> Matrix:
    """(X on the first qubit - X on the second with Y on the first) / sqrt 2: the echoed cross-resonance gate."""
    return np.asarray(np.kron(_I, _X) - np.kron(_X, _Y), dtype=np.complex128) * complex(math.sqrt(0.5))


def _fsim(theta: float, phi: float) -> Matrix:
    c, s = math.cos(theta), -1j * math.sin(theta)
    return _array([[1, 0, 0, 0], [0, c, s, 0], [0, s, c, 0], [0, 0, 0, cmath.exp(-1j * phi)]])


def _rccx() -> Matrix:
    """Toffoli up to relative phases: controls 0 and 1, target 2 (qelib1's rccx)."""
    matrix = np.eye(8, dtype=np.complex128)
    matrix[5, 5] = -1
    matrix[3, 3] = matrix[7, 7] = 0
    matrix[3, 7], matrix[7, 3] = -1j, 1j
    return matrix


def _dcx() -> Matrix:
    """CX(0, 1) and then CX(1, 0)."""
    first = _control(partial(_constant, _X), 1)
    return _SWAP @ first @ _SWAP @ first


def _fixed(matrix: Matrix) -> Builder:
    return partial(_constant, matrix)


BUILDERS: dict[str, tuple[int, int, Builder]] = {
    "gphase": (0, 1, _gphase),
    "id": (1, 0, _fixed(_I)), "x": (1, 0, _fixed(_X)), "y": (1, 0, _fixed(_Y)), "z": (1, 0, _fixed(_Z)),
    "h": (1, 0, _fixed(_H)), "s": (1, 0, partial(_phase, math.pi / 2)), "sdg": (1, 0, partial(_phase, -math.pi / 2)),
    "t": (1, 0, partial(_phase, math.pi / 4)), "tdg": (1, 0, partial(_phase, -math.pi / 4)),
    "sx": (1, 0, _fixed(_SX)), "sxdg": (1, 0, _fixed(_SX.conj().T)),
    "p": (1, 1, _phase), "phase": (1, 1, _phase), "u1": (1, 1, _phase), "rx": (1, 1, _rx), "ry": (1, 1, _ry),
    "rz": (1, 1, _rz), "r": (1, 2, _r), "u2": (1, 2, _u2), "u3": (1, 3, _u3), "u": (1, 3, _u3), "U": (1, 3, _u3),
    "cx": (2, 0, partial(_control, _fixed(_X), 1)), "CX": (2, 0, partial(_control, _fixed(_X), 1)),
    "cy": (2, 0, partial(_control, _fixed(_Y), 1)), "cz": (2, 0, partial(_control, _fixed(_Z), 1)),
    "ch": (2, 0, partial(_control, _fixed(_H), 1)), "csx": (2, 0, partial(_control, _fixed(_SX), 1)),
    "cs": (2, 0, partial(_control, _phase, 1, math.pi / 2)), "csdg": (2, 0, partial(_control, _phase, 1, -math.pi / 2)),
    "cp": (2, 1, partial(_control, _phase, 1)), "cphase": (2, 1, partial(_control, _phase, 1)),
    "cu1": (2, 1, partial(_control, _phase, 1)), "crx": (2, 1, partial(_control, _rx, 1)),
    "cry": (2, 1, partial(_control, _ry, 1)), "crz": (2, 1, partial(_control, _rz, 1)),
    "cu3": (2, 3, partial(_control, _u3, 1)), "cu": (2, 4, _cu),
    "swap": (2, 0, _fixed(_SWAP)), "iswap": (2, 0, _fixed(_ISWAP)), "dcx": (2, 0, _dcx), "ecr": (2, 0, _ecr),
    "rxx": (2, 1, partial(_pauli_rotation, _X, _X)), "ryy": (2, 1, partial(_pauli_rotation, _Y, _Y)),
    "rzz": (2, 1, partial(_pauli_rotation, _Z, _Z)), "rzx": (2, 1, partial(_pauli_rotation, _Z, _X)),
    "fsim": (2, 2, _fsim),
    "ccx": (3, 0, partial(_control, _fixed(_X), 2)), "ccz": (3, 0, partial(_control, _fixed(_Z), 2)),
    "cswap": (3, 0, partial(_control, _fixed(_SWAP), 1)), "rccx": (3, 0, _rccx),
    "c3x": (4, 0, partial(_control, _fixed(_X), 3)), "c3z": (4, 0, partial(_control, _fixed(_Z), 3)),
    "c3sqrtx": (4, 0, partial(_control, _fixed(_SX), 3)), "c4x": (5, 0, partial(_control, _fixed(_X), 4)),
}
"""name -> (qubits, parameters, builder)."""

NAMES = tuple(sorted(BUILDERS))


def _entry(name: str) -> tuple[int, int, Builder]:
    if name not in BUILDERS:
        close = nearest(name, BUILDERS)
        raise SpecError(f"unknown gate {name!r}", allowed=[*NAMES, "unitary"],
                        hint=f"did you mean {close!r}?" if close else None)
    return BUILDERS[name]


def base_qubits(name: str) -> int:
    """Number of qubits of a named gate."""
    return _entry(name)[0]


def base_parameters(name: str) -> int:
    """Number of parameters of a named gate."""
    return _entry(name)[1]


def base_matrix(name: str, params: tuple[float, ...]) -> Matrix:
    """The (2^k, 2^k) matrix of a named gate.

    Raises:
        SpecError: unknown name or wrong number of parameters.
    """
    _, count, builder = _entry(name)
    if len(params) != count:
        raise SpecError(f"gate {name} takes {count} parameters, not {len(params)}")
    return builder(*params)

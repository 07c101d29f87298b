"""What to read from the final state of a circuit, and sums of Pauli products as text."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.errors import SpecError
from workbench.spec import about, spec

__all__ = ["MOST_MARGINAL_QUBITS", "MOST_SHOTS", "Outputs", "PauliTerm", "parse_pauli"]

MOST_MARGINAL_QUBITS = 20
MOST_SHOTS = 10**8


@dataclass(frozen=True, slots=True, kw_only=True)
class PauliTerm:
    """coefficient times a product of Pauli matrices, ``paulis[q]`` one of X, Y, Z; qubits not named carry I."""

    coefficient: float
    paulis: Mapping[int, str]


def parse_pauli(text: str, *, coefficient: float = 1.0) -> PauliTerm:
    """``"X0 Z3 Y7"`` or ``"-0.5 X0 Z3"`` as a term; a number before the factors multiplies ``coefficient``.

    Raises:
        SpecError: a factor is not a letter X, Y, Z followed by a qubit, or a qubit comes twice.
    """
    factors = text.split()
    with contextlib.suppress(ValueError, IndexError):  # the number in front may be left out
        coefficient *= float(factors[0])
        factors = factors[1:]
    paulis: dict[int, str] = {}
    for factor in factors:
        letter, number = factor[:1].upper(), factor[1:]
        if letter not in ("X", "Y", "Z") or not number.isdigit():
            raise SpecError(f"{factor!r} is no Pauli factor", where=text, allowed=["X3", "Y0", "Z12", "0.5 X3 Z0"])
        if int(number) in paulis:
            raise SpecError(f"qubit {number} comes twice", where=text)
        paulis[int(number)] = letter
    return PauliTerm(coefficient=coefficient, paulis=paulis)


@spec
class Outputs:
    """What a run reads from the final state; nothing by default."""

    amplitudes: tuple[str, ...] = about("Basis states as bit strings, the highest qubit first, e.g. '0110'.",
                                        default=())
    probabilities: tuple[int, ...] = about("Qubits whose joint distribution is wanted, at most 20.", default=())
    shots: int = about("Samples of all qubits.", default=0)
    seed: int = about("Seed of the samples.", default=0)
    pauli_sum: tuple[str, ...] = about("Terms of an observable, e.g. '0.5 X0 Z3', whose expectation is wanted.",
                                       default=())
    state_file: str | None = about("Where to write all amplitudes, qubit 0 the lowest index bit (a .npy file).",
                                   default=None)

    def __post_init__(self) -> None:
        if not 0 <= self.shots <= MOST_SHOTS:
            raise SpecError(f"{self.shots} samples", where="outputs.shots", allowed=[f"0 to {MOST_SHOTS}"])
        if len(self.probabilities) > MOST_MARGINAL_QUBITS or len(set(self.probabilities)) < len(self.probabilities):
            raise SpecError("a distribution is over distinct qubits", where="outputs.probabilities",
                            allowed=[f"at most {MOST_MARGINAL_QUBITS} qubits"])
        if self.state_file is not None and not self.state_file.endswith(".npy"):
            raise SpecError("the state goes to a NumPy file", where="outputs.state_file", allowed=["NAME.npy"])
        for text in self.pauli_sum:
            parse_pauli(text)

    def check(self, qubits: int) -> None:
        """Whether a circuit of so many qubits has what is asked for.

        Raises:
            SpecError: it has not.
        """
        for text in self.amplitudes:
            if len(text) != qubits or set(text) - {"0", "1"}:
                raise SpecError(f"{text!r} is no basis state of {qubits} qubits", where="outputs.amplitudes",
                                allowed=[f"{qubits} characters 0 or 1"])
        for where, asked in (("probabilities", self.probabilities),
                             ("pauli_sum", [q for text in self.pauli_sum for q in parse_pauli(text).paulis])):
            for q in asked:
                if not 0 <= q < qubits:
                    raise SpecError(f"the circuit has no qubit {q}", where=f"outputs.{where}",
                                    allowed=[f"0 to {qubits - 1}"])

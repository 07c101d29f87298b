"""OpenQASM 2 and 3 files as ``Circuit`` values.

Gates of the standard libraries keep their names; gates that a file defines are expanded; modifiers become control
values, inverses, repetitions or explicit matrices. Barriers vanish: they bind compilers, not states. Measurements are
accepted where nothing follows on their qubits, resets where nothing comes before; the rest is refused with its line.
Choice: OpenQASM 3's built-in ``U`` has the matrix of ``u3``, as the common tools read it (no extra phase of theta/2).
"""

from __future__ import annotations

import cmath
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planners.circuit.gateset import BUILDERS, NAMES
from planners.circuit.ir import Circuit, Gate, from_matrix, product_of
from planners.circuit.qasm_syntax import (
    Call,
    Declare,
    Define,
    Loop,
    Measure,
    Modifier,
    Operand,
    Reset,
    Statement,
    parse_statements,
)
from workbench.errors import SpecError, nearest

__all__ = ["inverse", "parse_qasm", "read_qasm", "with_phase"]

_SELF_INVERSE = ("id", "x", "y", "z", "h", "cx", "CX", "cy", "cz", "ch", "swap", "ccx", "ccz", "cswap", "c3x", "c3z",
                 "c4x", "ecr", "rccx")
_PAIRED = {"s": "sdg", "sdg": "s", "t": "tdg", "tdg": "t", "sx": "sxdg", "sxdg": "sx", "cs": "csdg", "csdg": "cs"}
_NEGATED = ("gphase", "p", "phase", "u1", "rx", "ry", "rz", "cp", "cphase", "cu1", "crx", "cry", "crz", "rxx", "ryy",
            "rzz", "rzx", "fsim")


def read_qasm(path: Path | str) -> Circuit:
    """Read a plain or gzip-compressed OpenQASM file.

    Raises:
        SpecError: no such file, wrong syntax, or a construct that cannot be planned, with file and line.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SpecError(f"cannot read the circuit: {error.strerror}", where=str(path),
                        next_command="wb schema circuit") from None
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    return parse_qasm(text, name=path.name.removesuffix(".gz").removesuffix(".qasm"), where=path.name)


def parse_qasm(text: str, *, name: str = "circuit", where: str = "qasm") -> Circuit:
    """The circuit an OpenQASM 2 or 3 text describes.

    Raises:
        SpecError: as ``read_qasm``.
    """
    reader = _Reader(where)
    reader.run(parse_statements(text, where=where), {})
    return reader.circuit(name)


def inverse(gate: Gate) -> Gate:
    """The gate's inverse, by name where the gate set has one."""
    name, params = gate.name, gate.params
    if name in _SELF_INVERSE:
        return gate
    if name in _PAIRED:
        name = _PAIRED[name]
    elif name in _NEGATED:
        params = tuple(-p for p in params)
    elif name in ("u3", "u", "U", "cu3"):
        params = (-params[0], -params[2], -params[1])
    else:
        return from_matrix(gate.matrix.conj().T, gate.qubits)
    return Gate(name=name, qubits=gate.qubits, params=params, controls=gate.controls)


def _power(gates: Sequence[Gate], exponent: float) -> list[Gate]:
    if float(exponent).is_integer():
        once = list(gates) if exponent >= 0 else [inverse(g) for g in reversed(gates)]
        return once * abs(int(exponent))
    from scipy.linalg import schur

    product = product_of(gates)
    triangle, basis = schur(product.matrix, output="complex")
    powered = basis @ np.diag(np.exp(1j * np.angle(np.diag(triangle)) * exponent)) @ basis.conj().T
    return [from_matrix(powered, product.qubits)]


class _Reader:
    """Runs a syntax tree and collects gates."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.registers: dict[str, tuple[int, ...]] = {}
        self.definitions: dict[str, Define] = {}
        self.qubits = 0
        self.gates: list[Gate] = []
        self.measured: dict[int, int] = {}
        self.touched: set[int] = set()

    def circuit(self, name: str) -> Circuit:
        if not self.qubits:
            raise SpecError("the file declares no qubits", where=self.where)
        return Circuit(name=name, qubits=self.qubits, gates=with_phase(self.gates))

    def fail(self, message: str, line: int, **details: Any) -> SpecError:
        return SpecError(message, where=f"{self.where}:{line}", **details)

    def run(self, statements: Iterable[Statement], env: dict[str, float]) -> None:
        for statement in statements:
            match statement:
                case Declare():
                    self.declare(statement, env)
                case Define():
                    self.definitions[statement.name] = statement
                case Loop():
                    for value in statement.values(env):
                        self.run(statement.body, {**env, statement.variable: value})
                case Measure():
                    for q in self.wires(statement.operands, env, statement.line):
                        self.measured[q] = statement.line
                case Reset():
                    if used := self.touched & set(self.wires(statement.operands, env, statement.line)):
                        raise self.fail(f"reset of qubit {min(used)} after a gate is not supported", statement.line,
                                        hint="a reset is accepted where no gate comes before it")
                case Call():
                    self.call(statement, env)

    def declare(self, statement: Declare, env: dict[str, float]) -> None:
        if statement.value is not None:
            env[statement.name] = statement.value(env)
        elif statement.alias is not None:
            self.registers[statement.name] = tuple(self.wires([statement.alias], env, statement.line))
        elif statement.size is not None:
            size = int(statement.size(env))
            self.registers[statement.name] = tuple(range(self.qubits, self.qubits + size))
            self.qubits += size

    def wires(self, operands: Iterable[Operand], env: dict[str, float], line: int) -> list[int]:
        return [q for operand in operands for q in self.wire(operand, env, line)]

    def wire(self, operand: Operand, env: dict[str, float], line: int) -> tuple[int, ...]:
        if operand.name not in self.registers:
            close = nearest(operand.name, self.registers)
            raise self.fail(f"unknown register {operand.name!r}", line, allowed=self.registers,
                            hint=f"did you mean {close!r}?" if close else None)
        register = self.registers[operand.name]
        if operand.indices is None:
            return register
        chosen = operand.indices(env, len(register))
        if any(not 0 <= i < len(register) for i in chosen):
            raise self.fail(f"index {chosen} leaves register {operand.name!r}", line,
                            allowed=[f"0 to {len(register) - 1}"])
        return tuple(register[i] for i in chosen)

    def call(self, call: Call, env: dict[str, float]) -> None:
        groups = [self.wire(operand, env, call.line) for operand in call.operands]
        lengths = {len(group) for group, operand in zip(groups, call.operands, strict=True) if len(group) != 1}
        if len(lengths) > 1:
            raise self.fail(f"registers of different sizes {sorted(lengths)} in one call", call.line)
        for i in range(lengths.pop() if lengths else 1):
            qubits = tuple(group[i] if len(group) > 1 else group[0] for group in groups)
            if len(set(qubits)) != len(qubits):
                raise self.fail(f"gate {call.name} names a qubit twice", call.line)
            if late := [q for q in qubits if q in self.measured]:
                raise self.fail(f"gate {call.name} acts on qubit {late[0]} after its measurement in line "
                                f"{self.measured[late[0]]}: measurement inside a circuit is not supported", call.line)
            self.touched.update(qubits)
            self.gates.extend(self.expand(call, qubits, env))

    def expand(self, call: Call, qubits: tuple[int, ...], env: dict[str, float]) -> list[Gate]:
        """The gates of one call on one tuple of qubits."""
        taken = 0
        control_sets: list[tuple[Modifier, tuple[int, ...]]] = []
        for modifier in call.modifiers:
            count = 0
            if modifier.kind in ("ctrl", "negctrl"):
                count = 1 if modifier.argument is None else int(modifier.argument(env))
            control_sets.append((modifier, qubits[taken:taken + count]))
            taken += count
        gates = self.plain(call, qubits[taken:], tuple(a(env) for a in call.arguments))
        for modifier, controls in reversed(control_sets):
            if modifier.kind == "inv":
                gates = [inverse(g) for g in reversed(gates)]
            elif modifier.kind == "pow":
                gates = _power(gates, 1.0 if modifier.argument is None else modifier.argument(env))
            else:
                values = (1 if modifier.kind == "ctrl" else 0,) * len(controls)
                gates = [Gate(name=g.name, qubits=controls + g.qubits, params=g.params, controls=values + g.controls,
                              unitary=g.unitary) for g in gates]
        return gates

    def plain(self, call: Call, qubits: tuple[int, ...], params: tuple[float, ...]) -> list[Gate]:
        """A gate without modifiers: a definition's body, or one named gate."""
        definition = self.definitions.get(call.name)
        if definition is None:
            return [self.named(call, qubits, params)]
        if (len(qubits), len(params)) != (len(definition.qubits), len(definition.parameters)):
            raise self.fail(f"gate {call.name} takes {len(definition.qubits)} qubits and {len(definition.parameters)} "
                            f"parameters, not {len(qubits)} and {len(params)}", call.line)
        inner = dict(zip(definition.parameters, params, strict=True))
        place = dict(zip(definition.qubits, qubits, strict=True))
        gates: list[Gate] = []
        for statement in definition.body:
            if not isinstance(statement, Call):
                raise self.fail("a gate's body may hold gates only", definition.line)
            unknown = [o.name for o in statement.operands if o.name not in place]
            if unknown:
                raise self.fail(f"unknown qubit {unknown[0]!r}", statement.line, allowed=place)
            gates.extend(self.expand(statement, tuple(place[o.name] for o in statement.operands), inner))
        return gates

    def named(self, call: Call, qubits: tuple[int, ...], params: tuple[float, ...]) -> Gate:
        entry = BUILDERS.get(call.name)
        if entry is None:
            known = [*NAMES, *self.definitions]
            close = nearest(call.name, known)
            raise self.fail(f"unknown gate {call.name!r}", call.line, allowed=known,
                            hint=f"did you mean {close!r}?" if close else None)
        if (len(qubits), len(params)) != entry[:2]:
            raise self.fail(f"gate {call.name} takes {entry[0]} qubits and {entry[1]} parameters, not {len(qubits)} "
                            f"and {len(params)}", call.line)
        return Gate(name=call.name, qubits=qubits, params=params)


def with_phase(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    """Fold gates on no qubit (global phases) into the first one-qubit gate, or into a phase on qubit 0."""
    phase = sum(g.params[0] for g in gates if not g.qubits)
    kept = [g for g in gates if g.qubits]
    if abs(cmath.exp(1j * phase) - 1) < 1e-15:
        return tuple(kept)
    for i, gate in enumerate(kept):
        if len(gate.qubits) == 1:
            kept[i] = from_matrix(cmath.exp(1j * phase) * gate.matrix, gate.qubits)
            return tuple(kept)
    return (*kept, from_matrix(cmath.exp(1j * phase) * np.eye(2), (0,)))

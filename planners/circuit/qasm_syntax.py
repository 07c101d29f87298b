"""OpenQASM 2 and 3 text to a small syntax tree: tokens, constant expressions, statements.

Covered: qubit and bit declarations, gate definitions, calls with ``ctrl``, ``negctrl``, ``inv`` and ``pow``,
``gphase``, constants, ``for`` over ranges and sets, ``let`` aliases of slices, barrier, measure, reset. Classical
control, subroutines, inputs, delays and calibration are refused with the line's number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from workbench.errors import SpecError

__all__ = ["Call", "Declare", "Define", "Expression", "Loop", "Measure", "Modifier", "Operand", "Reset", "Statement",
           "parse_statements"]

Environment = Mapping[str, float]
Expression = Callable[[Environment], float]


class Operand(NamedTuple):
    """A register, an element, or a slice: ``indices`` gives the chosen indices for a register of some size."""

    name: str
    indices: Callable[[Environment, int], list[int]] | None


class Modifier(NamedTuple):
    """``ctrl``, ``negctrl``, ``inv`` or ``pow`` with its argument."""

    kind: str
    argument: Expression | None


class Call(NamedTuple):
    """One gate applied to operands (registers broadcast)."""

    line: int
    name: str
    modifiers: tuple[Modifier, ...]
    arguments: tuple[Expression, ...]
    operands: tuple[Operand, ...]


class Declare(NamedTuple):
    """A quantum register (``size``) or a constant (``value``) or an alias (``alias``)."""

    line: int
    name: str
    size: Expression | None
    value: Expression | None
    alias: Operand | None


class Define(NamedTuple):
    """A gate definition."""

    line: int
    name: str
    parameters: tuple[str, ...]
    qubits: tuple[str, ...]
    body: tuple[Statement, ...]


class Loop(NamedTuple):
    """``for`` over values known when the file is read."""

    line: int
    variable: str
    values: Callable[[Environment], list[float]]
    body: tuple[Statement, ...]


class Measure(NamedTuple):
    """Measurement of operands."""

    line: int
    operands: tuple[Operand, ...]


class Reset(NamedTuple):
    """Reset of operands."""

    line: int
    operands: tuple[Operand, ...]


Statement = Call | Declare | Define | Loop | Measure | Reset


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


_PATTERN = re.compile(r"""
    (?P<skip>[ \t\r\n]+|//[^\n]*|/\*.*?\*/|\#?pragma[^\n]*|@[A-Za-z_][\w.]*[^\n]*(?=\n))
  | (?P<number>(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<name>[A-Za-z_\u03c0\u03c4\u2107][\w$]*|\$\d+)
  | (?P<string>"[^"\n]*"|'[^'\n]*')
  | (?P<sign>\*\*|->|==|!=|<=|>=|&&|\|\||\+\+|[-+*/%^=<>!~()\[\]{},;:@.&|])
""", re.VERBOSE | re.DOTALL)

_CONSTANTS = {"pi": math.pi, "π": math.pi, "tau": math.tau, "τ": math.tau, "euler": math.e, "ℇ": math.e}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "exp": math.exp, "ln": math.log, "log": math.log,
    "sqrt": math.sqrt, "arcsin": math.asin, "arccos": math.acos, "arctan": math.atan, "asin": math.asin,
    "acos": math.acos, "atan": math.atan, "floor": math.floor, "ceiling": math.ceil, "mod": math.fmod, "pow": math.pow,
}
_TYPES = ("int", "uint", "float", "angle", "bool", "complex")
_REFUSED = {
    "if": "classical control", "while": "classical control", "switch": "classical control", "def": "a subroutine",
    "return": "a subroutine", "input": "a run-time input", "extern": "an external function", "opaque": "an opaque gate",
    "delay": "timing", "box": "timing", "stretch": "timing", "duration": "timing", "cal": "pulse calibration",
    "defcal": "pulse calibration", "defcalgrammar": "pulse calibration", "array": "an array", "break": "a loop exit",
    "continue": "a loop exit", "end": "an early end",
}


def _tokens(text: str, where: str) -> Iterator[_Token]:
    position, line = 0, 1
    while position < len(text):
        match = _PATTERN.match(text, position)
        if match is None:
            raise SpecError(f"unexpected character {text[position]!r}", where=f"{where}:{line}")
        kind = str(match.lastgroup)
        if kind != "skip":
            yield _Token(kind, match.group(), line)
        line += match.group().count("\n")
        position = match.end()
    yield _Token("end", "", line)


def parse_statements(text: str, *, where: str) -> tuple[Statement, ...]:
    """The file's statements in order.

    Raises:
        SpecError: wrong syntax or an unsupported construct, with file and line.
    """
    return _Parser(list(_tokens(text, where)), where).program()


class _Parser:
    """Recursive descent over the token list."""

    def __init__(self, tokens: list[_Token], where: str) -> None:
        self.tokens = tokens
        self.where = where
        self.at = 0

    # tokens
    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        if self.next.text == text and self.next.kind != "string":
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.fail(f"expected {text!r}, found {self.next.text or 'the end of the file'!r}")

    def identifier(self) -> str:
        if self.next.kind != "name":
            raise self.fail(f"expected a name, found {self.next.text or 'the end of the file'!r}")
        return self.take().text

    def fail(self, message: str, *, line: int | None = None, hint: str | None = None) -> SpecError:
        return SpecError(message, where=f"{self.where}:{self.next.line if line is None else line}", hint=hint)

    # statements
    def program(self) -> tuple[Statement, ...]:
        if self.accept("OPENQASM"):
            if self.take().text.split(".")[0] not in ("2", "3"):
                raise self.fail("only OpenQASM 2 and 3 are read")
            self.expect(";")
        statements: list[Statement] = []
        while self.next.kind != "end":
            statements.extend(self.statement())
        return tuple(statements)

    def block(self) -> tuple[Statement, ...]:
        self.expect("{")
        statements: list[Statement] = []
        while not self.accept("}"):
            if self.next.kind == "end":
                raise self.fail("a block is not closed")
            statements.extend(self.statement())
        return tuple(statements)

    def statement(self) -> list[Statement]:
        line, word = self.next.line, self.next.text
        if word in _REFUSED:
            raise self.fail(f"{word!r}: {_REFUSED[word]} is not supported",
                      hint="only circuits of gates, with measurements at the very end, can be planned")
        if self.accept(";"):
            return []
        if self.accept("include"):
            self.take()
            self.expect(";")
            return []
        if word in ("qreg", "creg", "qubit", "bit"):
            return self.register()
        if word == "gate":
            return [self.definition()]
        if word == "for":
            return [self.loop()]
        if self.accept("barrier"):
            if self.next.text != ";":
                self.operands()
            self.expect(";")
            return []
        if self.accept("measure"):
            operands = self.operands()
            if self.accept("->"):
                self.operands()
            self.expect(";")
            return [Measure(line, operands)]
        if self.accept("reset"):
            operands = self.operands()
            self.expect(";")
            return [Reset(line, operands)]
        if self.accept("let"):
            name = self.identifier()
            self.expect("=")
            alias = self.operand()
            self.expect(";")
            return [Declare(line, name, None, None, alias)]
        if word in ("const", "output", *_TYPES):
            return self.constant()
        return self.call_or_assignment()

    def register(self) -> list[Statement]:
        line, word = self.next.line, self.take().text
        size: Expression = lambda _: 1.0  # noqa: E731 - an expression like any other
        if word in ("qubit", "bit") and self.accept("["):
            size = self.expression()
            self.expect("]")
        name = self.identifier()
        if word in ("qreg", "creg"):
            self.expect("[")
            size = self.expression()
            self.expect("]")
        measured: list[Statement] = []
        if word == "bit" and self.accept("="):
            if self.accept("measure"):
                measured.append(Measure(line, self.operands()))
            else:
                self.take()
        self.expect(";")
        return measured if word in ("creg", "bit") else [Declare(line, name, size, None, None)]

    def constant(self) -> list[Statement]:
        line = self.next.line
        if self.accept("output"):
            raise self.fail("outputs are not supported", line=line)
        self.accept("const")
        self.take()
        if self.accept("["):
            self.expression()
            self.expect("]")
        name = self.identifier()
        if not self.accept("="):
            raise self.fail(f"variable {name!r} has no value: only constants known when the file is read are supported",
                      line=line)
        value = self.expression()
        self.expect(";")
        return [Declare(line, name, None, value, None)]

    def call_or_assignment(self) -> list[Statement]:
        line, start = self.next.line, self.at
        if self.next.kind == "name" and self.tokens[self.at + 1].text not in ("(", "@"):
            self.operand()
            if self.accept("="):
                if self.accept("measure"):
                    operands = self.operands()
                    self.expect(";")
                    return [Measure(line, operands)]
                raise self.fail("assignment to a variable is not supported", line=line)
            self.at = start
        modifiers = []
        while self.next.text in ("ctrl", "negctrl", "inv", "pow"):
            kind = self.take().text
            argument = None
            if self.accept("("):
                argument = self.expression()
                self.expect(")")
            self.expect("@")
            modifiers.append(Modifier(kind, argument))
        name = self.identifier()
        arguments: list[Expression] = []
        if self.accept("("):
            while not self.accept(")"):
                arguments.append(self.expression())
                self.accept(",")
        operands = self.operands() if self.next.text != ";" else ()
        self.expect(";")
        return [Call(line, name, tuple(modifiers), tuple(arguments), operands)]

    def definition(self) -> Define:
        line = self.take().line
        name = self.identifier()
        parameters: list[str] = []
        if self.accept("("):
            while not self.accept(")"):
                parameters.append(self.identifier())
                self.accept(",")
        qubits = [self.identifier()]
        while self.accept(","):
            qubits.append(self.identifier())
        return Define(line, name, tuple(parameters), tuple(qubits), self.block())

    def loop(self) -> Loop:
        line = self.take().line
        if self.next.text in _TYPES:
            self.take()
            if self.accept("["):
                self.expression()
                self.expect("]")
        variable = self.identifier()
        self.expect("in")
        values = self.value_list(closing="]" if self.next.text == "[" else "}")
        body = self.block() if self.next.text == "{" else tuple(self.statement())
        return Loop(line, variable, lambda env: [float(v) for v in values(env, None)], body)

    # operands and indices
    def operands(self) -> tuple[Operand, ...]:
        found = [self.operand()]
        while self.accept(","):
            found.append(self.operand())
        return tuple(found)

    def operand(self) -> Operand:
        name = self.identifier()
        if self.next.text != "[":
            return Operand(name, None)
        if self.tokens[self.at + 1].text == "{":
            self.take()
            chosen = self.value_list(closing="}")
            self.expect("]")
        else:
            chosen = self.value_list(closing="]")
        return Operand(name, lambda env, size: [int(v) for v in chosen(env, size)])

    def value_list(self, *, closing: str) -> Callable[[Environment, int | None], list[int]]:
        """``[a]``, ``[a:b]``, ``[a:step:b]`` (b included) or ``{a, b, c}``; negative indices count from the end."""
        self.take()
        parts: list[Expression | None] = [None if self.next.text == ":" else self.expression()]
        separator = ""
        while not self.accept(closing):
            separator = self.next.text
            if separator not in (":", ","):
                raise self.fail(f"expected {closing!r}, found {separator!r}")
            self.take()
            parts.append(None if self.next.text in (":", closing) else self.expression())

        def values(env: Environment, size: int | None) -> list[int]:
            given = [None if p is None else int(p(env)) for p in parts]
            if size is not None:
                given = [v if v is None or v >= 0 or (separator == ":" and i == 1 and len(given) == 3) else v + size
                         for i, v in enumerate(given)]
            if separator != ":":
                return [v for v in given if v is not None]
            step = (given[1] or 1) if len(given) == 3 else 1
            first = given[0] if given[0] is not None else 0
            last = given[-1] if given[-1] is not None else (size or 1) - 1
            return list(range(first, last + (1 if step > 0 else -1), step))

        return values

    # expressions, by rising precedence
    def expression(self) -> Expression:
        left = self.term()
        while self.next.text in ("+", "-"):
            sign = self.take().text
            left = _binary(sign, left, self.term())
        return left

    def term(self) -> Expression:
        left = self.unary()
        while self.next.text in ("*", "/", "%"):
            sign = self.take().text
            left = _binary(sign, left, self.unary())
        return left

    def unary(self) -> Expression:
        if self.accept("-"):
            inner = self.unary()
            return lambda env: -inner(env)
        if self.accept("+"):
            return self.unary()
        return self.power()

    def power(self) -> Expression:
        base = self.primary()
        if self.next.text in ("**", "^"):
            self.take()
            return _binary("**", base, self.unary())
        return base

    def primary(self) -> Expression:
        token = self.take()
        if token.kind == "number":
            number = float(token.text.replace("_", ""))
            return lambda _: number
        if token.text == "(":
            inner = self.expression()
            self.expect(")")
            return inner
        if token.kind == "name":
            return self.named(token)
        self.at -= 1
        raise self.fail(f"expected a number, found {token.text or 'the end of the file'!r}")

    def named(self, token: _Token) -> Expression:
        name = token.text
        if self.next.text == "(" and (name in _FUNCTIONS or name in _TYPES):
            self.take()
            arguments = [self.expression()]
            while self.accept(","):
                arguments.append(self.expression())
            self.expect(")")
            function = _FUNCTIONS.get(name, float)
            return lambda env: function(*(a(env) for a in arguments))

        def look_up(env: Environment) -> float:
            if name in env:
                return env[name]
            if name in _CONSTANTS:
                return _CONSTANTS[name]
            raise SpecError(f"unknown value {name!r}", where=f"{self.where}:{token.line}")

        return look_up


def _binary(sign: str, left: Expression, right: Expression) -> Expression:
    if sign == "+":
        return lambda env: left(env) + right(env)
    if sign == "-":
        return lambda env: left(env) - right(env)
    if sign == "*":
        return lambda env: left(env) * right(env)
    if sign == "/":
        return lambda env: left(env) / right(env)
    if sign == "%":
        return lambda env: math.fmod(left(env), right(env))
    return lambda env: left(env) ** right(env)

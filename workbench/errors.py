"""What can go wrong, each with its own exit code and the next thing to type.

A message says what is wrong, where, what is allowed, the nearest name and the next command.
``assert`` is for our own invariants only; everything a user can cause is one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckFailed",
    "Infeasible",
    "MissingProfile",
    "NotBuilt",
    "SolverError",
    "SpecError",
    "TraceError",
    "WorkbenchError",
    "nearest",
]

_MOST_NAMES = 30  # in one list: a message stays on one screen


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name closest to ``name`` (case ignored), or ``None`` when nothing is close."""
    by_fold = {a.casefold(): a for a in allowed}
    hits = difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.6)
    return by_fold[hits[0]] if hits else None


class WorkbenchError(Exception):
    """Base of every error a user can cause.

    Args:
        message: what is wrong, in one sentence (more lines may follow).
        where: file, key path or row in which it was found.
        allowed: the values that would have been accepted.
        hint: the nearest name or the smallest change that helps.
        next_command: a command the user can paste.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        allowed: Iterable[str] | None = None,
        hint: str | None = None,
        next_command: str | None = None,
    ) -> None:
        self.message = message
        self.where = where
        self.allowed = tuple(allowed) if allowed is not None else None
        self.hint = hint
        self.next_command = next_command
        super().__init__(message)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.message}" if self.where else self.message]
        if self.allowed is not None:
            more = f", … and {len(self.allowed) - _MOST_NAMES} more" if len(self.allowed) > _MOST_NAMES else ""
            lines.append("  allowed: " + (", ".join(self.allowed[:_MOST_NAMES]) or "nothing") + more)
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        if self.next_command:
            lines.append(f"  next: {self.next_command}")
        return "\n".join(lines)


class SpecError(WorkbenchError):
    """A spec, an option or an input file is wrong. ``faults`` holds every fault found, not just the first."""

    exit_code = 2

    def __init__(self, message: str, *, faults: Iterable[WorkbenchError] = (), where: str | None = None,
                 allowed: Iterable[str] | None = None, hint: str | None = None,
                 next_command: str | None = None) -> None:
        super().__init__(message, where=where, allowed=allowed, hint=hint, next_command=next_command)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        own = super().__str__()
        if not self.faults:
            return own
        listed = "\n".join("- " + str(f).replace("\n", "\n  ") for f in self.faults)
        head, _, tail = own.partition("\n")
        return "\n".join(part for part in (head, listed, tail) if part)


class TraceError(SpecError):
    """A trace or profile file has missing columns or impossible rows; the message names the rows."""


class Infeasible(WorkbenchError):
    """No plan satisfies the constraints. The message names the binding one and the smallest relaxation."""

    exit_code = 3


class MissingProfile(WorkbenchError):
    """A cost was asked for that nobody measured. ``keys`` lists what is missing."""

    exit_code = 4

    def __init__(self, message: str, *, keys: Iterable[str] = (), where: str | None = None,
                 allowed: Iterable[str] | None = None, hint: str | None = None,
                 next_command: str | None = None) -> None:
        super().__init__(message, where=where, allowed=allowed, hint=hint, next_command=next_command)
        self.keys = tuple(keys)

    def __str__(self) -> str:
        shown = "".join(f"\n  missing: {k}" for k in self.keys[:12])
        more = f"\n  missing: … and {len(self.keys) - 12} more" if len(self.keys) > 12 else ""
        head, _, tail = super().__str__().partition("\n")
        return head + shown + more + (f"\n{tail}" if tail else "")


class CheckFailed(WorkbenchError):
    """A plan or an outcome violates its own problem."""

    exit_code = 5


class SolverError(WorkbenchError):
    """A solver is absent, has no licence for the model's size, or broke."""

    exit_code = 6


class NotBuilt(WorkbenchError):
    """The verb exists in the contract but this study does not have it yet."""

    exit_code = 7

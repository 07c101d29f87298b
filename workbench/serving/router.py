"""Which replica gets a request: smooth shares over groups of replicas, then the least outstanding work.

Planned shares are met by deficit: each request adds every group's share to its credit and takes one from the group
served, so that after any number of requests of a type each group is within one request of its share. Outstanding work
is the input and output tokens of a replica's unfinished requests; ties go to the replica listed first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

from workbench.errors import SpecError, nearest

__all__ = ["Deficit", "LeastWork"]


class LeastWork:
    """The member with the least outstanding work, kept in a heap whose stale entries are dropped when met."""

    def __init__(self, members: Sequence[int]) -> None:
        self._work = dict.fromkeys(members, 0)
        self._heap = [(0, member) for member in members]

    def add(self, member: int, tokens: int) -> None:
        """Work handed out (or, if negative, done)."""
        work = self._work[member] = self._work[member] + tokens
        heappush(self._heap, (work, member))

    def choose(self) -> int:
        """The member to serve next."""
        while True:
            work, member = self._heap[0]
            if self._work[member] == work:
                return member
            heappop(self._heap)


class Deficit:
    """Smooth weighted dispatch of each workload type over groups.

    Args:
        shares: group -> share of each workload type; for each type any positive scale.
        groups: the groups there are.
        workloads: number of workload types.

    Raises:
        SpecError: unknown groups, rows of the wrong length, negative shares, or a type nobody serves.
    """

    def __init__(self, shares: Mapping[str, Sequence[float]], *, groups: Sequence[str], workloads: int) -> None:
        faults = []
        for group, row in shares.items():
            if group not in groups and any(row):
                close = nearest(group, groups)
                faults.append(SpecError("no replica is of this group", where=f"shares.{group}", allowed=groups,
                                        hint=f"did you mean {close!r}?" if close else None))
            if len(row) < workloads or any(share < 0 for share in row):
                faults.append(SpecError(f"needs {workloads} shares of at least 0, one a workload type",
                                        where=f"shares.{group}"))
        if not faults:
            faults = [SpecError(f"no group serves workload type {w}", where="shares") for w in range(workloads)
                      if not any(row[w] for row in shares.values())]
        if faults:
            raise SpecError("the planned shares do not fit the fleet", faults=faults)
        self._rows: list[tuple[list[str], list[float], list[float]]] = []
        for workload in range(workloads):
            serving = [g for g in groups if g in shares and shares[g][workload] > 0]
            total = sum(shares[g][workload] for g in serving)
            self._rows.append((serving, [shares[g][workload] / total for g in serving], [0.0] * len(serving)))

    def choose(self, workload: int) -> str:
        """The group furthest behind its share of this type."""
        serving, share, credit = self._rows[workload]
        best = 0
        for i, part in enumerate(share):
            credit[i] += part
            if credit[i] > credit[best]:
                best = i
        credit[best] -= 1.0
        return serving[best]

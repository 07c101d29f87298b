"""Many replicas on one clock: requests in order of arrival, each routed once, replicas advanced only when due.

Replicas touch each other only through the router. Routers that watch the replicas need every completion before an
arrival, so a heap holds the time of each replica's next decision; the others only advance the replica they chose.
At one instant arrivals come before iterations, in the order of the requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Literal, get_args

import numpy as np

from workbench.errors import SpecError, nearest
from workbench.serving.engine import Replica
from workbench.serving.metrics import ReplicaUse, Served, TokenGaps
from workbench.serving.records import NEVER, Ledger, column, stretches, sums
from workbench.serving.router import Deficit, LeastWork
from workbench.serving.stepwise import StepwiseReplica
from workbench.serving.workload import TICKS_PER_PS, ReplicaSpec, Requests
from workbench.stepcosts import Ramp

__all__ = ["RouterName", "StepMode", "simulate_fleet"]

RouterName = Literal["deficit", "least-outstanding", "round-robin", "random"]
StepMode = Literal["coalesced", "every iteration"]
AnyReplica = Replica | StepwiseReplica


def simulate_fleet(requests: Requests, replicas: Sequence[ReplicaSpec], *, router: RouterName = "least-outstanding",
                   shares: Mapping[str, Sequence[float]] | None = None, rng: np.random.Generator | None = None,
                   step: StepMode = "coalesced") -> Served:
    """Serve ``requests`` on ``replicas``.

    Args:
        requests: columns, see ``Requests.of``.
        replicas: one entry a replica; entries of one configuration share the ``group`` name.
        router: "deficit": per workload type, the group furthest behind its planned share, then the replica of it with
            the least outstanding work (input and output tokens of unfinished requests); "least-outstanding": the
            replica with the least outstanding work of all; "round-robin"; "random".
        shares: for "deficit": group -> share of each workload type (the plan's x; each type's shares are scaled to
            sum to 1).
        rng: for "random".
        step: "coalesced" advances whole stretches of decoding in closed form; "every iteration" takes them one by
            one. Both give the same integers.

    Raises:
        SpecError: no replicas or requests, unknown names, shares or generator missing, or shares that do not fit.
        Infeasible: a request is routed to a replica whose KV cache can never hold it.
    """
    _check_names(router, step)
    if not len(requests) or not replicas:
        raise SpecError("a simulation needs at least one request and one replica")
    watching = router in ("deficit", "least-outstanding") and len(replicas) > 1
    ledger = Ledger(requests, done=[] if watching else None)
    ramps: dict[int, dict[int, Ramp]] = {}
    kind = Replica if step == "coalesced" else StepwiseReplica
    fleet: list[AnyReplica] = [kind(i, spec, ledger, ramps.setdefault(id(spec.step_model), {}))
                               for i, spec in enumerate(replicas)]
    if watching:
        _serve_watching(requests, fleet, ledger, _chooser(requests, replicas, router, shares))
    else:
        _serve_blind(requests, fleet, _assignment(len(requests), len(replicas), router, rng))
    for replica in fleet:
        replica.advance(NEVER)
    return _served(requests, replicas, fleet, ledger)


def _check_names(router: str, step: str) -> None:
    for what, name, allowed in (("router", router, get_args(RouterName)), ("step", step, get_args(StepMode))):
        if name not in allowed:
            close = nearest(name, allowed)
            raise SpecError(f"no {what} is called {name!r}", allowed=allowed,
                            hint=f"did you mean {close!r}?" if close else None)


def _assignment(requests: int, replicas: int, router: RouterName, rng: np.random.Generator | None) -> list[int]:
    """The replica of each request, for routers that do not look at the replicas."""
    if router == "random":
        if rng is None:
            raise SpecError("the random router needs a random generator", hint="rng=numpy.random.default_rng(seed)")
        return rng.integers(replicas, size=requests).tolist()
    return (np.arange(requests) % replicas).tolist()


class _Groups:
    """Chooses a group by planned shares (or the one group of all), then its member with the least work."""

    def __init__(self, requests: Requests, members: Mapping[str, Sequence[int]], deficit: Deficit | None) -> None:
        self._workload: list[int] = requests.workload.tolist()
        self._tokens: list[int] = (requests.input_tokens + requests.output_tokens).tolist()
        self._deficit = deficit
        self._least = {group: LeastWork(listed) for group, listed in members.items()}
        self._of = {member: self._least[group] for group, listed in members.items() for member in listed}
        self._all = next(iter(self._least.values()))

    def choose(self, request: int) -> int:
        least = self._all if self._deficit is None else self._least[self._deficit.choose(self._workload[request])]
        member = least.choose()
        least.add(member, self._tokens[request])
        return member

    def finished(self, request: int, member: int) -> None:
        self._of[member].add(member, -self._tokens[request])


def _chooser(requests: Requests, replicas: Sequence[ReplicaSpec], router: RouterName,
             shares: Mapping[str, Sequence[float]] | None) -> _Groups:
    if router == "least-outstanding":
        return _Groups(requests, {"": range(len(replicas))}, None)
    if shares is None:
        raise SpecError("the deficit router needs the planned shares", hint="shares={group: [share of each type]}")
    members: dict[str, list[int]] = {}
    for i, spec in enumerate(replicas):
        members.setdefault(spec.group, []).append(i)
    return _Groups(requests, members,
                   Deficit(shares, groups=list(members), workloads=int(requests.workload.max()) + 1))


def _serve_blind(requests: Requests, fleet: Sequence[AnyReplica], assignment: Sequence[int]) -> None:
    for request, (chosen, ps) in enumerate(zip(assignment, requests.arrival_ps.tolist(), strict=True)):
        replica, now = fleet[chosen], ps * TICKS_PER_PS
        replica.advance(now)
        replica.deliver(request, now)


def _serve_watching(requests: Requests, fleet: Sequence[AnyReplica], ledger: Ledger, groups: _Groups) -> None:
    agenda = [(NEVER, replica.index) for replica in fleet]
    heapify(agenda)
    done, on = ledger.done, ledger.replica
    assert done is not None
    for request, ps in enumerate(requests.arrival_ps.tolist()):
        now = ps * TICKS_PER_PS
        while agenda[0][0] < now:
            due, index = heappop(agenda)
            replica = fleet[index]
            if replica.next == due:
                replica.advance(now)
                heappush(agenda, (replica.next, index))
        while done and done[0][0] < now:
            finished = heappop(done)[1]
            groups.finished(finished, on[finished])
        chosen = groups.choose(request)
        replica = fleet[chosen]
        before = replica.next
        replica.deliver(request, now)
        if replica.next != before:
            heappush(agenda, (replica.next, chosen))


def _served(requests: Requests, replicas: Sequence[ReplicaSpec], fleet: Sequence[AnyReplica],
            ledger: Ledger) -> Served:
    counts = np.bincount(column(ledger.replica), minlength=len(fleet))
    uses = tuple(
        ReplicaUse(group=spec.group, requests=int(counts[r.index]), **sums(stretches(r.stretches))._asdict(),
                   prompt_tokens=r.prompt_tokens, peak_blocks=r.peak_blocks, kv_blocks=spec.kv_blocks,
                   block_size=spec.block_size)
        for spec, r in zip(replicas, fleet, strict=True))
    # The stepwise replica writes down every gap by itself.
    together = [r.stretches for r in fleet if isinstance(r, Replica)]
    gaps = TokenGaps(stretches=stretches(bytearray().join(together)), single=column(ledger.single_gaps),
                     long=tuple(ledger.long_gaps))
    return Served(arrival_ps=requests.arrival_ps, scheduled_ps=column(ledger.scheduled),
                  first_token_ps=column(ledger.first), finish_ps=column(ledger.finish),
                  input_tokens=requests.input_tokens, output_tokens=requests.output_tokens,
                  replica=column(ledger.replica), preemptions=column(ledger.preemptions),
                  reused_tokens=column(ledger.hits), gaps=gaps, replicas=uses)

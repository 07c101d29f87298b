"""What a serving simulation is given: request columns and replica descriptions.

Times are seconds outside; inside, the event clock counts femtoseconds (``stepcosts.TICKS_PER_S``) and recorded columns
whole picoseconds, which fit 64 bits for 106 days.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import SpecError, TraceError
from workbench.stepcosts import StepModel

__all__ = ["PS_PER_S", "TICKS_PER_PS", "Caching", "ReplicaSpec", "Requests", "Scheduling", "prefix_parents",
           "turn_parents"]

PS_PER_S = 10**12
TICKS_PER_PS = 1000
_LAST_PS = 2**62

Scheduling = Literal["async", "sync"]
Caching = Literal["off", "prefix"]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """Request columns, one entry a request, in order of arrival. Make one with ``Requests.of``.

    ``arrival_ps`` int64 [n] is never decreasing; ``input_tokens`` and ``output_tokens`` int64 [n] are at least 1;
    ``workload`` int64 [n] is each request's workload type (row of the planned shares); ``prefix_of`` int64 [n] is an
    earlier request with which the prompt shares its first ``shared_tokens`` int64 [n] tokens (-1: none).
    """

    arrival_ps: Ints
    input_tokens: Ints
    output_tokens: Ints
    workload: Ints
    prefix_of: Ints
    shared_tokens: Ints

    @classmethod
    def of(cls, arrival_s: ArrayLike, input_tokens: ArrayLike, output_tokens: ArrayLike, *,
           workload: ArrayLike | None = None, prefix_of: ArrayLike | None = None,
           shared_tokens: ArrayLike | None = None) -> Requests:
        """Check and pack columns of equal length; arrivals in seconds, rounded to picoseconds.

        Args:
            arrival_s: [n] never decreasing, >= 0.
            input_tokens: [n] prompt lengths, >= 1.
            output_tokens: [n] generated tokens, >= 1.
            workload: [n] workload types from 0; absent: all 0.
            prefix_of: [n] earlier requests whose prompts begin alike, -1 for none; absent: none.
            shared_tokens: [n] how many first tokens are shared with ``prefix_of``.

        Raises:
            TraceError: lengths differ, arrivals run backwards, or a value is out of range; names the first rows.
        """
        seconds = np.atleast_1d(np.asarray(arrival_s, dtype=np.float64))
        n = len(seconds)
        if not np.isfinite(seconds).all() or (seconds < 0).any() or (seconds * PS_PER_S > _LAST_PS).any():
            raise TraceError(f"arrival times must lie between 0 and {_LAST_PS / PS_PER_S:.0f} s")
        none = np.full(n, -1)
        columns = {
            "arrival_ps": np.rint(seconds * PS_PER_S).astype(np.int64),
            "input_tokens": _whole(input_tokens), "output_tokens": _whole(output_tokens),
            "workload": _whole(np.zeros(n) if workload is None else workload),
            "prefix_of": _whole(none if prefix_of is None else prefix_of),
            "shared_tokens": _whole(np.zeros(n) if shared_tokens is None else shared_tokens),
        }
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise TraceError(f"columns differ in length: {lengths}")
        requests = cls(**columns)
        _check(requests)
        return requests

    def __len__(self) -> int:
        return len(self.arrival_ps)


def _whole(values: ArrayLike) -> Ints:
    return np.atleast_1d(np.asarray(values)).astype(np.int64)


def _check(r: Requests) -> None:
    """Every kind of impossible row at once, each with the first few row numbers."""
    parent, rows = r.prefix_of, np.arange(len(r))
    has_parent = parent >= 0
    parent_tokens = r.input_tokens[np.where(has_parent, np.minimum(parent, rows), 0)] if len(r) else parent
    faults = {
        "arrivals run backwards": np.diff(r.arrival_ps, prepend=r.arrival_ps[:1]) < 0,
        "input_tokens below 1": r.input_tokens < 1,
        "output_tokens below 1": r.output_tokens < 1,
        "workload below 0": r.workload < 0,
        "prefix_of is not an earlier request": (parent >= rows) | (parent < -1),
        "shared_tokens below 0, beyond a prompt, or of no request":
            (r.shared_tokens < 0) | (r.shared_tokens > r.input_tokens)
            | (r.shared_tokens > np.where(has_parent, parent_tokens, 0)),
    }
    found = [TraceError(f"{what} in {int(bad.sum())} rows, first {np.flatnonzero(bad)[:5].tolist()}")
             for what, bad in faults.items() if bad.any()]
    if found:
        raise TraceError("impossible requests", faults=found)


def prefix_parents(blocks: Iterable[Sequence[int]], *, block_tokens: int,
                   input_tokens: ArrayLike) -> tuple[Ints, Ints]:
    """``prefix_of`` and ``shared_tokens`` from the block ids of each prompt.

    Equal ids mean equal blocks and equal everything before them. The parent is the request that first brought the
    deepest shared block.
    """
    first: dict[int, int] = {}
    parents, depths = [], []
    for request, ids in enumerate(blocks):
        parent, depth = -1, 0
        for block in ids:
            owner = first.get(block)
            if owner is None:
                break
            parent, depth = owner, depth + 1
        for block in ids[depth:]:
            first.setdefault(block, request)
        parents.append(parent)
        depths.append(depth)
    parent_of, lengths = np.array(parents, dtype=np.int64), _whole(input_tokens)
    shared = np.minimum(np.array(depths, dtype=np.int64) * block_tokens, np.minimum(lengths, lengths[parent_of]))
    return parent_of, np.where(parent_of >= 0, shared, 0)


def turn_parents(input_tokens: ArrayLike, shared_tokens: ArrayLike) -> tuple[Ints, Ints]:
    """``prefix_of`` and ``shared_tokens`` when only the lengths of shared prefixes are known.

    A conversation's next turn begins with the whole prompt of an earlier one, so the parent is the latest earlier
    request of exactly that length; requests for which there is none share nothing.
    """
    lengths, shared = _whole(input_tokens), _whole(shared_tokens)
    latest: dict[int, int] = {}
    parents = []
    for request, (length, tokens) in enumerate(zip(lengths.tolist(), shared.tolist(), strict=True)):
        parents.append(latest.get(tokens, -1) if tokens else -1)
        latest[length] = request
    parent_of = np.array(parents, dtype=np.int64)
    return parent_of, np.where(parent_of >= 0, shared, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One model replica: its iteration times and its engine's limits (vLLM's names in brackets).

    Args:
        step_model: times of one iteration.
        kv_blocks: usable KV cache blocks [num_gpu_blocks less the reserved null block].
        block_size: tokens a block.
        max_sequences: most requests running at once [max_num_seqs].
        token_budget: most tokens scheduled in one iteration [max_num_batched_tokens].
        group: configuration the replica belongs to; the router's shares are per group.
        scheduling: "async": an iteration is composed while the one before it runs, so it sees arrivals and freed
            blocks one iteration late [async_scheduling]; "sync": composed between iterations.
        caching: "prefix": freed blocks stay reusable until evicted, least recently used first [enable_prefix_caching].

    Raises:
        SpecError: a limit below 1, or a token budget below ``max_sequences`` (an engine refuses that too).
    """

    step_model: StepModel
    kv_blocks: int
    block_size: int = 16
    max_sequences: int = 256
    token_budget: int = 2048
    group: str = ""
    scheduling: Scheduling = "async"
    caching: Caching = "off"

    def __post_init__(self) -> None:
        for name in ("kv_blocks", "block_size", "max_sequences", "token_budget"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, not {getattr(self, name)}", where="replica")
        if self.token_budget < self.max_sequences:
            raise SpecError(f"token_budget {self.token_budget} is below max_sequences {self.max_sequences}",
                            where="replica", hint="every running request needs one token of each iteration")
        for name, allowed in (("scheduling", ("async", "sync")), ("caching", ("off", "prefix"))):
            if getattr(self, name) not in allowed:
                raise SpecError(f"{name} = {getattr(self, name)!r}", where="replica", allowed=allowed)

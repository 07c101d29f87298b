"""Many replicas on one clock: requests in order of arrival, each routed once, replicas advanced only as far as needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from workbench.errors import NotBuilt
from workbench.serving.metrics import Served
from workbench.serving.workload import ReplicaSpec, Requests

__all__ = ["RouterName", "StepMode", "simulate_fleet"]

RouterName = Literal["deficit", "least-outstanding", "round-robin", "random"]
StepMode = Literal["coalesced", "every iteration"]


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
        shares: for "deficit": group -> share of each workload type (x of the plan; column sums need not be 1).
        rng: for "random".
        step: "coalesced" advances whole stretches of decoding in closed form; "every iteration" takes them one by
            one. Both give the same integers.

    Raises:
        SpecError: no replicas, unknown names, shares missing or of the wrong shape.
        Infeasible: a request is routed to a replica whose KV cache can never hold it.
    """
    raise NotBuilt("the serving simulator's engine is being built")

"""Request-level simulation of LLM serving: many replicas with continuous batching behind one router.

``simulate_fleet(requests, replicas, router=…)`` plays columns of requests against replicas and gives back per-request
times, per-replica use and the metrics of ``vllm bench serve``. Files, in reading order: ``workload`` (what goes in),
``engine`` (one replica, whole stretches of decoding at once), ``kvcache`` (blocks and prefix reuse), ``stepwise`` (the
same engine one iteration at a time, the engine's oracle), ``router``, ``fleet`` (one clock over all), ``metrics``.

Main limitations: no pipeline-parallel micro-batches inside a replica (the step model prices the whole iteration), no
speculative decoding, no tokens wasted by requests that stop early, no network between router and replicas.
"""

from workbench.serving.fleet import simulate_fleet
from workbench.serving.metrics import ReplicaUse, Served, Slo, TokenGaps
from workbench.serving.workload import ReplicaSpec, Requests, prefix_parents, turn_parents

__all__ = ["ReplicaSpec", "ReplicaUse", "Requests", "Served", "Slo", "TokenGaps", "prefix_parents", "simulate_fleet",
           "turn_parents"]

"""Claims of arXiv 2406.17145 that can be computed here: in-flight numbers, ratios of planned iterations, searches.

The paper's iterations were measured on 32 V100; ours are planned from the V100's data sheet. The paper's mini-batches
stand in an image, so ours are assumed: 256 samples for the transformers, 4096 for DLRM and CANDLE-Uno.
The sequential pipeline is the faster of PipeDream's chain and our stages in one chain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

from planners.pipeline.inflight import held_by_all
from planners.pipeline.planning import plan
from planners.pipeline.problem import Cluster, LinkRate, Model, Plan, Problem
from workbench.costs import open_costs
from workbench.reproduce import Reproduced

__all__ = ["CLAIMS"]

_BATCH_SAMPLES: Mapping[str, int] = {"multi-modal": 256, "dlrm": 4096, "candle-uno": 4096, "transformer": 256}
_BRANCHED = ("multi-modal", "dlrm", "candle-uno")
_COSTS = "V100 data-sheet costs, assumed mini-batches"


def _problem(family: str, *, devices: int, batch: int, **sizes: int) -> Problem:
    """A model on nodes of 4 V100 (16 GB), NVLink inside and 100 Gb/s between."""
    return Problem(
        model=Model(family=family, **sizes), batch_samples=batch,  # type: ignore[arg-type]
        micro_batches=tuple(1 << p for p in range(batch.bit_length()) if 1 << p <= 512),
        cluster=Cluster(devices=devices, devices_per_machine=4, memory_bytes=16e9, device="V100", dtype="fp32",
                        inside=LinkRate(latency_s=1e-5, bytes_per_s=5e10),
                        between=LinkRate(latency_s=1e-5, bytes_per_s=12.5e9)))


def _planned(problem: Problem, planner: str) -> Plan:
    return plan(problem, open_costs({"source": "analytic"}), planner=planner, time_limit_s=600)


def _chain(problem: Problem) -> Plan:
    return min((_planned(problem, name) for name in ("pipedream", "sequential")), key=lambda p: p.iteration_s)


@cache
def _speed_ups(family: str) -> tuple[float, float]:
    """On 32 devices, over the sequential pipeline: with its micro-batch, and with the micro-batch free."""
    problem = _problem(family, devices=32, batch=_BATCH_SAMPLES[family])
    chain = _chain(problem)
    same = replace(problem, micro_batches=(chain.stages[0].micro_batch_samples,))
    return (chain.iteration_s / _planned(same, "graph-uniform").iteration_s,
            chain.iteration_s / _planned(problem, "graph-uniform").iteration_s)


def _over_models(pick: Callable[[list[float]], float], which: int) -> Reproduced:
    ratios = {family: _speed_ups(family)[which] for family in _BRANCHED}
    return Reproduced(value=pick(list(ratios.values())), clock="planned",
                      note=f"{_COSTS}: " + ", ".join(f"{f} {r:.2f}" for f, r in ratios.items()))


def _in_flight(micro: tuple[int, int, int]) -> Reproduced:
    return Reproduced(value=held_by_all(micro, (1, 1, 1), [(1,), (2,), ()], 1024)[0], clock="planned")


def _transformer() -> Reproduced:
    problem = _problem("transformer", devices=32, batch=_BATCH_SAMPLES["transformer"])
    return Reproduced(value=_chain(problem).iteration_s / _planned(problem, "graph-uniform").iteration_s,
                      clock="planned", note=_COSTS)


def _search_seconds() -> Reproduced:
    took = {(family, devices): _planned(_problem(family, devices=devices, batch=_BATCH_SAMPLES[family]),
                                        "graph-uniform").certificate.seconds
            for family in _BATCH_SAMPLES for devices in (4, 8, 16, 32)}
    (family, devices), most = max(took.items(), key=lambda item: item[1])
    return Reproduced(value=most, clock="measured", note=f"longest of {len(took)}: {family} on {devices} devices")


def _search_speed_up() -> Reproduced:
    ratios = {}
    for family in _BRANCHED:
        problem = _problem(family, devices=32, batch=_BATCH_SAMPLES[family])
        took = []
        for planner in ("pipedream", "graph-uniform"):
            start = time.process_time()
            _planned(problem, planner)
            took.append(time.process_time() - start)
        ratios[family] = took[0] / took[1]
    return Reproduced(value=max(ratios.values()), clock="measured",
                      note="over our own PipeDream search on 32 devices: "
                           + ", ".join(f"{f} {r:.2f}" for f, r in ratios.items()))


def _branches() -> Reproduced:
    problem = _problem("candle-uno", devices=16, batch=1024, branches=16)
    ours = _planned(problem, "graph-uniform").iteration_s
    return Reproduced(value=_planned(problem, "pipedream").iteration_s / ours, clock="planned", note=_COSTS)


CLAIMS: Mapping[str, Callable[[], Reproduced]] = {
    "in-flight-mixed": lambda: _in_flight((1, 2, 4)),
    "in-flight-uniform": lambda: _in_flight((4, 4, 4)),
    "parallel-least": lambda: _over_models(min, 0),
    "parallel-most": lambda: _over_models(max, 0),
    "full-least": lambda: _over_models(min, 1),
    "full-most": lambda: _over_models(max, 1),
    "sequential-transformer": _transformer,
    "search-seconds": _search_seconds,
    "search-speed-up": _search_speed_up,
    "branches-most": _branches,
}

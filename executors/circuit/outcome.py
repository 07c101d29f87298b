"""What a run hands back: amplitudes by shard and seconds by step, and the metrics, timeline and probes made of them.

``InProcess`` is a sharded run in one process, on any device; ``outcome_of`` turns it into an ``Outcome``;
``sharded_outcome`` does so for ranks and files, whose parts are added up elsewhere.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import threads_available
from executors.circuit.measure import amplitudes, largest, norm
from executors.circuit.outputs import read_outputs
from executors.circuit.reference import Place, chosen_method
from executors.circuit.sharded import Exchange, ShardedCode, moved_shard, region
from executors.circuit.state import Placement, State, free_bytes
from planners.circuit import Plan, Problem
from planners.circuit.problem import STATE_SHARE
from planners.circuit.words import stage_metrics
from workbench.outcome import Metric, Outcome
from workbench.timeline import Span, Timeline

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["InProcess", "exchange_shards", "in_job", "outcome_of", "pass_bytes_per_s", "probed_states", "room_bytes",
           "sharded_outcome"]

PROBES = 64
"""Basis states whose amplitudes an outcome keeps for ``verify``: the most likely ones and a seeded choice."""
FREE_SHARE = 0.8
"""Part of the free memory a run may take where the problem gives no limit."""


@dataclass(slots=True)
class InProcess:
    """A sharded run in one process: the whole state by shard number, and what each step took."""

    state: State
    stage_s: list[float] = field(default_factory=list)
    exchange_s: list[float] = field(default_factory=list)
    sent_bytes: list[int] = field(default_factory=list)
    kernels: int = 0


def exchange_shards(shards: list[State], exchange: Exchange) -> int:
    """Trade regions between all pairs of shards, then renumber; bytes that ranks would have sent."""
    pairs = exchange.pairs
    bits = sum(1 << bit for _, bit in pairs)
    sent = 0
    for a in range(len(shards)):
        mine = sum((a >> bit & 1) << i for i, (_, bit) in enumerate(pairs))
        for step in range(1, 1 << len(pairs)):
            theirs = mine ^ step
            b = a & ~bits | sum((theirs >> i & 1) << bit for i, (_, bit) in enumerate(pairs))
            if a < b:
                left, right = region(shards[a], pairs, theirs), region(shards[b], pairs, mine)
                held = left.copy()
                left[...] = right
                right[...] = held
                sent += 2 * held.nbytes
    moved = [moved_shard(s, exchange) for s in range(len(shards))]
    if moved != list(range(len(shards))):
        old = [shard.copy() for shard in shards]
        for s, to in enumerate(moved):
            shards[to][...] = old[s]
            sent += old[s].nbytes if to != s else 0
    return sent


def room_bytes(problem: Problem) -> float:
    """Bytes that amplitudes may take here."""
    limit = problem.machine.memory_bytes
    return FREE_SHARE * free_bytes() if limit is None else STATE_SHARE * limit


def in_job() -> bool:
    """Whether this process is one rank of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def outcome_of(problem: Problem, plan: Plan, code: ShardedCode, done: InProcess, *, engine: str, threads: int,
               compile_s: float, passes: list[int]) -> Outcome:
    """Metrics, timeline and probes of an in-process run."""
    probes = probed_states(code, done.state, code.placement, shard=0)
    values = amplitudes(done.state, code.placement, probes)
    return sharded_outcome(
        problem, plan, code, done, engine=engine, threads=threads, compile_s=compile_s, passes=passes,
        norm_=norm(done.state), sent=sum(done.sent_bytes), probes=probes, values=values,
        read=read_outputs(problem.outputs, done.state, code.placement, qubits=code.qubits))


def probed_states(code: ShardedCode, state: State, placement: Placement, *, shard: int) -> list[int]:
    """Basis states to keep: a seeded choice, the same on every rank, and for one process its largest amplitudes."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 1 << code.qubits, PROBES // 2).tolist()
    if len(state) == 1 << code.qubits:
        chosen += placement.basis(largest(state, PROBES // 2)).tolist()
    return sorted(set(chosen))


def sharded_outcome(problem: Problem, plan: Plan, code: ShardedCode, done: InProcess, *, engine: str, threads: int,
                    compile_s: float, passes: list[int], norm_: float, sent: int, probes: list[int],
                    values: npt.NDArray[np.complex128], read: tuple[dict[str, pd.DataFrame], tuple[Metric, ...]],
                    where: str = "memory", traffic: int = 0) -> Outcome:
    """Metrics, timeline and tables of a run whose norm, bytes and amplitudes of ``probes`` are known.

    ``passes``: kernels of each stage; ``read``: tables and metrics of the outputs asked for; ``traffic``: file bytes.
    """
    import pandas as pd

    place = Place(room_bytes(problem), alone=not in_job())
    kernel_s, exchange_s = sum(done.stage_s), sum(done.exchange_s)
    state_bytes = problem.machine.amplitude_bytes << code.qubits
    limit = pass_bytes_per_s(done.state)
    spans: list[Span] = []
    clock = 0.0
    for index, seconds in enumerate(done.stage_s):
        if index:
            spans.append(Span(device="host", stream="exchange", name=f"exchange {index}", start_s=clock,
                              end_s=clock + done.exchange_s[index - 1], bytes=int(done.sent_bytes[index - 1])))
            clock = spans[-1].end_s
        spans.append(Span(device="host", stream="compute", name=f"stage {index}", start_s=clock,
                          end_s=clock + seconds, after=(len(spans) - 1,) if spans else ()))
        clock = spans[-1].end_s
    predicted = [sum(k.cost_s for k in stage.kernels) for stage in plan.stages]
    stages = pd.DataFrame({"stage": range(len(plan.stages)), "gates": [len(s.gates) for s in plan.stages],
                           "kernels": passes,
                           "predicted_s": predicted, "measured_s": done.stage_s,
                           "exchange_s": [0.0, *done.exchange_s]})
    return Outcome(
        clock="measured",
        metrics=(
            Metric(name="total_s", value=kernel_s + exchange_s, unit="s", about="Kernels and exchanges."),
            Metric(name="kernel_s", value=kernel_s, unit="s", about="All stages' kernels."),
            Metric(name="communication_s", value=exchange_s, unit="s", about="All exchanges between stages."),
            Metric(name="stages", value=len(plan.stages), unit="", about="Stages of the plan."),
            Metric(name="exchanged_bytes", value=sent, unit="bytes", about="Sent by all shards together."),
            Metric(name="compile_s", value=compile_s, unit="s", about="Lowering, tiling and emission."),
            Metric(name="norm", value=norm_, unit="", about="Sum of all probabilities."),
            Metric(name="bandwidth_bytes_per_s", value=2 * state_bytes * sum(passes) / kernel_s if kernel_s else 0.0,
                   unit="bytes/s", about="State bytes read and written by the kernels, a second."),
            Metric(name="bandwidth_limit_bytes_per_s", value=limit, unit="bytes/s",
                   about="The same for a pass that only scales the state, on this machine now."),
            *stage_metrics(done.stage_s),
            *read[1],
        ),
        timeline=Timeline.from_spans(spans),
        counters={"kernels": sum(passes), "exchanges": len(done.exchange_s), "shards": code.shards,
                  "threads": threads, "file_bytes": traffic},
        tables={"stages": stages,
                "amplitudes": pd.DataFrame({"basis": probes, "real": values.real, "imag": values.imag}),
                "engine": pd.DataFrame({"engine": [engine], "state": [where],
                                        "check": [chosen_method(problem, place)]}),
                **read[0]},
    )


def pass_bytes_per_s(state: State) -> float:
    """Bytes read and written a second when every processor scales its share of (a part of) the state in place."""
    part = state[: 1 << 22]
    shares = [share for share in np.array_split(part.view(part.real.dtype), threads_available()) if len(share)]
    with ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(_scale, shares))  # threads exist, and pages and caches are as a pass leaves them
        began = time.perf_counter()
        list(pool.map(_scale, shares))
        return 2 * part.nbytes / max(time.perf_counter() - began, 1e-9)


def _scale(share: npt.NDArray[np.floating]) -> None:
    np.multiply(share, 1, out=share)

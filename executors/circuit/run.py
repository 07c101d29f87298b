"""``run``: a plan on this machine's real clock; ``verify``: its outputs against an independent reference.

One shard runs in memory. Several shards run as ranks of the torch.distributed job this process belongs to (torchrun's
environment), else one after the other in this process: with the same exchanges while the whole state fits the memory
limit (``machine.memory_bytes``), on a file and one shard at a time where it does not. ``device = "cuda"`` follows the
plan's own kernels on the GPU (``gpu``); on the CPU every stage is regrouped into tile kernels.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import Engine, threads_available
from executors.circuit.emit import Program
from executors.circuit.measure import amplitudes, largest, norm
from executors.circuit.outofcore import StoredState, run_on_file
from executors.circuit.outputs import check_for_ranks, read_outputs
from executors.circuit.reference import Place, amplitude_faults, chosen_method
from executors.circuit.sharded import (
    Exchange,
    ShardedCode,
    compile_plan,
    engine_for,
    moved_shard,
    region,
)
from executors.circuit.state import Placement, State, allocate, clear_empty, free_bytes, prepare_zero
from planners.circuit import Plan, Problem
from planners.circuit.problem import STATE_SHARE
from planners.circuit.words import stage_metrics
from workbench.errors import Infeasible, SpecError
from workbench.outcome import Metric, Outcome
from workbench.plan import Violation
from workbench.timeline import Span, Timeline

if TYPE_CHECKING:
    import pandas as pd

    from executors.circuit.ranks import RankResult

__all__ = ["InProcess", "exchange_shards", "outcome_of", "run", "run_in_process", "verify"]

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


def run_in_process(code: ShardedCode, *, dtype: npt.DTypeLike, on: Engine, threads: int | None = None) -> InProcess:
    """All shards of a plan, one after the other, in one array of 2^n amplitudes."""
    state = allocate(1 << code.qubits, np.result_type(dtype, np.complex64))
    shards = list(state.reshape(code.shards, -1))
    result = InProcess(state)
    for index, stage in enumerate(code.stages):
        if stage.exchange is not None:
            began = time.perf_counter()
            result.sent_bytes.append(exchange_shards(shards, stage.exchange))
            result.exchange_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        if index == 0:
            prepare_zero(shards[0], _row(stage.program, code.local_bits))
        for number, shard in enumerate(shards):
            if index or number == 0:  # before the first exchange every other shard is zero
                on.run(stage.program, shard, shard=number, threads=threads or threads_available())
                clear_empty(shard, stage.empty)
                result.kernels += len(stage.program.kernels)
        result.stage_s.append(time.perf_counter() - began)
    return result


def _row(program: Program, bits: int) -> int:
    return int(program.kernels[0]["run"]) if len(program.kernels) else bits


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


def run(problem: Problem, plan: Plan, *, device: str) -> Outcome:
    """Run the plan from |0...0>.

    Args:
        problem: gives circuit and precision (``machine.amplitude_bytes``).
        plan: stages, and on a GPU kernels, to follow.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        SpecError: an unknown device, no GPU where one was asked for, or an output that the circuit or ranks lack.
        Infeasible: not even one shard fits the memory limit, or the state the disk.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SpecError(f"no device is called {device!r}", allowed=["auto", "cpu", "cuda"])
    dtype = np.dtype(np.float32 if problem.machine.amplitude_bytes == 8 else np.float64)
    if device != "cpu":
        from executors.circuit import gpu

        if gpu.available():
            return _as_gpu_rank(problem, plan, dtype) if in_job() else gpu.run(problem, plan, dtype=dtype)
        if device == "cuda":
            raise SpecError("no CUDA device or no cupy", allowed=["cpu"], next_command="wb doctor")
    on = engine_for(len(plan.stages[0].local), dtype)
    began = time.perf_counter()
    code = compile_plan(problem, plan, dtype=dtype, on=on)
    compile_s = time.perf_counter() - began
    if in_job():
        return _as_rank(problem, plan, code, dtype=dtype, on=on, compile_s=compile_s)
    if _state_bytes(problem, code.qubits) > _room(problem):
        return _out_of_core(problem, plan, code, dtype=dtype, on=on, compile_s=compile_s)
    done = run_in_process(code, dtype=dtype, on=on)
    return outcome_of(problem, plan, code, done, engine=on.name, threads=threads_available(), compile_s=compile_s,
                      passes=[len(stage.program.kernels) for stage in code.stages])


def _state_bytes(problem: Problem, qubits: int) -> int:
    return problem.machine.amplitude_bytes << qubits


def _room(problem: Problem) -> float:
    """Bytes that amplitudes may take here."""
    limit = problem.machine.memory_bytes
    return FREE_SHARE * free_bytes() if limit is None else STATE_SHARE * limit


def _out_of_core(problem: Problem, plan: Plan, code: ShardedCode, *, dtype: np.dtype, on: Engine, compile_s: float
                 ) -> Outcome:
    """The state is a file in the temporary folder, removed when its norm and amplitudes have been read."""
    whole, arena = _state_bytes(problem, code.qubits), _state_bytes(problem, code.local_bits)
    room = _room(problem)
    if arena > room:
        raise Infeasible(f"a shard takes {_mebibytes(arena)}, the memory limit leaves {_mebibytes(room)}",
                         where="machine.local_qubits", hint="with machine.memory_bytes the planner cuts shards to fit")
    where = (f"file, {_mebibytes(whole)} against a memory limit that leaves {_mebibytes(room)}; one shard of "
             f"{_mebibytes(arena)} in memory at a time")
    warnings.warn(f"out of core: state in a {where}", stacklevel=3)
    with tempfile.TemporaryDirectory(prefix="circuit-") as folder:
        path = Path(folder) / "state"
        done = run_on_file(code, path, dtype=dtype, on=on)
        state = StoredState(path, np.result_type(dtype, np.complex64)).as_state()
        probes = _probes(code, state, done.placement, shard=0)
        between = len(code.stages) - 1
        return _outcome(problem, plan, code, InProcess(state, done.stage_s, [0.0] * between, [0] * between),
                        engine=on.name, threads=threads_available(), compile_s=compile_s,
                        passes=[len(stage.program.kernels) for stage in code.stages], norm_=norm(state), sent=0,
                        probes=probes, values=amplitudes(state, done.placement, probes), where=where,
                        traffic=done.read_bytes + done.written_bytes,
                        read=read_outputs(problem.outputs, state, done.placement, qubits=code.qubits))


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def in_job() -> bool:
    """Whether this process is one rank of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _as_rank(problem: Problem, plan: Plan, code: ShardedCode, *, dtype: np.dtype, on: Engine, compile_s: float
             ) -> Outcome:
    """This process is one rank of a job: every rank gets the whole job's metrics and its own shard's times."""
    from executors.circuit import ranks

    check_for_ranks(problem.outputs, code.placement, code.local_bits)
    with ranks.group():
        part = ranks.run_rank(code, dtype=dtype, threads=threads_available(), on=on)
        return _rank_outcome(problem, plan, code, part, engine=on.name, compile_s=compile_s,
                             passes=[len(stage.program.kernels) for stage in code.stages], device="cpu")


def _as_gpu_rank(problem: Problem, plan: Plan, dtype: np.dtype) -> Outcome:
    from executors.circuit import gpu, ranks

    with ranks.group("nccl"):
        code, part = gpu.run_rank(problem, plan, dtype=dtype)
        check_for_ranks(problem.outputs, code.placement, code.local_bits)
        return _rank_outcome(problem, plan, code, part, engine="cupy RawKernel", compile_s=0.0,
                             passes=[len(stage.kernels) for stage in plan.stages], device="cuda")


def _rank_outcome(problem: Problem, plan: Plan, code: ShardedCode, part: RankResult, *, engine: str, compile_s: float,
                  passes: list[int], device: str) -> Outcome:
    from executors.circuit import ranks

    total = ranks.summed([norm(part.state), float(sum(part.sent_bytes))], device=device)
    probes = _probes(code, part.state, code.placement, shard=part.rank)
    values = ranks.summed_complex(amplitudes(part.state, code.placement, probes, shard=part.rank), device=device)
    done = InProcess(part.state, part.stage_s, part.exchange_s, part.sent_bytes)
    return _outcome(problem, plan, code, done, engine=engine, threads=threads_available(), compile_s=compile_s,
                    passes=passes, norm_=total[0], sent=int(total[1]), probes=probes, values=values,
                    read=read_outputs(problem.outputs, part.state, code.placement, qubits=code.qubits,
                                      add=lambda mine: ranks.summed_complex(mine, device=device), shard=part.rank,
                                      shards=code.shards))


def outcome_of(problem: Problem, plan: Plan, code: ShardedCode, done: InProcess, *, engine: str, threads: int,
               compile_s: float, passes: list[int]) -> Outcome:
    """Metrics, timeline and probes of an in-process run."""
    probes = _probes(code, done.state, code.placement, shard=0)
    values = amplitudes(done.state, code.placement, probes)
    return _outcome(problem, plan, code, done, engine=engine, threads=threads, compile_s=compile_s, passes=passes,
                    norm_=norm(done.state), sent=sum(done.sent_bytes), probes=probes, values=values,
                    read=read_outputs(problem.outputs, done.state, code.placement, qubits=code.qubits))


def _probes(code: ShardedCode, state: State, placement: Placement, *, shard: int) -> list[int]:
    """Basis states to keep: a seeded choice, the same on every rank, and for one process its largest amplitudes."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 1 << code.qubits, PROBES // 2).tolist()
    if len(state) == 1 << code.qubits:
        chosen += placement.basis(largest(state, PROBES // 2)).tolist()
    return sorted(set(chosen))


def _outcome(problem: Problem, plan: Plan, code: ShardedCode, done: InProcess, *, engine: str, threads: int,
             compile_s: float, passes: list[int], norm_: float, sent: int, probes: list[int],
             values: npt.NDArray[np.complex128], read: tuple[dict[str, pd.DataFrame], tuple[Metric, ...]],
             where: str = "memory", traffic: int = 0) -> Outcome:
    import pandas as pd

    place = Place(_room(problem), alone=not in_job())
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


def verify(problem: Problem, plan: Plan, outcome: Outcome) -> list[Violation]:
    """Check an outcome's norm, and its amplitudes by the method its table ``engine`` names (see ``reference``).

    Among ranks the first one checks amplitudes for all.
    """
    tolerance = 1e-5 if problem.machine.amplitude_bytes == 8 else 1e-10
    found: list[Violation] = []
    if not abs(outcome["norm"] - 1) <= tolerance:
        found.append(Violation(rule="norm", where="state", detail=f"{outcome['norm']!r} instead of 1"))
    if int(os.environ.get("RANK", "0")):
        return found
    table = outcome.tables["amplitudes"]
    got = table["real"].to_numpy() + 1j * table["imag"].to_numpy()
    method = outcome.tables["engine"]["check"].iloc[0]
    return found + amplitude_faults(problem, plan, method, [int(x) for x in table["basis"]], got)

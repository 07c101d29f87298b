"""``run``: a plan on this machine's real clock; ``verify``: its outputs against an independent reference.

One shard runs in memory. Several shards run as ranks of the torch.distributed job this process belongs to (torchrun's
environment), else one after the other in this process: with the same exchanges while the whole state fits the memory
limit (``machine.memory_bytes``), on a file and one shard at a time where it does not. ``device = "cuda"`` follows the
plan's own kernels on the GPU (``gpu``); on the CPU every stage is regrouped into tile kernels.
"""

from __future__ import annotations

import os
import time
import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from executors.circuit.compiled import Engine, threads_available
from executors.circuit.emit import Program
from executors.circuit.measure import amplitudes, norm
from executors.circuit.outcome import (
    InProcess,
    exchange_shards,
    in_job,
    outcome_of,
    probed_states,
    room_bytes,
    sharded_outcome,
)
from executors.circuit.outofcore import StoredState, run_on_file, scratch_folder
from executors.circuit.outputs import check_for_ranks, read_outputs
from executors.circuit.reference import amplitude_faults
from executors.circuit.sharded import ShardedCode, compile_plan, engine_for
from executors.circuit.state import allocate, clear_empty, prepare_zero
from planners.circuit import Plan, Problem
from workbench.errors import Infeasible, SpecError
from workbench.outcome import Outcome
from workbench.plan import Violation

if TYPE_CHECKING:
    from executors.circuit.ranks import RankResult

__all__ = ["run", "run_in_process", "verify"]


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
    if _state_bytes(problem, code.qubits) > room_bytes(problem):
        return _out_of_core(problem, plan, code, dtype=dtype, on=on, compile_s=compile_s)
    done = run_in_process(code, dtype=dtype, on=on)
    return outcome_of(problem, plan, code, done, engine=on.name, threads=threads_available(), compile_s=compile_s,
                      passes=[len(stage.program.kernels) for stage in code.stages])


def _state_bytes(problem: Problem, qubits: int) -> int:
    return problem.machine.amplitude_bytes << qubits


def _out_of_core(problem: Problem, plan: Plan, code: ShardedCode, *, dtype: np.dtype, on: Engine, compile_s: float
                 ) -> Outcome:
    """The state is a file in the temporary folder, removed when its norm and amplitudes have been read."""
    whole, arena = _state_bytes(problem, code.qubits), _state_bytes(problem, code.local_bits)
    room = room_bytes(problem)
    if arena > room:
        raise Infeasible(f"a shard takes {_mebibytes(arena)}, the memory limit leaves {_mebibytes(room)}",
                         where="machine.local_qubits", hint="with machine.memory_bytes the planner cuts shards to fit")
    where = (f"file, {_mebibytes(whole)} against a memory limit that leaves {_mebibytes(room)}; one shard of "
             f"{_mebibytes(arena)} in memory at a time")
    warnings.warn(f"out of core: state in a {where}", stacklevel=3)
    with scratch_folder() as folder:
        path = folder / "state"
        done = run_on_file(code, path, dtype=dtype, on=on)
        state = StoredState(path, np.result_type(dtype, np.complex64)).as_state()
        probes = probed_states(code, state, done.placement, shard=0)
        between = len(code.stages) - 1
        return sharded_outcome(
            problem, plan, code, InProcess(state, done.stage_s, [0.0] * between, [0] * between), engine=on.name,
            threads=threads_available(), compile_s=compile_s,
            passes=[len(stage.program.kernels) for stage in code.stages], norm_=norm(state), sent=0,
            probes=probes, values=amplitudes(state, done.placement, probes), where=where,
            traffic=done.read_bytes + done.written_bytes,
            read=read_outputs(problem.outputs, state, done.placement, qubits=code.qubits))


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


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
    probes = probed_states(code, part.state, code.placement, shard=part.rank)
    values = ranks.summed_complex(amplitudes(part.state, code.placement, probes, shard=part.rank), device=device)
    done = InProcess(part.state, part.stage_s, part.exchange_s, part.sent_bytes)
    return sharded_outcome(
        problem, plan, code, done, engine=engine, threads=threads_available(), compile_s=compile_s, passes=passes,
        norm_=total[0], sent=int(total[1]), probes=probes, values=values,
        read=read_outputs(problem.outputs, part.state, code.placement, qubits=code.qubits, shard=part.rank,
                          add=lambda mine: ranks.summed_complex(mine, device=device), shards=code.shards))


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

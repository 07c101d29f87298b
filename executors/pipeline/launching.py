"""Ranks: processes of this machine, watched until the last one is done, or those of a job that is already there.

Each local process joins one group through a file (gloo, or NCCL with one rank a GPU) and plays its part of every job
it is given. A rank that dies or fails ends the run: the others are stopped and the error says which rank it was and
what it said. Under torchrun (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) or srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS,
with MASTER_ADDR and MASTER_PORT exported) this process is one rank, and every rank gets all results.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planners.pipeline.problem import Plan, Problem
from workbench.errors import SpecError, WorkbenchError
from workbench.processes import deaf_to_interrupts

if TYPE_CHECKING:
    from executors.pipeline.rank import Done

__all__ = ["Launch", "in_job", "rank_in_job", "run_as_rank"]

_BACKEND = {"cpu": "gloo", "cuda": "nccl"}
_POLL_S = 0.02
_STARTUP_S = 60.0
# Optimizers load torch._dynamo at their first step: seconds a rank, unless its parent process has it already.
_PRELOADED = ["executors.pipeline.rank", "torch._dynamo"]


class Launch:
    """Processes for a list of jobs (problem, plan), one after the other on the same ranks.

    ``ordered`` matches messages by their order instead of by tags, which NCCL does in any case.

    Raises:
        WorkbenchError: a rank died or failed.
    """

    def __init__(self, jobs: Sequence[tuple[Problem, Plan]], *, device: str = "cpu", ordered: bool = False) -> None:
        self.jobs, self.device, self.ordered = list(jobs), device, ordered or device == "cuda"
        self.world = max(sum(len(s.devices) for s in plan.stages) for _, plan in self.jobs)

    def run(self, *, watch: Callable[[list[int]], None] | None = None) -> list[list[Done]]:
        """Run all jobs; for each, what its ranks bring back. ``watch`` is given the process ids once they started."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        with tempfile.TemporaryDirectory() as folder:
            processes = [context.Process(target=_child, args=(rank, self.world, folder, self), daemon=True)
                         for rank in range(self.world)]
            try:
                with deaf_to_interrupts():
                    for p in processes:
                        p.start()
                if watch is not None:
                    watch([p.pid for p in processes if p.pid is not None])
                self._await(processes, Path(folder))
            finally:
                for p in processes:
                    if p.is_alive():
                        p.kill()
                        p.join()
            results = [pickle.loads((Path(folder) / f"rank{r}").read_bytes()) for r in range(self.world)]
        return [[part[j] for part in results if part[j] is not None] for j in range(len(self.jobs))]

    def _await(self, processes: list[Any], folder: Path) -> None:
        while True:
            codes = [p.exitcode for p in processes]
            # The rank that failed first has the cause; the others only lost their peer.
            killed = [r for r, code in enumerate(codes) if code is not None and code < 0]
            failed = [r for r, code in enumerate(codes) if code]
            if killed or failed:
                raise self._lost((killed or failed)[0], codes, folder)
            if all(code == 0 for code in codes):
                return
            time.sleep(_POLL_S)

    def _lost(self, rank: int, codes: list[int | None], folder: Path) -> WorkbenchError:
        code = codes[rank] or 0
        plan = self.jobs[0][1]
        places = [f"stage {x}, replica {r}" for x, s in enumerate(plan.stages) for r in range(len(s.devices))]
        where = places[rank] if rank < len(places) else "spare"
        if code < 0:
            return WorkbenchError(f"rank {rank} ({where}) was killed by {signal.Signals(-code).name}; the run is over",
                                  where="executors.pipeline", hint="its output is lost; run again")
        said = folder / f"error{rank}"
        text = said.read_text(encoding="utf-8").strip() if said.exists() else f"exit code {code}"
        return WorkbenchError(f"rank {rank} ({where}) failed: {text.splitlines()[-1] if text else code}",
                              where="executors.pipeline", hint=text or None)


def in_job() -> bool:
    """Whether this process is one rank of several that somebody else started."""
    return _job_size() > 1


def rank_in_job() -> int:
    """This process's rank in its job; 0 without one."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) if in_job() else 0


def _job_size() -> int:
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def run_as_rank(problem: Problem, plan: Plan, *, device: str) -> list[Done]:
    """This process's part of the job it belongs to; what all ranks bring back, the same on every rank.

    Raises:
        SpecError: the job has fewer ranks than the plan has stage replicas, or does not say where its ranks meet.
    """
    import torch.distributed as dist

    from executors.pipeline.rank import execute

    needed, size = sum(len(s.devices) for s in plan.stages), _job_size()
    if size < needed:
        raise SpecError(f"the plan has {needed} stage replicas, the job has {size} ranks", where="executors.pipeline",
                        next_command=f"torchrun --nproc_per_node={needed} -m workbench run SPEC")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SpecError(f"the job's environment lacks {' and '.join(missing)}", where="executors.pipeline",
                        hint="torchrun sets them; under srun: export MASTER_ADDR=<first host> MASTER_PORT=29500")
    rank = rank_in_job()
    local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or rank)
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or size)
    patience = timedelta(seconds=max(problem.run.timeout_s, _STARTUP_S))
    dist.init_process_group(_BACKEND[device], rank=rank, world_size=size, timeout=patience)
    try:
        own = f"cuda:{local}" if device == "cuda" else "cpu"
        done = execute(problem, plan, rank, device=own, neighbours=neighbours, ordered=device == "cuda")
        # Results are Python objects, which gloo passes on without a detour over the GPU.
        gathered: list[Done | None] = [None] * size
        dist.all_gather_object(gathered, done, group=dist.new_group(backend="gloo", timeout=patience))
    finally:
        dist.destroy_process_group()
    return [part for part in gathered if part is not None]


def _child(rank: int, world: int, folder: str, launch: Launch) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        import torch.distributed as dist

        from executors.pipeline.rank import execute

        jobs, device = launch.jobs, launch.device
        patience = max(problem.run.timeout_s for problem, _ in jobs)
        own = f"cuda:{rank}" if device == "cuda" else "cpu"
        dist.init_process_group(_BACKEND[device], init_method=f"file://{folder}/meet", rank=rank, world_size=world,
                                timeout=timedelta(seconds=max(patience, _STARTUP_S)))
        done = [execute(problem, plan, rank, device=own, ordered=launch.ordered) for problem, plan in jobs]
        Path(folder, f"rank{rank}").write_bytes(pickle.dumps(done))
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"error{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)

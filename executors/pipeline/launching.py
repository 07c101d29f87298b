"""Ranks as processes of this machine, watched until the last one is done.

Each process joins one gloo group through a file and plays its part of every job it is given. A rank that dies or
fails ends the run: the others are stopped and the error says which rank it was and what it said.
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
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from executors.pipeline.rank import Done

__all__ = ["Launch"]

_POLL_S = 0.02
_STARTUP_S = 60.0
# Optimizers load torch._dynamo at their first step: seconds a rank, unless its parent process has it already.
_PRELOADED = ["executors.pipeline.rank", "torch._dynamo"]


class Launch:
    """Processes for a list of jobs (problem, plan), one after the other on the same ranks.

    Raises:
        WorkbenchError: a rank died or failed.
    """

    def __init__(self, jobs: Sequence[tuple[Problem, Plan]]) -> None:
        self.jobs = list(jobs)
        self.world = max(sum(len(s.devices) for s in plan.stages) for _, plan in self.jobs)

    def run(self, *, watch: Callable[[list[int]], None] | None = None) -> list[list[Done]]:
        """Run all jobs; for each, what its ranks bring back. ``watch`` is given the process ids once they started."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        with tempfile.TemporaryDirectory() as folder:
            processes = [context.Process(target=_child, args=(rank, self.world, folder, self.jobs), daemon=True)
                         for rank in range(self.world)]
            for p in processes:
                p.start()
            if watch is not None:
                watch([p.pid for p in processes if p.pid is not None])
            try:
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


def _child(rank: int, world: int, folder: str, jobs: list[tuple[Problem, Plan]]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        import torch.distributed as dist

        from executors.pipeline.rank import execute

        patience = max(problem.run.timeout_s for problem, _ in jobs)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world,
                                timeout=timedelta(seconds=max(patience, _STARTUP_S)))
        done = [execute(problem, plan, rank, world) for problem, plan in jobs]
        Path(folder, f"rank{rank}").write_bytes(pickle.dumps(done))
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"error{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)

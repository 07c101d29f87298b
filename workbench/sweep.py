"""Sweeps: one spec, many values, every finished result kept.

``[sweep.over]`` maps key paths to lists of values; the tasks are their Cartesian product. Each task's id is the
content id of its resolved spec, and the worker itself writes ``records/<id>.json`` whole or not at all: a kill at any
moment loses nothing finished, and a rerun does only what has no record. Where tasks run: ``workbench.engines``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench import engines
from workbench.errors import SpecError, WorkbenchError
from workbench.files import write_atomic
from workbench.job import read_spec, resolve
from workbench.runs import RunFolder
from workbench.spec import about, canonical_json, content_id, parse, set_keys, spec

__all__ = ["Sweep", "Task", "open_sweep", "run_sweep", "run_task"]


@spec
class Sweep:
    """The ``[sweep]`` section of a spec."""

    over: Mapping[str, tuple[Any, ...]] = about("Key paths of the spec, each with the values to try.")
    do: Literal["plan", "simulate"] = about("How far each task goes.", default="plan")
    engine: engines.Engine = about("Where tasks run: in this process, in local ones, on Dask workers, as Slurm jobs.",
                                   default="processes")
    workers: int = about("How many tasks run at once; 0: one a core (Slurm: all).", default=0)
    scheduler: str | None = about("dask: address of a running scheduler; absent: workers on this machine.",
                                  default=None)
    slurm: engines.Slurm = about("slurm: what a job gets.", default_factory=engines.Slurm)


@dataclass(frozen=True)
class Task:
    """One point of a sweep: the values that make it, and its whole spec."""

    id: str
    point: Mapping[str, Any]
    data: Mapping[str, Any]
    source: str
    do: str


def open_sweep(argument: str, assignments: tuple[str, ...], root: Path | str) -> tuple[Sweep, list[Task], Path]:
    """The sweep in a spec, its tasks in product order, and its folder.

    Every task's spec is validated before anything runs.

    Raises:
        SpecError: no ``[sweep]`` section, an empty list of values, or a point whose spec is faulty.
    """
    data, source = read_spec(argument, assignments)
    if "sweep" not in data:
        raise SpecError("the spec has no [sweep] section", where=source,
                        hint='add for example [sweep.over] "budget_usd_per_h" = [15, 30, 60]',
                        next_command=f"wb sweep {source} --set sweep.over.KEY=[…]")
    sweep = parse(Sweep, data["sweep"], where=f"{source} [sweep]")
    empty = [key for key, values in sweep.over.items() if not values]
    if empty or not sweep.over:
        raise SpecError(f"no values to sweep over for {', '.join(empty) or 'any key'}", where=f"{source} [sweep.over]")
    base = {k: v for k, v in data.items() if k != "sweep"}
    tasks = []
    for values in itertools.product(*sweep.over.values()):
        point = dict(zip(sweep.over, values, strict=True))
        body = set_keys(base, [f"{key}={_toml(value)}" for key, value in point.items()])
        job = resolve(body, f"{source} at {canonical_json(point)}")
        tasks.append(Task(job.id, point, body, source, sweep.do))
    folder = Path(root) / f"sweep-{content_id([t.id for t in tasks] + [sweep.do])}"
    return sweep, tasks, folder


def _toml(value: Any) -> str:
    """A scalar or list as TOML writes it; JSON strings, numbers, booleans and arrays are TOML too."""
    return json.dumps(value)


def run_task(task: Task, folder: str) -> dict[str, Any]:
    """Run one task and write its record; a workbench error (infeasible, missing profile) is a result too."""
    row: dict[str, Any] = {"id": task.id, **task.point}
    try:
        job = resolve(task.data, task.source)
        run = RunFolder.of(job, Path(folder) / "runs")
        plan = job.plan()
        job.check(plan)
        run.save_plan(job, plan)
        certificate = plan.certificate
        row |= {"status": certificate.status, "objective": certificate.objective, "bound": certificate.bound,
                "gap": certificate.gap, "unit": certificate.unit, "seconds": certificate.seconds}
        metrics = job.study.planner.predicted(job.problem, plan)
        if task.do == "simulate":
            outcome = job.simulate(plan)
            run.save_outcome(outcome)
            row |= {f"simulated.{m.name}": m.value for m in outcome.metrics}
        row |= {f"predicted.{m.name}": m.value for m in metrics}
    except WorkbenchError as error:
        row |= {"status": type(error).__name__, "error": str(error)}
    write_atomic(_record(folder, task.id), json.dumps(row, ensure_ascii=False) + "\n")
    return row


def _record(folder: Path | str, task_id: str) -> Path:
    return Path(folder) / "records" / f"{task_id}.json"


def run_sweep(sweep: Sweep, tasks: list[Task], folder: Path, *,
              on_result: Callable[[dict[str, Any], int, int], None]) -> list[dict[str, Any]]:
    """Do what is missing and return every row in task order.

    Args:
        sweep: engine and number of workers.
        tasks: all points, done or not.
        folder: where records live.
        on_result: called with (row, done, total) as each new result arrives.

    Raises:
        KeyboardInterrupt: after pending tasks are cancelled; finished ones are on disk.
        SpecError, WorkbenchError: the engine is not installed, does not answer, or lost a worker.
    """
    missing = [t for t in tasks if not _record(folder, t.id).exists()]
    done = len(tasks) - len(missing)
    for row in engines.run(sweep.engine, run_task, [(task, str(folder.resolve())) for task in missing],
                           workers=sweep.workers, scheduler=sweep.scheduler, slurm=sweep.slurm, folder=folder):
        done += 1
        on_result(row, done, len(tasks))
    return [json.loads(_record(folder, t.id).read_text(encoding="utf-8")) for t in tasks]

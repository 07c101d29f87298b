"""Run folders: everything about one answer, in files that are whole or absent.

    runs/<study>-<id>/spec.json  plan.json  simulated.json  measured.json  <clock>/<table>.parquet
                      <clock>/timeline.json (Chrome trace)  report.html  manifest.json

``plan.json`` is an envelope with a format version and a digest of the plan, so that a stale or hand-edited plan is
noticed before it is trusted.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import CheckFailed, SpecError, nearest
from workbench.files import atomic_path, write_atomic
from workbench.job import Job, resolve
from workbench.outcome import Metric, Outcome
from workbench.spec import content_id, dump, parse

if TYPE_CHECKING:
    from workbench.timeline import Timeline

__all__ = ["PLAN_VERSION", "RunFolder", "find", "machine_facts", "versions"]

PLAN_VERSION = 1
_PACKAGES = ("numpy", "scipy", "pandas", "simpy", "gurobipy", "mip", "ortools", "matplotlib", "torch", "cupy-cuda12x",
             "triton", "aiconfigurator-core")


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in ("planner-workbench", *_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine_facts() -> dict[str, Any]:
    """CPU model, cores and memory of this machine, as the operating system tells them."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"system": f"{platform.system()} {platform.machine()}", "cpu": cpu, "cores": os.cpu_count(),
            "memory_bytes": memory}


def _git_revision() -> str | None:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, text=True,
                              capture_output=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@dataclass(frozen=True)
class RunFolder:
    """One run folder on disk."""

    path: Path

    @classmethod
    def of(cls, job: Job, root: Path | str) -> RunFolder:
        """The folder in which ``job``'s answers live; written with its spec if new."""
        folder = cls(Path(root) / f"{job.study.name}-{job.id}")
        if not (folder.path / "spec.json").exists():
            folder._write_json("spec.json", job.resolved)
        return folder

    def job(self) -> Job:
        """The job this folder answers, from its stored spec."""
        data = self._read_json("spec.json")
        return resolve({"study": data["study"], **data["problem"], "costs": data["costs"],
                        "planner": data["planner"]}, str(self.path))

    def study_name(self) -> str:
        """The study that this folder's spec asks about."""
        return str(self._read_json("spec.json")["study"])

    def has(self, name: str) -> bool:
        """Whether the folder holds the file ``name``."""
        return (self.path / name).exists()

    def save_plan(self, job: Job, plan: Any) -> Path:
        """Store the plan in its envelope, and the manifest; outcomes of another plan are set aside."""
        body = dump(plan)
        if self._decides_otherwise(body):
            for clock in ("simulated", "measured"):
                if self.has(f"{clock}.json"):
                    (self.path / f"{clock}.json").replace(self.path / f"{clock}.superseded.json")
        envelope = {"format": "workbench.plan", "version": PLAN_VERSION, "study": job.study.name, "spec": job.id,
                    "digest": content_id(body), "plan": body}
        self._write_json("manifest.json", self._manifest(job, plan))
        return self._write_json("plan.json", envelope)

    def _decides_otherwise(self, body: Mapping[str, Any]) -> bool:
        """Whether the stored plan, if there is one, is another than ``body`` but for its certificate."""
        if not self.has("plan.json"):
            return False
        try:
            stored = self._read_json("plan.json").get("plan", {})
        except SpecError:  # a torn file is no plan
            return True
        return {**stored, "certificate": None} != {**body, "certificate": None}

    def load_plan(self, job: Job) -> Any:
        """The stored plan.

        Raises:
            SpecError: no plan, another format version, or a plan of another study.
            CheckFailed: the plan was changed after it was written.
        """
        where, again = str(self.path / "plan.json"), f"wb plan {job.source}"
        if not self.has("plan.json"):
            raise SpecError("there is no plan yet", where=where, next_command=again)
        envelope = self._read_json("plan.json")
        if envelope.get("format") != "workbench.plan" or envelope.get("version") != PLAN_VERSION:
            raise SpecError(f"plan format {envelope.get('format')!r} version {envelope.get('version')!r} is not ours",
                            where=where, allowed=[f"workbench.plan version {PLAN_VERSION}"], next_command=again)
        if envelope["study"] != job.study.name:
            raise SpecError(f"the plan is of study {envelope['study']!r}, the spec of {job.study.name!r}", where=where,
                            next_command=again)
        if envelope["digest"] != content_id(envelope["plan"]):
            raise CheckFailed("the plan was changed after the planner wrote it, so its certificate no longer holds",
                              where=where, next_command=again)
        return parse(job.study.planner.Plan, envelope["plan"], where=where, next_command=again)

    def save_outcome(self, outcome: Outcome) -> Path:
        """Store metrics and counters as JSON, tables as Parquet, the timeline as a Chrome trace."""
        for name, table in outcome.tables.items():
            with atomic_path(self.path / outcome.clock / f"{name}.parquet") as part:
                table.to_parquet(part)
        line = self.path / outcome.clock / "timeline.json"
        if outcome.timeline is not None:
            outcome.timeline.to_chrome_trace(line)
        else:
            line.unlink(missing_ok=True)  # of an earlier outcome
        body = {"clock": outcome.clock, "metrics": [asdict(m) for m in outcome.metrics],
                "counters": dict(outcome.counters), "tables": sorted(outcome.tables)}
        return self._write_json(f"{outcome.clock}.json", body)

    def load_outcome(self, clock: str) -> Outcome | None:
        """The stored outcome of one clock with its tables, or ``None``; see also ``load_timeline``."""
        if not self.has(f"{clock}.json"):
            return None
        import pandas as pd

        body = self._read_json(f"{clock}.json")
        tables = {name: pd.read_parquet(self.path / clock / f"{name}.parquet") for name in body["tables"]}
        return Outcome(clock=body["clock"], metrics=tuple(parse(Metric, m) for m in body["metrics"]),
                       counters=body["counters"], tables=tables)

    def load_timeline(self, clock: str) -> Timeline | None:
        """The stored timeline of one clock, or ``None`` when its outcome had none."""
        from workbench.timeline import Timeline

        path = self.path / clock / "timeline.json"
        return Timeline.from_chrome_trace(path) if path.exists() else None

    def manifest(self) -> dict[str, Any]:
        """What was stored beside the plan: spec, argv, versions, machine, profiles, solver and gap."""
        return self._read_json("manifest.json") if self.has("manifest.json") else {}

    def _manifest(self, job: Job, plan: Any) -> dict[str, Any]:
        certificate = plan.certificate
        return {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "revision": _git_revision(),
            "versions": versions(),
            "machine": machine_facts(),
            "threads": {k: os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
                        if k in os.environ},
            "profiles": {op: dump(p) for op, p in job.costs.provenance().items()},
            "seed": job.planner.seed,
            "solver": certificate.solver,
            "gap": certificate.gap,
            "spec": job.resolved,
        }

    def _write_json(self, name: str, body: Mapping[str, Any]) -> Path:
        return write_atomic(self.path / name, json.dumps(body, indent=1, ensure_ascii=False) + "\n")

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            data: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SpecError(f"{self.path} is not a run folder: it has no {name}", next_command="wb plan SPEC") from None
        except json.JSONDecodeError as error:
            again = "SPEC" if name == "spec.json" else self.path
            raise SpecError(f"not valid JSON: {error}", where=str(self.path / name),
                            next_command=f"wb plan {again}") from None
        return data


def find(argument: str, root: Path | str) -> RunFolder:
    """The run folder called ``argument``: a path, or a name below ``root``."""
    for candidate in (Path(argument), Path(root) / argument):
        if (candidate / "spec.json").exists():
            return RunFolder(candidate)
    known = sorted(p.parent.name for p in Path(root).glob("*/spec.json"))
    close = nearest(argument, known)
    raise SpecError(f"no run folder {argument!r}", allowed=known or None,
                    hint=f"did you mean {close!r}?" if close else None, next_command="wb plan SPEC")

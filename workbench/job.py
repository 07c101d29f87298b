"""One job: a resolved spec file, and the arrows of the picture as functions over its run folder.

    spec.toml -> Job -> plan -> check -> simulate | run -> report

A spec has ``study``, the problem's own fields, ``[costs]`` (which measurements), ``[planner]`` (which algorithm) and,
for ``wb sweep`` only, ``[sweep]``. Its content id is the sha256 of the resolved form without ``[sweep]``: the same
question always lands in the same run folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt

from workbench import study as studies
from workbench.costs import CostModel, CountedCosts, TableCosts, open_costs
from workbench.errors import CheckFailed, NotBuilt, SpecError, WorkbenchError, nearest
from workbench.outcome import Outcome
from workbench.plan import Violation
from workbench.spec import about, content_id, dump, parse, read_toml, set_keys, spec

__all__ = ["Job", "PlannerChoice", "open_job", "resolve"]


@spec
class PlannerChoice:
    """The ``[planner]`` section: which algorithm searches, and for how long."""

    name: str | None = about("Planner by name (see wb schema); absent: the study's first.", default=None)
    solver: Literal["highs", "cbc", "gurobi", "cpsat"] = about("MILP back-end.", default="highs")
    time_limit_s: Annotated[float, Gt(0)] = about("Search time after which the best plan so far is returned.",
                                               default=60.0)
    seed: int = about("Seed of every random choice.", default=0)


@dataclass(frozen=True)
class Job:
    """A resolved spec: the study, its problem, and which costs and planner to use."""

    study: studies.Study
    problem: Any
    costs_section: Mapping[str, Any]
    costs: CostModel
    planner: PlannerChoice
    source: str

    @property
    def resolved(self) -> dict[str, Any]:
        """The whole question as JSON-ready data; its content id names the run folder."""
        return {"study": self.study.name, "problem": dump(self.problem), "costs": dict(self.costs_section),
                "planner": dump(self.planner)}

    @property
    def id(self) -> str:
        """First 12 hexadecimal digits of the sha256 of ``resolved``."""
        return content_id(self.resolved)

    def plan(self) -> Any:
        """Search for a plan with the chosen planner; its certificate says how sure the costs behind it are."""
        counted = CountedCosts(self.costs)
        with self._next_is_the_schema():
            plan = self.study.planner.plan(
                self.problem, counted, planner=self.planner.name or next(iter(self.study.planner.PLANNERS)),
                solver=self.planner.solver, time_limit_s=self.planner.time_limit_s, seed=self.planner.seed)
        return replace(plan, certificate=replace(plan.certificate, cost_error=counted.error()))

    @contextlib.contextmanager
    def _next_is_the_schema(self) -> Iterator[None]:
        """Faults of a spec that only its use brings to light lead to the keys it may have."""
        try:
            yield
        except WorkbenchError as error:
            error.next_command = error.next_command or f"wb schema {self.study.name}"
            raise

    def check(self, plan: Any) -> None:
        """Re-derive feasibility and objective from the plan alone.

        Raises:
            CheckFailed: lists every violated rule.
        """
        violations: list[Violation] = self.study.planner.check(self.problem, plan)
        if violations:
            raise CheckFailed(
                f"{len(violations)} violation{'s' if len(violations) > 1 else ''}: "
                + "; ".join(f"[{v.rule}] {v.where}: {v.detail}" for v in violations),
                where=self.source, next_command=f"wb plan {self.source}")

    def simulate(self, plan: Any) -> Outcome:
        """Play the plan on the virtual clock."""
        with self._next_is_the_schema():
            outcome: Outcome = self.study.executor().simulate(self.problem, plan, self.costs)
        return outcome

    def run(self, plan: Any, device: str) -> Outcome:
        """Run the plan for real on ``device`` and verify its outputs."""
        executor = self.study.executor()
        try:
            outcome: Outcome = executor.run(self.problem, plan, device=device)
        except NotBuilt as error:
            # The executor knows its study but not the file that was asked about.
            if error.next_command == f"wb simulate {self.study.name}":
                error.next_command = f"wb simulate {self.source}"
            raise
        violations = executor.verify(self.problem, plan, outcome)
        if violations:
            raise CheckFailed("the run's outputs differ from the reference: "
                              + "; ".join(f"[{v.rule}] {v.where}: {v.detail}" for v in violations))
        return outcome


def read_spec(argument: str, assignments: Iterable[str] = ()) -> tuple[dict[str, Any], str]:
    """The spec data behind ``argument``, a TOML path or a study's name (then its demo spec), and where it came from."""
    path = Path(argument)
    if path.is_dir():
        raise SpecError(f"{argument} is a folder without spec.json, so it is no run folder",
                        allowed=["a TOML file", "a study's name", "a run folder"], next_command="wb plan SPEC")
    if path.suffix == ".toml" or path.exists():
        return set_keys(read_toml(path), tuple(assignments)), str(path)
    known = studies.names()
    if argument not in known:
        close = nearest(argument, [*known, *(p.name for p in Path().glob("*.toml"))])
        raise SpecError(f"{argument!r} is neither a spec file nor a study nor a run folder", allowed=known,
                        hint=f"did you mean {close!r}?" if close else None, next_command="wb list")
    return set_keys(read_toml(studies.load(argument).demo_spec), tuple(assignments)), argument


def resolve(data: Mapping[str, Any], source: str) -> Job:
    """Turn spec data into a job; every fault of problem, costs and planner sections is reported at once.

    Costs are opened here (their tables are read when first asked); without a ``[costs]`` section they know nothing.

    Raises:
        SpecError: with one entry for each fault.
    """
    body = {k: v for k, v in data.items() if k not in ("study", "costs", "planner", "sweep")}
    if not isinstance(data.get("study"), str):
        raise SpecError('a spec starts with study = "NAME"', where=source, allowed=studies.names(),
                        next_command="wb list")
    found = studies.load(data["study"])
    faults: list[WorkbenchError] = []

    def gather(cls: type, part: Any, prefix: str) -> Any:
        try:
            return parse(cls, part)
        except SpecError as error:
            for fault in error.faults:
                fault.where = f"{prefix}{fault.where}"
            faults.extend(error.faults or [error])

    problem = gather(found.planner.Problem, body, "")
    planner = gather(PlannerChoice, data.get("planner", {}), "planner.")
    wanted = data.get("planner", {}).get("name") if isinstance(data.get("planner", {}), Mapping) else None
    if wanted is not None and wanted not in found.planner.PLANNERS:
        close = nearest(str(wanted), found.planner.PLANNERS)
        faults.append(WorkbenchError(f"no planner is called {wanted!r}", where="planner.name",
                                     allowed=found.planner.PLANNERS,
                                     hint=f"did you mean {close!r}?" if close else None))
    section = data.get("costs", {})
    costs: CostModel = TableCosts(())
    try:
        if not isinstance(section, Mapping):
            raise SpecError("must be a table", where="costs")
        costs = open_costs(section) if section else costs
    except SpecError as error:
        for fault in error.faults:
            if not (fault.where or "").startswith("costs"):
                fault.where = f"costs.{fault.where}"
        faults.extend(error.faults or [error])
    if faults:
        raise SpecError(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}", faults=faults, where=source,
                        next_command=f"wb schema {found.name}")
    return Job(found, problem, section, costs, planner, source)


def open_job(argument: str, assignments: Iterable[str] = ()) -> Job:
    """Read and resolve the spec behind ``argument`` (a path or a study's name), with ``--set`` assignments applied."""
    return resolve(*read_spec(argument, assignments))

"""Two runs side by side: what was asked differently, what was decided, and every metric with its ratio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import SpecError
from workbench.outcome import Metric
from workbench.runs import RunFolder

__all__ = ["Comparison", "compare", "differences"]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rows of two runs; the columns of values are called by the runs' folders."""

    left: str
    right: str
    decided: tuple[str, str]
    spec: list[Row]
    metrics: list[Row]

    def _repr_html_(self) -> str:
        """The tables, in a notebook."""
        from workbench.notebook import paragraph, table

        return "".join([paragraph(f"{name}: {words}") for name, words in
                        zip((self.left, self.right), self.decided, strict=True)]
                       + [table(self.spec, "What was asked differently"), table(self.metrics, "What came of it")])


def compare(first: RunFolder, second: RunFolder) -> Comparison:
    """Compare two run folders.

    Raises:
        SpecError: one of them has no plan, or not one of ours, or they answer different studies.
    """
    asked_of = [folder.study_name() for folder in (first, second)]
    if asked_of[0] != asked_of[1]:
        alike = sorted(p.parent.name for p in first.path.parent.glob(f"{asked_of[0]}-*/plan.json")
                       if p.parent != first.path)
        raise SpecError(f"{first.path.name} is of study {asked_of[0]!r}, {second.path.name} of {asked_of[1]!r}: "
                        "they share neither keys nor metrics", allowed=alike[:8] or ["two runs of one study"],
                        next_command=f"wb plan {asked_of[0]} --set KEY=VALUE")
    (left, spec_a, said_a, a), (right, spec_b, said_b, b) = (_read(folder) for folder in (first, second))
    if left == right:
        left, right = f"{left} (1)", f"{right} (2)"
    asked = [{"key": key, left: _shown(x), right: _shown(y)} for key, x, y in differences(spec_a, spec_b)]
    rows = []
    for key in dict.fromkeys([*a, *b]):
        x, y = (of[key].value if key in of else None for of in (a, b))
        rows.append({"metric": key[1], "clock": key[0], left: x, right: y,
                     "ratio": y / x if x and y is not None else None, "unit": (a.get(key) or b[key]).unit})
    return Comparison(left=left, right=right, decided=(said_a, said_b), spec=asked, metrics=rows)


def _read(folder: RunFolder) -> tuple[str, dict[str, Any], str, dict[tuple[str, str], Metric]]:
    job = folder.job()
    plan = folder.load_plan(job)
    planner, proof = job.study.planner, plan.certificate
    found = {("planned", m.name): m for m in planner.predicted(job.problem, plan)}
    found["planned", "objective"] = Metric(name="objective", value=proof.objective, unit=proof.unit)
    if proof.bound is not None:
        found["planned", "proven bound"] = Metric(name="proven bound", value=proof.bound, unit=proof.unit)
    found["planned", "search"] = Metric(name="search", value=proof.seconds, unit="s")
    for clock in ("simulated", "measured"):
        outcome = folder.load_outcome(clock)
        found |= {(clock, m.name): m for m in (outcome.metrics if outcome is not None else ())}
    return folder.path.name, job.resolved, planner.headline(plan), found


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Keys whose values differ, with both values; lists of named things are compared name by name."""
    a, b = _keyed(a), _keyed(b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path, a, b


def _keyed(value: Any) -> Any:
    """A list of tables with names as a table of them; anything else as it is."""
    named = isinstance(value, list) and value and all(isinstance(v, Mapping) and "name" in v for v in value)
    if not named or len({v["name"] for v in value}) < len(value):
        return value
    return {v["name"]: {k: x for k, x in v.items() if k != "name"} for v in value}


def _shown(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

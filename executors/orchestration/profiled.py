"""``wb profile orchestration`` (or a spec file of this study): the kernels that the problem's plans could want.

Unlike a kernel family, which covers a grid of sizes, this measures the candidates of one program, lazily, until its
best plan is known (``tune``). The folder keeps everything, so that a second run measures and compiles nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from planners.orchestration.enumeration import enumerate_kernels
from planners.orchestration.load import program_graph
from workbench.errors import SpecError
from workbench.job import open_job

__all__ = ["Campaign"]

_KERNEL_S = 2.0


class Campaign:
    """What will be measured for the problem of one spec, in the shape of ``profilers.campaign.Campaign``.

    Args:
        names: one spec file, or the study's name for its demo problem.
        device: ``cpu`` or ``cuda``.
        folder: the profile folder; kernels go to its sub-folder ``orchestration``.

    Raises:
        SpecError: no such spec, or not exactly one.
    """

    left_out: dict[str, str]

    def __init__(self, names: Iterable[str], *, device: str, folder: Path | str) -> None:
        specs = list(names)
        if len(specs) != 1:
            raise SpecError("one program at a time", where="wb profile", allowed=["orchestration", "a spec file"])
        self.problem = open_job(specs[0]).problem
        self.device, self.folder = device, Path(folder) / "orchestration"
        self.left_out = {}
        self._graph = program_graph(self.problem)
        self._store: Path | None = None

    @property
    def section(self) -> str:
        """The ``[costs]`` section that reads what was measured."""
        return f'source = "kernels", store = "{self._store or self.folder}"'

    def plan_rows(self) -> list[dict[str, Any]]:
        """One row: how many kernels there are, of which a small part will be measured."""
        kinds = enumerate_kernels(self._graph, self.problem.limits).kinds
        few = max(len(self._graph.primitives), kinds // 5)
        return [{"op": "kernel", "what": f"{self._graph.name}: {len(self._graph.primitives)} primitives, "
                 f"{kinds} different kernels, of which a fifth or fewer", "tables": 1, "points": few,
                 "about_s": round(few * _KERNEL_S)}]

    def run(self, budget_s: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """Measure until the best plan is known or the budget is spent; the plan in one row."""
        from executors.orchestration.tune import tune

        began = time.monotonic()
        done = tune(self.problem, folder=self.folder, device=self.device, time_limit_s=budget_s, say=say)
        self._store = done.store
        say(f"{done.measured} times of kernels measured, {done.compiled} kernels compiled in "
            f"{time.monotonic() - began:.0f} s")
        return [{"program": self._graph.name, "kernels": len(done.plan.kernels), "predicted_s": done.predicted_s,
                 "stitched_s": done.stitched_s, "measured": done.measured, "compiled": done.compiled,
                 "enumerated": done.plan.enumerated, "status": done.plan.certificate.status}]

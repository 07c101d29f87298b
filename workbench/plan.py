"""What every plan carries besides its decision: a certificate, and what a checker says of it.

``gap = |objective - bound| / max(|objective|, tiny)``; a plan is *optimal* when the gap is at most its tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from workbench.spec import about, spec

__all__ = ["Bound", "Certificate", "Sense", "Status", "Violation", "relative_gap"]

Sense = Literal["min", "max"]
Status = Literal["optimal", "feasible", "heuristic"]


def relative_gap(objective: float, bound: float) -> float:
    """Distance from objective to bound as a share of the objective; 0 when both are 0, inf when no bound is known."""
    if not math.isfinite(bound):
        return math.inf
    distance = abs(objective - bound)
    return 0.0 if distance == 0.0 else distance / max(abs(objective), 1e-12)


@spec
class Violation:
    """One broken rule found by a checker."""

    rule: str = about("The rule's short name, e.g. 'budget'.")
    where: str = about("What breaks it: a device, stage, gate or request.")
    detail: str = about("Found against allowed, with units.")


@spec
class Bound:
    """A proven bound on the objective of every feasible plan."""

    value: float = about("The bound, in the objective's unit.")
    kind: Literal["lp", "milp", "combinatorial", "closed form"] = about("How it was proven.")
    seconds: float = about("Time it took to prove.")


@spec
class Certificate:
    """Why a plan should be believed: its objective, a proven bound, and who proved it in how long."""

    objective: float = about("The plan's objective value.")
    bound: float | None = about("Proven bound on any feasible plan; absent if none was proven.", default=None)
    sense: Sense = about("Whether the objective is minimised or maximised.")
    unit: str = about("Unit of objective and bound.")
    status: Status = about("optimal: gap within tolerance; feasible: bound not closed; heuristic: no claim.")
    planner: str = about("Which planner found the plan.")
    solver: str | None = about("Which solver proved the bound.", default=None)
    seconds: float = about("Wall time of the search.")
    shadow_prices: Mapping[str, float] = about(
        "Improvement of the objective a unit of each scarce resource would buy.", default_factory=dict)
    cost_error: float | None = about(
        "How far off predicted times may be, as a share, from the leave-one-out errors of the tables they come from "
        "(90 %); absent unless all do.", default=None)

    @property
    def gap(self) -> float | None:
        """Relative gap, or ``None`` when the planner proved no bound."""
        return None if self.bound is None else relative_gap(self.objective, self.bound)

    def line(self) -> str:
        """One line for people: objective, bound, gap, status, seconds."""
        gap = self.gap
        proof = "no bound" if gap is None else f"bound {self.bound:.6g}, gap {gap:.2%}"
        by = f"{self.planner} with {self.solver}" if self.solver else self.planner
        return f"{self.status}: {self.objective:.6g} {self.unit} ({proof}) by {by} in {self.seconds:.2f} s"

    def _repr_html_(self) -> str:
        """The certificate in one line and its shadow prices, in a notebook."""
        from workbench import notebook

        return notebook.certificate(self)

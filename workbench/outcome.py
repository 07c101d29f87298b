"""What a simulation or a run gives back: named metrics, a timeline, counters and small tables.

Predicted, simulated and measured values of one metric have one name and one unit, so that they stand in one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workbench.spec import about, spec

if TYPE_CHECKING:
    import pandas as pd

    from workbench.timeline import Timeline

__all__ = ["Metric", "Outcome", "predicted_range", "side_by_side", "whose_times"]


@spec
class Metric:
    """One named number with its unit."""

    name: str = about("Standard name, e.g. 'ttft_p99_s'.")
    value: float = about("The number.")
    unit: str = about("Its unit, e.g. 's', 'tokens/s', '$/h'; '' for pure numbers.")
    about: str = about("What it means, in one line.", default="")


def predicted_range(metric: Metric, cost_error: float | None) -> tuple[float, float] | None:
    """(low, high) of a predicted time or rate whose costs are known to ``cost_error``; ``None`` for other metrics."""
    if cost_error is None or not (metric.unit == "s" or metric.unit.endswith("/s")):
        return None
    return metric.value / (1 + cost_error), metric.value * (1 + cost_error)


def whose_times(devices: Iterable[str], sources: Mapping[str, float], outcomes: Iterable[Outcome]) -> str | None:
    """Why predicted and measured times may be far apart, where something was measured: they need not be of one device.

    Args:
        devices: those that the cost model's tables were measured on.
        sources: shares of measured, interpolated, extrapolated and analytic costs in the plan.
        outcomes: what the plan's simulation and run gave.
    """
    if not any(o.clock == "measured" for o in outcomes):
        return None
    names = ", ".join(dict.fromkeys(devices))
    if names:
        return (f"Times are predicted and simulated with costs of {names}, and measured on the machine that ran the "
                "plan: where these differ, so do the times.")
    if set(sources) == {"analytic"}:
        return ("No predicted or simulated time was measured anywhere: they follow from what the spec states or a data "
                "sheet allows. The run took what this machine takes, and these need not be near each other.")
    return None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of ``simulate`` (virtual clock) or ``run`` (real clock) of one plan.

    ``tables`` are pandas frames kept as Parquet in the run folder (per-request records, CDF points, …).
    """

    clock: Literal["simulated", "measured"]
    metrics: tuple[Metric, ...]
    timeline: Timeline | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        """Value of the metric called ``name``; ``KeyError`` names the ones there are."""
        for metric in self.metrics:
            if metric.name == name:
                return metric.value
        raise KeyError(f"no metric {name!r}; there are {', '.join(m.name for m in self.metrics)}")

    def _repr_html_(self) -> str:
        """Metrics and Gantt chart, in a notebook."""
        from workbench import notebook

        return notebook.outcome(self)


def side_by_side(predicted: tuple[Metric, ...], *outcomes: Outcome) -> list[dict[str, Any]]:
    """Rows ``{metric, unit, predicted, simulated, measured}`` over every metric, in first-seen order."""
    rows: dict[str, dict[str, Any]] = {}
    for clock, metrics in [("predicted", predicted), *((o.clock, o.metrics) for o in outcomes)]:
        for m in metrics:
            row = rows.setdefault(m.name, {"metric": m.name, "unit": m.unit, "predicted": None,
                                           "simulated": None, "measured": None})
            row[clock] = m.value
    return list(rows.values())

"""Fit a synthetic workload to a request table: what is kept are statistics, never rows.

Lengths become quantile tables whose knots are placed one by one where the table is worst: at the largest distance
between the two distribution functions (Kolmogorov-Smirnov), or in the segment that adds most to the error of the mean,
whichever is larger. How prompt and output lengths go together becomes a table of joint ranks; a single correlation is
not enough (the Azure chat trace: Spearman's rho 0.07, yet outputs are bimodal in the prompt length). Arrivals become a
gamma renewal process with the same rate and coefficient of variation.
"""

from __future__ import annotations

import json

import numpy as np

from traces.requests import RequestTable
from traces.synthetic import Batch, Gamma, QuantileLengths, Quantiles, Workload
from workbench.spec import dump

__all__ = ["fit", "fit_joint", "fit_quantiles", "ks_distance", "to_toml"]

_MIN_STEP = 1e-4


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance between the empirical distribution functions of two samples."""
    return _largest_gap(np.sort(a), np.sort(b))[0]


def fit_quantiles(tokens: np.ndarray, *, knots: int = 24) -> Quantiles:
    """A table of ``knots`` quantiles of positive lengths, to be interpolated linearly in the logarithm."""
    lengths = np.sort(tokens).astype(np.float64)
    u = (np.arange(len(lengths)) + 0.5) / len(lengths)
    chosen = [0.0, 1.0]
    while len(chosen) < knots:
        table = Quantiles(probability=tuple(chosen), value=tuple(np.quantile(lengths, chosen)))
        drawn = np.rint(table.log_at(u))
        distance, at = _largest_gap(lengths, drawn)
        error = np.abs(drawn - lengths)
        if not error.any():
            break
        segment = np.digitize(u, chosen[1:-1])
        by_segment = np.bincount(segment, error, minlength=len(chosen) - 1) / lengths.sum()
        worst = int(by_segment.argmax())
        inside = np.flatnonzero(segment == worst)
        candidates = [float(np.searchsorted(lengths, at, side=side)) / len(lengths) for side in ("right", "left")]
        if distance < by_segment[worst]:
            candidates = []
        candidates += [float(u[inside[error[inside].argmax()]]), (chosen[worst] + chosen[worst + 1]) / 2]
        rounded = (round(p, 4) for p in candidates)
        new = next((p for p in rounded if min(abs(p - c) for c in chosen) >= _MIN_STEP), None)
        if new is None:
            break  # the table is as fine as its four digits allow
        chosen = sorted([*chosen, new])
    values = np.quantile(lengths, chosen)
    return Quantiles(probability=tuple(chosen), value=tuple(float(f"{v:.6g}") for v in values))


def fit_joint(inputs: np.ndarray, outputs: np.ndarray, *, classes: int = 12) -> tuple[tuple[float, ...], ...]:
    """Row i: shares of the ``classes`` output classes among the prompts of class i; classes are equal by rank.

    Equal lengths share the ranks they cover, so that every class holds the same weight.
    """
    joint = _class_weights(inputs, classes).T @ _class_weights(outputs, classes) * classes / len(inputs)
    return tuple(tuple(round(float(share), 4) for share in row) for row in joint)


def _class_weights(values: np.ndarray, classes: int) -> np.ndarray:
    """Weight of each value in each class by rank, float64 [values, classes]; rows add up to 1."""
    ordered = np.sort(values)
    low = np.searchsorted(ordered, values, side="left")[:, None] / len(values)
    high = np.searchsorted(ordered, values, side="right")[:, None] / len(values)
    edges = np.arange(classes + 1) / classes
    return (np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])).clip(0) / (high - low)


def _largest_gap(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance of two sorted samples, and the value where it is reached."""
    values = np.unique(np.concatenate([a, b]))
    gap = np.abs(np.searchsorted(a, values, side="right") / len(a) - np.searchsorted(b, values, side="right") / len(b))
    return float(gap.max()), float(values[gap.argmax()])


def fit(table: RequestTable, *, knots: int = 24) -> Workload:
    """A workload with the statistics of ``table``: quantile tables, joint ranks, rate and burstiness."""
    statistics = table.statistics()
    arrivals: Batch | Gamma = Batch(kind="batch")
    if statistics.rate_per_s is not None and statistics.arrival_cv:
        arrivals = Gamma(kind="gamma", rate_per_s=float(f"{statistics.rate_per_s:.5g}"),
                         cv=float(f"{statistics.arrival_cv:.4g}"))
    lengths = QuantileLengths(
        kind="quantiles", joint=fit_joint(table.input_tokens, table.output_tokens),
        input=fit_quantiles(table.input_tokens, knots=knots), output=fit_quantiles(table.output_tokens, knots=knots))
    return Workload(kind="workload", title=f"Like {table.name}", requests=len(table), licence=table.licence,
                    source=f"fitted to {table.source}", arrivals=arrivals, lengths=lengths,
                    reference={row["metric"]: float(f"{row['value']:.5g}") for row in statistics.rows()})


def to_toml(model: Workload) -> str:
    """The workload as the TOML text that ``read_workload`` reads."""
    scalars, tables = [], []
    for key, value in dump(model).items():
        if isinstance(value, dict):
            tables.append(_table(key, value))
        elif value is not None:
            scalars.append(f"{key} = {_value(value)}")
    return "\n".join([*scalars, "", *tables])


def _table(name: str, content: dict[str, object]) -> str:
    own = [f"{key} = {_value(value)}" for key, value in content.items()
           if value is not None and not isinstance(value, dict)]
    inner = [_table(f"{name}.{key}", value) for key, value in content.items() if isinstance(value, dict)]
    return "\n".join([f"[{name}]", *own, "", *inner])


def _value(value: object) -> str:
    """A TOML value; long lists are broken into lines."""
    if isinstance(value, list | tuple):
        cells = [_value(v) for v in value]
        width = 1 if cells and cells[0].startswith("[") else 12
        lines = [", ".join(cells[k : k + width]) for k in range(0, len(cells), width)]
        return f"[{lines[0]}]" if len(lines) == 1 else "[\n    " + ",\n    ".join(lines) + ",\n]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value).lower()

"""The paper's staging ILP (Atlas, arXiv 2408.09055) on the contracted order, through ``workbench.milp``.

Binaries: A[q,k] wire q local in stage k; B[q,k] global; F[v,k] node v done before stage k; S[q,k], T[q,k] wire q
becomes local / global between stages k and k+1. Minimise sum S + c sum T subject to
  A[q,k+1] <= A[q,k] + S[q,k];   B[q,k+1] <= B[q,k] + T[q,k];   A + B <= 1;   sum_q A = L;   sum_q B = G;
  F[v,k] <= F[v,k+1];   F[v,k+1] - F[v,k] <= A[q,k] for q in masks[v];   F[u,k] >= F[v,k] for u before v.
Added: F is fixed outside the nodes' windows, and the moves proven necessary in an interval are rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planners.circuit.dag import StageDag, bits
from planners.circuit.schedule import Layouts, layout_cost
from planners.circuit.windows import Shape, Windows
from workbench import milp

__all__ = ["solve_staging", "staging_model"]


def staging_model(dag: StageDag, shape: Shape, limits: Windows, *, stages: int, bound: float) -> milp.Model:
    """The model for a fixed number of stages; ``bound`` is a proven lower bound on its objective."""
    n, local_sum = shape.wires, float(shape.local)
    model = milp.Model("staging")
    a = model.variables("A", n, stages, upper=1, integer=True)
    s = model.variables("S", n, max(stages - 1, 0), upper=1, integer=True)
    f = model.variables("F", dag.size, stages + 1, upper=1, integer=True)
    objective = s.sum()
    model.add("becomes_local", a[:, :-1] + s - a[:, 1:], ">=", 0)
    model.add("local", a.sum(axis=0), "==", local_sum)
    if shape.globals:
        b = model.variables("B", n, stages, upper=1, integer=True)
        t = model.variables("T", n, max(stages - 1, 0), upper=1, integer=True)
        model.add("becomes_global", b[:, :-1] + t - b[:, 1:], ">=", 0)
        model.add("one_level", a + b, "<=", 1)
        model.add("global", b.sum(axis=0), "==", float(shape.globals))
        model.add("room_for_globals", t.sum(axis=0) - s.sum(axis=0), ">=", -float(shape.regional))
        objective = objective + shape.global_cost * t.sum()
    _fix_windows(model, f, limits, stages=stages)
    model.add("monotone", f[:, 1:] - f[:, :-1], ">=", 0)
    nodes = np.array([(v, q, k) for v, mask in enumerate(dag.masks) for q in bits(mask)
                      for k in range(limits.first[v], limits.last[v] + 1)], dtype=int).reshape(-1, 3)
    v, q, k = nodes.T
    model.add("runs_local", a[q, k] - f[v, k + 1] + f[v, k], ">=", 0)
    edges = np.array([(u, v, k) for v, direct in enumerate(dag.before) for u in direct
                      for k in range(stages + 1) if limits.first[v] < k <= limits.last[u]], dtype=int).reshape(-1, 3)
    if len(edges):
        u, v, k = edges.T
        model.add("order", f[u, k] - f[v, k], ">=", 0)
    model.add("proven", objective, ">=", bound)
    model.minimise(objective)
    return model


def _fix_windows(model: milp.Model, f: milp.Variables, limits: Windows, *, stages: int) -> None:
    """F[v,k] = 1 for k past the last stage of v, 0 up to its first."""
    column = np.arange(stages + 1)[None, :]
    lower = (column > np.array(limits.last, dtype=int)[:, None]).astype(float)
    upper = (column > np.array(limits.first, dtype=int)[:, None]).astype(float)
    model.bound(f, lower=lower, upper=upper)


def solve_staging(dag: StageDag, shape: Shape, limits: Windows, *, stages: int, bound: float, start: Layouts | None,
                  solver: str, time_limit_s: float, seed: int) -> tuple[Layouts | None, float, str]:
    """Best layouts found, the proven bound, and the solver's status."""
    model = staging_model(dag, shape, limits, stages=stages, bound=bound)
    known = None if start is None else _point(dag, start, shape)
    found = milp.solve(model, solver=solver, time_limit_s=time_limit_s, seed=seed, start=known)
    if found.x is None:
        return None, bound if found.bound is None else max(bound, found.bound), found.status
    local = _masks(found["A"])
    global_ = _masks(found["B"]) if shape.globals else (0,) * stages
    layouts = Layouts(local, global_, layout_cost(local, global_, shape))
    return layouts, max(bound, found.bound if found.bound is not None else bound), found.status


def _masks(table: np.ndarray) -> tuple[int, ...]:
    return tuple(sum(1 << int(q) for q in np.flatnonzero(column)) for column in table.T)


def _table(masks: Sequence[int], wires: int) -> np.ndarray:
    return np.array([[mask >> q & 1 for mask in masks] for q in range(wires)], dtype=float)


def _point(dag: StageDag, layouts: Layouts, shape: Shape) -> dict[str, np.ndarray]:
    """A complete point of the model from known layouts."""
    a, b = _table(layouts.local, shape.wires), _table(layouts.globals, shape.wires)
    stages = len(layouts.local)
    done = np.zeros((dag.size, stages + 1))
    place = [0] * dag.size
    for v in range(dag.size):
        stage = max((place[u] for u in dag.before[v]), default=0)
        while dag.masks[v] & ~layouts.local[stage]:
            stage += 1
        place[v] = stage
        done[v, stage + 1:] = 1
    point = {"A": a, "F": done, "S": np.maximum(a[:, 1:] - a[:, :-1], 0)}
    if shape.globals:
        point |= {"B": b, "T": np.maximum(b[:, 1:] - b[:, :-1], 0)}
    return point

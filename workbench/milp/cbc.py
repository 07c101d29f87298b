"""CBC through python-mip, in a process of its own.

Apart because python-mip's CBC and OR-Tools bring two builds of the same shared libraries, of which one process can load
only one; because CBC writes to standard output; and because a crash of CBC then is an error message. The process
answers one request after another; Ctrl-C ends it, and with it the search, so CBC hands out no incumbent before its
time limit. Nor does it report progress: python-mip 2.0 crashes on some models when asked to.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import pickle
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from workbench.errors import SolverError
from workbench.milp.expressions import Floats
from workbench.milp.model import Problem
from workbench.milp.search import Answer, Limits, Watch

__all__ = ["search"]

_idle: list[subprocess.Popen[bytes]] = []
_guard = threading.Lock()


def search(problem: Problem, limits: Limits, start: Floats | None, watch: Watch) -> Answer:
    """Minimise with CBC.

    Raises:
        SolverError: CBC crashed or gave up.
    """
    request = {"cost": problem.cost, "lower": problem.lower, "upper": problem.upper, "integer": problem.integer,
               "data": problem.matrix.data, "indices": problem.matrix.indices, "indptr": problem.matrix.indptr,
               "sense": problem.sense, "rhs": problem.rhs, "start": start, "gap": limits.gap, "seed": limits.seed,
               "until": time.time() + limits.left_s()}
    child = _child()
    assert child.stdin is not None
    assert child.stdout is not None
    watch.on_stop = child.kill
    try:
        pickle.dump(request, child.stdin)
        child.stdin.flush()
        reply = pickle.load(child.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        child.kill()
        code = child.wait()
        if watch.stopping.is_set():
            return Answer(claim="stopped")
        raise SolverError(f"CBC crashed (exit code {code})", where="cbc",
                          hint="use another solver: highs, gurobi or cpsat") from None
    with _guard:
        _idle.append(child)
    if "failure" in reply:
        raise SolverError(f"CBC ended with {reply['failure']}", where="cbc")
    return Answer(**(reply | {"bound": reply["bound"] + problem.offset}))


@atexit.register
def _end_idle() -> None:
    while _idle:
        with _idle.pop() as child:
            child.kill()


def _child() -> subprocess.Popen[bytes]:
    """A process that waits for a request; its standard input closing with ours ends it."""
    with _guard:
        while _idle:
            child = _idle.pop()
            if child.poll() is None:
                return child
    return subprocess.Popen(
        [sys.executable, "-c", "from workbench.milp.cbc import serve; serve()"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True)  # a Ctrl-C in the terminal is the parent's to handle


def serve() -> None:
    """Body of the process: read a request, solve it, write the reply, until there are no more."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # CBC prints whatever it is told
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            pickle.dump(_minimise(pickle.load(sys.stdin.buffer)), replies)
            replies.flush()


def _minimise(request: dict[str, Any]) -> dict[str, Any]:
    """The fields of an ``Answer``, or ``failure``."""
    import mip

    model = mip.Model(sense=mip.MINIMIZE, solver_name=mip.CBC)
    model.verbose, model.seed = 0, request["seed"]
    model.max_mip_gap, model.max_mip_gap_abs = request["gap"], 0.0
    kinds = (mip.CONTINUOUS, mip.INTEGER)
    columns = [model.add_var(lb=low, ub=high, obj=cost, var_type=kinds[whole]) for low, high, cost, whole in zip(
        *(request[k].tolist() for k in ("lower", "upper", "cost", "integer")), strict=True)]
    _add_rows(mip, model, columns, request)
    start, whole = request["start"], bool(request["integer"].any())
    if start is not None and whole:
        model.start = [(columns[j], float(start[j])) for j in np.flatnonzero(~np.isnan(start))]
    left_s = {"max_seconds": max(request["until"] - time.time(), 0.01)} if math.isfinite(request["until"]) else {}
    status = model.optimize(**left_s)
    outcomes = mip.OptimizationStatus
    if status in (outcomes.INFEASIBLE, outcomes.INT_INFEASIBLE):
        return {"claim": "infeasible", "bound": math.inf}
    if status == outcomes.UNBOUNDED:
        return {"claim": "infeasible or unbounded", "bound": -math.inf}
    if status not in (outcomes.OPTIMAL, outcomes.FEASIBLE, outcomes.NO_SOLUTION_FOUND):
        return {"failure": status.name}
    bound = model.objective_bound
    bound = -math.inf if bound is None or abs(bound) >= 1e50 else bound
    if status == outcomes.NO_SOLUTION_FOUND:
        return {"claim": "stopped", "bound": bound}
    duals = status == outcomes.OPTIMAL and not whole
    return {"claim": "proven" if status == outcomes.OPTIMAL else "stopped", "bound": bound,
            "x": np.array([v.x for v in columns]),
            "row_duals": np.array([row.pi for row in model.constrs]) if duals else None,
            "column_duals": np.array([v.rc for v in columns]) if duals else None}


def _add_rows(mip: Any, model: Any, columns: list[Any], request: dict[str, Any]) -> None:
    """Rows one by one: python-mip has no matrix interface."""
    signs = {-1: "<", 0: "=", 1: ">"}
    ends, cols, vals = (request[k].tolist() for k in ("indptr", "indices", "data"))
    for i, (sense, rhs) in enumerate(zip(request["sense"].tolist(), request["rhs"].tolist(), strict=True)):
        part = slice(ends[i], ends[i + 1])
        model.add_constr(mip.LinExpr([columns[j] for j in cols[part]], vals[part], -rhs, signs[sense]))

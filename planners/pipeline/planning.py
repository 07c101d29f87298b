"""``plan`` and ``bound``: which planner does what."""

from __future__ import annotations

import time
from collections.abc import Mapping

from planners.pipeline import baselines
from planners.pipeline.assembly import assemble
from planners.pipeline.bounds import iteration_bound
from planners.pipeline.decomposition import Node, decompose
from planners.pipeline.improving import refine, spread, spread_runners_up
from planners.pipeline.loaders import graph_of
from planners.pipeline.pricing import Prices
from planners.pipeline.problem import Plan, Problem
from planners.pipeline.ranking import Ranking, line_cuts, rank
from workbench.costs import CostModel
from workbench.errors import Infeasible, SpecError, nearest
from workbench.plan import Bound

__all__ = ["PLANNERS", "bound", "plan", "priced"]

PLANNERS: Mapping[str, str] = {
    "graph": "stage graph of least simulated iteration: one micro-batch size first, then micro-batch, k and replicas "
             "of each stage, and operators moved between stages",
    "graph-uniform": "the paper's default: one micro-batch size for all stages, 1F1B; least simulated iteration",
    "graph-mixed": "the paper's full search: micro-batch sizes of stages chosen together in the dynamic program",
    "sequential": "baseline: the stages of graph-uniform in one chain",
    "sequential-refined": "baseline: that chain, improved by the same moves of operators as graph",
    "pipedream": "baseline: PipeDream's dynamic program over the operators in one line",
    "piper": "baseline: Piper's dynamic program over downsets",
    "balance": "baseline: equal-work contiguous stages, one device each, 1F1B",
    "data-parallel": "baseline: the whole model on every device",
}
_LARGEST_RATIO = 4
_TOLERANCE = 1e-9


def priced(problem: Problem, costs: CostModel) -> tuple[Prices, Node]:
    """The problem's operators with their prices, and their series-parallel tree."""
    graph = graph_of(problem)
    return Prices(problem, graph, costs), decompose(graph)[0]


def plan(problem: Problem, costs: CostModel, *, planner: str = "graph", solver: str = "highs",
         time_limit_s: float = 60.0, seed: int = 0) -> Plan:
    """Choose stages, devices, micro-batches and schedules.

    Args:
        problem: the model, its mini-batch and the cluster.
        costs: kernel costs, for operators given by kernels.
        planner: a name of ``PLANNERS``.
        solver: not used; the searches are dynamic programs.
        time_limit_s: time after which the best plan so far is returned.
        seed: not used; nothing is random.

    Raises:
        Infeasible: no stage graph fits the devices' memory.
        MissingProfile, SpecError, SolverError: see their classes.
    """
    start = time.perf_counter()
    if planner not in PLANNERS:
        close = nearest(planner, PLANNERS)
        raise SpecError(f"no planner is called {planner!r}", where="planner.name", allowed=PLANNERS,
                        hint=f"did you mean {close!r}?" if close else None)
    prices, root = priced(problem, costs)
    ranking = Ranking(prices, start + time_limit_s)
    _search(planner, ranking, root)
    if ranking.best is None:
        raise _no_plan(prices, planner)
    bound = iteration_bound(prices)
    proven = bound >= ranking.best.iteration_s * (1 - _TOLERANCE)
    return assemble(prices, ranking.best, bound=bound, planner=planner, seconds=time.perf_counter() - start,
                    status="optimal" if proven else "feasible" if planner.startswith("graph") else "heuristic",
                    candidates=ranking.tried)


def _search(planner: str, ranking: Ranking, root: Node) -> None:
    menu = ranking.prices.problem.menu
    if planner == "graph":
        rank(ranking, root, [(b,) for b in menu], patient=True)
        line_cuts(ranking)
        spread_runners_up(ranking)
        refine(ranking)
    elif planner == "graph-uniform":
        rank(ranking, root, [(b,) for b in menu])
        spread(ranking)
    elif planner == "graph-mixed":
        rank(ranking, root, [(b,) for b in menu], patient=True)
        rank(ranking, root, [tuple(c for c in menu if b <= c <= _LARGEST_RATIO * b) for b in menu])
        spread_runners_up(ranking)
        refine(ranking)
    elif planner in ("sequential", "sequential-refined"):
        baselines.sequential(ranking, root, refined=planner == "sequential-refined")
    else:
        {"pipedream": baselines.pipedream, "piper": baselines.piper, "balance": baselines.balance,
         "data-parallel": baselines.data_parallel}[planner](ranking)


def bound(problem: Problem, costs: CostModel) -> Bound:
    """No plan trains a mini-batch sooner; see ``bounds``."""
    prices, _ = priced(problem, costs)
    start = time.perf_counter()
    return Bound(value=iteration_bound(prices), kind="combinatorial", seconds=time.perf_counter() - start)


def _no_plan(prices: Prices, planner: str) -> Infeasible:
    """Names the operator that is too large, or the memory all devices lack together."""
    smallest = min(prices.problem.menu)
    needs = [min(prices.memory_bytes(1 << v, smallest, d) for d in prices.replica_counts(smallest))
             for v in range(len(prices.graph))]
    worst = max(range(len(needs)), key=needs.__getitem__)
    room = prices.cluster.memory_bytes
    if needs[worst] > room:
        return Infeasible(
            f"operator {prices.graph.operators[worst].name!r} alone needs {needs[worst] / 1e9:.3g} GB on a device, "
            f"with micro-batch {smallest}; a device has {room / 1e9:.3g} GB",
            hint=f"cluster.memory_bytes of at least {needs[worst]:.0f}")
    total = sum(o.weight_bytes for o in prices.graph.operators) * prices.problem.weight_copies
    return Infeasible(
        f"planner {planner!r} finds no stages that fit: weights, gradients and optimizer take {total / 1e9:.3g} GB, "
        f"{prices.cluster.devices} devices have {room * prices.cluster.devices / 1e9:.3g} GB",
        hint="more devices, a smaller micro-batch in micro_batches, or a lighter optimizer")

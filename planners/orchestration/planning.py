"""``plan``, ``bound`` and ``profile``: which planner takes which candidates, and what its plan proves.

Every planner prices kernels alike, so that their plans compare. A plan is proven best among its planner's candidates
when all of its kernels are measured and no unmeasured one could do better even at its floor (``lazy``, ``pricing``);
otherwise it is the best of what is measured, and its bound says how much better an unmeasured plan might be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from planners.orchestration.blp import Search, Selection, relaxed
from planners.orchestration.enumeration import Grown, enumerate_kernels
from planners.orchestration.graph import PrimitiveGraph
from planners.orchestration.lazy import Measure, Settled, settle
from planners.orchestration.load import captured_only, program_graph
from planners.orchestration.masks import bits
from planners.orchestration.options import Option, in_order
from planners.orchestration.pricing import Price, Prices
from planners.orchestration.problem import Kernel, Limits, Plan, Problem
from workbench.costs import SOURCES, CostModel, Source
from workbench.errors import Infeasible, MissingProfile, SpecError, nearest
from workbench.plan import Bound, Certificate

__all__ = ["PLANNERS", "bound", "plan", "profile"]

PLANNERS: Mapping[str, str] = {
    "optimal": "least total time over all candidate kernels; primitives are computed again where that pays",
    "convex": "the same over convex kernels only (the paper's space)",
    "paper": "the paper's released rules: convex kernels, compute-bound primitives alone, no rewrites",
    "cover": "least total time when every primitive runs exactly once: no redundant computation",
    "greedy-fusion": "baseline: pairwise fusion by shared bytes, as TorchInductor does it, under the same costs",
    "singletons": "baseline: every primitive is a kernel of its own, on its fastest back-end",
    "eager": "baseline: every primitive of the captured program in turn, on back-end eager",
    "whole-graph": "baseline: the whole captured program as one kernel, on its fastest back-end",
}
_FIXED = ("greedy-fusion", "eager", "whole-graph")
UNIT = "s"
_ROUND_S = 10.0
"""Time one round of lazy profiling may spend on a program; the plan found so far says well enough what to measure."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A planner's candidates: positions in ``prices.kernels.grown``, tensors to store, primitives to run once."""

    prices: Prices
    allowed: tuple[int, ...]
    targets: int
    once: int = 0


class _Taken(NamedTuple):
    """A kernel with the price it was taken at."""

    grown: Grown
    price: Price


def _known_planner(planner: str) -> None:
    if planner not in PLANNERS:
        close = nearest(planner, PLANNERS)
        raise SpecError(f"no planner is called {planner!r}", where="planner.name", allowed=PLANNERS,
                        hint=f"did you mean {close!r}?" if close else None)


def _limits_of(planner: str, limits: Limits) -> Limits:
    """The limits a planner searches within."""
    if planner == "convex":
        return replace(limits, space="convex")
    if planner == "paper":
        return replace(limits, space="convex", most_linear=0, prologues=False, whole=False)
    if planner == "singletons":
        return replace(limits, largest=1, whole=False)
    if planner in _FIXED:
        return replace(limits, largest=1, whole=True)
    return limits


def _prepare(problem: Problem, costs: CostModel, planner: str, *, complete: bool = False) -> _Prepared:
    graph = program_graph(problem)
    limits = _limits_of(planner, problem.limits)
    if planner in ("paper", "cover", "eager", "whole-graph", "greedy-fusion"):
        graph = captured_only(graph)
    kernels = enumerate_kernels(graph, limits)
    number = {name: i for i, name in enumerate(kernels.tensors)}
    targets = sum(1 << number[t] for t in kernels.index.targets)
    return _Prepared(Prices(problem, kernels, costs, complete=complete), tuple(range(len(kernels.grown))), targets,
                     kernels.needed if planner == "cover" else 0)


def plan(problem: Problem, costs: CostModel, *, planner: str = "optimal", solver: str = "highs",
         time_limit_s: float = 60.0, seed: int = 0) -> Plan:
    """Choose kernels.

    Args:
        problem: the program, limits on kernels, back-ends.
        costs: answers ``kernel`` (structure, backend) and ``kernel_boundary`` (bytes); or ``named_kernel``
            (primitives); or, with ``problem.device``, ``elementwise`` and ``gemm``.
        planner: a name of ``PLANNERS``.
        solver: MILP back-end.
        time_limit_s: of the search; kernels are enumerated before.
        seed: of the solver's tie-breaks.

    Raises:
        SpecError: no such planner, graph or rewrite.
        MissingProfile: the measured kernels make no plan.
        Infeasible: no back-end can run some primitive.
        SolverError: see ``workbench.milp.solve``.
    """
    begin = time.perf_counter()
    _known_planner(planner)
    if planner in _FIXED:
        return _fixed_plan(problem, costs, planner, begin)
    prepared = _prepare(problem, costs, planner)
    search = Search(solver=solver, time_limit_s=time_limit_s, seed=seed, tie_tolerance=problem.tie_tolerance,
                    once=prepared.once)
    settled = settle(prepared.prices, prepared.allowed, prepared.targets, search)
    return _assemble(problem, prepared, settled, planner, solver, begin)


def profile(problem: Problem, costs: CostModel, measure: Measure, *, planners: Sequence[str] = ("optimal",),
            gap: float = 0.0, time_limit_s: float = 600.0, measure_s: float | None = None, solver: str = "highs",
            tell: Callable[[str], None] = lambda _: None) -> Plan:
    """Measure, lazily, what ``planners`` need for plans that are proven best; returns the first one's plan.

    Args:
        problem: as for ``plan``.
        costs: the cost model that grows through ``measure``.
        measure: measures kernels given as (digest, structure) on every back-end of the problem.
        planners: for which planners; the fixed baselines are measured whole.
        gap: share within which a measured plan is good enough (see ``lazy.settle``).
        time_limit_s: of the search for each planner.
        measure_s: time after which the best plan of what is measured is returned; by default ``time_limit_s``. With 0
            the first kernels alone are measured (``lazy``).
        solver: MILP back-end.
        tell: called with one line each round.

    Raises:
        as ``plan``.
    """
    plans = []
    for planner in planners:
        begin = time.perf_counter()
        _known_planner(planner)
        if planner in _FIXED:
            prices, grown = _fixed_kernels(problem, costs, planner, complete=True)
            kinds = dict.fromkeys(g.kind for g in grown if prices.known(g, _backends(problem, planner)) is None)
            if kinds:
                measure([(prices.kernels.digest(k), prices.kernels.structure(k)) for k in kinds])
            plans.append(_fixed_plan(problem, costs, planner, begin))
            continue
        prepared = _prepare(problem, costs, planner, complete=True)
        search = Search(solver=solver, time_limit_s=min(time_limit_s, _ROUND_S), tie_tolerance=problem.tie_tolerance,
                        gap=max(1e-9, gap / 4), once=prepared.once)
        settled = settle(prepared.prices, prepared.allowed, prepared.targets, search, measure=measure, gap=gap,
                         within_s=time_limit_s if measure_s is None else measure_s,
                         tell=lambda line, name=planner: tell(f"{name}: {line}"))  # type: ignore[misc]
        plans.append(_assemble(problem, prepared, settled, planner, solver, begin))
    return plans[0]


def bound(problem: Problem, costs: CostModel) -> Bound:
    """Linear relaxation over the candidates of ``optimal``, unmeasured ones at their floors: no plan takes less.

    Raises:
        MissingProfile: nothing is measured.
    """
    begin = time.perf_counter()
    prepared = _prepare(problem, costs, "optimal")
    prices = prepared.prices
    grown = [prices.kernels.grown[i] for i in prepared.allowed]
    known = [prices.known(g) for g in grown]
    finite = {g.kind: (g, p.seconds) for g, p in zip(grown, known, strict=True)
              if p is not None and math.isfinite(p.seconds)}
    if not finite:
        raise MissingProfile("nothing is measured", where="costs", next_command="wb profile orchestration")
    floors = prices.floors(list(finite.values())) if None in known else None
    options = [Option(g.makes, g.reads, g.members, p.total_s if p is not None else
                      (floors.floor_s(g) if floors is not None else 0.0) + prices.boundary_s(g))
               for g, p in zip(grown, known, strict=True)]
    return Bound(value=relaxed(options, prepared.targets, Search()), kind="lp", seconds=time.perf_counter() - begin)


def _backends(problem: Problem, planner: str) -> tuple[str, ...]:
    return ("eager",) if planner == "eager" else problem.backends


def _fixed_kernels(problem: Problem, costs: CostModel, planner: str, *, complete: bool = False
                   ) -> tuple[Prices, list[Grown]]:
    """The kernels of a baseline that does not search."""
    prices = _prepare(problem, costs, planner, complete=complete).prices
    kernels = prices.kernels
    if planner == "whole-graph":
        return prices, [kernels.program] if kernels.program is not None else []
    if planner == "greedy-fusion":
        return prices, list(kernels.fused)
    return prices, [g for g in kernels.grown if g.members.bit_count() == 1 and not g.members & ~kernels.needed]


def _fixed_plan(problem: Problem, costs: CostModel, planner: str, begin: float) -> Plan:
    prices, grown = _fixed_kernels(problem, costs, planner)
    known = [prices.known(g, _backends(problem, planner)) for g in grown]
    missing = [g for g, price in zip(grown, known, strict=True) if price is None]
    if missing:
        names = prices.kernels.index.graph.primitives
        raise MissingProfile(f"{planner} needs kernels that were not measured", where="costs",
                             keys=["+".join(names[p].name for p in bits(g.members)) for g in missing],
                             next_command="wb profile orchestration")
    taken = [_Taken(g, price) for g, price in zip(grown, known, strict=True) if price is not None]
    if not all(math.isfinite(t.price.seconds) for t in taken):
        raise Infeasible(f"no back-end runs every kernel of {planner}")
    options = [Option(t.grown.makes, t.grown.reads, t.grown.members, t.price.total_s) for t in taken]
    order, stuck = in_order(options, range(len(options)))
    assert not stuck
    total = math.fsum(o.seconds for o in options)
    certificate = Certificate(objective=total, sense="min", unit=UNIT, status="heuristic", planner=planner,
                              seconds=time.perf_counter() - begin)
    return _written(problem, prices, [taken[i] for i in order], certificate, priced=len({g.kind for g in grown}))


def _assemble(problem: Problem, prepared: _Prepared, settled: Settled, planner: str, solver: str, begin: float) -> Plan:
    kernels, prices = prepared.prices.kernels, prepared.prices
    taken = []
    for i in settled.selection.chosen:
        grown = kernels.grown[prepared.allowed[i]]
        price = prices.known(grown)
        assert price is not None
        taken.append(_Taken(grown, price))
    certificate = _certificate(settled, planner, solver, begin)
    return _written(problem, prices, taken, certificate, priced=settled.priced)


def _certificate(settled: Settled, planner: str, solver: str, begin: float) -> Certificate:
    found: Selection = settled.selection
    close = settled.proven and found.seconds - settled.bound <= 1e-6 * found.seconds
    return Certificate(objective=found.seconds, bound=settled.bound, sense="min", unit=UNIT, planner=planner,
                       status="optimal" if close else "feasible", solver=solver, seconds=time.perf_counter() - begin)


def _written(problem: Problem, prices: Prices, taken: Sequence[_Taken], certificate: Certificate, *, priced: int
             ) -> Plan:
    kernels = prices.kernels
    graph: PrimitiveGraph = kernels.index.graph
    rows = []
    for grown, price in taken:
        made = kernels.candidate(grown)
        rows.append(Kernel(primitives=tuple(graph.primitives[p].name for p in made.members), inputs=made.inputs,
                           outputs=made.outputs, backend=price.backend, structure=kernels.digest(grown.kind),
                           seconds=price.seconds, boundary_s=price.boundary_s, source=price.source))
    ran = [p for grown, _ in taken for p in bits(grown.members)]
    own = {p for p, primitive in enumerate(graph.primitives) if primitive.rewrite is None}
    rewrites = {graph.primitives[p].rewrite for p in ran}
    return Plan(kernels=tuple(rows), graph=program_graph(problem).digest(),
                rewrites=tuple(sorted(r for r in rewrites if r is not None)), redundant=len(ran) - len(set(ran)),
                skipped=len(own - set(ran)), enumerated=kernels.kinds, priced=priced,
                space=_limits_of(certificate.planner, problem.limits).space, sources=_shares(rows),
                certificate=certificate)


def _shares(rows: Sequence[Kernel]) -> dict[Source, float]:
    total = sum(k.seconds for k in rows)
    return {s: sum(k.seconds for k in rows if k.source == s) / total for s in SOURCES
            if any(k.source == s for k in rows)}

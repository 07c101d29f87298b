"""``check``: everything a plan promises, derived again from the problem and the plan; shares no code with the search.

Kernels are followed in the plan's order over a set of stored tensors; what a kernel makes is found by running its
primitives on that set, one by one, in any order that works.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from planners.orchestration.graph import Primitive, PrimitiveGraph
from planners.orchestration.load import program_graph
from planners.orchestration.problem import Kernel, Plan, Problem
from workbench.plan import Violation

__all__ = ["check"]

_RELATIVE = 1e-9


def check(problem: Problem, plan: Plan) -> list[Violation]:
    """Every broken rule of a plan; empty when it keeps them all."""
    graph = program_graph(problem)
    if plan.graph != graph.digest():
        return [Violation(rule="program", where="graph", detail="the plan was made for another graph")]
    known = {p.name: p for p in graph.primitives}
    strange = [name for k in plan.kernels for name in k.primitives if name not in known]
    if strange:
        return [Violation(rule="primitives", where=strange[0], detail="the program has no such primitive")]
    return [*_order(graph, known, plan), *_shapes(problem, graph, known, plan), *_numbers(graph, known, plan)]


def _order(graph: PrimitiveGraph, known: Mapping[str, Primitive], plan: Plan) -> Iterator[Violation]:
    """Inputs are there when a kernel runs, its primitives make what it stores, the outputs are stored at the end."""
    stored = {t.name for t in graph.tensors if t.free}
    for number, kernel in enumerate(plan.kernels):
        where = f"kernel {number}"
        absent = [t for t in kernel.inputs if t not in stored]
        if absent:
            yield Violation(rule="order", where=where, detail=f"reads {absent[0]} before anything has stored it")
        made = set(kernel.inputs)
        left = [known[name] for name in kernel.primitives]
        inside: set[str] = set()
        while left:
            ready = [p for p in left if all(o.tensor in made for o in p.inputs)]
            if not ready:
                yield Violation(rule="inputs", where=where, detail=f"{left[0].name} reads what the kernel lacks")
                break
            for p in ready:
                if p.output in inside:
                    yield Violation(rule="primitives", where=where, detail=f"makes {p.output} twice")
                inside.add(p.output)
                made.add(p.output)
            left = [p for p in left if p not in ready]
        foreign = [t for t in kernel.outputs if t not in inside]
        if foreign:
            yield Violation(rule="outputs", where=where, detail=f"stores {foreign[0]}, which it does not make")
        stored |= set(kernel.outputs)
    for output in graph.outputs:
        if output.tensor not in stored:
            yield Violation(rule="coverage", where=output.tensor, detail="the program returns it, no kernel stores it")


def _shapes(problem: Problem, graph: PrimitiveGraph, known: Mapping[str, Primitive], plan: Plan) -> Iterator[Violation]:
    """Every primitive of a kernel serves an output of it; sizes and convexity are as promised."""
    needs = _needs(graph)
    for number, kernel in enumerate(plan.kernels):
        where = f"kernel {number}"
        inside = [known[name] for name in kernel.primitives]
        useful = set(kernel.outputs)
        for _ in inside:
            useful |= {o.tensor for p in inside if p.output in useful for o in p.inputs}
        idle = [p.name for p in inside if p.output not in useful]
        if idle:
            yield Violation(rule="cone", where=where, detail=f"{idle[0]} serves no output of the kernel")
        made = {p.output for p in inside}
        outside = {o.tensor for p in inside for o in p.inputs} - made
        if set(kernel.inputs) != outside or len(set(kernel.inputs)) != len(kernel.inputs):
            yield Violation(rule="inputs", where=where,
                            detail=f"lists {sorted(kernel.inputs)}, reads {sorted(outside)}")
        if plan.space == "convex" and len(kernel.outputs) == 1:
            between = [t for t in outside if needs.get(t, frozenset()) & made]
            if between:
                yield Violation(rule="convex", where=where, detail=f"{between[0]} lies between two of its primitives")
        if kernel.backend not in (*problem.backends, "eager", "roofline", "given"):
            yield Violation(rule="backend", where=where, detail=f"the problem has no back-end {kernel.backend}")
        if any(p.kind == "opaque" for p in inside) and 1 < len(inside) < len(_captured(graph)):
            yield Violation(rule="opaque", where=where, detail="an opaque primitive runs alone")
    if plan.certificate.planner == "cover":
        twice = [name for name, count in Counter(n for k in plan.kernels for n in k.primitives).items() if count > 1]
        if twice:
            yield Violation(rule="once", where=twice[0], detail="a cover runs each primitive once")


def _captured(graph: PrimitiveGraph) -> list[Primitive]:
    """The captured program's primitives that its outputs need, in order."""
    needed = {o.tensor for o in graph.outputs}
    kept = []
    for p in reversed([p for p in graph.primitives if p.rewrite is None]):
        if p.output in needed:
            kept.append(p)
            needed |= {o.tensor for o in p.inputs}
    return kept[::-1]


def _needs(graph: PrimitiveGraph) -> dict[str, frozenset[str]]:
    """Made tensors that each tensor of the captured program, and of rewrites that only read those, depends on."""
    needs: dict[str, frozenset[str]] = {t.name: frozenset() for t in graph.tensors if t.free}
    waiting: Sequence[Primitive] = sorted(graph.primitives, key=lambda p: p.rewrite is not None)
    while waiting:
        later = []
        for p in waiting:
            if p.output in needs:
                continue
            if all(o.tensor in needs for o in p.inputs):
                needs[p.output] = frozenset({p.output}).union(*(needs[o.tensor] for o in p.inputs))
            else:
                later.append(p)
        if len(later) == len(waiting):
            break
        waiting = later
    return needs


def _numbers(graph: PrimitiveGraph, known: Mapping[str, Primitive], plan: Plan) -> Iterator[Violation]:
    """Objective, counts and shares."""
    total = math.fsum(_cost(k) for k in plan.kernels)
    if not math.isclose(total, plan.certificate.objective, rel_tol=_RELATIVE):
        yield Violation(rule="objective", where="certificate", detail=f"claims {plan.certificate.objective:.9g} s, the "
                        f"kernels take {total:.9g} s")
    least = plan.certificate.bound
    if least is not None and least > plan.certificate.objective * (1 + _RELATIVE):
        yield Violation(rule="bound", where="certificate", detail=f"{plan.certificate.objective:.9g} s lies below its "
                        f"proven bound {least:.9g} s")
    for k, kernel in enumerate(plan.kernels):
        if not (math.isfinite(kernel.seconds) and kernel.seconds >= 0 and math.isfinite(kernel.boundary_s)):
            yield Violation(rule="cost", where=f"kernel {k}", detail=f"takes {kernel.seconds} s")
    ran = Counter(name for k in plan.kernels for name in k.primitives)
    counts = {"redundant": sum(ran.values()) - len(ran),
              "skipped": sum(p.rewrite is None and p.name not in ran for p in graph.primitives)}
    for name, found in counts.items():
        if getattr(plan, name) != found:
            yield Violation(rule="counts", where=name, detail=f"claims {getattr(plan, name)}, is {found}")
    rewrites = tuple(sorted({r for n in ran if (r := known[n].rewrite) is not None}))
    if rewrites != plan.rewrites:
        yield Violation(rule="counts", where="rewrites", detail=f"claims {plan.rewrites}, runs {rewrites}")


def _cost(kernel: Kernel) -> float:
    return kernel.seconds + kernel.boundary_s

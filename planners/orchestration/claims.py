"""Claims of arXiv 2406.09465 that need no GPU: counts, and choices replayed from the paper's own kernel times.

Figure 12 gives times of seven kernels over InstanceNorm, ReLU and Pad. Which primitives the four of the paper's plan
hold is assumed here (mean; deviation and variance; root of the variance; normalisation with ReLU and Pad): only the
times are published values. Figure 13 gives one ratio a batch size; the separate kernels get equal shares of their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from planners.orchestration.enumeration import enumerate_kernels
from planners.orchestration.graph import Operand, Primitive, PrimitiveGraph, Tensor
from planners.orchestration.masks import bits
from planners.orchestration.planning import plan
from planners.orchestration.problem import Limits, Plan, Problem, Program
from workbench.costs import open_costs
from workbench.reproduce import Reproduced

__all__ = ["CLAIMS", "FIGURE_12", "FIGURE_13_RATIOS", "figure_4", "figure_12", "figure_13"]

_FIGURE_4: Sequence[Sequence[int]] = ((), (0,), (0,), (0,), (1, 2), (4,), (5,), (3,), (6, 7), (8,), (9,), (9, 10))
_FIGURE_4_LINEAR = (4, 8)
_NORM = ("mean", "centred", "squared", "variance", "safe", "root", "normal", "scaled", "shifted")
FIGURE_12: Mapping[str, float] = {
    "+".join(_NORM): 0.0387e-3, "relu": 0.0242e-3, "pad": 0.0282e-3,  # TensorRT's
    "mean": 0.0076e-3, "centred+squared+variance": 0.0184e-3, "safe+root": 0.0075e-3,
    "centred+normal+scaled+shifted+relu+pad": 0.0357e-3}
"""Seconds of the published kernels on a V100, by the primitives they hold."""
FIGURE_13_RATIOS: Mapping[int, float] = {1: 1.25, 16: 1 / 2.88}
"""Separate kernels over one fused kernel, by batch size."""
_BRANCHES = 4


def _graph(name: str, rows: Sequence[tuple[str, Sequence[str]]], linear: Sequence[str] = ()) -> PrimitiveGraph:
    """A graph from (primitive, what it reads); every primitive's tensor has its name, and the last one is returned."""
    own = {row[0] for row in rows}
    inputs = dict.fromkeys(t for _, reads in rows for t in reads if t not in own)
    side = (8, 8)
    return PrimitiveGraph(
        name=name, inputs=tuple(inputs), outputs=(Operand(tensor=rows[-1][0]),),
        tensors=(*(Tensor(name=t, shape=side, role="input") for t in inputs),
                 *(Tensor(name=t, shape=side) for t, _ in rows)),
        primitives=tuple(Primitive(name=p, op=f"paper.{p}.default", kind="linear" if p in linear else "elementwise",
                                   inputs=tuple(Operand(tensor=t) for t in reads), output=p) for p, reads in rows))


def figure_4() -> PrimitiveGraph:
    """The paper's small graph of twelve primitives, two of them compute-bound."""
    rows = [(f"p{i}", [f"p{j}" for j in preds] or ["x"]) for i, preds in enumerate(_FIGURE_4)]
    return _graph("figure 4", rows, linear=[f"p{i}" for i in _FIGURE_4_LINEAR])


def figure_12() -> Plan:
    """The best plan of the published kernels of InstanceNorm, ReLU and Pad."""
    graph = _graph("figure 12", [
        ("mean", ["x"]), ("centred", ["x", "mean"]), ("squared", ["centred"]), ("variance", ["squared"]),
        ("safe", ["variance"]), ("root", ["safe"]), ("normal", ["centred", "root"]), ("scaled", ["normal"]),
        ("shifted", ["scaled"]), ("relu", ["shifted"]), ("pad", ["relu"])])
    return _replayed(graph, FIGURE_12)


def figure_13(batch: int) -> tuple[Plan, float]:
    """The plan of Segformer's decoder (four branches of add, transpose, resize, then one concatenation), and the ratio
    of the strategy that was not taken to the one that was."""
    rows: list[tuple[str, Sequence[str]]] = []
    for b in range(_BRANCHES):
        rows += [(f"add{b}", [f"x{b}"]), (f"transpose{b}", [f"add{b}"]), (f"resize{b}", [f"transpose{b}"])]
    rows.append(("concat", [f"resize{b}" for b in range(_BRANCHES)]))
    names = [name for name, _ in rows]
    together_s, apart_s = 1.0, FIGURE_13_RATIOS[batch]
    parts = ["+".join(names[3 * b:3 * b + 3]) for b in range(_BRANCHES)] + ["concat"]
    found = _replayed(_graph("figure 13", rows),
                      {"+".join(names): together_s, **dict.fromkeys(parts, apart_s / len(parts))})
    return found, max(together_s, apart_s) / found.certificate.objective


def _replayed(graph: PrimitiveGraph, seconds: Mapping[str, float]) -> Plan:
    problem = Problem(program=Program(inline=graph), limits=Limits(largest=len(graph.primitives), per_output=10_000))
    rows = [{"op": "named_kernel", "primitives": name, "seconds": s} for name, s in seconds.items()]
    return plan(problem, open_costs({"source": "given", "rows": rows}))


def _figure_4_kernels() -> Reproduced:
    kernels = enumerate_kernels(figure_4(), Limits(space="convex", most_linear=0, whole=False, largest=12))
    cones = enumerate_kernels(figure_4(), Limits(space="cone", most_linear=0, whole=False, largest=12))
    return Reproduced(value=len(kernels.grown), clock="planned",
                      note=f"{len(cones.grown)} with kernels that need not be convex")


def _figure_12(of: Callable[[Plan], float]) -> Reproduced:
    found = figure_12()
    told = "; ".join("+".join(k.primitives) for k in found.kernels)
    return Reproduced(value=of(found), clock="planned", note=f"published times of seven kernels; chosen: {told}")


def _figure_13(batch: int) -> Reproduced:
    found, ratio = figure_13(batch)
    return Reproduced(value=ratio, clock="planned", note=f"published ratio; kernels chosen: {len(found.kernels)}")


def _theorem() -> Reproduced:
    """Sets that are convex and no difference of states, or the reverse, over random graphs of up to ten primitives."""
    rng = np.random.default_rng(0)
    wrong = sets = 0
    for _ in range(12):
        count = int(rng.integers(6, 11))
        reads = [0] + [sum(1 << int(p) for p in rng.choice(i, size=min(i, int(rng.integers(1, 4))), replace=False))
                       for i in range(1, count)]
        above = [0] * count
        for v in range(count):
            for p in bits(reads[v]):
                above[v] |= above[p] | 1 << p
        states = [s for s in range(1 << count) if all(not reads[v] & ~s for v in bits(s))]
        differences = {b & ~a for a in states for b in states if not a & ~b}
        for members in range(1 << count):
            between = [q for q in range(count) if not members >> q & 1 and above[q] & members
                       and any(above[v] >> q & 1 for v in bits(members))]
            wrong += (not between) != (members in differences)
            sets += 1
    return Reproduced(value=wrong, clock="planned", note=f"{sets} sets of 12 graphs")


CLAIMS: Mapping[str, Callable[[], Reproduced]] = {
    "figure-4-kernels": _figure_4_kernels,
    "candy-instance-norm": lambda: _figure_12(lambda p: 1e3 * p.certificate.objective),
    "candy-instance-norm-speed": lambda: _figure_12(
        lambda p: (FIGURE_12["+".join(_NORM)] + FIGURE_12["relu"] + FIGURE_12["pad"]) / p.certificate.objective),
    "candy-instance-norm-kernels": lambda: _figure_12(lambda p: len(p.kernels)),
    "segformer-decode-batch-1": lambda: _figure_13(1),
    "segformer-decode-batch-16": lambda: _figure_13(16),
    "convex-theorem": _theorem,
}

"""What candidates cost: the fastest measured back-end, and a floor under kernels that nobody has measured yet.

A kernel's price is min over back-ends of ``cost("kernel", structure, backend)`` plus, where fitted, the boundary
``cost("kernel_boundary", bytes, backend)``. Without a measured time and with ``problem.device``, the roofline of that
device answers (back-end ``roofline``, source analytic). Costs given by primitives' names, ``cost("named_kernel",
primitives = "a+b")``, are for worked examples; then what is not listed is no candidate.

The floor of an unmeasured kernel is SAFETY times the larger of two: the largest  t0 + read/R + stored/S + flops/F +
elements/E  with all terms >= 0 that lies under every measured time (a linear program: no measured kernel is below it),
and the time of its compute-bound step alone where that was measured. It assumes that no unmeasured kernel works
1 / SAFETY times faster than the best measured one of its size and kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from planners.orchestration.enumeration import Grown, Kernels
from planners.orchestration.masks import bits
from planners.orchestration.problem import Problem
from planners.orchestration.work import Work, gemm_of, layout_of, work_of
from workbench.costs import Cost, CostModel, Source, weaker
from workbench.errors import MissingProfile
from workbench.milp import Model, solve

__all__ = ["SAFETY", "Price", "Prices"]

SAFETY = 0.8
"""Share of the envelope of measured times that counts as the floor of an unmeasured kernel."""
ROOFLINE = "roofline"
_NAMED = "named_kernel"
_DTYPES: Mapping[str, str] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


class Price(NamedTuple):
    """Seconds of a kernel alone, what runs it so fast, how that is known, and what its boundary adds."""

    seconds: float
    backend: str
    source: Source
    boundary_s: float = 0.0

    @property
    def total_s(self) -> float:
        """What it adds to a program."""
        return self.seconds + self.boundary_s


class Prices:
    """Prices of the candidates of one problem, each looked up once until it is forgotten: stores grow.

    With ``complete`` a kernel counts as measured once every back-end was asked: measuring may have been cut short.
    """

    def __init__(self, problem: Problem, kernels: Kernels, costs: CostModel, *, complete: bool = False) -> None:
        self.complete = complete
        self.problem, self.kernels, self.costs = problem, kernels, costs
        self.named = any(name.startswith(_NAMED) for name in costs.provenance())
        self._tabled = problem.device is None or any(
            name == "kernel" or name.startswith("kernel(") for name in costs.provenance())
        self._works: dict[int, Work] = {}
        self._prices: dict[int, Price | None] = {}
        self._boundaries = {name: self._boundary_rate(name) for name in problem.backends} if problem.boundaries else {}

    def work(self, kind: int) -> Work:
        """Least work of the structure with number ``kind``."""
        if kind not in self._works:
            self._works[kind] = work_of(self.kernels.structure(kind))
        return self._works[kind]

    def known(self, grown: Grown, backends: Sequence[str] | None = None) -> Price | None:
        """The price of a candidate on the fastest of ``backends`` (the problem's by default); ``None``: not measured.

        Infinite when it was found that no back-end can run it.
        """
        if self.named:
            return self._by_name(grown)
        if backends is not None:
            return self._look_up(grown, backends)
        if grown.kind not in self._prices:
            self._prices[grown.kind] = self._look_up(grown, self.problem.backends)
        return self._prices[grown.kind]

    def forget(self, kinds: Iterable[int]) -> None:
        """Look these structures up again: they were measured."""
        for kind in kinds:
            self._prices.pop(kind, None)

    def boundary_s(self, grown: Grown, backend: str | None = None) -> float:
        """What a kernel adds to a program beyond its own time; without a back-end, what it adds on any at least."""
        rates = [self._boundaries.get(backend, (0.0, 0.0))] if backend is not None else self._boundaries.values()
        return min((a + b * self.work(grown.kind).stored_bytes if b else a for a, b in rates), default=0.0)

    def floors(self, measured: Sequence[tuple[Grown, float]]) -> Floors:
        """Floors from measured candidates (finite times alone, in seconds)."""
        return Floors(self, measured)

    def _boundary_rate(self, backend: str) -> tuple[float, float]:
        """Seconds a kernel and a byte it stores add; none where none was fitted."""
        try:
            base, more = (self.costs.cost("kernel_boundary", bytes=n, backend=backend).seconds for n in (0, 1 << 20))
            return base, (more - base) / (1 << 20)
        except MissingProfile:
            return 0.0, 0.0

    def _look_up(self, grown: Grown, backends: Sequence[str]) -> Price | None:
        digest = self.kernels.digest(grown.kind) if self._tabled else ""
        best: Price | None = None
        lacking = False
        for name in backends if self._tabled else ():
            try:
                found = self.costs.cost("kernel", structure=digest, backend=name)
            except MissingProfile:
                lacking = True
                continue
            price = Price(found.seconds, name, found.source, self.boundary_s(grown, name))
            if best is None or price.total_s < best.total_s:
                best = price
        if best is not None and lacking and (self.complete or math.isinf(best.seconds)):
            best = None  # what some back-ends take says too little of those that nobody asked
        if best is None and self.problem.device is not None:
            found = self._roofline(grown)
            best = Price(found.seconds, ROOFLINE, found.source, self.boundary_s(grown))
        return best

    def _by_name(self, grown: Grown) -> Price | None:
        primitives = self.kernels.index.graph.primitives
        name = "+".join(primitives[p].name for p in bits(grown.members))
        try:
            found = self.costs.cost(_NAMED, primitives=name)
        except MissingProfile:
            return Price(math.inf, "given", "analytic")
        return Price(found.seconds, "given", found.source)

    def _roofline(self, grown: Grown) -> Cost:
        """The longer of moving the bytes and of the products, on the device's data sheet."""
        structure, device = self.kernels.structure(grown.kind), str(self.problem.device)
        work = self._works.setdefault(grown.kind, work_of(structure))
        total = self.costs.cost("elementwise", device=device, bytes=work.read_bytes + work.stored_bytes)
        compute = 0.0
        for step in structure.steps:
            if step.kind == "linear":
                gemm = gemm_of(step, [layout_of(structure, ref) for ref in step.operands])
                found = self.costs.cost("gemm", device=device, dtype=_DTYPES.get(step.value.dtype, "fp32"),
                                        m=gemm.m, n=gemm.n, k=gemm.k)
                compute += found.seconds
                total = Cost(total.seconds, weaker(total.source, found.source))
        return Cost(max(total.seconds, compute), total.source)


class Floors:
    """Lower bounds of unmeasured candidates; see the module's head for what they assume."""

    def __init__(self, prices: Prices, measured: Sequence[tuple[Grown, float]]) -> None:
        self._prices = prices
        rows = np.array([_features(prices.work(grown.kind)) for grown, _ in measured], dtype=float)
        times = np.array([seconds for _, seconds in measured], dtype=float)
        self.rates = _envelope(rows, times) if len(times) else np.zeros(5)
        self._alone = self._linear_alone(measured)

    def floor_s(self, grown: Grown) -> float:
        """Time below which no back-end is assumed to run ``grown``."""
        least = float(_features(self._prices.work(grown.kind)) @ self.rates)
        linear = self._prices.kernels.index.graph.primitives
        steps = [self._alone.get(p, 0.0) for p in bits(grown.members) if linear[p].kind == "linear"]
        return SAFETY * max(least, sum(steps))

    def _linear_alone(self, measured: Sequence[tuple[Grown, float]]) -> dict[int, float]:
        """Measured time of each compute-bound primitive that runs alone."""
        by_kind = {grown.kind: seconds for grown, seconds in measured if grown.members.bit_count() == 1}
        return {grown.members.bit_length() - 1: by_kind[grown.kind] for grown in self._prices.kernels.grown
                if grown.members.bit_count() == 1 and grown.kind in by_kind}


def _features(work: Work) -> np.ndarray:
    return np.array([1.0, work.read_bytes, work.stored_bytes, work.flops, work.elements])


def _envelope(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Non-negative rates whose predictions lie under all ``times`` and come closest in the mean of ratios."""
    scale = np.maximum(rows.max(axis=0), 1e-30)
    shares = rows / scale / times[:, None]
    model = Model("floor of kernel times")
    rate = model.variables("rate", rows.shape[1])
    model.add("under", shares @ rate, "<=", 1.0)
    model.maximise(shares.mean(axis=0) @ rate)
    solution = solve(model)
    found: np.ndarray = solution["rate"] / scale
    worst = float((rows @ found / times).max())
    return found / max(1.0, worst)  # the solver's tolerance must not lift the floor above a measured time

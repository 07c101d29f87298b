"""How long the placement search takes, and what it proves: ``python -m tests.bench.placement`` (wb bench placement).

The paper's size: six GPU types with its prices and availabilities, nine workload types, Llama-3 8B and 70B, budgets
15, 30 and 60 $/h. Throughputs are analytic (data sheets), because no measured tables cover all six types: this times
the search, it claims nothing about those GPUs. Rows: five runs each, median and range of the seconds that the search
itself takes (candidates priced beforehand). The bisection is the paper's, on the same candidates, once.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace

from planners.placement.bisect import by_program
from planners.placement.exact import Search
from planners.placement.optimal import Prepared, exact_plan, prepare
from planners.placement.problem import Enumeration, Offer, Problem, Workload
from traces.mixes import mix
from workbench.cli import table
from workbench.costs import open_costs
from workbench.runs import machine_facts

RUNS = 5
PATIENCE_S = 60.0
AVAILABLE = {"RTX4090": 16, "A40": 12, "A6000": 8, "L40": 12, "A100-80G-SXM": 6, "H100-SXM": 8}
PRICE = {"RTX4090": 0.53, "A40": 0.55, "A6000": 0.83, "L40": 0.83, "A100-80G-SXM": 1.75, "H100-SXM": 2.99}


def problem(models: dict[str, float], budget: float, *, scale: int = 1, gap: float = 0.0) -> Problem:
    """``models``: share of the requests of each model; ``scale`` multiplies availability and budget."""
    kinds = mix("trace1")
    counts = kinds.counts(100_000)
    return Problem(
        budget_usd_per_h=budget * scale, relative_gap=gap,
        devices=tuple(Offer(name=n, available=a * scale, price_usd_per_h=PRICE[n]) for n, a in AVAILABLE.items()),
        workloads=tuple(Workload(name=f"{m}:{i}/{o}", model=m, requests=share * float(f), input_tokens=i,
                                 output_tokens=o)
                        for m, share in models.items() for t, f in zip(kinds.types, counts, strict=True)
                        for i, o in [(t.input_tokens, t.output_tokens)]),
        enumeration=Enumeration(max_stages=2))


def exact(ready: Prepared) -> dict[str, object]:
    """Median and range of the exact search's seconds over ``RUNS`` runs, and what the last one proved."""
    plans = [exact_plan(ready, Search(gap=ready.problem.relative_gap, deadline=time.perf_counter() + PATIENCE_S))
             for _ in range(RUNS)]
    seconds = [p.certificate.seconds for p in plans]
    certificate = plans[-1].certificate
    return {"candidates": ready.candidates.space.kept, "makespan_s": plans[-1].makespan_s, "gap": certificate.gap,
            "status": certificate.status, "seconds, median": statistics.median(seconds), "least": min(seconds),
            "most": max(seconds)}


def bisected(ready: Prepared) -> dict[str, object]:
    """The paper's binary search on the same candidates, to its 1e-3: once, because it is slow."""
    start = time.perf_counter()
    found = by_program(ready.candidates.instance, Search(deadline=start + PATIENCE_S),
                       tolerance=ready.problem.bisect_tolerance)
    seconds = time.perf_counter() - start
    return {"candidates": ready.candidates.space.kept, "makespan_s": None if found is None else found.makespan_s,
            "status": "within 1e-3" if found is not None and found.closed else "out of time",
            "seconds, median": seconds}


def main() -> None:
    """Print the table."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    costs = open_costs({"source": "analytic"})
    one = {"8B": {"llama-3-8b": 1.0}, "70B": {"llama-3-70b": 1.0}}
    rows = []
    for name, models in one.items():
        ready = prepare(problem(models, 60.0), costs)
        for budget in (15.0, 30.0, 60.0):
            part = prepare(replace(ready.problem, budget_usd_per_h=budget), ready.costs)
            rows.append({"case": f"{name}, {budget:.0f} $/h, exact"} | exact(part))
            if budget == 30.0:
                rows.append({"case": f"{name}, {budget:.0f} $/h, the paper's bisection"} | bisected(part))
    both = {"llama-3-8b": 0.8, "llama-3-70b": 0.2}
    rows += [{"case": f"8B and 70B, {budget:.0f} $/h, exact"} | exact(prepare(problem(both, budget), costs))
             for budget in (15.0, 30.0, 60.0)]
    large = prepare(problem(one["8B"], 60.0, scale=100, gap=1e-3), costs)
    rows.append({"case": "8B, 6,200 GPUs, exact to 1e-3"} | exact(large))
    facts = machine_facts()
    print(f"{facts['cpu']}, {facts['cores']} cores\n")
    print(table(rows))


if __name__ == "__main__":
    main()

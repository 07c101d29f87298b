"""Claims of arXiv 2502.00722 that can be computed here: its worked example, its searches, its 72 settings.

The 72 settings are 3 mixes of traffic, 2 models, 3 budgets and 4 availabilities of the paper's six GPU types at its
prices. The paper benchmarked every layout; there are no such measurements of the workstation GPUs here, so throughputs
come from data sheets, and every such row says so. Gains are over the best single type of H100, A6000 and RTX4090 that
the same budget buys where availability is unlimited.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

from planners.placement.planning import plan
from planners.placement.problem import Enumeration, GivenConfiguration, Offer, Plan, Problem, Workload
from traces.mixes import mix
from workbench.costs import TableCosts, open_costs
from workbench.errors import Infeasible
from workbench.reproduce import Reproduced

__all__ = ["CLAIMS"]

# Section 4.2: requests/s of one replica of each layout on the two types of requests, 80 of one and 20 of the other.
_REQUESTS = (80.0, 20.0)
_RATES = {"t1": (1.0, 1.2), "t2": (0.9, 0.9), "t3": (0.3, 0.5), "TP2 x t2": (2.4, 1.5)}

_PRICE = {"RTX4090": 0.53, "A40": 0.55, "A6000": 0.83, "L40": 0.83, "A100-80G-SXM": 1.75, "H100-SXM": 2.99}
_AVAILABLE = {"1": (16, 12, 8, 12, 6, 8), "2": (32, 8, 16, 16, 7, 12), "3": (32, 16, 8, 8, 32, 8),
              "4": (24, 24, 24, 16, 4, 8)}
_BUDGETS = (15.0, 30.0, 60.0)
_MODELS = ("llama-3-8b", "llama-3-70b")
_MIXES = ("trace1", "trace2", "trace3")
_REFERENCES = ("H100-SXM", "A6000", "RTX4090")
_DATA_SHEET = "data-sheet throughputs instead of the paper's benchmarks"


# ----------------------------------------------------------------------------------------------- the worked example


def _in_proportion(**replicas: int) -> Callable[[], Reproduced]:
    """Makespan when every replica takes requests in proportion to the total rates."""
    def compute() -> Reproduced:
        names = {name.replace("TP2", "TP2 x t2"): count for name, count in replicas.items()}
        seconds = sum(wanted / sum(count * _RATES[name][w] for name, count in names.items())
                      for w, wanted in enumerate(_REQUESTS))
        return Reproduced(value=seconds, clock="planned", note="closed form")

    return compute


def _published_plan() -> Reproduced:
    shares = {"t1": (0.15, 1.0), "TP2 x t2": (0.85, 0.0)}
    seconds = max(sum(share * wanted / rate for share, wanted, rate in zip(of, _REQUESTS, _RATES[name], strict=True))
                  for name, of in shares.items())
    best = plan(_worked_example(), TableCosts(()))
    return Reproduced(value=seconds, clock="planned",
                      note=f"closed form; the exact optimum of the example is {best.makespan_s:.2f} s, "
                           f"{best.certificate.status}")


def _worked_example() -> Problem:
    prices = {"t1": 4.0, "t2": 2.0, "t3": 2.0}
    return Problem(
        budget_usd_per_h=8.0, devices=tuple(Offer(name=n, available=2, price_usd_per_h=p) for n, p in prices.items()),
        workloads=tuple(Workload(name=f"w{k}", model="m", requests=n) for k, n in enumerate(_REQUESTS, 1)),
        configurations=tuple(
            GivenConfiguration(name=name, model="m", devices={name.split()[-1]: 2 if "TP2" in name else 1},
                               throughputs_per_s={"w1": rates[0], "w2": rates[1]}) for name, rates in _RATES.items()))


# --------------------------------------------------------------------------------------------------- the 72 settings


def _setting(model: str, traffic: str, budget: float, available: str) -> Problem:
    demand = mix(traffic)
    return Problem(
        budget_usd_per_h=budget,
        devices=tuple(Offer(name=name, available=count, price_usd_per_h=price)
                      for (name, price), count in zip(_PRICE.items(), _AVAILABLE[available], strict=True)),
        workloads=tuple(Workload(name=f"{t.input_tokens}/{t.output_tokens}", model=model, requests=count,
                                 input_tokens=t.input_tokens, output_tokens=t.output_tokens)
                        for t, count in zip(demand.types, demand.counts(1000), strict=True) if count),
        enumeration=Enumeration(max_stages=2))


def _planned(problem: Problem, planner: str = "exact") -> Plan:
    return plan(problem, open_costs({"source": "analytic"}), planner=planner)


@cache
def _homogeneous_s(model: str, traffic: str, budget: float) -> float:
    """Least makespan of one of the reference types alone, as many as the budget buys."""
    problem = _setting(model, traffic, budget, "1")
    makespans = []
    for name in _REFERENCES:
        alone = replace(problem, devices=(Offer(name=name, available=int(budget / _PRICE[name] + 1e-9),
                                                price_usd_per_h=_PRICE[name]),))
        try:
            makespans.append(_planned(alone).makespan_s)
        except Infeasible:
            continue
    return min(makespans)


@cache
def _gains() -> tuple[float, ...]:
    return tuple(_homogeneous_s(model, traffic, budget) / _planned(_setting(model, traffic, budget, a)).makespan_s - 1
                 for model, traffic, budget, a in itertools.product(_MODELS, _MIXES, _BUDGETS, _AVAILABLE))


def _gain(pick: Callable[[tuple[float, ...]], float]) -> Reproduced:
    gains = _gains()
    return Reproduced(value=pick(gains), clock="planned",
                      note=f"{_DATA_SHEET}; {sum(g < 0 for g in gains)} of {len(gains)} settings lose, since the one "
                           "type may be had without limit")


def _loss(planner: str) -> Reproduced:
    """Mean throughput lost over the settings of availability 1 and the middle budget."""
    lost = []
    for model, traffic in itertools.product(_MODELS, _MIXES):
        problem = _setting(model, traffic, _BUDGETS[1], "1")
        lost.append(1 - _planned(problem).makespan_s / _planned(problem, planner).makespan_s)
    return Reproduced(value=statistics.fmean(lost), clock="planned",
                      note=f"{_DATA_SHEET}; mean of {len(lost)} settings, {min(lost):.2f} to {max(lost):.2f}")


def _bisection_loss() -> Reproduced:
    lost = []
    for model, traffic in itertools.product(_MODELS, _MIXES):
        problem = _setting(model, traffic, _BUDGETS[1], "1")
        lost.append(_planned(problem, "bisect-knapsack").makespan_s / _planned(problem).makespan_s - 1)
    return Reproduced(value=max(lost), clock="planned",
                      note=f"{_DATA_SHEET}; largest of {len(lost)} settings; the knapsack rule is ours")


def _search_time() -> Reproduced:
    problem = _setting("llama-3-70b", "trace1", _BUDGETS[2], "1")
    made = _planned(problem)
    gpus = sum(o.available for o in problem.devices)
    return Reproduced(value=made.certificate.seconds, clock="measured",
                      note=f"exact search with proof, {gpus} GPUs of six types on offer; {made.certificate.status}")


CLAIMS: Mapping[str, Callable[[], Reproduced]] = {
    "worked-example-published-plan": _published_plan,
    "worked-example-uniform": _in_proportion(t1=1, t2=1, t3=1),
    "worked-example-composition": _in_proportion(t1=1, t2=2),
    "worked-example-deployment": _in_proportion(t1=1, TP2=1),
    "throughput-over-homogeneous-most": lambda: _gain(max),
    "throughput-over-homogeneous-mean": lambda: _gain(statistics.fmean),
    "without-composition": lambda: _loss("uniform-composition"),
    "without-deployment": lambda: _loss("uniform-deployment"),
    "without-assignment": lambda: _loss("round-robin"),
    "bisection-loss": _bisection_loss,
    "search-time": _search_time,
}

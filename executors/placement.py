"""placement: the planned fleet under traffic, request by request, on a virtual clock.

Paper: Demystifying Cost-Efficiency in LLM Serving over Heterogeneous GPUs (arXiv 2502.00722), section 5's runtime:
replicas with continuous batching behind a coordinator that sends each request to a configuration by the planned
shares x_{c,w}. Shares are kept by deficit (the group furthest behind its share gets the request), not by chance.

``simulate`` plays two things: the whole demand present at time 0, whose finish is the simulated makespan T, and
``simulation.duration_s`` of traffic at ``simulation.load`` of the rate that the plan promises, for the latencies.
A configuration with stated throughputs serves one request of type w at a time in 1/h_{c,w} (the model's own
assumption); an enumerated one is a replica of ``workbench.serving`` on the step model that priced it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from planners.placement.configurations import MemoCosts, formats_of, pipeline
from planners.placement.demand import requests_of, type_name
from planners.placement.problem import Deployment, Plan, Problem
from planners.placement.study import pareto
from workbench.costs import CostModel
from workbench.errors import CheckFailed, NotBuilt
from workbench.hardware import load_catalogue
from workbench.llmcosts import KernelSteps
from workbench.models import load_model
from workbench.outcome import Metric, Outcome
from workbench.plan import Violation
from workbench.plots import cdf, lines, picture
from workbench.plots import pareto as pareto_plot
from workbench.report import Figure, Section, Table
from workbench.serving import ReplicaSpec, Requests, Served, Slo, simulate_fleet
from workbench.stepcosts import Chunk, Ramp, StepModel, to_ticks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from workbench.costs import Source

__all__ = ["run", "sections", "simulate", "verify"]

_BLOCK_TOKENS = 16
_PLOT_POINTS = 2000
_PARETO_BUDGETS = 9


def simulate(problem: Problem, plan: Plan, costs: CostModel) -> Outcome:
    """Play the plan; the per-request table holds the hour of traffic.

    Raises:
        MissingProfile: the costs lack a kernel of a deployed device.
        SpecError: the demand cannot be turned into requests.
    """
    fleet = _fleet(problem, plan, costs)
    shares = {d.configuration: [d.shares.get(w.name, 0.0) for w in plan.workloads] for d in plan.deployments}
    rng = np.random.default_rng(problem.simulation.seed)
    whole = simulate_fleet(_demand(problem, plan, fleet, rng=rng, rate_per_s=None), fleet, router="deficit",
                           shares=shares)
    rate = problem.simulation.load * _planned_rate(plan)
    served = simulate_fleet(_demand(problem, plan, fleet, rng=rng, rate_per_s=rate), fleet, router="deficit",
                            shares=shares)
    wanted = problem.simulation
    slo = Slo(ttft_s=wanted.ttft_limit_s, tpot_s=wanted.tpot_limit_s, e2el_s=wanted.e2el_limit_s)
    limited = slo != Slo()
    completed = len(whole.finish_ps) / whole.duration_s
    metrics = (
        Metric(name="makespan_s", value=whole.duration_s, unit="s",
               about="Time to serve all requests, all there at 0."),
        Metric(name="rate_per_s", value=completed, unit="requests/s", about="Requests finished per second."),
        Metric(name="offered_rate_per_s", value=rate, unit="requests/s",
               about=f"Traffic offered for latencies: {wanted.load:.0%} of the planned rate."),
        *served.metrics(slo=slo if limited else None),
    )
    return Outcome(clock="simulated", metrics=metrics, counters={"requests": float(len(served.finish_ps))},
                   tables={"requests": served.frame(), "replicas": _use(plan, served, whole),
                           "concurrency": _thinned(served.concurrency())})


def run(problem: Problem, plan: Plan, *, device: str) -> Outcome:
    """Not built: the serving engine that would run the replicas comes with the microserving study.

    Raises:
        NotBuilt: always.
    """
    raise NotBuilt("running a placement for real is not built: it needs a serving engine, which comes later",
                   hint="the same plan can be simulated", next_command="wb simulate placement")


def verify(problem: Problem, plan: Plan, outcome: Outcome) -> list[Violation]:
    """Conservation in a simulated outcome: every request is served once, in the order of its own times.

    Raises:
        CheckFailed: the outcome carries no per-request table.
    """
    if "requests" not in outcome.tables:
        raise CheckFailed("the outcome has no table of requests to verify", next_command="wb simulate placement")
    frame = outcome.tables["requests"]
    rules = {
        "served once": frame["finish_s"].isna(),
        "scheduled after arrival": frame["scheduled_s"] < frame["arrival_s"],
        "first token after scheduling": frame["first_token_s"] < frame["scheduled_s"],
        "finished after the first token": frame["finish_s"] < frame["first_token_s"],
        "served by a planned replica": frame["replica"] >= sum(d.replicas for d in plan.deployments),
    }
    return [Violation(rule=rule, where=f"requests {np.flatnonzero(bad)[:5].tolist()}",
                      detail=f"{int(bad.sum())} of {len(frame)} requests") for rule, bad in rules.items() if bad.any()]


def sections(problem: Problem, plan: Plan, costs: CostModel, outcome: Outcome) -> list[Section]:
    """What only this study shows: the cost/throughput front, latencies, and how busy each replica is."""
    requests = outcome.tables["requests"]
    several = requests[requests["output_tokens"] > 1]
    latencies = {"time to first token": (requests["first_token_s"] - requests["arrival_s"]).to_numpy(),
                 "end to end": (requests["finish_s"] - requests["arrival_s"]).to_numpy()}
    tpot = ((several["finish_s"] - several["first_token_s"]) / (several["output_tokens"] - 1)).to_numpy()
    moving = outcome.tables["concurrency"]
    played = problem.simulation
    load = f"{played.duration_s / 3600:.3g} h of traffic at {played.load:.0%} of the planned rate"
    # Requests whose throughputs are given have one token each, hence no time between tokens.
    per_token = [Figure(picture(cdf, {"time per output token": tpot * 1e3}, quantity="time per output token", unit="ms",
                                label="Cumulative distribution of the time per output token"),
                        f"Time per output token after the first, {load}")] if len(tpot) else []
    return [
        *_front(problem, plan, costs),
        Section("Latency", [
            Figure(picture(cdf, latencies, quantity="latency", unit="s", scale="log",
                           label="Cumulative distributions of time to first token and end-to-end latency"),
                   f"Latency of each request, {load}"),
            *per_token]),
        Section("Utilisation", [
            Table.of("Each replica under that traffic, and with the whole demand at once",
                     outcome.tables["replicas"].to_dict("records"), units={"cost": "$/h"}),
            Figure(picture(lines, {"in the system": (moving["time_s"].to_numpy() / 60, moving["requests"].to_numpy()),
                                   "waiting": (moving["time_s"].to_numpy() / 60, moving["waiting"].to_numpy())},
                           x_label="time (min)", y_label="requests",
                           label="Requests in the system and waiting over time"),
                   f"Requests in the system and waiting for their first iteration, {load}")]),
    ]


def _front(problem: Problem, plan: Plan, costs: CostModel) -> list[Section]:
    budget = problem.budget_usd_per_h
    if budget is None or problem.objective != "least-makespan":
        return []
    budgets = [budget * (k + 1) / (_PARETO_BUDGETS - 3) for k in range(_PARETO_BUDGETS)]
    rows = [r for r in pareto(problem, costs, budgets) if r.get("rate_per_s")]
    points = [(float(r["cost_usd_per_h"]), float(r["rate_per_s"])) for r in rows]
    points.append((plan.cost_usd_per_h, _planned_rate(plan)))
    return [Section("What other budgets buy", [
        Figure(picture(pareto_plot, points, chosen=len(points) - 1, x_label="rent ($/h)",
                       y_label="sustained rate (requests/s)",
                       label="Rent against sustained rate for several budgets, this plan marked"),
               "Each point is a proven optimum at its budget; the marked one is this plan")])]


def _planned_rate(plan: Plan) -> float:
    return math.fsum(w.requests for w in plan.workloads) / plan.makespan_s


# ------------------------------------------------------------------------------------------------------------- fleet


class _OneAtATime(StepModel):
    """A replica with stated throughputs as a step model: a prompt of ``key`` tokens takes the whole 1/h of its type.

    Requests of type k are given k + 1 prompt tokens and one output token, so that an iteration is one request.
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        self._ticks = [to_ticks(s) for s in seconds]

    def decode(self, sequences: int) -> Ramp:
        """Never asked: no request has a second token."""
        return Ramp((0,), (0,), (0,))

    def mixed(self, sequences: int, context_tokens: int, chunks: Sequence[Chunk]) -> int:
        """The service time of the request being prefilled."""
        return sum(self._ticks[c.tokens - 1] for c in chunks)

    def sources(self) -> Mapping[Source, float]:
        """Stated in the spec."""
        return {"analytic": 1.0}


def _fleet(problem: Problem, plan: Plan, costs: CostModel) -> list[ReplicaSpec]:
    """One entry a replica, in the order of the plan's deployments."""
    memo = MemoCosts(costs)
    return [spec for d in plan.deployments for spec in [_replica(problem, plan, d, memo)] * d.replicas]


def _replica(problem: Problem, plan: Plan, deployment: Deployment, costs: MemoCosts) -> ReplicaSpec:
    if not deployment.stages:
        rates = [deployment.throughputs.get(w.name) for w in plan.workloads]
        return ReplicaSpec(step_model=_OneAtATime([1 / r.per_s if r else 0.0 for r in rates]),
                           group=deployment.configuration, kv_blocks=len(rates) + 1, block_size=1, max_sequences=1,
                           token_budget=len(rates), scheduling="sync")
    options = problem.enumeration
    catalogue = load_catalogue(*options.hardware)
    shape = load_model(deployment.model)
    steps = KernelSteps(shape, pipeline(deployment.stages, catalogue), costs, catalogue=catalogue,
                        formats=formats_of(problem, shape), network=options.network)
    # A round of a pipeline is one micro-batch a stage, each with the engine's whole token budget.
    return ReplicaSpec(step_model=steps, group=deployment.configuration,
                       kv_blocks=int((deployment.kv_tokens or 0) // _BLOCK_TOKENS), block_size=_BLOCK_TOKENS,
                       max_sequences=options.max_sequences,
                       token_budget=options.token_budget * len(deployment.stages))


# ------------------------------------------------------------------------------------------------------------ demand


def _demand(problem: Problem, plan: Plan, fleet: Sequence[ReplicaSpec], *, rng: np.random.Generator,
            rate_per_s: float | None) -> Requests:
    """Requests in order of arrival: the whole demand at time 0, or traffic at a rate for the simulated duration.

    Stated workloads arrive as a Poisson stream in random order; a trace keeps its own order and rhythm, squeezed to
    the rate and repeated until the time is full.
    """
    total = math.fsum(w.requests for w in plan.workloads)
    index = {w.name: k for k, w in enumerate(plan.workloads)}
    stated = [w for w in problem.workloads if w.requests > 0]
    streams = []
    if stated:
        weight = math.fsum(w.requests for w in stated)
        arrivals = _poisson(rng, None if rate_per_s is None else rate_per_s * weight / total,
                            problem.simulation.duration_s, round(weight))
        counts = np.array([w.requests for w in stated])
        kinds = _in_proportion(counts, len(arrivals), rng)
        streams.append((arrivals, np.array([w.input_tokens or 1 for w in stated])[kinds],
                        np.array([w.output_tokens or 1 for w in stated])[kinds],
                        np.array([index[w.name] for w in stated])[kinds]))
    for traffic in problem.traffic:
        table, bins = requests_of(traffic)
        several = len({w.model for w in plan.workloads}) > 1
        kind = np.array([index.get(f"{traffic.model}:{type_name(t)}" if several else type_name(t), -1)
                         for t in bins.types])[bins.index]
        rows = np.arange(len(table))
        arrivals = np.zeros(len(table))
        if rate_per_s is not None:
            squeezed = table.at_rate(rate_per_s * len(table) / total)
            period = squeezed.span_s * len(table) / (len(table) - 1)
            laps = math.ceil(problem.simulation.duration_s / period)
            arrivals = (squeezed.arrival_s + period * np.arange(laps)[:, None]).ravel()
            rows = np.tile(rows, laps)
            kept = arrivals < problem.simulation.duration_s
            arrivals, rows = arrivals[kept], rows[kept]
        streams.append((arrivals, table.input_tokens[rows], table.output_tokens[rows], kind[rows]))
    arrival, inputs, outputs, kinds = (np.concatenate(columns) for columns in zip(*streams, strict=True))
    if not plan.deployments[0].stages:
        inputs, outputs = kinds + 1, np.ones_like(kinds)
    order = np.argsort(arrival, kind="stable")
    return Requests.of(arrival[order], inputs[order], outputs[order], workload=kinds[order])


def _poisson(rng: np.random.Generator, rate_per_s: float | None, duration_s: float, batch: int) -> np.ndarray:
    """Arrival times: all ``batch`` at 0, or Poisson until ``duration_s`` (at least one)."""
    if rate_per_s is None:
        return np.zeros(max(batch, 1))
    count = max(int(rng.poisson(rate_per_s * duration_s)), 1)
    return np.sort(rng.uniform(0.0, duration_s, count))


def _in_proportion(counts: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` types in random order, each as often as its share says (largest remainders)."""
    exact = counts / counts.sum() * n
    whole = np.floor(exact).astype(int)
    short = n - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:short]] += 1
    return rng.permutation(np.repeat(np.arange(len(counts)), whole))


# ------------------------------------------------------------------------------------------------------------ tables


def _use(plan: Plan, served: Served, whole: Served) -> pd.DataFrame:
    """Per-replica table: what it is, what it costs, how busy it was under traffic and with the whole demand at once."""
    frame = served.replica_frame().rename(columns={"group": "configuration"})
    costs = [d.cost_usd_per_h for d in plan.deployments for _ in range(d.replicas)]
    frame.insert(1, "cost", costs)
    frame["busy_share_whole_demand"] = whole.replica_frame()["busy_share"]
    return frame


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    """As many rows as a plot can show, evenly taken."""
    step = max(1, len(frame) // _PLOT_POINTS)
    return frame.iloc[::step].reset_index(drop=True)

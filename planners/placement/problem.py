"""What is asked and what is answered: demand, offers and options of a problem; replicas, shares and proof of a plan.

Symbols: n GPU type, w workload type, c configuration; f_w requests, h_{c,w} requests/s of one replica on pure type w,
d_n(c) GPUs of type n in one replica, o_c its price, y_c replicas, x_{c,w} share of w sent to c, B budget,
a_n availability, T makespan. ``Rate.per_s`` is h, ``Deployment.replicas`` is y, ``Deployment.shares`` holds x.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from workbench.costs import SOURCES, Source
from workbench.plan import Certificate
from workbench.spec import about, spec

__all__ = ["Deployment", "Enumeration", "GivenConfiguration", "Objective", "Offer", "Plan", "Problem", "Rate",
           "SearchSpace", "Simulation", "StageLayout", "Traffic", "Workload", "source_shares"]

Objective = Literal["least-makespan", "least-cost"]


@spec
class Offer:
    """GPUs of one type that can be rented now."""

    name: str = about("GPU type: a name of the hardware catalogue, or any name when configurations are given.")
    available: Annotated[int, Ge(0)] = about("How many GPUs of this type can be rented.")
    price_usd_per_h: Annotated[float, Ge(0)] = about("Rent of one GPU for one hour.")


@spec
class Workload:
    """One workload type: requests of one model with one prompt and one output length."""

    name: str = about("Short name, used as key of throughputs and shares.")
    model: str = about("Model asked for: a name of the model catalogue, or any name when configurations are given.")
    requests: Annotated[float, Ge(0)] = about("Requests of this type to serve; only proportions matter for rates.")
    input_tokens: Annotated[int, Ge(1)] | None = about(
        "Prompt length; needed unless configurations are given.", default=None)
    output_tokens: Annotated[int, Ge(1)] | None = about(
        "Output length; needed unless configurations are given.", default=None)


@spec
class Traffic:
    """Demand for one model taken from a request trace, sorted into input x output length types."""

    model: str = about("Model all requests of the trace ask for.")
    trace: str = about("Name of a trace (see wb traces list); a public one that is not on this machine is replaced "
                       "by its synthetic stand-in, and the plan says so.")
    requests: Annotated[int, Ge(1)] | None = about("Take only the first so many requests; absent: all.", default=None)
    seed: int = about("Seed of a synthetic trace.", default=0)
    input_centres_tokens: Annotated[tuple[int, ...], MinLen(1)] = about(
        "Prompt lengths of the types; a request goes to the nearest on a log scale.", default=(2455, 824, 496))
    output_centres_tokens: Annotated[tuple[int, ...], MinLen(1)] = about(
        "Output lengths of the types; a request goes to the nearest on a log scale.", default=(510, 253, 18))


@spec
class GivenConfiguration:
    """A replica layout whose throughputs are stated in the spec instead of computed from cost tables."""

    name: str = about("Short name of the layout, e.g. 'TP2 x t2'.")
    model: str = about("Model the replica serves.")
    devices: Annotated[Mapping[str, Annotated[int, Gt(0)]], MinLen(1)] = about(
        "GPUs of each type that one replica occupies.")
    throughputs_per_s: Annotated[Mapping[str, Annotated[float, Ge(0)]], MinLen(1)] = about(
        "Requests/s of one replica on each workload type alone; an absent type cannot be served.")
    source: Source = about("How the throughputs are known.", default="analytic")


@spec
class Enumeration:
    """Which replica layouts are considered."""

    tensor_parallel: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = about(
        "Allowed tensor-parallel degrees of a stage; a stage never spans machines.", default=(1, 2, 4, 8))
    max_stages: Annotated[int, Ge(1)] = about("Most pipeline stages of a replica.", default=4)
    mixed_pipelines: bool = about("Whether stages of one replica may use different GPU types.", default=True)
    max_devices: Annotated[int, Ge(1)] = about("Most GPUs of one replica.", default=16)
    memory_share: Annotated[float, Gt(0), Le(1)] = about("Share of GPU memory an engine may use.", default=0.9)
    max_sequences: Annotated[int, Ge(1)] = about("Most requests an engine decodes together.", default=256)
    token_budget: Annotated[int, Ge(1)] = about("Most tokens an engine schedules in one iteration.", default=2048)
    network: str = about("Link between machines: a name of the hardware catalogue.", default="Ethernet")
    weights: str | None = about("Number format of weights, e.g. bf16 or fp8; absent: the model's own.", default=None)
    kv: str | None = about("Number format of the KV cache; absent: the model's own.", default=None)
    hardware: tuple[str, ...] = about("Hardware files to read on top of the catalogue.", default=())


@spec
class Simulation:
    """What wb simulate plays besides the whole demand at once."""

    duration_s: Annotated[float, Gt(0)] = about("Length of the traffic.", default=3600.0)
    load: Annotated[float, Gt(0)] = about("Offered rate as a share of the rate that the plan promises.", default=0.8)
    ttft_limit_s: Annotated[float, Gt(0)] | None = about("Limit on time to first token that counts for goodput.",
                                                         default=None)
    tpot_limit_s: Annotated[float, Gt(0)] | None = about("Limit on time per output token that counts for goodput.",
                                                         default=None)
    e2el_limit_s: Annotated[float, Gt(0)] | None = about("Limit on end-to-end latency that counts for goodput.",
                                                         default=None)
    seed: int = about("Seed of arrivals and of the order of requests.", default=0)


@spec
class Problem:
    """Which GPUs to rent, how to group them into replicas, and which replica serves which workload type."""

    objective: Objective = about(
        "least-makespan: finish the demand soonest within the budget; least-cost: cheapest fleet for a required rate.",
        default="least-makespan")
    devices: Annotated[tuple[Offer, ...], MinLen(1)] = about("The GPUs on offer.")
    budget_usd_per_h: Annotated[float, Gt(0)] | None = about(
        "Most that the fleet may cost; absent: only availability limits it.", default=None)
    required_rate_per_s: Annotated[float, Gt(0)] | None = about(
        "least-cost: requests/s to sustain over all workload types in proportion to their requests.", default=None)
    workloads: tuple[Workload, ...] = about("Demand by type.", default=())
    traffic: tuple[Traffic, ...] = about("Demand from request traces; their types join the workloads.", default=())
    configurations: tuple[GivenConfiguration, ...] = about(
        "Replica layouts with known throughputs; with any given, none is enumerated.", default=())
    enumeration: Enumeration = about("Which layouts are considered when none is given.", default=Enumeration())
    simulation: Simulation = about("Traffic that is simulated on the plan.", default=Simulation())
    relative_gap: Annotated[float, Ge(0)] = about("Distance from the proven bound at which search may stop.",
                                                  default=0.0)
    bisect_tolerance: Annotated[float, Gt(0)] = about("Relative width at which the binary search on T stops.",
                                                      default=1e-3)

    def __post_init__(self) -> None:
        for kind, names in (("devices", [d.name for d in self.devices]),
                            ("workloads", [w.name for w in self.workloads]),
                            ("configurations", [c.name for c in self.configurations])):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{kind}: the name {twice[0]!r} is used more than once")
        if not self.workloads and not self.traffic:
            raise ValueError("no demand: give workloads or traffic")
        if self.objective == "least-cost" and self.required_rate_per_s is None:
            raise ValueError("objective least-cost needs required_rate_per_s")
        if self.objective == "least-makespan" and self.required_rate_per_s is not None:
            raise ValueError("required_rate_per_s belongs to objective least-cost")
        if self.workloads and not self.traffic and not any(w.requests > 0 for w in self.workloads):
            raise ValueError("workloads: no type has requests > 0")
        offered, types = {d.name for d in self.devices}, {w.name for w in self.workloads}
        for c in self.configurations:
            strange = sorted(set(c.devices) - offered)
            if strange:
                raise ValueError(f"configurations: {c.name!r} uses {strange[0]!r}, which devices do not offer "
                                 f"({', '.join(sorted(offered))})")
            if not self.traffic and (strange := sorted(set(c.throughputs_per_s) - types)):
                raise ValueError(f"configurations: {c.name!r} serves {strange[0]!r}, which is no workload "
                                 f"({', '.join(sorted(types))})")
        if not self.configurations:
            for w in self.workloads:
                if w.input_tokens is None or w.output_tokens is None:
                    raise ValueError(f"workloads: {w.name!r} needs input_tokens and output_tokens, because no "
                                     "configurations are given")


@spec
class Rate:
    """Throughput of one replica on one workload type alone."""

    per_s: float = about("Requests per second.")
    sources: Mapping[Source, float] = about("Shares of the times behind it by how they are known.")


@spec
class StageLayout:
    """One pipeline stage of a replica."""

    device: str = about("GPU type of the stage.")
    tensor_parallel: int = about("GPUs that share each layer of the stage.")
    layers: int = about("Transformer layers it holds.")
    weight_bytes: float = about("Weights on each of its GPUs.")
    usable_bytes: float = about("Memory of each of its GPUs that an engine may use.")


@spec
class Deployment:
    """Equal replicas of one configuration, with the share of each workload type they take together."""

    configuration: str = about("Name of the configuration.")
    model: str = about("Model its replicas serve.")
    devices: Mapping[str, int] = about("GPUs of each type in one replica.")
    stages: tuple[StageLayout, ...] = about("Pipeline stages in order; empty for a given configuration.", default=())
    kv_tokens: float | None = about("Tokens of KV cache one replica holds; absent when not computed.", default=None)
    replicas: int = about("How many replicas to start.")
    cost_usd_per_h: float = about("Rent of one replica.")
    throughputs: Mapping[str, Rate] = about("Throughput of one replica on each workload type it can serve.")
    shares: Mapping[str, float] = about("Share of each workload type sent to these replicas; absent types get none.")


@spec
class SearchSpace:
    """How the candidate configurations came about."""

    considered: int = about("Layouts looked at.")
    infeasible: Mapping[str, int] = about("Layouts left out, by reason.", default_factory=dict)
    dominated: int = about("Layouts another layout (or several) can replace at no loss.", default=0)
    kept: int = about("Layouts the search chose from.")


@spec
class Plan:
    """The fleet to rent, its deployment and the workload assignment."""

    objective: Objective = about("What was optimised.")
    deployments: tuple[Deployment, ...] = about("What to start, and which demand it takes.")
    workloads: tuple[Workload, ...] = about("The demand by type as planned for, traces already sorted into types.")
    demand: tuple[str, ...] = about("Where the traces behind the demand come from; empty for stated types.",
                                    default=())
    makespan_s: float = about("Predicted time to serve all requests; total requests over it is the sustained rate.")
    cost_usd_per_h: float = about("Rent of the whole fleet.")
    waived: tuple[str, ...] = about("Rules of the problem that a baseline ignores by its definition.", default=())
    sources: Mapping[Source, float] = about("Share of the planned busy time by how its throughput is known.")
    space: SearchSpace = about("How the candidate configurations came about.")
    certificate: Certificate = about("Why the plan should be believed.")


def source_shares(deployments: tuple[Deployment, ...], workloads: tuple[Workload, ...]) -> dict[Source, float]:
    """Share of the planned busy time (x f / h) by how the times behind it are known."""
    requests = {w.name: w.requests for w in workloads}
    busy = dict.fromkeys(SOURCES, 0.0)
    for d in deployments:
        for name, share in d.shares.items():
            rate = d.throughputs[name]
            for source, part in rate.sources.items():
                busy[source] += part * share * requests[name] / rate.per_s
    total = math.fsum(busy.values())
    return {s: t / total for s, t in busy.items() if t > 0}

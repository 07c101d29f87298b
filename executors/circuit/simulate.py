"""A plan on a described cluster: kernels by the plan's table, exchanges by closed form, offload by its traffic.

An exchange of m bits, m_r regional and m_g global, keeps 2^-m of each shard and sends a share to each of 2^m - 1
partners. Inside a node every pair of devices has its own link, so the regional part takes V 2^-m / r; what leaves the
node, V (1 - 2^-m_g), shares the device's port of rate g; both run at once:
    T = max(V 2^-m / r if m_r > 0, V (1 - 2^-m_g) / g if m_g > 0).
Rates absent from the problem are those of the published system (A100 nodes): r = 58.7 GB/s, g = 13.3 GB/s, fitted to
its raw timings of 29, 30 and 31 to 36 qubits. Whole shards that move are one more message of V bytes.
All shards do the same at the same time, so the timeline shows one device, and its links.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from planners.circuit import Circuit, Plan, Problem
from planners.circuit.problem import gate_class, move
from planners.circuit.words import stage_metrics
from workbench.outcome import Metric, Outcome
from workbench.timeline import Span, Timeline

__all__ = ["A100_RUNS", "FittedCosts", "exchange_seconds", "offload_seconds", "run_seconds", "simulate", "transitions"]

PAIR_BYTES_PER_S = 58.7e9
"""One NVLink pair of an A100 node: 2 GiB in 36.6 ms (29 qubits), 1 GiB in 18.2 ms (30 qubits)."""
PORT_BYTES_PER_S = 13.3e9
"""What one device of a full node gets of the node's network."""


def exchange_seconds(shard_bytes: float, *, regional: int, global_: int, pair_bytes_per_s: float = PAIR_BYTES_PER_S,
                     port_bytes_per_s: float = PORT_BYTES_PER_S) -> float:
    """Time of one all-to-all that trades ``regional`` + ``global_`` bits of every shard."""
    inside = shard_bytes * 0.5 ** (regional + global_) / pair_bytes_per_s if regional else 0.0
    outside = shard_bytes * (1 - 0.5**global_) / port_bytes_per_s if global_ else 0.0
    return max(inside, outside)


def transitions(plan: Plan) -> list[tuple[int, int, int, int]]:
    """(regional bits, global bits) exchanged and (regional, global) places whose whole shards move, by transition."""
    local, regional = len(plan.stages[0].local), len(plan.stages[0].regional)
    result = []
    for before, after in zip(plan.stages, plan.stages[1:], strict=False):
        steps = move(before.layout, after.layout, local_qubits=local)
        places = [p - local for _, p in steps.exchange]
        whole = [i for i, to in enumerate(steps.shards) if to != i]
        result.append((sum(p < regional for p in places), sum(p >= regional for p in places),
                       sum(i < regional and steps.shards[i] < regional for i in whole),
                       sum(i >= regional or steps.shards[i] >= regional for i in whole)))
    return result


def simulate(problem: Problem, plan: Plan, costs: Any) -> Outcome:
    """Play the plan on the virtual clock; ``costs`` are the plan's own table, so the argument is not consulted."""
    machine = problem.machine
    local = len(plan.stages[0].local)
    shard_bytes = machine.amplitude_bytes << local
    qubits = len(plan.stages[0].layout)
    pair = machine.regional_bytes_per_s or PAIR_BYTES_PER_S
    port = machine.global_bytes_per_s or PORT_BYTES_PER_S
    spans: list[Span] = []
    clock = kernel_s = exchange_s = 0.0
    sent = 0
    moves = transitions(plan)
    for index, stage in enumerate(plan.stages):
        if index:
            regional, global_, near, far = moves[index - 1]
            took = exchange_seconds(shard_bytes, regional=regional, global_=global_, pair_bytes_per_s=pair,
                                    port_bytes_per_s=port)
            # a moved shard is one message of the whole shard
            took += shard_bytes / port if far else shard_bytes / pair if near else 0.0
            m = regional + global_
            moved = shard_bytes - (shard_bytes >> m)
            spans.append(Span(device="device 0", stream="exchange", name=f"exchange {m} bits", start_s=clock,
                              end_s=clock + took, bytes=moved, after=(len(spans) - 1,) if spans else ()))
            clock += took
            exchange_s += took
            sent += moved << (qubits - local)
        for kernel in stage.kernels:
            spans.append(Span(device="device 0", stream="compute", name=f"stage {index} {kernel.kind}", start_s=clock,
                              end_s=clock + kernel.cost_s, after=(len(spans) - 1,) if spans else (),
                              args={"gates": len(kernel.gates), "qubits": len(kernel.qubits)}))
            clock += kernel.cost_s
            kernel_s += kernel.cost_s
    return Outcome(
        clock="simulated",
        metrics=(
            Metric(name="total_s", value=clock, unit="s", about="Kernels and exchanges, one after the other."),
            Metric(name="kernel_s", value=kernel_s, unit="s", about="All kernels of one shard."),
            Metric(name="communication_s", value=exchange_s, unit="s", about="All exchanges between stages."),
            Metric(name="stages", value=len(plan.stages), unit="", about="Stages of the plan."),
            Metric(name="exchanged_bytes", value=sent, unit="bytes", about="Sent by all shards together."),
            *stage_metrics([sum(kernel.cost_s for kernel in stage.kernels) for stage in plan.stages]),
        ),
        timeline=Timeline.from_spans(spans),
        counters={"kernels": sum(len(s.kernels) for s in plan.stages), "exchanges": len(moves),
                  "shards": 1 << (qubits - local)},
    )


def offload_seconds(plan: Plan, *, amplitude_bytes: int, bus_bytes_per_s: float, devices: int = 1) -> float:
    """Time of the plan when the state lies in host memory: every stage reads and writes it once over the bus.

    Kernels hide behind the transfers of the next shard, so a stage takes the longer of the two.
    """
    qubits, local = len(plan.stages[0].layout), len(plan.stages[0].local)
    state_bytes = amplitude_bytes << qubits
    shards = 1 << (qubits - local)
    per_stage = 2 * state_bytes / (bus_bytes_per_s * devices)
    return sum(max(per_stage, shards / devices * sum(k.cost_s for k in stage.kernels)) for stage in plan.stages)


class FittedCosts(NamedTuple):
    """A linear model of whole published runs; fusion kernels are priced by their table, scaled."""

    fusion_scale: float
    tile_s: float
    gate_s: Mapping[str, float]
    transition_s: float


A100_RUNS = FittedCosts(fusion_scale=0.392, tile_s=8.06e-3, gate_s={"diagonal2": 0.226e-3, "permutation1": 0.089e-3},
                        transition_s=48.6e-3)
"""Non-negative least squares on relative errors of the published totals (28 to 36 qubits, eleven families), with plans
of this project: what a transition costs beyond its bytes is as large as a stage of fused kernels. The published table
alone misses those totals by 64 % on average, since it overprices gates in tiles and knows no transition."""


def run_seconds(circuit: Circuit, plan: Plan, *, fitted: FittedCosts = A100_RUNS) -> float:
    """Whole run of a plan on the published system: fitted kernels and transitions, closed-form exchanges.

    ``plan.table`` must be the published kernel table (its fusion costs are what is scaled).
    """
    total = 0.0
    for kernel in (k for stage in plan.stages for k in stage.kernels):
        if kernel.kind == "fusion":
            total += fitted.fusion_scale * plan.table.fusion_s[len(kernel.qubits)]
        else:
            total += fitted.tile_s + sum(fitted.gate_s.get(gate_class(circuit.gates[g]), 0.0) for g in kernel.gates)
    shard_bytes = 16.0 * 2 ** len(plan.stages[0].local)
    return total + sum(fitted.transition_s + exchange_seconds(shard_bytes, regional=regional, global_=global_)
                       for regional, global_, _, _ in transitions(plan))

"""Claims of arXiv 2408.09055 about runs, as far as the virtual clock can tell: times of shuffles."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from executors.circuit.simulate import simulate
from planners.circuit import Machine, Problem, Source, plan
from workbench.costs import open_costs
from workbench.reproduce import Reproduced

__all__ = ["CLAIMS"]


def _shuffle(qubits: int) -> Reproduced:
    """The exchange of dj on nodes of four devices with 4 GiB shards; rates fitted to the published raw timings."""
    problem = Problem(circuit=Source(family="dj", qubits=qubits), machine=Machine(local_qubits=28, regional_qubits=2))
    costs = open_costs({"source": "gates", "table": "a100-atlas"})
    made = plan(problem, costs, planner="atlas", solver="highs", time_limit_s=60.0, seed=0)
    outcome = simulate(problem, made, costs)
    return Reproduced(value=1e3 * outcome["communication_s"], clock="simulated",
                      note=f"{len(made.stages) - 1} shuffle; two link rates fitted to 29, 30 and 31 to 36 qubits")


CLAIMS: Mapping[str, Callable[[], Reproduced]] = {
    "shuffle-time-31-qubits": lambda: _shuffle(31),
    "shuffle-time-36-qubits": lambda: _shuffle(36),
}

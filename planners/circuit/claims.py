"""Claims of arXiv 2408.09055 about plans: shuffles between stages and costs of kernels.

Kernels are priced with the published table (cost units are milliseconds of a 28-qubit shard); circuits are generated,
with the gates of the published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from planners.circuit.planning import plan
from planners.circuit.problem import Machine, Plan, Problem, Source
from workbench.costs import open_costs
from workbench.reproduce import Reproduced

__all__ = ["CLAIMS"]

_SIZES = range(29, 37)


def _planned(family: str, qubits: int, planner: str) -> Plan:
    problem = Problem(circuit=Source(family=family, qubits=qubits),
                      machine=Machine(local_qubits=28, regional_qubits=min(2, qubits - 28)))
    return plan(problem, open_costs({"source": "gates", "table": "a100-atlas"}), planner=planner, solver="highs",
                time_limit_s=60.0, seed=0)


def _shuffles_vqc() -> Reproduced:
    plans = [_planned("vqc", qubits, "atlas") for qubits in _SIZES]
    found = [len(p.stages) - 1 for p in plans]
    proven = sum(p.certificate.status == "optimal" for p in plans)
    return Reproduced(value=max(found, key=lambda n: abs(n - found[0])), clock="planned",
                      note=f"29 to 36 qubits: {', '.join(map(str, found))}; {proven} of {len(plans)} proven least")


def _kernels(family: str) -> Reproduced:
    made = _planned(family, 28, "exact")
    return Reproduced(value=1e3 * made.kernel_time.objective, clock="planned",
                      note=f"{sum(len(s.kernels) for s in made.stages)} kernels, published price table")


CLAIMS: Mapping[str, Callable[[], Reproduced]] = {
    "stages-vqc": _shuffles_vqc,
    "kernel-cost-vqc-28": lambda: _kernels("vqc"),
    "kernel-cost-su2random-28": lambda: _kernels("su2random"),
}

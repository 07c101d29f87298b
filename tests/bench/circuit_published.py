"""Simulated against published run times of the Atlas artifact: 11 families, 28 to 36 qubits, A100 nodes.

    python -m tests.bench.circuit_published

Every circuit is planned here with the published kernel table (program order, 28 local qubits, four devices a node), and
``run_seconds`` adds the fitted kernels and transitions to the closed-form exchanges. Published totals in milliseconds
are facts from the artifact's raw logs. The fit is in-sample: it used these same totals. Communication is compared with
the logs' own column where the artifact's plan has our number of stages (its su2random plans break the gates' order).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from executors.circuit.simulate import exchange_seconds, run_seconds, transitions
from planners.circuit import Machine, Problem, Source, plan
from planners.circuit.load import planned_circuit
from workbench.costs import open_costs

PUBLISHED_MS: Mapping[str, tuple[float, ...]] = {
    "ae": (161.3, 254.3, 277.7, 590.0, 727.4, 846.7, 912.9, 988.5, 1266.8),
    "dj": (45.8, 105.0, 112.3, 275.2, 324.4, 388.3, 417.2, 441.3, 447.2),
    "ghz": (27.8, 119.0, 171.5, 250.6, 332.3, 375.5, 406.5, 441.5, 688.8),
    "graphstate": (36.1, 113.7, 100.0, 251.4, 326.6, 397.0, 502.2, 437.8, 493.2),
    "ising": (46.3, 116.6, 102.6, 270.3, 355.5, 392.6, 429.0, 455.4, 473.7),
    "qft": (122.5, 187.2, 196.7, 333.0, 429.8, 473.0, 506.4, 548.8, 728.3),
    "qpeexact": (156.1, 161.3, 228.3, 306.6, 588.6, 829.2, 842.7, 904.5, 988.5),
    "qsvm": (85.3, 198.7, 187.2, 500.0, 649.3, 731.3, 777.5, 836.3, 891.5),
    "su2random": (440.0, 642.4, 660.7, 1090.3, 1371.2, 1500.7, 1640.3, 1730.8, 2306.0),
    "vqc": (445.6, 706.8, 738.8, 1322.5, 1657.0, 1892.1, 2042.9, 2138.6, 2330.6),
    "wstate": (50.1, 101.0, 86.9, 274.3, 357.7, 427.8, 435.9, 655.8, 483.1),
}
PUBLISHED_SHUFFLES_MS: Mapping[str, tuple[float, ...]] = {
    "dj": (36.6, 18.2, 158.0, 230.8, 281.0, 311.7, 325.0, 340.6),
    "vqc": (129.0, 75.5, 643.0, 958.0, 1173.0, 1233.0, 1316.0, 1366.0),
    "ae": (72.0, 37.0, 309.0, 471.0, 558.0, 615.0, 668.0, 921.0),
}
"""All shuffles of a run at 29 to 36 qubits."""


def main() -> None:
    costs = open_costs({"source": "gates", "table": "a100-atlas"})
    errors = []
    shuffles: dict[str, list[float]] = {family: [] for family in PUBLISHED_SHUFFLES_MS}
    for family, totals in PUBLISHED_MS.items():
        for qubits, published in zip(range(28, 37), totals, strict=True):
            problem = Problem(circuit=Source(family=family, qubits=qubits),
                              machine=Machine(local_qubits=28, regional_qubits=2))
            made = plan(problem, costs, planner="atlas", solver="highs", time_limit_s=20.0, seed=0)
            simulated = 1e3 * run_seconds(planned_circuit(problem, made), made)
            errors.append(abs(simulated - published) / published)
            print(f"{family:11s} {qubits} stages {len(made.stages)} published {published:7.1f} ms simulated "
                  f"{simulated:7.1f} ms  {simulated / published - 1:+.1%}", flush=True)
            if family in shuffles and qubits > 28:
                column = PUBLISHED_SHUFFLES_MS[family][qubits - 29]
                ours = sum(exchange_seconds(2.0**32, regional=r, global_=g) for r, g, _, _ in transitions(made))
                shuffles[family].append(1e3 * ours / column - 1)
    for family, parts in shuffles.items():
        print(f"# communication of {family}, 29 to 36 qubits: " + " ".join(f"{e:+.1%}" for e in parts))
    print(f"# mean absolute error over {len(errors)} points: {statistics.fmean(errors):.1%}")


if __name__ == "__main__":
    main()

"""Our circuit executor and its peers, interleaved in one job on one machine.

    python -m tests.bench.circuit_run --peers PYTHON --qubits 24 --precision single

``PYTHON`` is an interpreter that has qsimcirq, qiskit-aer, qulacs and pennylane-lightning. A repeat runs ours and then
each peer, on the same threads; reported are medians of wall and of CPU seconds (CPU seconds stand when the machine is
shared), planning apart, and the ratio of the best peer to ours. ``--start general`` switches off what we gain from
knowing that the circuit starts in |0...0>.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from executors.circuit.compiled import engine, threads_available
from executors.circuit.local import compile_circuit, execute
from executors.circuit.measure import amplitudes
from planners.circuit import Circuit
from planners.circuit.generators import BENCHMARKS, generate

PEERS = {"single": ("qsim", "aer", "lightning"), "double": ("aer", "qulacs", "lightning")}
RANDOM = ("supremacy", "quantum_volume")


class Peers:
    """The worker process."""

    def __init__(self, python: str) -> None:
        script = Path(__file__).with_name("circuit_peers.py")
        self.process = subprocess.Popen([python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        stderr=subprocess.DEVNULL)

    def time(self, peer: str, circuit: dict[str, Any], precision: str, threads: int) -> dict[str, Any]:
        request = {"peer": peer, "circuit": circuit, "precision": precision, "threads": threads}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


def plain(circuit: Circuit) -> dict[str, Any]:
    """The circuit as JSON, with a matrix for each gate."""
    return {"name": circuit.name, "qubits": circuit.qubits,
            "gates": [{"name": g.name, "qubits": list(g.qubits), "params": list(g.params),
                       "real": g.matrix.real.tolist(), "imag": g.matrix.imag.tolist()} for g in circuit.gates]}


def ours(circuit: Circuit, dtype: type, *, live: bool) -> dict[str, float]:
    """One run from the circuit to one amplitude, planning timed apart."""
    began = time.perf_counter(), time.process_time()
    code = compile_circuit(circuit, dtype=dtype, live=live)
    planned = time.perf_counter(), time.process_time()
    state, _ = execute(code)
    value = amplitudes(state, code.placement, [0])[0]
    ended = time.perf_counter(), time.process_time()
    return {"plan_s": planned[0] - began[0], "plan_cpu_s": planned[1] - began[1], "wall_s": ended[0] - planned[0],
            "cpu_s": ended[1] - planned[1], "amplitude": abs(value)}


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--peers", required=True)
    read.add_argument("--qubits", type=int, default=24)
    read.add_argument("--precision", choices=("single", "double"), default="single")
    read.add_argument("--repeats", type=int, default=5)
    read.add_argument("--start", choices=("zero", "general"), default="zero")
    read.add_argument("--families", default=",".join((*BENCHMARKS, *RANDOM)))
    read.add_argument("--only", default=None, help="peers to run, comma separated")
    args = read.parse_args()
    dtype = np.float32 if args.precision == "single" else np.float64
    worker, threads = Peers(args.peers), threads_available()
    names = args.only.split(",") if args.only else PEERS[args.precision]
    print(f"# {args.qubits} qubits, {args.precision}, {threads} threads, {engine().name}, {args.repeats} repeats, "
          f"start {args.start}")
    print("# circuit | ours: plan s, wall s, CPU s | peers: wall s / CPU s | ratios best peer / ours: wall, CPU, "
          "CPU with planning")
    ratios: dict[str, list[float]] = {}
    for family in args.families.split(","):
        circuit = generate(family, qubits=args.qubits, rng=np.random.default_rng(1))
        message = plain(circuit)
        mine: list[dict[str, float]] = []
        others: dict[str, list[dict[str, Any]]] = {p: [] for p in names}
        for _ in range(args.repeats):
            mine.append(ours(circuit, dtype, live=args.start == "general"))
            for p in names:
                others[p].append(worker.time(p, message, args.precision, threads))
        row = {k: statistics.median(m[k] for m in mine) for k in mine[0]}
        shown, best = [], {"wall_s": math.inf, "cpu_s": math.inf}
        for p, runs in others.items():
            if any("error" in r for r in runs):
                shown.append(f"{p} {next(r['error'] for r in runs if 'error' in r)}")
                continue
            seen = {k: statistics.median(r[k] for r in runs) for k in best}
            agrees = abs(runs[0]["amplitude"] - row["amplitude"]) < 1e-5
            shown.append(f"{p} {seen['wall_s']:.3f}/{seen['cpu_s']:.3f}{'' if agrees else ' WRONG AMPLITUDE'}")
            best = {k: min(best[k], seen[k]) for k in best}
        wall, cpu = best["wall_s"] / row["wall_s"], best["cpu_s"] / row["cpu_s"]
        total = best["cpu_s"] / (row["cpu_s"] + row["plan_cpu_s"])
        group = "random" if family in RANDOM else "families"
        for key, value in (("wall", wall), ("CPU", cpu), ("CPU with planning", total)):
            ratios.setdefault(f"{group}, {key}", []).append(value)
        print(f"{family:15s} | {row['plan_s']:.3f} {row['wall_s']:.3f} {row['cpu_s']:.3f} | {'; '.join(shown)} | "
              f"{wall:.1f} {cpu:.1f} {total:.1f}", flush=True)
    for key, values in ratios.items():
        print(f"# {key}: geomean {statistics.geometric_mean(values):.2f}, least {min(values):.2f}")
    worker.process.terminate()


if __name__ == "__main__":
    sys.exit(main())

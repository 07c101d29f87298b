"""Our circuit executor and its peers, interleaved in one job on one machine.

    python -m tests.bench.circuit_run --peers PYTHON --qubits 24 --families qft,vqc --results FILE

``PYTHON`` is an interpreter that has qsimcirq, qiskit-aer, qulacs and pennylane-lightning; each peer has a process of
its own. A repeat runs ours and then each peer, on the same threads. The host of a virtual machine takes back what lies
free for some seconds, so each run is preceded by touching as much memory as it needs, off the clock. Given are medians
of wall and of CPU seconds, planning apart (lowering, tiling and emission), of the wall time what is not kernels
(allocation and reading; pages are cleared inside the kernels that touch them first), and the ratio of the best peer to
ours. ``--results`` keeps every repeat, so that a few families or repeats a call add up to the whole table. ``--start
general`` switches off what we gain from knowing that the circuit starts in |0...0>.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from executors.circuit.compiled import engine, threads_available
from executors.circuit.local import compile_circuit, execute
from executors.circuit.lower import _anatomy, _one_of
from executors.circuit.measure import amplitudes
from planners.circuit import Circuit
from planners.circuit.generators import BENCHMARKS, generate
from planners.circuit.ir import _structure
from tests.bench.circuit_peers import back_memory

PEERS = {"single": ("qsim", "aer", "lightning"), "double": ("aer", "qulacs", "lightning")}
RANDOM = ("supremacy", "quantum_volume")


class Peer:
    """One peer in a process of its own, so that no library's threads or memory meet another's."""

    def __init__(self, python: str, name: str) -> None:
        script = Path(__file__).with_name("circuit_peers.py")
        self.name = name
        self.process = subprocess.Popen([python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        stderr=subprocess.DEVNULL)

    def time(self, circuit: dict[str, Any], precision: str, threads: int) -> dict[str, Any]:
        request = {"peer": self.name, "circuit": circuit, "precision": precision, "threads": threads,
                   "back_bytes": back_bytes(circuit["qubits"], precision)}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": "the peer's process ended"}


def plain(circuit: Circuit) -> dict[str, Any]:
    """The circuit as JSON, with a matrix for each gate."""
    return {"name": circuit.name, "qubits": circuit.qubits,
            "gates": [{"name": g.name, "qubits": list(g.qubits), "params": list(g.params),
                       "real": g.matrix.real.tolist(), "imag": g.matrix.imag.tolist()} for g in circuit.gates]}


def back_bytes(qubits: int, precision: str) -> int:
    """Memory to touch and free before a clock starts: a state and half of another."""
    return (12 if precision == "single" else 24) << qubits


def ours(circuit: Circuit, dtype: type, *, live: bool) -> dict[str, float]:
    """One run from the circuit to one amplitude, planning timed apart.

    No gate of an earlier repeat is remembered, only which kinds of gates there are (where their matrices are zero), as
    in any process that has run a circuit before.
    """
    back_memory(back_bytes(circuit.qubits, "single" if dtype is np.float32 else "double"))
    for known in (_anatomy, _one_of, _structure):
        known.cache_clear()
    began = time.perf_counter(), time.process_time()
    code = compile_circuit(circuit, dtype=dtype, live=live)
    planned = time.perf_counter(), time.process_time()
    state, kernels = execute(code)
    value = amplitudes(state, code.placement, [0])[0]
    ended = time.perf_counter(), time.process_time()
    return {"plan_s": planned[0] - began[0], "plan_cpu_s": planned[1] - began[1], "wall_s": ended[0] - planned[0],
            "cpu_s": ended[1] - planned[1], "state_s": ended[0] - planned[0] - float(kernels.sum()),
            "amplitude": abs(value)}


def repeat_of(circuit: Circuit, peers: list[Peer], *, precision: str, live: bool) -> dict[str, Any]:
    """One repeat of a circuit, ours first and then each peer."""
    message, threads = plain(circuit), threads_available()
    mine = ours(circuit, np.float32 if precision == "single" else np.float64, live=live)
    return {"ours": [mine], "peers": {peer.name: [peer.time(message, precision, threads)] for peer in peers}}


def joined(before: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """All repeats of a circuit so far."""
    if before is None:
        return new
    names = [*before["peers"], *(name for name in new["peers"] if name not in before["peers"])]
    return {"ours": before["ours"] + new["ours"],
            "peers": {name: before["peers"].get(name, []) + new["peers"].get(name, []) for name in names}}


def row_of(kept: dict[str, Any]) -> dict[str, Any]:
    """Medians of a circuit, and the ratios of the best peer to ours: wall, CPU, wall with our planning."""
    row: dict[str, Any] = {k: statistics.median(m[k] for m in kept["ours"]) for k in kept["ours"][0]}
    shown, best = [], {"wall_s": math.inf, "cpu_s": math.inf}
    for name, runs in kept["peers"].items():
        if any("error" in r for r in runs):
            shown.append(f"{name}: {next(r['error'] for r in runs if 'error' in r)}")
            continue
        seen = {k: statistics.median(r[k] for r in runs) for k in best}
        agrees = abs(runs[0]["amplitude"] - row["amplitude"]) < 1e-5
        fewer = f" ({len(runs)} repeats)" if len(runs) < len(kept["ours"]) else ""
        shown.append(f"{name} {seen['wall_s']:.3f}/{seen['cpu_s']:.3f}{fewer}{'' if agrees else ' WRONG AMPLITUDE'}")
        best = {k: min(best[k], seen[k]) for k in best}
    return {**row, "repeats": len(kept["ours"]), "shown": "; ".join(shown), "wall": best["wall_s"] / row["wall_s"],
            "CPU": best["cpu_s"] / row["cpu_s"], "wall with planning": best["wall_s"] / (row["wall_s"] + row["plan_s"])}


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table of one setting, and its geomeans."""
    print("# circuit | repeats | ours: plan s, state s, wall s, CPU s | peers: wall s / CPU s | "
          "ratios best peer / ours: wall, CPU, wall with planning")
    ratios: dict[str, list[float]] = {}
    for family in (*BENCHMARKS, *RANDOM):
        if family not in results:
            continue
        row = row_of(results[family])
        for key in ("wall", "CPU", "wall with planning"):
            ratios.setdefault(f"{'random' if family in RANDOM else 'families'}, {key}", []).append(row[key])
        print(f"{family:15s} | {row['repeats']} | {row['plan_s']:.4f} {row['state_s']:.4f} "
              f"{row['wall_s']:.4f} {row['cpu_s']:.4f} | "
              f"{row['shown']} | {row['wall']:.2f} {row['CPU']:.2f} {row['wall with planning']:.2f}")
    for key, values in ratios.items():
        print(f"# {key}: {len(values)} circuits, geomean {statistics.geometric_mean(values):.2f}, "
              f"least {min(values):.2f}")


def added(path: Path | None, setting: str, family: str, new: dict[str, Any]) -> None:
    """Append one repeat to the results file, which is replaced whole."""
    if path is None:
        return
    everything = kept_in(path)
    rows = everything.setdefault(setting, {})
    rows[family] = joined(rows.get(family), new)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(everything, indent=1))
    part.replace(path)


def kept_in(path: Path | None) -> dict[str, Any]:
    """Everything the results file holds."""
    return dict(json.loads(path.read_text())) if path and path.exists() else {}


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--peers", help="interpreter with the peers; without it the results file is only shown")
    read.add_argument("--qubits", type=int, default=24)
    read.add_argument("--precision", choices=("single", "double"), default="single")
    read.add_argument("--repeats", type=int, default=5)
    read.add_argument("--start", choices=("zero", "general"), default="zero")
    read.add_argument("--families", default=",".join((*BENCHMARKS, *RANDOM)))
    read.add_argument("--only", default=None, help="peers to run, comma separated")
    read.add_argument("--results", type=Path, default=None, help="JSON file that collects what is measured")
    read.add_argument("--seconds", type=float, default=math.inf, help="start no further repeat after this long")
    args = read.parse_args()
    setting = f"{args.qubits} qubits, {args.precision}, start {args.start}"
    results: dict[str, dict[str, Any]] = dict(kept_in(args.results).get(setting, {}))
    if args.peers:
        names = args.only.split(",") if args.only else PEERS[args.precision]
        peers = [Peer(args.peers, name) for name in names]
        began = time.monotonic()
        for family, _ in itertools.product(args.families.split(","), range(args.repeats)):
            if time.monotonic() - began > args.seconds:
                break
            circuit = generate(family, qubits=args.qubits, rng=np.random.default_rng(1))
            new = repeat_of(circuit, peers, precision=args.precision, live=args.start == "general")
            results[family] = joined(results.get(family), new)
            added(args.results, setting, family, new)
        for peer in peers:
            peer.process.terminate()
    print(f"# {setting}, {threads_available()} threads, {engine().name}")
    show(results)


if __name__ == "__main__":
    main()

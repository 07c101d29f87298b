"""Predicted against measured time of tile kernels, on circuits that no cost was fitted to.

    python -m tests.bench.circuit_costs --qubits 24

Costs come from synthetic kernels of one operation class each (``costs.Calibration``); they are then asked for every
kernel of the benchmark families. A round times every synthetic kernel once and runs every circuit twice, each from
|0...0>; a kernel's time, synthetic or not, is the least over all rounds, so that what disturbs the machine for a while
spoils neither side. ``--statistic median`` compares the medians of the circuits' kernels instead: it tells how far the
machine was from its best. The state exists before, and synthetic kernels use it too: the first touch of memory, which
no kernel causes, stays out, and pages are alike.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from executors.circuit.compiled import engine, threads_available
from executors.circuit.costs import Calibration, predict
from executors.circuit.local import compile_circuit
from executors.circuit.state import allocate, prepare_zero
from planners.circuit.generators import BENCHMARKS, generate
from profilers.gates import mean_absolute_error


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--qubits", type=int, default=24)
    read.add_argument("--precision", choices=("single", "double"), default="single")
    read.add_argument("--statistic", choices=("least", "median"), default="least")
    read.add_argument("--rounds", type=int, default=12)
    read.add_argument("--families", default=",".join((*BENCHMARKS, "supremacy", "quantum_volume")))
    args = read.parse_args()
    dtype = np.float32 if args.precision == "single" else np.float64
    on, families = engine(), args.families.split(",")
    state = allocate(1 << args.qubits, np.result_type(dtype, np.complex64))
    began = time.perf_counter()
    state[:] = 0
    print(f"# {args.qubits} qubits, {args.precision}, {threads_available()} threads, {on.name}; first touch of the "
          f"state {time.perf_counter() - began:.3f} s")
    codes = {f: compile_circuit(generate(f, qubits=args.qubits, rng=np.random.default_rng(1)), dtype=dtype)
             for f in families}
    runs: dict[str, list[np.ndarray]] = {f: [] for f in families}
    calibration = Calibration(dtype=dtype, on=on, state=state)
    for _ in range(args.rounds):
        state[:] = 2.0 ** (-args.qubits / 2)
        calibration.round()
        for f, code in codes.items():
            for _ in range(2):
                prepare_zero(state, calibration.far.shape.run)
                runs[f].append(on.run(code.program, state, shard=0, threads=threads_available()))
    table = calibration.costs()
    print(f"# start of a program {1e6 * table.start_s:.0f} us; ps an amplitude: "
          + ", ".join(f"{name} {1e12 * value:.0f}" for name, value in table.class_s.items()))
    measured = {f: (np.min if args.statistic == "least" else np.median)(runs[f], axis=0) for f in families}
    print("# circuit | kernels | predicted s, measured s, ratio | kernel ratios")
    kernels: list[float] = []
    totals: list[float] = []
    seconds = weighted = 0.0
    for f, code in codes.items():
        predicted = np.array(predict(code.program, table, lanes=on.lanes(dtype)))
        ratio = predicted / measured[f]
        totals.append(float(predicted.sum() / measured[f].sum()))
        kernels += [float(r) for r in ratio]
        seconds += float(measured[f].sum())
        weighted += float((np.abs(ratio - 1) * measured[f]).sum())
        print(f"{f:15s} | {len(ratio)} | {predicted.sum():.4f} {measured[f].sum():.4f} {totals[-1]:.2f} | "
              f"{' '.join(f'{r:.2f}' for r in ratio)}")
    ones = [1.0] * len(kernels)
    print(f"# mean absolute error: kernels {100 * mean_absolute_error(kernels, ones):.1f} %, kernels weighted by their "
          f"time {100 * weighted / seconds:.1f} %, whole circuits "
          f"{100 * mean_absolute_error(totals, ones[: len(totals)]):.1f} %; median kernel ratio "
          f"{statistics.median(kernels):.2f}")


if __name__ == "__main__":
    main()

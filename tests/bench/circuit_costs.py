"""Predicted against measured time of tile kernels, on circuits that no cost was fitted to.

    python -m tests.bench.circuit_costs --calibrate 25 --qubits 24

Costs come from synthetic kernels of one operation class each on a state of 2^calibrate amplitudes (``measure_costs``);
they are then asked for every kernel of the benchmark families. Measured is the median of interleaved repeats on a state
whose pages exist, so that the first touch of memory, which no kernel causes, stays out; its own time is printed apart.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

from executors.circuit.compiled import engine, threads_available
from executors.circuit.costs import measure_costs, predict, start_seconds
from executors.circuit.local import compile_circuit, execute
from executors.circuit.state import allocate
from planners.circuit.generators import BENCHMARKS, generate
from profilers.gates import mean_absolute_error


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--qubits", type=int, default=24)
    read.add_argument("--calibrate", default="22", help="sizes to calibrate at, comma separated")
    read.add_argument("--precision", choices=("single", "double"), default="single")
    read.add_argument("--repeats", type=int, default=5)
    read.add_argument("--families", default=",".join((*BENCHMARKS, "supremacy", "quantum_volume")))
    args = read.parse_args()
    dtype = np.float32 if args.precision == "single" else np.float64
    on, families = engine(), args.families.split(",")
    began = time.perf_counter()
    costs = {size: measure_costs(dtype=dtype, qubits=size) for size in map(int, args.calibrate.split(","))}
    print(f"# {args.qubits} qubits, {args.precision}, {threads_available()} threads, {on.name}; calibrated in "
          f"{time.perf_counter() - began:.0f} s")
    for size, table in costs.items():
        print(f"# at {size} qubits, ps an amplitude: load {1e12 * table.load_s:.0f}, store {1e12 * table.store_s:.0f} "
              f"(beyond the cache {1e12 * table.far_load_s:.0f}, {1e12 * table.far_store_s:.0f}), "
              + ", ".join(f"{name} {1e12 * value:.0f}" for name, value in table.class_s.items()))
    state = allocate(1 << args.qubits, np.result_type(dtype, np.complex64))
    began = time.perf_counter()
    state[:] = 0
    print(f"# first touch of the state {time.perf_counter() - began:.3f} s")
    codes = {f: compile_circuit(generate(f, qubits=args.qubits, rng=np.random.default_rng(1)), dtype=dtype)
             for f in families}
    runs: dict[str, list[np.ndarray]] = {f: [] for f in families}
    for _ in range(args.repeats):
        for f, code in codes.items():
            runs[f].append(execute(code, state=state)[1])
    measured = {f: np.median(np.array(seconds), axis=0) for f, seconds in runs.items()}
    for size, table in costs.items():
        start_s = start_seconds(table, dtype=dtype)
        predicted = {f: np.array(predict(code.program, table, lanes=on.lanes(dtype), start_s=start_s))
                     for f, code in codes.items()}
        print(f"# calibrated at {size}, start of a program {1e6 * start_s:.0f} us: circuit | kernels | predicted s, "
              "measured s, ratio | kernel ratios")
        for f in families:
            ratio = predicted[f] / measured[f]
            print(f"{f:15s} | {len(ratio)} | {predicted[f].sum():.4f} {measured[f].sum():.4f} "
                  f"{predicted[f].sum() / measured[f].sum():.2f} | {' '.join(f'{r:.2f}' for r in ratio)}")
        every = [list(np.concatenate([part[f] for f in families])) for part in (predicted, measured)]
        totals = [[float(part[f].sum()) for f in families] for part in (predicted, measured)]
        print(f"# mean absolute error: kernels {100 * mean_absolute_error(*every):.1f} %, "
              f"totals {100 * mean_absolute_error(*totals):.1f} %; median kernel ratio "
              f"{statistics.median(p / m for p, m in zip(*every, strict=True)):.2f}")


if __name__ == "__main__":
    sys.exit(main())

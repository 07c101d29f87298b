"""Predicted against measured time of tile kernels, on circuits that no cost was fitted to.

    python -m tests.bench.circuit_costs --qubits 24

Costs come from synthetic kernels of one operation class each (``measure_costs``); they are then asked for every kernel
of the benchmark families. A repeat calibrates and then runs every circuit once, and the ratio of predicted to measured
is the median over repeats: a machine whose speed drifts is measured at the speed it was calibrated at. States exist
before, so that the first touch of memory, which no kernel causes, stays out; its own time is printed apart. Kernels run
one at a time. ``--clock cpu`` takes processor time over all threads, by their number, for both: what other processes
take of the processors stays out (what they take of caches and memory does not).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from executors.circuit.compiled import Engine, engine, threads_available
from executors.circuit.costs import measure_costs, predict, start_seconds
from executors.circuit.local import Compilation, compile_circuit
from executors.circuit.state import State, allocate
from planners.circuit.generators import BENCHMARKS, generate
from profilers.gates import mean_absolute_error


def kernel_seconds(code: Compilation, state: State, on: Engine, clock: Callable[[], float]) -> list[float]:
    """Seconds of every kernel of a program on a state whose contents do not matter."""
    result = []
    for k in range(len(code.program.kernels)):
        one = dataclasses.replace(code.program, kernels=code.program.kernels[k : k + 1])
        began = clock()
        on.run(one, state, shard=0, threads=threads_available())
        result.append(clock() - began)
    return result


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--qubits", type=int, default=24)
    read.add_argument("--calibrate", type=int, default=22, help="size of the state that operations are measured on")
    read.add_argument("--precision", choices=("single", "double"), default="single")
    read.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    read.add_argument("--repeats", type=int, default=5)
    read.add_argument("--families", default=",".join((*BENCHMARKS, "supremacy", "quantum_volume")))
    args = read.parse_args()
    dtype = np.float32 if args.precision == "single" else np.float64
    on, families = engine(), args.families.split(",")
    threads = threads_available()
    clock = time.perf_counter if args.clock == "wall" else lambda: time.process_time() / threads
    state = allocate(1 << args.qubits, np.result_type(dtype, np.complex64))
    began = time.perf_counter()
    state[:] = 0
    print(f"# {args.qubits} qubits, {args.precision}, {threads_available()} threads, {on.name}; first touch of the "
          f"state {time.perf_counter() - began:.3f} s")
    codes = {f: compile_circuit(generate(f, qubits=args.qubits, rng=np.random.default_rng(1)), dtype=dtype)
             for f in families}
    predicted: dict[str, list[np.ndarray]] = {f: [] for f in families}
    measured: dict[str, list[np.ndarray]] = {f: [] for f in families}
    for _ in range(args.repeats):
        table = measure_costs(dtype=dtype, qubits=args.calibrate, repeats=3, clock=clock)
        start_s = start_seconds(table, dtype=dtype, clock=clock)
        print(f"# start of a program {1e6 * start_s:.0f} us; ps an amplitude: load {1e12 * table.load_s:.0f}, store "
              f"{1e12 * table.store_s:.0f} (beyond the cache {1e12 * table.far_load_s:.0f}, "
              f"{1e12 * table.far_store_s:.0f}), "
              + ", ".join(f"{name} {1e12 * value:.0f}" for name, value in table.class_s.items()))
        for f, code in codes.items():
            measured[f].append(np.median([kernel_seconds(code, state, on, clock) for _ in range(3)], axis=0))
            predicted[f].append(np.array(predict(code.program, table, lanes=on.lanes(dtype))) + start_s)
    print("# circuit | kernels | predicted s, measured s, ratio | kernel ratios (medians over the repeats)")
    kernels: list[float] = []
    totals: list[float] = []
    seconds = 0.0
    weighted = 0.0
    for f in families:
        ratio = np.median(np.array(predicted[f]) / np.array(measured[f]), axis=0)
        sums = np.sum(predicted[f], axis=1), np.sum(measured[f], axis=1)
        totals.append(float(np.median(sums[0] / sums[1])))
        kernels += [float(r) for r in ratio]
        took = np.median(measured[f], axis=0)
        seconds += float(took.sum())
        weighted += float((np.abs(ratio - 1) * took).sum())
        print(f"{f:15s} | {len(ratio)} | {np.median(sums[0]):.4f} {np.median(sums[1]):.4f} {totals[-1]:.2f} | "
              f"{' '.join(f'{r:.2f}' for r in ratio)}")
    ones = [1.0] * len(kernels)
    print(f"# mean absolute error: kernels {100 * mean_absolute_error(kernels, ones):.1f} %, kernels weighted by their "
          f"time {100 * weighted / seconds:.1f} %, whole circuits "
          f"{100 * mean_absolute_error(totals, ones[: len(totals)]):.1f} %; median kernel ratio "
          f"{statistics.median(kernels):.2f}")


if __name__ == "__main__":
    sys.exit(main())

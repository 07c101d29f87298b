"""The serving simulator's bars: speed, memory, linearity, repetition, and fidelity to a real run.

``python -m tests.bench.serving [fidelity|speed|scale]`` prints one table a part (all by default).

fidelity: the recorded vLLM run on an RTX 4090 against a replay from profile tables, figure by figure; LLMServingSim's
own prediction (published beside the run) and the replay on single kernels stand beside it. The variants below leave
out one ingredient each.
speed: the Azure 2023 conversation trace on RTX 4090 replicas, simulation and all metrics, wall and processor time,
medians of five interleaved runs, with the time of one addition on this machine at that moment.
scale: 1e4 to 1e6 requests and 1 to 1,000 replicas, each in a fresh process, with its peak memory.
"""

from __future__ import annotations

import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from traces.formats import read
from traces.profiles import llmservingsim
from traces.registry import fetch
from workbench.hardware import load_catalogue
from workbench.llmcosts import KernelSteps, Stage
from workbench.models import load_model
from workbench.serving import ReplicaSpec, Requests, Served, Slo, simulate_fleet, turn_parents
from workbench.stepcosts import StepModel

PROFILE = "rtx4090-llama-3.1-8b"
RUN_FILES = [f"ground-truth/{PROFILE}/{name}" for name in ("requests.csv", "summary.txt", "workload.csv", "meta.json")]
PEER = f"ground-truth/{PROFILE}/peer_sim.csv"
CAPTURE_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))


# -- fidelity ----------------------------------------------------------------------------------------------------------


def recorded_run() -> pd.DataFrame:
    """The real run, with the columns of ``Served.frame``; a request arrives when the engine takes it in."""
    real = pd.read_csv(fetch(RUN_FILES[0]))
    return real.assign(arrival_s=real.queued_s, finish_s=real.last_token_s)


def replay(model: str, *, padding: bool = True, caching: bool = True, scheduling: str = "async") -> pd.DataFrame:
    """The same requests through the simulated engine with the recorded limits."""
    real, workload = recorded_run(), pd.read_csv(fetch(RUN_FILES[2]))
    limits = json.loads(fetch(RUN_FILES[3]).read_text())
    parent, shared = turn_parents(workload.input_tokens, workload.shared_prefix_tokens)
    requests = Requests.of(real.queued_s, real.input_tokens, real.output_tokens, prefix_of=parent,
                           shared_tokens=shared)
    steps: StepModel
    if model == "profile":
        sizes = limits["cudagraph_capture_sizes"] if padding else ()
        steps = llmservingsim.open_steps(PROFILE, capture_sizes=sizes)
    else:
        steps = KernelSteps(load_model("llama-3.1-8b"), [Stage(device="RTX4090", layers=32)],
                            llmservingsim.open(llmservingsim.Options(profiles=(PROFILE,))), catalogue=load_catalogue())
    cache, engine = limits["kv_cache"], limits["scheduler_config"]
    replica = ReplicaSpec(
        step_model=steps, kv_blocks=cache["num_gpu_blocks"] - 1, block_size=cache["block_size"],
        max_sequences=engine["max_num_seqs"], token_budget=engine["max_num_batched_tokens"],
        scheduling=scheduling, caching="prefix" if caching else "off")  # type: ignore[arg-type]
    return simulate_fleet(requests, [replica]).frame()


def measured(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean and percentiles of TTFT, TPOT and latency in ms, as the run's summary defines them."""
    latencies = {"TTFT": frame.first_token_s - frame.arrival_s,
                 "TPOT": (frame.finish_s - frame.first_token_s) / (frame.output_tokens - 1),
                 "Latency": frame.finish_s - frame.arrival_s}
    return {name: {"mean": 1e3 * values.mean(), **{f"P{p}": 1e3 * float(np.percentile(values, p))
                                                   for p in (50, 90, 95, 99)}}
            for name, values in latencies.items()}


def percent_off(real: Mapping[str, Mapping[str, float]], ours: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Signed difference of each figure in percent."""
    return {f"{name} {key}": 100 * (ours[name][key] / value - 1) for name, row in real.items()
            for key, value in row.items()}


def peer() -> pd.DataFrame:
    """LLMServingSim's prediction of the run; its arrivals are the planned ones."""
    sim = pd.read_csv(fetch(PEER)).sort_values("request")
    first = sim.arrival_ns + sim.ttft_ns
    return pd.DataFrame({"arrival_s": sim.arrival_ns / 1e9, "first_token_s": first / 1e9,
                         "finish_s": sim.end_ns / 1e9, "output_tokens": sim.output_tokens})


def fidelity() -> None:
    real = measured(recorded_run())
    ours, kernels, other = (measured(f) for f in (replay("profile"), replay("kernels"), peer()))
    rows = []
    for name, row in real.items():
        for key, value in row.items():
            cells = [f"{name} {key}", f"{value:.1f}"]
            for found in (ours, kernels, other):
                cells += [f"{found[name][key]:.1f}", f"{100 * (found[name][key] / value - 1):+.2f} %"]
            rows.append(cells)
    _table(["figure", "vLLM ms", "ours ms", "off", "kernels ms", "off", "LLMServingSim ms", "off"], rows)
    variants: dict[str, dict[str, Any]] = {
        "as is": {}, "no padding to captured graphs": {"padding": False}, "synchronous scheduling": {
            "scheduling": "sync"}, "no prefix cache": {"caching": False}}
    rows = []
    for label, changed in variants.items():
        off = percent_off(real, measured(replay("profile", **changed)))
        worst = max(off, key=lambda key: abs(off[key]))
        rows.append([label, f"{statistics.mean(map(abs, off.values())):.2f} %", f"{off[worst]:+.2f} %", worst])
    _table(["variant", "mean |off|", "worst off", "where"], rows)


# -- speed -------------------------------------------------------------------------------------------------------------


def conversation() -> Requests:
    """The Azure 2023 conversation trace."""
    table = read(fetch("traces/azure-2023/conv.csv"))
    return Requests.of(table.arrival_s, table.input_tokens, table.output_tokens)


def addition_ns() -> float:
    """Time of one interpreted addition now: what this machine is worth at this moment."""
    return min(timeit.repeat("x += 1", "x = 0", number=10**6, repeat=3)) * 1e3


def speed(repeats: int = 5) -> None:
    requests, steps = conversation(), llmservingsim.open_steps(PROFILE, capture_sizes=CAPTURE_SIZES)
    cases = {"1 replica (overloaded)": (1, "off"), "4 replicas": (4, "off"), "16 replicas": (16, "off"),
             "4 replicas, prefix cache": (4, "prefix")}
    wall: dict[str, list[float]] = {name: [] for name in cases}
    processor: dict[str, list[float]] = {name: [] for name in cases}
    digests: dict[str, set[str]] = {name: set() for name in cases}
    additions = []
    for _ in range(repeats):
        additions.append(addition_ns())
        for name, (count, caching) in cases.items():
            replica = ReplicaSpec(step_model=steps, kv_blocks=2587, caching=caching)  # type: ignore[arg-type]
            start, cpu = time.perf_counter(), time.process_time()
            served = simulate_fleet(requests, [replica] * count)
            found = served.metrics(slo=Slo(ttft_s=2.0, tpot_s=0.1))
            wall[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - cpu)
            digests[name].add(_digest(served, found))
    rows = [[name, f"{statistics.median(wall[name]):.2f}", f"{statistics.median(processor[name]):.2f}",
             f"{min(processor[name]):.2f} - {max(processor[name]):.2f}",
             f"{len(requests) / statistics.median(wall[name]):,.0f}",
             f"{len(requests) / statistics.median(processor[name]):,.0f}",
             "yes" if len(digests[name]) == 1 else "NO"] for name in cases]
    _table(["Azure conv, 19,366 requests", "wall s", "cpu s", "cpu range", "requests/s (wall)", "requests/s (cpu)",
            "byte-identical"], rows)
    print(f"one addition: {min(additions):.0f} to {max(additions):.0f} ns")


def _digest(served: Served, metrics: Sequence[Any]) -> str:
    content = hashlib.sha256(repr(metrics).encode())
    for column in (served.scheduled_ps, served.first_token_ps, served.finish_ps, served.replica):
        content.update(column.tobytes())
    return content.hexdigest()


# -- scale -------------------------------------------------------------------------------------------------------------


def one_scale(requests: int, replicas: int) -> dict[str, float]:
    """Time and peak memory of this process for one size; the trace's lengths repeated, 1.4 requests/s a replica."""
    trace = conversation()
    rng = np.random.default_rng(1)
    pick = rng.integers(len(trace), size=requests)
    arrivals = np.cumsum(rng.exponential(1 / (1.4 * replicas), requests))
    workload = Requests.of(arrivals, trace.input_tokens[pick], trace.output_tokens[pick])
    steps = llmservingsim.open_steps(PROFILE, capture_sizes=CAPTURE_SIZES)
    replica = ReplicaSpec(step_model=steps, kv_blocks=2587)
    before = addition_ns()
    start, cpu = time.perf_counter(), time.process_time()
    served = simulate_fleet(workload, [replica] * replicas)
    served.metrics(slo=Slo(ttft_s=2.0))
    return {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu, "addition": before,
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "iterations": sum(use.iterations for use in served.replicas)}


def scale(sizes: Sequence[tuple[int, int]] = ((10_000, 4), (100_000, 4), (1_000_000, 4), (100_000, 1), (100_000, 30),
                                              (100_000, 1000), (1_000_000, 1000))) -> None:
    rows = []
    for requests, replicas in sizes:
        done = subprocess.run([sys.executable, "-m", "tests.bench.serving", "one", str(requests), str(replicas)],
                              stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        rows.append([f"{requests:,}", f"{replicas:,}", f"{found['wall']:.1f}", f"{found['cpu']:.1f}",
                     f"{requests / found['cpu']:,.0f}", f"{1e6 * found['cpu'] / requests / found['addition']:.0f}",
                     f"{found['iterations']:,}", f"{found['rss']:.2f}"])
    _table(["requests", "replicas", "wall s", "cpu s", "requests/s (cpu)", "kilo-additions a request", "iterations",
            "peak GiB"], rows)


# ----------------------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                        for i, (cell, w) in enumerate(zip(row, widths, strict=True))))
    print()


def main(parts: Sequence[str]) -> None:
    if parts[:1] == ["one"]:
        print(json.dumps(one_scale(int(parts[1]), int(parts[2]))))
        return
    known = {"fidelity": fidelity, "speed": speed, "scale": scale}
    if not set(parts) <= set(known):
        sys.exit(f"parts are {', '.join(known)}; with none named, all")
    for part in parts or known:
        known[part]()


if __name__ == "__main__":
    main(sys.argv[1:])

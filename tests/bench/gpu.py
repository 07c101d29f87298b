"""GPU kernels against torch's own ways and against the device's limits.

    python -m tests.bench.gpu [kernels] [circuits] [PROFILES]

``kernels``: our Triton kernels interleaved with torch formulations of the same result, operands cold (several copies
in turn, more than the last-level cache holds). ``circuits``: the eleven families and two random ones at 28 qubits in
single precision, every planned kernel's bytes over its measured time as a share of the device's measured copy rate;
planned with the published A100 table, or with the tables of ``wb profile circuit --device cuda`` in folder PROFILES.
Medians of five rounds of CUDA graph replays, by events; ratios are taken within one run.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from profilers import attention, lsh, pq
from profilers.family import in_turn
from profilers.harness import CudaTimer

ROUNDS = 5
Call = Callable[[], Any]


def copies(make: Callable[[], Call], held: float) -> Call:
    """The call on operands that take turns."""
    return in_turn(make, held, "cuda").run


def race(ways: Mapping[str, Call], calls: int = 64) -> dict[str, float]:
    """Median seconds of each way, interleaved."""
    timers = {name: CudaTimer() for name in ways}  # each keeps the graph of its way
    for name, way in ways.items():
        timers[name].block(way, calls)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            spent[name].append(timers[name].block(way, calls) / calls)
    return {name: statistics.median(times) for name, times in spent.items()}


def show(title: str, found: Mapping[str, float], ours: str) -> None:
    best = min((s for name, s in found.items() if name != ours), default=found[ours])
    times = ", ".join(f"{name} {s * 1e6:,.1f} us" for name, s in found.items())
    print(f"{title}: {times}; best other / ours {best / found[ours]:.2f}")


def copy_rate() -> float:
    """Bytes read plus written in a second by a kernel that streams 2 GiB in and 2 GiB out."""
    x = torch.randn(1 << 29, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.nbytes / race({"copy": lambda: torch.add(x, 1.0, out=y)}, calls=32)["copy"]


def kernels() -> None:
    rng = np.random.default_rng(0)
    rate = copy_rate()
    print(f"copy {rate / 1e12:.2f} TB/s")
    fused = torch.nn.functional.scaled_dot_product_attention
    for batch, context in ((1, 32768), (1, 131072), (16, 8192), (64, 4096)):
        q = torch.randn(batch, 8, 4, 128, device="cuda", dtype=torch.bfloat16)
        k, v = (torch.randn(batch, 8, context, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        held = k.nbytes + v.nbytes

        def pair(k: Any = k, v: Any = v) -> tuple[Any, Any]:
            return k.clone(), v.clone()

        def one(way: Callable[..., Any], q: Any = q, pair: Any = pair) -> Callable[[], Call]:
            def make() -> Call:
                keys, values = pair()
                return lambda: way(q, keys, values)
            return make

        found = race({name: copies(one(way), held) for name, way in (("ours", attention.decode), ("SDPA", fused))})
        show(f"decode, {batch} x {context} rows, bf16", found, "ours")
        print(f"    {held / found['ours'] / rate:.0%} of the copy rate")
    for context, selected in ((32768, 1638), (131072, 6553)):
        q = torch.randn(8, 4, 128, device="cuda", dtype=torch.bfloat16)
        chosen = torch.from_numpy(np.stack([rng.permutation(context)[:selected] for _ in range(8)])).cuda()
        k, v = (torch.randn(8, context, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))

        def gathered(q: Any, k: Any, v: Any, chosen: Any) -> Any:
            return fused(q[None], pq.gather_rows(k, chosen)[None], pq.gather_rows(v, chosen)[None])

        def choose(way: Callable[..., Any], q: Any = q, k: Any = k, v: Any = v, chosen: Any = chosen
                   ) -> Callable[[], Call]:
            def make() -> Call:
                keys, values = k.clone(), v.clone()
                return lambda: way(q, keys, values, chosen)
            return make

        show(f"decode over {selected} of {context} rows, bf16", race(
            {name: copies(choose(way), k.nbytes + v.nbytes)
             for name, way in (("ours", attention.decode_selected), ("gather + SDPA", gathered))}), "ours")
    for tokens in (32768, 131072):
        point = {"kv_heads": 8, "group": 4, "subspaces": 2, "bits": 6, "tokens": tokens}
        codes = torch.from_numpy(rng.integers(0, 64, (8, 2, tokens)).astype(np.uint8)).cuda()
        table = torch.randn(8, 4, 2, 64, device="cuda")
        groups, long = pq.Inverted.of(codes, 64), codes.long()
        k = tokens // 20

        def gathers(table: Any = table, long: Any = long) -> Any:
            head = torch.arange(8, device="cuda")[:, None, None]
            part = torch.arange(4, device="cuda")[None, :, None]
            return table[head, part, 0, long[:, None, 0]] + table[head, part, 1, long[:, None, 1]]

        show(f"PQ scan of {tokens} tokens", race({"ours": lambda t=table, c=codes: pq.scan(t, c),
                                                  "torch gathers": gathers}), "ours")
        show(f"PQ search of {tokens} tokens", race(
            {"by joint code": lambda g=groups, t=table, k=k: g.search(t, k=k, scale=1.0),
             "scan and top-k": lambda t=table, c=codes, k=k: pq.search_scan(t, c, k=k, scale=1.0)}), "by joint code")
        assert point["tokens"] == tokens
    for rows, width, rotation, hashes in ((4096, 768, 32, 6), (16384, 2048, 32, 6), (16384, 2048, 64, 4)):
        x = torch.randn(rows, width, device="cuda")
        spun = lsh.rotations(width, hashes, rotation, rng).cuda()

        def plain(x: Any = x, spun: Any = spun, rotation: int = rotation, hashes: int = hashes) -> Any:
            y = (x @ spun).view(len(x), hashes, rotation)
            place = y.abs().argmax(-1)
            return place + (y.gather(-1, place[..., None]).squeeze(-1) < 0) * rotation

        found = race({"ours": lambda x=x, s=spun, h=hashes: lsh.codes(x, s, h), "torch": plain,
                      "bare product": lambda x=x, s=spun: x @ s})
        show(f"hash {rows} x {width}, {hashes} of {rotation}", {n: s for n, s in found.items() if n != "bare product"},
             "ours")
        print(f"    {found['ours'] / found['bare product']:.2f} times the bare fp32 product")


def circuits(profiles: str | None, qubits: int = 28) -> None:
    from executors.circuit.gpu import time_kernels
    from planners.circuit import Machine, Problem, Source, plan
    from planners.circuit.generators import BENCHMARKS
    from workbench.costs import open_costs

    rate = copy_rate()
    print(f"copy {rate / 1e12:.2f} TB/s; {qubits} qubits, single precision; one pass over the state "
          f"{2 * (8 << qubits) / rate * 1e3:.2f} ms")
    costs = open_costs({"source": "measured", "folder": profiles} if profiles else
                       {"source": "gates", "table": "a100-atlas"})
    errors = []
    for family in (*BENCHMARKS, "supremacy", "quantum_volume"):
        problem = Problem(circuit=Source(family=family, qubits=qubits, seed=0),
                          machine=Machine(local_qubits=qubits, amplitude_bytes=8))
        made = plan(problem, costs, planner="exact", solver="highs", time_limit_s=60.0, seed=0)
        found = time_kernels(problem, made, dtype=np.dtype(np.float32), rounds=ROUNDS)
        total = sum(t.seconds for t in found)
        planned = sum(k.cost_s for s in made.stages for k in s.kernels)
        errors.append(abs(planned / total - 1))
        passes = 2 * (8 << qubits) * len(found) / rate
        print(f"{family:15s} {len(found):3d} kernels {total * 1e3:9.2f} ms, predicted {planned * 1e3:9.2f} ms, "
              f"{passes / total:.0%} of the copy rate; prepared in {found[0].prepare_s:.2f} s")
    print(f"mean distance of predicted totals from measured ones {statistics.mean(errors):.0%}")


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("no CUDA device; this benchmark has nothing to measure here")
    given = sys.argv[1:]
    folder = next((name for name in given if name not in ("kernels", "circuits")), None)
    if "kernels" in given or not given:
        kernels()
    if "circuits" in given or not given:
        circuits(folder)

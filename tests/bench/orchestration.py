"""Plans of tensor programs beside eager PyTorch, torch.compile, Inductor on the whole graph and ONNX Runtime.

    python -m tests.bench.orchestration tune  [NAME …] [--store FOLDER] [--backends a,b] [--gap 0.02] [--resolution N]
    python -m tests.bench.orchestration speed [NAME …] [--processes 5] [--rounds 20] [--resolution N]
    python -m tests.bench.orchestration show
    python -m tests.bench.orchestration        tune and speed, on the blocks

``tune`` measures what the plan of each program needs, in both layouts of its images, and keeps the plan whose program
is quicker beside the store (cold the first time, warm afterwards; compilations are counted). ``speed`` runs every
contender in turn in one process, in as many processes one after the other as asked, each with one thread and with glibc
told, before Python starts, to keep freed memory and to ask for large pages (else times depend on where memory lies); a
figure is the median over processes of the least time in each. ``show`` prints the tables. Names are models or blocks of
``executors.orchestration.models``; ``blocks`` and ``models`` stand for five each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BLOCKS = ("candy-norm", "efficientvit-attention", "segformer-attention", "yolox-csp", "yolov4-csp")
OTHER_BLOCKS = ("segformer-decode", "gpt2-block")
MODELS = ("candy", "efficientvit-b0", "segformer-b0", "yolox-nano", "yolov4")
RESOLUTIONS = {"candy": 112, "efficientvit-b0": 256, "segformer-b0": 128, "yolox-nano": 160, "yolov4": 128,
               "gpt2-block": 128, "segformer-decode": 64, "yolov4-csp": 52}
"""Reduced ones, so that a whole tuning fits half an hour on two cores; others are the published ones."""
LAYOUTS = ("as captured", "channels last")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30), "OMP_NUM_THREADS": "1",
          "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
CONTENDERS = ("eager", "torch.compile", "inductor", "onnxruntime")


def program(name: str, batch: int, resolution: int | None) -> tuple[Any, Any, Any, Any]:
    """(module, inputs, graph, weights) of a model or block."""
    from executors.orchestration.capture import capture
    from executors.orchestration.models import build

    module, inputs = build(name, batch=batch, resolution=resolution or RESOLUTIONS.get(name))
    found = capture(module, inputs, name=name)
    return module, inputs, found.graph, found.weights


def graph_in(graph: Any, layout: str) -> Any:
    """The graph in one of ``LAYOUTS``."""
    from executors.orchestration.layouts import channels_last

    return graph if layout == LAYOUTS[0] else channels_last(graph)


def tune_one(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Tune one program in both layouts; the better plan is kept."""
    from executors.orchestration.tune import tune
    from planners.orchestration import Problem, Program
    from workbench.spec import dump

    _, _, captured, weights = program(name, args.batch, args.resolution)
    found: dict[str, Any] = {"name": name, "batch": args.batch, "layouts": {}, "primitives": len(captured.primitives)}
    began = time.perf_counter()
    best: tuple[float, str, Any] | None = None
    for layout in LAYOUTS:
        graph = graph_in(captured, layout)
        if layout != LAYOUTS[0] and graph is captured:
            continue
        problem = Problem(program=Program(inline=graph), backends=tuple(args.backends.split(",")))
        done = tune(problem, folder=args.store, weights=weights, gap=args.gap, time_limit_s=args.limit_s,
                    say=lambda line: print(f"  {line}", file=sys.stderr, flush=True))
        row = {k: v for k, v in dataclasses.asdict(done).items() if k not in ("plan", "store")}
        row |= {"enumerated": done.plan.enumerated, "priced": done.plan.priced, "kernels": len(done.plan.kernels),
                "status": done.plan.certificate.status, "gap": done.plan.certificate.gap,
                "redundant": done.plan.redundant, "planning_s": done.total_s - done.compile_s - done.measure_s}
        found["layouts"][layout] = row
        if best is None or done.stitched_s < best[0]:
            best = done.stitched_s, layout, done.plan
    assert best is not None
    found |= {"layout": best[1], "stitched_s": best[0], "tuning_s": time.perf_counter() - began}
    kept = Path(args.store) / "plans" / f"{name}-b{args.batch}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"layout": best[1], "plan": dump(best[2])}))
    return found


def once(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One process of ``speed``: every contender in turn, and how far the stitched outputs are from double precision."""
    import torch

    from executors.orchestration import inductor
    from executors.orchestration.contenders import contender, interleaved
    from executors.orchestration.evaluate import outputs
    from executors.orchestration.kernels import Cannot
    from executors.orchestration.measure import worst_error
    from executors.orchestration.stitched import stitch
    from executors.orchestration.tune import cache_of, open_store
    from planners.orchestration.problem import Plan
    from profilers.harness import fixed_conditions
    from workbench.spec import parse

    module, inputs, graph, weights = program(name, args.batch, args.resolution)
    kept = json.loads((Path(args.store) / "plans" / f"{name}-b{args.batch}.json").read_text())
    plan, graph = parse(Plan, kept["plan"]), graph_in(graph, kept["layout"])
    with fixed_conditions(threads=1):
        store = open_store(args.store, device="cpu", threads=1, cache=cache_of(graph))
        with inductor.cache_folder(store.inductor), torch.no_grad():
            programs: dict[str, Any] = {"stitched": stitch(graph, plan, weights, store.artifact)}
            for other in args.contenders.split(","):
                try:
                    programs[other] = contender(other, graph, weights, device="cpu", threads=1, eager=module)
                except Cannot as why:
                    print(f"  {name}: no {other}: {why}", file=sys.stderr)
            times = interleaved(programs, inputs, rounds=args.rounds, threads=1)
            errors = {}
            for label, scale in (("ordinary", 1.0), ("large", 100.0)):
                scaled = [x * scale for x in inputs]
                made = programs["stitched"](*scaled)
                made = [made] if isinstance(made, torch.Tensor) else made
                wanted = outputs(graph, scaled, weights, dtype=torch.float64)
                errors[label] = max(worst_error(a, b) for a, b in zip(made, wanted, strict=True))
    return {"name": name, "batch": args.batch, "times": times, "predicted_s": plan.certificate.objective,
            "errors": errors, "kernels": len(plan.kernels), "layout": kept["layout"]}


def in_child(words: list[str]) -> dict[str, Any]:
    """Run this module with ``words`` in a process whose allocator is fixed before Python starts; its last line."""
    done = subprocess.run([sys.executable, "-m", "tests.bench.orchestration", *words], env={**os.environ, **MALLOC},
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"error": f"exit code {done.returncode}"}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def append(path: Path, row: dict[str, Any]) -> None:
    """Keep one result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def speed_row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over processes of the least times, ratios to the stitched program, and the prediction's error."""
    times = {label: statistics.median(run["times"][label]["min_s"] for run in runs) for label in runs[0]["times"]}
    ours = times["stitched"]
    ratios = {label: statistics.median(run["times"][label]["min_s"] / run["times"]["stitched"]["min_s"]
                                       for run in runs) for label in times if label != "stitched"}
    spread = [run["times"]["stitched"]["min_s"] for run in runs]
    rivals = [r for label, r in ratios.items() if label != "onnxruntime"]
    return {"name": name, "processes": len(runs), "ours_us": ours * 1e6,
            "spread": (max(spread) - min(spread)) / ours, "ratios": ratios, "worst": min(rivals),
            "predicted_us": runs[-1]["predicted_s"] * 1e6, "error": runs[-1]["predicted_s"] / ours - 1,
            "kernels": runs[-1]["kernels"], "layout": runs[-1]["layout"],
            "fp64": max(max(run["errors"].values()) for run in runs)}


def geomean(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def show(results: Path) -> None:
    """The tables of the latest tunings and of all speed runs since the latest tuning of each program."""
    if not results.exists():
        sys.exit(f"no results in {results}; next: python -m tests.bench.orchestration tune")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    tunings: dict[str, list[dict[str, Any]]] = {}
    speeds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "error" in row:
            continue
        if "layouts" in row:
            tunings.setdefault(row["name"], []).append(row)
            if any(r["measured"] for r in row["layouts"].values()):
                speeds.pop(row["name"], None)
        else:
            speeds.setdefault(row["name"], []).append(row)
    print("# tuning | primitives | layout | enumerated, priced (ratio) | compiled | s: compile, measure, rest, all | "
          "gap | kernels, redundant")
    for name, found in tunings.items():
        for number, row in enumerate(found):
            for layout, r in row["layouts"].items():
                fewer = r["enumerated"] / max(r["priced"], 1)
                print(f"{name}{' (again)' if number else ''} | {row['primitives']} | "
                      f"{layout}{' *' if layout == row['layout'] else ''} | {r['enumerated']}, {r['priced']} "
                      f"({fewer:.1f}x) | {r['compiled']} ({r['compilations']} objects) | "
                      f"{r['compile_s']:.0f}, {r['measure_s']:.0f}, {r['planning_s']:.0f}, {r['total_s']:.0f} | "
                      f"{r['gap']:.3f} {r['status']} | {r['kernels']}, {r['redundant']}")
    print("\n# program | processes | ours us (spread) | over ours: " + ", ".join(CONTENDERS)
          + " | predicted us (error) | kernels | layout | error against fp64")
    made = [speed_row(name, runs) for name, runs in speeds.items()]
    for r in made:
        ratios = ", ".join(f"{r['ratios'][c]:.2f}" if c in r["ratios"] else "-" for c in CONTENDERS)
        print(f"{r['name']} | {r['processes']} | {r['ours_us']:.0f} ({r['spread']:.0%}) | {ratios} | "
              f"{r['predicted_us']:.0f} ({r['error']:+.1%}) | {r['kernels']} | {r['layout']} | {r['fp64']:.1e}")
    for label, names in (("five blocks", BLOCKS), ("five models", MODELS)):
        chosen = [r for r in made if r["name"] in names]
        if chosen:
            means = {c: geomean([r["ratios"][c] for r in chosen if c in r["ratios"]]) for c in CONTENDERS}
            print(f"geomean, {label} ({len(chosen)}): " + ", ".join(f"{c} {v:.2f}" for c, v in means.items())
                  + f"; least over eager, torch.compile, inductor: {min(r['worst'] for r in chosen):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", default="all",
                        choices=("all", "tune", "speed", "show", "tune-one", "once"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--store", default="profiles/orchestration")
    parser.add_argument("--results", default="profiles/orchestration/bench.jsonl")
    parser.add_argument("--backends", default="eager,library,inductor")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--limit-s", type=float, default=300.0)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    groups = {"blocks": BLOCKS, "models": MODELS}
    names = [n for word in args.names or ["blocks"] for n in groups.get(word, (word,))]
    if args.verb == "show":
        show(Path(args.results))
    elif args.verb in ("tune-one", "once"):
        print(json.dumps((tune_one if args.verb == "tune-one" else once)(names[0], args)))
    else:
        words = ["--store", args.store, "--batch", str(args.batch), "--backends", args.backends, "--gap", str(args.gap),
                 "--limit-s", str(args.limit_s), "--contenders", args.contenders, "--rounds", str(args.rounds),
                 *(["--resolution", str(args.resolution)] if args.resolution else [])]
        one = [("tune-one", 1)] if args.verb != "speed" else []
        several = [("once", args.processes)] if args.verb != "tune" else []
        for verb, name, _ in [(v, n, k) for v, times in one + several for n in names for k in range(times)]:
            row = in_child([verb, name, *words])
            append(Path(args.results), {"name": name, **row})
            print(name, json.dumps(row)[:300], file=sys.stderr, flush=True)
        show(Path(args.results))


if __name__ == "__main__":
    main()

"""Figures of the pipeline study: ``python -m tests.bench.pipeline [search|gap|bounds|inflight|…] …``.

Times of searches are processor seconds of this process (the machine may be shared), medians of three; the uniform
search alone and PipeDream's take turns, medians of seven. Costs are the analytic ones of a V100 (fp32). The ablation is
simulated from measured kernels of an A100 (bf16); ratios only.
"""

from __future__ import annotations

import dataclasses
import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from planners import pipeline
from planners.pipeline import claims
from planners.pipeline.assembly import draft
from planners.pipeline.baselines import pipedream, piper
from planners.pipeline.decomposition import Node
from planners.pipeline.improving import spread
from planners.pipeline.planning import priced
from planners.pipeline.problem import Cluster, LinkRate, Model, Plan, Problem
from planners.pipeline.ranking import Ranking, rank
from workbench.costs import CostModel, TableCosts, open_costs
from workbench.errors import SolverError

REPEATS, TURNS = 3, 7
LAYERS = ("dense_forward", "dense_backward", "dense_backward_aliased", "join_forward", "join_backward", "loss_forward",
          "loss_backward", "weight_update")
# Mini-batches: the paper's table is an image; these are ours.
PAPER = {"multi-modal": 256, "dlrm": 4096, "candle-uno": 4096, "transformer": 256}


def paper_problem(family: str, devices: int, batch: int, **sizes: int) -> Problem:
    """A model of the paper on nodes of 4 V100 (16 GB), NVLink inside and 100 Gb/s between."""
    return Problem(
        model=Model(family=family, **sizes), batch_samples=batch,  # type: ignore[arg-type]
        micro_batches=tuple(1 << p for p in range(batch.bit_length()) if 1 << p <= 512),
        cluster=Cluster(devices=devices, devices_per_machine=4, memory_bytes=16e9, device="V100", dtype="fp32",
                        inside=LinkRate(latency_s=1e-5, bytes_per_s=5e10),
                        between=LinkRate(latency_s=1e-5, bytes_per_s=12.5e9)))


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median processor seconds; garbage of what ran before is not charged to ``work``."""
    took = []
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return statistics.median(took)


def searched(problem: Problem, costs: CostModel, search: Callable[[Ranking, Node], None]) -> Ranking:
    """A ranking after a search of a fresh problem; the search is given the tree that pricing comes with."""
    prices, root = priced(problem, costs)
    ranking = Ranking(prices, time.perf_counter() + 600)
    search(ranking, root)
    return ranking


def in_turn(problem: Problem, costs: CostModel) -> tuple[float, float, str]:
    """Processor seconds of the uniform search alone and of PipeDream's, and least to largest ratio of any turn."""
    turns = [[seconds(lambda s=side: searched(problem, costs, s), 1) for side in (_uniform, _pipedream)]
             for _ in range(TURNS)]
    ours, theirs = (statistics.median(times) for times in zip(*turns, strict=True))
    ratios = [b / a for a, b in turns]
    return ours, theirs, f"{min(ratios):.1f} to {max(ratios):.1f}"


def search(costs: CostModel) -> None:
    """Bar 1: seconds of every search."""
    models: list[tuple[str, int, dict[str, int]]] = [
        *((f, 32, {}) for f in PAPER), ("candle-uno", 32, {"branches": 16}), *((f, 128, {}) for f in PAPER)]
    for family, devices, sizes in models:
        problem = paper_problem(family, devices, PAPER[family], **sizes)
        uniform = seconds(lambda p=problem: pipeline.plan(p, costs, planner="graph-uniform", time_limit_s=600))
        full = seconds(lambda p=problem: pipeline.plan(p, costs, planner="graph", time_limit_s=600), 3)
        mixed = seconds(lambda p=problem: pipeline.plan(p, costs, planner="graph-mixed", time_limit_s=600), 1)
        ours, theirs, spread_of = in_turn(problem, costs)
        try:
            refused = ""
            downset = _piper_seconds(problem, costs)
        except SolverError as error:
            refused, downset = error.message.split(":")[-1].strip(), float("nan")
        print(f"search {family} {sizes or ''} on {devices}: plans uniform {uniform:.2f} s, graph {full:.2f} s, "
              f"mixed {mixed:.2f} s; searches alone {ours:.4f} s, pipedream {theirs:.3f} s ({theirs / ours:.1f}x, "
              f"turns {spread_of}), "
              f"piper {downset:.2f} s ({downset / ours:.1f}x) {refused}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(f"search: peak memory of this process {peak:.2f} GiB", flush=True)


def _uniform(ranking: Ranking, root: Node) -> None:
    rank(ranking, root, [(b,) for b in ranking.prices.problem.menu])
    spread(ranking)


def _pipedream(ranking: Ranking, _: Node) -> None:
    pipedream(ranking)


def _piper_seconds(problem: Problem, costs: CostModel) -> float:
    """Processor seconds of Piper's search for every micro-batch.

    Raises:
        SolverError: too many downsets, or more than a minute.
    """
    prices, _ = priced(problem, costs)
    ranking = Ranking(prices, time.perf_counter() + 60)
    start = time.process_time()
    piper(ranking)
    if ranking.over():
        raise SolverError("piper: not done in a minute")
    return time.process_time() - start


def ablation(_: CostModel) -> None:
    """Bar 6: chained stages, parallel stages at the same micro-batch, and all free; measured A100 kernels."""
    for family, batch in ((f, b // share) for f, b in PAPER.items() for share in (2, 1)):
        problem = claims.paper_problem(family, devices=32, batch=batch)
        costs = claims.costs_of(problem)
        refined, *others = (pipeline.plan(problem, costs, planner=name)
                            for name in ("sequential-refined", "pipedream", "sequential"))
        chain = min(others, key=lambda p: p.iteration_s)
        b = chain.stages[0].micro_batch_samples
        alike = dataclasses.replace(problem, micro_batches=(b,), max_forwards_per_turn=1)
        same, free, full = (pipeline.plan(p, costs, planner=name, time_limit_s=600).iteration_s for p, name in (
            (alike, "graph"), (problem, "graph-uniform"), (problem, "graph")))
        one = [_one_device_each(problem, costs, name) for name in ("sequential", "graph")]
        print(f"ablation {family}, mini-batch {batch}: sequential {chain.iteration_s * 1e3:.1f} ms (b {b}, "
              f"{len(chain.stages)} stages), parallel {chain.iteration_s / same:.2f}x, "
              f"one free micro-batch {chain.iteration_s / free:.2f}x, "
              f"each stage's own {chain.iteration_s / full:.2f}x; over a chain improved by the same moves "
              f"{_improved(refined, problem, costs):.2f}x and {refined.iteration_s / full:.2f}x; "
              f"without replicas {one[0] / one[1]:.2f}x", flush=True)


def _improved(chain: Plan, problem: Problem, costs: CostModel) -> float:
    """What parallel stages gain over an improved chain at its micro-batch."""
    alike = dataclasses.replace(problem, micro_batches=(chain.stages[0].micro_batch_samples,), max_forwards_per_turn=1)
    return chain.iteration_s / pipeline.plan(alike, costs, planner="graph", time_limit_s=600).iteration_s


def _one_device_each(problem: Problem, costs: CostModel, kind: str) -> float:
    """Iteration of one operator a stage, one device each, at the best micro-batch: chained or as a graph."""
    from planners.pipeline.reading import Chosen

    prices, _ = priced(dataclasses.replace(problem, cluster=dataclasses.replace(problem.cluster, devices=64)), costs)
    ranking = Ranking(prices, time.perf_counter() + 600)
    for b in problem.menu:
        stages = [Chosen(1 << v, b, 1) for v in range(len(prices.graph))]
        ranking.take(draft(prices, stages, sequential=kind == "sequential"))
    return ranking.limit


def branches(_: CostModel) -> None:
    """Bar 6: CANDLE-Uno with 4, 8, 16 branches on as many devices, over PipeDream."""
    for count in (4, 8, 16):
        problem = claims.paper_problem("candle-uno", devices=count, batch=1024, branches=count)
        costs = claims.costs_of(problem)
        ours, theirs = (pipeline.plan(problem, costs, planner=p).iteration_s for p in ("graph", "pipedream"))
        print(f"branches {count} on {count} devices: {theirs / ours:.2f}x over pipedream", flush=True)


def gap(_: CostModel) -> None:
    """Bar 2: enumeration of 500 graphs of up to 8 operators on up to 4 devices."""
    import math

    from tests.test_pipeline_plan import compared

    rows = compared(500, 2, 8)
    wrong = sum(not math.isclose(a, b, rel_tol=1e-9) and a != b for a, b, _ in rows)
    both = [a / c for a, _, c in rows if math.isfinite(a) and math.isfinite(c)]
    print(f"gap: {wrong} of {len(rows)} miss the optimum of the space; over all stage graphs geomean "
          f"{math.exp(statistics.fmean(map(math.log, both))):.4f}, worst {max(both):.3f}, "
          f"{sum(math.isfinite(c) and not math.isfinite(a) for a, _, c in rows)} only feasible outside", flush=True)


def paced(_: CostModel) -> None:
    """Bar 5: a paced run against the simulation."""
    from executors import pipeline as executor
    from tests.test_pipeline_run import model, planned

    for count, edges in ((5, [(0, 1), (2, 3), (1, 4), (3, 4)]), (5, [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)])):
        problem = model(edges, count, batch=16, seconds=60e-3, mode="paced", steps=4)
        plan = planned(problem, [([v], 1, 1) for v in range(count)])
        simulated = executor.simulate(problem, plan, TableCosts(()))["iteration_s"]
        took = executor.run(problem, plan, device="cpu")["iteration_s"]
        print(f"paced {edges}: simulated {simulated:.4f} s, measured {took:.4f} s ({took / simulated - 1:+.1%})",
              flush=True)


def measured(_: CostModel) -> None:
    """Bar 7: layers measured here, planned, and trained on two ranks; each run beside the prediction."""
    from executors import pipeline as executor
    from workbench.job import open_job
    from workbench.study import data_file

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "workbench", "profile", *LAYERS, "--budget", "80s", "--profiles", folder],
                       check=True, capture_output=True)
        job = open_job(str(data_file("specs", "pipeline-measured.toml")), (f"costs.folder={folder}",))
        plan = job.plan()
    shares = ", ".join(f"{source} {share:.0%}" for source, share in plan.sources.items())
    took = [executor.run(job.problem, plan, device="cpu")["iteration_s"] for _ in range(5)]
    print(f"measured: predicted {plan.iteration_s * 1e3:.2f} ms ({shares}), trained in "
          + ", ".join(f"{t * 1e3:.2f}" for t in took)
          + f" ms; median {statistics.median(took) / plan.iteration_s - 1:+.1%}", flush=True)


def bounds(costs: CostModel) -> None:
    """Gaps between plans and proven bounds: the demo, the paper's models, random graphs."""
    from tests import oracles_pipeline as oracles
    from workbench.job import open_job

    job = open_job("pipeline")
    rows = [("demo", job.problem, job.costs, "graph")]
    rows += [(f"{family} on {devices}", paper_problem(family, devices, PAPER[family]), costs, "graph")
             for family in PAPER for devices in (8, 32)]
    for name, problem, model, planner in rows:
        proof = pipeline.plan(problem, model, planner=planner).certificate
        print(f"bound {name}: {proof.objective * 1e3:.2f} ms, at least {(proof.bound or 0) * 1e3:.2f} ms, "
              f"gap {proof.gap or 0:.1%}", flush=True)
    gaps = []
    for k in range(40):
        rng = np.random.default_rng([20, k])
        problem = oracles.random_problem(rng, operators=int(rng.integers(4, 9)), devices=int(rng.integers(2, 5)))
        gaps.append(pipeline.plan(problem, TableCosts(())).certificate.gap or 0.0)
    print(f"bound of 40 random graphs of 4 to 8 operators: median gap {statistics.median(gaps):.1%}, "
          f"largest {max(gaps):.1%}, closed {sum(g < 1e-3 for g in gaps)}", flush=True)


def inflight(_: CostModel) -> None:
    """Bar 3: published in-flight numbers, and the example of mixed micro-batches."""
    from planners.pipeline.inflight import held_by_all
    from tests.test_pipeline_plan import PUBLISHED

    got = [held_by_all(micro, turn, after, 1024) for micro, turn, after, _ in PUBLISHED]
    same = sum(ours == theirs for ours, (*_, theirs) in zip(got, PUBLISHED, strict=True))
    print(f"in flight: {same} of {len(PUBLISHED)} published schedules; micro-batches 1, 2, 4 hold {got[-2][0]} "
          f"samples, 4, 4, 4 hold {got[-1][0]}", flush=True)


def execution(_: CostModel) -> None:
    """Bar 4: exact gradients, peaks, 200 random stage graphs with jitter, a killed rank."""
    from executors import pipeline as executor
    from executors.pipeline.launching import Launch
    from executors.pipeline.running import outcome_of
    from tests.test_pipeline_run import EXACT, rounded, run_random, seconds_until_a_killed_rank_is_noticed

    jobs = {**EXACT, **rounded()}
    for (name, (problem, plan)), parts in zip(jobs.items(), Launch(list(jobs.values())).run(), strict=True):
        outcome = outcome_of(problem, plan, parts)
        found = executor.verify(problem, plan, outcome)
        print(f"execution {name}: {len(parts)} ranks, {len(outcome.tables['tensors'])} tensors "
              f"{'equal to the bit' if name in EXACT else 'equal to rounding'}, peaks as planned: "
              f"{found or 'yes'}", flush=True)
    start = time.perf_counter()
    run_random(200)
    took = time.perf_counter() - start
    print(f"execution of 200 random stage graphs with jitter: no deadlock, {took:.0f} s", flush=True)
    print(f"execution: a killed rank is an error after {seconds_until_a_killed_rank_is_noticed():.2f} s", flush=True)


BENCHES = {"search": search, "gap": gap, "bounds": bounds, "inflight": inflight, "execution": execution,
           "paced": paced, "ablation": ablation, "branches": branches, "measured": measured}


def main(names: list[str]) -> None:
    """Run the benches called ``names`` (all without any)."""
    costs = open_costs({"source": "analytic"})
    for name in names or BENCHES:
        BENCHES[name](costs)


if __name__ == "__main__":
    main(sys.argv[1:])

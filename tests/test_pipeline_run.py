"""Pipeline runs on ranks: gradients against one process, peaks and bytes against the plan, no hang whatever happens."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from executors import pipeline as executor
from planners import pipeline
from planners.pipeline.assembly import assemble, candidate, draft
from planners.pipeline.planning import priced
from planners.pipeline.problem import Cluster, Edge, Layer, Operator, Plan, Problem, Run
from planners.pipeline.reading import Chosen
from tests import oracles_pipeline as oracles
from workbench.costs import TableCosts
from workbench.errors import SpecError, WorkbenchError
from workbench.job import open_job
from workbench.study import data_file

NO_COSTS = TableCosts(())
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (extra 'run')")


def test_simulation_of_the_demo_is_the_plans_iteration_and_a_sound_timeline() -> None:
    job = open_job("pipeline")
    plan = job.plan()
    outcome = executor.simulate(job.problem, plan, job.costs)
    assert outcome["iteration_s"] == pytest.approx(plan.iteration_s, rel=1e-9)
    assert outcome.timeline is not None
    assert outcome.timeline.violations() == []
    bubble = {m.name: m.value for m in pipeline.predicted(job.problem, plan)}["bubble_share"]
    assert outcome["bubble_share"] == pytest.approx(bubble)
    for x, s in enumerate(plan.stages):
        assert outcome.counters[f"peak/in flight at stage {x}"] == s.in_flight_samples


def model(edges: list[tuple[int, int]], count: int, *, batch: int = 8, seconds: float = 1e-3, optimizer: str = "sgd",
          **run: object) -> Problem:
    """Dense operators of width 6; sources have data of their own. Saved: data, joined inputs, output."""
    sources = set(range(count)) - {v for _, v in edges}
    operators = []
    for v in range(count):
        reads = sum(w == v for _, w in edges)
        own = 5 if v in sources else 0
        # A single input is kept by the operator that made it (or as received data), joined inputs are a new tensor.
        saved = 4 * (6 + own + (6 * reads if reads > 1 else 0))
        operators.append(Operator(
            name=f"o{v}", forward_s=dict.fromkeys((1, 2, 4, 8), seconds),
            backward_s=dict.fromkeys((1, 2, 4, 8), 2 * seconds),
            weight_bytes=4.0 * 6 * (own + 6 * reads + 1), saved_bytes_per_sample=float(saved),
            output_bytes_per_sample=24.0, layer=Layer(kind="dense", inputs=own, width=6)))
    return Problem(operators=tuple(operators), batch_samples=batch, micro_batches=(1, 2, 4, 8),
                   optimizer=optimizer,  # type: ignore[arg-type]
                   edges=tuple(Edge(producer=f"o{u}", consumer=f"o{v}") for u, v in edges),
                   cluster=Cluster(devices=9, devices_per_machine=9, memory_bytes=1e9, inside=oracles.FAST,
                                   between=oracles.FAST), run=Run(**run))  # type: ignore[arg-type]


def planned(problem: Problem, stages: list[tuple[list[int], int, int]], turns: list[int] | None = None) -> Plan:
    """A plan of the given stages: (operators by name number, micro-batch, replicas)."""
    prices, _ = priced(problem, NO_COSTS)
    number = {o.name: v for v, o in enumerate(prices.graph.operators)}
    chosen = [Chosen(sum(1 << number[f"o{v}"] for v in operators), b, d) for operators, b, d in stages]
    made = candidate(prices, draft(prices, chosen, sequential=False, turns=turns))
    assert made is not None
    return assemble(prices, made, bound=None, planner="given", status="heuristic", seconds=0.0, candidates=1)


def alone(edges: list[tuple[int, int]], count: int, *, optimizer: str = "sgd",
          **run: object) -> tuple[Problem, Plan]:
    """One operator a stage, micro-batches of 2."""
    problem = model(edges, count, optimizer=optimizer, **run)
    return problem, planned(problem, [([v], 2, 1) for v in range(count)])


EXACT = {
    "branch and join": alone([(0, 1), (2, 3), (1, 4), (3, 4)], 5),
    "fan-out to three": alone([(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)], 5),
    "skip over two": alone([(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)], 5),
    "nine ranks": alone([(0, 1), (1, 8), (2, 3), (3, 8), (4, 5), (5, 8), (6, 7), (7, 8)], 9),
    "adam": alone([(0, 2), (1, 2)], 3, optimizer="adam"),
    "bf16": alone([(0, 1), (2, 3), (1, 4), (3, 4)], 5, dtype="bf16"),
}


def rounded() -> dict[str, tuple[Problem, Plan]]:
    """Plans whose sums are taken in another order than one process would."""
    diamond = [(0, 1), (0, 2), (1, 3), (2, 3)]
    problem = model(diamond, 4, optimizer="momentum")
    return {
        "mixed micro-batches": (problem, planned(problem, [([0], 1, 1), ([1], 4, 1), ([2], 2, 1), ([3], 4, 1)],
                                                 [2, 1, 2, 1])),
        "replicas": (problem, planned(problem, [([0], 4, 2), ([1], 4, 1), ([2], 2, 2), ([3], 8, 4)])),
    }


@pytest.mark.dist
@needs_torch
def test_gradients_weights_peaks_and_messages_of_every_shape() -> None:
    from executors.pipeline.launching import Launch
    from executors.pipeline.reference import adds_alike
    from executors.pipeline.running import outcome_of

    jobs = {**EXACT, **rounded()}
    results = Launch(list(jobs.values())).run()
    for (name, (problem, plan)), parts in zip(jobs.items(), results, strict=True):
        assert pipeline.check(problem, plan) == [], name
        # Bit-exact wherever one process adds in the same order; to rounding elsewhere.
        assert adds_alike(problem, plan) == (name in EXACT), name
        outcome = outcome_of(problem, plan, parts)
        assert executor.verify(problem, plan, outcome) == [], name
        if problem.run.dtype == "fp32":
            for x, s in enumerate(plan.stages):
                for r in range(len(s.devices)):
                    held = outcome.counters[f"peak held bytes/stage {x}.{r}"]
                    assert held == s.in_flight_samples / len(s.devices) * s.saved_bytes_per_sample, (name, x)


@pytest.mark.dist
@needs_torch
def test_messages_in_order_instead_of_by_tag_give_the_same_numbers() -> None:
    """NCCL's way of matching, tried over gloo: a group for every pair and direction, no tags."""
    from executors.pipeline.launching import Launch
    from executors.pipeline.running import outcome_of

    jobs = {**EXACT, **rounded()}
    jobs = {name: jobs[name] for name in ("fan-out to three", "mixed micro-batches", "replicas")}
    for (problem, plan), parts in zip(jobs.values(), Launch(list(jobs.values()), ordered=True).run(), strict=True):
        assert executor.verify(problem, plan, outcome_of(problem, plan, parts)) == []


@needs_torch
@pytest.mark.parametrize("name", [*EXACT, "mixed micro-batches", "replicas"])
def test_one_process_for_all_replicas_gives_the_same_numbers(name: str) -> None:
    from executors.pipeline.running import outcome_of
    from executors.pipeline.together import execute_together

    problem, plan = {**EXACT, **rounded()}[name]
    outcome = outcome_of(problem, plan, execute_together(problem, plan, "cpu"))
    assert executor.verify(problem, plan, outcome) == []


@pytest.mark.gpu
@needs_torch
@pytest.mark.parametrize("name", [*EXACT, "mixed micro-batches", "replicas"])
def test_on_gpus_gradients_are_those_of_one_process(name: str) -> None:
    """One rank a GPU where there are enough (NCCL), else streams of one GPU."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    problem, plan = {**EXACT, **rounded()}[name]
    outcome = executor.run(problem, plan, device="cuda")
    assert outcome.counters["gpu"] == 1
    assert executor.verify(problem, plan, outcome) == []


SPEC = """
study = "pipeline"
batch_samples = 8
micro_batches = [2]
cluster = { devices = 2, devices_per_machine = 2, memory_bytes = 1e9, inside = { latency_s = 0, bytes_per_s = 1e9 }, \
    between = { latency_s = 0, bytes_per_s = 1e9 } }
"""
CHAIN = """
edges = [{ producer = "a", consumer = "b" }]
[[operators]]
name = "a"
forward_s = { 2 = 1.0, 1 = 0.9 }
backward_s = { 2 = 2.0, 1 = 1.8 }
weight_bytes = 1e8
saved_bytes_per_sample = 100
output_bytes_per_sample = 24
layer = { kind = "dense", inputs = 5, width = 6 }
[[operators]]
name = "b"
forward_s = { 2 = 1.0, 1 = 0.9 }
backward_s = { 2 = 2.0, 1 = 1.8 }
weight_bytes = 1e8
saved_bytes_per_sample = 100
output_bytes_per_sample = 24
layer = { kind = "dense", width = 6 }
[planner]
name = "balance"
"""


def under_torchrun(spec: Path, ranks: int, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone", "-m", "workbench",
         "run", str(spec), "--device", "cpu", "--runs", str(folder), "--json"],
        capture_output=True, text=True, timeout=300)


@pytest.mark.dist
@needs_torch
def test_the_same_entry_runs_as_ranks_of_a_torchrun_job(tmp_path: Path) -> None:
    spec = tmp_path / "chain.toml"
    spec.write_text(SPEC + CHAIN)
    done = under_torchrun(spec, 2, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("pipeline-*/measured.json"))) == 1


@pytest.mark.parametrize("environment, said", [
    ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT"),
    ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"}, "MASTER_ADDR and MASTER_PORT"),
    ({"WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"}, None), ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None)])
def test_a_job_that_says_too_little_is_an_error(environment: dict[str, str], said: str | None,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    from executors.pipeline.launching import in_job, rank_in_job, run_as_rank

    for name in ("WORLD_SIZE", "RANK", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "MASTER_ADDR",
                 "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert in_job() == (said is not None)
    if said is None:
        return
    assert rank_in_job() == int(environment.get("RANK", environment.get("SLURM_PROCID", "0")))
    problem, plan = alone([(0, 1)], 2)
    with pytest.raises(SpecError, match=said):
        run_as_rank(problem, plan, device="cpu")
    problem, plan = EXACT["nine ranks"]
    with pytest.raises(SpecError, match="9 stage replicas"):
        run_as_rank(problem, plan, device="cpu")


@pytest.mark.skipif(not needs_torch.args[0] and __import__("torch").cuda.is_available(), reason="there is a GPU")
@needs_torch
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    problem, plan = alone([(0, 1)], 2)
    with pytest.raises(SpecError, match="no GPU"):
        executor.run(problem, plan, device="cuda")
    with pytest.raises(SpecError, match="no device is called"):
        executor.run(problem, plan, device="tpu")


@needs_torch
def test_verify_notices_more_bytes_held_than_reserved() -> None:
    from executors.pipeline.running import outcome_of
    from executors.pipeline.together import execute_together

    problem, plan = alone([(0, 1)], 2)
    least = dataclasses.replace(plan.stages[0], saved_bytes_per_sample=1.0)
    outcome = outcome_of(problem, plan, execute_together(problem, plan, "cpu"))
    short = dataclasses.replace(plan, stages=(least, *plan.stages[1:]))
    assert [v.rule for v in executor.verify(problem, short, outcome)] == ["memory"]


@pytest.mark.dist
@needs_torch
def test_verify_notices_a_wrong_gradient() -> None:
    from executors.pipeline.launching import Launch
    from executors.pipeline.running import outcome_of

    problem, plan = alone([(0, 1)], 2)
    parts = Launch([(problem, plan)]).run()[0]
    name, value = next(iter(parts[0].gradients[0].items()))
    parts[0].gradients[0][name] = np.nextafter(value, np.float32(np.inf))
    broken = executor.verify(problem, plan, outcome_of(problem, plan, parts))
    assert [v.rule for v in broken] == ["gradients"]


@pytest.mark.dist
@needs_torch
def test_a_killed_rank_ends_the_run_with_its_name() -> None:
    assert seconds_until_a_killed_rank_is_noticed() < 30


def seconds_until_a_killed_rank_is_noticed() -> float:
    from executors.pipeline.launching import Launch

    problem, plan = alone([(0, 1), (1, 2)], 3, mode="paced", steps=200)
    problem = dataclasses.replace(problem, run=dataclasses.replace(problem.run, time_scale=100.0))
    killed: list[float] = []

    def kill(pids: list[int]) -> None:
        def later() -> None:
            time.sleep(4.0)
            killed.append(time.perf_counter())
            os.kill(pids[1], signal.SIGKILL)
        threading.Thread(target=later, daemon=True).start()

    with pytest.raises(WorkbenchError, match=r"rank 1 \(stage 1, replica 0\) was killed by SIGKILL"):
        Launch([(problem, plan)]).run(watch=kill)
    return time.perf_counter() - killed[0]


def random_plan(seed: int) -> tuple[Problem, Plan]:
    """Three to six stages with random edges, micro-batches, k and jitter."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 7))
    edges = [(u, v) for v in range(1, count) for u in range(v) if rng.random() < 0.45]
    problem = model(edges, count, mode="paced", steps=1, jitter_s=2e-3, seed=seed, seconds=1e-4)
    sizes = [int(rng.choice([1, 2, 4])) for _ in range(count)]
    turns = [int(rng.integers(1, 3)) for _ in range(count)]
    return problem, planned(problem, [([v], b, 1) for v, b in enumerate(sizes)], turns)


def run_random(count: int) -> None:
    from executors.pipeline.launching import Launch
    from executors.pipeline.running import outcome_of

    jobs = [random_plan(seed) for seed in range(count)]
    for (problem, plan), parts in zip(jobs, Launch(jobs).run(), strict=True):
        assert executor.verify(problem, plan, outcome_of(problem, plan, parts)) == []


@pytest.mark.dist
@needs_torch
def test_random_stage_graphs_with_jitter_do_not_block() -> None:
    run_random(25)


@pytest.mark.dist
@pytest.mark.slow
@needs_torch
def test_200_random_stage_graphs_with_jitter_do_not_block() -> None:
    run_random(200)


@pytest.mark.dist
@pytest.mark.slow
@needs_torch
def test_layers_measured_here_predict_training_on_two_ranks(tmp_path: Path) -> None:
    """A busy machine only makes runs longer: one of three within 10 % is enough."""
    from tests.bench.pipeline import LAYERS

    subprocess.run([sys.executable, "-m", "workbench", "profile", *LAYERS, "--budget", "60s", "--profiles",
                    str(tmp_path)], check=True, capture_output=True)
    job = open_job(str(data_file("specs", "pipeline-measured.toml")), (f"costs.folder={tmp_path}",))
    plan = job.plan()
    assert len(plan.stages) == 2
    assert set(plan.sources) <= {"measured", "interpolated"}
    took = [job.run(plan, "cpu")["iteration_s"] for _ in range(3)]
    assert min(abs(t / plan.iteration_s - 1) for t in took) <= 0.10


@pytest.mark.dist
@pytest.mark.slow
@needs_torch
def test_paced_run_takes_the_simulated_time() -> None:
    problem = model([(0, 1), (2, 3), (1, 4), (3, 4)], 5, batch=16, seconds=60e-3, mode="paced", steps=4)
    plan = planned(problem, [([v], 1, 1) for v in range(5)])
    took = executor.run(problem, plan, device="cpu")["iteration_s"]
    assert took == pytest.approx(executor.simulate(problem, plan, NO_COSTS)["iteration_s"], rel=0.05)

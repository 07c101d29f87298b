"""The plan on real ranks, and its verdict: gradients and weights against one process, peaks against the plan."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from executors.pipeline.launching import Launch, in_job, rank_in_job, run_as_rank
from planners.pipeline.problem import Plan, Problem
from planners.pipeline.replay import schedule
from workbench.errors import SpecError
from workbench.outcome import Metric, Outcome
from workbench.plan import Violation
from workbench.timeline import Span, Timeline

if TYPE_CHECKING:
    import pandas as pd

    from executors.pipeline.rank import Done

__all__ = ["outcome_of", "run", "verify"]

# Largest difference allowed, as a share of a tensor's largest gradient, when sums are taken in another order.
_SLACK = 1e-6
_ROUNDING = {"fp32": 1e-5, "bf16": 5e-2}


def run(problem: Problem, plan: Plan, *, device: str) -> Outcome:
    """Train ``problem.run.steps`` mini-batches, one rank a stage replica.

    The ranks are those of the job this process belongs to, else local processes; on a machine with fewer GPUs than
    the plan has replicas, streams of this process on one GPU. ``auto`` is the GPU where there is one.

    Raises:
        SpecError: there is no such device here, or the job is too small for the plan.
        WorkbenchError: a rank died or failed.
    """
    on = _device(device)
    if in_job():
        return outcome_of(problem, plan, run_as_rank(problem, plan, device=on), device=on)
    if on == "cuda" and _gpus() < sum(len(s.devices) for s in plan.stages):
        if problem.run.mode == "paced":
            raise SpecError("paced runs need a process for every stage replica", where="run.mode",
                            next_command="wb run pipeline --device cpu")
        from executors.pipeline.together import execute_together

        return outcome_of(problem, plan, execute_together(problem, plan, "cuda"), device=on)
    return outcome_of(problem, plan, Launch([(problem, plan)], device=on).run()[0], device=on)


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise SpecError(f"no device is called {name!r}", where="--device", allowed=["auto", "cpu", "cuda"])
    if name == "cuda" and not _gpus():
        raise SpecError("there is no GPU that PyTorch can use", where="--device", allowed=["auto", "cpu"],
                        next_command="wb doctor")
    return name if name != "auto" else "cuda" if _gpus() else "cpu"


def outcome_of(problem: Problem, plan: Plan, parts: Sequence[Done], *, device: str = "cpu") -> Outcome:
    """What the ranks brought back as metrics, spans of the last step, counters and tables."""
    took = [max(end for p in parts for _, _, end, _ in p.spans[k]) - min(start for p in parts
                                                                         for _, start, _, _ in p.spans[k])
            for k in range(problem.run.steps)]
    iteration = statistics.median(took[1:] or took) / _scale(problem)
    busy = sum(end - start for p in parts for name, start, end, stream in p.spans[-1] if stream == "compute")
    metrics = [
        Metric(name="iteration_s", value=iteration, unit="s", about="Time of one mini-batch (median, first left out)."),
        Metric(name="samples_per_s", value=problem.batch_samples / iteration, unit="samples/s",
               about="Training throughput."),
        Metric(name="bubble_share", value=1 - busy / (len(parts) * took[-1]), unit="",
               about="Share of the ranks' time without compute."),
    ]
    if problem.run.mode == "compute":
        metrics.append(Metric(name="loss", value=sum(p.losses[-1] for p in parts), unit="", about="Loss, last step."))
    begin = min(start for p in parts for _, start, _, _ in p.spans[-1])
    spans = [Span(device=f"stage {p.stage}" + (f".{p.replica}" if len(plan.stages[p.stage].devices) > 1 else ""),
                  stream=stream, name=name, start_s=start - begin, end_s=end - begin)
             for p in parts for name, start, end, stream in p.spans[-1]]
    counters = {"messages": float(sum(p.messages for p in parts)), "bytes": float(sum(p.sent_bytes for p in parts))}
    if device == "cuda":
        counters["gpu"] = 1.0
    for p in parts:
        counters[f"peak samples/stage {p.stage}.{p.replica}"] = float(p.peak_samples)
        if problem.run.mode == "compute":
            counters[f"peak held bytes/stage {p.stage}.{p.replica}"] = float(p.peak_bytes)
    return Outcome(clock="measured", metrics=tuple(metrics), timeline=Timeline.from_spans(spans), counters=counters,
                   tables={"tensors": _tensors(parts)} if problem.run.mode == "compute" else {})


def _scale(problem: Problem) -> float:
    return problem.run.time_scale if problem.run.mode == "paced" else 1.0


def _tensors(parts: Sequence[Done]) -> pd.DataFrame:
    """One row a gradient and step, and a row a final weight (step -1), with its raw numbers."""
    import pandas as pd

    rows = [{"step": k, "tensor": name, "values": value.tobytes()} for p in parts
            for k, step in enumerate(p.gradients) for name, value in step.items()]
    rows += [{"step": -1, "tensor": name, "values": value.tobytes()} for p in parts
             for name, value in p.weights.items()]
    return pd.DataFrame(rows, columns=["step", "tensor", "values"])


def verify(problem: Problem, plan: Plan, outcome: Outcome) -> list[Violation]:
    """Gradients of every step and final weights against one process; peaks, held bytes and messages against the plan.

    Among ranks of a job the first one compares gradients for all.
    """
    found = [*_peaks(problem, plan, outcome), *_held(problem, plan, outcome)]
    if problem.run.mode == "compute" and not rank_in_job():
        found += _numbers(problem, plan, outcome)
    return found


def _peaks(problem: Problem, plan: Plan, outcome: Outcome) -> Iterator[Violation]:
    from executors.pipeline.messages import table

    wanted = sum(len(m) for t in table(problem, plan) for m in t.produced.values()) * 2 * problem.run.steps
    if outcome.counters["messages"] != wanted:
        yield Violation(rule="messages", where="run",
                        detail=f"{outcome.counters['messages']:g} sent, the plan has {wanted}")
    for x, (s, order) in enumerate(zip(plan.stages, schedule(problem, plan), strict=True)):
        held = peak = 0
        for t in order:
            held += (t.last - t.first) * (1 if t.kind == "F" else -1)
            peak = max(peak, held)
        for r in range(len(s.devices)):
            where = f"stage {x}.{r}"
            samples = outcome.counters[f"peak samples/{where}"]
            if samples != s.in_flight_samples or samples != peak:
                yield Violation(rule="in flight", where=where,
                                detail=f"held {samples:g} samples, the plan says {s.in_flight_samples}")


def _held(problem: Problem, plan: Plan, outcome: Outcome) -> Iterator[Violation]:
    """What autograd kept at a stage's peak, counted tensor by tensor, is what the plan reserved or less."""
    for x, s in enumerate(plan.stages):
        reserved = s.in_flight_samples / len(s.devices) * s.saved_bytes_per_sample
        for r in range(len(s.devices)):
            where = f"stage {x}.{r}"
            held = outcome.counters.get(f"peak held bytes/{where}", 0.0)
            if held > reserved * (1 + _SLACK):
                yield Violation(rule="memory", where=where, detail=f"held {held:g} bytes of activations, the plan "
                                f"reserves {reserved:g}; saved_bytes_per_sample of its operators is too low")


def _numbers(problem: Problem, plan: Plan, outcome: Outcome) -> Iterator[Violation]:
    from executors.pipeline.reference import adds_alike, train

    on_gpu = bool(outcome.counters.get("gpu"))
    exact = adds_alike(problem, plan) and not on_gpu
    wanted = train(problem, plan, device="cuda" if on_gpu else "cpu")
    reference: dict[tuple[int, str], Any] = {(k, name): value for k, step in enumerate(wanted.gradients)
                                             for name, value in step.items()}
    reference |= {(-1, name): value for name, value in wanted.weights.items()}
    got = {(int(row["step"]), str(row["tensor"])): np.frombuffer(row["values"], np.float32)
           for row in outcome.tables["tensors"].to_dict("records")}
    for key in sorted(set(reference) ^ set(got)):
        yield Violation(rule="gradients", where=f"{key[1]}, step {key[0]}", detail="missing on one side")
    for key in sorted(set(reference) & set(got)):
        want, have = reference[key].ravel(), got[key]
        furthest = float(np.abs(want - have).max(initial=0.0))
        allowed = 0.0 if exact else _ROUNDING[problem.run.dtype] * float(np.abs(want).max(initial=0.0)) + 1e-9
        if not exact and key[0] < 0 and problem.optimizer == "adam":
            # Adam divides a gradient by its own size: where that is rounding noise, a step may go either way.
            allowed += 2 * problem.run.learning_rate * problem.run.steps
        if not furthest <= allowed:
            what = "weight" if key[0] < 0 else f"gradient of step {key[0]}"
            yield Violation(rule="gradients", where=key[1],
                            detail=f"{what} differs from one process by {furthest:.3g}, allowed {allowed:.3g}")

"""``run``: the plan's kernels stitched and timed on this machine; ``verify``: its outputs against double precision.

The stitched program is timed whole, with the caches swept as they were for its kernels; in turn with the captured
program run eagerly, through torch.compile and as one Inductor graph; and kernel by kernel (a second function with a
clock between kernels). Two sets of inputs are run,
ordinary ones and large ones (logits in the hundreds); a sample of the outputs goes with the outcome, and ``verify``
computes the same elements again from the captured program in double precision.

What a back-end has to prepare is taken from the store of kernels (``FOLDER``, or the folder that the environment
variable ``WB_KERNELS`` names) and made there when it is missing.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from executors.orchestration import inductor, ortsession
from executors.orchestration.backends import BACKENDS, Payload
from executors.orchestration.contenders import Program, contender, interleaved
from executors.orchestration.evaluate import outputs
from executors.orchestration.kernels import Cannot
from executors.orchestration.measure import largest, worst_error
from executors.orchestration.pool import Job, Pool
from executors.orchestration.programs import LARGE, Behind, behind, example_inputs
from executors.orchestration.stitched import Stitched, chosen_of, stitch
from executors.orchestration.store import Store, conditions_of
from executors.orchestration.tune import cache_of
from planners.orchestration.problem import Plan, Problem
from profilers.harness import fixed_conditions
from workbench.errors import SpecError
from workbench.outcome import Metric, Outcome
from workbench.plan import Violation
from workbench.timeline import Span, Timeline

__all__ = ["FOLDER", "prepared", "run", "verify"]

FOLDER = "profiles/orchestration"
TOLERANCE = 1e-4
CASES = {"ordinary": 1.0, "large": LARGE}
_PROBES = 256
_ROUNDS = 15
_ROOFLINE = "roofline"


def run(problem: Problem, plan: Plan, *, device: str) -> Outcome:
    """Run the plan beside the captured program by other means.

    Args:
        problem: gives the program.
        plan: the kernels, in order.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        SpecError: an unknown device, no GPU where one was asked for, or a plan whose kernels nobody measured.
    """
    import pandas as pd

    device = _device(device)
    there = behind(problem, device=device)
    threads = 1
    with fixed_conditions(device=device, threads=threads) as held:
        store = Store(os.environ.get("WB_KERNELS", FOLDER),
                      conditions_of(held, cache=cache_of(there.graph), onnxruntime=ortsession.version()))
        with inductor.cache_folder(store.inductor):
            program, compiled = prepared(there, plan, store, device=device, threads=threads)
            inputs = example_inputs(there.graph, device=device)
            programs: dict[str, Program] = {"stitched": program.graphed(*inputs) if device == "cuda" else program}
            programs |= _contenders(there, device=device, threads=threads)
            times = interleaved(programs, inputs, rounds=_ROUNDS, threads=threads, device=device)
            kernels = _kernel_seconds(program, inputs, device)
            whole = times["stitched"]["min_s"]
            probes = pd.DataFrame([row for case, scale in CASES.items()
                                   for row in _probes(there, program, case, scale)])
    measured = [min(row) for row in kernels]
    table = pd.DataFrame({
        "kernel": range(len(plan.kernels)), "backend": [k.backend for k in plan.kernels],
        "primitives": [len(k.primitives) for k in plan.kernels], "stores": [" ".join(k.outputs) for k in plan.kernels],
        "predicted_s": [k.seconds + k.boundary_s for k in plan.kernels], "measured_s": measured})
    beside = pd.DataFrame([{"program": name, **row, "over stitched": row["min_s"] / times["stitched"]["min_s"]}
                           for name, row in times.items()])
    return Outcome(
        clock="measured",
        metrics=(
            Metric(name="program_s", value=whole, unit="s", about="All kernels, one after the other."),
            Metric(name="in_turn_s", value=times["stitched"]["min_s"], unit="s",
                   about="The same in turn with the other programs, which leave the caches to their own data."),
            Metric(name="kernels", value=len(plan.kernels), unit="", about="Kernels of the program."),
            Metric(name="kernel_s", value=sum(measured), unit="s", about="Sum of the kernels, a clock between them."),
            *(Metric(name=f"{name}_s".replace(".", "_"), value=row["min_s"], unit="s",
                     about=f"The captured program by {name}.") for name, row in times.items() if name != "stitched"),
            Metric(name="prediction_error", value=plan.certificate.objective / whole - 1, unit="",
                   about="Predicted over measured time of the program, less one."),
            Metric(name="peak_bytes", value=program.peak_bytes, unit="bytes",
                   about="Most that stored values take at a time, weights and inputs left out."),
        ),
        timeline=Timeline.from_spans(_spans(plan, there, kernels, device)),
        counters={"kernels": float(len(plan.kernels)), "launches": float(program.launches),
                  "stored_bytes": float(program.stored_bytes), "threads": float(threads),
                  "compiled": float(compiled)},
        tables={"kernels": table, "beside": beside, "outputs": probes},
    )


def _device(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise SpecError(f"no device is called {device!r}", allowed=["auto", "cpu", "cuda"])
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("no CUDA device", allowed=["cpu"], next_command="wb doctor")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def prepared(there: Behind, plan: Plan, store: Store, *, device: str, threads: int) -> tuple[Stitched, int]:
    """The plan's program, and how many of its kernels had to be prepared because the store lacked them.

    Raises:
        SpecError: a kernel was priced by a data sheet and has no back-end, or its back-end cannot run it here.
    """
    if any(k.backend not in BACKENDS for k in plan.kernels):
        strange = next(k.backend for k in plan.kernels if k.backend not in BACKENDS)
        hint = "its kernels were priced from a data sheet, not measured" if strange == _ROOFLINE else None
        raise SpecError(f"no back-end is called {strange!r}", allowed=list(BACKENDS), hint=hint,
                        next_command="wb profile orchestration")
    fresh: dict[tuple[str, str], Payload] = {}
    jobs = []
    for chosen in chosen_of(there.graph, plan, store.artifact):
        key = chosen.structure.digest(), chosen.kernel.backend
        if chosen.payload is None and key not in fresh and chosen.kernel.backend != "eager":
            fresh[key] = None
            jobs.append(Job(*key, chosen.structure))
    pool = Pool(store.inductor, device=device, threads=threads)
    try:
        for made in pool.prepare(jobs):
            if made.payload is None:
                raise SpecError(f"back-end {made.job.backend} cannot run a kernel of the plan here: {made.why}",
                                next_command="wb profile orchestration")
            store.keep(made.job.digest, made.job.backend, made.payload)
    finally:
        pool.close()
    try:
        return stitch(there.graph, plan, there.weights, store.artifact, device=device), len(jobs)
    except Cannot as why:
        raise SpecError(f"a kernel of the plan cannot run here: {why}",
                        next_command="wb profile orchestration") from None


def _contenders(there: Behind, *, device: str, threads: int) -> dict[str, Program]:
    found = {}
    for name in ("eager", "torch.compile", "inductor"):
        try:
            made = contender(name, there.graph, there.weights, device=device, threads=threads, eager=there.module)
        except Cannot:
            continue
        found[name] = made
    return found


def _kernel_seconds(program: Stitched, inputs: Sequence[torch.Tensor], device: str) -> list[list[float]]:
    """Seconds of every kernel in every round, from a clock between kernels."""
    clock: Callable[[], int] = time.perf_counter_ns
    if device == "cuda":
        def clock() -> int:
            torch.cuda.synchronize()
            return time.perf_counter_ns()
    rounds = []
    for _ in range(_ROUNDS):
        _, marks = program.timed(clock, *inputs)
        rounds.append([(b - a) * 1e-9 for a, b in itertools.pairwise(marks)])
    return [list(column) for column in zip(*rounds, strict=True)]


def _spans(plan: Plan, there: Behind, kernels: Sequence[Sequence[float]], device: str) -> list[Span]:
    """One run with every kernel at its median time, each after the kernels whose tensors it reads."""
    sizes = {t.name: t.nbytes for t in there.graph.tensors}
    spans: list[Span] = []
    maker: dict[str, int] = {}
    clock = 0.0
    for at, (kernel, taken) in enumerate(zip(plan.kernels, kernels, strict=True)):
        end = clock + statistics.median(taken)
        spans.append(Span(device=device, stream="kernels", name=f"kernel {at} {kernel.backend}", start_s=clock,
                          end_s=end, bytes=sum(sizes[name] for name in kernel.outputs),
                          after=tuple(sorted({maker[n] for n in kernel.inputs if n in maker})),
                          args={"primitives": len(kernel.primitives), "predicted_s": kernel.seconds}))
        maker.update(dict.fromkeys(kernel.outputs, at))
        clock = end
    return spans


def _outputs(made: Any) -> list[torch.Tensor]:
    return [made] if isinstance(made, torch.Tensor) else list(made)


def _places(elements: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(elements, size=min(_PROBES, elements), replace=False))


def _probes(there: Behind, program: Program, case: str, scale: float) -> list[dict[str, Any]]:
    """A sample of the outputs for one case, as rows."""
    inputs = example_inputs(there.graph, seed=1, scale=scale, device="cuda" if _on_gpu(program) else "cpu")
    rows = []
    for number, output in enumerate(_outputs(program(*inputs))):
        flat = output.detach().cpu().double().reshape(-1)
        rows += [{"case": case, "output": number, "element": int(i), "value": float(flat[int(i)])}
                 for i in _places(flat.numel(), number)]
    return rows


def _on_gpu(program: Program) -> bool:
    return getattr(program, "device", "cpu") == "cuda"


def verify(problem: Problem, plan: Plan, outcome: Outcome) -> list[Violation]:
    """Compare the sampled outputs with the captured program in double precision.

    An element may be off by ``TOLERANCE`` times the largest of its output, or by twice what the captured program itself
    is off in single precision (logits of thousands leave no more), and must be finite where the reference is.
    """
    there = behind(problem)
    table = outcome.tables["outputs"]
    found = []
    for case, scale in CASES.items():
        inputs = example_inputs(there.graph, seed=1, scale=scale)
        exact = outputs(there.graph, inputs, there.weights, dtype=torch.float64)
        usual = outputs(there.graph, inputs, there.weights)
        for number, (wanted, single) in enumerate(zip(exact, usual, strict=True)):
            rows = table[(table["case"] == case) & (table["output"] == number)]
            where = f"{case} inputs, output {number}"
            if len(rows) != min(_PROBES, wanted.numel()):
                found.append(Violation(rule="outputs", where=where, detail=f"{len(rows)} elements were sampled"))
                continue
            right = wanted.reshape(-1)[torch.tensor(rows["element"].tolist())]
            error = worst_error(torch.tensor(rows["value"].tolist()), right, scale=largest(wanted))
            rounding = worst_error(single, wanted)
            allowed = max(TOLERANCE, 2 * rounding if math.isfinite(rounding) else 0.0)
            if math.isinf(error):
                found.append(Violation(rule="finite", where=where, detail="infinite or not a number where the "
                                       "reference is not, or the other way round"))
            elif not error <= allowed:
                found.append(Violation(rule="equality", where=where, detail=f"off by {error:.2e} of the largest value, "
                                       f"allowed {allowed:.2e}"))
    return found

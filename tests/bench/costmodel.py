"""How far the composed cost model is from measured serving runs: TTFT and TPOT, model by model.

The reference is ``silicon_sample.csv`` of aiconfigurator-core: closed-loop runs on real machines with ``batch_size``
clients that send their next request when the last one is answered. TTFT and TPOT are means over the run, so TTFT holds
the wait for other prompts. ``closed_loop`` replays each run on the step model with the engines' documented rules:

- vLLM: chunked prefill, decodes first, 8,192 tokens an iteration, cache blocks on demand, the newest request is
  preempted and recomputed when they run out. TensorRT-LLM: whole prompts, 8,192 tokens, room for the last token first.
- Both plan an iteration while the one before it runs (async scheduling, overlap scheduler), so a new request waits out
  the iteration under way and joins the one after.
- Rows of InferenceMAX (the 70B model): 10 requests a client, lengths uniform in 80-100 % of the nominal ones, as its
  published scripts say. Other rows do not say: fixed lengths, 10 requests a client, all clients at once.

Nothing is fitted: kernels, data sheets and these rules are all that goes in. Beside ours stand the estimates of the
tables' own package for the same rows (``aiconfigurator``: its ``run_agg`` at 8,192 context tokens an iteration, which
has fitted queueing factors). Run: ``python -m tests.bench.costmodel``.
"""

from __future__ import annotations

import csv
import importlib.util
import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.costs import open_costs
from workbench.hardware import load_catalogue
from workbench.llmcosts import Formats, KernelSteps, Stage
from workbench.llmrates import kv_capacity_tokens, throughput
from workbench.models import load_model
from workbench.stepcosts import TICKS_PER_S, Chunk, StepModel, ramp_sum

MODELS = {"meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b", "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
          "Qwen/Qwen3-32B": "qwen3-32b"}
# The same shapes under the names whose configurations the package ships.
PEER_NAMES = {"meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
              "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B"}
BUDGET = 8192
REQUESTS_A_CLIENT = 10


def silicon_rows() -> list[dict[str, str]] | None:
    """All rows of the reference, or ``None`` when the package is not installed."""
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations))) / "systems" / "silicon_sample.csv"
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def exclusion(row: Mapping[str, str]) -> str | None:
    """Why a row is not judged; ``None`` when it is."""
    if row["system"] != "h100_sxm":
        return "another system than h100_sxm"
    if row["model_path"] not in MODELS:
        return "not a dense model of the Llama kind (experts, latent attention)"
    if row["mode"] != "agg":
        return "disaggregated prefill and decode"
    if row["backend"] not in ("vllm", "trtllm"):
        return f"scheduling of {row['backend']} is not replayed"
    if row["gemm_quant_mode"] not in ("", "fp8"):
        return f"no tables of weights in {row['gemm_quant_mode']}"
    return None


@dataclass
class _Request:
    input_tokens: int
    output_tokens: int
    arrival: int = 0
    first: int = 0
    last: int = 0
    prefilled: int = 0
    made: int = 0

    @property
    def prompt(self) -> int:
        """Tokens to prefill: the prompt, and after a preemption what had been generated."""
        return self.input_tokens + max(self.made - 1, 0)


@dataclass
class _Engine:
    """One replica's rules and state; ticks."""

    steps: StepModel
    chunked: bool
    slots: int
    kv_tokens: int
    arriving: deque[_Request] = field(default_factory=deque)
    waiting: deque[_Request] = field(default_factory=deque)
    prefilling: list[_Request] = field(default_factory=list)
    running: list[_Request] = field(default_factory=list)

    def cached(self) -> int:
        """Tokens that hold cache: those there are (on demand) or those there may be (reserved)."""
        held = [*self.prefilling, *self.running]
        if self.chunked:
            return sum(r.prompt + 1 for r in held)
        return sum(r.input_tokens + r.output_tokens for r in held)

    def admitted(self) -> list[Chunk]:
        """Chunks of the next iteration; takes requests in while tokens, slots and cache last."""
        room = BUDGET - len(self.running)
        chunks = []
        for request in self.prefilling:
            take = min(room, request.prompt - request.prefilled)
            chunks.append(Chunk(take, request.prefilled))
            room -= take
        while self.waiting and room > 0 and len(self.running) + len(self.prefilling) < self.slots:
            request = self.waiting[0]
            need = request.prompt + 1 if self.chunked else request.input_tokens + request.output_tokens
            if self.cached() + need > self.kv_tokens or (not self.chunked and request.prompt > room):
                break
            self.prefilling.append(self.waiting.popleft())
            take = min(room, request.prompt)
            chunks.append(Chunk(take, 0))
            room -= take
        return [c for c in chunks if c.tokens]

    def _arrive(self) -> None:
        self.waiting.extend(self.arriving)
        self.arriving.clear()

    def make_room(self) -> None:
        """Preempt the newest decodes until one more token each fits."""
        while self.running and self.chunked and self.cached() + len(self.running) > self.kv_tokens:
            newest = self.running.pop()
            newest.prefilled = 0
            self.waiting.appendleft(newest)

    def advance(self, now: int) -> tuple[int, list[_Request]]:
        """One iteration with prefill, or all decode-only ones up to the next event; the time after, and who is done."""
        if not self.running and not self.prefilling:
            self._arrive()
        self.make_room()
        chunks = self.admitted()
        joining = bool(self.arriving)
        self._arrive()
        context = sum(r.prompt + 1 for r in self.running)
        decodes = list(self.running)
        if chunks:
            count = 1
            now += self.steps.mixed(len(decodes), context, chunks)
        else:
            count = 1 if joining else min(r.output_tokens - r.made for r in decodes)
            if self.chunked:
                count = max(1, min(count, (self.kv_tokens - self.cached()) // len(decodes)))
            now += ramp_sum(self.steps.decode(len(decodes)), context, len(decodes), count)
        for request in decodes:
            request.made += count
        for request, chunk in zip(list(self.prefilling), chunks, strict=False):
            request.prefilled += chunk.tokens
            if request.prefilled == request.prompt:
                self.prefilling.remove(request)
                self.running.append(request)
                request.first = request.first or now
                request.made = max(request.made, 1)
        done = [r for r in self.running if r.made >= r.output_tokens]
        for request in done:
            self.running.remove(request)
            request.last = now
        return now, done


def closed_loop(engine: _Engine, requests: Sequence[_Request], clients: int) -> tuple[float, float]:
    """Mean TTFT and TPOT in ms of ``clients`` clients that each wait for their answer before the next request."""
    unsent = deque(requests)
    now = 0
    for _ in range(min(clients, len(unsent))):
        engine.waiting.append(unsent.popleft())
    while engine.arriving or engine.waiting or engine.prefilling or engine.running:
        now, done = engine.advance(now)
        for _ in done:
            if unsent:
                unsent[0].arrival = now
                engine.arriving.append(unsent.popleft())
    per_ms = TICKS_PER_S / 1e3
    ttft = np.mean([(r.first - r.arrival) / per_ms for r in requests])
    tpot = np.mean([(r.last - r.first) / per_ms / (r.output_tokens - 1) for r in requests])
    return float(ttft), float(tpot)


def lengths(row: Mapping[str, str], rng: np.random.Generator) -> list[_Request]:
    """Requests of one run, as its harness is documented (or assumed)."""
    isl, osl, count = int(row["isl"]), int(row["osl"]), REQUESTS_A_CLIENT * int(float(row["batch_size"]))
    low = _shortest(row)
    return [_Request(int(rng.integers(int(isl * low), isl + 1)), int(rng.integers(int(osl * low), osl + 1)))
            for _ in range(count)]


def _shortest(row: Mapping[str, str]) -> float:
    """Shortest lengths of a run as a share of the nominal ones."""
    return 0.8 if row["model_path"] == "meta-llama/Llama-3.1-70B" else 1.0


@dataclass(frozen=True)
class Judged:
    """One row, measured against predicted (ms)."""

    row: Mapping[str, str]
    ttft: float
    tpot: float
    requests_per_s: float

    @property
    def model(self) -> str:
        """Model and backend."""
        return f"{MODELS[self.row['model_path']]} {self.row['backend']} {self.row['gemm_quant_mode'] or 'bf16'}"

    def error(self, metric: str) -> float:
        """Relative error of 'ttft', 'tpot', 'peer_ttft', 'peer_tpot' or 'rate'."""
        if metric == "rate":
            return self.requests_per_s / measured_rate(self.row) - 1
        if metric.startswith("peer_"):
            estimate = peer_estimate(self.row)[metric == "peer_tpot"]
        else:
            estimate = getattr(self, metric)
        return float(estimate) / float(self.row[f"silicon_{metric.removeprefix('peer_')}_ms"]) - 1


def mean_lengths(row: Mapping[str, str]) -> tuple[float, float]:
    """Mean input and output tokens of a run."""
    share = (1 + _shortest(row)) / 2
    return int(row["isl"]) * share, int(row["osl"]) * share


def measured_rate(row: Mapping[str, str]) -> float:
    """Requests per second that a closed loop must have had (Little's law): clients over their mean response time."""
    _, outputs = mean_lengths(row)
    response_ms = float(row["silicon_ttft_ms"]) + float(row["silicon_tpot_ms"]) * (outputs - 1)
    return float(row["batch_size"]) / response_ms * 1e3


def judge(rows: Sequence[Mapping[str, str]]) -> list[Judged]:
    """Replay every row that no exclusion names."""
    catalogue = load_catalogue()
    models: dict[tuple[str, str, str, str], tuple[KernelSteps, int]] = {}
    judged = []
    for row in rows:
        if exclusion(row) is not None:
            continue
        key = (row["backend"], row["model_path"], row["gemm_quant_mode"], row["tp_size"])
        if key not in models:
            shape = load_model(MODELS[row["model_path"]])
            stages = [Stage(device="H100-SXM", tensor_parallel=int(float(row["tp_size"])), layers=shape.layers)]
            formats = Formats(weights=row["gemm_quant_mode"] or "bf16")
            costs = open_costs({"source": "aiconfigurator", "backend": row["backend"]})
            models[key] = (KernelSteps(shape, stages, costs, catalogue=catalogue, formats=formats),
                           kv_capacity_tokens(shape, stages, catalogue=catalogue, formats=formats))
        steps, kv = models[key]
        clients = int(float(row["batch_size"]))
        engine = _Engine(steps=steps, chunked=row["backend"] == "vllm", slots=clients, kv_tokens=kv)
        ttft, tpot = closed_loop(engine, lengths(row, np.random.default_rng(0)), clients)
        inputs, outputs = mean_lengths(row)
        rate = throughput(steps, input_tokens=round(inputs), output_tokens=round(outputs), kv_capacity_tokens=kv,
                          max_sequences=clients, token_budget=BUDGET).requests_per_s
        judged.append(Judged(row, ttft, tpot, rate))
    return judged


def peer_estimate(row: Mapping[str, str]) -> tuple[float, float]:
    """TTFT and TPOT in ms as aiconfigurator itself estimates them, from the model configurations that it ships."""
    inputs, outputs = mean_lengths(row)
    model, database, backend = _peer(row["backend"], row["model_path"], row["gemm_quant_mode"], row["tp_size"])
    from aiconfigurator_core.sdk.config import RuntimeConfig

    runtime = RuntimeConfig(batch_size=int(float(row["batch_size"])), isl=round(inputs), osl=round(outputs))
    found = backend.run_agg(model, database, runtime, ctx_tokens=BUDGET).get_summary_df().iloc[0]
    return float(found["ttft"]), float(found["tpot"])


@cache
def _peer(backend: str, model_path: str, weights: str, tp_size: str) -> tuple[Any, Any, Any]:
    logging.getLogger("aiconfigurator_core").setLevel(logging.CRITICAL)
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.models import get_model
    from aiconfigurator_core.sdk.perf_database import get_database, get_latest_database_version

    degree = int(float(tp_size))
    config = build_model_config(degree, 1, 1, degree, 1, gemm_quant_mode=weights or "bfloat16",
                                kvcache_quant_mode="bfloat16", fmha_quant_mode="bfloat16")
    version = get_latest_database_version("h100_sxm", backend)
    return (get_model(PEER_NAMES.get(model_path, model_path), config, backend),
            get_database("h100_sxm", backend, version), get_backend(backend))


def waits_for_others(rows: Sequence[Mapping[str, str]]) -> set[str]:
    """Ids of runs whose TTFT cannot be a first-token time of a server with a slot for every client.

    With a slot each, longer outputs make prompts meet less often, so TTFT must not grow with the output length. Where
    it does by more than a quarter from the shortest to the longest output, all else equal, requests waited for the
    *generation* of others (fewer slots than clients, or a saturated front end). Looks at measurements only.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        same = (row["model_path"], row["backend"], row["tp_size"], row["isl"], row["batch_size"])
        groups.setdefault(same, []).append(row)
    odd = set()
    for group in groups.values():
        group.sort(key=lambda r: int(r["osl"]))
        if float(group[-1]["silicon_ttft_ms"]) > 1.25 * float(group[0]["silicon_ttft_ms"]):
            odd |= {r["id"] for r in group}
    return odd


def mape(errors: Sequence[float]) -> float:
    """Mean absolute relative error in percent."""
    return 100 * float(np.mean(np.abs(errors))) if errors else float("nan")


def report() -> str:
    """The table: per model, rows, MAPE of TPOT and TTFT; then what was left out and why."""
    rows = silicon_rows()
    if rows is None:
        return "aiconfigurator-core is not installed"
    judged = judge(rows)
    odd = waits_for_others([j.row for j in judged])
    lines = [f"{'model':32} {'TP':>3} {'rows':>5} {'TPOT %':>7} {'TTFT %':>7} {'rows*':>6} {'TTFT* %':>8} "
             f"{'h %':>6} {'h bias %':>9} {'peer TPOT %':>12} {'peer TTFT %':>12}"]
    for model in sorted({j.model for j in judged}):
        mine = [j for j in judged if j.model == model]
        degrees = sorted({int(float(j.row["tp_size"])) for j in mine})
        for label, part in [("all", mine), *((str(d), [j for j in mine if int(float(j.row["tp_size"])) == d])
                                             for d in degrees)]:
            sound = [j for j in part if j.row["id"] not in odd]
            figures = [mape([j.error("tpot") for j in part]), mape([j.error("ttft") for j in part]), len(sound),
                       mape([j.error("ttft") for j in sound]), mape([j.error("rate") for j in part]),
                       100 * float(np.mean([j.error("rate") for j in part])),
                       mape([j.error("peer_tpot") for j in part]), mape([j.error("peer_ttft") for j in part])]
            lines.append("{:32} {:>3} {:>5} {:>7.1f} {:>7.1f} {:>6} {:>8.1f} {:>6.1f} {:>+9.1f} {:>12.1f} "
                         "{:>12.1f}".format(
                model, label, len(part), *figures))
    lines.append("h: requests per second of workbench.llmrates.throughput at the run's batch against Little's law")
    lines.append("peer: aiconfigurator's own estimates of the same rows")
    lines.append("* without rows whose measured TTFT grows with the output length (waits_for_others)")
    for reason, count in Counter(filter(None, map(exclusion, rows))).most_common():
        lines.append(f"left out {count:>5}: {reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())

"""What one LLM replica sustains: tokens its memory caches, and requests per second on one workload type.

Steady continuous batching (arXiv 2502.00722, section 2.2 of its reading): a batch of b requests costs b prefills and o
decode iterations whose contexts grow from i + 1 to i + o, so h = b / (b prefill(i) + sum_k decode(b, b (i + k))).
The batch is the largest that memory and the engine allow; h grows with b, because an iteration's cost grows slower than
its batch. Prefills run in groups that fill the token budget, longer prompts in chunks with their history.

Deviation: the paper profiles h once on vLLM; here it follows from the step model in closed form.
Legend: i input tokens, o output tokens, b batch, h requests per second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.costs import Source
from workbench.errors import SpecError
from workbench.hardware import Catalogue
from workbench.llmcosts import Formats, Stage, check_stages
from workbench.models import LlmShape, format_bytes
from workbench.spec import about, spec
from workbench.stepcosts import TICKS_PER_S, Chunk, StepModel, ramp_sum

__all__ = ["RUNTIME_RESERVE_BYTES", "Throughput", "kv_capacity_tokens", "stage_weight_bytes", "throughput"]

# Activations, CUDA graphs, communication buffers and the context: an assumption, between the 0.4 GiB of NCCL buffers
# and the 3.5 GiB "for safer deployment" that aiconfigurator-core 0.12.0 reserves (systems/*.yaml).
RUNTIME_RESERVE_BYTES = 2 * 2**30


@spec
class Throughput:
    """Sustained rate of one replica on one workload type."""

    requests_per_s: float = about("Requests finished per second; 0 when not even one fits.")
    batch: int = about("Requests decoded together.")
    prefill_share: float = about("Share of the time that goes into prefill.")
    sources: Mapping[Source, float] = about("Share of the step model's tabulated times by source.")


def stage_weight_bytes(shape: LlmShape, stages: Sequence[Stage], formats: Formats) -> list[float]:
    """Bytes of weights on each device of each stage; embedding and output projection stay 16 bit.

    Tied embeddings on a pipeline of several stages are held twice.
    """
    layer = shape.layer_parameters * format_bytes(formats.weights.split("_")[0])
    table = 2.0 * shape.vocab * shape.hidden
    last = len(stages) - 1
    held = []
    for i, stage in enumerate(stages):
        tables = (i == 0) + (i == last) if last or not shape.tied_embeddings else 1
        held.append((stage.layers * layer + tables * table) / stage.tensor_parallel)
    return held


def kv_capacity_tokens(shape: LlmShape, stages: Sequence[Stage], *, catalogue: Catalogue, formats: Formats,
                       utilisation: float = 0.9, runtime_reserve_bytes: float = RUNTIME_RESERVE_BYTES) -> int:
    """Tokens whose keys and values fit beside the weights on every stage.

    Negative when the weights alone do not fit (by how many tokens' worth of memory).

    Raises:
        SpecError: stages that do not fit the model or the machine.
    """
    check_stages(shape, stages, catalogue)
    fits = []
    for stage, weights in zip(stages, stage_weight_bytes(shape, stages, formats), strict=True):
        free = catalogue.device(stage.device).memory_bytes * utilisation - weights - runtime_reserve_bytes
        per_token = (2 * stage.layers * shape.kv_heads_per_device(stage.tensor_parallel) * shape.head_dim
                     * format_bytes(formats.kv))
        fits.append(int(free // per_token))
    return min(fits)


def throughput(steps: StepModel, *, input_tokens: int, output_tokens: int, kv_capacity_tokens: int,
               max_sequences: int, token_budget: int, pipeline_stages: int = 1) -> Throughput:
    """Sustained requests per second on requests of ``input_tokens`` and ``output_tokens``.

    Args:
        steps: iteration times of the replica.
        input_tokens: prompt length, at least 1.
        output_tokens: tokens generated, at least 1; the first comes out of the prefill.
        kv_capacity_tokens: as ``kv_capacity_tokens`` gives it.
        max_sequences: requests the engine decodes together at most.
        token_budget: tokens an iteration prefills at most, per pipeline micro-batch.
        pipeline_stages: micro-batches of prefill in flight.

    Raises:
        SpecError: lengths or limits below 1.
    """
    if min(input_tokens, output_tokens, max_sequences, token_budget, pipeline_stages) < 1:
        raise SpecError("input_tokens, output_tokens, max_sequences, token_budget and pipeline_stages are at least 1")
    batch = min(max_sequences, kv_capacity_tokens // (input_tokens + output_tokens))
    if batch < 1:
        return Throughput(requests_per_s=0.0, batch=0, prefill_share=0.0, sources=steps.sources())
    together = min(batch, pipeline_stages * max(1, token_budget // input_tokens))
    prefill = batch * _prefill_ticks(steps, input_tokens, token_budget, together) / together
    decode = ramp_sum(steps.decode(batch), batch * (input_tokens + 1), batch, output_tokens - 1)
    total = prefill + decode
    return Throughput(requests_per_s=batch * TICKS_PER_S / total, batch=batch, prefill_share=prefill / total,
                      sources=steps.sources())


def _prefill_ticks(steps: StepModel, tokens: int, budget: int, together: int) -> int:
    """Ticks to prefill ``together`` prompts of ``tokens`` each, in chunks when one exceeds the budget."""
    return sum(steps.mixed(0, 0, [Chunk(min(budget, tokens - done), done)] * together)
               for done in range(0, tokens, budget))

"""Iteration times of a replica straight from end-to-end measurements, with no kernels in between.

``prompt`` (seconds of an iteration that prefills so many tokens) and ``token`` (seconds of a decode iteration of
so many sequences) are looked up and nothing else is known: contexts do not matter, and an iteration that prefills while
it decodes costs the prefill of all its tokens, as splitwise-sim charges it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from workbench.costs import SOURCES, Cost, CostModel, Source
from workbench.stepcosts import Chunk, Ramp, to_ticks

__all__ = ["EndToEndSteps"]

_REFERENCE_TOKENS = tuple(2**i for i in range(7, 14))
_REFERENCE_BATCHES = tuple(2**i for i in range(7))


class EndToEndSteps:
    """``StepModel`` over the ops ``prompt`` and ``token``.

    Args:
        costs: a cost model with both ops.
        device: device in the catalogue.
        model: model name in the tables.
        tensor_parallel: degree in the tables.

    Raises:
        MissingProfile: this deployment was not measured.
    """

    def __init__(self, costs: CostModel, *, device: str, model: str, tensor_parallel: int) -> None:
        self._costs = costs
        self._keys: dict[str, str | int] = {"device": device, "model": model, "tensor_parallel": tensor_parallel}
        answers = [*map(self._prompt, _REFERENCE_TOKENS), *map(self._token, _REFERENCE_BATCHES)]
        self._known = Counter(answer.source for answer in answers)

    def _prompt(self, tokens: float) -> Cost:
        return self._costs.cost("prompt", tokens=tokens, **self._keys)

    def _token(self, batch: float) -> Cost:
        return self._costs.cost("token", batch=batch, **self._keys)

    def decode(self, sequences: int) -> Ramp:
        """The same for every context; see ``StepModel``."""
        return Ramp((0,), (to_ticks(self._token(sequences).seconds),), (0,))

    def mixed(self, sequences: int, context_tokens: int, chunks: Sequence[Chunk]) -> int:
        """Prefill of all tokens of the iteration; see ``StepModel``."""
        if not chunks:
            return self.decode(sequences)(context_tokens)
        return to_ticks(self._prompt(sequences + sum(c.tokens for c in chunks)).seconds)

    def sources(self) -> Mapping[Source, float]:
        """Shares on a reference grid of prompt lengths and batches."""
        total = self._known.total()
        return {s: self._known[s] / total for s in SOURCES if self._known[s]}

"""Shapes of decoder-only language models, read from Hugging-Face style ``config.json`` facts.

Covers the Llama family and its near relatives (model types ``llama``, ``mistral``, ``qwen2``, ``qwen3``): RMS norms,
rotary embeddings, grouped-query attention, a gated MLP. Parameter counts, KV-cache bytes and the GEMMs of a layer under
tensor parallelism are closed forms of the shape.

Legend: h hidden, H heads, G kv heads, d head dimension, f intermediate, v vocabulary, t tensor-parallel degree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workbench.errors import SpecError, nearest
from workbench.spec import about, spec
from workbench.study import data_folder

__all__ = ["FORMAT_BYTES", "Gemm", "LlmShape", "format_bytes", "known_models", "load_model"]

FORMAT_BYTES: Mapping[str, float] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "fp4": 0.5, "int4": 0.5}
_FORMATS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


class Gemm(NamedTuple):
    """One matrix product of a layer for m tokens: (m, k) x (k, n) on each device of a tensor-parallel group."""

    name: str
    n: int
    k: int


@spec
class LlmShape:
    """Shape of one dense or mixture-of-experts decoder."""

    name: str = about("Model name.")
    layers: int = about("Number of decoder layers.")
    hidden: int = about("Width of the residual stream.")
    heads: int = about("Query heads.")
    kv_heads: int = about("Key/value heads.")
    head_dim: int = about("Width of one head.")
    intermediate: int = about("Width of the gated MLP (of one expert, when there are experts).")
    vocab: int = about("Vocabulary size.")
    number_format: str = about("Number format of the published weights, e.g. bf16.", default="bf16")
    tied_embeddings: bool = about("Whether the output projection is the embedding.", default=False)
    qkv_bias: bool = about("Whether the query, key and value projections have biases.", default=False)
    qk_norm: bool = about("Whether queries and keys are normalised per head.", default=False)
    max_context_tokens: int | None = about("Longest context the model was made for.", default=None)
    experts: int | None = about("Experts a layer; absent for dense models.", default=None)
    experts_per_token: int | None = about("Experts a token visits; absent for dense models.", default=None)

    @classmethod
    def from_hf_config(cls, config: Path | str | Mapping[str, Any], *, name: str | None = None) -> LlmShape:
        """Read a Hugging-Face ``config.json`` (a path or its content).

        Raises:
            SpecError: the file is missing or broken, a field is absent, or the model type is not covered.
        """
        where = "config" if isinstance(config, Mapping) else str(config)
        facts = config if isinstance(config, Mapping) else _read_json(Path(config))
        kind = facts.get("model_type")
        if kind not in _MODEL_TYPES:
            raise SpecError(f"model type {kind!r} is not covered", where=f"{where}: model_type", allowed=_MODEL_TYPES)
        needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
        missing = [key for key in needed if not isinstance(facts.get(key), int)]
        if missing:
            raise SpecError(f"whole numbers are missing: {', '.join(missing)}", where=where)
        heads = facts["num_attention_heads"]
        return cls(
            name=name or str(facts.get("_name_or_path", "model")),
            layers=facts["num_hidden_layers"],
            hidden=facts["hidden_size"],
            heads=heads,
            kv_heads=facts.get("num_key_value_heads") or heads,
            head_dim=facts.get("head_dim") or facts["hidden_size"] // heads,
            intermediate=facts["intermediate_size"],
            vocab=facts["vocab_size"],
            number_format=_FORMATS.get(str(facts.get("torch_dtype", facts.get("dtype", "bfloat16"))), "bf16"),
            tied_embeddings=bool(facts.get("tie_word_embeddings", False)),
            qkv_bias=bool(facts.get("attention_bias", kind == "qwen2")),
            qk_norm=kind == "qwen3",
            max_context_tokens=facts.get("max_position_embeddings"),
            experts=facts.get("num_local_experts"),
            experts_per_token=facts.get("num_experts_per_tok"),
        )

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: h d (2H + 2G) + 3 h f per expert, norms, biases and the router if there is one."""
        h, d = self.hidden, self.head_dim
        attention = h * d * (2 * self.heads + 2 * self.kv_heads)
        biases = d * (self.heads + 2 * self.kv_heads) if self.qkv_bias else 0
        norms = 2 * h + (2 * d if self.qk_norm else 0)
        experts = self.experts or 1
        router = h * experts if self.experts else 0
        return attention + biases + norms + experts * 3 * h * self.intermediate + router

    @property
    def parameters(self) -> int:
        """All parameters: layers, embedding, final norm, and the output projection unless it is tied."""
        tables = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * self.layer_parameters + tables + self.hidden

    def kv_bytes_per_token(self, number_format: str | None = None) -> float:
        """Bytes of keys and values of one token over all layers: 2 layers G d bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * format_bytes(number_format or self.number_format)

    def flops_per_token(self, context_tokens: int = 0) -> float:
        """Operations of one token's forward pass: 2 per weight used, and 4 H d per layer and attended token."""
        active = self.experts_per_token or 1
        mlp = 3 * self.hidden * self.intermediate * active
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        weights = self.layers * (attention + mlp) + self.vocab * self.hidden
        return 2.0 * weights + 4.0 * self.layers * self.heads * self.head_dim * context_tokens

    def check_tensor_parallel(self, degree: int) -> None:
        """``SpecError`` unless ``degree`` divides heads, MLP width and (up or down) the kv heads."""
        even = self.kv_heads % degree == 0 or degree % self.kv_heads == 0
        if degree < 1 or self.heads % degree or self.intermediate % degree or not even:
            allowed = [str(t) for t in range(1, self.heads + 1)
                       if not (self.heads % t or self.intermediate % t)
                       and (self.kv_heads % t == 0 or t % self.kv_heads == 0)]
            raise SpecError(f"{self.name} cannot be split over {degree} devices by tensor parallelism", allowed=allowed)

    def kv_heads_per_device(self, degree: int) -> int:
        """Key/value heads of one device; heads are replicated once there are more devices than heads."""
        return max(1, self.kv_heads // degree)

    def layer_gemms(self, degree: int = 1) -> tuple[Gemm, ...]:
        """The four matrix products of a dense layer on one of ``degree`` devices.

        Raises:
            SpecError: the degree does not divide the shape, or the model has experts.
        """
        if self.experts:
            raise SpecError(f"{self.name} has experts: its layers are more than the four dense matrix products")
        self.check_tensor_parallel(degree)
        d, kv = self.head_dim, self.kv_heads_per_device(degree)
        return (
            Gemm("qkv", (self.heads // degree + 2 * kv) * d, self.hidden),
            Gemm("o", self.hidden, self.heads // degree * d),
            Gemm("gate_up", 2 * self.intermediate // degree, self.hidden),
            Gemm("down", self.hidden, self.intermediate // degree),
        )

    def lm_head(self, degree: int = 1) -> Gemm:
        """The output projection on one of ``degree`` devices (vocabulary split, rounded up)."""
        return Gemm("lm_head", -(-self.vocab // degree), self.hidden)


def format_bytes(number_format: str) -> float:
    """Bytes of one number; ``SpecError`` names the nearest known format."""
    if number_format in FORMAT_BYTES:
        return FORMAT_BYTES[number_format]
    close = nearest(number_format, FORMAT_BYTES)
    raise SpecError(f"unknown number format {number_format!r}", allowed=FORMAT_BYTES,
                    hint=f"did you mean {close!r}?" if close else None)


def known_models() -> list[str]:
    """Names of the models shipped in ``traces/models``."""
    return sorted(p.stem for p in data_folder("models").glob("*.json"))


def load_model(name: str | Path) -> LlmShape:
    """A shipped model by name (case ignored), or any ``config.json`` by path.

    Raises:
        SpecError: there is neither; names the nearest.
    """
    known = {n.casefold(): n for n in known_models()}
    stem = known.get(str(name).casefold())
    if stem is not None:
        return LlmShape.from_hf_config(data_folder("models") / f"{stem}.json", name=stem)
    if Path(name).is_file():
        return LlmShape.from_hf_config(name)
    close = nearest(str(name), known.values())
    raise SpecError(f"no model is called {name}", allowed=[*known.values(), "the path of a config.json"],
                    hint=f"did you mean {close!r}?" if close else None)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"no such file: {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"not valid JSON: {error}", where=str(path)) from None
    if not isinstance(facts, dict):
        raise SpecError("a config is a JSON object", where=str(path))
    return facts

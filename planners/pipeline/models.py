"""Operator graphs of the paper's model families (arXiv 2406.17145, appendix A.2), every size a parameter.

multi-modal: 4 branches of 8 transformer layers, sequence 256, embedding 1024, 16 heads, feed-forward 4096, joined by a
concatenation. dlrm: 7 dense branches of 4 feed-forward layers of width 4096 and 7 sparse ones (1M rows of 64, bags of
100 concatenated), joined, then feed-forward layers. candle-uno: 7 branches of 4 feed-forward layers of width 4096,
joined, then a dense tail. transformer: the 32 layers of multi-modal in one chain.
Deviations: feed-forward towers take inputs of their own width; the tails' length is ours (the text gives none).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise

from planners.pipeline.problem import Edge, Family, Kernel, Layer, Model, Operator

__all__ = ["generate"]

FLOAT_BYTES = 4
Graph = tuple[list[Operator], list[Edge]]


def generate(model: Model) -> Graph:
    """Operators and edges of a family."""
    return _FAMILIES[model.family](model)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _multi_modal(m: Model) -> Graph:
    branches, layers = _or(m.branches, 4), _or(m.layers, 8)
    return _towers(m, branches, layers, join=True)


def _transformer(m: Model) -> Graph:
    return _towers(m, 1, _or(m.layers, 32), join=False)


def _towers(m: Model, branches: int, layers: int, *, join: bool) -> Graph:
    width, tokens, heads = _or(m.width, 1024), _or(m.tokens, 256), _or(m.heads, 16)
    operators, edges, ends = [], [], []
    for branch in range(branches):
        before = None
        for layer in range(layers):
            name = f"branch{branch}.layer{layer}" if join else f"layer{layer}"
            operators.append(_encoder(name, width=width, tokens=tokens, heads=heads, own_data=before is None))
            if before is not None:
                edges.append(Edge(producer=before, consumer=name))
            before = name
        ends.append(before)
    if join:
        operators.append(_concat("concat", width=branches * width, tokens=tokens))
        edges += [Edge(producer=end, consumer="concat") for end in ends if end is not None]
    return operators, edges


def _encoder(name: str, *, width: int, tokens: int, heads: int, own_data: bool) -> Operator:
    """A transformer encoder layer: projections, scores, context, two feed-forward products, normalisations."""
    hidden, row = 4 * width, float(tokens * width * FLOAT_BYTES)
    weights = 4 * width * width + 2 * width * hidden + hidden + 9 * width
    # q, k, v, context, attention output, two normalised inputs (width each), hidden twice, scores and their softmax.
    saved = 7 * row + 2 * tokens * hidden * FLOAT_BYTES + 2 * heads * tokens * tokens * FLOAT_BYTES
    layer = Layer(kind="transformer", width=width, tokens=tokens, heads=heads, hidden=hidden,
                  inputs=width if own_data else 0)
    return Operator(name=name, kernels=_encoder_kernels(width, tokens, heads),
                    weight_bytes=weights * FLOAT_BYTES, saved_bytes_per_sample=saved,
                    output_bytes_per_sample=row, layer=layer)


@lru_cache(maxsize=64)
def _encoder_kernels(width: int, tokens: int, heads: int) -> tuple[Kernel, ...]:
    hidden, head = 4 * width, max(1, width // heads)
    return (Kernel(op="gemm", rows=tokens, columns=width, inner=width, count=4),
            Kernel(op="gemm", rows=heads * tokens, columns=tokens, inner=head),
            Kernel(op="gemm", rows=heads * tokens, columns=head, inner=tokens),
            Kernel(op="gemm", rows=tokens, columns=hidden, inner=width),
            Kernel(op="gemm", rows=tokens, columns=width, inner=hidden),
            Kernel(op="elementwise", bytes=8.0 * tokens * width * FLOAT_BYTES))


def _concat(name: str, *, width: int, tokens: int = 1) -> Operator:
    size = float(width * tokens * FLOAT_BYTES)
    return Operator(name=name, kernels=(Kernel(op="elementwise", bytes=2 * size),), output_bytes_per_sample=size,
                    layer=Layer(kind="concat", width=width, tokens=tokens))


def _dense(name: str, *, inner: int, width: int, own_data: int = 0) -> Operator:
    row = float(width * FLOAT_BYTES)
    return Operator(name=name, kernels=_dense_kernels(inner, width),
                    weight_bytes=float((inner + 1) * width * FLOAT_BYTES),
                    saved_bytes_per_sample=row + own_data * FLOAT_BYTES, output_bytes_per_sample=row,
                    layer=Layer(kind="dense", inputs=own_data, width=width))


@lru_cache(maxsize=64)
def _dense_kernels(inner: int, width: int) -> tuple[Kernel, ...]:
    return (Kernel(op="gemm", rows=1, columns=width, inner=inner),
            Kernel(op="elementwise", bytes=2.0 * width * FLOAT_BYTES))


def _tower(prefix: str, layers: int, width: int) -> Graph:
    names = [f"{prefix}.ff{k}" for k in range(layers)]
    operators = [_dense(name, inner=width, width=width, own_data=0 if k else width) for k, name in enumerate(names)]
    return operators, [Edge(producer=a, consumer=b) for a, b in pairwise(names)]


def _joined(parts: list[Graph], widths: list[int], *, tail: int, width: int) -> Graph:
    """Branches, a concatenation, and a dense tail."""
    operators = [o for ops, _ in parts for o in ops]
    edges = [e for _, es in parts for e in es]
    edges += [Edge(producer=ops[-1].name, consumer="concat") for ops, _ in parts]
    operators.append(_concat("concat", width=sum(widths)))
    before, inner = "concat", sum(widths)
    for k in range(tail):
        operators.append(_dense(f"tail.ff{k}", inner=inner, width=width))
        edges.append(Edge(producer=before, consumer=f"tail.ff{k}"))
        before, inner = f"tail.ff{k}", width
    return operators, edges


def _candle_uno(m: Model) -> Graph:
    branches, width = _or(m.branches, 7), _or(m.width, 4096)
    towers = [_tower(f"branch{k}", _or(m.layers, 4), width) for k in range(branches)]
    return _joined(towers, [width] * branches, tail=_or(m.tail, 4), width=width)


def _dlrm(m: Model) -> Graph:
    branches, width, layers = _or(m.branches, 7), _or(m.width, 4096), _or(m.layers, 4)
    rows, bag, dim = _or(m.rows, 1_000_000), _or(m.bag, 100), _or(m.dim, 64)
    dense = [_tower(f"dense{k}", layers, width) for k in range(branches)]
    size = float(bag * dim * FLOAT_BYTES)
    sparse: list[Graph] = [([Operator(
        name=f"sparse{k}", kernels=(Kernel(op="elementwise", bytes=2 * size),),
        weight_bytes=float(rows * dim * FLOAT_BYTES), saved_bytes_per_sample=8.0 * bag,
        output_bytes_per_sample=size, layer=Layer(kind="embedding", width=bag * dim, rows=rows, bag=bag))], [])
        for k in range(branches)]
    return _joined(dense + sparse, [width] * branches + [bag * dim] * branches, tail=_or(m.tail, 4), width=width)


_FAMILIES: Mapping[Family, Callable[[Model], Graph]] = {
    "multi-modal": _multi_modal, "dlrm": _dlrm, "candle-uno": _candle_uno, "transformer": _transformer}

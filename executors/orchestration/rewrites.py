"""Rewrites: other primitives that make the same tensor, added to a graph as alternative producers.

Paper: Korch, arXiv 2406.09465, section 4.1 (substitutions; figure 2b). A rule looks at one primitive and drafts
alternatives for its output. Nothing is replaced: the binary program chooses among all producers. Every alternative is
held against the primitives it stands for in double precision, on ordinary and on large numbers, and refused where it
deviates. ``DEFAULT`` are the rules that keep results within rounding; names that start with ``unsafe-`` do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from executors.orchestration.capture_passes import shortest
from executors.orchestration.evaluate import call, constant, read
from planners.orchestration.graph import GraphIndex, Kind, Operand, Primitive, PrimitiveGraph, Tensor
from planners.orchestration.views import View
from workbench.errors import SpecError
from workbench.spec import canonical_json, dump

__all__ = ["DEFAULT", "RULES", "Draft", "Site", "with_alternatives"]

_TOLERANCE = 1e-9
_SCALES = (1.0, 100.0)
_UNARY = frozenset(f"aten.{name}.default" for name in (
    "relu", "silu", "gelu", "mish", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "sigmoid", "tanh", "exp",
    "elu", "neg", "abs", "sqrt", "rsqrt"))
_MOVES = frozenset({"aten.reflection_pad2d.default", "aten.replication_pad2d.default", "aten.constant_pad_nd.default",
                    "aten.upsample_nearest2d.default", "aten.upsample_nearest2d.vec", "aten.clone.default"})
_PLAIN = frozenset({"aten.view.default", "aten.permute.default"})


class Site:
    """A graph while alternatives are drafted for it: the captured program's own producers and readers."""

    def __init__(self, graph: PrimitiveGraph, weights: Mapping[str, torch.Tensor]) -> None:
        self.graph, self.weights = graph, weights
        self.index = GraphIndex(graph)
        own = [p for p in graph.primitives if p.rewrite is None]
        self.made: dict[str, Primitive] = {p.output: p for p in own}
        self.readers: dict[str, list[Primitive]] = {}
        for p in own:
            for name in dict.fromkeys(o.tensor for o in p.inputs):
                self.readers.setdefault(name, []).append(p)

    def shape(self, operand: Operand) -> tuple[int, ...]:
        """Shape that a reader sees."""
        return tuple(self.index.layout(operand).shape)

    def maker(self, operand: Operand, *ops: str) -> Primitive | None:
        """What makes an operand that is read as it is stored, if it calls one of ``ops``."""
        found = self.made.get(operand.tensor)
        return found if found is not None and not operand.views and found.op in ops else None


class Draft:
    """An alternative: tensors, constants, weights and primitives that lead to ``target``."""

    def __init__(self, site: Site, target: Primitive, rule: str) -> None:
        self.site, self.target, self.rule = site, target, rule
        self.tensors: list[Tensor] = []
        self.primitives: list[Primitive] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.dtype = site.index.tensors[target.output].dtype

    def add(self, op: str, kind: Kind, inputs: Sequence[Operand], shape: Sequence[int], *,
            arguments: tuple[Any, ...] | None = None, attributes: Mapping[str, Any] | None = None) -> Operand:
        """A primitive that makes a tensor of its own."""
        name = f"{self.target.output}.{self.rule}.{len(self.primitives)}"
        self.tensors.append(Tensor(name=name, shape=tuple(shape), dtype=self.dtype))
        self._primitive(name, op, kind, inputs, arguments, attributes or {}, name)
        return Operand(tensor=name)

    def end(self, op: str, kind: Kind, inputs: Sequence[Operand], *, arguments: tuple[Any, ...] | None = None,
            attributes: Mapping[str, Any] | None = None) -> Draft:
        """The primitive that makes the target."""
        name = f"{self.target.output}.{self.rule}.{len(self.primitives)}"
        self._primitive(name, op, kind, inputs, arguments, attributes or {}, self.target.output)
        return self

    def like(self, p: Primitive, inputs: Sequence[Operand], shape: Sequence[int] | None = None) -> Operand:
        """The call of ``p`` on other operands: a tensor of its own, or with no ``shape`` the target."""
        if shape is None:
            self.end(p.op, p.kind, inputs, arguments=p.arguments, attributes=p.attributes)
            return Operand(tensor=self.target.output)
        return self.add(p.op, p.kind, inputs, shape, arguments=p.arguments, attributes=p.attributes)

    def filled(self, shape: Sequence[int], value: float) -> Operand:
        """A constant; equal ones are shared."""
        name = f"fill.{value}.{'x'.join(map(str, shape))}.{self.dtype}"
        self.tensors.append(Tensor(name=name, shape=tuple(shape), dtype=self.dtype, role="constant", fill=value))
        return Operand(tensor=name)

    def weight(self, name: str, value: torch.Tensor) -> Operand:
        """A weight computed once."""
        self.tensors.append(Tensor(name=name, shape=tuple(value.shape), dtype=self.dtype, role="weight"))
        self.weights[name] = value.contiguous()
        return Operand(tensor=name)

    def _primitive(self, name: str, op: str, kind: Kind, inputs: Sequence[Operand], arguments: tuple[Any, ...] | None,
                   attributes: Mapping[str, Any], output: str) -> None:
        self.primitives.append(Primitive(name=name, op=op, kind=kind, inputs=tuple(inputs), output=output,
                                         arguments=arguments, attributes=attributes, rewrite=self.rule))


Found = Iterator[tuple[tuple[Primitive, ...], Draft]]
Rule = Callable[[Site, Primitive, str], Found]


def _views(operand: Operand, *more: View) -> Operand:
    return Operand(tensor=operand.tensor, views=(*operand.views, *more))


def _slice(operand: Operand, dim: int, start: int, end: int) -> Operand:
    return _views(operand, View(op="aten.slice.Tensor", arguments=(dim, start, end)))


def _row_sum(site: Site, operand: Operand) -> Primitive | None:
    """The sum over the last dimension that makes ``operand``, dimension kept."""
    p = site.maker(operand, "aten.sum.dim_IntList")
    if p is None or p.arguments is None or len(p.arguments) != 3 or p.arguments[2] is not True or p.attributes:
        return None
    rank = len(site.shape(p.inputs[0]))
    return p if [d % rank for d in p.arguments[1]] == [rank - 1] else None


def sum_as_product(site: Site, p: Primitive, rule: str) -> Found:
    """sum over the last dimension -> product with a column of ones."""
    if _row_sum(site, Operand(tensor=p.output)) is not p:
        return
    shape = site.shape(p.inputs[0])
    if len(shape) not in (2, 3) or site.index.tensors[p.output].dtype not in ("float32", "float64"):
        return
    draft = Draft(site, p, rule)
    ones = draft.filled((shape[-1], 1), 1.0)
    if len(shape) == 3:
        ones = _views(ones, View(op="aten.expand.default", arguments=((shape[0], shape[-1], 1),)))
    yield (p,), draft.end("aten.bmm.default" if len(shape) == 3 else "aten.mm.default", "linear",
                          [p.inputs[0], ones])


def divide_after_product(site: Site, p: Primitive, rule: str) -> Found:
    """(a / s) b with one s a row -> (a b) / s."""
    if p.op not in ("aten.bmm.default", "aten.mm.default"):
        return
    d = site.maker(p.inputs[0], "aten.div.Tensor", "aten.mul.Tensor")
    if d is None or d.arguments is not None or d.attributes or site.readers[d.output] != [p]:
        return
    a, s = d.inputs
    if site.shape(s) != (*site.shape(a)[:-1], 1) or site.shape(a)[-1] == 1:
        return
    draft = Draft(site, p, rule)
    product = draft.like(p, [a, p.inputs[1]], site.index.tensors[p.output].shape)
    yield (d, p), draft.end(d.op, "elementwise", [product, s])


def scale_before_product(site: Site, p: Primitive, rule: str) -> Found:
    """(a b) c with a number c -> (a c) b, where a is smaller than the product."""
    if p.op not in ("aten.mul.Scalar", "aten.div.Scalar") or p.attributes:
        return
    m = site.maker(p.inputs[0], "aten.bmm.default", "aten.mm.default")
    if m is None or site.readers[m.output] != [p]:
        return
    a = site.shape(m.inputs[0])
    out = site.index.tensors[m.output].shape
    if a[-1] >= out[-1]:
        return
    draft = Draft(site, p, rule)
    scaled = draft.like(p, [m.inputs[0]], a)
    draft.like(m, [scaled, m.inputs[1]])
    yield (m, p), draft


def padded_product(site: Site, p: Primitive, rule: str) -> Found:
    """(e / sum e) v -> numerator and denominator from one product of e with v and a column of ones (figure 2b)."""
    if p.op not in ("aten.bmm.default", "aten.mm.default"):
        return
    d = site.maker(p.inputs[0], "aten.div.Tensor")
    if d is None or d.arguments is not None or d.attributes or site.readers[d.output] != [p]:
        return
    e, total = d.inputs
    s = _row_sum(site, total)
    if s is None or s.inputs[0] != e:
        return
    v = site.shape(p.inputs[1])
    rank, width = len(v), v[-1]
    draft = Draft(site, p, rule)
    padded = draft.add("aten.constant_pad_nd.default", "layout", [p.inputs[1]], (*v[:-1], width + 1),
                       arguments=({"input": 0}, [0, 1], 1.0))
    both = draft.like(p, [e, padded], (*site.index.tensors[p.output].shape[:-1], width + 1))
    yield (s, d, p), draft.end("aten.div.Tensor", "elementwise", [_slice(both, rank - 1, 0, width),
                                                                 _slice(both, rank - 1, width, width + 1)])


def merged_products(site: Site, p: Primitive, rule: str) -> Found:
    """Products that share an operand -> one product with the other operands side by side, and its parts."""
    if p.op not in ("aten.bmm.default", "aten.mm.default"):
        return
    rank = len(site.index.tensors[p.output].shape)
    for shared in (0, 1):
        group = [q for q in site.readers.get(p.inputs[shared].tensor, []) if q.op == p.op
                 and q.inputs[shared] == p.inputs[shared] and q.inputs[0].tensor != q.inputs[1].tensor]
        if len(group) < 2 or len(group) > 4 or group[0] is not p:
            continue
        others = [q.inputs[1 - shared] for q in group]
        if any(_depends(site, o.tensor, {q.output for q in group}) for o in others):
            continue
        dim = rank - 1 if shared == 0 else rank - 2
        sizes = [site.shape(o)[dim] for o in others]
        shape = list(site.shape(others[0]))
        shape[dim] = sum(sizes)
        out = list(site.index.tensors[p.output].shape)
        out[dim] = sum(sizes)
        first = Draft(site, p, rule)
        values = [site.weights.get(o.tensor) for o in others]
        if all(v is not None for v in values):
            held = [read(o, site.weights) for o in others]
            joined = first.weight(f"{p.output}.{rule}.weight", torch.cat(held, dim))
        elif any(v is not None for v in values):
            continue
        else:
            joined = first.add("aten.cat.default", "layout", others, shape,
                               arguments=([{"input": i} for i in range(len(others))], dim))
        operands = [p.inputs[0], joined] if shared == 0 else [joined, p.inputs[1]]
        whole = first.like(p, operands, out)
        start = 0
        for q, size in zip(group, sizes, strict=True):
            draft = first if q is p else Draft(site, q, rule)
            if q is not p:
                draft.tensors, draft.weights = list(first.tensors), first.weights
                draft.primitives = first.primitives[:-1]
            draft.end("aten.clone.default", "layout", [_slice(whole, dim, start, start + size)],
                      attributes={"memory_format": {"memory_format": "contiguous_format"}})
            start += size
            yield (q,), draft
        return


def _depends(site: Site, name: str, on: Collection[str]) -> bool:
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        if current in on:
            return True
        if current in site.made and current not in seen:
            seen.add(current)
            waiting += [o.tensor for o in site.made[current].inputs]
    return False


def unary_and_move(site: Site, p: Primitive, rule: str) -> Found:
    """f(move x) <-> move f(x) for a unary f and a padding, enlargement or copy."""
    if len(p.inputs) != 1 or p.inputs[0].views:
        return
    q = site.made.get(p.inputs[0].tensor)
    if q is None or len(q.inputs) != 1 or site.readers[q.output] != [p] or not (
            (p.op in _UNARY and q.op in _MOVES) or (p.op in _MOVES and q.op in _UNARY)):
        return
    draft = Draft(site, p, rule)
    between = site.index.tensors[p.output].shape if p.op in _MOVES else site.shape(q.inputs[0])
    middle = draft.like(p, q.inputs, between)
    draft.like(q, [middle])
    yield (q, p), draft


def unary_before_view(site: Site, p: Primitive, rule: str) -> Found:
    """A primitive that reads f(x seen in another order) -> the same that reads f(x) in that order."""
    for i, operand in enumerate(p.inputs):
        q = site.made.get(operand.tensor)
        if q is None or q.op not in _UNARY or len(q.inputs) != 1 or site.readers[q.output] != [p]:
            continue
        source = q.inputs[0]
        stored = site.index.tensors[source.tensor]
        if not any(v.op == "aten.permute.default" for v in source.views) or stored.free \
                or any(v.op not in _PLAIN for v in source.views) \
                or sum(o.tensor == operand.tensor for o in p.inputs) != 1:
            continue
        try:
            views = shortest(stored.layout, (*source.views, *operand.views))
        except SpecError:
            continue
        draft = Draft(site, p, rule)
        early = draft.like(q, [Operand(tensor=source.tensor)], stored.shape)
        draft.like(p, [*p.inputs[:i], Operand(tensor=early.tensor, views=views), *p.inputs[i + 1:]])
        yield (q, p), draft


def part_of_concat(site: Site, p: Primitive, rule: str) -> Found:
    """A primitive that reads a slice of a concatenation inside one part -> the same that reads the part."""
    for i, operand in enumerate(p.inputs):
        q = site.made.get(operand.tensor)
        if q is None or q.op != "aten.cat.default" or not operand.views or operand.views[0].op != "aten.slice.Tensor":
            continue
        shape = site.index.tensors[q.output].shape
        dim = (int(q.arguments[1]) if q.arguments is not None and len(q.arguments) > 1 else 0) % len(shape)
        cut: list[Any] = [*operand.views[0].arguments, *[0, None, None, 1][len(operand.views[0].arguments):]]
        if cut[0] % len(shape) != dim or cut[3] != 1:
            continue
        first, last, _ = slice(cut[1], cut[2]).indices(shape[dim])
        at = 0
        for part in q.inputs:
            size = site.shape(part)[dim]
            if at <= first and last <= at + size:
                draft = Draft(site, p, rule)
                chain = (*part.views, View(op="aten.slice.Tensor", arguments=(dim, first - at, last - at)),
                         *operand.views[1:])
                try:
                    views = shortest(site.index.tensors[part.tensor].layout, chain)
                except SpecError:
                    break
                draft.like(p, [*p.inputs[:i], Operand(tensor=part.tensor, views=views), *p.inputs[i + 1:]])
                yield (q, p), draft
            at += size


def fused_bias(site: Site, p: Primitive, rule: str) -> Found:
    """Matrix product or convolution, then a bias -> the call that takes the bias along."""
    if p.op != "aten.add.Tensor" or p.arguments is not None or p.attributes or len(p.inputs) != 2:
        return
    m = site.maker(p.inputs[0], "aten.mm.default", "aten.convolution.default")
    bias = p.inputs[1]
    if m is None or len(m.inputs) != 2 or site.readers[m.output] != [p] \
            or site.index.tensors[bias.tensor].role != "weight":
        return
    stored, out = site.index.tensors[bias.tensor].shape, site.index.tensors[p.output].shape
    draft = Draft(site, p, rule)
    if m.op == "aten.mm.default" and stored == (out[1],) and not bias.views:
        yield (m, p), draft.end("aten.addmm.default", "linear", [bias, *m.inputs])
    elif m.op == "aten.convolution.default" and stored == (out[1],) and m.arguments is not None and site.shape(
            bias) in ((out[1], *(1,) * (len(out) - 2)), (1, out[1], *(1,) * (len(out) - 2))):
        arguments = (*m.arguments[:2], {"input": 2}, *m.arguments[3:])
        yield (m, p), draft.end(m.op, "linear", [*m.inputs, Operand(tensor=bias.tensor)], arguments=arguments)


def mish_by_one_exponential(site: Site, p: Primitive, rule: str) -> Found:
    """x tanh(log(1 + e^x)) -> x - 2 x / ((1 + e^x)^2 + 1): one transcendental function in place of three."""
    if p.op != "aten.mish.default":
        return
    shape = site.index.tensors[p.output].shape
    draft = Draft(site, p, rule)
    e = draft.add("aten.exp.default", "elementwise", p.inputs, shape)
    more = draft.add("aten.add.Scalar", "elementwise", [e], shape, arguments=({"input": 0}, 1.0))
    below = draft.add("aten.addcmul.default", "elementwise",
                      [_views(draft.filled((1,), 1.0), View(op="aten.expand.default", arguments=(shape,))),
                       more, more], shape)
    x = p.inputs[0]
    yield (p,), draft.end("aten.addcdiv.default", "elementwise", [x, x, below], attributes={"value": -2.0})


def unsafe_softmax(site: Site, p: Primitive, rule: str) -> Found:
    """exp(x - max x) / sum -> exp(x) / sum exp(x): overflows in single precision for x above 88."""
    e = site.maker(p.inputs[0], "aten.exp.default") if p.op == "aten.div.Tensor" and len(p.inputs) == 2 else None
    s = site.maker(p.inputs[1], "aten.sum.dim_IntList") if e is not None else None
    if e is None or s is None or s.inputs[0] != p.inputs[0]:
        return
    b = site.maker(e.inputs[0], "aten.sub.Tensor")
    m = site.maker(b.inputs[1], "aten.amax.default") if b is not None and len(b.inputs) == 2 else None
    if b is None or m is None or m.inputs[0] != b.inputs[0] or m.arguments != s.arguments:
        return
    draft = Draft(site, p, rule)
    raised = draft.add("aten.exp.default", "elementwise", [b.inputs[0]], site.index.tensors[e.output].shape)
    total = draft.like(s, [raised], site.index.tensors[s.output].shape)
    yield (m, b, e, s, p), draft.end("aten.div.Tensor", "elementwise", [raised, total])


RULES: Mapping[str, Rule] = {
    "padded-product": padded_product, "divide-after-product": divide_after_product,
    "scale-before-product": scale_before_product, "sum-as-product": sum_as_product,
    "merged-products": merged_products, "unary-before-view": unary_before_view, "unary-and-move": unary_and_move,
    "part-of-concat": part_of_concat, "fused-bias": fused_bias, "mish-by-one-exponential": mish_by_one_exponential,
    "unsafe-softmax": unsafe_softmax}
"""Rules by name; an alternative carries its rule's."""

DEFAULT = tuple(name for name in RULES if not name.startswith("unsafe-"))
"""Rules that are applied unless others are asked for."""


def with_alternatives(graph: PrimitiveGraph, weights: Mapping[str, torch.Tensor], rules: Collection[str] = DEFAULT, *,
                      most: int = 1000) -> tuple[PrimitiveGraph, dict[str, torch.Tensor]]:
    """The graph with the alternatives that ``rules`` find and that compute the same, and all weights.

    Args:
        graph: the captured program.
        weights: values by tensor name.
        rules: names of rules.
        most: most primitives added.
    """
    site = Site(graph, weights)
    tensors = {t.name: t for t in graph.tensors}
    added: dict[str, Primitive] = {}
    held = dict(weights)
    proven: dict[str, bool] = {}
    for name in RULES:
        if name not in rules:
            continue
        for p in [p for p in graph.primitives if p.rewrite is None]:
            for pattern, draft in RULES[name](site, p, name):
                fresh = {q.name: q for q in draft.primitives}
                if len(added) + len(fresh) > most or not _holds(site, pattern, draft, proven):
                    continue
                added |= {k: q for k, q in fresh.items() if k not in added}
                tensors |= {t.name: t for t in draft.tensors}
                held |= draft.weights
    found = dataclasses.replace(graph, tensors=tuple(tensors.values()),
                                primitives=(*graph.primitives, *added.values()))
    return found, held


def _holds(site: Site, pattern: Sequence[Primitive], draft: Draft, proven: dict[str, bool]) -> bool:
    """Whether an alternative computes what the pattern does; drafts of one structure are computed once."""
    key = _key(site, pattern, draft)
    if key not in proven:
        scales = _SCALES[:1] if draft.rule.startswith("unsafe-") else _SCALES
        proven[key] = all(_agrees(site, pattern, draft, scale) for scale in scales)
    return proven[key]


def _key(site: Site, pattern: Sequence[Primitive], draft: Draft) -> str:
    number: dict[str, int] = {}
    shapes = {**site.index.tensors, **{t.name: t for t in draft.tensors}}
    rows: list[Any] = []
    for p in (*pattern, *draft.primitives):
        names = [o.tensor for o in p.inputs] + [p.output]
        row = dump(p)
        rows.append([row["op"], row["arguments"], row["attributes"], [o["views"] for o in row["inputs"]],
                     [(number.setdefault(n, len(number)), shapes[n].shape, shapes[n].role) for n in names]])
    return canonical_json([draft.rule, draft.dtype, len(pattern), rows])


def _agrees(site: Site, pattern: Sequence[Primitive], draft: Draft, scale: float) -> bool:
    """Both ways in double precision on random operands; images before a convolution are cut to a few windows."""
    generator = torch.Generator().manual_seed(0)
    tensors = {**site.index.tensors, **{t.name: t for t in draft.tensors}}
    made = {p.output for p in (*pattern, *draft.primitives)}
    values: dict[str, torch.Tensor] = {}
    small = {p.inputs[0].tensor: site.shape(p.inputs[1])[2:] for p in pattern if p.op == "aten.convolution.default"}
    for name in dict.fromkeys(o.tensor for p in (*pattern, *draft.primitives) for o in p.inputs):
        if name in made:
            continue
        tensor = tensors[name]
        if tensor.role == "constant":
            values[name] = constant(tensor, dtype=torch.float64)
            continue
        if not tensor.dtype.startswith("float"):
            return False
        if name in draft.weights:
            values[name] = draft.weights[name].double()
            continue
        shape = list(tensor.shape)
        if name in small and not any(o.views for p in pattern for o in p.inputs if o.tensor == name):
            shape[2:] = [min(n, 4 * k) for n, k in zip(shape[2:], small[name], strict=True)]
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        values[name] = site.weights[name].double() if draft.weights and name in site.weights else drawn
    expected, found = dict(values), dict(values)
    try:
        for p in pattern:
            expected[p.output] = call(p, expected, dtype=torch.float64)
        found |= {name: value for name, value in expected.items() if name != draft.target.output}
        for p in draft.primitives:
            found[p.output] = call(p, found, dtype=torch.float64)
    except RuntimeError:
        return False
    right, got = expected[draft.target.output], found[draft.target.output]
    if right.shape != got.shape or not torch.equal(right.isfinite(), got.isfinite()):
        return False
    limit = _TOLERANCE * max(1.0, float(right[right.isfinite()].abs().max()) if right.isfinite().any() else 1.0)
    return bool((right - got)[right.isfinite()].abs().max() <= limit) if right.isfinite().any() else False

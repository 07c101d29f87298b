"""Captured graphs put into one form, so that equal programs are equal graphs.

In order: views in the shortest chain that says the same; scale and shift of channels behind a convolution (a batch
norm) folded into its weights; elementwise steps and reductions in the shape in which their operand is stored, so that
no reshape stands between them; equal primitives once; nothing that leads to no output.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from planners.orchestration.graph import Operand, Primitive, PrimitiveGraph, Tensor
from planners.orchestration.views import Layout, View, viewed
from workbench.errors import SpecError
from workbench.spec import canonical_json, dump

__all__ = ["same_layout", "shortest", "tidied", "with_provenance"]

_KEEPING = ("aten.sum.dim_IntList", "aten.mean.dim", "aten.amax.default", "aten.amin.default")


def tidied(graph: PrimitiveGraph, weights: Mapping[str, torch.Tensor]
           ) -> tuple[PrimitiveGraph, dict[str, torch.Tensor]]:
    """The graph in the form described above, and the values of its weights."""
    work = _Work(graph, weights)
    work.shorten()
    work.fold_scales()
    work.flatten()
    work.merge()
    work.sweep()
    return work.graph(graph), {t.name: work.weights[t.name] for t in work.tensors.values() if t.role == "weight"}


def with_provenance(graph: PrimitiveGraph, provenance: Mapping[str, str]) -> PrimitiveGraph:
    """The graph with what is known about where it comes from."""
    return dataclasses.replace(graph, provenance=dict(provenance))


def same_layout(first: Layout, second: Layout) -> bool:
    """Whether two layouts say the same: strides of dimensions of one element do not matter."""
    return first.shape == second.shape and first.offset == second.offset and all(
        a == b for n, a, b in zip(first.shape, first.strides, second.strides, strict=True) if n != 1)


def shortest(stored: Layout, views: Sequence[View]) -> tuple[View, ...]:
    """A chain of views with the same layout: none, a reshape, a permutation, both, or ``views`` without idle ones."""
    seen = viewed(stored, views)
    if same_layout(seen, stored):
        return ()
    if seen.offset == 0 and seen.elements == stored.elements:
        for chain in _reordered(stored, seen):
            try:
                if same_layout(viewed(stored, chain), seen):
                    return chain
            except SpecError:
                continue
    kept: list[View] = []
    layout = stored
    for view in views:
        after = viewed(layout, (view,))
        if not same_layout(after, layout):
            kept.append(view)
        layout = after
    return tuple(kept)


def _reordered(stored: Layout, seen: Layout) -> list[tuple[View, ...]]:
    """Reshape and permutation by which the dimensions lie in memory as ``seen`` has them."""
    many = [d for d, n in enumerate(seen.shape) if n != 1]
    ordered = sorted(many, key=lambda d: -seen.strides[d])
    place = dict(zip(ordered, many, strict=True)) | {d: d for d, n in enumerate(seen.shape) if n == 1}
    shape = [1] * len(seen.shape)
    for d, at in place.items():
        shape[at] = seen.shape[d]
    reshape = View(op="aten.view.default", arguments=(tuple(shape),))
    permute = View(op="aten.permute.default", arguments=(tuple(place[d] for d in range(len(seen.shape))),))
    moved = any(place[d] != d for d in place)
    if tuple(shape) == tuple(stored.shape):
        return [(permute,)]
    return [(reshape, permute) if moved else (reshape,)]


class _Work:
    """A graph being changed."""

    def __init__(self, graph: PrimitiveGraph, weights: Mapping[str, torch.Tensor]) -> None:
        self.tensors: dict[str, Tensor] = {t.name: t for t in graph.tensors}
        self.primitives = list(graph.primitives)
        self.outputs = graph.outputs
        self.weights = dict(weights)

    def graph(self, original: PrimitiveGraph) -> PrimitiveGraph:
        return dataclasses.replace(original, tensors=tuple(self.tensors.values()), primitives=tuple(self.primitives),
                                   outputs=self.outputs)

    def short(self, operand: Operand) -> Operand:
        return Operand(tensor=operand.tensor, views=shortest(self.tensors[operand.tensor].layout, operand.views))

    def seen(self, operand: Operand) -> Layout:
        return viewed(self.tensors[operand.tensor].layout, operand.views)

    def shorten(self) -> None:
        self.primitives = [dataclasses.replace(p, inputs=tuple(map(self.short, p.inputs))) for p in self.primitives]
        self.outputs = tuple(map(self.short, self.outputs))

    def readers(self) -> Counter[str]:
        """How many operands read each tensor."""
        found = Counter(o.tensor for p in self.primitives for o in p.inputs)
        found.update(o.tensor for o in self.outputs)
        return found

    def fold_scales(self) -> None:
        readers = self.readers()
        reader = {o.tensor: i for i, p in enumerate(self.primitives) for o in p.inputs}
        gone: set[int] = set()
        for at, p in enumerate(self.primitives):
            if p.op != "aten.convolution.default" or len(p.inputs) != 2 or p.arguments is None or p.arguments[6]:
                continue
            weight = p.inputs[1]
            if weight.tensor not in self.weights or weight.views:
                continue
            chain, scale, shift = self._affine(p, readers, reader)
            if scale is None:
                continue
            last = self.primitives[chain[-1]]
            value = self.weights[weight.tensor]
            folded = (value.double() * scale.reshape(-1, *(1,) * (value.dim() - 1))).to(value.dtype)
            held = self._keep(f"{p.name}_weight", folded)
            if shift is None:
                self.primitives[at] = dataclasses.replace(
                    p, inputs=(p.inputs[0], Operand(tensor=held)), output=last.output)
            else:
                self.primitives[at] = dataclasses.replace(p, inputs=(p.inputs[0], Operand(tensor=held)))
                added = self._keep(f"{p.name}_shift", shift.to(value.dtype).reshape(-1))
                per_channel = View(op="aten.view.default", arguments=((1, value.shape[0], *(1,) * (value.dim() - 2)),))
                self.primitives[chain[-1]] = dataclasses.replace(
                    last, op="aten.add.Tensor", arguments=None, attributes={},
                    inputs=(Operand(tensor=p.output), Operand(tensor=added, views=(per_channel,))))
            gone.update(chain if shift is None else chain[:-1])
        self.primitives = [p for i, p in enumerate(self.primitives) if i not in gone]

    def _affine(self, p: Primitive, readers: Mapping[str, int], reader: Mapping[str, int]
                ) -> tuple[list[int], torch.Tensor | None, torch.Tensor | None]:
        """Primitives behind a convolution that scale and shift its channels by weights, and what they come to.

        The scale is ``None`` when there is nothing but one shift.
        """
        shape = self.tensors[p.output].shape
        channels = shape[1]
        scale, shift = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
        chain: list[int] = []
        current = p.output
        scaled = shifted = False
        while readers[current] == 1 and current in reader:
            after = self.primitives[reader[current]]
            if after.op not in ("aten.mul.Tensor", "aten.add.Tensor") or after.arguments is not None \
                    or after.attributes or len(after.inputs) != 2:
                break
            other = next(o for o in after.inputs if o.tensor != current)
            mine = next(o for o in after.inputs if o.tensor == current)
            found = self.seen(other).shape
            if other.tensor not in self.weights or mine.views or found not in (
                    (1, channels, *(1,) * (len(shape) - 2)), (channels, *(1,) * (len(shape) - 2))):
                break
            value = self.weights[other.tensor].double().reshape(-1)
            if value.numel() != channels:
                break
            if after.op == "aten.mul.Tensor":
                scale, shift, scaled = scale * value, shift * value, True
            else:
                shift, shifted = shift + value, True
            chain.append(reader[current])
            current = after.output
        if not scaled:
            return chain, None, None
        return chain, scale, shift if shifted else None

    def _keep(self, name: str, value: torch.Tensor) -> str:
        self.tensors[name] = Tensor(name=name, shape=tuple(value.shape), role="weight",
                                    dtype=str(value.dtype).removeprefix("torch."))
        self.weights[name] = value.contiguous()
        return name

    def flatten(self) -> None:
        reshaped: dict[str, View] = {}

        def now(operand: Operand) -> Operand:
            first = reshaped.get(operand.tensor)
            return operand if first is None else self.short(Operand(tensor=operand.tensor,
                                                                    views=(first, *operand.views)))

        for at, p in enumerate(self.primitives):
            p = dataclasses.replace(p, inputs=tuple(map(now, p.inputs)))
            flat = self._flat(p)
            if flat is not None:
                before = self.tensors[p.output]
                p, shape = flat
                self.tensors[p.output] = dataclasses.replace(before, shape=shape)
                reshaped[p.output] = View(op="aten.view.default", arguments=(tuple(before.shape),))
            self.primitives[at] = p
        self.outputs = tuple(map(now, self.outputs))

    def _flat(self, p: Primitive) -> tuple[Primitive, tuple[int, ...]] | None:
        """The primitive in the shape in which its operand is stored, and the shape of its result."""
        reduces = p.kind == "reduce" and p.op in _KEEPING and p.arguments is not None and len(p.arguments) == 3 \
            and p.arguments[2] is True
        if not reduces and (p.kind != "elementwise" or p.result is not None):
            return None
        out = self.tensors[p.output].shape
        for main in p.inputs:
            shape = self.seen(main).shape
            if len(main.views) != 1 or main.views[0].op != "aten.view.default" or self.tensors[main.tensor].free \
                    or (not reduces and shape != out):
                continue
            stored = self.tensors[main.tensor].shape
            same = 0
            while same < min(len(shape), len(stored)) and shape[-1 - same] == stored[-1 - same]:
                same += 1
            old, new = shape[:len(shape) - same], stored[:len(stored) - same]
            inputs = [self._onto(o, old, new, len(shape)) for o in p.inputs]
            if any(o is None for o in inputs):
                continue
            given = tuple(o for o in inputs if o is not None)
            if not reduces:
                return dataclasses.replace(p, inputs=given), stored
            assert p.arguments is not None
            over = [d % len(shape) for d in p.arguments[1]]
            if not over or min(over) < len(old):
                continue
            over = [d - len(old) + len(new) for d in over]
            made = tuple(1 if d in over else n for d, n in enumerate(stored))
            return dataclasses.replace(p, inputs=given, arguments=(p.arguments[0], over, True)), made
        return None

    def _onto(self, operand: Operand, old: tuple[int, ...], new: tuple[int, ...], rank: int) -> Operand | None:
        """``operand`` with leading dimensions ``new`` in place of ``old``; ``None`` where it cannot be seen so."""
        shape = self.seen(operand).shape
        tail = rank - len(old)
        if len(shape) <= tail:
            return operand
        lead, rest = shape[:len(shape) - tail], shape[len(shape) - tail:]
        if lead == old:
            wanted = (*new, *rest)
        elif math.prod(lead) == 1:
            wanted = rest
        else:
            return None
        try:
            return self.short(Operand(tensor=operand.tensor, views=(
                *operand.views, View(op="aten.view.default", arguments=(wanted,)))))
        except SpecError:
            return None

    def merge(self) -> None:
        first: dict[str, str] = {}
        renamed: dict[str, str] = {}
        kept = []
        for p in self.primitives:
            p = dataclasses.replace(p, inputs=tuple(self._renamed(o, renamed) for o in p.inputs))
            body: Any = {k: v for k, v in dump(p).items() if k not in ("name", "output")}
            key = canonical_json([body, self.tensors[p.output].shape, self.tensors[p.output].dtype])
            if key in first:
                renamed[p.output] = first[key]
            else:
                first[key] = p.output
                kept.append(p)
        self.primitives = kept
        self.outputs = tuple(self._renamed(o, renamed) for o in self.outputs)

    @staticmethod
    def _renamed(operand: Operand, renamed: Mapping[str, str]) -> Operand:
        name = renamed.get(operand.tensor)
        return operand if name is None else Operand(tensor=name, views=operand.views)

    def sweep(self) -> None:
        needed = {o.tensor for o in self.outputs}
        kept = []
        for p in reversed(self.primitives):
            if p.output in needed:
                kept.append(p)
                needed.update(o.tensor for o in p.inputs)
        self.primitives = kept[::-1]
        self.tensors = {k: t for k, t in self.tensors.items() if k in needed or t.role == "input"}

"""Candidate kernels, and the name-free structure under which their costs are kept.

Paper: Korch, arXiv 2406.09465, section 4.2. Legend: K_i -> ``Candidate``; its input and output rows I, O -> ``inputs``,
``outputs``.

Contract with who measures: ``structure(index, candidate)`` describes a kernel without a single name. Its values are
``("in", i)`` for the i-th tensor read from outside and ``("step", j)`` for what the j-th call makes. The numbering is a
depth-first walk from the outputs through operands in order, so isomorphic sub-graphs (the repeated blocks of a model)
have the same structure, and ``Structure.digest`` (sha256) is the key of the cost store. A kernel is called with the
stored tensors ``Candidate.inputs`` in that order and returns ``Candidate.outputs`` in that order; views are applied
inside, each output is stored with the strides its entry says. A structure alone suffices to build and time a kernel.
Measured times are read from the store that ``traces.profiles.kernels`` describes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from planners.orchestration.graph import GraphIndex, Tensor, View
from workbench.spec import about, canonical_json, dump, spec

__all__ = ["Candidate", "Step", "StoredValue", "Structure", "ValueRef", "call_text", "candidate",
           "digest_of", "stored_text", "stored_value", "structure"]


@spec
class Candidate:
    """A kernel that could be run: some primitives, what they read from outside, what they store."""

    members: tuple[int, ...] = about("Primitives by index in the graph, ascending.")
    inputs: tuple[str, ...] = about("Tensors read from outside, in the order the kernel takes them; weights too.")
    outputs: tuple[str, ...] = about("Tensors it stores, in the order it returns them; one, but for whole programs.")


@spec
class StoredValue:
    """A tensor in memory at a kernel's edge."""

    shape: tuple[int, ...] = about("Elements along each dimension.")
    strides: tuple[int, ...] = about("Strides in elements.")
    dtype: str = about("Element type by torch's name.")
    role: Literal["data", "weight", "constant"] = about("data changes from call to call; a weight does not.",
                                                        default="data")
    fill: float | int | bool | None = about("Value of every element of a constant.", default=None)


@spec
class ValueRef:
    """A value as a step reads it."""

    origin: Literal["in", "step"] = about("Whether it comes from outside or from an earlier step.")
    number: int = about("Index among inputs or steps.")
    views: tuple[View, ...] = about("Metadata-only views applied before it is read.", default=())


@spec
class Step:
    """One primitive of a kernel, without names; see ``graph.Primitive``."""

    op: str = about("ATen overload.")
    kind: str = about("Kind of the primitive.")
    operands: tuple[ValueRef, ...] = about("Tensor operands in order.")
    arguments: tuple[Any, ...] | None = about("Positional arguments; {'input': i} is operand i.", default=None)
    attributes: Mapping[str, Any] = about("Keyword arguments.", default_factory=dict)
    result: int | None = about("Which result of an overload that returns several.", default=None)
    value: StoredValue = about("What it makes, as it would be stored.")


@spec
class Structure:
    """A kernel without names; equal structures cost the same."""

    inputs: tuple[StoredValue, ...] = about("What it reads from outside, in the order of the candidate's inputs.")
    steps: tuple[Step, ...] = about("Its primitives in an order that runs.")
    outputs: tuple[int, ...] = about("Steps whose values it stores, in the order of the candidate's outputs.")

    def digest(self) -> str:
        """sha256 of the structure: the key of the cost store."""
        calls = [(call_text(step.op, step.kind, step.arguments, step.attributes, step.result,
                            [dump(ref)["views"] for ref in step.operands], step.value),
                  [(ref.origin == "step", ref.number) for ref in step.operands]) for step in self.steps]
        return digest_of([stored_text(value) for value in self.inputs], calls, self.outputs)


def stored_text(value: StoredValue) -> str:
    """A stored tensor in canonical JSON."""
    return canonical_json([list(value.shape), list(value.strides), value.dtype, value.role, value.fill])


def call_text(op: str, kind: str, arguments: Sequence[Any] | None, attributes: Mapping[str, Any], result: int | None,
              views: Sequence[Any], value: StoredValue) -> str:
    """A step in canonical JSON, all but where its operands come from."""
    return canonical_json([op, kind, arguments, dict(attributes), result, list(views), stored_text(value)])


def digest_of(inputs: Sequence[str], calls: Sequence[tuple[str, Sequence[tuple[bool, int]]]], outputs: Sequence[int]
              ) -> str:
    """sha256 over the texts of inputs and calls, the wiring (from a step?, number) and the numbers of the outputs."""
    hashed = hashlib.sha256()
    for text in inputs:
        hashed.update(text.encode() + b"\n")
    for text, wiring in calls:
        places = " ".join(f"{'step' if inside else 'in'}{number}" for inside, number in wiring)
        hashed.update(f"{text} {places}\n".encode())
    hashed.update(" ".join(map(str, outputs)).encode())
    return hashed.hexdigest()


def candidate(index: GraphIndex, members: Sequence[int], outputs: Sequence[str]) -> Candidate:
    """The kernel that runs ``members`` and stores ``outputs``, its inputs in the order of the walk."""
    inputs, _ = _walk(index, members, outputs)
    return Candidate(members=tuple(sorted(members)), inputs=tuple(inputs), outputs=tuple(outputs))


def structure(index: GraphIndex, kernel: Candidate) -> Structure:
    """The name-free description of ``kernel``."""
    inputs, order = _walk(index, kernel.members, kernel.outputs)
    number = {index.graph.primitives[p].output: i for i, p in enumerate(order)}
    outside = {name: i for i, name in enumerate(inputs)}
    steps = []
    for p in order:
        primitive = index.graph.primitives[p]
        operands = tuple(
            ValueRef(origin="step", number=number[o.tensor], views=o.views) if o.tensor in number
            else ValueRef(origin="in", number=outside[o.tensor], views=o.views) for o in primitive.inputs)
        steps.append(Step(op=primitive.op, kind=primitive.kind, operands=operands, arguments=primitive.arguments,
                          attributes=primitive.attributes, result=primitive.result,
                          value=stored_value(index.tensors[primitive.output])))
    return Structure(inputs=tuple(stored_value(index.tensors[name]) for name in inputs), steps=tuple(steps),
                     outputs=tuple(number[name] for name in kernel.outputs))


def stored_value(tensor: Tensor) -> StoredValue:
    """A tensor of the graph as it lies at a kernel's edge."""
    role: Literal["data", "weight", "constant"] = (
        "weight" if tensor.role == "weight" else "constant" if tensor.role == "constant" else "data")
    return StoredValue(shape=tensor.shape, strides=tensor.layout.strides, dtype=tensor.dtype, role=role,
                       fill=tensor.fill)


def _walk(index: GraphIndex, members: Sequence[int], outputs: Sequence[str]) -> tuple[list[str], list[int]]:
    """Tensors read from outside and members in an order that runs, both as a depth-first walk from the outputs."""
    maker = {index.graph.primitives[p].output: p for p in members}
    if len(maker) != len(members):
        raise ValueError("two members make the same tensor")
    inputs: dict[str, None] = {}
    order: list[int] = []
    state: dict[str, Literal["open", "done"]] = {}
    for output in outputs:
        stack = [output]
        while stack:
            name = stack[-1]
            if state.get(name) == "done":
                stack.pop()
                continue
            if state.get(name) == "open":
                stack.pop()
                state[name] = "done"
                order.append(maker[name])
                continue
            state[name] = "open"
            pending = []
            for operand in index.graph.primitives[maker[name]].inputs:
                if operand.tensor not in maker:
                    pending.append(operand.tensor)
                elif state.get(operand.tensor) == "open":
                    raise ValueError(f"members make {operand.tensor!r} out of itself")
                elif operand.tensor not in state:
                    pending.append(operand.tensor)
            stack.extend(tensor for tensor in reversed(pending) if tensor in maker)
            inputs.update(dict.fromkeys(t for t in pending if t not in maker))
    if len(order) != len(members):
        raise ValueError("a member leads to no output")
    return list(inputs), order

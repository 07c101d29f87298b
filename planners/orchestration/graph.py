"""Primitive graphs: a tensor program as primitives that each make one tensor; read, checked and planned without torch.

Paper: Korch, arXiv 2406.09465, section 3 (operator fission) and 4 (primitive graph). Legend:
    G = (P, E) -> ``PrimitiveGraph``; p in P -> ``Primitive``; T -> ``PrimitiveGraph.outputs``; an edge (p, q) -> an
    ``Operand`` of q that names the tensor p makes. Sizes are counted in elements, ``nbytes`` in bytes.

Contract, for everyone who writes or reads these graphs:

* *Tensors* have a role: ``input`` (given on every call), ``weight`` (given once, its values live beside the graph, by
  name), ``constant`` (every element is ``fill``), ``value`` (made by primitives). The first three are free: always
  there. A stored tensor is row-major unless ``strides`` says otherwise (elements, as torch); whoever makes a ``value``
  must store it so. Names are unique; dtypes are torch's names (``float32``).
* *Primitives* call the ATen overload ``op`` (``aten.add.Tensor``). ``inputs`` are its tensor operands in order.
  ``arguments`` are the positional arguments, where ``{"input": i}`` stands for operand i (lists nest, as in ``cat``),
  ``{"dtype": "float32"}`` for a dtype, ``{"memory_format": "contiguous_format"}`` for a memory format, everything else
  for itself; without ``arguments`` the operands are passed in order. ``attributes`` are keyword arguments, written
  alike. ``result`` picks one result of an overload that returns several. Devices never appear.
* *Views* of an operand are metadata-only: they are applied to the stored tensor, in order, before it is read. Only the
  overloads of ``VIEWS`` may appear, with their arguments after the tensor; ``viewed`` follows them without torch. What
  no stride can express (a reshape of a permuted tensor) is a ``layout`` primitive: ``aten.clone.default`` with
  ``{"memory_format": "contiguous_format"}``, then views of its result.
* *Outputs* are operands too: a program that returns a view of a tensor costs no primitive for the view.
* *Alternatives*: several primitives may make the same tensor. Those of the captured program carry no ``rewrite`` and
  are listed in an order in which they can run; each makes a tensor of its own. Others carry the rule's name; they may
  read and make tensors of their own and may stand anywhere. Choosing among them is the planner's work, and so is never
  choosing a circle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from planners.orchestration.views import VIEWS, Layout, View, contiguous_strides, viewed
from workbench.errors import SpecError, WorkbenchError, nearest
from workbench.files import write_atomic
from workbench.spec import about, canonical_json, dump, parse, spec

__all__ = ["ITEM_BYTES", "VIEWS", "GraphIndex", "Kind", "Layout", "Operand", "Primitive", "PrimitiveGraph", "Role",
           "Tensor", "View", "contiguous_strides", "load", "save", "validate", "viewed"]

Kind = Literal["elementwise", "reduce", "broadcast", "layout", "linear", "opaque"]
Role = Literal["input", "weight", "constant", "value"]
ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16, "int64": 8, "int32": 4,
    "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
_FORMAT = 1


@spec
class Tensor:
    """A tensor of the program."""

    name: str = about("Unique name.")
    shape: tuple[int, ...] = about("Elements along each dimension.")
    dtype: str = about("Element type by torch's name, e.g. 'float32'.", default="float32")
    role: Role = about("input, weight, constant: always there; value: made by primitives.", default="value")
    strides: tuple[int, ...] | None = about("Strides in elements; absent: row-major.", default=None)
    fill: float | int | bool | None = about("Value of every element of a constant.", default=None)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.elements * ITEM_BYTES[self.dtype]

    @property
    def free(self) -> bool:
        """Whether it is there without any kernel."""
        return self.role != "value"

    @property
    def layout(self) -> Layout:
        """How it is stored."""
        return Layout(self.shape, contiguous_strides(self.shape) if self.strides is None else self.strides, 0)


@spec
class Operand:
    """A tensor as a primitive reads it."""

    tensor: str = about("Name of the stored tensor.")
    views: tuple[View, ...] = about("Applied to it in order; they cost nothing.", default=())


@spec
class Primitive:
    """One call that makes one tensor."""

    name: str = about("Unique name.")
    op: str = about("ATen overload, e.g. 'aten.exp.default'.")
    kind: Kind = about("What it does to elements; linear is compute-bound, opaque is never looked into.")
    inputs: tuple[Operand, ...] = about("Tensor operands in order.")
    output: str = about("Name of the tensor it makes.")
    arguments: tuple[Any, ...] | None = about(
        "Positional arguments; {'input': i} is operand i; absent: the operands in order.", default=None)
    attributes: Mapping[str, Any] = about("Keyword arguments.", default_factory=dict)
    result: int | None = about("Which result of an overload that returns several.", default=None)
    rewrite: str | None = about("Rule that offers it as an alternative; absent: it is the captured program's own.",
                                default=None)


@spec
class PrimitiveGraph:
    """A tensor program in primitives."""

    name: str = about("The program's name.", default="program")
    tensors: tuple[Tensor, ...] = about("All tensors.")
    primitives: tuple[Primitive, ...] = about("All primitives; those without a rewrite in an order that runs.")
    inputs: tuple[str, ...] = about("Tensors given on every call, in the call's order.")
    outputs: tuple[Operand, ...] = about("What the program returns, in order.")
    provenance: Mapping[str, str] = about("Model, batch, resolution, versions: where the graph comes from.",
                                          default_factory=dict)

    def digest(self) -> str:
        """sha256 of the graph's canonical JSON, without its provenance."""
        body = dump(self)
        del body["provenance"]
        return hashlib.sha256(canonical_json(body).encode()).hexdigest()


class GraphIndex:
    """Tensors and producers of a graph by name and number; built once, read often.

    ``producers[name]`` are the primitives (by index) that make a tensor, the captured program's own first.
    """

    def __init__(self, graph: PrimitiveGraph) -> None:
        self.graph = graph
        self.tensors: dict[str, Tensor] = {t.name: t for t in graph.tensors}
        self.producers: dict[str, list[int]] = {}
        for original in (True, False):
            for i, p in enumerate(graph.primitives):
                if (p.rewrite is None) is original:
                    self.producers.setdefault(p.output, []).append(i)

    def reads(self, primitive: int) -> list[str]:
        """Tensors that are not free and that primitive ``primitive`` reads, each once, in operand order."""
        return list(dict.fromkeys(o.tensor for o in self.graph.primitives[primitive].inputs
                                  if not self.tensors[o.tensor].free))

    def layout(self, operand: Operand) -> Layout:
        """What a reader of ``operand`` sees."""
        return viewed(self.tensors[operand.tensor].layout, operand.views)

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Tensors that must be stored for the outputs, each once; free ones are left out."""
        return tuple(dict.fromkeys(o.tensor for o in self.graph.outputs if not self.tensors[o.tensor].free))

    @cached_property
    def order(self) -> tuple[int, ...]:
        """All primitives in an order that runs: each comes once something before it makes what it reads.

        Raises:
            SpecError: some primitive can never run; names it and what it waits for.
        """
        made: set[str] = set()
        left = list(range(len(self.graph.primitives)))
        done: list[int] = []
        while left:
            waiting = []
            for i in left:
                if all(t in made for t in self.reads(i)):
                    done.append(i)
                    made.add(self.graph.primitives[i].output)
                else:
                    waiting.append(i)
            if len(waiting) == len(left):
                p = self.graph.primitives[left[0]]
                lacks = [t for t in self.reads(left[0]) if t not in made]
                raise SpecError(f"primitive {p.name!r} can never run: nothing makes {lacks[0]!r} before it",
                                where=f"primitives.{p.name}")
            left = waiting
        return tuple(done)


def validate(graph: PrimitiveGraph) -> None:
    """Check a graph against the contract in this module's head.

    Raises:
        SpecError: with one fault for each broken rule.
    """
    faults: list[WorkbenchError] = list(_names(graph))
    if not faults:
        faults += _tensors(graph)
        faults += _operands(graph)
    if not faults:
        faults += _originals(graph)
    if not faults:
        try:
            _ = GraphIndex(graph).order
        except SpecError as error:
            faults.append(error)
    if faults:
        raise SpecError(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}", faults=faults,
                        where=f"primitive graph {graph.name!r}")


def _names(graph: PrimitiveGraph) -> Iterator[SpecError]:
    for what, values in (("tensors", graph.tensors), ("primitives", graph.primitives)):
        for name, count in Counter(v.name for v in values).items():
            if count > 1:
                yield SpecError(f"the name is used {count} times", where=f"{what}.{name}")
    known = {t.name for t in graph.tensors}
    ends = [(f"primitives.{p.name}", t) for p in graph.primitives for t in (*(o.tensor for o in p.inputs), p.output)]
    ends += [("inputs", t) for t in graph.inputs] + [("outputs", o.tensor) for o in graph.outputs]
    for where, name in ends:
        if name not in known:
            close = nearest(name, known)
            yield SpecError(f"there is no tensor {name!r}", where=where,
                            hint=f"did you mean {close!r}?" if close else None)
    if not graph.outputs:
        yield SpecError("a program returns at least one tensor", where="outputs")


def _tensors(graph: PrimitiveGraph) -> Iterator[SpecError]:
    made = {p.output for p in graph.primitives}
    for t in graph.tensors:
        where = f"tensors.{t.name}"
        if t.dtype not in ITEM_BYTES:
            yield SpecError(f"unknown dtype {t.dtype!r}", where=where, allowed=ITEM_BYTES)
        if any(n < 0 for n in t.shape):
            yield SpecError(f"shape {list(t.shape)} has a negative size", where=where)
        if t.strides is not None and len(t.strides) != len(t.shape):
            yield SpecError(f"{len(t.strides)} strides for {len(t.shape)} dimensions", where=where)
        if (t.fill is not None) != (t.role == "constant"):
            yield SpecError("a constant has a fill, and nothing else has", where=where)
        if t.free and t.name in made:
            yield SpecError(f"a primitive makes it although its role is {t.role}", where=where)
        if not t.free and t.name not in made:
            yield SpecError("its role is value and no primitive makes it", where=where)
    inputs = {t.name for t in graph.tensors if t.role == "input"}
    for name in sorted(inputs ^ set(graph.inputs)):
        yield SpecError("inputs of the program are the tensors of role input", where=f"tensors.{name}")


def _operands(graph: PrimitiveGraph) -> Iterator[SpecError]:
    index = GraphIndex(graph)
    sites = [(f"primitives.{p.name}.inputs.{i}", o) for p in graph.primitives for i, o in enumerate(p.inputs)]
    sites += [(f"outputs.{i}", o) for i, o in enumerate(graph.outputs)]
    for where, operand in sites:
        try:
            index.layout(operand)
        except SpecError as error:
            error.where = where
            yield error
    for p in graph.primitives:
        if p.arguments is None:
            continue
        used = sorted(_placeholders([*p.arguments, *p.attributes.values()]))
        if used != list(range(len(p.inputs))):
            yield SpecError(f"arguments name operands {used}, there are {len(p.inputs)}", where=f"primitives.{p.name}",
                            allowed=["each operand once, as {'input': i}"])


def _placeholders(value: Any) -> Iterator[int]:
    """Numbers of the operands that an argument template names."""
    if isinstance(value, Mapping):
        if set(value) == {"input"}:
            yield value["input"]
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _placeholders(part)


def _originals(graph: PrimitiveGraph) -> Iterator[SpecError]:
    made: set[str] = set()
    free = {t.name for t in graph.tensors if t.free}
    for p in graph.primitives:
        if p.rewrite is not None:
            continue
        for o in p.inputs:
            if o.tensor not in made and o.tensor not in free:
                yield SpecError(f"reads {o.tensor!r} before the captured program makes it",
                                where=f"primitives.{p.name}",
                                hint="list primitives without a rewrite in an order that runs")
        if p.output in made:
            yield SpecError(f"the captured program makes {p.output!r} twice", where=f"primitives.{p.name}",
                            hint="an alternative carries the name of its rewrite")
        made.add(p.output)
    for o in graph.outputs:
        if o.tensor not in made and o.tensor not in free:
            yield SpecError(f"the captured program does not make {o.tensor!r}", where="outputs")


def save(graph: PrimitiveGraph, path: Path | str) -> Path:
    """Write a graph as JSON (atomically); fields that hold their defaults are left out."""
    from pydantic import TypeAdapter

    body = TypeAdapter(PrimitiveGraph).dump_python(graph, mode="json", exclude_defaults=True)
    lines = {key: value for key, value in body.items() if key not in ("tensors", "primitives")}
    parts = [f'"{key}": {json.dumps(value)}' for key, value in {"format": _FORMAT, **lines}.items()]
    for key in ("tensors", "primitives"):
        rows = ",\n  ".join(json.dumps(row) for row in body[key])
        parts.append(f'"{key}": [\n  {rows}\n ]')
    return write_atomic(path, "{\n " + ",\n ".join(parts) + "\n}\n")


def load(path: Path | str) -> PrimitiveGraph:
    """Read a graph written by ``save`` and check it.

    Raises:
        SpecError: no such file, no JSON, another format, or a graph that breaks the contract.
    """
    path = Path(path)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        names = sorted(p.name for p in folder.glob("*.json"))
        raise SpecError(f"no such file: {path}", allowed=names or ["a primitive graph in JSON"]) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SpecError(f"not a primitive graph in JSON: {error}", where=str(path)) from None
    if not isinstance(body, dict) or body.pop("format", None) != _FORMAT:
        raise SpecError("not a primitive graph of this format", where=str(path), allowed=[f'"format": {_FORMAT}'])
    graph = parse(PrimitiveGraph, body, where=str(path))
    validate(graph)
    return graph

"""From an exported module to parts: convex groups of its ATen nodes, one a layer, that form an acyclic graph.

Nodes of one submodule that stays whole are one group. Groups are then joined where they cannot be cut (shared weights,
integer tensors, tensors without the batch in front), cycles are contracted, and groups without weights join the only
group they read, or the only one that reads them when they read the module's arguments alone. What depends on nothing
but constants is computed again by every group that reads it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from workbench.errors import SpecError

__all__ = ["Part", "Parts", "coarsen"]

_HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder)
_CHECKS = ("assert", "sym_constrain", "_guards")


@dataclass
class Part:
    """One operator: its nodes in order, what it reads and what others read of it.

    ``reads`` are nodes of other parts, ``arguments`` placeholders of the module's arguments, ``weights`` placeholders
    of parameters, ``constants`` of buffers and constants; ``gives`` are the nodes whose tensors leave the part.
    """

    name: str
    nodes: list[fx.Node]
    reads: list[fx.Node] = field(default_factory=list)
    arguments: list[fx.Node] = field(default_factory=list)
    weights: list[fx.Node] = field(default_factory=list)
    constants: list[fx.Node] = field(default_factory=list)
    gives: list[fx.Node] = field(default_factory=list)
    last: bool = False


@dataclass
class Parts:
    """All parts in topological order; ``of`` is the part of a node, ``targets`` the names of weights and constants,
    ``batch`` the batch's symbolic size."""

    parts: list[Part]
    of: dict[fx.Node, Part]
    targets: dict[fx.Node, str]
    arguments: list[fx.Node]
    constants: dict[str, torch.Tensor]
    batch: Any


class _Union:
    """Disjoint sets of nodes."""

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        self.parent = {n: n for n in nodes}

    def find(self, n: fx.Node) -> fx.Node:
        while self.parent[n] is not n:
            self.parent[n] = self.parent[self.parent[n]]
            n = self.parent[n]
        return n

    def join(self, a: fx.Node, b: fx.Node) -> bool:
        a, b = self.find(a), self.find(b)
        self.parent[b] = a
        return a is not b


def coarsen(exported: Any, module: nn.Module, keep: tuple[str, ...], where: str) -> Parts:
    """Cut an exported program into parts.

    Raises:
        SpecError: dropout or batch norm in training mode, outputs without a batch, or everything hangs together.
    """
    graph = exported.graph
    graph.eliminate_dead_code()
    kinds = _kinds(exported, graph)
    _refuse(exported, graph, module, where)
    outputs = _outputs(exported, graph, where)
    arguments = [n for n, (kind, _) in kinds.items() if kind == InputKind.USER_INPUT]
    batch = arguments[0].meta["val"].shape[0]
    fed, weighted = _reached(graph, set(arguments)), _reached(graph, {n for n, (k, _) in kinds.items()
                                                                     if k == InputKind.PARAMETER})
    mine = [n for n in graph.nodes if n.op == "call_function" and _is_tensor(n) and (n in fed or n in weighted)]
    if not mine:
        raise SpecError("the module computes nothing from its arguments", where=where)
    sets = _Union(mine)
    inside = set(mine)
    _join_layers(sets, mine, module, keep)
    _join_weights(sets, mine, kinds, inside)
    for n in mine:
        if not _may_leave(n, batch) or n not in fed:
            for reader in _readers(n, inside):
                sets.join(reader, n)
    _contract(sets, mine, inside)
    while _join_light(sets, mine, inside, kinds):
        pass
    parts = _parts(sets, mine, inside, kinds, outputs, where)
    return Parts(parts, {n: p for p in parts for n in p.nodes}, {n: str(t) for n, (_, t) in kinds.items() if t},
                 arguments, {n: t for n, t in exported.constants.items() if isinstance(t, torch.Tensor)}, batch)


def _kinds(exported: Any, graph: fx.Graph) -> dict[fx.Node, tuple[InputKind, str | None]]:
    by_name = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    return {by_name[s.arg.name]: (s.kind, s.target) for s in exported.graph_signature.input_specs}


def _refuse(exported: Any, graph: fx.Graph, module: nn.Module, where: str) -> None:
    """What would change with the micro-batch or from rank to rank."""
    norms = [name for name, m in module.named_modules()
             if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if norms or exported.graph_signature.buffers_to_mutate:
        name = norms[0] if norms else next(iter(exported.graph_signature.buffers_to_mutate.values()))
        raise SpecError(f"{name!r} keeps statistics of the batch, which a pipeline would change", where=where,
                        hint="use a normalisation of single samples, or eval() that submodule where you make it")
    for n in graph.nodes:
        target = str(n.target)
        random = "dropout" in target and len(n.args) > 2 and n.args[1] and n.args[2]
        attention = "scaled_dot_product" in target and (n.args[4:5] or [n.kwargs.get("dropout_p", 0.0)])[0]
        if random or attention:
            raise SpecError(f"dropout ({n.name}) would differ between a pipeline and one process", where=where,
                            hint="make the module with dropout 0")


def _outputs(exported: Any, graph: fx.Graph, where: str) -> list[fx.Node]:
    found = []
    output = next(n for n in graph.nodes if n.op == "output")
    for spec, n in zip(exported.graph_signature.output_specs, output.args[0], strict=True):
        if spec.kind == OutputKind.USER_OUTPUT and isinstance(n, fx.Node):
            if n.op == "placeholder":
                raise SpecError(f"the module returns its argument {n.name!r} as it is", where=where)
            found.append(n)
    return found


def _reached(graph: fx.Graph, start: set[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on ``start``; sizes do not count as tensors."""
    found = set(start)
    for n in graph.nodes:
        if n.op == "call_function" and _is_tensor(n) and any(a in found for a in n.all_input_nodes):
            found.add(n)
    return found


def _is_tensor(n: fx.Node) -> bool:
    value = n.meta.get("val")
    if isinstance(value, (tuple, list)):
        return any(isinstance(v, torch.Tensor) for v in value)
    return isinstance(value, torch.Tensor)


def _may_leave(n: fx.Node, batch: Any) -> bool:
    """Whether the node's value can be sent: one floating tensor with the batch in front."""
    value = n.meta["val"]
    return (isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.dim() > 0
            and str(value.shape[0]) == str(batch))


def _readers(n: fx.Node, inside: set[fx.Node]) -> Iterator[fx.Node]:
    return (user for user in n.users if user in inside)


def _join_layers(sets: _Union, mine: list[fx.Node], module: nn.Module, keep: tuple[str, ...]) -> None:
    first: dict[str, fx.Node] = {}
    for n in mine:
        layer = layer_of(n, module, keep)
        if layer is not None:
            sets.join(first.setdefault(layer, n), n)


def layer_of(n: fx.Node, module: nn.Module, keep: tuple[str, ...]) -> str | None:
    """Name of the outermost submodule around a node that stays whole; a second call of one is the same layer."""
    for path, _ in n.meta.get("nn_module_stack", {}).values():
        name = re.sub(r"@\d+", "", str(path))
        if not name:
            continue
        if keep:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in keep):
                return name
            continue
        try:
            found = module.get_submodule(name)
        except AttributeError:
            continue
        if type(found).__module__.startswith("torch.nn") and not isinstance(found, _HOLDERS):
            return name
    return None


def _join_weights(sets: _Union, mine: list[fx.Node], kinds: dict[fx.Node, tuple[InputKind, str | None]],
                  inside: set[fx.Node]) -> None:
    """All readers of a weight are one group, so that its gradient is summed in one place."""
    for n, (kind, _) in kinds.items():
        if kind == InputKind.PARAMETER:
            readers = list(_readers(n, inside))
            for other in readers[1:]:
                sets.join(readers[0], other)


def _groups(sets: _Union, mine: list[fx.Node], inside: set[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """Groups that each group reads, by root."""
    reads: dict[fx.Node, set[fx.Node]] = {sets.find(n): set() for n in mine}
    for n in mine:
        for a in n.all_input_nodes:
            if a in inside and sets.find(a) is not sets.find(n):
                reads[sets.find(n)].add(sets.find(a))
    return reads


def _contract(sets: _Union, mine: list[fx.Node], inside: set[fx.Node]) -> None:
    """Join groups that lie on a cycle (strongly connected components, iteratively)."""
    reads = _groups(sets, mine, inside)
    index: dict[fx.Node, int] = {}
    low: dict[fx.Node, int] = {}
    open_: list[fx.Node] = []
    on: set[fx.Node] = set()
    for root in reads:
        if root in index:
            continue
        work = [(root, iter(reads[root]))]
        index[root] = low[root] = len(index)
        open_.append(root)
        on.add(root)
        while work:
            v, rest = work[-1]
            w = next(rest, None)
            if w is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[v])
                if low[v] == index[v]:
                    while True:
                        w = open_.pop()
                        on.discard(w)
                        if w is v:
                            break
                        sets.join(v, w)
            elif w not in index:
                index[w] = low[w] = len(index)
                open_.append(w)
                on.add(w)
                work.append((w, iter(reads[w])))
            elif w in on:
                low[v] = min(low[v], index[w])


def _join_light(sets: _Union, mine: list[fx.Node], inside: set[fx.Node],
                kinds: dict[fx.Node, tuple[InputKind, str | None]]) -> bool:
    """Join one group without weights to its neighbour; whether there was one."""
    reads = _groups(sets, mine, inside)
    heavy = {sets.find(n) for n in mine
             if any(a in kinds and kinds[a][0] == InputKind.PARAMETER for a in n.all_input_nodes)}
    read_by: dict[fx.Node, set[fx.Node]] = {g: set() for g in reads}
    for g, others in reads.items():
        for other in others:
            read_by[other].add(g)
    for g, others in reads.items():
        if g in heavy:
            continue
        if len(others) == 1:
            return sets.join(next(iter(others)), g)
        if not others and len(read_by[g]) == 1:
            return sets.join(next(iter(read_by[g])), g)
    return False


def _parts(sets: _Union, mine: list[fx.Node], inside: set[fx.Node],
           kinds: dict[fx.Node, tuple[InputKind, str | None]], outputs: list[fx.Node], where: str) -> list[Part]:
    members: dict[fx.Node, list[fx.Node]] = {}
    for n in mine:
        members.setdefault(sets.find(n), []).append(n)
    names: set[str] = set()
    parts = {root: Part(_name(nodes, names), nodes) for root, nodes in members.items()}
    leaving = set(outputs)
    for root, part in parts.items():
        own = set(part.nodes)
        for n in _needed(part.nodes, inside):
            if n.op == "placeholder":
                kind = kinds[n][0]
                into = (part.arguments if kind == InputKind.USER_INPUT else
                        part.weights if kind == InputKind.PARAMETER else part.constants)
                into.append(n)
            elif n in inside and n not in own:
                part.reads.append(n)
        outside = [n for n in part.nodes if any(u in inside and sets.find(u) is not root for u in _tensor_users(n))]
        returned = [n for n in part.nodes if n in leaving]
        part.gives = outside or returned
        part.last = not outside
        if outside and returned:
            raise SpecError(f"the module returns {returned[0].name!r}, which its other layers read too", where=where,
                            hint="return only what comes last")
        for n in part.gives:
            if not _may_leave(n, next(a for a in kinds if kinds[a][0] == InputKind.USER_INPUT).meta["val"].shape[0]):
                raise SpecError(f"the output {n.name!r} is no floating tensor with the batch in front", where=where,
                                hint="return what the loss is computed from, not the loss")
    return _in_order(list(parts.values()))


def _tensor_users(n: fx.Node) -> Iterator[fx.Node]:
    """Readers of a node's values; those that only ask for a size do not count."""
    return (u for u in n.users if _is_tensor(u))


def _needed(nodes: list[fx.Node], inside: set[fx.Node]) -> list[fx.Node]:
    """What a group's nodes reach back to: placeholders and nodes of other groups, constants seen through."""
    own, found, seen = set(nodes), [], set()
    stack = [a for n in nodes for a in n.all_input_nodes]
    while stack:
        n = stack.pop(0)
        if n in seen or n in own:
            continue
        seen.add(n)
        if n.op == "placeholder" or n in inside:
            found.append(n)
        elif _is_tensor(n):
            stack += n.all_input_nodes
    return found


def _name(nodes: list[fx.Node], taken: set[str]) -> str:
    """The submodule that all named nodes share, or the first node's own name."""
    paths = []
    for n in nodes:
        stack = [re.sub(r"@\d+", "", str(path)) for path, _ in n.meta.get("nn_module_stack", {}).values()]
        named = [p for p in stack if p and not p.startswith("_empty")]
        if named:
            paths.append(named[-1].split("."))
    shared: list[str] = []
    for column in zip(*paths, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    base = ".".join(shared) or nodes[0].name
    name, count = base, 2
    while name in taken:
        name, count = f"{base}#{count}", count + 1
    taken.add(name)
    return name


def _in_order(parts: list[Part]) -> list[Part]:
    """Topological order, as the nodes come."""
    of = {n: p.name for p in parts for n in p.nodes}
    waiting = {p.name: {of[n] for n in p.reads} for p in parts}
    by_name = {p.name: p for p in parts}
    out: list[Part] = []
    done: set[str] = set()
    while waiting:
        ready = [name for name, needs in waiting.items() if needs <= done]
        assert ready, "the parts form a cycle"
        for name in ready:
            out.append(by_name[name])
            done.add(name)
            del waiting[name]
    return out

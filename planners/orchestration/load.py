"""The primitive graph of a problem: inline, from a file, or one of those shipped in ``traces/graphs/orchestration``.

Shipped graphs are called ``<model>-b<batch>-r<resolution>.json``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from planners.orchestration.graph import PrimitiveGraph, load, validate
from planners.orchestration.problem import Limits, Problem, Program
from workbench.errors import SpecError, nearest
from workbench.study import data_folder

__all__ = ["captured_only", "graph_name", "offered", "program_graph", "shipped"]


def graph_name(model: str, *, batch: int, resolution: int) -> str:
    """File name of a shipped graph, without its ending."""
    return f"{model}-b{batch}-r{resolution}"


def shipped() -> dict[str, Path]:
    """Shipped graphs by name."""
    folder = data_folder("graphs") / "orchestration"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def program_graph(problem: Problem) -> PrimitiveGraph:
    """The problem's graph, with the alternatives its limits allow.

    Raises:
        SpecError: no such graph, or it breaks the contract of ``graph``.
    """
    return offered(_whole(problem.program), problem.limits)


def offered(graph: PrimitiveGraph, limits: Limits) -> PrimitiveGraph:
    """The graph without the rewrites that are not offered, and without what only they could use.

    Raises:
        SpecError: ``limits.without`` names a rewrite that the graph does not have.
    """
    rules = {p.rewrite for p in graph.primitives if p.rewrite is not None}
    strange = [name for name in limits.without if name not in rules]
    if strange:
        close = nearest(strange[0], rules)
        raise SpecError(f"the program has no rewrite {strange[0]!r}", where="limits.without", allowed=sorted(rules),
                        hint=f"did you mean {close!r}?" if close else None)
    gone = {r for r in rules if r in limits.without or (r.startswith("unsafe-") and not limits.unsafe)}
    return _less(graph, gone) if gone else graph


def captured_only(graph: PrimitiveGraph) -> PrimitiveGraph:
    """The graph without any alternative."""
    rules = {p.rewrite for p in graph.primitives if p.rewrite is not None}
    return _less(graph, rules) if rules else graph


def _less(graph: PrimitiveGraph, gone: Collection[str | None]) -> PrimitiveGraph:
    left = [p for p in graph.primitives if p.rewrite not in gone]
    while True:
        made = {p.output for p in left} | {t.name for t in graph.tensors if t.free}
        runs = [p for p in left if all(o.tensor in made for o in p.inputs)]
        if len(runs) == len(left):
            break
        left = runs
    return PrimitiveGraph(name=graph.name, tensors=tuple(t for t in graph.tensors if t.name in made),
                          primitives=tuple(left), inputs=graph.inputs, outputs=graph.outputs,
                          provenance=graph.provenance)


def _whole(program: Program) -> PrimitiveGraph:
    if program.inline is not None:
        validate(program.inline)
        return program.inline
    if program.file is not None:
        return _read(program.file)
    known = shipped()
    wanted = re.compile(rf"{re.escape(str(program.captured))}-b{program.batch}-r(\d+)")
    fits = [name for name in known if (found := wanted.fullmatch(name)) and
            program.resolution in (None, int(found[1]))]
    if len(fits) == 1:
        return _read(str(known[fits[0]]))
    asked = f"{program.captured!r} at batch {program.batch}" + (
        "" if program.resolution is None else f", resolution {program.resolution}")
    close = nearest(str(program.captured), {name.rsplit("-b", 1)[0] for name in known})
    raise SpecError(f"{len(fits) or 'no'} graphs of {asked} are shipped; one must be", where="program", allowed=known,
                    hint="give program.resolution" if fits else f"did you mean {close!r}?" if close else
                    "program.file takes a graph captured elsewhere")


@lru_cache(maxsize=8)
def _read_at(path: str, _stamp: tuple[int, int]) -> PrimitiveGraph:
    return load(path)


def _read(path: str) -> PrimitiveGraph:
    """A graph from disk, read once for each state of its file."""
    where = Path(path)
    if not where.is_file():
        return load(path)  # which names what is there
    state = where.stat()
    return _read_at(path, (state.st_mtime_ns, state.st_size))

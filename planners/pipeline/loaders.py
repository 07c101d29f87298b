"""Operator graphs from files: dnn-partitioning's and Piper's JSON, a plain TOML or JSON form, and ``nn.Module``s.

dnn-partitioning (training graphs): a sample is one mini-batch of the profile; a forward node takes the backward nodes
of its colour class; ``size`` counts as weights. Piper: the options without tensor parallelism or recomputation;
``timePerSample`` is split 1 : 2 into forward and backward. Neither file states its time unit, so the spec does
(``time_unit_s``). The sources give one time per operator, so times at other batch sizes count as extrapolated.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from planners.pipeline.graph import OperatorGraph, build
from planners.pipeline.models import generate
from planners.pipeline.problem import Edge, FileModel, Model, ModuleModel, Operator, PlainGraph, Problem
from workbench.errors import SpecError, TraceError
from workbench.spec import content_id, dump, parse, read_toml

__all__ = ["graph_of", "imported", "load"]

_FORWARD_SHARE = 1 / 3


_IMPORTER = "executors.pipeline.importing"


def graph_of(problem: Problem) -> OperatorGraph:
    """The operator graph a problem asks about.

    Raises:
        SpecError, TraceError: the graph has a cycle; the file is missing or broken.
    """
    if problem.model is None:
        return build(problem.operators, problem.edges)
    if isinstance(problem.model, Model):
        return build(*generate(problem.model), where=f"model {problem.model.family}")
    if isinstance(problem.model, ModuleModel):
        return build(*load(FileModel(path=str(imported(problem.model)), format="plain")), where=problem.model.module)
    return build(*load(problem.model), where=problem.model.path)


def load(source: FileModel) -> tuple[list[Operator], list[Edge]]:
    """Operators and edges of a file (a path, or a name of the data registry)."""
    path = _locate(source.path)
    if source.format == "plain" and path.suffix == ".toml":
        data = read_toml(path)
    else:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TraceError(f"not readable as JSON: {error}", where=str(path)) from None
    if source.format == "plain":
        plain = parse(PlainGraph, data, where=str(path))
        return list(plain.operators), list(plain.edges)
    read = _dnn_partitioning if source.format == "dnn-partitioning" else _piper
    try:
        return read(data, source.time_unit_s)
    except (KeyError, TypeError, IndexError) as error:
        raise TraceError(f"not a {source.format} graph: {type(error).__name__} {error}", where=str(path)) from None


def imported(model: ModuleModel) -> Path:
    """The graph file of a module: a kept one, or made now by a process of its own, which may load torch.

    Raises:
        SpecError: there is no such file or package; the module cannot be imported, exported or cut.
    """
    from traces.registry import cache_folder

    source = _source_file(model.module)
    code = hashlib.sha256(source.read_bytes()).hexdigest()
    name = content_id({"model": dump(model), "code": code, "torch": _version("torch")})
    path = cache_folder() / "pipeline-modules" / f"{name}.json"
    if not path.exists():
        asked = json.dumps(dump(model))
        done = subprocess.run([sys.executable, "-m", _IMPORTER, str(path)], input=asked, text=True, capture_output=True)
        if done.returncode:
            fault = _fault(done)
            raise SpecError(f"{model.module} was not imported: {fault['message']}", where="model.module",
                            hint=fault["hint"], next_command="wb schema pipeline")
    return path


def _fault(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the importer says on its last line, or the end of what it printed when it broke."""
    try:
        said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return {"message": said["message"], "hint": said["hint"]}
    except (IndexError, ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"message": lines[-1], "hint": "\n".join(lines[-12:-1]) or None}


def _source_file(reference: str) -> Path:
    place, colon, name = reference.partition(":")
    if not colon or not name:
        raise SpecError(f"{reference!r} names no function", where="model.module",
                        allowed=["FILE.py:NAME", "PACKAGE.MODULE:NAME"])
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise SpecError(f"there is no file {place}", where="model.module")
        return Path(place)
    try:
        found = importlib.util.find_spec(place)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise SpecError(f"there is no module {place!r}", where="model.module",
                        hint="a file is given with its ending: FILE.py:NAME")
    return Path(found.origin)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise SpecError(f"importing a module needs {package}, which is not installed", where="model.module",
                        hint="the extra 'run' has it", next_command="wb doctor") from None


def _locate(name: str) -> Path:
    path = Path(name)
    if path.exists():
        return path
    from traces.registry import fetch

    return fetch(name)


def _dnn_partitioning(data: dict[str, Any], unit_s: float) -> tuple[list[Operator], list[Edge]]:
    forward = {n["id"]: n for n in data["nodes"] if not n["isBackwardNode"]}
    backward_s: dict[Any, float] = {}
    for n in data["nodes"]:
        if n["isBackwardNode"]:
            colour = _colour(n)
            backward_s[colour] = backward_s.get(colour, 0.0) + n["fpgaLatency"]
    members: dict[Any, int] = {}
    for n in forward.values():
        members[_colour(n)] = members.get(_colour(n), 0) + 1
    out: dict[int, float] = {}
    edges = []
    for e in data["edges"]:
        u, v = e["sourceId"], e["destId"]
        if u in forward and v in forward:
            out[u] = max(out.get(u, 0.0), e["size"])
            edges.append(Edge(producer=_name(u), consumer=_name(v), bytes_per_sample=e["size"]))
    # A colour's backward time is spread evenly over its forward nodes, which the source puts on one device anyway.
    operators = [Operator(
        name=_name(i), forward_s_per_sample=n["fpgaLatency"] * unit_s,
        backward_s_per_sample=backward_s.get(_colour(n), 0.0) / members[_colour(n)] * unit_s,
        weight_bytes=n["size"], saved_bytes_per_sample=out.get(i, 0.0), output_bytes_per_sample=out.get(i, 0.0),
        source="extrapolated") for i, n in forward.items()]
    return operators, edges


def _piper(data: dict[str, Any], unit_s: float) -> tuple[list[Operator], list[Edge]]:
    out: dict[int, float] = {}
    edges = []
    for e in data["edges"]:
        out[e["sourceId"]] = max(out.get(e["sourceId"], 0.0), e["communicationCost"])
        edges.append(Edge(producer=_name(e["sourceId"]), consumer=_name(e["destId"]),
                          bytes_per_sample=e["communicationCost"]))
    operators = []
    for n in data["nodes"]:
        option = next(o for o in n["TMPCs"]["1"] if o["id"] == "vanilla")
        seconds = option["timePerSample"] * unit_s
        operators.append(Operator(
            name=_name(n["id"]), forward_s_per_sample=seconds * _FORWARD_SHARE,
            backward_s_per_sample=seconds * (1 - _FORWARD_SHARE), weight_bytes=option["parameterSize"],
            saved_bytes_per_sample=option["memoryUsageA"], output_bytes_per_sample=out.get(n["id"], 0.0),
            source="extrapolated"))
    return operators, edges


def _colour(node: dict[str, Any]) -> Any:
    """A node's colour class; a node without one is a class of its own."""
    return node.get("colorClass", ("own", node["id"]))


def _name(identifier: Any) -> str:
    return f"node{identifier}"

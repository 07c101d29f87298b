"""Modules of the user's: exported, cut into layers, planned without torch, trained on ranks with exact gradients."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from executors import pipeline as executor
from planners import pipeline
from planners.pipeline.graph import build
from planners.pipeline.loaders import graph_of, imported, load
from planners.pipeline.models import generate
from planners.pipeline.problem import (
    Argument,
    Cluster,
    FileModel,
    LinkRate,
    Model,
    Module,
    ModuleModel,
    Problem,
    Run,
)
from workbench.costs import TableCosts, open_costs
from workbench.errors import MissingProfile, SpecError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (extra 'run')")
MODULES = str(Path(__file__).with_name("modules_pipeline.py"))
TOWERS = {"module": f"{MODULES}:two_towers",
          "arguments": (Argument(shape=(4,), dtype="int64", below=30), Argument(shape=(16,)))}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for the module's tests, so that a module is exported once."""
    folder = tmp_path_factory.getbasetemp() / "wb-cache"
    monkeypatch.setenv("WB_DATA_CACHE", str(folder))


def problem(model: ModuleModel | FileModel, *, devices: int = 5, **changes: object) -> Problem:
    fast = LinkRate(latency_s=1e-6, bytes_per_s=1e11)
    return dataclasses.replace(Problem(
        model=model, batch_samples=8, micro_batches=(2,), run=Run(steps=2),
        cluster=Cluster(devices=devices, devices_per_machine=devices, memory_bytes=1e9, inside=fast, between=fast,
                        device="V100")), **changes)


def test_parts_together_are_the_module_bit_for_bit() -> None:
    import torch

    from executors.pipeline.importing import ImportedLayer, numbers, parts_of

    source = Module(**TOWERS)
    parts, made = parts_of(source, 3, "cpu")
    generator = torch.Generator().manual_seed(1)
    arguments = [numbers(a, 3, generator) for a in source.arguments]
    whole = made(*arguments)
    whole.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad()
    known: dict[str, torch.Tensor] = {}
    layers = [ImportedLayer(parts, part, made) for part in parts.parts]
    for part, layer in zip(parts.parts, layers, strict=True):
        known[part.name] = layer([arguments[i] for i in layer.argument_numbers], known)
    last = known[parts.parts[-1].name]
    assert torch.equal(last, whole)
    last.square().sum().backward()
    got = {layer.weight_names[name]: p.grad for layer in layers for name, p in layer.named_parameters()}
    assert set(got) == set(wanted)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_layers_become_operators_that_are_planned_and_run_exactly() -> None:
    asked = problem(ModuleModel(**TOWERS), devices=3)
    graph = graph_of(asked)
    names = [o.name for o in graph.operators]
    assert {"text.0", "text.1", "table"} <= set(names)
    assert len(names) >= 8
    plan = pipeline.plan(asked, open_costs({"source": "analytic"}), planner="balance")
    assert pipeline.check(asked, plan) == []
    assert len(plan.stages) == 3
    assert plan.sources == {"analytic": 1.0}
    outcome = executor.run(asked, plan, device="cpu")
    assert executor.verify(asked, plan, outcome) == []


def test_a_stage_graph_of_a_module_runs_with_different_micro_batches_and_replicas() -> None:
    from executors.pipeline.running import outcome_of
    from executors.pipeline.together import execute_together

    asked = problem(ModuleModel(**TOWERS), micro_batches=(2, 4), optimizer="adam")
    plan = pipeline.plan(asked, open_costs({"source": "analytic"}), planner="graph-mixed")
    assert pipeline.check(asked, plan) == []
    outcome = outcome_of(asked, plan, execute_together(asked, plan, "cpu"))
    assert executor.verify(asked, plan, outcome) == []


def test_named_layers_stay_whole() -> None:
    whole = graph_of(problem(ModuleModel(**TOWERS, layers=("text.*", "image.*", "head", "table"))))
    assert {"text.0", "text.1", "image.0", "image.1", "image.2", "head"} <= {o.name for o in whole.operators}


def test_measured_layers_are_priced_as_measured() -> None:
    asked = problem(ModuleModel(**TOWERS, measure="cpu", samples=(1,)), micro_batches=(1,))
    plan = pipeline.plan(asked, TableCosts(()), planner="balance")
    assert plan.sources == {"measured": 1.0}
    with pytest.raises(MissingProfile, match="local batch"):
        pipeline.plan(dataclasses.replace(asked, micro_batches=(8,)), TableCosts(()), planner="balance")


def test_a_kept_graph_is_used_again_and_is_a_plain_file() -> None:
    model = ModuleModel(**TOWERS)
    path = imported(model)
    stamp = path.stat().st_mtime_ns
    assert imported(model) == path
    assert path.stat().st_mtime_ns == stamp
    operators, edges = load(FileModel(path=str(path), format="plain"))
    assert build(operators, edges).edges == graph_of(problem(model)).edges


@pytest.mark.slow
def test_the_papers_multi_modal_transformer_from_a_module_without_weights() -> None:
    model = ModuleModel(module=f"{MODULES}:many", arguments=(Argument(shape=(256, 1024)),) * 4)
    graph, ours = graph_of(problem(model)), build(*generate(Model(family="multi-modal")))
    assert len(graph) == len(ours) == 33
    assert sum(o.weight_bytes for o in graph.operators) == pytest.approx(
        sum(o.weight_bytes for o in ours.operators), rel=1e-3)

    def products(operators: object) -> float:
        return sum(k.rows * k.columns * k.inner * k.count for o in operators for k in o.kernels)  # type: ignore[attr-defined]

    assert products(graph.operators) == pytest.approx(products(ours.operators), rel=1e-3)


def test_planning_a_module_loads_no_torch() -> None:
    asked = ModuleModel(**TOWERS)
    imported(asked)
    code = ("import sys; from planners.pipeline.loaders import imported, load; "
            "from planners.pipeline.problem import Argument, FileModel, ModuleModel; "
            f"path = imported({asked!r}); load(FileModel(path=str(path), format='plain')); "
            "print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


FLOATS = (Argument(shape=(4,)),)


@pytest.mark.parametrize("name, arguments, said", [
    ("tied", (Argument(shape=(6,), dtype="int64", below=30),), "cannot be cut"),
    ("with_dropout", FLOATS, "dropout"), ("with_batch_norm", FLOATS, "statistics of the batch"),
    ("scalar", FLOATS, "batch in front"), ("nothing", FLOATS, "not an nn.Module"), ("missing", FLOATS, "missing"),
    ("two_towers", FLOATS, "torch.export refuses")])
def test_what_cannot_be_imported_says_why(name: str, arguments: tuple[Argument, ...], said: str) -> None:
    from executors.pipeline.importing import plain_graph

    with pytest.raises(SpecError, match=said):
        plain_graph(ModuleModel(module=f"{MODULES}:{name}", arguments=arguments))


@pytest.mark.parametrize("module, said", [
    ("nowhere.py:f", "there is no file"), ("no.such.package:f", "there is no module"),
    ("model.py", "names no function"), (f"{MODULES}:with_dropout", "dropout")])
def test_a_reference_that_leads_nowhere_is_an_error(module: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        graph_of(problem(ModuleModel(module=module, arguments=FLOATS)))


def test_a_module_that_changed_after_planning_is_noticed() -> None:
    from executors.pipeline.modules import StageModule

    asked = problem(ModuleModel(**TOWERS))
    graph = graph_of(asked)
    renamed = build([dataclasses.replace(o, name=f"old {o.name}") for o in graph.operators], [])
    with pytest.raises(SpecError, match="import it again"):
        StageModule(asked, renamed, [0], [0])

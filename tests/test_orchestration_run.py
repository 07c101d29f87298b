"""Kernels compute what their primitives do on every back-end; costs are kept; programs are stitched, saved, checked."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from executors.orchestration import simulate  # noqa: E402
from executors.orchestration.backends import BACKENDS  # noqa: E402
from executors.orchestration.collapse import collapsed  # noqa: E402
from executors.orchestration.contenders import contender  # noqa: E402
from executors.orchestration.drawing import draw, picture  # noqa: E402
from executors.orchestration.evaluate import outputs  # noqa: E402
from executors.orchestration.kernels import Cannot, Operands, examples, function, graph_module  # noqa: E402
from executors.orchestration.layouts import channels_last  # noqa: E402
from executors.orchestration.library import VARIANTS  # noqa: E402
from executors.orchestration.measure import CACHES, TOLERANCE, ContextTimer, Subject, worst_error  # noqa: E402
from executors.orchestration.programs import example_inputs, random_weights  # noqa: E402
from executors.orchestration.running import CASES as INPUT_CASES  # noqa: E402
from executors.orchestration.running import _probes, verify  # noqa: E402
from executors.orchestration.stitched import load, save, stitch  # noqa: E402
from executors.orchestration.store import Store  # noqa: E402
from executors.orchestration.trial import trial, trial_here  # noqa: E402
from executors.orchestration.tune import fit_boundaries, fit_boundary, tune  # noqa: E402
from executors.orchestration.workshop import Workshop  # noqa: E402
from planners.orchestration import Problem, Program, check  # noqa: E402
from planners.orchestration import plan as make_plan  # noqa: E402
from planners.orchestration.candidates import Structure  # noqa: E402
from planners.orchestration.graph import Operand  # noqa: E402
from planners.orchestration.load import program_graph  # noqa: E402
from planners.orchestration.views import View  # noqa: E402
from tests.orchestration_cases import (  # noqa: E402
    CASES,
    attention,
    convolution,
    instance_norm,
    made,
    outside,
    program,
    step,
    structure,
    value,
)
from traces.profiles.kernels import KernelCosts, read  # noqa: E402
from workbench.errors import SpecError  # noqa: E402
from workbench.outcome import Outcome  # noqa: E402
from workbench.study import own_campaign  # noqa: E402

QUICK = ("eager", "library")
CONDITIONS: dict[str, str | int] = {"device": "cpu", "processor": "test", "threads": 1, "cache": "warm"}


def fixed(kernel: Structure, inputs: list[Any]) -> Operands:
    return Operands({i: x for i, (x, v) in enumerate(zip(inputs, kernel.inputs, strict=True)) if v.role == "weight"})


def data(kernel: Structure, inputs: list[Any]) -> list[Any]:
    return [x for x, v in zip(inputs, kernel.inputs, strict=True) if v.role == "data"]


def payloads(backend: str, kernel: Structure) -> list[Any]:
    """Everything a back-end could run for a kernel; none where it cannot."""
    chosen = BACKENDS[backend]
    if chosen.lacking() is not None:
        pytest.skip(f"{backend} {chosen.lacking()}")
    try:
        return list(chosen.alternatives(kernel, "cpu")) if chosen.alternatives else [chosen.prepare(kernel, "cpu", 1)]
    except Cannot:
        return []


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "inductor"])
def test_back_ends_compute_what_the_primitives_do_and_leave_their_operands_alone(backend: str, name: str) -> None:
    kernel = CASES[name]
    inputs = examples(kernel)
    before = [x.clone() for x in inputs]
    wanted = graph_module(kernel)(*[x.double() for x in inputs])[0]
    found = payloads(backend, kernel)
    assert found
    for payload in found:
        with torch.no_grad():
            got = function(BACKENDS[backend].fragment(kernel, payload, fixed(kernel, inputs)), kernel)(
                *data(kernel, inputs))
        assert worst_error(got, wanted) < 1e-5
        assert got.stride() == kernel.steps[-1].value.strides
        assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize(("kernel", "operators"), [
    (CASES["instance norm"], ["aten.native_group_norm.default", "aten.relu.default", "aten.reflection_pad2d.default"]),
    (CASES["attention"], ["wb.attention"]), (CASES["convolution"], ["wb.convolution"]),
    (CASES["linear"], ["wb.linear"])])
def test_patterns_are_put_back_together(kernel: Structure, operators: list[str]) -> None:
    found = collapsed(kernel, VARIANTS[0].split())
    assert found is not None
    assert [s.op for s in found.steps] == operators


def test_onnx_runtime_runs_a_shipped_program_as_its_primitives_do() -> None:
    graph = program_graph(Problem(program=Program(captured="segformer-attention")))
    weights, inputs = random_weights(graph), example_inputs(graph)
    try:
        made = contender("onnxruntime", graph, weights, device="cpu", threads=1)(*inputs)
    except Cannot as why:
        pytest.skip(str(why))
    assert worst_error(made, outputs(graph, inputs, weights, dtype=torch.float64)[0]) < 1e-5


def test_a_value_that_others_read_is_not_collapsed_away() -> None:
    kernel = attention()
    both = dataclasses.replace(kernel, outputs=(4, 7))  # the exponentials are stored as well
    found = collapsed(both, ["softmax", "attention"])
    assert found is None


def test_a_norm_with_another_mean_is_no_norm() -> None:
    kernel = instance_norm(pad=False)
    wrong = list(kernel.steps)
    wrong[3] = step("mean.dim", "reduce", [made(2)], (1, 4, 8, 1), ({"input": 0}, (3,), True))
    assert collapsed(dataclasses.replace(kernel, steps=tuple(wrong)), ["norm"]) is None


def test_back_ends_say_that_they_cannot() -> None:
    alone = Structure(inputs=CASES["linear"].inputs[:1], steps=(step("relu.default", "elementwise", [
        dataclasses.replace(made(0), origin="in")], (2, 5, 6)),), outputs=(0,))
    assert payloads("library", alone) == []
    strange = dataclasses.replace(alone, steps=(dataclasses.replace(alone.steps[0], op="aten.no_such.default"),))
    with pytest.raises(Cannot, match=r"no operator aten\.no_such\.default"):
        BACKENDS["eager"].fragment(strange, None, Operands({}))


def test_elementwise_steps_write_where_nobody_reads_any_more() -> None:
    kernel = instance_norm(pad=False)
    lines = BACKENDS["eager"].fragment(kernel, None, fixed(kernel, examples(kernel))).lines
    assert sum("_(" in line for line in lines) >= 5
    assert not any(line.startswith("{p}s2 = {p}s1.mul_") for line in lines)  # the centred values are read again


def test_measuring_scales_a_sample_and_takes_its_own_cost_off() -> None:
    ticks = iter(range(0, 10**9, 50))
    timer = ContextTimer(lambda: None, threads=2)
    timer.clock, timer.overhead_ns = lambda: next(ticks), 10
    assert timer.block(lambda: None, 1000) == pytest.approx(40e-9 * 1000)


def test_a_wrong_kernel_is_refused() -> None:
    kernel = CASES["linear"]
    subject = Subject.of(kernel, device="cpu", threads=1, cache="warm", sweep=torch.zeros(16))
    subject.wanted = tuple(w + 1e-4 * w.abs().max() for w in subject.wanted)
    with pytest.raises(Cannot, match="wrong result"):
        subject.measure("eager", None, best_s=1.0, seconds=0.01)


def test_zeros_are_no_softmax_however_small_its_values_are() -> None:
    scores = torch.zeros(1, 4096)
    assert worst_error(torch.zeros(1, 4096), scores.softmax(1)) > 10 * TOLERANCE
    assert worst_error(scores + 1e-8, scores) < TOLERANCE  # what cancels down to nothing keeps rounding


def test_constants_do_not_keep_the_reference_from_double_precision() -> None:
    rows = structure([value((64, 64)), value((64, 1), "constant", 0.1)],
                     [step("mm.default", "linear", [outside(0), outside(1)], (64, 1))])
    subject = Subject.of(rows, device="cpu", threads=1, cache="warm", sweep=torch.zeros(16))
    assert subject.wanted[0].dtype == torch.float64
    assert subject.allowed == TOLERANCE


def test_a_kernel_that_amplifies_rounding_may_be_off_by_what_eager_torch_is_off() -> None:
    difference = structure([value((64,)), value((64,), "constant", 1e6)], [
        step("add.Tensor", "elementwise", [outside(0), outside(1)], (64,)),
        step("sub.Tensor", "elementwise", [made(0), outside(1)], (64,))])
    subject = Subject.of(difference, device="cpu", threads=1, cache="warm", sweep=torch.zeros(16))
    assert subject.allowed > 100 * TOLERANCE
    assert subject.measure("eager", None, best_s=1.0, seconds=0.001)[1] <= subject.allowed / 4


def test_values_stay_of_order_one_through_many_layers() -> None:
    """Else whole programs overflow when they are compared, and count as wrong on every back-end but one."""
    deep = dataclasses.replace(CASES["linear"], inputs=(value((64, 64)), value((64, 64), "weight")), outputs=(59,),
                               steps=tuple(step("mm.default", "linear", [made(i - 1) if i else outside(0), outside(1)],
                                                (64, 64)) for i in range(60)))
    result = graph_module(deep)(*examples(deep))[0]
    assert 1e-6 < float(result.abs().max()) < 1e6


def test_a_store_survives_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    store = Store(tmp_path, CONDITIONS)
    store.add("a" * 64, "eager", 1e-3)
    store.add("a" * 64, "library", None, why="no pattern")
    store.set_boundary(None, 1e-6, 1e-12)
    store.set_boundary("eager", 2e-6, 0.0)
    whole = store.path.read_bytes()
    for cut in sorted(random.Random(0).sample(range(len(whole) - 60, len(whole)), 12)):
        store.path.write_bytes(whole[:cut])
        again = Store(tmp_path, CONDITIONS)
        assert again.costs.seconds == {("a" * 64, "eager"): 1e-3, ("a" * 64, "library"): float("inf")}
        assert again.costs.boundaries == {None: (1e-6, 1e-12)}
        again.add("b" * 64, "eager", 2e-3)
        assert read(again.path).seconds["b" * 64, "eager"] == 2e-3


def test_other_conditions_have_a_file_of_their_own(tmp_path: Path) -> None:
    first, second = Store(tmp_path, CONDITIONS), Store(tmp_path, CONDITIONS | {"threads": 2})
    first.add("a" * 64, "eager", 1e-3)
    assert not second.known("a" * 64, "eager")
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    kernel = CASES["linear"]
    wanted = [(kernel.digest(), kernel)]
    store = Store(tmp_path, CONDITIONS)
    shop = Workshop(store, backends=QUICK, device="cpu", threads=1, cache="warm", say=lambda _: None)
    shop.measure(wanted)
    assert shop.measured == 2
    again = Workshop(Store(tmp_path, CONDITIONS), backends=QUICK, device="cpu", threads=1, cache="warm",
                     say=lambda _: None)
    again.measure(wanted)
    assert again.measured == 0
    assert again.store.artifact(kernel.digest(), "library") in VARIANTS


def test_an_interrupted_measurement_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = list(CASES.values())
    shop = Workshop(Store(tmp_path, CONDITIONS), backends=["eager"], device="cpu", threads=1, cache="warm",
                    say=lambda _: None)
    whole, done = shop._all_backends, []

    def interrupted(digest: str, kernel: Structure) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(digest)
        whole(digest, kernel)

    monkeypatch.setattr(shop, "_all_backends", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shop.measure([(k.digest(), k) for k in kernels])
    assert {key for key, _ in Store(tmp_path, CONDITIONS).costs.seconds} == set(done)


def test_back_ends_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no back-end is called 'tvm'"):
        Workshop(Store(tmp_path, CONDITIONS), backends=["tvm"], device="cpu", threads=1, cache="warm",
                 say=lambda _: None)


def test_the_boundary_is_recovered_from_programs_that_have_one() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(6):
        alone, kernels = float(rng.uniform(1e-3, 1e-2)), int(rng.integers(2, 50))
        stored = int(rng.integers(1, 50)) << 20
        rows.append((alone + 2e-6 * kernels + 3e-12 * stored, alone, kernels, stored))
    per_kernel, per_byte = fit_boundary(rows)
    assert per_kernel == pytest.approx(2e-6)
    assert per_byte == pytest.approx(3e-12)
    assert fit_boundary([(1.0, 1.2, 3, 10)]) == (0.0, 0.0)  # faster than its kernels: nothing to add


def test_boundaries_are_recovered_by_back_end_from_kernels_in_programs() -> None:
    sizes = [1 << 10, 1 << 20, 1 << 16]
    rows = [(name, per_kernel + per_byte * n, n) for n in sizes
            for name, per_kernel, per_byte in (("eager", 1e-6, 0.0), ("onnxruntime", 9e-6, 4e-12))]
    found = fit_boundaries([*rows, ("inductor", 5e-6, 1)])
    assert found["eager"] == pytest.approx((1e-6, 0.0))
    assert found["onnxruntime"] == pytest.approx((9e-6, 4e-12))
    assert "inductor" not in found, "one kernel says nothing of its back-end"
    assert 1e-6 < found[None][0] < 9e-6
    assert fit_boundaries([("eager", -1e-6, n) for n in sizes])["eager"] == (0.0, 0.0)


@pytest.fixture(scope="module", autouse=True)
def small_sweeps() -> Iterator[None]:
    """Times do not matter here: kernels are measured without emptying the caches, programs not for long and here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CACHES, "warm", 1 << 12)
        patch.setattr("executors.orchestration.trial._PATIENT_S", 0.0)
        patch.setattr("executors.orchestration.tune.trial", trial_here)
        yield


class Tuned:
    """A problem tuned with the quick back-ends, once for all tests that need a plan."""

    def __init__(self, folder: Path, kernel: Structure) -> None:
        self.graph = program(kernel)
        self.problem = Problem(program=Program(inline=self.graph), backends=QUICK)
        self.done = tune(self.problem, folder=folder, kernel_s=0.002)
        self.plan = self.done.plan
        self.weights = random_weights(self.graph)


@pytest.fixture(scope="module", params=list(CASES))
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return Tuned(tmp_path_factory.mktemp("store"), CASES[request.param])


def payload_of(tuned: Tuned) -> Any:
    folder = tuned.done.store.parent / "artifacts"

    def found(digest: str, backend: str) -> Any:
        hits = sorted(folder.glob(f"{digest[:32]}-{backend}-*.txt"))
        return hits[0].read_text() if hits else None

    return found


def test_a_tuned_plan_is_proven_and_tuning_again_measures_nothing(tuned: Tuned) -> None:
    assert check(tuned.problem, tuned.plan) == []
    assert tuned.plan.certificate.status == "optimal"
    again = tune(tuned.problem, folder=tuned.done.store.parent)
    assert (again.measured, again.compiled, again.compilations) == (0, 0, 0)
    assert [k.primitives for k in again.plan.kernels] == [k.primitives for k in tuned.plan.kernels]


def test_what_is_off_in_the_program_is_timed_in_it(tuned: Tuned, tmp_path: Path) -> None:
    """A kernel that was lucky when it was measured is in the plan for that; the plan's times must not stay so."""
    folder = shutil.copytree(tuned.done.store.parent, tmp_path / "store")
    store = Store(folder, {k: v for k, v in read(tuned.done.store).conditions.items() if k != "date"})
    for kernel in tuned.plan.kernels:
        store.add(kernel.structure, kernel.backend, kernel.seconds / 4)
    done = tune(tuned.problem, folder=folder, gap=0.01)
    assert done.compiled == 0
    assert done.predicted_s > 0.5 * done.stitched_s
    rows = [json.loads(line) for line in store.path.read_text().splitlines()]
    assert {r["kernel"] for r in rows if r.get("in_place")} >= {k.structure for k in tuned.plan.kernels}
    again = tune(tuned.problem, folder=folder, gap=0.01)
    assert again.measured == 0
    assert again.predicted_s == done.predicted_s
    assert again.plan.kernels == done.plan.kernels


def test_a_tuning_that_time_ended_is_not_taken_up_again(tmp_path: Path) -> None:
    problem = Problem(program=Program(inline=program(instance_norm(pad=True))), backends=QUICK)
    done = tune(problem, folder=tmp_path, kernel_s=0.002, time_limit_s=0.0)
    again = tune(problem, folder=tmp_path, kernel_s=0.002, time_limit_s=0.0)
    assert (again.measured, again.compiled) == (0, 0)
    assert again.plan.kernels == done.plan.kernels
    longer = tune(problem, folder=tmp_path, kernel_s=0.002, time_limit_s=60.0)
    assert longer.plan.certificate.status == "optimal"


def test_a_tuning_killed_between_back_ends_asks_the_others_too(tmp_path: Path) -> None:
    """That a back-end has no kernel is often written down first; and a time on one says nothing of the others."""
    problem = Problem(program=Program(inline=program(CASES["linear"])), backends=QUICK)
    done = tune(problem, folder=tmp_path / "whole", kernel_s=0.002)
    rows = [json.loads(line) for line in done.store.read_text().splitlines()]
    head, digest = rows[0], next(r["kernel"] for r in rows if "kernel" in r)
    for told in ({"backend": QUICK[-1], "seconds": None, "why": "told early"}, {"backend": QUICK[0], "seconds": 1.0}):
        cut = tmp_path / str(told["backend"]) / done.store.name
        cut.parent.mkdir()
        cut.write_text(json.dumps(head) + "\n" + json.dumps({"kernel": digest, **told}) + "\n")
        again = tune(problem, folder=cut.parent, kernel_s=0.002)
        assert [k.primitives for k in again.plan.kernels] == [k.primitives for k in done.plan.kernels]
        assert {b for d, b in read(again.store).seconds if d == digest} == set(QUICK)


def test_a_plan_is_timed_in_a_process_of_its_own(tuned: Tuned) -> None:
    store = Store(tuned.done.store.parent, {k: v for k, v in read(tuned.done.store).conditions.items() if k != "date"})
    found = trial(tuned.graph, tuned.plan, tuned.weights, store, device="cpu", threads=1)
    assert found.seconds > 0
    assert len(found.kernels_s) == len(tuned.plan.kernels)
    assert found.launches == stitch(tuned.graph, tuned.plan, tuned.weights, store.artifact).launches
    broken = dataclasses.replace(tuned.plan, kernels=(dataclasses.replace(tuned.plan.kernels[0], primitives=("x",)),))
    with pytest.raises(SpecError, match="no primitive"):
        trial(tuned.graph, broken, tuned.weights, store, device="cpu", threads=1)


def test_the_stitched_program_equals_the_captured_one_also_for_large_logits(tuned: Tuned) -> None:
    stitched = stitch(tuned.graph, tuned.plan, tuned.weights, payload_of(tuned))
    for scale in (1.0, 100.0):
        inputs = example_inputs(tuned.graph, scale=scale)
        wanted, = outputs(tuned.graph, inputs, tuned.weights, dtype=torch.float64)
        assert bool(torch.isfinite(wanted).all())
        assert worst_error(stitched(*inputs), wanted) < 1e-4


def test_every_baseline_stitches_to_the_same_result(tuned: Tuned) -> None:
    costs = read(tuned.done.store)
    inputs = example_inputs(tuned.graph)
    wanted, = outputs(tuned.graph, inputs, tuned.weights)
    for planner in ("singletons", "greedy-fusion", "whole-graph"):
        plan = make_plan(tuned.problem, costs, planner=planner)
        assert worst_error(stitch(tuned.graph, plan, tuned.weights, payload_of(tuned))(*inputs), wanted) < 1e-4


def test_a_saved_program_comes_back(tuned: Tuned, tmp_path: Path) -> None:
    stitched = stitch(tuned.graph, tuned.plan, tuned.weights, payload_of(tuned))
    save(stitched, tuned.plan, tmp_path)
    again, plan = load(tmp_path)
    inputs = example_inputs(tuned.graph)
    assert plan == tuned.plan
    assert torch.equal(again(*inputs), stitched(*inputs))
    with pytest.raises(SpecError, match="no stitched program"):
        load(tmp_path / "nowhere")


def test_inputs_of_another_shape_are_refused(tuned: Tuned) -> None:
    stitched = stitch(tuned.graph, tuned.plan, tuned.weights, payload_of(tuned))
    with pytest.raises(SpecError, match="in0 is"):
        stitched(*[torch.zeros(3) for _ in tuned.graph.inputs])


def test_buffers_live_until_their_last_reader(tuned: Tuned) -> None:
    costs = read(tuned.done.store)
    plan = make_plan(tuned.problem, costs, planner="singletons")
    stitched = stitch(tuned.graph, plan, tuned.weights, payload_of(tuned))
    for name, (begin, end) in stitched.lifetimes.items():
        readers = [i for i, k in enumerate(plan.kernels) if name in k.inputs]
        outputs = [o.tensor for o in tuned.graph.outputs]
        assert end == (len(plan.kernels) if name in outputs else max(readers))
        assert name in plan.kernels[begin].outputs
    assert stitched.peak_bytes < stitched.stored_bytes
    assert simulate(tuned.problem, plan, costs)["peak_bytes"] == stitched.peak_bytes


def test_the_virtual_clock_adds_kernels_and_boundaries(tuned: Tuned) -> None:
    played = simulate(tuned.problem, tuned.plan, None)
    total = sum(k.seconds + k.boundary_s for k in tuned.plan.kernels)
    assert played["program_s"] == pytest.approx(total, rel=1e-9)
    assert played.timeline is not None
    assert played.timeline.violations() == []


def outcome(tuned: Tuned, wrong: float = 0.0, strange: float | None = None) -> Outcome:
    stitched = stitch(tuned.graph, tuned.plan, tuned.weights, payload_of(tuned))
    there = dataclasses.make_dataclass("There", ["graph"])(tuned.graph)
    rows = [row for case, scale in INPUT_CASES.items() for row in _probes(there, stitched, case, scale)]
    rows[3]["value"] += wrong * max(abs(r["value"]) for r in rows)
    if strange is not None:
        rows[3]["value"] = strange
    return Outcome(clock="measured", metrics=(), tables={"outputs": pd.DataFrame(rows)})


def test_verify_finds_one_wrong_element_among_the_outputs(tuned: Tuned) -> None:
    assert verify(tuned.problem, tuned.plan, outcome(tuned)) == []
    found = verify(tuned.problem, tuned.plan, outcome(tuned, wrong=0.1))
    assert [v.rule for v in found] == ["equality"]
    assert [v.rule for v in verify(tuned.problem, tuned.plan, outcome(tuned, strange=float("nan")))] == ["finite"]


def test_redundant_primitives_are_striped_and_the_picture_stands_alone(tuned: Tuned) -> None:
    from workbench.report import _safe_svg

    twice = dataclasses.replace(tuned.plan, kernels=(*tuned.plan.kernels, tuned.plan.kernels[0]))
    once, more = (draw(tuned.graph, p, label="a plan") for p in (tuned.plan, twice))
    repeated = len(tuned.plan.kernels[0].primitives)
    assert more.count("fill-opacity") - once.count("fill-opacity") == repeated + 1  # and one more row of the list
    assert _safe_svg(picture(tuned.graph, tuned.plan).wide, "plan")


def test_channels_last_changes_images_that_their_readers_can_take() -> None:
    graph = program(convolution())
    turned = channels_last(graph)
    strides = {t.name: t.strides for t in turned.tensors}
    assert strides["t0"] == (288, 1, 48, 8)
    assert strides["t3"] is None  # the program's output stays as it was
    rows = View(op="aten.view.default", arguments=((1, 288),))
    reads = dataclasses.replace(graph.primitives[2], inputs=(Operand(tensor="t1", views=(rows,)),))
    refused = channels_last(dataclasses.replace(graph, primitives=(*graph.primitives[:2], reads, graph.primitives[3])))
    assert {t.name: t.strides for t in refused.tensors}["t1"] is None


def test_a_channels_last_program_computes_the_same(tmp_path: Path) -> None:
    graph = program(convolution())
    turned = channels_last(graph)
    problem = Problem(program=Program(inline=turned), backends=QUICK)
    done = tune(problem, folder=tmp_path, kernel_s=0.002)
    weights, inputs = random_weights(graph), example_inputs(graph)
    costs: KernelCosts = read(done.store)
    plan = make_plan(problem, costs, planner="singletons")
    held = Store(tmp_path, {k: v for k, v in costs.conditions.items() if k != "date"})
    wanted, = outputs(graph, inputs, weights)
    assert worst_error(stitch(turned, plan, weights, held.artifact)(*inputs), wanted) < 1e-5


class Small(torch.nn.Module):
    """A convolution with a batch norm, attention over its pixels, a layer norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.batch, self.layer = torch.nn.BatchNorm2d(8), torch.nn.LayerNorm(8)
        self.out = torch.nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = torch.nn.functional.silu(self.batch(self.convolution(x))).flatten(2).transpose(1, 2)
        x = x + torch.nn.functional.scaled_dot_product_attention(x, x, x)
        return torch.nn.functional.gelu(self.out(self.layer(x)))


@pytest.mark.parametrize("layout", ["as captured", "channels last"])
def test_a_captured_module_is_tuned_stitched_and_equal_to_itself(layout: str, tmp_path: Path) -> None:
    from executors.orchestration.capture import capture, save_captured
    from executors.orchestration.programs import behind

    torch.manual_seed(0)
    module, x = Small().eval(), torch.randn(1, 3, 6, 6)
    found = capture(module, [x], name="small")
    graph = found.graph if layout == "as captured" else channels_last(found.graph)
    save_captured(dataclasses.replace(found, graph=graph), tmp_path / "small.json")
    problem = Problem(program=Program(file=str(tmp_path / "small.json")), backends=QUICK)
    there = behind(problem)
    assert there.weights.keys() == found.weights.keys()
    done = tune(problem, folder=tmp_path / "store", gap=0.1, kernel_s=0.002, time_limit_s=2.0)
    assert check(problem, done.plan) == []
    costs = read(done.store)
    held = Store(tmp_path / "store", {k: v for k, v in costs.conditions.items() if k != "date"})
    for planner in ("optimal", "singletons", "whole-graph"):
        plan = done.plan if planner == "optimal" else make_plan(problem, costs, planner=planner)
        stitched = stitch(graph, plan, there.weights, held.artifact)
        for scale in (1.0, 100.0):
            with torch.no_grad():
                wanted = Small.forward(module.double(), x.double() * scale)
            module.float()
            assert worst_error(stitched(x * scale), wanted) < 1e-4


def test_wb_profile_finds_the_study_that_measures_itself(tmp_path: Path) -> None:
    found = own_campaign(["orchestration"])
    assert found is not None
    assert own_campaign(["gemm"]) is None
    assert own_campaign(["orchestration", "gemm"]) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_inductor_kernels_load_without_compiling(name: str, tmp_path: Path) -> None:
    kernel = CASES[name]
    wanted = [(kernel.digest(), kernel)]
    shop = Workshop(Store(tmp_path, CONDITIONS), backends=["eager", "inductor"], device="cpu", threads=1, cache="warm",
                    say=lambda _: None)
    try:
        shop.measure(wanted)
    finally:
        shop.close()
    assert shop.compiled == 1
    assert np.isfinite(shop.store.costs.seconds[kernel.digest(), "inductor"])
    there = shop.store.compilations()
    again = Workshop(Store(tmp_path, CONDITIONS), backends=["eager", "inductor"], device="cpu", threads=1, cache="warm",
                     say=lambda _: None)
    again.store.costs.seconds.pop((kernel.digest(), "inductor"))
    again.measure(wanted)
    assert (again.compiled, again.store.compilations() - there) == (0, 0)


@pytest.mark.slow
def test_run_measures_beside_the_others_and_verify_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from executors.orchestration import run
    from executors.orchestration import verify as verified

    monkeypatch.setenv("WB_KERNELS", str(tmp_path))
    found = Tuned(tmp_path, CASES["attention"])
    measured = run(found.problem, found.plan, device="cpu")
    assert set(measured.tables["beside"]["program"]) >= {"stitched", "eager", "torch.compile", "inductor"}
    assert len(measured.tables["kernels"]) == len(found.plan.kernels)
    assert measured.timeline is not None
    assert measured.timeline.violations() == []
    assert verified(found.problem, found.plan, measured) == []


@pytest.mark.gpu
def test_a_program_in_a_cuda_graph_computes_the_same(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    graph = program(attention())
    problem = Problem(program=Program(inline=graph), backends=QUICK)
    done = tune(problem, folder=tmp_path, device="cuda")
    weights = random_weights(graph, device="cuda")
    inputs = example_inputs(graph, device="cuda")
    costs = read(done.store)
    held = Store(tmp_path, {k: v for k, v in costs.conditions.items() if k != "date"})
    stitched = stitch(graph, done.plan, weights, held.artifact, device="cuda")
    assert torch.allclose(stitched.graphed(*inputs)(*inputs), stitched(*inputs), atol=1e-5)

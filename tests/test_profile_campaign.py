"""Profiling campaigns: they cover, refine where it is least sure, resume, and write tables that cost models open."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the profilers need torch: pip install 'planner-workbench[run]'")

from profilers import campaign as campaign_module
from profilers import collectives
from profilers import family as family_module
from profilers.campaign import Campaign
from profilers.family import GridAxis, Op, Prepared, Work, families, ops_of
from profilers.harness import CudaTimer, Measurement
from profilers.journal import Journal
from profilers.series import Series, agreed
from workbench.costfiles import load_tables
from workbench.costs import Provenance, held_out_errors, open_costs
from workbench.costtables import Term
from workbench.errors import SpecError


def scripted(seconds: Any, **changes: Any) -> Op:
    """An op whose time is a formula; ``prepare`` hands the formula's value to the patched measurement."""
    facts = {"name": "scripted", "about": "a formula", "axes": (GridAxis("x", (1, 16, 256)),),
             "prepare": lambda point, device, rng: Prepared(lambda: seconds(point)),
             "work": lambda point: Work(1.0, 1.0)}
    return Op(**(facts | changes))


@pytest.fixture
def on_op(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A campaign over given ops whose measurements return the formula, without noise."""
    def exact(kernel: Any, **_: Any) -> Measurement:
        t = kernel()
        return Measurement(median_s=t, min_s=t, interval_s=(t, t), blocks=9, calls=1)

    def make(*ops: Op, folder: Path, target: float = 0.05) -> Campaign:
        monkeypatch.setattr(campaign_module, "ops_of", lambda names, device: [("f", op) for op in ops])
        monkeypatch.setattr(campaign_module, "measure", exact)
        return Campaign([], device="cpu", folder=folder, error_target=target)

    return make


def silent(_: str) -> None:
    """Say nothing."""


def test_refinement_goes_where_the_curve_bends_and_reaches_the_target(on_op: Any, tmp_path: Path) -> None:
    """A knee at x = 40: every point between knots must be predicted within the target, with knots mostly near it."""
    def knee(point: Any) -> float:
        return 1e-3 * max(1.0, point["x"] / 40)

    campaign = on_op(scripted(knee, axes=(GridAxis("x", (1, 8, 64, 512, 4096)),)), folder=tmp_path)
    campaign.run(30.0, silent)
    table = load_tables(tmp_path)[0]
    xs = np.unique(np.geomspace(1, 4096, 200).round())
    found, _ = table.many(xs)
    truth = np.array([knee({"x": x}) for x in xs])
    assert np.abs(found / truth - 1).max() < 0.05
    knots = np.array(table.knots("x"))
    assert ((knots > 8) & (knots < 512)).sum() >= (knots > 512).sum() + 2


def test_outer_axes_are_refined_with_their_whole_inner_lines(on_op: Any, tmp_path: Path) -> None:
    def formula(point: Any) -> float:
        return 1e-3 * max(1.0, point["a"] / 100) * (1 + point["b"])

    op = scripted(formula, axes=(GridAxis("a", (1, 32, 1024)), GridAxis("b", (1, 4))))
    on_op(op, folder=tmp_path).run(30.0, silent)
    table = load_tables(tmp_path)[0]
    assert len(table.knots("a")) > 3
    assert len(table.points) == len(table.knots("a")) * len(table.knots("b"))


def test_a_second_campaign_measures_only_what_is_missing_and_a_torn_journal_is_no_obstacle(
        on_op: Any, tmp_path: Path) -> None:
    asked: list[int] = []

    def formula(point: Any) -> float:
        asked.append(point["x"])
        return 1e-3 * point["x"]

    op = scripted(formula)
    on_op(op, folder=tmp_path).run(30.0, silent)
    first = len(asked)
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write('{"conditions": "x", "ta')
    on_op(op, folder=tmp_path).run(30.0, silent)
    assert len(asked) == first
    wider = scripted(formula, axes=(GridAxis("x", (1, 16, 256, 4096)),))
    on_op(wider, folder=tmp_path).run(30.0, silent)
    assert set(asked[first:]) >= {4096}
    assert 16 not in asked[first:]


def test_an_interrupt_keeps_the_points_and_writes_the_tables(on_op: Any, tmp_path: Path) -> None:
    def formula(point: Any) -> float:
        if point["x"] == 16:
            raise KeyboardInterrupt
        return 1e-3 * point["x"]

    with pytest.raises(KeyboardInterrupt):
        on_op(scripted(formula), folder=tmp_path).run(30.0, silent)
    assert load_tables(tmp_path)[0].knots("x") == [1.0, 256.0]


def test_all_grids_are_covered_before_any_is_refined_whatever_threads_they_use(on_op: Any, tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []
    freed: list[int] = []

    def formula(point: Any) -> float:
        asked.append((point["kind"], point["x"]))
        return 1e-3 * (1 + point["x"] ** 0.5)

    ops = [scripted(formula, name=name, variants=({"kind": name},), threads=threads,
                    finish=lambda: freed.append(len(asked)))
           for name, threads in (("one", 1), ("all", 0))]
    on_op(*ops, folder=tmp_path).run(30.0, silent)
    assert set(asked[:6]) == {(name, x) for name in ("one", "all") for x in (1, 16, 256)}
    assert len(asked) > 12
    assert set(freed) == {len(asked)}, "what calls share is freed once all is measured"


def test_an_axis_of_powers_gets_no_other_values(on_op: Any, tmp_path: Path) -> None:
    def bent(point: Any) -> float:
        return 1e-3 * max(1.0, point["x"] / 300)

    op = scripted(bent, axes=(GridAxis("x", (1, 64, 4096), base=2),))
    on_op(op, folder=tmp_path, target=0.001).run(30.0, silent)
    knots = load_tables(tmp_path)[0].knots("x")
    assert {256.0, 512.0} < set(knots)
    assert all(float(x).is_integer() and int(x).bit_count() == 1 for x in knots)


def test_the_budget_is_kept(on_op: Any, tmp_path: Path) -> None:
    def slow(point: Any) -> float:
        time.sleep(0.02)
        return 1e-3 * (1 + np.sin(point["x"]) ** 2)

    start = time.monotonic()
    on_op(scripted(slow, axes=(GridAxis("x", tuple(range(1, 2000))),)), folder=tmp_path).run(0.5, silent)
    assert time.monotonic() - start < 2.0


def test_tables_carry_conditions_and_errors_and_open_as_measured_costs(on_op: Any, tmp_path: Path) -> None:
    campaign = on_op(scripted(lambda p: 1e-3 * p["x"], variants=({"kind": "a"}, {"kind": "b"})), folder=tmp_path)
    rows = campaign.run(30.0, silent)
    assert [row["error_median"] for row in rows] == pytest.approx([0.0, 0.0], abs=1e-9)
    costs = open_costs({"source": "measured", "folder": str(tmp_path)})
    found = costs.cost("scripted", device="cpu", kind="b", x=100)
    assert found.seconds == pytest.approx(0.1)
    assert found.source == "interpolated"
    where = next(iter(costs.provenance().values()))
    assert (where.error_p90, where.error_point) == (pytest.approx(0.0, abs=1e-9), 0.0)
    keys = {text.partition("=")[0] for text in where.conditions}
    assert {"device", "cpu", "cpu_flags", "threads", "malloc", "version.torch"} <= keys
    assert where.date is not None
    campaign.run(1.0, silent)
    assert len(list(tmp_path.glob("*.toml"))) == 2, "a rerun leaves no older tables behind"


def steady(seconds: float, half_width: float = 0.0, noise: str | None = None) -> Measurement:
    return Measurement(median_s=seconds, min_s=seconds, blocks=9, calls=1, noise=noise,
                       interval_s=(seconds * (1 - half_width), seconds * (1 + half_width)))


@pytest.mark.parametrize("times", ["linear", "log"])
def test_leave_one_out_errors_equal_the_tables_own(times: str, tmp_path: Path) -> None:
    """The quick estimate on lines equals removing the row from a real table and asking it, without a prior."""
    series = Series(scripted(lambda p: 1.0, times=times), {})
    journal = Journal(tmp_path / "journal.jsonl", "c")
    for x in (1, 3, 16, 40, 256):
        series.add((x,), steady(1e-3 * (1 + x**0.7)), journal)
    table = dataclasses.replace(series.table("cpu", Provenance(id="i", origin="o", device="cpu")), prior=None)
    series._shape = {}
    quick = [error for _, _, _, errors in series._left_out() for error, _ in errors]
    assert sorted(quick) == pytest.approx(sorted(held_out_errors(table, "x")))


def test_a_prior_is_taken_where_it_predicts_left_out_points_better(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", "c")
    line, steps = (Series(scripted(lambda p: 1.0), {"kind": kind}) for kind in ("line", "steps"))
    for x in (1, 4, 16, 64, 256):
        line.add((x,), steady(1e-5 + 1e-6 * x), journal)
        steps.add((x,), steady(1e-5 * x**0.5), journal)
    assert line.prior() is not None
    assert max(abs(line.errors())) < 1e-9
    assert steps.prior() is None, "a square root is straight on log scales and no sum of whole powers"
    assert max(abs(steps.errors())) < 1e-9


def test_a_grid_of_corners_believes_what_the_op_says_of_its_shape(tmp_path: Path) -> None:
    """Nothing can be left out of two values an axis; straight lines would be 60 % off in the middle."""
    journal = Journal(tmp_path / "journal.jsonl", "c")
    axes = tuple(GridAxis(name, (1, 16)) for name in "xyz")

    def truth(x: float, y: float, z: float) -> float:
        return 1e-6 * (3 + x * x * y + 2 * y * z)

    for terms, known in (((), False), (("x x y", "y z", "x z"), True)):
        series = Series(scripted(lambda p: 1.0, axes=axes, terms=terms), {"terms": str(known)})
        for at in itertools.product((1, 16), repeat=3):
            series.add(at, steady(truth(*at)), journal)
        assert (series.prior() is not None) == known
        off = series.table("cpu", Provenance(id="i", origin="o", device="cpu")).at(4, 4, 4).seconds / truth(4, 4, 4) - 1
        assert abs(off) < 1e-6 if known else off > 0.5


def test_operands_beyond_the_cache_are_terms_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_module, "last_cache_bytes", lambda: 1 << 20)
    op = scripted(lambda p: 1.0, terms=("x",), held=(("x", lambda keys: 4.0 * keys["heads"]),))
    assert op.on("cpu").prior_terms({"heads": 8}) == (Term((1,)), Term((1,), (1 << 19) / 32))
    assert op.on("cuda").prior_terms({"heads": 8}) == (Term((1,)),)
    monkeypatch.setattr(family_module, "last_cache_bytes", lambda: None)
    assert op.on("cpu").prior_terms({"heads": 8}) == (Term((1,)),)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_terms_of_every_op_are_products_of_its_axes(device: str) -> None:
    for _, op in ops_of([], device):
        for keys in op.variants:
            terms = op.prior_terms(keys)
            assert len(set(terms)) == len(terms)
            assert all(len(term.exponents) == len(op.axes) and any(term.exponents) for term in terms)


def test_gaps_that_noise_explains_are_not_split(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", "c")
    for half_width, splits in ((0.0, True), (0.1, False)):
        series = Series(scripted(lambda p: 1.0), {"half_width": str(half_width)})
        for x, wiggle in ((1, 1.0), (4, 1.12), (16, 1.0), (64, 1.12), (256, 1.0)):
            series.add((x,), steady(1e-3 * x**0.5 * wiggle, half_width), journal)
        assert (series.worst_gap()[0] > 0.03) == splits


def test_the_least_disturbed_of_several_visits_counts_and_disagreement_is_noise() -> None:
    slow, fast, near = steady(1.3), steady(1.0), steady(1.05)
    assert agreed([slow, near, fast]) == fast
    assert agreed([steady(0.5, noise="steal 9%"), fast]) == fast, "what is known to be disturbed does not count"
    assert agreed([slow, fast]).noise == "30% apart at different times"
    wide, tight = steady(1.0, 0.2, "bimodal"), steady(1.2, 0.1, "bimodal")
    assert agreed([wide, tight]) == tight
    busy = [dataclasses.replace(steady(2.0, 0.1, "foreign load 40%"), min_s=least) for least in (1.4, 1.1)]
    assert (agreed(busy).median_s, agreed(busy).noise) == (1.1, "foreign load 40%")


def test_every_point_is_seen_twice_and_noisy_ones_four_times(on_op: Any, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def at_16_noisy(series: Series, at: tuple[int, ...], *_: Any) -> Measurement:
        return steady(1e-3 * at[0], noise="bimodal" if at[0] == 16 else None)

    campaign = on_op(scripted(lambda p: 1.0), folder=tmp_path)
    monkeypatch.setattr(campaign_module, "measured", at_16_noisy)
    rows = campaign.run(30.0, silent)
    assert rows[0]["noisy"] == 1
    seen = [json.loads(line)["at"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert (seen.count([1]), seen.count([16]), seen.count([256])) == (2, 4, 2)


def test_a_kernel_that_fails_at_a_point_costs_only_that_point(on_op: Any, tmp_path: Path) -> None:
    def fails_at_16(point: Any) -> float:
        if point["x"] == 16:
            raise ValueError("too narrow")
        return 1e-3 * point["x"]

    said: list[str] = []
    campaign = on_op(scripted(fails_at_16), folder=tmp_path)
    campaign.run(30.0, said.append)
    assert load_tables(tmp_path)[0].knots("x") == [1.0, 256.0]
    assert sum("cannot be measured: scripted() at (16,): ValueError: too narrow" in line for line in said) == 1


def test_a_kernel_that_never_runs_costs_the_others_nothing(on_op: Any, tmp_path: Path) -> None:
    def fails(point: Any) -> float:
        raise ValueError("never")

    ops = [scripted(formula, name=name, variants=({"kind": name},))
           for name, formula in (("fails", fails), ("runs", lambda point: 1e-3 * point["x"]))]
    assert [row["table"] for row in on_op(*ops, folder=tmp_path).run(30.0, silent)] == ["runs(kind=runs)"]


def test_a_knot_that_fails_when_seen_again_keeps_its_first_measurement(on_op: Any, tmp_path: Path) -> None:
    """The campaign ends all the same, and splits the gaps beside it."""
    seen: set[int] = set()

    def formula(point: Any) -> float:
        if point["x"] == 1 and 1 in seen:
            raise ValueError("only once")
        seen.add(point["x"])
        return 1e-3 * point["x"] ** (1 if point["x"] < 20 else 2)

    campaign = on_op(scripted(formula, name="once", variants=({"kind": "once"},)), folder=tmp_path)
    campaign.run(30.0, silent)
    series = campaign.series[0]
    assert series.visits((1,)) == 1 and (1,) in series.points and (1,) in series.failed
    assert len(series.points) > len(series.grid)


def test_a_collective_counts_without_the_calls_that_waited_for_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call in five takes 4 ms more; a block is as long as its calls' median says."""
    clock = [0.0]
    calls = itertools.count()
    told: list[int] = []

    def call() -> None:
        clock[0] += 2e-4 + (4e-3 if next(calls) % 5 == 2 else 0.0)

    monkeypatch.setattr(collectives.time, "perf_counter", lambda: clock[0])
    pipe: Any = SimpleNamespace(send=told.append)
    timer = collectives._GroupTimer([pipe], (), "all_reduce", "cpu")
    assert timer.block(call, 20) / 20 == pytest.approx(2e-4)
    assert timer.block(call, 1) == pytest.approx(2e-4)
    untimed = collectives._UNTIMED
    assert told == [20 + untimed, collectives._MOST_CALLS + untimed], "short calls fill a block"


def test_families_are_found_and_unknown_names_get_the_nearest() -> None:
    found = families()
    assert {"gemm", "attention", "pq", "lsh", "memory"} <= set(found)
    assert "harness" not in found
    assert "orchestration" not in found, "it has a campaign of its own, and no grids"
    with pytest.raises(SpecError, match="gemm"):
        ops_of(["gem"], "cpu")
    assert {op.name for _, op in ops_of(["attention_decode"], "cpu")} == {"attention_decode"}


@pytest.mark.parametrize("op", [op for ops in families().values() for op in ops if "cpu" in op.devices],
                         ids=lambda op: op.name)
def test_the_least_corner_of_every_op_can_be_prepared_and_run(op: Op, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for keys in op.variants:
        point = {**keys, **{a.name: a.start[0] for a in op.axes}}
        work = op.work(point)
        assert work.flops >= 0
        assert work.bytes > 0
        made = op.prepare(point, "cpu", np.random.default_rng(0))
        try:
            if made.timer is None:
                made.run()
            else:
                assert made.timer.block(made.run, 3) > 0
        finally:
            if made.close is not None:
                made.close()
            if op.finish is not None:
                op.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("op", [op for ops in families().values() for op in ops if "cuda" in op.devices],
                         ids=lambda op: op.name)
def test_the_least_corner_of_every_op_can_be_measured_on_a_gpu(op: Op, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if (why := op.on("cuda").lacking("cuda")) is not None:
        pytest.skip(why)
    monkeypatch.chdir(tmp_path)
    on = op.on("cuda")
    series = Series(on, on.variants[0])
    found = campaign_module.measured(series, tuple(a.start[0] for a in on.axes), "cuda", CudaTimer())
    assert 0 < found.median_s < 1.0
    if on.finish is not None:
        on.finish()


def test_wb_profile_measures_says_and_resumes(wb: Any, tmp_path: Path) -> None:
    code, out, err = wb("profile", "pq_topk", "--budget", "2s", "--json")
    assert code == 0, err
    assert json.loads(out)["tables"][0]["points"] >= 1
    assert "points, about" in err
    assert "1 thread bound to CPU" in err
    code, _, err = wb("profile", "pq_topk", "--budget", "1s")
    assert code == 0
    assert "are kept" in err


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (["profile", "gem"], 2, "did you mean 'gemm'"),
    (["profile", "--budget", "soon"], 2, "no length of time"),
    (["profile", "--budget", "0s"], 2, "no length of time"),
])
def test_faults_of_wb_profile_are_clear(wb: Any, arguments: list[str], code: int, says: str) -> None:
    found, _, err = wb(*arguments)
    assert found == code
    assert says in err


def test_the_report_shows_every_family_under_the_measured_roofs(wb: Any, tmp_path: Path) -> None:
    """A folder of tables with known rates: 2 GFLOP/s of gemm and 4 GB/s of copies are the roofs on the page."""
    from workbench.costfiles import save_tables
    from workbench.costs import Axis, ProfileTable, Provenance

    where = Provenance(id="i", origin="this machine", device="cpu", date="2025-01-01", conditions=("threads=1",))
    cubes = np.array([[n, k, m] for n in (64, 128) for k in (64, 128) for m in (1, 8)], dtype=float)
    sizes = np.array([[1 << 20], [1 << 24], [1 << 27]], dtype=float)
    save_tables(tmp_path / "profiles", [
        ProfileTable(op="gemm", keys={"device": "cpu", "dtype": "fp32"}, points=cubes, provenance=where, times="log",
                     axes=tuple(Axis(a, "log") for a in "nkm"), seconds=2 * cubes.prod(axis=1) / 2e9),
        ProfileTable(op="memory_copy", keys={"device": "cpu"}, points=sizes, provenance=where, times="log",
                     axes=(Axis("bytes", "log"),), seconds=2 * sizes[:, 0] / 4e9)])
    code, out, err = wb("profile", "--report", "--json")
    assert code == 0, err
    page = Path(json.loads(out)["report"])
    assert "2.0 GFLOP/s" in page.read_text()
    assert "4.0 GB/s" in page.read_text()
    assert {p.name for p in page.parent.glob("*.html")} == {"profile.html", "profile-gemm.html", "profile-memory.html"}


def test_a_report_without_peaks_names_what_to_measure(wb: Any, tmp_path: Path) -> None:
    assert wb("profile", "pq_topk", "--budget", "1s")[0] == 0
    code, _, err = wb("profile", "--report")
    assert code == 4
    assert "next: wb profile gemm memory" in err

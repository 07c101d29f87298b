"""Profile tables interpolate without inventing, cost models never guess silently, and files are whole."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.costfiles import load_tables, save_tables
from workbench.costs import (
    SOURCES,
    Axis,
    Cost,
    CountedCosts,
    FallbackCosts,
    Prior,
    ProfileTable,
    Provenance,
    TableCosts,
    held_out_errors,
    open_costs,
    sweep,
)
from workbench.costtables import Term
from workbench.errors import MissingProfile, SpecError, TraceError

HERE = Provenance(id="test", origin="this test", device="d")


def table(points: object, seconds: object, *, axes: str = "x", scale: str = "linear", times: str = "linear",
          op: str = "op", **keys: str | int) -> ProfileTable:
    return ProfileTable(op=op, keys=keys, axes=tuple(Axis(a, scale) for a in axes),  # type: ignore[arg-type]
                        points=np.array(points, dtype=float), seconds=np.array(seconds, dtype=float), provenance=HERE,
                        times=times)  # type: ignore[arg-type]


def grid(*axes: list[float]) -> np.ndarray:
    return np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)


@st.composite
def ragged(draw: st.DrawFn) -> ProfileTable:
    """A table of two or three axes whose inner values differ from node to node."""
    depth = draw(st.integers(2, 3))
    values = st.lists(st.integers(1, 60), min_size=1, max_size=5, unique=True)
    prefixes: list[tuple[int, ...]] = [()]
    for _ in range(depth):
        prefixes = [(*p, v) for p in prefixes for v in draw(values)]
    rows = draw(st.permutations(prefixes)) if len(prefixes) < 40 else prefixes
    seconds = [draw(st.floats(1e-6, 10.0)) for _ in rows]
    return table(rows, seconds, axes="xyz"[:depth])


@given(ragged(), st.data())
def test_measured_points_come_back_exactly_and_are_called_measured(t: ProfileTable, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(t.seconds) - 1))
    assert t.at(*t.points[row]) == Cost(t.seconds[row], "measured")


@given(ragged(), st.data())
def test_an_interpolated_time_stays_within_the_measured_range(t: ProfileTable, data: st.DataObject) -> None:
    point = [data.draw(st.floats(1, 60)) for _ in t.axes]
    found = t.at(*point)
    assert found.seconds > 0
    if found.source == "interpolated":
        assert t.seconds.min() * (1 - 1e-12) <= found.seconds <= t.seconds.max() * (1 + 1e-12)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6, unique=True), st.floats(0, 5), st.floats(0, 5),
       st.floats(0.1, 5), st.floats(0.5, 2000), st.floats(0.5, 2000), st.floats(0, 500))
def test_monotone_data_give_monotone_answers(xs: list[int], a: float, b: float, c: float, x: float, y: float,
                                             more: float) -> None:
    points = grid(sorted(xs), [1, 10, 100])
    t = table(points, c + a * points[:, 0] ** 1.3 + b * np.sqrt(points[:, 1]) * points[:, 0], axes="xy")
    assert t.at(x, y).seconds <= t.at(x + more, y).seconds * (1 + 1e-9)
    assert t.at(x, y).seconds <= t.at(x, y + more).seconds * (1 + 1e-9)


@given(st.floats(1, 5), st.floats(0, 5), st.floats(0, 5), st.floats(0, 5), st.floats(1, 900), st.floats(1, 90))
def test_a_bilinear_cost_is_reproduced_also_beyond_the_last_point(a: float, b: float, c: float, d: float, x: float,
                                                                  y: float) -> None:
    points = grid([1, 3, 10, 100], [1, 2, 30])
    t = table(points, a + b * points[:, 0] + c * points[:, 1] + d * points[:, 0] * points[:, 1], axes="xy")
    assert t.at(x, y).seconds == pytest.approx(a + b * x + c * y + d * x * y, rel=1e-9)


def test_log_scales_reproduce_a_power_law() -> None:
    points = grid([1, 8, 64], [2, 32])
    t = table(points, 3e-6 * points[:, 0] ** 0.7 * points[:, 1] ** 1.4, axes="xy", scale="log", times="log")
    assert t.at(5, 11).seconds == pytest.approx(3e-6 * 5**0.7 * 11**1.4, rel=1e-12)


def test_sources_say_how_a_time_is_known() -> None:
    t = table([[1, 1], [1, 2], [4, 1], [4, 2], [4, 8]], [1, 2, 4, 5, 9], axes="xy")
    assert t.at(4, 8).source == "measured"
    assert t.at(2, 1).source == "interpolated"
    assert t.at(4, 9).source == "extrapolated"
    assert t.at(5, 1).source == "extrapolated"
    assert t.at(0.5, 1) == Cost(1.0, "extrapolated"), "below the first point its time stays"
    assert t.at(2, 8).source == "extrapolated", "one of the two neighbours is not measured that far"


def test_times_beyond_the_last_point_never_fall() -> None:
    t = table([[1], [2], [4]], [1.0, 3.0, 2.0])
    assert t.at(100).seconds == 2.0


@settings(max_examples=30)
@given(ragged(), st.integers(0, 2**32 - 1))
def test_many_points_at_once_equal_one_at_a_time(t: ProfileTable, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.where(rng.random((400, len(t.axes))) < 0.5, rng.integers(1, 61, (400, len(t.axes))),
                      rng.uniform(0.5, 70, (400, len(t.axes))))
    seconds, ranks = t.many(*points.T)
    for point, s, r in zip(points, seconds, ranks, strict=True):
        one = t.at(*point)
        assert one.source == SOURCES[r]
        assert one.seconds == pytest.approx(s, rel=1e-12)


def test_repeated_points_count_with_their_median() -> None:
    assert table([[1], [1], [1], [2]], [5.0, 1.0, 2.0, 7.0]).at(1) == Cost(2.0, "measured")
    assert table([[1], [1]], [1.0, 2.0]).at(1).seconds == 1.5


@pytest.mark.parametrize(("points", "seconds", "scale"), [
    ([[1], [2]], [1.0, 0.0], "linear"), ([[1], [np.nan]], [1.0, 1.0], "linear"), ([[0], [2]], [1.0, 1.0], "log"),
    ([[1], [2]], [1.0, np.inf], "linear"), (np.empty((0, 1)), [], "linear"), ([[1, 2]], [1.0], "linear")])
def test_impossible_rows_are_refused(points: object, seconds: object, scale: str) -> None:
    with pytest.raises(TraceError):
        table(points, seconds, scale=scale)


def test_the_error_of_leaving_points_out_is_zero_for_what_the_table_can_express() -> None:
    points = grid([1, 2, 4, 8], [1, 10])
    straight = table(points, 1 + points[:, 0] * points[:, 1], axes="xy")
    errors = held_out_errors(straight, "x")
    assert len(errors) == 4
    assert np.abs(errors).max() < 1e-12
    bent = table(points, points[:, 0] ** 2, axes="xy")
    assert np.median(np.abs(held_out_errors(bent, "x"))) > 0.1
    with pytest.raises(SpecError, match="no axis"):
        held_out_errors(bent, "z")


def test_a_missing_profile_names_the_key_the_nearest_and_the_command() -> None:
    costs = TableCosts([table([[1]], [1.0], op="gemm", device="H100-SXM", dtype="bf16")])
    with pytest.raises(MissingProfile) as caught:
        costs.cost("gemm", device="H100-SMX", dtype="bf16", x=1)
    text = str(caught.value)
    assert "gemm(device=H100-SMX, dtype=bf16, x=1)" in text
    assert "nearest H100-SXM" in text
    assert "wb profile gemm" in text
    with pytest.raises(MissingProfile, match="gem") as caught:
        costs.cost("gem", x=1)
    assert "did you mean 'gemm'?" in str(caught.value)


def test_a_point_must_name_every_axis_and_nothing_else() -> None:
    costs = TableCosts([table([[1]], [1.0], device="d")])
    with pytest.raises(SpecError, match="no value for x"):
        costs.cost("op", device="d")
    with pytest.raises(SpecError, match="does not depend on history"):
        costs.cost("op", device="d", x=1, history=7)


class Flat:
    """A cost model that is no table: everything takes one second."""

    def cost(self, op: str, **point: float | int | str) -> Cost:
        return Cost(1.0, "analytic")

    def provenance(self) -> dict[str, Provenance]:
        return {"flat": HERE}


def test_a_fallback_answers_only_what_the_first_model_misses_and_is_counted() -> None:
    costs = CountedCosts(FallbackCosts(TableCosts([table([[1], [3]], [1.0, 3.0])]), Flat()))
    assert costs.cost("op", x=2) == Cost(2.0, "interpolated")
    assert costs.cost("other", x=2) == Cost(1.0, "analytic")
    seconds, ranks = sweep(costs, "op", {"x": [1, 2]})
    assert seconds.tolist() == [1.0, 2.0]
    assert [SOURCES[r] for r in ranks] == ["measured", "interpolated"]
    assert costs.shares() == {"measured": 0.25, "interpolated": 0.5, "analytic": 0.25}
    assert set(costs.provenance()) == {"op()", "flat"}
    assert costs.knots("op", "x") == [1.0, 3.0]
    with pytest.raises(MissingProfile):
        costs.knots("other", "x")
    with pytest.raises(MissingProfile):
        FallbackCosts(TableCosts([]), TableCosts([])).cost("op", x=1)


def test_tables_survive_the_disk(tmp_path: Path) -> None:
    tables = [table([[1, 2], [3, 4]], [1.5, 2.5], axes="xy", scale="log", times="log", device="a", tp=t)
              for t in (1, 2)]
    tables.append(table([[1]], [0.1], op="other"))
    written = save_tables(tmp_path, tables)
    assert len(written) == 2, "tables of one op share a pair of files"
    loaded = {t.label(): t for t in load_tables(tmp_path)}
    for t in tables:
        again = loaded[t.label()]
        assert (again.axes, again.times, again.provenance) == (t.axes, t.times, t.provenance)
        assert np.array_equal(again.points, t.points)
        assert np.array_equal(again.seconds, t.seconds)
    assert save_tables(tmp_path, tables) == written
    written[0].with_suffix(".parquet").unlink()
    with pytest.raises(TraceError, match="missing"):
        load_tables(tmp_path)
    written[0].unlink()
    rest = open_costs({"source": "measured", "folder": str(tmp_path)})
    assert list(rest.provenance()) == [t.label() for t in tables if written[1].name.startswith(t.op + "-")]


def test_an_empty_folder_of_profiles_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        load_tables(tmp_path)
    assert caught.value.next_command


def test_costs_in_the_spec_interpolate_only_along_named_axes() -> None:
    rows = [{"op": "kernel", "variant": "a", "tp": 2, "bytes": b, "seconds": 1e-6 * b} for b in (1, 3)]
    costs = open_costs({"source": "given", "rows": rows, "axes": ["bytes"]})
    found = costs.cost("kernel", variant="a", tp=2, bytes=2)
    assert (found.seconds, found.source) == (pytest.approx(2e-6), "interpolated")
    with pytest.raises(MissingProfile):
        costs.cost("kernel", variant="a", tp=4, bytes=2)
    exact = open_costs({"source": "given", "rows": [{"op": "kernel", "tp": 2, "seconds": 0.5}]})
    assert exact.cost("kernel", tp=2) == Cost(0.5, "measured")
    with pytest.raises(SpecError, match="needs op and seconds"):
        open_costs({"source": "given", "rows": [{"op": "kernel"}]})


def test_an_unknown_cost_source_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError) as caught:
        open_costs({"source": "aiconfigurater"})
    assert "aiconfigurator" in str(caught.value)
    with pytest.raises(SpecError) as caught:
        open_costs({"source": "analytic", "hardwear": []})
    assert "did you mean 'hardware'?" in str(caught.value)
    with pytest.raises(SpecError, match="source is needed"):
        open_costs({})


def best_seconds(work: Callable[[], object], repeats: int = 7, calls: int = 200) -> float:
    def once() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls

    return min(once() for _ in range(repeats))


def test_one_query_of_a_full_gemm_table_is_quick() -> None:
    """20 us on an idle core is the aim; five times that leaves room for a busy machine."""
    points = grid([2.0**i for i in range(5, 17)], [2.0**i for i in range(5, 17)], [float(m) for m in range(1, 75)])
    t = table(points, points.prod(axis=1) * 1e-15 + 1e-6, axes="nkm")
    assert best_seconds(lambda: t.at(5000, 7000, 33.5)) < 100e-6


def test_adding_costs_keeps_the_weaker_source() -> None:
    total = Cost(1.0, "measured").plus(Cost(2.0, "extrapolated")).times(2)
    assert total == Cost(6.0, "extrapolated")


def with_prior(x: np.ndarray, seconds: np.ndarray, **more: object) -> ProfileTable:
    points = x[:, None] if x.ndim == 1 else x
    return ProfileTable(op="op", keys={}, axes=tuple(Axis(a, "log") for a in "xyz"[:points.shape[1]]), points=points,
                        seconds=seconds, times="log", prior=Prior.fit(points, seconds), provenance=HERE, **more)  # type: ignore[arg-type]


def test_a_launch_bytes_and_operations_are_found_and_answers_between_and_beyond_the_knots_are_exact() -> None:
    """A gemm of 5 us launch, 20 GB/s of weights, 80 GFLOP/s: log-linear interpolation is 12 % off at the median."""
    points = grid([64, 512, 4096, 49152], [64, 512, 2048], [1, 16, 256])

    def truth(p: np.ndarray) -> np.ndarray:
        return 5e-6 + 4 * p[:, 0] * p[:, 1] / 20e9 + 2 * p.prod(axis=1) / 80e9

    t = with_prior(points, truth(points))
    asked = np.exp(np.random.default_rng(0).uniform(np.log([64, 64, 1]), np.log([9e4, 4096, 512]), (500, 3)))
    np.testing.assert_allclose(t.many(*asked.T)[0], truth(asked), rtol=1e-6)
    straight = dataclasses.replace(t, prior=None)
    assert np.median(np.abs(straight.many(*asked.T)[0] / truth(asked) - 1)) > 0.05


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 3)), min_size=3, max_size=8, unique_by=lambda p: p[0]),
       st.floats(0.5, 2e6), st.floats(1.0, 30.0))
def test_around_a_prior_monotone_data_still_give_monotone_answers_in_range(rows: list[tuple[int, float]], x: float,
                                                                        factor: float) -> None:
    xs = np.array(sorted(float(at) for at, _ in rows))
    seconds = 1e-6 * np.exp(np.cumsum([growth for _, growth in rows]))
    t = with_prior(xs, seconds)
    low, high = t.at(x), t.at(x * factor)
    assert low.seconds <= high.seconds * (1 + 1e-9)
    for found in (low, high):
        if found.source == "interpolated":
            assert seconds.min() * (1 - 1e-12) <= found.seconds <= seconds.max() * (1 + 1e-12)
    assert all(t.at(a) == Cost(s, "measured") for a, s in zip(xs, seconds, strict=True))


@given(st.integers(0, 2**32 - 1))
def test_around_a_prior_many_points_equal_one_at_a_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = grid([1, 8, 64], [2, 32, 100])
    t = with_prior(points, (1 + points.prod(axis=1)) * np.exp(rng.normal(0, 0.3, len(points))))
    asked = np.exp(rng.uniform(np.log(0.5), np.log(200), (300, 2)))
    seconds, ranks = t.many(*asked.T)
    for at, s, r in zip(asked, seconds, ranks, strict=True):
        one = t.at(*at)
        assert one.source == SOURCES[r]
        assert one.seconds == pytest.approx(s, rel=1e-9)


def test_a_prior_survives_the_disk_and_needs_log_times(tmp_path: Path) -> None:
    xs = np.array([1.0, 10.0, 100.0])
    t = with_prior(xs, 2 + 3 * xs)
    save_tables(tmp_path, [t])
    again = load_tables(tmp_path)[0]
    assert again.prior == t.prior
    assert again.at(5.0) == t.at(5.0)
    with pytest.raises(TraceError, match="log scale"):
        dataclasses.replace(t, times="linear")
    assert Prior.fit(np.array([[1.0], [2.0]]), np.array([1.0, 2.0])) is None, "two points fix a line, and no error"


def test_what_is_beyond_a_cache_is_a_term_with_a_threshold(tmp_path: Path) -> None:
    """2 ns a byte and 5 more behind 3000: exact between knots that do not know where the kink is, one by one too."""
    xs = np.array([100.0, 1000.0, 2000.0, 5000.0, 20000.0])

    def truth(x: np.ndarray) -> np.ndarray:
        return 1e-6 + 2e-9 * x + 5e-9 * np.maximum(x - 3000, 0)

    prior = Prior.fit(xs[:, None], truth(xs), [Term((1,)), Term((1,), 3000.0)])
    t = dataclasses.replace(with_prior(xs, truth(xs)), prior=prior)
    asked = np.geomspace(100, 60000, 400)
    np.testing.assert_allclose(t.many(asked)[0], truth(asked), rtol=1e-6)
    np.testing.assert_allclose([t.at(x).seconds for x in asked], truth(asked), rtol=1e-6)
    save_tables(tmp_path, [t])
    assert load_tables(tmp_path)[0].prior == prior
    assert np.abs(held_out_errors(t, "x", lambda p, s: Prior.fit(p, s, [Term((1,)), Term((1,), 3000.0)]))).max() < 1e-6
    assert prior is not None
    with pytest.raises(TraceError, match="threshold"):
        dataclasses.replace(t, prior=dataclasses.replace(prior, thresholds=(0.0,)))


def test_the_error_behind_a_plan_is_weighed_by_seconds_and_unknown_as_soon_as_one_answer_is() -> None:
    known = Provenance(id="i", origin="o", device="d", error_p90=0.10, error_point=0.02)
    sure = dataclasses.replace(table([[1], [3]], [1.0, 3.0], op="a"), provenance=known)
    costs = CountedCosts(TableCosts([sure, table([[1], [3]], [1.0, 3.0], op="b")]))
    assert costs.error() is None
    assert costs.cost("a", x=1) == Cost(1.0, "measured")
    assert costs.error() == pytest.approx(0.02)
    sweep(costs, "a", {"x": [1, 3, 2]})
    assert costs.error() == pytest.approx((0.02 * (1 + 1 + 3) + 0.10 * 2) / 7)
    costs.cost("b", x=1)
    assert costs.error() is None, "a table that says no error"
    beyond = CountedCosts(TableCosts([sure]))
    beyond.cost("a", x=9)
    assert beyond.error() is None, "extrapolated"
    fallen = CountedCosts(FallbackCosts(TableCosts([sure]), Flat()))
    fallen.cost("other", x=1)
    assert fallen.error() is None


def test_a_key_that_is_assumed_may_be_left_out_or_named() -> None:
    costs = TableCosts([table([[1]], [1.0], device="cpu"), table([[1]], [2.0], device="gpu")],
                       assumed={"device": "cpu"})
    assert costs.cost("op", x=1).seconds == 1.0
    assert costs.cost("op", x=1, device="gpu").seconds == 2.0
    with pytest.raises(MissingProfile, match="device=cpu"):
        costs.cost("none", x=1)

"""Plots show the data they are given, equal data give equal bytes, and the page decides their colours."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import plots
from workbench.errors import SpecError
from workbench.timeline import Level, Span, Timeline

SVG = "{http://www.w3.org/2000/svg}"


def timeline(spans=12, lanes=2):
    return Timeline.from_spans([
        Span(device=f"gpu{k % lanes}", stream="compute", name=f"{'FB'[k // lanes % 2]}{k}", start_s=k // lanes,
             end_s=k // lanes + 0.75) for k in range(spans)])


LEVEL = Level(name="memory", unit="bytes", device="gpu0", time_s=[0.0, 1.0, 2.0], value=[1e9, 3e9, 0.0])
DRAWN = {
    "gantt": partial(plots.gantt, timeline()),
    "crowded gantt": partial(plots.gantt, timeline(spans=1000)),
    "cdf": partial(plots.cdf, {"a": [1, 2, 3], "b": [2.0]}, quantity="latency", unit="s"),
    "log cdf": partial(plots.cdf, {"a": [0.1, 2, 300]}, quantity="latency", unit="s", scale="log"),
    "pareto": partial(plots.pareto, [(1, 1), (2, 3), (3, 2)], x_label="cost ($/h)", y_label="rate (1/s)", chosen=1,
                      labels={1: "best"}),
    "bars": partial(plots.bars, {"g": {"x": 3.0, "y": None}, "h": {"x": 1.0, "y": 2.0}}, quantity="time", unit="s",
                    spread={"g": {"x": (2.5, 3.5)}}),
    "utilisation": partial(plots.utilisation, {"gpu0": 0.5, "gpu1": 1.0}),
    "levels": partial(plots.levels, [LEVEL], capacity={"memory": 4e9}),
    "roofline": partial(plots.roofline, {"gemm": (100.0, 1e14)},
                        [plots.Peak(name="device", flops_per_s=3e14, bytes_per_s=2e12)]),
    "lines": partial(plots.lines, {"a": ([0, 1], [1, 2]), "b": ([0, 1], [2, 2])}, x_label="x", y_label="y (s)",
                     bands={"a": ([0, 1], [2, 3])}),
}
EMPTY = {
    "gantt": partial(plots.gantt, Timeline.from_spans([])), "utilisation": partial(plots.utilisation, {}),
    "levels": partial(plots.levels, []), "pareto": partial(plots.pareto, [], x_label="x", y_label="y"),
    "bars": partial(plots.bars, {}, quantity="q", unit=""), "cdf": partial(plots.cdf, {}, quantity="q", unit=""),
    "lines": partial(plots.lines, {}, x_label="x", y_label="y"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_plot_is_well_formed_and_says_what_it_shows(name):
    shown = plots.picture(DRAWN[name], label=f"{name} & <more>")
    for text in (shown.wide, shown.narrow):
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg" and root.find(f"{SVG}title").text == f"{name} & <more>"
        assert "width" not in root.attrib and root.attrib["viewBox"]
        ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
        assert len(ids) == len(set(ids))
        used = set(re.findall(r"url\(#([^)]+)\)", text)) | {
            e.attrib["href"][1:] for e in root.iter() if e.attrib.get("href", "").startswith("#")}
        assert used == set(ids)
    assert shown.wide != shown.narrow


@pytest.mark.parametrize("name", EMPTY)
def test_plots_of_nothing_are_empty_not_errors(name):
    ElementTree.fromstring(plots.svg(EMPTY[name](), label="nothing"))


@pytest.mark.parametrize("name", DRAWN)
def test_no_colour_of_the_style_is_fixed_in_the_page(name):
    """Every ink goes through currentColor or a variable, so that a dark page can change it."""
    text = plots.svg(DRAWN[name](), label=name)
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", text))
    assert not fixed
    assert "currentColor" in text and "var(--plot-" in text


def test_equal_data_give_equal_bytes_in_another_process(tmp_path):
    code = ("import sys, hashlib; from tests.test_plots import DRAWN, plots\n"
            "for name, draw in DRAWN.items():\n"
            "    svg = plots.svg(draw(), label=name).encode()\n"
            "    png = plots.save(draw(), sys.argv[1] + '/p.png').read_bytes()\n"
            "    print(name, *(hashlib.sha256(b).hexdigest() for b in (svg, png)))")
    seen = [subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"}, cwd=Path(__file__).parents[1]).stdout
            for seed in ("1", "2")]
    assert seen[0] == seen[1] and len(seen[0].splitlines()) == len(DRAWN)


def test_files_are_svg_or_png(tmp_path):
    figure = DRAWN["bars"]()
    assert plots.save(figure, tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in plots.save(figure, tmp_path / "a.svg").read_bytes()
    with pytest.raises(SpecError, match=r"\.svg, \.png"):
        plots.save(figure, tmp_path / "a.gif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.svg"]


def test_plots_leave_matplotlibs_global_state_alone():
    code = ("import sys, matplotlib as mpl; before = mpl.rcParams.copy(); from tests.test_plots import DRAWN, plots\n"
            "[plots.svg(draw(), label='x') for draw in DRAWN.values()]\n"
            "assert mpl.rcParams.copy() == before and 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def bars_of(figure):
    """Total length drawn on each row of a Gantt chart, track excluded, in the plot's time unit."""
    axes = figure.axes[0]
    total = {}
    for collection in axes.collections:
        if plots.TRACK in {plots_hex(c) for c in collection.get_facecolor()}:
            continue
        for path in collection.get_paths():
            box = path.get_extents()
            row = round((box.y0 + box.y1) / 2, 3)
            total[row] = total.get(row, 0.0) + box.width
    return total


def plots_hex(colour):
    from matplotlib.colors import to_hex

    return to_hex(colour)


def test_gantt_draws_every_span_at_its_length():
    shown = bars_of(plots.gantt(timeline(spans=12, lanes=2)))
    assert shown == pytest.approx({0.0: 6 * 0.75, 1.0: 6 * 0.75})


def test_a_crowded_row_fills_as_much_area_as_its_spans_take():
    """Share of time by kind, stacked: the area is the busy time, whatever the number of spans."""
    crowded = timeline(spans=1000, lanes=1)
    area = 0.0
    for collection in plots.gantt(crowded).axes[0].collections:
        for path in collection.get_paths():
            if plots.TRACK not in {plots_hex(c) for c in collection.get_facecolor()}:
                x, y = path.vertices.T
                area += abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area / 0.8 == pytest.approx(1000 * 0.75, rel=1e-3)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
@settings(deadline=None, max_examples=200)
def test_front_holds_exactly_the_points_nothing_beats(points):
    cloud = np.array(points, float)
    front = {tuple(cloud[i]) for i in plots._front(cloud)}
    unbeaten = {p for p in map(tuple, cloud) if not any(
        q[0] <= p[0] and q[1] >= p[1] and q != p for q in map(tuple, cloud))}
    assert front == unbeaten


def test_cdf_marks_the_percentiles_numpy_finds():
    sample = np.random.default_rng(1).exponential(1, 5000)
    axes = plots.cdf({"a": sample}, quantity="t", unit="s").axes[0]
    marks = next(line for line in axes.lines if line.get_marker() == "o")
    assert marks.get_xdata() == pytest.approx(np.percentile(sample, [50, 90, 99], method="inverted_cdf"))
    x, y = next(line for line in axes.lines if line.get_marker() != "o").get_data()
    below = [(sample <= v).mean() * 100 for v in x]
    assert max(abs(y - below)) < 0.5


@pytest.mark.parametrize(("value", "unit", "text"), [
    (0, "s", "0 s"), (1.25e9, "B/s", "1.25 GB/s"), (3.4e-4, "s", "340 µs"), (12, "", "12"), (999.9, "B", "1 kB"),
    (1e15, "FLOP/s", "1 PFLOP/s"), (-2e3, "m", "-2 km"), (5e18, "B", "5000 PB"), (2e-14, "s", "0.02 ps"),
])
def test_metric_prefixes(value, unit, text):
    assert plots.si(value, unit) == text


def test_too_many_series_are_refused():
    with pytest.raises(SpecError, match="too many"):
        plots.lines({str(k): ([0], [0]) for k in range(9)}, x_label="x", y_label="y")
    with pytest.raises(SpecError, match="one unit"):
        plots.levels([LEVEL, Level(name="n", unit="1", device="d", time_s=[0.0], value=[1.0])])

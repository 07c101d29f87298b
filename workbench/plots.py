"""Figures in one style: matplotlib's object interface, SVG text for pages and SVG or PNG files.

Each plot is a function of plain values that returns a ``matplotlib.figure.Figure``; ``svg`` turns one into text whose
colours follow the page (``currentColor`` and ``--plot-*`` variables, with the light theme as fall-back), ``picture``
draws one for wide and one for narrow pages, ``save`` writes a file. Colours stay apart for colour-blind readers
(after Okabe and Ito, "Color Universal Design", 2008). Equal data give equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.errors import SpecError
from workbench.files import atomic_path
from workbench.timeline import Level, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PALETTE", "Peak", "Picture", "bars", "cdf", "gantt", "levels", "lines", "pareto", "picture", "roofline",
           "save", "si", "svg", "utilisation"]

INK, MUTED, GRID, TRACK, PAPER = "#1c2127", "#5e6772", "#dfe3e8", "#eff1f4", "#fefefe"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b05a93", "#e69f00", "#56b4e9")
REST = "#9aa3ad"
WIDE_IN, NARROW_IN = 7.2, 4.1
CROWDED = 400  # spans on one row of a Gantt chart

_THEMED = {INK: "currentColor", MUTED: f"var(--plot-muted, {MUTED})", GRID: f"var(--plot-grid, {GRID})",
           TRACK: f"var(--plot-track, {TRACK})", PAPER: f"var(--plot-paper, {PAPER})",
           REST: f"var(--plot-rest, {REST})",
           **{colour: f"var(--plot-{i}, {colour})" for i, colour in enumerate(PALETTE, 1)}}
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One plot drawn for wide and for narrow pages (SVG text), and what it shows, in words."""

    wide: str
    narrow: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The roof of a device: ``flops_per_s`` of arithmetic over ``bytes_per_s`` of memory."""

    name: str
    flops_per_s: float
    bytes_per_s: float


def picture(draw: Callable[..., Figure], *data: Any, label: str, **options: Any) -> Picture:
    """``draw(*data, **options)`` at both widths; ``label`` says in words what it shows, for those who cannot see it."""
    wide = svg(draw(*data, width_in=WIDE_IN, **options), label=label)
    return Picture(wide=wide, narrow=svg(draw(*data, width_in=NARROW_IN, **options), label=label), label=label)


def svg(figure: Figure, *, label: str) -> str:
    """SVG text of ``figure``: scales to its box, takes its colours from the page, has ids of its own."""
    text = _rendered(figure, "svg").decode()
    text = text[text.index("<svg"):]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', body))
    body = re.sub(r"<[^>]*>", lambda tag: _themed(tag[0], used), body)
    mark = hashlib.sha256((head + body).encode()).hexdigest()[:8]
    body = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>p{mark}-", body)
    title = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1]}" role="img" aria-label="{title}">'
            f"<title>{title}</title>{body.strip()}")


def _themed(tag: str, used: set[str]) -> str:
    """One tag of matplotlib's SVG: colours by variable, ids only where they are used, no digits nobody can see."""
    tag = tag.replace(' id="halo"', f' style="paint-order: stroke; stroke: {PAPER}; stroke-width: 3"')
    tag = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), tag)
    tag = tag.replace('xlink:href="', 'href="').replace("'DejaVu Sans'", _FONTS)
    return re.sub("|".join(_THEMED), lambda m: _THEMED[m[0]], tag)


def save(figure: Figure, path: Path | str) -> Path:
    """Write an .svg or .png file (200 dots an inch) in the light theme; the file is whole or absent."""
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise SpecError(f"cannot draw {path.suffix or 'a file without ending'}", where=str(path),
                        allowed=[".svg", ".png"])
    with atomic_path(path) as part:
        part.write_bytes(_rendered(figure, path.suffix[1:]))
    return path


def _rendered(figure: Figure, kind: str) -> bytes:
    out = io.BytesIO()
    with _style():
        if kind == "png":
            figure.savefig(out, format="png", dpi=200, facecolor="white", metadata={"Software": None})
        else:
            figure.savefig(out, format="svg", transparent=True,
                           metadata=dict.fromkeys(("Date", "Creator", "Type", "Format")))
    return out.getvalue()


def si(value: float, unit: str = "", digits: int = 3) -> str:
    """``value`` with a metric prefix and ``unit``: 1.25 GB/s, 340 µs, 12."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}".strip()
    power = min(5, max(-4, math.floor(math.log10(abs(value)) / 3 + 1e-9)))
    if float(f"{abs(value) / 1000.0 ** power:.{digits}g}") >= 1000 and power < 5:
        power += 1
    scaled = value / 1000.0 ** power
    shown = f"{scaled:.{digits}g}" if abs(scaled) < 10 ** digits else f"{scaled:.0f}"
    return f"{shown} {('p', 'n', 'µ', 'm', '', 'k', 'M', 'G', 'T', 'P')[power + 4]}{unit}".strip()


# ------------------------------------------------------------------------------------------------------------ plots


def gantt(timeline: Timeline, *, kind: Callable[[str], str] | None = None, width_in: float = WIDE_IN) -> Figure:
    """Spans as bars, one row a lane, coloured by kind; beside each row the share of time it is busy.

    ``kind`` groups names (default: the name up to its first digit); the six that take most time get a colour each.
    Rows with more spans than a page can show are drawn as the share of time that each kind takes.
    """
    kinds = [kind(name) if kind else _stem(name) for name in timeline.names]
    colours = _kind_colours(timeline, kinds)
    rows = len(timeline.lanes)
    begin, unit, scale = timeline.begin_s, *_time_unit(timeline.makespan_s)
    with _style():
        figure, axes = _axes(width_in, 0.75 + 0.27 * max(1, rows) + 0.12 * len(timeline.devices))
        rows_at = _row_positions(timeline)
        whole = max(timeline.makespan_s * scale, 1e-12)
        bars_at: dict[str, list[tuple[float, float, float, str]]] = {label: [] for label in colours}
        for lane, at in enumerate(rows_at):
            axes.broken_barh([(0, whole)], (at - 0.4, 0.8), facecolors=TRACK, linewidth=0)
            mine = np.flatnonzero(timeline.lane == lane)
            if mine.size > CROWDED:
                _draw_mix(axes, at, timeline, mine, kinds, colours, slices=round(20 * width_in))
            else:
                for i in mine:
                    label = kinds[timeline.name[i]]
                    bars_at[label if label in colours else "other"].append(
                        (at, (timeline.start_s[i] - begin) * scale, (timeline.end_s[i] - timeline.start_s[i]) * scale,
                         timeline.names[timeline.name[i]]))
            busy = float((timeline.end_s[mine] - timeline.start_s[mine]).sum()) * scale / whole
            axes.annotate(f"{busy:.0%}", (1, at), xycoords=("axes fraction", "data"), xytext=(6, 0),
                          textcoords="offset points", va="center", color=MUTED, size=8)
        _draw_pieces(axes, bars_at, colours, whole / width_in)
        axes.set_yticks(rows_at, _lane_labels(timeline))
        axes.set_ylim(max(rows_at, default=0) + 0.65, -0.65)
        axes.set_xlim(0, whole)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"time ({unit})")
        axes.annotate("busy", (1, 1), xycoords="axes fraction", xytext=(6, 3), textcoords="offset points", color=MUTED,
                      size=8)
        _legend(figure, colours)
    return figure


def _stem(name: str) -> str:
    found = re.match(r"[^\d]*[^\d\W]", name)
    return found[0].replace("_", " ").strip() if found else "other"


def _kind_colours(timeline: Timeline, kinds: Sequence[str]) -> dict[str, str]:
    """A colour for each kind that takes most time, in order of first appearance; grey for waiting and for the rest."""
    total: dict[str, float] = {}
    took = np.bincount(timeline.name, timeline.end_s - timeline.start_s, len(timeline.names))
    for label, seconds in zip(kinds, took.tolist(), strict=True):
        total[label] = total.get(label, 0.0) + seconds
    waiting = {label: REST for label in total if label in ("wait", "idle")}
    working = [label for label in total if label not in waiting]
    shown = set(sorted(working, key=lambda label: -total[label])[:len(PALETTE)])
    colours = dict(zip([label for label in working if label in shown], PALETTE, strict=False))
    return {**colours, **waiting, **({"other": REST} if len(working) > len(shown) else {})}


def _row_positions(timeline: Timeline) -> list[float]:
    """Heights of the lanes' rows, a little gap between devices of several streams."""
    position, at, before = [], -1.0, ""
    several = len(timeline.lanes) > len(timeline.devices)
    for lane in timeline.lanes:
        at += 1.0 + (0.35 if several and before and lane.device != before else 0.0)
        before = lane.device
        position.append(at)
    return position


def _lane_labels(timeline: Timeline) -> list[str]:
    streams = [lane.stream for lane in timeline.lanes]
    if len(set(streams)) <= 1:
        return [_short(lane.device, 24) for lane in timeline.lanes]
    first = {lane.device: i for i, lane in reversed(list(enumerate(timeline.lanes)))}
    return [_short(f"{lane.device}\u2002{lane.stream}" if first[lane.device] == i else lane.stream, 30)
            for i, lane in enumerate(timeline.lanes)]


def _draw_mix(axes: Axes, at: float, timeline: Timeline, mine: np.ndarray, kinds: Sequence[str],
              colours: Mapping[str, str], *, slices: int) -> None:
    """A crowded row: in each slice of time, the share of it that each kind takes, stacked from below."""
    _, scale = _time_unit(timeline.makespan_s)
    edges = np.linspace(0.0, timeline.makespan_s, slices + 1)
    floor = np.zeros(slices)
    of_kind = np.array([list(colours).index(k if k in colours else "other") for k in kinds])[timeline.name[mine]]
    for number, colour in enumerate(colours.values()):
        spans = mine[of_kind == number]
        start, end = (np.sort(t[spans]) - timeline.begin_s for t in (timeline.start_s, timeline.end_s))
        took = np.diff(_elapsed(edges, start) - _elapsed(edges, end)) / np.diff(edges)
        top = np.minimum(1.0, floor + took)
        axes.fill_between(edges * scale, at + 0.4 - 0.8 * np.r_[floor, floor[-1]], at + 0.4 - 0.8 * np.r_[top, top[-1]],
                          step="post", color=colour, linewidth=0)
        floor = top


def _elapsed(at: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Time since each of the sorted ``events`` that lie before ``at``, summed."""
    count = np.searchsorted(events, at)
    return count * at - np.r_[0.0, np.cumsum(events)][count]


def _draw_pieces(axes: Axes, bars_at: Mapping[str, Sequence[tuple[float, float, float, str]]],
                 colours: Mapping[str, str], per_inch: float) -> None:
    for label, pieces in bars_at.items():
        by_row: dict[float, list[tuple[float, float]]] = {}
        for at, start, length, name in pieces:
            by_row.setdefault(at, []).append((start, length))
            if name and length / per_inch > 0.075 * len(name) + 0.06:
                axes.text(start + length / 2, at, name, ha="center", va="center", size=7, color=PAPER, clip_on=True)
        for at, extents in by_row.items():
            axes.broken_barh(extents, (at - 0.4, 0.8), facecolors=colours[label], edgecolors=PAPER, linewidth=0.5)


def cdf(values: Mapping[str, Sequence[float]], *, quantity: str, unit: str, scale: Literal["linear", "log"] = "linear",
        percentiles: Sequence[float] = (50, 90, 99), width_in: float = WIDE_IN) -> Figure:
    """Cumulative distributions, one curve a label, with dots and figures at ``percentiles``."""
    with _style():
        figure, axes = _axes(width_in, 2.9)
        legend = {}
        for colour, (label, sample) in zip(_cycle(len(values)), values.items(), strict=True):
            ordered = np.sort(np.asarray(sample, float))
            if not ordered.size:
                raise SpecError("a distribution needs at least one value", where=f"cdf of {label}")
            x, y = _steps_to_draw(ordered)
            axes.plot(x, y, color=colour, linewidth=1.8, drawstyle="steps-post")
            at = np.percentile(ordered, percentiles, method="inverted_cdf")
            axes.plot(at, percentiles, "o", color=colour, markersize=4.5, markeredgecolor=PAPER, zorder=3)
            marks = " · ".join(f"p{p:g} {v:.3g}" for p, v in zip(percentiles, at, strict=True))
            legend[f"{label}\u2002{marks}"] = colour
        axes.set_xscale(scale)
        axes.set_ylim(0, 101)
        if scale == "linear" and values:
            # The last two in a thousand would leave the rest of the curve little room.
            axes.set_xlim(min(0.0, *map(min, values.values())), max(np.percentile(s, 99.8) for s in values.values()))
        _plain_ticks(axes)
        axes.set_yticks([0, 25, *percentiles], [f"{p:g}" for p in (0, 25, *percentiles)])
        axes.set_xlabel(f"{quantity} ({unit})" if unit else quantity)
        _legend(figure, legend, columns=1)
        _corner(axes, "percentile")
    return figure


def _steps_to_draw(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the empirical distribution in percent; of a large sample, as many as a page can show."""
    n = ordered.size
    kept = np.unique(np.linspace(0, n - 1, min(n, 300)).round().astype(int))
    return np.r_[ordered[0], ordered[kept]], np.r_[0.0, (kept + 1) / n * 100]


def pareto(points: Sequence[tuple[float, float]], *, x_label: str, y_label: str, chosen: int | None = None,
           labels: Mapping[int, str] | None = None, width_in: float = WIDE_IN) -> Figure:
    """Cost (x, less is better) against value (y, more is better): all points, their front, and the chosen one."""
    cloud = np.asarray(points, float).reshape(-1, 2)
    front = _front(cloud)
    with _style():
        figure, axes = _axes(width_in, 3.1)
        axes.plot(cloud[:, 0], cloud[:, 1], "o", color=REST, markersize=4, alpha=0.7, markeredgewidth=0)
        axes.plot(cloud[front, 0], cloud[front, 1], drawstyle="steps-post", color=PALETTE[0], linewidth=1.6)
        axes.plot(cloud[front, 0], cloud[front, 1], "o", color=PALETTE[0], markersize=5.5, markeredgecolor=PAPER)
        if chosen is not None:
            axes.plot(*cloud[chosen], "o", color=PALETTE[1], markersize=9, markeredgecolor=PAPER, markeredgewidth=1.2,
                      zorder=4)
        axes.margins(0.08, 0.1)
        axes.set_xlim(left=0 if cloud.size and cloud[:, 0].min() > 0 else None)
        axes.set_ylim(bottom=0 if cloud.size and cloud[:, 1].min() > 0 else None)
        axes.set_xlabel(x_label)
        _corner(axes, y_label)
        named = dict(labels or {})
        for i in sorted(named, key=lambda i: (i != chosen, i)):
            _point_label(axes, named[i], cloud[i], PALETTE[1] if i == chosen else MUTED, bold=i == chosen)
        _legend(figure, {"dominated": REST, "front": PALETTE[0], **({"chosen": PALETTE[1]} if chosen is not None
                                                                    else {})})
    return figure


def _front(cloud: np.ndarray) -> list[int]:
    """Positions of the points that no other is at least as good as in both and better in one, by rising cost."""
    front: list[int] = []
    for i in np.lexsort((-cloud[:, 1], cloud[:, 0])):
        if not front or cloud[i, 1] > cloud[front[-1], 1]:
            front.append(int(i))
    return front


def bars(table: Mapping[str, Mapping[str, float | None]], *, quantity: str, unit: str,
         spread: Mapping[str, Mapping[str, tuple[float, float]]] | None = None, width_in: float = WIDE_IN) -> Figure:
    """Horizontal bars ``table[group][series]`` with their values; ``spread`` draws low and high as whiskers."""
    series = list(dict.fromkeys(s for row in table.values() for s in row))
    colours = dict(zip(series, _cycle(len(series)), strict=True))
    thick = 0.8 / max(1, len(series))
    with _style():
        figure, axes = _axes(width_in, 0.7 + len(table) * (0.16 + 0.19 * len(series)))
        for g, (group, row) in enumerate(table.items()):
            for k, label in enumerate(series):
                value = row.get(label)
                if value is None:
                    continue
                at = g + (k - (len(series) - 1) / 2) * thick
                axes.barh(at, value, thick * 0.88, color=colours[label], linewidth=0)
                low_high = (spread or {}).get(group, {}).get(label)
                if low_high:
                    axes.plot(low_high, (at, at), color=INK, linewidth=1.1, solid_capstyle="butt")
                axes.annotate(_tidy(value), (max(value, *(low_high or (value,))), at), xytext=(4, 0),
                              textcoords="offset points", va="center", size=8)
        axes.set_yticks(range(len(table)), [_short(group, 28) for group in table])
        axes.set_ylim(len(table) - 0.45, -0.55)
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_xlabel(f"{quantity} ({unit})" if unit else quantity)
        if len(series) > 1:
            _legend(figure, colours)
    return figure


def utilisation(shares: Mapping[str, float], *, quantity: str = "busy share of the makespan",
                width_in: float = WIDE_IN) -> Figure:
    """One bar a device on a track from 0 to 100 %; shares are 0 … 1."""
    with _style():
        figure, axes = _axes(width_in, 0.55 + 0.25 * max(1, len(shares)))
        for at, share in enumerate(shares.values()):
            axes.barh(at, 100, 0.66, color=TRACK, linewidth=0)
            axes.barh(at, 100 * share, 0.66, color=PALETTE[0], linewidth=0)
            axes.annotate(f"{share:.0%}", (100, at), xytext=(5, 0), textcoords="offset points", va="center", size=8)
        axes.set_yticks(range(len(shares)), [_short(name, 28) for name in shares])
        axes.set_ylim(len(shares) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_xlabel(f"{quantity} (%)")
    return figure


def levels(series: Sequence[Level], *, capacity: Mapping[str, float] | None = None,
           width_in: float = WIDE_IN) -> Figure:
    """Step functions of time (memory, requests in flight) of one unit, dashed capacity lines where given."""
    end = max((float(level.time_s[-1]) for level in series if level.time_s.size), default=1.0)
    unit, scale = _time_unit(end)
    units = {level.unit for level in series}
    if len(units) > 1:
        raise SpecError("levels of one plot need one unit", where="plots.levels", allowed=sorted(units)[:1])
    value_unit = units.pop() if units else ""
    with _style():
        figure, axes = _axes(width_in, 2.6)
        peak = max((level.peak for level in series), default=1.0)
        prefix, divisor = _value_prefix(peak)
        legend = {}
        for colour, level in zip(_cycle(len(series)), series, strict=True):
            time_s, value = _thinned(level)
            axes.plot(np.r_[time_s, end] * scale, np.r_[value, value[-1:]][:len(time_s) + 1] / divisor,
                      drawstyle="steps-post", color=colour, linewidth=1.6)
            legend[f"{level.name}\u2002peak {level.peak / divisor:.3g}"] = colour
            if capacity and level.name in capacity:
                axes.axhline(capacity[level.name] / divisor, color=colour, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, end * scale)
        axes.set_xlabel(f"time ({unit})")
        shown = {"bytes": "B", "1": ""}.get(value_unit, value_unit)
        _corner(axes, f"{prefix}{shown}" if shown or prefix else "count")
        _legend(figure, legend, columns=2 if width_in > 5 else 1)
    return figure


def _thinned(level: Level) -> tuple[np.ndarray, np.ndarray]:
    """At most a few points a pixel, the peak of each stretch kept."""
    n = level.time_s.size
    if n <= 2000:
        return level.time_s, level.value
    cuts = np.linspace(0, n, 1001).astype(int)
    tops = np.array([a + int(np.argmax(level.value[a:b])) for a, b in pairwise(cuts)])
    return level.time_s[tops], level.value[tops]


def roofline(points: Mapping[str, tuple[float, float]], peaks: Sequence[Peak], *,
             clouds: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
             width_in: float = WIDE_IN) -> Figure:
    """Kernels at (arithmetic intensity FLOP/B, FLOP/s) under the roofs of devices (Williams et al., CACM 2009).

    ``points`` are named where they stand; ``clouds`` are many points of one colour, named in the legend.
    """
    clouds = clouds or {}
    intensities = [x for x, _ in points.values()] + [p.flops_per_s / p.bytes_per_s for p in peaks]
    intensities += [x for xs, _ in clouds.values() for x in xs]
    low, high = min(intensities) / 4, max(intensities) * 4
    with _style():
        figure, axes = _axes(width_in, 3.2)
        legend = {}
        colours = _cycle(len(peaks) + len(clouds))
        for colour, (name, (xs, ys)) in zip(colours[len(peaks):], clouds.items(), strict=True):
            axes.plot(xs, ys, "o", color=colour, markersize=4, markeredgecolor=PAPER, markeredgewidth=0.5, zorder=3)
            legend[name] = colour
        for colour, roof in zip(colours, peaks, strict=False):
            ridge = roof.flops_per_s / roof.bytes_per_s
            axes.plot([low, ridge, high], [low * roof.bytes_per_s, roof.flops_per_s, roof.flops_per_s], color=colour,
                      linewidth=1.8)
            facts = f"{si(roof.flops_per_s, 'FLOP/s')}, {si(roof.bytes_per_s, 'B/s')}"
            legend[f"{roof.name}\u2002{facts}"] = colour
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        for name, (x, y) in points.items():
            axes.plot(x, y, "o", color=INK, markersize=5, markeredgecolor=PAPER, zorder=4)
            axes.annotate(name, (x, y), xytext=(6, -5), textcoords="offset points", va="top", size=8.5, gid="halo")
        _plain_ticks(axes)
        axes.grid(visible=True, axis="both")
        axes.set_xlabel("arithmetic intensity (FLOP/B)")
        _corner(axes, "FLOP/s")
        _legend(figure, legend, columns=1)
    return figure


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x_label: str, y_label: str,
          x_scale: Literal["linear", "log"] = "linear", y_scale: Literal["linear", "log"] = "linear",
          bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
          width_in: float = WIDE_IN) -> Figure:
    """Lines ``{label: (x, y)}`` labelled at their ends; ``bands`` shades low to high around a line of that label."""
    with _style():
        figure, axes = _axes(width_in, 2.9)
        axes.set_xscale(x_scale)
        axes.set_yscale(y_scale)
        _plain_ticks(axes)
        ends = []
        for colour, (label, (x, y)) in zip(_cycle(len(series)), series.items(), strict=True):
            marked = "o" if len(x) <= 24 else ""
            axes.plot(x, y, marker=marked, linestyle="-", color=colour, linewidth=1.8, markersize=4.5,
                      markeredgecolor=PAPER)
            if bands and label in bands:
                axes.fill_between(x, *bands[label], color=colour, alpha=0.16, linewidth=0)
            ends.append((float(y[-1]), label, colour))
        axes.set_xlabel(x_label)
        _corner(axes, y_label)
        if y_scale == "linear":
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _end_labels(axes, ends)
    return figure


# ------------------------------------------------------------------------------------------------------------ style


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context({
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "svg.fonttype": "none",
        "svg.hashsalt": "workbench", "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": MUTED,
        "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 8, "ytick.labelsize": 8.5, "axes.labelsize": 8.5,
        "axes.linewidth": 0.8, "grid.color": GRID, "grid.linewidth": 0.7, "xtick.major.size": 0, "ytick.major.size": 0,
        "xtick.minor.size": 0, "ytick.minor.size": 0, "xtick.major.pad": 4, "ytick.major.pad": 6,
        "figure.constrained_layout.h_pad": 0.05, "figure.constrained_layout.w_pad": 0.06, "path.simplify": True,
        "axes.unicode_minus": True, "text.parse_math": False,
    }):
        yield


def _axes(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.patch.set_visible(False)
    axes.tick_params(axis="y", labelcolor=INK)
    return figure, axes


def _cycle(count: int) -> list[str]:
    if count > len(PALETTE) + 1:
        raise SpecError(f"{count} series are too many to tell apart in one plot", where="plots",
                        allowed=[f"at most {len(PALETTE) + 1}"], hint="split the plot or keep the most telling series")
    return [*PALETTE, REST][:count]


def _legend(figure: Figure, colours: Mapping[str, str], columns: int | None = None) -> None:
    from matplotlib.patches import Patch

    if not colours:
        return
    room = 100 * figure.get_figwidth() / WIDE_IN
    if columns is None:
        columns = max(1, min(len(colours), int(room / (4 + max(len(label) for label in colours)))))
    figure.legend([Patch(facecolor=c, linewidth=0) for c in colours.values()], list(colours),
                  loc="outside upper left", ncols=columns, frameon=False, handlelength=0.9, handleheight=0.9,
                  handletextpad=0.5, columnspacing=1.6, borderaxespad=0.2, fontsize=8.5, labelspacing=0.35)


def _corner(axes: Axes, text: str) -> None:
    """The label of the y axis, above it and upright."""
    axes.set_title(text, loc="left", fontsize=8.5, color=MUTED, pad=7)


def _point_label(axes: Axes, text: str, at: np.ndarray, colour: str, *, bold: bool) -> None:
    """A label beside a point, on the side with more room."""
    x = axes.transAxes.inverted().transform(axes.transData.transform(at))[0]
    axes.annotate(text, (float(at[0]), float(at[1])), xytext=(8 if x < 0.6 else -8, 4), textcoords="offset points",
                  color=colour, size=8.5, ha="left" if x < 0.6 else "right", va="bottom", gid="halo", zorder=5,
                  weight="bold" if bold else "normal")


def _end_labels(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right ends of lines, pushed apart where they would overlap."""
    height_pt = axes.get_window_extent().height * 72 / axes.figure.dpi
    to_axes = axes.transAxes.inverted()
    at = [float(to_axes.transform(axes.transData.transform((axes.get_xlim()[1], y)))[1]) for y, _, _ in ends]
    apart = 11.5 / height_pt
    order = sorted(range(len(ends)), key=lambda i: at[i])
    placed = [at[i] for i in order]
    for k in range(1, len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + apart)
    over = max(0.0, placed[-1] - 1.0) if placed else 0.0
    for k in reversed(range(len(placed))):
        limit = placed[k + 1] - apart if k + 1 < len(placed) else placed[k] - over
        placed[k] = min(placed[k], limit)
    for i, y in zip(order, placed, strict=True):
        axes.annotate(ends[i][1], (1, y), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points",
                      va="center", size=8.5, color=ends[i][2])


def _plain_ticks(axes: Axes) -> None:
    """Plain numbers on logarithmic axes, large and small ones with metric prefixes, instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if 1e-4 < v < 99999 else si(v)))
            axis.set_minor_formatter(NullFormatter())


def _time_unit(length_s: float) -> tuple[str, float]:
    for unit, scale, least in (("s", 1.0, 2.0), ("ms", 1e3, 2e-3), ("µs", 1e6, 2e-6)):
        if length_s >= least:
            return unit, scale
    return ("ns", 1e9) if length_s > 0 else ("s", 1.0)


def _value_prefix(peak: float) -> tuple[str, float]:
    for prefix, divisor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if peak >= divisor:
            return prefix, divisor
    return "", 1.0


def _tidy(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most - 1] + "…"

"""A plan drawn: the program's primitives from top to bottom, each in the colours of the kernels that run it.

A primitive that several kernels run is striped in all their colours, so that redundant computation is seen at once;
one that no kernel runs is an empty dashed box; arrows that cross from one kernel to another, tensors that are stored,
are drawn strong. The picture is SVG without anything outside itself and takes ink and paper from the page around it
(alone, from the reader's light or dark scheme).
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from planners.orchestration.graph import PrimitiveGraph
from planners.orchestration.problem import Plan
from workbench.plots import PALETTE, Picture, si

__all__ = ["draw", "picture"]

_BOX_W, _BOX_H, _GAP_X, _GAP_Y, _EDGE = 96, 20, 10, 22, 12
_SMALL_W, _SMALL_GAP_Y = 26, 12
_LABELLED = 160
"""Primitives up to which boxes carry their operator's name."""
_KEY_W, _KEY_ROWS, _LEAST_W = 190, 24, 620
"""Width and most rows of the list of kernels; least width of a wide picture, lest few boxes be blown up."""
_ROW = {"wide": 14, "narrow": 6}
"""Boxes side by side at most; a wider layer of the graph continues on the next line."""


def picture(graph: PrimitiveGraph, plan: Plan) -> Picture:
    """The drawing for wide and for narrow pages."""
    label = (f"{len(graph.primitives)} primitives in {len(plan.kernels)} kernels, "
             f"{plan.redundant} executions beyond the first")
    return Picture(wide=draw(graph, plan, label=label, across=_ROW["wide"]),
                   narrow=draw(graph, plan, label=label, across=_ROW["narrow"]), label=label)


def draw(graph: PrimitiveGraph, plan: Plan, *, label: str, across: int = 14) -> str:
    """SVG text of the plan over the graph; rewrites that no kernel uses are left out."""
    runs: dict[str, list[int]] = {}
    for number, kernel in enumerate(plan.kernels):
        for name in kernel.primitives:
            runs.setdefault(name, []).append(number)
    shown = [p for p in graph.primitives if p.rewrite is None or p.name in runs]
    labelled = len(shown) <= _LABELLED
    width, gap_y = (_BOX_W, _GAP_Y) if labelled else (_SMALL_W, _SMALL_GAP_Y)
    across = across if labelled else across * 3
    places = _places(graph, [p.name for p in shown], across)
    x = {n: _EDGE + c * (width + _GAP_X) for n, (_, c) in places.items()}
    y = {n: _EDGE + r * (_BOX_H + gap_y) for n, (r, _) in places.items()}
    makers: dict[str, list[str]] = {}
    for p in shown:
        makers.setdefault(p.output, []).append(p.name)
    stored = {name for kernel in plan.kernels for name in kernel.outputs}
    parts = []
    for p in shown:
        for tensor in dict.fromkeys(o.tensor for o in p.inputs):
            parts += [_arrow(x[maker] + width / 2, y[maker] + _BOX_H, x[p.name] + width / 2, y[p.name],
                             strong=tensor in stored and p.name in runs) for maker in makers.get(tensor, ())]
    for p in shown:
        name = p.op.removeprefix("aten.").split(".")[0]
        parts.append(_box(x[p.name], y[p.name], width, runs.get(p.name, []), name if labelled else "",
                          f"{p.name}: {p.op}" + _who(runs.get(p.name, []), plan)))
    key, key_width, key_height = _legend(plan, max(x.values(), default=0) + width + 3 * _EDGE)
    parts += key
    right = max(max(x.values(), default=0) + width + _EDGE + key_width, _LEAST_W if across > _ROW["narrow"] else 0)
    bottom = max(max(y.values(), default=0) + _BOX_H + _EDGE, key_height)
    title = html.escape(label, quote=True)
    style = ("<style>.ink{stroke:currentColor;fill:none}.word{fill:currentColor;font:10px system-ui,sans-serif;"
             "text-anchor:middle}.key{fill:currentColor;font:11px system-ui,sans-serif}"
             "@media (prefers-color-scheme:dark){:root>svg,svg:root{color:#e6e9ed}}</style>")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:g} {bottom:g}" role="img" '
            f'aria-label="{title}"><title>{title}</title>{style}{"".join(parts)}</svg>')


def _who(numbers: Sequence[int], plan: Plan) -> str:
    if not numbers:
        return ", run by no kernel"
    return ", kernel " + ", ".join(f"{n} ({plan.kernels[n].backend})" for n in numbers)


def _legend(plan: Plan, left: float) -> tuple[list[str], float, float]:
    """Rows that name the kernels by colour, the longest first; their width and height."""
    order = sorted(range(len(plan.kernels)), key=lambda n: -plan.kernels[n].seconds)[:_KEY_ROWS]
    parts = []
    for row, number in enumerate(sorted(order)):
        kernel = plan.kernels[number]
        fill, strength = _colour(number)
        top = _EDGE + 18 * row
        words = f"{number} {kernel.backend} {si(kernel.seconds, 's')}"
        parts.append(f'<rect x="{left:g}" y="{top:g}" width="14" height="12" rx="2" '
                     f'style="fill:{fill};fill-opacity:{strength}"/>'
                     f'<text class="key" x="{left + 20:g}" y="{top + 10:g}">{html.escape(words)}</text>')
    return parts, _KEY_W, _EDGE + 18 * len(order) + _EDGE


def _places(graph: PrimitiveGraph, names: Sequence[str], across: int) -> dict[str, tuple[int, int]]:
    """(row, column) of every primitive: rows by longest path from the inputs, columns near what they read."""
    shown = set(names)
    made: dict[str, list[str]] = {}
    for p in graph.primitives:
        if p.name in shown:
            made.setdefault(p.output, []).append(p.name)
    reads = {p.name: [m for o in p.inputs for m in made.get(o.tensor, ()) if m != p.name]
             for p in graph.primitives if p.name in shown}
    depth: dict[str, int] = {}

    def settle(first: str) -> None:
        stack = [first]
        open_: set[str] = set()
        while stack:
            name = stack[-1]
            open_.add(name)
            waiting = [m for m in reads[name] if m not in depth and m not in open_]
            if waiting:
                stack.extend(waiting)
                continue
            depth.setdefault(name, 1 + max((depth[m] for m in reads[name] if m in depth), default=-1))
            stack.pop()

    for name in names:
        if name not in depth:
            settle(name)
    layers: dict[int, list[str]] = {}
    for name in names:
        layers.setdefault(depth[name], []).append(name)
    places: dict[str, tuple[int, int]] = {}
    row = 0
    for level in sorted(layers):
        def middle(name: str) -> float:
            above = [places[m][1] for m in reads[name] if m in places]
            return sum(above) / len(above) if above else 0.0

        for i, name in enumerate(sorted(layers[level], key=middle)):
            places[name] = row + i // across, i % across
        row += 1 + (len(layers[level]) - 1) // across
    return places


def _colour(number: int) -> tuple[str, float]:
    """A kernel's colour as the page's variable, and its strength; neighbours in the order of running differ."""
    at = number % len(PALETTE)
    return f"var(--plot-{at + 1}, {PALETTE[at]})", (0.6, 0.38, 0.8)[number // len(PALETTE) % 3]


def _box(x: float, y: float, width: float, kernels: Sequence[int], word: str, tip: str) -> str:
    parts = [f"<g><title>{html.escape(tip)}</title>"]
    for i, number in enumerate(kernels):
        fill, strength = _colour(number)
        share = width / len(kernels)
        parts.append(f'<rect x="{x + i * share:.1f}" y="{y:g}" width="{share:.1f}" height="{_BOX_H}" '
                     f'style="fill:{fill};fill-opacity:{strength}"/>')
    dashes = "" if kernels else ' stroke-dasharray="3 3" opacity="0.6"'
    border = 1.6 if len(kernels) > 1 else 0.7
    parts.append(f'<rect class="ink" x="{x:g}" y="{y:g}" width="{width:g}" height="{_BOX_H}" rx="3" '
                 f'stroke-width="{border}"{dashes}/>')
    if word:
        parts.append(f'<text class="word" x="{x + width / 2:g}" y="{y + 14:g}">{html.escape(word[:15])}</text>')
    return "".join(parts) + "</g>"


def _arrow(x1: float, y1: float, x2: float, y2: float, *, strong: bool) -> str:
    bend = max(8.0, abs(y2 - y1) / 3)
    look = 'stroke-width="1.6"' if strong else 'stroke-width="0.7" opacity="0.5"'
    return (f'<path class="ink" {look} d="M{x1:g} {y1:g}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"/>')


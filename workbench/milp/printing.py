"""A model written as mathematics, in text and in LaTeX; long rows and long blocks are cut, saying by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from workbench.milp.expressions import Floats, Ints
from workbench.milp.model import Model, RowBlock, VariableBlock

__all__ = ["as_latex", "as_text"]

TERMS = 8
ROWS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    number: Callable[[float], str]
    name: Callable[[str], str]
    times: str
    dots: Callable[[str], str]


_TEXT = _Style(number=lambda v: f"{v:.6g}", name=str, times=" ", dots=lambda what: f"… {what}")


def _latex_number(value: float) -> str:
    mantissa, e, exponent = f"{value:.6g}".partition("e")
    if not e:
        return mantissa.replace("inf", r"\infty")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}"


def _escaped(text: str) -> str:
    for char in "_%&#$":
        text = text.replace(char, "\\" + char)
    return text


def _latex_name(name: str) -> str:
    base, bracket, labels = name.partition("[")
    index = rf"_{{\text{{{_escaped(labels[:-1])}}}}}" if bracket else ""
    return rf"\mathrm{{{_escaped(base)}}}{index}"


_LATEX = _Style(number=_latex_number, name=_latex_name, times=r"\,",
                dots=lambda what: rf"\dots\ \text{{{_escaped(what)}}}")


def as_text(model: Model) -> str:
    """Plain text, one line for each row shown."""
    verb = "minimise" if model.sense == "min" else "maximise"
    lines = [repr(model), f"{verb}  {_objective(model, _TEXT)}"]
    if model.rows:
        lines.append("subject to")
    for block in model.rows.values():
        lines += [f"  {name}:  {left} {block.sense} {right}" for name, left, right in _rows(model, block, _TEXT)]
        if len(block.rhs) > ROWS:
            lines.append("  " + _more_rows(block))
    lines.append("with")
    lines += [f"  {_block(model, block, _TEXT, (' <= ', 'integer'))}" for block in model.blocks.values()]
    return "\n".join(lines)


def as_latex(model: Model) -> str:
    """An aligned display; what a notebook shows."""
    signs = {"<=": r"\le", "==": "=", ">=": r"\ge"}
    verb = r"\min" if model.sense == "min" else r"\max"
    lines = [rf"{verb}\quad & {_objective(model, _LATEX)}"]
    for block in model.rows.values():
        lines += [rf"\text{{{_escaped(name)}:}}\quad & {left} {signs[block.sense]} {right}"
                  for name, left, right in _rows(model, block, _LATEX)]
        if len(block.rhs) > ROWS:
            lines.append(rf"& \text{{{_escaped(_more_rows(block))}}}")
    words = (r" \le ", r"\text{integer}")
    lines += [f"& {_block(model, block, _LATEX, words)}" for block in model.blocks.values()]
    return "$$\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}$$"


def _more_rows(block: RowBlock) -> str:
    return f"… {len(block.rhs) - ROWS:,} more rows of {block.name!r}"


def _objective(model: Model, style: _Style) -> str:
    if model.objective is None:
        return "0"
    return _sum(model, model.objective.cols, model.objective.vals, float(model.objective.const[0]), style)


def _rows(model: Model, block: RowBlock, style: _Style) -> Iterator[tuple[str, str, str]]:
    """Name, left side and right side of the first rows of a block."""
    for i, name in zip(range(min(len(block.rhs), ROWS)), model.row_names(block.name), strict=False):
        own = block.rows == i
        yield name, _sum(model, block.cols[own], block.vals[own], 0.0, style), style.number(float(block.rhs[i]))


def _sum(model: Model, cols: Ints, vals: Floats, const: float, style: _Style) -> str:
    """``2 x[a] - y + 3``; equal variables are put together first."""
    distinct, back = np.unique(cols, return_inverse=True)
    totals = np.bincount(back, weights=vals, minlength=len(distinct))
    kept = np.flatnonzero(totals)
    parts = []
    for k in kept[:TERMS]:
        factor = float(totals[k])
        size = "" if abs(factor) == 1.0 else style.number(abs(factor)) + style.times
        parts.append(("- " if factor < 0 else "+ ") + size + style.name(model.variable_name(int(distinct[k]))))
    if len(kept) > TERMS:
        parts.append("+ " + style.dots(f"{len(kept) - TERMS:,} more terms"))
    if const or not parts:
        parts.append(("- " if const < 0 else "+ ") + style.number(abs(const)))
    joined = " ".join(parts)
    return joined[2:] if joined.startswith("+ ") else "-" + joined[2:]


def _block(model: Model, block: VariableBlock, style: _Style, words: tuple[str, str]) -> str:
    """``0 <= replicas <= 4, integer, 3 x 9``; bounds that differ within the block are given as their extremes."""
    below, integer = words
    low, high = model.lower[block.start:block.stop], model.upper[block.start:block.stop]
    parts = [f"{_range(low, style)}{below}" if np.isfinite(low).any() else "", style.name(block.name),
             f"{below}{_range(high, style)}" if np.isfinite(high).any() else ""]
    size = " x ".join(str(n) for n in block.shape)
    extra = ([integer] if block.integer else []) + ([rf"\text{{{size}}}" if style is _LATEX else size] if size else [])
    return ", ".join(["".join(parts), *extra])


def _range(bounds: Floats, style: _Style) -> str:
    least, most = float(bounds.min(initial=math.inf)), float(bounds.max(initial=-math.inf))
    return style.number(least) if least == most else f"{{{style.number(least)} … {style.number(most)}}}" \
        if style is _TEXT else rf"\{{{style.number(least)} \dots {style.number(most)}\}}"

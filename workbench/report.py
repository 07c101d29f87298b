"""One self-contained HTML page: a decision, its certificate, tables, figures, where the costs come from, the manifest.

A report is data: sections of blocks. The page asks nothing of the network, reads well on a desk, a phone and paper,
follows the reader's light or dark preference, and is the same bytes for the same data. All text is escaped; of
mark-up, only `backquotes` for code.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal

from workbench.costs import SOURCES, Source
from workbench.errors import SpecError
from workbench.files import write_atomic
from workbench.pagestyle import SCRIPT, STYLE
from workbench.plan import Certificate, Violation
from workbench.plots import Picture

__all__ = ["Block", "Cell", "Checks", "Column", "Commands", "Decision", "Fact", "Facts", "Figure", "Manifest", "Notes",
           "Report", "Section", "Sources", "Table", "Text"]

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs, divided by blank lines."""

    text: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, in words a person can act on; the page shows it large."""

    text: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One key number (or word) with its unit, and a note on how to read it."""

    label: str
    value: Cell
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Key facts, side by side."""

    facts: Sequence[Fact]


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, its unit, and how many significant digits its largest number gets."""

    name: str
    unit: str = ""
    digits: int = 4


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; columns of numbers are aligned right; ``marked`` rows stand out (the chosen plan).

    Numbers that are alike, those of a column or those of a row (one metric a row), get equally many decimals.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    _: KW_ONLY
    marked: Sequence[int] = ()
    alike: Literal["columns", "rows"] = "columns"

    @classmethod
    def of(cls, caption: str, rows: Sequence[Mapping[str, Cell]], *, units: Mapping[str, str] | None = None,
           marked: Sequence[int] = (), alike: Literal["columns", "rows"] = "columns") -> Table:
        """A table of mappings; its columns are their keys, in order of first appearance."""
        keys = list(dict.fromkeys(key for row in rows for key in row))
        return cls(caption, [Column(key, (units or {}).get(key, "")) for key in keys],
                   [[row.get(key) for key in keys] for row in rows], marked=marked, alike=alike)


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its caption."""

    picture: Picture
    caption: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Share of each source of costs behind the plan; shares sum to 1."""

    shares: Mapping[Source, float]
    caption: str = "Where the costs come from"


@dataclass(frozen=True, slots=True)
class Checks:
    """What an independent checker says of ``subject``: nothing, or every rule that is broken."""

    subject: str
    violations: Sequence[Violation]


@dataclass(frozen=True, slots=True)
class Notes:
    """A list of short remarks, such as limitations."""

    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Commands:
    """Lines to paste into a shell."""

    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is needed to repeat the run; folded up until asked for."""

    entries: Mapping[str, Any]
    title: str = "Manifest"


Block = Text | Decision | Facts | Table | Figure | Certificate | Sources | Checks | Notes | Commands | Manifest


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Report:
    """A page: title, a lead of one or two sentences, sections, and short facts (study, run, date) for its head."""

    title: str
    lead: str
    _: KW_ONLY
    sections: Sequence[Section] = ()
    about: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """The whole page.

        Raises:
            SpecError: a picture that is not well-formed SVG or that reaches outside the page.
        """
        links = "".join(f'<li><a href="#s{i}">{_escaped(s.heading)}</a></li>' for i, s in enumerate(self.sections, 1))
        contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(self.sections) > 2 else ""
        about = "".join(f"<div><dt>{_escaped(k)}</dt><dd>{_inline(v)}</dd></div>" for k, v in self.about.items())
        sections = "".join(
            f'<section id="s{i}" aria-labelledby="h{i}"><h2 id="h{i}">{_inline(s.heading)}</h2>'
            + "".join(_block(block, f"s{i}b{k}") for k, block in enumerate(s.blocks)) + "</section>\n"
            for i, s in enumerate(self.sections, 1))
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'; '
            'script-src \'unsafe-inline\'; img-src data:"><link rel="icon" href="data:,">'
            f"<title>{_escaped(self.title)}</title>\n<style>{STYLE}</style></head>\n<body>"
            '<a class="skip" href="#main">Skip to content</a>'
            '<header><button id="theme" type="button" hidden>Dark</button>'
            f'<h1>{_inline(self.title)}</h1><p class="lead">{_inline(self.lead)}</p>'
            + (f'<dl class="about">{about}</dl>' if about else "")
            + f'{contents}</header>\n<main id="main">{sections}</main>\n<script>{SCRIPT}</script></body></html>\n')

    def write(self, path: Path | str) -> Path:
        """Write the page, whole or not at all; returns its path."""
        return write_atomic(path, self.html())


# ----------------------------------------------------------------------------------------------------------- blocks


def _block(block: Block, name: str) -> str:
    return _WRITERS[type(block)](block, name)


def _text(block: Text, _: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in re.split(r"\n\s*\n", block.text.strip()))


def _decision(block: Decision, _: str) -> str:
    return f'<p class="decision">{_inline(block.text)}</p>'


def _facts(block: Facts, _: str) -> str:
    cards = []
    for fact in block.facts:
        unit = f' <span class="unit">{_escaped(fact.unit)}</span>' if fact.unit else ""
        note = f'<dd class="note">{_inline(fact.note)}</dd>' if fact.note else ""
        number = _plain(fact.value)
        value = _escaped(_formatter([number], 4)(number))
        cards.append(f'<div><dt>{_inline(fact.label)}</dt><dd class="value">{value}{unit}</dd>{note}</div>')
    return f'<dl class="facts">{"".join(cards)}</dl>'


def _table(block: Table, name: str) -> str:
    rows = [[_plain(cell) for cell in row] for row in block.rows]
    wrong = next((row for row in rows if len(row) != len(block.columns)), None)
    if wrong is not None:
        raise SpecError(f"{len(wrong)} cells in a row for {len(block.columns)} columns",
                        where=f"table {block.caption!r}")
    columns = [[row[k] for row in rows] for k in range(len(block.columns))]
    numeric = [any(_is_number(v) for v in c) and all(v is None or _is_number(v) for v in c) for c in columns]
    by_column = [_formatter(c, column.digits) for c, column in zip(columns, block.columns, strict=True)]
    by_row = [[_formatter(row, 4)] * len(row) for row in rows]
    kinds = ["n" if right else _width_class(c) for right, c in zip(numeric, columns, strict=True)]
    head = "".join(
        f'<th scope="col"{_class(kind)}>{_inline(column.name)}'
        + (f' <span class="unit">{_escaped(column.unit)}</span>' if column.unit else "") + "</th>"
        for column, kind in zip(block.columns, kinds, strict=True))
    body = []
    for r, row in enumerate(rows):
        cells = []
        formats = by_row[r] if block.alike == "rows" else by_column
        for k, (cell, show, kind) in enumerate(zip(row, formats, kinds, strict=True)):
            tag = "th scope=\"row\"" if k == 0 and kind != "n" else "td"
            shown = _inline(cell) if isinstance(cell, str) else _escaped(show(cell))
            cells.append(f"<{tag}{_class(kind)}>{shown}</{tag[:2]}>")
        body.append(f"<tr{' class=marked' if r in block.marked else ''}>{''.join(cells)}</tr>")
    if not rows:
        body.append(f'<tr><td colspan="{max(1, len(block.columns))}">no rows</td></tr>')
    return (f'<div class="scroll" role="region" aria-labelledby="{name}" tabindex="0"><table>'
            f'<caption id="{name}">{_inline(block.caption)}</caption><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>")


def _width_class(cells: Sequence[Any]) -> str:
    """Prose in a narrow column would become a tower of single words; names should not break at all."""
    longest = max((len(v) for v in cells if isinstance(v, str)), default=0)
    return "short" if longest <= 24 else "medium" if longest <= 48 else "long"


def _figure(block: Figure, name: str) -> str:
    wide, narrow = (_own_ids(_safe_svg(svg, block.caption), f"{name}{side}")
                    for svg, side in ((block.picture.wide, "w"), (block.picture.narrow, "n")))
    return (f'<figure><div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
            f"<figcaption>{_inline(block.caption)}</figcaption></figure>")


def _certificate(block: Certificate, name: str) -> str:
    unit = f' <span class="unit">{_escaped(block.unit)}</span>'
    number = _formatter([block.objective, block.bound], 5)
    gap = block.gap
    said = {"optimal": "gap within tolerance", "feasible": "gap not closed", "heuristic": "no claim of optimality"}
    entries = [("Objective", f"{_escaped(number(block.objective))}{unit}",
                "minimised" if block.sense == "min" else "maximised")]
    if block.bound is not None and gap is not None:
        side = "no plan can be below it" if block.sense == "min" else "no plan can be above it"
        entries += [("Proven bound", f"{_escaped(number(block.bound))}{unit}", side),
                    ("Gap", _escaped(_percent(gap)), "of the objective")]
    else:
        entries.append(("Proven bound", "none", "this planner proves nothing"))
    entries += [("Search", f'{_escaped(_formatter([block.seconds], 3)(block.seconds))} <span class="unit">s</span>',
                 _escaped(f"{block.planner} with {block.solver}" if block.solver else block.planner))]
    cards = "".join(f'<div><dt>{k}</dt><dd class="value">{v}</dd><dd class="note">{n}</dd></div>'
                    for k, v, n in entries)
    proven = ""
    if gap is not None and math.isfinite(gap):
        width = f"{100 * max(0.0, 1 - min(gap, 1.0)):.2f}".rstrip("0").rstrip(".")
        proven = f'<div class="proof" aria-hidden="true"><i style="width:{width}%"></i></div>'
    prices = ""
    if block.shadow_prices:
        columns = [Column("resource"), Column("one more is worth", block.unit)]
        prices = _table(Table("Scarce resources", columns, list(block.shadow_prices.items())), name)
    return (f'<div class="certificate {block.status}"><h3>Certificate <span class="pill">{block.status}</span> '
            f'<span class="unit">{said[block.status]}</span></h3>{proven}<dl class="facts">{cards}</dl></div>{prices}')


def _sources(block: Sources, _: str) -> str:
    wrong = set(block.shares) - set(SOURCES)
    if wrong:
        raise SpecError(f"no source is called {sorted(wrong)[0]!r}", where="report sources", allowed=SOURCES)
    present = [(s, block.shares.get(s, 0.0)) for s in SOURCES if block.shares.get(s, 0.0) > 0]
    strips = "".join(f'<i class="{s}" style="flex-grow:{share:.6f}"></i>' for s, share in present)
    legend = "".join(f'<li><i class="{s}"></i>{s} <b>{_percent(share)}</b></li>' for s, share in present)
    return (f'<figure class="sources"><div class="strip" aria-hidden="true">{strips}</div><ul>{legend}</ul>'
            f"<figcaption>{_inline(block.caption)}</figcaption></figure>")


def _checks(block: Checks, name: str) -> str:
    if not block.violations:
        return (f'<p class="checks"><span class="pill">no violation</span> {_inline(block.subject)}: '
                "re-derived independently of the search.</p>")
    rows = [(v.rule, v.where, v.detail) for v in block.violations]
    count = f"{len(rows)} violation{'s' if len(rows) > 1 else ''}"
    return (f'<p class="checks failed"><span class="pill">{count}</span> {_inline(block.subject)}</p>'
            + _table(Table(f"Broken rules: {block.subject}", [Column("rule"), Column("where"), Column("found")], rows),
                     name))


def _notes(block: Notes, _: str) -> str:
    return f'<ul class="notes">{"".join(f"<li>{_inline(note)}</li>" for note in block.notes)}</ul>'


def _commands(block: Commands, _: str) -> str:
    return f'<pre tabindex="0"><code>{_escaped(chr(10).join(block.lines))}</code></pre>'


def _manifest(block: Manifest, _: str) -> str:
    rows = "".join(f'<tr><th scope="row">{_escaped(key)}</th><td>{_escaped(value)}</td></tr>'
                   for key, value in _flat(block.entries))
    return (f"<details><summary>{_inline(block.title)}</summary>"
            f'<table class="manifest"><tbody>{rows}</tbody></table></details>')


_WRITERS: dict[type, Callable[[Any, str], str]] = {
    Text: _text, Decision: _decision, Facts: _facts, Table: _table, Figure: _figure, Certificate: _certificate,
    Sources: _sources, Checks: _checks, Notes: _notes, Commands: _commands, Manifest: _manifest,
}


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [row for key, inner in value.items() for row in _flat(inner, f"{path}.{key}" if path else str(key))]
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))]


# ----------------------------------------------------------------------------------------------- text, numbers, SVG


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escaped(text))


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "∞"
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"


def _plain(cell: Any) -> Any:
    """NumPy and pandas scalars as Python's own."""
    return cell.item() if hasattr(cell, "item") else cell


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _formatter(cells: Sequence[Any], digits: int) -> Callable[[Any], str]:
    """How to write cells that are alike: one number of decimals for all, if their sizes allow."""
    numbers = [float(v) for v in cells if _is_number(v) and math.isfinite(v)]
    sizes = [math.floor(math.log10(abs(v))) for v in numbers if v]
    largest, least = (max(sizes), min(sizes)) if sizes else (0, 0)
    wanted = max(digits - 1 - largest, 1 - least, 0)
    decimals = max((_decimals(v, wanted) for v in numbers), default=0)
    whole = all(isinstance(v, int) for v in cells if _is_number(v))
    # Beyond these the zeros that line the numbers up would hide them.
    together = whole or (largest <= 6 and (wanted <= 4 or (largest - least <= 1 and wanted <= 7)))

    def show(cell: Any) -> str:
        if cell is None:
            return "–"
        if isinstance(cell, bool):
            return "yes" if cell else "no"
        if not _is_number(cell):
            return str(cell)
        if not math.isfinite(cell):
            return "n/a" if math.isnan(cell) else "∞" if cell > 0 else "−∞"
        shown = f"{cell:,.{decimals}f}" if together else _alone(cell, digits)
        return shown.replace("-", "−")

    return show


def _decimals(value: float, most: int) -> int:
    """Decimals that ``value`` needs when it gets at most ``most``."""
    return len(f"{value:.{most}f}".rstrip("0").rpartition(".")[2]) if most else 0


def _alone(value: float, digits: int) -> str:
    """A number among others of quite another size."""
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:,.{_decimals(value, decimals)}f}"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.rstrip('0').rstrip('.')}×10{raised}"


def _safe_svg(svg: str, caption: str) -> str:
    """``svg`` as it is, if it is well-formed and asks for nothing outside itself."""
    from xml.etree import ElementTree

    where = f"figure {caption!r}"
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise SpecError(f"not well-formed SVG: {error}", where=where) from None
    if root.tag != "{http://www.w3.org/2000/svg}svg":
        raise SpecError("not an SVG picture", where=where)
    for element in root.iter():
        kind = str(element.tag).rpartition("}")[2].lower()
        if kind in ("script", "foreignobject", "image", "iframe", "a"):
            raise SpecError(f"a picture may not hold a <{kind}> element", where=where)
        for key, value in element.attrib.items():
            bare = key.rpartition("}")[2].lower()
            outside = bare == "href" and not value.startswith("#")
            if bare.startswith("on") or outside or re.search(r"url\((?!['\"]?#)", value):
                raise SpecError(f"a picture may not reach outside itself ({bare}={value[:40]!r})", where=where)
        if kind == "style" and re.search(r"@import|url\((?!['\"]?#)", element.text or ""):
            raise SpecError("a picture may not load style sheets", where=where)
    return svg


def _own_ids(svg: str, name: str) -> str:
    """Ids of a picture made unique on the page, so that a picture may be shown twice."""
    def renamed(tag: str) -> str:
        return re.sub(r'( id="|url\(#| href="#)', rf"\g<1>{name}-", tag)

    return re.sub(r"<[^>]*>", lambda tag: renamed(tag[0]), svg)

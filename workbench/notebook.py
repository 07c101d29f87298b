"""What values look like in a notebook: a plan's decision and certificate, tables, and a timeline's Gantt chart.

Colours come from the page (``currentColor``), so that light and dark themes both read well; all text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from workbench.plan import Certificate

if TYPE_CHECKING:
    from workbench.outcome import Outcome
    from workbench.timeline import Timeline

__all__ = ["certificate", "outcome", "paragraph", "plan", "table", "timeline"]

_MOST_ROWS = 60
_LINE = "1px solid rgba(128,128,128,.35)"


def plan(planner: ModuleType, made: Any) -> str:
    """A plan of ``planner``: the decision in words and as a table, and its certificate."""
    return (paragraph(planner.in_words(made), strong=True) + table(planner.decision(made), "The decision")
            + certificate(made.certificate))


def certificate(proof: Certificate) -> str:
    """The certificate in one line, and what one more of each scarce resource is worth."""
    scarce = [{"one more": name, f"{proof.unit} better": value} for name, value in proof.shadow_prices.items()]
    return paragraph(f"Certificate: {proof.line()}") + (table(scarce, "Scarce resources") if scarce else "")


def outcome(found: Outcome) -> str:
    """Metrics, and the Gantt chart where there is a timeline."""
    rows = [{"metric": m.name, found.clock: m.value, "unit": m.unit, "about": m.about} for m in found.metrics]
    return table(rows, found.clock.capitalize()) + (timeline(found.timeline) if found.timeline is not None else "")


def timeline(line: Timeline) -> str:
    """The Gantt chart of a timeline."""
    from workbench import plots

    label = f"Gantt chart of {len(line)} spans on {len(line.devices)} devices"
    drawn = plots.svg(plots.gantt(line), label=label) if len(line) else paragraph("no spans")
    return f'<div style="max-width:56rem">{drawn}</div>'


def paragraph(text: str, *, strong: bool = False) -> str:
    """Text as one paragraph."""
    weight = ";font-weight:600" if strong else ""
    return f'<p style="margin:.4em 0;max-width:56rem{weight}">{html.escape(text)}</p>'


def table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Rows under their keys; numbers to the right with four significant digits; long tables are cut, saying so."""
    from workbench.cli import number

    names = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f'<th style="text-align:left;border-bottom:{_LINE}">{html.escape(name)}</th>' for name in names)
    body = "".join("<tr>" + "".join(_cell(row.get(name), number) for name in names) + "</tr>"
                   for row in rows[:_MOST_ROWS])
    more = f"; {len(rows) - _MOST_ROWS} more rows" if len(rows) > _MOST_ROWS else ""
    said = html.escape(caption + (more if rows else ": nothing"))
    return (f'<table style="border-collapse:collapse;margin:.4em 0"><caption style="text-align:left;font-weight:600">'
            f"{said}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _cell(value: Any, number: Any) -> str:
    side = "right" if isinstance(value, (int, float)) and not isinstance(value, bool) else "left"
    return f'<td style="text-align:{side};padding:.15em .8em .15em 0">{html.escape(number(value))}</td>'

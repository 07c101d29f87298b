"""A report is one page that asks nothing of the network, shows text as text and numbers as they are."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import plots
from workbench.errors import SpecError
from workbench.plan import Certificate, Violation
from workbench.plots import Picture
from workbench.report import (
    Checks,
    Column,
    Commands,
    Decision,
    Fact,
    Facts,
    Figure,
    Manifest,
    Notes,
    Report,
    Section,
    Sources,
    Table,
    Text,
)
from workbench.timeline import Span, Timeline

VOID = {"meta", "link", "br", "img", "hr", "input"}
EVIL = "<script>alert(1)</script> & \"quoted\" 'single' <b>x</b>"


class Page(HTMLParser):
    """Elements in order with their attributes, text by element, and whether tags are balanced."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.stack, self.elements, self.texts, self.unbalanced = [], [], [], []
        self.feed(text)
        self.close()
        self.unbalanced += self.stack

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.stack)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.stack)))

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.unbalanced.append(f"/{tag}")

    def handle_data(self, data):
        self.texts.append((self.stack[-1] if self.stack else "", data))

    def all(self, tag):
        return [attrs for name, attrs, _ in self.elements if name == tag]

    def text_in(self, tag):
        return [data for name, data in self.texts if name == tag]


def square(body=""):
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><rect width="1" height="1"/>{body}</svg>'


def picture(body=""):
    return Picture(wide=square(body), narrow=square(body), label="a square")


def certificate(**changed):
    return Certificate(**{"objective": 28.5, "bound": 28.0, "sense": "min", "unit": "s", "status": "feasible",
                          "planner": "theta", "solver": "highs", "seconds": 1.5, **changed})


def report_of(text, *, number=3.5):
    """Every kind of block, with ``text`` wherever text may stand."""
    blocks = [
        Text(text), Decision(text), Facts([Fact(text, text, text, text), Fact(text, number, text)]),
        Table(text, [Column(text, text), Column(text, text)], [[text, number], [text, None]], marked=[1]),
        Figure(picture(), text), certificate(unit=text, planner=text, solver=text, shadow_prices={text: number}),
        Sources({"measured": 0.25, "analytic": 0.75}, text), Checks(text, []),
        Checks(text, [Violation(rule=text, where=text, detail=text)]), Notes([text]), Commands([text]),
        Manifest({text: {"key": text}, "numbers": [1, 2]}, text),
    ]
    return Report(text, text, sections=[Section(text, blocks), Section("two", []), Section("three", [])],
                  about={text: text})


def test_the_page_is_balanced_html_with_unique_ids_and_names_that_exist():
    page = Page(report_of(EVIL).html())
    assert not page.unbalanced
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    referred = {attrs["aria-labelledby"] for _, attrs, _ in page.elements if "aria-labelledby" in attrs}
    referred |= {a["href"][1:] for a in page.all("a")}
    assert referred <= set(ids)
    assert page.all("html") == [{"lang": "en"}] and len(page.all("main")) == len(page.all("h1")) == 1
    assert "width=device-width" in page.all("meta")[1]["content"]
    assert {a["scope"] for a in page.all("th")} == {"col", "row"}
    outside_manifest = [path for tag, _, path in page.elements if tag == "table" and "details" not in path]
    assert len(page.all("caption")) == len(outside_manifest) == 3
    assert all("open" not in attrs for attrs in page.all("details"))
    for tag, attrs, path in page.elements:
        if tag == "table":
            assert path[-1] in ("div", "details")  # its own scrolling box, or the fold that wraps its cells
        if tag == "svg":
            assert path[-2:] == ("figure", "div") and "viewBox" in {k.replace("viewbox", "viewBox") for k in attrs}


printable = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="`"),
                    min_size=1, max_size=12).filter(lambda t: t == t.strip() and t)


@given(printable)
@settings(deadline=None, max_examples=60)
def test_any_text_is_shown_as_itself_and_changes_no_element(text):
    page, plain = Page(report_of(text).html()), Page(report_of("plain").html())
    assert [tag for tag, _, _ in page.elements] == [tag for tag, _, _ in plain.elements]
    for tag in ("h1", "h2", "caption", "figcaption", "summary", "code", "li"):
        assert any(text in shown for shown in page.text_in(tag)), tag


def test_a_script_in_the_data_stays_text():
    page = Page(report_of(EVIL).html())
    assert len(page.all("script")) == 1 and page.all("b") == [{}, {}]  # the two shares of the sources
    assert EVIL in page.text_in("h1")


def test_nothing_is_asked_of_the_network():
    text = report_of("see https://example.org/x.css").html()
    page = Page(text)
    for tag, attrs, _ in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:,")), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")]
    style = "".join(page.text_in("style"))
    assert "@import" not in style and "url(" not in style
    assert any("default-src 'none'" in m.get("content", "") for m in page.all("meta"))


@pytest.mark.parametrize("body", [
    "<script>alert(1)</script>", '<rect onload="x()"/>', '<image href="http://example.org/a.png"/>',
    '<use href="http://example.org/a.svg#x"/>', '<rect style="fill: url(http://example.org/x)"/>',
    "<style>@import 'http://example.org/x.css';</style>", '<a href="#x"><rect/></a>', "<rect>", "<foreignObject/>",
])
def test_a_picture_that_reaches_outside_is_refused(body):
    with pytest.raises(SpecError, match="figure 'here'"):
        Report("t", "l", sections=[Section("s", [Figure(picture(body), "here")])]).html()


def test_a_picture_shown_twice_keeps_its_references():
    body = '<clipPath id="c"><rect/></clipPath><g clip-path="url(#c)"/>'
    page = Page(Report("t", "l", sections=[Section("s", [Figure(picture(body), "x")] * 2)]).html())
    ids = [a["id"] for a in page.all("clippath")]
    assert len(set(ids)) == 4
    assert [re.search(r"#(.*)\)", a["clip-path"])[1] for a in page.all("g")] == ids


def test_the_certificate_states_objective_bound_gap_status_time_and_who():
    def shown(**changed):
        page = Page(Report("t", "l", sections=[Section("s", [certificate(**changed)])]).html())
        return " ".join(" ".join(data for _, data in page.texts[page.texts.index(("h3", "Certificate ")):]).split())

    text = shown()
    for part in ("feasible", "28.5 s minimised", "28.0 s no plan can be below it", "Gap 1.75%",
                 "1.5 s theta with highs"):
        assert part in text
    assert "no plan can be above it" in shown(sense="max", bound=29.0)
    alone = shown(bound=None, status="heuristic", solver=None)
    assert "no claim of optimality" in alone and "this planner proves nothing" in alone and "Gap" not in alone
    assert "Gap ∞" in shown(bound=-math.inf)
    assert "Gap 0%" in shown(bound=28.5, status="optimal")


def cells(table):
    page = Page(Report("t", "l", sections=[Section("s", [table])]).html())
    start = next(i for i, (tag, _, _) in enumerate(page.elements) if tag == "tbody")
    right = [a.get("class") == "n" for tag, a, path in page.elements[start:] if "tr" in path and tag in ("td", "th")]
    shown = [data for tag, data in page.texts if tag in ("td", "th")][len(table.columns):]
    return shown, right


@pytest.mark.parametrize(("column", "shown"), [
    ([2.99, 5.98, 2.2], ["2.99", "5.98", "2.20"]), ([1, 20000, None], ["1", "20,000", "–"]),
    ([0.5, math.inf, -3.25], ["0.50", "∞", "−3.25"]), ([6.2e10, 0.38, 0.0], ["6.2×10¹⁰", "0.38", "0"]),
    ([3.0, 4.0], ["3", "4"]), ([0.00012, 1.0], ["0.00012", "1"]), ([math.nan, 1.5], ["n/a", "1.5"]),
    ([704.21, 651.0], ["704.2", "651.0"]), ([10**12, 1], ["1,000,000,000,000", "1"]),
])
def test_numbers_of_a_column_share_their_decimals(column, shown):
    told, right = cells(Table("c", [Column("name"), Column("x")], [["r", v] for v in column]))
    assert told[1::2] == shown and right == [False, True] * len(column)


@given(st.lists(st.floats(-1e12, 1e12).filter(lambda v: v == 0 or abs(v) > 1e-9), min_size=1, max_size=6))
@settings(deadline=None)
def test_shown_numbers_are_the_numbers_to_three_digits(values):
    """Reading a cell back gives its value to within half a unit of the fourth digit of the largest, or of its own."""
    told, _ = cells(Table("c", [Column("x")], [[v] for v in values]))
    raised = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
    for value, text in zip(values, told, strict=True):
        read = float(text.replace("×10", "e").translate(raised).replace(",", ""))
        assert abs(read - value) <= max(5e-4 * abs(value), 5.1e-4 * max(map(abs, values)) * (len(values) > 1))
        assert value == 0 or read != 0


def test_rows_of_metrics_have_decimals_of_their_own():
    rows = [{"metric": "a", "predicted": 28.4127, "simulated": 29.0},
            {"metric": "b", "predicted": 0.5, "simulated": None}]
    told, _ = cells(Table.of("c", rows, alike="rows"))
    assert told == ["a", "28.41", "29.00", "b", "0.5", "–"]


def test_numpy_scalars_are_numbers():
    rows = [[np.int64(3), np.float32(0.5), np.bool_(True)], [np.int64(4), np.float32(1), np.bool_(False)]]
    told, right = cells(Table("c", [Column("a"), Column("b"), Column("d")], rows))
    assert told == ["3", "0.5", "yes", "4", "1.0", "no"] and right == [True, True, False] * 2


def test_columns_of_words_and_truths_are_not_numbers():
    told, right = cells(Table("c", [Column("a"), Column("b")], [[True, "x"], [False, 3]]))
    assert told == ["yes", "x", "no", "3"] and right == [False] * 4


def test_a_row_of_the_wrong_length_names_its_table():
    for rows in ([[1, 2]], [[1], [1, 2]]):
        with pytest.raises(SpecError, match="table 'mine'"):
            Report("t", "l", sections=[Section("s", [Table("mine", [Column("a")], rows)])]).html()
    assert "no rows" in Report("t", "l", sections=[Section("s", [Table("mine", [Column("a")], [])])]).html()


def test_shares_of_unknown_sources_are_refused():
    with pytest.raises(SpecError, match="guessed"):
        Report("t", "l", sections=[Section("s", [Sources({"guessed": 1.0})])]).html()


def test_a_full_page_is_small_and_the_same_in_any_process(tmp_path):
    """Forty thousand spans, ten thousand latencies: below 3 MB, and equal bytes under another hash seed."""
    written = big_report().write(tmp_path / "deep" / "report.html")
    data = written.read_bytes()
    assert len(data) < 3_000_000 and [p.name for p in written.parent.iterdir()] == ["report.html"]
    code = "import sys; from tests.test_report import big_report; big_report().write(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again.html")], check=True,
                   env={**os.environ, "PYTHONHASHSEED": "5"}, cwd=Path(__file__).parents[1])
    assert (tmp_path / "again.html").read_bytes() == data


def big_report():
    spans = Timeline.from_spans([Span(device=f"gpu{k % 8}", stream="compute", name=f"{'FB'[k % 3 % 2]}{k}",
                                      start_s=k // 8 * 1e-3, end_s=k // 8 * 1e-3 + 9e-4) for k in range(40_000)])
    latencies = {name: [(k * 7919 % 10_007) / 1e4 for k in range(10_000)] for name in ("a", "b", "c")}
    return Report("t", "l", sections=[Section("s", [
        Figure(plots.picture(plots.gantt, spans, label="spans"), "c"),
        Figure(plots.picture(plots.cdf, latencies, label="latencies", quantity="latency", unit="s"), "c"),
        Figure(plots.picture(plots.utilisation, spans.busy_share(), label="shares"), "c")])])

"""Report pages of every study: self-contained, readable in a browser at both widths and in both colour schemes."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.test_report import Page
from workbench import pages, study
from workbench.job import open_job
from workbench.outcome import Metric, Outcome
from workbench.report import Figure, Section, Table, Text
from workbench.reproduce import claims_of, reproduce
from workbench.runs import RunFolder
from workbench.timeline import Span, Timeline
from workbench.tour import toy_spec

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--enable-logging=stderr", "--v=0")
LINE = Timeline.from_spans([Span(device="gpu 0", stream="compute", name="F0", start_s=0.0, end_s=1.0)])


@pytest.fixture(scope="module", params=study.names())
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study's toy: planned, simulated, its paper's first claim tried."""
    root, job = tmp_path_factory.mktemp("runs"), open_job(str(toy_spec(request.param)))
    folder = RunFolder.of(job, root)
    plan = job.plan()
    folder.save_plan(job, plan)
    folder.save_outcome(job.simulate(plan))
    reproduce(job.study, root / f"{job.study.name}-claims", only=claims_of(job.study)[0].id)
    return pages.write_page(job, folder, plan)


def test_a_page_is_small_balanced_and_asks_nothing_of_the_network(page: Path) -> None:
    """Bar: below 3 MB, no external requests."""
    assert page.stat().st_size < 3_000_000
    read = Page(page.read_text())
    assert not read.unbalanced
    for _, attrs, _ in read.elements:
        for name in ("src", "href", "data", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:,"))


def test_a_page_has_decision_certificate_clocks_claims_and_manifest(page: Path) -> None:
    text = page.read_text()
    headings = Page(text).text_in("h2")
    for wanted in ("What to do", "Why to believe it", "Predicted, simulated, measured", "Beside the alternatives",
                   "Beside the paper", "How to repeat it"):
        assert wanted in headings
    for part in ("Certificate", "no violation", "Where the costs come from", "Manifest", "Nothing measured yet"):
        assert part in text


def test_a_page_says_when_nothing_was_simulated(small_spec: Path, tmp_path: Path) -> None:
    job = open_job(str(small_spec))
    folder, plan = RunFolder.of(job, tmp_path / "runs"), job.plan()
    folder.save_plan(job, plan)
    text = pages.write_page(job, folder, plan).read_text()
    assert f"<code>wb simulate {small_spec}</code>" in text
    assert "What is known so far" in text
    assert "Beside the paper" not in text


@pytest.mark.parametrize(("predicted", "found", "said"), [
    (10.0, 10.0, "0 %"), (0.3, 0.1 + 0.2, "0 %"), (10.0, 9.84, "−1.6 %"), (10.0, 15.0, "+50 %"), (1.0, 3.94, "× 3.9"),
    (1.0, 524.4, "× 524"), (10.0, 1.0, "× 0.1"), (0.0, 1.0, "–"), (None, 1.0, "–"), (1.0, None, "–"),
    (2.0, -2.0, "–"), (0.0, 0.0, "0 %")])
def test_distances_from_the_prediction_read_as_shares_or_multiples(
        predicted: float | None, found: float | None, said: str) -> None:
    assert pages._apart(predicted, found) == said


def test_metrics_of_several_clocks_stand_together_and_the_rest_apart() -> None:
    predicted = [Metric(name="makespan_s", value=2.0, unit="s"), Metric(name="gpus", value=3.0, unit="")]
    measured = Outcome(clock="measured", metrics=(Metric(name="makespan_s", value=2.2, unit="s"),
                                                  Metric(name="rate_per_s", value=5.0, unit="requests/s")))
    (together,), (alone,) = pages._clocks(predicted, [measured])
    assert isinstance(together, Table) and isinstance(alone, Table)
    assert [c.name for c in together.columns] == ["metric", "predicted", "measured", "apart"]
    assert list(together.rows) == [["makespan (s)", 2.0, 2.2, "+10 %"]]
    assert list(alone.rows) == [["gpus", 3.0, "predicted"], ["rate (requests/s)", 5.0, "measured"]]
    (nothing,), rest = pages._clocks([], [])
    assert isinstance(nothing, Text) and rest == []


def test_a_page_with_a_measurement_says_whose_times_were_predicted() -> None:
    job = open_job(str(toy_spec("circuit")))
    measured, plan = Outcome(clock="measured", metrics=()), job.plan()
    (said,) = pages._whose_times(job, plan, [measured])
    assert isinstance(said, Text) and "A100" in said.text
    assert pages._whose_times(job, plan, [dataclasses.replace(measured, clock="simulated")]) == []
    given = open_job(str(toy_spec("pipeline")))
    (said,) = pages._whose_times(given, given.plan(), [measured])
    assert isinstance(said, Text) and "what the spec states" in said.text


@pytest.mark.parametrize(("key", "name", "unit"), [
    ("rent_usd_per_h", "rent", "$/h"), ("makespan_s", "makespan", "s"), ("rate_per_s", "rate", "1/s"),
    ("samples_per_s", "samples per s", ""), ("peak_memory_bytes", "peak memory", "bytes"),
    ("bandwidth_bytes_per_s", "bandwidth", "bytes/s"), ("busy share", "busy share", "")])
def test_keys_become_words_and_units(key: str, name: str, unit: str) -> None:
    assert pages._name_and_unit(key) == (name, unit)


@pytest.mark.parametrize(("value", "unit", "shown"), [
    (3.75e-5, "s", "37.5 µs"), (29_360_128.0, "bytes", "29.4 MB"), (827.7, "s", 827.7), (3e9, "requests", 3e9)])
def test_key_numbers_have_prefixes_where_they_are_very_small_or_large(value: float, unit: str, shown: object) -> None:
    assert pages._fact(Metric(name="x", value=value, unit=unit)).value == shown


def test_a_timeline_is_drawn_where_the_study_draws_nothing() -> None:
    timed = Outcome(clock="simulated", metrics=(), timeline=LINE)
    own = [Section("Stages", [Text("two")])]
    (drawn,) = pages._with_gantt(own, timed)
    assert drawn.heading == "Stages"
    assert isinstance(drawn.blocks[-1], Figure)
    assert pages._with_gantt([drawn], timed) == [drawn]
    assert pages._with_gantt(own, dataclasses.replace(timed, timeline=None)) == own
    assert pages._with_gantt([], timed)[0].heading == "Timeline, simulated"


def test_a_stored_timeline_comes_back_and_goes_with_its_outcome(small_spec: Path, tmp_path: Path) -> None:
    folder = RunFolder.of(open_job(str(small_spec)), tmp_path / "runs")
    timed = Outcome(clock="simulated", metrics=(), timeline=LINE)
    folder.save_outcome(timed)
    assert folder.load_timeline("simulated") == LINE
    folder.save_outcome(dataclasses.replace(timed, timeline=None))
    assert folder.load_timeline("simulated") is None


def test_outcomes_of_another_plan_are_set_aside(small_spec: Path, tmp_path: Path) -> None:
    """Planning anew from changed data must not leave the old plan's simulation beside the new prediction."""
    job = open_job(str(small_spec))
    folder, plan = RunFolder.of(job, tmp_path / "runs"), job.plan()
    folder.save_plan(job, plan)
    folder.save_outcome(job.simulate(plan))
    slower = dataclasses.replace(plan.certificate, seconds=99.0)
    folder.save_plan(job, dataclasses.replace(plan, certificate=slower))
    assert folder.has("simulated.json"), "the same decision keeps its outcomes"
    folder.save_plan(job, dataclasses.replace(plan, makespan_s=2 * plan.makespan_s))
    assert not folder.has("simulated.json")
    assert folder.has("simulated.superseded.json")


# ---------------------------------------------------------------------------------------------------- in a browser


def browse(page: Path, profile: Path, *more: str) -> subprocess.CompletedProcess[str]:
    if BROWSER is None:
        pytest.skip("no Chromium on PATH; with one, pages are opened in it")
    done = subprocess.run([BROWSER, *FLAGS, f"--user-data-dir={profile}", *more, f"file://{page}"], text=True,
                          capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_the_page_without_complaint(page: Path, width: int, scheme: str, tmp_path: Path) -> None:
    """Bar: no console errors, no external requests (the page's own policy would report them on the console)."""
    image = pytest.importorskip("matplotlib.image")
    target = tmp_path / "page.png"
    done = browse(page, tmp_path / "profile", f"--screenshot={target}", f"--window-size={width},1400",
                  f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}")
    assert not re.search(r"CONSOLE|Refused to|Content Security Policy", done.stderr), done.stderr[-2000:]
    shown = image.imread(target)[..., :3]
    assert shown.shape[:2] == (1400, width)
    paper = np.median(shown, axis=(0, 1))
    assert paper.max() < 0.2 if scheme == "dark" else paper.min() > 0.9, "the page follows the reader's preference"
    assert shown.std() > 0.05, "something is on it"


def test_a_console_error_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><script>console.error('seen')</script>")
    assert "CONSOLE" in browse(page, tmp_path / "profile", f"--screenshot={tmp_path / 'x.png'}").stderr


PROBE = """<script>addEventListener("load",function(){
var wide=[].filter.call(document.querySelectorAll("main p,main h2,h1,main dl,main figure,main .certificate,main pre"),
function(e){return e.getBoundingClientRect().right>innerWidth+1&&getComputedStyle(e).display!=="none"});
var small=[].filter.call(document.querySelectorAll("main svg text"),function(e){
var r=e.getBoundingClientRect();return r.width>0&&r.height<8.5});
document.title="overflow="+(document.documentElement.scrollWidth-innerWidth)+
" wide="+wide.length+" small="+small.length})
</script>"""


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_the_page_and_no_text_of_a_figure_is_tiny(page: Path, width: int, tmp_path: Path) -> None:
    """Tables scroll in their own boxes; the page itself never scrolls sideways."""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    done = browse(probed, tmp_path / "profile", f"--window-size={width},1400", "--dump-dom")
    title = re.search(r"<title>(overflow=.*?)</title>", done.stdout)
    assert title, done.stdout[:300]
    overflow, wide, small = (int(part.split("=")[1]) for part in title[1].split())
    assert (overflow <= 0, wide, small) == (True, 0, 0), title[1]

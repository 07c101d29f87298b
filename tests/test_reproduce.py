"""Claims: every published one is computed or says what it needs, verdicts follow tolerance and sense, rows persist."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from workbench import reproduce as module
from workbench import study
from workbench.errors import MissingProfile, SpecError
from workbench.reproduce import Claim, Reproduced, claims_of, computations, counted, reproduce, untested, verdict

Wb = Callable[..., tuple[int, str, str]]
STUDIES = [name for name in study.names() if study.load(name).claims.exists()]
CLAIM = Claim(id="c", claim="It is ten.", value=10.0, unit="s", tolerance=0.1, source="table 1", minutes=0.01)


@pytest.fixture
def found() -> study.Study:
    return study.load("placement")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the study claim and compute just this."""
    def set_to(*claims: Claim, **functions: Callable[[], Reproduced]) -> None:
        monkeypatch.setattr(module, "claims_of", lambda _: claims)
        monkeypatch.setattr(module, "computations", lambda _: functions)

    return set_to


@pytest.mark.parametrize("name", STUDIES)
def test_no_claim_is_dropped_silently(name: str) -> None:
    known = study.load(name)
    assert list(untested(known)) == []
    assert set(computations(known)) <= {c.id for c in claims_of(known)}, "a function computes a claim nobody made"
    both = [c.id for c in claims_of(known) if c.needs is not None and c.id in computations(known)]
    assert both == [], "a claim that is computed needs nothing"


@pytest.mark.parametrize(("sense", "ours", "said"), [
    ("equal", 11.0, "reproduced"), ("equal", 9.0, "reproduced"), ("equal", 11.1, "differs"), ("equal", 8.9, "differs"),
    ("at most", 0.0, "reproduced"), ("at most", 11.0, "reproduced"), ("at most", 11.1, "differs"),
    ("at least", 99.0, "reproduced"), ("at least", 9.0, "reproduced"), ("at least", 8.9, "differs"),
])
def test_the_verdict_follows_tolerance_and_sense(sense: str, ours: float, said: str) -> None:
    assert verdict(replace(CLAIM, sense=sense), ours) == said  # type: ignore[arg-type]


def test_a_tolerance_of_a_value_of_nothing_is_absolute() -> None:
    assert verdict(replace(CLAIM, value=0.0), 0.05) == "reproduced"
    assert verdict(replace(CLAIM, value=0.0), 0.15) == "differs"


@pytest.mark.parametrize("name", STUDIES)
def test_tolerances_of_gains_leave_no_gain_outside(name: str) -> None:
    """A speed-up of 1.12 within 15 % would be "reproduced" by no speed-up at all."""
    for claim in claims_of(study.load(name)):
        if claim.unit in ("times", "ratio") and claim.value != 1 and claim.sense == "equal":
            assert verdict(claim, 1.0) == "differs", claim.id


def test_worked_example_of_placement_is_reproduced(found: study.Study, tmp_path: Path) -> None:
    """Closed forms of section 4.2, and 0.24 s better is proven possible."""
    for name in ("published-plan", "uniform", "composition", "deployment"):
        row, = reproduce(found, tmp_path, only=f"worked-example-{name}")
        assert row["verdict"] == "reproduced", row
    assert "28.43" in next(r for r in _stored(tmp_path) if r["claim"].endswith("published-plan"))["note"]


def _stored(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads((folder / "claims.json").read_text())["claims"]
    return rows


def test_long_claims_wait_and_say_so_and_earlier_rows_stay(
        found: study.Study, only: Callable[..., None], tmp_path: Path) -> None:
    calls: list[str] = []

    def long() -> Reproduced:
        calls.append("long")
        return Reproduced(value=10.5, clock="planned")

    only(CLAIM, replace(CLAIM, id="long", minutes=5.0), replace(CLAIM, id="lack", needs="a wind tunnel"),
         c=lambda: Reproduced(value=12.0, clock="simulated", note="small"), long=long)
    rows = reproduce(found, tmp_path)
    assert [(r["claim"], r["verdict"], r["clock"]) for r in rows] == [
        ("c", "differs", "simulated"), ("long", "not tested", None), ("lack", "not tested", None)]
    assert "--claim long" in rows[1]["note"]
    assert rows[2]["note"] == "needs a wind tunnel"
    assert not calls
    assert reproduce(found, tmp_path, full=True)[1]["ours"] == 10.5
    assert reproduce(found, tmp_path)[1]["ours"] == 10.5, "computed once, kept"
    assert calls == ["long"]
    assert reproduce(found, tmp_path, only="long") == [_stored(tmp_path)[1]]
    assert calls == ["long", "long"]
    assert counted(rows) == "0 reproduced, 1 differs, 2 not tested"


def test_an_interrupt_keeps_finished_rows(found: study.Study, only: Callable[..., None], tmp_path: Path) -> None:
    def stop() -> Reproduced:
        raise KeyboardInterrupt

    only(CLAIM, replace(CLAIM, id="d"), c=lambda: Reproduced(value=10.0, clock="planned"), d=stop)
    with pytest.raises(KeyboardInterrupt):
        reproduce(found, tmp_path)
    assert [(r["claim"], r["verdict"]) for r in _stored(tmp_path)] == [("c", "reproduced")]


def test_what_a_claim_lacks_here_is_said(found: study.Study, only: Callable[..., None], tmp_path: Path) -> None:
    def lacks() -> Reproduced:
        raise MissingProfile("no table of the H900", keys=["gemm"], next_command="wb profile gemm")

    def absent() -> Reproduced:
        import a_package_that_is_not_there  # type: ignore[import-not-found]  # noqa: F401

        raise AssertionError

    only(CLAIM, replace(CLAIM, id="d"), c=lacks, d=absent)
    rows = reproduce(found, tmp_path)
    assert [r["verdict"] for r in rows] == ["not tested"] * 2
    assert "next: wb profile gemm" in rows[0]["note"]
    assert "a_package_that_is_not_there" in rows[1]["note"]


def test_a_misspelt_claim_and_a_torn_file_are_told(found: study.Study, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'worked-example-uniform'"):
        reproduce(found, tmp_path, only="worked-exampel-uniform")
    (tmp_path / "claims.json").write_text("{")
    with pytest.raises(SpecError, match="not a file of claims"):
        reproduce(found, tmp_path, only="worked-example-uniform")


def test_the_verb_prints_a_table_and_writes_it(wb: Wb) -> None:
    code, out, err = wb("reproduce", "placement", "--claim", "worked-example-uniform")
    assert code == 0, err
    assert "44.06" in out
    assert "1 reproduced, 0 differs, 0 not tested" in out
    assert "section 4.2" in out
    assert "runs/placement-claims/claims.json" in err
    row, = json.loads(wb("reproduce", "placement", "--claim", "worked-example-uniform", "--json")[1])
    assert (row["published"], row["clock"], row["verdict"]) == (44.06, "planned", "reproduced")


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_claim_that_does_not_need_long_is_computed(name: str, tmp_path: Path) -> None:
    rows = reproduce(study.load(name), tmp_path)
    for row in rows:
        assert row["verdict"] != "not tested" or row["note"], row
    assert any(row["verdict"] == "reproduced" for row in rows)

"""Tables of ``wb profile`` reach as far as plans ask: on this machine's device, nothing extrapolated, with a range."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the profilers need torch: pip install 'planner-workbench[run]'")

from profilers import campaign as campaign_module
from profilers.campaign import Campaign
from profilers.datasheet import alpha_beta
from profilers.family import families
from profilers.harness import Measurement
from profilers.roofpage import write_page
from workbench.hardware import load_catalogue

SPECS = Path(__file__).parent.parent / "traces" / "specs"
ON_CPU = {"placement": SPECS / "cpu" / "placement.toml", "circuit": SPECS / "cpu" / "circuit.toml",
          "pipeline": SPECS / "pipeline-measured.toml"}


def modelled(series: Any, at: tuple[int, ...], device: str, timer: Any) -> Measurement:
    """What a plain machine would take: a launch, 50 GFLOP/s, 10 GB/s; known to 1 %."""
    work = series.op.work(series.point(at))
    t = 2e-6 + work.flops / 5e10 + work.bytes / 1e10
    return Measurement(median_s=t, min_s=t, interval_s=(0.99 * t, 1.01 * t), blocks=9, calls=1)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a whole campaign leaves it, from modelled times."""
    folder = tmp_path_factory.mktemp("machine") / "profiles"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign_module, "measured", modelled)
        Campaign([], device="cpu", folder=folder, error_target=1.0).run(60.0, lambda _: None)
    return folder


def test_the_machine_becomes_a_device_with_its_link(profiles: Path) -> None:
    catalogue = load_catalogue(profiles / "hardware" / "cpu.toml")
    device = catalogue.device("cpu")
    assert device.memory_bytes_per_s == pytest.approx(1e10, rel=0.01)
    assert device.peak_flops_per_s["fp32"] == pytest.approx(5e10, rel=0.1)
    assert catalogue.link(device.link).latency_s == pytest.approx(2e-6, rel=0.01)
    assert catalogue.link(device.link).bytes_per_s == pytest.approx(1e10, rel=0.01)


def test_alpha_and_beta_are_found_again() -> None:
    sizes = np.array([1e3, 1e5, 1e6, 1e7])
    alpha, beta = alpha_beta(sizes, 30e-6 + sizes / 2e9)
    assert (alpha, beta) == pytest.approx((30e-6, 0.5e-9))
    assert alpha_beta(sizes, sizes / 2e9)[0] == pytest.approx(0.0, abs=1e-12)


def test_the_report_of_a_whole_campaign_has_a_page_for_every_family(profiles: Path) -> None:
    """However many tables and ops there are: more than any plot has colours."""
    overview = write_page(profiles).read_text()
    for family, ops in families().items():
        if any("cpu" in op.devices for op in ops):
            page = (profiles / f"profile-{family}.html").read_text()
            assert f"profile-{family}.html" in overview
            assert all(op.name in page for op in ops if "cpu" in op.devices)
    assert "GFLOP/s in fp32" in overview
    assert "10.0 GB/s of memory" in overview


@pytest.mark.parametrize("study", ON_CPU)
def test_plans_on_this_machine_extrapolate_nothing_and_have_a_range(study: str, profiles: Path, wb: Any,
                                                                    tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(profiles, tmp_path / "profiles")
    code, out, err = wb("plan", str(ON_CPU[study]), "--json")
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert set(plan["sources"]) <= {"measured", "interpolated"}
    assert 0 < plan["certificate"]["cost_error"] < 0.5
    code, out, err = wb("plan", str(ON_CPU[study]))
    assert code == 0, err
    assert "low, high" in out


def test_the_page_of_a_plan_says_how_sure_its_times_are(profiles: Path, wb: Any, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(profiles, tmp_path / "profiles")
    code, out, err = wb("report", str(ON_CPU["placement"]), "--json")
    assert code == 0, err
    page = Path(json.loads(out)["report"]).read_text()
    assert "Predicted times and rates hold within" in page
    assert " Between " in page


@pytest.mark.slow
@pytest.mark.parametrize("study", ON_CPU)
def test_two_minutes_of_real_profiling_are_enough_for_all(study: str, wb: Any,
                                                          tmp_path_factory: pytest.TempPathFactory,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "two-minutes"
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    if not (folder / "profiles").exists():
        code, _, err = wb("profile", "--budget", "2m")
        assert code == 0, err
    code, out, err = wb("plan", str(ON_CPU[study]), "--json")
    assert code == 0, err
    assert set(json.loads(out)["plan"]["sources"]) <= {"measured", "interpolated"}

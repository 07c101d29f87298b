"""Shared fixtures: a small spec that needs no tables, and a runner of ``wb`` in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every run, and no verdict on how busy the machine is.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

# Section 4.2 of arXiv 2502.00722: three GPU types, two workload types, every throughput given.
SMALL_SPEC = """
study = "placement"
budget_usd_per_h = 8.0

[[devices]]
name = "t1"
available = 2
price_usd_per_h = 4.0
[[devices]]
name = "t2"
available = 2
price_usd_per_h = 2.0
[[devices]]
name = "t3"
available = 2
price_usd_per_h = 2.0

[[workloads]]
name = "w1"
model = "m"
requests = 80
[[workloads]]
name = "w2"
model = "m"
requests = 20

[[configurations]]
name = "t1"
model = "m"
devices = { t1 = 1 }
throughputs_per_s = { w1 = 1.0, w2 = 1.2 }
[[configurations]]
name = "t2"
model = "m"
devices = { t2 = 1 }
throughputs_per_s = { w1 = 0.9, w2 = 0.9 }
[[configurations]]
name = "t3"
model = "m"
devices = { t3 = 1 }
throughputs_per_s = { w1 = 0.3, w2 = 0.5 }
[[configurations]]
name = "TP2 x t2"
model = "m"
devices = { t2 = 2 }
throughputs_per_s = { w1 = 2.4, w2 = 1.5 }
"""


@pytest.fixture
def small_spec(tmp_path: Path) -> Path:
    """A placement problem with given throughputs, as a file."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL_SPEC)
    return path


@pytest.fixture
def wb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
       tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run ``wb`` with arguments in a folder of its own: (exit code, stdout, stderr)."""
    from workbench.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def inference_on_one_thread() -> Iterator[None]:
    """torch on one thread and without gradients."""
    torch = pytest.importorskip("torch", reason="tensor programs need the extra 'run'")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)

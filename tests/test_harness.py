"""The measuring harness: it finds known times, knows when it does not, and repeats enough for what it states."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profilers.harness import CROWDED, Cores, _Activity, bimodal, measure, median_interval


class ScriptedTimer:
    """A timer whose calls take scripted times."""

    processes = 1

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def block(self, kernel: Callable[[], Any], calls: int) -> float:
        kernel()
        return sum(self.draw() for _ in range(calls))


@given(st.integers(0, 2**32 - 1))
def test_median_interval_covers_the_true_median_about_as_often_as_it_says(seed: int) -> None:
    """95 % stated; over 200 trials of a skewed distribution at least 88 % must cover (binomial slack)."""
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(200):
        low, high = median_interval(list(rng.exponential(size=25)))
        covered += low <= np.log(2) <= high
    assert covered >= 176


def test_two_groups_are_bimodal_and_one_group_is_not() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(1.0, 0.01, 60)
    two = np.concatenate([rng.normal(1.0, 0.01, 40), rng.normal(2.4, 0.01, 20)])
    assert not bimodal(list(one))
    assert bimodal(list(two))
    assert not bimodal(list(np.append(one, 5.0))), "a single outlier is no second mode"


def test_a_block_that_was_held_up_does_not_end_the_search_for_the_number_of_calls() -> None:
    times = iter([1e-6, 5e-3])
    found = measure(lambda: None, timer=ScriptedTimer(lambda: next(times, 1e-6)))
    assert found.calls >= 500
    assert found.median_s == pytest.approx(1e-6)


def test_a_steady_kernel_is_measured_to_the_target_and_a_shaky_one_says_so() -> None:
    rng = np.random.default_rng(1)
    steady = measure(lambda: None, timer=ScriptedTimer(lambda: 2e-3 * (1 + 0.005 * rng.standard_normal())))
    assert steady.median_s == pytest.approx(2e-3, rel=0.01)
    assert steady.half_width <= 0.02
    wild = measure(lambda: None, timer=ScriptedTimer(lambda: 2e-3 * float(rng.pareto(1.1) + 1)), target=1e-4,
                   seconds=0.02)
    assert wild.noise is not None


def test_short_kernels_are_repeated_within_a_block() -> None:
    found = measure(lambda: None, timer=ScriptedTimer(lambda: 3e-6))
    assert found.calls * 3e-6 >= 1e-3
    assert found.median_s == pytest.approx(3e-6)


def test_long_kernels_are_known_from_six_blocks_whose_whole_range_is_the_interval() -> None:
    """Six samples miss the median on one side with probability 2 / 2^6, so their range covers 97 %."""
    found = measure(lambda: None, timer=ScriptedTimer(lambda: 50e-3))
    assert found.blocks == 6
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)


def test_a_timer_that_counts_a_sliver_of_each_call_does_not_stretch_blocks_without_end() -> None:
    """Differences of two runs may be a thousandth of them; a block lasts some ten milliseconds all the same."""
    class Sliver(ScriptedTimer):
        def block(self, kernel: Callable[[], Any], calls: int) -> float:
            time.sleep(200e-6 * calls)
            return 1e-7 * calls

    started = time.monotonic()
    found = measure(lambda: None, timer=Sliver(lambda: 0.0), seconds=0.05, attempts=1)
    assert found.calls <= 2 * 50
    assert time.monotonic() - started < 5.0
    assert found.median_s == pytest.approx(1e-7)


def test_a_measurement_that_is_to_be_watched_lasts_long_enough_to_be() -> None:
    """A steady kernel is known after milliseconds, in which no other program would be noticed."""
    class Real(ScriptedTimer):
        def block(self, kernel: Callable[[], Any], calls: int) -> float:
            time.sleep(1e-3)
            return 1e-3

    started = time.monotonic()
    found = measure(lambda: None, timer=Real(lambda: 0.0), attempts=1, least_s=0.1)
    assert time.monotonic() - started >= 0.1
    assert found.median_s == pytest.approx(1e-3)


def test_what_our_other_processes_use_is_not_foreign() -> None:
    """Half a second of work in a child counts as ours when its id is named, and not otherwise."""
    if not Path("/proc/stat").exists():
        pytest.skip("needs Linux")
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child, alone = _Activity([child.pid])._now(), _Activity()._now()
        assert with_child is not None
        assert alone is not None
        assert 0.4 < with_child.own - alone.own < 0.7
        child.communicate(b"\n")


def test_cores_that_were_nearer_before_are_a_complaint() -> None:
    """A host that moves a virtual processor makes whatever passes data between threads slower, for everybody."""
    distances = iter([90e-9, 80e-9, 150e-9, 350e-9, 0.0, 85e-9])
    cores = Cores(lambda: next(distances))
    assert [cores.complaint() for _ in range(3)] == [None] * 3
    far = cores.complaint()
    assert far is not None and far.startswith(CROWDED) and "4.4x" in far
    assert [cores.complaint() for _ in range(2)] == [None] * 2, "not known, and near again"


def test_the_distance_of_two_cores_is_found() -> None:
    found = Cores()._measured()
    if not found:
        pytest.skip("one CPU, no C compiler, or both CPUs busy")
    assert 1e-9 < found < 1e-3

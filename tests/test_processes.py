"""Ctrl-C: children never hear it, none is left behind, and the user sees one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.processes import deaf_to_interrupts

CHILD = "import signal, sys, time; print('up', flush=True); time.sleep(float(sys.argv[1])); print('done', flush=True)"


def test_a_child_does_not_hear_what_its_group_is_told_and_we_do_after_its_start() -> None:
    child = None
    with pytest.raises(KeyboardInterrupt), deaf_to_interrupts():
        child = subprocess.Popen([sys.executable, "-c", CHILD, "0.5"], stdout=subprocess.PIPE, text=True)
        os.kill(os.getpid(), signal.SIGINT)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        os.kill(child.pid, signal.SIGINT)
    assert child is not None
    assert child.communicate(timeout=30)[0] == "done\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_is_raised_and_the_signal_is_heard_again() -> None:
    with deaf_to_interrupts():
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.dist
@pytest.mark.parametrize("after_s", [0.0, 1.0, 2.0])
def test_an_interrupted_training_ends_in_one_line_and_leaves_no_rank(after_s: float, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="real runs need the extra 'run'")
    run = subprocess.Popen([sys.executable, "-m", "workbench", "run", "pipeline"], cwd=tmp_path, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                           env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert run.stdout is not None
    said = run.stdout.readline()
    assert "planning" in said
    time.sleep(after_s)
    os.killpg(run.pid, signal.SIGINT)
    said += run.communicate(timeout=60)[0]  # returns once no process of the run holds the pipe
    assert "Traceback" not in said
    assert (run.returncode == 130 and "interrupted" in said) or run.returncode == 0, said

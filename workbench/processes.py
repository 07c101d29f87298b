"""Processes that we start: Ctrl-C is for the one the user started; it ends its children itself."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

__all__ = ["deaf_to_interrupts"]


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, not even while they import; one of ours is raised at the end.

    A terminal sends SIGINT to the whole group, and a child that imports would answer with a traceback of its own. An
    interrupt in the middle of a start would leave a child that nobody knows of.

    Raises:
        KeyboardInterrupt: Ctrl-C was heard meanwhile.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # starting it would unblock the signal
    heard: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
    if heard:
        raise KeyboardInterrupt

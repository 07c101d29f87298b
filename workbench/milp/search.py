"""What a back-end is given and gives back, and how a search is watched: progress, time limit, Ctrl-C.

A back-end is a function ``search(problem, limits, start, watch) -> Answer``. It runs in a thread of its own, so that
the caller's thread stays free to hear Ctrl-C and to report progress; it polls ``watch.stopping`` or leaves in
``watch.on_stop`` something that ends it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from workbench.milp.expressions import Floats
from workbench.milp.model import Problem

__all__ = ["Answer", "Limits", "Search", "Watch", "watched"]

POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a search may stop: a moment of ``time.perf_counter`` (``inf`` for none), a relative gap; and its seed.

    A moment rather than a duration, because handing a large model over takes its share of the time.
    """

    deadline: float
    gap: float
    seed: int

    def left_s(self) -> float:
        """Time left, at least a hundredth of a second (some solvers take 0 for no limit)."""
        return max(self.deadline - time.perf_counter(), 0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a back-end found.

    ``claim`` is what it says of its own search: proven (within the gap), stopped early, no point exists, no bound
    exists (or it cannot tell these two apart). ``x`` is its best point, ``bound`` what it proved on the minimum;
    ``row_duals`` and ``column_duals`` are derivatives of the minimum by right-hand side and by active bound.
    """

    claim: Literal["proven", "stopped", "infeasible", "infeasible or unbounded"]
    x: Floats | None = None
    bound: float = -math.inf
    row_duals: Floats | None = None
    column_duals: Floats | None = None


class Search(Protocol):
    """A back-end."""

    def __call__(self, problem: Problem, limits: Limits, start: Floats | None, watch: Watch) -> Answer:
        """Minimise; ``start`` holds a value for each variable, NaN where none is known."""
        ...


@dataclass(slots=True)
class Watch:
    """The line between a running search and the thread that waits for it."""

    stopping: threading.Event = field(default_factory=threading.Event)
    on_stop: Callable[[], object] | None = None
    can_stop: bool = True
    incumbent: float = math.inf
    bound: float = -math.inf
    news: bool = False

    def report(self, incumbent: float, bound: float) -> None:
        """Take note of the best objective and bound so far (of the minimisation; infinite when there is none)."""
        self.news = self.news or incumbent != self.incumbent or bound != self.bound
        self.incumbent, self.bound = incumbent, bound

    def stop(self) -> None:
        """Ask the search to end with what it has."""
        self.stopping.set()
        if self.on_stop is not None:
            self.on_stop()


def watched(task: Callable[[], Answer], watch: Watch, tell: Callable[[float, float, float], None] | None) -> Answer:
    """Run ``task`` in a thread; ``tell(seconds, incumbent, bound)`` whenever there is news.

    The first Ctrl-C asks the search to stop and waits for its incumbent; a second one, or one while a back-end runs
    that cannot be stopped, raises ``KeyboardInterrupt`` at once.
    """
    box: list[Answer | BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            box.append(task())
        except BaseException as error:  # raised again in the waiting thread
            box.append(error)
        finally:
            done.set()

    begin = time.perf_counter()
    threading.Thread(target=work, daemon=True, name="milp search").start()
    finished = False
    while not finished:
        try:
            finished = done.wait(POLL_S)
            if watch.news and tell is not None:
                watch.news = False
                tell(time.perf_counter() - begin, watch.incumbent, watch.bound)
        except KeyboardInterrupt:
            if watch.stopping.is_set() or not watch.can_stop:
                raise
            watch.stop()
        except BaseException:
            watch.stop()
            raise
    result = box[0]
    if isinstance(result, BaseException):
        raise result
    return result

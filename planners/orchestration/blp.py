"""The binary linear program: which candidates run, at least total time; exact, in independent parts.

Paper: Korch, arXiv 2406.09465, section 4.4. With candidates k, outputs out(k), inputs in(k), times c_k > 0:

    min sum_k c_k u_k
    sum_{k: t in out(k)} u_k >= 1                              for every tensor t that must be stored
    sum_{k: out(k) = q, t in in(k)} u_k <= sum_{i: t in out(i)} u_i   for every other tensor t and outputs q
    u in {0, 1}

The paper has the second row for every single k; since at most one kernel with the outputs q is of use, the sum over all
of them is as true and tighter. Still the relaxation loses half of a demand wherever two ways meet, and so nearly all of
it over a deep program. What holds it up are rows for execution states (the paper's down-sets D, which it uses to find
kernels only): whatever is stored so far, some kernel must take the program beyond D,

    sum of u_k over kernels that make something outside D and read only inside D  >= 1.

One row for each prefix of an order of the tensors makes the relaxation of a program without branches integral; with
branches more orders help (depth first, level by level, and seeded random ones), and so do rows for one output at a
time, added where the relaxation breaks them (``_window_rows``).

Before: candidates that cannot run, that another with the same outputs, no more inputs and no more time replaces, or
that lead to no output, are left out. Tensors that every plan stores (outputs, and dominators of outputs) cut the
program into parts whose optima add up. A candidate that alone is a whole plan is compared, not modelled. After: where
alternatives let kernels wait for each other in a circle, with S the tensors that only waiting kernels make,  u_k <= sum
of u over kernels that make something in S and read nothing of S,  for every k that reads of S; the parts concerned are
solved again.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planners.orchestration.masks import bits
from planners.orchestration.options import Option, always_stored, in_order, makes_all, useful_options
from workbench.errors import Infeasible
from workbench.milp import Model, Solution, Variables, relax, require, solve
from workbench.milp.model import RowSense

__all__ = ["Search", "Selection", "choose", "relaxed"]

_RANDOM_ORDERS = 12
_WINDOW, _WINDOW_ROUNDS, _BROKEN = 16, 6, 1e-3
"""Tensors in the longest window, rounds of rows over windows, and by how much a relaxation must break one."""
_CORE, _CORE_SHARE = 1500, 0.4
"""Options that branch and bound begins with, and the share of its time that it may spend on them."""
_ROUNDING = 1e-3
"""Share of the wanted gap that is put down to rounding."""
_WHOLE = 1e-7
"""How far from whole numbers a relaxation's values may be to count as whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How to search."""

    solver: str = "highs"
    time_limit_s: float = 60.0
    seed: int = 0
    tie_tolerance: float = 0.0
    gap: float = 1e-9
    """Share of the optimum at which a part's branch and bound may stop; its bound says how far it came."""
    once: int = 0
    """Primitives that must run exactly once (a mask): the cover without redundancy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Chosen options by position, in an order that runs."""

    chosen: tuple[int, ...]
    seconds: float
    bound: float
    proven: bool
    parts: int
    rows: int
    cuts: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """Options that share tensors which need not be stored, and the tensors they must store."""

    options: tuple[int, ...]
    forced: int


@dataclass(frozen=True, slots=True)
class _Answer:
    chosen: tuple[int, ...]
    seconds: float
    bound: float
    proven: bool
    rows: int


Cut = tuple[int, tuple[int, ...]]
"""An option that may only run if one of others does."""


def choose(options: Sequence[Option], targets: int, search: Search) -> Selection:
    """The options of least total time that store ``targets``.

    Raises:
        Infeasible: no set of options makes all targets.
        SolverError: see ``workbench.milp.solve``.
    """
    deadline = time.perf_counter() + search.time_limit_s
    useful = useful_options(options, targets, once=bool(search.once))
    alone = [i for i in useful if _is_plan(options[i], targets)]
    best_alone = min(alone, key=lambda i: (options[i].seconds, i), default=None)
    whole = None if best_alone is None else Selection(
        chosen=(best_alone,), seconds=options[best_alone].seconds, bound=options[best_alone].seconds, proven=True,
        parts=1, rows=0)
    rest = [i for i in useful if i not in set(alone)]
    if not makes_all(options, rest, targets):
        if whole is None:
            raise Infeasible("no set of kernels makes every output", hint="raise limits, or measure more kernels")
        return whole
    programs = _Programs(options, search)
    if whole is not None and not search.tie_tolerance and programs.floor_s(
            _parts(options, rest, targets, search, ())) >= whole.seconds:
        return whole
    together = _in_parts(programs, rest, targets, deadline)
    return together if whole is None else _better(options, together, whole, search.tie_tolerance)


def relaxed(options: Sequence[Option], targets: int, search: Search) -> float:
    """Optimum of the linear relaxation: a bound on every plan of these options."""
    useful = useful_options(options, targets, once=bool(search.once))
    alone = [options[i].seconds for i in useful if _is_plan(options[i], targets)]
    rest = [i for i in useful if not _is_plan(options[i], targets)]
    if not makes_all(options, rest, targets):
        return min(alone)
    return min([_Programs(options, search).floor_s(_parts(options, rest, targets, search, ())), *alone])


def _is_plan(option: Option, targets: int) -> bool:
    return not option.reads and not targets & ~option.stored


def _better(options: Sequence[Option], first: Selection, second: Selection, tolerance: float) -> Selection:
    """The cheaper of two; within the tolerance the one with fewer executions."""
    least = min(first.seconds, second.seconds)
    bound = min(first.bound, second.bound)
    fits = [s for s in (first, second) if s.seconds <= least * (1 + tolerance)]
    best = min(fits, key=lambda s: (_executions(options, s.chosen), len(s.chosen), s.seconds))
    return replace(best, bound=bound, proven=first.proven and second.proven, parts=first.parts, rows=first.rows,
                   cuts=first.cuts)


def _executions(options: Sequence[Option], chosen: Iterable[int]) -> int:
    return sum(options[i].members.bit_count() for i in chosen)


def _in_parts(programs: _Programs, among: Sequence[int], targets: int, deadline: float) -> Selection:
    """Solve the parts; while kernels wait for each other in a circle, cut it off and solve what changed again."""
    options, search = programs.options, programs.search
    cuts: list[Cut] = []
    answers: dict[tuple[_Part, tuple[Cut, ...]], _Answer] = {}
    while True:
        parts = _parts(options, among, targets, search, cuts)
        found = []
        for part in parts:
            mine = set(part.options)
            own = tuple(cut for cut in cuts if cut[0] in mine)
            if (part, own) not in answers:
                answers[part, own] = _solve(programs, part, own, max(0.1, deadline - time.perf_counter()))
            found.append(answers[part, own])
        chosen = sorted(i for answer in found for i in answer.chosen)
        order, stuck = in_order(options, chosen)
        if not stuck:
            return Selection(chosen=tuple(order), seconds=math.fsum(options[i].seconds for i in order),
                             bound=math.fsum(a.bound for a in found), proven=all(a.proven for a in found),
                             parts=len(parts), rows=sum(a.rows for a in found), cuts=len(cuts))
        cuts += _circle_cuts(options, among, chosen, stuck)


def _circle_cuts(options: Sequence[Option], among: Sequence[int], chosen: Sequence[int], stuck: Sequence[int]
                 ) -> list[Cut]:
    made = 0
    waits = set(stuck)
    for i in chosen:
        if i not in waits:
            made |= options[i].stored
    missing = 0
    for i in stuck:
        missing |= options[i].stored & ~made
    first = tuple(i for i in among if options[i].stored & missing and not options[i].reads & missing)
    return [(k, first) for k in among if options[k].reads & missing]


def _parts(options: Sequence[Option], among: Sequence[int], targets: int, search: Search, cuts: Sequence[Cut]
           ) -> list[_Part]:
    """Independent parts: options are joined by tensors that need not be stored, by the tensor they must store, by cuts.

    With primitives that run once, they are joined by those too.
    """
    forced = always_stored(options, among, targets)
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    tensors = max((max(o.reads.bit_length(), o.stored.bit_length()) for o in options), default=0)
    node = {i: tensors + k for k, i in enumerate(among)}
    beyond = tensors + len(among)
    for i in among:
        option = options[i]
        for t in bits((option.reads & ~forced) | option.stored):
            parent[root(node[i])] = root(t)
        for p in bits(option.members & search.once):
            parent[root(node[i])] = root(beyond + p)
    for k, first in cuts:
        for i in first:
            parent[root(node[i])] = root(node[k])
    groups: dict[int, list[int]] = {}
    for i in among:
        groups.setdefault(root(node[i]), []).append(i)
    parts = []
    for group in groups.values():
        stored = 0
        for i in group:
            stored |= options[i].stored
        parts.append(_Part(tuple(group), stored & forced))
    return parts


def _model(options: Sequence[Option], part: _Part, search: Search, cuts: Sequence[Cut]) -> tuple[Model, Variables]:
    place = {i: k for k, i in enumerate(part.options)}
    makers: dict[int, list[int]] = {}
    for i in part.options:
        for t in options[i].makes:
            makers.setdefault(t, []).append(place[i])
    model = Model("kernels")
    run = model.variables("run", len(place), upper=1, integer=True)
    model.minimise(np.array([options[i].seconds for i in part.options]) @ run)

    def add(name: str, rows: Sequence[Mapping[int, float]], sense: RowSense, right: float) -> None:
        _add_rows(model, run, name, rows, sense, right)

    add("stored", [dict.fromkeys(makers[t], 1.0) for t in bits(part.forced)], ">=", 1.0)
    open_here = sum(1 << t for t in makers) & ~part.forced  # what other parts make is stored in any case
    users: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for i in part.options:
        for t in bits(options[i].reads & open_here):
            users.setdefault((options[i].makes, t), []).append(place[i])
    needs = []
    for (_, t), group in users.items():
        row = dict.fromkeys(makers[t], 1.0)
        for k in group:
            row[k] = row.get(k, 0.0) - 1.0
        needs.append(row)
    add("made", needs, ">=", 0.0)
    by_outputs: dict[tuple[int, ...], list[int]] = {}
    for i in part.options:
        by_outputs.setdefault(options[i].makes, []).append(place[i])
    add("one each", [dict.fromkeys(group, 1.0) for group in by_outputs.values() if len(group) > 1], "<=", 1.0)
    states = _state_rows(options, part, makers, search.seed)
    add("beyond", [dict.fromkeys((place[i] for i in row), 1.0) for row in states], ">=", 1.0)
    once: dict[int, list[int]] = {}
    for i in part.options:
        for p in bits(options[i].members & search.once):
            once.setdefault(p, []).append(place[i])
    add("once", [dict.fromkeys(group, 1.0) for group in once.values()], "==", 1.0)
    circles = []
    for k, first in cuts:
        row = dict.fromkeys((place[i] for i in first), 1.0)
        row[place[k]] = row.get(place[k], 0.0) - 1.0
        circles.append(row)
    add("no circle", circles, ">=", 0.0)
    return model, run


def _add_rows(model: Model, run: Variables, name: str, rows: Sequence[Mapping[int, float]], sense: RowSense,
              right: float) -> None:
    """Add rows given as coefficients by option of the part."""
    from scipy.sparse import csr_array

    if rows:
        data = [(r, c, v) for r, row in enumerate(rows) for c, v in row.items()]
        at, columns, values = (np.array(x) for x in zip(*data, strict=True))
        matrix = csr_array((values.astype(float), (at, columns)), shape=(len(rows), run.index.size))
        model.add(name, matrix @ run, sense, right)


def _window_rows(options: Sequence[Option], part: _Part, values: NDArray[np.float64], seed: int
                 ) -> list[dict[int, float]]:
    """Rows that ``values`` (of the part's options) break, over windows W of tensors just before an output q.

    A kernel for q that reads something of W needs a kernel that makes something of W and reads nothing of it; at most
    one kernel for q is of use:  sum of u over kernels for q that read of W  <=  sum of u over first kernels into W.
    """
    used = [(k, options[i], values[k]) for k, i in enumerate(part.options) if values[k] > _WHOLE]
    if all(value > 1 - _WHOLE for _, _, value in used):
        return []
    makers: dict[int, list[int]] = {}
    for k, i in enumerate(part.options):
        for t in options[i].makes:
            makers.setdefault(t, []).append(k)
    order = next(_orders(options, part, makers, seed))
    groups: dict[int, list[tuple[Option, float]]] = {}
    for _, option, value in used:
        if len(option.makes) == 1 and value < 1 - _WHOLE:
            groups.setdefault(option.makes[0], []).append((option, value))
    rows = []
    for place, q in enumerate(order):
        window, into = 0, set[int]()
        for t in reversed(order[max(0, place - _WINDOW):place] if q in groups else []):
            window |= 1 << t
            into |= {k for k in makers[t] if not options[part.options[k]].reads & window}
            wanted = sum(value for option, value in groups[q] if option.reads & window)
            if wanted < _BROKEN:
                continue
            first = sum(value for _, option, value in used if option.stored & window and not option.reads & window)
            if wanted > first + _BROKEN:
                into = {k for k in into if not options[part.options[k]].reads & window}
                row = dict.fromkeys(into, 1.0)
                for k in makers[q]:
                    if options[part.options[k]].reads & window and len(options[part.options[k]].makes) == 1:
                        row[k] = row.get(k, 0.0) - 1.0
                rows.append(row)
    return rows


def _state_rows(options: Sequence[Option], part: _Part, makers: Mapping[int, list[int]], seed: int
                ) -> list[tuple[int, ...]]:
    """For prefixes of some orders of the part's tensors, the options that lead beyond; each set of options once."""
    rows: dict[tuple[int, ...], None] = {}
    for order in _orders(options, part, makers, seed):
        place = {t: k for k, t in enumerate(order)}
        last = max(place[t] for t in bits(part.forced))
        beyond: list[list[int]] = [[] for _ in range(last + 1)]
        for i in part.options:
            first = max((place[t] for t in bits(options[i].reads) if t in place), default=-1) + 1
            for k in range(first, min(last, max(place[t] for t in options[i].makes)) + 1):
                beyond[k].append(i)
        rows.update(dict.fromkeys(tuple(row) for row in beyond))
    return list(rows)


def _orders(options: Sequence[Option], part: _Part, makers: Mapping[int, list[int]], seed: int
            ) -> Iterator[list[int]]:
    """The part's tensors branch after branch (depth first from what it must store), level by level, and at random."""
    read_for = dict.fromkeys(makers, 0)
    for t, kernels in makers.items():
        for k in kernels:
            read_for[t] |= options[part.options[k]].reads
    reads = {t: [r for r in bits(mask) if r in makers] for t, mask in read_for.items()}
    depth_first: dict[int, int] = {}
    level = dict.fromkeys(makers, 0)
    entered: set[int] = set()
    for root in [*bits(part.forced), *makers]:
        stack = [root]
        while stack:
            t = stack[-1]
            if t not in entered:
                entered.add(t)
                stack.extend(r for r in reversed(reads[t]) if r not in entered)
                continue
            stack.pop()
            if t not in depth_first:
                depth_first[t] = len(depth_first)
                level[t] = 1 + max((level[r] for r in reads[t]), default=0)
    yield list(depth_first)
    yield sorted(depth_first, key=lambda t: (level[t], depth_first[t]))
    rng = np.random.default_rng(seed)
    readers: dict[int, list[int]] = {t: [] for t in depth_first}
    for t in depth_first:
        for r in reads[t]:
            if depth_first[r] < depth_first[t]:  # alternatives may make circles: an order needs none
                readers[r].append(t)
    for _ in range(_RANDOM_ORDERS):
        yield _random_order(readers, rng)


def _random_order(readers: Mapping[int, Sequence[int]], rng: np.random.Generator) -> list[int]:
    """Tensors, each after those it is made from, the next one drawn among all that may come."""
    waits = Counter(t for following in readers.values() for t in following)
    ready = [t for t in readers if not waits[t]]
    order = []
    for draw in rng.random(len(readers)).tolist():
        place = int(draw * len(ready))
        ready[place], ready[-1] = ready[-1], ready[place]
        t = ready.pop()
        order.append(t)
        for following in readers[t]:
            waits[following] -= 1
            if not waits[following]:
                ready.append(following)
    return order


class _Programs:
    """Models of parts and the optima of their relaxations, each made once."""

    def __init__(self, options: Sequence[Option], search: Search) -> None:
        self.options, self.search = options, search
        self._made: dict[tuple[_Part, tuple[Cut, ...]], tuple[Model, Variables, Solution]] = {}

    def relaxed(self, part: _Part, cuts: tuple[Cut, ...]) -> tuple[Model, Variables, Solution]:
        """Model, its variables, and the solution of its relaxation."""
        if (part, cuts) not in self._made:
            model, run = _model(self.options, part, self.search, cuts)
            found = require(solve(relax(model), solver="highs"))
            for turn in range(_WINDOW_ROUNDS):
                rows = _window_rows(self.options, part, found["run"], self.search.seed)
                if not rows:
                    break
                _add_rows(model, run, f"window {turn}", rows, ">=", 0.0)
                found = require(solve(relax(model), solver="highs"))
            self._made[part, cuts] = model, run, found
        return self._made[part, cuts]

    def floor_s(self, parts: Sequence[_Part]) -> float:
        """Sum of the optima of the relaxations."""
        total = 0.0
        for part in parts:
            if len(part.options) == 1:
                total += self.options[part.options[0]].seconds
            else:
                total += self.relaxed(part, ())[2].bound or 0.0
        return total


def _solve(programs: _Programs, part: _Part, cuts: tuple[Cut, ...], seconds: float) -> _Answer:
    """Optimum of a part: of the relaxation where that is whole, else by branch and bound."""
    options, search = programs.options, programs.search
    if len(part.options) == 1 and not cuts:
        only = part.options[0]
        return _Answer((only,), options[only].seconds, options[only].seconds, True, 0)
    model, run, found = programs.relaxed(part, cuts)
    values = found["run"]
    if np.abs(values - np.rint(values)).max() > _WHOLE:
        found = _branched(options, part, search, model, run, found, time.perf_counter() + seconds)
    bound = found.bound if found.bound is not None else 0.0
    proven = found.status == "optimal"
    if search.tie_tolerance and found.objective is not None:
        costs = np.array([options[i].seconds for i in part.options])
        second = model.copy()
        second.add("about as fast", costs @ run, "<=", found.objective * (1 + search.tie_tolerance))
        executions = np.array([options[i].members.bit_count() for i in part.options], dtype=float)
        tie_break = costs / (1.0 + costs.sum())
        second.minimise((executions + tie_break) @ run)
        found = require(solve(second, solver=search.solver, time_limit_s=seconds, gap=search.gap, seed=search.seed))
    chosen = tuple(part.options[k] for k in np.flatnonzero(np.rint(found["run"])))
    total = math.fsum(options[i].seconds for i in chosen)
    rows = sum(len(block.rhs) for block in model.rows.values())
    return _Answer(chosen, total, min(bound, total), proven, rows)


def _branched(options: Sequence[Option], part: _Part, search: Search, model: Model, run: Variables,
              relaxation: Solution, deadline: float) -> Solution:
    """Branch and bound among few options, then among all that could do better.

    An option's reduced cost is what a plan with it takes at least beyond the relaxation. So the options of small
    reduced cost give a good plan soon, and those whose reduced cost leads beyond that plan are in no better one.
    """
    assert relaxation.bound is not None and relaxation.reduced_costs is not None
    least, beyond = relaxation.bound, -relaxation.reduced_costs["run"]

    def among(kept: NDArray[np.bool_], limit: float, start: Solution | None = None) -> Solution:
        few = model.copy()
        if not kept.all():
            few.add("left out", np.where(kept, 0.0, 1.0) @ run, "<=", 0.0)
        return solve(few, solver=search.solver, time_limit_s=max(0.1, limit - time.perf_counter()), gap=search.gap,
                     seed=search.seed, start=start)

    near = np.sort(beyond)[min(_CORE, len(beyond)) - 1]
    core = (beyond <= near) | np.array([options[i].members.bit_count() == 1 for i in part.options])
    if core.all():
        return require(among(core, deadline))
    now = time.perf_counter()
    first = among(core, now + _CORE_SHARE * (deadline - now))
    if first.objective is None:
        return require(among(np.ones_like(core), deadline))
    enough = first.objective * (1 - search.gap)
    left = least + beyond < enough
    if first.status == "optimal" and not (left & ~core).any():
        return replace(first, bound=min(enough, max(first.bound or 0.0, least)))
    second = among(left, deadline, first if left[first["run"] > 0].all() else None)
    if second.status == "infeasible":  # nothing that is left makes a plan
        return replace(first, bound=enough, status="optimal")
    best = first if second.objective is None or first.objective <= second.objective else second
    assert best.objective is not None
    bound = min(enough, max(least, second.bound or 0.0))
    close = best.objective - bound <= search.gap * best.objective * (1 + _ROUNDING)
    return replace(best, bound=bound, status="optimal" if close else "feasible")

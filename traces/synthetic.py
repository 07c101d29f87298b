"""Synthetic workloads: seeded arrivals and lengths with the statistics of public traces, and no data of theirs.

A workload is a TOML file (``traces/workloads/<name>.toml``). Arrivals are a renewal process in operational time, put
on the clock through the integral of the rate: t_k = R^-1(g_1 + … + g_k), R(t) = integral of rate(u) du, E[g] = 1.
g is constant, exponential (Poisson) or gamma (squared CV = 1/shape); rate is constant, a random walk over states with
exponential stays (Markov-modulated Poisson) or a sine over the day.
Lengths follow quantile tables (log-linear between knots), log-normals or a type mix; prompt and output are joined by
a checkerboard copula (shares of a rank x rank grid) or a Gaussian one, r = 2 sin(pi s / 6), s their Spearman's rho.
Equal seeds give equal bytes; a longer run starts with the requests of a shorter one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from traces.mixes import WORKLOADS_FOLDER, LengthType, mix
from traces.requests import PrefixBlocks, RequestTable, make_table
from workbench.errors import SpecError, TraceError, nearest
from workbench.spec import about, parse, read_toml, spec

__all__ = ["Batch", "Constant", "Diurnal", "Gamma", "LognormalLengths", "MixLengths", "Modulated", "Poisson",
           "PrefixModel", "QuantileLengths", "Quantiles", "State", "Workload", "generate", "names", "read_workload",
           "workload"]

_CHUNK = 4096
_KNOTS_A_PERIOD = 512
_JOINT_TOLERANCE = 5e-3


@spec
class Quantiles:
    """A distribution as a table: ``probability`` from 0 to 1, ``value`` at each; interpolated between."""

    probability: tuple[float, ...] = about("Increasing from 0 to 1.")
    value: tuple[float, ...] = about("Values there, never decreasing.")

    def __post_init__(self) -> None:
        p, v = self.probability, self.value
        if len(p) != len(v) or len(p) < 2:
            raise ValueError(f"probability and value need equally many entries, at least 2; got {len(p)} and {len(v)}")
        if p[0] != 0 or p[-1] != 1 or any(b <= a for a, b in itertools.pairwise(p)):
            raise ValueError("probability must increase from 0 to 1")
        if v[0] < 0 or any(b < a for a, b in itertools.pairwise(v)):
            raise ValueError("value must not be negative and must not decrease")

    def at(self, u: np.ndarray) -> np.ndarray:
        """Values at probabilities ``u``, linear between the knots."""
        return np.interp(u, self.probability, self.value)

    def log_at(self, u: np.ndarray) -> np.ndarray:
        """Values at probabilities ``u``, linear in the logarithm between the knots (all values positive)."""
        return np.exp(np.interp(u, self.probability, np.log(self.value)))


@spec
class Batch:
    """All requests are there at time 0."""

    kind: Literal["batch"] = about("Type of arrivals.")


@spec
class Constant:
    """Equal times between requests."""

    kind: Literal["constant"] = about("Type of arrivals.")
    rate_per_s: float = about("Requests per second.")


@spec
class Poisson:
    """Exponential times between requests."""

    kind: Literal["poisson"] = about("Type of arrivals.")
    rate_per_s: float = about("Requests per second.")


@spec
class Gamma:
    """Gamma-distributed times between requests."""

    kind: Literal["gamma"] = about("Type of arrivals.")
    rate_per_s: float = about("Requests per second.")
    cv: float = about("Coefficient of variation of the times between requests; 1 is Poisson.")

    def __post_init__(self) -> None:
        if not self.cv > 0:
            raise ValueError("cv must be positive; for equal times use kind = 'constant'")


@spec
class State:
    """One state of a modulated process."""

    relative_rate: float = about("Rate in this state; only ratios between states count.")
    mean_stay_s: float = about("Mean length of a stay (exponential).")


@spec
class Modulated:
    """Poisson arrivals whose rate walks between states; the next state is any other, equally likely."""

    kind: Literal["modulated"] = about("Type of arrivals.")
    rate_per_s: float = about("Requests per second in the long run.")
    states: tuple[State, ...] = about("At least two states.")

    def __post_init__(self) -> None:
        if len(self.states) < 2:
            raise ValueError("a modulated process needs at least two states")
        if any(s.relative_rate < 0 or s.mean_stay_s <= 0 for s in self.states):
            raise ValueError("relative rates must not be negative, mean stays must be positive")
        if not any(s.relative_rate > 0 for s in self.states):
            raise ValueError("some state needs a positive rate")


@spec
class Diurnal:
    """Poisson arrivals with rate x (1 + amplitude sin(2 pi (t / period + phase)))."""

    kind: Literal["diurnal"] = about("Type of arrivals.")
    rate_per_s: float = about("Mean requests per second over a period.")
    amplitude: float = about("Swing of the rate, 0 to 1.")
    period_s: float = about("Length of a period.", default=86400.0)
    phase: float = about("Share of a period that has passed at time 0.", default=0.0)

    def __post_init__(self) -> None:
        if not 0 <= self.amplitude <= 1 or self.period_s <= 0:
            raise ValueError("amplitude must be in 0 to 1 and the period positive")


@spec
class QuantileLengths:
    """Lengths from two quantile tables."""

    kind: Literal["quantiles"] = about("Type of lengths.")
    input: Quantiles = about("Prompt lengths, tokens.")
    output: Quantiles = about("Output lengths, tokens.")
    rank_correlation: float | None = about("Spearman correlation of prompt and output length (Gaussian copula); "
                                           "absent when a joint table is given.", default=None)
    joint: tuple[tuple[float, ...], ...] | None = about(
        "Row i: how outputs of prompts in the i-th of n equal classes by rank fall into the n classes of outputs; "
        "absent when a rank correlation is given.", default=None)

    def __post_init__(self) -> None:
        if (self.rank_correlation is None) == (self.joint is None):
            raise ValueError("give either rank_correlation or joint")
        if self.rank_correlation is not None and not -1 <= self.rank_correlation <= 1:
            raise ValueError("rank_correlation must be in -1 to 1")
        if self.joint is not None:
            n = len(self.joint)
            if any(len(row) != n or min(row) < 0 for row in self.joint):
                raise ValueError("joint must be a square table without negative shares")
            sums = [sum(row) for row in self.joint] + [sum(column) for column in zip(*self.joint, strict=True)]
            if max(abs(x - 1) for x in sums) > _JOINT_TOLERANCE:
                raise ValueError("each row and each column of joint must add up to 1")


@spec
class Lognormal:
    """A log-normal length, clipped."""

    median_tokens: float = about("Median.")
    sigma: float = about("Standard deviation of the logarithm.")
    min_tokens: int = about("Shorter draws become this.", default=1)
    max_tokens: int | None = about("Longer draws become this; absent: no limit.", default=None)


@spec
class LognormalLengths:
    """Lengths from two log-normal distributions."""

    kind: Literal["lognormal"] = about("Type of lengths.")
    rank_correlation: float = about("Spearman correlation of prompt and output length.")
    input: Lognormal = about("Prompt lengths, tokens.")
    output: Lognormal = about("Output lengths, tokens.")


@spec
class MixLengths:
    """Lengths from a mix of types: a named one, or types listed here."""

    kind: Literal["mix"] = about("Type of lengths.")
    mix: str | None = about("Name in workloads/placement_mixes.toml; absent when types are listed.", default=None)
    types: tuple[LengthType, ...] | None = about("Types with shares adding up to 1; absent for a named mix.",
                                                 default=None)

    def __post_init__(self) -> None:
        if (self.mix is None) == (self.types is None):
            raise ValueError("give either a named mix or types")
        if self.types is not None and not math.isclose(sum(t.share for t in self.types), 1.0, abs_tol=1e-6):
            raise ValueError("the shares of the types must add up to 1")


@spec
class PrefixModel:
    """Shared prompt prefixes: a share of the requests continues an earlier prompt."""

    block_tokens: int = about("Tokens in a block.")
    shared_blocks: int = about("First blocks that all prompts share (a system prompt).")
    class_bounds_tokens: tuple[int, ...] = about("Prompt lengths that part the length classes, increasing.")
    continue_share: tuple[float, ...] = about("Share of each length class that continues an earlier prompt.")
    depth_share: Quantiles = about("Share of its own blocks that a continuing prompt takes over.")
    age_s: Quantiles = about("Time since the continued prompt.")

    def __post_init__(self) -> None:
        if len(self.continue_share) != len(self.class_bounds_tokens) + 1:
            raise ValueError("continue_share needs one entry more than class_bounds_tokens")
        if any(not 0 <= share <= 1 for share in self.continue_share):
            raise ValueError("continue_share must be in 0 to 1")


ArrivalModel = Batch | Constant | Poisson | Gamma | Modulated | Diurnal
LengthModel = QuantileLengths | LognormalLengths | MixLengths
_ARRIVALS: Mapping[str, type] = {"batch": Batch, "constant": Constant, "poisson": Poisson, "gamma": Gamma,
                                 "modulated": Modulated, "diurnal": Diurnal}
_LENGTHS: Mapping[str, type] = {"quantiles": QuantileLengths, "lognormal": LognormalLengths, "mix": MixLengths}


@spec
class Workload:
    """A synthetic workload; ``arrivals`` and ``lengths`` are told apart by their ``kind``."""

    kind: Literal["workload"] = about("Type of the file.")
    title: str = about("What it is, in one line.")
    source: str = about("What the parameters were fitted to, and how.")
    licence: str = about("Licence of this description.")
    requests: int = about("How many requests are drawn unless told otherwise.")
    arrivals: ArrivalModel = about("When requests come.")
    lengths: LengthModel = about("How long prompts and outputs are.")
    tick_s: float | None = about("Arrival times are rounded down to multiples of this; absent: not rounded.",
                                 default=None)
    prefix: PrefixModel | None = about("Shared prompt prefixes; absent: none.", default=None)
    reference: Mapping[str, float] = about("Statistics of the fitted trace, by their TraceStatistics names.",
                                           default_factory=dict)


@cache
def names() -> tuple[str, ...]:
    """Names of the shipped workloads, sorted."""
    return tuple(sorted(p.stem for p in WORKLOADS_FOLDER.glob("*.toml") if read_toml(p).get("kind") == "workload"))


def workload(name: str) -> Workload:
    """The shipped workload called ``name``.

    Raises:
        TraceError: there is none; names the nearest.
    """
    known = names()
    if name not in known:
        close = nearest(name, known)
        raise TraceError(f"no synthetic workload is called {name!r}", allowed=known,
                         hint=f"did you mean {close!r}?" if close else None, next_command="wb traces list")
    return read_workload(WORKLOADS_FOLDER / f"{name}.toml")


def read_workload(path: Path | str) -> Workload:
    """Read a workload file.

    Raises:
        SpecError: lists every fault of the part it is in.
    """
    data = read_toml(path)
    parts: dict[str, Any] = {}
    for part, kinds in (("arrivals", _ARRIVALS), ("lengths", _LENGTHS)):
        table = data.get(part)
        kind = str(table.get("kind", "missing") if isinstance(table, dict) else "missing")
        if kind not in kinds:
            close = nearest(kind, kinds)
            raise SpecError(f"kind is {kind!r}", where=f"{path}: {part}", allowed=kinds,
                            hint=f"did you mean {close!r}?" if close else None)
        parts[part] = parse(kinds[kind], table, where=f"{path}: {part}")
        rate = getattr(parts[part], "rate_per_s", 1.0)
        if not (math.isfinite(rate) and rate > 0):
            raise SpecError(f"rate_per_s must be a positive number, not {rate!r}", where=f"{path}: {part}")
    return parse(Workload, {**data, **parts}, where=str(path))


def generate(model: Workload, *, rng: np.random.Generator, name: str, requests: int | None = None,
             duration_s: float | None = None, rate_per_s: float | None = None,
             history: tuple[str, ...] = ()) -> RequestTable:
    """Draw a request table.

    Args:
        model: the workload.
        rng: source of all randomness.
        name: name of the table.
        requests: how many; absent: as many as arrive in ``duration_s``, or ``model.requests`` when that is absent too.
        duration_s: only requests that arrive before this time, counted from the start of the process; with
            ``requests`` given too, the rate becomes requests / duration and all of them are drawn.
        rate_per_s: mean rate instead of the model's; a batch becomes Poisson with it.
        history: notes for the table, e.g. the seed.

    Raises:
        TraceError: a number that is not positive, a batch with a duration but no rate, or no arrival in the duration.
    """
    for what, number in (("requests", requests), ("duration_s", duration_s), ("rate_per_s", rate_per_s)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise TraceError(f"{what} must be a positive number, not {number!r}", where=name)
    if requests is not None and duration_s is not None:
        if rate_per_s is not None:
            raise TraceError("requests, duration and rate cannot all be chosen", where=name, hint="leave one out")
        rate_per_s, duration_s = requests / duration_s, None
    if requests is None and duration_s is None:
        requests = model.requests
    arrivals_rng, lengths_rng, prefix_rng = rng.spawn(3)

    times = _arrival_times(model, rate_per_s=rate_per_s, requests=requests, duration_s=duration_s, rng=arrivals_rng,
                           where=name)
    count = len(times) if times is not None else requests or model.requests
    inputs, outputs = _draw_lengths(model.lengths, count, lengths_rng)
    blocks = None
    if model.prefix is not None:
        blocks = _draw_prefixes(model.prefix, np.zeros(count) if times is None else times, inputs, prefix_rng)
    return make_table(arrival_s=times, input_tokens=inputs, output_tokens=outputs, blocks=blocks, name=name,
                      arrivals="generated", source=f"synthetic: {model.source}", licence=model.licence, history=history)


def _arrival_times(model: Workload, *, rate_per_s: float | None, requests: int | None, duration_s: float | None,
                   rng: np.random.Generator, where: str) -> np.ndarray | None:
    """Arrival times, s, on the model's ticks; ``None`` for a batch."""
    arrivals = model.arrivals
    if isinstance(arrivals, Batch) and rate_per_s is not None:
        arrivals = Poisson(kind="poisson", rate_per_s=rate_per_s)
    if isinstance(arrivals, Batch):
        if duration_s is not None:
            raise TraceError("a batch has no rate; a duration needs one", where=where, hint="give rate_per_s as well")
        return None
    times = _times(arrivals, rate_per_s=rate_per_s or arrivals.rate_per_s, requests=requests, duration_s=duration_s,
                   rng=rng)
    if not len(times):
        raise TraceError(f"no request arrives within {duration_s:g} s", where=where, hint="choose a longer duration")
    return times if model.tick_s is None else np.floor(times / model.tick_s) * model.tick_s


def _times(arrivals: Any, *, rate_per_s: float, requests: int | None, duration_s: float | None,
           rng: np.random.Generator) -> np.ndarray:
    """Arrival times, s: marks of a unit-rate renewal process, put on the clock by the integral of the rate."""
    gaps_rng, rate_rng = rng.spawn(2)
    if requests is not None:
        marks = np.cumsum(_gaps(arrivals, requests, gaps_rng))
        clock, work = _rate_integral(arrivals, rate_per_s, rate_rng, until_work=float(marks[-1]))
        return np.interp(marks, work, clock)
    clock, work = _rate_integral(arrivals, rate_per_s, rate_rng, until_s=duration_s)
    total = float(np.interp(duration_s or 0.0, clock, work))
    pieces = [np.empty(0)]
    while sum(p.sum() for p in pieces) <= total:
        pieces.append(_gaps(arrivals, _CHUNK, gaps_rng))
    marks = np.cumsum(np.concatenate(pieces))
    return np.interp(marks[marks < total], work, clock)


def _gaps(arrivals: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit-mean gaps in operational time."""
    if isinstance(arrivals, Constant):
        return np.ones(count)
    if isinstance(arrivals, Gamma):
        return rng.gamma(arrivals.cv**-2, arrivals.cv**2, count)
    return rng.exponential(size=count)


def _rate_integral(arrivals: Any, rate_per_s: float, rng: np.random.Generator, *, until_work: float = 0.0,
                   until_s: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Knots (time, expected requests up to it) of the piecewise linear integral of the rate, far enough for both."""
    end_s = until_s or 0.0
    if isinstance(arrivals, Modulated):
        return _walk(arrivals, rate_per_s, rng, until_work=until_work, until_s=end_s)
    if isinstance(arrivals, Diurnal):
        # over a whole period the swing cancels, so this many periods hold all the work
        periods = math.ceil(max(until_work / rate_per_s, end_s) / arrivals.period_s) + 1
        clock = np.linspace(0.0, periods * arrivals.period_s, periods * _KNOTS_A_PERIOD + 1)
        turn = 2 * math.pi * (clock / arrivals.period_s + arrivals.phase)
        swing = np.cos(2 * math.pi * arrivals.phase) - np.cos(turn)
        return clock, rate_per_s * (clock + arrivals.amplitude * arrivals.period_s / (2 * math.pi) * swing)
    clock = np.array([0.0, max(until_work / rate_per_s, end_s)])
    return clock, rate_per_s * clock


def _walk(arrivals: Modulated, rate_per_s: float, rng: np.random.Generator, *, until_work: float,
          until_s: float) -> tuple[np.ndarray, np.ndarray]:
    stays = np.array([s.mean_stay_s for s in arrivals.states])
    rates = np.array([s.relative_rate for s in arrivals.states])
    rates = rates * rate_per_s * stays.sum() / (rates @ stays)
    # jumps are to any other state alike, so the share of time in a state is its share of the mean stays
    state = int(rng.choice(len(stays), p=stays / stays.sum()))
    durations, work = [np.zeros(1)], [np.zeros(1)]
    time_s = done = 0.0
    while time_s < until_s or done < until_work:
        path = (state + np.cumsum(np.r_[0, rng.integers(1, len(stays), _CHUNK)])) % len(stays)
        state = int(path[-1])
        stay = rng.exponential(stays[path[:-1]])
        durations.append(stay)
        work.append(stay * rates[path[:-1]])
        time_s, done = time_s + float(stay.sum()), done + float(work[-1].sum())
    return np.cumsum(np.concatenate(durations)), np.cumsum(np.concatenate(work))


def _draw_lengths(lengths: LengthModel, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(lengths, MixLengths):
        types = lengths.types if lengths.types is not None else mix(str(lengths.mix)).types
        shares = np.cumsum([t.share for t in types])
        drawn = np.searchsorted(shares / shares[-1], rng.random(count), side="right")
        return (np.array([t.input_tokens for t in types])[drawn], np.array([t.output_tokens for t in types])[drawn])
    if isinstance(lengths, QuantileLengths) and lengths.joint is not None:
        u_input, u_output = _checkerboard(np.array(lengths.joint), rng.random((count, 3)))
        return _whole(lengths.input.log_at(u_input)), _whole(lengths.output.log_at(u_output))
    from scipy.special import ndtr

    r = 2 * math.sin(math.pi * (lengths.rank_correlation or 0.0) / 6)
    z = rng.standard_normal((count, 2))
    z_input, z_output = z[:, 0], r * z[:, 0] + math.sqrt(1 - r * r) * z[:, 1]
    if isinstance(lengths, QuantileLengths):
        return _whole(lengths.input.log_at(ndtr(z_input))), _whole(lengths.output.log_at(ndtr(z_output)))
    return _lognormal(lengths.input, z_input), _lognormal(lengths.output, z_output)


def _checkerboard(joint: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of uniform ranks; ``joint`` [n, n] shares by row, ``draws`` uniform [count, 3]."""
    n = len(joint)
    upto = np.cumsum(joint / joint.sum(axis=1, keepdims=True), axis=1)
    row = np.minimum((draws[:, 0] * n).astype(np.int64), n - 1)
    column = np.minimum((draws[:, 1, None] >= upto[row]).sum(axis=1), n - 1)
    return draws[:, 0], (column + draws[:, 2]) / n


def _whole(tokens: np.ndarray) -> np.ndarray:
    return np.maximum(np.rint(tokens), 1).astype(np.int64)


def _lognormal(length: Lognormal, z: np.ndarray) -> np.ndarray:
    tokens = length.median_tokens * np.exp(length.sigma * z)
    return _whole(np.clip(tokens, length.min_tokens, length.max_tokens if length.max_tokens is not None else np.inf))


def _draw_prefixes(model: PrefixModel, arrival_s: np.ndarray, input_tokens: np.ndarray,
                   rng: np.random.Generator) -> PrefixBlocks:
    """Block ids: a continuing prompt starts with blocks of the earlier prompt nearest to the drawn age."""
    count = len(arrival_s)
    sizes = -(-input_tokens // model.block_tokens)
    draws = rng.random((count, 3))
    depths = np.rint(model.depth_share.at(draws[:, 1]) * sizes).astype(np.int64)
    continues = np.array(model.continue_share)[np.searchsorted(model.class_bounds_tokens, input_tokens, side="right")]
    wanted = np.searchsorted(arrival_s, arrival_s - model.age_s.at(draws[:, 2]), side="right") - 1
    fresh = itertools.count(model.shared_blocks)
    prompts: list[list[int]] = []
    for i in range(count):
        known = list(range(min(model.shared_blocks, int(sizes[i]))))
        depth = int(min(depths[i], sizes[i]))
        if draws[i, 0] < continues[i] and depth > len(known):
            earlier = _nearest_long_enough(prompts, min(max(int(wanted[i]), 0), i - 1), depth)
            known = prompts[earlier][:depth] if earlier is not None else known
        prompts.append(known + list(itertools.islice(fresh, int(sizes[i]) - len(known))))
    return PrefixBlocks.from_lists(prompts, model.block_tokens)


def _nearest_long_enough(prompts: list[list[int]], start: int, depth: int) -> int | None:
    """Position of the prompt nearest to ``start`` that has at least ``depth`` blocks."""
    for step in range(len(prompts)):
        for k in (start - step, start + step):
            if 0 <= k < len(prompts) and len(prompts[k]) >= depth:
                return k
    return None

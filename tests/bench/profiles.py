"""How good ``wb profile`` is on this machine: repeatability of two campaigns, and errors at points never measured.

    python -m tests.bench.profiles [repeat|held-out|both] [KERNEL ...] [--folder F] [--budget 2m] [--points 4]
        [--seed N]

``repeat`` profiles into F/first and F/second, one after the other, and compares the points both measured
and neither marked noisy. ``held-out`` draws points between the knots of every table in F/first, measures them as
a campaign would, and compares with what the table says; per family: median, P90, and the share inside the table's own
90 % range. Without a verb: both. Points that stay noisy are counted and left out.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from profilers.campaign import Campaign, measured
from profilers.family import GridAxis
from profilers.harness import CpuTimer, Measurement, available_cpus, fixed_conditions
from profilers.series import At, Series, agreed
from workbench.cli import seconds, table
from workbench.costfiles import load_tables
from workbench.costs import ProfileTable, TableCosts


def talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def profile(folder: Path, names: Sequence[str], budget_s: float) -> Campaign:
    """One campaign into a new folder; returns it with its points."""
    campaign = Campaign(names, device="cpu", folder=folder)
    campaign.run(budget_s, talk)
    return campaign


def repeatability(first: Campaign, second: Campaign) -> list[dict[str, object]]:
    """Distances of the points both measured, family by family and all together."""
    apart: dict[str, list[float]] = defaultdict(list)
    noisy: dict[str, int] = defaultdict(int)
    for one, two in zip(first.series, second.series, strict=True):
        family = first.family_of[one.op.name]
        for at in one.points.keys() & two.points.keys():
            a, b = one.points[at], two.points[at]
            if a.noise is None and b.noise is None:
                apart[family].append(abs(a.median_s / b.median_s - 1))
            else:
                noisy[family] += 1
    rows = [_row(family, apart[family], noisy[family]) for family in sorted(apart.keys() | noisy.keys())]
    return [*rows, _row("all", [x for xs in apart.values() for x in xs], sum(noisy.values()))]


def _row(family: str, found: Sequence[float], noisy: int, p: float = 0.95) -> dict[str, object]:
    row: dict[str, object] = {"family": family, "points": len(found), "noisy": noisy}
    if found:
        row |= {"median": float(np.median(found)), f"P{round(100 * p)}": float(np.quantile(found, p)),
                "worst": max(found)}
    return row


def held_out(campaign: Campaign, folder: Path, points: int, rng: np.random.Generator) -> list[dict[str, object]]:
    """Errors of the tables in ``folder`` at ``points`` drawn points a table, by family."""
    tables = TableCosts(load_tables(folder))
    errors: dict[str, list[float]] = defaultdict(list)
    inside: dict[str, list[bool]] = defaultdict(list)
    noisy: dict[str, int] = defaultdict(int)
    for threads in sorted({s.op.threads for s in campaign.series}, reverse=True):
        with fixed_conditions(threads=threads or len(available_cpus())):
            for series in (s for s in campaign.series if s.op.threads == threads and s.points):
                known = tables.table(series.op.name, {"device": "cpu", **series.keys})
                family = campaign.family_of[series.op.name]
                for at in drawn(series, points, rng):
                    found = seen_twice(series, at)
                    if found is None or found.noise is not None:
                        noisy[family] += 1
                        continue
                    said = known.at(*at).seconds
                    errors[family].append(abs(said / found.median_s - 1))
                    inside[family].append(_inside(known, said, found.median_s))
                    talk(f"{series.label()} {at} {said * 1e6:.1f} us said, {found.median_s * 1e6:.1f} us measured")
            for finish in {s.op.finish for s in campaign.series if s.op.threads == threads and s.op.finish}:
                finish()
    return [{**_row(family, errors[family], noisy[family], 0.9),
             "in range": float(np.mean(inside[family])) if inside[family] else None}
            for family in sorted(errors.keys() | noisy.keys())]


def seen_twice(series: Series, at: At) -> Measurement | None:
    """A point as a campaign would have it, at two times (four when noisy); ``None`` where the call cannot be made."""
    visits: list[Measurement] = []
    while len(visits) < (2 if not visits or agreed(visits).noise is None else 4):
        try:
            visits.append(measured(series, at, "cpu", CpuTimer()))
        except ValueError as error:
            talk(f"{series.label()} at {at}: {error}")
            return None
    return agreed(visits)


def _inside(known: ProfileTable, said: float, true: float) -> bool:
    error = known.provenance.error_p90
    return error is not None and said / (1 + error) <= true <= said * (1 + error)


def drawn(series: Series, count: int, rng: np.random.Generator) -> Iterator[At]:
    """Points inside the grid that were not measured, evenly in each axis' own scale."""
    seen = set(series.points)
    for _ in range(20 * count):
        at = tuple(_draw(axis, rng) for axis in series.op.axes)
        if at not in seen:
            seen.add(at)
            count -= 1
            yield at
        if not count:
            return


def _draw(axis: GridAxis, rng: np.random.Generator) -> int:
    low, high = axis.start[0], axis.start[-1]
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if axis.scale == "log" else rng.uniform(low, high)
    return min(max(axis.nearest(value), low), high)


def main() -> None:
    """Print what was asked for."""
    given = argparse.ArgumentParser(prog="python -m tests.bench.profiles")
    given.add_argument("verb", nargs="?", default="both", choices=("both", "repeat", "held-out"))
    given.add_argument("--folder", type=Path)
    given.add_argument("--budget", default="2m")
    given.add_argument("--points", type=int, default=4)
    given.add_argument("--seed", type=int, default=2, help="of the points drawn")
    given.add_argument("kernels", nargs="*")
    asked = given.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="wb-profiles-"))
    first = profile(folder / "first", asked.kernels, seconds(asked.budget))
    if asked.verb in ("both", "repeat"):
        second = profile(folder / "second", asked.kernels, seconds(asked.budget))
        print(f"Two campaigns of {asked.budget}, relative distance of points both measured\n\n"
              f"{table(repeatability(first, second))}\n")
    if asked.verb in ("both", "held-out"):
        found = held_out(first, folder / "first", asked.points, np.random.default_rng(asked.seed))
        print(f"Errors at points never measured, tables of one campaign of {asked.budget}\n\n{table(found)}")


if __name__ == "__main__":
    main()

"""Demand by workload type: stated types, and request traces sorted into types.

A trace's requests go to the input x output type with the nearest lengths on a log scale (the paper's nine types by
default). A type's lengths are then the mean lengths of its own requests, so that no tokens are won or lost by sorting.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from planners.placement.problem import Problem, Traffic, Workload
from workbench.errors import SpecError

if TYPE_CHECKING:
    from traces.requests import RequestTable, TypeBins

__all__ = ["origins", "requests_of", "type_name", "workloads_of"]


@lru_cache(maxsize=8)
def requests_of(traffic: Traffic) -> tuple[RequestTable, TypeBins]:
    """The trace behind ``traffic`` and the type of each of its requests.

    A public trace without a copy on this machine is replaced by its synthetic stand-in (never the network); the
    table's ``source`` says which it is.

    Raises:
        TraceError: the trace is unknown or cannot be had.
    """
    from traces.catalogue import load, load_or_synthetic
    from traces.registry import registry

    public = traffic.trace in registry().files
    table = (load_or_synthetic if public else load)(traffic.trace, requests=traffic.requests, seed=traffic.seed)
    return table, table.bin_types(traffic.input_centres_tokens, traffic.output_centres_tokens)


def origins(problem: Problem) -> tuple[str, ...]:
    """Where each trace's requests come from, with the content id of what was read or drawn."""
    tables = [requests_of(t)[0] for t in problem.traffic]
    return tuple(f"{t.name}, {t.source} (content {t.content_id()})" for t in tables)


def workloads_of(problem: Problem) -> tuple[Workload, ...]:
    """Every workload type of ``problem``: the stated ones, then those of each trace (types without requests left out).

    Raises:
        SpecError: two types have one name.
        TraceError: a trace is unknown or cannot be had.
    """
    found = list(problem.workloads)
    several = len({t.model for t in problem.traffic} | {w.model for w in problem.workloads}) > 1
    for traffic in problem.traffic:
        table, bins = requests_of(traffic)
        inputs = np.bincount(bins.index, weights=table.input_tokens, minlength=len(bins.types))
        outputs = np.bincount(bins.index, weights=table.output_tokens, minlength=len(bins.types))
        for k, count in enumerate(bins.counts.tolist()):
            if count:
                name = type_name(bins.types[k])
                found.append(Workload(
                    name=f"{traffic.model}:{name}" if several else name, model=traffic.model, requests=float(count),
                    input_tokens=max(1, round(inputs[k] / count)), output_tokens=max(1, round(outputs[k] / count))))
    twice = [name for name, count in Counter(w.name for w in found).items() if count > 1]
    if twice:
        raise SpecError(f"two workload types are called {twice[0]!r}", where="workloads, traffic",
                        hint="one trace a model, and names of stated workloads unlike '2455/510'")
    return tuple(found)


def type_name(lengths: tuple[int, int]) -> str:
    """Name of an input x output length type."""
    return f"{lengths[0]}/{lengths[1]}"

"""One door to all workloads: public traces by name, synthetic ones by name, and files by path.

``load`` answers with a checked ``RequestTable`` whatever the name stands for; ``load_or_synthetic`` takes the public
trace where a copy is at hand and its synthetic stand-in where not, and the table's ``source`` says which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from traces import formats, synthetic
from traces.registry import registry
from traces.requests import Lengths, RequestTable, Unsorted
from workbench.errors import TraceError, nearest

__all__ = ["fetch", "list_rows", "load", "load_or_synthetic", "show"]


def list_rows() -> list[dict[str, Any]]:
    """One row ``{name, kind, rows, licence, where, stand_in, description}`` a public file and synthetic workload.

    ``where`` is "mirror" or "cache" (a checked copy is on this machine), "download", "mirror only" (derived files) or
    "shipped".
    """
    known = registry()
    rows = [{"name": name, "kind": file.kind, "rows": file.rows, "licence": known.licence(name),
             "where": known.available(name) or ("mirror only" if file.sha256 is None else "download"),
             "stand_in": file.stand_in, "description": file.description} for name, file in known.files.items()]
    for name in synthetic.names():
        model = synthetic.workload(name)
        rows.append({"name": name, "kind": "synthetic", "rows": model.requests, "licence": model.licence,
                     "where": "shipped", "stand_in": None, "description": model.title})
    return rows


def fetch(name: str) -> Path:
    """Path of a checked local copy of a public file, downloaded when there is none.

    Raises:
        TraceError: as ``traces.registry.Registry.fetch``; a synthetic workload needs no fetching and is refused.
    """
    if name not in registry().files and name in synthetic.names():
        raise TraceError(f"{name} is a synthetic workload: it is drawn from a seed, nothing is fetched",
                         next_command=f"wb traces show {name}")
    return registry().fetch(name)


def show(name_or_path: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """What a workload or public file is: labels, and for request traces statistics and the nine-type mix.

    Keys: ``name source licence attribution`` always (the last may be ``None``); for request traces ``arrivals history
    content_id statistics mix``, the last two as lists of rows; for other public files ``url where kind rows extent
    description``.

    Raises:
        TraceError: as ``load`` and ``fetch``.
    """
    known = registry()
    key = str(name_or_path)
    if key in known.files and known.files[key].format is None:
        file = known.files[key]
        return {"name": key, "source": known.origin(key), "licence": known.licence(key),
                "attribution": known.attribution(key), "url": known.url(key), "where": known.available(key),
                "kind": file.kind, "rows": file.rows, "extent": file.extent, "description": file.description}
    table = load(name_or_path, seed=seed)
    return {"name": table.name, "source": table.source, "licence": table.licence,
            "attribution": known.attribution(key) if key in known.files else None, "arrivals": table.arrivals,
            "history": list(table.history), "content_id": table.content_id(), "statistics": table.statistics().rows(),
            "mix": table.bin_types().rows()}


def load(name_or_path: str | Path, *, seed: int = 0, requests: int | None = None, rate_per_s: float | None = None,
         duration_s: float | None = None, format: str | None = None, unsorted: Unsorted = "error",
         lengths: Lengths = "error") -> RequestTable:
    """A request table by registry name, synthetic workload name, or path of a trace or workload (``.toml``) file.

    Args:
        name_or_path: looked up in this order.
        seed: of synthetic draws, of samples and of generated arrivals.
        requests: how many. Recorded traces: the first ones. Traces without arrival times: a sample.
        rate_per_s: mean rate. Recorded traces are stretched or squeezed; traces without times get Poisson arrivals.
        duration_s: only requests that arrive before this time (after the change of rate).
        format, unsorted, lengths: see ``traces.formats.read``.

    Raises:
        TraceError: the name is unknown (names the nearest), the file cannot be had or read, or too few requests.
    """
    rng = np.random.default_rng(seed)
    key = str(name_or_path)
    known = registry()
    if key in known.files:
        file = known.files[key]
        if file.format is None:
            raise TraceError(f"{key} is a {file.kind}, not a request trace", next_command="wb traces list")
        table = formats.read(known.fetch(key), format=file.format, name=key, source=f"public: {known.origin(key)}",
                             licence=known.licence(key), unsorted=unsorted, lengths=lengths)
        return _shape(table, rng=rng, requests=requests, rate_per_s=rate_per_s, duration_s=duration_s)
    model = _model(key)
    if model is not None:
        return synthetic.generate(model, rng=rng, name=Path(key).stem, requests=requests, duration_s=duration_s,
                                  rate_per_s=rate_per_s, history=(f"drawn with seed {seed}",))
    path = Path(key)
    if not path.is_file() and not _looks_like_a_path(key):
        names = [*(n for n, f in known.files.items() if f.format is not None), *synthetic.names()]
        close = nearest(key, names)
        raise TraceError(f"no trace or workload is called {key!r}, and there is no such file",
                         allowed=[*names, "the path of a file"], hint=f"did you mean {close!r}?" if close else None,
                         next_command="wb traces list")
    table = formats.read(path, format=format, unsorted=unsorted, lengths=lengths)
    return _shape(table, rng=rng, requests=requests, rate_per_s=rate_per_s, duration_s=duration_s)


def load_or_synthetic(name: str, *, seed: int = 0, requests: int | None = None, rate_per_s: float | None = None,
                      duration_s: float | None = None) -> RequestTable:
    """The public trace where a checked copy is on this machine, else its synthetic stand-in; never the network.

    ``source`` of the answer starts with "public:" or "synthetic:".

    Raises:
        TraceError: unknown name, or neither a copy nor a stand-in.
    """
    known = registry()
    file = known.get(name)
    chosen: str | None = known.name_of(name) if known.available(name) else file.stand_in
    if chosen is None:
        raise TraceError(f"{name} is not on this machine and has no synthetic stand-in",
                         next_command=f"wb traces fetch {name}")
    return load(chosen, seed=seed, requests=requests, rate_per_s=rate_per_s, duration_s=duration_s)


def _model(key: str) -> synthetic.Workload | None:
    """The synthetic workload called ``key`` or described in the TOML file ``key``."""
    if key in synthetic.names():
        return synthetic.workload(key)
    return synthetic.read_workload(key) if key.endswith(".toml") else None


def _looks_like_a_path(key: str) -> bool:
    return "/" in key or "\\" in key or Path(key).suffix in (".csv", ".gz", ".json", ".jsonl", ".parquet")


def _shape(table: RequestTable, *, rng: np.random.Generator, requests: int | None, rate_per_s: float | None,
           duration_s: float | None) -> RequestTable:
    """Apply rate, duration and count, in this order."""
    for what, number in (("requests", requests), ("rate_per_s", rate_per_s), ("duration_s", duration_s)):
        if number is not None and not number > 0:
            raise TraceError(f"{what} must be a positive number, not {number!r}", where=table.name)
    if table.arrivals == "absent":
        if requests is not None:
            table = table.sample(requests, rng)
        if rate_per_s is not None:
            gaps = rng.exponential(1 / rate_per_s, len(table))
            table = table.with_arrivals(np.cumsum(gaps), f"Poisson arrivals, {rate_per_s:g} per s")
        return table if duration_s is None else table.window(0.0, duration_s)
    if rate_per_s is not None:
        table = table.at_rate(rate_per_s)
    if duration_s is not None:
        table = table.window(0.0, duration_s)
    return table if requests is None else table.first(requests)

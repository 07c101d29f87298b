"""The hardware catalogue: devices, links and clusters, read from TOML.

``traces/hardware/{devices,links,clusters}.toml`` is the stock; a user's files, read after it, add entries or override
single keys of them. Nothing in the code enumerates devices: a new one is a new heading in a file. Every entry says
where its values come from, and a price says when it was asked.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.errors import SpecError, nearest
from workbench.spec import about, parse, read_toml, spec
from workbench.study import data_folder

__all__ = ["Catalogue", "Cluster", "Device", "Link", "load_catalogue", "this_machine"]


@spec
class Device:
    """One kind of accelerator (or processor)."""

    memory_bytes: int = about("Memory of one device.")
    memory_bytes_per_s: float = about("Peak memory bandwidth.")
    peak_flops_per_s: Mapping[str, float] = about("Peak dense rate by number format, e.g. bf16, fp8, fp32.")
    memory_efficiency: float = about("Share of the peak bandwidth that a memory-bound kernel reaches.")
    kernel_s: float = about("Time of the smallest kernel.")
    link: str = about("Link between devices of one machine.")
    devices_per_machine: int = about("Devices in one machine; tensor parallelism stays inside a machine.")
    names: Mapping[str, str] = about("What other bodies of measurements call it, by cost source.", default_factory=dict)
    source: str = about("Where the values come from.")
    price_usd_per_h: float | None = about("Rent of one device; absent when no price is on record.", default=None)
    price_source: str | None = about("Who asks that price.", default=None)
    price_date: str | None = about("When they asked it, ISO 8601.", default=None)

    def __post_init__(self) -> None:
        if self.price_usd_per_h is not None and not (self.price_source and self.price_date):
            raise ValueError("a price needs price_source and price_date")
        if not 0 < self.memory_efficiency <= 1:
            raise ValueError("memory_efficiency must be above 0 and at most 1")
        if self.memory_bytes <= 0 or self.memory_bytes_per_s <= 0 or self.devices_per_machine < 1:
            raise ValueError("memory_bytes, memory_bytes_per_s and devices_per_machine must be positive")


@spec
class Link:
    """A way between two devices; a message of n bytes takes ``latency_s + n / bytes_per_s``."""

    latency_s: float = about("Time of the smallest message (alpha).")
    bytes_per_s: float = about("Rate in one direction, per device (1 / beta).")
    source: str = about("Where the values come from.")

    def seconds(self, message_bytes: float) -> float:
        """Time of one message."""
        return self.latency_s + message_bytes / self.bytes_per_s


@spec
class Cluster:
    """How many devices of each kind can be had, and how their machines are connected."""

    devices: Mapping[str, int] = about("Count of each device.")
    links: Mapping[str, str] = about("Link inside a machine, by device, where it is not the device's own.",
                                     default_factory=dict)
    network: str = about("Link between machines.")
    source: str = about("Where the values come from.")


@spec
class Catalogue:
    """All devices, links and clusters by name."""

    devices: Mapping[str, Device] = about("Devices by name.", default_factory=dict)
    links: Mapping[str, Link] = about("Links by name.", default_factory=dict)
    clusters: Mapping[str, Cluster] = about("Clusters by name.", default_factory=dict)

    def device(self, name: str) -> Device:
        """The device called ``name``; ``SpecError`` names the nearest."""
        return _named(self.devices, name, "device")

    def link(self, name: str) -> Link:
        """The link called ``name``; ``SpecError`` names the nearest."""
        return _named(self.links, name, "link")

    def cluster(self, name: str) -> Cluster:
        """The cluster called ``name``; ``SpecError`` names the nearest."""
        return _named(self.clusters, name, "cluster")

    def called(self, source: str, name: str) -> str | None:
        """Our name of the device that the cost source ``source`` calls ``name``."""
        return next((ours for ours, d in self.devices.items() if d.names.get(source) == name), None)


def _named(entries: Mapping[str, Any], name: str, kind: str) -> Any:
    if name in entries:
        return entries[name]
    variants = [n for n in sorted(entries) if n.casefold().startswith(name.casefold())]
    close = " or ".join(map(repr, variants)) or (repr(found) if (found := nearest(name, entries)) else "")
    raise SpecError(f"no {kind} is called {name!r}", allowed=sorted(entries),
                    hint=f"did you mean {close}?" if close else "add it in a TOML file of your own")


def load_catalogue(*extra_paths: Path | str) -> Catalogue:
    """The stock catalogue with the user's files on top; each file overrides single keys of the ones before it.

    Raises:
        SpecError: a file is missing or broken, an entry lacks a value, or a name refers to no link or device.
    """
    return _load(tuple(str(p) for p in extra_paths))


@lru_cache(maxsize=16)
def _load(extra_paths: tuple[str, ...]) -> Catalogue:
    folder = data_folder("hardware")
    stock = [folder / f"{part}.toml" for part in ("devices", "links", "clusters")]
    merged: dict[str, Any] = {}
    for path in [*stock, *map(Path, extra_paths)]:
        _overlay(merged, read_toml(path))
    where = ", ".join(extra_paths) or str(folder)
    catalogue = parse(Catalogue, merged, where=where)
    _check_references(catalogue, where)
    return catalogue


def _overlay(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict):
            _overlay(under[key], value)
        else:
            under[key] = value


def _check_references(catalogue: Catalogue, where: str) -> None:
    asked = [(f"devices.{n}.link", d.link, "link") for n, d in catalogue.devices.items()]
    for n, cluster in catalogue.clusters.items():
        asked += [(f"clusters.{n}", link, "link") for link in {cluster.network, *cluster.links.values()}]
        asked += [(f"clusters.{n}", device, "device") for device in {*cluster.devices, *cluster.links}]
    known: dict[str, Mapping[str, Any]] = {"link": catalogue.links, "device": catalogue.devices}
    faults = [SpecError(f"no {kind} is called {name!r}", where=at, allowed=sorted(known[kind]))
              for at, name, kind in asked if name not in known[kind]]
    if faults:
        raise SpecError(f"{len(faults)} unknown names", faults=faults, where=where)


def this_machine() -> Device:
    """This machine's processor as a device; bandwidth and FP32 rate are measured here and now (about 0.2 s).

    Both are the best of five: a copy of 64 MB (counted as 128 MB moved) and a 1024 x 1024 matrix product.
    """
    import numpy as np

    block = np.ones(16 * 2**20, dtype=np.float32)
    target = np.empty_like(block)
    matrix = np.ones((1024, 1024), dtype=np.float32)
    copy_s = _best_of_five(lambda: np.copyto(target, block))
    product_s = _best_of_five(lambda: matrix @ matrix)
    return Device(
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_bytes_per_s=2 * block.nbytes / copy_s,
        peak_flops_per_s={"fp32": 2 * 1024**3 / product_s},
        memory_efficiency=1.0,
        kernel_s=1e-6,
        link="PCIe4x16",
        devices_per_machine=1,
        source=f"measured on this machine ({platform.machine()}, {os.cpu_count()} cores); kernel_s: an assumption",
    )


def _best_of_five(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)

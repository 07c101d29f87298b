"""Profiles measured with ``wb profile``: every table in one folder (``source = "measured"``)."""

from __future__ import annotations

from workbench.costfiles import load_tables
from workbench.costs import TableCosts
from workbench.errors import SpecError, nearest
from workbench.spec import about, spec

__all__ = ["Options", "open"]


@spec
class Options:
    """Options of ``[costs] source = "measured"``."""

    folder: str = about("Folder of Parquet and TOML files.", default="profiles")
    device: str | None = about("Device whose tables answer planners that name none (circuit); absent: the only one.",
                               default=None)


def open(options: Options) -> TableCosts:
    """The folder's tables.

    Raises:
        TraceError: there are none, or one is broken.
        SpecError: no table is of the device asked for.
    """
    tables = load_tables(options.folder)
    devices = sorted({str(t.keys["device"]) for t in tables if "device" in t.keys})
    if options.device is not None and options.device not in devices:
        close = nearest(options.device, devices)
        raise SpecError(f"no table is of device {options.device!r}", where="costs.device", allowed=devices,
                        hint=f"did you mean {close!r}?" if close else None)
    device = options.device or (devices[0] if len(devices) == 1 else None)
    return TableCosts(tables, assumed=None if device is None else {"device": device})

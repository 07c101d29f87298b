"""Profiles measured with ``wb profile``: every table in one folder (``source = "measured"``)."""

from __future__ import annotations

from workbench.costfiles import load_tables
from workbench.costs import TableCosts
from workbench.spec import about, spec

__all__ = ["Options", "open"]


@spec
class Options:
    """Options of ``[costs] source = "measured"``."""

    folder: str = about("Folder of Parquet and TOML files.", default="profiles")


def open(options: Options) -> TableCosts:
    """The folder's tables.

    Raises:
        TraceError: there are none, or one is broken.
    """
    return TableCosts(load_tables(options.folder))

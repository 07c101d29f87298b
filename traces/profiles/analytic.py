"""Analytic costs of every device in the hardware catalogue; nothing is measured (``source = "analytic"``)."""

from __future__ import annotations

from workbench.hardware import load_catalogue
from workbench.roofline import Roofline
from workbench.spec import about, spec

__all__ = ["Options", "open"]


@spec
class Options:
    """Options of ``[costs] source = "analytic"``."""

    hardware: tuple[str, ...] = about("Hardware files to read on top of the catalogue.", default=())


def open(options: Options) -> Roofline:
    """The roofline over the catalogue with the user's files on top."""
    return Roofline(load_catalogue(*options.hardware))

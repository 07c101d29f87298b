"""End-to-end iteration times measured for splitwise-sim (Mutinifni/splitwise-sim, MIT; Patel et al., ISCA 2024).

Llama-2-70B (TP 2, 4, 8) and BLOOM-176B (TP 8) on A100-80GB and H100-80GB, without and with a power cap. The runs vary
one thing at a time from 512 prompt tokens, batch 1, 128 output tokens, five or more repeats each. So ``prompt`` is a
table over the prompt tokens of a batch of one, ``token`` over the batch of prompts of 512; both in medians.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from traces import registry
from workbench.costs import Axis, ProfileTable, Provenance, TableCosts
from workbench.errors import SpecError, TraceError
from workbench.hardware import load_catalogue
from workbench.spec import about, spec

__all__ = ["Options", "open", "read"]

_FILE = "splitwise-sim-perf_model"
_COLUMNS = ("model", "hardware", "tensor_parallel", "prompt_size", "batch_size", "token_size", "prompt_time",
            "token_time")


@spec
class Options:
    """Options of ``[costs] source = "splitwise"``."""

    power_capped: bool = about("Whether H100-SXM means the power-capped runs.", default=False)
    hardware: tuple[str, ...] = about("Hardware files to read on top of the catalogue.", default=())


def open(options: Options) -> TableCosts:
    """Tables ``prompt`` and ``token`` with the keys device, model and tensor_parallel.

    Raises:
        TraceError: the file cannot be had.
    """
    catalogue = load_catalogue(*options.hardware)
    suffix = "-pcap" if options.power_capped else ""
    names = {}
    for name, device in catalogue.devices.items():
        theirs = device.names.get("splitwise")
        if theirs is not None:
            names[theirs + (suffix if theirs.startswith("h100") else "")] = name
    if not names:
        raise SpecError("no device of the catalogue has a name in splitwise's files",
                        hint='give one names = { splitwise = "a100-80gb" } in a hardware file')
    return TableCosts(read(registry.fetch(_FILE), names))


def read(path: Path, names: dict[str, str]) -> list[ProfileTable]:
    """Tables of ``perf_model.csv`` for the hardware in ``names`` (theirs -> ours).

    Raises:
        TraceError: a column is missing or a cell is no number; names the line.
    """
    measured: dict[tuple[str, str, str, int], list[tuple[float, float]]] = defaultdict(list)
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if absent:
            raise TraceError(f"columns are missing: {', '.join(absent)}", where=str(path), allowed=_COLUMNS)
        for line, row in enumerate(reader, start=2):
            if row["hardware"] not in names:
                continue
            try:
                prompt, batch, tokens = int(row["prompt_size"]), int(row["batch_size"]), int(row["token_size"])
                prompt_s, token_s = float(row["prompt_time"]) / 1e3, float(row["token_time"]) / 1e3
                keys = (names[row["hardware"]], row["model"], int(row["tensor_parallel"]))
            except ValueError as error:
                raise TraceError(f"line {line}: {error}", where=str(path)) from None
            if batch == 1:
                measured["prompt", *keys].append((prompt, prompt_s))
            if prompt == 512 and tokens == 128:
                measured["token", *keys].append((batch, token_s))
    axis = {"prompt": Axis("tokens"), "token": Axis("batch")}
    return [
        ProfileTable(op=op, keys={"device": device, "model": model, "tensor_parallel": tp}, axes=(axis[op],),
                     points=np.array([[x] for x, _ in rows], dtype=float), seconds=np.array([s for _, s in rows]),
                     provenance=Provenance(id=path.name, origin="Mutinifni/splitwise-sim", device=device,
                                           licence="MIT"))
        for (op, device, model, tp), rows in measured.items()]

"""The journal of a profile folder: one JSON line a measured point, appended and flushed as soon as it is known.

There is one writer; a line torn by a kill is the last one and is skipped by the reader. Points measured under other
conditions (processor, threads, versions …) are kept in the file and not used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from profilers.harness import Measurement
from workbench.errors import SpecError, WorkbenchError
from workbench.spec import dump, parse

__all__ = ["Journal"]


class Journal:
    """Points of one profile folder under one set of conditions."""

    def __init__(self, path: Path, conditions_id: str) -> None:
        self.path, self.conditions_id = path, conditions_id
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
            with path.open("a") as stream:
                stream.write("\n" if torn else "")
        except OSError as error:
            raise WorkbenchError(f"cannot write {path}: {error.strerror}", hint="choose a folder you can write to",
                                 next_command="wb profile --profiles FOLDER") from None

    def read(self, label: str) -> Iterator[tuple[tuple[int, ...], Measurement]]:
        """Points of the table ``label``, oldest first."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row.get("conditions") == self.conditions_id and row.get("table") == label:
                try:
                    yield tuple(row["at"]), parse(Measurement, row["found"])
                except SpecError:
                    continue

    def write(self, label: str, at: tuple[int, ...], found: Measurement) -> None:
        """Append one point and make it durable."""
        row = {"conditions": self.conditions_id, "table": label, "at": list(at), "found": dump(found)}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

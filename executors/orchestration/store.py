"""The cost store: every measured kernel of one machine under one set of conditions, and what its compilers made.

A store is a folder. ``<name>.jsonl`` holds the times of one set of conditions in the format that
``traces.profiles.kernels`` reads (and planners with it): rows are appended and flushed one by one, so that a kill
loses at most the row being written, which the next opening cuts off. ``artifacts/`` holds what back-ends prepared
(Inductor's wrapper text, ONNX models), each file whole or absent and named by what it depends on; ``inductor/`` is
Inductor's own cache of shared objects. With all three a warm run compiles nothing.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from executors.orchestration.inductor import compilations
from profilers.campaign import cpu_flags
from profilers.harness import Conditions
from traces.profiles.kernels import FORMAT, KernelCosts, read
from workbench.errors import WorkbenchError
from workbench.files import make_folder, write_atomic
from workbench.runs import machine_facts
from workbench.spec import content_id

__all__ = ["Store", "conditions_of"]


def conditions_of(held: Conditions, *, cache: str, onnxruntime: str | None) -> dict[str, str | int]:
    """What the times of a store hold for; ``date`` joins them in the file's head and does not count."""
    facts: dict[str, str | int] = {
        "device": "cpu" if held.device == "cpu" else "cuda", "processor": held.device, "threads": held.threads,
        "torch": torch.__version__, "malloc": held.malloc, "cache": cache}
    if held.device == "cpu":
        facts["processor"] = f"{machine_facts()['cpu']} ({' '.join(cpu_flags())})"
    if onnxruntime is not None:
        facts["onnxruntime"] = onnxruntime
    return facts


class Store:
    """Times and artifacts in ``folder`` under ``conditions``; ``costs`` is the cost model of its times, which grows.

    Raises:
        WorkbenchError: the folder cannot be written.
        TraceError: the file is no store, or broken before its last line.
    """

    def __init__(self, folder: Path | str, conditions: Mapping[str, str | int]) -> None:
        self.folder, self.conditions = make_folder(folder), dict(conditions)
        device, threads, cache = (conditions[k] for k in ("device", "threads", "cache"))
        self.path = self.folder / f"{device}-{threads}-{cache}-{content_id(dict(conditions))[:8]}.jsonl"
        self.inductor = make_folder(self.folder / "inductor")
        self._id = content_id({k: v for k, v in conditions.items() if k != "cache"})[:12]
        if not self.path.exists():
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            self._append({"format": FORMAT, "conditions": {**conditions, "date": today}})
        else:
            self._cut_torn_line()
        self.costs: KernelCosts = read(self.path)

    def _cut_torn_line(self) -> None:
        body = self.path.read_bytes()
        if not body.endswith(b"\n"):
            with self.path.open("r+b") as stream:
                stream.truncate(body.rfind(b"\n") + 1)

    def _append(self, row: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise WorkbenchError(f"cannot write {self.path}: {error.strerror}", hint="choose a folder you can write to",
                                 next_command="wb profile --profiles FOLDER") from None

    def known(self, digest: str, backend: str) -> bool:
        """Whether the time of a kernel on a back-end is known, or that there is none."""
        return (digest, backend) in self.costs.seconds

    def add(self, digest: str, backend: str, seconds: float | None, **facts: Any) -> None:
        """Append a time, or that the back-end cannot run the kernel (``seconds`` absent, with the reason ``why``)."""
        self._append({"kernel": digest, "backend": backend, "seconds": seconds, **facts})
        self.costs.seconds[digest, backend] = float("inf") if seconds is None else seconds

    def set_boundary(self, backend: str | None, per_kernel_s: float, per_byte_s: float, **facts: Any) -> None:
        """Append what a kernel on a back-end (``None``: on any) adds to a program beyond its own time."""
        named = {} if backend is None else {"backend": backend}
        self._append({"boundary": {**named, "per_kernel_s": per_kernel_s, "per_byte_s": per_byte_s}, **facts})
        self.costs.boundaries[backend] = per_kernel_s, per_byte_s

    def set_tuned(self, name: str, stitched_s: float) -> None:
        """Append that a tuning, named by what it was asked, came to its end, and what its program takes."""
        self._append({"tuned": name, "seconds": stitched_s})
        self.costs.tuned[name] = stitched_s

    def _artifact(self, digest: str, backend: str) -> Path:
        return self.folder / "artifacts" / f"{digest[:32]}-{backend}-{self._id}"

    def artifact(self, digest: str, backend: str) -> str | bytes | None:
        """What a back-end prepared for a kernel, or ``None``."""
        path = self._artifact(digest, backend)
        for suffix in (".txt", ".bin"):
            file = path.with_suffix(suffix)
            if file.exists():
                return file.read_bytes() if suffix == ".bin" else file.read_text(encoding="utf-8")
        return None

    def keep(self, digest: str, backend: str, payload: str | bytes | None) -> None:
        """Keep what a back-end prepared for a kernel."""
        if payload is not None:
            suffix = ".txt" if isinstance(payload, str) else ".bin"
            write_atomic(self._artifact(digest, backend).with_suffix(suffix), payload)

    def compilations(self) -> int:
        """Shared objects that Inductor has compiled into this store."""
        return compilations(self.inductor)

"""Profile tables on disk: one Parquet file of rows and one TOML file of facts beside it.

``<op>-<id>.parquet`` holds the key columns, the axis columns and ``seconds``; ``<op>-<id>.toml`` holds op, keys, axes,
scale and provenance. Tables of one op with equal key names, axes and provenance share a pair of files. The Parquet
file is written first and the TOML file last, each whole or not at all, so a TOML file promises a complete pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.costtables import Axis, Prior, ProfileTable, Provenance, Scale
from workbench.errors import TraceError
from workbench.files import atomic_path, write_atomic
from workbench.spec import about, content_id, dump, parse, read_toml, spec

__all__ = ["load_tables", "remove_stale", "save_tables"]


@spec
class _Facts:
    """Content of the TOML file."""

    op: str = about("Operation.")
    keys: tuple[str, ...] = about("Names of the exact keys.")
    axes: tuple[tuple[str, Scale], ...] = about("Numeric axes, outermost first, with their scales.")
    times: Scale = about("Scale in which times are interpolated.")
    provenance: Provenance = about("Where the rows come from.")
    prior: Prior | None = about("Shape around which the rows are interpolated.", default=None)


def save_tables(folder: Path | str, tables: Iterable[ProfileTable]) -> list[Path]:
    """Write tables into ``folder``; returns the TOML files. The same tables give the same file names.

    Raises:
        WorkbenchError: the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups: dict[str, tuple[_Facts, list[ProfileTable]]] = {}
    for table in tables:
        facts = _Facts(op=table.op, keys=tuple(sorted(table.keys)), times=table.times, provenance=table.provenance,
                       prior=table.prior, axes=tuple((a.name, a.scale) for a in table.axes))
        groups.setdefault(content_id(dump(facts)), (facts, []))[1].append(table)
    written = []
    for name, (facts, members) in groups.items():
        columns: dict[str, Any] = {
            key: [t.keys[key] for t in members for _ in t.seconds] for key in facts.keys}
        points = np.concatenate([t.points for t in members])
        columns |= {axis: points[:, i] for i, (axis, _) in enumerate(facts.axes)}
        columns["seconds"] = np.concatenate([t.seconds for t in members])
        stem = Path(folder) / f"{facts.op}-{name}"
        with atomic_path(stem.with_suffix(".parquet")) as part:
            pq.write_table(pa.table(columns), part)
        written.append(write_atomic(stem.with_suffix(".toml"), _toml(dump(facts))))
    return written


def remove_stale(folder: Path | str, keep: Iterable[Path], ops: set[str], *, device: str) -> None:
    """Remove older pairs of files of ``ops`` on ``device`` that are not among ``keep`` (TOML files) in ``folder``."""
    kept = {path.name for path in keep}
    for file in sorted(Path(folder).glob("*.toml")):
        if file.name in kept:
            continue
        facts = parse(_Facts, read_toml(file), where=str(file))
        if facts.op in ops and facts.provenance.device == device:
            file.unlink()
            file.with_suffix(".parquet").unlink(missing_ok=True)


def load_tables(folder: Path | str) -> list[ProfileTable]:
    """Read every pair of files in ``folder``, in order of name.

    Raises:
        TraceError: the folder has no tables, a Parquet file is missing or lacks a column.
        SpecError: a TOML file is broken.
    """
    files = sorted(Path(folder).glob("*.toml"))
    if not files:
        raise TraceError("no profile tables here", where=str(folder), next_command="wb profile --help")
    return [table for file in files for table in _load(file)]


def _load(file: Path) -> list[ProfileTable]:
    import pyarrow.parquet as pq

    facts = parse(_Facts, read_toml(file), where=str(file))
    rows = file.with_suffix(".parquet")
    if not rows.is_file():
        raise TraceError("the rows of this table are missing", where=str(rows), next_command="wb profile --help")
    stored = pq.read_table(rows)
    needed = [*facts.keys, *(name for name, _ in facts.axes), "seconds"]
    missing = [name for name in needed if name not in stored.column_names]
    if missing:
        raise TraceError(f"columns are missing: {', '.join(missing)}", where=str(rows), allowed=needed)
    columns = {name: stored.column(name).to_pylist() for name in facts.keys}
    points = np.column_stack([stored.column(name).to_numpy() for name, _ in facts.axes]).astype(float)
    seconds = stored.column("seconds").to_numpy()
    members: dict[tuple[Any, ...], list[int]] = {}
    for i, key in enumerate(zip(*columns.values(), strict=True) if columns else ((),) * len(seconds)):
        members.setdefault(key, []).append(i)
    axes = tuple(Axis(name, scale) for name, scale in facts.axes)
    return [ProfileTable(op=facts.op, keys=dict(zip(facts.keys, key, strict=True)), axes=axes, points=points[at],
                         seconds=seconds[at], times=facts.times, prior=facts.prior,
                         provenance=facts.provenance)
            for key, at in members.items()]


def _toml(facts: Mapping[str, Any]) -> str:
    """TOML of texts, numbers, lists of them, and one level of tables; absent values are left out."""
    flat = [f"{k} = {_value(v)}" for k, v in facts.items() if not isinstance(v, Mapping) and v is not None]
    tables = [f"\n[{k}]\n" + "\n".join(f"{name} = {_value(v)}" for name, v in inner.items() if v is not None)
              for k, inner in facts.items() if isinstance(inner, Mapping)]
    return "\n".join([*flat, *tables]) + "\n"


def _value(value: Any) -> str:
    """Texts, finite numbers and lists of them read the same in JSON and TOML."""
    return json.dumps(value, ensure_ascii=False)

"""Files that are whole or absent: write beside the target, flush to disk, then rename."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import WorkbenchError

__all__ = ["atomic_path", "make_folder", "write_atomic"]


@contextlib.contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path in ``target``'s folder; on success it is renamed to ``target``, otherwise removed.

    Raises:
        WorkbenchError: the folder cannot be written (permissions, full disk); ``target`` is as it was.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise _unwritable(target, error) from None
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from None
    finally:
        part.unlink(missing_ok=True)


def write_atomic(target: Path | str, content: str | bytes) -> Path:
    """Write ``content`` (text as UTF-8) to ``target``, whole or not at all; returns ``target``."""
    with atomic_path(target) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(target)


def make_folder(folder: Path | str) -> Path:
    """Make ``folder`` if it is absent, so that work whose results go there fails before it starts; returns it.

    Raises:
        WorkbenchError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(Path(folder), error) from None
    return Path(folder)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _unwritable(target: Path, error: OSError) -> WorkbenchError:
    reason = error.strerror or str(error)
    return WorkbenchError(f"cannot write {target}: {reason}", hint="choose a folder you can write to, with room left",
                          next_command="wb … --runs FOLDER")

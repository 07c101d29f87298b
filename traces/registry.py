"""Public data by name: where it comes from, what it hashes to, under which licence, and how to get it.

``traces/registry.toml`` holds one entry a file; no data is shipped. ``fetch`` looks in this order: a local mirror
(folder in WB_DATA_MIRROR), the cache (WB_DATA_CACHE or the platform's cache folder), the network. Every file is
checked against its sha256 wherever it is found; a download is renamed into place only after the check, so that an
interrupted or corrupted one is never taken for the file, and two processes may fetch the same name at once.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from workbench.errors import TraceError, nearest
from workbench.files import atomic_path
from workbench.spec import about, parse, read_toml, spec

__all__ = ["CACHE_VARIABLE", "MIRROR_VARIABLE", "DataFile", "Registry", "Source", "available", "cache_folder", "fetch",
           "get", "mirror_folder", "registry"]

MIRROR_VARIABLE = "WB_DATA_MIRROR"
CACHE_VARIABLE = "WB_DATA_CACHE"

_ATTEMPTS = 3
_FIRST_WAIT_S = 0.5
_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 16

Kind = Literal["requests", "profile", "measured run", "pipeline", "sharding plan", "circuit"]
Place = Literal["mirror", "cache"]


@spec
class Source:
    """A public repository at one commit."""

    repository: str = about("Owner and name.")
    commit: str = about("Full commit id.")
    date: str = about("Day of the commit, ISO 8601.")
    licence: str = about("SPDX id, or what the repository says.")
    attribution: str | None = about("Work to cite.", default=None)


@spec
class DataFile:
    """One public file."""

    kind: Kind = about("What it holds.")
    description: str = about("One line on its content and use.")
    source: str = about("Key of its source.")
    path: str = about("Path of the file (or files) it comes from in the source.")
    mirror: str = about("Path below the mirror folder.")
    mirror_sha256: str = about("sha256 of the file in a mirror.")
    sha256: str | None = about("sha256 of the file at its source; absent when the mirror's file is derived.",
                               default=None)
    size_bytes: int | None = about("Size at its source; absent when derived.", default=None)
    rows: int | None = about("Data rows.", default=None)
    extent: str | None = about("What it counts where it has no rows, e.g. '37 nodes, 67 edges'.", default=None)
    format: str | None = about("Request-trace format (traces.formats); absent for other data.", default=None)
    derived: str | None = about("How the mirror's file was made from the source's; absent when it is the same bytes.",
                                default=None)
    stand_in: str | None = about("Synthetic workload with the same statistics.", default=None)


@spec
class Registry:
    """All registered files and their sources."""

    raw_url: str = about("URL template of a source's file: {repository}, {commit}, {path}.")
    sources: Mapping[str, Source] = about("Sources by key.")
    files: Mapping[str, DataFile] = about("Files by name.")

    @classmethod
    def read(cls, path: Path | str) -> Registry:
        """Read a registry file.

        Raises:
            SpecError: lists every fault of the file.
        """
        return parse(cls, read_toml(path), where=str(path))

    def name_of(self, key: str) -> str:
        """The name of the file called ``key``, or whose path in the mirror is ``key``.

        Raises:
            TraceError: nothing is; names the nearest.
        """
        if key in self.files:
            return key
        by_path = {file.mirror: name for name, file in self.files.items()}
        if key in by_path:
            return by_path[key]
        close = nearest(key, [*self.files, *by_path])
        raise TraceError(f"no public data set is called {key!r}", allowed=sorted(self.files),
                         hint=f"did you mean {close!r}?" if close else None, next_command="wb traces list")

    def get(self, key: str) -> DataFile:
        """The entry of a name or mirror path."""
        return self.files[self.name_of(key)]

    def licence(self, key: str) -> str:
        """Licence of a file."""
        return self.sources[self.get(key).source].licence

    def attribution(self, key: str) -> str | None:
        """The work to cite when the file is used, if its licence asks for one."""
        return self.sources[self.get(key).source].attribution

    def origin(self, key: str) -> str:
        """One line that says where a file comes from: repository, path, commit, and what was changed."""
        file = self.get(key)
        source = self.sources[file.source]
        changed = f" ({file.derived})" if file.derived else ""
        return f"{source.repository} {file.path} @ {source.commit[:12]}{changed}"

    def url(self, key: str) -> str | None:
        """Where the file is downloaded from; ``None`` for derived files."""
        file = self.get(key)
        if file.derived is not None:
            return None
        source = self.sources[file.source]
        return self.raw_url.format(repository=source.repository, commit=source.commit, path=quote(file.path))

    def available(self, key: str) -> Place | None:
        """Where a whole and correct copy lies on this machine; never touches the network."""
        file = self.get(key)
        mirrored = _mirror_path(file)
        if mirrored is not None and _sha256(mirrored) == file.mirror_sha256:
            return "mirror"
        cached = self._cache_path(key)
        return "cache" if cached.is_file() and _sha256(cached) == file.sha256 else None

    def fetch(self, key: str) -> Path:
        """Path of a checked local copy: from the mirror, the cache, or freshly downloaded.

        Raises:
            TraceError: unknown name; a mirror file with other bytes; a derived file with no mirror; no network;
                downloaded bytes with another sha256 (three attempts).
        """
        name, file = self.name_of(key), self.get(key)
        mirrored = _mirror_path(file)
        if mirrored is not None:
            actual = _sha256(mirrored)
            if actual != file.mirror_sha256:
                raise TraceError(f"the mirror's file has other bytes: expected sha256 {file.mirror_sha256}, found "
                                 f"{actual}", where=str(mirrored), hint="copy it into the mirror again",
                                 next_command=f"unset {MIRROR_VARIABLE}; wb traces fetch {name}")
            return mirrored
        if file.sha256 is None:
            raise TraceError(f"{name} is derived from {self.origin(name)} and is not downloaded",
                             hint=self._without_network(name), next_command=f"export {MIRROR_VARIABLE}=FOLDER")
        cached = self._cache_path(name)
        if not (cached.is_file() and _sha256(cached) == file.sha256):
            self._download(name, file.sha256, cached)
        return cached

    def _cache_path(self, key: str) -> Path:
        return cache_folder() / self.name_of(key) / Path(self.get(key).path).name

    def _download(self, name: str, sha256: str, target: Path) -> None:
        url = self.url(name)
        assert url is not None, "a file with a source sha256 has a URL"
        failure = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                # leaving the block with an exception removes the part file
                with atomic_path(target) as part:
                    _transfer(url, part, sha256)
                return
            except _TransferError as error:
                failure = str(error)
                if error.final:
                    break
        raise TraceError(f"cannot fetch {name} from {url}: {failure}", hint=self._without_network(name),
                         next_command=f"wb traces fetch {name}")

    def _without_network(self, name: str) -> str:
        file = self.get(name)
        offline = f"without a network, set {MIRROR_VARIABLE} to a folder that holds {file.mirror}"
        return offline + (f", or use the synthetic workload {file.stand_in!r}" if file.stand_in else "")


class _TransferError(Exception):
    """One attempt failed; ``final`` when another would fail the same way."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def _transfer(url: str, part: Path, sha256: str) -> None:
    """Download ``url`` into ``part`` and check its bytes."""
    import pooch
    import requests

    try:
        pooch.HTTPDownloader(chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_S)(url, str(part), None)
    except requests.HTTPError as error:
        answer = error.response
        assert answer is not None, "raise_for_status speaks of an answer"
        status = answer.status_code
        raise _TransferError(f"the server answered {status} {answer.reason}",
                             final=400 <= status < 500 and status not in (408, 429)) from None
    except requests.RequestException as error:
        raise _TransferError(f"{type(error).__name__}: {_innermost(error)}") from None
    actual = _digest(part)
    if actual != sha256:
        raise _TransferError(f"the downloaded bytes are wrong: expected sha256 {sha256}, found {actual}")


def _innermost(error: BaseException) -> str:
    """The reason at the bottom of wrapped network errors."""
    reason: Any = error
    while True:
        inner = getattr(reason, "reason", None) or next((a for a in reason.args if isinstance(a, BaseException)), None)
        if not isinstance(inner, BaseException):
            return str(reason)
        reason = inner


def mirror_folder() -> Path | None:
    """The folder named by WB_DATA_MIRROR, if it is set.

    Raises:
        TraceError: it is set to something that is not a folder.
    """
    value = os.environ.get(MIRROR_VARIABLE)
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise TraceError(f"{MIRROR_VARIABLE} is not a folder: {value}", next_command=f"unset {MIRROR_VARIABLE}")
    return folder


def cache_folder() -> Path:
    """Where downloads are kept: WB_DATA_CACHE, or the platform's cache folder."""
    value = os.environ.get(CACHE_VARIABLE)
    if value:
        return Path(value).expanduser()
    import pooch

    return Path(pooch.os_cache("planner-workbench"))


def _mirror_path(file: DataFile) -> Path | None:
    folder = mirror_folder()
    if folder is None:
        return None
    path = folder / file.mirror
    return path if path.is_file() else None


def _sha256(path: Path) -> str:
    status = path.stat()
    return _remembered_digest(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _remembered_digest(path: str, size: int, modified_ns: int) -> str:
    """sha256 of a file; size and time of change make a changed file a new question."""
    return _digest(Path(path))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def registry() -> Registry:
    """The registry that comes with the project."""
    return Registry.read(Path(__file__).parent / "registry.toml")


def get(key: str) -> DataFile:
    """Entry of a registered file, by name or mirror path."""
    return registry().get(key)


def available(key: str) -> Place | None:
    """Where a correct local copy lies, if anywhere; no network."""
    return registry().available(key)


def fetch(key: str) -> Path:
    """Path of a checked local copy; see ``Registry.fetch``."""
    return registry().fetch(key)

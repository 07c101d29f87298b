"""Public data: what is fetched is the registered bytes or an error, whatever the server, the disk or a signal does."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from traces import formats, registry, synthetic
from workbench.errors import TraceError

CONTENT = b"input_tokens,output_tokens\n" + b"".join(b"%d,%d\n" % (k + 1, 2 * k + 1) for k in range(30_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Misbehaves as the path says: /ok, /cut, /wrong, /absent, /stall, /slow, /flaky (two bad answers, then good)."""

    answers: dict[str, int]

    def do_GET(self) -> None:
        kind = self.path.strip("/").split("/")[0].split(".")[0]
        self.answers[kind] = self.answers.get(kind, 0) + 1
        if kind == "absent":
            self.send_error(404)
            return
        if kind == "flaky" and self.answers[kind] == 1:
            self.send_error(503)
            return
        body = CONTENT[::-1] if kind == "wrong" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind == "cut" or (kind == "flaky" and self.answers[kind] == 2):
            self.wfile.write(body[: len(body) // 2])  # then the connection closes
        elif kind == "stall":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(20)
        elif kind == "slow":
            for start in range(0, len(body), len(body) // 8):
                self.wfile.write(body[start : start + len(body) // 8])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, dict[str, int]]]:
    """A local server: its port, and how often each path was asked for."""
    counted: dict[str, int] = {}
    handler = type("CountingHandler", (Handler,), {"answers": counted})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(registry, "_FIRST_WAIT_S", 0.01)
    yield server.server_address[1], counted
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(folder: Path, port: int) -> Path:
    """A registry of files at the local server."""
    kinds = ("ok", "cut", "wrong", "absent", "stall", "slow", "flaky")
    head = f"""raw_url = "http://127.0.0.1:{port}/{{path}}"
[sources.local]
repository = "here/there"
commit = "{"0" * 40}"
date = "2026-01-01"
licence = "CC0-1.0"
"""
    files = "".join(f"""
[files.{kind}]
kind = "requests"
description = "Test data"
format = "lengths"
source = "local"
path = "{kind}.csv"
sha256 = "{SHA256}"
mirror = "m/{kind}.csv.gz"
mirror_sha256 = "{hashlib.sha256(gzip.compress(CONTENT, mtime=0)).hexdigest()}"
stand_in = "sharegpt-like"
""" for kind in kinds)
    derived = f"""
[files.joined]
kind = "profile"
description = "Joined"
source = "local"
path = "a.csv + b.csv"
derived = "joined"
mirror = "m/joined.csv"
mirror_sha256 = "{SHA256}"
"""
    path = folder / "registry.toml"
    path.write_text(head + files + derived)
    return path


@pytest.fixture
def local(tmp_path: Path, answers: tuple[int, dict[str, int]]) -> registry.Registry:
    return registry.Registry.read(written(tmp_path, answers[0]))


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if folder.exists() else []


def test_a_download_is_checked_kept_and_not_repeated(local: registry.Registry, cache: Path,
                                                     answers: tuple[int, dict[str, int]]) -> None:
    assert local.available("ok") is None
    path = local.fetch("ok")
    assert path.read_bytes() == CONTENT and path.is_relative_to(cache)
    assert local.available("ok") == "cache" and local.fetch("ok") == path
    assert local.fetch("m/ok.csv.gz") == path  # the mirror path is a name as well
    assert answers[1] == {"ok": 1} and files_below(cache) == ["ok/ok.csv"]


def test_a_cut_transfer_leaves_nothing_behind(local: registry.Registry, cache: Path,
                                              answers: tuple[int, dict[str, int]]) -> None:
    with pytest.raises(TraceError, match=r"cannot fetch cut[\s\S]*WB_DATA_MIRROR[\s\S]*'sharegpt-like'"):
        local.fetch("cut")
    assert answers[1] == {"cut": 3} and files_below(cache) == [] and local.available("cut") is None


def test_wrong_bytes_are_refused_with_both_sums(local: registry.Registry, cache: Path) -> None:
    wrong = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(TraceError, match=rf"expected sha256 {SHA256}, found {wrong}[\s\S]*next: wb traces fetch wrong"):
        local.fetch("wrong")
    assert files_below(cache) == []


def test_a_passing_fault_is_tried_again(local: registry.Registry, cache: Path,
                                        answers: tuple[int, dict[str, int]]) -> None:
    assert local.fetch("flaky").read_bytes() == CONTENT
    assert answers[1] == {"flaky": 3}


def test_an_absent_file_is_not_tried_again(local: registry.Registry, cache: Path,
                                           answers: tuple[int, dict[str, int]]) -> None:
    with pytest.raises(TraceError, match="the server answered 404"):
        local.fetch("absent")
    assert answers[1] == {"absent": 1}


def test_without_a_network_the_error_names_mirror_and_stand_in(cache: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    nobody = registry.Registry.read(written(tmp_path, 9))  # the discard port: nobody listens
    with pytest.raises(TraceError, match=r"m/ok.csv.gz[\s\S]*synthetic workload 'sharegpt-like'"):
        nobody.fetch("ok")


def test_a_spoiled_cached_file_is_fetched_again(local: registry.Registry, cache: Path) -> None:
    path = local.fetch("ok")
    path.write_bytes(CONTENT[:-1])
    assert local.available("ok") is None
    assert local.fetch("ok").read_bytes() == CONTENT


def test_the_mirror_is_taken_first_and_checked(local: registry.Registry, cache: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch,
                                               answers: tuple[int, dict[str, int]]) -> None:
    (tmp_path / "mirror/m").mkdir(parents=True)
    mirrored = tmp_path / "mirror/m/ok.csv.gz"
    mirrored.write_bytes(gzip.compress(CONTENT, mtime=0))
    monkeypatch.setenv(registry.MIRROR_VARIABLE, str(tmp_path / "mirror"))
    assert local.available("ok") == "mirror" and local.fetch("ok") == mirrored and answers[1] == {}
    assert len(formats.read(mirrored)) == 30_000
    assert local.fetch("slow").read_bytes() == CONTENT  # not in the mirror
    mirrored.write_bytes(b"spoiled")
    assert local.available("ok") is None
    with pytest.raises(TraceError, match=r"expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}"):
        local.fetch("ok")
    monkeypatch.setenv(registry.MIRROR_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(TraceError, match="WB_DATA_MIRROR is not a folder"):
        local.fetch("ok")


def test_derived_files_come_from_a_mirror_only(local: registry.Registry, cache: Path) -> None:
    assert local.url("joined") is None
    with pytest.raises(TraceError, match=r"joined is derived from here/there a.csv \+ b.csv[\s\S]*m/joined.csv"):
        local.fetch("joined")


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(TraceError, match="did you mean 'azure-2023-conv'"):
        registry.fetch("azure-2023-con")


FETCH = """import sys; from traces import registry
print(registry.Registry.read(sys.argv[1]).fetch(sys.argv[2]))"""


def test_two_processes_may_fetch_the_same_file(cache: Path, tmp_path: Path,
                                               answers: tuple[int, dict[str, int]]) -> None:
    path = written(tmp_path, answers[0])
    both = [subprocess.Popen([sys.executable, "-c", FETCH, str(path), "slow"], stdout=subprocess.PIPE, text=True)
            for _ in range(2)]
    printed = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0] and len(printed) == 1
    assert Path(printed.pop()).read_bytes() == CONTENT and files_below(cache) == ["slow/slow.csv"]


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_is_never_taken_for_the_file(signal_number: int, cache: Path, tmp_path: Path,
                                                       answers: tuple[int, dict[str, int]]) -> None:
    path = written(tmp_path, answers[0])
    process = subprocess.Popen([sys.executable, "-c", FETCH, str(path), "stall"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not any((cache / name).stat().st_size for name in files_below(cache)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal_number)
    assert process.wait(timeout=30) != 0
    assert not (cache / "stall/stall.csv").exists()
    left = files_below(cache)
    assert left == [] if signal_number == signal.SIGINT else all(name.endswith(".part") for name in left)
    assert registry.Registry.read(path).available("stall") is None


# --- the shipped registry --------------------------------------------------------------------------------------------


def test_the_shipped_registry_is_consistent() -> None:
    known = registry.registry()
    sums = re.compile(r"[0-9a-f]{64}")
    assert all(re.fullmatch(r"[0-9a-f]{40}", source.commit) for source in known.sources.values())
    for name, file in known.files.items():
        assert file.source in known.sources, name
        assert sums.fullmatch(file.mirror_sha256) and (file.sha256 is None or sums.fullmatch(file.sha256)), name
        assert (file.derived is None) == (file.sha256 is not None) == (known.url(name) is not None), name
        assert (file.rows is None) != (file.extent is None), name
        assert file.format is None or file.format in formats.FORMATS, name
        assert file.stand_in is None or file.stand_in in synthetic.names(), name
    assert len({file.mirror for file in known.files.values()}) == len(known.files)


def test_the_mirror_holds_the_registered_bytes() -> None:
    if not os.environ.get(registry.MIRROR_VARIABLE):
        pytest.skip(f"public data needed: set {registry.MIRROR_VARIABLE} to a mirror of it")
    known = registry.registry()
    for name, file in known.files.items():
        stored = known.fetch(name).read_bytes()
        if file.sha256 is not None:
            raw = gzip.decompress(stored) if file.mirror.endswith(".gz") else stored
            assert (hashlib.sha256(raw).hexdigest(), len(raw)) == (file.sha256, file.size_bytes), name

"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.files import atomic_path, write_atomic


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    target = write_atomic(tmp_path / "deep" / "plan.json", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as part:
        part.write_text("half of the new cont")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["plan.json"]


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="cannot write") as caught:
        write_atomic(tmp_path / "file" / "below.json", "x")
    assert "--runs" in str(caught.value)


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    assert write_atomic(tmp_path / "atomic", "x").stat().st_mode == plain.stat().st_mode

"""Where a table may not be written, and the files beside it."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from retina.runtime import OutputError
from retina.runtime.destination import require_room
from retina.runtime.table import columns


def test_a_working_directory_that_was_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: os.path.realpath(tmp_path / "gone", strict=True))
    with pytest.raises(OutputError, match=r"^t\.csv: expected a working directory to write to, found: No such file"):
        require_room(Path("t.csv"), 1)


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="found a folder"):
        require_room(tmp_path, 1)
    for table in (tmp_path / "t.csv", tmp_path / "none" / "yet" / "t.csv"):
        with pytest.raises(OutputError, match="bytes of room for"):
            require_room(table, 10**15)
        require_room(table, 1)
    assert not list(tmp_path.iterdir())
    require_room(tmp_path / "t.csv", 1)
    (tmp_path / "t.csv").touch()
    require_room(tmp_path / "t.csv", 1, [tmp_path / "other.csv"])
    with pytest.raises(OutputError, match="found one that is to be read"):
        require_room(tmp_path / "t.csv", 1, [tmp_path / "." / "t.csv"])
    for ending in (".journal", ".partial"):
        (tmp_path / f"t.csv{ending}").touch()
        with pytest.raises(OutputError, match=f"t.csv{ending}: expected a file to write, found one that is to be read"):
            require_room(tmp_path / "t.csv", 1, [tmp_path / f"t.csv{ending}"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="found a device or a pipe"):
        require_room(tmp_path / "pipe", 1)


def test_a_place_for_the_folder_that_there_is_not_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a link to nothing, and a drive that there is not."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "there")
    for there in ("file", "link"):
        told = f"t.csv: expected a folder to write to, found none: {tmp_path / there}; name another --out"
        with pytest.raises(OutputError, match=re.escape(told)):
            require_room(tmp_path / there / "new" / "t.csv", 1)
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with pytest.raises(OutputError, match=re.escape(f"found none: {tmp_path / 'absent'}; name another --out")):
        require_room(tmp_path / "absent" / "t.csv", 1)


def test_a_disk_that_does_not_tell_its_size_is_not_taken_for_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filesystems in user space that do not implement statfs answer with zeros."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=0, used=0, free=0))
    require_room(tmp_path / "t.csv", 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9, free=0))
    with pytest.raises(OutputError, match="expected 600 bytes of room for 1 row, found 0"):
        require_room(tmp_path / "t.csv", 1)


def test_a_write_protected_table_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename would replace it nevertheless. Not by its mode: root may write to any file."""
    table = tmp_path / "t.csv"
    table.write_text(",".join(columns(range(5))) + "\n")
    monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (table, os.W_OK))
    with pytest.raises(OutputError, match=r"t\.csv: expected a table that may be replaced, found it write-protected"):
        require_room(table, 1)


def test_a_table_that_another_run_renames_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "t.csv.partial"
    partial.write_text(",".join(columns(range(5))) + "\n")
    access = os.access

    def late(path: Path, mode: int) -> bool:
        partial.unlink()
        return access(path, mode)

    monkeypatch.setattr(os, "access", late)
    require_room(tmp_path / "t.csv", 1)
    assert not partial.exists()


def test_a_journal_that_another_run_removes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, look = tmp_path / "t.csv.journal", os.stat
    journal.touch()

    def late(path: Any, **options: Any) -> os.stat_result:
        found = look(path, **options)
        if path == journal:
            journal.unlink()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", late)
        require_room(tmp_path / "t.csv", 1)
    assert not journal.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="other systems have no such folders")
def test_another_users_table_in_a_sticky_folder_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(",".join(columns(range(5))) + "\n")
    require_room(table, 1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    require_room(table, 1)
    tmp_path.chmod(0o1777)
    with pytest.raises(OutputError, match=r"t\.csv: expected a table that may be replaced, found it write-protected"):
        require_room(table, 1)

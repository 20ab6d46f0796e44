"""What has been scored so far, kept beside the table, so that a run killed at any moment can continue."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Set
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from .errors import OutputError
from .file_state import Stamp, lock
from .prediction import Prediction
from .table import Row

FORMAT = 3
"""Part of what the rows depend on: journals of another format are discarded."""
ENDING = ".journal"
"""Appended to the name of the table."""
_START = b'{"format": '
SYNC_SECONDS = 2.0
"""Interval between syncs to disk. A killed process loses no row; a power cut, at most the rows of this interval."""


class Journal:
    """A file of JSON lines: first what the rows depend on, then one line per row, in the order of ``add``."""

    def __init__(self, path: Path, depends_on: Mapping[str, Any], *, resume: bool = True) -> None:
        """Open the journal and take over its rows if they depend on the same things.

        Args:
            path: the file; created if it does not exist, and its folder.
            depends_on: everything that determines a row besides the photograph: model, options, versions. JSON values
                only.
            resume: False discards existing rows.

        Raises:
            OutputError: its folder cannot be made, the file cannot be written or is no journal, or another process is
                writing it.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise OutputError(
                f"{path.parent}: expected a folder to write to, or a place to make it in, found: {err.strerror}; name "
                "another --out"
            ) from None
        self.path = path
        self.changed: list[str] = []
        """Keys of ``depends_on``, or ``format``, that differ from the existing journal's: its rows were discarded."""
        self._rows: dict[str, tuple[Stamp, Row]] = {}
        head = {"format": FORMAT, **depends_on}
        try:
            self._file = _open_alone(path)
            try:
                self._require_journal()
                keep = self._read(head) if resume else 0
                self._file.truncate(keep)
                if not keep:
                    self._write(head)
            except BaseException:
                self._file.close()
                raise
        except OSError as err:
            raise OutputError(f"{path}: cannot be written: {err.strerror}; name another --out") from None
        self._synced = time.monotonic()

    def __len__(self) -> int:
        """Number of rows taken over from an earlier run."""
        return len(self._rows)

    @property
    def names(self) -> Set[str]:
        """The photographs of the rows taken over."""
        return self._rows.keys()

    def row(self, name: str, stamp: Stamp | None) -> Row | None:
        """The row of an earlier run, or None if there is none or the file has changed since.

        Failures are not kept, because their cause may have gone.
        """
        known_stamp, row = self._rows.get(name, (None, None))
        return row if stamp is not None and known_stamp == stamp else None

    def add(self, row: Row, stamp: Stamp | None) -> None:
        """Append a row; a failed one, or one without a stamp, is not kept.

        Raises:
            OutputError: the disk is full, or the folder was removed.
        """
        if row.prediction is None or stamp is None:
            return
        prediction = asdict(row.prediction)
        del prediction["maps"]
        try:
            self._write({"name": row.name, "stamp": stamp, **prediction})
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as err:
            raise OutputError(
                f"{self.path}: cannot be written: {err.strerror}. What was scored so far is kept there: make room and "
                "run the same command again."
            ) from None

    def close(self) -> None:
        self._file.close()

    def discard(self) -> None:
        """Remove the file, once the table is complete."""
        if os.name != "posix":  # Windows removes no open file
            self._file.close()
        # Elsewhere while it is locked, or another run could lock it in between and write into a removed file.
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        left = json.dumps(line).encode("ascii") + b"\n"
        while left:
            left = left[self._file.write(left) or 0 :]

    def _require_journal(self) -> None:
        """Refuse to empty a file that somebody else wrote under this name."""
        with open(self._file.fileno(), "rb", closefd=False) as file:
            file.seek(0)
            start = file.read(len(_START))
        if not _START.startswith(start):
            expected = "expected an earlier run's journal or no file, found another file"
            raise OutputError(f"{self.path}: {expected}; name another --out")

    def _read(self, head: Mapping[str, Any]) -> int:
        """Take over the rows; returns the length in bytes of the intact part of the file."""
        sound = 0
        # By the descriptor that holds the lock: on a Windows share the lock keeps every other one from reading.
        with open(self._file.fileno(), "rb", closefd=False) as file:
            file.seek(0)
            for line in file:
                # A killed process or a power cut leaves only the last line incomplete.
                entry = _entry(line)
                if entry is None:
                    break
                if sound == 0:
                    self.changed = sorted(key for key in {*head, *entry} if head.get(key) != entry.get(key))
                    if self.changed:
                        return 0
                else:
                    try:
                        row, stamp = _row(entry)
                    except (KeyError, TypeError, ValueError, AttributeError):  # valid JSON, but not a row of ours
                        break
                    self._rows[row.name] = stamp, row
                sound += len(line)
        return sound


def _open_alone(path: Path) -> FileIO:
    """Open the journal and lock it: two runs that write the same table would interleave their rows."""
    while True:
        # Unbuffered, so that a written row survives the process, and a full disk is noticed at once.
        file = path.open("a+b", buffering=0)
        try:
            refusal = f"{path}: another retina-score is writing this table; wait for it, or name another --out"
            lock(file.fileno(), refusal)
            if not _is_removed(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_removed(file: FileIO, path: Path) -> bool:
    """Whether a file that is open at ``path`` is no longer there: the run that ended meanwhile removed it."""
    found = os.fstat(file.fileno())
    if found.st_nlink:
        return False
    try:
        return not os.path.samestat(found, path.stat())  # some file systems count no links
    except FileNotFoundError:
        return True


def _entry(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _row(entry: dict[str, Any]) -> tuple[Row, Stamp]:
    name, (size, changed, entered) = entry.pop("name"), entry.pop("stamp")
    dr_probs = {int(grade): p for grade, p in entry.pop("dr_probs").items()}
    return Row(name, Prediction(dr_probs=dr_probs, **entry)), (size, changed, entered)

"""What has been scored so far, kept beside the table, so that a run killed at any moment can go on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .errors import OutputError
from .model import Prediction
from .table import Row

FORMAT = 2
ENDING = ".journal"
"""After the name of the table that it is kept beside."""
SYNC_SECONDS = 2.0
"""A process killed loses nothing; a machine without power at most the rows of this time."""

Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change of the content and of the file's entry, in nanoseconds."""


class Journal:
    """A file of JSON lines: first what the rows depend on, then one row per line as they are scored."""

    def __init__(self, path: Path, depends_on: Mapping[str, Any], *, resume: bool = True) -> None:
        """Open the journal, taking over its rows where they depend on the same things.

        Args:
            path: the file; made where there is none.
            depends_on: all that decides a row besides the photograph: model, options, versions. JSON values only.
            resume: False forgets what is there.

        Raises:
            OutputError: it cannot be written, or another process is writing it.
        """
        self.path = path
        self.changed: list[str] = []
        """What differs from the journal found, whose rows were therefore dropped."""
        self._rows: dict[str, tuple[Stamp, Row]] = {}
        head = {"format": FORMAT, **depends_on}
        try:
            # Unbuffered: a row is with the system once written, and a full disk is told here and not at the end.
            self._file = path.open("ab", buffering=0)
            try:
                # Two runs that write one table would tear each other's rows.
                lock(
                    self._file.fileno(),
                    f"{path}: another retina-score is writing this table; wait for it, or name another --out",
                )
                keep = self._read(head) if resume else 0
                self._file.truncate(keep)
                if not keep:
                    self._write(head)
            except BaseException:
                self._file.close()
                raise
        except OSError as err:
            raise OutputError(f"{path}: cannot be written: {err.strerror}") from None
        self._synced = time.monotonic()

    def __len__(self) -> int:
        """Rows taken over from an earlier run."""
        return len(self._rows)

    def row(self, name: str, stamp: Stamp | None) -> Row | None:
        """The row of an earlier run, if the file has not changed since. A failure is not kept: it may have mended."""
        known_stamp, row = self._rows.get(name, (None, None))
        return row if stamp is not None and known_stamp == stamp else None

    def add(self, row: Row, stamp: Stamp | None) -> None:
        """Write down a row.

        Raises:
            OutputError: the disk is full, or the folder has gone.
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
                "give the same command again."
            ) from None

    def close(self) -> None:
        self._file.close()

    def discard(self) -> None:
        """Remove the file: the table is complete."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, line: Mapping[str, Any]) -> None:
        left = json.dumps(line).encode("ascii") + b"\n"
        while left:
            left = left[self._file.write(left) or 0 :]

    def _read(self, head: Mapping[str, Any]) -> int:
        """Take over the rows; returns how many bytes of the file are sound."""
        sound = 0
        with self.path.open("rb") as file:
            for line in file:
                # A kill or a power cut tears the last line, nothing before it.
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
                    except (KeyError, TypeError, ValueError, AttributeError):  # whole, but none of ours
                        break
                    self._rows[row.name] = stamp, row
                sound += len(line)
        return sound


def stamp(path: Path) -> Stamp | None:
    """What tells that a file has changed; None where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


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


def lock(descriptor: int, refusal: str, *, alone: bool = False) -> None:
    """Keep a file that is open for writing until it is closed.

    ``alone``: not shared with processes forked since, which may outlive this one where it is killed; but within one
    process, it keeps nobody out.

    Raises:
        OutputError: with ``refusal``, where another process keeps it.
    """
    try:
        import fcntl
    except ImportError:  # Windows refuses to rename or remove an open file, which ends the second run as well
        return
    try:
        (fcntl.lockf if alone else fcntl.flock)(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        raise OutputError(refusal) from None

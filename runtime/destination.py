"""Where a table is written, checked before anything is scored."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .errors import OutputError
from .journal import ENDING as JOURNAL
from .output_file import free_bytes
from .table import NOTEBOOK_COLUMNS, PARTIAL
from .wording import counted

BYTES_PER_ROW = 600
"""Disk space that a row takes in the journal and the table together, with a long name."""
_NO_FILE = "expected a file to write, found a device or a pipe; --json writes to a pipe"


def destination(out: Path) -> Path:
    """Where a table named ``out`` is written: if that is a link, at its target, or the table would replace the link.

    Raises:
        OutputError: it stands for standard output. Even if that is a file, others write to it.
    """
    if not os.path.islink(out):
        return out
    folder = os.path.realpath(out.parent)
    if folder == "/dev" or folder.startswith("/proc/"):
        raise OutputError(f"{out}: {_NO_FILE}")
    return Path(os.path.realpath(out))


def require_room(out: Path, rows: int, inputs: Iterable[Path] = ()) -> None:
    """Check before any work that the table can be written without overwriting an input.

    This includes the files beside it until the table is complete (``*.journal``, ``*.partial``).

    Args:
        out: the table.
        rows: how many rows it will have, for the disk space needed.
        inputs: files that will be read.

    Raises:
        OutputError: something other than an earlier table is in the table's place, something other than a folder in
            its folder's place, one of ``inputs`` would be overwritten, or there is too little disk space.
    """
    if os.path.isdir(out):
        raise OutputError(f"{out}: expected a file to write, found a folder")
    places = {place.name: place for place in (out, *(out.with_name(out.name + end) for end in (JOURNAL, PARTIAL)))}
    for place in places.values():
        if _is_no_file(place):
            raise OutputError(f"{place}: {_NO_FILE}")
    for path in inputs:
        meant = places.get(path.name)
        if meant is not None and os.path.exists(path) and os.path.exists(meant) and path.samefile(meant):
            raise OutputError(f"{meant}: expected a file to write, found one that is to be read; name another --out")
    for table in (out, out.with_name(out.name + PARTIAL)):
        if os.path.isfile(table):
            _require_table(table)
    try:
        folder = out.absolute().parent
    except OSError as err:
        raise OutputError(f"{out}: expected a working directory to write to, found: {err.strerror}") from None
    existing = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    if not os.path.isdir(existing):
        raise OutputError(f"{out}: expected a folder to write to, found none: {existing}; name another --out")
    needed, free = rows * BYTES_PER_ROW, free_bytes(existing)
    if free < needed:
        raise OutputError(f"{out}: expected {needed} bytes of room for {counted(rows, 'row')}, found {free}")


def _is_no_file(place: Path) -> bool:
    """Whether something is there that is no file. Asked once: another run may remove its own meanwhile."""
    try:
        return not stat.S_ISREG(place.stat().st_mode)
    except (OSError, ValueError):
        return False


def _require_table(out: Path) -> None:
    """Refuse to replace a file that is no table, or is write-protected."""
    try:
        with out.open("rb") as file:
            header = file.readline(4096)
        is_protected = not os.access(out, os.W_OK) or _belongs_to_another(out)
        out.stat()
    except FileNotFoundError:  # another run renamed it meanwhile
        return
    except OSError as err:
        raise OutputError(f"{out}: expected an earlier table or no file, found: {err.strerror}") from None
    if header and not all(column.encode() in header for column in NOTEBOOK_COLUMNS):
        raise OutputError(f"{out}: expected an earlier table or no file, found another file; name another --out")
    if is_protected:
        raise OutputError(f"{out}: expected a table that may be replaced, found it write-protected; name another --out")


def _belongs_to_another(file: Path) -> bool:
    """Whether its folder, such as /tmp, lets nobody replace other people's files, whatever these themselves permit."""
    if not hasattr(os, "geteuid"):
        return False
    folder, owner, user = file.parent.stat(), file.stat().st_uid, os.geteuid()
    return bool(folder.st_mode & stat.S_ISVTX) and user not in (0, owner, folder.st_uid)

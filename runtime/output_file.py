"""Files that are written atomically: whole or not at all."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import OutputError
from .folder import is_picture

DAY = 24 * 3600
"""Age in seconds from which a temporary file is taken for one that a killed process left."""


def free_bytes(folder: Path) -> float:
    """Room on a folder's disk; infinite if the disk does not know its own size, such as a share that GNOME mounted.

    Raises:
        OSError: the folder is not there or may not be examined.
    """
    disk = shutil.disk_usage(folder)
    return disk.free if disk.total else math.inf


def require_free(folder: Path, needed: float, what: str, then: str) -> None:
    """Check before any work that a folder's disk has room for ``needed`` bytes.

    Args:
        folder: the folder.
        needed: in bytes.
        what: for the message, what they are of, such as ``free space for the cache``.
        then: appended to the message: what to do.

    Raises:
        OutputError: there is less.
        OSError: as ``free_bytes``.
    """
    free = free_bytes(folder)
    if free < needed:
        raise OutputError(f"{folder}: expected {needed / 1e6:.0f} MB of {what}, found {free / 1e6:.0f} MB{then}")


def require_place(out: Path, inputs: Iterable[Path] = ()) -> None:
    """Check before any work that ``out`` can be written without overwriting an input; creates its folder.

    Raises:
        OutputError: its folder cannot be created or is not writable, or ``out`` is a folder, a photograph or one of
            ``inputs``.
    """
    if is_picture(out.name) and os.path.exists(out):
        raise OutputError(f"{out}: expected a file that may be replaced, found a photograph; name another --out")
    if any(os.path.exists(path) and os.path.exists(out) and path.samefile(out) for path in inputs):
        raise OutputError(f"{out}: expected a file to write, found one that is to be read; name another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            out.lstat()  # fails if the name is too long
        is_allowed = not os.path.isdir(out) and os.access(out.parent, os.W_OK)
        if is_allowed:
            _try_to_write(out.parent)
    except OSError as err:
        raise OutputError(f"{out}: cannot be written: {err.strerror or err}") from None
    if not is_allowed:
        raise OutputError(f"{out}: cannot be written: expected the name of a file in a writable folder")


def require_folder(folder: Path, option: str) -> None:
    """Check before any work that files can be written into a folder; creates it.

    Args:
        folder: the folder.
        option: the one that names it, for the message.

    Raises:
        OutputError: it cannot be created, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _try_to_write(folder)
    except OSError as err:
        raise OutputError(
            f"{folder}: expected a folder that can be written, found: {err.strerror}. Choose another {option}."
        ) from None


def _try_to_write(folder: Path) -> None:
    """Raise OSError if nothing can be written into a folder: the system may say no where the permissions say yes."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def require_empty(folder: Path) -> None:
    """Check before any work that a folder is new or empty: what it holds already would pass for part of the new.

    Raises:
        OutputError: it holds something, cannot be listed, or is no folder.
    """
    try:
        is_empty = not os.path.lexists(folder) or not any(folder.iterdir())
    except NotADirectoryError:
        is_empty = False
    except OSError as err:
        raise OutputError(f"{folder}: expected a new or empty folder, found: {err.strerror}. Choose another.") from None
    if not is_empty:
        raise OutputError(f"{folder}: expected a new or empty folder, found files. Remove it or choose another.")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file's path beside ``path`` for the block to fill, then rename it to ``path``; creates the
    folder.

    If the block raises, ``path`` stays as it was. A power cut, too, leaves the former file or the new one. The
    permissions of a former file are kept; a link is replaced by the file.

    Raises:
        OutputError: the folder is not writable or the disk is full; the block's own OSErrors become one, too.
    """
    # A name of fixed length, because a name of the maximum length has no room for a suffix.
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Synced before the rename, or a power cut could leave an empty file under the final name.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if os.path.isfile(path):
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    except OSError as err:
        raise OutputError(f"{path}: cannot be written: {err.strerror or err}") from err
    finally:
        with contextlib.suppress(OSError):  # it was renamed or never created, or cannot be removed either
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of ``replacing``; what changed within a day may still be written."""
    for left in folder.glob("." + 8 * "[0-9a-f]" + ".[0-9]*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > DAY:
                left.unlink()


def write_bytes_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write bytes to a file, whole or not at all.

    Raises:
        OutputError: as ``replacing``.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomically(path: Path, text: str) -> None:
    """Write text atomically as UTF-8, with the same line ends on every system.

    Surrogates from a file name that is not UTF-8 are written as backslash escapes.

    Raises:
        OutputError: as ``replacing``.
    """
    write_bytes_atomically(path, text.encode("utf-8", "backslashreplace"))

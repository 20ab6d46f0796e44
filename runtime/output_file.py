"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import OutputError


def require_place(out: Path, inputs: Iterable[Path] = ()) -> None:
    """Say before the work starts that a file cannot be written, or would take the place of one that is to be read.

    Raises:
        OutputError: its folder cannot be made or written, or ``out`` is a folder or one of ``inputs``.
    """
    if any(path.exists() and out.exists() and path.samefile(out) for path in inputs):
        raise OutputError(f"{out}: expected a file to write, found one that is to be read; name another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"{out}: cannot be written: {err.strerror or err}") from None
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise OutputError(f"{out}: cannot be written: expected a file's name in a folder that can be written")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: whole or not at all.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    # Of a fixed length: a name that just fits has no room for an ending.
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as err:
        raise OutputError(f"{path}: cannot be written: {err.strerror or err}") from err
    finally:
        with contextlib.suppress(OSError):  # where it could not be written, it may not be removed either
            temporary.unlink()


def write_text_atomically(path: Path, text: str) -> None:
    """Likewise text, in UTF-8, its lines ended alike on every system; of a name, what UTF-8 cannot hold is written with
    backslashes.
    """
    body = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(body))

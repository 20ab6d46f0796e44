"""The sha256 of a file, and the file beside it that says what it should be."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .errors import ModelFileError


def digest_path(path: Path) -> Path:
    """Where a file's sha256 is: beside it, with ``.sha256`` appended to its name."""
    return path.with_name(path.name + ".sha256")


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, found: str) -> bool:
    """Compare a file's sha256 with the digest beside it (``digest_path``), if there is one.

    Args:
        path: the model file.
        found: the sha256 of its bytes, in lower-case hexadecimal.

    Returns:
        whether there is one.

    Raises:
        ModelFileError: they differ, or the digest cannot be read.
    """
    beside = digest_path(path)
    if not os.path.isfile(beside):
        return False
    try:
        words = beside.read_text(encoding="utf-8", errors="replace").split()
    except OSError as err:
        raise ModelFileError(f"{beside}: expected the digest of {path.name}, found: {err.strerror}") from None
    expected = words[0].lower() if words else "nothing"
    if expected != found:
        raise ModelFileError(
            f"{path}: expected sha256 {expected} (from {beside.name}), found {found}. The file was changed or cut "
            "short since it was exported: copy it again, or export it again."
        )
    return True

"""Which files of a folder are photographs to score or to train on, by their endings, in one order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError

ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".j2k", ".jpx", ".dcm"}
)
"""Lower-case endings of the formats that picture.decode reads."""


@dataclass(frozen=True)
class Listing:
    """What a folder holds."""

    root: Path
    names: tuple[str, ...]
    """Photographs, relative to ``root`` with ``/``, sorted by code point. A name that is not UTF-8 holds surrogates
    (PEP 383), so that ``root / name`` always opens the file."""
    ignored: int
    """Files left out because of their ending, or because they are hidden."""


def is_picture(name: str) -> bool:
    """Whether the ending, in any case, is that of a format that picture.decode reads."""
    return os.path.splitext(name)[1].lower() in ENDINGS  # noqa: PTH122 - pathlib is slow over 10^5 names


def find_pictures(root: Path) -> Listing:
    """List the photographs under ``root``, sub-folders included; hidden files and folders are left out.

    Every real folder is visited once: a link to a folder is followed only where the folder is not reached without it,
    so loops end and nothing is scored twice. A sub-folder that may not be read is an error, never a silent gap.

    Raises:
        UsageError: ``root`` is not a folder, or a folder in it cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    links: list[str] = []
    names: list[str] = []
    ignored = 0
    waiting = [""]
    while waiting or links:
        if not waiting:
            links.sort(reverse=True)
        folder = waiting.pop() if waiting else links.pop()
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    hidden = entry.name.startswith(".")
                    if entry.is_dir():
                        if not hidden:
                            (links if entry.is_symlink() else waiting).append(name)
                    elif is_picture(entry.name) and not hidden:
                        names.append(name)
                    else:
                        ignored += 1
        except FileNotFoundError:
            if not folder:
                raise UsageError(f"{root}: expected a folder, found nothing there") from None
            # A sub-folder that vanished while the list was made: what it held is gone as well.
        except OSError as err:
            raise UsageError(f"{root / folder}: expected a folder that can be listed, found: {err.strerror}") from None
    return Listing(root, tuple(sorted(names)), ignored)

"""Which files of a folder are photographs to score or to train on, by their endings, in one order."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
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


def gather(arguments: Sequence[str]) -> Listing:
    """What the arguments of a command name.

    One folder: its photographs, named relative to it. Otherwise folders, files of any ending, and lists of paths
    (``@FILE``, or ``-`` for standard input; one per line, or separated by NUL), all named as given. A file that is not
    there is listed as well, for its row to say so.

    Raises:
        UsageError: nothing to list, or a folder or list that cannot be read.
    """
    if len(arguments) == 1 and os.path.isdir(arguments[0]):  # noqa: PTH112
        return find_pictures(Path(arguments[0]))
    names: set[str] = set()
    ignored = 0
    for argument in arguments:
        for path in _listed(argument) if argument == "-" or argument.startswith("@") else [argument]:
            name = Path(path).as_posix()
            if Path(path).is_dir():
                below = find_pictures(Path(path))
                names.update(f"{name.rstrip('/')}/{inner}" for inner in below.names)
                ignored += below.ignored
            else:
                names.add(name)
    return Listing(Path(), tuple(sorted(names)), ignored)


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


def _listed(argument: str) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if argument == "-" else Path(argument[1:]).read_bytes()
    except OSError as err:
        raise UsageError(f"{argument}: expected a list of paths, found: {err.strerror}") from None
    lines = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]

"""Lists the photographs of a folder to score or to train on, recognised by their endings, in a fixed order."""

from __future__ import annotations

import codecs
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import UsageError
from .wording import counted

ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".j2k", ".jpx", ".dcm"}
)
"""Lower-case endings of the formats that picture.decode reads."""

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Either begins a text file in UTF-16."""

KINDS_SHOWN = 5
"""Most frequent kinds of files left out that are listed."""


@dataclass(frozen=True)
class Listing:
    """What a folder holds."""

    root: Path
    names: tuple[str, ...]
    """Photographs, relative to ``root`` and separated by ``/``, sorted by code point. Bytes of a name that are not
    UTF-8 are kept as surrogates (PEP 383), so that ``root / name`` always opens the file."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Number of files left out, by their ending in lower case (empty if there is none) or as ``hidden``."""
    folders: tuple[Path, ...] = ()
    """The folders that were named and searched, without their subfolders."""
    lists: tuple[Path, ...] = ()
    """The files that names were read from."""

    @property
    def ignored_text(self) -> str:
        """How many files were left out, and of which kinds."""
        by_count = sorted(self.ignored.items(), key=lambda kind_count: (-kind_count[1], kind_count[0]))
        kinds = [f"{count} {kind or 'without ending'}" for kind, count in by_count[:KINDS_SHOWN]]
        kinds += ["others"] * (len(by_count) > KINDS_SHOWN)
        return counted(self.ignored.total(), "other file") + (f": {', '.join(kinds)}" if kinds else "")


def gather(arguments: Sequence[str], *, lists: bool = True) -> Listing:
    """List the photographs that the arguments of a command name.

    One folder: its photographs, named relative to it. Otherwise folders, files of any ending, and lists of paths
    (``@FILE``, or ``-`` for standard input; one per line, or separated by NUL; unless ``lists`` is False), all named as
    given. What exists under a name that begins with ``@`` is meant itself. A photograph that does not exist is listed
    too, so that its row says so.

    Raises:
        UsageError: there are no photographs, a folder or list cannot be read, or an argument does not exist and is
            either the only one or has no photograph's ending (probably a mistyped folder).
    """
    alone = len(arguments) == 1 and os.path.isdir(arguments[0])
    listing = find_pictures(Path(arguments[0])) if alone else _gather_each(arguments, lists)
    if not listing.names:
        raise UsageError(
            f"{' '.join(arguments) or 'nothing named'}: expected photographs, found none ({listing.ignored_text}). A "
            f"folder's need an ending of {' '.join(sorted(ENDINGS))}; name or list others:  "
            "find DIR -type f | retina-score -"
        )
    return listing


def _gather_each(arguments: Sequence[str], lists: bool) -> Listing:
    names: set[str] = set()
    folders: list[Path] = []
    ignored: Counter[str] = Counter()
    read: list[Path] = []
    for argument in arguments:
        exists = os.path.exists(argument)
        is_list = lists and (argument == "-" or (argument.startswith("@") and not exists))
        if not is_list and not exists and not (len(arguments) > 1 and is_picture(argument)):
            raise UsageError(f"{argument!r}: expected a folder, a photograph or a list of them, found nothing there")
        if is_list and argument != "-":
            read.append(Path(argument[1:]))
        for path in _listed(argument) if is_list else [argument]:
            name = Path(path).as_posix()
            if os.path.isdir(path):
                below = find_pictures(Path(path))
                # Normalised by Path: "./eye.jpg" and "eye.jpg" are the same photograph.
                names.update(inner if name == "." else f"{name.rstrip('/')}/{inner}" for inner in below.names)
                folders.append(Path(path))
                ignored += below.ignored
            else:
                names.add(name)
    return Listing(Path(), tuple(sorted(names)), ignored, tuple(folders), tuple(read))


def is_picture(name: str) -> bool:
    """Whether the ending, ignoring case, is that of a format that picture.decode reads."""
    return os.path.splitext(name)[1].lower() in ENDINGS  # noqa: PTH122 - pathlib is slow over 10^5 names


def find_pictures(root: Path) -> Listing:
    """List the photographs under ``root``, subfolders included; hidden files and folders are left out.

    Every real folder is visited once. A link to a folder is followed only if the folder is not reached otherwise, so
    that loops end and nothing is scored twice. An unreadable subfolder is an error, never a silent gap.

    Raises:
        UsageError: ``root`` is not a folder, or a folder in it cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    links: list[str] = []
    names: list[str] = []
    ignored: Counter[str] = Counter()
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
                    if _is_folder(entry):
                        if not hidden:
                            (links if entry.is_symlink() else waiting).append(name)
                    elif is_picture(entry.name) and not hidden:
                        names.append(name)
                    else:
                        ignored["hidden" if hidden else os.path.splitext(entry.name)[1].lower()] += 1  # noqa: PTH122
        except FileNotFoundError:
            if not folder:
                raise UsageError(f"{root}: expected a folder, found nothing there") from None
            # A subfolder that was removed while the list was made: its files are gone as well.
        except OSError as err:
            raise UsageError(
                f"{root / folder}: expected a folder that can be listed, found: {err.strerror}. Nothing is left out "
                "unasked: to leave it out, name the others"
            ) from None
    return Listing(root, tuple(sorted(names)), ignored, (root,))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder; a circular link, or one to a place without permission, is listed by its ending instead.

    Then its row states the reason.
    """
    try:
        return entry.is_dir()
    except OSError:
        return False


def _listed(argument: str) -> list[str]:
    if argument == "-" and sys.stdin is None:
        raise UsageError("-: expected a list of paths on standard input, found it closed")
    try:
        content = sys.stdin.buffer.read() if argument == "-" else Path(argument[1:]).read_bytes()
    except OSError as err:
        raise UsageError(f"{argument}: expected a list of paths, found: {err.strerror}") from None
    if content.startswith(UTF16_MARKS):  # as Windows' PowerShell writes it
        try:
            content = content.decode("utf-16").encode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{argument}: expected a list in UTF-8 or UTF-16, found neither; save it again") from None
    lines = content.split(b"\0") if b"\0" in content else content.removeprefix(codecs.BOM_UTF8).splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]

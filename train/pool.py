"""Photographs that are not split yet, and the data folder that they are written into."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.annotations import (
    ANNOTATIONS_FILE,
    IMAGE_NAME,
    IMAGES_DIR,
    column_place,
    fault_report,
    scan_rows,
)
from ..runtime.contract import Preprocessing
from ..runtime.errors import AnnotationError, OutputError
from ..runtime.output_file import require_folder, require_free, write_text_atomically
from ..runtime.progress import progress
from .data import Photo, Split, scan_split
from .frames import look_through
from .leakage import Leak, find_pairs


@dataclass(frozen=True)
class Pool:
    """Photographs that are not split yet, all of them read and sound."""

    split: Split
    """All photographs, ordered by their paths."""
    pairs: list[tuple[int, int, Leak]]
    """The indices of two photographs that are the same or near-identical, ascending, and what was found."""


def read_pool(folder: Path, me_positive_from: int | None) -> Pool:
    """Read ``folder/annotations.csv``, and decode every photograph of ``folder/images`` once.

    Args:
        folder: laid out like one split of a data folder.
        me_positive_from: see ``data.read_dataset``.

    Raises:
        AnnotationError: annotations or photographs have faults, or copies of one photograph have different labels; all
            faults are listed.
        UsageError: the folder of photographs cannot be listed.
    """
    split, faults = scan_split(folder, me_positive_from)
    with progress(len(split.photos), "Reading photographs") as advance:
        _, looks = look_through(split.paths, Preprocessing(), "uint8", "off", folder, advance)
    faults += [
        f"{split.annotations}, line {photo.line}: {look.fault}"
        for photo, look in zip(split.photos, looks, strict=True)
        if look.fault
    ]
    pairs = find_pairs(str(folder), split.photos, looks)
    faults += [f"{leak} (keep one)" for *_, leak in pairs if leak.kind == "same bytes" and leak.conflict]
    if faults:
        raise AnnotationError(fault_report(folder, faults, "nothing was written. Fix and run again"))
    return Pool(split, pairs)


def write_splits(pool: Split, splits: Mapping[str, Sequence[Photo]], out: Path, *, link: bool = False) -> None:
    """Write ``out/{split}/images/`` and ``out/{split}/annotations.csv``, all of it or nothing.

    Rows keep all their columns. A name with folders becomes the photograph's path in ``images/``, since the folders
    above that are others now.

    Args:
        pool: where the photographs are.
        splits: the photographs of each split.
        out: a folder that is not there yet, or empty.
        link: hard links to the photographs instead of copies.

    Raises:
        OutputError: the folder cannot be written or lacks space, or ``link`` is not possible.
    """
    images = pool.annotations.with_name(IMAGES_DIR)
    (_, header), *rows = scan_rows(pool.annotations)[0]
    cells, name_at = dict(rows), column_place(IMAGE_NAME, header)
    assert name_at is not None  # or the photographs could not have been read
    require_folder(out.parent, "--out")
    try:
        if not link:
            needed = sum(photo.path.stat().st_size for photos in splits.values() for photo in photos)
            require_free(out.parent, needed, "free space for the photographs", "; make room, or try --link")
        with (
            tempfile.TemporaryDirectory(prefix=f".{out.name[:32]}.", suffix=".tmp", dir=out.parent) as temporary,
            progress(sum(map(len, splits.values())), "Writing photographs") as advance,
        ):
            whole = Path(temporary) / "data"
            for name, photos in splits.items():
                written = [header]
                for photo in photos:
                    place = photo.path.relative_to(images)
                    _put(photo.path, whole / name / IMAGES_DIR / place, link)
                    row = list(cells[photo.line])
                    if {"/", "\\"} & set(photo.image_name):
                        row[name_at] = place.as_posix()
                    written.append(row)
                    advance()
                (whole / name).mkdir(parents=True, exist_ok=True)
                write_text_atomically(whole / name / ANNOTATIONS_FILE, _csv(written))
            if os.path.isdir(out):
                out.rmdir()  # empty; Windows renames onto no folder at all
            whole.rename(out)
    except OSError as err:
        raise OutputError(f"{out}: cannot be written: {err.strerror or err}") from None


def _put(photograph: Path, place: Path, link: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not link:
        shutil.copyfile(photograph, place)
        return
    try:
        os.link(os.path.realpath(photograph), place)  # of a link its target, which a link in another folder would lose
    except OSError as err:
        raise OutputError(
            f"{photograph}: cannot be linked from {place.parent}: {err.strerror or err}. Leave out --link to copy it"
        ) from None


def _csv(rows: Sequence[Sequence[str]]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()

"""Photographs that are not split yet, and the data folder that they are written into."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.annotations import ANNOTATIONS_FILE, IMAGE_NAME, IMAGES_DIR, NameIndex, column_place, scan_rows
from ..runtime.contract import Preprocessing
from ..runtime.errors import AnnotationError, OutputError
from ..runtime.output_file import require_empty, require_folder, require_free, write_text_atomically
from ..runtime.progress import progress
from .data import Photo, Split, scan_split
from .frames import look_through
from .leakage import Leak, find_pairs


@dataclass(frozen=True)
class Pool:
    """Photographs that are not split yet."""

    folder: Path
    split: Split
    """Those without faults in their annotations, ordered by their paths."""
    rows: dict[int, list[str]]
    """The cells of annotations.csv by line, the header's first."""
    faults: list[str]
    """Of the annotations, as lines of text."""

    @classmethod
    def read(cls, folder: Path, me_positive_from: int | None) -> Pool:
        """Read ``folder/annotations.csv`` and find the photographs in ``folder/images``, without decoding them.

        Args:
            folder: laid out like one split of a data folder.
            me_positive_from: see ``data.read_dataset``.

        Raises:
            UsageError: the folder of photographs cannot be listed.
        """
        rows, _ = scan_rows(folder / ANNOTATIONS_FILE)
        split, faults = scan_split(folder, me_positive_from)
        return cls(folder, split, dict(rows), faults)

    @property
    def images(self) -> Path:
        return self.folder / IMAGES_DIR

    def look(self) -> tuple[list[tuple[int, int, Leak]], list[str]]:
        """Decode every photograph once.

        Returns:
            the pairs of photographs that are the same or near-identical, as ``find_pairs``; and the faults of the
            annotations and of the photographs, such as copies of one with different labels.
        """
        photos = self.split.photos
        with progress(len(photos), "Reading photographs") as advance:
            _, looks = look_through(self.split.paths, Preprocessing(), "uint8", "off", self.folder, advance)
        unreadable = [
            f"{self.split.annotations}, line {photo.line}: {look.fault}"
            for photo, look in zip(photos, looks, strict=True)
            if look.fault
        ]
        pairs = find_pairs(str(self.folder), photos, looks)
        conflicts = [f"{leak} (keep one)" for *_, leak in pairs if leak.kind == "same bytes" and leak.conflict]
        return pairs, [*self.faults, *unreadable, *conflicts]


@contextlib.contextmanager
def filling(out: Path) -> Iterator[None]:
    """Create a folder for the block to fill; if it raises, a folder that was not there before is removed again.

    Raises:
        OutputError: the folder cannot be created or written, or holds something.
    """
    require_empty(out)
    is_new = not os.path.exists(out)
    require_folder(out, "--out")
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # not empty, or not ours any more
                out.rmdir()
        raise


def require_room(pool: Pool, out: Path, *, link: bool) -> None:
    """Check before any work that ``write_splits`` can write into ``out``.

    Raises:
        OutputError: ``out`` is among the photographs, there is too little space, or ``link`` is not possible.
    """
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(pool.images)):
        raise OutputError(f"{out}: expected a folder outside {pool.images}. Choose another --out.")
    photos = pool.split.photos
    try:
        if not link:
            needed = sum(photo.path.stat().st_size for photo in photos)
            require_free(out, needed, "free space for the photographs", "; make room, or try --link")
    except OSError as err:
        raise OutputError(f"{err.filename}: cannot be read: {err.strerror}") from None
    if link and photos:
        with tempfile.TemporaryDirectory(dir=out) as temporary:
            _put(photos[0].path, Path(temporary) / "link", link)


def write_splits(pool: Pool, splits: Mapping[str, Sequence[Photo]], out: Path, *, link: bool) -> None:
    """Write ``out/{split}/images/`` and ``out/{split}/annotations.csv``, all of it or nothing.

    Rows keep all their columns, in a table separated by commas. A name that would not lead to its photograph there,
    such as one with the name of the pool, becomes the photograph's path in ``images/``.

    Args:
        pool: where the photographs are.
        splits: the photographs of each split.
        out: an empty folder.
        link: hard links to the photographs instead of copies.

    Raises:
        OutputError: the folder cannot be written or lacks space, or ``link`` is not possible.
    """
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=out) as temporary,
            progress(sum(map(len, splits.values())), "Writing photographs") as advance,
        ):
            for name, photos in splits.items():
                written = Path(temporary) / name
                for photo in photos:
                    _put(photo.path, written / IMAGES_DIR / photo.path.relative_to(pool.images), link)
                    advance()
                write_text_atomically(written / ANNOTATIONS_FILE, _annotations(pool, photos, out / name / IMAGES_DIR))
            for name in splits:
                (Path(temporary) / name).rename(out / name)
    except OSError as err:
        raise OutputError(f"{out}: cannot be written: {err.strerror or err}") from None


def _annotations(pool: Pool, photos: Sequence[Photo], images: Path) -> str:
    """The rows of a split's photographs, which will be in ``images``."""
    header = next(iter(pool.rows.values()))
    name_at = column_place(IMAGE_NAME, header)
    assert name_at is not None  # or the photographs could not have been found
    places = [photo.path.relative_to(pool.images).as_posix() for photo in photos]
    index = NameIndex(images, places)
    rows = [header]
    for photo, place in zip(photos, places, strict=True):
        row, found = list(pool.rows[photo.line]), None
        with contextlib.suppress(AnnotationError):  # several match
            found = index.find(photo.image_name)
        if found != place:
            row[name_at] = place
        rows.append(row)
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\r\n").writerows(rows)  # with which a lone \r is quoted, too
    return file.getvalue()


def _put(photograph: Path, place: Path, link: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not link:
        shutil.copyfile(photograph, place)
        return
    try:
        os.link(os.path.realpath(photograph), place)  # of a link its target, which a link in another folder would lose
    except OSError as err:
        why = err.strerror or err
        raise OutputError(f"{photograph}: cannot be linked: {why}. Leave out --link to copy it") from None

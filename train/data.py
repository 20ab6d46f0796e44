"""The photographs of a data set and their annotations."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.annotations import (
    ANNOTATIONS_FILE,
    DR_GRADE,
    IMAGES_DIR,
    MISSING,
    OPTIONAL,
    NameIndex,
    dr_fault,
    fault_report,
    me_label,
    mentioned,
    scan_annotations,
)
from ..runtime.digest import sha256_of
from ..runtime.errors import AnnotationError
from ..runtime.weighted_metrics import label_index

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Photo:
    """One annotated photograph."""

    path: Path
    image_name: str
    """As written in the annotations."""
    line: int
    """Its line in annotations.csv, for error messages."""
    dr_grade: int | None
    """Original grade, 0 to 4; None if it was not graded."""
    me_label: int | None
    """0 or 1; None if it was not graded."""
    caption: str = ""
    source: str = ""
    """Camera or collection; empty if unknown."""
    patient: str = ""
    """As written, to show: see ``patient_key``. Empty if unknown."""

    @property
    def me_index(self) -> int:
        """0, 1 or ``UNLABELLED``."""
        return label_index(self.me_label, (0, 1))

    @property
    def patient_key(self) -> str:
        """What the patient is compared by: the name without case, with single blanks; empty if unknown."""
        return " ".join(unicodedata.normalize("NFC", self.patient).casefold().split())


@dataclass(frozen=True)
class Split:
    """One of train, valid and test."""

    annotations: Path
    photos: tuple[Photo, ...]

    @property
    def paths(self) -> list[Path]:
        return [photo.path for photo in self.photos]


@dataclass(frozen=True)
class DataSet:
    """The splits that were read, and the grades that occur in the training split."""

    root: Path
    splits: dict[str, Split]
    dr_grades: tuple[int, ...]
    """Original grade of each DR index, in ascending order; empty if train has ME labels alone or was not read."""

    def dr_index(self, photo: Photo) -> int:
        """Its grade's position among ``dr_grades``, or ``UNLABELLED``."""
        return label_index(photo.dr_grade, self.dr_grades)


def require_splits(root: Path, splits: Sequence[str] = SPLITS) -> None:
    """Refuse a folder that is not laid out as data.

    Raises:
        AnnotationError: ``root`` is not a folder, or one of the splits has no annotations.csv.
    """
    wanted = " and ".join(", ".join(f"{name}/" for name in splits).rsplit(", ", 1))
    if not os.path.isdir(root):
        raise AnnotationError(f"{root}: expected a folder with {wanted}, found none there")
    absent = [name for name in splits if not os.path.isfile(root / name / ANNOTATIONS_FILE)]
    if absent:
        is_pool = "train" in absent and os.path.isfile(root / ANNOTATIONS_FILE)
        how = f". Split the folder first:  python -m retina.train.splitting {shlex.quote(str(root))} --out DIR"
        raise AnnotationError(
            f"{root}: expected {wanted}, each with {ANNOTATIONS_FILE} and {IMAGES_DIR}/; "
            f"found no {ANNOTATIONS_FILE} in {', '.join(f'{name}/' for name in absent)}{how if is_pool else ''}"
        )


def read_dataset(
    root: str | os.PathLike[str],
    me_positive_from: int | None = None,
    *,
    splits: Sequence[str] = SPLITS,
    known_grades: Collection[int] = (),
) -> DataSet:
    """Read ``root/{train,valid,test}/annotations.csv`` and find the pictures in ``images/`` beside each.

    Args:
        root: the data folder.
        me_positive_from: ME grades of this value and above count as risk; None accepts 0 and 1 only.
        splits: those that are read; the others need not be there.
        known_grades: DR grades of the model that is trained on or evaluated, which valid and test may have though train
            lacks them.

    Raises:
        AnnotationError: see ``require_splits``; or there are faults, and all of them are listed.
        UsageError: a folder of photographs cannot be listed.
    """
    data, faults = scan_dataset(root, me_positive_from, splits=splits, known_grades=known_grades)
    if faults:
        raise AnnotationError(fault_report(data.root, faults))
    return data


def scan_dataset(
    root: str | os.PathLike[str],
    me_positive_from: int | None = None,
    *,
    splits: Sequence[str] = SPLITS,
    known_grades: Collection[int] = (),
) -> tuple[DataSet, list[str]]:
    """``read_dataset`` for callers that add faults of their own before they raise a single error.

    Returns:
        the photographs without faults, and each fault as a line of text that names file, line and value.

    Raises:
        AnnotationError: see ``require_splits``.
        UsageError: a folder of photographs cannot be listed.
    """
    root = Path(root)
    require_splits(root, splits)
    scanned = {name: scan_split(root / name, me_positive_from) for name in splits}
    read = {name: split for name, (split, _) in scanned.items()}
    faults = [fault for _, found in scanned.values() for fault in found]
    train = read["train"].photos if "train" in read else ()
    dr_grades = tuple(sorted({photo.dr_grade for photo in train if photo.dr_grade is not None}))
    allowed = sorted({*dr_grades, *known_grades})
    where = "in train or the model" if known_grades else "in train"
    for split in read.values() if dr_grades else ():
        for photo in split.photos:
            if photo.dr_grade is not None and photo.dr_grade not in allowed:
                faults.append(
                    f"{split.annotations}, line {photo.line}: {DR_GRADE}: expected one of "
                    f"{', '.join(map(str, allowed))} as {where}, found {photo.dr_grade} ({photo.image_name})"
                )
    return DataSet(root, read, dr_grades), faults


def unknown_grades(photos: Sequence[Photo], grades: Sequence[int]) -> list[int]:
    """The photographs' DR grades that are not among ``grades``, in ascending order."""
    return sorted({photo.dr_grade for photo in photos if photo.dr_grade is not None} - set(grades))


def scan_split(folder: Path, me_positive_from: int | None) -> tuple[Split, list[str]]:
    """Read ``folder/annotations.csv`` and find the pictures in ``images/`` beside it.

    Args:
        folder: of one split, or of photographs that are not split yet.
        me_positive_from: see ``read_dataset``.

    Returns:
        the photographs without faults, ordered by their paths, and the faults as ``scan_dataset`` gives them.

    Raises:
        UsageError: the folder of photographs cannot be listed.
    """
    annotations = folder / ANNOTATIONS_FILE
    rows, row_faults = scan_annotations(annotations)
    faults = [f"{annotations}, {fault}" for fault in row_faults]
    images = folder / IMAGES_DIR
    if not os.path.isdir(images):
        return Split(annotations, ()), [*faults, f"{images}: expected a folder of photographs, found none there"]
    index = NameIndex(images)
    photos: list[Photo] = []
    owner: dict[str, int] = {}  # file -> the first line that names it
    for row in rows:
        where = f"{annotations}, line {row.line}"
        try:
            file = index.find(row.image)
        except AnnotationError as err:
            faults.append(f"{where}: {err}")
            continue
        me, me_fault = me_label(row, me_positive_from)
        problems = [fault for fault in (dr_fault(row), me_fault) if fault]
        if file is None:
            problems.append(
                f"expected a photograph named {row.image!r} in {images}, found {_namesake(index, row.image)}"
            )
        elif file in owner:
            problems.append(f"{row.image!r} means {file}, which line {owner[file]} already labels")
        faults += [f"{where}: {problem}" for problem in problems]
        if file is not None:
            owner.setdefault(file, row.line)
        if not problems and file is not None:
            extra = {key.casefold(): value for key, value in row.extra.items()}
            caption, source, patient = (extra.get(name.casefold(), "") for name in OPTIONAL)
            source, patient = ("" if name.casefold() in MISSING else name for name in (source, patient))
            # pandas writes 12.0 if any cell of the column was empty, and spreadsheets 12,0 in some locales.
            patient = re.sub(r"^(\d+)[.,]0+$", r"\1", patient)
            photos.append(Photo(images / file, row.image, row.line, row.dr_grade, me, caption, source, patient))
    listed = owner.keys() | (mentioned(annotations, index) if row_faults else set())
    # Of a file in which no photograph is named, such as a spreadsheet's own, its own faults say enough.
    unlisted = [file for file in index.names if file not in listed] if listed or not row_faults else []
    faults += [f"{images / file}: expected a row in {annotations}, found none" for file in unlisted]
    # By name, so that which photographs an epoch draws, and in which order, does not depend on the order of the rows.
    return Split(annotations, tuple(sorted(photos, key=lambda photo: photo.path.as_posix()))), faults


def _namesake(index: NameIndex, name: str) -> str:
    """What was found for a name that means no photograph: none, or one that other folders lead to."""
    bare = name.replace("\\", "/").rpartition("/")[2]
    try:
        other = index.find(bare) if bare != name else None
    except AnnotationError:
        other = None
    return "none" if other is None else f"{other!r}, to which those folders do not lead; write that if it is meant"


def fingerprint_of_files(data: DataSet) -> str:
    """``fingerprint`` of the files as they are on disk now.

    Raises:
        AnnotationError: a photograph cannot be read.
    """
    try:
        digests = {name: [sha256_of(photo.path) for photo in split.photos] for name, split in data.splits.items()}
    except OSError as err:
        raise AnnotationError(f"{err.filename}: cannot be read: {err.strerror}") from None
    return fingerprint(data, digests)


def fingerprint(data: DataSet, digests: Mapping[str, Sequence[str]]) -> str:
    """sha256, in hexadecimal, over every photograph's split, bytes and labels: equal data have equal fingerprints.

    ``digests`` has the sha256 of each split's files, in the split's order.
    """
    lines = [
        f"{name} {digest} {photo.dr_grade} {photo.me_label}"
        for name in SPLITS
        for photo, digest in zip(data.splits[name].photos, digests[name], strict=True)
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

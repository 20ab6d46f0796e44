"""The photographs of a data set and their annotations."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..runtime.annotations import MAX_DR_GRADE, NameIndex, fault_report, me_label, scan_annotations
from ..runtime.errors import AnnotationError, UsageError
from ..runtime.folder import UTF16_MARKS
from ..runtime.model import sha256_of
from ..runtime.yardsticks import UNLABELLED, label_index
from .augment import Augment, augment_with_seed, draw_seed
from .frames import Frames

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
    """Empty if unknown."""

    @property
    def me_index(self) -> int:
        """0, 1 or ``UNLABELLED``."""
        return label_index(self.me_label, (0, 1))


@dataclass(frozen=True)
class Split:
    """One of train, valid and test."""

    name: str
    annotations: Path
    photos: tuple[Photo, ...]

    @property
    def paths(self) -> list[Path]:
        return [photo.path for photo in self.photos]


@dataclass(frozen=True)
class DataSet:
    """The three splits, and the grades that occur in the training split."""

    root: Path
    splits: dict[str, Split]
    dr_grades: tuple[int, ...]
    """Original grade of each DR index, in ascending order."""

    def dr_index(self, photo: Photo) -> int:
        """Its grade's position among ``dr_grades``, or ``UNLABELLED``."""
        return label_index(photo.dr_grade, self.dr_grades)


def read_dataset(root: Path, me_positive_from: int | None = None) -> tuple[DataSet, list[str]]:
    """Read ``root/{train,valid,test}/annotations.csv`` and find the pictures in ``images/`` beside each.

    Args:
        root: the data folder.
        me_positive_from: ME grades of this value and above count as risk; None accepts 0 and 1 only.

    Returns:
        the photographs without faults, and each fault as a line of text that names file, line and value.

    Raises:
        AnnotationError: ``root`` is not a folder, or a split has no annotations.csv.
        UsageError: a folder of photographs cannot be listed.
    """
    if not os.path.isdir(root):
        raise AnnotationError(f"{root}: expected a folder with train/, valid/ and test/, found none there")
    absent = [name for name in SPLITS if not os.path.isfile(root / name / "annotations.csv")]
    if absent:
        raise AnnotationError(
            f"{root}: expected train/, valid/ and test/, each with annotations.csv and images/; "
            f"found no annotations.csv in {', '.join(f'{name}/' for name in absent)}"
        )
    faults: list[str] = []
    splits = {name: _read_split(root / name, name, me_positive_from, faults) for name in SPLITS}
    dr_grades = tuple(sorted({photo.dr_grade for photo in splits["train"].photos if photo.dr_grade is not None}))
    for name in SPLITS[1:] if dr_grades else ():
        for photo in splits[name].photos:
            if unknown_grades([photo], dr_grades):
                faults.append(
                    f"{splits[name].annotations}, line {photo.line}: Retinopathy grade: expected one of "
                    f"{', '.join(map(str, dr_grades))} as in train, found {photo.dr_grade} ({photo.image_name})"
                )
    if len(dr_grades) < 2 and splits["train"].photos:
        why = "" if dr_grades else "; ME labels alone cannot be trained on"
        found = f"{list(dr_grades)}{why}"
        faults.append(f"{splits['train'].annotations}: expected two or more DR grades, found {found}")
    return DataSet(root, splits, dr_grades), faults


def unknown_grades(photos: Sequence[Photo], grades: Sequence[int]) -> list[int]:
    """The photographs' DR grades that are not among ``grades``, in ascending order."""
    return sorted({photo.dr_grade for photo in photos if photo.dr_grade is not None} - set(grades))


def sound_dataset(root: Path, me_positive_from: int | None = None) -> DataSet:
    """``read_dataset`` for callers that accept no fault.

    Raises:
        AnnotationError: as ``read_dataset``, or listing all faults.
        UsageError: as ``read_dataset``.
    """
    data, faults = read_dataset(root, me_positive_from)
    if faults:
        raise AnnotationError(fault_report(root, faults))
    return data


def _read_split(folder: Path, name: str, me_positive_from: int | None, faults: list[str]) -> Split:
    annotations, row_faults = scan_annotations(folder / "annotations.csv")
    faults += [f"{annotations.path}, {fault}" for fault in row_faults]
    images = folder / "images"
    if not os.path.isdir(images):
        faults.append(f"{images}: expected a folder of photographs, found none there")
        return Split(name, annotations.path, ())
    index = NameIndex(images)
    photos: list[Photo] = []
    owner: dict[str, int] = {}  # file -> the first line that names it
    for row in annotations.rows:
        where = f"{annotations.path}, line {row.line}"
        try:
            file = index.find(row.image)
        except AnnotationError as err:
            faults.append(f"{where}: {err}")
            continue
        me, me_fault = me_label(row, me_positive_from)
        problems = [me_fault] if me_fault else []
        if file is None:
            problems.append(f"expected a photograph named {row.image!r} in {images}, found none")
        elif file in owner:
            problems.append(f"{row.image!r} means {file}, which line {owner[file]} already labels")
        if row.dr_grade is not None and row.dr_grade > MAX_DR_GRADE:
            problems.append(f"Retinopathy grade: expected 0 to {MAX_DR_GRADE}, found {row.dr_grade} ({row.image})")
        faults += [f"{where}: {problem}" for problem in problems]
        if file is not None:
            owner.setdefault(file, row.line)
        if not problems and file is not None:
            extra = {key.casefold(): value for key, value in row.extra.items()}
            caption, source, patient = (extra.get(key, "") for key in ("caption", "source", "patient"))
            patient = re.sub(r"^(\d+)\.0+$", r"\1", patient)  # pandas writes 12.0 if any cell of the column was empty
            photos.append(Photo(images / file, row.image, row.line, row.dr_grade, me, caption, source, patient))
    listed = owner.keys() | (_mentioned(annotations.path, index) if row_faults else set())
    # Of a file in which no photograph is named, such as a spreadsheet's own, its own faults say enough.
    unlisted = [file for file in index.names if file not in listed] if listed or not row_faults else []
    faults += [f"{images / file}: expected a row in {annotations.path}, found none" for file in unlisted]
    # By name, so that which photographs an epoch draws, and in which order, does not depend on the order of the rows.
    return Split(name, annotations.path, tuple(sorted(photos, key=lambda photo: photo.path.as_posix())))


def _mentioned(path: Path, index: NameIndex) -> set[str]:
    """Files that any cell names, so that a photograph whose row has a fault is not reported as unlisted as well."""
    try:
        content = path.read_bytes()
    except OSError:
        return set(index.names)
    files = set()
    for cell in set(re.split(r'[,;\t\r\n"]+', _decoded(content))):
        try:
            file = index.find(cell.strip())
        except AnnotationError:
            continue
        if file is not None:
            files.add(file)
    return files


def _decoded(content: bytes) -> str:
    """Other encodings than UTF-8 are refused, but names in those of Windows can be read."""
    if content.startswith(UTF16_MARKS):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


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


class Item(NamedTuple):
    """One item of a data set, with the same parts as the original notebook's."""

    image: Tensor
    """(3, S, S) RGB: uint8 after augmentation for training, float32 in [0, 255] for evaluation."""
    dr_index: int
    me_label: int
    filename: str
    caption: str


class Batch(NamedTuple):
    """A micro-batch of items."""

    image: Tensor
    """(B, 3, S, S), uint8 or float32 as in ``Item``."""
    dr_index: Tensor
    """(B,) int64, or ``UNLABELLED``."""
    me_label: Tensor
    """(B,) int64, 0, 1 or ``UNLABELLED``."""
    filenames: list[str]
    captions: list[str]


def collate(items: list[Item]) -> Batch:
    image, dr_index, me_label, filenames, captions = zip(*items, strict=True)
    return Batch(torch.stack(image), torch.tensor(dr_index), torch.tensor(me_label), list(filenames), list(captions))


class Draw(NamedTuple):
    """One draw of a photograph in an epoch."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is never called on a draw
    """Of the photograph in the training split."""
    epoch: int
    position: int
    """Its position in the epoch, over all devices."""


class TrainItems(Dataset[Item]):
    """Augmented training photographs; the augmentation of a draw depends only on (seed, epoch, position)."""

    def __init__(self, data: DataSet, frames: Frames, augment: Augment, seed: int) -> None:
        self.photos = data.splits["train"].photos
        self.dr_index = [data.dr_index(photo) for photo in self.photos]
        self.frames, self.augment, self.seed = frames, augment, seed

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, draw: Draw) -> Item:
        photo = self.photos[draw.index]
        picture = self.frames[draw.index].round().to(torch.uint8)
        picture = augment_with_seed(self.augment, picture, draw_seed(self.seed, draw.epoch, draw.position))
        return Item(picture, self.dr_index[draw.index], photo.me_index, photo.image_name, photo.caption)


class EvalItems(Dataset[Item]):
    """A split's photographs as evaluation, export and scoring see them."""

    def __init__(self, data: DataSet, split: str, frames: Frames) -> None:
        self.photos = data.splits[split].photos
        self.dr_grades = data.dr_grades
        self.dr_index = [data.dr_index(photo) for photo in self.photos]
        self.frames = frames

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Item:
        photo = self.photos[index]
        return Item(self.frames[index].float(), self.dr_index[index], photo.me_index, photo.image_name, photo.caption)


class EpochPlan(Sampler[list[Draw]]):
    """The micro-batches of one epoch, a pure function of (seed, epoch), dealt to the devices in turn.

    Device r of R takes micro-batches r, r + R, ..., so that R devices with one micro-batch per step see the same as one
    device with R micro-batches per step. Left-over micro-batches, fewer than R, are dropped, because all devices must
    have the same number. ``shuffle`` visits every photograph once; ``weighted`` draws as many with replacement, each DR
    grade equally often on average, and photographs without a grade as often as if all were visited once. ``start``
    skips the micro-batches that an interrupted epoch has already done.
    """

    def __init__(
        self, dr_index: Sequence[int], batch_size: int, kind: str, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.dr_index = np.asarray(dr_index)
        self.batch_size, self.kind, self.seed = batch_size, kind, seed
        self.rank, self.world = rank, world
        self.epoch, self.start = 1, 0
        sizes = [len(self.dr_index[i : i + batch_size]) for i in range(0, len(self.dr_index), batch_size)]
        if sizes[-1] < 2 <= min(batch_size, len(sizes)):
            sizes.pop()  # batch-norm needs two photographs; a different one is left out in each epoch
        self.n_batches = len(sizes) // world
        """Micro-batches per epoch and device."""
        if self.n_batches == 0:
            raise UsageError(
                f"--batch-size {batch_size}: expected at least one batch of the {len(self.dr_index)} training "
                f"photographs for each of {world} devices, found {len(sizes)}. Lower it, or use fewer devices."
            )

    def draws(self) -> NDArray[np.int64]:
        """The index of the photograph at each position of the epoch: (n,) int64."""
        n = len(self.dr_index)
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.kind == "shuffle":
            return rng.permutation(n)
        is_graded = self.dr_index != UNLABELLED
        counts = np.bincount(self.dr_index[is_graded])
        weights = np.ones(n)
        weights[is_graded] = is_graded.sum() / np.count_nonzero(counts) / counts[self.dr_index[is_graded]]
        return rng.choice(n, size=n, p=weights / weights.sum())

    def __len__(self) -> int:
        return self.n_batches - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = self.draws()
        for batch in range(self.start, self.n_batches):
            first = (batch * self.world + self.rank) * self.batch_size
            places = range(first, min(first + self.batch_size, len(draws)))
            yield [Draw(int(draws[place]), self.epoch, place) for place in places]


def class_weights(dr_index: Sequence[int], n_grades: int) -> Tensor:
    """Weight of each grade, total / (K x its count), scikit-learn's "balanced": (K,) float32.

    Photographs that are ``UNLABELLED`` do not count.
    """
    graded = [index for index in dr_index if index != UNLABELLED]
    counts = np.bincount(np.asarray(graded), minlength=n_grades)
    return torch.tensor(counts.sum() / (n_grades * np.maximum(counts, 1)), dtype=torch.float32)

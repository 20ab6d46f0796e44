"""Finds photographs and patients that are in two splits, because figures from such splits flatter the model, and
photographs that are in one split twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from ..runtime.contract import HEAD_NAMES
from ..runtime.wording import counted
from .data import SPLITS, DataSet, Photo
from .frames import Look
from .perceptual_hash import Bits, bits, distances

NEAR_BITS = 16
"""Pairs of which a view's perceptual hashes differ in at most this many of 256 bits are reported: more than the 10 of
shrunk, recompressed and brighter copies, and fewer than the 18 of all but two of a million pairs of different patients
(``docs/training.md``)."""

_ROWS_AT_ONCE = 512
"""Photographs compared at a time: 40 MB against 10 000 photographs of the other split."""

Kind = Literal["same bytes", "near-identical", "same patient"]


@dataclass(frozen=True)
class Leak:
    """One photograph, or patient, found in two splits, or a photograph found twice in one."""

    kind: Kind
    first: str
    """``split/name (line of its annotations)``, or for a patient ``split (n photographs)``."""
    second: str
    """The same, of the other split."""
    patient: str = ""
    """Empty unless the kind is ``same patient``."""
    conflict: str = ""
    """How the two photographs' labels differ; empty if they agree, and for patients."""

    def __str__(self) -> str:
        who = f"patient {self.patient}: " if self.patient else ""
        return f"{self.kind}: {who}{self.first} and {self.second}" + (f"; {self.conflict}" if self.conflict else "")


def unnamed_patients(data: DataSet) -> str:
    """What follows if annotations do not name the patient of every photograph, as text; empty if they do."""
    photos = [photo for name in SPLITS for photo in data.splits[name].photos]
    unnamed = sum(not photo.patient for photo in photos)
    if not unnamed:
        return ""
    return (
        f"no Patient is named for {unnamed} of {len(photos)} photographs. Each counts as a patient of its own: a "
        "patient in two splits is not noticed, and intervals may be too narrow."
    )


def find_leaks(data: DataSet, looks: Mapping[str, Sequence[Look]]) -> list[Leak]:
    """Compare all pairs of splits by bytes, by perceptual hash and by patient.

    Args:
        data: the splits.
        looks: for each split, one per photograph in its order; photographs with a fault are skipped.
    """
    leaks: list[Leak] = []
    for a, b in combinations(SPLITS, 2):
        left, right = (
            [(p, look) for p, look in zip(data.splits[name].photos, looks[name], strict=True) if not look.fault]
            for name in (a, b)
        )
        for i, j in near_pairs(*(bits(look.phash for _, look in side) for side in (left, right))):
            (photo_a, look_a), (photo_b, look_b) = left[i], right[j]
            leaks.append(_leak(_kind(look_a, look_b), a, photo_a, b, photo_b))
        counts = {split: Counter(p.patient_key for p in data.splits[split].photos if p.patient) for split in (a, b)}
        spellings: dict[str, dict[str, None]] = {}  # in the order of the splits
        for photo in (*data.splits[a].photos, *data.splits[b].photos):
            spellings.setdefault(photo.patient_key, {})[photo.patient] = None
        for patient in sorted(counts[a].keys() & counts[b].keys()):
            first, second = (f"{split} ({counted(count[patient], 'photograph')})" for split, count in counts.items())
            leaks.append(Leak("same patient", first, second, " or ".join(spellings[patient])))
    return leaks


def find_pairs(name: str, photos: Sequence[Photo], looks: Sequence[Look]) -> list[tuple[int, int, Leak]]:
    """All pairs of photographs of one folder that are the same or near-identical.

    Args:
        name: of the folder, for the pairs' text.
        photos: its photographs.
        looks: one per photograph; photographs with a fault are skipped.

    Returns:
        for each pair the indices of its photographs, ascending, and what was found.
    """
    sound = [index for index, look in enumerate(looks) if not look.fault]
    hashes = bits(looks[index].phash for index in sound)
    pairs = [(sound[i], sound[j]) for i, j in near_pairs(hashes, hashes) if i < j]
    return [(i, j, _leak(_kind(looks[i], looks[j]), name, photos[i], name, photos[j])) for i, j in pairs]


def find_copies(data: DataSet, looks: Mapping[str, Sequence[Look]]) -> list[Leak]:
    """Photographs of the same bytes within one split; arguments as ``find_leaks``.

    Each is paired with the first of them whose labels differ, or with the first of all: one without a label agrees
    with any.
    """
    copies = []
    for name in SPLITS:
        seen: dict[str, list[Photo]] = {}
        for photo, look in zip(data.splits[name].photos, looks[name], strict=True):
            if look.fault:
                continue
            before = seen.setdefault(look.sha256, [])
            leaks = [_leak("same bytes", name, other, name, photo) for other in before]
            copies += [leak for leak in leaks if leak.conflict][:1] or leaks[:1]
            before.append(photo)
    return copies


def _kind(one: Look, other: Look) -> Kind:
    return "same bytes" if one.sha256 == other.sha256 else "near-identical"


def _leak(kind: Kind, a: str, photo_a: Photo, b: str, photo_b: Photo) -> Leak:
    labels = [
        (name, getattr(photo_a, field), getattr(photo_b, field))
        for name, field in ((HEAD_NAMES["dr"], "dr_grade"), (HEAD_NAMES["me"], "me_label"))
    ]
    conflict = ", ".join(f"{name} {x} and {y}" for name, x, y in labels if None not in (x, y) and x != y)
    first, second = (f"{split}/{photo.image_name} (line {photo.line})" for split, photo in ((a, photo_a), (b, photo_b)))
    return Leak(kind, first, second, conflict=conflict)


def near_pairs(left: Bits, right: Bits) -> Iterator[tuple[int, int]]:
    """Index pairs of photographs, of (n, 2, 256) and (m, 2, 256) bits, of which a view differs in at most NEAR_BITS."""
    for start in range(0, len(left), _ROWS_AT_ONCE):
        nearest = distances(left[start : start + _ROWS_AT_ONCE], right).min(axis=0)
        yield from ((start + int(i), int(j)) for i, j in np.argwhere(nearest <= NEAR_BITS))

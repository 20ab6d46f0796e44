"""How far the model's grades agree with those of people: truth by file, and the usual measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .annotations import MAX_DR_GRADE, Annotation, NameIndex, fault_report, me_label, scan_annotations
from .errors import AnnotationError
from .folder import Listing


@dataclass(frozen=True)
class Truth:
    """The annotations of the files scored."""

    by_name: Mapping[str, Annotation]
    """By the file's name in the listing."""
    unmatched: int
    """Annotations of which no file was scored."""


def read_truth(path: str | Path, listing: Listing, me_positive_from: int | None = None) -> Truth:
    """Read annotations and find the file of each.

    Args:
        path: annotations.csv.
        listing: the files scored.
        me_positive_from: ME grades from this one up become 1, lower ones 0; None accepts 0 and 1 only.

    Raises:
        AnnotationError: naming every fault at once: those of the file itself, names that fit several files, files
            named twice, DR grades above 4, ME grades other than 0 and 1; or that no name fits any file.
    """
    annotations, faults = scan_annotations(path)
    index = NameIndex(listing.root, listing.names)
    by_name: dict[str, Annotation] = {}
    unmatched = 0
    for row in annotations.rows:
        try:
            name = index.find(row.image)
        except AnnotationError as err:
            faults.append(f"line {row.line}: {err}")
            continue
        if name is None:
            unmatched += 1
        elif name in by_name:
            faults.append(f"line {row.line}: {row.image!r} means {name!r}, as line {by_name[name].line} does already")
        else:
            label, fault = me_label(row, me_positive_from)
            by_name[name] = replace(row, me_grade=label)
            if row.dr_grade > MAX_DR_GRADE:
                faults.append(f"line {row.line}: Retinopathy grade: expected 0 to {MAX_DR_GRADE}, found {row.dr_grade}")
            if fault:
                faults.append(f"line {row.line}: {fault}")
    if not faults and not by_name:
        faults.append(f"expected names of files in {listing.root}, found none among {unmatched} rows")
    if faults:
        raise AnnotationError(fault_report(annotations.path, faults))
    return Truth(by_name, unmatched)


@dataclass
class Confusion:
    """Counts of (true, predicted) grades."""

    counts: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, true: int, predicted: int) -> None:
        self.counts[true, predicted] += 1

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def grades(self) -> list[int]:
        """All grades that were met, true or predicted, in rising order."""
        return sorted({grade for pair in self.counts for grade in pair})

    def matrix(self) -> NDArray[np.int64]:
        """(K, K) counts over ``grades``: true grades down, predicted ones across."""
        grades = self.grades
        return np.array([[self.counts[true, predicted] for predicted in grades] for true in grades], np.int64)

    def accuracy(self) -> float:
        """Share of equal grades, in [0, 1]; NaN where nothing was counted."""
        return sum(n for (true, predicted), n in self.counts.items() if true == predicted) / (self.total or np.nan)

    def quadratic_kappa(self) -> float:
        """Cohen's kappa with quadratic weights on the grades (Cohen 1968), at most 1; NaN where only one grade is met.

        A disagreement counts by the square of its distance in grades, relative to what chance would give.
        """
        matrix = self.matrix()
        grades = np.array(self.grades, float)
        if len(grades) < 2:
            return float("nan")
        weights = np.subtract.outer(grades, grades) ** 2
        by_chance = np.outer(matrix.sum(1), matrix.sum(0)) / matrix.sum()
        return float(1 - (weights * matrix).sum() / (weights * by_chance).sum())

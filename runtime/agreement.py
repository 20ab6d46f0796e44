"""How far the model's grades agree with those of human readers: the true grades by file, and the usual measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import weighted_metrics
from .annotations import Annotation, NameIndex, dr_fault, fault_report, me_label, scan_annotations
from .errors import AnnotationError
from .folder import Listing
from .wording import counted


@dataclass(frozen=True)
class Truth:
    """The annotations of the files scored."""

    by_name: Mapping[str, Annotation]
    """Keyed by the file's name in the listing; ``me_grade`` is the binary label, 0 or 1, or None."""
    unmatched: Sequence[str]
    """Names in annotations that match none of the files scored."""


def read_truth(path: Path, listing: Listing, me_positive_from: int | None = None) -> Truth:
    """Read annotations and match each one to its file.

    Args:
        path: annotations.csv.
        listing: the files scored.
        me_positive_from: ME grades of this value and above become 1, lower ones 0; None accepts 0 and 1 only.

    Raises:
        AnnotationError: the file has faults, a name matches several files, a file is named twice, a DR grade is above
            4, or an ME grade is not accepted (see ``me_label``); all faults are listed in one message. Also if no
            name matches any file.
    """
    rows, faults = scan_annotations(path)
    index = NameIndex(listing.root, listing.names)
    by_name: dict[str, Annotation] = {}
    unmatched: list[str] = []
    for row in rows:
        try:
            name = index.find(row.image)
        except AnnotationError as err:
            faults.append(f"line {row.line}: {err}")
            continue
        if name is None:
            unmatched.append(row.image)
        elif name in by_name:
            faults.append(f"line {row.line}: {row.image!r} means {name!r}, as line {by_name[name].line} does already")
        else:
            label, fault = me_label(row, me_positive_from)
            by_name[name] = replace(row, me_grade=label)
            faults += [f"line {row.line}: {each}" for each in (dr_fault(row), fault) if each]
    if not faults and not by_name:
        such = f"{counted(len(unmatched), 'row')}, such as {unmatched[0]!r}"
        faults.append(f"expected names of files in {listing.root}, found none among {such}")
    if faults:
        raise AnnotationError(fault_report(path, faults))
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
        """All grades that occur, true or predicted, in ascending order."""
        return sorted({grade for pair in self.counts for grade in pair})

    def matrix(self) -> NDArray[np.int64]:
        """(K, K) int64 counts over the K ``grades``: rows are true grades, columns predicted ones."""
        grades = self.grades
        counts = [self.counts[true, predicted] for true in grades for predicted in grades]
        return np.array(counts, np.int64).reshape(len(grades), len(grades))

    def accuracy(self) -> float:
        """Share of predictions equal to the true grade, in [0, 1]; NaN if nothing was counted."""
        return float(weighted_metrics.accuracy(self.matrix()[None].astype(float))[0])

    def quadratic_kappa(self) -> float:
        """``weighted_metrics.quadratic_kappa``, at most 1; NaN if fewer than two grades occur."""
        return float(weighted_metrics.quadratic_kappa(self.matrix()[None].astype(float), self.grades)[0])

"""The grades that people gave: the one reader of annotations.csv, and the way from a name in it to a file."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .errors import AnnotationError
from .folder import find_pictures, is_picture

IMAGE_NAME, DR_GRADE, ME_GRADE = "Image name", "Retinopathy grade", "Risk of macular edema"
"""The columns that must be there (IDRiD's spelling); case, blanks and a byte order mark do not matter."""

MAX_DR_GRADE = 4
"""Of the International Clinical Diabetic Retinopathy scale (Wilkinson et al., Ophthalmology 2003)."""

MAX_ME_GRADE = 3
"""Of the International Clinical Diabetic Macular Edema scale (likewise); IDRiD grades up to 2."""

MAX_FAULTS_SHOWN = 100


@dataclass(frozen=True)
class Annotation:
    """What one row says about one photograph."""

    line: int
    """Line of the file on which the row starts, counted from 1 with the header."""
    image: str
    """As written, but for blanks around it."""
    dr_grade: int
    """At least 0."""
    me_grade: int
    """At least 0. IDRiD grades 0, 1, 2; this project's data 0, 1: the caller says which values it accepts."""
    extra: Mapping[str, str]
    """Every further column under its name as written, but for blanks around it (Caption, Source, Patient, ...)."""


@dataclass(frozen=True)
class Annotations:
    """A whole annotations.csv."""

    path: Path
    rows: tuple[Annotation, ...]


def scan_annotations(path: str | Path) -> tuple[Annotations, list[str]]:
    """Read the sound rows of an annotations file, and name the faults of the others instead of raising.

    For a caller with faults of its own to add before it raises one error (``fault_report`` words it).

    Returns:
        the sound rows, and one line for each fault, such as ``line 7: Retinopathy grade: expected ..., found 'x'``.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as err:
        return Annotations(path, ()), [f"cannot be read: {err.strerror}"]
    except UnicodeDecodeError as err:
        return Annotations(path, ()), [
            f"expected UTF-8 text, found byte {err.object[err.start]:#04x} at {err.start}; "
            'spreadsheets save it as "CSV UTF-8"'
        ]
    rows: list[Annotation] = []
    faults: list[str] = []
    first_line: dict[str, int] = {}
    # Spreadsheets write ';' where a comma separates decimals.
    header_line = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                faults += _header_faults(header)
                if faults:
                    break
                continue
            row = _row(start, header, cells, faults)
            if row is None:
                continue
            if row.image in first_line:
                faults.append(f"line {start}: {IMAGE_NAME}: {row.image!r} is already on line {first_line[row.image]}")
                continue
            first_line[row.image] = start
            rows.append(row)
    except csv.Error as err:
        faults.append(f"line {line}: expected comma-separated values, found: {err}")
    if not rows and not faults:
        faults.append("expected a header and at least one row, found no row")
    return Annotations(path, tuple(rows)), faults


def fault_report(path: Path, faults: list[str], so: str = "mend and run again") -> str:
    """One message for all faults of a file or folder, cut after the first hundred; ``so`` is what follows from them."""
    shown = faults[:MAX_FAULTS_SHOWN]
    left = len(faults) - len(shown)
    head = f"{path}: {len(faults)} fault{'s' if len(faults) > 1 else ''}; {so}:"
    return "\n  ".join([head, *shown, *([f"... and {left} more"] if left else [])])


def me_label(row: Annotation, positive_from: int | None) -> tuple[int, str]:
    """The ME risk that a row states, and what is wrong with it, or nothing.

    Args:
        row: its grade is 0 or 1, or with ``positive_from`` up to 3.
        positive_from: grades from this one up are risk; None where the grade is the label.
    """
    if positive_from is not None and row.me_grade <= MAX_ME_GRADE:
        return int(row.me_grade >= positive_from), ""
    if positive_from is not None:
        return 0, f"Risk of macular edema: expected 0 to {MAX_ME_GRADE}, found {row.me_grade} ({row.image})"
    if row.me_grade <= 1:
        return row.me_grade, ""
    return 0, (
        f"Risk of macular edema: expected 0 or 1, found {row.me_grade} ({row.image}); "
        "--me-positive-from N makes graded risk binary"
    )


class NameIndex:
    """From a name in an annotations file to the file it means, built once.

    A name matches, in this order of preference: the path below the folder as written; in another case; with another
    picture ending or none; and then the same three where only one of the two paths has folders before it. So
    ``eye.PNG``, ``EYE``, ``eye`` and ``/old/place/left/eye.jpg`` all find ``left/eye.jpg``, while an exact match never
    loses to a looser one. Folders that differ make another photograph: ``right/eye.jpg`` does not find it.
    """

    def __init__(self, folder: str | Path, names: Iterable[str] | None = None) -> None:
        """Index the photographs under ``folder``, or only ``names``, which are relative to it with ``/``.

        Raises:
            UsageError: the folder cannot be listed.
        """
        self.folder = Path(folder)
        self.names = tuple(find_pictures(self.folder).names if names is None else names)
        self._levels: list[tuple[Callable[[str], str], dict[str, list[str]], dict[str, list[str]]]] = []
        for key in (_as_written, _any_case, _any_ending):
            whole: dict[str, list[str]] = {}
            ends: dict[str, list[str]] = {}
            for name in self.names:
                whole.setdefault(key(name), []).append(name)
                for end in _ends(key(name)):
                    ends.setdefault(end, []).append(name)
            self._levels.append((key, whole, ends))

    def find(self, name: str) -> str | None:
        """The file's name relative to the folder, or None where no file fits.

        Raises:
            AnnotationError: several files fit equally well.
        """
        # The name as it stands comes first: a backslash may be part of a file's name, or Windows' way to say "/".
        spellings = (name, posixpath.normpath(name.replace("\\", "/")))
        wanted = [(key(spelling), whole, ends) for key, whole, ends in self._levels for spelling in spellings]
        exact = (whole.get(path, []) for path, whole, _ in wanted)
        # A folder that differs may be another patient's: one of the two paths has to be what the other ends with.
        loose = (
            ends.get(path, []) + [f for end in _ends(path) for f in whole.get(end, ())] for path, whole, ends in wanted
        )
        for found in chain(exact, loose):
            if len(found) > 1:
                names = " and ".join(repr(candidate) for candidate in found[:3])
                raise AnnotationError(f"{name!r} in {self.folder}: expected one file, found {names}; write the ending")
            if found:
                return found[0]
        return None


def _header_faults(header: list[str]) -> list[str]:
    keys = [_column_key(column) for column in header]
    faults = []
    for column in (IMAGE_NAME, DR_GRADE, ME_GRADE):
        count = keys.count(_column_key(column))
        if count == 0:
            faults.append(f"line 1: expected a column {column!r}, found {', '.join(map(repr, header))}")
        elif count > 1:
            faults.append(f"line 1: expected one column {column!r}, found {count}")
    return faults


def _row(line: int, header: list[str], cells: list[str], faults: list[str]) -> Annotation | None:
    if len(cells) != len(header):
        faults.append(f"line {line}: expected {len(header)} columns, found {len(cells)}: {cells[0].strip()!r}")
        return None
    values = dict(zip(map(_column_key, header), (cell.strip() for cell in cells), strict=True))
    image = values[_column_key(IMAGE_NAME)]
    grades = [_grade(line, column, values[_column_key(column)], faults) for column in (DR_GRADE, ME_GRADE)]
    if not image:
        faults.append(f"line {line}: {IMAGE_NAME}: expected a name, found nothing")
    dr_grade, me_grade = grades
    if not image or dr_grade is None or me_grade is None:
        return None
    required = {_column_key(column) for column in (IMAGE_NAME, DR_GRADE, ME_GRADE)}
    extra = {name: values[_column_key(name)] for name in header if _column_key(name) not in required}
    return Annotation(line, image, dr_grade, me_grade, extra)


def _grade(line: int, column: str, text: str, faults: list[str]) -> int | None:
    # "3.0" is how pandas and spreadsheets write 3 in a column that once had a gap.
    match = re.fullmatch(r"([0-9]{1,3})(\.0+)?", text)
    if match is None:
        faults.append(f"line {line}: {column}: expected a whole number from 0, found {text!r}")
        return None
    return int(match[1])


def _column_key(column: str) -> str:
    return " ".join(column.casefold().split())


def _as_written(name: str) -> str:
    return name


def _any_case(name: str) -> str:
    # NFC: macOS stores accents decomposed, spreadsheets write them composed.
    return unicodedata.normalize("NFC", name).casefold()


def _any_ending(name: str) -> str:
    return _any_case(os.path.splitext(name)[0] if is_picture(name) else name)  # noqa: PTH122 - as in folder.py


def _ends(path: str) -> list[str]:
    """What is left of a path without its first folder, its first two, and so on."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]

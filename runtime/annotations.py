"""The grades that human readers gave: the only reader of annotations.csv, and how a name in it leads to a file."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .contract import MAX_DR_GRADE
from .errors import AnnotationError
from .folder import UTF16_MARKS, find_pictures, is_picture
from .wording import counted

ANNOTATIONS_FILE, IMAGES_DIR = "annotations.csv", "images"
"""In the folder of a split: the grades, and beside them the photographs."""

IMAGE_NAME, DR_GRADE, ME_GRADE = "Image name", "Retinopathy grade", "Risk of macular edema"
"""The required columns (IDRiD's spelling); case, extra blanks and a byte order mark are ignored."""

MAX_ME_GRADE = 3
"""Highest grade of the International Clinical Diabetic Macular Edema scale (Wilkinson et al., Ophthalmology 2003);
IDRiD grades up to 2."""

NOT_GRADED = "NA"
"""Written in place of a grade that nobody gave, as R and pandas do; an empty cell, which may be a slip, is a fault."""

MISSING = {"na", "n/a", "nan", "<na>", "none", "null"}
"""What R, spreadsheets and pandas write in place of a value that is not known, in any case."""

CAPTION, SOURCE, PATIENT = OPTIONAL = ("Caption", "Source", "Patient")
"""Further columns that training reads, if they are there."""
MAX_FAULTS_SHOWN = 100
"""Faults listed in one message; the rest are only counted."""


@dataclass(frozen=True)
class Annotation:
    """What one row says about one photograph; one of the two grades, but not both, may be None for ``NOT_GRADED``."""

    line: int
    """Line of the file on which the row starts, counted from 1; blank lines count too."""
    image: str
    """The name as written, without surrounding blanks."""
    dr_grade: int | None
    """At least 0; the caller checks the upper limit."""
    me_grade: int | None
    """At least 0. IDRiD has grades 0, 1, 2 and this project's data 0, 1: the caller checks which values it accepts."""
    extra: Mapping[str, str]
    """Every other column by its name as written, without surrounding blanks (Caption, Source, Patient, ...)."""


def scan_annotations(path: Path) -> tuple[list[Annotation], list[str]]:
    """Read the valid rows of an annotations file and list the faults of the others, without raising.

    For callers that add faults of their own before they raise a single error (``fault_report`` composes its message).

    Returns:
        the valid rows, and one line for each fault, such as ``line 7: Retinopathy grade: expected ..., found 'x'``.
    """
    read, broken = scan_rows(path)
    rows: list[Annotation] = []
    faults: list[str] = []
    first_line: dict[str, int] = {}
    header: list[str] | None = None
    for line, cells in read:
        if header is None:
            header = cells
            if faults := _header_faults(line, header):
                return [], faults
            continue
        row = _row(line, header, cells, faults)
        if row is None:
            continue
        if row.image in first_line:
            faults.append(f"line {line}: {IMAGE_NAME}: {row.image!r} is already on line {first_line[row.image]}")
            continue
        first_line[row.image] = line
        rows.append(row)
    if broken:
        faults.append(broken)
    if not rows and not faults:
        faults.append("expected a header and at least one row, found no row")
    return rows, faults


def scan_rows(path: Path) -> tuple[list[tuple[int, list[str]]], str]:
    """Read a table as spreadsheets write it, with columns separated by commas, semicolons or tabs.

    Returns:
        the rows that are not blank, the header first, each as the line on which it starts and its cells without blanks
        around them; and the fault that ends the reading, or an empty string.
    """
    text, fault = _text(path)
    if fault:
        return [], fault
    # Excel's own mark of the separator, which it hides.
    text = re.sub(r"^sep=[,;\t]\r?\n", "\n", text, flags=re.IGNORECASE)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if any(cell.strip() for cell in cells):
                rows.append((start, [cell.strip() for cell in cells]))
    except csv.Error as err:
        unclosed = str(err) == "unexpected end of data"
        found = "a quotation mark that is not closed" if unclosed else str(err)
        return rows, f"line {line}: expected comma-separated values, found: {found}"
    return rows, ""


def column_place(column: str, header: Sequence[str]) -> int | None:
    """Where a column is in a header, in which case and extra blanks are ignored; None if it is not there."""
    keys = [_column_key(name) for name in header]
    return keys.index(_column_key(column)) if _column_key(column) in keys else None


def fault_report(path: Path, faults: list[str], so: str = "fix and run again") -> str:
    """One message for all faults of a file or folder.

    Args:
        path: the file or folder, which the message starts with.
        faults: one line each; those after the first ``MAX_FAULTS_SHOWN`` are only counted.
        so: what the user should do, or what was done about the faults.
    """
    shown = faults[:MAX_FAULTS_SHOWN]
    left = len(faults) - len(shown)
    head = f"{path}: {counted(len(faults), 'fault')}; {so}:"
    return "\n  ".join([head, *shown, *([f"... and {left} more"] if left else [])])


def dr_fault(row: Annotation) -> str:
    """The fault in a row's DR grade; empty if there is none."""
    if row.dr_grade is None or row.dr_grade <= MAX_DR_GRADE:
        return ""
    return f"{DR_GRADE}: expected 0 to {MAX_DR_GRADE}, found {row.dr_grade} ({row.image})"


def me_label(row: Annotation, positive_from: int | None) -> tuple[int | None, str]:
    """The binary ME label of a row, and the fault in its ME grade.

    Args:
        row: its ME grade should be 0 or 1, or with ``positive_from`` 0 to 3.
        positive_from: grades of this value and above mean risk; None if the grade is the label itself.

    Returns:
        the label, 0 or 1 or None as in the row, and an empty string; or None and a description of the fault.
    """
    if row.me_grade is None:
        return None, ""
    if positive_from is not None and row.me_grade <= MAX_ME_GRADE:
        return int(row.me_grade >= positive_from), ""
    if positive_from is not None:
        return None, f"{ME_GRADE}: expected 0 to {MAX_ME_GRADE}, found {row.me_grade} ({row.image})"
    if row.me_grade <= 1:
        return row.me_grade, ""
    return None, (
        f"{ME_GRADE}: expected 0 or 1, found {row.me_grade} ({row.image}); "
        "--me-positive-from N makes graded risk binary"
    )


class NameIndex:
    """An index from the names in an annotations file to the photographs they mean.

    A name is compared with the paths relative to the folder: as written, then ignoring case, then ignoring a picture's
    extension as well. If none of these matches, the same three comparisons are made again, and it is enough that one
    path ends with the other. So ``eye.PNG``, ``EYE``, ``eye`` and ``/old/place/left/eye.jpg`` all find
    ``left/eye.jpg``, while an exact match never loses to a looser one. Paths in different folders mean different
    photographs: ``right/eye.jpg`` does not find ``left/eye.jpg``, nor ``eye.jpg`` in a folder called ``left``. Only the
    folders of an absolute path, or of an address, may be any, since the photographs may have been moved.
    """

    def __init__(self, folder: str | Path, names: Iterable[str] | None = None) -> None:
        """Index the photographs under ``folder``, or only ``names``, which are relative to it and separated by ``/``.

        Raises:
            UsageError: the folder cannot be listed.
        """
        self.folder = Path(folder)
        self.names = tuple(find_pictures(self.folder).names if names is None else names)
        self._here = [_any_case(Path(read(self.folder)).as_posix()) for read in (os.path.abspath, os.path.realpath)]
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
        """The matching file's name relative to the folder, or None if no file matches.

        Raises:
            AnnotationError: several files match equally well.
        """
        # The name as written comes first: a backslash may be part of a file's name, or Windows' separator.
        spellings = (name, posixpath.normpath(name.replace("\\", "/")))
        wanted = [(key(spelling), whole, ends) for key, whole, ends in self._levels for spelling in spellings]
        exact = (whole.get(path, []) for path, whole, _ in wanted)
        # A different folder may be a different patient's, so one path must be the end of the other.
        loose = (
            ends.get(path, [])
            + [f for end in _ends(path) if self._leads_here(path.removesuffix(end)) for f in whole.get(end, ())]
            for path, whole, ends in wanted
        )
        for found in chain(exact, loose):
            if len(found) > 1:
                names = " and ".join(repr(candidate) for candidate in found[:3])
                raise AnnotationError(f"{name!r} in {self.folder}: expected one file, found {names}; write one of them")
            if found:
                return found[0]
        return None

    def _leads_here(self, folders: str) -> bool:
        """Whether a name may call the photographs' folder ``folders``, such as ``left/`` or ``/old/place/``."""
        if re.match(r"/|~|[A-Za-z][A-Za-z0-9+.-]*:", folders):  # absolute, of a home, of a drive or an address
            return True
        below = _any_case(re.sub(r"^(\.\./)+", "", folders))
        return bool(below) and any(f"{here}/".endswith(f"/{below}") for here in self._here)


def mentioned(path: Path, index: NameIndex) -> set[str]:
    """The files that any cell of an annotations file names; all of the index if it cannot be read.

    So that a photograph whose row has a fault is not reported as unlisted as well.
    """
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


def _text(path: Path) -> tuple[str, str]:
    """The text of an annotations file; or an empty one, and why there is none."""
    try:
        content = path.read_bytes()
    except OSError as err:
        return "", f"cannot be read: {err.strerror}"
    if content.startswith(b"PK\x03\x04"):
        return "", 'expected UTF-8 text, found an Excel workbook; save it as "CSV UTF-8"'
    if content.startswith(UTF16_MARKS):
        return "", 'expected UTF-8 text, found UTF-16; save it as "CSV UTF-8"'
    try:
        return content.decode("utf-8-sig"), ""
    except UnicodeDecodeError as err:
        return "", (
            f"expected UTF-8 text, found byte {err.object[err.start]:#04x} at {err.start}; "
            'spreadsheets save it as "CSV UTF-8"'
        )


def _separator(text: str) -> str:
    """What separates a table's columns: in locales where the comma is the decimal separator, spreadsheets write ';'.

    The name of a column may hold any of the three.
    """
    header_line = text.lstrip().split("\n", 1)[0]

    def fit(mark: str) -> tuple[bool, int]:
        header = next(csv.reader([header_line], delimiter=mark))
        return column_place(IMAGE_NAME, header) is not None, len(header)

    try:
        return max(",;\t", key=fit)
    except csv.Error:  # of a cell too long, which the reading reports, or old Macs' line ends
        return max(",;\t", key=header_line.count)


def _header_faults(line: int, header: list[str]) -> list[str]:
    keys = [_column_key(column) for column in header]
    faults = []
    for column in (IMAGE_NAME, DR_GRADE, ME_GRADE):
        count = keys.count(_column_key(column))
        if count == 0:
            found = ", ".join(map(repr, header))
            absent = "" if column == IMAGE_NAME else f", or add it with {NOT_GRADED} in every row if there is none"
            faults.append(
                f"line {line}: expected a column {column!r}, found {found}; rename the one that holds it{absent}"
            )
    for column in (IMAGE_NAME, DR_GRADE, ME_GRADE, *OPTIONAL):
        if (count := keys.count(_column_key(column))) > 1:
            faults.append(f"line {line}: expected one column {column!r}, found {count}")
    return faults


def _decoded(content: bytes) -> str:
    """Other encodings than UTF-8 are refused, but names in those of Windows can be read."""
    if content.startswith(UTF16_MARKS):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _row(line: int, header: list[str], cells: list[str], faults: list[str]) -> Annotation | None:
    if len(cells) != len(header):
        faults.append(f"line {line}: expected {len(header)} columns, found {len(cells)}: {cells[0].strip()!r}")
        return None
    values = dict(zip(map(_column_key, header), (cell.strip() for cell in cells), strict=True))
    image = values[_column_key(IMAGE_NAME)]
    before = len(faults)
    dr_grade, me_grade = (_grade(line, column, values[_column_key(column)], faults) for column in (DR_GRADE, ME_GRADE))
    if not image:
        faults.append(f"line {line}: {IMAGE_NAME}: expected a name, found nothing")
    if len(faults) > before:
        return None
    if dr_grade is None and me_grade is None:
        faults.append(f"line {line}: expected a grade, found {NOT_GRADED} twice; leave {image!r} out, row and file")
        return None
    required = {_column_key(column) for column in (IMAGE_NAME, DR_GRADE, ME_GRADE)}
    extra = {name: values[_column_key(name)] for name in header if _column_key(name) not in required}
    return Annotation(line, image, dr_grade, me_grade, extra)


def _grade(line: int, column: str, text: str, faults: list[str]) -> int | None:
    if text.upper() == NOT_GRADED:
        return None
    # pandas and spreadsheets write 3 as "3.0", or "3,0", in a column that once had an empty cell.
    match = re.fullmatch(r"([0-9]{1,3})([.,]0+)?", text)
    if match is None:
        what = _what_to_write(column, text)
        faults.append(f"line {line}: {column}: expected a whole number from 0, found {text!r}{what}")
        return None
    return int(match[1])


def _what_to_write(column: str, text: str) -> str:
    """What to write in place of a text that is no grade, to follow the fault."""
    if re.search(r"[0-9]", text):
        return ""
    if text.casefold() in ("yes", "no", "true", "false", "y", "n"):
        return "; write 1 for yes and 0 for no" if column == ME_GRADE else f"; write the grade, 0 to {MAX_DR_GRADE}"
    if text.casefold() in {*MISSING, "x"} or not any(char.isalpha() for char in text):
        return f"; write {NOT_GRADED} where it was not graded"
    # Such as "mild", which is a grade, but not a number.
    return f"; write the grade's number, or {NOT_GRADED} where it was not graded"


def _column_key(column: str) -> str:
    return " ".join(column.casefold().split())


def _as_written(name: str) -> str:
    return name


def _any_case(name: str) -> str:
    # NFC, because macOS decomposes accented letters in file names and spreadsheets write them composed.
    return unicodedata.normalize("NFC", name).casefold()


def _any_ending(name: str) -> str:
    return _any_case(os.path.splitext(name)[0] if is_picture(name) else name)  # noqa: PTH122 - as in folder.py


def _ends(path: str) -> list[str]:
    """A path without its first folder, without its first two, and so on."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]

"""test_predictions.csv: its columns, its cells, and a file that appears only when it is complete."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .annotations import IMAGE_NAME, Annotation
from .errors import OutputError
from .prediction import Prediction

TABLE_NAME = "test_predictions.csv"
"""Default name of the table, as the original notebook called it."""
NOTEBOOK_COLUMNS = (
    IMAGE_NAME,
    "Pred DR grade (orig)",
    "True DR grade (orig)",
    "Pred ME risk",
    "True ME risk",
)
"""The columns of the original notebook's file, which other programs read by name."""
REFERRAL_COLUMNS = ("referable", "referable_prob", "referable_me")
"""Optional columns at the end: 1 if DR is referable, the probability of that, and 1 if the ME risk is referable."""
NOVELTY_COLUMNS = ("novelty", "unfamiliar")
"""Optional columns after those: how unlike the model's training photographs this one is, and 1 if it is unfamiliar."""
PARTIAL = ".partial"
"""Appended to the name of a table that is not complete yet."""


@dataclass(frozen=True)
class Row:
    """One photograph of the table: a prediction, or the reason why there is none."""

    name: str
    """Relative to the folder scored, separated by ``/``; bytes that are not UTF-8 are kept as surrogates."""
    prediction: Prediction | None
    error: str = ""
    """Without the file's name; empty if there is a prediction."""


def columns(grades: Sequence[int], *, referral: bool = False, novelty: bool = False) -> list[str]:
    """The header for a model with these original DR grades.

    ``referral`` adds the referral decisions, ``novelty`` how unlike the training photographs each one is.
    """
    header = [*NOTEBOOK_COLUMNS, *(f"dr_prob_{grade}" for grade in grades), "me_prob", "status", "error"]
    return [*header, *(REFERRAL_COLUMNS if referral else ()), *(NOVELTY_COLUMNS if novelty else ())]


def cells(
    row: Row,
    grades: Sequence[int],
    truth: Annotation | None = None,
    *,
    referral: bool = False,
    novelty: bool = False,
) -> list[str]:
    """The cells of one row, for the header of ``columns``.

    Probabilities have six decimals, so that equal answers are equal bytes.
    """
    true_dr, true_me = ("", "") if truth is None else (_cell(truth.dr_grade), _cell(truth.me_grade))
    p = row.prediction
    if p is None:
        line = [row.name, "", true_dr, "", true_me, *("" for _ in grades), "", "error", row.error]
        referred, novel = ["" for _ in REFERRAL_COLUMNS], ["" for _ in NOVELTY_COLUMNS]
    else:
        probs = [f"{p.dr_probs[grade]:.6f}" for grade in grades]
        line = [row.name, str(p.grade), true_dr, str(p.me_risk), true_me, *probs, f"{p.me_prob:.6f}", "ok", ""]
        referred = [str(int(p.referable)), f"{p.referable_prob:.6f}", str(int(p.referable_me))]
        novel = ["", ""] if p.novelty is None else [f"{p.novelty:.6f}", "1" if p.unfamiliar else "0"]
    return [*line, *(referred if referral else ()), *(novel if novelty else ())]


def record(row: Row, truth: Annotation | None = None) -> dict[str, Any]:
    """The row as a JSON object, always with the referral decisions and novelty; unknown values are left out.

    Probabilities and novelty are rounded to six decimals. The fields are those of ``ScoredPhotograph`` without
    ``maps``, and with ``truth`` also ``true_dr_grade`` and ``true_me_risk``.
    """
    line: dict[str, Any] = {"image": utf8(row.name), "status": "ok" if row.prediction else "error", "error": row.error}
    if row.prediction is not None:
        p = row.prediction
        line |= {
            "dr_grade": p.grade,
            "dr_probs": {str(grade): round(prob, 6) for grade, prob in p.dr_probs.items()},
            "me_risk": p.me_risk,
            "me_prob": round(p.me_prob, 6),
            "referable": p.referable,
            "referable_prob": round(p.referable_prob, 6),
            "referable_me": p.referable_me,
        }
        if p.novelty is not None:
            line |= {"novelty": round(p.novelty, 6), "unfamiliar": p.unfamiliar}
    if truth is not None:
        known = {"true_dr_grade": truth.dr_grade, "true_me_risk": truth.me_grade}
        line |= {name: grade for name, grade in known.items() if grade is not None}
    return line


def _cell(grade: int | None) -> str:
    return "" if grade is None else str(grade)


def utf8(name: str) -> str:
    r"""A file's name as valid UTF-8 text: a byte that is not UTF-8, such as 0xff, is written as ``\udcff``."""
    return name.encode("utf-8", "backslashreplace").decode()


class Table:
    """The table's file, as a context manager.

    It gets its name only if the block ends without an exception; until then it is ``*.partial``.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        """Begin the table.

        Raises (here, in ``write`` and at the end of the block):
            OutputError: the folder is not writable, or the disk is full.
        """
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL)
        with self._telling():
            self._file = self._partial.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self.write(header)

    def write(self, line: Sequence[str]) -> None:
        """Add a row; a name that is not UTF-8 is written as by ``utf8``."""
        with self._telling():
            self._file.write(_csv_line(line))

    def __enter__(self) -> Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._telling(), self._file:
            self._file.flush()
            # Synced before the rename, or a power cut could leave an empty file under the final name.
            os.fsync(self._file.fileno())
        if kind is None:
            with self._telling():
                self._partial.replace(self._path)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise OutputError(f"{self._partial}: cannot be written: {err.strerror}") from None


def _csv_line(line: Sequence[str]) -> str:
    # Lines end in "\n" like the notebook's. The csv writer still gets "\r\n", because otherwise it would not quote a
    # carriage return in a name, and readers would see two rows.
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(line)
    return buffer.getvalue().removesuffix("\r\n") + "\n"

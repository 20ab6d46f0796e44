"""test_predictions.csv: its columns, its cells, and a file that appears only when it is whole."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .annotations import Annotation
from .errors import OutputError
from .model import Prediction

NOTEBOOK_COLUMNS = (
    "Image name",
    "Pred DR grade (orig)",
    "True DR grade (orig)",
    "Pred ME risk",
    "True ME risk",
)
"""The columns of the original notebook's file, which other programs read by name."""
REFERRAL_COLUMNS = ("referable", "referable_prob", "referable_me")
"""On demand, after all others: 1 where DR is to be referred, its probability, and 1 where ME is."""
PARTIAL = ".partial"
"""After the name of a table that is not whole yet."""


@dataclass(frozen=True)
class Row:
    """One photograph of the table: a prediction, or the reason why there is none."""

    name: str
    """Relative to the folder scored, with ``/``; holds surrogates where the file's name is not UTF-8."""
    prediction: Prediction | None
    error: str = ""


def columns(grades: Sequence[int], *, referral: bool = False) -> list[str]:
    """The header for a model of these original DR grades; ``referral`` adds what its thresholds decide."""
    header = [*NOTEBOOK_COLUMNS, *(f"dr_prob_{grade}" for grade in grades), "me_prob", "status", "error"]
    return [*header, *REFERRAL_COLUMNS] if referral else header


def cells(row: Row, grades: Sequence[int], truth: Annotation | None = None, *, referral: bool = False) -> list[str]:
    """One line of the table. Probabilities have six decimals, so that equal answers are equal bytes."""
    true_dr, true_me = ("", "") if truth is None else (str(truth.dr_grade), str(truth.me_grade))
    p = row.prediction
    if p is None:
        line = [row.name, "", true_dr, "", true_me, *("" for _ in grades), "", "error", row.error]
        referred = ["" for _ in REFERRAL_COLUMNS]
    else:
        probs = [f"{p.dr_probs[grade]:.6f}" for grade in grades]
        line = [row.name, str(p.grade), true_dr, str(p.me_risk), true_me, *probs, f"{p.me_prob:.6f}", "ok", ""]
        referred = [str(int(p.referable)), f"{p.referable_prob:.6f}", str(int(p.referable_me))]
    return [*line, *referred] if referral else line


def record(row: Row, truth: Annotation | None = None) -> dict[str, Any]:
    """The same line as JSON has it, with the referable flag besides; what is not known is left out."""
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
    if truth is not None:
        line |= {"true_dr_grade": truth.dr_grade, "true_me_risk": truth.me_grade}
    return line


def utf8(name: str) -> str:
    r"""A file's name as UTF-8 can hold it: a byte that is none, such as 0xff, is written ``\udcff``."""
    return name.encode("utf-8", "backslashreplace").decode()


class Table:
    """The file, as a context: it appears under its name only if the block ends well; until then it is ``*.partial``."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        """Begin the table.

        Raises (here, in ``write`` and at the end of the block):
            OutputError: the folder cannot be written, or the disk is full.
        """
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL)
        with self._telling():
            self._file = self._partial.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self.write(header)

    def write(self, line: Sequence[str]) -> None:
        """Add a line; a name that UTF-8 cannot hold is written as by ``utf8``."""
        with self._telling():
            self._file.write(_csv_line(line))

    def __enter__(self) -> Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._telling(), self._file:
            self._file.flush()
            # On the disk itself before the rename: else a power cut could leave an empty file under the final name.
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
    # Lines end in "\n" as the notebook's do. The writer is still told "\r\n", or it would leave a carriage return in a
    # name unquoted, and readers would see two rows.
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(line)
    return buffer.getvalue().removesuffix("\r\n") + "\n"

"""test_predictions.csv: its columns, its cells, and a file that appears only when it is whole."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Row:
    """One photograph of the table: a prediction, or the reason why there is none."""

    name: str
    """Relative to the folder scored, with ``/``; holds surrogates where the file's name is not UTF-8."""
    prediction: Prediction | None
    error: str = ""


def columns(grades: Sequence[int]) -> list[str]:
    """The header for a model of these original DR grades."""
    return [*NOTEBOOK_COLUMNS, *(f"dr_prob_{grade}" for grade in grades), "me_prob", "status", "error"]


def cells(row: Row, grades: Sequence[int], truth: Annotation | None = None) -> list[str]:
    """One line of the table. Probabilities have six decimals, so that equal answers are equal bytes."""
    true_dr, true_me = ("", "") if truth is None else (str(truth.dr_grade), str(truth.me_grade))
    p = row.prediction
    if p is None:
        return [row.name, "", true_dr, "", true_me, *("" for _ in grades), "", "error", row.error]
    probs = [f"{p.dr_probs[grade]:.6f}" for grade in grades]
    return [row.name, str(p.grade), true_dr, str(p.me_risk), true_me, *probs, f"{p.me_prob:.6f}", "ok", ""]


def utf8(name: str) -> str:
    r"""A file's name as UTF-8 can hold it: a byte that is none, such as 0xff, is written ``\udcff``."""
    return name.encode("utf-8", "backslashreplace").decode()


class Table:
    """Takes the lines in order; made by ``open_table``."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self._path = path
        self._file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(header)

    def write(self, line: Sequence[str]) -> None:
        self._writer.writerow(line)

    def close(self) -> None:
        """Bring everything to the disk itself, so that a rename never publishes a file that a power cut empties."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        self._file.close()


@contextmanager
def open_table(path: Path, header: Sequence[str]) -> Iterator[Table]:
    """A table that appears under ``path`` only if the block ends well; until then it is ``path`` + ``.partial``.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        table = Table(partial, header)
        try:
            yield table
        except BaseException:
            table.abandon()
            raise
        table.close()
        partial.replace(path)
    except OSError as err:
        raise OutputError(f"{partial}: cannot be written: {err.strerror}") from None

"""A folder to ordered rows: on every core, resumable, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MissingExtraError, OutputError, PictureError
from .folder import Listing
from .journal import Journal, Stamp, stamp
from .model import RetinaModel
from .table import Row
from .workers import ordered_map

BYTES_PER_ROW = 600
"""Room that a row takes in the journal and the table together, with a long name."""


@dataclass(frozen=True)
class _Outcome:
    row: Row
    stamp: Stamp | None
    known: bool


def score_rows(model: RetinaModel, listing: Listing, journal: Journal, workers: int) -> Iterator[tuple[Row, bool]]:
    """Yield each photograph's row in the order of the listing, and whether an earlier run had it already.

    Each worker decodes and predicts one photograph at a time on the shared session: as fast as batches where the
    network takes most of the time, faster where decoding does, and nothing to tune.

    Raises:
        OutputError: the journal cannot be written any more. What it holds stays.
        ModelFileError: the model answers with something that is no probability.
    """

    def work(name: str) -> _Outcome:
        path = listing.root / name
        # Taken before the file is read: a change in between is then noticed by the next run, not missed.
        before = stamp(path)
        known = journal.row(name, before)
        if known is not None:
            return _Outcome(known, before, known=True)
        return _Outcome(score_one(model, name, path), before, known=False)

    for outcome in ordered_map(work, listing.names, workers):
        if not outcome.known:
            journal.add(outcome.row, outcome.stamp)
        yield outcome.row, outcome.known


def score_one(model: RetinaModel, name: str, path: Path) -> Row:
    """The row of one file, whatever it is."""
    try:
        return Row(name, model.predict(path, maps=False))
    except PictureError as err:
        return Row(name, None, err.reason)
    except MissingExtraError as err:
        return Row(name, None, str(err).split("\n", 1)[0])


def depends_on(model: RetinaModel, *, exact: bool, provider: str) -> dict[str, Any]:
    """All that decides a row besides the photograph: the journal is dropped when any of it changes."""
    from importlib.metadata import version

    packages = ("retina-edge", "onnxruntime", "pillow", "numpy")
    return {
        "model": model.sha256,
        "exact": exact,
        "provider": provider,
        "versions": {package: version(package) for package in packages},
    }


def require_room(out: Path, rows: int) -> None:
    """Refuse an output that cannot be written, before any work.

    Raises:
        OutputError: no such folder, a folder in the file's place, or less room than the rows will take.
    """
    if out.is_dir():
        raise OutputError(f"{out}: expected a file to write, found a folder")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: expected an existing folder to write to, found none: {out.absolute().parent}")
    needed, free = rows * BYTES_PER_ROW, shutil.disk_usage(out.absolute().parent).free
    if free < needed:
        raise OutputError(f"{out}: expected {needed} bytes of room for {rows} rows, found {free}")

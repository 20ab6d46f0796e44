"""A folder to ordered rows: on every core, resumable, in bounded memory."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contract import HEADS
from .errors import MissingExtraError, OutputError, PictureError, UsageError
from .folder import Listing
from .journal import ENDING as JOURNAL
from .journal import Journal, Stamp, stamp
from .model import Prediction, RetinaModel
from .table import PARTIAL, Row
from .workers import ordered_map

BYTES_PER_ROW = 600
"""Room that a row takes in the journal and the table together, with a long name."""


@dataclass(frozen=True)
class _Outcome:
    row: Row
    stamp: Stamp | None
    known: bool


def score_rows(
    model: RetinaModel, listing: Listing, journal: Journal, workers: int, overlays: Path | None = None
) -> Iterator[tuple[Row, bool]]:
    """Yield each photograph's row in the order of the listing, and whether an earlier run had it already.

    With ``overlays``, a folder, also draws where each answer comes from: see ``draw_overlays``.

    Each worker decodes and predicts one photograph at a time on the shared session: as fast as batches where the
    network takes most of the time, faster where decoding does, and nothing to tune.

    Raises:
        OutputError: the journal or an overlay cannot be written any more. What is there stays.
        ModelFileError: the model answers with something that is no probability.
    """

    def work(name: str) -> _Outcome:
        path = listing.root / name
        # Taken before the file is read: a change in between is then noticed by the next run, not missed.
        before = stamp(path)
        known = journal.row(name, before)
        if known is not None and (overlays is None or known.prediction is None or _is_drawn(overlays, name)):
            return _Outcome(known, before, known=True)
        return _Outcome(score_one(model, name, path, overlays), before, known=False)

    for outcome in ordered_map(work, listing.names, workers):
        if not outcome.known:
            journal.add(outcome.row, outcome.stamp)
        yield outcome.row, outcome.known


def score_one(model: RetinaModel, name: str, path: Path, overlays: Path | None = None) -> Row:
    """The row of one file, whatever it is."""
    try:
        prediction = model.predict(path, maps=overlays is not None)
        if overlays is not None:
            draw_overlays(model, prediction, path, overlay_base(overlays, name))
        return Row(name, prediction)
    except PictureError as err:
        return Row(name, None, err.reason)
    except MissingExtraError as err:
        return Row(name, None, str(err).split("\n", 1)[0])


def draw_overlays(model: RetinaModel, prediction: Prediction, path: Path, base: Path) -> None:
    """Write ``<base>_dr.jpg`` and ``<base>_me.jpg``: the photograph at its own size with a prediction's maps on it.

    One that cannot be drawn under this name or in this format is logged, and the work goes on.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    from .field import Field
    from .overlay import head_maps, write_overlays
    from .picture import load

    # Decoded whole once more: the prediction may have been made on fewer pixels.
    photograph = load(path)
    field = Field.find(photograph, model.contract.preprocessing)
    try:
        write_overlays(base, photograph, field, head_maps(prediction).values())
    except OutputError as err:
        why = err.__cause__
        # Pillow's encoder, past 65,500 pixels a side, gives no number.
        if not isinstance(why, OSError) or why.errno not in (None, errno.ENAMETOOLONG):
            raise
        logging.getLogger(__name__).warning("%s: overlays cannot be written: %s", base, why.strerror or why)


def overlay_base(overlays: Path, name: str) -> Path:
    """Where a photograph's overlays go, but for their ending: below ``overlays``, whatever its name leads to."""
    path = Path(name)
    return overlays.joinpath(*("__" if part == ".." else part for part in path.relative_to(path.anchor).parts))


def _is_drawn(overlays: Path, name: str) -> bool:
    from .overlay import overlay_path

    return all(os.path.isfile(overlay_path(overlay_base(overlays, name), head)) for head in HEADS)


def require_maps(model: RetinaModel, listing: Listing, overlays: Path) -> None:
    """Refuse, before any work, overlays that cannot be drawn or would be taken for photographs.

    Raises:
        UsageError: the model file has no maps, two photographs would have the same overlays, or their folder lies in
            one that is scored.
        OutputError: the folder cannot be made or written.
    """
    if not model.contract.explain:
        raise UsageError(
            f"--overlays {overlays}: expected a model file with Grad-CAM maps, found {model.path} without. "
            "Make one with  retina-export --explain"
        )
    for folder in listing.folders:
        if overlays.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"--overlays {overlays}: expected a folder outside {folder}, or its pictures would be scored next time"
            )
    base_of: dict[Path, str] = {}
    for name in listing.names:
        other = base_of.setdefault(overlay_base(overlays, name), name)
        if other != name:
            raise UsageError(
                f"--overlays {overlays}: {other} and {name} would be drawn into one file; score them apart"
            )
    try:
        overlays.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"--overlays {overlays}: cannot be made: {err.strerror}") from None
    if not os.access(overlays, os.W_OK):
        raise OutputError(f"--overlays {overlays}: expected a folder that can be written, found one that cannot")


def depends_on(model: RetinaModel, *, exact: bool, provider: str, overlays: Path | None) -> dict[str, Any]:
    """All that decides a row besides the photograph, and where it was drawn: the journal is dropped when any of it
    changes, or a drawing of what the file was before would be taken for its own.
    """
    from importlib.metadata import version

    packages = ("retina-edge", "onnxruntime", "pillow", "numpy")
    return {
        "model": model.sha256,
        "exact": exact,
        "provider": provider,
        "overlays": overlays and os.fspath(overlays.resolve()),
        "versions": {package: version(package) for package in packages},
    }


def require_room(out: Path, rows: int, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output that cannot be written or would take the place of what is read, before any work.

    What stands beside it until the table is complete (``*.journal``, ``*.partial``) must not take such a place either.

    Raises:
        OutputError: no such folder, something else than a file in its place, one of ``inputs``, or less room than the
            rows will take.
    """
    if os.path.isdir(out):
        raise OutputError(f"{out}: expected a file to write, found a folder")
    if os.path.exists(out) and not os.path.isfile(out):
        raise OutputError(f"{out}: expected a file to write, found a device or a pipe; --json writes to a pipe")
    places = {place.name: place for place in (out, *(out.with_name(out.name + end) for end in (JOURNAL, PARTIAL)))}
    for path in inputs:
        place = places.get(path.name)
        if place is not None and os.path.exists(path) and os.path.exists(place) and path.samefile(place):
            raise OutputError(f"{place}: expected a file to write, found one that is to be read; name another --out")
    if not os.path.isdir(out.absolute().parent):
        raise OutputError(f"{out}: expected an existing folder to write to, found none: {out.absolute().parent}")
    needed, free = rows * BYTES_PER_ROW, shutil.disk_usage(out.absolute().parent).free
    if free < needed:
        raise OutputError(f"{out}: expected {needed} bytes of room for {rows} rows, found {free}")

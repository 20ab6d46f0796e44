"""Turns a folder into ordered rows: on every core, resumable, in bounded memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .contract import HEADS
from .errors import OutputError, PictureError, UsageError
from .file_state import Stamp, stamp
from .folder import Listing
from .formats import NO_MEMORY
from .journal import Journal
from .model import RetinaModel
from .output_file import require_folder
from .picture import load
from .prediction import Prediction
from .table import Row
from .versions import decoder_versions
from .workers import ordered_map


def score_rows(
    model: RetinaModel, listing: Listing, journal: Journal, workers: int, overlays: Path | None = None
) -> Iterator[tuple[Row, bool]]:
    """Yield each photograph's row in the order of the listing, and whether it comes from an earlier run.

    With ``overlays``, a folder, also draws the Grad-CAM maps: see ``draw_overlays``.

    Each worker decodes and predicts one photograph at a time on the shared session. That is as fast as batches if the
    network takes most of the time, faster if decoding does, and leaves nothing to tune.

    Raises:
        OutputError: the journal or an overlay can no longer be written. What was written so far is kept.
        ModelFileError: the model's output is not finite.
    """

    def work(name: str) -> tuple[Row, Stamp | None, bool]:
        path = listing.root / name
        # Taken before the file is read, so that the next run notices a change in between.
        before = stamp(path)
        row = journal.row(name, before)
        if row is not None and (overlays is None or is_drawn(overlays, name)):
            return row, before, True
        return make_row(model, name, path, overlays), before, False

    for row, before, known in ordered_map(work, listing.names, workers):
        if not known:
            journal.add(row, before)
        yield row, known


def rows_at_hand(listing: Listing, journal: Journal) -> int:
    """How many photographs of the listing have a row in the journal and have not changed since."""
    names = journal.names & set(listing.names)
    return sum(journal.row(name, stamp(listing.root / name)) is not None for name in names)


def make_row(model: RetinaModel, name: str, path: Path, overlays: Path | None = None) -> Row:
    """The row of one file; for an unreadable one, with the reason instead of a prediction, and without overlays.

    Raises:
        OutputError: an overlay cannot be written, or a former one not be removed.
        ModelFileError: the model's output is not finite.
    """
    try:
        prediction = model.predict(path, maps=overlays is not None)
        if overlays is not None:
            draw_overlays(model, prediction, path, overlay_base(overlays, name))
        return Row(name, prediction)
    except PictureError as err:
        reason = err.reason
    except MemoryError:  # of an overlay: the decoder reports its own
        reason = NO_MEMORY
    if overlays is not None:
        _remove_overlays(overlays, name)
    return Row(name, None, reason)


def draw_overlays(model: RetinaModel, prediction: Prediction, path: Path, base: Path) -> None:
    """Write ``<base>_dr.jpg`` and ``<base>_me.jpg``: the photograph at full size with a prediction's maps drawn on it.

    If the disk refuses the name, or JPEG so large a photograph, this is logged and the work continues.

    Raises:
        PictureError: the photograph cannot be decoded.
        OutputError: the folder is not writable or the disk is full.
    """
    from .field import LitField
    from .image_file import fault_of_picture
    from .overlay import head_maps, write_overlays

    # Decoded again at full size, because the prediction may have been made at reduced size.
    photograph = load(path)
    field = LitField.find(photograph, model.contract.preprocessing)
    try:
        write_overlays(base, photograph, field, head_maps(prediction).values())
    except OutputError as err:
        if not (fault := fault_of_picture(err)):
            raise
        logging.getLogger(__name__).warning("%s: overlays cannot be written: %s", base, fault)


def overlay_base(overlays: Path, name: str) -> Path:
    """The path that the names of a photograph's overlays begin with.

    It is always below ``overlays``, even if ``name`` is absolute or contains ``..``.
    """
    path = Path(name)
    return overlays.joinpath(*("__" if part == ".." else part for part in path.relative_to(path.anchor).parts))


def is_drawn(overlays: Path, name: str) -> bool:
    """Whether a photograph's overlays are there."""
    return all(os.path.isfile(path) for path in _overlay_paths(overlays, name))


def _remove_overlays(overlays: Path, name: str) -> None:
    """Those that an earlier run drew of another photograph under this name."""
    for path in _overlay_paths(overlays, name):
        if os.path.isfile(path):
            try:
                path.unlink(missing_ok=True)
            except OSError as err:
                raise OutputError(f"{path}: cannot be removed, but {name} can no longer be read: {err}") from None


def _overlay_paths(overlays: Path, name: str) -> list[Path]:
    from .overlay import overlay_path

    return [overlay_path(overlay_base(overlays, name), head) for head in HEADS]


def require_maps(model: RetinaModel, listing: Listing, overlays: Path) -> None:
    """Check before any work that overlays can be drawn and would not be taken for photographs; creates their folder.

    Raises:
        UsageError: the model file has no maps, two photographs would have the same overlays, or overlays would lie in a
            folder that is scored or beside a photograph.
        OutputError: see ``require_folder``.
    """
    if not model.contract.explain:
        raise UsageError(
            f"--overlays {overlays}: expected a model file with Grad-CAM maps, found {model.path} without. "
            "Make one with  retina-export --explain"
        )
    place = Path(os.path.realpath(overlays))
    # Where photographs lie, and where overlays would.
    holding = {Path(name).parent for name in listing.names}
    used = {place, *(Path(os.path.realpath(overlay_base(overlays, folder.as_posix()))) for folder in holding)}
    within = [folder for folder in listing.folders if place.is_relative_to(os.path.realpath(folder))]
    beside = [folder for folder in sorted(holding) if Path(os.path.realpath(listing.root / folder)) in used]
    if found := within + beside:
        raise UsageError(
            f"--overlays {overlays}: expected a folder outside {found[0]}, or its pictures would be scored next time"
        )
    base_of: dict[Path, str] = {}
    for name in listing.names:
        other = base_of.setdefault(overlay_base(overlays, name), name)
        if other != name:
            raise UsageError(
                f"--overlays {overlays}: {other} and {name} would be drawn into one file; score them separately"
            )
    require_folder(overlays, "--overlays")


def depends_on(model: RetinaModel, overlays: Path | None = None) -> dict[str, Any]:
    """Everything that determines a row besides the photograph, and the folder of overlays; JSON values.

    The journal is discarded when any of it changes. The folder is included because otherwise a photograph that has
    changed since could keep an overlay of its former content.
    """
    import onnxruntime

    return {
        "model": model.sha256,
        "exact": model.exact,
        "provider": model.provider,
        "overlays": overlays and os.path.realpath(overlays),
        # Not by its package's name: onnxruntime-gpu and others bring the same module.
        "versions": {"onnxruntime": onnxruntime.__version__, **decoder_versions()},
    }

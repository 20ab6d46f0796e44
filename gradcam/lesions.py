"""Photographs with masks of their lesions, outlined by experts (or drawn by train/synthetic.py)."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.annotations import IMAGE_NAME, column_place, scan_rows
from ..runtime.errors import AnnotationError, PictureError
from ..runtime.picture import decode
from ..train.synthetic import LESION_LISTING

KIND_NAMES = {
    "EX": "hard exudates", "HE": "haemorrhages", "MA": "microaneurysms", "SE": "cotton-wool spots",
    "NV": "new vessels", "PH": "preretinal haemorrhage",
}  # fmt: skip
"""By the abbreviations of IDRiD's masks and of train/lesions.py."""


@dataclass(frozen=True)
class MaskedPhotograph:
    """A photograph whose lesions are known."""

    path: Path
    masks: Mapping[str, NDArray[np.bool_]]
    """(H, W) bool for each kind that has any pixel, by its abbreviation."""


def read_lesions(folder: Path) -> list[MaskedPhotograph]:
    """Read a folder with ``lesions.csv`` (column Image name), photographs ``X.jpg`` and masks ``X_KIND.png``.

    The list may be written as annotations.csv may: see ``scan_rows``. Pixels of a mask above 0 are lesion: of a mask in
    colour, in any channel; of one with a palette, by their index.

    Raises:
        AnnotationError: the list cannot be read, has fewer than two photographs, names one twice or lacks its column,
            or a listed photograph does not exist or has no masks.
        PictureError: a photograph or mask cannot be read, or a mask has another size than its photograph.
    """
    listing = folder / LESION_LISTING
    rows, fault = scan_rows(listing)
    if fault:
        raise AnnotationError(f"{listing}: expected a list of photographs with lesion masks; {fault}")
    place = column_place(IMAGE_NAME, rows[0][1]) if rows else None
    if place is None:
        found = ", ".join(rows[0][1]) if rows else "no rows"
        raise AnnotationError(f"{listing}: expected the column {IMAGE_NAME}, found {found}")
    named = [(line, cells[place] if place < len(cells) else "") for line, cells in rows[1:]]
    names = [name for _, name in named]
    if len(names) <= 1:
        found = "one" if names else "none"
        raise AnnotationError(
            f"{listing}: expected at least two photographs, since each figure has an interval, found {found}"
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise AnnotationError(f"{listing}: expected each photograph once, found {', '.join(repeated)} more often")
    return [_read(folder, name, line, names) for line, name in named]


def _read(folder: Path, name: str, line: int, listed: list[str]) -> MaskedPhotograph:
    path = folder / name
    where = f"{folder / LESION_LISTING}, line {line}: {name}"
    if not os.path.isfile(path):
        raise AnnotationError(f"{where}: expected the photograph {path}, found none there")
    height, width = decode(path).shape[:2]
    masks = {}
    # If both "eye" and "eye_2" are listed, "eye_2.png" and its masks belong to the second.
    others = [stem for stem in (Path(other).stem for other in listed) if stem.startswith(f"{path.stem}_")]
    found = [
        file
        for file in sorted(path.parent.glob(f"{glob.escape(path.stem)}_*.png"))
        if not any(file.stem == other or file.stem.startswith(f"{other}_") for other in others)
    ]
    for file in found:
        mask = _mask(file)
        if mask.shape != (height, width):
            raise PictureError(
                f"{file}: expected a mask of {width} x {height}, found {mask.shape[1]} x {mask.shape[0]}"
            )
        if mask.any():
            masks[file.stem.removeprefix(f"{path.stem}_")] = mask
    if not found:
        raise AnnotationError(f"{where}: expected masks {path.stem}_EX.png, {path.stem}_HE.png, ..., found none")
    return MaskedPhotograph(path, masks)


def _mask(file: Path) -> NDArray[np.bool_]:
    samples: NDArray[Any] = decode(file)  # refuses what is no picture
    with Image.open(file) as image:
        if len(image.getbands()) == 1:
            # Not as a colour: of 16 bits, 1 is rounded to black, and a palette may begin with white.
            samples = np.asarray(image)[..., None]
    return np.asarray(samples.any(axis=2))

"""The photographs on which an export is checked: given ones, the run's validation split, or synthetic ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..runtime.annotations import IMAGES_DIR
from ..runtime.errors import UsageError
from ..runtime.folder import find_pictures
from ..runtime.picture import decode
from ..runtime.progress import tracked
from ..train.checkpoint import Checkpoint
from ..train.synthetic import photograph

Item = TypeVar("Item")
SAMPLE = 32
"""Photographs taken from the validation split: enough to include every camera in it, few enough for a quick export."""


@dataclass(frozen=True)
class Photographs:
    """Photographs from files or, if ``paths`` is empty, synthetic ones, one of each grade."""

    paths: tuple[Path, ...]
    source: str
    """Description for the contract's record, which travels: without the name of a file or a folder."""

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Name and (H, W, 3) uint8 RGB of each, decoded at full size, one at a time.

        Raises:
            PictureError: a file cannot be read.
        """
        if not self.paths:
            for grade in range(5):
                made = photograph(grade, int(grade > 2), 384, seed=grade)
                yield f"synthetic photograph of grade {grade}", made.picture
            return
        for path in tracked(self.paths, "Comparing"):
            yield path.name, decode(path)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` items spread evenly over the list, or all if there are fewer; deterministic."""
    places = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[round(place)] for place in places]


def choose_photographs(given: Path | None, checkpoint: Checkpoint) -> Photographs:
    """All photographs under ``given``; else a sample of the validation split of the checkpoint's run; else synthetic.

    Raises:
        UsageError: ``given`` has no photographs, or cannot be listed.
        PictureError: one of its photographs cannot be read.
    """
    if given is not None:
        paths = (given,) if os.path.isfile(given) else tuple(given / name for name in find_pictures(given).names)
        if not paths:
            raise UsageError(f"--check {given}: expected photographs, found none")
        for path in tracked(paths, "Reading"):
            decode(path)  # to fail now and not after the conversion
        return Photographs(paths, "given photographs")
    valid = Path(checkpoint.config.get("data", "")) / "valid" / IMAGES_DIR
    if checkpoint.config.get("data") and os.path.isdir(valid):
        chosen = spread(find_pictures(valid).names, SAMPLE)
        if chosen:
            return Photographs(tuple(valid / name for name in chosen), "validation split of the run")
    return Photographs((), "synthetic photographs")

"""The photographs that an export is checked on: given ones, the run's validation split, or drawn ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..runtime.errors import UsageError
from ..runtime.folder import find_pictures
from ..runtime.picture import decode
from ..train.checkpoint import Checkpoint
from ..train.synthetic import photograph

Item = TypeVar("Item")
SAMPLE = 32
"""Of the validation split: enough to meet every camera in it, few enough for a quick export."""


@dataclass(frozen=True)
class Photographs:
    """Files, or where there are none, drawn fundus photographs."""

    paths: tuple[Path, ...]
    source: str
    """For the record in the contract: says no path of this machine."""

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Name and (H, W, 3) uint8 RGB, decoded whole, one at a time.

        Raises:
            PictureError: a file that cannot be read.
        """
        if not self.paths:
            for grade in range(5):
                yield f"drawn photograph of grade {grade}", photograph(grade, int(grade > 2), 384, seed=grade).picture
            return
        for path in tqdm(self.paths, desc="Comparing", unit="photo", leave=False, disable=None):
            yield path.name, decode(path)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` evenly over the list, or all where there are fewer: the same ones every time."""
    places = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[round(place)] for place in places]


def choose_photographs(given: Path | None, checkpoint: Checkpoint) -> Photographs:
    """All under ``given``; else a sample of the validation split that the checkpoint was chosen on; else drawn ones.

    Raises:
        UsageError: nothing to read at ``given``.
    """
    if given is not None:
        paths = (given,) if given.is_file() else tuple(given / name for name in find_pictures(given).names)
        if not paths:
            raise UsageError(f"--check {given}: expected photographs, found none")
        return Photographs(paths, f"photographs in {given.name}")
    valid = Path(checkpoint.config.get("data", "")) / "valid" / "images"
    if checkpoint.config.get("data") and valid.is_dir():
        chosen = spread(find_pictures(valid).names, SAMPLE)
        if chosen:
            return Photographs(tuple(valid / name for name in chosen), "validation split of the run")
    return Photographs((), "drawn photographs")

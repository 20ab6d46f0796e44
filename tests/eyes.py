"""Small data folders for the tests of training: discs of any grade, each with its own pattern."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HEADER = ["Image name", "Retinopathy grade", "Risk of macular edema", "Caption", "Source", "Patient"]
Row = Sequence[object]


def eye(seed: int, side: int = 64) -> Image.Image:
    """A lit disc on black, with a coarse pattern that depends on the seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 250, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).copy()
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    pixels[np.hypot(x, y) > side / 2 - 1] = 0
    return Image.fromarray(pixels)


def write_annotations(folder: Path, rows: Sequence[Row], header: Sequence[str] = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "annotations.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_split(
    folder: Path, grades: Sequence[int], seed: int, me: Sequence[object] | None = None
) -> list[list[object]]:
    """Write ``folder/images/eye_<n>.jpg`` and ``annotations.csv``; returns the rows."""
    (folder / "images").mkdir(parents=True)
    rows: list[list[object]] = []
    for n, grade in enumerate(grades):
        eye(1000 * seed + n).save(folder / "images" / f"eye_{n}.jpg", quality=92)
        risk = me[n] if me is not None else int(grade > 1)
        rows.append([f"eye_{n}.jpg", grade, risk, f"caption {n}", "cam", f"{folder.name}-{n}"])
    write_annotations(folder, rows)
    return rows


def write_set(root: Path, train: Sequence[int] = (0, 1, 2, 0, 2, 1), others: Sequence[int] = (0, 1, 2)) -> Path:
    """Write three splits under ``root``."""
    for seed, (name, grades) in enumerate((("train", train), ("valid", others), ("test", others))):
        write_split(root / name, grades, seed)
    return root

"""Where the network's square lies on a photograph, and where the photograph is lit: for drawing maps on it.

Nothing here decides a prediction: the framing that the network sees is train/framing.py, and travels inside the model
file. A map lives in that framed square, so drawing it needs the way back to the photograph. ``Field.find`` is the numpy
twin of framing's ``lit_box``; tests/test_overlay.py holds the two together on real and drawn photographs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .contract import Preprocessing

LIT_FROM, LIT_TO = 15.0, 25.0
"""Grey levels between which a pixel goes from dark to lit, so half-lit at 20 of 255: above the black of a camera's
border with its JPEG noise, below the darkest retina. A ramp, not a step, keeps the edge continuous in the pixels."""
LIT_SHARE = 0.02
"""A row or column belongs to the field when this share of it is lit."""
CELLS = 64
"""The field is told from its surround on a coarse grid of this many cells a side, where grain averages out."""
DARKEST_LEVEL = 20.0
"""Grey levels: a photograph's level, the mean brightness with each cell counting by its own, is not taken to be lower,
so that the noise of a black photograph is not a field."""
ABOVE_SURROUND = 0.2
"""A cell is half field this share of the way from the darkest cell up to the level: below the rim of a field that is
lit from one side."""
SURROUND_AT_MOST = 0.35
"""Share of the level above which nothing is surround, so that a photograph that shows retina alone keeps all of it."""
FIELD_RAMP = 0.1
"""Share of the level over which a cell goes from surround to field."""
CAPTION_CELLS = 7
"""What is narrower than this many cells is no field: captions, dates, the mark at the edge."""


@dataclass(frozen=True)
class Field:
    """Where a photograph is lit, and the rectangle of it that the network sees.

    Edges are in shares of the photograph's width and height, so that they hold at every resolution; they may lie
    outside [0, 1], where the network sees black beyond the photograph.
    """

    left: float
    top: float
    right: float
    bottom: float
    lit: NDArray[np.float32]
    """(M, M) in [0, 1] on the photograph squashed to a square: the lit field, its dark vessels and haemorrhages
    included."""

    @classmethod
    def find(cls, photograph: NDArray[np.uint8] | Image.Image, preprocessing: Preprocessing) -> Field:
        """Find it on a photograph: (H, W, 3) uint8 RGB, or a Pillow image in RGB.

        The edges are right to about a pixel of the intermediate square that the framing looks at, because Pillow
        rounds to grey levels.
        """
        image = photograph if isinstance(photograph, Image.Image) else Image.fromarray(photograph)
        width, height = image.size
        side = preprocessing.intermediate_size
        reduced = image.reduce(max(1, min(height, width) // side))
        brightest = _brightest(np.asarray(reduced.resize((side, side), Image.Resampling.BILINEAR)))
        if preprocessing.surround == "black":
            brightest = brightest * _field_mask(brightest)
        squashed: NDArray[np.float32] = np.clip((brightest - LIT_FROM) / (LIT_TO - LIT_FROM), 0.0, 1.0)
        lit = _between_lit(squashed)
        if preprocessing.framing == "squash":
            return cls(0.0, 0.0, 1.0, 1.0, lit)
        left, right, top, bottom = _lit_box(squashed)
        square = max((right - left) * width, (bottom - top) * height)
        x, y = (left + right) / 2, (top + bottom) / 2
        half_x, half_y = square / width / 2, square / height / 2
        return cls(x - half_x, y - half_y, x + half_x, y + half_y, lit)


def _brightest(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) in [0, 255]: each pixel's brightest channel."""
    # Channel by channel: numpy's maximum over an axis of three takes twenty times as long.
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]).astype(np.float32)


def _field_mask(brightest: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M, M) in [0, 1], the twin of framing's ``field_mask``."""
    cells = _resized(brightest, CELLS)
    level = max(float(np.square(cells).sum()) / max(float(cells.sum()), 1.0), DARKEST_LEVEL)
    dark = float(cells.min())
    threshold = min(dark + ABOVE_SURROUND * (level - dark), SURROUND_AT_MOST * level)
    lit = np.clip((cells - threshold) / (FIELD_RAMP * level) + 0.5, 0.0, 1.0)
    broad = _most_around(-_most_around(-lit, CAPTION_CELLS), CAPTION_CELLS)
    if broad.max() < 0.5:
        return np.ones_like(brightest)
    return _resized(_most_around(_between_lit(broad), 3), len(brightest))


def _resized(grid: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BILINEAR))


def _most_around(grid: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The maximum over a square of ``width`` cells around each cell of (M, M); there is nothing, 0, beyond the edge."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(grid, width // 2), (width, width))
    most: NDArray[np.float32] = windows.max(axis=(2, 3))
    return most


def _between_lit(lit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill what lies between lit pixels both in its row and in its column."""
    rows, columns = (
        np.minimum(np.maximum.accumulate(lit, axis), np.flip(np.maximum.accumulate(np.flip(lit, axis), axis), axis))
        for axis in (1, 0)
    )
    filled: NDArray[np.float32] = np.minimum(rows, columns)
    return filled


def _lit_box(lit: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Left, right, top and bottom edge in shares of the width or height; everything where nothing is lit."""
    columns, rows = lit.mean(axis=0), lit.mean(axis=1)
    if columns.max() < LIT_SHARE or rows.max() < LIT_SHARE:
        return 0.0, 1.0, 0.0, 1.0
    return _first_lit(columns), 1.0 - _first_lit(columns[::-1]), _first_lit(rows), 1.0 - _first_lit(rows[::-1])


def _first_lit(profile: NDArray[np.float32]) -> float:
    """Where (M,) lit shares first reach LIT_SHARE, in [0, 1], interpolated between neighbours."""
    first = int(np.argmax(profile >= LIT_SHARE))
    before, here = float(profile[first - 1]) if first else 0.0, float(profile[first])
    back = (here - LIT_SHARE) / max(here - before, 1e-6)
    return float(np.clip((first + 0.5 - back) / len(profile), 0.0, 1.0))

"""Where the network's square lies on a photograph, and where the photograph is lit: for drawing maps on it.

Nothing here affects a prediction: the framing that the network sees is train/framing.py, and travels inside the model
file. A map is in coordinates of that framed square, so drawing it needs the way back to the photograph.
``LitField.find`` is the numpy counterpart of framing's ``lit_box``; tests/test_overlay.py checks that the two agree on
real and drawn photographs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .contract import Preprocessing

LIT_FROM, LIT_TO = 15.0, 25.0
"""Grey levels (of 255) between which a pixel goes from dark to lit, half-lit at 20: above a camera's black border with
its JPEG noise, below the darkest retina. A ramp, not a step, keeps the edge a continuous function of the pixels."""
LIT_SHARE = 0.02
"""A row or column belongs to the field if at least this share of it is lit."""
CELLS = 64
"""The field is separated from its surround on a coarse grid of this many cells a side, where noise averages out."""
DARKEST_LEVEL = 20.0
"""Lower limit, in grey levels, of a photograph's level (its mean brightness, with each cell weighted by its own
brightness), so that the noise of a black photograph does not pass for a field."""
ABOVE_SURROUND = 0.2
"""A cell counts as half field at this share of the way from the darkest cell up to the level: low enough for the dark
rim of a field that is lit from one side."""
SURROUND_AT_MOST = 0.35
"""A cell brighter than this share of the level is never too dark for the field, so that a photograph of nothing but
retina keeps all of it."""
FIELD_RAMP = 0.1
"""Share of the level over which a cell goes from surround to field."""
CAPTION_CELLS = 7
"""Anything narrower than this many cells is not field: captions, dates, the mark at the edge."""


@dataclass(frozen=True)
class LitField:
    """Where a photograph is lit, and the rectangle of it that the network sees.

    The edges are fractions of the photograph's width and height, so that they hold at every resolution. They may lie
    outside [0, 1]: beyond the photograph the network sees black.
    """

    left: float
    top: float
    right: float
    bottom: float
    lit: NDArray[np.float32]
    """(M, M) float32 in [0, 1], over the photograph squashed to a square: the lit field, including its dark vessels and
    haemorrhages. M is ``Preprocessing.intermediate_size``."""

    @classmethod
    def find(cls, photograph: NDArray[np.uint8] | Image.Image, preprocessing: Preprocessing) -> LitField:
        """Find the field on a photograph: (H, W, 3) uint8 RGB, or a Pillow image in RGB.

        The edges agree with the graph's to about a pixel of the intermediate square, because Pillow rounds to whole
        grey levels.
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
    """Each pixel's brightest channel: (H, W) float32 in [0, 255]."""
    # Channel by channel: numpy's maximum over an axis of length three takes twenty times as long.
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]).astype(np.float32)


def _field_mask(brightest: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M, M) in [0, 1], the counterpart of framing's ``field_mask``."""
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
    """The maximum over a square of ``width`` cells around each cell of (M, M), padded with zeros beyond the edge."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(grid, width // 2), (width, width))
    most: NDArray[np.float32] = windows.max(axis=(2, 3))
    return most


def _between_lit(lit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill every pixel that lies between lit pixels both in its row and in its column."""
    rows, columns = (
        np.minimum(np.maximum.accumulate(lit, axis), np.flip(np.maximum.accumulate(np.flip(lit, axis), axis), axis))
        for axis in (1, 0)
    )
    filled: NDArray[np.float32] = np.minimum(rows, columns)
    return filled


def _lit_box(lit: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Left, right, top and bottom edge as fractions of the width or height; the whole picture if nothing is lit."""
    columns, rows = lit.mean(axis=0), lit.mean(axis=1)
    if columns.max() < LIT_SHARE or rows.max() < LIT_SHARE:
        return 0.0, 1.0, 0.0, 1.0
    return _first_lit(columns), 1.0 - _first_lit(columns[::-1]), _first_lit(rows), 1.0 - _first_lit(rows[::-1])


def _first_lit(profile: NDArray[np.float32]) -> float:
    """Where the (M,) lit shares first reach LIT_SHARE, in [0, 1], interpolated between neighbours."""
    first = int(np.argmax(profile >= LIT_SHARE))
    before, here = float(profile[first - 1]) if first else 0.0, float(profile[first])
    back = (here - LIT_SHARE) / max(here - before, 1e-6)
    return float(np.clip((first + 0.5 - back) / len(profile), 0.0, 1.0))

"""Draw a Grad-CAM map on its photograph: in colours that everybody can tell apart, with the retina visible beneath.

The colours run from transparent through blue to near-white. People with the common colour blindnesses can tell blue
from the retina's orange, and lightness only increases, so that a greyscale print keeps the order. White lines outline
the regions that reach half of the scale. Nothing is drawn outside the lit field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .contract import HEADS, Head
from .field import LitField
from .image_file import ENDING_OF, ImageFormat, write_image

if TYPE_CHECKING:
    from .prediction import Prediction

BLANK_BELOW = 0.01
"""In logits. A map whose cells sum to less moves a probability by less than 0.25 percentage points. It is drawn blank,
because stretching it over the whole colour scale would make noise look like a finding."""

_ANCHORS = ((0.0, (0, 30, 150)), (0.4, (10, 90, 240)), (0.75, (60, 205, 255)), (1.0, (250, 255, 255)))
"""Position on the scale and RGB: dark blue, blue, light blue, near-white."""
_CLEAR_BELOW, _OPAQUE_FROM, _MOST_OPAQUE = 0.1, 0.6, 0.5
"""Positions on the scale up to which nothing is painted and from which opacity is greatest, and that opacity."""
_CANVAS = 768
"""Longest side in pixels of the canvas on which a map is painted before it is enlarged: enough for 12 cells a side."""
_TILE = 256
"""Side in pixels of the tiles in which a photograph is painted."""
LINE_AT = 0.5
"""Share of the scale that the white lines outline."""


@dataclass(frozen=True)
class HeadMap:
    """One head's Grad-CAM map of one photograph, and the answer that it explains."""

    head: Head
    values: NDArray[np.float32]
    """(h, w) float32 over the framed square, at least 0; in logits if ``sums_to_logit``."""
    target: int
    """The class that the map explains: a DR grade, or 0 or 1 for the ME risk."""
    probability: float
    """Probability of the target, in [0, 1]."""
    sums_to_logit: bool = True
    """Whether the cells, with those that the ReLU set to 0, sum to the target's logit without its biases: for Grad-CAM
    and HiResCAM of the last layer. Values of other maps compare only with each other."""

    @property
    def is_blank(self) -> bool:
        return float(self.values.sum()) < BLANK_BELOW if self.sums_to_logit else not self.values.any()

    @property
    def peak(self) -> float:
        """The largest value."""
        return float(self.values.max())


def colours() -> NDArray[np.uint8]:
    """The colour scale from 0 to its top: (256, 4) uint8 RGBA, alpha not premultiplied."""
    at = np.linspace(0.0, 1.0, 256)
    stops = [stop for stop, _ in _ANCHORS]
    channels = [np.interp(at, stops, [rgb[c] for _, rgb in _ANCHORS]) for c in range(3)]
    opacity = 255 * _MOST_OPAQUE * np.clip((at - _CLEAR_BELOW) / (_OPAQUE_FROM - _CLEAR_BELOW), 0.0, 1.0)
    return np.stack([*channels, opacity], axis=1).round().astype(np.uint8)


def head_maps(
    prediction: Prediction, of: Mapping[Head, int] | None = None, *, sums_to_logit: bool = True
) -> dict[Head, HeadMap]:
    """The maps of a prediction, each with its target; empty if it has no maps.

    Args:
        prediction: the prediction.
        of: as it was given to ``RetinaModel.predict_pixels``: targets other than the most probable grade or label.
        sums_to_logit: of the maps; see ``HeadMap``.
    """
    probs: dict[Head, Mapping[int, float]] = {
        "dr": prediction.dr_probs,
        "me": {0: 1.0 - prediction.me_prob, 1: prediction.me_prob},
    }
    known, maps = prediction.maps or {}, {}
    for head in (head for head in HEADS if head in known):
        target = (of or {}).get(head, max(probs[head], key=probs[head].__getitem__))
        maps[head] = HeadMap(head, known[head], target, probs[head][target], sums_to_logit)
    return maps


def write_overlays(
    base: Path,
    photograph: Image.Image,
    field: LitField,
    maps: Iterable[HeadMap],
    image_format: ImageFormat = "jpeg",
    scale_max: Mapping[Head, float] | None = None,
) -> list[Path]:
    """Draw each map on a photograph and write it as ``<base>_dr.jpg``, ``<base>_me.jpg``.

    Args:
        base: the path that the names begin with.
        photograph: RGB, full size.
        field: of this photograph.
        maps: for example ``head_maps(prediction).values()``.
        image_format: ``jpeg``, or ``png`` where every pixel matters.
        scale_max: for each head, the value at the top of the scale; see ``draw``.

    Returns:
        the files written, in the order of ``maps``.

    Raises:
        OutputError: as ``write_image``.
    """
    written: list[Path] = []
    drawn = photograph.copy()
    for head_map in maps:
        if written:
            drawn.paste(photograph)  # into the same memory: a new copy of 12 megapixels takes four times as long
        _paint(drawn, head_map, field, scale_max[head_map.head] if scale_max else None)
        path = overlay_path(base, head_map.head, image_format)
        write_image(path, drawn)
        written.append(path)
    return written


def overlay_path(base: Path, head: Head, image_format: ImageFormat = "jpeg") -> Path:
    """The file of a head's overlay; ``base`` is the path that the names of a photograph's overlays begin with."""
    return base.with_name(f"{base.name}_{head}{ENDING_OF[image_format]}")


def place(values: NDArray[np.float32], field: LitField, size: tuple[int, int]) -> NDArray[np.float32]:
    """Resample a map of the framed square to the photograph: bilinear between cells, 0 outside the lit field.

    Args:
        values: (h, w) float32.
        field: of the photograph.
        size: width and height in pixels of the result, the photograph's at any scale.

    Returns:
        (height, width) float32, in the unit of ``values``.
    """
    rows, columns = values.shape
    across, down = field.right - field.left, field.bottom - field.top
    # The photograph's edges in cells of the map: left, upper, right, lower.
    extent = (
        -field.left / across * columns, -field.top / down * rows,
        (1 - field.left) / across * columns, (1 - field.top) / down * rows,
    )  # fmt: skip
    laid = Image.fromarray(values).transform(size, Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR)
    lit = Image.fromarray(field.lit).resize(size, Image.Resampling.BILINEAR)
    placed: NDArray[np.float32] = np.asarray(laid) * np.asarray(lit)
    return placed


def peak_at(head_map: HeadMap, field: LitField, size: tuple[int, int]) -> tuple[int, int] | None:
    """Where a map is largest within the lit field of a photograph of this width and height: (x, y) in pixels.

    None if the map is blank there.
    """
    if head_map.is_blank:
        return None
    canvas = _canvas(size, _CANVAS // 2)
    placed = place(head_map.values, field, canvas)
    if not placed.any():
        return None
    row, column = np.unravel_index(int(placed.argmax()), placed.shape)
    return int((column + 0.5) * size[0] / canvas[0]), int((row + 0.5) * size[1] / canvas[1])


def draw(photograph: Image.Image, head_map: HeadMap, field: LitField, top: float | None = None) -> Image.Image:
    """A copy of the photograph, at its full size, with the map drawn on it.

    Args:
        photograph: RGB; it is not modified.
        head_map: the map to draw; a blank one changes nothing.
        field: of this photograph.
        top: the value at the top of the colour scale, to share a scale between photographs; None: the map's
            own maximum.
    """
    drawn = photograph.copy()
    _paint(drawn, head_map, field, top)
    return drawn


def _paint(photograph: Image.Image, head_map: HeadMap, field: LitField, top: float | None) -> None:
    """Draw on the photograph in place; see ``draw``."""
    if head_map.is_blank:
        return
    canvas = _canvas(photograph.size, _CANVAS)
    placed = place(head_map.values, field, canvas) / (top or head_map.peak)
    level = (255 * np.clip(placed, 0.0, 1.0)).round().astype(np.uint8)
    painted = colours()[level]  # (H, W, 4)
    painted[_outline(level >= round(255 * LINE_AT))] = 255
    # Premultiplied alpha ("RGBa"), as interpolation needs, so that all four channels can be enlarged in one pass.
    paint = Image.fromarray(painted).convert("RGBa")
    opacity = paint.getchannel("a")
    # Most of a photograph is not painted, so only the tiles that change are enlarged.
    sx, sy = photograph.width / canvas[0], photograph.height / canvas[1]
    for left, right in pairwise(range(0, photograph.width + _TILE, _TILE)):
        for upper, lower in pairwise(range(0, photograph.height + _TILE, _TILE)):
            right, lower = min(right, photograph.width), min(lower, photograph.height)  # noqa: PLW2901
            area = (left / sx, upper / sy, right / sx, lower / sy)
            around = (int(area[0]) - 1, int(area[1]) - 1, int(area[2]) + 2, int(area[3]) + 2)
            if opacity.crop(around).getbbox() is None:
                continue
            tile = _enlarged(paint, (right - left, lower - upper), area)
            photograph.paste(tile, (left, upper), tile)


def _enlarged(paint: Image.Image, size: tuple[int, int], area: tuple[float, float, float, float]) -> Image.Image:
    """Part of the canvas, enlarged to a tile's size; the last doubling of a large enlargement repeats pixels 2 x 2.

    In colours this smooth it is not visible, and a camera original is drawn in half the time.
    """
    if size[0] < 2 * (area[2] - area[0]):
        return paint.resize(size, Image.Resampling.BILINEAR, area)
    half = paint.resize((-(-size[0] // 2), -(-size[1] // 2)), Image.Resampling.BILINEAR, area)
    return half.resize(size, Image.Resampling.NEAREST)


def _canvas(size: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a region (H, W) that have one of their four neighbours outside it."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outline: NDArray[np.bool_] = inside & ~core
    return outline

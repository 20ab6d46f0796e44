"""Is the map on the lesions? Pointing game and energy share, compared with chance and with a centre prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from ..runtime.field import LitField
from ..runtime.overlay import place

TOLERANCE = 15 / 1024
"""Distance by which a hit may miss a lesion, as a share of the photograph's longer side: the 15 pixels of the pointing
game of Zhang et al., 2018, in a photograph of 1024 pixels. That width is this project's choice: photographs of fundi
are much larger than those that the game was made for."""
CENTRE_SIGMA = 0.25
"""Standard deviation of the centre prior, a Gaussian, as a share of the framed square's side: half the field's
radius."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pointing:
    """How well one map points at one kind of lesion in one photograph."""

    hit: float
    """1 if the map's largest value is on a lesion, or within TOLERANCE of one; else 0."""
    energy: float
    """Share of the map's sum over the lit field that is on lesions, in [0, 1]."""
    chance_hit: float
    """Hit rate of a random point of the lit field, in [0, 1]."""
    area: float
    """The lesions' share of the lit field, in [0, 1]: the energy share of a uniform map."""


def point(values: Floats, field: LitField, lesion: NDArray[np.bool_]) -> Pointing:
    """Measure a map on the lesions of a photograph; a map without any value above 0 misses.

    Args:
        values: (h, w) float32, at least 0, over the framed square.
        field: of the photograph.
        lesion: (H, W) bool mask of one kind of lesion.
    """
    height, width = lesion.shape
    laid = place(values, field, (width, height)).astype(np.float64)
    lit = place(np.ones_like(values), field, (width, height)) > 0.5
    lesion = lesion & lit
    # Without lesions the distance to the nearest one is undefined.
    near = distance_transform_edt(~lesion) <= TOLERANCE * max(height, width) if lesion.any() else lesion
    total = laid[lit].sum()
    return Pointing(
        hit=float(total > 0 and near.flat[np.where(lit, laid, -1.0).argmax()]),
        energy=float(laid[lesion].sum() / total) if total > 0 else 0.0,
        chance_hit=float(near[lit].mean()),
        area=float(lesion[lit].mean()),
    )


def centre_prior(shape: tuple[int, int]) -> Floats:
    """A map (h, w) float32 that only expects lesions near the centre of the field: a Gaussian, at most 1."""
    rows, columns = (((np.arange(n) + 0.5) / n - 0.5) / CENTRE_SIGMA for n in shape)
    prior: Floats = np.exp(-0.5 * (rows[:, None] ** 2 + columns[None, :] ** 2)).astype(np.float32)
    return prior

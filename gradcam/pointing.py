"""Does the map lie on the lesions? Pointing game and energy, against chance and against "lesions are in the middle"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from ..runtime.field import Field
from ..runtime.overlay import place

TOLERANCE = 15 / 1024
"""Of the longer side: a hit may miss the lesion by this, 15 pixels as in the pointing game of Zhang et al., 2018."""
CENTRE_SIGMA = 0.25
"""Of the framed square's side: the width of the centre prior, a Gaussian, so that half the field's radius is one
sigma."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pointing:
    """How one map lies on one kind of lesion of one photograph."""

    hit: float
    """1 where the map's largest value lies on a lesion, or within TOLERANCE of one; else 0."""
    energy: float
    """Share of the map's sum over the lit field that lies on lesions, in [0, 1]."""
    chance_hit: float
    """The hit rate of a random point of the lit field."""
    area: float
    """The lesions' share of the lit field: the energy share of an even map."""


def point(values: Floats, field: Field, lesion: NDArray[np.bool_]) -> Pointing:
    """Measure a map (h, w) of the framed square on a mask (H, W) of the photograph; a blank map misses."""
    height, width = lesion.shape
    laid = place(values, field, (width, height)).astype(np.float64)
    lit = place(np.ones_like(values), field, (width, height)) > 0.5
    lesion = lesion & lit
    # The distance to the nearest of no lesions is undefined.
    near = distance_transform_edt(~lesion) <= TOLERANCE * max(height, width) if lesion.any() else lesion
    total = laid[lit].sum()
    return Pointing(
        hit=float(total > 0 and near.flat[np.where(lit, laid, -1.0).argmax()]),
        energy=float(laid[lesion].sum() / total) if total > 0 else 0.0,
        chance_hit=float(near[lit].mean()),
        area=float(lesion[lit].mean()),
    )


def centre_prior(shape: tuple[int, int]) -> Floats:
    """(h, w): the map of one who knows no more than that lesions tend to be in the middle of the field."""
    rows, columns = (((np.arange(n) + 0.5) / n - 0.5) / CENTRE_SIGMA for n in shape)
    prior: Floats = np.exp(-0.5 * (rows[:, None] ** 2 + columns[None, :] ** 2)).astype(np.float32)
    return prior

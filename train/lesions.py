"""Diabetic lesions of a drawn photograph: their kinds, numbers, places and appearance.

They are larger than life: a real microaneurysm is at most a fifteenth of a disc diameter, here up to a ninth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from .eye import Floats, Points, Shape, Vessels, View, circle, rgb


@dataclass(frozen=True)
class Lesion:
    """How a kind of lesion looks and how often it occurs."""

    shapes: Callable[[Generator, View, int], list[Shape]]
    """Makes the polygons of a given number of lesions."""
    counts: tuple[tuple[int, int], ...]
    """Smallest and largest number, for each grade 0 to 4."""
    transmission: Floats
    """(3, 1, 1) in [0, 1]: the share of the retina's red, green and blue that remains visible."""
    glow: Floats
    """(3, 1, 1), 0 to 255: the light that the lesion itself reflects under full illumination."""
    blur: float = 0.6
    """Radius in pixels of a 512 px wide frame."""


def _microaneurysms(rng: Generator, view: View, count: int) -> list[Shape]:
    return [
        (_blob(rng, view.place(rng, i, reach=0.85), rng.uniform(0.035, 0.055) * view.unit, ragged=0.1), 225)
        for i in range(count)
    ]


def _haemorrhages(rng: Generator, view: View, count: int) -> list[Shape]:
    """Dots, blots, and flames along the nerve fibres that lead away from the disc; in each quarter in turn."""
    shapes = []
    for i in range(count):
        spot = view.place(rng, i)
        flame = rng.random() < 0.3
        stretch = rng.uniform(2.0, 3.2) if flame else rng.uniform(1.0, 1.5)
        radius = rng.uniform(0.07, 0.17) * view.unit / math.sqrt(stretch)
        fibres = math.atan2(spot[1] - view.disc[1], spot[0] - view.disc[0])
        outline = _blob(rng, spot, radius, ragged=0.36, stretch=stretch, angle=fibres)
        shapes.append((outline, int(rng.integers(165, 245))))
    return shapes


def _exudates(rng: Generator, view: View, count: int) -> list[Shape]:
    """Clusters of hard exudates, all farther than one disc diameter from the fovea."""
    shapes = []
    for i in range(count):
        middle = view.place(rng, i + int(rng.integers(4)), beyond_fovea=1.75, reach=0.85)
        for _ in range(int(rng.integers(7, 18))):
            spot = middle + rng.normal(0, 0.2, 2).clip(-0.4, 0.4) * view.unit
            shapes.append((_blob(rng, spot, rng.uniform(0.02, 0.065) * view.unit, ragged=0.5), 250))
    return shapes


def macular_exudates(rng: Generator, view: View) -> list[Shape]:
    """Hard exudates in part of a ring around the fovea, within one disc diameter of it."""
    first, arc = rng.uniform(0, 2 * math.pi), rng.uniform(1.5, 5.0)
    shapes = []
    for _ in range(int(rng.integers(14, 34))):
        angle, away = first + rng.uniform(0, arc), rng.uniform(0.3, 0.86)
        spot = view.origin + away * view.unit * np.array([math.cos(angle), math.sin(angle)])
        shapes.append((_blob(rng, spot, rng.uniform(0.03, 0.08) * view.unit, ragged=0.5), 250))
    return shapes


def _cotton_wool(rng: Generator, view: View, count: int) -> list[Shape]:
    shapes = []
    for i in range(count):
        spot = view.place(rng, i + int(rng.integers(4)), beyond_fovea=1.5, reach=0.8)
        radius = rng.uniform(0.13, 0.24) * view.unit
        shapes.append((_blob(rng, spot, radius, ragged=0.4, stretch=rng.uniform(1, 1.7), angle=rng.uniform(0, 3)), 225))
    return shapes


def _new_vessels(rng: Generator, view: View, count: int) -> list[Shape]:
    """Tangles of fine curling vessels, one of them often on the disc, the others elsewhere."""
    shapes = []
    for i in range(count):
        spot = view.place(rng, i + int(rng.integers(4)), beyond_fovea=1.2, reach=0.75)
        root = view.disc_dd if i == 0 and rng.random() < 0.6 else view.disc_distances(spot)
        n = int(rng.integers(10, 15))
        heading = np.linspace(0, 2 * math.pi, n) + rng.normal(0, 0.4, n)
        stems = Vessels.grow(
            rng,
            root + rng.normal(0, 0.08, (n, 2)),
            heading,
            goal=heading + rng.normal(0, 1.8, n),
            bend=0.5,
            length=rng.uniform(0.4, 0.95, n),
            width=rng.uniform(0.028, 0.042, n),
        )
        tips = stems.sprout(rng, 2 * n, shortest=0.15, longest=0.5)
        shapes += tips.ribbons(view, opacity=230) + stems.ribbons(view)
    return shapes


def _preretinal(rng: Generator, view: View, count: int) -> list[Shape]:
    """Boat-shaped haemorrhages: blood that has settled in front of the retina, with a level top."""
    shapes = []
    for i in range(count):
        middle = view.place(rng, i + int(rng.integers(4)), beyond_fovea=1.6, reach=0.75)
        hull = circle(40) * (rng.uniform(0.6, 1.1), rng.uniform(0.4, 0.75)) * view.unit
        hull[:, 1] = np.where(hull[:, 1] > 0, hull[:, 1], hull[:, 1] * 0.12)
        shapes.append((middle + hull, 240))
    return shapes


def _blob(
    rng: Generator, middle: Points, radius: float, *, ragged: float, stretch: float = 1.0, angle: float = 0.0
) -> Points:
    """An irregular ellipse (20, 2) in pixels.

    ``radius`` is half its short axis in pixels, and ``stretch`` times that half its long axis, at ``angle`` radians.
    """
    around = np.linspace(0, 2 * math.pi, 20, endpoint=False)
    waves = np.array([[2], [3], [5]])
    bulges = (np.sin(waves * around + rng.uniform(0, 6, (3, 1))) * rng.uniform(0, ragged / 2, (3, 1))).sum(axis=0)
    outline = circle(20) * (radius * stretch, radius) * (1 + bulges)[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Points = outline @ np.array([[cos, sin], [-sin, cos]])
    return middle + turned


NONE = (0, 0)
LESIONS = {
    # In drawing order: cotton-wool spots lie deepest, and blood may cover all the others.
    "SE": Lesion(_cotton_wool, (NONE, NONE, (0, 2), (2, 5), (1, 4)), rgb(0.45, 0.45, 0.5), rgb(140, 120, 75), blur=4.5),
    "EX": Lesion(_exudates, (NONE, NONE, (1, 2), (1, 3), (1, 2)), rgb(0.25, 0.25, 0.2), rgb(195, 165, 62)),
    "MA": Lesion(_microaneurysms, (NONE, (6, 14), (12, 20), (20, 32), (16, 28)), rgb(0.62, 0.3, 0.38), rgb(0, 0, 0)),
    "HE": Lesion(_haemorrhages, (NONE, NONE, (5, 11), (28, 44), (14, 26)), rgb(0.55, 0.24, 0.3), rgb(0, 0, 0)),
    "NV": Lesion(_new_vessels, (NONE, NONE, NONE, NONE, (2, 4)), rgb(0.7, 0.34, 0.32), rgb(0, 0, 0)),
    "PH": Lesion(_preretinal, (NONE, NONE, NONE, NONE, (0, 1)), rgb(0.48, 0.15, 0.18), rgb(0, 0, 0)),
}
"""Cotton-wool spots (soft exudates), clusters of hard exudates, microaneurysms, haemorrhages, new vessels and
preretinal haemorrhages, abbreviated as IDRiD's masks are where it has them. The counts by grade follow the
International Clinical Diabetic Retinopathy scale."""

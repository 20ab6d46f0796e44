"""The healthy eye of a drawn photograph: field, illumination, fundus, disc and vessels.

Lengths inside an eye are in disc diameters (DD), with the fovea at (0, 0), x towards the nose and y upwards; in a
picture they are in pixels, x to the right and y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Shape = tuple[Points, int]
"""A polygon (n, 2) in pixels and its opacity, 0 to 255."""
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Camera:
    """How a camera frames the lit field; lengths are fractions of the frame's width."""

    source: str
    aspect: float
    """Height / width."""
    radius: tuple[float, float]
    """Smallest and largest radius of the field."""
    degrees: int
    """Field of view, for the caption."""
    tint: tuple[float, float, float]
    """White balance: factors for red, green and blue."""
    notch_corners: int
    """Number of outer corners of the tab on the field's edge."""


CAMERAS = {
    camera.source: camera
    for camera in (
        Camera("ronda", 1.0, (0.44, 0.487), 45, (1.0, 1.0, 1.0), 4),
        # The frame is wider than high and lower than the field, whose top and bottom are cut off.
        Camera("larga", 2 / 3, (0.37, 0.43), 50, (1.0, 0.9, 0.6), 3),
    )
}


@dataclass(frozen=True)
class View:
    """Where the eye lies in the frame; converts disc diameters to pixels, and polygons to opacities."""

    camera: Camera
    eye: Side
    height: int
    width: int
    centre: Points
    """(x, y) of the field's centre in pixels."""
    radius: float
    """Radius of the field in pixels."""
    unit: float
    """Pixels per disc diameter."""
    axes: Points
    """(2, 2) matrix from DD to pixels, relative to the fovea."""
    origin: Points
    """(x, y) of the fovea in pixels."""
    disc_dd: Points
    """(x, y) of the disc's centre in DD."""

    @classmethod
    def draw(cls, rng: Generator, size: int, eye: Side | None, source: str | None) -> View:
        any_eye: Side = "right" if rng.random() < 0.5 else "left"
        any_source = str(rng.choice(list(CAMERAS)))
        eye, camera = eye or any_eye, CAMERAS[source or any_source]
        height, width = round(size * camera.aspect), size
        centre = np.array([width, height]) * rng.uniform(0.48, 0.52, 2)
        radius = width * rng.uniform(*camera.radius)
        unit = radius / rng.uniform(2.9, 4.1)
        # In a photograph of a right eye the nasal side, and with it the disc, is on the right.
        mirror, turn = (1.0 if eye == "right" else -1.0), math.radians(rng.normal(0.0, 9.0))
        turned = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        axes = unit * turned @ np.diag([mirror, -1.0])
        aim = np.array([rng.uniform(0.1, 1.7), rng.uniform(-0.55, 0.75)])
        disc_dd = np.array([rng.uniform(2.3, 2.75), rng.uniform(0.0, 0.5)])
        return cls(camera, eye, height, width, centre, radius, unit, axes, centre - axes @ aim, disc_dd)

    @cached_property
    def fovea(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return float(self.origin[0]), float(self.origin[1])

    @cached_property
    def disc(self) -> tuple[float, float]:
        """(x, y) of the disc's centre in pixels."""
        x, y = self.pixels(self.disc_dd)
        return float(x), float(y)

    def pixels(self, dd: Points) -> Points:
        """Convert points (..., 2) from DD to pixels."""
        return dd @ self.axes.T + self.origin

    def disc_distances(self, pixels: Points) -> Points:
        """Convert points (..., 2) from pixels to DD."""
        return (pixels - self.origin) @ np.linalg.inv(self.axes).T

    def rasterise(self, shapes: Iterable[Shape], *, blur: float = 0.0) -> Floats:
        """Draw polygons: opacity (H, W) float32 in [0, 1]; ``blur`` is a radius in pixels of a 512 px wide frame."""
        canvas = Image.new("L", (2 * self.width, 2 * self.height))
        draw = ImageDraw.Draw(canvas)
        for points, opacity in shapes:
            draw.polygon((2 * points).ravel().tolist(), fill=opacity)
        smooth = canvas.reduce(2)
        if blur:
            smooth = smooth.filter(ImageFilter.BoxBlur(blur * self.width / 512))
        return np.asarray(smooth, dtype=np.float32) / np.float32(255)

    def field(self, rng: Generator) -> Floats:
        """Opacity (H, W) in [0, 1] of the lit field: a circle with a tab on its edge."""
        angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
        circle = self.centre + self.radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        at = -math.radians(rng.uniform(25, 65)) + (math.pi / 2) * int(rng.integers(0, 2)) * int(rng.integers(0, 2))
        across = at + np.linspace(-1, 1, self.camera.notch_corners) * 0.04
        tab = self.centre + self.radius * 1.045 * np.stack([np.cos(across), np.sin(across)], axis=1)
        foot = at + np.array([0.07, -0.07])
        base = self.centre + self.radius * 0.98 * np.stack([np.cos(foot), np.sin(foot)], axis=1)
        return self.rasterise([(circle, 255), (np.concatenate([tab, base]), 235)], blur=0.8)

    def place(self, rng: Generator, sector: int, *, beyond_fovea: float = 0.0, reach: float = 0.92) -> Points:
        """A random spot in a quarter of the field, outside the disc: (2,) in pixels.

        Args:
            rng: the random generator.
            sector: the quarter; counted on modulo 4.
            beyond_fovea: smallest distance from the fovea in DD.
            reach: largest distance from the field's centre, as a fraction of its radius.
        """
        attempt = 0
        while True:
            # After 20 attempts, continue in the next quarter: this one may have no such spot.
            angle = (sector + attempt // 20 + rng.random()) * math.pi / 2
            away = self.radius * reach * math.sqrt(rng.random())
            spot = (self.centre[0] + away * math.cos(angle), self.centre[1] + away * math.sin(angle))
            in_frame = 0.03 * self.height < spot[1] < 0.97 * self.height
            off_disc = math.dist(spot, self.disc) > 0.75 * self.unit
            if in_frame and off_disc and math.dist(spot, self.fovea) > beyond_fovea * self.unit:
                return np.array(spot)
            attempt += 1


def illumination(rng: Generator, view: View) -> Floats:
    """Illumination (H, W), 0.35 to 1.12: an off-centre flash that falls off to the edge and is never quite even."""
    bright = view.centre + view.radius * rng.uniform(-0.45, 0.45, 2)
    fall = 1.05 - rng.uniform(0.2, 0.45) * _coarse_distance(view, bright) ** 2 / view.radius**2
    uneven = _noise(rng, 4, view) * rng.uniform(0.05, 0.15)
    return np.clip(_resized(fall, view) + uneven, 0.35, 1.12)


def retina(rng: Generator, view: View, light: Floats) -> Floats:
    """The eye without lesions: (3, H, W) float32, about 0 to 255.

    The colour axis comes first because that is several times as fast.
    """
    focus = rng.uniform(0.4, 1.1)
    pigment = rng.uniform(0, 1)
    fundus = rgb(228, 112, 40) * (1 - pigment) + rgb(152, 66, 24) * pigment
    hue = rgb(rng.uniform(0.92, 1.08), rng.uniform(0.72, 1.12), rng.uniform(0.4, 1.3)) * rgb(*view.camera.tint)

    texture = _noise(rng, 64, view) * 0.02 + _noise(rng, 9, view) * 0.05
    texture += view.rasterise(_choroid(rng, view), blur=4.0) * rng.uniform(0.0, 0.22)
    texture += _spot(view, view.disc, 0.95) * rng.uniform(0.03, 0.2)
    macula = _spot(view, view.fovea, 0.8) * rng.uniform(0.1, 0.35)
    macula += _spot(view, view.fovea, 0.22) * rng.uniform(0.1, 0.4)
    picture: Floats = fundus * hue * (light * (1 + texture))
    _absorb(picture, macula, rgb(0.75, 0.95, 1.0))

    disc = view.rasterise(_disc(rng, view), blur=2.0 + 3 * focus)
    pale = rgb(265, rng.uniform(185, 225), rng.uniform(85, 140)) * (0.25 + 0.75 * light)
    pale -= picture
    pale *= disc
    picture += pale
    arteries, veins = _vessels(rng, view)
    _absorb(picture, view.rasterise(veins, blur=focus), rgb(0.30, 0.54, 0.45))
    _absorb(picture, view.rasterise(arteries, blur=focus), rgb(0.14, 0.44, 0.36))
    return picture


def _absorb(picture: Floats, layer: Floats, share: Floats) -> None:
    """Darken ``picture`` in place by up to ``share`` of each colour where ``layer`` (H, W) is 1."""
    for channel in range(3):  # one plane at a time, which fits the processor's cache
        picture[channel] *= 1 - share[channel] * layer


def rgb(red: float, green: float, blue: float) -> Floats:
    """A colour as (3, 1, 1), which broadcasts over (H, W) and (3, H, W)."""
    return np.array([red, green, blue], dtype=np.float32)[:, None, None]


def _disc(rng: Generator, view: View) -> list[Shape]:
    """The optic disc, slightly higher than wide, and its paler cup."""
    around = circle(40) * (rng.uniform(0.42, 0.47), 0.5)
    cup = circle(30) * rng.uniform(0.16, 0.3) + rng.uniform(-0.06, 0.06, 2)
    return [(view.pixels(view.disc_dd + around), 195), (view.pixels(view.disc_dd + cup), 255)]


@dataclass(frozen=True)
class Vessels:
    """Vessels as curves, one per row, with a fixed number of samples along each."""

    points: Points
    """(n, samples, 2) in DD."""
    heading: Points
    """(n, samples) in radians."""
    width: Points
    """(n, samples) in DD."""
    alive: NDArray[np.intp]
    """(n,): number of samples before the vessel would enter the foveal avascular zone."""

    @classmethod
    def grow(
        cls, rng: Generator, start: Points, heading: Points, *, goal: Points, bend: float, length: Points, width: Points
    ) -> Vessels:
        """Grow winding vessels.

        Args:
            rng: the random generator.
            start: (n, 2) in DD.
            heading: (n,) initial direction in radians.
            goal: (n,) direction in radians that the vessel turns to.
            bend: the distance in DD over which it turns.
            length: (n,) in DD.
            width: (n,) initial width in DD.
        """
        samples, n = 36, len(start)
        along = np.linspace(0, 1, samples) * length[:, None]
        turn = goal[:, None] + (heading - goal)[:, None] * np.exp(-((along / bend) ** 1.5))
        for wavelength in (0.55, 1.3):
            period = wavelength * rng.uniform(0.7, 1.4, (n, 1))
            strength = rng.uniform(0.05, 0.22, (n, 1)) * rng.uniform(0.5, 1.4)
            turn += strength * np.sin(2 * math.pi * along / period + rng.uniform(0, 6, (n, 1)))
        step = length[:, None, None] / samples * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
        points = start[:, None] + np.cumsum(step, axis=1)
        outside = np.hypot(points[..., 0], points[..., 1]) > 0.42
        alive = np.logical_and.accumulate(outside, axis=1).sum(axis=1)
        return cls(points, turn, width[:, None] * (1 - 0.65 * along / length[:, None]), alive)

    def sprout(self, rng: Generator, count: int, *, shortest: float, longest: float) -> Vessels:
        """``count`` side branches at random places, ``shortest`` to ``longest`` DD long, which turn back towards their
        parent's direction.
        """
        row = rng.integers(0, len(self.points), count)
        column = (rng.uniform(0.12, 0.95, count) * (self.alive[row] - 1)).astype(int).clip(0)
        heading, side = self.heading[row, column], rng.choice([-1.0, 1.0], count)
        return Vessels.grow(
            rng,
            self.points[row, column],
            heading + side * rng.uniform(0.6, 1.2, count),
            goal=heading + side * rng.uniform(0.1, 0.8, count),
            bend=0.6,
            length=rng.uniform(shortest, longest, count),
            width=self.width[row, column] * rng.uniform(0.5, 0.75, count),
        )

    def ribbons(self, view: View, *, opacity: int = 255, narrowed: float = 1.0) -> list[Shape]:
        """The vessels as polygons, thinner ones fainter; ``narrowed`` is a factor on their width."""
        normal = np.stack([-np.sin(self.heading), np.cos(self.heading)], axis=-1)
        # A narrower line would have gaps on the supersampled canvas.
        half = np.maximum(self.width * narrowed / 2, 0.35 / view.unit)[..., None]
        left, right = view.pixels(self.points + half * normal), view.pixels(self.points - half * normal)
        faint = np.clip(0.4 + self.width[:, 0] / 0.07, 0, 1)
        return [
            (np.concatenate([left[row, :alive], right[row, :alive][::-1]]), int(opacity * faint[row]))
            for row, alive in enumerate(self.alive)
            if alive > 1
        ]


def _vessels(rng: Generator, view: View) -> tuple[list[Shape], list[Shape]]:
    """Arteries and veins. Each has arcades above and below the macula, two vessels towards the nose, and branches."""
    up = np.array([1.0, -1.0, 1.0, -1.0])
    trees = []
    for calibre in (rng.uniform(0.06, 0.08), rng.uniform(0.085, 0.115)):
        # Temporal arcades leave upright and bend round the macula; nasal vessels run outward nearly straight.
        arcades = Vessels.grow(
            rng,
            view.disc_dd + np.stack([rng.uniform(-0.1, 0.06, 4), up * rng.uniform(-0.06, 0.03, 4)], axis=1),
            up * np.radians([*rng.uniform(70, 112, 2), *rng.uniform(35, 85, 2)]),
            goal=up * np.radians([*rng.uniform(175, 212, 2), *rng.uniform(10, 60, 2)]),
            bend=rng.uniform(1.9, 2.9),
            length=np.array([7.5, 7.5, 4.0, 4.0]),
            width=calibre * np.array([1.0, 1.0, 0.7, 0.7]),
        )
        twigs = int(rng.integers(2, 5))
        to_macula = math.pi + rng.uniform(-0.75, 0.75, twigs)
        macular = Vessels.grow(
            rng,
            view.disc_dd + rng.uniform(-0.1, 0.1, (twigs, 2)),
            to_macula,
            goal=(to_macula + math.pi) / 2,
            bend=1.2,
            length=rng.uniform(1.2, 2.4, twigs),
            width=np.full(twigs, 0.35 * calibre),
        )
        branches = arcades.sprout(rng, int(rng.integers(15, 24)), shortest=1.2, longest=3.2)
        tips = branches.sprout(rng, int(rng.integers(18, 30)), shortest=0.5, longest=1.5)
        tree = [ribbon for part in (tips, macular, branches, arcades) for ribbon in part.ribbons(view)]
        # The light reflex: a paler line along the middle of the wide vessels.
        trees.append(tree + arcades.ribbons(view, opacity=180, narrowed=0.3))
    return trees[0], trees[1]


def _choroid(rng: Generator, view: View) -> list[Shape]:
    """The broad pale streaks of a choroid that is visible through the retina."""
    n = 70
    start = view.disc_distances(np.stack([view.place(rng, i, reach=1.0) for i in range(n)]))
    outward = np.arctan2(*(start - view.disc_dd).T[::-1]) + rng.normal(0, 0.3, n)
    length, width = rng.uniform(0.6, 1.8, n), rng.uniform(0.05, 0.14, n)
    return Vessels.grow(rng, start, outward, goal=outward, bend=1.0, length=length, width=width).ribbons(view)


def circle(corners: int) -> Points:
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_COARSE = 96
"""Side of the coarse grid on which slowly varying layers are computed, for speed."""


def _coarse_distance(view: View, spot: Points | tuple[float, float]) -> Floats:
    """Distance in pixels of each cell of the coarse grid from ``spot`` (x, y) in pixels."""
    steps = (np.arange(_COARSE, dtype=np.float32) + np.float32(0.5)) / np.float32(_COARSE)
    distance: Floats = np.hypot(
        steps * view.width - np.float32(spot[0]), (steps * view.height - np.float32(spot[1]))[:, None]
    )
    return distance


def _spot(view: View, middle: tuple[float, float], spread: float) -> Floats:
    """A round Gaussian (H, W) that is 1 at ``middle`` (in pixels), with standard deviation ``spread`` in DD."""
    return _resized(np.exp(-((_coarse_distance(view, middle) / np.float32(spread * view.unit)) ** 2) / 2), view)


def _noise(rng: Generator, cells: int, view: View) -> Floats:
    """Smooth noise (H, W), roughly standard normal, interpolated from ``cells`` x ``cells`` random values."""
    return _resized(rng.standard_normal((cells, cells), dtype=np.float32), view)


def _resized(coarse: Floats, view: View) -> Floats:
    whole = Image.fromarray(coarse).resize((view.width, view.height), Image.Resampling.BICUBIC)
    return np.asarray(whole, dtype=np.float32)

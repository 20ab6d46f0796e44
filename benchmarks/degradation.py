"""How the answers deteriorate with the quality of the photographs: model files on degraded copies of a split.

    python benchmarks/degradation.py DATA --split valid --model released.onnx --model candidate.onnx

Each photograph is degraded at its full size, in one way at a time, and scored as retina-score does. Prints a Markdown
table, row by row. Grain is noise, given by its standard deviation in grey levels of 255 (also in the dark around the
field); blur is in pixels of a photograph of 512.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from zlib import crc32

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from retina.runtime import RELEASED, RetinaModel
from retina.runtime.picture import load
from retina.runtime.terminal import exit_codes
from retina.train.data import SPLITS, Photo, read_dataset
from retina.train.evaluation import score_split
from retina.train.markdown import brief
from retina.train.metrics import evaluate
from scipy.ndimage import binary_fill_holes, binary_opening

Degrade = Callable[[Image.Image, np.random.Generator], Image.Image]
FIGURES = (
    ("dr", "kappa", "DR quadratic kappa"),
    ("referable_dr", "auc", "Referable DR AUC"),
    ("referable_dr", "sensitivity", "sensitivity"),
    ("referable_dr", "specificity", "specificity"),
    ("me", "auc", "ME AUC"),
)


def _levels(change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Degrade:
    """Degrade by a function of pixel values (H, W, 3) in [0, 1], whose result is clipped to [0, 1]."""

    def degrade(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        changed = change(np.asarray(picture) / 255.0).clip(0.0, 1.0)
        return Image.fromarray((changed * 255.0).round().astype(np.uint8))

    return degrade


def grain(sigma: float, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture)
    return Image.fromarray((pixels + rng.normal(0.0, sigma, pixels.shape)).clip(0, 255).round().astype(np.uint8))


def jpeg(quality: int, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def blur(sigma: float, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(sigma * min(picture.size) / 512))


def fewer_pixels(side: int, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.BOX)


def middle(share: float, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A narrower field of view: the central ``share`` of width and height, without the field's edge."""
    width, height = picture.size
    x, y = (1.0 - share) / 2.0 * width, (1.0 - share) / 2.0 * height
    return picture.crop((round(x), round(y), round(width - x), round(height - y)))


def dust(
    count: int, depth: float, radii: tuple[float, float], picture: Image.Image, rng: np.random.Generator
) -> Image.Image:
    """Soft, dark, colourless grains on lens or sensor, in the central nine tenths of the picture.

    ``depth`` is the share of light that the darkest grain absorbs, the faintest half as much; ``radii`` are the
    smallest and largest radius in pixels of a picture of 512.
    """
    width, height = picture.size
    rows, columns = np.ogrid[:height, :width]
    taken = np.zeros((height, width))
    for _ in range(count):
        angle, away = rng.uniform(0.0, 2.0 * np.pi), 0.45 * np.sqrt(rng.uniform())
        x, y = width * (0.5 + away * np.cos(angle)), height * (0.5 + away * np.sin(angle))
        radius = rng.uniform(*radii) * min(picture.size) / 512
        distance = ((columns - x) ** 2 + (rows - y) ** 2) / radius**2
        taken = np.maximum(taken, depth * rng.uniform(0.5, 1.0) * np.exp(-(distance**2)))
    return Image.fromarray((np.asarray(picture) * (1.0 - taken[..., None])).round().astype(np.uint8))


def cut(share: float, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Black at top and bottom (``share`` of the height each), as if the sensor were lower than the field."""
    width, height = picture.size
    black = Image.new("RGB", (width, round(share * height)))
    degraded = picture.copy()
    degraded.paste(black, (0, 0))
    degraded.paste(black, (0, height - black.height))
    return degraded


def wider(picture: Image.Image) -> Image.Image:
    """The picture on a black 3:2 frame, as from a camera's wide sensor."""
    width, height = picture.size
    sensor = Image.new("RGB", (round(1.5 * height), height))
    sensor.paste(picture, ((sensor.width - width) // 2, 0))
    return sensor


def captioned(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    sensor = wider(picture)
    side = sensor.height
    pen, font = ImageDraw.Draw(sensor), ImageFont.load_default(side / 24)
    pen.text((4, 4), "OD 0042\n2024-03-01", fill="white", font=font)
    pen.text((sensor.width - side // 4, side - side // 10), "45\N{DEGREE SIGN} macula", fill="white", font=font)
    return sensor


def grey_around(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A surround of grey level 20 with grain of 10."""
    pixels = np.asarray(wider(picture))
    field = binary_fill_holes(binary_opening(pixels.max(axis=2) > 25, iterations=2))[..., None]
    grey = pixels + rng.normal(20.0, 10.0, pixels.shape)
    return Image.fromarray(np.where(field, pixels, grey).clip(0, 255).round().astype(np.uint8))


WAYS: Mapping[str, Degrade] = {
    "as it is": lambda picture, rng: picture,
    "256 x 256 pixels": partial(fewer_pixels, 256),
    "192 x 192 pixels": partial(fewer_pixels, 192),
    "blur 2": partial(blur, 2.0),
    "blur 3": partial(blur, 3.0),
    "JPEG quality 50": partial(jpeg, 50),
    "JPEG quality 30": partial(jpeg, 30),
    "JPEG quality 10": partial(jpeg, 10),
    "grain 5": partial(grain, 5.0),
    "grain 12": partial(grain, 12.0),
    "grain 25": partial(grain, 25.0),
    "a quarter of the light": _levels(lambda x: x * 0.25),
    "gamma 0.6, washed out": _levels(lambda x: x**0.6),
    "warm: red 1.25, blue 0.6": _levels(lambda x: x * np.array([1.25, 1.0, 0.6])),
    "grey": lambda picture, rng: picture.convert("L").convert("RGB"),
    "haze, 60%": _levels(lambda x: 0.4 * x + 0.6 * np.array([0.7, 0.55, 0.4]) * (x.max(axis=2, keepdims=True) > 0.08)),
    "dust, 5 faint grains": partial(dust, 5, 0.12, (2.0, 5.0)),
    "dust, 10 dark grains": partial(dust, 10, 0.35, (3.0, 7.0)),
    "dust, 25 small grains": partial(dust, 25, 0.25, (1.5, 3.5)),
    "a fifth cut off, top and bottom": partial(cut, 0.2),
    "the middle 65%": partial(middle, 0.65),
    "the middle 50%": partial(middle, 0.5),
    "3:2, captions beside the field": captioned,
    "3:2, grey grain around the field": grey_around,
}
"""The ways to degrade a photograph, by the name of the row."""


def degraded(photos: tuple[Photo, ...], degrade: Degrade, folder: Path) -> Iterator[Photo]:
    """Write degraded copies as PNG into a folder; the random numbers depend only on the photograph's name."""
    for number, photo in enumerate(photos):
        path = folder / f"{number}.png"
        rng = np.random.default_rng(crc32(photo.image_name.encode()))
        degrade(load(photo.path), rng).save(path, compress_level=1)
        yield replace(photo, path=path)


@click.command(context_settings={"show_default": True})
@click.argument("root", metavar="DATA", type=click.Path(path_type=Path, exists=True))
@click.option("--split", type=click.Choice(SPLITS), default="valid")
@click.option("--model", "files", type=click.Path(path_type=Path), multiple=True, default=(RELEASED,))
@click.option("--way", "ways", type=click.Choice(list(WAYS)), multiple=True, default=tuple(WAYS))
@exit_codes("degradation.py")
def main(root: Path, split: str, files: tuple[Path, ...], ways: tuple[str, ...]) -> None:
    """Score degraded copies of a split with each model file."""
    data = read_dataset(root)
    models = [RetinaModel(file) for file in files]
    click.echo("| photograph | model | " + " | ".join(title for *_, title in FIGURES) + " |")
    click.echo("|---" * (2 + len(FIGURES)) + "|")
    for way in ways:
        with tempfile.TemporaryDirectory() as folder:
            photos = tuple(degraded(data.splits[split].photos, WAYS[way], Path(folder)))
            for model in models:
                body = evaluate(score_split(model, photos), model.contract)["all"]
                figures = " | ".join(brief(body[task][name]) for task, name, _ in FIGURES)
                click.echo(f"| {way} | {model.path.name} {model.sha256[:8]} | {figures} |")


if __name__ == "__main__":
    main()

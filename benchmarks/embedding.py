"""How common mistakes in an embedding change the answers, and how much other programs differ from Python.

    python benchmarks/embedding.py MODEL.onnx PHOTOGRAPHS [--count 12]
        [--program "node examples/node/score.js"] [--program build/score]

Each mistake is made with the decoded pixels of every photograph, and the answer is compared with the right one: the
largest difference of a probability, as median and maximum over the photographs, and how often each decision differs.
``--program`` runs a program of examples/ on the files. Prints two Markdown tables, for docs/embedding.md.
"""

from __future__ import annotations

import csv
import io
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from retina.runtime import Prediction, RetinaModel
from retina.runtime.annotations import IMAGE_NAME
from retina.runtime.folder import find_pictures
from retina.runtime.picture import decode
from retina.runtime.terminal import exit_codes

Pixels = NDArray[np.uint8]
Mistake = Callable[[Pixels], Pixels]


def resized(side: int, how: Image.Resampling, *, square: bool = False) -> Mistake:
    """Resize to ``side`` pixels in height, or to a square of that side, before the pixels are passed to the model."""

    def change(pixels: Pixels) -> Pixels:
        height, width = pixels.shape[:2]
        size = (side, side) if square else (round(side * width / height), side)
        return np.array(Image.fromarray(pixels).resize(size, how))

    return change


def without_antialias(side: int) -> Mistake:
    """Resize bilinearly from the four nearest pixels only, as OpenCV and canvas do; all other pixels are ignored."""

    def change(pixels: Pixels) -> Pixels:
        height, width = pixels.shape[:2]
        step = height / side
        scale = (step, 0, 0, 0, step, 0)  # Pillow maps centres of pixels to centres
        image = Image.fromarray(pixels)
        bilinear = Image.Resampling.BILINEAR
        return np.array(image.transform((round(width / step), side), Image.Transform.AFFINE, scale, bilinear))

    return change


def nearest_chroma(pixels: Pixels) -> Pixels:
    """4:2:0 subsampling with each chroma sample repeated, instead of interpolated as in libjpeg."""
    ycc = np.array(Image.fromarray(pixels).convert("YCbCr"))
    height, width = (side // 2 * 2 for side in ycc.shape[:2])
    blocks = ycc[:height, :width, 1:].reshape(height // 2, 2, width // 2, 2, 2).astype(np.uint16)
    chroma = ((blocks.sum((1, 3)) + 2) // 4).astype(np.uint8)
    ycc[:height, :width, 1:] = chroma.repeat(2, 0).repeat(2, 1)
    return np.array(Image.fromarray(ycc, "YCbCr").convert("RGB"))


def saved_again(quality: int) -> Mistake:
    def change(pixels: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return decode(file.getvalue())

    return change


def white_surround(pixels: Pixels) -> Pixels:
    """A picture whose surround is transparent, composited on white instead of on black."""
    outside = (pixels.max(2) <= 20)[..., None]
    return np.where(outside, np.uint8(255), pixels)


MISTAKES: dict[str, Mistake] = {
    "BGR instead of RGB": lambda pixels: pixels[..., ::-1],
    "EXIF orientation ignored: a quarter turn": np.rot90,
    "EXIF orientation ignored: half a turn": lambda pixels: pixels[::-1, ::-1],
    "mirrored": lambda pixels: pixels[:, ::-1],
    "transparent surround on white": white_surround,
    "16 bits: high byte, 12 bits stored": lambda pixels: pixels // 16,
    "16 bits: clipped at 255": lambda pixels: np.where(pixels > 0, np.uint8(255), pixels),
    "scaled to 0 ... 1, then cast": lambda pixels: pixels // 255,
    "colour samples repeated (another JPEG decoder)": nearest_chroma,
    "saved again as JPEG, quality 75": saved_again(75),
    "resized before: 1000 px high, antialiased": resized(1000, Image.Resampling.BILINEAR),
    "resized before: 512 px high, antialiased": resized(512, Image.Resampling.BILINEAR),
    "resized before: 512 px high, no antialiasing": without_antialias(512),
    "resized before: squashed to 384 x 384": resized(384, Image.Resampling.BILINEAR, square=True),
}


@dataclass
class Differences:
    """How much answers differ from the right ones."""

    worst: list[float] = field(default_factory=list)
    """Largest difference of a probability, for each photograph."""
    grades: int = 0
    risks: int = 0
    referrals: int = 0

    def add(self, right: Prediction, probs: Sequence[float], grade: int, risk: int, referable: bool | None) -> None:
        expected = [*right.dr_probs.values(), right.me_prob]
        self.worst.append(max(abs(a - b) for a, b in zip(expected, probs, strict=True)))
        self.grades += grade != right.grade
        self.risks += risk != right.me_risk
        self.referrals += referable is not None and referable != right.referable

    def cells(self) -> list[str]:
        n = len(self.worst)
        sizes = [
            f"{value:.4f}" if value < 0.01 else f"{value:.2f}" for value in (np.median(self.worst), max(self.worst))
        ]
        return [*sizes, *(f"{count} of {n}" for count in (self.grades, self.risks, self.referrals))]


def measure_mistakes(model: RetinaModel, files: Sequence[Path]) -> dict[str, Differences]:
    found = {name: Differences() for name in MISTAKES}
    for file in files:
        pixels = decode(file)
        right = model.predict_pixels(pixels)
        for name, mistake in MISTAKES.items():
            wrong = model.predict_pixels(np.ascontiguousarray(mistake(pixels)))
            found[name].add(
                right, [*wrong.dr_probs.values(), wrong.me_prob], wrong.grade, wrong.me_risk, wrong.referable
            )
    return found


def measure_program(command: str, model: RetinaModel, files: Sequence[Path]) -> Differences:
    """The differences of a program of examples/ on the files themselves; its rows do not have referrals."""
    found = Differences()
    result = subprocess.run(
        [*shlex.split(command), str(model.path), *map(str, files)], capture_output=True, text=True, check=True
    )
    for row in csv.DictReader(io.StringIO(result.stdout)):
        right = model.predict_pixels(decode(row[IMAGE_NAME]))
        probs = [float(cell) for name, cell in row.items() if name.startswith("dr_prob_") or name == "me_prob"]
        found.add(right, probs, int(row["Pred DR grade (orig)"]), int(row["Pred ME risk"]), None)
    return found


def print_table(first: str, rows: dict[str, Differences], columns: int) -> None:
    head = [first, "median", "largest", "another grade", "another ME risk", "another referral"][: columns + 1]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, found in rows.items():
        print(f"| {' | '.join([name, *found.cells()[:columns]])} |")
    print()


@click.command(context_settings={"show_default": True})
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path, exists=True))
@click.argument("photographs", metavar="FOLDER", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--count", type=click.IntRange(1), default=12, help="Photographs, evenly spread.")
@click.option("--program", "programs", multiple=True, help="A program of examples/ to compare with Python.")
@exit_codes("embedding.py")
def main(model_file: Path, photographs: Path, count: int, programs: tuple[str, ...]) -> None:
    """Measure what a program that embeds the model file may get wrong, and by how much each mistake moves answers."""
    names = find_pictures(photographs).names
    chosen = sorted({round(i) for i in np.linspace(0, len(names) - 1, min(count, len(names)))})
    files = [photographs / names[i] for i in chosen]
    model = RetinaModel(model_file, exact=True)
    print(f"{model.path.name}, sha256 {model.sha256[:12]}, {len(files)} photographs of {photographs.name}\n")
    if programs:
        print_table("program", {command: measure_program(command, model, files) for command in programs}, 4)
    print_table("what the embedding does", measure_mistakes(model, files), 5)


if __name__ == "__main__":
    main()

"""Drawn colour fundus photographs: seeded, labelled, and with a mask for every lesion.

They are for the demo, the tests and the benchmarks, and say nothing about accuracy on real eyes. The lesions follow the
International Clinical Diabetic Retinopathy scale (Wilkinson et al., Ophthalmology 2003) in kind, number and place, but
are drawn larger than life, so that a small network learns to find them at 128 px within minutes.

    python -m retina.train.synthetic data --train 120 --valid 40 --test 40 --size 512 --seed 0

Eye, lesions and sensor noise use three separate random streams of one seed, so a seed gives the same eye at every
grade, and pixels differ only inside the lesions' masks.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image

from ..runtime.annotations import ANNOTATIONS_FILE, DR_GRADE, IMAGE_NAME, IMAGES_DIR, ME_GRADE, OPTIONAL
from ..runtime.errors import OutputError, UsageError
from ..runtime.formats import MAX_PIXELS
from ..runtime.options import SETTINGS, PathName
from ..runtime.output_file import require_empty
from ..runtime.progress import progress
from ..runtime.terminal import exit_codes, tell
from .data import SPLITS
from .eye import CAMERAS, Side, View, illumination, retina
from .lesions import LESIONS, macular_exudates

MIN_SIZE, MAX_SIZE = 64, math.isqrt(MAX_PIXELS)
LESION_LISTING = "lesions.csv"
"""The list of a folder of photographs with lesion masks, in its column Image name."""
GRADES = (0, 1, 2, 3, 4)
GRADE_SHARES = (0.52, 0.13, 0.23, 0.075, 0.045)
ME_SHARES = (0.0, 0.03, 0.46, 0.77, 0.72)
"""Share of each grade's photographs with macular edema risk. Like GRADE_SHARES, the share of each grade, these are
close to those of Messidor-2 and IDRiD together."""


@dataclass(frozen=True)
class DrawnPhotograph:
    """A drawn fundus photograph and its ground truth."""

    picture: NDArray[np.uint8]
    """(H, W, 3) uint8 RGB."""
    masks: Mapping[str, NDArray[np.bool_]]
    """(H, W) bool for each kind in LESIONS; all False if the kind is absent."""
    dr_grade: int
    """0 to 4."""
    me_risk: int
    """1 if and only if hard exudates lie within one disc diameter of the fovea."""
    eye: Side
    source: str
    """Name of the camera."""
    fovea: tuple[float, float]
    """(x, y) in pixels."""
    disc: tuple[float, float]
    """(x, y) of the optic disc's centre in pixels."""
    disc_diameter: float
    """In pixels."""


@dataclass(frozen=True)
class DatasetRow:
    """One row of ``annotations.csv`` and its photograph."""

    split: str
    name: str
    """As in the annotations; its ending may differ from the file's."""
    image: Path
    dr_grade: int
    me_risk: int
    source: str
    patient: str


def photograph(
    grade: int,
    me_risk: int,
    size: int = 512,
    *,
    seed: int,
    eye: Side | None = None,
    source: str | None = None,
) -> DrawnPhotograph:
    """Draw one photograph; the same arguments give the same bytes.

    Args:
        grade: diabetic retinopathy, 0 to 4.
        me_risk: 1 for hard exudates within one disc diameter of the fovea, else 0; grade 0 has none.
        size: the frame's longer side in pixels, 64 to 10,000: then its pixels are as many as the decoder takes.
        seed: 0 or more; the same seed draws the same eye at every grade.
        eye: ``left`` or ``right``; None: drawn by the seed.
        source: a name in CAMERAS; None: drawn by the seed.

    Raises:
        UsageError: an argument is out of its range.
    """
    _expect("grade", grade in GRADES, "0 to 4", grade)
    _expect("me_risk", me_risk in (0, 1), "0 or 1", me_risk)
    _expect("me_risk", not (grade == 0 and me_risk == 1), "0 at grade 0: hard exudates are retinopathy", me_risk)
    _expect("size", MIN_SIZE <= size <= MAX_SIZE, f"{MIN_SIZE} to {MAX_SIZE}", size)
    _expect("seed", seed >= 0, "0 or more", seed)
    _expect("source", source is None or source in CAMERAS, " or ".join(CAMERAS), source)
    anatomy, disease, sensor = (default_rng([seed, stream]) for stream in range(3))

    view = View.draw(anatomy, size, eye, source)
    light, field = illumination(anatomy, view), view.field(anatomy)
    picture = retina(anatomy, view, light)  # (3, H, W)
    pixels = picture.reshape(3, -1)
    masks = {}
    for kind, lesion in LESIONS.items():
        shapes = lesion.shapes(disease, view, int(disease.integers(*lesion.counts[grade], endpoint=True)))
        if kind == "EX" and me_risk:
            shapes += macular_exudates(disease, view)
        if not shapes:
            masks[kind] = np.zeros((view.height, view.width), dtype=np.bool_)
            continue
        opacity = view.rasterise(shapes, blur=lesion.blur)
        # Anything fainter than a tenth would be lost in the sensor noise: it is neither drawn nor in the mask.
        masks[kind] = (opacity > 0.1) & (field > 0.5)
        inside = np.flatnonzero(masks[kind])
        clear, lit = pixels[:, inside], light.ravel()[inside]
        lesioned = clear * lesion.transmission[..., 0] + lit * lesion.glow[..., 0]
        pixels[:, inside] = clear + opacity.ravel()[inside] * (lesioned - clear)

    noise = 2 * sensor.standard_normal((view.height, view.width), dtype=np.float32)
    picture *= field
    picture += noise * (0.3 + 0.7 * field)
    np.clip(picture, 0, 255, out=picture)
    return DrawnPhotograph(
        np.ascontiguousarray(picture.astype(np.uint8).transpose(1, 2, 0)),
        masks,
        dr_grade=grade,
        me_risk=me_risk,
        eye=view.eye,
        source=view.camera.source,
        fovea=view.fovea,
        disc=view.disc,
        disc_diameter=view.unit,
    )


def write_dataset(folder: Path, per_split: Mapping[str, int], *, size: int = 512, seed: int = 0) -> list[DatasetRow]:
    """Write ``folder/{split}/images/*.jpg``, ``annotations.csv`` and ``masks/<image>_<kind>.png`` (0 or 255).

    Grades are as imbalanced as in real data; every grade occurs in a split of 10 or more. Patients have one or two
    photographs, all in one split. The annotations are as untidy as real ones: names ending in .png or .JPG, or without
    an ending, for .jpg files; a header with a trailing blank; CRLF.

    Args:
        folder: its split folders must not exist yet, or be empty.
        per_split: number of photographs, for example ``{"train": 120, "valid": 40, "test": 40}``.
        size: longer side in pixels, at least 64.
        seed: 0 or more; the same arguments give the same files.

    Returns:
        an entry for each photograph, in the order drawn.

    Raises:
        OutputError: a split folder already holds files, or the folder cannot be written.
        UsageError: ``size`` is too small.
    """
    for split in per_split:
        require_empty(folder / split)
    rng = default_rng([seed, 3])
    entries: list[DatasetRow] = []
    try:
        with progress(sum(per_split.values()), "Drawing photographs") as advance:
            for split, count in per_split.items():
                images, masks = folder / split / IMAGES_DIR, folder / split / "masks"
                images.mkdir(parents=True, exist_ok=True)
                masks.mkdir(exist_ok=True)
                rows = []
                for case in _cases(rng, count):
                    stem, name = _names(rng, case.source, number=len(entries) + 1)
                    photo = photograph(
                        case.grade,
                        case.me_risk,
                        size,
                        seed=int(rng.integers(2**32)),
                        eye=case.eye,
                        source=case.source,
                    )
                    Image.fromarray(photo.picture).save(images / f"{stem}.jpg", quality=92)
                    for kind, mask in photo.masks.items():
                        if mask.any():
                            _save_mask(masks / f"{stem}_{kind}.png", mask)
                    patient = f"{split}-{case.patient:04d}"
                    entries.append(
                        DatasetRow(split, name, images / f"{stem}.jpg", case.grade, case.me_risk, case.source, patient)
                    )
                    degrees = CAMERAS[case.source].degrees
                    caption = f"Colour fundus photograph, {degrees} degree field, macula centred, drawn"
                    rows.append([name, case.grade, case.me_risk, caption, case.source, patient])
                    advance()
                header = [IMAGE_NAME, DR_GRADE, f"{ME_GRADE} ", *OPTIONAL]
                _write_csv(folder / split / ANNOTATIONS_FILE, header, sorted(rows))
    except OSError as err:
        raise OutputError(f"{folder}: cannot be written: {err}. Choose another folder or free some space.") from err
    return entries


def write_lesions(folder: Path, count: int, *, size: int = 1024, seed: int = 0) -> list[Path]:
    """Write ``count`` photographs of grades 2 to 4 as ``X.jpg``, with ``X_EX.png``, ``X_HE.png`` and ``lesions.csv``.

    The masks (0 or 255) are for comparison with Grad-CAM maps; HE includes preretinal haemorrhages.

    Returns:
        the photographs' paths.

    Raises:
        OutputError: the folder already holds files or cannot be written.
        UsageError: ``size`` is below 64.
    """
    require_empty(folder)
    rng = default_rng([seed, 4])
    paths, rows = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            photo = photograph(2 + index % 3, (index // 3 + 1) % 2, size, seed=int(rng.integers(2**32)))
            path = folder / f"drawn_{index + 1:02d}.jpg"
            exudates, haemorrhages = photo.masks["EX"], photo.masks["HE"] | photo.masks["PH"]
            Image.fromarray(photo.picture).save(path, quality=92)
            _save_mask(path.with_name(f"{path.stem}_EX.png"), exudates)
            _save_mask(path.with_name(f"{path.stem}_HE.png"), haemorrhages)
            rows.append([path.name, "", int(exudates.sum()), int(haemorrhages.sum())])
            paths.append(path)
        header = [IMAGE_NAME, "Same eye in the test split", "Hard exudate pixels", "Haemorrhage pixels"]
        _write_csv(folder / LESION_LISTING, header, rows)
    except OSError as err:
        raise OutputError(f"{folder}: cannot be written: {err}. Choose another folder or free some space.") from err
    return paths


@dataclass(frozen=True)
class _Case:
    patient: int
    eye: Side
    grade: int
    me_risk: int
    source: str


def _cases(rng: Generator, count: int) -> list[_Case]:
    """``count`` cases of patients with one or two eyes photographed; both eyes mostly have the same grade."""
    grades = [grade for grade, n in enumerate(_shares(count)) for _ in range(n)]
    risks = {grade: round(ME_SHARES[grade] * n) for grade, n in Counter(grades).items()}
    cases: list[_Case] = []
    patient = 0
    while len(cases) < count:
        patient += 1
        source = list(CAMERAS)[patient % len(CAMERAS)]
        eyes: list[Side] = ["left", "right"]
        rng.shuffle(eyes)
        for eye in eyes[: int(rng.integers(1, 3))]:
            if len(cases) < count:
                grade = grades[len(cases)]
                me_risk = int(risks[grade] > 0)
                risks[grade] -= me_risk
                cases.append(_Case(patient, eye, grade, me_risk, source))
    return cases


def _shares(count: int) -> list[int]:
    """Number of photographs of each grade: GRADE_SHARES by largest remainder, at least one each if ``count`` >= 10."""
    least = 1 if count >= 2 * len(GRADES) else 0
    exact = np.maximum(np.array(GRADE_SHARES) * count, least)
    shares = np.floor(exact).astype(int)
    for grade in np.argsort(shares - exact)[: max(0, count - shares.sum())]:
        shares[grade] += 1
    shares[0] += count - shares.sum()
    return [int(n) for n in shares]


def _names(rng: Generator, source: str, number: int) -> tuple[str, str]:
    """The file's stem, and its name in the annotations."""
    if source == "larga":
        return f"LARGA_{number:04d}", f"LARGA_{number:04d}"
    if rng.random() < 0.5:
        return f"IM{number:06d}", f"IM{number:06d}.JPG"
    stem = f"2024{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}_{number:05d}_0100_PP"
    return stem, f"{stem}.png"


def _save_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(path)


def _write_csv(path: Path, header: list[str], rows: Iterable[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(header)
        writer.writerows(rows)


def _expect(what: str, holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise UsageError(f"drawn photograph: expected {what} {expected}, found {found}")


@click.command(context_settings=SETTINGS)
@click.argument("folder", type=PathName())
@click.option("--train", type=click.IntRange(min=0), default=120, help="Photographs to train on.")
@click.option("--valid", type=click.IntRange(min=0), default=40, help="Photographs to choose the best epoch by.")
@click.option("--test", type=click.IntRange(min=0), default=40, help="Photographs to report on.")
@click.option(
    "--lesions", type=click.IntRange(min=0), default=0, help="Further photographs with masks, in FOLDER/lesions."
)
@click.option("--size", type=click.IntRange(min=MIN_SIZE, max=MAX_SIZE), default=512, help="Longer side in pixels.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The same seed draws the same set.")
def main(folder: Path, train: int, valid: int, test: int, lesions: int, size: int, seed: int) -> None:
    """Draw a labelled set of fundus photographs into FOLDER, ready for retina-train.

    For trying things out only: a model trained on it knows nothing about real eyes.

    Example:  python -m retina.train.synthetic data --train 120 --valid 40 --test 40
    """
    with exit_codes("retina.train.synthetic"):
        entries = write_dataset(folder, dict(zip(SPLITS, (train, valid, test), strict=True)), size=size, seed=seed)
        masked = write_lesions(folder / "lesions", lesions, size=size, seed=seed) if lesions else []
    for split in SPLITS:
        part = [entry for entry in entries if entry.split == split]
        grades = Counter(entry.dr_grade for entry in part)
        tell(
            f"{folder / split}: {len(part)} photographs of {len({entry.patient for entry in part})} patients, "
            f"DR 0/1/2/3/4: {'/'.join(str(grades[grade]) for grade in GRADES)}, "
            f"ME risk: {sum(entry.me_risk for entry in part)}"
        )
    if masked:
        tell(f"{folder / 'lesions'}: {len(masked)} photographs with masks of exudates and haemorrhages")


if __name__ == "__main__":
    main()

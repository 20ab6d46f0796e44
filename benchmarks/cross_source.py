"""The effect of each change of the released recipe, on the source it is trained on and on cameras it has never seen.

    python benchmarks/cross_source.py DATA --weights resnet50.pth --image-size 224 --epochs 4

The rows lead from the notebook's recipe to released, one more change in each; then to the three branches that start
where that ended, with sizes and epochs in the recipes' own proportions; and to the mean of where these ended, as in the
model that ships. DATA is laid out as for retina-train, with the column Source. Each row is trained on one source's
photographs in train/; its best epoch is chosen on that source's in valid/ (the columns "own"), and it is tested on the
other sources' photographs in train/ and valid/. The test split is not used, because this is for choosing a recipe.
Prints Markdown, row by row.
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import click
from retina.runtime.annotations import (
    ANNOTATIONS_FILE,
    DR_GRADE,
    IMAGE_NAME,
    IMAGES_DIR,
    ME_GRADE,
    NOT_GRADED,
    PATIENT,
    SOURCE,
)
from retina.runtime.errors import UsageError
from retina.runtime.terminal import exit_codes
from retina.train import Run, TrainConfig, train
from retina.train.checkpoint import load_checkpoint
from retina.train.config import RECIPES
from retina.train.data import DataSet, Photo, read_dataset
from retina.train.markdown import brief
from retina.train.metrics import HEADLINES
from retina.train.run import BEST, FINAL
from retina.train.soup import average, evaluate_checkpoint, items_of

STEPS: tuple[tuple[str, ...], ...] = (
    (),
    ("augment",),
    ("dr_targets",),
    ("class_weights",),
    ("optimizer", "schedule", "lr_backbone"),
    ("ema",),
)
"""The options that each row takes over from released, in addition to those of the rows before it."""
BRANCHES = ("released-512", "released-open", "released-640")
"""The recipes of the rows after STEPS. The last row is their mean."""
MEAN = len(STEPS) + len(BRANCHES)
FIGURES = tuple(figure for figure in HEADLINES if figure[:2] != ("dr", "accuracy"))
"""Without DR accuracy, which depends more on how often each grade occurs in a source than on the recipe."""
FIELDS = (IMAGE_NAME, DR_GRADE, ME_GRADE, SOURCE, PATIENT)


def write_split(folder: Path, photos: list[Photo]) -> None:
    """Write links to the photographs, and their annotations."""
    (folder / IMAGES_DIR).mkdir(parents=True)
    with (folder / ANNOTATIONS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for n, photo in enumerate(photos):
            name = f"{n:06}_{photo.path.name}"  # those of train and valid may have the same name
            (folder / IMAGES_DIR / name).symlink_to(photo.path.resolve())
            labels = (NOT_GRADED if label is None else label for label in (photo.dr_grade, photo.me_label))
            writer.writerow([name, *labels, photo.source, photo.patient])


def write_view(data: DataSet, source: str, folder: Path) -> None:
    """Write a data set with one source in train/ and valid/, and the other sources' photographs of both in test/."""
    own = {name: [p for p in data.splits[name].photos if p.source == source] for name in ("train", "valid")}
    others = [p for name in ("train", "valid") for p in data.splits[name].photos if p.source != source]
    for name, photos in {**own, "test": others}.items():
        write_split(folder / name, photos)


def name_of(step: int) -> str:
    """The name of a row: what it changes."""
    if step == MEAN:
        return "the mean of the three"
    if step >= len(STEPS):
        return f"then {BRANCHES[step - len(STEPS)]}"
    first = RECIPES["released"]
    own = ", ".join(f"{name.replace('_', '-')} {first[name]}" for name in STEPS[step])
    return f"+ {own}" if own else "the notebook's"


def options(step: int, image_size: int, epochs: int) -> dict[str, Any]:
    """The options of a row that is trained; ``image_size`` (pixels) and ``epochs`` are the first stage's."""
    first = RECIPES["released"]
    if step < len(STEPS):
        asked = {name: first[name] for names in STEPS[: step + 1] for name in names}
        return {**asked, "image_size": image_size, "epochs": epochs}
    recipe = RECIPES[BRANCHES[step - len(STEPS)]]
    return {
        **recipe,
        "calibrate": "none",
        "image_size": round(image_size * recipe["image_size"] / first["image_size"]),
        "epochs": max(1, round(epochs * recipe["epochs"] / first["epochs"])),
    }


@click.command(context_settings={"show_default": True})
@click.argument("root", metavar="DATA", type=click.Path(path_type=Path, exists=True))
@click.option("--step", "steps", type=click.IntRange(0, MEAN), multiple=True, default=tuple(range(MEAN + 1)))
@click.option("--source", "sources", multiple=True, help="Train on this source.  [default: each in turn]")
@click.option("--weights", default="imagenet")
@click.option("--backbone", default="resnet50")
@click.option("--image-size", default=224)
@click.option("--epochs", default=4, help="Epochs on the largest source; the others get as many steps.")
@click.option("--seed", default=42)
@click.option("--workers", type=int, help="Processes that load photographs during training.")
@exit_codes("cross_source.py")
def main(
    root: Path,
    steps: tuple[int, ...],
    sources: tuple[str, ...],
    weights: str,
    backbone: str,
    image_size: int,
    epochs: int,
    seed: int,
    workers: int | None,
) -> None:
    """Train on each source alone and test on the others, one change at a time."""
    data = read_dataset(root)
    counts = Counter(photo.source for photo in data.splits["train"].photos)
    if unknown := set(sources) - set(counts):
        raise UsageError(f"--source {min(unknown)}: expected one of {', '.join(sorted(counts))}")
    trained_on = sorted(set(sources or counts))
    titles = [f"{where} {title}" for where in ("own", "other") for *_, title in FIGURES]
    click.echo("| recipe | trained on | tested on | " + " | ".join(titles) + " |")
    click.echo("|---" * (3 + len(titles)) + "|")
    with tempfile.TemporaryDirectory() as temporary:
        for source in trained_on:
            write_view(data, source, Path(temporary) / source)
        artifacts = Path(temporary) / "artifacts"

        def trained(step: int, source: str) -> Path:
            run = Run(artifacts, f"{step}-{source}")
            if not run.folder.exists():
                start = trained(len(STEPS) - 1, source) / FINAL if step >= len(STEPS) else weights
                asked = options(step, image_size, round(epochs * max(counts.values()) / counts[source]))
                asked |= {"data": str(Path(temporary) / source), "weights": str(start), "backbone": backbone}
                train(TrainConfig(**asked, seed=seed + max(0, step - len(STEPS) + 1), workers=workers), run)
            return run.folder

        def figures_of(step: int, source: str) -> dict[str, Any]:
            if step < MEAN:
                figures: dict[str, Any] = load_checkpoint(trained(step, source) / BEST).metrics["splits"]
                return figures
            ends = [trained(branch, source) / FINAL for branch in range(len(STEPS), MEAN)]
            mean = average([(str(end), load_checkpoint(end)) for end in ends])
            view = read_dataset(Path(temporary) / source)
            return {split: evaluate_checkpoint(mean, items_of(mean, view, split)) for split in ("valid", "test")}

        for step, source in product(steps, trained_on):
            splits = figures_of(step, source)
            own, other = splits["valid"]["all"], splits["test"]["all"]
            figures = " | ".join(brief(part[task][key]) for part in (own, other) for task, key, _ in FIGURES)
            others = ", ".join(name for name in sorted(counts) if name != source)
            click.echo(f"| {name_of(step)} | {source} ({counts[source]}) | {others} ({other['n']}) | {figures} |")


if __name__ == "__main__":
    main()

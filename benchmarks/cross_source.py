"""What each change of the released recipe gives, at home and on a camera that it has never seen.

    python benchmarks/cross_source.py DATA --weights resnet50.pth --image-size 224 --epochs 4

From the notebook's recipe to the released one, a change at a time, each kept in the next row. DATA is laid out as for
retina-train, with the column Source. A row is trained on one source's photographs of train/, its best epoch chosen on
that source's of valid/ (the columns "own"), and tested on the other sources' photographs of train/ and valid/. The test
split is left alone: this is for choosing a recipe. Prints a row of Markdown a training.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import click
from retina.train import Run, TrainConfig, train
from retina.train.config import RECIPES
from retina.train.data import DataSet, Photo, read_dataset
from retina.train.metrics import HEADLINES

STEPS: tuple[tuple[str, ...], ...] = (
    (),
    ("augment",),
    ("dr_targets",),
    ("class_weights",),
    ("optimizer", "schedule", "lr_backbone"),
    ("ema",),
)
"""The options that each row takes over from the released recipe, beside those of the rows before it."""
FIGURES = tuple(figure for figure in HEADLINES if figure[:2] != ("dr", "accuracy"))
"""Without DR accuracy, which tells more of how often each grade occurs in a source than of the recipe."""
FIELDS = ("Image name", "Retinopathy grade", "Risk of macular edema", "Source", "Patient")


def write_split(folder: Path, photos: list[Photo]) -> None:
    """Links to the photographs, and their annotations."""
    (folder / "images").mkdir(parents=True)
    with (folder / "annotations.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for photo in photos:
            (folder / "images" / photo.path.name).symlink_to(photo.path.resolve())
            writer.writerow([photo.path.name, photo.dr_grade, photo.me_label, photo.source, photo.patient])


def write_view(data: DataSet, source: str, folder: Path) -> None:
    """The data set as it is without the other sources' labels: those are the test split."""
    own = {name: [p for p in data.splits[name].photos if p.source == source] for name in ("train", "valid")}
    others = [p for name in ("train", "valid") for p in data.splits[name].photos if p.source != source]
    for name, photos in {**own, "test": others}.items():
        write_split(folder / name, photos)


def changes(step: int) -> tuple[str, dict[str, Any]]:
    """A row's name and its options."""
    released = RECIPES["released-384"]
    asked = {name: released[name] for names in STEPS[: step + 1] for name in names}
    own = ", ".join(f"{name.replace('_', '-')} {released[name]}" for name in STEPS[step])
    return f"+ {own}" if own else "the notebook's", asked


@click.command(context_settings={"show_default": True})
@click.argument("root", metavar="DATA", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--step", "steps", type=click.IntRange(0, len(STEPS) - 1), multiple=True, default=tuple(range(len(STEPS)))
)
@click.option("--source", "sources", multiple=True, help="Train on this one.  [default: each in turn]")
@click.option("--weights", default="imagenet")
@click.option("--backbone", default="resnet50")
@click.option("--image-size", default=224)
@click.option("--epochs", default=4, help="Of the larger source; the others get as many steps.")
@click.option("--seed", default=42)
def main(
    root: Path,
    steps: tuple[int, ...],
    sources: tuple[str, ...],
    weights: str,
    backbone: str,
    image_size: int,
    epochs: int,
    seed: int,
) -> None:
    """Train on each source alone and test on the others, change by change."""
    data, faults = read_dataset(root)
    if faults:
        raise click.ClickException(faults[0])
    counts = Counter(photo.source for photo in data.splits["train"].photos)
    if unknown := set(sources) - set(counts):
        raise click.ClickException(f"--source {min(unknown)}: expected one of {', '.join(sorted(counts))}")
    trained_on = sorted(set(sources or counts))
    titles = [f"{where} {title}" for where in ("own", "other") for *_, title in FIGURES]
    click.echo("| recipe | trained on | tested on | " + " | ".join(titles) + " |")
    click.echo("|---" * (3 + len(titles)) + "|")
    with tempfile.TemporaryDirectory() as temporary:
        for source in trained_on:
            write_view(data, source, Path(temporary) / source)
        for step, source in product(steps, trained_on):
            name, asked = changes(step)
            asked |= {
                "data": str(Path(temporary) / source), "weights": weights, "backbone": backbone,
                "image_size": image_size, "epochs": round(epochs * max(counts.values()) / counts[source]), "seed": seed,
            }  # fmt: skip
            run = Run(Path(temporary) / "artifacts", f"{step}-{source}")
            train(TrainConfig(**asked), run)
            splits = json.loads((run.folder / "metrics.json").read_text())["splits"]
            own, other = splits["valid"]["all"], splits["test"]["all"]
            figures = " | ".join(f"{part[task][key]['value']:.3f}" for part in (own, other) for task, key, _ in FIGURES)
            others = ", ".join(name for name in sorted(counts) if name != source)
            click.echo(f"| {name} | {source} ({counts[source]}) | {others} ({other['n']}) | {figures} |")


if __name__ == "__main__":
    main()

"""How a recipe does on a camera that it has never seen: train on one source, test on the others.

    python benchmarks/cross_source.py DATA --weights resnet50.pth --image-size 224 --epochs 6

DATA is laid out as for retina-train, with the column Source. For each source, a recipe is trained on that source's
photographs of train/, its best epoch chosen on that source's of valid/, and tested on the other sources' photographs of
train/ and valid/. The test split is left alone: this is for choosing a recipe. Prints a row of Markdown a training.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import click
from retina.train import Run, TrainConfig, train
from retina.train.config import RECIPES
from retina.train.data import DataSet, Photo, read_dataset
from retina.train.metrics import HEADLINES

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


@click.command(context_settings={"show_default": True})
@click.argument("root", metavar="DATA", type=click.Path(path_type=Path, exists=True))
@click.option("--recipe", "recipes", type=click.Choice(list(RECIPES)), multiple=True, default=tuple(RECIPES))
@click.option("--weights", default="imagenet")
@click.option("--backbone", default="resnet50")
@click.option("--image-size", default=224)
@click.option("--epochs", default=6, help="Of the larger source; the others get as many steps.")
@click.option("--seed", default=42)
def main(
    root: Path, recipes: tuple[str, ...], weights: str, backbone: str, image_size: int, epochs: int, seed: int
) -> None:
    """Train on each source alone and test on the others."""
    data, faults = read_dataset(root)
    if faults:
        raise click.ClickException(faults[0])
    counts: dict[str, int] = {}
    for photo in data.splits["train"].photos:
        counts[photo.source] = counts.get(photo.source, 0) + 1
    click.echo("| recipe | trained on | tested on | " + " | ".join(title for *_, title in HEADLINES) + " |")
    click.echo("|---" * (3 + len(HEADLINES)) + "|")
    with tempfile.TemporaryDirectory() as temporary:
        for source in sorted(counts):
            view = Path(temporary) / source
            write_view(data, source, view)
            for recipe in recipes:
                asked = {
                    "data": str(view), "weights": weights, "backbone": backbone, "image_size": image_size,
                    "epochs": round(epochs * max(counts.values()) / counts[source]), "seed": seed,
                }  # fmt: skip
                run = Run(Path(temporary) / "artifacts", f"{recipe}-{source}")
                train(TrainConfig.of_recipe(recipe, asked), run)
                test = json.loads((run.folder / "metrics.json").read_text())["splits"]["test"]["all"]
                figures = " | ".join(f"{test[task][name]['value']:.3f}" for task, name, _ in HEADLINES)
                others = ", ".join(name for name in sorted(counts) if name != source)
                click.echo(f"| {recipe} | {source} ({counts[source]}) | {others} ({test['n']}) | {figures} |")


if __name__ == "__main__":
    main()

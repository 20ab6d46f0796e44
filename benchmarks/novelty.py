"""What novelty tells apart: photographs of a camera that it was not fitted to, spoiled ones, and other pictures.

    python benchmarks/novelty.py DATA --pictures FOLDER --model released.onnx

Novelty is fitted to train as retina.export.novelty does it: to all photographs, and to those of each source alone,
which makes the other sources' cameras unknown. It is judged on valid, on the other sources' photographs of train and
valid, on FOLDER, and, fitted to all, on photographs of valid that are degraded as by degradation.py. The test split is
not read.
"""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from retina.export.novelty_output import FITTED_TO, UNFAMILIAR_FROM, Novelty, add_pooling, pooled_features
from retina.export.photographs import spread
from retina.runtime import RELEASED, RetinaModel
from retina.runtime.folder import find_pictures
from retina.runtime.terminal import exit_codes
from retina.train.data import Photo, read_dataset

DEGRADED = 60
"""Photographs of valid that are degraded, evenly spread."""
degradation = runpy.run_path(str(Path(__file__).with_name("degradation.py")))


@click.command(context_settings={"show_default": True})
@click.argument("root", metavar="DATA", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of pictures without a retina.",
)
@click.option("--model", "file", type=click.Path(path_type=Path), default=RELEASED, help="Its features are used.")
@click.option("--way", "ways", type=click.Choice(list(degradation["WAYS"])), multiple=True, help="[default: all]")
@exit_codes("novelty.py")
def main(root: Path, pictures: Path | None, file: Path, ways: tuple[str, ...]) -> None:
    """Print a Markdown table: the novelty of photographs and other pictures."""
    model = onnx.load_from_string(RetinaModel(file).content())
    add_pooling(model.graph, file)

    def tell(fitted_to: str, what: str, found: NDArray[np.float64]) -> None:
        figures = f"{found.min():.1f} | {np.median(found):.1f} | {found.max():.1f}"
        click.echo(f"| {fitted_to} | {what} | {len(found)} | {figures} | {np.mean(found >= UNFAMILIAR_FROM):.1%} |")

    splits = read_dataset(root, splits=("train", "valid")).splits
    train, valid = splits["train"].photos, splits["valid"].photos
    row_of = dict(zip(train + valid, pooled_features(model, _paths(train + valid)), strict=True))

    def features(photos: Sequence[Photo]) -> NDArray[np.float32]:
        return np.stack([row_of[photo] for photo in photos])

    others = None
    if pictures is not None:
        others = pooled_features(model, [pictures / name for name in find_pictures(pictures).names])
    click.echo("| fitted to | judged on | pictures | smallest | median | largest | unfamiliar |")
    click.echo("|---" * 7 + "|")
    sources = sorted({photo.source for photo in train})
    for source in [None, *sources]:
        own = [photo for photo in train if source in (None, photo.source)]
        novelty, name = Novelty.fit(features(spread(own, FITTED_TO))), source or "all"
        held_out = [photo for photo in valid if source in (None, photo.source)]
        tell(name, "valid, the same sources", novelty.of(features(held_out)))
        if strangers := [photo for photo in train + valid if source not in (None, photo.source)]:
            tell(name, "train and valid, other sources", novelty.of(features(strangers)))
        if others is not None:
            tell(name, "pictures without a retina", novelty.of(others))
        if source is None:
            for way in ways or degradation["WAYS"]:
                with tempfile.TemporaryDirectory() as folder:
                    spoiled = degradation["degraded"](spread(valid, DEGRADED), degradation["WAYS"][way], Path(folder))
                    tell(name, f"valid, {way}", novelty.of(pooled_features(model, _paths(tuple(spoiled)))))


def _paths(photos: Sequence[Photo]) -> list[Path]:
    return [photo.path for photo in photos]


if __name__ == "__main__":
    main()

"""Evaluates an exported model file on labelled photographs: all metrics, with intervals.

    python -m retina.train.evaluation DATA --model retina_multitask.onnx --split test

Scores as ``retina-score`` does, with the file that clinics run instead of the checkpoint that it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..runtime.annotations import ANNOTATIONS_FILE
from ..runtime.errors import AnnotationError, UsageError
from ..runtime.model import RetinaModel
from ..runtime.options import SETTINGS, PathName, me_positive_option
from ..runtime.output_file import require_place, write_text_atomically
from ..runtime.progress import tracked
from ..runtime.terminal import exit_codes, tell
from .comparison import compare
from .data import SPLITS, Photo, read_dataset, unknown_grades
from .markdown import changes_table, classes_table, differences_table, figures_table
from .metrics import evaluate
from .predictions import Predictions


def score_split(model: RetinaModel, photos: tuple[Photo, ...]) -> Predictions:
    """A model file's predictions for labelled photographs.

    Raises:
        UsageError: a photograph has a grade that the model does not have.
        AnnotationError: photographs cannot be read; all of them are listed.
        ModelFileError: the model's output is not finite.
    """
    require_grades(model, photos)
    grades = model.contract.dr_grades
    paths = [photo.path for photo in photos]
    scores = list(tracked(model.score(paths), "Scoring", len(paths)))
    if faults := [f"{scored.source}: {scored.error}" for scored in scores if scored.error is not None]:
        raise AnnotationError("photographs that cannot be scored:\n  " + "\n  ".join(faults))
    found = [scored.prediction for scored in scores if scored.prediction is not None]
    return Predictions.of(
        photos,
        grades,
        dr_probs=np.array([[p.dr_probs[grade] for grade in grades] for p in found], np.float32),
        me_probs=np.array([[1.0 - p.me_prob, p.me_prob] for p in found], np.float32),
    )


def require_grades(model: RetinaModel, photos: Sequence[Photo]) -> None:
    """Raise UsageError if a photograph has a grade that the model does not have."""
    grades = model.contract.dr_grades
    if unknown := unknown_grades(photos, grades):
        raise UsageError(f"{model.path}: expected DR grades {list(grades)}, found {unknown} among the annotations too")


def evaluate_file(
    model: RetinaModel,
    root: Path,
    splits: tuple[str, ...],
    *,
    me_positive_from: int | None = None,
    against: RetinaModel | None = None,
) -> dict[str, Any]:
    """Evaluate a model file on splits of a data folder.

    Returns:
        ``model_sha256``, and under ``splits`` the ``metrics.evaluate`` of each split. With ``against``, another model
        file, also ``against_sha256``, and under ``differences`` the ``comparison.compare`` of each split, from that
        file to ``model``.

    Raises:
        AnnotationError: the annotations have faults, or photographs cannot be read.
        UsageError: a photograph has a grade that a model does not have, or the two refer from different DR grades.
        ModelFileError: a model's output is not finite.
    """
    if against is not None and against.contract.referable_from != model.contract.referable_from:
        raise UsageError(
            f"{against.path}: expected a file that refers from DR grade {model.contract.referable_from}, as "
            f"{model.path}, found one from {against.contract.referable_from}: they answer different questions"
        )
    data = read_dataset(root, me_positive_from, splits=splits, known_grades=model.contract.dr_grades)
    for file in (model, *([] if against is None else [against])):
        for name in splits:
            require_grades(file, data.splits[name].photos)
    said = {name: score_split(model, data.splits[name].photos) for name in splits}
    figures = {
        "model_sha256": model.sha256,
        "splits": {name: evaluate(said[name], model.contract) for name in splits},
    }
    if against is not None:
        figures["against_sha256"] = against.sha256
        contracts = (against.contract, model.contract)
        figures["differences"] = {
            name: compare(score_split(against, data.splits[name].photos), said[name], contracts) for name in splits
        }
    return figures


@click.command(context_settings=SETTINGS)
@click.argument("data", type=PathName())
@click.option(
    "--model",
    type=PathName(),
    metavar="FILE",
    help="[default: as for retina-score]",
)
@click.option(
    "--against",
    type=PathName(),
    metavar="FILE",
    help="Also compare with this file, such as the one in use: the differences, with intervals of their own.",
)
@click.option("--split", "splits", type=click.Choice(SPLITS), multiple=True, default=("test",))
@click.option("--out", type=PathName(), metavar="FILE", help="Also write all figures as JSON.")
@me_positive_option("As for retina-train.")
def main(
    data: Path,
    model: Path | None,
    against: Path | None,
    splits: tuple[str, ...],
    out: Path | None,
    me_positive_from: int | None,
) -> None:
    """Evaluate an ONNX file on the labelled photographs of DATA: all metrics with 95% intervals by patient.

    DATA is laid out as for retina-train; splits that are not evaluated may be absent. Prints Markdown.
    """
    with exit_codes("retina.train.evaluation"):
        opened = RetinaModel(model)
        other = None if against is None else RetinaModel(against)
        files = [opened] if other is None else [other, opened]
        if out is not None:
            require_place(out, [*(file.path for file in files), *(data / name / ANNOTATIONS_FILE for name in SPLITS)])
        for file in files:
            if file.contract.caution:
                which = f" of {file.path.name}" if other is not None else ""
                tell(f"Caution{which}: {file.contract.caution}")
        figures = evaluate_file(opened, data, splits, me_positive_from=me_positive_from, against=other)
        for name in splits:
            tell(
                f"\n{opened.path.name} (sha256 {opened.sha256[:12]}) on {name}, with 95% intervals by patient. "
                "Calibration error by chance alone: what it would be if each answer were right as often as it says.\n"
            )
            tell("\n".join(figures_table(figures["splits"][name])) + "\n")
            tell("\n".join(classes_table(figures["splits"][name])))
            if other is not None:
                names = [f"{file.path.name} ({file.sha256[:12]})" for file in files]
                tell(
                    f"\nThe difference on {name} is the second file minus the first, with 95% intervals from the same "
                    "resamples of patients for both. Of two equally good files, one interval in twenty does not "
                    "contain 0, by chance alone. Calibration errors have none, nor has what is the same in all "
                    "resamples.\n"
                )
                tell("\n".join(differences_table(figures["differences"][name], *names)) + "\n")
                tell("\n".join(changes_table(figures["differences"][name])))
        if out is not None:
            write_text_atomically(out, json.dumps(figures, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()

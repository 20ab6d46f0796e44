"""What a finished run leaves: its best checkpoint, evaluated on every split, and what is published of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from ..runtime.annotations import IMAGES_DIR, Annotation
from ..runtime.contract import Contract
from ..runtime.output_file import replacing
from ..runtime.prediction import Prediction
from ..runtime.table import TABLE_NAME, Row, Table, cells, columns
from . import report
from .calibration import calibrated, calibration_line, is_calibrated
from .checkpoint import Checkpoint, load_checkpoint
from .config import BEST_NAME, FINAL_NAME
from .console import Console
from .data import SPLITS, DataSet, Split
from .frames import DecodedFrames
from .items import EvalItems
from .loader import eval_loader
from .metrics import evaluate, write_metrics
from .predictions import Predictions
from .run import BEST, FINAL, METRICS, Run
from .survey import Survey
from .tracking import Tracker
from .trainer import Trainer

VALID_TABLE = "valid_predictions.csv"
"""In the run's folder, beside the test split's: whoever chooses a threshold or calibrates does so on valid."""


def evaluate_best(
    run: Run, survey: Survey, trainer: Trainer, console: Console
) -> tuple[Checkpoint, dict[str, Predictions]]:
    """The best checkpoint, calibrated if the recipe asks for it, and its predictions on every split.

    Raises:
        ModelFileError: the checkpoint is damaged.
        PictureError: a photograph can no longer be read.
    """
    data, config = survey.data, trainer.config
    best = load_checkpoint(run.folder / BEST)
    trainer.eval_model.load_state_dict(best.weights)

    def predict(name: str) -> tuple[EvalItems, torch.Tensor, torch.Tensor]:
        is_kept = name == "valid"
        paths = data.splits[name].paths
        frames = survey.frames[name] if is_kept else DecodedFrames(paths, best.contract.preprocessing)
        items = EvalItems(data, name, frames)
        batches = console.tracked(eval_loader(items, config, trainer.fabric), name)
        return items, *trainer.predict(batches, len(items))

    # A run that failed after calibration is already calibrated: a second fit would record only what it adds.
    if config.calibrate == "valid" and not is_calibrated(best.contract):
        best = calibrated(best, *predict("valid"))
        trainer.eval_model.load_state_dict(best.weights)
        console.say(f"Calibrated on valid: {calibration_line(best.contract)}.")
    return best, {name: EvalItems.predictions(*predict(name)) for name in SPLITS}


def publish(
    run: Run, data: DataSet, trainer: Trainer, best: Checkpoint, predictions: dict[str, Predictions], tracker: Tracker
) -> Path:
    """Write figures, plots, the tables of valid and test, and the report, and copy the results to the top of
    ``artifacts/``; then remove the state to resume from, so that the run has finished.

    Args:
        run: the run.
        data: that was trained on.
        trainer: of the run, for its options and history.
        best: the best checkpoint.
        predictions: its predictions on every split.
        tracker: told that the run has finished.

    Returns:
        the report.

    Raises:
        OutputError: a file cannot be written.
    """
    splits = {name: evaluate(p, best.contract) for name, p in predictions.items()}
    metrics = write_metrics(run.folder / METRICS, trainer.progress.best_epoch, splits)
    best = replace(best, metrics=metrics)
    best.save(run.folder / BEST)
    for name, table in (("valid", VALID_TABLE), ("test", TABLE_NAME)):
        write_predictions(run.folder / table, data.splits[name], predictions[name], best.contract)
    history = pd.DataFrame(trainer.progress.history)
    settings = {**trainer.config.to_dict(), **run.facts()}
    page = report.write_report(run.folder, settings, metrics, history, predictions, best.contract)
    tracker.finish(run.folder, metrics)
    for source, name in ((BEST, BEST_NAME), (FINAL, FINAL_NAME), (TABLE_NAME, TABLE_NAME)):
        with replacing(run.artifacts / name) as temporary:
            shutil.copyfile(run.folder / source, temporary)
    run.resume_file.unlink(missing_ok=True)
    return page


def write_predictions(path: Path, split: Split, p: Predictions, contract: Contract) -> None:
    """Write the same table as ``retina-score images/ --annotations annotations.csv`` would with the exported model.

    Args:
        path: the CSV file.
        split: the split that the predictions are for.
        p: predictions, in the split's order.
        contract: the model's.

    Raises:
        OutputError: the folder is not writable, or the disk is full.
    """
    images = split.annotations.parent / IMAGES_DIR
    rows = []
    for photo, dr, me in zip(split.photos, p.dr_probs, p.me_probs, strict=True):
        truth = Annotation(photo.line, photo.image_name, photo.dr_grade, photo.me_label, {})
        name = photo.path.relative_to(images).as_posix()
        rows.append((name, cells(Row(name, Prediction.of(contract, dr, me)), contract.dr_grades, truth)))
    with Table(path, columns(contract.dr_grades)) as table:
        for _, line in sorted(rows):
            table.write(line)

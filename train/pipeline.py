"""A training run from a data folder to published artifacts, step by step."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch
from lightning_fabric import Fabric

from ..runtime.annotations import Annotation
from ..runtime.contract import HEADS, Contract, Head, Preprocessing
from ..runtime.errors import OutputError, UsageError
from ..runtime.output_file import write_atomically
from ..runtime.prediction import Prediction
from ..runtime.progress import tracked
from ..runtime.table import Row, Table, cells, columns
from . import plots, report
from .augment import make_augment
from .calibration import calibrated, calibration_line, is_calibrated
from .checkpoint import Checkpoint, current_versions, load_checkpoint
from .config import BEST_NAME, FINAL_NAME, TrainConfig
from .console import Say, epoch_line, progress_bar
from .data import SPLITS, DataSet, Split, require_splits
from .device import make_fabric, pick_device
from .facts import check_same, grades_of_run, run_facts
from .frames import DecodedFrames
from .framing import Normalize
from .items import EvalItems, TrainItems, class_weights
from .labels import trained_heads, untrained_heads
from .loader import eval_loader, require_shared_memory
from .loop import fit
from .metrics import evaluate, write_metrics
from .model import RetinaNet, load_backbone_weights
from .predictions import Predictions
from .resume import load_resume
from .run import BEST, CONFIG, CURVES, FACTS, FINAL, HISTORY, METRICS, Run
from .start import grades_of_network, open_start, start_notes
from .survey import Survey, survey_data
from .tracking import NoTracker, Tracker
from .trainer import Trainer

TEST_PREDICTIONS = "test_predictions.csv"
CURVES_EVERY = 30.0
"""Least time in seconds from one drawing of the learning curves to the next in a run; the report draws them at its end.
Drawing takes about a second, and an epoch on a GPU a few."""


def train(
    config: TrainConfig,
    run: Run,
    *,
    device: str = "auto",
    resume: bool = False,
    allow_leakage: bool = False,
    tracker: Tracker | None = None,
    say: Say = lambda line: None,
    quiet: bool = False,
) -> bool:
    """Check the data, train, evaluate the best checkpoint on every split, publish.

    Args:
        config: the options.
        run: the folder where everything about the run is kept.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        resume: continue an interrupted run of this name.
        allow_leakage: train even if the same photograph is in two splits.
        tracker: where figures are logged besides the run's folder; None: nowhere.
        say: called with each line to print.
        quiet: no progress bars, not even on a terminal.

    Returns:
        True when finished; False when stopped by Ctrl-C or SIGTERM, with everything saved for ``--resume``.

    Raises:
        RetinaError: anything that a user can fix; before training if it can be known by then.
    """
    tracker = tracker or NoTracker()
    is_first = os.environ.get("RANK", "0") == "0"  # other devices' processes write nothing
    try:
        with run.claimed() if is_first else contextlib.nullcontext():
            if is_first and not resume and run.has_begun:
                ways = "Give another --name" + (", or --resume it." if os.path.isfile(run.resume_file) else ".")
                raise OutputError(f"{run.folder}: expected a new run, found one there. {ways}")
            return _train(config, run, device, resume, allow_leakage, tracker, say, quiet)
    except BaseException as err:
        if not run.has_finished:
            with contextlib.suppress(OutputError):  # the first error matters, not that the tracker fails too
                tracker.stop(failed=isinstance(err, Exception))
        raise


def _train(
    config: TrainConfig,
    run: Run,
    device: str,
    resume: bool,
    allow_leakage: bool,
    tracker: Tracker,
    say: Say,
    quiet: bool,
) -> bool:
    if config.batch_size == 1 and config.image_size <= 32:
        raise UsageError(
            "--batch-size 1: expected two photographs or more at --image-size 32, whose last feature map is one pixel: "
            "batch-norm has no variance of one value"
        )
    asked = {"device": device, "track": tracker.kind}
    device = pick_device(device)
    # Where auto would choose another precision now, a resumed run continues with its own.
    fabric = make_fabric(device, run.facts().get("precision", config.precision) if resume else config.precision)
    require_shared_memory(config, fabric)
    run = replace(run, name=fabric.broadcast(run.name))  # the processes may have started in different seconds
    say_once = say if fabric.is_global_zero else (lambda _line: None)
    if config.sampler == "weighted" and config.class_weights == "inverse":
        say_once(
            "Rare grades count twice: --sampler weighted draws them more often, and --class-weights inverse weights "
            "each draw more. For one of the two, add --class-weights none."
        )
    if config.unfreeze_epoch is not None and config.unfreeze_epoch > config.epochs:
        say_once(f"--unfreeze-epoch {config.unfreeze_epoch} comes after the last of {config.epochs} epochs: no effect.")
    if (world := fabric.world_size) > 1:
        alone = config.batch_size * config.accumulate
        say_once(
            f"{world} devices: a step sees {alone * world} photographs instead of {alone}. For as many steps as on one "
            f"device, divide --batch-size by {world}."
        )
    # To fail now and not after a download, and then not after every photograph was read.
    require_splits(Path(config.data))
    start = None if resume else open_start(config.backbone, config.weights)
    torch.manual_seed(config.seed)
    preprocessing = Preprocessing(framing=config.framing, image_size=config.image_size)
    # A resumed run's leakage was accepted when it began.
    before = HEADS if start is None else start.contract.untrained_heads
    survey = survey_data(
        config, preprocessing, run.artifacts / "cache", allow_leakage or resume, say_once, fabric, before, quiet
    )
    of_data = survey.data.dr_grades
    grades = grades_of_run(run, of_data) if resume else grades_of_network(start, config.weights, survey.data)
    data = replace(survey.data, dr_grades=grades)
    survey = replace(survey, data=data)
    contract = Contract(preprocessing, dr_grades=data.dr_grades)
    train_items = TrainItems(data, survey.frames["train"], make_augment(config.augment), config.seed)
    valid_items = EvalItems(data, "valid", survey.frames["valid"])
    heads = trained_heads(data, config)
    for note in start_notes(start, config, of_data, heads):
        say_once(f"Note: {note}")
    trainer = _new_trainer(config, fabric, contract, train_items, heads, start, resume)
    untrained = run.facts().get("untrained_heads", []) if resume else untrained_heads(data, config, before)
    contract = contract.with_(provenance={"untrained_heads": untrained} if untrained else {})
    if contract.caution:
        say_once(f"Warning: {contract.caution}")

    facts = {**run_facts(survey, fabric, trainer.dr_weights, untrained), "asked": asked}
    if resume:
        check_same(run, survey, fabric)
        load_resume(trainer, run.resume_file)
        epoch = trainer.progress.epoch
        where = f"in epoch {epoch} of {config.epochs}" if epoch <= config.epochs else "after its last epoch"
        say_once(f"Resuming {run.name} {where}.")
    if fabric.is_global_zero:
        run.write(CONFIG, config.to_json())  # for a resumed run too, whose data may have moved
        if not resume:
            run.write(FACTS, json.dumps(facts, indent=1))
    tracker.start(run.name, config.to_dict(), facts, resume=resume)

    def checkpoint(row: dict[str, float]) -> Checkpoint:
        versions = current_versions()
        provenance = {"run": run.name, "data_fingerprint": survey.fingerprint, **contract.provenance}
        weights = {name: tensor.clone() for name, tensor in trainer.judged.state_dict().items()}
        return Checkpoint(
            weights, config.backbone, contract.with_(provenance=provenance), config.to_dict(), {"valid": row},
            int(row["epoch"]), versions,
        )  # fmt: skip

    def on_best(row: dict[str, float]) -> None:
        if fabric.is_global_zero:
            checkpoint(row).save(run.folder / BEST)

    drawn = -math.inf

    def on_epoch(history: list[dict[str, float]]) -> None:
        nonlocal drawn
        if fabric.is_global_zero:
            frame = _write_history(run, history)
            if perf_counter() - drawn >= CURVES_EVERY:
                plots.learning_curves(frame, run.folder / CURVES)
                drawn = perf_counter()
            tracker.epoch(history[-1])
            say_once(epoch_line(history[-1], trainer.progress.best_epoch))

    finished = fit(
        trainer, train_items, valid_items, run.resume_file, on_best, on_epoch,
        lambda epoch, n: progress_bar(epoch, config.epochs, n, quiet or not fabric.is_global_zero),
    )  # fmt: skip
    if not finished:
        if fabric.is_global_zero and trainer.progress.history:
            plots.learning_curves(pd.DataFrame(trainer.progress.history), run.folder / CURVES)
        tracker.stop()
        place = trainer.progress.place(config.epochs)
        say_once(f"Stopped at {place}, everything saved. Go on with:  {run.resume_command}")
        return False
    if fabric.is_global_zero:
        checkpoint(trainer.progress.history[-1]).save(run.folder / FINAL)
        _write_history(run, trainer.progress.history)  # again: a kill may have come between saving and writing
    fabric.barrier()

    say_once(f"Evaluating the best checkpoint (epoch {trainer.progress.best_epoch}) on train, valid and test.")
    best, predictions = _evaluate_best(run, survey, trainer, preprocessing, say_once, quiet)
    if fabric.is_global_zero:
        _finish(run, data, trainer, best, predictions, tracker, say_once)
    fabric.barrier()
    return True


def _new_trainer(
    config: TrainConfig,
    fabric: Fabric,
    contract: Contract,
    train_items: TrainItems,
    heads: tuple[Head, ...],
    start: Checkpoint | None,
    resume: bool,
) -> Trainer:
    """A trainer with its starting weights, or without if a resume state will replace them."""
    grades, prep = contract.dr_grades, contract.preprocessing
    net = RetinaNet(len(grades), config.backbone)
    if start is not None:
        net.load_state_dict(start.weights)
    elif not resume:
        load_backbone_weights(net, config.backbone, config.weights)
    dr_weights = class_weights(train_items.dr_index, len(grades))
    if config.class_weights == "none":
        dr_weights = torch.ones_like(dr_weights)
    return Trainer(fabric, config, net, Normalize(prep.mean, prep.std), grades, dr_weights, heads)


def _evaluate_best(
    run: Run, survey: Survey, trainer: Trainer, preprocessing: Preprocessing, say: Say, quiet: bool
) -> tuple[Checkpoint, dict[str, Predictions]]:
    """The best checkpoint, calibrated if the recipe asks for it, and its predictions on every split."""
    data, config, fabric = survey.data, trainer.config, trainer.fabric
    best = load_checkpoint(run.folder / BEST)
    trainer.judged.load_state_dict(best.weights)

    def predict(name: str) -> tuple[EvalItems, torch.Tensor, torch.Tensor]:
        is_kept = name == "valid"
        frames = survey.frames[name] if is_kept else DecodedFrames(data.splits[name].paths, preprocessing)
        items = EvalItems(data, name, frames)
        loader = eval_loader(items, config, fabric)
        batches = loader if quiet or not fabric.is_global_zero else tracked(loader, name)
        return items, *trainer.predict(batches, len(items))

    # A run that failed after calibration is already calibrated: a second fit would find and record temperatures of 1.
    if config.calibrate == "valid" and not is_calibrated(best.contract):
        best = calibrated(best, *predict("valid"))
        trainer.judged.load_state_dict(best.weights)
        say(f"Calibrated on valid: {calibration_line(best)}.")
    return best, {name: EvalItems.predictions(*predict(name)) for name in SPLITS}


def _finish(
    run: Run,
    data: DataSet,
    trainer: Trainer,
    best: Checkpoint,
    predictions: dict[str, Predictions],
    tracker: Tracker,
    say: Say,
) -> None:
    """Write figures, plots, the test CSV and the report, and copy the results to the top of ``artifacts/``."""
    contract = best.contract
    splits = {name: evaluate(p, contract) for name, p in predictions.items()}
    metrics = write_metrics(run.folder / METRICS, trainer.progress.best_epoch, splits)
    best = replace(best, metrics=metrics)
    best.save(run.folder / BEST)
    write_test_predictions(run.folder / TEST_PREDICTIONS, data.splits["test"], predictions["test"], contract)
    history = pd.DataFrame(trainer.progress.history)
    facts = run.facts()
    page = report.write_report(
        run.folder, {**trainer.config.to_dict(), **facts}, metrics, history, predictions, contract
    )
    tracker.finish(run.folder, metrics)
    for source, name in ((BEST, BEST_NAME), (FINAL, FINAL_NAME), (TEST_PREDICTIONS, TEST_PREDICTIONS)):
        publish(run.folder / source, run.artifacts / name)
    run.resume_file.unlink(missing_ok=True)
    say(f"Report: {page}")


def publish(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target`` atomically.

    Raises:
        OutputError: as ``write_atomically``.
    """
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def write_test_predictions(path: Path, split: Split, p: Predictions, contract: Contract) -> None:
    """Write the same table as ``retina-score images/ --annotations annotations.csv`` would with the exported model.

    Args:
        path: the CSV file.
        split: the split that the predictions are for.
        p: predictions, in the split's order.
        contract: the model's.

    Raises:
        OutputError: the folder is not writable, or the disk is full.
    """
    images = split.annotations.parent / "images"
    rows = []
    for photo, dr, me in zip(split.photos, p.dr_probs, p.me_probs, strict=True):
        truth = Annotation(photo.line, photo.image_name, photo.dr_grade, photo.me_label, {})
        name = photo.path.relative_to(images).as_posix()
        rows.append((name, cells(Row(name, Prediction.of(contract, dr, me)), contract.dr_grades, truth)))
    with Table(path, columns(contract.dr_grades)) as table:
        for _, line in sorted(rows):
            table.write(line)


def _write_history(run: Run, history: list[dict[str, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(history)
    run.write(HISTORY, frame.to_csv(index=False))
    return frame

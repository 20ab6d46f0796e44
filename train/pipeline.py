"""A training run from a data folder to published artifacts, step by step."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from tqdm import tqdm

from ..runtime.annotations import MAX_FAULTS_SHOWN, Annotation
from ..runtime.contract import Contract, Preprocessing
from ..runtime.errors import AnnotationError, ModelFileError, OutputError, UsageError
from ..runtime.journal import lock
from ..runtime.model import Prediction
from ..runtime.table import Row, Table, cells, columns
from . import plots, report
from .augment import make_augment
from .calibration import calibrated, calibration_faults, calibration_line, is_calibrated
from .checkpoint import (
    Checkpoint,
    current_versions,
    load_checkpoint,
    load_start,
    write_atomically,
    write_text_atomically,
)
from .config import BEST_NAME, FINAL_NAME, TrainConfig
from .data import SPLITS, DataSet, EvalItems, Split, TrainItems, class_weights, fingerprint, read_dataset
from .frames import DecodedFrames, Frames, Look, look_through
from .framing import Normalize
from .leakage import Leak, find_leaks
from .loop import Progress, Trainer, as_predictions, eval_loader, fit, load_resume, saved_progress
from .metrics import Predictions, evaluate, write_metrics
from .model import RetinaNet, read_state_dict
from .tracking import NoTracker, Tracker

TEST_PREDICTIONS = "test_predictions.csv"

Say = Callable[[str], None]
"""Where a line for the person at the terminal goes."""


@dataclass(frozen=True)
class Run:
    """One run's folder under ``artifacts/runs``."""

    artifacts: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.artifacts / "runs" / self.name

    @property
    def resume_file(self) -> Path:
        return self.folder / "resume.pth"

    @property
    def config_file(self) -> Path:
        return self.folder / "config.json"

    @property
    def facts_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def has_begun(self) -> bool:
        """Whether there is more of it than its options, which a run that was refused at once leaves behind."""
        written = {file.name for file in self.folder.iterdir() if not file.name.startswith(".")}
        return bool(written - {self.config_file.name, self.facts_file.name})

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep it for this process: two that write one run would mix their weights and figures.

        Raises:
            OutputError: another process has it, or it cannot be written.
        """
        _expect_writable(self.artifacts)
        file = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            opened = file.open("w")
        except OSError as err:
            raise OutputError(f"{self.folder}: cannot be written: {err.strerror}. Give another --name.") from None
        with opened:
            lock(
                opened.fileno(),
                f"{self.folder}: another retina-train is writing this run; wait for it, or give another --name",
                alone=True,
            )
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # unless something came of it
                    if set(self.folder.iterdir()) == {file}:
                        file.unlink()
                        self.folder.rmdir()
                        self.folder.parent.rmdir()

    @property
    def resume_command(self) -> str:
        """What to type to go on with it."""
        where = [] if self.artifacts == Path("artifacts") else ["--artifacts", str(self.artifacts)]
        return shlex.join(["retina-train", "--resume", "--name", self.name, *where])

    def facts(self) -> dict[str, Any]:
        """What ``run_facts`` said as it began.

        Raises:
            ModelFileError: the file is damaged.
        """
        try:
            facts = dict(json.loads(self.facts_file.read_text()))
            if missing := {"devices", "data_fingerprint"} - facts.keys():
                raise ValueError(f"no {' and no '.join(sorted(missing))}")
        except (OSError, ValueError, TypeError) as err:
            raise ModelFileError(
                f"{self.facts_file}: expected the facts of a run, found damage: {err}. Start a new run."
            ) from None
        return facts

    def write(self, name: str, text: str) -> None:
        write_text_atomically(self.folder / name, text)


@dataclass(frozen=True)
class Survey:
    """A data set that has been read, decoded and checked."""

    data: DataSet
    frames: dict[str, Frames]
    fingerprint: str
    """sha256 over every file's bytes and labels: the same data, the same fingerprint."""
    leaks: list[Leak]


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
        config: the recipe.
        run: where everything about it is kept.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        resume: go on with an interrupted run of this name.
        allow_leakage: train although the same photograph stands in two splits.
        tracker: where figures go beside the run's folder.
        say: called with each line for the person at the terminal.
        quiet: no progress bars, not even on a terminal.

    Returns:
        True when finished; False when stopped by Ctrl-C, with everything saved for ``--resume``.

    Raises:
        RetinaError: anything a user can mend, before training where it can be known.
    """
    tracker = tracker or NoTracker()
    is_first = os.environ.get("RANK", "0") == "0"  # the other devices' processes write nothing
    try:
        with run.claimed() if is_first else contextlib.nullcontext():
            if is_first and not resume and run.has_begun:
                raise OutputError(
                    f"{run.folder}: expected a new run, found one there. Give another --name, or --resume it."
                )
            return _train(config, run, device, resume, allow_leakage, tracker, say, quiet)
    except BaseException as err:
        with contextlib.suppress(OutputError):  # that the tracker fails too is not what the user has to know
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
    device = pick_device(device)
    fabric = make_fabric(device, config.precision)
    run = replace(run, name=fabric.broadcast(run.name))  # devices may have been named by different seconds
    say_once = say if fabric.is_global_zero else (lambda _line: None)
    torch.manual_seed(config.seed)

    if not resume and config.weights not in ("imagenet", "none"):
        read_state_dict(Path(config.weights))  # said now, and not after every photograph was read
    preprocessing = Preprocessing(framing=config.framing, image_size=config.image_size)
    # What stands in two splits was accepted when the run began.
    survey = survey_data(
        config, preprocessing, run.artifacts / "cache", allow_leakage or resume, say_once, fabric, quiet
    )
    data = survey.data
    contract = Contract(preprocessing, dr_grades=data.dr_grades)

    net = RetinaNet(len(data.dr_grades), config.backbone)
    if not resume:
        load_start(net, config.backbone, config.weights, data.dr_grades)
    train_items = TrainItems(data, survey.frames["train"], make_augment(config.augment), config.seed)
    valid_items = EvalItems(data, "valid", survey.frames["valid"])
    dr_weights = class_weights(train_items.dr_index, len(data.dr_grades))
    if config.class_weights == "none":
        dr_weights = torch.ones_like(dr_weights)
    trainer = Trainer(fabric, config, net, Normalize(preprocessing.mean, preprocessing.std), data.dr_grades, dr_weights)

    facts = run_facts(survey, fabric, dr_weights)
    if resume:
        _check_same(run, survey, fabric)
        load_resume(trainer, run.resume_file)
        epoch = trainer.progress.epoch
        where = f"in epoch {epoch} of {config.epochs}" if epoch <= config.epochs else "after its last epoch"
        say_once(f"Resuming {run.name} {where}.")
    if fabric.is_global_zero:
        run.write("config.json", config.to_json())  # of a resumed run too, whose data may have moved
        if not resume:
            run.write("run.json", json.dumps(facts, indent=1))
    tracker.start(run.name, config.to_dict(), facts, resume=resume)

    def checkpoint(row: dict[str, float]) -> Checkpoint:
        versions = current_versions()
        provenance = {"run": run.name, "data_fingerprint": survey.fingerprint}
        weights = {name: tensor.clone() for name, tensor in trainer.judged.state_dict().items()}
        return Checkpoint(
            weights, config.backbone, contract.with_(provenance=provenance), config.to_dict(), {"valid": row},
            int(row["epoch"]), versions,
        )  # fmt: skip

    def on_best(row: dict[str, float]) -> None:
        if fabric.is_global_zero:
            checkpoint(row).save(run.folder / "best.pth")

    def on_epoch(history: list[dict[str, float]]) -> None:
        if fabric.is_global_zero:
            plots.learning_curves(_write_history(run, history), run.folder / "learning_curves.png")
            tracker.epoch(history[-1])
            say_once(_epoch_line(history[-1], trainer.progress.best_epoch))

    finished = fit(
        trainer, train_items, valid_items, run.resume_file, on_best, on_epoch,
        lambda epoch, n: _progress_bar(epoch, config.epochs, n, quiet or not fabric.is_global_zero),
    )  # fmt: skip
    if not finished:
        tracker.stop()
        place = _place(trainer.progress, config.epochs)
        say_once(f"Stopped at {place}, everything saved. Go on with:  {run.resume_command}")
        return False
    if fabric.is_global_zero:
        checkpoint(trainer.progress.history[-1]).save(run.folder / "final.pth")
        _write_history(run, trainer.progress.history)  # again: a kill may have come between saving and writing
    fabric.barrier()

    say_once(f"Evaluating the best checkpoint (epoch {trainer.progress.best_epoch}) on train, valid and test.")
    best = load_checkpoint(run.folder / "best.pth")
    trainer.judged.load_state_dict(best.weights)

    def predict(name: str) -> tuple[EvalItems, torch.Tensor, torch.Tensor]:
        frames = survey.frames["valid"] if name == "valid" else DecodedFrames(_paths(data, name), preprocessing)
        items = EvalItems(data, name, frames)
        loader = eval_loader(items, config, fabric)
        bar = tqdm(loader, desc=name, leave=False, disable=quiet or not fabric.is_global_zero or None)
        return items, *trainer.predict(bar, len(items))

    # A run that failed while it finished was calibrated before: of that, the temperatures would be 1.
    if config.calibrate == "valid" and not is_calibrated(best.contract):
        best = calibrated(best, *predict("valid"))
        trainer.judged.load_state_dict(best.weights)
        say_once(f"Calibrated on valid: {calibration_line(best)}.")
    predictions = {name: as_predictions(*predict(name)) for name in SPLITS}
    if fabric.is_global_zero:
        _finish(run, data, trainer, best, predictions, tracker, say_once)
    fabric.barrier()
    return True


def saved_place(run: Run, config: TrainConfig) -> str:
    """How far a run's resume state goes, in words.

    Raises:
        ModelFileError: it is none.
    """
    return _place(saved_progress(run.resume_file), config.epochs)


def _place(progress: Progress, epochs: int) -> str:
    if progress.epoch > epochs:
        return "the end of its last epoch"
    where = f"batch {progress.batch}" if progress.batch else "the start"
    return f"{where} of epoch {progress.epoch} of {epochs}"


def _expect_writable(artifacts: Path) -> None:
    """Raise OutputError before hours of training, not after."""
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=artifacts):
            pass
    except OSError as err:
        raise OutputError(
            f"{artifacts}: expected a folder that can be written, found: {err.strerror}. Choose another --artifacts."
        ) from None


def make_fabric(device: str, precision: str) -> Fabric:
    """Lightning Fabric for this device, or for the group that ``torchrun`` started."""
    accelerator = device.split(":", maxsplit=1)[0]
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices: Any = local if ":" not in device else [int(device.split(":")[1])]
    if precision == "auto":
        precision = "bf16" if bf16_is_faster(accelerator) else "fp32"
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=max(world // local, 1),
        # Each device keeps batch-norm statistics of its own share, of which ``Trainer`` takes the mean.
        strategy=DDPStrategy(broadcast_buffers=False) if world > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    # PyTorch's default is True: convolutions with 10 bits of mantissa, where fp32 is promised.
    torch.backends.cudnn.allow_tf32 = False
    return fabric


def pick_device(asked: str) -> str:
    """``auto`` to the best device here.

    Raises:
        UsageError: a device that is not here.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, here in have.items() if here)
    here = ["auto", *(name for name, is_here in have.items() if is_here)]
    here += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if asked not in here:
        raise UsageError(f"--device {asked}: expected one of {', '.join(here)} on this machine")
    return asked


def bf16_is_faster(accelerator: str) -> bool:
    """Whether bfloat16 runs in hardware: on a CPU through AVX512-BF16 or AMX (2.7 times here), on CUDA from Ampere."""
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def survey_data(
    config: TrainConfig,
    preprocessing: Preprocessing,
    cache_folder: Path,
    allow_leakage: bool,
    say: Say,
    fabric: Fabric,
    quiet: bool = False,
) -> Survey:
    """Read annotations, decode every photograph once, look for leakage.

    Raises:
        AnnotationError: listing all faults of annotations and photographs together, or copies in two splits.
    """
    data, faults = read_dataset(Path(config.data), config.me_positive_from)
    frames: dict[str, Frames] = {}
    looks: dict[str, list[Look]] = {}
    total = sum(len(split.photos) for split in data.splits.values())
    with tqdm(
        total=total, desc="reading photographs", leave=False, disable=quiet or not fabric.is_global_zero or None
    ) as bar:
        for name in SPLITS:
            # The first device fills the cache, the others map what it wrote.
            with fabric.rank_zero_first(local=True):
                frames[name], looks[name] = look_through(
                    _paths(data, name),
                    preprocessing,
                    "uint8" if name == "train" else "float32",
                    "off" if name == "test" else config.cache,
                    cache_folder,
                    bar.update,
                )
    for name in SPLITS:
        photos = data.splits[name].photos
        where = data.splits[name].annotations
        faults += [
            f"{where}, line {p.line}: {look.fault}" for p, look in zip(photos, looks[name], strict=True) if look.fault
        ]
    if config.calibrate == "valid":
        faults += calibration_faults(data, Contract())
    leaks = find_leaks(data, looks)
    copies = [leak for leak in leaks if leak.kind == "same bytes"]
    if copies and not allow_leakage:
        faults += [f"{leak} (keep it in one split, or train anyway with --allow-leakage)" for leak in copies]
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        left = [f"... and {len(faults) - MAX_FAULTS_SHOWN} more"] if len(faults) > MAX_FAULTS_SHOWN else []
        listed = "\n  ".join(faults[:MAX_FAULTS_SHOWN] + left)
        raise AnnotationError(f"{data.root}: {count}; nothing was trained. Mend and run again:\n  {listed}")
    counts = ", ".join(f"{name} {len(data.splits[name].photos)}" for name in SPLITS)
    say(f"Photographs: {counts}. DR grades {list(data.dr_grades)}.")
    if len(me_labels := {photo.me_label for photo in data.splits["train"].photos}) == 1:
        say(f"Warning: {data.splits['train'].annotations}: every ME label is {me_labels.pop()}; no risk can be learnt")
    if data.dr_grades[-1] < (referable := Contract().referable_from):
        say(f"Warning: {data.splits['train'].annotations}: no DR grade is {referable} or more; nobody will be referred")
    for leak in leaks:
        say(f"Warning: {leak}")
    digests = {name: [look.sha256 for look in looks[name]] for name in SPLITS}
    return Survey(data, frames, fingerprint(data, digests), leaks)


def run_facts(survey: Survey, fabric: Fabric, dr_weights: torch.Tensor) -> dict[str, Any]:
    """What a run should remember beside its options: data, imbalance, machine, versions."""
    counts = {
        name: {
            "photographs": len(split.photos),
            "dr_grades": {str(g): sum(p.dr_grade == g for p in split.photos) for g in survey.data.dr_grades},
            "me_risk": sum(p.me_label for p in split.photos),
        }
        for name, split in survey.data.splits.items()
    }
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "data_fingerprint": survey.fingerprint,
        "counts": counts,
        "dr_class_weights": [round(float(weight), 6) for weight in dr_weights],
        "leaks": [str(leak) for leak in survey.leaks],
        "device": str(fabric.device),
        "devices": fabric.world_size,
        "precision": str(fabric._precision.precision),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": current_versions(),
        "git_commit": _git_commit(),
    }


def _finish(
    run: Run,
    data: DataSet,
    trainer: Trainer,
    best: Checkpoint,
    predictions: dict[str, Predictions],
    tracker: Tracker,
    say: Say,
) -> None:
    """Figures, pictures, the test CSV, and the names at the top of ``artifacts/``."""
    contract = best.contract
    splits = {name: evaluate(p, contract) for name, p in predictions.items()}
    metrics = write_metrics(run.folder / "metrics.json", trainer.progress.best_epoch, splits)
    best = replace(best, metrics=metrics)
    best.save(run.folder / "best.pth")
    write_test_predictions(run.folder / TEST_PREDICTIONS, data.splits["test"], predictions["test"], contract)
    history = pd.DataFrame(trainer.progress.history)
    facts = run.facts()
    page = report.write_report(
        run.folder, {**trainer.config.to_dict(), **facts}, metrics, history, predictions, contract
    )
    tracker.finish(run.folder, metrics)
    for source, name in (("best.pth", BEST_NAME), ("final.pth", FINAL_NAME), (TEST_PREDICTIONS, TEST_PREDICTIONS)):
        publish(run.folder / source, run.artifacts / name)
    run.resume_file.unlink(missing_ok=True)
    say(f"Report: {page}")


def publish(source: Path, target: Path) -> None:
    """Give ``source`` a second name, never half-written."""
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def write_test_predictions(path: Path, split: Split, p: Predictions, contract: Contract) -> None:
    """The same table that ``retina-score images/ --annotations annotations.csv`` writes for the exported model."""
    images = split.annotations.parent / "images"
    rows = []
    for photo, dr, me in zip(split.photos, p.dr_probs, p.me_probs, strict=True):
        truth = Annotation(photo.line, photo.image_name, photo.dr_grade, photo.me_label, {})
        name = photo.path.relative_to(images).as_posix()
        rows.append((name, cells(Row(name, Prediction.of(contract, dr, me)), contract.dr_grades, truth)))
    with Table(path, columns(contract.dr_grades)) as table:
        for _, line in sorted(rows):
            table.write(line)


def _paths(data: DataSet, split: str) -> list[Path]:
    return [photo.path for photo in data.splits[split].photos]


def _check_same(run: Run, survey: Survey, fabric: Fabric) -> None:
    facts = run.facts()
    if facts["devices"] != fabric.world_size:
        raise UsageError(
            f"{run.folder}: expected {facts['devices']} devices as the run began, found {fabric.world_size}: another "
            "number would make other batches. Resume on as many (torchrun --nproc-per-node), or start a new run."
        )
    before = facts["data_fingerprint"]
    if before != survey.fingerprint:
        raise UsageError(
            f"{run.folder}: expected the photographs and labels the run was started with (fingerprint {before[:12]}), "
            f"found others ({survey.fingerprint[:12]}). Restore them, or start a new run without --resume."
        )


def _git_commit() -> str:
    """Of the working folder, which is where an experiment's own code would be; empty outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _write_history(run: Run, history: list[dict[str, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(history)
    run.write("history.csv", frame.to_csv(index=False))
    return frame


def _epoch_line(row: dict[str, float], best_epoch: int) -> str:
    mark = "  best so far" if row["epoch"] == best_epoch else ""
    return (
        f"epoch {row['epoch']:>3.0f}  train loss {row['train_loss']:.3f} DR {row['train_dr_accuracy']:.3f} "
        f"ME {row['train_me_accuracy']:.3f}  valid loss {row['valid_loss']:.3f} DR {row['valid_dr_accuracy']:.3f} "
        f"kappa {row['valid_dr_kappa']:.3f} ME {row['valid_me_accuracy']:.3f} AUC {row['valid_me_auc']:.3f}  "
        f"{row['seconds']:.0f} s{mark}"
    )


def _progress_bar(epoch: int, epochs: int, n: int, quiet: bool) -> Callable[[int, list[float]], None]:
    bar = tqdm(total=n, desc=f"epoch {epoch}/{epochs}", leave=False, disable=quiet or None)

    def show(done: int, totals: list[float]) -> None:
        dr_sum, dr_weights, me_sum, n_seen, dr_right, me_right = totals
        bar.set_postfix_str(
            f"DR loss {dr_sum / dr_weights:.3f} acc {dr_right / n_seen:.3f}  "
            f"ME loss {me_sum / n_seen:.3f} acc {me_right / n_seen:.3f}",
            refresh=False,
        )
        bar.update(done)
        if bar.n >= n:
            bar.close()

    return show

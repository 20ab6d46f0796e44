"""A training run from a data folder to published artifacts, step by step."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ..runtime.contract import HEADS, Contract, Preprocessing
from ..runtime.errors import AnnotationError, OutputError
from ..runtime.output_file import require_free
from .augment import make_augment
from .checkpoint import Checkpoint
from .config import TrainConfig
from .console import SILENT, Console
from .data import require_splits
from .device import make_fabric, pick_device
from .facts import check_same, run_facts
from .framing import Normalize
from .items import EvalItems, TrainItems, class_weights
from .labels import trained_heads, untrained_heads
from .loader import require_shared_memory
from .loop import fit
from .model import RetinaNet, load_backbone_weights
from .recorder import Recorder
from .results import evaluate_best, publish
from .resume import load_resume
from .run import CONFIG, FACTS, Run
from .survey import survey_data
from .tracking import Tracker
from .trainer import Trainer
from .warm_start import grades_of_network, grades_of_start, open_start, start_notes


def train(
    config: TrainConfig,
    run: Run,
    *,
    device: str = "auto",
    resume: bool = False,
    allow_leakage: bool = False,
    tracker: Tracker | None = None,
    say: Callable[[str], None] = lambda line: None,
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

    Returns:
        True when finished; False when stopped by Ctrl-C or SIGTERM, with everything saved for ``--resume``.

    Raises:
        RetinaError: anything that a user can fix; before training if it can be known by then.
    """
    try:  # before a folder is made, weights are downloaded or photographs are read
        require_splits(Path(config.data))
    except AnnotationError as err:
        moved = f". If the data were moved:  {run.resume_command} DATA" if resume else ""
        raise AnnotationError(f"{err}{moved}") from None
    tracker = tracker or Tracker()
    is_first = os.environ.get("RANK", "0") == "0"  # other devices' processes write nothing
    try:
        with run.claimed() if is_first else contextlib.nullcontext():
            if is_first and not resume and run.has_begun:
                ways = "Give another --name" + (", or --resume it." if os.path.isfile(run.resume_file) else ".")
                raise OutputError(f"{run.folder}: expected a new run, found one there. {ways}")
            with _telling_how_to_go_on(run):
                # A resumed run's leakage was accepted when it began.
                return _train(config, run, device, resume, allow_leakage or resume, tracker, Console(say))
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
    console: Console,
) -> bool:
    asked = {"device": device, "track": tracker.kind}
    begun = run.facts() if resume else {}
    # Where auto would choose another precision now, a resumed run continues with its own.
    fabric = make_fabric(pick_device(device), begun.get("precision", config.precision))
    require_shared_memory(config, fabric)
    run = replace(run, name=fabric.broadcast(run.name))  # the processes may have started in different seconds
    console = console if fabric.is_global_zero else SILENT
    for note in config.notes(fabric.world_size):
        console.say(note)
    # To fail now and not after every photograph was read.
    start = None if resume else open_start(config.backbone, config.weights)
    torch.manual_seed(config.seed)

    preprocessing = Preprocessing(framing=config.framing, image_size=config.image_size)
    before = HEADS if start is None else start.contract.untrained_heads
    known = begun.get("dr_grades", ()) if resume else grades_of_start(start)
    cache = run.artifacts / "cache"
    survey = survey_data(config, preprocessing, cache, allow_leakage, console, fabric, before, known)
    of_data, heads = survey.data.dr_grades, trained_heads(survey.data, config)
    if resume:
        check_same(begun, run, survey, fabric)
        grades = tuple(begun.get("dr_grades", of_data))  # they may be more than the data's: see grades_of_network
        untrained = begun.get("untrained_heads", [])
        net = RetinaNet(len(grades), config.backbone)  # whose weights come from the state to resume from
    else:
        grades = grades_of_network(start, config.weights, survey.data)
        untrained = untrained_heads(survey.data, config, before)
        net = _starting_network(config, start, len(grades))
        for note in start_notes(start, config, of_data, heads):
            console.say(f"Note: {note}")
    data = replace(survey.data, dr_grades=grades)
    survey = replace(survey, data=data)

    provenance: dict[str, object] = {"run": run.name, "data_fingerprint": survey.fingerprint}
    provenance |= {"untrained_heads": untrained} if untrained else {}
    contract = Contract(preprocessing, dr_grades=grades, provenance=provenance)
    train_items = TrainItems(data, survey.frames["train"], make_augment(config.augment), config.seed)
    valid_items = EvalItems(data, "valid", survey.frames["valid"])
    dr_weights = class_weights(train_items.dr_index, len(grades))
    if config.class_weights == "none":
        dr_weights = torch.ones_like(dr_weights)
    normalize = Normalize(preprocessing.mean, preprocessing.std)
    trainer = Trainer(fabric, config, net, normalize, grades, dr_weights, heads)
    if contract.caution:
        console.say(f"Warning: {contract.caution}")

    facts = {**run_facts(survey, fabric, trainer.dr_weights, untrained), "asked": asked}
    if resume:
        load_resume(trainer, run.resume_file)
        run.require_best(trainer.progress.best_epoch)
        console.say(f"Resuming {run.name} at {trainer.progress.place(config.epochs)}.")
    elif fabric.is_global_zero:  # a resumed run's files are there already
        require_free(
            run.folder, trainer.disk_needed(), "room for checkpoints", "; make room, or choose another --artifacts"
        )
    if fabric.is_global_zero:  # for a resumed run too: its data may have moved, and its patients been renamed
        patients = {name: facts[name] for name in ("unnamed_patients", "leaks")}
        run.write(FACTS, json.dumps({**(begun or facts), **patients}, indent=1))
        run.write(CONFIG, config.to_json())
    tracker.start(run.name, config.to_dict(), facts, resume=resume)

    recorder = Recorder(run, trainer, contract, tracker, console)
    if not fit(trainer, train_items, valid_items, run.resume_file, recorder.best, recorder.epoch, console.epoch):
        recorder.stopped()
        return False
    recorder.last()
    fabric.barrier()

    console.say(f"Evaluating the best checkpoint (epoch {trainer.progress.best_epoch}) on train, valid and test.")
    best, predictions = evaluate_best(run, survey, trainer, console)
    if fabric.is_global_zero:
        page = publish(run, data, trainer, best, predictions, tracker)
        console.say(f"Report: {page}")
    fabric.barrier()
    return True


@contextlib.contextmanager
def _telling_how_to_go_on(run: Run) -> Iterator[None]:
    """Add to an error of the disk by which command the run goes on, if it can."""
    try:
        yield
    except OutputError as err:
        if not os.path.isfile(run.resume_file):
            raise
        raise OutputError(f"{err}. Then continue with:  {run.resume_command}") from None


def _starting_network(config: TrainConfig, start: Checkpoint | None, dr_grades: int) -> RetinaNet:
    """A network of so many DR grades with the weights that a new run starts from."""
    net = RetinaNet(dr_grades, config.backbone)
    if start is None:
        load_backbone_weights(net, config.backbone, config.weights)
    else:
        net.load_state_dict(start.weights)
    return net

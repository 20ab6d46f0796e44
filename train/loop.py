"""The training loop: every epoch is evaluated on valid and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..runtime.errors import NonFiniteLossError
from .items import EpochPlan, EvalItems, TrainItems
from .loader import eval_loader, train_loader
from .resume import save_resume
from .signals import StopRequest
from .totals import Totals
from .trainer import Trainer


def fit(
    trainer: Trainer,
    train_items: TrainItems,
    valid_items: EvalItems,
    resume_file: Path,
    on_best: Callable[[dict[str, float]], None],
    on_epoch: Callable[[list[dict[str, float]]], None],
    show_epoch: Callable[[int, int, int], AbstractContextManager[Callable[[int, Totals], None]]],
) -> bool:
    """Train to the end of the last epoch.

    Args:
        trainer: new, or with a resume state loaded.
        train_items: the training photographs.
        valid_items: the photographs that each epoch is evaluated on.
        resume_file: written at the start, after each epoch and at a stop.
        on_best: called with the epoch's row of history if its score is the best so far.
        on_epoch: called with the history after each epoch.
        show_epoch: a context that gives an epoch's progress callback, from its number, that of the last one, and the
            number of micro-batches that it has left.

    Returns:
        True at the end; False if stopped by a signal, see ``StopRequest``, with everything saved.

    Raises:
        NonFiniteLossError: a loss is infinite or NaN; in training, the message names the batch's files.
        UsageError: too few photographs for the batch size and the number of devices.
        OutputError: ``resume_file`` cannot be written.
    """
    config, fabric, progress = trainer.config, trainer.fabric, trainer.progress
    plan = EpochPlan(
        train_items.dr_index, config.batch_size, config.sampler, config.seed, fabric.global_rank, fabric.world_size
    )
    if progress.epoch == 1 and progress.batch == 0:
        save_resume(trainer, resume_file)  # so that a run killed in its first epoch can be resumed too
    train_batches = train_loader(train_items, plan, config, fabric)
    valid_batches = eval_loader(valid_items, config, fabric)

    with StopRequest() as stop:
        while progress.epoch <= config.epochs:
            if progress.batch == 0 and progress.epoch == config.unfreeze_epoch:
                trainer.unfreeze()
            plan.epoch, plan.start = progress.epoch, progress.batch
            with show_epoch(progress.epoch, config.epochs, len(plan)) as show:
                stopped = trainer.train_epoch(train_batches, stop, show, plan.n_batches)
            if stopped:
                # When resumed, each device continues from an equal share of the sum.
                progress.totals = Totals(*(total / fabric.world_size for total in trainer.summed_totals()))
                save_resume(trainer, resume_file)
                return False

            row: dict[str, float] = {"epoch": progress.epoch}
            row |= {f"train_{name}": value for name, value in trainer.train_figures().items()}
            valid = trainer.validate(valid_items, valid_batches)
            if not math.isfinite(valid["loss"]):
                raise NonFiniteLossError(
                    f"epoch {progress.epoch}: expected a finite loss on valid, found DR {valid['dr_loss']:.4g} and ME "
                    f"{valid['me_loss']:.4g}. Start a new run with a lower --lr-backbone and --lr-heads."
                )
            row |= {f"valid_{name}": value for name, value in valid.items()}
            backbone, heads = trainer.optimizer.param_groups
            row |= {"lr_backbone": backbone["lr"], "lr_heads": heads["lr"]}
            row["seconds"] = progress.seconds
            if config.schedule == "plateau":
                trainer.scheduler.step(valid["loss"])
            progress.history.append(row)
            if valid["score"] > progress.best_score:
                progress.best_score, progress.best_epoch = valid["score"], progress.epoch
                on_best(row)
            progress.epoch += 1
            progress.batch, progress.totals, progress.seconds = 0, Totals(), 0.0
            save_resume(trainer, resume_file)
            on_epoch(progress.history)
            if stop.agreed(fabric):  # requested during the evaluation on valid
                return False
    return True

"""Writes into a run's folder what it has learned, as it learns it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter

import pandas as pd

from ..runtime.contract import Contract
from . import plots
from .checkpoint import Checkpoint
from .console import Console, epoch_line
from .run import BEST, CURVES, FINAL, HISTORY, Run
from .tracking import Tracker
from .trainer import Trainer

CURVES_EVERY = 30.0
"""Least time in seconds from one drawing of the learning curves to the next in a run; the report draws them at its end.
Drawing takes about a second, and an epoch on a GPU a few."""


@dataclass
class Recorder:
    """Keeps a run's checkpoints, history, curves and tracker up to date; on devices but the first it does nothing.

    Every method may raise OutputError if the folder or the tracker's store cannot be written.
    """

    run: Run
    trainer: Trainer
    contract: Contract
    """Of the checkpoints."""
    tracker: Tracker
    console: Console
    _drawn: float = -math.inf
    """When the curves were last drawn."""

    def best(self, row: dict[str, float]) -> None:
        """Keep the weights as the run's best; ``row`` is the epoch's of the history."""
        if self._is_first:
            self._checkpoint(row).save(self.run.folder / BEST)

    def epoch(self, history: list[dict[str, float]]) -> None:
        """Record the last epoch of a history, and say its figures."""
        if not self._is_first:
            return
        frame = self._write_history(history)
        if perf_counter() - self._drawn >= CURVES_EVERY:
            self._draw(frame)
        self.tracker.epoch(history[-1])
        self.console.say(epoch_line(history[-1], self.trainer.progress.best_epoch))

    def stopped(self) -> None:
        """Draw the curves so far, and say how the run goes on."""
        if not self._is_first:
            return
        progress = self.trainer.progress
        if progress.history:
            self._draw(pd.DataFrame(progress.history))
        self.tracker.stop()
        place = progress.place(self.trainer.config.epochs)
        self.console.say(f"Stopped at {place}, everything saved. Continue with:  {self.run.resume_command}")

    def last(self) -> None:
        """Keep the weights after the last epoch."""
        if self._is_first:
            history = self.trainer.progress.history
            self._checkpoint(history[-1]).save(self.run.folder / FINAL)
            self._write_history(history)  # again: a kill may have come between saving and writing

    @property
    def _is_first(self) -> bool:
        return self.trainer.fabric.is_global_zero

    def _checkpoint(self, row: dict[str, float]) -> Checkpoint:
        config = self.trainer.config
        return Checkpoint(
            self.trainer.eval_model.state_dict(),
            config.backbone,
            self.contract,
            config.to_dict(),
            metrics={"valid": row},
            epoch=int(row["epoch"]),
        )

    def _write_history(self, history: list[dict[str, float]]) -> pd.DataFrame:
        frame = pd.DataFrame(history)
        self.run.write(HISTORY, frame.to_csv(index=False))
        return frame

    def _draw(self, history: pd.DataFrame) -> None:
        plots.learning_curves(history, self.run.folder / CURVES)
        self._drawn = perf_counter()

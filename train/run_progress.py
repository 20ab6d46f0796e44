"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .totals import Totals


@dataclass
class Progress:
    """How far a run is: all that ``--resume`` needs besides the weights and the states of optimiser and scheduler."""

    epoch: int = 1
    """The current epoch, from 1."""
    batch: int = 0
    """Number of its micro-batches that are done, on each device."""
    totals: Totals = field(default_factory=Totals)
    """Of the current epoch so far."""
    seconds: float = 0.0
    """Training time of the current epoch."""
    best_score: float = -1.0
    """Highest ``score`` of ``epoch_scores`` on valid so far."""
    best_epoch: int = 0
    """Its epoch; 0 before the first."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per finished epoch, with the columns of ``history.csv``."""

    def place(self, epochs: int) -> str:
        """How far a run of this many epochs is, in words."""
        if self.epoch > epochs:
            return "the end of its last epoch"
        where = f"batch {self.batch}" if self.batch else "the start"
        return f"{where} of epoch {self.epoch} of {epochs}"

    def state(self) -> dict[str, Any]:
        return {**vars(self), "totals": list(self.totals)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        return cls(**{**state, "totals": Totals(*state["totals"])})

"""A run's output on the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tqdm import tqdm

from ..runtime.progress import Advance, Countable, Item_co, progress, tracked
from .totals import Totals


@dataclass(frozen=True)
class Console:
    """Where a run says what it does: lines, and the progress of what takes long."""

    say: Callable[[str], None]
    """Called with each line to print."""
    shows_progress: bool = True

    def progress(self, total: int, label: str) -> AbstractContextManager[Advance]:
        """As ``runtime.progress.progress``."""
        return progress(total, label) if self.shows_progress else nullcontext(_ignored)

    def tracked(self, items: Countable[Item_co], label: str) -> Iterable[Item_co]:
        """As ``runtime.progress.tracked``."""
        return tracked(items, label) if self.shows_progress else items

    def epoch(self, epoch: int, epochs: int, n: int) -> Callable[[int, Totals], None]:
        """A bar of the ``n`` micro-batches that an epoch has left.

        Returns:
            the function to call after each step with its number of micro-batches and the epoch's totals.
        """
        bar = tqdm(total=n, desc=f"epoch {epoch}/{epochs}", leave=False, disable=None if self.shows_progress else True)

        def show(done: int, totals: Totals) -> None:
            bar.set_postfix_str(
                "DR loss {dr_loss} acc {dr_accuracy}  ME loss {me_loss} acc {me_accuracy}".format_map(
                    {name: _number(value) for name, value in totals.figures().items()}
                ),
                refresh=False,
            )
            bar.update(done)
            if bar.n >= n:
                bar.close()

        return show


SILENT = Console(lambda line: None, shows_progress=False)
"""For a run's processes on other devices than the first."""


def epoch_line(row: dict[str, float], best_epoch: int) -> str:
    mark = "  best so far" if row["epoch"] == best_epoch else ""
    shown = {name: _number(value) for name, value in row.items()}
    return (
        f"epoch {row['epoch']:>3.0f}  train loss {shown['train_loss']} DR {shown['train_dr_accuracy']} "
        f"ME {shown['train_me_accuracy']}  valid loss {shown['valid_loss']} DR {shown['valid_dr_accuracy']} "
        f"kappa {shown['valid_dr_kappa']} ME {shown['valid_me_accuracy']} AUC {shown['valid_me_auc']}  "
        f"{row['seconds']:.0f} s{mark}"
    )


def _ignored(*, known: bool = False) -> None: ...


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"

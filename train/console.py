"""A run's output on the terminal."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from ..runtime.progress import Advance, Countable, Item_co, progress, tracked
from .totals import Totals


@dataclass(frozen=True)
class Console:
    """Where a run says what it does: lines, and the progress of what takes long."""

    say: Callable[[str], None]
    """Called with each line to print."""
    shows_progress: bool = True

    def progress(self, total: int, label: str, *, leave: bool = True) -> AbstractContextManager[Advance]:
        """As ``runtime.progress.progress``."""
        return progress(total, label, leave=leave) if self.shows_progress else nullcontext(_ignored)

    def tracked(self, items: Countable[Item_co], label: str) -> Iterable[Item_co]:
        """As ``runtime.progress.tracked``."""
        return tracked(items, label) if self.shows_progress else items

    @contextmanager
    def epoch(self, epoch: int, epochs: int, n: int) -> Iterator[Callable[[int, Totals], None]]:
        """As ``progress``, of the ``n`` micro-batches that an epoch has left.

        Yields:
            the function to call after each step with its number of micro-batches and the epoch's totals.
        """
        with self.progress(n, f"epoch {epoch}/{epochs}", leave=False) as advance:

            def show(done: int, totals: Totals) -> None:
                figures = {name: _number(value) for name, value in totals.figures().items()}
                text = "DR loss {dr_loss} acc {dr_accuracy}  ME loss {me_loss} acc {me_accuracy}"
                advance(done, note=text.format_map(figures))

            yield show


SILENT = Console(lambda line: None, shows_progress=False)
"""For a run's processes on other devices than the first."""


def epoch_line(row: dict[str, float], best_epoch: int) -> str:
    """An epoch's figures on one line, or on two where the terminal is too narrow for one."""
    mark = "  best" if row["epoch"] == best_epoch else ""
    shown = {name: _number(value) for name, value in row.items()}
    train = (
        f"epoch {row['epoch']:>3.0f}  train loss {shown['train_loss']} DR {shown['train_dr_accuracy']} "
        f"ME {shown['train_me_accuracy']}"
    )
    valid = (
        f"valid loss {shown['valid_loss']} DR {shown['valid_dr_accuracy']} kappa {shown['valid_dr_kappa']} "
        f"ME {shown['valid_me_accuracy']} AUC {shown['valid_me_auc']}  {row['seconds']:.0f} s{mark}"
    )
    line = f"{train}  {valid}"
    is_wide = len(line) <= shutil.get_terminal_size((len(line), 0)).columns
    return line if is_wide else f"{train}\n{'':11}{valid}"


def _ignored(steps: int = 1, *, known: bool = False, note: str = "") -> None: ...


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"

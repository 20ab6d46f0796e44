"""A run's output on the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable

from tqdm import tqdm

from .totals import Totals

Say = Callable[[str], None]
"""Called with each line to print."""


def epoch_line(row: dict[str, float], best_epoch: int) -> str:
    mark = "  best so far" if row["epoch"] == best_epoch else ""
    shown = {name: _number(value) for name, value in row.items()}
    return (
        f"epoch {row['epoch']:>3.0f}  train loss {shown['train_loss']} DR {shown['train_dr_accuracy']} "
        f"ME {shown['train_me_accuracy']}  valid loss {shown['valid_loss']} DR {shown['valid_dr_accuracy']} "
        f"kappa {shown['valid_dr_kappa']} ME {shown['valid_me_accuracy']} AUC {shown['valid_me_auc']}  "
        f"{row['seconds']:.0f} s{mark}"
    )


def progress_bar(epoch: int, epochs: int, n: int, quiet: bool) -> Callable[[int, Totals], None]:
    bar = tqdm(total=n, desc=f"epoch {epoch}/{epochs}", leave=False, disable=quiet or None)

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


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"

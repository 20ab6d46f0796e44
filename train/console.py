"""A run's output on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from .totals import Totals

Say = Callable[[str], None]
"""Called with each line to print."""


def epoch_line(row: dict[str, float], best_epoch: int) -> str:
    mark = "  best so far" if row["epoch"] == best_epoch else ""
    return (
        f"epoch {row['epoch']:>3.0f}  train loss {row['train_loss']:.3f} DR {row['train_dr_accuracy']:.3f} "
        f"ME {row['train_me_accuracy']:.3f}  valid loss {row['valid_loss']:.3f} DR {row['valid_dr_accuracy']:.3f} "
        f"kappa {row['valid_dr_kappa']:.3f} ME {row['valid_me_accuracy']:.3f} AUC {row['valid_me_auc']:.3f}  "
        f"{row['seconds']:.0f} s{mark}"
    )


def progress_bar(epoch: int, epochs: int, n: int, quiet: bool) -> Callable[[int, Totals], None]:
    bar = tqdm(total=n, desc=f"epoch {epoch}/{epochs}", leave=False, disable=quiet or None)

    def show(done: int, totals: Totals) -> None:
        bar.set_postfix_str(
            "DR loss {dr_loss:.3f} acc {dr_accuracy:.3f}  ME loss {me_loss:.3f} acc {me_accuracy:.3f}".format_map(
                totals.figures()
            ),
            refresh=False,
        )
        bar.update(done)
        if bar.n >= n:
            bar.close()

    return show

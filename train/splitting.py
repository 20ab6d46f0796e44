"""Splits one folder of labelled photographs into train, valid and test, by patient.

    python -m retina.train.splitting POOL --out data

How: see ``deal.deal``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.annotations import IMAGES_DIR, NOT_GRADED
from ..runtime.errors import AnnotationError, OutputError, UsageError
from ..runtime.extras import require_extra
from ..runtime.options import SETTINGS, PathName, me_positive_option
from ..runtime.output_file import require_empty
from ..runtime.terminal import exit_codes, tell

if TYPE_CHECKING:
    from .data import Photo

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_LABELS: Mapping[str, Callable[[Photo], str]] = {
    "DR grade": lambda photo: NOT_GRADED if photo.dr_grade is None else str(photo.dr_grade),
    "ME risk": lambda photo: NOT_GRADED if photo.me_label is None else str(photo.me_label),
    "Source": lambda photo: photo.source or NOT_GRADED,
}


@click.command(context_settings=SETTINGS)
@click.argument("pool", type=PathName())
@click.option("--out", required=True, type=PathName(), metavar="DIR", help="The data folder to write; new or empty.")
@click.option("--valid", type=_SHARE, default=0.15, help="Share of the photographs to choose the best epoch by.")
@click.option("--test", type=_SHARE, default=0.15, help="Share of the photographs to report on. The rest is train.")
@click.option("--link", is_flag=True, help="Hard links, which take no space, instead of copies.")
@click.option("--seed", type=click.IntRange(min=0), default=42, help="The same seed gives the same splits.")
@me_positive_option("As for retina-train. Grades are written as they are.")
def main(pool: Path, out: Path, valid: float, test: float, link: bool, seed: int, me_positive_from: int | None) -> None:
    """Split POOL, which holds images/ and annotations.csv, into DIR/train, DIR/valid and DIR/test for retina-train.

    All photographs of a patient (column Patient) go to one split, and so do copies and near-identical photographs. Each
    split gets the same mix of sources (column Source), DR grades and ME risks. POOL is not changed.

    Example:  python -m retina.train.splitting photographs/ --out data/
    """
    with exit_codes("retina.train.splitting", "stopped; nothing was written"):
        require_extra("train")
        from .deal import deal, families
        from .pool import read_pool, write_splits

        if not valid + test < 1:  # nor if one is nan
            raise UsageError(
                f"--valid {valid:g} --test {test:g}: expected less than 1 together, to leave some to train"
            )
        require_empty(out)
        if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(pool / IMAGES_DIR)):
            raise OutputError(f"{out}: expected a folder outside {pool / IMAGES_DIR}. Choose another --out.")
        read = read_pool(pool, me_positive_from)
        groups = families(read.split.photos, [(i, j) for i, j, _ in read.pairs])
        splits = deal(groups, {"train": 1 - valid - test, "valid": valid, "test": test}, seed)
        if empty := [f"{name}/" for name, photos in splits.items() if not photos]:
            raise AnnotationError(
                f"{pool}: expected patients enough for three splits, found {len(groups)}, and none left for "
                f"{', '.join(empty)}. Add photographs, or choose other shares (--valid, --test)"
            )
        write_splits(read.split, splits, out, link=link)
    for *_, pair in read.pairs:
        tell(f"Kept together: {pair}")
    for line in _table(splits):
        tell(line)
    if unnamed := sum(not photo.patient for photo in read.split.photos):
        tell(
            f"Note: no Patient is named for {unnamed} of {len(read.split.photos)} photographs. Each was taken for a "
            "patient of its own, so a patient's other eye may be in another split."
        )
    tell(f"{out}: written. Next:  retina-train {out}")


def _table(splits: Mapping[str, Sequence[Photo]]) -> Iterator[str]:
    """What each split got: a line per kind of photographs, a column per split."""
    counts = {"photographs": [len(split) for split in splits.values()]}
    for title, label in _LABELS.items():
        labels = [Counter(map(label, split)) for split in splits.values()]
        found = sorted(sum(labels, Counter[str]()))
        if found != [NOT_GRADED]:
            counts |= {f"{title} {name}": [of[name] for of in labels] for name in found}
    width = max(map(len, counts))
    yield " " * width + "".join(f"{name:>8}" for name in splits)
    for title, cells in counts.items():
        yield title.ljust(width) + "".join(f"{cell:>8}" for cell in cells)


if __name__ == "__main__":
    main()

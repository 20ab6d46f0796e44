"""Splits one folder of labelled photographs into train, valid and test, by patient.

    python -m retina.train.splitting POOL --out data

How: see ``deal.deal``.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.annotations import NOT_GRADED, fault_report
from ..runtime.contract import HEADS
from ..runtime.errors import AnnotationError, UsageError
from ..runtime.extras import require_extra
from ..runtime.options import SETTINGS, PathName, me_positive_option
from ..runtime.terminal import exit_codes, tell
from ..runtime.wording import counted
from .labels import labelled

if TYPE_CHECKING:
    from .data import Photo

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_LABELS: Mapping[str, Callable[[Photo], str]] = {
    "DR grade": lambda photo: NOT_GRADED if photo.dr_grade is None else str(photo.dr_grade),
    "ME risk": lambda photo: NOT_GRADED if photo.me_label is None else str(photo.me_label),
    "Source": lambda photo: " ".join(photo.source.split()) or NOT_GRADED,
}
PAIRS_SHOWN, LABELS_SHOWN = 20, 10
"""How many pairs, and how many values of a label, are printed before the rest are only counted."""


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
        from .pool import Pool, filling, require_room, write_splits

        if not valid + test < 1:  # nor if one is nan
            raise UsageError(
                f"--valid {valid:g} --test {test:g}: expected less than 1 together, to leave some to train"
            )
        with filling(out):
            read = Pool.read(pool, me_positive_from)
            require_room(read, out, link=link)
            pairs, faults = read.look()
            if faults:
                raise AnnotationError(fault_report(pool, faults, "nothing was written. Fix and run again"))
            for line in _pair_lines([str(pair) for *_, pair in pairs]):
                tell(line)
            groups = families(read.split.photos, [(i, j) for i, j, _ in pairs])
            splits = deal(groups, {"train": 1 - valid - test, "valid": valid, "test": test}, seed)
            if lacking := _lacking(splits):
                raise AnnotationError(
                    f"{pool}: expected photographs enough for three splits, found {len(read.split.photos)} in "
                    f"{counted(len(groups), 'group')} of one patient or of copies, which leave {lacking}. Add "
                    "photographs, or choose other shares (--valid, --test) or another --seed"
                )
            write_splits(read, splits, out, link=link)
    for line in _table(splits):
        tell(line)
    if unnamed := sum(not photo.patient for photo in read.split.photos):
        tell(
            f"Note: no Patient is named for {unnamed} of {len(read.split.photos)} photographs. Each was taken for a "
            "patient of its own, so a patient's other eye may be in another split."
        )
    tell(f"{out}: written. Next:  retina-train {shlex.quote(str(out))}")


def _pair_lines(pairs: Sequence[str]) -> Iterator[str]:
    """What was kept together; of very many, such as black pictures, some."""
    yield from (f"Kept together: {pair}" for pair in pairs[:PAIRS_SHOWN])
    if len(pairs) > PAIRS_SHOWN:
        yield f"Kept together: {len(pairs) - PAIRS_SHOWN} more pairs"


def _lacking(splits: Mapping[str, Sequence[Photo]]) -> str:
    """What the splits lack, without which retina-train refuses them; empty if nothing."""
    empty = [f"nothing for {name}/" for name, photos in splits.items() if not photos]
    unlabelled = [
        f"no {what} for valid/"
        for head, what in zip(HEADS, ("DR grade", "ME label"), strict=True)
        if splits["valid"] and not labelled(splits["valid"])[head] and labelled(splits["train"])[head]
    ]
    return " and ".join([*empty, *unlabelled])


def _table(splits: Mapping[str, Sequence[Photo]]) -> Iterator[str]:
    """What each split got: a line per kind of photographs, a column per split."""
    counts = {"photographs": [len(split) for split in splits.values()]}
    for title, label in _LABELS.items():
        labels = [Counter(map(label, split)) for split in splits.values()]
        total = sum(labels, Counter[str]())
        shown = sorted(name for name, _ in total.most_common(LABELS_SHOWN))
        if shown != [NOT_GRADED]:
            counts |= {f"{title} {name}": [of[name] for of in labels] for name in shown}
        if left := total.keys() - shown:
            counts[f"{title}: {len(left)} others"] = [sum(of[name] for name in left) for of in labels]
    width = max(map(len, counts))
    yield " " * width + "".join(f"{name:>8}" for name in splits)
    for title, cells in counts.items():
        yield title.ljust(width) + "".join(f"{cell:>8}" for cell in cells)


if __name__ == "__main__":
    main()

"""What a data set's labels do not allow to learn or to judge."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..runtime.annotations import NOT_GRADED
from ..runtime.contract import HEADS, Contract, Head
from .config import ONE_PIXEL, TrainConfig
from .data import DataSet, Photo

_LABEL: dict[Head, str] = {"dr": "a DR grade", "me": "an ME label"}


def grade_faults(data: DataSet) -> list[str]:
    """The fault of a training split whose photographs all have one DR grade, of which there is nothing to learn."""
    if len(data.dr_grades) != 1:
        return []
    return [f"{data.splits['train'].annotations}: expected two or more DR grades, found {list(data.dr_grades)}"]


def label_faults(data: DataSet, config: TrainConfig) -> list[str]:
    """What the labels of a data set that is sound otherwise lack, without which a run makes no sense, one line each."""
    faults = []
    train, valid = data.splits["train"], data.splits["valid"]
    heads = trained_heads(data, config)
    if len(train.photos) == 1 and config.image_size <= ONE_PIXEL:
        faults.append(
            f"{train.annotations}: expected two photographs or more at --image-size {config.image_size}, found one: "
            "batch-norm has no variance of one value"
        )
    if not heads:
        faults.append(
            f"{train.annotations}: expected a label for a head that is trained (--dr-weight {config.dr_weight:g}, "
            f"--me-weight {config.me_weight:g}), found none"
        )
    for head in heads:
        if not labelled(valid.photos)[head]:
            faults.append(
                f"{valid.annotations}: expected photographs with {_LABEL[head]}, as in train, to choose the best epoch "
                "by, found none"
            )
    return faults


def trained_heads(data: DataSet, config: TrainConfig) -> tuple[Head, ...]:
    """The heads that learn: those whose loss has a weight and for which training photographs have labels."""
    found = labelled(data.splits["train"].photos)
    weight = {"dr": config.dr_weight, "me": config.me_weight}
    return tuple(head for head in HEADS if weight[head] and found[head])


def untrained_heads(data: DataSet, config: TrainConfig, before: Collection[Head]) -> list[Head]:
    """The heads that will have seen no label after training: those of ``before`` that it does not train."""
    heads = trained_heads(data, config)
    return [head for head in HEADS if head in before and head not in heads]


def label_notes(data: DataSet, config: TrainConfig) -> list[str]:
    """What a user should know about the labels of a data set without faults, as lines of text."""
    notes = []
    for split in data.splits.values():
        lacking = {head: len(split.photos) - n for head, n in labelled(split.photos).items() if n < len(split.photos)}
        if lacking:
            counts = " and ".join(f"{n} without {_LABEL[head]}" for head, n in lacking.items())
            notes.append(
                f"Note: {split.annotations}: {counts} ({NOT_GRADED}), of {len(split.photos)} photographs; that head "
                "leaves them out."
            )
    train = data.splits["train"]
    me_labels = {photo.me_label for photo in train.photos if photo.me_label is not None}
    if config.me_weight and len(me_labels) == 1:
        notes.append(
            f"Warning: {train.annotations}: every ME label is {me_labels.pop()}; no risk can be learned. What the "
            "model will say about ME means nothing; with --me-weight 0 it does not help to choose the epoch."
        )
    if data.dr_grades and data.dr_grades[-1] < (referable := Contract().referable_from):
        notes.append(f"Warning: {train.annotations}: no DR grade is {referable} or more; nobody will be referred")
    return notes


def labelled(photos: Sequence[Photo]) -> dict[Head, int]:
    """Number of photographs with a label for each head."""
    return {
        "dr": sum(photo.dr_grade is not None for photo in photos),
        "me": sum(photo.me_label is not None for photo in photos),
    }

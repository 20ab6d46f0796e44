"""What a data set's labels do not allow to learn or to judge."""

from __future__ import annotations

from ..runtime.annotations import NOT_GRADED
from ..runtime.contract import Contract
from .config import TrainConfig
from .data import SPLITS, DataSet


def label_faults(data: DataSet, config: TrainConfig) -> list[str]:
    """Labels without which a run makes no sense, one line each."""
    faults = []
    weights = {"a DR grade": config.dr_weight, "an ME label": config.me_weight}
    found = {name: _labelled(data, name) for name in SPLITS}
    if not any(found["train"][what] for what, weight in weights.items() if weight):
        faults.append(
            f"{data.splits['train'].annotations}: expected a label for a head that is trained (--dr-weight "
            f"{config.dr_weight:g}, --me-weight {config.me_weight:g}), found none"
        )
    for what, weight in weights.items():
        if weight and found["train"][what] and data.splits["valid"].photos and not found["valid"][what]:
            faults.append(
                f"{data.splits['valid'].annotations}: expected photographs with {what}, as in train, to choose the "
                "best epoch by, found none"
            )
    return faults


def label_notes(data: DataSet) -> list[str]:
    """What a user should know about the labels of a data set without faults, as lines of text."""
    notes = []
    for name, split in data.splits.items():
        lacking = {what: len(split.photos) - n for what, n in _labelled(data, name).items() if n < len(split.photos)}
        if lacking:
            counts = " and ".join(f"{n} without {what}" for what, n in lacking.items())
            notes.append(
                f"Note: {split.annotations}: {counts} ({NOT_GRADED}), of {len(split.photos)} photographs. Each is "
                "left out of that head's loss and figures."
            )
    train = data.splits["train"]
    me_labels = {photo.me_label for photo in train.photos if photo.me_label is not None}
    if len(me_labels) < 2:
        found = f"every ME label is {me_labels.pop()}" if me_labels else "no photograph has an ME label"
        notes.append(
            f"Warning: {train.annotations}: {found}; no risk can be learnt. What the model will say about ME means "
            "nothing; with --me-weight 0 it does not help to choose the epoch."
        )
    if data.dr_grades[-1] < (referable := Contract().referable_from):
        notes.append(f"Warning: {train.annotations}: no DR grade is {referable} or more; nobody will be referred")
    return notes


def _labelled(data: DataSet, split: str) -> dict[str, int]:
    """Number of a split's photographs with each label."""
    photos = data.splits[split].photos
    return {
        "a DR grade": sum(photo.dr_grade is not None for photo in photos),
        "an ME label": sum(photo.me_label is not None for photo in photos),
    }

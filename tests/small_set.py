"""A drawn data set at 32 px, for the training loop."""

from __future__ import annotations

from pathlib import Path

from eyes import write_set
from retina.runtime.contract import Preprocessing
from retina.train.augment import make_augment
from retina.train.config import TrainConfig
from retina.train.data import DataSet, read_dataset
from retina.train.frames import DecodedFrames, look_through
from retina.train.items import EvalItems, TrainItems

SMALL = Preprocessing(image_size=32)


def small_set(folder: Path, train: list[int], others: list[int]) -> DataSet:
    """Draw it, with the grades of train/, and those of valid/ and test/."""
    return read_dataset(write_set(folder, train=train, others=others))


def items(data: DataSet) -> tuple[TrainItems, EvalItems]:
    paths = {name: [photo.path for photo in split.photos] for name, split in data.splits.items()}
    frames, _ = look_through(paths["train"], SMALL, "uint8", "memory", Path())
    train = TrainItems(data, frames, make_augment("notebook"), TrainConfig.seed)
    return train, EvalItems(data, "valid", DecodedFrames(paths["valid"], SMALL))

"""The items of the splits as the training loop draws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..runtime.errors import UsageError
from ..runtime.weighted_metrics import UNLABELLED
from .augment import Augment, augment_with_seed, draw_seed
from .config import Sampling
from .data import DataSet
from .frames import Frames
from .predictions import Predictions


class Item(NamedTuple):
    """One item of a data set, with the same parts as the original notebook's."""

    image: Tensor
    """(3, S, S) RGB: uint8 after augmentation for training, float32 in [0, 255] for evaluation."""
    dr_index: int
    me_label: int
    filename: str
    caption: str


class Batch(NamedTuple):
    """A micro-batch of items."""

    image: Tensor
    """(B, 3, S, S), uint8 or float32 as in ``Item``."""
    dr_index: Tensor
    """(B,) int64, or ``UNLABELLED``."""
    me_label: Tensor
    """(B,) int64, 0, 1 or ``UNLABELLED``."""
    filenames: list[str]
    captions: list[str]


def collate(items: list[Item]) -> Batch:
    """A micro-batch of one or more items, in their order."""
    image, dr_index, me_label, filenames, captions = zip(*items, strict=True)
    return Batch(torch.stack(image), torch.tensor(dr_index), torch.tensor(me_label), list(filenames), list(captions))


class Draw(NamedTuple):
    """One draw of a photograph in an epoch."""

    photo: int
    """Index of the photograph in the training split."""
    epoch: int
    position: int
    """Its position in the epoch, over all devices."""


class TrainItems(Dataset[Item]):
    """Augmented training photographs; the augmentation of a draw depends only on (seed, epoch, position)."""

    def __init__(self, data: DataSet, frames: Frames, augment: Augment, seed: int) -> None:
        self.photos = data.splits["train"].photos
        self.dr_index = [data.dr_index(photo) for photo in self.photos]
        self.frames, self.augment, self.seed = frames, augment, seed

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, draw: Draw) -> Item:
        photo = self.photos[draw.photo]
        picture = self.frames[draw.photo].round().to(torch.uint8)
        picture = augment_with_seed(self.augment, picture, draw_seed(self.seed, draw.epoch, draw.position))
        return Item(picture, self.dr_index[draw.photo], photo.me_index, photo.image_name, photo.caption)


class EvalItems(Dataset[Item]):
    """A split's photographs as evaluation, export and scoring see them."""

    def __init__(self, data: DataSet, split: str, frames: Frames) -> None:
        self.photos = data.splits[split].photos
        self.dr_grades = data.dr_grades
        self.dr_index = [data.dr_index(photo) for photo in self.photos]
        self.frames = frames

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Item:
        photo = self.photos[index]
        return Item(self.frames[index].float(), self.dr_index[index], photo.me_index, photo.image_name, photo.caption)

    def predictions(self, dr_logits: Tensor, me_logits: Tensor) -> Predictions:
        """From logits (N, K) and (N, 2) on the CPU, in the order of the items."""
        return Predictions.of(self.photos, self.dr_grades, dr_logits.softmax(1).numpy(), me_logits.softmax(1).numpy())


class EpochPlan(Sampler[list[Draw]]):
    """The micro-batches of one epoch, a pure function of (seed, epoch), dealt to the devices in turn.

    Device r of R takes micro-batches r, r + R, ..., so that R devices with one micro-batch per step see the same as one
    device with R micro-batches per step. Left-over micro-batches, fewer than R, are dropped, because all devices must
    have the same number. ``shuffle`` visits every photograph once; ``weighted`` draws as many with replacement, each DR
    grade equally often on average, and photographs without a grade as often as if all were visited once. ``start``
    skips the micro-batches that an interrupted epoch has already done.
    """

    def __init__(
        self, dr_index: Sequence[int], batch_size: int, kind: Sampling, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.dr_index = np.asarray(dr_index)
        self.batch_size, self.kind, self.seed = batch_size, kind, seed
        self.rank, self.world = rank, world
        self.epoch, self.start = 1, 0
        sizes = [len(self.dr_index[i : i + batch_size]) for i in range(0, len(self.dr_index), batch_size)]
        if sizes[-1] < 2 <= min(batch_size, len(sizes)):
            sizes.pop()  # batch-norm needs two photographs; a different one is left out in each epoch
        self.n_batches = len(sizes) // world
        """Micro-batches per epoch and device."""
        if self.n_batches == 0:
            raise UsageError(
                f"--batch-size {batch_size}: expected at least one batch of the {len(self.dr_index)} training "
                f"photographs for each of {world} devices, found {len(sizes)}. Lower it, or use fewer devices."
            )

    def draws(self) -> NDArray[np.int64]:
        """The index of the photograph at each position of the epoch: (n,) int64."""
        n = len(self.dr_index)
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.kind == "shuffle":
            return rng.permutation(n)
        is_graded = self.dr_index != UNLABELLED
        weights = np.ones(n)
        if is_graded.any():
            counts = np.bincount(self.dr_index[is_graded])
            weights[is_graded] = is_graded.sum() / np.count_nonzero(counts) / counts[self.dr_index[is_graded]]
        return rng.choice(n, size=n, p=weights / weights.sum())

    def __len__(self) -> int:
        return self.n_batches - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = self.draws()
        for batch in range(self.start, self.n_batches):
            first = (batch * self.world + self.rank) * self.batch_size
            places = range(first, min(first + self.batch_size, len(draws)))
            yield [Draw(int(draws[place]), self.epoch, place) for place in places]


def class_weights(dr_index: Sequence[int], n_grades: int) -> Tensor:
    """Weight of each grade, total / (K x its count): (K,) float32.

    As scikit-learn's "balanced", except that K counts all grades of the network, so that one without a photograph,
    whose own weight is total / K, does not change the others.

    Args:
        dr_index: of each photograph; those that are ``UNLABELLED`` do not count.
        n_grades: K.
    """
    graded = [index for index in dr_index if index != UNLABELLED]
    counts = np.bincount(np.asarray(graded, np.int64), minlength=n_grades)
    return torch.tensor(counts.sum() / (n_grades * np.maximum(counts, 1)), dtype=torch.float32)

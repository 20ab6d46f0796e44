"""Random augmentation of training photographs; evaluation never uses it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from .cameras import as_another_camera
from .config import Augmentation

Augment = Callable[[Tensor], Tensor]


def make_augment(kind: Augmentation) -> Augment:
    """Make the augmentation of one framed photograph, (3, S, S) uint8 RGB in and out.

    It draws from torch's global CPU generator: see ``augment_with_seed``.

    ``notebook``: the original notebook's flips, rotation and colour jitter. ``cameras``: the differences between
    cameras, operators and eyes (cameras.py).
    """
    if kind == "cameras":
        return as_another_camera
    augment: Augment = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomVerticalFlip(0.1),
            v2.RandomRotation(10.0, interpolation=InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=0.1, contrast=0.1),
        ]
    )
    return augment


def draw_seed(seed: int, epoch: int, position: int) -> int:
    """The augmentation seed of one draw, in [0, 2^63): a pure function, which neither workers nor a resume change."""
    # Odd 64-bit constants of splitmix64 (Steele, Lea and Flood 2014), which spread consecutive counters.
    mixed = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + position * 0x94D049BB133111EB) % 2**64
    mixed ^= mixed >> 31
    return (mixed * 0xBF58476D1CE4E5B9) % 2**63


def augment_with_seed(augment: Augment, picture: Tensor, seed: int) -> Tensor:
    """Augment a picture (3, S, S) uint8 with a seed of its own, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set the devices' generators too
        return augment(picture)

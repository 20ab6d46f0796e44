"""Does the map depend on what was learned? The cascading randomisation of Adebayo et al., NeurIPS 2018.

Layer by layer from the answer down to the pixels, each weight tensor is shuffled. A map that stays the same would be a
picture of the photograph and not of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from ..train.model import RetinaNet

STAGES = (
    ("dr_head", "me_head"), ("backbone.layer4",), ("backbone.layer3",), ("backbone.layer2",), ("backbone.layer1",),
    ("backbone.bn1", "backbone.conv1"),
)  # fmt: skip
STAGE_NAMES = ("heads", "layer4", "layer3", "layer2", "layer1", "conv1")
ALIKE_BELOW = 0.5
"""The check passes when the correlation of original and fully shuffled maps is surely (95%) below this."""


def shuffled_models(model: RetinaNet, seed: int = 0) -> Iterator[nn.Module]:
    """A copy of the model after each of STAGES, earlier ones included; the model itself is left alone."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = copy.deepcopy(model)
    for stage in STAGES:
        for name in stage:
            for weights in shuffled.get_submodule(name).parameters():
                order = torch.randperm(weights.numel(), generator=generator)
                weights.data = weights.data.flatten()[order].view_as(weights)
        yield shuffled


def similarity(maps: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Spearman's rank correlation of each pair of maps, (N, h, w) twice -> (N,) in [-1, 1]; 0 with an even map."""

    def one(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a.ravel(), b.ravel()).statistic)

    return np.array([one(a, b) for a, b in zip(maps, others, strict=True)])

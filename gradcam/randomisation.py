"""Does the map depend on what was learned? The cascading randomisation of Adebayo et al., NeurIPS 2018.

Layer by layer from the answer down to the pixels, weights are drawn anew as before any training. A map that stays the
same would be a picture of the photograph and not of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

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
DRAWS = 4
"""How often all is drawn anew: of an untrained network about every second map is blank, and says nothing."""
ALIKE_BELOW = 0.5
"""The check passes when the correlation of original and fully redrawn maps is surely (95%) below this."""


def redrawn_models(model: RetinaNet, untrained: Callable[[], RetinaNet], seed: int) -> Iterator[nn.Module]:
    """A copy of the model after each of STAGES, earlier ones included; the model itself is left alone.

    Args:
        model: trained.
        untrained: makes the same network as it is before training; what it draws is the layers' own initialisation.
        seed: of the drawing; torch's own generator is left as it was found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = untrained()
    redrawn = copy.deepcopy(model)
    for stage in STAGES:
        for name in stage:
            # Batch-norm's statistics are learned as well: they come along.
            redrawn.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
        yield redrawn


def similarity(maps: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Spearman's rank correlation of each pair of maps, (N, h, w) twice -> (N,) in [-1, 1]; 0 with an even map."""

    def one(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a.ravel(), b.ravel()).statistic)

    return np.array([one(a, b) for a, b in zip(maps, others, strict=True)])

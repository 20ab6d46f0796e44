"""Does the map depend on what was learned? The cascading randomisation of Adebayo et al., NeurIPS 2018.

Layer by layer, from the heads down to the first convolution, the weights are drawn at random again, as before training.
A map that stays the same shows the photograph instead of the model.
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

STAGES = {
    "heads": ("dr_head", "me_head"),
    **{layer: (f"backbone.{layer}",) for layer in ("layer4", "layer3", "layer2", "layer1")},
    "conv1": ("backbone.bn1", "backbone.conv1"),
}
"""The modules whose weights are redrawn at each stage, by its name, in addition to those of the stages before."""
DRAWS = 4
"""How often all weights are redrawn: about every second map of an untrained network is blank and says nothing."""
ALIKE_BELOW = 0.5
"""The check passes if the 95% interval of the correlation of original and fully redrawn maps is below this."""


def redrawn_models(
    model: RetinaNet, fresh_network: Callable[[], RetinaNet], seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name of each of STAGES, and the model with redrawn weights after it; the model itself is not changed.

    The same copy is yielded each time, with more of its weights redrawn.

    Args:
        model: trained.
        fresh_network: makes the same network as before training, with the layers' own random initialisation.
        seed: of that initialisation; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = fresh_network()
    redrawn = copy.deepcopy(model)
    for stage, modules in STAGES.items():
        for name in modules:
            # state_dict, because batch-norm's statistics are learned too.
            redrawn.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
        yield stage, redrawn


def similarity(maps: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Spearman's rank correlation of each pair of maps, (N, h, w) each -> (N,) in [-1, 1]; 0 if one is uniform."""

    def one(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a.ravel(), b.ravel()).statistic)

    return np.array([one(a, b) for a, b in zip(maps, others, strict=True)])

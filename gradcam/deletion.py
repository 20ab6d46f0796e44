"""Does the map show what the answer needs? Deletion and insertion curves (Petsiuk et al., RISE, BMVC 2018).

Parts of the photograph are blurred (deletion) or restored (insertion) in the order of a map, and the probability of the
explained class is followed. A map that shows what matters makes it fall early, and rise early.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ..train.model import RetinaNet

FRACTIONS = np.array([0.0, 0.1, 0.2, 0.4, 0.7, 1.0])
"""Shares of the lit field that are blurred or restored: denser at the start, where a good map has its effect. Each
costs two forward passes per map and photograph."""
BLUR_SIGMA = 1 / 20
"""Standard deviation of the blur, as a share of the side of the network's input: lesions and vessels vanish, the
field's shading remains."""
_BATCH = 8


def curves(
    model: RetinaNet, x: Tensor, lit: Tensor, maps: Mapping[str, NDArray[np.float32]]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Follow the probabilities of one photograph while it is blurred and restored in the order of each map.

    Args:
        model: in eval mode.
        x: (1, 3, S, S) float32, the network's input.
        lit: (S, S) bool, the lit field; pixels outside it are not ranked, and change only in the last step.
        maps: (h, w) float32 by name; equal values are taken in a random but fixed order.

    Returns:
        for each map the deletion and the insertion curve, each (len(FRACTIONS), K + 2) float64: all DR probabilities,
        then both of ME.
    """
    side = x.shape[-1]
    sigma = BLUR_SIGMA * side
    blurred = gaussian_blur(x, [2 * round(2 * sigma) + 1] * 2, [sigma] * 2)
    whole, gone = _probabilities(model, x), _probabilities(model, blurred)
    found = {}
    for name, values in maps.items():
        rank = _rank(values, lit)  # (S, S): from 0 for the first pixel of the lit field up to 1; 2 outside the field
        first = (rank < torch.from_numpy(FRACTIONS[1:-1]).view(-1, 1, 1)).unsqueeze(1)  # (steps, 1, S, S)
        deleted = _probabilities(model, torch.where(first, blurred, x))
        inserted = _probabilities(model, torch.where(first, x, blurred))
        found[name] = (np.concatenate([whole, deleted, gone]), np.concatenate([gone, inserted, whole]))
    return found


def area_under(curve: NDArray[np.float64]) -> float:
    """Area under a curve (len(FRACTIONS),) over FRACTIONS, by the trapezoidal rule: its mean height, in [0, 1]."""
    return float(np.trapezoid(curve, FRACTIONS))


def _rank(values: NDArray[np.float32], lit: Tensor) -> Tensor:
    side = lit.shape[-1]
    laid = F.interpolate(torch.from_numpy(values)[None, None], size=(side, side), mode="bilinear")[0, 0]
    shuffled = torch.randperm(int(lit.sum()), generator=torch.Generator().manual_seed(0))
    order = shuffled[laid[lit][shuffled].argsort(descending=True, stable=True)]
    within = torch.empty(len(order), dtype=torch.float64)
    within[order] = torch.arange(len(order), dtype=torch.float64) / len(order)
    rank = torch.full(lit.shape, 2.0, dtype=torch.float64)
    rank[lit] = within
    return rank


@torch.inference_mode()
def _probabilities(model: RetinaNet, x: Tensor) -> NDArray[np.float64]:
    """(N, 3, S, S) -> (N, K + 2): all DR probabilities, then both of ME."""
    both = [torch.cat([logits.softmax(dim=1) for logits in model(part)], dim=1) for part in torch.split(x, _BATCH)]
    return cast(NDArray[np.float64], torch.cat(both).double().numpy())

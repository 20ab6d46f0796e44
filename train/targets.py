"""Target distributions of the DR head for a photograph of each grade."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import Targets

ORDINAL_DECAY = 2.2
"""A grade d steps from the true one gets exp(-2.2 d) times its share, about a ninth for a neighbour; all shares are
then scaled to sum to 1. Soft ordinal labels are from Diaz and Marathe (CVPR 2019); the decay is our choice."""


def dr_targets(kind: Targets, dr_grades: Sequence[int]) -> Tensor:
    """(K, K) float32: row i is the target distribution for a photograph of grade ``dr_grades[i]``; rows sum to 1."""
    if kind == "hard":
        return torch.eye(len(dr_grades))
    grades = torch.tensor(dr_grades, dtype=torch.float32)
    return torch.softmax(-ORDINAL_DECAY * (grades[:, None] - grades).abs(), dim=1)

"""What the DR head is asked to answer for a photograph of each grade."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ORDINAL_DECAY = 2.2
"""A grade d steps away gets exp(-2.2 d) of the true one's share, before all are scaled to sum to 1: about a ninth for a
neighbour. Soft ordinal labels are Diaz and Marathe's (CVPR 2019); the decay is ours."""


def dr_targets(kind: Literal["hard", "ordinal"], n_grades: int) -> Tensor:
    """(K, K) float32: row i is the distribution that the DR head should give a photograph of grade index i."""
    index = torch.arange(n_grades, dtype=torch.float32)
    if kind == "hard":
        return torch.eye(n_grades)
    return torch.softmax(-ORDINAL_DECAY * (index[:, None] - index).abs(), dim=1)

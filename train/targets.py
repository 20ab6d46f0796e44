"""What the DR head is asked to answer for a photograph of each grade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

ORDINAL_DECAY = 2.2
"""A grade d steps away gets exp(-2.2 d) of the true one's share, before all are scaled to sum to 1: about a ninth for a
neighbour. Soft ordinal labels are Diaz and Marathe's (CVPR 2019); the decay is ours."""


def dr_targets(kind: Literal["hard", "ordinal"], dr_grades: Sequence[int]) -> Tensor:
    """(K, K) float32: row i is the distribution that the DR head should give a photograph of grade ``dr_grades[i]``."""
    if kind == "hard":
        return torch.eye(len(dr_grades))
    grades = torch.tensor(dr_grades, dtype=torch.float32)
    return torch.softmax(-ORDINAL_DECAY * (grades[:, None] - grades).abs(), dim=1)

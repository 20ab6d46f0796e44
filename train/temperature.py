"""Temperature scaling, which calibrates a trained network's probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.weighted_metrics import UNLABELLED

LIMITS = (0.05, 20.0)
"""Lowest and highest temperature: of answers all right by a small margin, and of answers that say nothing."""


def fit_temperature(logits: Tensor, true: Tensor) -> float:
    """The temperature that minimises the cross-entropy of ``logits / temperature`` (Guo et al. 2017).

    Args:
        logits: (N, K) of photographs that were not trained on.
        true: (N,) int64, their classes, or ``UNLABELLED``.

    Returns:
        a number within ``LIMITS``; above 1 if the network was overconfident. If all answers are right by a wide margin,
        any temperature fits, and 1 is kept.
    """
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_temperature], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.double() / log_temperature.exp(), true, ignore_index=UNLABELLED)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach().exp().clamp(*LIMITS))


def scale_head(weights: dict[str, Tensor], head: str, temperature: float) -> dict[str, Tensor]:
    """A copy of a network's weights in which the logits of ``head`` are divided by ``temperature``.

    ``head`` is ``dr_head`` or ``me_head``. The division is folded into its last layer, so that every format and runtime
    has it without knowing of it.
    """
    last = (f"{head}.3.weight", f"{head}.3.bias")
    return {name: value / temperature if name in last else value for name, value in weights.items()}

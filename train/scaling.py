"""Temperature scaling, with a bias for each class, which calibrates a trained network's probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.weighted_metrics import UNLABELLED

LIMITS = (0.05, 20.0)
"""Lowest and highest temperature: of answers all right by a small margin, and of answers that say nothing."""


@dataclass(frozen=True)
class Scaling:
    """What calibrates a head: its logits are divided by a temperature, and each class then gets a bias."""

    temperature: float
    """Above 1 if the network was overconfident."""
    bias: Tensor
    """(K,) float32; zeros if none was fitted."""

    def __call__(self, logits: Tensor) -> Tensor:
        """The calibrated logits of (N, K) logits."""
        return logits / self.temperature + self.bias

    def undone(self, calibrated: Tensor) -> Tensor:
        """The logits of (N, K) calibrated ones; with log-probabilities, but for a constant of each row's own."""
        return (calibrated - self.bias) * self.temperature

    def folded(self, weights: dict[str, Tensor], head: str) -> dict[str, Tensor]:
        """A copy of a network's weights in which the logits of ``head`` are calibrated.

        ``head`` is ``dr_head`` or ``me_head``. It is folded into its last layer, so that every format and runtime has
        it without knowing of it.
        """
        weight, bias = f"{head}.3.weight", f"{head}.3.bias"
        return {**weights, weight: weights[weight] / self.temperature, bias: self(weights[bias])}


def fit_scaling(logits: Tensor, true: Tensor, bias_sd: float = 0.0) -> Scaling:
    """The likeliest scaling: a temperature (Guo et al. 2017), or biases under a prior too (Alexandari et al. 2020).

    Args:
        logits: (N, K) of photographs that were not trained on.
        true: (N,) int64, their classes, or ``UNLABELLED``.
        bias_sd: the standard deviation, in logits, of a normal prior for each bias, which holds it near 0 as long as
            there are few photographs; 0 for no biases.

    Returns:
        a temperature within ``LIMITS``, and the biases. If all answers are right by a wide margin, any temperature
        fits, and 1 is kept.
    """
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=bias_sd > 0)
    fitted = [log_temperature, bias] if bias_sd > 0 else [log_temperature]
    photographs = (true != UNLABELLED).sum()
    optimizer = torch.optim.LBFGS(
        fitted, max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.double() / log_temperature.exp() + bias, true, ignore_index=UNLABELLED)
        if bias_sd > 0:
            loss = loss + (bias / bias_sd).square().sum() / (2 * photographs)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Scaling(float(log_temperature.detach().exp().clamp(*LIMITS)), bias.detach().float())

"""The module from which every format is exported: decoded pixels in, probabilities and maps out."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..runtime.contract import Contract
from ..train.framing import make_preprocess
from ..train.model import RetinaNet


class DeployedModel(nn.Module):
    """Preprocessing, network and softmax as one function of decoded pixels; with ``explain`` also Grad-CAM."""

    def __init__(self, model: RetinaNet, contract: Contract) -> None:
        super().__init__()
        self.preprocess = make_preprocess(contract.preprocessing)
        self.model = model
        self.explain = contract.explain
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, H, W, 3) uint8 RGB -> the contract's outputs in its order, float32.

        ``dr_probs`` (N, K) and ``me_probs`` (N, 2), in [0, 1]; with ``explain`` also ``dr_cam`` and ``me_cam``
        (N, h, w) of the most probable class, ``dr_cam_per_grade`` (N, K, h, w) and ``me_cam_per_label`` (N, 2, h, w),
        all at least 0, in logits, not scaled to a picture's own maximum.
        """
        feature_map = self.model.feature_map(self.preprocess(image))  # (N, C, h, w)
        features = feature_map.mean(dim=(2, 3))  # (N, C)
        probs, cams = [], []
        for head in (self.model.dr_head, self.model.me_head):
            hidden = head[0](features)
            probs.append(head[3](hidden.relu()).softmax(dim=1))
            if self.explain:
                cams.append(class_cams(head, hidden, feature_map))
        predicted = [_predicted(cam, p) for cam, p in zip(cams, probs, strict=False)]
        return (*probs, *predicted, *cams)


def class_cams(head: nn.Sequential, hidden: Tensor, feature_map: Tensor) -> Tensor:
    """Grad-CAM of every class of a head, in closed form, without autograd.

    Let f be the spatial mean of the feature map A, and ``W2 relu(W1 f + b1) + b2`` the head. The gradient of logit c
    with respect to A is the same at every position: ``((W2[c] * [W1 f + b1 > 0]) W1) / (h w)``. Grad-CAM (Selvaraju et
    al., 2017) weights A's channels with the mean of that gradient, which equals it, and keeps positive sums only.

    Args:
        head: linear (C to H), ReLU, dropout, linear (H to K).
        hidden: (N, H), ``W1 f + b1``.
        feature_map: (N, C, h, w).

    Returns:
        (N, K, h, w), at least 0, in logits.
    """
    n, c, h, w = feature_map.shape
    first, last = cast(nn.Linear, head[0]), cast(nn.Linear, head[3])
    is_open = (hidden > 0).to(hidden.dtype).unsqueeze(1)  # (N, 1, H)
    gradient = (is_open * last.weight) @ first.weight / (h * w)  # (N, K, C)
    return (gradient @ feature_map.reshape(n, c, h * w)).relu().reshape(n, -1, h, w)


def _predicted(cams: Tensor, probs: Tensor) -> Tensor:
    """(N, K, h, w) and (N, K) -> (N, h, w), the map of the most probable class."""
    index = probs.argmax(dim=1, keepdim=True)[..., None, None].expand(-1, 1, *cams.shape[2:])
    return cams.gather(1, index).squeeze(1)


def example_input() -> Tensor:
    """Pixels to trace with: (7, 97, 131, 3) uint8, all axes different, so that none is mistaken for another."""
    return torch.zeros(7, 97, 131, 3, dtype=torch.uint8)

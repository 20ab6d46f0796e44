"""A small network with two heads and random weights, for maps."""

from __future__ import annotations

import torch
from retina.runtime.contract import Contract, Preprocessing
from retina.train.model import RetinaNet
from small_backbone import RESNET10
from torch import nn

CONTRACT = Contract(Preprocessing(image_size=96))


def network(backbone: str = RESNET10, seed: int = 0) -> RetinaNet:
    torch.manual_seed(seed)
    return RetinaNet(5, backbone).eval()


def linear(layers: nn.Sequential, place: int) -> nn.Linear:
    """One fully connected layer, such as a head's first, ``linear(model.dr_head, 0)``, or its last, at 3."""
    layer = layers[place]
    assert isinstance(layer, nn.Linear)
    return layer

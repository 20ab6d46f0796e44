"""A small network with two heads and random weights, for maps."""

from __future__ import annotations

import torch
from retina.runtime.contract import Contract, Preprocessing
from retina.train.model import RetinaNet
from small_backbone import RESNET10

CONTRACT = Contract(Preprocessing(image_size=96))


def network(backbone: str = RESNET10, seed: int = 0) -> RetinaNet:
    torch.manual_seed(seed)
    return RetinaNet(5, backbone).eval()

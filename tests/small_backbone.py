"""ResNets of one block per stage, added to those of torchvision: half the work where the network does not matter."""

from __future__ import annotations

from typing import Any

from torchvision.models import resnet
from torchvision.models._api import register_model
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

RESNET10 = "resnet10"
RESNEXT14 = "resnext14_32x4d"


def resnet10(*, weights: None = None, **options: Any) -> ResNet:
    return ResNet(BasicBlock, [1, 1, 1, 1], **options)


def resnext14(*, weights: None = None, **options: Any) -> ResNet:
    return ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4, **options)


for _name, _build in ((RESNET10, resnet10), (RESNEXT14, resnext14)):
    _build.__module__ = resnet.__name__  # torchvision lists its networks by the module that they are from
    register_model(_name)(_build)

"""ResNets of one block per stage, added to torchvision's, for ``--backbone``: enough for what is tested with them."""

from __future__ import annotations

from typing import Any

from torchvision.models import resnet
from torchvision.models._api import register_model
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


def resnet10(*, weights: None = None, **options: Any) -> ResNet:
    return ResNet(BasicBlock, [1, 1, 1, 1], **options)


def resnext14_32x4d(*, weights: None = None, **options: Any) -> ResNet:
    return ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4, **options)


for _build in (resnet10, resnext14_32x4d):
    _build.__module__ = resnet.__name__  # torchvision lists its networks by the module that they are from
    register_model()(_build)

"""A seeded checkpoint of one block per stage at 64 px: every export path at a tenth of the cost."""

from __future__ import annotations

from pathlib import Path

import torch
from retina.runtime.contract import Contract, Framing, Preprocessing
from retina.train.checkpoint import Checkpoint
from retina.train.model import RetinaNet
from small_backbone import RESNET10
from small_network import linear


def small_checkpoint(path: Path, *, backbone: str = RESNET10, image_size: int = 64, framing: Framing = "field") -> Path:
    """Write a checkpoint whose answers differ between pictures: batch-norm has seen data, and heads are not flat."""
    torch.manual_seed(7)
    model = RetinaNet(5, backbone)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model.backbone(torch.randn(8, 3, image_size, image_size))
        for head in (model.dr_head, model.me_head):
            linear(head, 3).weight.mul_(8)
    contract = Contract(Preprocessing(framing=framing, image_size=image_size))
    metrics = {"valid": {"dr_accuracy": 0.5, "me_auc": float("nan")}}
    Checkpoint(model.state_dict(), backbone, contract, metrics=metrics).save(path)
    return path

"""Small runs of the training loop, in this process and as commands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torchvision
from retina.train.config import TrainConfig
from retina.train.data import DataSet
from retina.train.device import make_fabric
from retina.train.framing import Normalize
from retina.train.items import TrainItems, class_weights
from retina.train.loop import fit
from retina.train.model import RetinaNet
from retina.train.totals import Totals
from retina.train.trainer import Trainer
from small_backbone import RESNET10
from small_set import SMALL, items, small_set
from torch import Tensor

RECIPE = TrainConfig("", epochs=3, batch_size=4, image_size=32, backbone=RESNET10, workers=0, precision="fp32")


def trainable(root: Path) -> DataSet:
    """A data set, and beside it the weights to start from."""
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(RESNET10).state_dict(), pretrained(root))
    return small_set(root, train=[0, 0, 0, 1, 2, 1, 0, 2, 0, 1, 0, 0, 2, 0, 1, 0], others=[0, 1, 2])


def pretrained(root: Path) -> Path:
    """Weights to start from, of which the first layers are frozen."""
    return root / "start.pth"


def trainer(train: TrainItems | None = None, config: TrainConfig = RECIPE) -> Trainer:
    """Without photographs whose grades could be counted, all grades weigh the same."""
    torch.manual_seed(config.seed)
    net = RetinaNet(3, config.backbone)
    fabric = make_fabric("cpu", config.precision)
    dr_weights = torch.ones(3) if train is None else class_weights(train.dr_index, 3)
    return Trainer(fabric, config, net, Normalize(SMALL.mean, SMALL.std), (0, 1, 2), dr_weights)


def run(t: Trainer, data: DataSet, file: Path, show: Callable[[int, Totals], None] = lambda n, totals: None) -> bool:
    train, valid = items(data)
    return fit(t, train, valid, file, lambda row: None, lambda history: None, lambda *_: nullcontext(show))


def weights(t: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in t.net.state_dict().items()}


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def command(data: DataSet, artifacts: Path, name: str, *options: str) -> list[str]:
    recipe = ["--epochs", "3", "--image-size", "32", "--batch-size", "4", "--backbone", RESNET10]
    recipe += ["--weights", str(pretrained(data.root))]
    where = ["--artifacts", str(artifacts), "--name", name]
    return [str(data.root), *recipe, *where, *options]

"""One shared ResNet, two heads: DR grade and ME risk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
import torchvision
from torch import Tensor, nn

from ..runtime.errors import ModelFileError, UsageError

WEIGHTS_OF = {"resnet50": "IMAGENET1K_V2"}
"""torchvision's name of the ImageNet weights used for ``--weights imagenet``; DEFAULT for other backbones."""
FROZEN_AT_FIRST = ("conv1", "bn1", "layer1")
"""The backbone's generic edge and colour filters. The original notebook froze them so that a small data set cannot
spoil them."""


def backbone_names() -> list[str]:
    """The names of all torchvision ResNets, which can be used as the backbone."""
    return sorted(
        torchvision.models.list_models(module=torchvision.models, include=["resnet*", "resnext*", "wide_resnet*"])
    )


class RetinaNet(nn.Module):
    """A ResNet's pooled features, then one small head per task. Parameter names are those of the original notebook.

    Raises:
        UsageError: an unknown backbone.
    """

    def __init__(self, n_grades: int, backbone: str = "resnet50") -> None:
        super().__init__()
        if backbone not in backbone_names():
            raise UsageError(f"--backbone {backbone}: expected one of {', '.join(backbone_names())}")
        self.backbone = torchvision.models.get_model(backbone, weights=None)
        width = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        self.dr_head = _head(width, 512, n_grades)
        self.me_head = _head(width, 256, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) float32, normalised -> logits of the DR grades (N, K) and of the ME risk (N, 2)."""
        features = self.backbone(x)  # (N, C); C is 2048 for resnet50
        return self.dr_head(features), self.me_head(features)

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> the last feature map (N, C, h, w), before pooling; h and w are S / 32, rounded up."""
        b = self.backbone
        x = b.maxpool(b.relu(b.bn1(b.conv1(x))))
        feature_map: Tensor = b.layer4(b.layer3(b.layer2(b.layer1(x))))
        return feature_map

    def set_frozen(self, frozen: bool) -> None:
        """Freeze or unfreeze conv1, bn1 and layer1; frozen batch-norm keeps its ImageNet statistics (see ``train``)."""
        self._frozen = frozen
        for name in FROZEN_AT_FIRST:
            self.backbone.get_submodule(name).requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> RetinaNet:
        """Frozen layers stay in eval mode, or their batch-norm statistics would drift away from the frozen weights."""
        super().train(mode)
        if getattr(self, "_frozen", False):
            for name in FROZEN_AT_FIRST:
                self.backbone.get_submodule(name).eval()
        return self


def _head(width: int, hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, n_out))


def load_backbone_weights(model: RetinaNet, backbone: str, weights: str) -> None:
    """Initialise the backbone in place from ``imagenet`` (downloaded by torchvision), ``none``, or a state_dict file.

    Raises:
        UsageError: torchvision could not download the weights for ``imagenet``.
        ModelFileError: the file cannot be read, or is not a torchvision state_dict of this backbone.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        name = WEIGHTS_OF.get(backbone, "DEFAULT")
        try:
            state = torchvision.models.get_weight(
                f"{torchvision.models.get_model_weights(backbone).__name__}.{name}"
            ).get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as err:  # URLError is an OSError; a bad hash a RuntimeError
            raise UsageError(
                f"--weights imagenet: torchvision could not fetch {backbone} {name} ({err}).\n"
                "Without a network use --weights FILE (a torchvision state_dict you already have) "
                "or --weights none (random weights)."
            ) from None
    else:
        state = unwrapped(read_state_dict(Path(weights)))
    state = {str(key): value for key, value in state.items() if not str(key).startswith("fc.")}
    own = model.backbone.state_dict()
    # Older files lack batch-norm's count of batches, which torch then starts at 0.
    needed = {name: tensor.shape for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    wrong = [name for name, shape in needed.items() if getattr(state.get(name), "shape", None) != shape]
    unknown = [name for name in state if name not in own]
    if wrong or unknown:
        raise ModelFileError(
            f"{weights}: expected a torchvision state_dict of {backbone}, found "
            f"names missing or of another shape: {_listed(wrong)}, names unknown: {_listed(unknown)}. "
            "Give the file for this --backbone."
        )
    for name in needed:
        if not state[name].isfinite().all():
            raise ModelFileError(f"{weights}: {name}: expected finite weights, found others")
    model.backbone.load_state_dict(state, strict=False)


def unwrapped(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights in a torch file's content, by their own names.

    Many training programs put them beside other things, under one of three keys; DataParallel and torch.compile put a
    prefix before each name.
    """
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(body.get(key), dict):
            return unwrapped(body[key])
    for prefix in ("module.", "_orig_mod."):
        if body and all(str(name).startswith(prefix) for name in body):
            return unwrapped({str(name).removeprefix(prefix): weight for name, weight in body.items()})
    return body


def _listed(names: list[str]) -> str:
    return f"{len(names)}" + f" ({', '.join(names[:3])})" * bool(names)


def require_readable(path: Path) -> None:
    """Raise ModelFileError if the system does not let this process read the file."""
    try:
        path.open("rb").close()
    except OSError as err:
        raise ModelFileError(f"{path}: cannot be read: {err.strerror}") from None


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read a torch file of plain types onto the CPU, without running code in it.

    Raises:
        ModelFileError: the file does not exist, cannot be read, is damaged or not a torch file, would run code when
            loaded, or holds something other than a dictionary.
    """
    if not os.path.isfile(path):
        raise ModelFileError(f"{path}: expected a checkpoint or weights file, found none there")
    require_readable(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch asks its developers' attention for files that it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # noqa: BLE001 - torch raises a different type for each way a file can be wrong
        hint = (
            "Convert the ONNX file to a checkpoint first: python -m retina.export.recovery --help"
            if path.suffix == ".onnx"
            else "Name a checkpoint of retina-train, or a state_dict as torch.save writes it."
        )
        # Without the error's text, which would advise to load the file unsafely.
        raise ModelFileError(
            f"{path}: expected a torch file of plain tensors, found one that cannot be read safely: of another kind, "
            f"cut short or with code in it ({type(err).__name__}). {hint}"
        ) from None
    if is_zipfile(path) and (damaged := ZipFile(path).testzip()) is not None:  # torch.load does not check the CRCs
        raise ModelFileError(f"{path}: expected a sound file, found {damaged} in it damaged. Copy it again.")
    if not isinstance(state, dict):
        raise ModelFileError(f"{path}: expected a dictionary of weights, found {type(state).__name__}")
    return state

"""Checkpoints: weights, config and contract in one file of plain types, written atomically."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime.contract import MAX_DR_GRADE, Contract, Framing, Preprocessing
from ..runtime.errors import ModelFileError, UsageError
from ..runtime.output_file import write_bytes_atomically
from ..runtime.versions import own_version
from .config import BARE_FRAMING, BARE_IMAGE_SIZE, HOW_TO_GET_A_CHECKPOINT
from .model import RetinaNet, backbone_names, read_state_dict, unwrapped
from .run import BEST

_KIND = "retina-edge checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """The result of training, and the input of export and Grad-CAM."""

    weights: dict[str, Tensor]
    """Under the original notebook's names: ``backbone.*``, ``dr_head.0|3.*``, ``me_head.0|3.*``."""
    backbone: str
    """torchvision's name of the network, such as ``resnet50``."""
    contract: Contract
    config: dict[str, Any] = field(default_factory=dict)
    """``TrainConfig.to_dict`` of the run; empty for a bare state_dict and for a recovered checkpoint."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Of a finished run's best checkpoint, as in ``metrics.json``; of a run's other ones, the epoch's row of history
    under ``valid``; of a mean of several, ``splits`` with ``valid``; else empty."""
    epoch: int | None = None
    """Epochs trained; None for a bare state_dict, a mean of several and a recovered checkpoint."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that trained it: see ``current_versions``."""
    is_bare: bool = False
    """Whether it was a bare state_dict, of which DR grades and preprocessing are assumed."""

    def build_model(self) -> RetinaNet:
        """The network with these weights, in eval mode, on the CPU."""
        model = RetinaNet(len(self.contract.dr_grades), self.backbone)
        model.load_state_dict(self.weights)
        return model.eval()

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            OutputError: the folder is not writable or the disk is full.
        """
        body = {
            "kind": _KIND,
            "weights": {name: tensor.detach().cpu() for name, tensor in self.weights.items()},
            "backbone": self.backbone,
            "contract": self.contract.to_json(),
            "config": self.config,
            "metrics": self.metrics,
            "epoch": self.epoch,
            "versions": self.versions or current_versions(),
        }
        save_tensors(path, body)


def load_checkpoint(
    path: str | os.PathLike[str], *, framing: Framing | None = None, image_size: int | None = None
) -> Checkpoint:
    """Read a checkpoint of this project, or a bare state_dict saved by the original notebook.

    Args:
        path: the file.
        framing: how a bare state_dict was trained, since it does not say so itself; None: ``squash``, as in the
            notebook.
        image_size: side of the square it was trained at, in pixels; None: 384.

    Raises:
        ModelFileError: not a torch file of plain types, damaged, or of another network.
        UsageError: a checkpoint of this project was trained with another ``framing`` or ``image_size``.
    """
    path = Path(path)
    if not os.path.isfile(path):
        best = path / BEST
        hint = f"For a run, name {best}" if os.path.isfile(best) else HOW_TO_GET_A_CHECKPOINT
        raise ModelFileError(f"{path}: expected a checkpoint, found no such file. {hint}")
    checkpoint = parse_checkpoint(path, read_state_dict(path), framing or BARE_FRAMING, image_size or BARE_IMAGE_SIZE)
    prep = checkpoint.contract.preprocessing
    for option, given, found in (("framing", framing, prep.framing), ("image-size", image_size, prep.image_size)):
        if given not in (None, found):
            raise UsageError(f"--{option}: expected {found} as {path} was trained, found {given}; leave it out")
    return checkpoint


def assumption(path: Path, checkpoint: Checkpoint, framing: Framing | None, image_size: int | None) -> list[str]:
    """A line that says what ``load_checkpoint`` assumed of a bare state_dict, for commands to print; else nothing."""
    if not checkpoint.is_bare or None not in (framing, image_size):
        return []
    prep = checkpoint.contract.preprocessing
    return [
        f"{path} does not say how it was trained: taken as --framing {prep.framing} --image-size {prep.image_size}. "
        "Give both, if it was otherwise."
    ]


def has_heads(body: Mapping[str, Any]) -> bool:
    """Whether a torch file's content is a checkpoint of this project or of the original notebook."""
    return body.get("kind") == _KIND or "dr_head.3.weight" in unwrapped(body)


def parse_checkpoint(
    path: Path, body: dict[str, Any], framing: Framing = BARE_FRAMING, image_size: int = BARE_IMAGE_SIZE
) -> Checkpoint:
    """The checkpoint in a torch file's content; ``framing`` and ``image_size`` are those of a bare state_dict.

    Raises:
        ModelFileError: see ``load_checkpoint``.
    """
    if body.get("kind") != _KIND:
        return _from_bare(path, unwrapped(body), framing, image_size)
    try:
        checkpoint = Checkpoint(
            weights=body["weights"],
            backbone=body["backbone"],
            contract=Contract.from_json(body["contract"], source=str(path)),
            config=body["config"],
            metrics=body["metrics"],
            epoch=body["epoch"],
            versions=body["versions"],
        )
    except KeyError as err:
        raise ModelFileError(f"{path}: expected a checkpoint with the entry {err}, found none. Train again.") from None
    except (TypeError, AttributeError) as err:
        raise ModelFileError(f"{path}: expected a checkpoint of retina-train, found a damaged one: {err}") from None
    _check_fits(path, checkpoint)
    return checkpoint


def _from_bare(path: Path, body: Mapping[str, Any], framing: Framing, image_size: int) -> Checkpoint:
    last_layer = body.get("dr_head.3.weight")
    if not isinstance(last_layer, Tensor) or last_layer.ndim != 2 or "me_head.3.weight" not in body:
        found = ", ".join(str(key) for key in list(body)[:4]) or "nothing"
        raise ModelFileError(
            f"{path}: expected a retina-edge checkpoint, or the original notebook's state_dict with backbone.*, "
            f"dr_head.* and me_head.*, found the entries {found} ..."
        )
    if not 2 <= last_layer.shape[0] <= MAX_DR_GRADE + 1:
        raise ModelFileError(
            f"{path}: expected a dr_head of 2 to {MAX_DR_GRADE + 1} DR grades, found {last_layer.shape[0]}"
        )
    grades = tuple(range(last_layer.shape[0]))
    contract = Contract(Preprocessing(framing=framing, image_size=image_size), dr_grades=grades)
    for backbone in sorted(backbone_names(), key=lambda name: name != "resnet50"):
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in RetinaNet(len(grades), backbone).state_dict().items()}
        if shapes == {name: getattr(tensor, "shape", None) for name, tensor in body.items()}:
            checkpoint = Checkpoint(weights=dict(body), backbone=backbone, contract=contract, is_bare=True)
            _check_fits(path, checkpoint)
            return checkpoint
    raise ModelFileError(
        f"{path}: expected the weights of a torchvision ResNet with two heads, found {len(body)} entries "
        f"that fit none of {', '.join(backbone_names())}"
    )


def _check_fits(path: Path, checkpoint: Checkpoint) -> None:
    if checkpoint.backbone not in backbone_names():
        known = ", ".join(backbone_names())
        raise ModelFileError(f"{path}: expected a backbone among {known}, found {checkpoint.backbone!r}")
    with torch.device("meta"):
        expected = RetinaNet(len(checkpoint.contract.dr_grades), checkpoint.backbone).state_dict()
    if not isinstance(checkpoint.weights, dict) or not isinstance(checkpoint.config, dict):
        raise ModelFileError(f"{path}: expected weights and config by their names, found a damaged checkpoint")
    for name, tensor in expected.items():
        found = checkpoint.weights.get(name)
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            shape = str(tuple(found.shape)) if isinstance(found, Tensor) else "nothing"
            raise ModelFileError(f"{path}: {name}: expected {tuple(tensor.shape)}, found {shape}")
        if not found.isfinite().all():
            raise ModelFileError(f"{path}: {name}: expected finite weights, found others. Train again.")
    if unknown := sorted(checkpoint.weights.keys() - expected.keys()):
        raise ModelFileError(f"{path}: expected the weights of {checkpoint.backbone} alone, found {unknown[0]} too")


def current_versions() -> dict[str, str]:
    """Versions of the libraries that influence the weights, by package name."""
    libraries = {name: _version(name) for name in ("torch", "torchvision", "numpy", "pillow")}
    return {"retina-edge": own_version(), **libraries}


_version = cache(version)  # which searches the installed packages, for 8 ms each


def save_tensors(path: Path, body: dict[str, Any]) -> None:
    """``torch.save`` to a file, atomically.

    By way of a buffer in memory: given a path, torch.save would name the archive's root after the temporary file, so
    that equal weights gave different bytes, and would report a full disk as a RuntimeError.

    Raises:
        OutputError: as ``write_bytes_atomically``.
    """
    buffer = io.BytesIO()
    torch.save(body, buffer)
    write_bytes_atomically(path, buffer.getbuffer())

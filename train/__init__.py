"""Training: one ResNet with two heads, from a data folder to checkpoints, figures and a report.

>>> from retina.train import Run, TrainConfig, train
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augment import make_augment
    from .checkpoint import Checkpoint, load_checkpoint
    from .config import TrainConfig
    from .data import DataSet, read_dataset
    from .frames import DecodedFrames, look_through
    from .framing import Normalize, make_frame, make_preprocess
    from .items import EpochPlan, EvalItems, TrainItems, class_weights
    from .loop import fit
    from .model import RetinaNet
    from .pipeline import train
    from .run import Run
    from .trainer import Trainer

_HOME = {
    "augment": ["make_augment"],
    "checkpoint": ["Checkpoint", "load_checkpoint"],
    "config": ["TrainConfig"],
    "data": ["DataSet", "read_dataset"],
    "frames": ["DecodedFrames", "look_through"],
    "framing": ["Normalize", "make_frame", "make_preprocess"],
    "items": ["EpochPlan", "EvalItems", "TrainItems", "class_weights"],
    "loop": ["fit"],
    "model": ["RetinaNet"],
    "pipeline": ["train"],
    "run": ["Run"],
    "trainer": ["Trainer"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = [
    "Checkpoint",
    "DataSet",
    "DecodedFrames",
    "EpochPlan",
    "EvalItems",
    "Normalize",
    "RetinaNet",
    "Run",
    "TrainConfig",
    "TrainItems",
    "Trainer",
    "class_weights",
    "fit",
    "load_checkpoint",
    "look_through",
    "make_augment",
    "make_frame",
    "make_preprocess",
    "read_dataset",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``retina-train --help`` is quick and, without torch, a run says what to install."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    """With the names that are imported on first use, which a shell completes."""
    return sorted({*globals(), *__all__})

"""Score retina photographs on a CPU, with numpy, Pillow, onnxruntime and click: nothing else.

from retina.runtime import RetinaModel

model = RetinaModel()                      # or RetinaModel("retina_multitask.onnx")
print(model.predict("eye.jpg").grade)      # a path, bytes, an array (H, W, 3) uint8, or a Pillow image
for scored in model.score(paths):          # in order, on all cores, in bounded memory
    print(scored.source, scored.prediction or scored.error)
score_folder("photographs/", "scores.csv") # the table of retina-score; stopped, the same call goes on
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .contract import Contract, Preprocessing, Rule
from .errors import (
    AnnotationError,
    MissingExtraError,
    ModelFileError,
    OutputError,
    ParityError,
    PictureError,
    RetinaError,
    UsageError,
)
from .model import RetinaModel
from .model_file import RELEASED
from .prediction import Prediction, Scored

if TYPE_CHECKING:
    from .job import score_folder

__all__ = [
    "RELEASED",
    "AnnotationError",
    "Contract",
    "MissingExtraError",
    "ModelFileError",
    "OutputError",
    "ParityError",
    "PictureError",
    "Prediction",
    "Preprocessing",
    "RetinaError",
    "RetinaModel",
    "Rule",
    "Scored",
    "UsageError",
    "score_folder",
]

# onnxruntime's official builds report to Microsoft which model file was opened, how it ran and on what machine, unless
# told not to before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import on first use what only ``score_folder`` needs, so that all else starts sooner."""
    if name != "score_folder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .job import score_folder

    return score_folder


def __dir__() -> list[str]:
    """With the names that are imported on first use, which a shell completes."""
    return sorted({*globals(), *__all__})

"""Score retina photographs on a CPU, with numpy, Pillow, onnxruntime and click: nothing else.

from retina.runtime import RetinaModel

model = RetinaModel()                      # or RetinaModel("retina_multitask.onnx")
print(model.predict("eye.jpg").grade)      # a path, bytes, an array (H, W, 3) uint8, or a Pillow image
for scored in model.score(paths):          # in order, on all cores, in bounded memory
    print(scored.source, scored.prediction or scored.error)
score_folder("photographs/", "scores.csv") # the table of retina-score; stopped, the same call goes on
"""

import os

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
from .job import score_folder
from .model import Prediction, RetinaModel, Scored
from .summary import Summary

__all__ = [
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
    "Summary",
    "UsageError",
    "score_folder",
]

# onnxruntime's official builds report to Microsoft which model file was opened, how it ran and on what machine, unless
# told not to before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

"""Score retina photographs on a CPU, with numpy, Pillow, onnxruntime and click: nothing else.

from retina.runtime import RetinaModel

model = RetinaModel()                      # or RetinaModel("retina_multitask.onnx")
print(model.predict("eye.jpg").grade)      # a path, bytes, an array (H, W, 3) uint8, or a Pillow image
for scored in model.score(paths):          # in order, on all cores, in bounded memory
    print(scored.source, scored.prediction or scored.error)
"""

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
from .model import Prediction, RetinaModel, Scored

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
    "UsageError",
]

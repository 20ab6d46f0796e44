"""A model file as any program runs it: by onnxruntime alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


def outputs_of(file: Path, pictures: Iterable[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
    """All outputs of a file, in its order, for pictures (H, W, 3) that are given to it one by one."""
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {"image": picture[None]}) for picture in pictures]
    return {name: np.concatenate(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}

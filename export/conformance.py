"""A conformance kit: pictures as raw pixels with the expected answers, to verify an embedding of a model file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.contract import DR_PROBS, INPUT, ME_PROBS, MIN_SIDE, Contract, Decision, Precision, decide
from ..runtime.model import RetinaModel
from ..runtime.output_file import require_folder, write_bytes_atomically, write_text_atomically
from ..runtime.prediction import Prediction
from ..runtime.second_look import is_close_call
from ..train.synthetic import photograph

Pixels = NDArray[np.uint8]

SCHEMA = 1
INDEX = "index.json"
TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "int8": 2e-2}
"""Largest difference of a probability, by precision. fp32: ten times what export allows, because another runtime may
sum in another order. int8: processors have different integer kernels, which may round differently."""
BESIDE = 0.01
"""How far beside a threshold the cases of the rules lie."""


def write_kit(model: RetinaModel, folder: Path) -> None:
    """Write ``index.json`` and a file of raw pixels for each picture.

    The answers are those of the model file in onnxruntime, which export has compared with PyTorch. If a decision is a
    close call, ``decisions`` is null: a correct embedding may decide otherwise. Since no picture need lie close to a
    threshold, there are also bare probabilities that do.

    Raises:
        OutputError: the folder cannot be written.
    """
    require_folder(folder, "--conformance")
    entries, tolerance = [], TOLERANCES[model.contract.precision]
    for name, pixels in pictures():
        write_bytes_atomically(folder / f"{name}.rgb", pixels.tobytes())
        entries.append(_entry(name, pixels, model.predict_pixels(pixels), model, tolerance))
    index = {
        "schema": SCHEMA,
        "model": {"name": model.path.name, "sha256": model.sha256},
        "layout": "rows from top to bottom, pixels from left to right, R G B, one byte each",
        "tolerance": tolerance,
        "pictures": entries,
        "cases": [
            {
                "name": name,
                DR_PROBS: dr.tolist(),
                ME_PROBS: me.tolist(),
                "decisions": _decisions(decide(model.contract, dr, me)),
            }
            for name, dr, me in cases(model.contract)
        ],
    }
    text = json.dumps(index, indent=1) + "\n"
    # Written last, so that the index never names a picture that does not exist.
    write_text_atomically(folder / INDEX, text)


def pictures() -> Iterator[tuple[str, Pixels]]:
    """Name and (H, W, 3) uint8 RGB of each picture, chosen so that each likely mistake shows on at least one of them.

    There are sizes below and above the network's, odd ones and unequal sides, a field cut off by the frame, no field at
    all, and noise, on which differences between interpolations of the same name are largest.
    """
    wide = photograph(4, 1, 360, seed=1, source="larga").picture  # 3:2
    yield "square", photograph(0, 0, 256, seed=3, source="ronda").picture
    yield "landscape", wide
    yield "portrait", np.ascontiguousarray(np.rot90(photograph(2, 1, 360, seed=4, source="larga").picture))
    yield "large", photograph(3, 1, 960, seed=2, source="larga").picture
    yield "odd", _resized(photograph(1, 0, 256, seed=5, source="ronda").picture, height=131, width=97)
    yield "smallest", _resized(wide, height=MIN_SIDE, width=MIN_SIDE)
    yield "strip", wide[100 : 100 + MIN_SIDE].copy()
    yield "black", np.zeros((48, 64, 3), np.uint8)
    yield "noise", np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)


def cases(contract: Contract) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Name, and probabilities of the grades (K,) and ME labels (2,), on which other rules than the contract's show.

    One case for each grade, which is the most probable one, and two for each threshold, ``BESIDE`` it. At the threshold
    of referable DR, all referable grades share the probability, the first of them the most, and the grade before them
    has the rest.
    """
    grades, no_risk = contract.dr_grades, np.array([0.9, 0.1])
    certain = np.eye(len(grades))
    for grade, probs in zip(grades, 0.8 * certain + 0.2 / len(grades), strict=True):
        yield f"grade {grade}", probs, no_risk
    first = sum(grade < contract.referable_from for grade in grades)
    shares = np.arange(len(grades) - first, 0, -1.0)
    if 0 < first < len(grades):
        for side, prob in _beside(contract, "referable_dr"):
            yield side, np.r_[(1 - prob) * certain[first - 1, :first], prob * shares / shares.sum()], no_risk
    for task in ("me", "referable_me"):
        for side, prob in _beside(contract, task):
            yield side, certain[0], np.array([1 - prob, prob])


def _beside(contract: Contract, task: str) -> list[tuple[str, float]]:
    threshold = contract.thresholds[task].level
    sides = (f"below {task}", threshold - BESIDE), (f"above {task}", threshold + BESIDE)
    return [(side, prob) for side, prob in sides if 0 < prob < 1]


def _decisions(answer: Decision) -> dict[str, Any]:
    return {
        "dr_grade": answer.grade,
        "me_risk": answer.me_risk,
        "referable": answer.referable,
        "referable_me": answer.referable_me,
    }


def _entry(name: str, pixels: Pixels, answer: Prediction, model: RetinaModel, tolerance: float) -> dict[str, Any]:
    # Two grades' probabilities may each differ by the tolerance: their difference and, of five grades, the sum of those
    # that are referred or of those that are not, then differ by twice as much.
    is_open = is_close_call(model.contract, answer, margin=2 * tolerance)
    return {
        "name": name,
        "file": f"{name}.rgb",
        "dtype": INPUT["dtype"],
        "shape": list(pixels.shape),
        DR_PROBS: list(answer.dr_probs.values()),
        ME_PROBS: [1 - answer.me_prob, answer.me_prob],
        "decisions": None if is_open else _decisions(answer),
    }


def _resized(picture: Pixels, *, height: int, width: int) -> Pixels:
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))

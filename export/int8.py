"""From the fp32 export to the int8 one: calibrate, try the recipes, keep the quickest that is as accurate and close."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from tqdm import tqdm

from ..runtime.annotations import fault_report
from ..runtime.contract import DR_PROBS, INPUT_NAME, ME_PROBS, Contract, Rule
from ..runtime.errors import AnnotationError, ParityError, UsageError
from ..runtime.model import session_options
from ..runtime.picture import decode
from ..train.calibration import calibration_faults, is_calibrated
from ..train.data import DataSet, Photo, fingerprint_of_files, sound_dataset
from ..train.metrics import Predictions
from ..train.screening import screening_rules
from .calibration import METHODS, measure_ranges
from .gate import Gate, judge
from .photographs import spread
from .quantize import Recipe, quantize, tensors_to_measure

CALIBRATION_PHOTOGRAPHS = 320
RECIPES = tuple(Recipe(method, float_blocks) for float_blocks in (0, 1, 3) for method in METHODS)
"""The quickest and smallest first: on a ResNet-50, one block in floats costs a fifth of the time and 0.2 MB, three cost
half of it and 0.6 MB."""
CLOSE = 0.005
"""Largest mean difference of a DR probability from fp32 on valid. The gate asks for decisions only, which a file that
is further off can get right there by luck: docs/recipe.md, "The int8 file"."""

_STRANGERS = (
    "  Warning: these are not the photographs and labels that the checkpoint was trained on; where their valid holds "
    "some of its train, the figures above flatter it"
)


@dataclass(frozen=True)
class Int8:
    """A quantised model and why it was kept."""

    model: onnx.ModelProto
    recipe: Recipe
    calibrated_on: int
    """Photographs of the training split."""
    mean_difference: float
    """Mean absolute difference of a DR probability from fp32 on the validation split."""
    gate: Gate
    thresholds: Mapping[str, Rule]
    """The contract's rules for this file: ``screening_thresholds``."""
    data_fingerprint: str = ""
    """Of the photographs it was calibrated and judged on."""
    trained_on: str = ""
    """Fingerprint of those the checkpoint was trained on; empty where it does not say."""

    def lines(self) -> list[str]:
        """The figures, for a person."""
        strangers = self.trained_on not in ("", self.data_fingerprint)
        beyond = "" if self.mean_difference <= CLOSE else f", above the {CLOSE} aimed at: no closer way was as accurate"
        return [
            f"quantised with {self.recipe}, calibrated on {self.calibrated_on} photographs of train",
            *self.gate.lines(),
            f"  referral from DR {self.thresholds['referable_dr'].level:.3f}, "
            f"ME {self.thresholds['referable_me'].level:.3f}",
            f"  mean difference of a DR probability {self.mean_difference:.4f}{beyond}",
            *([_STRANGERS] if strangers else []),
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": str(self.recipe),
            "calibrated_on": self.calibrated_on,
            "mean_difference": self.mean_difference,
            "data_fingerprint": self.data_fingerprint,
            **self.gate.to_dict(),
        }


def to_int8(
    fp32: onnx.ModelProto, contract: Contract, root: Path, me_positive_from: int | None, *, force: bool
) -> Int8:
    """Quantise by each recipe, judge each on valid, and keep the one that ``choose`` says.

    Args:
        fp32: the fp32 export.
        contract: its contract.
        root: the data folder, with train/ to calibrate on and valid/ to judge on.
        me_positive_from: as in training.
        force: keep the one closest to fp32 even where none passes the gate.

    Raises:
        AnnotationError: the data folder is not one that training would take.
        UsageError: its grades are not the model's.
        ParityError: no recipe is accurate enough; the message has the figures.
    """
    data = _read(root, contract, me_positive_from)
    found, trained_on = fingerprint_of_files(data), contract.provenance.get("data_fingerprint", "")
    train, valid = data.splits["train"].photos, data.splits["valid"].photos
    calibration = spread(train, CALIBRATION_PHOTOGRAPHS)
    ranges = measure_ranges(fp32, tensors_to_measure(fp32), _pixels(calibration, "Calibrating"))
    models = [quantize(fp32, ranges, recipe) for recipe in RECIPES]
    reference, *answers = _predict([fp32, *models], contract, valid)
    candidates = [
        Int8(
            model, recipe, ranges.photographs, float(np.abs(answer.dr_probs - reference.dr_probs).mean()),
            judge(contract, reference, answer), screening_thresholds(contract, answer), found, trained_on,
        )
        for model, recipe, answer in zip(models, RECIPES, answers, strict=True)
    ]  # fmt: skip
    best = choose(candidates)
    if best.gate.faults and not force:
        figures = "\n  ".join([*best.lines(), *best.gate.faults])
        raise ParityError(
            f"{root}: expected an int8 file as accurate as fp32, found none among {len(RECIPES)} ways; the closest:"
            f"\n  {figures}\n  --force keeps it, marked in the contract."
        )
    return best


def choose(candidates: Sequence[Int8]) -> Int8:
    """The first, and so the quickest, that passes the gate and is ``CLOSE``; else the closest of those that pass, else
    the closest.
    """
    accepted = [candidate for candidate in candidates if not candidate.gate.faults]
    close = [candidate for candidate in accepted if candidate.mean_difference <= CLOSE]
    return close[0] if close else min(accepted or candidates, key=lambda candidate: candidate.mean_difference)


def screening_thresholds(contract: Contract, valid: Predictions) -> Mapping[str, Rule]:
    """The contract's rules; of a calibrated checkpoint, both referrals at the operating point of int8's own answers.

    Fitted to fp32's, they can miss in int8 a photograph more than screening may: rounding moves those next to them.
    """
    if not is_calibrated(contract):
        return contract.thresholds
    return screening_rules(contract, valid)


def _read(root: Path, contract: Contract, me_positive_from: int | None) -> DataSet:
    data = sound_dataset(root, me_positive_from)
    if is_calibrated(contract) and (faults := calibration_faults(data, contract)):
        raise AnnotationError(fault_report(root, faults))
    unknown = sorted({photo.dr_grade for photo in data.splits["valid"].photos} - set(contract.dr_grades))
    if unknown:
        raise UsageError(f"--calibration {root}: expected the model's grades {contract.dr_grades}, found {unknown} too")
    return data


def _pixels(photos: Sequence[Photo], what: str) -> Iterator[NDArray[np.uint8]]:
    for photo in tqdm(photos, desc=what, unit="photo", leave=False, disable=None):
        yield decode(photo.path)


def _predict(models: Sequence[onnx.ModelProto], contract: Contract, photos: Sequence[Photo]) -> list[Predictions]:
    """Every model's answers, each photograph decoded once."""
    dr_true = [contract.dr_grades.index(photo.dr_grade) for photo in photos]
    sessions = [
        ort.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
        for model in models
    ]
    rows = [
        [session.run([DR_PROBS, ME_PROBS], {INPUT_NAME: pixels[None]}) for session in sessions]
        for pixels in _pixels(photos, "Judging")
    ]
    return [
        Predictions.of(
            photos, dr_true, np.concatenate([dr for dr, _ in column]), np.concatenate([me for _, me in column])
        )
        for column in zip(*rows, strict=True)
    ]

"""From the fp32 export to int8: calibrate, quantise in every way, keep the fastest that is as accurate and close."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.annotations import fault_report
from ..runtime.contract import DR_PROBS, INPUT_NAME, ME_PROBS, Contract, Head, Rule
from ..runtime.errors import AnnotationError, ParityError, UsageError
from ..runtime.picture import decode
from ..runtime.progress import tracked
from ..runtime.session import open_session
from ..train.calibration import calibration_faults, calibration_notes, is_calibrated
from ..train.data import DataSet, Photo, fingerprint_of_files, read_dataset, unknown_grades
from ..train.predictions import Predictions
from ..train.screening import screening_rules
from .gate import Gate, compare
from .photographs import spread
from .quantize import Quantization, quantize, tensors_to_measure
from .ranges import RANGE_METHODS, measure_ranges

CALIBRATION_PHOTOGRAPHS = 320
"""Largest number of photographs of train, evenly spread, on which activations' ranges are measured."""
QUANTIZATIONS = tuple(Quantization(method, float_blocks) for float_blocks in (0, 1, 3) for method in RANGE_METHODS)
"""The fastest and smallest first: in a ResNet-50, one block in floats costs 20% more time and 0.2 MB, three cost 50%
more time and 0.6 MB."""
CLOSE = 0.005
"""Largest ``Int8.mean_difference``. The gate checks only decisions, which a file that differs more can get right there
by chance: docs/recipe.md, "The int8 file"."""

_STRANGERS = (
    "  Warning: these are not the photographs and labels that the checkpoint was trained on; if this valid split holds "
    "photographs that were trained on, the figures above are too good"
)


@dataclass(frozen=True)
class Int8:
    """A quantised model, and the figures by which it is chosen."""

    model: onnx.ModelProto
    quantization: Quantization
    calibrated_on: int
    """Number of photographs of the training split."""
    mean_difference: float
    """Mean absolute difference of a probability of ``head`` from fp32 on the validation split."""
    gate: Gate
    thresholds: Mapping[str, Rule]
    """The contract's rules for this file: ``screening_thresholds``."""
    data_fingerprint: str = ""
    """Fingerprint of the data that it was calibrated and evaluated on."""
    trained_on: str = ""
    """Fingerprint of the data that the checkpoint was trained on; empty if it does not say."""
    head: Head = "dr"
    """DR, or ME if the DR head was never trained: what that says is close to nothing, or to anything."""
    notes: Sequence[str] = ()
    """Which referral thresholds could not be fitted to it, as lines to print."""

    def lines(self) -> list[str]:
        """The figures as lines to print."""
        strangers = self.trained_on not in ("", self.data_fingerprint)
        faults = self.gate.faults  # a file with faults, kept by --force, is the closest of all
        far = self.mean_difference > CLOSE and not faults
        which = "an ME" if self.head == "me" else "a DR"
        beyond = f", above the {CLOSE} aimed at: no closer way was as accurate" if far else ""
        return [
            f"quantised with {self.quantization}, calibrated on {self.calibrated_on} photographs of train",
            *self.gate.lines(),
            f"  referral from DR {self.thresholds['referable_dr'].level:.3f}, "
            f"ME {self.thresholds['referable_me'].level:.3f}",
            f"  mean difference of {which} probability {self.mean_difference:.4f}{beyond}",
            *(f"  not as accurate as fp32: {fault}" for fault in faults),
            *(f"  {note}" for note in self.notes),
            *([_STRANGERS] if strangers else []),
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": str(self.quantization),
            "calibrated_on": self.calibrated_on,
            "mean_difference": self.mean_difference,
            "data_fingerprint": self.data_fingerprint,
            **self.gate.to_dict(),
        }


def to_int8(
    fp32: onnx.ModelProto, contract: Contract, root: Path, me_positive_from: int | None, *, force: bool
) -> Int8:
    """Quantise in each way, evaluate each on valid, and keep the one that ``choose`` selects.

    Args:
        fp32: the fp32 export.
        contract: its contract.
        root: the data folder, with train/ to calibrate on and valid/ to evaluate on.
        me_positive_from: as in training: see ``read_dataset``.
        force: keep the one closest to fp32 even if none passes the gate.

    Raises:
        AnnotationError: the data folder has faults that training would refuse, or lacks photographs to calibrate on.
        UsageError: it has grades that the model does not have.
        PictureError: a photograph cannot be decoded.
        ParityError: no way is accurate enough; the message has the figures.
    """
    data = _read(root, contract, me_positive_from)
    found = fingerprint_of_files(data)
    train, valid = data.splits["train"].photos, data.splits["valid"].photos
    calibration = spread(train, CALIBRATION_PHOTOGRAPHS)
    ranges = measure_ranges(fp32, tensors_to_measure(fp32), _pixels(calibration, "Calibrating"))
    models = [quantize(fp32, ranges, quantization) for quantization in QUANTIZATIONS]
    reference, *answers = _predict([fp32, *models], contract, valid)
    head: Head = "me" if "dr" in contract.untrained_heads else "dr"
    notes = calibration_notes(data, contract) if is_calibrated(contract) else ()
    candidates = [
        Int8(
            model, quantization, ranges.photographs, float(np.abs(answer.probs(head) - reference.probs(head)).mean()),
            compare(contract, reference, answer), screening_thresholds(contract, answer), found,
            contract.data_fingerprint, head, notes,
        )
        for model, quantization, answer in zip(models, QUANTIZATIONS, answers, strict=True)
    ]  # fmt: skip
    best = choose(candidates)
    if best.gate.faults and not force:
        figures = "\n  ".join(best.lines())
        raise ParityError(
            f"{root}: expected an int8 file as accurate as fp32, found none among {len(QUANTIZATIONS)} ways; the "
            f"closest:\n  {figures}\n  --force keeps it, marked in the contract."
        )
    return best


def choose(candidates: Sequence[Int8]) -> Int8:
    """The first candidate, and so the fastest, that passes the gate and is ``CLOSE``.

    If there is none, the closest to fp32 of those that pass the gate; if none passes, the closest of all.
    """
    accepted = [candidate for candidate in candidates if not candidate.gate.faults]
    close = [candidate for candidate in accepted if candidate.mean_difference <= CLOSE]
    return close[0] if close else min(accepted or candidates, key=lambda candidate: candidate.mean_difference)


def screening_thresholds(contract: Contract, valid: Predictions) -> Mapping[str, Rule]:
    """The contract's rules; for a calibrated checkpoint, with referral thresholds fitted to int8's answers on valid.

    Thresholds fitted to fp32's answers could miss more photographs than screening may, because rounding moves
    probabilities that are close to them.
    """
    if not is_calibrated(contract):
        return contract.thresholds
    return screening_rules(contract, valid)


def _read(root: Path, contract: Contract, me_positive_from: int | None) -> DataSet:
    data = read_dataset(root, me_positive_from, known_grades=contract.dr_grades)
    if is_calibrated(contract) and (faults := calibration_faults(data, contract)):
        raise AnnotationError(fault_report(root, faults))
    if unknown := unknown_grades(data.splits["valid"].photos, contract.dr_grades):
        raise UsageError(f"--calibration {root}: expected the model's grades {contract.dr_grades}, found {unknown} too")
    return data


def _pixels(photos: Sequence[Photo], what: str) -> Iterator[NDArray[np.uint8]]:
    for photo in tracked(photos, what):
        yield decode(photo.path)


def _predict(models: Sequence[onnx.ModelProto], contract: Contract, photos: Sequence[Photo]) -> list[Predictions]:
    """Every model's predictions; each photograph is decoded only once."""
    sessions = [open_session(model.SerializeToString()) for model in models]
    rows = [
        [session.run([DR_PROBS, ME_PROBS], {INPUT_NAME: pixels[None]}) for session in sessions]
        for pixels in _pixels(photos, "Evaluating")
    ]
    return [
        Predictions.of(
            photos,
            contract.dr_grades,
            np.concatenate([dr for dr, _ in column]),
            np.concatenate([me for _, me in column]),
        )
        for column in zip(*rows, strict=True)
    ]

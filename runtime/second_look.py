"""How far a photograph is decoded at first, and when it is predicted again at full size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, Preprocessing
from .prediction import Prediction

DECODE_MARGIN = 1.8
"""Smallest side of a picture decoded at reduced size, as a multiple of the square that the graph first resizes it to;
measured in docs/scoring.md."""

CLOSE_CALL = 0.025
"""If a change of a probability by less than this would change a decision, the photograph is predicted again at full
size. It is larger than any change that decoding at half size was seen to cause in fp32 (docs/scoring.md). Changes due
to int8's own rounding need no margin: a second prediction would only round differently."""
CLOSE_NOVELTY = 0.02
"""The same for the novelty of an unfamiliar picture, as a share of its level: decoding at half size was seen to change
it by 1.5%."""


def least_side(preprocessing: Preprocessing) -> int:
    """Smallest side in pixels of a picture decoded at reduced size: see ``picture.decode``."""
    return round(DECODE_MARGIN * preprocessing.intermediate_size)


def is_close_call(contract: Contract, prediction: Prediction, margin: float = CLOSE_CALL) -> bool:
    """Whether a change of less than ``margin`` could change a decision.

    That is a change in a probability, or in the difference between the two most probable DR grades.
    """
    second, first = sorted(prediction.dr_probs.values())[-2:]
    me, referable_me, referable_dr = (
        contract.thresholds[task].level for task in ("me", "referable_me", "referable_dr")
    )
    to_me = min(abs(prediction.me_prob - me), abs(prediction.me_prob - referable_me))
    to_referable = abs(prediction.referable_prob - referable_dr)
    return min(first - second, to_me, to_referable) < margin


def needs_second_look(contract: Contract, prediction: Prediction, pixels: NDArray[np.uint8]) -> bool:
    """Whether a prediction for a photograph as it was decoded is to be made again at full size.

    That is for a close call, or a novelty close to what is unfamiliar, unless the pixels (H, W, 3) are too few to come
    from decoding at reduced size.
    """
    if min(pixels.shape[:2]) < least_side(contract.preprocessing):
        return False
    return is_close_call(contract, prediction) or _is_nearly_unfamiliar(contract, prediction)


def _is_nearly_unfamiliar(contract: Contract, prediction: Prediction) -> bool:
    """Whether a small change of the novelty would make an unfamiliar picture of a familiar one, or the reverse."""
    level, novelty = contract.unfamiliar_from, prediction.novelty
    return level is not None and novelty is not None and abs(novelty - level) < CLOSE_NOVELTY * level

"""What the model says about one photograph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, Decision, decide


@dataclass(frozen=True, kw_only=True)
class Prediction(Decision):
    """What the model says about one photograph: the decisions, and the probabilities that they were made from."""

    dr_probs: Mapping[int, float]
    """Probability of each DR grade, in [0, 1], summing to 1."""
    me_prob: float
    """Probability of macular edema risk, in [0, 1]."""
    novelty: float | None = None
    """How unlike the model's training photographs this one is: at least 0, and 1 on average for those. None if the file
    has no such output."""
    unfamiliar: bool | None = None
    """Whether ``novelty`` reaches ``Contract.unfamiliar_from``: perhaps it shows no retina; look at it before you use
    the answer. None if the file cannot tell."""
    maps: Mapping[str, NDArray[np.float32]] | None = field(default=None, compare=False, repr=False)
    """Grad-CAM maps over the framed square, under the keys ``dr`` and ``me``: (h, w) float32, at least 0, in logits, of
    the most probable class or the one asked for. None if the file has no maps or they were not requested."""

    @classmethod
    def of(
        cls,
        contract: Contract,
        dr_probs: NDArray[np.floating],
        me_probs: NDArray[np.floating],
        maps: Mapping[str, NDArray[np.float32]] | None = None,
        novelty: float | None = None,
    ) -> Prediction:
        """Apply a contract's rules to one photograph's probabilities, dr_probs (K,) and me_probs (2,)."""
        level = contract.unfamiliar_from
        return cls(
            **vars(decide(contract, dr_probs, me_probs)),
            dr_probs={grade: float(p) for grade, p in zip(contract.dr_grades, dr_probs, strict=True)},
            me_prob=float(me_probs[1]),
            novelty=novelty,
            unfamiliar=None if novelty is None or level is None else novelty >= level,
            maps=maps,
        )


@dataclass(frozen=True)
class Scored:
    """One photograph of a sequence: a prediction, or the reason why there is none."""

    source: str | os.PathLike[str]
    prediction: Prediction | None
    error: str | None
    """Without the file's name; None if there is a prediction."""

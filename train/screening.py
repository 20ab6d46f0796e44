"""The screening operating point: referral thresholds that miss few patients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..runtime.contract import Contract, Rule
from ..runtime.errors import UsageError
from ..runtime.weighted_metrics import UNLABELLED
from .predictions import Decisions, Predictions

SENSITIVITY = 0.90
"""Share of the photographs with the condition that screening should find: above the 0.80 that the British Diabetic
Association's standard requires of a screening test."""
ROUNDING = 1e-6
"""Probabilities that differ by less may change places in another runtime: float32 rounds near 1 in steps of 6e-8, and a
softmax rounds several times."""


def screening_threshold(true: NDArray[np.integer], prob: NDArray[np.floating]) -> float:
    """The threshold with the highest specificity among those with a sensitivity of at least ``SENSITIVITY``.

    Args:
        true: (N,) 0 or 1; ``UNLABELLED`` photographs are left out.
        prob: (N,) in [0, 1]; at or above the threshold means yes.

    Returns:
        the midpoint between the lowest probability that must mean yes and the next one below it (or 0), so that
        rounding in another runtime changes no decision: of probabilities that are less than ``ROUNDING`` apart, all
        mean yes.

    Raises:
        UsageError: no photograph has the condition.
    """
    positives = np.sort(prob[true == 1])[::-1]
    if positives.size == 0:
        raise UsageError("expected photographs with the condition in valid, to find a screening threshold, found none")
    last_found = float(positives[math.ceil(SENSITIVITY * positives.size) - 1])
    below = np.sort(prob[(prob < last_found) & (true != UNLABELLED)].astype(np.float64))[::-1]
    steps = np.concatenate([[last_found], below, [0.0]])
    wide = np.flatnonzero(steps[:-1] - steps[1:] >= ROUNDING)
    return float(steps[wide[0]] + steps[wide[0] + 1]) / 2 if wide.size else 0.0


def screening_rules(contract: Contract, valid: Predictions) -> dict[str, Rule]:
    """The contract's rules by task, with both referral rules at the screening operating point on these predictions.

    That of a head for which no photograph has a label, or each has the condition, or which was never trained, stays as
    it is: without photographs that should mean no, rounding alone would decide where the threshold is.

    Raises:
        UsageError: photographs have DR grades but none is referable, or ME labels but no risk.
    """
    valid = valid.without_labels(contract.untrained_heads)
    decisions, rules = Decisions.of(valid, contract), dict(contract.thresholds)
    if "dr" in valid.labelled_heads and (decisions.referable_true == 0).any():
        threshold = screening_threshold(decisions.referable_true, decisions.referable_prob)
        rules["referable_dr"] = replace(rules["referable_dr"], threshold=threshold)
    if "me" in valid.labelled_heads and (valid.me_true == 0).any():
        rules["referable_me"] = Rule("at_least", screening_threshold(valid.me_true, valid.me_probs[:, 1]))
    return rules

"""The screening operating point: referral thresholds that miss few patients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..runtime.contract import Contract, Head, Rule
from ..runtime.errors import UsageError
from ..runtime.weighted_metrics import UNLABELLED
from .config import SENSITIVITY
from .predictions import Decisions, Predictions

ROUNDING = 1e-6
"""Probabilities that differ by less may change places in another runtime: float32 rounds near 1 in steps of 6e-8, and a
softmax rounds several times."""


def sensitivity_of(contract: Contract, head: Head) -> float:
    """The least sensitivity that a head's referral threshold is fitted for: the one that its provenance records."""
    return float(contract.provenance.get(sensitivity_key(head), SENSITIVITY))


def sensitivity_key(head: Head) -> str:
    """Under which the provenance records ``sensitivity_of`` a head that was calibrated."""
    return f"{head}_sensitivity"


def screening_threshold(
    true: NDArray[np.integer], prob: NDArray[np.floating], sensitivity: float = SENSITIVITY
) -> float:
    """The threshold with the highest specificity among those with enough sensitivity.

    Args:
        true: (N,) 0 or 1; ``UNLABELLED`` photographs are left out.
        prob: (N,) in [0, 1]; at or above the threshold means yes.
        sensitivity: at least this share of the photographs with the condition is found, above 0 and at most 1.

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
    enough = math.ceil(sensitivity * positives.size - ROUNDING)  # 0.55 of 100 is 55.00000000000001
    last_found = float(positives[enough - 1])
    below = np.sort(prob[(prob < last_found) & (true != UNLABELLED)].astype(np.float64))[::-1]
    steps = np.concatenate([[last_found], below, [0.0]])
    wide = np.flatnonzero(steps[:-1] - steps[1:] >= ROUNDING)
    return float(steps[wide[0]] + steps[wide[0] + 1]) / 2 if wide.size else 0.0


def heads_to_screen(contract: Contract, valid: Predictions) -> tuple[Head, ...]:
    """The heads whose referral thresholds ``screening_rules`` fits on these predictions.

    Those that were trained and for which photographs have labels, some of them without the condition: if all should
    mean yes, rounding alone would decide where the threshold is.
    """
    valid = valid.without_labels(contract.untrained_heads)
    is_healthy = np.array(contract.dr_grades) < contract.referable_from
    healthy = {"dr": is_healthy[valid.dr_true] & (valid.dr_true != UNLABELLED), "me": valid.me_true == 0}
    return tuple(head for head in valid.labelled_heads if healthy[head].any())


def screening_rules(contract: Contract, valid: Predictions) -> dict[str, Rule]:
    """The contract's rules by task, with both referral rules at the screening operating point on these predictions.

    Each finds the share that ``sensitivity_of`` its head asks for. The rules of other heads than ``heads_to_screen``
    stay as they are.

    Raises:
        UsageError: photographs have DR grades but none is referable, or ME labels but no risk.
    """
    heads, decisions, rules = heads_to_screen(contract, valid), Decisions.of(valid, contract), dict(contract.thresholds)
    if "dr" in heads:
        true, prob = decisions.referable_true, decisions.referable_prob
        threshold = screening_threshold(true, prob, sensitivity_of(contract, "dr"))
        rules["referable_dr"] = replace(rules["referable_dr"], threshold=threshold)
    if "me" in heads:
        threshold = screening_threshold(valid.me_true, valid.me_probs[:, 1], sensitivity_of(contract, "me"))
        rules["referable_me"] = Rule("at_least", threshold)
    return rules

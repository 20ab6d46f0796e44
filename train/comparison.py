"""Two models compared on the same photographs: by how much, and whether by more than chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..runtime import weighted_metrics
from ..runtime.contract import Contract
from ..runtime.weighted_metrics import UNLABELLED, Indices
from .metrics import FIGURES, all_figures, head_of, resampled_figures, with_interval, without_interval
from .predictions import Decisions, Predictions

DECISIONS = (
    ("dr", "DR grade"),
    ("referable_dr", "DR referral"),
    ("me", "ME risk"),
    ("referable_me", "ME referral"),
)
"""Rows of the table of changed decisions: task and title."""
_UNDEFINED = "undefined"
_BIASED = "no interval: resampling adds to both calibration errors"

Judged = tuple[Indices, Indices]


def compare(
    before: Predictions,
    after: Predictions,
    contracts: tuple[Contract, Contract],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """How another model's figures and decisions differ, on the same photographs.

    Both models are judged on the same resamples of patients, so that what makes photographs hard for both cancels out:
    the interval of a difference is narrower than those of the two figures suggest.

    Args:
        before: a model's predictions.
        after: the other model's, for the same photographs in the same order.
        contracts: of both models, which refer from the same DR grade.
        n_bootstrap: how many resamples.
        seed: of the resamples.

    Returns:
        JSON values: under ``figures``, for each task and figure of ``metrics.FIGURES`` that has a difference,
        ``before`` and ``after`` (None if undefined) and ``difference`` (after minus before) as a figure of
        ``metrics.evaluate``; under ``decisions``, for each task, the number ``n`` of photographs with a label, and of
        these how many are decided otherwise (``changed``), rightly now and wrongly before (``newly_right``), and the
        reverse (``newly_wrong``).
    """
    both = (before, after)
    decisions = [Decisions.of(p, contract) for p, contract in zip(both, contracts, strict=True)]
    ones = np.ones((1, len(before.patients)))
    figures = [all_figures(p, d, ones) for p, d in zip(both, decisions, strict=True)]
    resampled = [resampled_figures(p, d, n_bootstrap, seed) for p, d in zip(both, decisions, strict=True)]
    found: dict[str, dict[str, Any]] = {task: {} for task, _ in DECISIONS}
    for task, name, _ in FIGURES:
        head = head_of(task)
        if (task, name) in figures[0]:
            was, now = (float(values[task, name][0]) for values in figures)
            spread = resampled[1][task, name] - resampled[0][task, name]
            difference = with_interval(now - was, spread, before.labelled_patients(head), _UNDEFINED)
        elif name == "calibration_error":
            was, now = (weighted_metrics.calibration_error(p.probs(head), p.true(head)) for p in both)
            difference = without_interval(now - was, _UNDEFINED if math.isnan(now - was) else _BIASED)
        else:  # what chance alone makes of it is no figure of the model
            continue
        values = {"before": was, "after": now}
        found[task][name] = {key: None if math.isnan(value) else value for key, value in values.items()}
        found[task][name]["difference"] = difference
    return {
        "figures": found,
        "decisions": {
            task: _changes(*(_judged(task, *pair) for pair in zip(both, decisions, strict=True))) for task in found
        },
    }


def _changes(before: Judged, after: Judged) -> dict[str, int]:
    (said_before, true_before), (said_after, true_after) = before, after
    known = true_before != UNLABELLED
    was_right, is_right = said_before == true_before, said_after == true_after
    counts = {
        "n": known,
        "changed": known & (said_before != said_after),
        "newly_right": is_right & ~was_right,
        "newly_wrong": was_right & ~is_right,
    }
    return {name: int(where.sum()) for name, where in counts.items()}


def _judged(task: str, p: Predictions, d: Decisions) -> Judged:
    """What was decided about each photograph and what is true: (N,) each, DR grades as original ones."""
    if task == "dr":
        grades = np.array(d.dr_grades)
        return grades[d.dr_pred], np.where(p.dr_true == UNLABELLED, UNLABELLED, grades[p.dr_true])
    if task == "referable_dr":
        return d.referable_pred, d.referable_true
    return d.me_pred if task == "me" else d.referable_me_pred, p.me_true

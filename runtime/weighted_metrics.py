"""The standard metrics, each for many weightings of the same photographs at once.

A bootstrap resample is a weighting: how often each photograph was drawn. Functions therefore take weights (B, N), one
row per resample, or confusion matrices (B, K, K) made from them, and return (B,): a thousand resamples cost a few
matrix products. Weights of one give the plain figure. Only calibration is measured without: resampling would distort
it. An undefined figure is NaN. The definitions are scikit-learn's, and tested against it, except that quadratic kappa's
weights go by the grades themselves instead of by their positions among those that occur, and that balanced accuracy is
undefined in a resample that lacks a class. Photographs whose true label is ``UNLABELLED`` are left out, as if their
weights were 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

CALIBRATION_BINS = 15
"""Equal-width bins of confidence, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"."""


UNLABELLED = -1
"""True label, as an index, of a photograph that was not graded."""


def label_index(label: int | None, classes: Sequence[int]) -> int:
    """The position of a label among the classes; ``UNLABELLED`` if it is None."""
    return UNLABELLED if label is None else classes.index(label)


def confusion(true: Indices, pred: Indices, n_classes: int, weights: Floats) -> Floats:
    """Summed weights by true class (rows) and predicted class (columns): (B, n_classes, n_classes)."""
    true, weights = _labelled(true, weights)
    cell = np.zeros((true.size, n_classes * n_classes))
    cell[np.arange(true.size), true * n_classes + pred] = 1.0
    return (weights @ cell).reshape(-1, n_classes, n_classes)


def accuracy(counts: Floats) -> Floats:
    """Share on the diagonal of confusion matrices (B, K, K): (B,) in [0, 1]."""
    return safe_divide(np.trace(counts, axis1=1, axis2=2), counts.sum(axis=(1, 2)))


def balanced_accuracy(counts: Floats, true: Indices) -> Floats:
    """Mean recall over the classes that occur in ``true``, from confusion matrices (B, K, K): (B,) in [0, 1].

    Undefined in a resample that lacks one of them: over fewer classes it would be another figure.
    """
    recall = safe_divide(np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2))
    occurring = np.unique(true[true != UNLABELLED])
    return safe_divide(recall[:, occurring].sum(axis=1), np.full(len(counts), float(occurring.size)))


def quadratic_kappa(counts: Floats, values: Sequence[int]) -> Floats:
    """Cohen's kappa with quadratic weights (Cohen 1968), from confusion matrices (B, K, K): (B,) in [-1, 1].

    A disagreement costs the squared difference of the classes' ``values`` (K of them), so that a grade that does not
    occur still counts as a step. 0 is the agreement expected from the marginal counts alone.
    """
    steps = np.asarray(values)
    cost = (steps[:, None] - steps) ** 2
    total = counts.sum(axis=(1, 2))
    by_chance = safe_divide(np.einsum("bi,ij,bj->b", counts.sum(axis=2), cost, counts.sum(axis=1)), total)
    return 1.0 - safe_divide((counts * cost).sum(axis=(1, 2)), by_chance)


def auc(true: Indices, score: NDArray[np.floating], weights: Floats) -> Floats:
    """Area under the ROC curve of ``score`` (N,) for ``true`` (N,) in {0, 1} or ``UNLABELLED``: (B,) in [0, 1].

    The probability that a positive scores above a negative, with ties counting half (Mann-Whitney).
    """
    true, weights = _labelled(true, weights)
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    first_of_tie = np.flatnonzero(np.concatenate([np.ones(min(1, score.size), bool), ranked[1:] != ranked[:-1]]))
    positive = np.add.reduceat((weights * true)[:, order], first_of_tie, axis=1)  # (B, different scores)
    negative = np.add.reduceat((weights * (1 - true))[:, order], first_of_tie, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    return safe_divide((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def calibration_error(probs: NDArray[np.floating], true: Indices) -> float:
    """Expected calibration error of the most probable class (Guo et al. 2017), in [0, 1]; NaN without a label.

    The mean over photographs of ``|accuracy - mean confidence|`` in their bin of confidence.

    Args:
        probs: (N, K) in [0, 1].
        true: (N,) indices of the true classes, or ``UNLABELLED``.
    """
    n, confidence, right = reliability(probs, true)
    return float(np.nansum(n * np.abs(right - confidence)) / n.sum()) if n.any() else math.nan


def calibration_chance(probs: NDArray[np.floating], n_draws: int, seed: int) -> Floats:
    """Calibration errors that these predictions would have if they were perfectly calibrated: (n_draws,) in [0, 1].

    Which predictions are right is drawn at random by their own confidence (consistency resampling: Broecker & Smith
    2007, "Increasing the Reliability of Reliability Diagrams", without drawing the predictions themselves too). The
    errors tend to 0 only for infinitely many photographs.

    Args:
        probs: (N, K) in [0, 1].
        n_draws: number of random draws.
        seed: of the draws.
    """
    confidence, _, bin_of = _by_confidence(probs, np.zeros(len(probs), np.int64))
    rng = np.random.default_rng(seed)
    gaps = (np.bincount(bin_of, (rng.random(confidence.size) < confidence) - confidence) for _ in range(n_draws))
    return safe_divide(np.array([np.abs(gap).sum() for gap in gaps]), np.full(n_draws, float(confidence.size)))


def reliability(probs: NDArray[np.floating], true: Indices) -> tuple[Indices, Floats, Floats]:
    """Number of photographs, mean confidence and accuracy in each bin of confidence, (15,) each; NaN in empty bins."""
    is_labelled = true != UNLABELLED
    confidence, right, bin_of = _by_confidence(probs[is_labelled], true[is_labelled])
    n = np.bincount(bin_of, minlength=CALIBRATION_BINS).astype(np.float64)
    summed = np.bincount(bin_of, confidence, CALIBRATION_BINS).astype(np.float64)
    hits = np.bincount(bin_of, right, CALIBRATION_BINS).astype(np.float64)
    return n.astype(np.int64), safe_divide(summed, n), safe_divide(hits, n)


def _labelled(true: Indices, weights: Floats) -> tuple[Indices, Floats]:
    """Labels that are all classes, and weights of 0 where one was not given."""
    is_labelled = true != UNLABELLED
    return np.where(is_labelled, true, 0), weights * is_labelled


def _by_confidence(probs: NDArray[np.floating], true: Indices) -> tuple[Floats, Floats, Indices]:
    confidence = probs.max(axis=1).astype(np.float64)
    right = (probs.argmax(axis=1) == true).astype(np.float64)
    # Bins are closed at the upper end, (0, 1/15], ..., (14/15, 1], as in the paper.
    bin_of = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return confidence, right, bin_of


def safe_divide(part: Floats, whole: Floats) -> Floats:
    """Quotient of two arrays of the same shape, NaN where ``whole`` is 0."""
    quotient = np.full(part.shape, np.nan)
    np.divide(part, whole, out=quotient, where=whole != 0)
    return quotient

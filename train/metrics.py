"""Metrics of predictions on labelled photographs, with confidence intervals, for people and programs."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime import weighted_metrics
from ..runtime.contract import HEADS, Contract, Head
from ..runtime.output_file import write_text_atomically
from ..runtime.weighted_metrics import UNLABELLED, Floats, Indices, safe_divide
from .predictions import Decisions, Predictions

FIGURES = (
    ("dr", "accuracy", "DR accuracy"),
    ("dr", "balanced_accuracy", "DR balanced accuracy"),
    ("dr", "kappa", "DR quadratic kappa"),
    ("dr", "calibration_error", "DR calibration error"),
    ("dr", "calibration_chance", "DR calibration error by chance alone"),
    ("referable_dr", "auc", "Referable DR AUC"),
    ("referable_dr", "sensitivity", "Referable DR sensitivity"),
    ("referable_dr", "specificity", "Referable DR specificity"),
    ("me", "accuracy", "ME accuracy"),
    ("me", "balanced_accuracy", "ME balanced accuracy"),
    ("me", "auc", "ME AUC"),
    ("me", "sensitivity", "ME sensitivity"),
    ("me", "specificity", "ME specificity"),
    ("me", "calibration_error", "ME calibration error"),
    ("me", "calibration_chance", "ME calibration error by chance alone"),
    ("referable_me", "sensitivity", "Referred for ME, sensitivity"),
    ("referable_me", "specificity", "Referred for ME, specificity"),
)
"""Rows of the tables: task, figure, and title."""
HEADLINES = (
    ("dr", "accuracy", "DR accuracy"),
    ("dr", "kappa", "DR quadratic kappa"),
    ("referable_dr", "auc", "Referable DR AUC"),
    ("me", "accuracy", "ME accuracy"),
    ("me", "auc", "ME AUC"),
)
"""The five main figures of a run: task, figure, and title."""
_WEIGHTS_AT_ONCE = 4_000_000
"""Resamples x photographs evaluated at a time: 32 MB of float64 per array."""
_WHY_UNDEFINED = {
    "kappa": "truth and prediction are all one grade",
    "auc": "all photographs are of one class",
    "sensitivity": "no photograph with the condition",
    "specificity": "no photograph without the condition",
    "precision": "never predicted",
    "recall": "never true",
    "f1": "never true and never predicted",
}
NO_LABEL = "no photograph has a label"
_BY_CHANCE_ALONE = "no interval: compare it with what chance alone makes"


def epoch_scores(p: Predictions, dr_grades: Sequence[int], heads: Collection[Head] = HEADS) -> dict[str, float]:
    """The figures by which an epoch is judged; ``dr_grades`` has the original grade of each index.

    ``score`` selects the best checkpoint: the mean of DR accuracy, DR quadratic weighted kappa, ME accuracy and ME AUC,
    or of those of ``heads`` alone, which are trained. Each head thus counts half, with a finer measure beside accuracy,
    which changes only by whole photographs. A figure that is undefined because only one class occurs counts as chance:
    kappa 0, AUC 0.5. A head for which no photograph has a label does not count, and its figures are NaN.
    """
    dr_pred = p.dr_probs.argmax(axis=1)
    me_auc = auc(p.me_true, p.me_probs[:, 1])
    scores = {
        "dr_accuracy": accuracy(p.dr_true, dr_pred),
        "dr_kappa": quadratic_kappa(p.dr_true, dr_pred, dr_grades),
        "me_accuracy": accuracy(p.me_true, p.me_probs.argmax(axis=1)),
        "me_auc": 0.5 if math.isnan(me_auc) else me_auc,
    }
    head_of = {name: name.partition("_")[0] for name in scores}
    scores = {name: value if head_of[name] in p.labelled_heads else math.nan for name, value in scores.items()}
    judged = [value for name, value in scores.items() if head_of[name] in heads and head_of[name] in p.labelled_heads]
    scores["score"] = sum(judged) / len(judged)
    return scores


def accuracy(true: Indices, pred: Indices) -> float:
    """Share of the photographs with a true label whose prediction is that label, in [0, 1]; NaN if none has one.

    Args:
        true: (N,) indices, or ``UNLABELLED``.
        pred: (N,) indices.
    """
    known = true != UNLABELLED
    return float((true == pred)[known].mean()) if known.any() else math.nan


def quadratic_kappa(true: Indices, pred: Indices, values: Sequence[int]) -> float:
    """Cohen's kappa with quadratic weights, in [-1, 1]; 0 if all true and predicted grades are the same one.

    Args:
        true: (N,) indices into ``values``, or ``UNLABELLED``.
        pred: (N,) indices into ``values``.
        values: (K,) the original grade of each index.
    """
    counts = weighted_metrics.confusion(true, pred, len(values), np.ones((1, true.size)))
    kappa = float(weighted_metrics.quadratic_kappa(counts, values)[0])
    return 0.0 if math.isnan(kappa) else kappa


def auc(true: Indices, score: NDArray[np.floating]) -> float:
    """Area under the ROC curve, in [0, 1]; NaN if all photographs with a true label are of one class.

    Args:
        true: (N,) 0, 1 or ``UNLABELLED``.
        score: (N,), higher where 1 is likelier.
    """
    return float(weighted_metrics.auc(true, score, np.ones((1, true.size)))[0])


def evaluate(p: Predictions, contract: Contract, *, n_bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """All metrics on one split, over all photographs and for each source.

    A figure is ``{"value", "low", "high"}``: its value and its 95% interval, the 2.5th and 97.5th percentiles over
    ``n_bootstrap`` resamples of patients with replacement (a patient's photographs stay together, because they resemble
    each other). A value or interval that is undefined, for example for lack of a class, is None, and ``why`` gives the
    reason. ``calibration_error`` has no interval, because resampling adds to it what chance adds to it anyway. Compare
    it with ``calibration_chance``, its mean and 95% interval if the probabilities were perfectly calibrated and
    photographs independent of each other: see ``weighted_metrics.calibration_chance``.

    Returns:
        ``{"all": body, "sources": {source: body}, "bootstrap": {...}}`` of JSON values, without sources if all
        photographs are from one. A body has ``n``, ``patients`` and an entry each for ``dr``, ``me``, ``referable_dr``
        and ``referable_me``. ``dr`` and ``me`` have the number ``n`` of photographs with that label, and ``classes``
        with the figures of each.
    """
    return {
        "all": _body(p, contract, n_bootstrap, seed),
        "sources": {s: _body(p.of_source(s), contract, n_bootstrap, seed) for s in p.named_sources},
        "bootstrap": {"resamples": n_bootstrap, "seed": seed, "unit": "patient", "interval": 0.95},
    }


def head_of(task: str) -> Head:
    """The head that a task of ``FIGURES`` judges."""
    return "dr" if task.endswith("dr") else "me"


def headline(body: Mapping[str, Any]) -> dict[str, float | None]:
    """The ``HEADLINES`` values of one body of ``evaluate``, under names like ``dr_accuracy``."""
    return {f"{task}_{name}": body[task][name]["value"] for task, name, _ in HEADLINES}


def label_counts(bodies: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[int]]]:
    """A title and numbers, one for each body of ``evaluate``, where photographs lack labels: how many have one."""
    for head, title in (("dr", "with a DR grade"), ("me", "with an ME label")):
        if any(body[head]["n"] < body["n"] for body in bodies):
            yield title, [body[head]["n"] for body in bodies]


def write_metrics(path: Path, epoch: int, splits: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Write ``metrics.json``: ``evaluate`` of each split, for the best checkpoint, trained for ``epoch`` epochs.

    Returns:
        what was written.

    Raises:
        OutputError: the folder is not writable or the disk is full.
    """
    metrics = {"checkpoint": "best", "epoch": epoch, "splits": dict(splits)}
    text = json.dumps(metrics, indent=1, allow_nan=False)
    write_text_atomically(path, text + "\n")
    return metrics


def classification_report(p: Predictions, contract: Contract) -> str:
    """Both heads' precision, recall, F1 and support as text, as the original notebook printed them.

    A figure that is undefined, such as the recall of a grade that no photograph has, is ``nan`` and left out of the
    averages, as in ``evaluate``: the macro recall is the balanced accuracy.
    """
    from sklearn.metrics import classification_report as table

    decisions = Decisions.of(p, contract)
    parts = []
    for head, title in zip(HEADS, ("Diabetic retinopathy grade", "Risk of macular edema"), strict=True):
        true, pred, labels = p.true(head), decisions.pred(head), contract.class_names(head)
        known = true != UNLABELLED
        body = f"{NO_LABEL.capitalize()}.\n"
        if known.any():
            body = table(
                true[known], pred[known], labels=range(len(labels)), target_names=labels, digits=3, zero_division=np.nan
            )
        parts.append(f"{title}\n\n{body}")
    return "\n".join(parts)


def _body(p: Predictions, contract: Contract, n_bootstrap: int, seed: int) -> dict[str, Any]:
    decisions = Decisions.of(p, contract)
    weights = np.ones((1, len(p.patients)))
    resampled = resampled_figures(p, decisions, n_bootstrap, seed)
    body: dict[str, Any] = {"n": len(p.patients), "patients": len(set(p.patients)), "dr": {}, "me": {}}
    body["referable_dr"] = {
        "from_grade": contract.referable_from,
        "threshold": contract.thresholds["referable_dr"].threshold,
        "positives": int((decisions.referable_true == 1).sum()),
    }
    body["referable_me"] = {
        "threshold": contract.thresholds["referable_me"].threshold,
        "positives": int((p.me_true == 1).sum()),
    }
    for head in HEADS:
        probs, true, labels = p.probs(head), p.true(head), contract.class_names(head)
        known = true != UNLABELLED
        body[head]["n"] = int(known.sum())
        error = weighted_metrics.calibration_error(probs, true)
        body[head]["calibration_error"] = without_interval(error, _BY_CHANCE_ALONE if known.any() else NO_LABEL)
        chance = weighted_metrics.calibration_chance(probs[known], n_bootstrap, seed)
        body[head]["calibration_chance"] = with_interval(float(chance.mean()), chance, body[head]["n"], NO_LABEL)
        counts = weighted_metrics.confusion(true, decisions.pred(head), len(labels), weights)[0]
        body[head]["labels"] = list(labels)
        body[head]["confusion_matrix"] = counts.astype(int).tolist()
        support = counts.sum(axis=1).astype(int).tolist()
        body[head]["classes"] = [{"label": label, "support": n} for label, n in zip(labels, support, strict=True)]
    graded = {head: p.labelled_patients(head) for head in HEADS}
    for key, value in all_figures(p, decisions, weights).items():
        task, name, *classes = key
        n_patients = graded[head_of(task)]
        why = _WHY_UNDEFINED.get(name, "") if n_patients else NO_LABEL
        place = body[task]["classes"][classes[0]] if classes else body[task]
        place[name] = with_interval(float(value[0]), resampled[key], n_patients, why)
    return body


_Key = tuple[str, str] | tuple[str, str, int]
"""A figure's task and name, and of those of one class its index."""


def all_figures(p: Predictions, d: Decisions, weights: Floats) -> dict[_Key, Floats]:
    """Every figure that gets an interval: (B,) each, one value per row of the weights (B, N)."""
    dr = weighted_metrics.confusion(p.dr_true, d.dr_pred, p.dr_probs.shape[1], weights)
    me = weighted_metrics.confusion(p.me_true, d.me_pred, 2, weights)
    referable = weighted_metrics.confusion(d.referable_true, d.referable_pred, 2, weights)
    referable_me = weighted_metrics.confusion(p.me_true, d.referable_me_pred, 2, weights)
    return {
        ("dr", "accuracy"): weighted_metrics.accuracy(dr),
        ("dr", "balanced_accuracy"): weighted_metrics.balanced_accuracy(dr, p.dr_true),
        ("dr", "kappa"): weighted_metrics.quadratic_kappa(dr, d.dr_grades),
        ("referable_dr", "auc"): weighted_metrics.auc(d.referable_true, d.referable_prob, weights),
        ("referable_dr", "sensitivity"): safe_divide(referable[:, 1, 1], referable[:, 1].sum(axis=1)),
        ("referable_dr", "specificity"): safe_divide(referable[:, 0, 0], referable[:, 0].sum(axis=1)),
        ("referable_me", "sensitivity"): safe_divide(referable_me[:, 1, 1], referable_me[:, 1].sum(axis=1)),
        ("referable_me", "specificity"): safe_divide(referable_me[:, 0, 0], referable_me[:, 0].sum(axis=1)),
        ("me", "accuracy"): weighted_metrics.accuracy(me),
        ("me", "balanced_accuracy"): weighted_metrics.balanced_accuracy(me, p.me_true),
        ("me", "auc"): weighted_metrics.auc(p.me_true, p.me_probs[:, 1], weights),
        ("me", "sensitivity"): safe_divide(me[:, 1, 1], me[:, 1].sum(axis=1)),
        ("me", "specificity"): safe_divide(me[:, 0, 0], me[:, 0].sum(axis=1)),
        **_class_figures("dr", dr),
        **_class_figures("me", me),
    }


def _class_figures(task: str, counts: Floats) -> dict[_Key, Floats]:
    """Precision, recall and F1 of each class, from confusion matrices (B, K, K)."""
    hits, truly, said = np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2), counts.sum(axis=1)  # (B, K)
    figures = {
        "precision": safe_divide(hits, said),
        "recall": safe_divide(hits, truly),
        "f1": safe_divide(2 * hits, truly + said),
    }
    return {(task, name, k): values[:, k] for name, values in figures.items() for k in range(counts.shape[1])}


def resampled_figures(p: Predictions, d: Decisions, n_bootstrap: int, seed: int) -> dict[_Key, Floats]:
    """The figures on ``n_bootstrap`` resamples of patients with replacement: (n_bootstrap,) each."""
    rng = np.random.default_rng(seed)
    patients, patient_of = np.unique(np.array(p.patients), return_inverse=True)
    rows = max(1, _WEIGHTS_AT_ONCE // patient_of.size)
    parts = []
    for start in range(0, n_bootstrap, rows):
        # How often each of P patients is drawn in P draws with replacement follows a multinomial distribution.
        share = np.full(patients.size, 1 / patients.size)
        drawn = rng.multinomial(patients.size, share, size=min(rows, n_bootstrap - start))
        parts.append(all_figures(p, d, drawn[:, patient_of].astype(np.float64)))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def without_interval(value: float, why: str) -> dict[str, Any]:
    """A figure of ``evaluate`` without an interval, and why; its value is None if ``value`` is NaN."""
    return {"value": None if math.isnan(value) else value, "low": None, "high": None, "why": why}


def with_interval(value: float, resampled: Floats, n_patients: int, why_undefined: str) -> dict[str, Any]:
    """A figure of ``evaluate`` with its 95% interval, or why it has none.

    Args:
        value: the figure's; NaN if it is undefined.
        resampled: its values on resamples, NaN where it is undefined.
        n_patients: how many there are.
        why_undefined: the reason if ``value`` is NaN.
    """
    if math.isnan(value):
        return without_interval(value, why_undefined)
    defined = resampled[~np.isnan(resampled)]
    if n_patients < 2:
        return without_interval(value, "no interval: one patient only")
    if defined.size < resampled.size / 2:
        return without_interval(value, f"no interval: defined on {defined.size} of {resampled.size} resamples only")
    low, high = np.quantile(defined, [0.025, 0.975])
    if low == high:  # 15 of 15 correct says little about the next
        return without_interval(value, "no interval: resamples all agree")
    figure = {"value": value, "low": float(low), "high": float(high)}
    if defined.size < resampled.size:
        return {**figure, "why": f"interval from the {defined.size} of {resampled.size} resamples where it is defined"}
    return figure

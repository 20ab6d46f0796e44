"""Plots of a run: learning curves, confusion matrices, ROC curves, reliability diagrams.

Figures are made with matplotlib's objects instead of pyplot, which keeps global state and may look for a display. Lines
differ in colour and also in dash or marker, for black-and-white print. Each function that draws writes its file
atomically; OutputError if it cannot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..runtime import weighted_metrics
from ..runtime.contract import HEAD_NAMES, HEADS, Contract
from ..runtime.weighted_metrics import UNLABELLED, safe_divide
from .figure import BLUE, GREEN, GREY, ORANGE, legend_below, write_png
from .metrics import auc
from .predictions import Decisions, Predictions

SPLIT_LINES = {"train": (GREY, ":"), "valid": (ORANGE, "--"), "test": (BLUE, "-")}
_DPI = 150


def learning_curves(history: pd.DataFrame, out_png: Path) -> None:
    """Loss and accuracy of each head, agreement, and learning rates by epoch, with the best epoch marked.

    Args:
        history: one row per epoch, as in ``history.csv``.
        out_png: the file to write.
    """
    figure, axes = _figure(2, 3, (11.5, 6.8))
    epoch = history["epoch"]
    for row, (head, title) in enumerate(HEAD_NAMES.items()):
        for column, (measure, label) in enumerate((("loss", "cross-entropy"), ("accuracy", "accuracy"))):
            ax = axes[row, column]
            for split, marker in (("train", "o"), ("valid", "s")):
                colour, dash = SPLIT_LINES[split]
                figures = history[f"{split}_{head}_{measure}"]
                named = split if figures.notna().any() else f"{split}: no labels"
                ax.plot(epoch, figures, dash, color=colour, marker=marker, ms=3, label=named)
            ax.set(title=f"{title}: {label}", ylabel=label)
    scores = axes[0, 2]
    for name, label, colour, dash in (
        ("valid_dr_kappa", "DR quadratic kappa", BLUE, "-"),
        ("valid_me_auc", "ME AUC", GREEN, "--"),
        ("valid_score", "score that chooses the best", ORANGE, ":"),
    ):
        scores.plot(epoch, history[name], dash, color=colour, marker="o", ms=3, label=label)
    scores.set(title="Validation: agreement and ranking", ylabel="figure")
    rates = axes[1, 2]
    for name, colour, dash in (("backbone", BLUE, "-"), ("heads", ORANGE, "--")):
        rates.plot(epoch, history[f"lr_{name}"], dash, color=colour, marker="o", ms=3, label=name)
    rates.set(title="Learning rates", ylabel="rate")
    if (history[["lr_backbone", "lr_heads"]] > 0).any(axis=None):
        rates.set(yscale="log")

    best = _best_epoch(history)
    for ax in axes.flat:
        if best is not None:
            ax.axvline(best, color=GREY, lw=1, ls="-.", label=f"best epoch ({best:.0f})", zorder=0)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        legend_below(ax, 2, fontsize=7)
    write_png(out_png, figure)


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str], title: str, out_png: Path) -> None:
    """One confusion matrix (K, K), with true classes in rows; shade and small print give the share of the row."""
    matrix = np.asarray(counts, np.float64)
    shares = np.nan_to_num(safe_divide(matrix, np.repeat(matrix.sum(axis=1, keepdims=True), len(labels), axis=1)))
    side = 1.6 + 0.62 * len(labels)
    figure, axes = _figure(1, 1, (side, side))
    ax = axes[0, 0]
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(matrix.shape):
        colour = "white" if shares[i, j] > 0.65 else "black"
        ax.text(j, i - 0.08, f"{matrix[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=10)
        ax.text(j, i + 0.26, f"{shares[i, j]:.0%}", ha="center", va="center", color=colour, fontsize=8)
    ax.set(title=title, xlabel="predicted", ylabel="true")
    ax.set_xticks(range(len(labels)), labels)
    ax.set_yticks(range(len(labels)), labels, rotation=90 if max(map(len, labels)) > 2 else 0, va="center")
    ax.grid(visible=False)
    write_png(out_png, figure)


def roc_curves(predictions: Mapping[str, Predictions], contract: Contract, out_png: Path) -> None:
    """ROC curves of ME risk and referable DR for each split, with the operating points of the contract's rules.

    Round points are those of the decisions ``me`` and ``referable_dr``, square ones those of ``referable_me``.
    """
    from sklearn.metrics import roc_curve  # a second to import

    figure, axes = _figure(1, 2, (9, 4.6))
    for split, p in predictions.items():
        decisions = Decisions.of(p, contract)
        colour, dash = SPLIT_LINES[split]
        for ax, true, pred, score in (
            (axes[0, 0], p.me_true, decisions.me_pred, p.me_probs[:, 1].astype(np.float64)),
            (axes[0, 1], decisions.referable_true, decisions.referable_pred, decisions.referable_prob),
        ):
            known = true[true != UNLABELLED]
            if np.unique(known).size < 2:
                why = "one class only" if known.size else "no labels"
                ax.plot([], [], dash, color=colour, label=f"{split}: {why}")
                continue
            false_positive, true_positive, _ = roc_curve(known, score[true != UNLABELLED], drop_intermediate=False)
            label = f"{split}: AUC {auc(true, score):.3f}"
            ax.plot(false_positive, true_positive, dash, color=colour, label=label)
            points = [(pred, "o"), *([(decisions.referable_me_pred, "s")] if ax is axes[0, 0] else [])]
            for said, marker in points:
                ax.plot(said[true == 0].mean(), said[true == 1].mean(), marker, color=colour, ms=6, mec="white")
    for ax, title in (
        (axes[0, 0], HEAD_NAMES["me"]),
        (axes[0, 1], f"Referable DR (grade {contract.referable_from} or worse)"),
    ):
        ax.plot([0, 1], [0, 1], color=GREY, lw=0.6)
        ax.set(title=title, xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        ax.set_aspect("equal")
        legend_below(ax, 2)
    write_png(out_png, figure)


def reliability_diagrams(p: Predictions, out_png: Path) -> None:
    """For each head, accuracy by confidence, in ``CALIBRATION_BINS`` bins; the diagonal is perfect calibration."""
    figure, axes = _figure(1, 2, (9, 4.6))
    width = 1 / weighted_metrics.CALIBRATION_BINS
    for ax, head in zip(axes.flat, HEADS, strict=True):
        n, confidence, right = weighted_metrics.reliability(p.probs(head), p.true(head))
        error = weighted_metrics.calibration_error(p.probs(head), p.true(head))
        shares = n / max(n.sum(), 1)
        ax.bar((np.arange(n.size) + 0.5) * width, shares, width * 0.92, color="#cccccc", label="share of photographs")
        ax.plot([0, 1], [0, 1], color=GREY, lw=0.8, label="perfect calibration")
        filled = n > 0
        ax.plot(
            confidence[filled],
            right[filled],
            "o-",
            color=BLUE,
            ms=4,
            label=f"model (ECE {error:.3f})" if n.any() else "no labels",
        )
        ax.set_title(HEAD_NAMES[head])
        ax.set(xlabel="confidence in the chosen answer", ylabel="share right", xlim=(0, 1), ylim=(0, 1.02))
        ax.set_aspect("equal")
        legend_below(ax, 2)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
    write_png(out_png, figure)


def _best_epoch(history: pd.DataFrame) -> float | None:
    """Epoch of the highest validation score, the first of equal ones, which training keeps."""
    score = history["valid_score"]
    return None if score.isna().all() else float(history["epoch"][score.idxmax()])


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """An empty figure of ``size`` in inches and its (rows, columns) array of axes."""
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        _tidy(ax)
    return figure, axes


def _tidy(ax: Axes) -> None:
    ax.grid(visible=True, color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(which="both", labelsize=8)

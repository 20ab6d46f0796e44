"""The figures of an evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .comparison import DECISIONS
from .metrics import FIGURES, label_counts


def figures_table(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """One split's figures as lines of a Markdown table: over all photographs, then by source."""
    columns = [("all", evaluation["all"]), *evaluation["sources"].items()]  # a source may be called "all"
    bodies = [body for _, body in columns]
    yield "| | " + " | ".join(f"{name} ({body['n']})".replace("|", "\\|") for name, body in columns) + " |"
    yield "|---" * (len(bodies) + 1) + "|"
    for title, counts in label_counts(bodies):
        yield f"| {title} | " + " | ".join(map(str, counts)) + " |"
    for task, name, title in FIGURES:
        yield f"| {title} | " + " | ".join(_cell(body[task][name]) for body in bodies) + " |"


def classes_table(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Precision, recall and F1 of each class over all photographs, as lines of a Markdown table."""
    yield "| class | photographs | precision | recall | F1 |"
    yield "|---|---|---|---|---|"
    for task, title in (("dr", "DR grade"), ("me", "ME")):
        for row in evaluation["all"][task]["classes"]:
            figures = " | ".join(_cell(row[name]) for name in ("precision", "recall", "f1"))
            yield f"| {title} {row['label']} | {row['support']} | {figures} |"


def differences_table(comparison: Mapping[str, Any], before: str, after: str) -> Iterator[str]:
    """The figures of a ``comparison.compare`` as lines of a Markdown table, whose columns name the models."""
    yield "| | " + " | ".join(name.replace("|", "\\|") for name in (before, after)) + " | difference |"
    yield "|---|---|---|---|"
    for task, name, title in FIGURES:
        if (row := comparison["figures"][task].get(name)) is not None:
            was, now = ("" if row[key] is None else f"{row[key]:.3f}" for key in ("before", "after"))
            yield f"| {title} | {was} | {now} | {_cell(row['difference'], '+')} |"


def changes_table(comparison: Mapping[str, Any]) -> Iterator[str]:
    """The changed decisions of a ``comparison.compare`` as lines of a Markdown table."""
    yield "| decision | photographs | changed | newly right | newly wrong |"
    yield "|---|---|---|---|---|"
    for task, title in DECISIONS:
        counts = comparison["decisions"][task]
        yield (
            f"| {title} | "
            + " | ".join(str(counts[key]) for key in ("n", "changed", "newly_right", "newly_wrong"))
            + " |"
        )


def main_figures(evaluation: Mapping[str, Any]) -> str:
    """The three figures that a person asks for first, over all photographs, as text."""
    dr, me = evaluation["all"]["dr"], evaluation["all"]["me"]
    return f"DR accuracy {brief(dr['accuracy'])}, kappa {brief(dr['kappa'])}, ME accuracy {brief(me['accuracy'])}"


def brief(figure: Mapping[str, Any], sign: str = "") -> str:
    """A figure's value as text, or why it has none; with ``sign`` "+", positive ones have that sign."""
    return str(figure["why"]) if figure["value"] is None else f"{figure['value']:{sign}.3f}"


def _cell(figure: Mapping[str, Any], sign: str = "") -> str:
    low, high = figure["low"], figure["high"]
    return brief(figure, sign) + ("" if low is None else f" ({low:{sign}.3f} to {high:{sign}.3f})")

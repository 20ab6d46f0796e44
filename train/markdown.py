"""The figures of an evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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


def main_figures(evaluation: Mapping[str, Any]) -> str:
    """The three figures that a person asks for first, over all photographs, as text."""
    dr, me = evaluation["all"]["dr"], evaluation["all"]["me"]
    return f"DR accuracy {brief(dr['accuracy'])}, kappa {brief(dr['kappa'])}, ME accuracy {brief(me['accuracy'])}"


def brief(figure: Mapping[str, Any]) -> str:
    """A figure's value as text, or why it has none."""
    return str(figure["why"]) if figure["value"] is None else f"{figure['value']:.3f}"


def _cell(figure: Mapping[str, Any]) -> str:
    return brief(figure) + ("" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})")

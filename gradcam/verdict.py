"""The faithfulness of a model's maps as a table and a picture."""

from __future__ import annotations

import csv
import io
from math import isnan
from pathlib import Path

from ..runtime.contract import HEADS, Head
from ..runtime.output_file import write_text_atomically
from .deletion import FRACTIONS
from .faithfulness import CENTRE, CHANCE, MAP, Faithfulness, Figure
from .lesions import KIND_NAMES
from .randomisation import ALIKE_BELOW, DRAWS, STAGE_NAMES

HEAD_NAMES: dict[Head, str] = {"dr": "DR grade", "me": "ME risk"}
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#7f7f7f"
"""From the palette of Okabe and Ito (2008), which readers with colour blindness can tell apart."""


def write_table(path: Path, found: Faithfulness) -> None:
    """Write every figure with its interval as CSV: measure, lesion, head, of, photographs, value, low, high.

    Raises:
        OutputError: as ``write_atomically``.
    """
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["measure", "lesion", "head", "of", "photographs", "value", "low", "high"])
    for f in found.figures:
        numbers = [f"{n:.4f}" for n in (f.interval.value, f.interval.low, f.interval.high)]
        writer.writerow([f.measure, f.lesion, f.head, f.of, f.photographs, *numbers])
    write_text_atomically(path, lines.getvalue())


def as_markdown(found: Faithfulness) -> str:
    """The table as Markdown: means over photographs with 95% bootstrap intervals."""
    heads = [head for head in HEADS if any(f.head == head for f in found.figures)]
    kinds = sorted({f.lesion for f in found.figures if f.lesion})
    lines = [
        "| measure | head | n | map | chance | centre prior | map against centre |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, versus in (("pointing", f"{MAP} - {CENTRE}"), ("lift", f"{MAP} / {CENTRE}")):
        lines += [_line(found, name, kind, head, versus) for kind in kinds for head in heads]
    for name in ("deletion", "insertion"):
        lines += [_line(found, name, "", head, f"{MAP} - {CENTRE}") for head in heads]
    lines += ["", "| redrawn down to | " + " | ".join(HEAD_NAMES[head] for head in heads) + " |"]
    lines += ["|---|" + "---|" * len(heads)]
    for stage in STAGE_NAMES:
        cells = []
        for head in heads:
            blank = found.get("blank", "", head, stage)
            share = f"{blank.interval.value:.0%} blank" if blank and blank.interval.value else ""
            cells.append(", ".join(filter(None, (_cell(found.get("redrawn", "", head, stage)), share))))
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    verdict = "passed" if found.depends_on_weights else "FAILED"
    lines += [
        "",
        "pointing: how often the map's peak is on a lesion. lift: the map's share on lesions, divided by their share",
        "of the field. Against the centre prior: differences for pointing, deletion and insertion, a ratio for lift.",
        "deletion, insertion: area under the probability's curve; lower is better for deletion, higher for insertion.",
        f"Sanity check {verdict}: the 95% interval of the rank correlation of maps before and after redrawing all "
        f"weights must be below {ALIKE_BELOW}, over {DRAWS} draws; blank maps are left out.",
    ]
    return "\n".join(lines)


def _line(found: Faithfulness, name: str, kind: str, head: Head, versus: str) -> str:
    lesion = KIND_NAMES.get(kind, kind)
    own = found.get(name, kind, head, MAP)
    chance = "1" if name == "lift" else _cell(found.get(name, kind, head, CHANCE))
    cells = [
        f"{name}, {lesion}" if kind else name, HEAD_NAMES[head], str(own.photographs if own else 0), _cell(own),
        chance, _cell(found.get(name, kind, head, CENTRE)), _cell(found.get(name, kind, head, versus)),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _cell(figure: Figure | None) -> str:
    return "" if figure is None or isnan(figure.interval.value) else f"{figure.interval:.2f}"


def write_picture(path: Path, found: Faithfulness) -> None:
    """Draw four charts in a PNG: pointing, lift, deletion with insertion, and randomisation.

    Raises:
        OutputError: as ``write_atomically``.
    """
    from matplotlib.figure import Figure as Canvas

    from ..train.figure import write_png

    heads = [head for head in HEADS if any(f.head == head for f in found.figures)]
    kinds = sorted({f.lesion for f in found.figures if f.lesion})
    canvas = Canvas(figsize=(13, 9), dpi=110, layout="constrained")
    axes = canvas.subplots(2, 2)
    photographs = max(f.photographs for f in found.figures)
    canvas.suptitle(f"Do the maps look at the lesions? {photographs} photographs, bars: 95% intervals", fontsize=15)
    rows = [(kind, head) for kind in kinds for head in heads]
    for axis, name, title in (
        (axes[0, 0], "pointing", "Peak of the map meets a lesion (hit rate)"),
        (axes[0, 1], "lift", "Map's share on lesions / their share of the field"),
    ):
        for of, colour, marker, shift in (
            (MAP, _BLUE, "o", 0.18),
            (CENTRE, _ORANGE, "s", 0),
            (CHANCE, _GREY, "d", -0.18),
        ):
            shown = [(y, f.interval) for y, (k, h) in enumerate(rows) if (f := found.get(name, k, h, of))]
            if shown:
                values = [interval.value for _, interval in shown]
                errors = [[i.value - i.low for _, i in shown], [i.high - i.value for _, i in shown]]
                at = [y + shift for y, _ in shown]
                label = {MAP: "Grad-CAM", CENTRE: "centre prior", CHANCE: "chance"}[of]
                axis.errorbar(values, at, xerr=errors, fmt=marker, color=colour, label=label, capsize=3)
        axis.set_yticks(range(len(rows)), [f"{KIND_NAMES.get(k, k)}\n{HEAD_NAMES[h]}" for k, h in rows])
        axis.set_title(title)
        axis.set_xlim(left=-0.03)
        axis.grid(axis="x", alpha=0.3)
        axis.legend(loc="best")
    axes[0, 1].axvline(1, color=_GREY, linestyle="--")
    for of, colour in ((MAP, _BLUE), (CENTRE, _ORANGE), (CHANCE, _GREY)):
        for name, style in (("deletion", "-"), ("insertion", "--")):
            mean = sum(found.curves[name, head, of].mean(axis=0) for head in heads) / len(heads)
            label = {MAP: "Grad-CAM", CENTRE: "centre prior", CHANCE: "random map"}[of]
            axes[1, 0].plot(FRACTIONS, mean, style, color=colour, label=f"{label}, {name}")
    axes[1, 0].set_title("Probability of the explained class, mean of the heads")
    axes[1, 0].set_xlabel("share of the lit field blurred (deletion) or given back (insertion)")
    for head, colour in zip(heads, (_BLUE, _ORANGE), strict=False):
        at_stage = [f.interval for stage in STAGE_NAMES if (f := found.get("redrawn", "", head, stage))]
        errors = [[i.value - i.low for i in at_stage], [i.high - i.value for i in at_stage]]
        axes[1, 1].errorbar(
            STAGE_NAMES,
            [i.value for i in at_stage],
            yerr=errors,
            fmt="o-",
            color=colour,
            label=HEAD_NAMES[head],
            capsize=3,
        )
    axes[1, 1].axhline(ALIKE_BELOW, color=_GREY, linestyle="--")
    axes[1, 1].set_ylim(-1, 1)
    axes[1, 1].set_title("Rank correlation with the map of the trained model")
    axes[1, 1].set_xlabel("weights redrawn from the heads down to")
    for axis in axes[1]:
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize=8, framealpha=0.6)
    write_png(path, canvas)

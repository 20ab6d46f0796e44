"""The faithfulness of a model's maps as a table and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..runtime.contract import HEAD_NAMES, HEADS, Head
from ..runtime.output_file import write_text_atomically
from ..train.figure import BLUE, GREY, ORANGE, legend_below, write_png
from .deletion import FRACTIONS
from .faithfulness import CENTRE, CHANCE, MAP, Faithfulness, Measurement
from .interval import Interval
from .lesions import KIND_NAMES
from .randomisation import ALIKE_BELOW, DRAWS, STAGES


def write_table(path: Path, found: Faithfulness) -> None:
    """Write every figure with its interval as CSV: measure, lesion, head, of, photographs, value, low, high.

    Raises:
        OutputError: as ``replacing``.
    """
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["measure", "lesion", "head", "of", "photographs", "value", "low", "high"])
    for f in found.measurements:
        numbers = [f"{n:.4f}" for n in (f.interval.value, f.interval.low, f.interval.high)]
        writer.writerow([f.measure, f.lesion, f.head, f.of, f.photographs, *numbers])
    write_text_atomically(path, lines.getvalue())


def as_markdown(found: Faithfulness) -> str:
    """The table as Markdown: means over photographs with 95% bootstrap intervals."""
    heads, kinds = _heads(found), _kinds(found)
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
    for stage in STAGES:
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


def _cell(measurement: Measurement | None) -> str:
    if measurement is None or isnan(measurement.interval.value):
        return ""
    interval = measurement.interval
    # Resamples that all agree, as those of few photographs may, tell nothing about others.
    return f"{interval.value:.2f}" if isnan(interval.low) or interval.low == interval.high else f"{interval:.2f}"


def write_picture(path: Path, found: Faithfulness) -> None:
    """Draw four charts in a PNG: pointing, lift, deletion with insertion, and randomisation.

    Raises:
        OutputError: as ``replacing``.
    """
    figure = Figure(figsize=(13, 9), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2)
    photographs = max(f.photographs for f in found.measurements)
    figure.suptitle(f"Do the maps look at the lesions? {photographs} photographs, bars: 95% intervals", fontsize=15)
    _draw_hits(axes[0, 0], found, "pointing", "Peak of the map meets a lesion (hit rate)")
    _draw_hits(axes[0, 1], found, "lift", "Map's share on lesions / their share of the field")
    axes[0, 1].axvline(1, color=GREY, linestyle="--")
    _draw_curves(axes[1, 0], found)
    _draw_redrawn(axes[1, 1], found)
    write_png(path, figure)


def _draw_hits(axis: Axes, found: Faithfulness, name: str, title: str) -> None:
    """A row for each kind of lesion and head: the map, the centre prior and chance."""
    rows = [(kind, head) for kind in _kinds(found) for head in _heads(found)]
    for of, colour, marker, shift in ((MAP, BLUE, "o", -0.18), (CENTRE, ORANGE, "s", 0), (CHANCE, GREY, "d", 0.18)):
        shown = [(y + shift, f.interval) for y, (k, h) in enumerate(rows) if (f := found.get(name, k, h, of))]
        if shown:
            at, intervals = zip(*shown, strict=True)
            label = {MAP: "Grad-CAM", CENTRE: "centre prior", CHANCE: "chance"}[of]
            values, errors = _bars(intervals)
            axis.errorbar(values, at, xerr=errors, fmt=marker, color=colour, label=label, capsize=3)
    axis.set_yticks(range(len(rows)), [f"{KIND_NAMES.get(k, k)}\n{HEAD_NAMES[h]}" for k, h in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    axis.set_title(title)
    axis.set_xlim(left=-0.03)
    axis.grid(axis="x", alpha=0.3)
    if rows:
        legend_below(axis, 3)


def _draw_curves(axis: Axes, found: Faithfulness) -> None:
    """The probability against the share of the field blurred or given back."""
    heads = _heads(found)
    for of, colour in ((MAP, BLUE), (CENTRE, ORANGE), (CHANCE, GREY)):
        for name, style in (("deletion", "-"), ("insertion", "--")):
            mean = sum(found.curves[name, head, of].mean(axis=0) for head in heads) / len(heads)
            label = {MAP: "Grad-CAM", CENTRE: "centre prior", CHANCE: "random map"}[of]
            axis.plot(FRACTIONS, mean, style, color=colour, label=f"{label}, {name}")
    axis.set_title("Probability of the explained class, mean of the heads")
    axis.set_xlabel("share of the lit field blurred (deletion) or given back (insertion)")
    axis.grid(alpha=0.3)
    legend_below(axis, 3)


def _draw_redrawn(axis: Axes, found: Faithfulness) -> None:
    """The rank correlation of maps before and after weights were redrawn, from the heads down."""
    for head, colour in zip(_heads(found), (BLUE, ORANGE), strict=False):
        values, errors = _bars([f.interval for stage in STAGES if (f := found.get("redrawn", "", head, stage))])
        axis.errorbar(list(STAGES), values, yerr=errors, fmt="o-", color=colour, label=HEAD_NAMES[head], capsize=3)
    axis.axhline(ALIKE_BELOW, color=GREY, linestyle="--")
    axis.set_ylim(-1, 1)
    axis.set_title("Rank correlation with the map of the trained model")
    axis.set_xlabel("weights redrawn from the heads down to")
    axis.grid(alpha=0.3)
    legend_below(axis, 2)


def _bars(intervals: Sequence[Interval]) -> tuple[list[float], list[list[float]]]:
    """The values, and how far each interval reaches below and above its own."""
    values = [i.value for i in intervals]
    return values, [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]


def _heads(found: Faithfulness) -> list[Head]:
    return [head for head in HEADS if any(f.head == head for f in found.measurements)]


def _kinds(found: Faithfulness) -> list[str]:
    return sorted({f.lesion for f in found.measurements if f.lesion})

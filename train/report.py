"""A run's report: a self-contained HTML page with figures, curves, mistakes with pictures, and settings."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ..runtime.contract import HEAD_NAMES, HEADS, Contract, Head
from ..runtime.errors import PictureError
from ..runtime.output_file import write_text_atomically
from ..runtime.picture import decode
from ..runtime.versions import own_version
from ..runtime.weighted_metrics import CALIBRATION_BINS, UNLABELLED
from ..runtime.wording import percent
from . import plots
from .checkpoint import current_versions
from .flat import flatten
from .metrics import FIGURES, HEADLINES, NO_LABEL, classification_report, label_counts
from .page import PAGE, STYLE
from .predictions import Decisions, Predictions
from .run import CURVES

REPORT_NAME = "report.html"
MISTAKES_SHOWN = 12
"""For each head."""
_NO_LABELS = f"<p>{NO_LABEL.capitalize()}.</p>"
_THUMBNAIL = 320
"""Longer side in pixels."""


@dataclass(frozen=True)
class Mistake:
    """A photograph that a head got wrong."""

    name: str
    path: str
    source: str
    said: str
    true: str
    confidence: float
    """Probability of the predicted class, in [0, 1]."""


def worst_mistakes(p: Predictions, contract: Contract, limit: int = MISTAKES_SHOWN) -> dict[Head, list[Mistake]]:
    """The worst mistakes of ``dr`` and ``me``, at most ``limit`` each.

    Farthest from the true grade first; among equally far ones, the most confident first.
    """
    decisions = Decisions.of(p, contract)
    worst = {}
    for head in HEADS:
        true, pred, labels = p.true(head), decisions.pred(head), contract.class_names(head)
        values = np.array(contract.classes(head))
        distance = np.abs(values[pred] - values[true])
        confidence = p.probs(head)[np.arange(true.size), pred]
        order = [i for i in np.lexsort((-confidence, -distance)) if distance[i] > 0 and true[i] != UNLABELLED]
        worst[head] = [
            Mistake(p.image_names[i], p.paths[i], p.sources[i], labels[pred[i]], labels[true[i]], float(confidence[i]))
            for i in order[:limit]
        ]
    return worst


def write_report(
    run_dir: Path,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    history: pd.DataFrame,
    predictions: Mapping[str, Predictions],
    contract: Contract,
) -> Path:
    """Write ``report.html`` into the run's folder, and beside it the plots that it shows and text tables.

    Those are ``learning_curves.png``, ``roc.png``, and for each split ``confusion_dr_<split>.png``,
    ``confusion_me_<split>.png``, ``reliability_<split>.png`` and ``classification_report_<split>.txt``.

    Args:
        run_dir: the run's folder; its name is the page's heading.
        config: the run's options and facts: versions, data fingerprint, leaks; may be nested.
        metrics: as in ``metrics.json``.
        history: one row per epoch, as in ``history.csv``.
        predictions: the best checkpoint's predictions on each split of ``metrics``, test among them.
        contract: the best checkpoint's.

    Returns:
        the page's file.

    Raises:
        OutputError: the folder is not writable or the disk is full.
    """
    _write_pictures(run_dir, metrics, history, predictions, contract)
    for split, p in predictions.items():
        write_text_atomically(run_dir / f"classification_report_{split}.txt", classification_report(p, contract))

    figures = metrics["splits"]["test"]
    mistakes = worst_mistakes(predictions["test"], contract)
    splits = list(predictions)[::-1]
    page = PAGE.substitute(
        style=STYLE,
        run=escape(run_dir.name),
        epoch=metrics["epoch"],
        epochs=len(history),
        cautions=_warning(contract.caution) + _leak_hint(config.get("leaks", ())),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        links="".join(f'<a href="#split-{escape(split)}">{escape(split.capitalize())}</a>' for split in splits),
        n=figures["all"]["n"],
        patients=figures["all"]["patients"],
        resamples=figures["bootstrap"]["resamples"],
        cards="".join(_card(figures["all"][task][name], title) for task, name, title in HEADLINES),
        figures=_figures_table(figures),
        sources=_source_note(figures),
        counts=_counts_table(predictions, contract),
        leaks=_warning(config.get("unnamed_patients")) + (_leak_list(config["leaks"]) if "leaks" in config else ""),
        curves=_picture(run_dir / CURVES, "Loss, accuracy, agreement and learning rates by epoch"),
        roc=_picture(run_dir / "roc.png", "ROC curves of ME risk and referable DR"),
        rules=escape("; ".join(rule_text(contract, task) for task in contract.thresholds if task != "dr")),
        splits="\n".join(
            _split(run_dir, split, metrics["splits"][split], heads_the_page=split == "test") for split in splits
        ),
        dr_mistakes=_gallery(mistakes["dr"]) if figures["all"]["dr"]["n"] else _NO_LABELS,
        me_mistakes=_gallery(mistakes["me"]) if figures["all"]["me"]["n"] else _NO_LABELS,
        bins=CALIBRATION_BINS,
        settings=_settings(config, contract),
        version=escape(own_version()),
    )
    write_text_atomically(run_dir / REPORT_NAME, page)
    return run_dir / REPORT_NAME


def rule_text(contract: Contract, task: str) -> str:
    """A contract's decision rule for one of its tasks, in words."""
    names = {**HEAD_NAMES, "referable_dr": "referable DR", "referable_me": "referable ME risk"}
    rule, name = contract.thresholds[task], names[task]
    if rule.rule == "argmax":
        return f"{name}: the most probable answer"
    what = "risk" if task in ("me", "referable_me") else f"the grades from {contract.referable_from} up"
    return f"{name}: where the probability of {what} reaches {rule.threshold:g}"


def _write_pictures(
    run_dir: Path,
    metrics: Mapping[str, Any],
    history: pd.DataFrame,
    predictions: Mapping[str, Predictions],
    contract: Contract,
) -> None:
    plots.learning_curves(history, run_dir / CURVES)
    plots.roc_curves(predictions, contract, run_dir / "roc.png")
    for split, p in predictions.items():
        plots.reliability_diagrams(p, run_dir / f"reliability_{split}.png")
        for task, title in HEAD_NAMES.items():
            body = metrics["splits"][split]["all"][task]
            out_png = run_dir / f"confusion_{task}_{split}.png"
            plots.confusion_matrix(body["confusion_matrix"], body["labels"], f"{title}, {split}", out_png)


def _card(figure: Mapping[str, Any], title: str) -> str:
    if figure["value"] is None:
        return f'<div class="card"><h3>{title}</h3><p class="big">–</p><p>{escape(figure["why"])}</p></div>'
    strip = ""
    if figure["low"] is not None and figure["value"] >= 0:
        # The strip runs from 0 to 1; of a kappa near chance, only a part of the interval lies there.
        low, high, value = (100 * max(0.0, figure[key]) for key in ("low", "high", "value"))
        bar = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i><b style="left:{value:.1f}%"></b>'
        strip = f'<div class="strip" aria-hidden="true">{bar}</div>'
    return (
        f'<div class="card"><h3>{title}</h3><p class="big">{figure["value"]:.3f}</p>{strip}'
        f"<p>{_interval(figure)}</p></div>"
    )


def _interval(figure: Mapping[str, Any]) -> str:
    return escape(figure["why"]) if figure["low"] is None else f"({figure['low']:.3f} to {figure['high']:.3f})"


def _figures_table(figures: Mapping[str, Any]) -> str:
    bodies = [figures["all"], *figures["sources"].values()]
    rows = [["photographs", *(str(body["n"]) for body in bodies)]]
    rows += [["patients", *(str(body["patients"]) for body in bodies)]]
    rows += [[title, *map(str, counts)] for title, counts in label_counts(bodies)]
    for task, name, title in FIGURES:
        rows.append([title, *(_cell(body[task][name]) for body in bodies)])
    return _table(
        ["", "all", *map(escape, figures["sources"])],
        rows,
        "Over all photographs" + " and by source" * (len(bodies) > 1),
    )


def _cell(figure: Mapping[str, Any]) -> str:
    value = "–" if figure["value"] is None else f"{figure['value']:.3f}"
    kind = ' class="why"' if figure["low"] is None else ""
    return f"{value}<small{kind}>{_interval(figure)}</small>"


def _source_note(figures: Mapping[str, Any]) -> str:
    """The share of ME risk in each source, from which a model that only recognises the camera would profit."""
    shares = {
        source: sum(c["support"] for c in body["me"]["classes"][1:]) / body["me"]["n"]
        for source, body in figures["sources"].items()
        if body["me"]["n"]
    }
    if not shares:
        return ""
    said = ", ".join(f"{share:.0%} of {escape(source)}" for source, share in shares.items())
    return (
        f'<p class="soft">ME risk is {said}. If these shares differ, a model that only recognises the camera looks '
        "better overall than it is: read each source's own column.</p>"
    )


def _counts_table(predictions: Mapping[str, Predictions], contract: Contract) -> str:
    parts: dict[str, Predictions] = {}
    for split, whole in predictions.items():
        parts |= {split: whole, **{f"{split}, {name}": whole.of_source(name) for name in whole.named_sources}}
    columns: dict[str, list[int]] = {
        "photographs": [len(p.patients) for p in parts.values()],
        "patients": [len(set(p.patients)) for p in parts.values()],
    }
    for head, none in zip(HEADS, ("no DR grade", "no ME label"), strict=True):
        trues = [p.true(head) for p in parts.values()]
        for index, label in enumerate(contract.class_names(head)):
            columns[f"{head.upper()} {label}"] = [int((true == index).sum()) for true in trues]
        if any(without := [int((true == UNLABELLED).sum()) for true in trues]):
            columns[none] = without
    rows = [[escape(name), *map(str, numbers)] for name, *numbers in zip(parts, *columns.values(), strict=True)]
    return _table(["", *map(escape, columns)], rows, "Photographs by split, source and label")


def _warning(text: str | None) -> str:
    return f'<p class="warning">{escape(text[0].upper() + text[1:])}</p>' if text else ""


def _leak_hint(leaks: Sequence[str]) -> str:
    if not leaks:
        return ""
    return (
        '<p class="warning"><strong>Photographs or patients are in two splits</strong>, which makes the figures look '
        'better than they are: <a href="#data">which ones</a>.</p>'
    )


def _leak_list(leaks: Sequence[str]) -> str:
    if not leaks:
        return "<p>No photograph or patient was found in two splits.</p>"
    items = "".join(f"<li>{escape(str(leak))}</li>" for leak in leaks)
    return (
        f'<p class="warning"><strong>Leakage: {len(leaks)} found.</strong> Photographs and patients in two splits make '
        f"the figures look better than they are.</p><ul>{items}</ul>"
    )


def _split(run_dir: Path, split: str, figures: Mapping[str, Any], *, heads_the_page: bool) -> str:
    name = escape(split)
    table = "" if heads_the_page else _figures_table(figures)
    columns = ""
    for task, title in HEAD_NAMES.items():
        shown = _NO_LABELS
        if figures["all"][task]["n"]:
            path = run_dir / f"confusion_{task}_{split}.png"
            matrix = _picture(path, f"Confusion matrix of {title} on {split}", "square", 0.6)
            shown = matrix + _class_table(figures["all"][task])
        columns += f"<div><h3>{title}</h3>{shown}</div>"
    reliability = _picture(run_dir / f"reliability_{split}.png", f"Reliability of both heads on {split}")
    return (
        f'<section id="split-{name}"><h2>{name.capitalize()}: confusion, classes, calibration</h2>'
        f'{table}<div class="side">{columns}</div>{reliability}</section>'
    )


def _class_table(body: Mapping[str, Any]) -> str:
    rows = []
    for row in body["classes"]:
        figures = (_cell(row[name]) for name in ("precision", "recall", "f1"))
        rows.append([escape(row["label"]), *figures, str(row["support"])])
    return _table(["", "precision", "recall", "F1", "support"], rows, "Classification report")


def _gallery(mistakes: Iterable[Mistake]) -> str:
    tiles = "".join(
        f"<figure>{_thumbnail(mistake)}<figcaption>"
        f"<strong>Predicted {escape(mistake.said)}, true {escape(mistake.true)}</strong>"
        f"{escape(percent(mistake.confidence))} sure"
        f"<br>{escape(' · '.join(filter(None, (mistake.name, mistake.source))))}</figcaption></figure>"
        for mistake in mistakes
    )
    return f'<div class="gallery">{tiles}</div>' if tiles else "<p>None.</p>"


def _thumbnail(mistake: Mistake) -> str:
    try:
        picture = Image.fromarray(decode(Path(mistake.path), at_least=_THUMBNAIL))
    except PictureError as err:
        # The photograph was there during training; the rest of the report is useful without it.
        return f'<div class="missing">{escape(str(err))}</div>'
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img src="{source}" alt="{escape(mistake.name)}" width="{picture.width}" height="{picture.height}">'


def _picture(path: Path, alt: str, kind: str = "wide", scale: float = 0.6) -> str:
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        width, height = (round(side * scale) for side in picture.size)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<figure class="{kind}"><img src="{source}" alt="{escape(alt)}" width="{width}" height="{height}"></figure>'


def _settings(config: Mapping[str, Any], contract: Contract) -> str:
    shown_above = ("counts", "leaks", "unnamed_patients")
    facts = {"versions": current_versions(), **{key: config[key] for key in config if key not in shown_above}}
    provenance = {key: value for key, value in contract.provenance.items() if key != "metrics"}
    pairs = [*flatten(facts, " · "), *flatten({"provenance": provenance}, " · ")]
    pairs += [("decision rule", rule_text(contract, task)) for task in contract.thresholds]
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(_in_words(value))}</td></tr>" for key, value in pairs)
    return f'<div class="scroll"><table class="pairs">{rows}</table></div>'


def _in_words(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return "none" if value is None or value == "" else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table as HTML; the cells must be HTML already."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )

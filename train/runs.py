"""All runs side by side, for ``retina-train --list``."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..runtime.terminal import printable
from .config import TrainConfig
from .metrics import HEADLINES, headline
from .run import CONFIG, FACTS, HISTORY, METRICS, RESUME

State = Literal["finished", "unfinished"]
"""``unfinished``: in progress, interrupted or failed, which cannot be told from the folder."""


@dataclass(frozen=True)
class RunSummary:
    """One folder under ``artifacts/runs``, as far as it can be read."""

    name: str
    state: State
    epochs: int
    """Epochs trained."""
    epochs_planned: int | None
    """None if the options cannot be read."""
    best_epoch: int | None
    valid_score: float | None
    """``score`` of ``epoch_scores`` on valid, of the best epoch, at most 1; None if no epoch can be read."""
    test: Mapping[str, float | None] = field(default_factory=dict)
    """Headline figures on test, under names like ``dr_accuracy``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its options, and the beginning of its data's fingerprint as ``data_fingerprint``."""
    damage: tuple[str, ...] = ()
    """Files that could not be read, and why."""


def list_runs(artifacts: Path) -> list[RunSummary]:
    """Every run under ``artifacts/runs``, sorted by name; folders without any of a run's files are skipped.

    A run that was cut short while writing, or damaged since, is listed with what can be read of it.
    """
    folders = sorted((artifacts / "runs").glob("*/"))
    return [_summary(folder) for folder in folders if any(os.path.exists(folder / name) for name in _SIGNS)]


_FINGERPRINT = "data_fingerprint"
_DEFAULTS = TrainConfig(data="").to_dict()
_SIGNS = (CONFIG, HISTORY, METRICS, RESUME)


def format_table(runs: list[RunSummary]) -> str:
    """The runs as text, one line each, with the options in which they differ; then what could not be read."""
    if not runs:
        return "No runs yet. Start one:  retina-train DATA"
    differing = _differing_options(runs)
    head = [
        "run",
        "state",
        "epochs",
        "best",
        "valid score",
        *(f"test {title}" for _, _, title in HEADLINES),
        *differing,
    ]
    rows = [
        [
            run.name,
            run.state,
            f"{run.epochs}/{'?' if run.epochs_planned is None else run.epochs_planned}",
            "-" if run.best_epoch is None else str(run.best_epoch),
            _number(run.valid_score),
            *(_number(run.test.get(f"{task}_{name}")) for task, name, _ in HEADLINES),
            *(str(run.config.get(option, "-")) for option in differing),
        ]
        for run in runs
    ]
    rows = [[_on_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    if _FINGERPRINT in differing:
        lines.append(f"Figures compare only between runs with the same {_FINGERPRINT}.")
    lines += [_on_one_line(f"{run.name}: {what}") for run in runs for what in run.damage]
    return "\n".join(line.rstrip() for line in lines)


def _summary(folder: Path) -> RunSummary:
    damage: list[str] = []
    config = _read_json(folder / CONFIG, damage)
    if config:  # a run of an earlier version lacks later options, which have the values of before by default
        config = {**_DEFAULTS, **config}
    if fingerprint := _read_json(folder / FACTS, damage).get(_FINGERPRINT):
        config[_FINGERPRINT] = str(fingerprint)[:12]
    metrics = _read_json(folder / METRICS, damage)
    history = _read_history(folder / HISTORY, damage)
    best = max(history, key=lambda row: row["valid_score"], default=None)
    test: dict[str, float | None] = {}
    if metrics:
        try:
            test = headline(metrics["splits"]["test"]["all"])
        except (KeyError, TypeError):
            damage.append(f"{METRICS} holds no test figures")
    planned = config.get("epochs")
    return RunSummary(
        name=folder.name,
        state="finished" if test and not os.path.exists(folder / RESUME) else "unfinished",
        epochs=len(history),
        epochs_planned=planned if isinstance(planned, int) else None,
        best_epoch=None if best is None else int(best["epoch"]),
        valid_score=None if best is None else best["valid_score"],
        test=test,
        config=config,
        damage=tuple(damage),
    )


def _read_json(path: Path, damage: list[str]) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file, or, with a note in ``damage``, if it cannot be read."""
    if not os.path.exists(path):
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        damage.append(f"{path.name} cannot be read: {err}")
        return {}
    if not isinstance(body, dict):
        damage.append(f"{path.name}: expected a JSON object, found {type(body).__name__}")
        return {}
    return body


def _read_history(path: Path, damage: list[str]) -> list[dict[str, float]]:
    """Epoch and validation score of each complete row of ``history.csv``."""
    if not os.path.exists(path):
        return []
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows.append({key: float(row[key]) for key in ("epoch", "valid_score")})
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as err:
        damage.append(f"{HISTORY} cannot be read beyond {len(rows)} epochs: {err}")
    return [row for row in rows if all(map(math.isfinite, row.values()))]


def _differing_options(runs: list[RunSummary]) -> list[str]:
    """Options that differ between the runs whose options are known, without epochs, which have their own column."""
    read = [run.config for run in runs if run.config]
    known = [config for config in read if config.keys() - {_FINGERPRINT}]  # of the others the data alone are known
    options = dict.fromkeys(option for config in read for option in config if option != "epochs")
    among = {option: read if option == _FINGERPRINT else known for option in options}
    return [option for option in options if len({str(config.get(option)) for config in among[option]}) > 1]


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _on_one_line(text: str) -> str:
    """As it is printed, but with line ends spelled out too: a folder's name may hold any character."""
    return printable(text).replace("\n", "\\n")

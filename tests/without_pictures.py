"""``retina-train`` without its pictures and scikit-learn's tables, which take most of a small run's time."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

import small_backbone  # noqa: F401 - for the runs' --backbone
from PIL import Image
from retina.train import plots, report
from retina.train.cli import main


def replace_pictures(replace: Callable[[Any, str, Any], object]) -> None:
    """Replace each function that draws a picture or table of a run, by ``setattr`` or monkeypatch's."""
    replace(report, "classification_report", lambda *_: "")
    for draws in (plots.learning_curves, plots.roc_curves, plots.reliability_diagrams, plots.confusion_matrix):
        replace(plots, draws.__name__, _draw_nothing)


def _draw_nothing(*arguments: Any) -> None:
    Image.new("L", (1, 1)).save(arguments[-1], "PNG")


def as_process(*commands: list[str]) -> list[str]:
    """What the interpreter is to run: commands one after another, since each start of a process costs seconds too."""
    return [__file__, json.dumps(commands)]


if __name__ == "__main__":
    replace_pictures(setattr)
    *earlier, last = json.loads(sys.argv[1])
    for arguments in earlier:
        with contextlib.suppress(SystemExit):  # the tests look at the files it leaves
            main(arguments)
    main(last)

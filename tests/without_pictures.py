"""``retina-train`` without its pictures and scikit-learn's tables, which take most of a small run's time."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import small_backbone  # noqa: F401 - for the runs' --backbone
from PIL import Image
from retina.train import plots, report
from retina.train.cli import main

# Forked from a process that has loaded PyTorch once for all, and not from pytest's, which has threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["retina.train.pipeline"])  # not this module: Python 3.11 does not look in its folder


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


def started(*commands: list[str], out: Path, err: Path | None = None) -> BaseProcess:
    """A process that leads its own group and runs commands one after another; ``err``: ``out`` unless given."""
    process = FORKS.Process(target=_run_detached, args=(commands, out, err or out))
    process.start()
    return process


def _run_detached(commands: Sequence[list[str]], out: Path, err: Path) -> None:
    os.setpgrp()
    for stream, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    _run(commands)


def _run(commands: Sequence[list[str]]) -> None:
    replace_pictures(setattr)
    *earlier, last = commands
    for arguments in earlier:
        try:
            main(arguments)
        except SystemExit as ended:
            if ended.code:
                raise
    main(last)


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))

"""``retina-train`` without its pictures and scikit-learn's tables, which take most of a small run's time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import small_backbone  # noqa: F401 - for the runs' --backbone
from PIL import Image
from retina.train import plots, report
from retina.train.cli import main
from torch.distributed import run
from torch.distributed.launcher.api import elastic_launch

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


def started(*commands: list[str], out: Path, err: Path | None = None, torchrun: Sequence[str] = ()) -> BaseProcess:
    """A process that leads its own group and runs commands one after another, since each start costs too.

    Args:
        commands: arguments of ``retina-train``.
        out: the file for standard output.
        err: the file for standard error; None: the same.
        torchrun: options of ``torchrun``; with any, the commands run in its processes.
    """
    process = FORKS.Process(target=_run_detached, args=(commands, out, err or out, torchrun))
    process.start()
    return process


def _run_detached(commands: Sequence[list[str]], out: Path, err: Path, torchrun: Sequence[str]) -> None:
    os.setpgrp()
    for stream, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    if not torchrun:
        _run(commands)
        return
    # As torchrun does it, but its processes are forks as well, and need not load PyTorch.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    config, *_ = run.config_from_args(run.parse_args(["--start-method", "fork", *torchrun, __file__]))
    elastic_launch(config, _run)(commands)


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

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


def started(*commands: list[str], out: Path, err: Path | None = None) -> BaseProcess:
    """A process that leads its own group and runs commands one after another, since each start costs too.

    Args:
        commands: arguments of ``retina-train``.
        out: the file for standard output.
        err: the file for standard error; None: the same.
    """
    process = FORKS.Process(target=_detached, args=(out, err or out, run_commands, *commands))
    process.start()
    return process


def run_on_two_devices(out: Path, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in two processes of torchrun, and wait for their end.

    Args:
        out: the file for what they print.
        function: what to call.
        arguments: its arguments, which pickle can copy.
    """
    process = FORKS.Process(target=_detached, args=(out, out, _launch, function, arguments))
    process.start()
    process.join(280)
    assert process.exitcode == 0, out.read_text()


def run_commands(*commands: list[str]) -> None:
    """Run commands of ``retina-train``, given by their arguments, one after another."""
    replace_pictures(setattr)
    *earlier, last = commands
    for arguments in earlier:
        try:
            main(arguments)
        except SystemExit as ended:
            if ended.code:
                raise
    main(last)


def _detached(out: Path, err: Path, function: Callable[..., None], *arguments: Any) -> None:
    os.setpgrp()
    for stream, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    function(*arguments)


def _launch(function: Callable[..., None], arguments: Sequence[Any]) -> None:
    # As torchrun does it, but its processes are forks as well, and need not load PyTorch.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    options = ["--start-method", "fork", "--nproc-per-node", "2", "--local-addr", "127.0.0.1"]
    options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    config, *_ = run.config_from_args(run.get_args_parser().parse_args([*options, __file__]))
    elastic_launch(config, function)(*arguments)

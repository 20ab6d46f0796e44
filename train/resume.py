"""The file that ``--resume`` continues from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..runtime.errors import ModelFileError
from .checkpoint import save_tensors
from .model import read_state_dict, require_readable
from .run import BEST
from .run_progress import Progress
from .trainer import Trainer

_KIND = "retina-edge resume state 2"
Used = TypeVar("Used")


def save_resume(trainer: Trainer, file: Path) -> None:
    """Write a trainer's state, from which ``load_resume`` continues; on devices but the first it does nothing.

    Raises:
        OutputError: the file cannot be written.
    """
    if trainer.fabric.is_global_zero:
        save_tensors(file, {"kind": _KIND, **trainer.state()})


def load_resume(trainer: Trainer, file: Path) -> None:
    """Restore a trainer from a resume file.

    Raises:
        ModelFileError: the file is damaged or not a resume state.
    """
    _with_resume(file, trainer.load_state)


def saved_progress(file: Path) -> Progress:
    """The progress in a resume file.

    Raises:
        ModelFileError: the file is damaged or not a resume state.
    """
    return _with_resume(file, lambda state: Progress.of(state["progress"]))


def _with_resume(file: Path, use: Callable[[dict[str, Any]], Used]) -> Used:
    best = file.with_name(BEST)
    then = (
        f"Start a new run, from this one's best epoch:  --weights {best}"
        if os.path.isfile(best)
        else "Start a new run."
    )
    require_readable(file)
    try:
        state = read_state_dict(file)
    except ModelFileError:  # its advice is for a file that the user named
        raise ModelFileError(f"{file}: expected a {_KIND}, found one that cannot be read. {then}") from None
    if state.get("kind") != _KIND:
        raise ModelFileError(f"{file}: expected a {_KIND}, found another file. {then}")
    try:
        return use(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as err:
        raise ModelFileError(f"{file}: expected a whole {_KIND}, found damage: {err}. {then}") from None

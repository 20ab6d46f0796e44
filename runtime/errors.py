"""Everything that retina-edge refuses, as one small tree.

RetinaError                 the root: what every command turns into a message and an exit code that is not 0
├── PictureError            a file that is not a photograph we can read
├── AnnotationError         annotations that cannot be trained on or compared with
├── ModelFileError          an ONNX file that does not keep the contract, or a checkpoint that is not ours
├── ParityError             an exported file that does not answer as its source does
├── OutputError             a place that cannot be written
├── NonFiniteLossError      training whose loss is no longer a number
├── MissingExtraError       a command whose optional libraries are not installed
└── UsageError              options that contradict each other or the data

Every message names the file, what was expected, what was found and what to do next.
"""

from __future__ import annotations

import importlib.util


class RetinaError(Exception):
    """Root of every error that a user can cause and mend."""


class PictureError(RetinaError):
    """A file that is not a photograph we can read."""

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason
        """The message without the file's name, for a row that names the file already."""


class AnnotationError(RetinaError):
    """Annotations that cannot be trained on or compared with."""


class ModelFileError(RetinaError):
    """A model file that does not keep the contract, or a checkpoint that is not ours."""


class ParityError(RetinaError):
    """An exported file that does not answer as its source does."""


class OutputError(RetinaError):
    """A place that cannot be written."""


class NonFiniteLossError(RetinaError):
    """Training whose loss is no longer a number, with the files of the batch."""


class MissingExtraError(RetinaError):
    """A command whose optional libraries are not installed."""


class UsageError(RetinaError):
    """Options that contradict each other or the data."""


def require_extra(extra: str, *modules: str) -> None:
    """Raise MissingExtraError, naming the pip line to run, unless all ``modules`` are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        hint = (
            "\n(README, 'Install', says how to take PyTorch's CPU build and save 5 GB.)" if "torch" in missing else ""
        )
        raise MissingExtraError(f"{', '.join(missing)} not installed. Run:  pip install 'retina-edge[{extra}]'{hint}")

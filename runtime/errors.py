"""The exceptions of retina-edge.

Every message names the file, what was expected, what was found and what to do next.
"""

from __future__ import annotations


class RetinaError(Exception):
    """Root of every error that a user can cause and fix: commands end with its message and a non-zero exit code."""


class PictureError(RetinaError):
    """A file that is not a readable photograph."""

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason
        """The message without the file's name, for a table row, which already names the file."""


class AnnotationError(RetinaError):
    """Annotations that cannot be trained on or compared with."""


class ModelFileError(RetinaError):
    """A model file that does not keep the contract, or a checkpoint that is not ours."""


class ParityError(RetinaError):
    """An exported file whose answers differ too much from its source's."""


class OutputError(RetinaError):
    """An output file or folder that cannot be written."""


class NonFiniteLossError(RetinaError):
    """Training whose loss is no longer finite; the message names the files of the batch."""


class MissingExtraError(RetinaError):
    """A command whose optional libraries are not installed."""


class UsageError(RetinaError):
    """Options that contradict each other or the data."""

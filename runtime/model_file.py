"""Which model file is used, and what is in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import ModelFileError

MODEL_NAME = "retina_multitask.onnx"
INT8_NAME = "retina_multitask.int8.onnx"
"""Default names of retina-export's files; the first that exists is used."""
RELEASED = Path(__file__).with_name("released.onnx")
"""The model that ships with the package."""


def find_model(path: str | os.PathLike[str] | None = None, artifacts: str | Path | None = None) -> Path:
    """The model file to use: ``path``, else the export in ``artifacts``, else the one shipped in the package.

    ``artifacts`` defaults to the environment variable RETINA_ARTIFACTS, else to ``artifacts`` in the working directory.
    An fp32 export takes precedence over an int8 one. A given ``path`` is returned unchecked.

    Raises:
        ModelFileError: there is none, or one of these places cannot be examined.
    """
    if path is not None:
        return Path(path)
    asked_for = None if artifacts else os.environ.get("RETINA_ARTIFACTS")
    if asked_for and not os.path.isdir(asked_for):
        raise ModelFileError(f"{asked_for}: expected the folder that RETINA_ARTIFACTS names, found none")
    folder = Path(artifacts or asked_for or "artifacts")
    for candidate in (folder / MODEL_NAME, folder / INT8_NAME, RELEASED):
        # Where something else is, such as a link to a share that is not mounted, another model would be a silent
        # substitute.
        try:
            if stat.S_ISREG(os.stat(candidate).st_mode):  # noqa: PTH116
                return candidate
            raise ModelFileError(f"{candidate}: expected a model file or none, found something else")
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(candidate):
                raise ModelFileError(f"{candidate}: expected a model file or none, found a link to none") from None
        except OSError as err:
            raise ModelFileError(f"{candidate}: expected a model file or none, found: {err.strerror}") from None
    raise ModelFileError(
        f"{folder / MODEL_NAME}: expected a model file, found none, and none ships with this installation. Make one "
        "with  retina-train DATA and retina-export, or name one (retina-score --model FILE)."
    )


def read_model(path: Path) -> bytes:
    """The bytes of a model file.

    Raises:
        ModelFileError: it cannot be read, or is empty.
    """
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ModelFileError(f"{path}: expected a model file, found: {err.strerror}") from None
    if not content:
        raise ModelFileError(f"{path}: expected a model file, found an empty one. Export it again.")
    return content

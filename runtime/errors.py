"""The exceptions of retina-edge.

Every message names the file, what was expected, what was found and what to do next.
"""

from __future__ import annotations

import importlib.util

_TRAIN = ("torch", "torchvision", "lightning_fabric", "sklearn", "pandas", "matplotlib", "tqdm", "imagehash")
EXTRA_MODULES = {
    "train": _TRAIN,
    "export": (*_TRAIN, "onnx", "onnxscript"),
    "gradcam": (*_TRAIN, "scipy"),
    "dicom": ("pydicom",),
    "mlflow": (*_TRAIN, "mlflow", "sqlalchemy", "alembic"),
    "sign": ("model_signing", "OpenSSL"),
    "serve": ("fastapi", "starlette", "pydantic", "uvicorn", "python_multipart"),
}
"""The modules that each extra of pyproject.toml brings."""
_NEED_TEMPORARY_FILES = {"torch", "model_signing"}
"""PyTorch to be loaded at all; a signature is verified for a copy of the file."""


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


def require_extra(extra: str) -> None:
    """Check that the optional libraries of a command can be loaded.

    Raises:
        MissingExtraError: some of the extra's modules are not installed; the message has the pip command to run.
        OutputError: one of them needs temporary files, and there is no folder for these.
    """
    modules = EXTRA_MODULES[extra]
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        hint = (
            "\n(README, 'Install', says how to take PyTorch's CPU build and save 5 GB.)" if "torch" in missing else ""
        )
        raise MissingExtraError(f"{', '.join(missing)} not installed. Run:  pip install 'retina-edge[{extra}]'{hint}")
    if _NEED_TEMPORARY_FILES.intersection(modules):
        import tempfile

        try:
            tempfile.gettempdir()
        except FileNotFoundError as err:
            raise OutputError(
                f"expected a writable folder for temporary files, found none ({err.strerror}). Name one in TMPDIR."
            ) from None

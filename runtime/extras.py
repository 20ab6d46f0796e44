"""The extras of pyproject.toml: what each brings, and whether it is installed."""

from __future__ import annotations

import importlib.util

from .errors import MissingExtraError, OutputError

_TRAIN = ("torch", "torchvision", "lightning_fabric", "sklearn", "pandas", "matplotlib", "imagehash")
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

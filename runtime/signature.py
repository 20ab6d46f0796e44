"""Verification of a model file's signature, with the ``model-signing`` package of the OpenSSF."""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from pathlib import Path

from .errors import ModelFileError, OutputError, UsageError
from .extras import require_extra
from .model_file import read_model


def signature_path(path: Path) -> Path:
    """Where a file's signature is: beside it, with ``.sig`` appended to its name."""
    return path.with_name(path.name + ".sig")


def fault_of_key(err: Exception) -> str:
    """What is wrong with a key that ``model-signing`` refused with ``err``."""
    # For a key without a curve the package raises AttributeError.
    return "one of another kind" if isinstance(err, AttributeError) else str(err)


def verify(path: Path, key: Path) -> str:
    """Check that FILE.sig is a signature of the file's bytes by the private key that belongs to ``key``.

    Args:
        path: the model file.
        key: file with an elliptic-curve public key, PEM.

    Returns:
        the sha256 of the bytes that are signed, in hexadecimal: the file may be replaced at any moment.

    Raises:
        MissingExtraError: model-signing is not installed.
        OutputError: there is no room for temporary files.
        UsageError: there is no such key file, or its key is not an elliptic-curve public key.
        ModelFileError: the file cannot be read; there is no signature, or it is of another file or by another key.
    """
    require_extra("sign")
    if not os.path.isfile(key):
        raise UsageError(f"--verify {key}: expected a public key file (PEM, elliptic curve), found none there")
    signature = signature_path(path)
    if not os.path.isfile(signature):
        raise ModelFileError(
            f"{path}: expected its signature in {signature}, found none. Sign it: "
            f"retina-export --inspect {shlex.quote(str(path))} --sign KEY"
        )
    import model_signing

    try:
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as err:  # noqa: BLE001 - as below
        raise UsageError(
            f"--verify {key}: expected an elliptic-curve public key (PEM), found: {fault_of_key(err)}"
        ) from None
    content = read_model(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        try:
            copy.write_bytes(content)
        except OSError as err:
            raise OutputError(
                f"{copy}: expected room for a copy of {path}, to verify it, found: {err.strerror}. Name another folder "
                "for temporary files in TMPDIR."
            ) from None
        try:
            verifier.verify(copy, signature)
        except Exception as err:  # noqa: BLE001 - the package passes on exceptions of the libraries that it uses
            raise ModelFileError(
                f"{path}: expected the signature of the holder of {key}, found another file, signature or key: {err}"
            ) from None
    return hashlib.sha256(content).hexdigest()

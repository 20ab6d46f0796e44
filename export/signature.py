"""Signing a model file, with the ``model-signing`` package of the OpenSSF."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..runtime.errors import UsageError
from ..runtime.extras import require_extra
from ..runtime.signature import fault_of_key, signature_path


def require_key(key: Path) -> None:
    """Check before any work that ``key`` can sign.

    Raises:
        MissingExtraError: model-signing is not installed.
        UsageError: there is no such key file, or its key cannot sign.
    """
    require_extra("sign")
    if not os.path.isfile(key):
        raise UsageError(f"--sign {key}: expected a private key file (PEM, elliptic curve), found none there")
    _signer(key)


def sign(path: Path, key: Path) -> Path:
    """Write FILE.sig, a signature of the file's bytes, with an elliptic-curve private key (PEM); returns its path.

    Raises:
        UsageError: the file ``key`` has no such key.
    """
    _signer(key).sign(path, signature_path(path))
    return signature_path(path)


def _signer(key: Path) -> Any:
    import model_signing

    try:
        return model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
    except Exception as err:  # noqa: BLE001 - the package passes on exceptions of the libraries that it uses
        raise UsageError(
            f"--sign {key}: expected an elliptic-curve private key without password, found: {fault_of_key(err)}"
        ) from None

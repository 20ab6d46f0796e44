"""What several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs that RETINA_DATA names; tests that need it are skipped without it."""
    folder = os.environ.get("RETINA_DATA", "")
    if not folder:
        pytest.skip("RETINA_DATA is not set")
    return Path(folder)

"""An environment in which libraries would report their use."""

from __future__ import annotations

import os
from pathlib import Path


def bare_environment(home: Path) -> dict[str, str]:
    """Only what a program needs to run: where CI is set, onnxruntime and MLflow are silent of their own accord."""
    needed = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**needed, "HOME": str(home)}

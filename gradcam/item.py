"""One photograph of a gallery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..runtime.contract import Head
from .explainer import Explanation


@dataclass(frozen=True)
class GalleryItem:
    """A file to explain, and the result: a row of ``gradcam.csv``."""

    path: Path
    name: str
    """Relative to the folder given, separated by ``/``."""
    stem: str
    """The path, relative to the output folder, that the names of its overlays begin with."""
    explanation: Explanation | None = None
    """None before it was explained, or if it could not be read or explained."""
    peaks: Mapping[Head, tuple[int, int] | None] = field(default_factory=dict)
    """(x, y) in pixels of the photograph where each map is largest; None for a blank map."""
    overlays: Mapping[Head, str] = field(default_factory=dict)
    """Each overlay's file, relative to the output folder, separated by ``/``."""
    undone: Literal["", "read", "explained", "drawn"] = ""
    """What could not be done with it; one that was explained but not drawn keeps its answer."""
    error: str = ""
    """Why not; else empty."""

    @property
    def unfamiliar(self) -> bool:
        """Whether the model file says so; a checkpoint cannot."""
        return self.explanation is not None and bool(self.explanation.prediction.unfamiliar)

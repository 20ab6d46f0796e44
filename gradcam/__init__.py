"""Where a model's answers come from: Grad-CAM maps, overlays, and a measurement of whether it looks at the lesions.

>>> from retina.gradcam import GradCAM
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cam import GradCAM, find_layer, head_logit

__all__ = ["GradCAM", "find_layer", "head_logit"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``retina-gradcam --help`` and ``--model FILE.onnx`` work without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import cam

    return getattr(cam, name)


def __dir__() -> list[str]:
    """With the names that are imported on first use, which a shell completes."""
    return sorted({*globals(), *__all__})

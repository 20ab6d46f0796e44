"""Write a picture to a file, as JPEG or PNG according to its ending, atomically."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import OutputError
from .output_file import replacing

if TYPE_CHECKING:
    from PIL import Image

ImageFormat = Literal["jpeg", "png"]
ENDING_OF: dict[ImageFormat, str] = {"jpeg": ".jpg", "png": ".png"}
QUALITY = 92
"""JPEG quality. A photograph of 12 megapixels that is encoded again at this quality keeps a PSNR of at least 45 dB, in
a ninth of PNG's bytes and a thirteenth of its time or less."""
MOST_PIXELS = 65_500
"""A side of a JPEG, by libjpeg's ``JPEG_MAX_DIMENSION``."""
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
"""How a file system refuses a name: too long, with a character such as ":" (FAT, exFAT, NTFS), or not UTF-8."""


def write_image(path: Path, image: Image.Image) -> None:
    """Write an RGB image in the format of its ending, ``.jpg`` or ``.png``.

    Raises:
        OutputError: the folder is not writable, the disk is full, or a JPEG would exceed ``MOST_PIXELS``.
    """
    with replacing(path) as temporary:
        # Into memory first: on a disk that fills up, Pillow does not notice that its last block was written in part.
        temporary.write_bytes(_encoded(image, as_png=path.suffix == ENDING_OF["png"]))


def _encoded(image: Image.Image, as_png: bool) -> memoryview:
    from PIL import Image

    file = io.BytesIO()
    if as_png:
        image.save(file, "PNG", compress_level=1, compress_type=Image.RLE)
    elif max(image.size) > MOST_PIXELS:  # libjpeg would say so on standard error, and Pillow nothing of the reason
        raise OSError(f"a JPEG has at most {MOST_PIXELS} pixels a side, found {image.width} x {image.height}")
    else:
        image.save(file, "JPEG", quality=QUALITY)
    return file.getbuffer()


def fault_of_picture(err: OutputError) -> str:
    """Why this picture alone could not be written: the disk refuses its name, or JPEG its size; else empty."""
    why = err.__cause__
    # That of too large a JPEG has no errno.
    if isinstance(why, OSError) and (why.errno is None or why.errno in _OF_THE_NAME):
        return why.strerror or str(why)
    return ""

"""Recognises a WebP whose data end in zeros: Pillow's decoder takes these for a picture, without a word."""

from __future__ import annotations

from typing import BinaryIO

_PIXELS_PER_ZERO = 256
"""Zeros can also be data: a black surround is coded as zeros, of which the encoder wrote at most one for 694 pixels, in
eight photographs with and without as much black below them, in seven qualities and methods."""
_FEWEST = 64


def ends_in_zeros(file: BinaryIO, pixels: int) -> bool:
    """Whether a WebP's data end in more zeros than a picture of ``pixels`` pixels can.

    An interrupted copy leaves zeros from some point to the end. What follows the picture's data, such as EXIF, is not
    looked at.

    Args:
        file: the whole WebP file, seekable; its position is changed.
        pixels: height x width.
    """
    zeros = max(pixels // _PIXELS_PER_ZERO, _FEWEST)
    file.seek(12)
    while len(header := file.read(8)) == 8:
        kind, size = header[:4], int.from_bytes(header[4:], "little")
        if kind in (b"VP8 ", b"VP8L"):
            file.seek(max(size - zeros, 0), 1)
            return size > zeros and not any(file.read(zeros))
        file.seek(size + size % 2, 1)
    return False  # animated or damaged in another way: then the decoder reports what is missing

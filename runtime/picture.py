"""The project's only image decoder, from a file or its bytes to pixels: training and scoring see the same picture."""

from __future__ import annotations

import io
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin

from .dicom import dicom_pixels, is_dicom
from .errors import RetinaError
from .formats import (
    HOSTS_LIMIT,
    JPEG,
    MAX_BYTES,
    MAX_PIXELS,
    OPENERS,
    UNFINISHED,
    refusal,
    require,
    require_size,
    to_8_bits,
    too_large,
)
from .jpeg import is_unfinished, silent_fault
from .webp import ends_in_zeros

_EVEN = 32
"""Largest difference in a row of one colour, in levels of 255. With zeros for 10 to 80% of its data, a WebP's last row
differed by 60 or more, in each of 20 photographs at quality 92; at quality 75 too, or the whole was grey or refused."""

_STRIP = 256
"""Rows copied from Pillow at a time."""

_ORIENTATION_TAG, _TILE_WIDTH, _TILE_LENGTH = 0x0112, 0x0142, 0x0143
_BOMBS = Image.DecompressionBombError, Image.DecompressionBombWarning
"""What Pillow raises beyond its own limit, which is the host program's to set; the warning, if it makes them errors."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(source: str | Path | bytes, *, at_least: int | None = None) -> NDArray[np.uint8]:
    """Decode a photograph: JPEG, PNG, TIFF, BMP, WebP, JPEG 2000, and DICOM with the extra ``dicom``.

    EXIF orientation is applied. Of several frames the first is taken. 16 bits per sample are rounded to 8, except for
    colour outside DICOM, of which Pillow keeps the high byte. Greyscale, palette and CMYK become RGB. Colour profiles
    are not applied. Transparent parts become black, like the surround of a fundus photograph's lit field.

    Thread-safe; changes none of Pillow's settings.

    Args:
        source: a path, or the bytes of a file.
        at_least: if given, a picture whose sides are both larger than this may be reduced by an integer factor, as long
            as each side keeps at least this many pixels: by JPEG's scaled decoding if possible, else by the mean over
            blocks of pixels. None: full size.

    Returns:
        (H, W, 3) uint8 RGB, H and W at least 32, contiguous and writable.

    Raises:
        PictureError: the file does not exist or is larger than 1 GiB; or the picture is not of these formats, cut
            short, damaged, below 32 pixels a side, above 100 megapixels, of signed, 32-bit or floating-point samples,
            too large for the available memory, a TIFF of uncompressed planes that Pillow would misread, or DICOM
            without pydicom installed; or the program has set ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES``.
    """
    return _array(load(source, at_least=at_least), "picture" if isinstance(source, bytes) else os.fsdecode(source))


def load(source: str | Path | bytes, *, at_least: int | None = None) -> Image.Image:
    """Like ``decode``, with the same errors, but returns a Pillow image in RGB.

    For callers that draw on it: copying 12 megapixels into an array takes longer than decoding them.
    """
    if isinstance(source, bytes):
        return _load_file(io.BytesIO(source), "picture", at_least)
    name = os.fsdecode(source)
    try:
        status = os.stat(name)  # noqa: PTH116 - faster than Path.stat, and called for every file
        # Reading a named pipe or a device might never end.
        require(stat.S_ISREG(status.st_mode), name, "expected a file, found something else")
        require(status.st_size <= MAX_BYTES, name, f"expected at most {MAX_BYTES} bytes, found {status.st_size}")
        with open(name, "rb") as file:  # noqa: PTH123
            return _load_file(file, name, at_least)
    except FileNotFoundError:
        raise refusal(name, "no such file") from None
    except (OSError, ValueError) as err:
        raise refusal(name, f"cannot be read: {getattr(err, 'strerror', None) or err}") from None


def from_image(image: Image.Image, *, at_least: int | None = None) -> NDArray[np.uint8]:
    """Convert a Pillow image by the rules of ``decode``, with the same result and errors.

    The image is loaded but otherwise not modified. What Pillow does not tell of a damaged file is found only as long as
    the image still has its file, such as one that comes from ``Image.open``.
    """
    name = "picture"
    if isinstance(image, ImageFile.ImageFile):
        _require_strict_pillow(name)
    require_size(name, *image.size)
    file = _file_of(image, name)
    if file is not None:
        _require_whole(file, name)
    return _array(_from_file(image, file, name, at_least), name)


def _file_of(image: Image.Image, name: str) -> BinaryIO | None:
    """A copy of the JPEG or WebP file of which the image is the first frame; None if it has none, or no more."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile | WebPImagePlugin.WebPImageFile) or image.tell():
        return None
    source = image.fp
    if source is None or getattr(source, "closed", False):
        return None
    try:
        place = source.tell()
        source.seek(0)
        content = source.read(MAX_BYTES + 1)
        source.seek(place)
    except (OSError, ValueError) as err:
        raise refusal(name, _reason(err)) from None
    except MemoryError:
        raise too_large(name, *image.size) from None
    require(len(content) <= MAX_BYTES, name, f"expected at most {MAX_BYTES} bytes, found more")
    return io.BytesIO(content)


def _array(rgb: Image.Image, name: str) -> NDArray[np.uint8]:
    # In strips that fit a CPU cache: np.array(rgb) makes an additional copy of the whole and takes three times as long.
    width, height = rgb.size
    try:
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, _STRIP):
            bottom = min(top + _STRIP, height)
            pixels[top:bottom] = np.asarray(rgb.crop((0, top, width, bottom)))
        return pixels
    except MemoryError:
        raise too_large(name, width, height) from None
    except _BOMBS as err:
        raise refusal(name, _reason(err)) from None


def _upright(image: Image.Image, name: str, at_least: int | None) -> Image.Image:
    require_size(name, *image.size)
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile) and _ORIENTATION_TAG not in image.tag_v2:
            # Pillow turns a TIFF itself while it loads it, and without a tag as its XMP says.
            image.getexif()[_ORIENTATION_TAG] = 1
            image.load()
            del image.getexif()[_ORIENTATION_TAG]
        image.load()
        rgb = _to_rgb(image, name)
        method = _UPRIGHT.get(_orientation(image))
        factor = 1 if at_least is None else min(rgb.size) // at_least
        if factor > 1:
            rgb = rgb.reduce(factor)
        if method is not None:
            rgb = rgb.transpose(method)
    except RetinaError:
        raise
    except MemoryError:
        raise too_large(name, *image.size) from None
    except Exception as err:  # noqa: BLE001 - Pillow's plugins raise anything on damaged files: KeyError, struct.error
        raise refusal(name, _reason(err)) from None
    require_size(name, *rgb.size)
    return rgb


def _load_file(file: BinaryIO, name: str, at_least: int | None) -> Image.Image:
    _require_strict_pillow(name)
    head = _require_whole(file, name)
    if is_dicom(head):
        return _upright(Image.fromarray(dicom_pixels(file, name)), name, at_least)
    for label, is_format, opener in OPENERS:
        if is_format(head):
            try:
                image = opener(file, name)
            except Exception as err:  # noqa: BLE001 - as above
                raise refusal(name, f"damaged {label} file: {_reason(err)}") from None
            require_size(name, *image.size)
            if at_least is not None:
                image.draft(image.mode, (at_least, at_least))
            return _from_file(image, file, name, at_least)
    formats = ", ".join(label for label, _, _ in OPENERS)
    raise refusal(name, f"expected {formats} or DICOM, found a file that starts with {head[:8].hex(' ')}")


def _require_strict_pillow(name: str) -> None:
    """Refuse any picture while the program that we are part of has Pillow fill what is missing from cut files."""
    strict = not ImageFile.LOAD_TRUNCATED_IMAGES
    reason = "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so that a cut file cannot be told from a whole one: unset it"
    require(strict, name, reason)


def _require_whole(file: BinaryIO, name: str) -> bytes:
    """The first bytes of a file; it is refused if it is empty, or damaged in a way that its decoder does not tell."""
    head = file.read(132)
    require(bool(head), name, "empty file")
    if head.startswith(JPEG) and (fault := silent_fault(file)):
        raise refusal(name, fault)
    file.seek(0)
    return head


def _from_file(image: Image.Image, file: BinaryIO | None, name: str, at_least: int | None) -> Image.Image:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _require_plain_tiff(image, name)
    rgb = _upright(image, name, at_least)
    if file is not None and isinstance(image, JpegImagePlugin.JpegImageFile) and _ends_grey(image):
        require(not is_unfinished(file), name, UNFINISHED)
    if file is not None and isinstance(image, WebPImagePlugin.WebPImageFile) and not _ends_even(image, name):
        is_cut = ends_in_zeros(file, image.width)
        require(not is_cut, name, "damaged: zeros where the WebP's data should end")
    return rgb


def _ends_grey(image: Image.Image) -> bool:
    """Whether the last pixel is as a decoder leaves it where data are missing: medium grey, in any colours."""
    pixel = image.getpixel((image.width - 1, image.height - 1))
    return all(value in (127, 128) for value in (pixel if isinstance(pixel, tuple) else (pixel,)))


def _ends_even(image: Image.Image, name: str) -> bool:
    """Whether the last row is of one colour: then zeros at the end of a lossy WebP's data are right."""
    try:
        row = np.asarray(image.crop((0, image.height - 1, image.width, image.height)).convert("RGB"))
    except _BOMBS as err:
        raise refusal(name, _reason(err)) from None
    return int(np.ptp(row, axis=(0, 1)).max()) <= _EVEN


def _require_plain_tiff(image: TiffImagePlugin.TiffImageFile, name: str) -> None:
    tags = image.tag_v2
    # Each tile is decoded as a whole, however small the picture's part of it is.
    tile = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    require(tile[0] * tile[1] <= MAX_PIXELS, name, f"too large: found tiles of {tile[0]} x {tile[1]}")
    # Of planes apart and uncompressed, Pillow takes every byte for a sample, and 0 for black, without a word.
    apart = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    plain = bits == 8 and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) != 0
    found = f"found {bits} bits" if bits != 8 else "found 0 for white"
    require(
        not apart or plain, name, f"expected TIFF planes of 8 bits with 0 for black, {found}; save them interleaved"
    )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        # PNG and JPEG 2000 use all 16 bits; TIFF states how many it uses.
        tags = getattr(image, "tag_v2", {})
        samples = np.asarray(image)
        if (transparent := image.info.get("transparency")) is not None:
            samples = np.where(samples == transparent, 0, samples)
        grey = to_8_bits(samples, tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
        # With 8 bits Pillow inverts such pictures itself.
        white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")
    if image.mode in ("I", "F"):
        # Their value range is not stated, and guessing it would make a grade depend on the brightest pixel.
        raise refusal(name, "expected 8 or 16 unsigned bits per sample, found signed, 32-bit or floating-point ones")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The orientation in the image's EXIF block, the first of several; 1 if there is none or it is damaged."""
    exif = Image.Exif()  # not the image's getexif, which also takes an orientation from XMP, as no other decoder does
    try:
        exif.load(image.info["exif"])
        return int(exif.get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF beside intact pixels, in as many ways as there are cameras
        return 1


def _reason(err: Exception) -> str:
    if isinstance(err, _BOMBS):
        return HOSTS_LIMIT
    # The number of bytes left over, in brackets at the end, depends on the decoder's buffers: a summary should count
    # equal reasons together.
    text = re.sub(r" \([^()]*\)$", "", str(err).split("\n", 1)[0])
    return text[:120] if text else type(err).__name__

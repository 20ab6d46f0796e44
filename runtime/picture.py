"""The project's only image decoder, from a file or its bytes to pixels: training and scoring see the same picture."""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, Jpeg2KImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL import WebPImagePlugin as WebPPlugin
from PIL.ImageFile import ImageFile

from .contract import MIN_SIDE
from .errors import MissingExtraError, PictureError, RetinaError, require_extra
from .jpeg import endless_fault, is_unfinished, silent_fault

if TYPE_CHECKING:
    from pydicom.uid import UID

MAX_PIXELS = 100_000_000
"""Largest height x width, checked in the header: a few times that of the largest fundus camera, 300 MB when decoded."""
MAX_BYTES = 1 << 30
"""Largest file in bytes: some formats are read whole before their header can be trusted."""

_STRIP = 256
"""Rows copied from Pillow at a time."""

_log = logging.getLogger(__name__)

NO_MEMORY = "too large for the memory at hand"
_UNFINISHED = "cut short: the JPEG's data end before its last block"
_JPEG = b"\xff\xd8\xff"
# Formats are recognised by their first bytes instead of by Image.open, whose limit on pixels is a process-wide setting
# that only warns where this decoder must refuse, and which would run Ghostscript on an .eps file named .jpg.
_OPENERS: tuple[tuple[str, Callable[[bytes], bool], type[ImageFile]], ...] = (
    ("JPEG", lambda head: head.startswith(_JPEG), JpegImagePlugin.JpegImageFile),
    ("PNG", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    ("TIFF", lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ("WebP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPPlugin.WebPImageFile),
    (
        "JPEG 2000",
        lambda head: head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
        Jpeg2KImagePlugin.Jpeg2KImageFile,
    ),
    ("BMP", lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
)
_DICOM_MAGIC = slice(128, 132)
_DICOM_TAG = 12
"""Bytes before encapsulated pixel data: group, element, value representation, two reserved bytes, length."""

_ORIENTATION_TAG, _TILE_WIDTH, _TILE_LENGTH = 0x0112, 0x0142, 0x0143
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
            without pydicom installed.
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
        _require(stat.S_ISREG(status.st_mode), name, "expected a file, found something else")
        _require(status.st_size <= MAX_BYTES, name, f"expected at most {MAX_BYTES} bytes, found {status.st_size}")
        with open(name, "rb") as file:  # noqa: PTH123
            return _load_file(file, name, at_least)
    except FileNotFoundError:
        raise _refusal(name, "no such file") from None
    except (OSError, ValueError) as err:
        raise _refusal(name, f"cannot be read: {getattr(err, 'strerror', None) or err}") from None


def from_image(image: Image.Image, *, at_least: int | None = None) -> NDArray[np.uint8]:
    """Convert a Pillow image by the rules of ``decode``, with the same result and errors.

    The image is loaded but otherwise not modified.
    """
    return _array(_upright(image, "picture", at_least), "picture")


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
        raise _too_large(name, width, height) from None


def _upright(image: Image.Image, name: str, at_least: int | None) -> Image.Image:
    _require_size(name, *image.size)
    try:
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
        raise _too_large(name, *image.size) from None
    except Exception as err:  # noqa: BLE001 - Pillow's plugins raise anything on damaged files: KeyError, struct.error
        raise _refusal(name, _reason(err)) from None
    _require_size(name, *rgb.size)
    return rgb


def _load_file(file: BinaryIO, name: str, at_least: int | None) -> Image.Image:
    head = file.read(132)
    _require(bool(head), name, "empty file")
    if head.startswith(_JPEG) and (fault := silent_fault(file)):
        raise _refusal(name, fault)
    file.seek(0)
    if head[_DICOM_MAGIC] == b"DICM":
        return _upright(Image.fromarray(_dicom_pixels(file, name)), name, at_least)
    for label, is_format, opener in _OPENERS:
        if is_format(head):
            try:
                image = opener(file, name)
            except Exception as err:  # noqa: BLE001 - as above
                raise _refusal(name, f"damaged {label} file: {_reason(err)}") from None
            _require_size(name, *image.size)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                _require_plain_tiff(image, name)
            if at_least is not None:
                image.draft(image.mode, (at_least, at_least))
            rgb = _upright(image, name, at_least)
            if label == "JPEG" and _ends_grey(image):
                _require(not is_unfinished(file), name, _UNFINISHED)
            return rgb
    formats = ", ".join(label for label, _, _ in _OPENERS)
    raise _refusal(name, f"expected {formats} or DICOM, found a file that starts with {head[:8].hex(' ')}")


def _ends_grey(image: Image.Image) -> bool:
    """Whether the last pixel is as a decoder leaves it where data are missing: medium grey, in any colours."""
    pixel = image.getpixel((image.width - 1, image.height - 1))
    return all(value in (127, 128) for value in (pixel if isinstance(pixel, tuple) else (pixel,)))


def _require_plain_tiff(image: TiffImagePlugin.TiffImageFile, name: str) -> None:
    tags = image.tag_v2
    # Each tile is decoded as a whole, however small the picture's part of it is.
    tile = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    _require(tile[0] * tile[1] <= MAX_PIXELS, name, f"too large: found tiles of {tile[0]} x {tile[1]}")
    # Of planes apart and uncompressed, Pillow takes every byte for a sample, and 0 for black, without a word.
    apart = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    plain = bits == 8 and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) != 0
    found = f"found {bits} bits" if bits != 8 else "found 0 for white"
    _require(
        not apart or plain, name, f"expected TIFF planes of 8 bits with 0 for black, {found}; save them interleaved"
    )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        # PNG and JPEG 2000 use all 16 bits; TIFF states how many it uses.
        tags = getattr(image, "tag_v2", {})
        grey = _to_8_bits(np.asarray(image), tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
        # With 8 bits Pillow inverts such pictures itself.
        white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")
    if image.mode in ("I", "F"):
        # Their value range is not stated, and guessing it would make a grade depend on the brightest pixel.
        raise _refusal(name, "expected 8 or 16 unsigned bits per sample, found signed, 32-bit or floating-point ones")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF beside intact pixels, in as many ways as there are cameras
        return 1


def _to_8_bits(samples: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    top = (1 << bits) - 1
    scaled: NDArray[np.uint32] = (np.minimum(samples, top).astype(np.uint32) * 255 + top // 2) // top
    return scaled.astype(np.uint8)


def _dicom_pixels(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    """The first frame, (H, W) or (H, W, 3) uint8.

    Only the attributes that describe the pixels are read. An error is reported only by its type, because its text may
    quote the patient's data.
    """
    try:
        require_extra("dicom")
    except MissingExtraError as err:
        raise _refusal(name, str(err)) from None
    from pydicom import dcmread
    from pydicom.encaps import get_frame
    from pydicom.filereader import read_dataset
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    facts = ["Rows", "Columns", "PhotometricInterpretation", "NumberOfFrames"]
    facts += ["BitsStored", "HighBit", "PixelRepresentation"]
    offsets = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    try:
        file.seek(_DICOM_MAGIC.stop)
        meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 2)
        # A deflated data set is decompressed whole before its header can be read, to up to a thousand times its size.
        is_deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        _require(not is_deflated, name, "expected DICOM that is not deflated as a whole")
        file.seek(0)
        header = dcmread(file, stop_before_pixels=True, specific_tags=[*facts, *offsets])
        height, width, bits = int(header.Rows), int(header.Columns), int(header.BitsStored)
        bits_used = int(header.get("HighBit", bits - 1)) + 1
        colours = str(header.PhotometricInterpretation)
        frames = int(header.get("NumberOfFrames") or 1)
        signed = bool(header.get("PixelRepresentation", 0))
    except PictureError:
        raise
    except Exception as err:  # noqa: BLE001 - pydicom, too, raises anything on damaged files
        raise _refusal(name, f"damaged DICOM header or no picture in it ({type(err).__name__})") from None
    _require_size(name, width, height)
    known = colours in ("RGB", "MONOCHROME1", "MONOCHROME2", "YBR_RCT", "YBR_ICT") or colours.startswith("YBR_FULL")
    _require(known, name, f"expected RGB, YBR or MONOCHROME pixels in DICOM, found {colours[:16]!r}")
    found = f"{bits} {'signed' if signed else 'unsigned'}"
    _require(1 <= bits <= 16 and not signed, name, f"expected up to 16 unsigned bits in DICOM, found {found}")
    _require(bits_used == bits, name, f"expected DICOM samples in the lowest {bits} bits, found them up to {bits_used}")
    if frames > 1:
        _log.warning("%s: DICOM of %d frames, only the first is read", name, frames)
    try:
        if (syntax := meta.get("TransferSyntaxUID")) and syntax.is_encapsulated:
            file.seek(_DICOM_TAG, os.SEEK_CUR)
            extended = (header[offsets[0]].value, header[offsets[1]].value) if offsets[0] in header else None
            frame = get_frame(file, 0, extended_offsets=extended, number_of_frames=frames)
            _require_decoder(syntax, name)
            _require_frame(frame, (width, height), name)
        file.seek(0)
        pixels = pixel_array(file, index=0)
    except PictureError:
        raise
    except Exception as err:  # noqa: BLE001 - as above
        raise _refusal(name, f"damaged or unsupported DICOM pixels ({type(err).__name__})") from None
    _require(pixels.ndim == 2 or pixels.shape[2:] == (3,), name, f"expected one or three samples, found {pixels.shape}")
    scaled = _to_8_bits(pixels, bits) if bits != 8 else pixels.astype(np.uint8)
    return 255 - scaled if colours == "MONOCHROME1" else scaled


def _require_decoder(syntax: UID, name: str) -> None:
    """Refuse a compression of DICOM that pydicom knows, but which it leaves to a package that is not installed."""
    from pydicom.pixels.decoders.base import get_decoder

    with suppress(NotImplementedError):
        command = "pip install 'pylibjpeg[all]'"
        is_there = get_decoder(syntax).is_available
        _require(is_there, name, f"DICOM compressed as {syntax.name}: not installed. Run:  {command}")


def _require_frame(frame: bytes, size: tuple[int, int], name: str) -> None:
    """Refuse a compressed frame of DICOM that its decoder would misread without a word."""
    fault = (silent_fault if frame.startswith(_JPEG) else endless_fault)(io.BytesIO(frame))
    _require(not fault, name, fault)
    _require(not (frame.startswith(_JPEG) and is_unfinished(io.BytesIO(frame))), name, _UNFINISHED)
    for _, is_format, opener in _OPENERS:
        if is_format(frame[:132]):
            try:
                found = opener(io.BytesIO(frame)).size
            except Exception:  # noqa: BLE001 - as above; pydicom may have another decoder for it
                return
            stated = f"expected {size[0]} x {size[1]} as in the DICOM header"
            _require(found == size, name, f"{stated}, found {found[0]} x {found[1]} in its picture")


def _require_size(name: str, width: int, height: int) -> None:
    found = f"found {width} x {height}"
    _require(min(width, height) >= MIN_SIDE, name, f"too small: expected at least {MIN_SIDE} pixels a side, {found}")
    _require(width * height <= MAX_PIXELS, name, f"too large: expected at most {MAX_PIXELS} pixels, {found}")


def _require(holds: bool, name: str, reason: str) -> None:
    if not holds:
        raise _refusal(name, reason)


def _refusal(name: str, reason: str) -> PictureError:
    return PictureError(f"{name}: {reason}", reason)


def _too_large(name: str, width: int, height: int) -> PictureError:
    return _refusal(name, f"{NO_MEMORY}: {width} x {height}")


def _reason(err: Exception) -> str:
    text = str(err).split("\n", 1)[0][:120]
    # The number of bytes left over, in brackets, depends on the decoder's buffers: a summary should count equal reasons
    # together.
    return text.split(" (", 1)[0] if text else type(err).__name__

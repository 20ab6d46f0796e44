"""Reads the pixels of a DICOM file, and of its attributes only those that describe them.

Errors are reported only by their type, because their text may quote the patient's data.
"""

from __future__ import annotations

import io
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import MissingExtraError, PictureError
from .extras import require_extra
from .formats import HOSTS_LIMIT, JPEG, OPENERS, UNFINISHED, refusal, require, require_size, to_8_bits
from .jpeg import endless_fault, is_unfinished, silent_fault

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

_MAGIC = slice(128, 132)
_TAG = 12
"""Bytes before encapsulated pixel data: group, element, value representation, two reserved bytes, length."""
_FACTS = [
    "Rows", "Columns", "PhotometricInterpretation", "NumberOfFrames", "BitsStored", "HighBit", "PixelRepresentation",
]  # fmt: skip
_SHADES = [
    "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction",
]  # fmt: skip
"""What says which stored values of a monochrome picture are shown, and how bright."""
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")

_log = logging.getLogger(__name__)


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with the 132 bytes ``head`` is DICOM."""
    return head[_MAGIC] == b"DICM"


def dicom_pixels(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    """The first frame, (H, W) or (H, W, 3) uint8.

    Args:
        file: open for reading, at any position.
        name: for errors and for the warning that other frames are not read.

    Raises:
        PictureError: pydicom or a decoder that it needs is not installed; or the file is damaged, deflated as a whole,
            not of RGB, YBR or MONOCHROME pixels, not of up to 16 unsigned bits in the lowest bits of a sample, or has a
            window that cannot be applied.
    """
    try:
        require_extra("dicom")
    except MissingExtraError as err:
        raise refusal(name, str(err)) from None
    header = _read_header(file, name)
    _require_readable(header, name)
    if header.frames > 1:
        _log.warning("%s: DICOM of %d frames, only the first is read", name, header.frames)
    window = _window(header, name)
    pixels = _read_pixels(file, header, name)
    require(pixels.ndim == 2 or pixels.shape[2:] == (3,), name, f"expected one or three samples, found {pixels.shape}")
    if window is not None:
        scaled = window.take(pixels, mode="clip")
    else:
        scaled = to_8_bits(pixels, header.bits) if header.bits != 8 else pixels.astype(np.uint8)
    return 255 - scaled if header.colours == "MONOCHROME1" else scaled


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    bits: int
    highest_bit: int
    signed: bool
    colours: str
    """DICOM's photometric interpretation."""
    frames: int
    syntax: UID | None
    """How the pixels are compressed."""
    offsets: tuple[bytes, bytes] | None
    """Where each compressed frame starts, and its length, if the file says so in a table of its own."""
    pixels_at: int
    """Where the attribute with the pixels starts."""
    facts: Dataset
    """All attributes that were read."""


def _read_header(file: BinaryIO, name: str) -> _Header:
    from pydicom import dcmread
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    try:
        file.seek(_MAGIC.stop)
        meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 2)
        syntax = meta.get("TransferSyntaxUID")
        # A deflated data set is decompressed whole before its header can be read, to up to a thousand times its size.
        is_deflated = syntax == DeflatedExplicitVRLittleEndian
        require(not is_deflated, name, "expected DICOM that is not deflated as a whole")
        file.seek(0)
        found = dcmread(file, stop_before_pixels=True, specific_tags=[*_FACTS, *_SHADES, *_OFFSETS])
        bits = int(found.BitsStored)
        offsets = tuple(found[name].value for name in _OFFSETS if name in found)
        return _Header(
            width=int(found.Columns),
            height=int(found.Rows),
            bits=bits,
            highest_bit=int(found.get("HighBit", bits - 1)),
            signed=bool(found.get("PixelRepresentation", 0)),
            colours=str(found.PhotometricInterpretation),
            frames=int(found.get("NumberOfFrames") or 1),
            syntax=syntax,
            offsets=(offsets[0], offsets[1]) if len(offsets) == len(_OFFSETS) else None,
            pixels_at=file.tell(),
            facts=found,
        )
    except PictureError:
        raise
    except Exception as err:  # noqa: BLE001 - pydicom raises anything on damaged files, as Pillow's plugins do
        raise refusal(name, f"damaged DICOM header or no picture in it ({type(err).__name__})") from None


def _require_readable(header: _Header, name: str) -> None:
    require_size(name, header.width, header.height)
    colours, bits = header.colours, header.bits
    known = colours in ("RGB", "MONOCHROME1", "MONOCHROME2", "YBR_RCT", "YBR_ICT") or colours.startswith("YBR_FULL")
    require(known, name, f"expected RGB, YBR or MONOCHROME pixels in DICOM, found {colours[:16]!r}")
    found = f"{bits} {'signed' if header.signed else 'unsigned'}"
    require(1 <= bits <= 16 and not header.signed, name, f"expected up to 16 unsigned bits in DICOM, found {found}")
    bits_used = header.highest_bit + 1
    require(bits_used == bits, name, f"expected DICOM samples in the lowest {bits} bits, found them up to {bits_used}")


def _window(header: _Header, name: str) -> NDArray[np.uint8] | None:
    """What the file's first window makes of each stored value; None if it has none, or is in colour."""
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    facts = header.facts
    is_monochrome = header.colours.startswith("MONOCHROME")
    if not is_monochrome or None in (facts.get("WindowCenter"), facts.get("WindowWidth")):
        return None
    try:
        stored = apply_modality_lut(np.arange(1 << header.bits), facts)
        with np.errstate(all="ignore"):
            # What it makes of the infinite is its darkest and its brightest.
            shown = apply_windowing(np.append(stored, [-np.inf, np.inf]), facts)
            levels: NDArray[np.float64] = (shown[:-2] - shown[-2]) / (shown[-1] - shown[-2]) * 255
        if not np.isfinite(levels).all():
            raise ValueError
    except Exception as err:  # noqa: BLE001 - as above
        raise refusal(name, f"DICOM with a window that cannot be applied ({type(err).__name__})") from None
    return levels.round().astype(np.uint8)


def _read_pixels(file: BinaryIO, header: _Header, name: str) -> NDArray[Any]:
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import pixel_array

    try:
        if header.syntax and header.syntax.is_encapsulated:
            file.seek(header.pixels_at + _TAG)
            frame = get_frame(file, 0, extended_offsets=header.offsets, number_of_frames=header.frames)
            _require_decoder(header.syntax, name)
            _require_frame(frame, header, name)
        file.seek(0)
        return pixel_array(file, index=0)
    except PictureError:
        raise
    except Exception as err:  # noqa: BLE001 - as above
        is_hosts = "decompression bomb" in str(err)  # Pillow's words, which pydicom collects as text
        reason = HOSTS_LIMIT if is_hosts else f"damaged or unsupported DICOM pixels ({type(err).__name__})"
        raise refusal(name, reason) from None


def _require_decoder(syntax: UID, name: str) -> None:
    """Refuse a compression of DICOM that pydicom knows, but which it leaves to a package that is not installed."""
    from pydicom.pixels.decoders.base import get_decoder

    with suppress(NotImplementedError):
        command = "pip install 'pylibjpeg[all]'"
        is_there = get_decoder(syntax).is_available
        require(is_there, name, f"DICOM compressed as {syntax.name}: not installed. Run:  {command}")


def _require_frame(frame: bytes, header: _Header, name: str) -> None:
    """Refuse a compressed frame of DICOM that its decoder would misread without a word."""
    fault = (silent_fault if frame.startswith(JPEG) else endless_fault)(io.BytesIO(frame))
    require(not fault, name, fault)
    require(not (frame.startswith(JPEG) and is_unfinished(io.BytesIO(frame))), name, UNFINISHED)
    for _, is_format, opener in OPENERS:
        if is_format(frame[:132]):
            try:
                width, height = opener(io.BytesIO(frame)).size
            except Exception:  # noqa: BLE001 - as above; pydicom may have another decoder for it
                return
            stated = f"expected {header.width} x {header.height} as in the DICOM header"
            same = (width, height) == (header.width, header.height)
            require(same, name, f"{stated}, found {width} x {height} in its picture")

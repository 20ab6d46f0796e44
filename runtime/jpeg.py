"""Faults of a JPEG file that its decoder does not report.

An interrupted copy leaves zeros at its end, and disk recovery leaves zeros in place of each unreadable sector. libjpeg
decodes them as if they were data, or fills missing data with grey, and at most warns; Pillow does not pass warnings on.
In pictures of several passes (progressive, for example) only a missing end is found, because zeros may be valid data
anywhere in them, and data that end early make them blurred rather than grey. Zeros that may be valid data are not found
either where they lie between two restart markers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from PIL import JpegImagePlugin

_CHUNK = 1 << 20
"""Bytes read and searched at a time."""
_FILL = 4096
"""Bytes in which the end of fill bytes is looked for at a time."""
_NO_DATA = 64
"""Length of a run of zero bytes that is damage if the all-zeros Huffman code does not mean end of block: in an intact
picture each block in it would have 63 equal coefficients."""
_SECTOR = 448
"""Length of a run of zero bytes that is suspicious if zeros can be data (blocks of one colour): a sector of 512 bytes,
less a margin at its ends."""
_TAIL = 64
"""Bytes at the end of the data without which no intact picture is complete."""
_MOST_SCANS = 500
"""Intact pictures have about ten. A scan of only a hundred bytes still visits every block, which takes 30 ms for 100
megapixels."""

# Markers and symbols of ITU T.81: B.1.1.3, F.1.2.2.1.
_BASELINE, _PROGRESSIVE, _HUFFMAN_TABLES, _START_OF_SCAN = 0xC0, 0xC2, 0xC4, 0xDA
_END_OF_IMAGE, _RESTARTS = b"\xff\xd9", re.compile(rb"\xff([\xd0-\xd7])")
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
"""Start of a scan with the header length for its 1 to 4 components (B.2.3), or other bytes would be taken for scans."""
_AC_TABLE = 0x10
_END_OF_BLOCK = 0x00


def silent_fault(file: BinaryIO) -> str:
    """Why a JPEG should not be decoded although its decoder would not complain; empty if there is no reason.

    Args:
        file: the whole JPEG file, seekable; its position is changed.
    """
    if fault := endless_fault(file):
        return fault
    components = 0  # of a sequential picture
    shortest: dict[int, int] = {}  # Huffman table -> the symbol of its all-zeros code
    for kind, segment in _segments(file):
        try:
            if _BASELINE <= kind < _PROGRESSIVE:
                components = segment[5]
            elif kind == _HUFFMAN_TABLES:
                shortest |= _shortest(segment)
            elif kind == _START_OF_SCAN:
                luma = shortest.get(_AC_TABLE | segment[2] & 0x0F)
                one_pass = segment[0] == components
                return _scan_fault(file, one_pass=one_pass, may_be_zeros=not one_pass or luma == _END_OF_BLOCK)
        except IndexError:
            break
    return ""  # damaged in another way, which the decoder reports


def is_unfinished(file: BinaryIO) -> bool:
    """Whether the data of a sequential JPEG end before its last block, although an end of image follows them.

    The decoder fills what is missing with grey. Takes about as long as decoding at an eighth.

    Args:
        file: the whole JPEG file, seekable; its position is changed.
    """
    kinds = [kind for kind, _ in _segments(file)]
    if _START_OF_SCAN not in kinds or not any(_BASELINE <= kind < _PROGRESSIVE for kind in kinds):
        return False
    start = file.tell()
    data = file.read()
    file.seek(0)
    # Without an end of image the decoder asks for more data until it has the last block.
    return not _completes(file.read(start) + data[: data.find(_END_OF_IMAGE)] + bytes(_TAIL))


def endless_fault(file: BinaryIO) -> str:
    """Why a JPEG, or a file that contains one, may keep its decoder busy endlessly with scans; empty if it cannot.

    Scan headers are counted wherever their bytes occur, because a file can be crafted so that its decoder sees a
    structure different from the one parsed here.
    """
    file.seek(0)
    count, last = 0, b""
    while chunk := file.read(_CHUNK):
        count += len(_SCAN.findall(last + chunk))
        last = chunk[-4:]
    return f"expected at most {_MOST_SCANS} scans in a JPEG, found more" if count > _MOST_SCANS else ""


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The kind and content of each segment up to the first scan's header, after which its data begin."""
    file.seek(2)
    while file.read(1) == b"\xff":
        while chunk := file.read(_FILL):  # any number of fill bytes (T.81, B.1.1.2)
            if rest := chunk.lstrip(b"\xff"):
                file.seek(-len(rest), io.SEEK_CUR)
                break
        marker = file.read(3)
        # Each segment is read as a whole, because a thumbnail embedded in one has scans and an end of its own.
        segment = file.read(max(int.from_bytes(marker[1:]) - 2, 0))
        if len(marker) == 3:
            yield marker[0], segment
        if marker[:1] == bytes([_START_OF_SCAN]):
            return


def _shortest(segment: bytes) -> dict[int, int]:
    """The symbol of the all-zeros code of each table in a DHT segment, by the table's class and number.

    Each table is a byte of class and number, 16 counts of codes by length in bits, and the symbols (T.81, B.2.4.2).
    """
    symbols, at = {}, 0
    while at < len(segment):
        symbols[segment[at]] = segment[at + 17]
        at += 17 + sum(segment[at + 1 : at + 17])
    return symbols


def _scan_fault(file: BinaryIO, *, one_pass: bool, may_be_zeros: bool) -> str:
    start, last, found = file.tell(), b"", False
    zeros = bytes(_SECTOR if may_be_zeros else _NO_DATA)
    while chunk := file.read(_CHUNK):
        searched = last + chunk
        end = searched.find(_END_OF_IMAGE)
        found = found or searched.find(zeros, 0, None if end < 0 else end) >= 0
        if end >= 0:
            at = file.tell() - len(searched) + end
            damaged = found and (not may_be_zeros or (one_pass and _skips(file, start, at)) or _is_short(file, at))
            return "damaged: zeros where the JPEG's data should be" if damaged else ""
        last = searched[1 - len(zeros) :]
    return "cut short: no end of image after the JPEG's data"


def _skips(file: BinaryIO, start: int, end: int) -> bool:
    """Whether a scan lacks any of its restart markers, which are numbered cyclically from 0 to 7."""
    file.seek(start)
    return any(found[0] != 0xD0 + i % 8 for i, found in enumerate(_RESTARTS.findall(file.read(end - start))))


def _is_short(file: BinaryIO, end: int) -> bool:
    """Whether the picture is complete even without its last bytes.

    An all-zeros code is the shortest of a block, so zeroed bytes decode to more blocks than the bytes they replace, and
    data are left over after the last block.
    """
    file.seek(0)
    return _completes(file.read(end - _TAIL))


def _completes(data: bytes) -> bool:
    """Whether the decoder finds a whole picture in it; an end of image is not asked for."""
    try:
        picture = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        picture.draft(None, (1, 1))
        picture.load()
    except Exception:  # noqa: BLE001 - as in picture.py; a fault that the decoder reports is not ours to report
        return False
    return True

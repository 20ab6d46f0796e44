"""What is wrong with a JPEG that its decoder keeps to itself.

Zeros are what a copy leaves where it was broken off, and a rescue where a disk's sector could not be read. libjpeg
decodes them as if they were data, or fills what it misses with grey, and at most warns; Pillow hands no warning on. Of
pictures in several passes only a missing end is found: there zeros may be data anywhere. Nor are zeros that may be data
found where they lie between two restarts.
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO

from PIL import JpegImagePlugin

_CHUNK = 1 << 20
"""Bytes that are searched at a time."""
_NO_DATA = 64
"""Zeros in a row that no picture has whose code for zeros does not end a block: each block would be 63 equal waves."""
_SECTOR = 448
"""Zeros in a row where they are blocks of one colour: all but what may belong to the data around a sector of 512."""
_TAIL = 64
"""Bytes at the end of the data without which no sound picture is whole."""
_MOST_SCANS = 500
"""Sound pictures have about ten. A scan of a hundred bytes goes over all blocks, and takes 30 ms of 100 megapixels."""

# Markers and symbols of ITU T.81: B.1.1.3, F.1.2.2.1.
_BASELINE, _PROGRESSIVE, _HUFFMAN_TABLES, _START_OF_SCAN = 0xC0, 0xC2, 0xC4, 0xDA
_END_OF_IMAGE, _RESTARTS = b"\xff\xd9", re.compile(rb"\xff([\xd0-\xd7])")
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
"""Its length has to be that of its components, B.2.3: without which bytes of other kinds would be taken for scans."""
_AC_TABLE = 0x10
_END_OF_BLOCK = 0x00


def silent_fault(file: BinaryIO) -> str:
    """Why a JPEG should not be decoded although its decoder would not mind; empty where nothing speaks against it."""
    if fault := endless_fault(file):
        return fault
    file.seek(2)
    components = 0  # of a picture that comes in one pass
    shortest: dict[int, int] = {}  # of each Huffman table: the symbol that a code of zeros alone stands for
    while len(marker := file.read(4)) == 4 and marker[0] == 0xFF:
        kind = marker[1]
        # Over each segment at once: an embedded thumbnail has scans and an end of its own.
        segment = file.read(max(int.from_bytes(marker[2:]) - 2, 0))
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
    return ""  # damaged in another way, which the decoder tells


def endless_fault(file: BinaryIO) -> str:
    """Whether a JPEG, or what has one in it, may have so many scans that its decoder would not end; else empty.

    They are counted wherever their bytes occur, since a file may be made so that its decoder reads another structure
    than we do.
    """
    file.seek(0)
    count, last = 0, b""
    while chunk := file.read(_CHUNK):
        count += len(_SCAN.findall(last + chunk))
        last = chunk[-4:]
    return f"expected at most {_MOST_SCANS} scans in a JPEG, found more" if count > _MOST_SCANS else ""


def _shortest(segment: bytes) -> dict[int, int]:
    """Of the tables that one segment defines: class and number, how many codes of 1 to 16 bits, their symbols."""
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
    """Whether a scan's restarts, which are counted from 0 to 7 and again, are not all there."""
    file.seek(start)
    return any(found[0] != 0xD0 + i % 8 for i, found in enumerate(_RESTARTS.findall(file.read(end - start))))


def _is_short(file: BinaryIO, end: int) -> bool:
    """Whether data are left over when the last block is there, since zeros are the shortest code of a block."""
    file.seek(0)
    picture = JpegImagePlugin.JpegImageFile(io.BytesIO(file.read(end - _TAIL)))
    picture.draft(None, (1, 1))
    try:
        picture.load()
    except Exception:  # noqa: BLE001 - as in picture.py; a fault that the decoder tells is none that it keeps to itself
        return False
    return True

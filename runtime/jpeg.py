"""What is wrong with a JPEG that its decoder keeps to itself.

Zeros are what a copy leaves where it was broken off, and a rescue where a disk's sector could not be read. libjpeg
decodes them as if they were data, or fills what it misses with grey, and at most warns; Pillow hands no warning on.
"""

from __future__ import annotations

from typing import BinaryIO

_ZEROS = bytes(64)
"""Even of the flattest coded picture, this is two blocks or more."""
_CHUNK = 1 << 20
"""Bytes that are searched at a time."""

# Markers and symbols of ITU T.81: B.1.1.3, F.1.2.2.1.
_BASELINE, _PROGRESSIVE, _HUFFMAN_TABLES, _START_OF_SCAN = 0xC0, 0xC2, 0xC4, 0xDA
_END_OF_IMAGE = b"\xff\xd9"
_AC_TABLE = 0x10
_END_OF_BLOCK = 0x00


def silent_fault(file: BinaryIO) -> str:
    """Why a JPEG should not be decoded although its decoder would not mind; empty where nothing speaks against it."""
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
                # Where zeros end a block, many are blocks of one colour; else 63 equal waves, which nothing shows.
                return _scan_fault(file, zeros_are_data=segment[0] != components or luma == _END_OF_BLOCK)
        except IndexError:
            break
    return ""  # damaged in another way, which the decoder tells


def _shortest(segment: bytes) -> dict[int, int]:
    """Of the tables that one segment defines: class and number, how many codes of 1 to 16 bits, their symbols."""
    symbols, at = {}, 0
    while at < len(segment):
        symbols[segment[at]] = segment[at + 17]
        at += 17 + sum(segment[at + 1 : at + 17])
    return symbols


def _scan_fault(file: BinaryIO, *, zeros_are_data: bool) -> str:
    last, zeros = b"", False
    while chunk := file.read(_CHUNK):
        searched = last + chunk
        end = searched.find(_END_OF_IMAGE)
        zeros = zeros or (not zeros_are_data and searched.find(_ZEROS, 0, None if end < 0 else end) >= 0)
        if end >= 0:
            return "damaged: zeros where the JPEG's data should be" if zeros else ""
        last = searched[1 - len(_ZEROS) :]
    return "cut short: no end of image after the JPEG's data"

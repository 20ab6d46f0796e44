"""The decoder, compared with Pillow, numpy and files made by hand."""

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageFilter, ImageOps, PngImagePlugin
from retina.runtime.errors import PictureError
from retina.runtime.formats import MAX_BYTES
from retina.runtime.jpeg import endless_fault, is_unfinished
from retina.runtime.picture import _reason, decode, from_image


def photograph(width: int = 96, height: int = 64) -> Image.Image:
    noise = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


LOSSLESS: dict[str, tuple[str, dict[str, object]]] = {
    "png": ("PNG", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-big": ("TIFF", {"big_tiff": True}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {"lossless": True}),
    "jp2": ("JPEG2000", {}),
    "j2k": ("JPEG2000", {"no_jp2": True}),
}
LOSSY: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {}),
    "webp": ("WEBP", {"quality": 80}),
    "tiff-jpeg": ("TIFF", {"compression": "jpeg"}),
}


@pytest.mark.parametrize("format_", LOSSLESS)
def test_lossless_formats_come_back_exactly_from_bytes_and_from_a_path(tmp_path: Path, format_: str) -> None:
    name, options = LOSSLESS[format_]
    image = photograph()
    path = tmp_path / "wrong ending.dat"
    path.write_bytes(encoded(image, name, **options))
    for source in (path, str(path), path.read_bytes()):
        pixels = decode(source)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        np.testing.assert_array_equal(pixels, np.asarray(image))


@pytest.mark.parametrize("format_", LOSSY)
def test_lossy_formats_equal_pillow(format_: str) -> None:
    data = encoded(photograph(), LOSSY[format_][0], **LOSSY[format_][1])
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format_", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, format_: str, share: float) -> None:
    name, options = {**LOSSLESS, **LOSSY}[format_]
    data = encoded(photograph(200, 150), name, **options)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(PictureError, match=r"cut\.img: ") as caught:
        decode(path)
    assert "cut.img" not in caught.value.reason


@pytest.mark.parametrize("format_", ["png", "tiff", "bmp", "jp2"])
def test_no_file_is_read_while_pillow_is_told_to_fill_cut_ones(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As other code in the same process often tells it: half a file is then read without a word."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    name, options = LOSSLESS[format_]
    whole = encoded(photograph(200, 150), name, **options)
    for read in (decode, lambda data: from_image(Image.open(io.BytesIO(data)))):
        for data in (whole, whole[: len(whole) // 2]):
            with pytest.raises(PictureError, match=r"LOAD_TRUNCATED_IMAGES is set.* unset it"):
                read(data)
    assert from_image(photograph()).shape == (64, 96, 3)  # never was a file
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    np.testing.assert_array_equal(decode(whole), np.asarray(photograph(200, 150)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(format_: str, orientation: int) -> None:
    """The expected result follows the EXIF standard: where row 0 and column 0 of the stored picture belong."""
    upright = np.asarray(photograph(96, 64))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, dict[str, object]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    image = Image.fromarray(np.ascontiguousarray(stored))
    pixels = decode(encoded(image, format_, exif=exif, **options.get(format_, {})))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() <= (12 if format_ == "JPEG" else 0)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "LZW"])
def test_an_orientation_in_xmp_alone_is_not_applied(format_: str) -> None:
    """As other decoders ignore it; Pillow would apply it, and to TIFF without being asked."""
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    tiff: dict[str, object] = {"tiffinfo": {700: xmp}}
    exif = Image.Exif()
    exif[0x0132] = "2020:01:01"
    options: dict[str, dict[str, object]] = {
        "JPEG": {"xmp": xmp}, "PNG": {"pnginfo": text}, "WEBP": {"xmp": xmp}, "TIFF": tiff,
        "LZW": {**tiff, "compression": "tiff_lzw"},
    }  # fmt: skip
    name = "TIFF" if format_ == "LZW" else format_
    for more in ({}, {"exif": exif}) if name != "TIFF" else ({},):
        data = encoded(photograph(96, 64), name, **options[format_], **more)
        asked = Image.open(io.BytesIO(data))
        assert asked.getexif()[0x0112] == 6
        assert decode(data).shape == from_image(Image.open(io.BytesIO(data))).shape == (64, 96, 3)
        assert from_image(asked).shape == from_image(asked).shape == (64, 96, 3)


def test_a_tiff_of_the_caller_s_is_not_modified() -> None:
    opened = Image.open(io.BytesIO(encoded(photograph(96, 64), "TIFF")))
    assert from_image(opened).shape == (64, 96, 3)
    assert 0x0112 not in opened.getexif()


@pytest.mark.filterwarnings("ignore:Metadata Warning, tag 274 had too many entries")
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("kind", "count"), [(3, 1), (3, 2), (3, 3), (4, 1), (4, 2)])
@pytest.mark.parametrize("order", "<>")
def test_of_several_orientations_the_first_is_applied(format_: str, kind: int, count: int, order: str) -> None:
    values = struct.pack(order + f"{count}{'HI'[kind - 3]}", 6, *[1] * (count - 1))
    start = struct.pack(order + "2sHIHHHI", b"II" if order == "<" else b"MM", 42, 8, 1, 0x0112, kind, count)
    place = values.ljust(4, b"\0") if len(values) <= 4 else struct.pack(order + "I", 26)
    data = encoded(photograph(96, 64), format_, exif=b"Exif\0\0" + start + place + bytes(4) + values)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert decode(data).shape == (96, 64, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif",
    [
        b"MM\0*\0\0\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # an orientation in letters
        b"XX*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
        b"",
    ],
)
def test_damaged_exif_beside_sound_pixels_is_read(exif: bytes) -> None:
    assert decode(encoded(photograph(), "JPEG", exif=b"Exif\0\0" + exif)).shape == (64, 96, 3)


def test_orientations_of_a_png_that_are_none_are_ignored() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("exif", "II*")
    assert decode(encoded(photograph(), "PNG", pnginfo=text)).shape == (64, 96, 3)
    elsewhere = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x09\0\0\0\xff\xff\xff\xff"
    assert decode(encoded(photograph(), "PNG", exif=elsewhere)).shape == (64, 96, 3)


def test_an_exif_block_that_is_announced_twice_is_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    twice = b"Exif\0\0" + exif.tobytes()
    assert decode(encoded(photograph(96, 64), "JPEG", exif=twice)).shape == (96, 64, 3)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "JPEG2000"])
def test_sixteen_bit_gray_is_rounded_to_eight(format_: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    pixels = decode(encoded(Image.fromarray(values), format_))
    expected = np.round(values.astype(float) * 255 / 65535)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], expected)


def test_tiff_whose_zero_is_white() -> None:
    """It is inverted, as Pillow does with eight bits."""
    values = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 60
    deep = decode(_tiff(values.tobytes(), bits=16, samples=1, photometric=0))
    np.testing.assert_array_equal(deep[..., 0], 255 - np.round(values * (255 / 65535)))
    shallow = decode(_tiff((values >> 8).astype(np.uint8).tobytes(), bits=8, samples=1, photometric=0))
    np.testing.assert_array_equal(shallow[..., 0], 255 - (values >> 8))


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """Each scan visits all blocks, however few bytes it has: 64 MiB of them kept a core busy for hours."""
    data = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(data, "JPEG", progressive=True)
    start, *scans = data.getvalue().split(b"\xff\xda")
    decode(b"\xff\xda".join([start, *scans[:2], *scans[1:2] * 400, *scans[2:]]))
    with pytest.raises(PictureError, match="expected at most 500 scans"):
        decode(b"\xff\xda".join([start, *scans[:2], *scans[1:2] * 600, *scans[2:]]))


def test_scans_of_any_number_of_components_are_counted_wherever_they_lie() -> None:
    """Five hundred are the most, also where the pieces that are searched meet within the header of the first."""

    def faulty(count: int, length_and_components: bytes = b"\x08\x01", at: int = 0) -> bool:
        return bool(endless_fault(io.BytesIO(bytes(at) + (b"\xff\xda\0" + length_and_components) * count)))

    for header in (b"\x08\x01", b"\x0a\x02", b"\x0c\x03", b"\x0e\x04"):
        assert [faulty(count, header) for count in (500, 501)] == [False, True]
    assert not faulty(501, b"\x08\x02")
    for before in range(6):
        assert [faulty(count, at=(1 << 20) - before) for count in (500, 501)] == [False, True]


def test_what_follows_a_jpeg_is_not_taken_for_scans() -> None:
    """Such as a phone's video after its photograph, where scan markers occur by chance, 640 times in 40 MiB."""
    eye = encoded(photograph(), "JPEG")
    np.testing.assert_array_equal(decode(eye + np.random.default_rng(0).bytes(40 << 20)), decode(eye))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_jpeg_with_zeros_for_its_end_is_refused(progressive: bool, share: float) -> None:
    """As an interrupted copy into a preallocated file leaves it; Pillow shows grey there without a warning."""
    eye = photograph().resize((640, 480))
    thumbnail, data = io.BytesIO(), io.BytesIO()
    eye.resize((64, 48)).save(thumbnail, "JPEG")
    eye.save(data, "JPEG", quality=95, progressive=progressive, comment=thumbnail.getvalue())
    whole = data.getvalue()
    assert whole.count(b"\xff\xd9") == 2
    kept = round(share * len(whole))
    for broken in (whole[:kept] + bytes(len(whole) - kept), whole[:-2] + bytes(2)):
        with pytest.raises(PictureError, match="cut short: no end of image after the JPEG's data"):
            decode(broken)
    decode(whole)
    decode(whole + bytes(10_000))


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 90, "save_all": True}])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_webp_with_zeros_for_its_end_is_refused(options: dict[str, Any], share: float) -> None:
    eye = ImageOps.autocontrast(photograph(640, 480))
    more = {"append_images": [ImageOps.mirror(eye)]} if "save_all" in options else {}
    whole = encoded(eye, "WEBP", **options, **more)
    kept = round(share * len(whole) / (1 + len(more)))
    with pytest.raises(PictureError, match=r"damaged: zeros where the WebP's data should end|could not create decoder"):
        decode(whole[:kept] + bytes(len(whole) - kept))
    decode(whole)
    decode(whole + bytes(10_000))


@pytest.mark.parametrize(
    "options", [{"quality": 20}, {"lossless": True}, {"quality": 90, "exif": b"Exif" + bytes(500)}]
)
@pytest.mark.parametrize("colour", ["black", "white"])
def test_a_webp_of_one_colour_is_read(options: dict[str, Any], colour: str) -> None:
    picture = Image.new("RGB", (3000, 2000), colour)
    np.testing.assert_array_equal(decode(encoded(picture, "WEBP", **options)), np.asarray(picture))


@pytest.mark.parametrize("method", [0, 4, 6])
@pytest.mark.parametrize("options", [{"quality": 20}, {"quality": 80}, {"lossless": True, "quality": 0}])
def test_a_webp_that_is_black_below_is_read(options: dict[str, Any], method: int) -> None:
    """Black is coded as zeros."""
    picture = Image.new("RGB", (400, 600))
    picture.paste(photograph(400, 300))
    whole = encoded(picture, "WEBP", method=method, **options)
    np.testing.assert_array_equal(decode(whole), np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")))


JPEGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "optimised": {"optimize": True},
    "whole colours": {"subsampling": 0},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_whose_data_end_before_its_end_is_refused(options: dict[str, Any], mode: str) -> None:
    """As a program leaves it that mends a cut file by an end of image; Pillow shows grey there without a warning."""
    whole = encoded(photograph().resize((640, 480)).convert(mode), "JPEG", quality=95, **options)
    start = whole.rindex(b"\xff\xda")
    for share in (0.1, 0.5, 0.9):
        cut = whole[: start + int(share * (len(whole) - start))].rstrip(b"\xff") + b"\xff\xd9"
        Image.open(io.BytesIO(cut)).load()  # without a word
        for at_least in (None, 100):
            with pytest.raises(PictureError, match="cut short: the JPEG's data end before its last block"):
                decode(cut, at_least=at_least)
        if mode != "CMYK":
            with pytest.raises(PictureError, match="cut short: the JPEG's data end before its last block"):
                decode(_jpeg_dicom(cut, 640, 480))


@settings(max_examples=60)
@given(
    width=st.integers(32, 120),
    height=st.integers(32, 120),
    kind=st.sampled_from(["black", "grey", "noise", "photograph"]),
    options=st.sampled_from([*JPEGS.values(), {"progressive": True}]),
    quality=st.integers(10, 95),
)
def test_no_whole_jpeg_is_taken_for_a_cut_one(
    width: int, height: int, kind: str, options: dict[str, Any], quality: int
) -> None:
    eye = {
        "black": Image.new("RGB", (width, height)),
        "grey": Image.new("RGB", (width, height), (128, 128, 128)),
        "noise": Image.effect_noise((width, height), 80).convert("RGB"),
        "photograph": photograph().resize((width, height)),
    }[kind]
    whole = encoded(eye, "JPEG", quality=quality, **options)
    assert decode(whole).shape == (height, width, 3)
    assert not is_unfinished(io.BytesIO(whole))


def test_fill_bytes_before_a_marker_do_not_hide_damage() -> None:
    whole = encoded(photograph().resize((640, 480)), "JPEG", quality=95)
    middle = len(whole) // 2
    broken = whole[:2] + b"\xff\xff" + whole[2:middle] + bytes(4096) + whole[middle + 4096 :]
    Image.open(io.BytesIO(broken)).load()  # without a word
    with pytest.raises(PictureError, match="damaged: zeros where the JPEG's data should be"):
        decode(broken)
    filled = whole[:2] + b"\xff\xff" + whole[2:]
    np.testing.assert_array_equal(decode(filled), decode(whole))


def _written_by_others(jpeg: bytes, way: str) -> bytes:
    """The same picture from another encoder: the segments up to the scan's data, put together in another way."""
    segments: list[tuple[int, bytes]] = []
    at = 2
    while not segments or segments[-1][0] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        segments.append((jpeg[at + 1], jpeg[at + 4 : end]))
        at = end
    changed: list[tuple[int, bytes]] = []
    for kind, content in segments:
        if way == "tables numbered otherwise" and kind == 0xC4:
            changed.append((kind, bytes([content[0] ^ 1]) + content[1:]))
        elif way == "tables numbered otherwise" and kind == 0xDA:
            others = [byte ^ 0x11 if i in (2, 4, 6) else byte for i, byte in enumerate(content)]
            changed.append((kind, bytes(others)))
        elif way == "all tables in one segment" and kind == 0xC4 and changed[-1][0] == 0xC4:
            changed[-1] = kind, changed[-1][1] + content
        else:
            changed.append((0xC1 if way == "extended sequential" and kind == 0xC0 else kind, content))
    whole = [b"\xff%c%b%b" % (kind, (len(content) + 2).to_bytes(2), content) for kind, content in changed]
    return b"\xff\xd8" + b"".join(whole) + jpeg[at:]


@pytest.mark.parametrize("way", ["tables numbered otherwise", "all tables in one segment", "extended sequential"])
def test_damage_is_found_whichever_way_a_jpeg_is_written(way: str) -> None:
    """Cameras write all tables in one segment, which Pillow does not."""
    plain = encoded(photograph().resize((640, 480)), "JPEG", quality=95)
    whole = _written_by_others(plain, way)
    assert whole != plain
    np.testing.assert_array_equal(decode(whole), decode(plain))
    middle = len(whole) // 2
    with pytest.raises(PictureError, match="damaged: zeros where the JPEG's data should be"):
        decode(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(PictureError, match="cut short: the JPEG's data end before its last block"):
        decode(whole[:middle].rstrip(b"\xff") + b"\xff\xd9")


def test_a_whole_jpeg_after_a_cut_one_does_not_complete_it() -> None:
    """Phones append further pictures, such as a preview."""
    whole = encoded(photograph().resize((640, 480)), "JPEG", quality=95)
    cut = whole[: len(whole) // 2].rstrip(b"\xff") + b"\xff\xd9"
    np.testing.assert_array_equal(decode(whole + whole), decode(whole))
    with pytest.raises(PictureError, match="cut short: the JPEG's data end before its last block"):
        decode(cut + whole)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("size", [64, 4096])
def test_a_jpeg_with_zeros_in_its_middle_is_refused(gray: bool, size: int) -> None:
    """As disk recovery leaves unreadable sectors; the decoder takes the zeros for data."""
    eye = photograph().resize((640, 480)).convert("L" if gray else "RGB")
    whole = encoded(eye, "JPEG", quality=95)
    for at in (len(whole) // 2, len(whole) - 2 - size):
        broken = whole[:at] + bytes(size) + whole[at + size :]
        Image.open(io.BytesIO(broken)).load()  # without a word
        with pytest.raises(PictureError, match="damaged: zeros where the JPEG's data should be"):
            decode(broken)


def test_zeros_across_the_pieces_that_are_searched_are_found() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG", quality=95)
    scan = whole.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(whole[scan + 2 : scan + 4]) + (1 << 20)
    for at in (first - 63, first - 1, first - 32):
        with pytest.raises(PictureError, match="damaged: zeros"):
            decode(whole[:at] + bytes(64) + whole[at + 64 :])
    assert decode(whole[:at] + bytes(32) + whole[at + 32 :]).shape == noise.shape


@pytest.mark.parametrize(("options", "size"), [({}, 512), ({"restart_marker_rows": 1}, 8192)], ids=str)
def test_a_sector_of_zeros_is_refused_where_zeros_may_be_black(options: dict[str, int], size: int) -> None:
    square = Image.new("RGB", (1280, 960))
    square.paste(photograph().resize((640, 480)), (320, 240))
    whole = encoded(square, "JPEG", quality=95, optimize=True, **options)
    assert bytes(64) in whole
    decode(whole)
    for at in range(len(whole) // 4, len(whole) * 3 // 4, 2048):
        broken = whole[:at] + bytes(size) + whole[at + size :]
        Image.open(io.BytesIO(broken)).load()  # without a word
        with pytest.raises(PictureError, match="damaged: zeros where the JPEG's data should be"):
            decode(broken)


@pytest.mark.parametrize(
    "options",
    [
        {"optimize": True},
        {"optimize": True, "restart_marker_rows": 90},
        {"progressive": True, "restart_marker_rows": 90},
    ],
    ids=str,
)
def test_zeros_that_mean_one_colour_are_read(options: dict[str, bool]) -> None:
    """Black, as around the field, is coded as zeros with tables optimised for the picture, or in many passes."""
    square = Image.new("RGB", (4000, 3000))
    square.paste(photograph().resize((96, 96)), (0, 0))
    data = encoded(square, "JPEG", quality=90, **options)
    assert np.abs(decode(data)[100:].astype(int)).max() <= 2
    assert bytes(448) in data


def test_restart_markers_begin_again_after_the_eighth() -> None:
    square = Image.new("RGB", (1600, 1600))
    square.paste(photograph().resize((96, 96)), (0, 0))
    data = encoded(square, "JPEG", quality=90, optimize=True, restart_marker_rows=10)
    assert bytes(448) in data and data.count(b"\xff\xd0") == 2
    assert decode(data).shape == (1600, 1600, 3)


def test_zeros_that_mean_one_colour_are_read_before_data_of_more_than_a_piece() -> None:
    """The end of a picture of many passes is looked for in pieces of a megabyte."""
    square = Image.new("RGB", (1800, 1800))
    square.paste(Image.fromarray(np.random.default_rng(3).integers(0, 256, (760, 760, 3), dtype=np.uint8)))
    data = encoded(square, "JPEG", quality=97, subsampling=0, progressive=True)
    assert bytes(448) in data and len(data) > 1 << 20
    assert decode(data).shape == (1800, 1800, 3)


def test_big_endian_and_twelve_bit_tiff() -> None:
    values = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 4
    big = _tiff(values.astype(">u2").tobytes(), bits=16, samples=1, order=">")
    np.testing.assert_array_equal(decode(big)[..., 0], np.round(values * (255 / 65535)))
    packed = np.zeros((32, 32 * 3 // 2), np.uint8)
    packed[:, 0::3] = values[:, 0::2] >> 4
    packed[:, 1::3] = (values[:, 0::2] & 15) << 4 | values[:, 1::2] >> 8
    packed[:, 2::3] = values[:, 1::2] & 255
    np.testing.assert_array_equal(
        decode(_tiff(packed.tobytes(), bits=12, samples=1))[..., 0], np.round(values * (255 / 4095))
    )


def test_sixteen_bit_colour() -> None:
    values = np.random.default_rng(1).integers(0, 65536, (40, 48, 3), dtype=np.uint16)
    pixels = decode(_tiff(values.astype("<u2").tobytes(), bits=16, samples=3, width=48, height=40))
    np.testing.assert_array_equal(pixels, values >> 8)  # Pillow's way, less than a level from rounding


def _tiff(
    data: bytes,
    *,
    bits: int,
    samples: int,
    width: int = 32,
    height: int = 32,
    order: str = "<",
    photometric: int = 1,
    tile: int = 0,
    planes: bool = False,
) -> bytes:
    """A plain TIFF made by hand, with features that Pillow cannot write."""
    strips = samples if planes else 1
    bits_at = 8 + 2 + (11 if tile else 10) * 12 + 4
    offsets_at = bits_at + 2 * samples
    lengths_at = offsets_at + 4 * strips
    data_at = lengths_at + 4 * strips
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, bits if samples == 1 else bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if samples == 3 else photometric),
        (273, 4, strips, data_at if strips == 1 else offsets_at),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, strips, len(data) if strips == 1 else lengths_at),
        (284, 3, 1, 2 if planes else 1),
    ]
    if tile:
        strips_as_tiles = {273: 324, 279: 325}
        tags = [(strips_as_tiles.get(tag, tag), kind, n, value) for tag, kind, n, value in tags if tag != 278]
        tags += [(322, 4, 1, tile), (323, 4, 1, tile)]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    for tag, kind, count, value in tags:
        packed = struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value)
        out += struct.pack(order + "HHI", tag, kind, count) + packed
    length = len(data) // strips
    offsets = [data_at + length * strip for strip in range(strips)]
    placed = struct.pack(f"{order}{strips}I", *offsets) + struct.pack(order + "I", length) * strips
    return out + struct.pack(order + "I", 0) + struct.pack(order + "H", bits) * samples + placed + data


def test_planes_apart_are_read_or_refused() -> None:
    """Of uncompressed ones Pillow reads each byte of 16 bits as a sample, and does not invert what is 0 for white."""
    values = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    apart = np.ascontiguousarray(values.transpose(2, 0, 1))
    np.testing.assert_array_equal(decode(_tiff(apart.tobytes(), bits=8, samples=3, planes=True)), values)
    np.testing.assert_array_equal(
        decode(_tiff(apart[0].tobytes(), bits=8, samples=1, planes=True))[..., 0], values[..., 0]
    )
    for order in "<>":
        deep = _tiff(apart.astype(f"{order}u2").tobytes(), bits=16, samples=3, planes=True, order=order)
        with pytest.raises(PictureError, match="expected TIFF planes of 8 bits with 0 for black, found 16 bits"):
            decode(deep)
    inverted = _tiff(apart[0].tobytes(), bits=8, samples=1, planes=True, photometric=0)
    with pytest.raises(PictureError, match="expected TIFF planes of 8 bits with 0 for black, found 0 for white"):
        decode(inverted)


def test_a_tile_beyond_the_limit_is_refused_before_it_is_decoded() -> None:
    values = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    np.testing.assert_array_equal(decode(_tiff(values.tobytes(), bits=8, samples=1, tile=32))[..., 0], values)
    with pytest.raises(PictureError, match="too large: found tiles of 26700 x 26700"):
        decode(_tiff(values.tobytes(), bits=8, samples=1, tile=26700))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = photograph().convert(mode)
    format_ = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    np.testing.assert_array_equal(decode(encoded(image, format_)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    solid = Image.new("RGB", (64, 64), (200, 40, 20))
    pixels = decode(encoded(solid.convert("CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(pixels, np.broadcast_to([200, 40, 20], (64, 64, 3)), atol=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_become_black(mode: str) -> None:
    alpha = np.zeros((64, 96), np.uint8)
    alpha[:, 32:64], alpha[:, 64:] = 128, 255
    image = photograph().convert("L" if mode == "LA" else "RGB")
    image.putalpha(Image.fromarray(alpha))
    data = encoded(image if mode != "PA" else image.quantize(64), "PNG")
    opaque = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), dtype=float)
    expected = opaque[..., :3] * opaque[..., 3:] / 255
    pixels = decode(data)
    assert not pixels[:, :32].any()
    np.testing.assert_allclose(pixels, expected, atol=1.0)


def test_a_transparent_sixteen_bit_grey_becomes_black() -> None:
    grey = np.full((64, 96), 40_000, np.uint16)
    grey[:, 48:] = 65_535
    pixels = decode(encoded(Image.fromarray(grey), "PNG", transparency=65_535))
    assert pixels[:, :48].min() == pixels[:, :48].max() == round(40_000 / 257)
    assert not pixels[:, 48:].any()


@pytest.mark.parametrize("format_", ["TIFF", "PNG", "WEBP"])
def test_the_first_frame_is_taken(format_: str) -> None:
    first, second = photograph(), Image.new("RGB", (96, 64))
    data = encoded(first, format_, save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(decode(data), np.asarray(first))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello, this is a text file that somebody called .jpg", "found a file that starts with 68 65 6c 6c"),
        (b"GIF89a" + bytes(200), "expected JPEG, PNG, TIFF"),
        (b"\xff\xd8\xff", "damaged JPEG file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged PNG file"),
    ],
)
def test_what_is_not_a_picture_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=r"x\.jpg: .*" + reason):
        decode(path)


def test_missing_folder_pipe_and_nul_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (("none.jpg", "no such file"), (".", "expected a file"), ("pipe.jpg", "expected a file")):
        with pytest.raises(PictureError, match=reason):
            decode(tmp_path / name)
    with pytest.raises(PictureError, match="null"):
        decode("a\0b.jpg")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        file.truncate(MAX_BYTES + 1)  # a sparse file
    with pytest.raises(PictureError, match=f"at most {MAX_BYTES} bytes"):
        decode(path)


def test_a_file_and_a_picture_of_exactly_the_limits_are_not_too_large(tmp_path: Path) -> None:
    import zlib

    path = tmp_path / "large.dat"
    with path.open("wb") as file:
        file.write(b"hello")
        file.truncate(MAX_BYTES)  # a sparse file
    with pytest.raises(PictureError, match="found a file that starts with 68 65 6c 6c"):
        decode(path)
    header = bytearray(encoded(Image.new("L", (40, 40)), "PNG"))
    header[16:24] = (20000).to_bytes(4, "big") + (5000).to_bytes(4, "big")
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(PictureError, match="truncated"):
        decode(bytes(header))


@pytest.mark.parametrize("size", [(31, 100), (100, 31), (1, 1)])
def test_too_small_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(PictureError, match=f"too small: .* found {size[0]} x {size[1]}"):
        decode(encoded(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("format_", ["PNG", "BMP"])
def test_too_many_pixels_are_refused_from_the_header(format_: str) -> None:
    data = bytearray(encoded(Image.new("RGB", (40, 40)), format_))
    if format_ == "PNG":
        import zlib

        data[16:24] = (20000).to_bytes(4, "big") + (5001).to_bytes(4, "big")
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    else:
        data[18:26] = (20000).to_bytes(4, "little") + (5001).to_bytes(4, "little")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError, match=r"too large: .* found 20000 x 5001"):
            decode(bytes(data))


def test_just_below_the_limit_is_read_without_a_warning() -> None:
    """Pillow itself would warn above 89 megapixels."""
    pixels = decode(encoded(Image.new("L", (10000, 9500), 9), "PNG"))
    assert pixels.shape == (9500, 10000, 3)
    assert pixels[-1, -1].tolist() == [9, 9, 9]


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("limit", [60, 40_000, 59_999])
@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "TIFF", "LZW", "DICOM"])
def test_a_limit_of_the_program_s_own_on_pillow_is_named_where_it_is_in_the_way(
    format_: str, limit: int, action: Literal["error", "ignore"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit that is documented is ours alone."""
    eye = photograph(200, 300)
    options = {"compression": "tiff_lzw"} if format_ == "LZW" else {}
    name = {"LZW": "TIFF", "DICOM": "JPEG"}.get(format_, format_)
    whole = encoded(eye, name, **options)
    opened = Image.open(io.BytesIO(whole))
    data = _jpeg_dicom(whole, *eye.size) if format_ == "DICOM" else whole
    expected = decode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        for read in (partial(decode, data), partial(from_image, opened)):
            try:
                np.testing.assert_array_equal(read(), expected)
            except PictureError as err:
                assert "refused by this program's own limit on Pillow's pictures" in err.reason
                assert action == "error" or limit == 60
            else:
                assert limit > 60


def test_of_a_reason_only_the_bytes_left_over_are_cut() -> None:
    assert _reason(OSError("image file is truncated (3 bytes not processed)")) == "image file is truncated"
    assert _reason(OSError("tag (1) is wrong")) == "tag (1) is wrong"
    assert _reason(KeyError()) == "KeyError"


def test_float_and_32_bit_samples_are_refused() -> None:
    for mode in ("I", "F"):
        with pytest.raises(PictureError, match="expected 8 or 16 unsigned bits"):
            decode(encoded(Image.new(mode, (40, 40)), "TIFF"))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "JPEG2000"])
@pytest.mark.parametrize(
    ("at_least", "shape"), [(400, (600, 900)), (300, (300, 450)), (100, (100, 150)), (601, (600, 900))]
)
def test_at_least_scales_by_a_whole_factor_and_never_below(format_: str, at_least: int, shape: tuple[int, int]) -> None:
    image = photograph(900, 600).filter(ImageFilter.GaussianBlur(12))
    pixels = decode(encoded(image, format_), at_least=at_least)
    if format_ == "JPEG" and at_least == 100:
        shape = (150, 225)  # JPEG can only scale by 1, 2, 4 and 8
    assert pixels.shape[:2] == shape
    small = np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BOX), dtype=int)
    assert np.abs(pixels - small).mean() < 2


def test_at_least_never_gives_less_whatever_the_size() -> None:
    rng = np.random.default_rng(3)
    for width, height, at_least in rng.integers(33, 400, (60, 3)):
        for format_ in ("JPEG", "BMP"):
            pixels = decode(encoded(Image.new("RGB", (width, height)), format_), at_least=int(at_least))
            assert min(pixels.shape[:2]) >= min(at_least, width, height)


def test_an_orientation_survives_scaling() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(photograph(900, 600), "JPEG", exif=exif), at_least=300).shape == (450, 300, 3)


def test_a_pillow_image_is_converted_by_the_same_rules() -> None:
    image = photograph()
    np.testing.assert_array_equal(from_image(image), np.asarray(image))
    with pytest.raises(PictureError, match="too small"):
        from_image(Image.new("RGB", (8, 8)))


def test_a_pillow_image_of_a_damaged_file_is_refused_like_the_file() -> None:
    eye = ImageOps.autocontrast(photograph(640, 480))
    jpeg, webp = encoded(eye, "JPEG", quality=95), encoded(eye, "WEBP", quality=95)
    half = len(jpeg) // 2
    damaged = [
        jpeg[:half] + b"\xff\xd9",
        jpeg[:half] + bytes(2000) + jpeg[half + 2000 :],
        webp[:half] + bytes(len(webp) - half),
        _tiff(bytes(32 * 32 * 6), bits=16, samples=3, planes=True),
    ]
    for file in damaged:
        reasons = []
        for read in (decode, lambda data: from_image(Image.open(io.BytesIO(data)))):
            with pytest.raises(PictureError) as refused:
                read(file)
            reasons.append(refused.value.reason)
        assert reasons[0] == reasons[1]
    opened = Image.open(io.BytesIO(jpeg))
    np.testing.assert_array_equal(from_image(opened), decode(jpeg))
    np.testing.assert_array_equal(from_image(opened), decode(jpeg))  # loaded, and without its file


def test_a_pillow_image_whose_file_can_no_longer_be_read_is_refused() -> None:
    class Failing(io.BytesIO):
        fails = False

        def read(self, *size: int | None) -> bytes:
            if self.fails:
                raise OSError(5, "I/O error")
            return super().read(*size)

    file = Failing(encoded(photograph(), "JPEG"))
    image = Image.open(file)
    file.fails = True
    with pytest.raises(PictureError, match=r"picture: .*I/O error"):
        from_image(image)


def test_a_later_frame_is_not_judged_by_the_first() -> None:
    second = ImageOps.mirror(photograph())
    image = Image.open(io.BytesIO(encoded(photograph(), "WEBP", save_all=True, append_images=[second], lossless=True)))
    image.seek(1)
    np.testing.assert_array_equal(from_image(image), np.asarray(second))


def test_threads_do_not_disturb_each_other() -> None:
    files = [
        encoded(photograph(200 + i, 150), format_) for i in range(4) for format_ in ("JPEG", "PNG", "WEBP", "TIFF")
    ]
    expected = [decode(data) for data in files]
    failures: list[int] = []

    def work() -> None:
        for i, data in enumerate(files):
            if not np.array_equal(decode(data), expected[i]):
                failures.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _dicom(
    pixels: NDArray[np.generic],
    photometric: str,
    bits: int,
    frames: int = 1,
    signed: int = 0,
    syntax: str = "1.2.840.10008.1.2.1",
    high: int | None = None,
) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, OphthalmicPhotography8BitImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = OphthalmicPhotography8BitImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName = "Secret^Person"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = pixels.dtype.itemsize * 8
    data.BitsStored, data.PixelRepresentation = bits, signed
    data.HighBit = bits - 1 if high is None else high
    data.NumberOfFrames = frames
    data.PixelData = pixels.tobytes() * frames
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom_that_is_deflated_as_a_whole_is_refused() -> None:
    """A few kilobytes may contain gigabytes, which are decompressed before their header can be read."""
    deflated = _dicom(np.zeros((640, 640), np.uint8), "MONOCHROME2", 8, syntax="1.2.840.10008.1.2.1.99")
    assert len(deflated) < 4000
    with pytest.raises(PictureError, match="expected DICOM that is not deflated as a whole"):
        decode(deflated)


def test_dicom_of_endless_scans_is_refused() -> None:
    import pydicom
    from pydicom.encaps import encapsulate

    eye = encoded(Image.effect_noise((64, 64), 80), "JPEG", progressive=True)
    start, first, second, *rest = eye.split(b"\xff\xda")

    def dicom(*frames: bytes) -> bytes:
        data = pydicom.dcmread(io.BytesIO(_dicom(np.zeros((64, 64), np.uint8), "MONOCHROME2", 8)))
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        data.PixelData = encapsulate(list(frames))
        data.NumberOfFrames = len(frames)
        buffer = io.BytesIO()
        data.save_as(buffer)
        return buffer.getvalue()

    decode(dicom(b"\xff\xda".join([start, first, *[second] * 400, *rest])))
    endless = b"\xff\xda".join([start, first, *[second] * 600, *rest])
    with pytest.raises(PictureError, match="expected at most 500 scans"):
        decode(dicom(endless))
    # Only the first of many frames is decoded.
    np.testing.assert_array_equal(decode(dicom(eye, *[endless] * 2)), decode(dicom(eye)))
    np.testing.assert_array_equal(decode(dicom(*[eye] * 600)), decode(dicom(eye)))


def _jpeg_dicom(eye: bytes, width: int, height: int) -> bytes:
    import pydicom
    from pydicom.encaps import encapsulate

    data = pydicom.dcmread(io.BytesIO(_dicom(np.zeros((height, width, 3), np.uint8), "YBR_FULL_422", 8)))
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    data.PixelData = encapsulate([eye])
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


def test_dicom_of_a_compression_that_needs_another_package_names_it() -> None:
    import pydicom

    data = pydicom.dcmread(io.BytesIO(_jpeg_dicom(encoded(photograph(), "JPEG"), *photograph().size)))
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    buffer = io.BytesIO()
    data.save_as(buffer)
    told = r"compressed as JPEG-LS Lossless Image Compression: not installed. Run:  pip install 'pylibjpeg\[all\]'"
    with pytest.raises(PictureError, match=told):
        decode(buffer.getvalue())


def test_dicom_with_a_damaged_jpeg_is_refused_like_the_jpeg() -> None:
    eye = encoded(Image.effect_noise((160, 128), 80).convert("RGB"), "JPEG", quality=95)
    middle = len(eye) // 2
    damaged = eye[:middle] + bytes(512) + eye[middle + 512 :]
    for data in (damaged, _jpeg_dicom(damaged, 160, 128)):
        with pytest.raises(PictureError, match="zeros where the JPEG's data should be"):
            decode(data)
    np.testing.assert_array_equal(decode(_jpeg_dicom(eye, 160, 128)), decode(eye))


def test_dicom_whose_header_contradicts_its_pixels_is_refused() -> None:
    eye = encoded(photograph().resize((160, 128)), "JPEG")
    with pytest.raises(PictureError, match="expected 128 x 160 as in the DICOM header, found 160 x 128"):
        decode(_jpeg_dicom(eye, 128, 160))
    # The 12 bits at the top of 16, as in some old files, and not at the bottom as in those of today.
    old = _dicom(np.full((64, 64), 0x1230, np.uint16), "MONOCHROME2", 12, high=15)
    with pytest.raises(PictureError, match="expected DICOM samples in the lowest 12 bits, found them up to 16"):
        decode(old)


def test_dicom_colours_and_bits(caplog: pytest.LogCaptureFixture) -> None:
    rgb = np.asarray(photograph())
    np.testing.assert_array_equal(decode(_dicom(rgb, "RGB", 8)), rgb)
    ybr = np.asarray(photograph().convert("YCbCr"))
    np.testing.assert_allclose(decode(_dicom(ybr, "YBR_FULL", 8)), rgb, atol=3)
    gray = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    np.testing.assert_array_equal(decode(_dicom(gray, "MONOCHROME2", 12))[..., 1], np.round(gray * (255 / 4095)))
    np.testing.assert_array_equal(decode(_dicom(gray, "MONOCHROME1", 12))[..., 1], 255 - np.round(gray * (255 / 4095)))
    assert not caplog.records
    np.testing.assert_array_equal(decode(_dicom(rgb, "RGB", 8, frames=3)), rgb)
    assert "3 frames, only the first is read" in caplog.text
    assert "Secret" not in caplog.text


@pytest.mark.parametrize(("bits", "stored"), [(4, np.uint8), (16, np.uint16)])
def test_dicom_of_few_bits_and_of_all_is_scaled(bits: int, stored: type[np.generic]) -> None:
    gray = np.linspace(0, 2**bits - 1, 40 * 48).round().reshape(40, 48)
    expected = np.round(gray * (255 / (2**bits - 1)))
    np.testing.assert_array_equal(decode(_dicom(gray.astype(stored), "MONOCHROME2", bits))[..., 0], expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("window", "rescale"),
    [
        ((2048, 4096), None),  # a picture of 12 bits
        ((40_000, 1000), None),
        ((1, 1), None),
        ((1000, 700), (2, -1000)),
        ((-1000, 700), (-0.5, 10)),
    ],
)
def test_a_dicom_window_is_applied_by_the_standard_s_formula(
    photometric: str, window: tuple[int, int], rescale: tuple[float, float] | None
) -> None:
    """PS3.3 C.11.2.1.2.1, for the output range from 0 to 255."""
    stored = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    stored[:8, :8] = np.arange(64).reshape(8, 8)
    slope, intercept = rescale or (1, 0)

    def add_window(data: Any) -> None:
        data.WindowCenter, data.WindowWidth = window
        if rescale:
            data.RescaleSlope, data.RescaleIntercept = rescale

    (c, w), x = window, stored * float(slope) + intercept
    inside = ((x - (c - 0.5)) / max(w - 1, 0.5) + 0.5) * 255
    y = np.where(x <= c - 0.5 - (w - 1) / 2, 0, np.where(x > c - 0.5 + (w - 1) / 2, 255, inside))
    expected = np.round(y if photometric == "MONOCHROME2" else 255 - np.round(y))
    found = decode(_changed_dicom(add_window, stored, photometric, bits=16))
    np.testing.assert_array_equal(found[..., 1], expected)


def test_of_several_dicom_windows_the_first_is_applied_by_the_function_that_is_stated() -> None:
    """PS3.3 C.11.2.1.3."""
    stored = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    shown = {
        "LINEAR_EXACT": np.clip((stored - 1000.0) / 500 + 0.5, 0, 1) * 255,
        "SIGMOID": 255 / (1 + np.exp(-4 * (stored - 1000.0) / 500)),
    }
    for function, expected in shown.items():

        def add_windows(data: Any, function: str = function) -> None:
            data.WindowCenter, data.WindowWidth, data.VOILUTFunction = [1000, 1], [500, 1], function

        found = decode(_changed_dicom(add_windows, stored, "MONOCHROME2", bits=12))
        np.testing.assert_array_equal(found[..., 1], np.round(expected))


def test_a_dicom_window_is_not_for_colour_and_may_be_empty() -> None:
    rgb = np.asarray(photograph())

    def add_window(data: Any) -> None:
        data.WindowCenter, data.WindowWidth = 10, 20

    np.testing.assert_array_equal(decode(_changed_dicom(add_window, rgb, "RGB")), rgb)

    def add_empty(data: Any) -> None:
        data.WindowCenter = data.WindowWidth = None

    grey = np.ascontiguousarray(rgb[..., 1])
    np.testing.assert_array_equal(decode(_changed_dicom(add_empty, grey, "MONOCHROME2"))[..., 1], grey)


@pytest.mark.parametrize(
    "changes",
    [
        {"WindowWidth": 0},
        {"VOILUTFunction": "CUBIC"},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
    ],
    ids=str,
)
def test_a_dicom_window_that_cannot_be_applied_is_refused(changes: dict[str, Any]) -> None:
    def add_window(data: Any) -> None:
        for name, value in {"WindowCenter": 10, "WindowWidth": 20, **changes}.items():
            setattr(data, name, value)

    grey = np.ascontiguousarray(np.asarray(photograph())[..., 1])
    with pytest.raises(PictureError, match="DICOM with a window that cannot be applied"):
        decode(_changed_dicom(add_window, grey, "MONOCHROME2"))


def _changed_dicom(
    change: Callable[[Any], None], pixels: NDArray[np.generic], photometric: str, bits: int = 8
) -> bytes:
    import pydicom

    data = pydicom.dcmread(io.BytesIO(_dicom(pixels, photometric, bits)))
    change(data)
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


def test_dicom_that_leaves_out_what_goes_without_saying_is_read() -> None:
    gray = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48).astype(np.uint8)

    def without_high_bit(data: Any) -> None:
        del data.HighBit

    def without_number(data: Any) -> None:
        data.NumberOfFrames = None

    np.testing.assert_array_equal(decode(_changed_dicom(without_high_bit, gray, "MONOCHROME2"))[..., 0], gray)
    with pytest.warns(UserWarning, match="Number of Frames"):
        pixels = decode(_changed_dicom(without_number, gray, "MONOCHROME2"))
    np.testing.assert_array_equal(pixels[..., 0], gray)


@pytest.mark.parametrize("lossy", [False, True])
def test_dicom_of_jpeg_2000_has_its_colours(lossy: bool) -> None:
    import pydicom
    from pydicom.encaps import encapsulate

    eye = encoded(photograph(), "JPEG2000", no_jp2=True, irreversible=lossy, mct=1)

    def compress(data: Any) -> None:
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000 if lossy else pydicom.uid.JPEG2000Lossless
        data.PixelData = encapsulate([eye])

    dicom = _changed_dicom(compress, np.asarray(photograph()), "YBR_ICT" if lossy else "YBR_RCT")
    np.testing.assert_array_equal(decode(dicom), decode(eye))
    np.testing.assert_allclose(decode(dicom), np.asarray(photograph()), atol=2 if lossy else 0)


def test_dicom_whose_frames_are_found_by_an_extended_table_is_checked_like_others() -> None:
    """Where a frame begins is told in the header, and not in the pixels as in most files."""
    import pydicom
    from pydicom.encaps import encapsulate_extended

    eye = encoded(photograph().resize((640, 480)), "JPEG", quality=95)
    middle = len(eye) // 2
    damaged = eye[:middle] + bytes(64) + eye[middle + 64 :]

    def dicom(*frames: bytes) -> bytes:
        def compress(data: Any) -> None:
            data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
            data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended([*frames])
            data.NumberOfFrames = len(frames)

        return _changed_dicom(compress, np.zeros((480, 640, 3), np.uint8), "YBR_FULL_422")

    np.testing.assert_array_equal(decode(dicom(eye, damaged)), decode(eye))
    with pytest.raises(PictureError, match="zeros where the JPEG's data should be"):
        decode(dicom(damaged, eye))


def test_dicom_that_cannot_be_read_is_refused_without_naming_the_patient() -> None:
    rgb = np.asarray(photograph())
    whole = _dicom(rgb, "RGB", 8)
    for data in (
        whole[:-500],
        whole[:140],
        whole.replace(b"RGB ", b"XYZ "),
        _dicom(rgb[:20], "RGB", 8),
        _dicom(np.zeros((64, 64), np.int16), "MONOCHROME2", 16, signed=1),
    ):
        with pytest.raises(PictureError) as caught:
            decode(data)
        assert "Secret" not in str(caught.value)


def test_dicom_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    file = tmp_path / "eye.dcm"
    file.write_bytes(_dicom(np.asarray(photograph()), "RGB", 8))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    install = "pydicom not installed. Run:  pip install 'retina-edge[dicom]'"
    with pytest.raises(PictureError) as caught:
        decode(file)
    assert (str(caught.value), caught.value.reason) == (f"{file}: {install}", install)

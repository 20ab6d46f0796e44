"""Overlays: the map is where the network looked, the photograph stays visible, and everybody can read the scale."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from retina.gradcam import panel as panels
from retina.gradcam.panel import TILE, draw_panel, in_words
from retina.runtime.contract import Decision, Framing, Head, Preprocessing, Surround
from retina.runtime.errors import OutputError
from retina.runtime.field import LitField
from retina.runtime.image_file import fault_of_picture, write_image
from retina.runtime.overlay import HeadMap, colours, draw, head_maps, peak_at, place, write_overlays
from retina.runtime.picture import decode
from retina.runtime.prediction import Prediction
from retina.runtime.wording import percent
from retina.train.framing import field_mask, lit_box, make_frame
from retina.train.synthetic import photograph

FONTS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
PREP = Preprocessing(image_size=96)
WHOLE = LitField(0.0, 0.0, 1.0, 1.0, np.ones((64, 64), np.float32))


def disc(height: int, width: int, centre: tuple[int, int], radius: int, level: int = 120) -> NDArray[np.uint8]:
    rows, columns = np.ogrid[:height, :width]
    lit = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    return np.where(lit[..., None], np.array([level, level // 2, level // 4]), 3).astype(np.uint8)


def hot_line(across: bool) -> NDArray[np.uint8]:
    pixels = np.zeros((150, 150, 3), np.uint8)
    pixels[70 if across else slice(None), slice(None) if across else 70] = 250
    return pixels


def captioned(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels[5:25, 5:90] = 250
    return pixels


PICTURES = {
    "wide black borders": disc(300, 500, (150, 320), 90),
    "3:2, cut above and below": disc(200, 300, (100, 150), 130),
    "odd sides": disc(131, 97, (60, 40), 35),
    "all black": np.zeros((120, 180, 3), np.uint8),
    "lit everywhere": np.full((90, 140, 3), 90, np.uint8),
    "a caption in the corner": captioned(disc(300, 500, (150, 320), 90)),
    "grey around": np.maximum(disc(300, 500, (150, 320), 90), 27),
    "a row of hot pixels": hot_line(across=True),
    "a column of hot pixels": hot_line(across=False),
    "drawn, square": photograph(2, 1, 256, seed=1, source="ronda").picture,
    "drawn, 3:2": photograph(3, 0, 301, seed=2, source="larga").picture,
    "much larger than the network's square": photograph(1, 0, 1200, seed=3).picture,
}


def framing_edges(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float64]:
    """Left, top, right and bottom as fractions of the photograph, from train/framing.py's own box."""
    side = preprocessing.intermediate_size
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    squashed = torch.nn.functional.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
    if preprocessing.surround == "black":
        squashed = squashed * field_mask(squashed)
    left, right, top, bottom = (float(edge) for edge in lit_box(squashed))
    height, width = pixels.shape[:2]
    square = max((right - left) * width, (bottom - top) * height)
    x, y = (left + right) / 2, (top + bottom) / 2
    half_x, half_y = square / width / 2, square / height / 2
    return np.array([x - half_x, y - half_y, x + half_x, y + half_y])


def assert_same_square(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> None:
    field = LitField.find(pixels, preprocessing)
    mine = np.array([field.left, field.top, field.right, field.bottom])
    np.testing.assert_allclose(mine, framing_edges(pixels, preprocessing), atol=1.5 / preprocessing.intermediate_size)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("surround", ["black", "kept"])
def test_the_square_is_the_one_that_the_network_sees(name: str, surround: Surround) -> None:
    assert_same_square(PICTURES[name], replace(PREP, surround=surround))


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("framing", ["field", "squash"])
def test_cut_out_of_the_photograph_it_is_what_the_network_sees(name: str, framing: Framing) -> None:
    """The same check by pixels, without using the framing's internals."""
    preprocessing = Preprocessing(framing=framing, image_size=96)
    pixels = PICTURES[name]
    seen = make_frame(preprocessing)(torch.from_numpy(pixels)[None])[0].permute(1, 2, 0).numpy()
    field = LitField.find(pixels, preprocessing)
    height, width = pixels.shape[:2]
    x = (field.left + (np.arange(96) + 0.5) / 96 * (field.right - field.left)) * width
    y = (field.top + (np.arange(96) + 0.5) / 96 * (field.bottom - field.top)) * height
    inside = (y[:, None] > 0) & (y[:, None] < height) & (x[None] > 0) & (x[None] < width)
    rows, columns = np.clip(y, 0, height - 1).astype(int), np.clip(x, 0, width - 1).astype(int)
    cut = pixels[rows][:, columns] * inside[..., None]
    if framing == "field" and field.lit.any():
        cut = cut * field.lit[rows * len(field.lit) // height][:, columns * len(field.lit) // width][..., None]
    assert np.abs(cut.astype(float) - seen).mean() < 4  # sampled without a filter, so edges and noise differ


@pytest.mark.skipif("RETINA_DATA" not in os.environ, reason="RETINA_DATA: real photographs")
def test_the_square_on_real_photographs() -> None:
    root = Path(os.environ["RETINA_DATA"])
    files = sorted((root / "retina/test/images").iterdir())[::30] + sorted((root / "fullsize").glob("*.jpg"))[:3]
    assert len(files) > 10
    for file in files:
        assert_same_square(decode(file), Preprocessing())


def test_a_map_lands_where_the_network_looked() -> None:
    """A bright dot is found in the framed square and marked in a map; the map must point to it on the photograph."""
    pixels = disc(300, 500, (150, 320), 90, level=80)
    for row, column in ((100, 320), (150, 250), (190, 380)):
        dotted = pixels.copy()
        dotted[row - 4 : row + 5, column - 4 : column + 5] = 255
        seen = make_frame(PREP)(torch.from_numpy(dotted)[None])[0].mean(dim=0).numpy()
        framed = np.zeros((96, 96), np.float32)
        framed[seen > 200] = 1
        laid = place(framed, LitField.find(dotted, PREP), (500, 300))
        rows, columns = np.nonzero(laid > 0.5)
        assert rows.mean() == pytest.approx(row, abs=1.5)
        assert columns.mean() == pytest.approx(column, abs=1.5)


def test_a_map_is_laid_bilinearly() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    laid = place(values, WHOLE, (40, 30))
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size=(30, 40), mode="bilinear")
    np.testing.assert_allclose(laid, expected[0, 0].numpy(), atol=1e-5)


def test_nothing_is_drawn_outside_the_lit_field() -> None:
    pixels = disc(300, 500, (150, 320), 90)
    flat = HeadMap("dr", np.ones((3, 3), np.float32), 2, 0.8)
    drawn = np.asarray(draw(Image.fromarray(pixels), flat, LitField.find(pixels, PREP)))
    rows, columns = np.ogrid[:300, :500]
    away = (rows - 150) ** 2 + (columns - 320) ** 2
    changed = (drawn != pixels).any(axis=2)
    assert not changed[away > 96**2].any()
    assert changed[away < 83**2].all()


def test_a_large_photograph_is_painted_as_a_small_one() -> None:
    """Enlarging in tiles and by doubling is not visible, compared with each pixel's colour computed at full size."""
    flat = np.full((1700, 2600, 3), (150, 70, 30), np.uint8)
    values = np.array([[0.0, 0.2, 0.1], [0.3, 1.0, 0.4], [0.0, 0.5, 0.2]], np.float32)
    drawn = np.asarray(draw(Image.fromarray(flat), HeadMap("dr", values, 2, 0.8), WHOLE)).astype(float)
    level = (255 * place(values, WHOLE, (2600, 1700))).round().astype(int)
    table = colours().astype(float)[level]
    alpha = table[..., 3:] / 255
    expected = table[..., :3] * alpha + flat * (1 - alpha)
    off_the_line = np.abs(level - 128) > 12
    assert np.abs(drawn - expected).max(axis=2)[off_the_line].max() <= 6
    assert np.abs(drawn - expected)[off_the_line].mean() < 0.5


def test_a_weak_map_is_clear_a_strong_one_half_opaque_and_a_white_line_stands_between() -> None:
    """Computed by hand: three columns at 0.05, 0.55 and 1 of the scale, each 100 pixels wide, on one colour."""
    values = np.repeat(np.array([[0.05, 0.55, 1.0]], np.float32), 3, axis=0)
    photograph = np.array([100.0, 60.0, 20.0])
    flat = np.tile(photograph.astype(np.uint8), (300, 300, 1))
    row = np.asarray(draw(Image.fromarray(flat), HeadMap("dr", values, 2, 0.8), WHOLE))[150].astype(float)
    np.testing.assert_array_equal(row[:50], np.tile(photograph, (50, 1)))  # below a tenth nothing is painted
    # 0.55 is between the colours of 0.4 and 0.75; its opacity is 0.45/0.5 of the greatest, a half.
    colour = np.array([10, 90, 240]) + (0.55 - 0.4) / 0.35 * np.array([50, 115, 15])
    opacity = 0.5 * (0.55 - 0.1) / 0.5
    np.testing.assert_allclose(row[150], opacity * colour + (1 - opacity) * photograph, atol=2)
    np.testing.assert_allclose(row[250:], np.tile((np.array([250, 255, 255]) + photograph) / 2, (50, 1)), atol=1)
    white = np.flatnonzero((row == 255).all(axis=1))
    # The map is bilinear from 0.05 at pixel 50 to 0.55 at 150, so half of the scale is at 140.
    assert len(white) == 1
    assert white[0] == pytest.approx(140, abs=1)


@pytest.mark.parametrize("turn", list(Image.Transpose), ids=lambda turn: turn.name)
def test_a_region_is_outlined_on_every_side(turn: Image.Transpose) -> None:
    """The line lies where a map of 5 x 5 cells, 20 pixels each, reaches half of its scale, whichever side that is."""
    values = np.zeros((5, 5), np.float32)
    values[1, 1:3], values[2, 1] = 1.0, 0.8
    turned = np.ascontiguousarray(Image.fromarray(values).transpose(turn))
    flat = Image.new("RGB", (100, 100), (150, 70, 30))

    def white(of: NDArray[np.float32]) -> NDArray[np.uint8]:
        drawn = np.asarray(draw(flat, HeadMap("dr", of, 2, 0.8), WHOLE))
        return np.where((drawn == 255).all(axis=2), np.uint8(255), np.uint8(0))

    inside = np.pad(place(values, WHOLE, (100, 100)) >= 127.5 / 255, 1)
    around = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    expected = Image.fromarray(np.where(inside[1:-1, 1:-1] & ~around, np.uint8(255), np.uint8(0)))
    np.testing.assert_array_equal(white(turned), np.asarray(expected.transpose(turn)))


def test_no_line_runs_along_the_edge_of_the_photograph() -> None:
    strong = HeadMap("dr", np.ones((3, 3), np.float32), 2, 0.8)
    drawn = np.asarray(draw(Image.new("RGB", (90, 60), (150, 70, 30)), strong, WHOLE))
    assert (drawn == drawn[30, 45]).all()


def test_dark_vessels_and_haemorrhages_belong_to_the_field() -> None:
    pixels = disc(200, 200, (100, 100), 90)
    pixels[80:110, 90:120] = 0
    lit = LitField.find(pixels, PREP).lit
    assert lit.shape == (144, 144)
    assert lit[95 * 144 // 200, 105 * 144 // 200] == 1
    assert lit[2, 2] == 0


def test_the_photograph_itself_is_not_touched_and_a_blank_map_changes_nothing() -> None:
    original = Image.fromarray(PICTURES["drawn, square"])
    before = original.tobytes()
    spot = np.zeros((3, 3), np.float32)
    spot[1, 1] = 0.5
    field = LitField.find(PICTURES["drawn, square"], PREP)
    drawn = draw(original, HeadMap("dr", spot, 3, 0.9), field)
    assert original.tobytes() == before != drawn.tobytes()
    assert drawn.size == original.size
    for weak in (np.zeros((3, 3), np.float32), np.full((3, 3), 0.001, np.float32)):
        noise = HeadMap("me", weak, 1, 0.6)
        assert noise.is_blank
        assert draw(original, noise, field).tobytes() == before
        assert peak_at(noise, field, original.size) is None


@pytest.mark.parametrize(("total", "drawn"), [(0.009, False), (0.011, True)])
def test_a_map_is_drawn_from_a_hundredth_of_a_logit_on(total: float, drawn: bool) -> None:
    """A hundredth of a logit moves a probability by a quarter of a percentage point at most."""
    pixels = np.full((64, 64, 3), 90, np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = total
    after = np.asarray(draw(Image.fromarray(pixels), HeadMap("dr", values, 2, 0.8), WHOLE))
    assert (after != pixels).any() == drawn


def test_a_shared_scale_keeps_a_weak_map_weak() -> None:
    original = Image.fromarray(np.full((90, 90, 3), (150, 70, 30), np.uint8))
    weak = HeadMap("dr", np.full((3, 3), 0.2, np.float32), 1, 0.5)
    own, shared = (np.asarray(draw(original, weak, WHOLE, top))[45, 45].astype(int) for top in (None, 0.4))
    table = colours().astype(float)
    for found, level in ((own, 255), (shared, 128)):
        alpha = table[level, 3] / 255
        expected = table[level, :3] * alpha + np.array([150, 70, 30]) * (1 - alpha)
        np.testing.assert_allclose(found, expected, atol=3)


def test_the_peak_is_reported_in_pixels_of_the_photograph() -> None:
    spot = np.zeros((4, 4), np.float32)
    spot[1, 2] = 1
    assert peak_at(HeadMap("dr", spot, 1, 0.5), WHOLE, (400, 200)) == pytest.approx((250, 75), abs=2)
    assert peak_at(HeadMap("dr", spot, 1, 0.5), WHOLE, (4000, 2000)) == pytest.approx((2500, 750), abs=8)
    left = np.zeros((64, 64), np.float32)
    left[:, :16] = 1
    assert peak_at(HeadMap("dr", spot, 1, 0.5), replace(WHOLE, lit=left), (400, 200)) is None


def test_a_map_that_is_not_in_logits_is_blank_only_where_it_is_zero_and_has_no_unit() -> None:
    weak = np.full((3, 3), 1e-4, np.float32)
    assert HeadMap("dr", weak, 2, 0.8).is_blank
    assert not HeadMap("dr", weak, 2, 0.8, sums_to_logit=False).is_blank
    assert HeadMap("dr", 0 * weak, 2, 0.8, sums_to_logit=False).is_blank
    picture, field = Image.fromarray(PICTURES["drawn, 3:2"]), LitField.find(PICTURES["drawn, 3:2"], PREP)
    decision, strong = Decision(2, 0, True, 0.8, False), np.ones((3, 3), np.float32)

    def left_of_caption(sums_to_logit: bool) -> int:
        maps: dict[Head, HeadMap] = {"dr": HeadMap("dr", strong, 2, 0.8, sums_to_logit)}
        panel = np.asarray(draw_panel(picture, "eye.jpg", decision, maps, field))
        corner = panel[62 + TILE + 8 + 78 : 62 + TILE + 8 + 100, -220:]
        return int(np.argwhere((corner < 200).any(axis=(0, 2))).min())

    # "most here: 1 logits" or, shorter, "most here: 1"; both end at the right edge.
    assert left_of_caption(True) + 30 < left_of_caption(False)


# Machado et al., 2009, full severity: linear RGB as seen without long- or medium-wavelength cones.
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("vision", VISIONS)
def test_the_scale_only_gets_lighter_for_every_vision_and_in_grey(vision: str) -> None:
    srgb = colours()[:, :3] / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISIONS[vision].T, 0, 1)
    lightness = np.cbrt(seen @ np.array([0.2126, 0.7152, 0.0722]))  # CIE L*, up to scale and offset
    steps = np.diff(lightness)
    assert steps.min() > -1e-3
    assert lightness[-1] - lightness[0] > 0.4


def test_the_top_of_the_scale_stands_out_from_the_retina_for_every_vision() -> None:
    retina, top = np.array([150, 72, 34]) / 255, colours()[160, :3] / 255
    for matrix in VISIONS.values():
        difference = np.clip(matrix @ top**2.2, 0, 1) - np.clip(matrix @ retina**2.2, 0, 1)
        assert np.abs(difference).max() > 0.4


def test_a_png_keeps_every_pixel(tmp_path: Path) -> None:
    pixels = PICTURES["drawn, 3:2"]
    write_image(tmp_path / "a.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_panel_shows_the_photograph_and_each_map() -> None:
    picture = Image.fromarray(PICTURES["drawn, 3:2"])
    field = LitField.find(PICTURES["drawn, 3:2"], PREP)
    spot = np.zeros((3, 3), np.float32)
    spot[1, 1] = 0.5
    maps: dict[Head, HeadMap] = {
        "dr": HeadMap("dr", spot, 3, 0.91),
        "me": HeadMap("me", np.zeros((3, 3), np.float32), 0, 0.7),
    }
    panel = draw_panel(picture, "eye.jpg", Decision(3, 0, True, 0.95, False), maps, field)
    left, dr, me = (
        np.asarray(panel)[62 : 62 + TILE, 20 + i * (TILE + 20) : 20 + i * (TILE + 20) + TILE] for i in range(3)
    )
    np.testing.assert_array_equal(left, me)  # a blank map
    assert (left != dr).any()
    alone = draw_panel(picture, "eye.jpg", Decision(3, 0, True, 0.95, False), {"dr": maps["dr"]}, field)
    assert alone.width == panel.width - TILE - 20


def test_the_panel_shows_what_the_network_sees_and_what_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(PICTURES["wide black borders"])
    seen = (200, 50, 400, 250)
    field = replace(WHOLE, left=200 / 500, top=50 / 300, right=400 / 500, bottom=250 / 300)
    values = np.array([[0.0, 0.1, 0.9], [0.2, 0.5, 0.0]], np.float32)
    maps: dict[Head, HeadMap] = {"dr": HeadMap("dr", values, 3, 0.91), "me": HeadMap("me", values[::-1], 0, 0.7)}
    tile = picture.crop(seen).resize((TILE, TILE), Image.Resampling.BICUBIC)
    texts: list[str] = []
    write = panels._write

    def written(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, *style: Any, **options: Any) -> None:
        texts.append(text)
        write(pen, at, text, *style, **options)

    monkeypatch.setattr(panels, "_write", written)
    shared: dict[Head, float] = {"dr": 2.5, "me": 2.0}
    heads: tuple[Head, ...] = ("dr", "me")
    for tops in (None, shared):
        texts.clear()
        panel = draw_panel(picture, "eye.jpg", Decision(3, 0, True, 0.95, False), maps, field, tops)
        for column, head in enumerate(heads, start=1):
            x = 20 + column * (TILE + 20)
            expected = draw(tile, maps[head], WHOLE, tops[head] if tops else None)
            shown = panel.crop((x, 62, x + TILE, 62 + TILE))
            np.testing.assert_allclose(np.asarray(shown, int), np.asarray(expected, int), atol=2)
        assert texts[:2] == ["eye.jpg", "Model: DR grade 3 (severe), macular edema: no risk"]
        most = "most of all: 2.5 logits" if tops else "most here: 0.9 logits"
        assert {"Speaks for DR grade 3 (severe)", "probability 91%", "probability 70%", most} < set(texts)


def left_tile(panel: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(panel)[62 : 62 + TILE, 20 : 20 + TILE]


NO_RISK = Decision(0, 0, False, 0.1, False)


def test_the_panel_centres_a_photograph_that_is_not_square_and_halves_a_large_one() -> None:
    noise = np.random.default_rng(0).integers(1, 256, (TILE, 2 * TILE, 3), np.uint8)
    picture = Image.fromarray(noise)
    shown = left_tile(draw_panel(picture, "eye.jpg", NO_RISK, {}, WHOLE))
    half = np.asarray(picture.reduce(2))
    np.testing.assert_array_equal(shown[TILE // 4 : TILE // 4 + TILE // 2], half)
    assert not shown[: TILE // 4].any() and not shown[-TILE // 4 :].any()
    shown = left_tile(draw_panel(Image.fromarray(noise.transpose(1, 0, 2)), "eye.jpg", NO_RISK, {}, WHOLE))
    np.testing.assert_array_equal(shown[:, TILE // 4 : TILE // 4 + TILE // 2], half.transpose(1, 0, 2))


def test_the_panel_paints_the_lit_part_of_what_it_shows() -> None:
    """Of a photograph of 400 x 200, the square from 100 to 300 is seen, and lit up to 150: a quarter of the tile."""
    lit = np.zeros((64, 64), np.float32)
    lit[:, :24] = 1
    field = LitField(0.25, 0.0, 0.75, 1.0, lit)
    maps: dict[Head, HeadMap] = {"dr": HeadMap("dr", np.ones((3, 3), np.float32), 0, 0.9)}
    panel = draw_panel(Image.new("RGB", (400, 200), (150, 70, 30)), "eye.jpg", NO_RISK, maps, field)
    tile = np.asarray(panel)[62 : 62 + TILE, 20 + TILE + 20 : 20 + TILE + 20 + TILE]
    painted = (tile != np.array([150, 70, 30])).any(axis=2)
    assert painted[:, : TILE // 4 - 16].all() and not painted[:, TILE // 4 + 16 :].any()


def test_the_panel_shows_the_scale_as_it_looks_on_a_retina_unless_the_map_is_blank() -> None:
    picture = Image.new("RGB", (100, 100), (150, 70, 30))
    x, y = 20 + TILE + 20, 62 + TILE + 8 + 58

    def scale(values: NDArray[np.float32]) -> NDArray[np.float64]:
        maps: dict[Head, HeadMap] = {"dr": HeadMap("dr", values, 0, 0.9)}
        panel = draw_panel(picture, "eye.jpg", NO_RISK, maps, WHOLE)
        return np.asarray(panel)[y : y + 18, x : x + TILE].astype(float)

    shown = scale(np.ones((3, 3), np.float32))[9]
    for share in (0.05, 0.25, 0.75, 0.95):
        red, green, blue, alpha = colours()[round(share * 255)].astype(float)
        expected = [
            c * alpha / 255 + r * (1 - alpha / 255) for c, r in zip((red, green, blue), (150, 72, 34), strict=True)
        ]
        np.testing.assert_allclose(shown[round(share * TILE)], expected, atol=2)
    assert (shown[TILE // 2] == 255).all()
    blank = scale(np.zeros((3, 3), np.float32))
    assert (blank[:, -100:] == 255).all() and (blank < 128).any(), "words instead"


def test_a_long_name_is_shortened_in_its_middle() -> None:
    """To what its letters take: of wide ones there is room for fewer."""
    for letter in "iW\N{LATIN SMALL LETTER U WITH DIAERESIS}":
        name = f"first{letter * 200}last.jpg"
        font = panels._font(name, 22)
        short = panels._shortened(name, 560)
        first, last = short.split(" ... ")
        assert name.startswith(first) and name.endswith(last) and len(first) == len(last)
        assert 560 - 2 * font.getlength(letter) - 1 <= font.getlength(short) <= 560
        whole = font.getlength(name)
        assert panels._shortened(name, int(whole) + 1) == name != panels._shortened(name, int(whole) - 1)
    picture, field = Image.new("RGB", (90, 90)), WHOLE
    maps: dict[Head, HeadMap] = {"dr": HeadMap("dr", np.zeros((3, 3), np.float32), 0, 0.9)}
    header = np.asarray(draw_panel(picture, "W" * 88 + ".jpg", NO_RISK, maps, field))[:36]
    assert (header[:, -15:] == 255).all() and (header[:, -60:] < 128).any()


def test_an_unfamiliar_picture_is_told_beside_the_longest_answers() -> None:
    picture = Image.new("RGB", (90, 90))
    maps: dict[Head, HeadMap] = {"dr": HeadMap("dr", np.zeros((3, 3), np.float32), 4, 0.9)}
    longest = Decision(4, 0, True, 0.95, False)
    plain, told = (
        np.asarray(draw_panel(picture, "eye.jpg", longest, maps, WHOLE, unfamiliar=unfamiliar))[:62].astype(int)
        for unfamiliar in (False, True)
    )
    added = np.flatnonzero((plain != told).any(axis=(0, 2)))
    answers = np.flatnonzero((plain[40:] != 255).any(axis=(0, 2)))
    assert answers.max() + 10 < added.min() and added.max() < told.shape[1] - 20
    assert (told[..., 0] - told[..., 1]).max() > 80  # red


def test_the_panel_writes_names_beyond_ascii() -> None:
    if not any(path.name == "DejaVuSans.ttf" for folder in FONTS for path in folder.rglob("*.ttf")):
        pytest.skip("no font of the system")
    picture, field = Image.fromarray(PICTURES["drawn, 3:2"]), LitField.find(PICTURES["drawn, 3:2"], PREP)
    decision = Decision(3, 0, True, 0.95, False)

    def header(name: str) -> bytes:
        return draw_panel(picture, name, decision, {}, field).crop((0, 0, 580, 37)).tobytes()

    # Letters that a font lacks are all drawn as the same box.
    assert header("M\u00fcller.jpg") != header("M\u00f6ller.jpg")
    assert header("\u0418\u0432.jpg") != header("\u0432\u0418.jpg")
    header("not-unicode-\udcff.jpg")


def test_answers_in_words() -> None:
    assert in_words("dr", 2) == "DR grade 2 (moderate)"
    assert in_words("dr", 7) == "DR grade 7"
    assert in_words("me", 0) == "macular edema: no risk"
    assert [percent(p) for p in (0.001, 0.426, 0.99, 0.9999)] == ["<1%", "43%", "99%", ">99%"]


@given(st.floats(0.0, 1.0, exclude_min=True, exclude_max=True) | st.floats(0.98, 1.0, exclude_max=True))
@settings(deadline=None)
def test_a_percentage_never_says_that_the_model_is_certain(probability: float) -> None:
    said = percent(probability)
    assert said not in ("0%", "100%")
    assert float(said.strip("<>%")) == pytest.approx(100 * probability, abs=1.0)


def test_the_overlays_of_a_prediction(tmp_path: Path) -> None:
    values = np.ones((3, 3), np.float32)
    decided = Decision(grade=3, me_risk=1, referable=True, referable_prob=0.9, referable_me=False)
    both = {"dr": values, "me": 2 * values}
    said = Prediction(**vars(decided), dr_probs={0: 0.1, 3: 0.7, 4: 0.2}, me_prob=0.4, maps=both)
    maps = head_maps(said)
    assert (maps["dr"].target, maps["dr"].probability) == (3, 0.7)
    assert (maps["me"].target, maps["me"].probability) == (0, 0.6)  # the more probable label, whatever the rule decided
    pixels = PICTURES["drawn, 3:2"]
    photograph, field = Image.fromarray(pixels), LitField.find(pixels, PREP)
    expected = np.asarray(draw(photograph, maps["me"], field))
    written = write_overlays(tmp_path / "eye.v2", photograph, field, maps.values(), "png")
    assert [path.name for path in written] == ["eye.v2_dr.png", "eye.v2_me.png"]
    np.testing.assert_array_equal(decode(written[1]), expected)
    written = write_overlays(tmp_path / "eye.v2", photograph, field, maps.values())
    assert [path.name for path in written] == ["eye.v2_dr.jpg", "eye.v2_me.jpg"]
    assert np.abs(decode(written[1]).astype(int) - expected).mean() < 2
    assert head_maps(replace(said, maps=None)) == {}


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_picture_that_does_not_fit_on_the_disk_is_not_there(tmp_path: Path, name: str) -> None:
    """Half an overlay under its final name would count as drawn when the run is resumed."""
    import resource

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8))
    write_image(tmp_path / name, noise)
    whole = (tmp_path / name).stat().st_size
    (tmp_path / name).unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole - 100, limits[1]))  # like a full disk, but only for this process
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            write_image(tmp_path / name, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "of_this_picture"),
    [(errno.ENAMETOOLONG, True), (errno.EINVAL, True), (errno.EILSEQ, True), (errno.ENOSPC, False), (errno.EIO, False)],
)
def test_a_name_that_the_disk_refuses_concerns_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, of_this_picture: bool
) -> None:
    """FAT has no ":", which the time in a photograph's name may have; the other photographs can still be drawn."""

    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OutputError) as caught:
        write_image(tmp_path / "10:30.jpg", Image.new("RGB", (40, 40)))
    assert fault_of_picture(caught.value) == (os.strerror(code) if of_this_picture else "")
    assert not list(tmp_path.iterdir())

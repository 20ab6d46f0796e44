"""The framing, compared with Pillow and with known boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from retina.runtime.contract import Framing, Preprocessing
from retina.runtime.field import _field_mask, _lit_box
from retina.runtime.picture import decode
from retina.train.framing import field_mask, lit_box, make_frame, make_preprocess


def disc(height: int, width: int, centre: tuple[float, float], radius: float, seed: int = 0) -> np.ndarray:
    """A lit disc with broad stripes on black, (H, W, 3) uint8: centre (x, y) and radius in pixels."""
    y, x = (np.mgrid[0.5:height, 0.5:width] - np.array([centre[1], centre[0]])[:, None, None]) / radius
    stripes = 130 + 60 * np.sin(6 * x + seed)[..., None] * np.cos([4 * y, 5 * y, 6 * y]).transpose(1, 2, 0)
    return np.where((x**2 + y**2 <= 1)[..., None], stripes, 3).astype(np.uint8)


def framed(picture: np.ndarray, framing: Framing = "field", size: int = 128) -> np.ndarray:
    frame = make_frame(Preprocessing(framing=framing, image_size=size))
    square: np.ndarray = frame(torch.from_numpy(picture)[None])[0].permute(1, 2, 0).numpy()
    return square


@pytest.mark.parametrize("shape", [(200, 300), (97, 131), (33, 500), (640, 640)])
def test_squash_is_pillows_bilinear(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    by_pillow = np.asarray(Image.fromarray(picture).resize((128, 128), Image.Resampling.BILINEAR), dtype=np.float32)
    # Pillow rounds to whole grey levels after each of its two passes; the framing does not.
    assert np.abs(framed(picture, "squash") - by_pillow).max() <= 1.01


@pytest.mark.parametrize(
    ("height", "width", "centre", "radius"),
    [
        (400, 400, (200, 200), 190),  # fills the frame
        (400, 600, (300, 200), 190),  # 3:2 sensor
        (401, 597, (230.5, 170.5), 120),  # odd sizes, off centre, wide black borders
        (900, 500, (250, 500), 240),  # upright
    ],
)
def test_field_is_the_square_around_the_disc(
    height: int, width: int, centre: tuple[float, float], radius: float
) -> None:
    picture = disc(height, width, centre, radius)
    left, top = centre[0] - radius, centre[1] - radius
    box = (left, top, left + 2 * radius, top + 2 * radius)
    by_pillow = np.asarray(
        Image.fromarray(picture).resize((128, 128), Image.Resampling.BILINEAR, box=box), dtype=np.float32
    )
    ours = framed(picture)
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    inside = x**2 + y**2 < 0.9**2  # the rim itself is antialiased differently
    # A box that is wrong by one pixel in a hundred moves the stripes by 2 grey levels.
    assert np.abs(ours - by_pillow)[inside].mean() < 3.0
    assert (ours.max(axis=2) > 66).sum() == pytest.approx(np.pi / 4 * 128**2, rel=0.04)
    lit = ours.max(axis=2) > 20
    assert lit[64, :3].any()
    assert lit[64, -3:].any()
    assert lit[:3, 64].any()
    assert lit[-3:, 64].any()
    assert not lit[:8, :8].any(), "a disc leaves its square's corners dark"


def test_truncated_field_is_centred_in_black() -> None:
    """A field cut at top and bottom by the sensor keeps its aspect ratio: bars, not a squeeze."""
    ours = framed(disc(300, 600, (300, 150), 250))  # 500 wide, 300 high
    lit_rows = (ours.max(axis=2) > 20).any(axis=1)
    assert abs(lit_rows.sum() - 128 * 300 / 500) <= 2
    assert abs(np.flatnonzero(lit_rows).mean() - 63.5) <= 1


def test_same_eye_framed_differently_looks_alike() -> None:
    square = disc(400, 400, (200, 200), 199, seed=3)
    wide = np.zeros((520, 900, 3), dtype=np.uint8)
    wide[70:470, 300:700] = square
    assert np.abs(framed(square) - framed(wide)).mean() < 4.0
    assert np.abs(framed(square, "squash") - framed(wide, "squash")).mean() > 30.0, "what field framing is for"


@pytest.mark.parametrize("level", [0, 14])
def test_picture_without_lit_field_is_left_whole(level: int) -> None:
    picture = np.full((100, 140, 3), level, dtype=np.uint8)
    picture[50, 70] = 255  # one hot pixel is not a field
    ours = framed(picture, size=64)
    # Kept whole with its own aspect ratio: black bars above and below.
    inside = ours[12:52, 4:60]
    assert np.median(inside) == pytest.approx(level, abs=0.01)
    assert ours[64 * 20 // 140 // 2, 32].max() == pytest.approx(0.0, abs=1e-3)


def degraded(picture: np.ndarray, how: str) -> np.ndarray:
    """The picture, (H, W, 3) uint8, with a surround like that of other cameras and archives."""
    rng = np.random.default_rng(4)
    dark = picture.max(axis=2, keepdims=True) <= 20
    if how == "caption":
        degraded = picture.copy()
        degraded[6:30, 6:100] = 255
        return degraded
    level, grain = {"grey": (30.0, 0.0), "grain": (12.0, 10.0)}[how]
    noise = level + grain * rng.normal(size=picture.shape)
    return np.where(dark, noise, picture).clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("how", ["caption", "grey", "grain"])
def test_what_lies_around_the_field_is_not_seen(how: str) -> None:
    picture = disc(400, 640, (340, 205), 170)
    plain, ours = framed(picture), framed(degraded(picture, how))
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    radius = np.hypot(x, y)
    # A rim one cell wide is kept, which may widen the box slightly.
    assert np.abs(ours - plain)[radius < 0.9].mean() < 6.0
    assert ours[radius > 1.2].max() < 1.0
    keep = make_frame(Preprocessing(image_size=128, surround="kept"))
    kept = keep(torch.from_numpy(degraded(picture, how))[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(kept - plain)[radius < 0.9].mean() > 20.0, "what making it black is for"


@pytest.mark.parametrize("haemorrhage", [False, True])
def test_retina_is_not_taken_for_surround(haemorrhage: bool) -> None:
    """In a crop from inside a field that is lit from one side, dark corners are kept, and so are large haemorrhages."""
    x = np.linspace(0.4, 1.0, 300)
    picture = (np.array([180, 90, 40]) * x[None, :, None] * np.ones((300, 1, 1))).astype(np.uint8)
    if haemorrhage:
        picture[120:180, 60:150] = (20, 8, 8)
    kept = make_frame(Preprocessing(image_size=128, surround="kept"))(torch.from_numpy(picture)[None])
    np.testing.assert_allclose(framed(picture), kept[0].permute(1, 2, 0), atol=1e-3)


@pytest.mark.parametrize(
    ("field", "dim", "surround", "of_dim", "of_surround"),
    [
        # Level 177.4, threshold 20 + 0.2 (177.4 - 20) = 51.5: (56 - 51.5) / 17.74 + 0.5
        (200.0, 56.0, 20.0, 0.755, 0.0),
        # Level 83.5, where a fifth of the way up would exceed 0.35 x 83.5 = 29.2: (30 - 29.2) / 8.35 + 0.5
        (100.0, 36.0, 30.0, 1.0, 0.591),
        # The noise of a black photograph, whose level is at least 20: no field is found, so nothing is surround.
        (3.0, 1.0, 1.0, 1.0, 1.0),
    ],
)
def test_what_is_field_by_hand(field: float, dim: float, surround: float, of_dim: float, of_surround: float) -> None:
    """Three bands, with the field at the left; the picture has as many pixels as the grid has cells."""
    columns = torch.tensor([field] * 32 + [dim] * 12 + [surround] * 20)
    mask = field_mask(columns.expand(1, 3, 64, 64))[0, 0]
    assert mask[32, [5, 38, 60]].tolist() == pytest.approx([1.0, of_dim, of_surround], abs=1e-3)
    one_more_cell = max(of_dim, of_surround)
    assert mask[32, [44, 45]].tolist() == pytest.approx([one_more_cell, of_surround], abs=1e-3)
    np.testing.assert_allclose(_field_mask(columns.expand(64, 64).numpy()), mask, atol=1e-3)


def test_a_hole_in_the_field_is_field_and_a_bay_is_not() -> None:
    picture = torch.full((64, 64), 200.0)
    picture[16:48, 16:48] = 20.0
    hole = picture.clone()
    picture[:16, 16:48] = 20.0
    for shape, kept in ((hole, 1.0), (picture, 0.0), (picture.T, 0.0)):
        assert field_mask(shape.expand(1, 3, 64, 64))[0, 0, 30, 30] == kept


def test_a_column_belongs_to_the_field_where_a_fiftieth_of_it_is_lit() -> None:
    x = torch.zeros(1, 3, 100, 100)
    x[..., 20:80, 30:70] = 200.0
    x[..., 40:43, 20:30] = 200.0  # three pixels of a hundred
    x[..., 40, 10:20] = 200.0  # one of a hundred: the edge is half-way between these columns and those
    left, right, top, bottom = (float(edge) for edge in lit_box(x))
    assert left == pytest.approx(0.2, abs=1e-5)
    # In the last lit column 0.60 of the pixels are lit, and none beyond it: 0.02 is reached 1/30 from the next column.
    assert right == pytest.approx(0.7 + (0.5 - 0.02 / 0.60) / 100, abs=1e-5)
    np.testing.assert_allclose(_lit_box((x[0, 0] > 0).float().numpy()), (left, right, top, bottom), atol=1e-5)
    assert (top, bottom) == pytest.approx((0.2 - (0.5 - 0.02 / 0.40) / 100, 0.8 + (0.5 - 0.02 / 0.40) / 100), abs=1e-3)


@pytest.mark.parametrize("across", [False, True])
def test_one_line_of_hot_pixels_is_no_field(across: bool) -> None:
    """Every pixel of its column is lit, but only one in a hundred of each row."""
    x = torch.zeros(100, 100)
    x[:, 40] = 200.0
    x = x.T if across else x
    assert [float(edge) for edge in lit_box(x.expand(1, 3, 100, 100))] == [0.0, 1.0, 0.0, 1.0]
    assert _lit_box((x > 0).float().numpy()) == (0.0, 1.0, 0.0, 1.0)


def test_batch_of_mixed_pictures_equals_each_alone() -> None:
    batch = np.stack(
        [disc(180, 240, (120, 90), 80), np.zeros((180, 240, 3), np.uint8), disc(180, 240, (70, 60), 50, seed=5)]
    )
    preprocess = make_preprocess(Preprocessing(image_size=96))
    together = preprocess(torch.from_numpy(batch))
    for i, picture in enumerate(batch):
        alone = preprocess(torch.from_numpy(picture)[None])
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-5)


def test_normalisation_by_hand() -> None:
    grey = np.full((50, 50, 3), 128, dtype=np.uint8)
    out = make_preprocess(Preprocessing(framing="squash", image_size=32))(torch.from_numpy(grey)[None])
    by_hand = [(128 / 255 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert out.shape == (1, 3, 32, 32)
    assert out[0, :, 7, 9].tolist() == pytest.approx(by_hand, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(32, 200), width=st.integers(32, 200), seed=st.integers(0, 2**32 - 1), n=st.integers(1, 3))
def test_any_pixels_give_finite_frames_within_range(height: int, width: int, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8) * rng.integers(
        0, 2, (n, height, 1, 1), dtype=np.uint8
    )
    out = make_frame(Preprocessing(image_size=48))(torch.from_numpy(pictures))
    assert out.shape == (n, 3, 48, 48)
    assert torch.isfinite(out).all()
    assert out.min() >= -1e-3
    assert out.max() <= 255.001


def test_camera_original_and_its_square_frame_alike(real_data: Path) -> None:
    originals = sorted((real_data / "fullsize").glob("*.jpg"))
    assert len(originals) == 12
    for original in originals:
        square = real_data / "retina/test/images" / original.name
        a, b = framed(decode(original), size=256), framed(decode(square), size=256)
        assert np.abs(a - b).mean() < 4.0, original.name

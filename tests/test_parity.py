"""Each step of the parity check refuses with its own error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from retina.export import parity
from retina.export.parity import FP32, INT8, SIZES, Parity, Reference, check_parity
from retina.runtime.contract import MIN_SIDE, Contract, Rule
from retina.runtime.errors import ParityError
from retina.train.checkpoint import load_checkpoint
from small_checkpoint import small_checkpoint

Outputs = dict[str, NDArray[np.float32]]
pytestmark = pytest.mark.usefixtures("few_sizes")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    read = load_checkpoint(small_checkpoint(tmp_path_factory.mktemp("parity") / "c.pth", image_size=32))
    return Reference(read.build_model(), replace(read.contract, explain=True))


def photographs() -> list[tuple[str, NDArray[np.uint8]]]:
    rng = np.random.default_rng(0)
    return [(f"eye{i}.png", rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for i in range(2)]


def check(
    reference: Reference, degrade: Callable[[Outputs, NDArray[np.uint8]], Outputs], bounds: parity.Bounds
) -> Parity:
    """Compare PyTorch with a distorted copy of its own answers."""
    return check_parity(
        lambda pixels: degrade(dict(reference(pixels).values), pixels), reference, photographs(), bounds, "here"
    )


def test_the_same_passes_and_is_counted(reference: Reference) -> None:
    found = check(reference, lambda out, _pixels: out, FP32)
    assert (found.photographs, found.pictures, found.equal_decisions) == (2, 2 + 2 + 5 + 2, 1.0)
    assert found.worst == 0.0 and found.worst_cam == 0.0 and found.source == "here"


def test_another_name_is_named(reference: Reference) -> None:
    def degrade(out: Outputs, _pixels: NDArray[np.uint8]) -> Outputs:
        return {("me_risk" if name == "me_probs" else name): value for name, value in out.items()}

    with pytest.raises(ParityError, match=r"outputs for eye0.png: expected .*me_probs.* found .*me_risk"):
        check(reference, degrade, FP32)
    with pytest.raises(ParityError, match=r"expected \['dr_probs', .*, found \['me_cam_per_label', "):
        check(reference, lambda out, _pixels: dict(reversed(out.items())), FP32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda probs: probs[0], r"expected 2 axes, found 1"),
        (lambda probs: probs[:, :4], r"expected the shape \(1, 5\), found \(1, 4\)"),
        (lambda probs: probs.astype(np.float64), r"expected float32, found float64"),
        (lambda probs: probs + np.float32(2e-4), r"at \[\d\]: expected .* found .* difference 0.0002, allowed 0.0001"),
        (lambda probs: probs * np.float32(np.nan), r"difference nan"),
    ],
)
def test_axes_shape_type_and_value_each_have_their_error(
    reference: Reference, change: Callable[[NDArray[np.float32]], NDArray[np.float32]], message: str
) -> None:
    with pytest.raises(ParityError, match=r"dr_probs (of|for) eye0.png.*" + message):
        check(reference, lambda out, _pixels: out | {"dr_probs": change(out["dr_probs"])}, FP32)


def test_nan_is_refused_where_nothing_else_is(reference: Reference) -> None:
    with pytest.raises(ParityError, match="nan"):
        check(reference, lambda out, _pixels: out | {"me_probs": out["me_probs"] * np.float32(np.nan)}, INT8)


def test_a_difference_in_a_map_is_relative(reference: Reference) -> None:
    with pytest.raises(ParityError, match=r"dr_cam of eye0.png .* relative difference .*, allowed 0.001"):
        check(reference, lambda out, _pixels: out | {"dr_cam": out["dr_cam"] * np.float32(1.01)}, FP32)


def test_a_batch_must_answer_as_its_pictures_alone(reference: Reference) -> None:
    def degrade(out: Outputs, pixels: NDArray[np.uint8]) -> Outputs:
        return out | {"me_probs": out["me_probs"] + np.float32(5e-5 * (len(pixels) > 1))}

    with pytest.raises(ParityError, match=r"expected the same in a batch as alone within 1e-05"):
        check(reference, degrade, FP32)


def test_each_bound_is_the_one_stated(reference: Reference) -> None:
    """Just within and just beyond it."""

    def passes(bounds: parity.Bounds, degrade: Callable[[Outputs, NDArray[np.uint8]], Outputs]) -> bool:
        try:
            check(reference, degrade, bounds)
        except ParityError:
            return False
        return True

    def probability(by: float) -> bool:
        return passes(FP32, lambda out, _pixels: out | {"dr_probs": out["dr_probs"] + np.float32(by)})

    def cam(by: float) -> bool:
        def degrade(out: Outputs, pixels: NDArray[np.uint8]) -> Outputs:
            return out | {"me_cam": out["me_cam"] + np.float32(by) * reference(pixels).scales["me_cam"]}

        return passes(FP32, degrade)

    def in_a_batch(bounds: parity.Bounds, by: float) -> bool:
        def degrade(out: Outputs, pixels: NDArray[np.uint8]) -> Outputs:
            return out | {"dr_probs": out["dr_probs"] + np.float32(by * (len(pixels) > 1))}

        return passes(bounds, degrade)

    assert (probability(0.95e-4), probability(1.05e-4)) == (True, False)
    assert (cam(0.95e-3), cam(1.05e-3)) == (True, False)
    assert (in_a_batch(FP32, 0.95e-5), in_a_batch(FP32, 1.05e-5)) == (True, False)
    assert (in_a_batch(INT8, 0.95e-2), in_a_batch(INT8, 1.05e-2)) == (True, False)


def test_int8_reports_decisions_that_differ(reference: Reference) -> None:
    def degrade(out: Outputs, pixels: NDArray[np.uint8]) -> Outputs:
        return out | ({"dr_probs": np.roll(out["dr_probs"], 1, axis=1)} if pixels.shape[1:3] == (33, 57) else {})

    found = check(reference, degrade, INT8)
    assert found.equal_decisions == pytest.approx(10 / 11)
    assert found.worst_output == "dr_probs" and found.worst_image == "the first photograph at 57 x 33"


def test_autograd_reference_by_finite_differences(reference: Reference, tmp_path: Path) -> None:
    """Adding e to channel c of the feature map changes the logit by e times the sum of its gradient."""
    import torch

    pixels = photographs()[0][1][None]
    from retina.train.framing import make_preprocess

    model = reference.model.double()
    try:
        with torch.no_grad():
            x = make_preprocess(reference.contract.preprocessing)(torch.from_numpy(pixels)).double()
            feature_map = model.feature_map(x)
            pooled, step = feature_map.mean((2, 3)), 1e-6
            moved = pooled + step * torch.eye(pooled.shape[1], dtype=torch.float64)
            slope = (model.dr_head(moved) - model.dr_head(pooled)) / step  # (C, K)
            h, w = feature_map.shape[2:]
            cams = torch.einsum("ck,chw->khw", slope / (h * w), feature_map[0]).numpy()
    finally:
        model.float()
    found = reference(pixels)
    np.testing.assert_allclose(found.values["dr_cam_per_grade"][0], cams.clip(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        found.scales["dr_cam_per_grade"][0, :, 0, 0], np.abs(cams).max(axis=(1, 2)), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    ("output", "change", "differs"),
    [
        ("dr_probs", lambda probs: np.roll(probs, 1, axis=1), r"grade \d, found \d"),
        ("me_probs", lambda probs: probs[:, ::-1], r"me_risk \d, found \d"),
        ("dr_probs", lambda probs: probs + np.float32(2e-3), "referable False, found True"),
        ("me_probs", lambda probs: probs + np.float32(2e-3), "referable_me False, found True"),
    ],
)
def test_a_turned_decision_is_refused_of_fp32(
    reference: Reference, output: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]], differs: str
) -> None:
    """Even if every probability is within the bounds, which are wide here; thresholds are just above the first's."""
    right = reference(photographs()[0][1][None]).values
    above = {"referable_dr": right["dr_probs"][0, 2:].sum() + 1e-3, "referable_me": right["me_probs"][0, 1] + 1e-3}
    rules = {name: Rule("at_least", float(threshold), 2) for name, threshold in above.items()}
    contract = replace(reference.contract, thresholds={**reference.contract.thresholds, **rules})
    with pytest.raises(ParityError, match=f"decision on eye0.png: expected {differs},"):
        check(
            replace(reference, contract=contract), lambda out, _pixels: out | {output: change(out[output])},
            replace(INT8, equal_decisions=True),
        )  # fmt: skip


def test_sizes_reach_from_below_the_network_to_a_camera_original() -> None:
    sides = [side for size in SIZES for side in size]
    assert min(sides) == MIN_SIDE and max(sides) >= 4000
    assert any(height > width for height, width in SIZES) and any(height < width for height, width in SIZES)
    assert any(side % 2 for side in sides)
    side = Contract().preprocessing.image_size
    assert any(max(size) < side for size in SIZES) and any(min(size) > side for size in SIZES)


def test_batches_and_sizes_are_made_from_the_first_photograph(reference: Reference) -> None:
    """In this order, and the black picture is black: what a bound is exceeded on must be the picture that is named."""
    asked: list[NDArray[np.uint8]] = []

    def answer(pixels: NDArray[np.uint8]) -> Outputs:
        asked.append(pixels.copy())
        return dict(reference(pixels).values)

    check_parity(answer, reference, photographs(), FP32, "here")
    first = photographs()[0][1]
    batch = np.stack([first, first[:, ::-1], first[::-1, ::-1], first[::-1], np.zeros_like(first)])
    two, five = [i for i, pixels in enumerate(asked) if len(pixels) > 1]
    np.testing.assert_array_equal(asked[two], batch[:2])
    np.testing.assert_array_equal(asked[five], batch)
    for number, alone in enumerate(asked[five + 1 : five + 6]):
        np.testing.assert_array_equal(alone, batch[number : number + 1])
    for (height, width), pixels in zip(parity.SIZES, asked[five + 6 :], strict=True):
        expected = Image.fromarray(first).resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels[0], np.asarray(expected))


def test_the_largest_differences_are_kept_wherever_they_were(reference: Reference) -> None:
    """One is in a map at one size, the others in the second picture of the first batch; none is in what comes last."""

    def degrade(out: Outputs, pixels: NDArray[np.uint8]) -> Outputs:
        if pixels.shape[1:3] == (32, 32):
            return out | {"dr_cam": out["dr_cam"] + np.float32(0.25) * reference(pixels).scales["dr_cam"]}
        if len(pixels) == 2:
            return out | {"me_probs": out["me_probs"] + np.array([[0], [5e-3]], np.float32)}
        return out

    found = check(reference, degrade, INT8)
    assert found.worst_cam == pytest.approx(0.25, rel=1e-3)
    assert found.batch_against_alone == pytest.approx(5e-3, rel=1e-3)
    assert found.worst == pytest.approx(5e-3, rel=1e-3)
    assert (found.worst_output, found.worst_image) == ("me_probs", "the first, mirrored")
    assert found.worst_image not in found.to_dict().values(), "in the contract it would travel, and may be a patient's"


def test_a_difference_in_a_batch_names_its_picture(reference: Reference) -> None:
    def degrade(out: Outputs, pixels: NDArray[np.uint8]) -> Outputs:
        return out | {"me_probs": out["me_probs"] + np.float32(2e-4) * (np.arange(len(pixels)) == 3)[:, None]}

    with pytest.raises(ParityError, match=r"me_probs of the first, upside down at \[\d\]"):
        check(reference, degrade, FP32)


def test_a_map_that_is_zero_everywhere_is_compared_too(reference: Reference) -> None:
    """Of a head that says the same of every picture; any difference from it is beyond the bound."""
    from torch import nn

    model = copy.deepcopy(reference.model)
    for layer in model.me_head:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
    flat = replace(reference, model=model)
    assert check(flat, lambda out, _pixels: out, FP32).worst_cam == 0.0
    with pytest.raises(ParityError, match=r"me_cam of eye0.png at .*: expected 0, found 1e-30"):
        check(flat, lambda out, _pixels: out | {"me_cam": out["me_cam"] + np.float32(1e-30)}, FP32)


def test_nothing_to_compare_on_is_refused(reference: Reference) -> None:
    with pytest.raises(ParityError, match="here: expected at least one photograph to compare on, found none"):
        check_parity(lambda pixels: reference(pixels).values, reference, [], FP32, "here")

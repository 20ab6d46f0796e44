"""The parts of ``--recipe released``: targets, averaged weights, schedule, augmentation, calibration, thresholds."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from eyes import write_set
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from retina.runtime.contract import HEADS, Contract, Head, Rule, decide
from retina.runtime.errors import UsageError
from retina.runtime.picture import decode
from retina.runtime.weighted_metrics import UNLABELLED
from retina.train import cameras
from retina.train.augment import augment_with_seed, make_augment
from retina.train.calibration import calibrated, calibration_faults, calibration_line, is_calibrated
from retina.train.cameras import _blurred, _other_mask, _other_sharpness, _specks, recompressed
from retina.train.checkpoint import Checkpoint, load_checkpoint
from retina.train.config import RECIPES, TrainConfig
from retina.train.data import DataSet
from retina.train.framing import make_preprocess
from retina.train.items import EpochPlan
from retina.train.loader import EvalBatches, make_loader
from retina.train.loop import fit
from retina.train.model import RetinaNet
from retina.train.resume import load_resume
from retina.train.scaling import Scaling, fit_scaling
from retina.train.screening import screening_threshold
from retina.train.signals import StopRequest
from retina.train.targets import dr_targets
from retina.train.totals import Totals
from retina.train.trainer import Trainer
from scipy.ndimage import find_objects, label, uniform_filter
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax
from scipy.stats import norm
from sklearn.metrics import roc_curve
from small_backbone import RESNET10
from small_network import linear
from small_run import trainer
from small_set import items, small_set
from torchvision.transforms import v2

pytestmark = pytest.mark.usefixtures("no_pictures")
RELEASED = replace(
    TrainConfig.of_recipe("released", {"data": ""}),
    epochs=2, batch_size=4, image_size=32, backbone=RESNET10, weights="none", workers=0, augment="notebook",
    precision="fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return small_set(tmp_path_factory.mktemp("set"), train=[0, 0, 0, 1, 2, 1, 0, 2, 0, 1, 0, 0], others=[0, 1, 2, 0])


def test_the_released_recipe_is_the_documented_one() -> None:
    notebook = TrainConfig.of_recipe("notebook", {"data": ""}).to_dict()
    released = TrainConfig.of_recipe("released", {"data": ""}).to_dict()
    documented: dict[str, tuple[str, str]] = {}
    for line in (Path(__file__).parents[1] / "docs" / "recipe.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `--"):
            options, *values = ([part.strip("` ") for part in cell.split(",")] for cell in line.split("|")[1:4])
            for option, before, after in zip(options, *values, strict=True):
                documented[option.removeprefix("--").replace("-", "_")] = before, after
    assert len(documented) == 10
    for option, (before, after) in documented.items():
        number = isinstance(notebook[option], int | float)
        expected = (float(before), float(after)) if number else (before, after)
        assert (notebook[option], released[option]) == expected, option
    assert {option for option in notebook if notebook[option] != released[option]} == {"recipe", *documented}


@pytest.mark.parametrize(
    ("recipe", "changed"),
    [
        ("released-512", {"epochs": 13, "lr_backbone": 1e-4, "lr_heads": 5e-4}),
        ("released-640", {"epochs": 19, "lr_backbone": 1e-4, "lr_heads": 5e-4, "image_size": 640}),
        (
            "released-open",
            {"epochs": 12, "lr_backbone": 1e-3, "lr_heads": 5e-4, "unfreeze_epoch": 1, "me_weight": 0.5},
        ),
    ],
)
def test_a_branch_of_the_released_recipe_is_the_documented_one(recipe: str, changed: dict[str, float]) -> None:
    """docs/recipe.md, "Three branches, and their mean"."""
    released = TrainConfig.of_recipe("released", {"data": ""}).to_dict()
    assert TrainConfig.of_recipe(recipe, {"data": ""}).to_dict() == {**released, "recipe": recipe, **changed}


def test_no_run_is_recorded_under_a_recipe_that_it_does_not_follow() -> None:
    with pytest.raises(UsageError, match=r"recipe: expected one of notebook, released, .*, found 'relesed'"):
        TrainConfig.of_recipe("relesed", {"data": ""})
    assert TrainConfig.of_recipe("released", {"data": "", "recipe": "notebook"}).recipe == "released"
    without: tuple[dict[str, Any], ...] = ({}, {"epochs": 42})
    for some in without:
        with pytest.raises(UsageError, match=r"recipe released: .* TrainConfig\.of_recipe\('released', "):
            TrainConfig("", "released", **some)
        with pytest.raises(UsageError, match=r"recipe released: expected its values too, found no .*ema"):
            TrainConfig.from_dict({"data": "", "recipe": "released", **some})
    notebook = {name: getattr(TrainConfig(""), name) for name in RECIPES["released"]}
    config = TrainConfig.of_recipe("released", {"data": "", **notebook})
    assert config == replace(TrainConfig.of_recipe("released", {"data": ""}), **notebook)
    for same in (replace(config), copy.copy(config), pickle.loads(pickle.dumps(config))):
        assert same == config == TrainConfig.from_dict(json.loads(config.to_json()))


def test_ordinal_targets_by_hand() -> None:
    near, far = math.exp(-2.2), math.exp(-4.4)
    expected = np.array([[1, near, far], [near, 1, near], [far, near, 1]])
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(dr_targets("ordinal", (1, 2, 3)).numpy(), expected, rtol=1e-6)
    assert torch.equal(dr_targets("hard", (0, 1, 2)), torch.eye(3))


def test_ordinal_targets_go_by_the_grades_and_not_by_their_places() -> None:
    far = math.exp(-8.8)  # for grades 0 and 4, in a set that has no others
    expected = np.array([[1, far], [far, 1]]) / (1 + far)
    np.testing.assert_allclose(dr_targets("ordinal", (0, 4)).numpy(), expected, rtol=1e-6)


def test_a_near_miss_costs_less_than_a_far_one() -> None:
    t = trainer(config=RELEASED)
    sure_of = torch.eye(3) * 8.0
    true, me = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2)
    losses = [t._sums(logits[None], me, true, true)["dr_loss"] for logits in sure_of]
    assert losses[0] < losses[1] < losses[2]


def test_cosine_rates_by_hand(data: DataSet) -> None:
    t = trainer(config=replace(RELEASED, epochs=10, lr_backbone=2e-4, lr_heads=1e-3, unfreeze_epoch=6))
    backbone, heads = t.optimizer.param_groups
    for epoch, share, factor, opened in (
        (1, 0.0, 1e-3, 1.0),
        (5, 0.0, 0.5 * (1 + math.cos(0.4 * math.pi)), 1.0),
        (6, 0.0, 0.5, 0.1),  # in the epoch that unfreezes the backbone
        (8, 0.5, 0.5 * (1 + math.cos(0.75 * math.pi)), 0.1),
    ):
        t.progress.epoch = epoch
        t._set_rates(share)
        assert backbone["lr"] == pytest.approx(2e-4 * factor * opened)
        assert heads["lr"] == pytest.approx(1e-3 * factor)
    t.progress.epoch = 1
    t._set_rates(0.25)  # of 10 epochs: half of the warm-up, a twentieth of the training
    half_way = 0.5 * (1 + math.cos(0.025 * math.pi)) * (0.5 + 1e-3)
    assert heads["lr"] == pytest.approx(1e-3 * half_way)


def test_cosine_rates_go_by_the_micro_batches_done(data: DataSet) -> None:
    """Three steps of two micro-batches each: at the third, two thirds of the epoch are done, not one."""
    t = trainer(config=replace(RELEASED, epochs=2, batch_size=2, accumulate=2, lr_heads=1e-3))
    train, _ = items(data)
    plan = EpochPlan(train.dr_index, 2, "shuffle", 42)
    rates: list[float] = []

    def show(done: int, totals: Totals) -> None:
        rates.append(t.optimizer.param_groups[1]["lr"])

    t.train_epoch(make_loader(train, 0, t.fabric, batch_sampler=plan), StopRequest(), show, plan.n_batches)
    third, two_thirds = (1e-3 * 0.5 * (1 + math.cos(math.pi * share / 2)) for share in (1 / 3, 2 / 3))
    assert rates == pytest.approx([1e-3 * 1e-3, third, two_thirds])


@pytest.mark.parametrize(("optimizer", "decay"), [("adamw", 0.02), ("adam", 0.0)])
def test_adamw_decays_weights_by_hand(optimizer: Literal["adam", "adamw"], decay: float) -> None:
    t = trainer(config=replace(RELEASED, optimizer=optimizer, lr_heads=1e-2))
    weight = linear(t.net.dr_head, 0).weight
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    t.optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 1e-2 * decay), rtol=1e-6, atol=0)


def test_a_head_that_does_not_learn_does_not_decay(data: DataSet) -> None:
    """Its loss counts for nothing, so that its gradients are 0, which AdamW takes for a reason to shrink it."""
    train, _ = items(data)
    t = trainer(config=replace(RELEASED, me_weight=0.0, ema=0.0, lr_heads=1e-2))
    t = Trainer(t.fabric, t.config, t.net, t.normalize, t.dr_grades, t.dr_weights, ("dr",))
    before = {name: tensor.clone() for name, tensor in t.net.state_dict().items()}
    plan = EpochPlan(train.dr_index, t.config.batch_size, "shuffle", 0)
    loader = make_loader(train, 0, t.fabric, batch_sampler=plan)
    t.train_epoch(loader, StopRequest(), lambda n, totals: None, plan.n_batches)
    for name, tensor in t.net.state_dict().items():
        if "_head." in name:
            assert torch.equal(tensor, before[name]) == name.startswith("me_head."), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_is_the_exponential_one_and_is_what_is_judged(data: DataSet, accumulate: int) -> None:
    """Of the network after each step, however many micro-batches a step has."""
    t = trainer(config=replace(RELEASED, ema=0.5, accumulate=accumulate))
    train, valid = items(data)
    kept: list[dict[str, torch.Tensor]] = []
    update = t.average.update_parameters

    def record(net: RetinaNet) -> None:
        kept.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        update(net)

    t.average.update_parameters = record
    plan = EpochPlan(train.dr_index, 4 // accumulate, "shuffle", 42)
    loader = make_loader(train, 0, t.fabric, batch_sampler=plan)
    t.train_epoch(loader, StopRequest(), lambda n, totals: None, plan.n_batches)
    assert len(kept) == 3
    for name in ("dr_head.3.weight", "backbone.bn1.running_mean"):
        expected = kept[0][name]  # the average starts with the first step's weights
        for weights in kept[1:]:
            expected = 0.5 * expected + 0.5 * weights[name]
        torch.testing.assert_close(t.eval_model.state_dict()[name], expected)
        assert not torch.equal(t.net.state_dict()[name], expected)
    (batch,) = EvalBatches(valid, len(valid))
    dr_logits, me_logits = t.predict([batch], len(valid))
    with torch.inference_mode():
        of_average = t.average.module.eval()(t.normalize(batch.image))
        of_network = t.net.eval()(t.normalize(batch.image))
    torch.testing.assert_close((dr_logits, me_logits), of_average)
    assert not torch.allclose(dr_logits, of_network[0], atol=1e-4)


def test_resumed_average_and_rates_are_those_of_a_run_never_stopped(data: DataSet, tmp_path: Path) -> None:
    def run(t: Trainer, stop_at: int | None = None) -> bool:
        steps = 0

        def show(done: int, totals: Totals) -> None:
            nonlocal steps
            steps += 1
            if steps == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        train, valid = items(data)
        return fit(t, train, valid, tmp_path / "resume.pth", lambda row: None, lambda history: None,
                   lambda *_: nullcontext(show))  # fmt: skip

    through = trainer(config=RELEASED)
    assert run(through)
    stopped = trainer(config=RELEASED)
    assert not run(stopped, stop_at=4)  # in the second of two epochs of three batches
    resumed = trainer(config=RELEASED)
    load_resume(resumed, tmp_path / "resume.pth")
    assert run(resumed)
    expected, found = through.eval_model.state_dict(), resumed.eval_model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert through.progress.history[-1]["lr_heads"] == resumed.progress.history[-1]["lr_heads"]


@pytest.mark.parametrize("value", [0, 128])
def test_cameras_keep_black_black(value: int) -> None:
    """Around the field, and everywhere if there is no field."""
    picture = torch.zeros(3, 64, 64, dtype=torch.uint8)
    picture[:, 16:48, 16:48] = value
    augment = make_augment("cameras")
    for seed in range(40):
        changed = augment_with_seed(augment, picture, seed)
        assert changed.dtype == torch.uint8
        assert changed.shape == picture.shape
        if value == 0:
            assert changed.max() <= 1  # JPEG may round
        else:
            assert changed[:, :2].float().mean() < 3.0


def test_cameras_change_colour_light_and_sharpness() -> None:
    torch.manual_seed(0)
    disc = torch.linspace(-1, 1, 96).view(-1, 1) ** 2 + torch.linspace(-1, 1, 96) ** 2 < 0.8
    picture = (disc * (torch.rand(3, 96, 96) * 60 + 90)).to(torch.uint8)
    changed = torch.stack([augment_with_seed(make_augment("cameras"), picture, seed) for seed in range(60)]).float()
    again = augment_with_seed(make_augment("cameras"), picture, 7)
    assert torch.equal(again.float(), changed[7])
    middle = changed[:, :, 32:64, 32:64]
    means = middle.mean(dim=(2, 3))  # (60, 3)
    assert means.mean(dim=1).std() > 15  # exposure
    assert (means[:, 0] - means[:, 2]).std() > 8  # white balance
    detail = (middle - middle.roll(1, -1)).abs().mean(dim=(1, 2, 3))
    assert detail.min() < 0.3 * detail.max()  # sharpness


def test_the_field_is_cut_at_top_and_bottom_or_to_a_smaller_circle() -> None:
    size = 200
    white = torch.full((3, size, size), 255, dtype=torch.uint8)
    centred = (np.arange(size) + 0.5) / size * 2 - 1
    radius = np.hypot(centred[:, None], centred)
    torch.manual_seed(0)
    bands, discs = [], []
    for _ in range(80):
        channels = _other_mask(white).numpy()
        assert set(np.unique(channels)) <= {0, 255}
        kept = channels[0] > 0
        assert (channels == channels[0]).all()
        if (kept == kept[:, :1]).all():  # whole rows
            rows = np.flatnonzero(kept[:, 0])
            assert len(rows) == rows[-1] - rows[0] + 1
            bands.append((rows[0], size - 1 - rows[-1]))
        else:
            discs.append(radius[kept].max())
            assert radius[~kept].min() == pytest.approx(discs[-1], abs=0.02)
    assert len(bands) == pytest.approx(40, abs=14)
    for side in np.array(bands).T:
        assert side.min() <= 2 and 24 <= side.max() <= 28  # up to 0.14 of 200
    assert 0.79 <= min(discs) < 0.83 and 0.97 < max(discs) <= 1.01


def test_a_photograph_is_blurred_or_sharpened_as_often_as_said() -> None:
    torch.manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(3, 192, 192)

    def detail(picture: torch.Tensor) -> float:
        return (picture - picture.roll(1, -1)).abs().mean().item()

    changes = np.array([detail(_other_sharpness(x)) / detail(x) for _ in range(400)])
    softer, same, sharper = (changes < 1.0).sum(), (changes == 1.0).sum(), (changes > 1.0).sum()
    assert softer + same + sharper == 400
    assert softer == pytest.approx(0.36 * 400, abs=24)  # out of focus, or of fewer pixels
    assert sharper == pytest.approx(0.10 * 400, abs=14)
    assert changes.min() < 0.5 and changes.max() > 1.4


@pytest.mark.parametrize(("side", "sigma"), [(3, 0.3), (5, 1.2), (17, 2.9), (29, 4.6)])
def test_blur_is_torchvisions(side: int, sigma: float) -> None:
    x = torch.rand(3, 64, 64)
    expected = v2.functional.gaussian_blur(x, [side, side], [sigma, sigma])
    torch.testing.assert_close(_blurred(x, side, sigma), expected, atol=3e-6, rtol=0)


def test_specks_are_points_out_of_focus() -> None:
    """Compared with a blur of points: the same random draws, in the same order."""
    for seed in range(20):
        torch.manual_seed(seed)
        found = _specks(torch.zeros(3, 128, 128))[0]
        torch.manual_seed(seed)
        places = torch.randint(128 * 128, (int(torch.exp(torch.rand(()) * np.log(60.0))),))
        sigma = float(torch.exp(np.log(0.5) + torch.rand(()) * np.log(7.0))) * 128 / 384
        depth = 0.4 + 0.6 * torch.rand(128 * 128)
        points = torch.zeros(128 * 128)
        points[places] = depth[places]
        reach = int(np.ceil(3.0 * sigma))
        padded = F.pad(points.view(1, 128, 128), [reach] * 4)  # grains at the edge are cut off by it, not reflected
        side = 2 * reach + 1
        blurred = v2.functional.gaussian_blur(padded, [side, side], [sigma, sigma])[0, reach:-reach, reach:-reach]
        factor = 2.0 * np.pi * sigma**2 * (1.0 + 1.5 * torch.rand(()).item())
        torch.testing.assert_close(found, (blurred * factor).clamp(max=1.0), atol=1e-4, rtol=0)


def test_specks_are_round_grains_that_take_light_of_every_colour_alike() -> None:
    torch.manual_seed(1)
    found = []
    for _ in range(30):
        specks = _specks(torch.zeros(3, 192, 192))
        assert specks.shape == (1, 192, 192)
        assert specks.min() >= 0.0
        assert 0.3 < specks.max() <= 1.0
        grains, count = label(specks[0].numpy() > 0.15)
        found.append(count)
        for rows, columns in find_objects(grains):
            assert max(rows.stop - rows.start, columns.stop - columns.start) <= 40  # including touching grains
        assert specks.mean() < 0.2
    assert min(found) <= 3
    assert 30 <= max(found) <= 60


def test_cameras_sometimes_leave_dust_on_a_photograph() -> None:
    """On a uniform field, only dust is darker than its surroundings within a few pixels."""
    plain = torch.full((3, 160, 160), 140, dtype=torch.uint8)
    darkest = []
    for seed in range(60):
        middle = augment_with_seed(make_augment("cameras"), plain, seed)[:, 40:120, 40:120].float().numpy().mean(axis=0)
        darkest.append((uniform_filter(middle, 3) - uniform_filter(middle, 21))[11:-11, 11:-11].min())
    assert 5 <= (np.array(darkest) < -8.0).sum() <= 30


def middles_of_only(branch: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """Middles, (20, 80, 80, 3), of a uniform field to which ``cameras`` does just the branch of this number."""
    plain, middles = torch.full((3, 160, 160), 140, dtype=torch.uint8), []
    for seed in range(20):
        asked = count()
        monkeypatch.setattr(cameras, "_chance", lambda _probability, asked=asked: next(asked) == branch)
        middles.append(augment_with_seed(cameras.as_another_camera, plain, seed)[:, 40:120, 40:120])
    return torch.stack(middles).permute(0, 2, 3, 1).double().numpy()


def test_haze_is_a_smooth_warm_veil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its light, (0.70, 0.55, 0.40), has more red and less blue than the field's 140 / 255."""
    middles = middles_of_only(3, monkeypatch)
    red, green, blue = middles.mean(axis=(0, 1, 2))
    assert red > 143 and green == pytest.approx(140, abs=4) and blue < 137
    assert np.abs(np.diff(middles, axis=1)).max() <= 3


def test_a_sensors_noise_is_independent_and_changes_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    middles = middles_of_only(6, monkeypatch)
    spread = middles.std(axis=(1, 2, 3))
    assert 255 * 0.005 <= spread.min() < 255 * 0.012 and 255 * 0.03 < spread.max() <= 255 * 0.041
    np.testing.assert_allclose(middles.mean(axis=(1, 2)), 140, atol=0.5)
    loudest = middles[spread.argmax()].reshape(-1, 3) - 140
    assert abs(np.corrcoef(loudest, rowvar=False)[0, 1]) < 0.05
    assert abs(np.corrcoef(loudest[1:, 0], loudest[:-1, 0])[0, 1]) < 0.05


def test_a_recompressed_picture_is_pillows_jpeg_of_a_quality_in_the_range() -> None:
    rows, columns = np.mgrid[:48, :48]
    pixels = np.stack([5 * rows, 3 * columns, rows ^ columns], axis=2).astype(np.uint8)
    by_quality = []
    for quality in (30, 31):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        by_quality.append(np.asarray(Image.open(file)).tobytes())
    picture = torch.from_numpy(pixels).permute(2, 0, 1)
    torch.manual_seed(0)
    found = {recompressed(picture, 30, 31).permute(1, 2, 0).numpy().tobytes() for _ in range(20)}
    assert found == set(by_quality)


def test_cameras_recompress_at_qualities_from_25_to_90(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognised by comparing with Pillow's JPEG of every quality, of a picture to which nothing else is done."""
    rows, columns = np.mgrid[:48, :48]
    pixels = np.stack([5 * rows, 3 * columns, rows ^ columns], axis=2).astype(np.uint8)
    qualities: dict[bytes, int] = {}
    for quality in range(96):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        qualities[np.asarray(Image.open(file)).tobytes()] = quality
    for change in ("_FLIPS", "_POSE", "_other_sharpness"):
        monkeypatch.setattr(cameras, change, lambda unchanged: unchanged)
    picture, found = torch.from_numpy(pixels).permute(2, 0, 1), []
    for seed in range(400):
        asked = count()
        monkeypatch.setattr(cameras, "_chance", lambda _probability, asked=asked: next(asked) == 7)
        changed = augment_with_seed(cameras.as_another_camera, picture, seed)
        found.append(qualities[changed.permute(1, 2, 0).numpy().tobytes()])
    assert 25 <= min(found) <= 27 and 88 <= max(found) <= 90


def test_temperature_is_the_likeliest() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (400, 4))
    true = np.array([rng.choice(4, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    too_sure = torch.from_numpy(3.0 * logits).float()

    def nll(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(too_sure.double() / math.exp(log_t), torch.from_numpy(true)))

    reference = math.exp(minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x)
    found = fit_scaling(too_sure, torch.from_numpy(true))
    assert found.temperature == pytest.approx(reference, rel=1e-4)
    assert 2.4 < found.temperature < 3.6
    assert torch.equal(found.bias, torch.zeros(4))


@pytest.mark.parametrize("bias_sd", [0.05, 0.3, 100.0])
def test_biases_are_the_likeliest_under_their_prior(bias_sd: float) -> None:
    """Every third photograph of class 0 turned out to be of class 2, of which the network knew nothing."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, (300, 3))
    true = np.array([rng.choice(3, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    true[np.flatnonzero(true == 0)[::3]] = 2

    def loss(parameters: NDArray[np.float64]) -> float:
        scaled = logits / math.exp(parameters[0]) + parameters[1:]
        likelihood = log_softmax(scaled, axis=1)[range(300), true].sum()
        return float(-likelihood - norm(0, bias_sd).logpdf(parameters[1:]).sum())

    reference = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-6}).x
    unlabelled = torch.cat([torch.from_numpy(logits), torch.full((50, 3), 7.0)])
    known = torch.cat([torch.from_numpy(true), torch.full((50,), UNLABELLED)])
    found = fit_scaling(unlabelled, known, bias_sd)
    assert found.temperature == pytest.approx(math.exp(reference[0]), rel=1e-3)
    np.testing.assert_allclose(found.bias, reference[1:], atol=2e-3)


def test_a_temperature_has_its_bounds() -> None:
    """If all answers are right, no confidence is too high; if all are wrong, none is low enough."""
    right = torch.tensor([[0.1, -0.1], [-0.1, 0.1]])
    assert fit_scaling(right, torch.tensor([0, 1])).temperature == pytest.approx(0.05)
    assert fit_scaling(right, torch.tensor([1, 0])).temperature == pytest.approx(20.0)


def test_a_temperature_at_its_bounds_is_said_to_be() -> None:
    facts = {
        "dr_temperature": fit_scaling(torch.eye(2) * 0.1, torch.tensor([1, 0])).temperature,
        "me_temperature": fit_scaling(torch.eye(2), torch.tensor([0, 1])).temperature,
    }
    line = calibration_line(Contract(provenance=facts))
    assert "DR 20.000 (the highest allowed: the answers say almost nothing), ME 0.050 (the lowest allowed);" in line
    facts = {"dr_temperature": 1.234, "me_temperature": 0.9}
    line = calibration_line(Contract(provenance=facts))
    assert line.startswith("temperatures DR 1.234, ME 0.900; referral")
    line = calibration_line(Contract(provenance={**facts, "dr_bias": [-0.25, 0.125, 0.0]}))
    assert line.startswith("temperatures DR 1.234, ME 0.900; biases DR -0.250 +0.125 +0.000; referral")


@pytest.mark.parametrize("gap", [1.0, 1e4])
def test_a_threshold_that_refers_everybody_is_said_to(data: DataSet, gap: float) -> None:
    """The network is surest of all that the one photograph with DR to refer, of four, has none: probability 0.0."""
    best = Checkpoint(RetinaNet(3, RESNET10).state_dict(), RESNET10, Contract(dr_grades=(0, 1, 2)))
    wrong = gap * torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]])
    found = calibrated(best, items(data)[1], wrong, torch.zeros(4, 2))
    everybody = found.contract.thresholds["referable_dr"].threshold == 0.0
    assert everybody == (gap > 1)
    assert ("Warning: everybody will be referred for DR, because" in calibration_line(found.contract)) == everybody


@pytest.mark.parametrize("lacking", HEADS)
def test_a_checkpoint_calibrated_for_one_head_alone_is_calibrated(data: DataSet, lacking: Head) -> None:
    valid = data.splits["valid"]
    photos = [
        replace(photo, dr_grade=None) if lacking == "dr" else replace(photo, me_label=None) for photo in valid.photos
    ]
    half = replace(valid, photos=tuple(photos))
    _, half_labelled = items(replace(data, splits={**data.splits, "valid": half}))
    best = Checkpoint(RetinaNet(3, RESNET10).state_dict(), RESNET10, Contract(dr_grades=(0, 1, 2)))
    assert not is_calibrated(best.contract)
    found = calibrated(best, half_labelled, torch.eye(3)[[0, 1, 2, 0]], torch.eye(2)[[0, 0, 1, 0]])
    assert is_calibrated(found.contract)


def test_a_folded_scaling_calibrates_the_logits() -> None:
    torch.manual_seed(1)
    net = RetinaNet(5, RESNET10).eval()
    x = torch.randn(2, 3, 32, 32)
    dr, me = net(x)
    bias = torch.tensor([0.5, 0, -0.25, 1, 0])
    net.load_state_dict(Scaling(2.5, bias).folded(net.state_dict(), "dr_head"))
    dr_scaled, me_same = net(x)
    torch.testing.assert_close(dr_scaled, dr / 2.5 + bias)
    assert torch.equal(me_same, me)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 50)), min_size=2, max_size=60))
def test_screening_threshold_is_the_most_specific_that_is_sensitive(pairs: list[tuple[int, int]]) -> None:
    true, prob = np.array([t for t, _ in pairs]), np.array([p / 50 for _, p in pairs])
    if true.sum() in (0, len(true)):
        return
    threshold = screening_threshold(true, prob)
    said = prob >= threshold
    fpr, tpr, _ = roc_curve(true, prob, drop_intermediate=False)
    assert said[true == 1].mean() >= 0.90
    assert said[true == 0].mean() == pytest.approx(fpr[tpr >= 0.90 - 1e-12].min())


def test_screening_threshold_by_hand() -> None:
    true = np.array([1] * 10 + [0] * 3)
    prob = np.array([0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.1, 0.45, 0.3, 0.2])
    assert screening_threshold(true, prob) == pytest.approx((0.5 + 0.45) / 2)  # nine of ten, without a false alarm
    assert screening_threshold(true, prob, 0.91) == pytest.approx(0.1 / 2)  # all ten
    assert screening_threshold(true, prob, 0.8) == pytest.approx((0.55 + 0.5) / 2)
    with pytest.raises(UsageError, match="found none"):
        screening_threshold(np.zeros(3, int), np.ones(3))


def test_a_sensitivity_of_whole_photographs_asks_for_no_more_of_them() -> None:
    """0.55 x 100 is 55.00000000000001 in floating point."""
    true, prob = np.ones(100, int), np.arange(100, 0, -1) / 100
    assert screening_threshold(true, prob, 0.55) == pytest.approx((0.46 + 0.45) / 2)


def test_valid_is_enough_to_calibrate_on_with_the_lowest_referable_grade(data: DataSet) -> None:
    """Its worst eye has grade 2."""
    assert calibration_faults(data, Contract()) == []
    rules = {**Contract().thresholds, "referable_dr": Rule("at_least", 0.5, 3)}
    (fault,) = calibration_faults(data, Contract(thresholds=rules))
    assert "expected photographs with DR grade of 3 or more to calibrate on, found none" in fault


def test_referral_rules_decide_beside_the_plain_ones() -> None:
    rules = {**Contract().thresholds, "referable_me": Rule("at_least", 0.2), "referable_dr": Rule("at_least", 0.3, 2)}
    contract = Contract(thresholds=rules)
    decision = decide(contract, np.array([0.6, 0.05, 0.2, 0.1, 0.05]), np.array([0.75, 0.25]))
    assert (decision.grade, decision.me_risk) == (0, 0)
    assert (decision.referable, decision.referable_me) == (True, True)
    assert Contract.from_json(contract.to_json()) == contract


def test_a_contract_from_before_the_referral_of_me_still_opens() -> None:
    body = json.loads(Contract().to_json())
    del body["thresholds"]["referable_me"]
    assert Contract.from_json(json.dumps(body)).thresholds["referable_me"] == Rule("at_least", 0.5)


def test_recipe_fills_in_what_was_not_asked_for(tmp_path: Path) -> None:
    from retina.train.cli import main

    root = write_set(tmp_path / "data", train=[0, 1, 2, 3, 4] * 2, others=[0, 1, 2, 3, 4, 2])
    options = ["--recipe", "released", "--epochs", "1", "--image-size", "32", "--backbone", RESNET10]
    options += ["--weights", "none", "--workers", "0", "--batch-size", "5", "--artifacts", str(tmp_path), "--name", "r"]
    result = CliRunner().invoke(main, [str(root), *options])
    assert result.exit_code == 0, result.output
    assert "Calibrated on valid" in result.output
    config = json.loads((tmp_path / "runs/r/config.json").read_text())
    asked = {"epochs": 1, "image_size": 32}
    assert {key: config[key] for key in RECIPES["released"]} == {**RECIPES["released"], **asked}
    checkpoint = load_checkpoint(tmp_path / "runs/r/best.pth")
    rules = checkpoint.contract.thresholds
    assert rules["dr"] == rules["me"] == Rule()
    assert rules["referable_dr"].from_grade == 2
    assert rules["referable_dr"].threshold != 0.5
    assert checkpoint.contract.provenance["dr_temperature"] > 0
    assert checkpoint.contract.provenance["dr_sensitivity"] == checkpoint.contract.provenance["me_sensitivity"] == 0.9
    assert checkpoint.metrics["splits"]["valid"]["all"]["referable_dr"]["sensitivity"]["value"] >= 0.90
    # Both files have the averaged weights, which the epoch was judged by, and the best one a temperature as well.
    (row,) = pd.read_csv(tmp_path / "runs/r/history.csv").to_dict("records")
    preprocess = make_preprocess(checkpoint.contract.preprocessing)
    x = torch.cat([preprocess(torch.from_numpy(decode(root / f"valid/images/eye_{n}.jpg"))[None]) for n in range(6)])
    for name, temperature in (("best", checkpoint.contract.provenance["me_temperature"]), ("final", 1.0)):
        with torch.inference_mode():
            _, me = load_checkpoint(tmp_path / f"runs/r/{name}.pth").build_model()(x)
        loss = F.cross_entropy(me * temperature, torch.tensor([0, 0, 1, 1, 1, 1]))
        assert loss.item() == pytest.approx(row["valid_me_loss"], rel=1e-4), name
    # And the figures and the table are those of the calibrated checkpoint.
    x = torch.cat([preprocess(torch.from_numpy(decode(root / f"test/images/eye_{n}.jpg"))[None]) for n in range(6)])
    with torch.inference_mode():
        dr, me = checkpoint.build_model()(x)
    table = pd.read_csv(tmp_path / "test_predictions.csv")
    np.testing.assert_allclose(table[[f"dr_prob_{grade}" for grade in range(5)]], dr.softmax(1), atol=1e-5)
    np.testing.assert_allclose(table["me_prob"], me.softmax(1)[:, 1], atol=1e-5)


def test_a_run_that_failed_while_it_finished_is_calibrated_once(tmp_path: Path) -> None:
    from retina.train.cli import main

    root = write_set(tmp_path / "data", train=[0, 1, 2, 3, 4] * 2, others=[0, 1, 2, 3, 4, 2])
    shutil.copy(root / "train/images/eye_0.jpg", root / "test/images/eye_0.jpg")
    options = ["--recipe", "released", "--epochs", "1", "--image-size", "32", "--backbone", RESNET10]
    options += ["--workers", "0", "--batch-size", "5", "--artifacts", str(tmp_path), "--allow-leakage"]

    def run(name: str, *more: str) -> Result:
        return CliRunner().invoke(main, [*more, "--name", name, "--artifacts", str(tmp_path)])

    published = tmp_path / "retina_multitask_best.pth"
    published.mkdir()  # so that the calibrated checkpoint cannot be published
    assert run("a", str(root), *options, "--weights", "none").exit_code == 2
    before = load_checkpoint(tmp_path / "runs/a/best.pth")
    published.rmdir()
    result = run("a", "--resume")  # without --allow-leakage, which was given as it began
    assert result.exit_code == 0, result.output
    assert "Warning: same bytes: train/eye_0.jpg (line 2) and test/eye_0.jpg (line 2)" in result.output
    assert "Resuming a at the end of its last epoch" in result.output
    after = load_checkpoint(tmp_path / "runs/a/best.pth")
    assert before.contract.provenance["dr_temperature"] != 1.0
    assert after.contract == before.contract
    assert all(torch.equal(after.weights[name], tensor) for name, tensor in before.weights.items())
    # A run that starts from a calibrated checkpoint is calibrated again.
    result = run("b", str(root), *options, "--weights", str(tmp_path / "runs/a/best.pth"))
    assert result.exit_code == 0, result.output
    again = load_checkpoint(tmp_path / "runs/b/best.pth").contract.provenance
    assert (again["run"], again["dr_temperature"] > 0) == ("b", True)
    assert again["dr_temperature"] != after.contract.provenance["dr_temperature"]


def test_cameras_flip_and_recompress_and_light_unevenly_as_often_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(("recompressed", "_uneven"), 0)
    for name in counts:
        done = getattr(cameras, name)

        def counted(*arguments: Any, name: str = name, done: Any = done) -> Any:
            counts[name] += 1
            return done(*arguments)

        monkeypatch.setattr(cameras, name, counted)
    grey = torch.full((3, 64, 64), 140, dtype=torch.uint8)
    for seed in range(300):
        augment_with_seed(cameras.as_another_camera, grey, seed)
    assert 65 < counts["recompressed"] < 115  # 0.3 of 300
    assert 150 < counts["_uneven"] < 215  # 0.4 for light and 0.2 for haze
    # Nothing but the flips.
    for name, same in (("_POSE", lambda x: x), ("_chance", lambda _: False), ("_other_sharpness", lambda x: x)):
        monkeypatch.setattr(cameras, name, same)
    corner = torch.zeros(3, 64, 64, dtype=torch.uint8)
    corner[:, :8, :8] = 200
    flipped = [augment_with_seed(cameras.as_another_camera, corner, seed)[0] for seed in range(300)]
    assert 120 < sum(int(picture[:, 56:].any()) for picture in flipped) < 180  # left and right, 0.5 of 300
    assert 65 < sum(int(picture[56:].any()) for picture in flipped) < 115  # up and down, 0.3


def test_cameras_turn_move_and_scale_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, same in (("_FLIPS", lambda x: x), ("_chance", lambda _: False), ("_other_sharpness", lambda x: x)):
        monkeypatch.setattr(cameras, name, same)
    square = torch.zeros(3, 96, 96, dtype=torch.uint8)
    square[:, 42:54, 66:78] = 200  # its middle is 24 pixels right of the centre
    places, areas = [], []
    for seed in range(200):
        found = augment_with_seed(cameras.as_another_camera, square, seed)[0] > 100
        places.append(found.nonzero().double().mean(dim=0).tolist())
        areas.append(float(found.sum()) / 144)
    down, right = (np.array(places) - 47.5).T
    assert 4 < down.std() < 10  # up to 25 degrees of 24 pixels, and 5% of 96
    assert 2 < right.std() < 8 and right.mean() == pytest.approx(24, abs=3)
    assert 0.5 < min(areas) < 0.75 and 1.3 < max(areas) < 1.6  # (1 - 0.2)^2 and (1 + 0.2)^2

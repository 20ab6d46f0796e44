"""Faithfulness: each measure on a case whose answer is known."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from legends import require_clear
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from retina.gradcam import GradCAM, deletion, faithfulness, faithfulness_report, head_logit, randomisation
from retina.gradcam.cli import main
from retina.gradcam.explainer import CheckpointExplainer
from retina.gradcam.faithfulness import CENTRE, CHANCE, MAP, Faithfulness, Measurement, _lit, _mean_of_seen, measure
from retina.gradcam.faithfulness import _on_lesions as figures_on_lesions
from retina.gradcam.faithfulness_report import _bars, _draw_curves, as_markdown, write_picture
from retina.gradcam.interval import Interval, bootstrap
from retina.gradcam.lesions import MaskedPhotograph, read_lesions
from retina.gradcam.pointing import Pointing, centre_prior, point
from retina.gradcam.randomisation import ALIKE_BELOW, STAGES, redrawn_models, similarity
from retina.runtime.contract import Contract, Head, Preprocessing
from retina.runtime.errors import AnnotationError, PictureError
from retina.runtime.field import LitField
from retina.train.checkpoint import Checkpoint, load_checkpoint
from retina.train.model import RetinaNet
from retina.train.synthetic import write_lesions
from scipy.ndimage import gaussian_filter
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import spearmanr
from small_backbone import RESNET10
from torch import Tensor, nn

WHOLE = LitField(0.0, 0.0, 1.0, 1.0, np.ones((64, 64), np.float32))


def spot(row: int, column: int, shape: tuple[int, int] = (8, 8)) -> np.ndarray:
    values = np.zeros(shape, np.float32)
    values[row, column] = 1
    return values


def test_pointing_counts_what_can_be_counted_by_hand() -> None:
    lesion = np.zeros((512, 512), np.bool_)
    lesion[64:128, 128:192] = True  # cell (1, 2) of 8 x 8
    found = point(spot(1, 2), WHOLE, lesion)
    assert found.hit == 1
    assert found.area == pytest.approx(1 / 64)
    # A bilinear tent over its own cell: (integral of 1 - |t| over the middle half of [-1, 1])^2 = 0.75^2.
    assert found.energy == pytest.approx(0.75**2, abs=0.01)
    # 64 square pixels, widened by 7.5 on each side with rounded corners.
    assert found.chance_hit == pytest.approx((64**2 + 4 * 64 * 7.5 + np.pi * 7.5**2) / 512**2, rel=0.03)
    away = point(spot(6, 6), WHOLE, lesion)
    assert (away.hit, away.energy) == (0, 0)
    even = point(np.ones((8, 8), np.float32), WHOLE, lesion)
    assert even.energy == pytest.approx(even.area)


def test_a_near_miss_counts_within_the_tolerance() -> None:
    lesion = np.zeros((512, 512), np.bool_)
    peak = 1.5 * 64  # centre of cell (1, 1)
    lesion[:, round(peak) + 6 : round(peak) + 20] = True
    assert point(spot(1, 1), WHOLE, lesion).hit == 1
    assert point(spot(1, 1), WHOLE, np.roll(lesion, 6, axis=1)).hit == 0


def test_only_the_lit_field_counts() -> None:
    lit = np.zeros((64, 64), np.float32)
    lit[:, :32] = 1
    half = LitField(0.0, 0.0, 1.0, 1.0, lit)
    lesion = np.zeros((512, 512), np.bool_)
    lesion[:, 128:384] = True  # half of the lesion is lit
    found = point(np.ones((8, 8), np.float32), half, lesion)
    assert found.area == pytest.approx(0.5, abs=0.02)
    assert found.energy == pytest.approx(0.5, abs=0.02)
    lesion[:, :262] = False  # now all of it is in the dark, beside the field
    unseen = point(np.ones((8, 8), np.float32), half, lesion)
    assert (unseen.hit, unseen.chance_hit, unseen.area) == (0, 0, 0)


def test_the_field_ends_where_it_is_half_lit() -> None:
    """Of 128 columns 64 are lit, and another 32 are the field's dim border, which does not count."""
    lit = np.zeros((128, 128), np.float32)
    lit[:, :64], lit[:, 64:96] = 1, 0.4
    lesion = np.zeros((128, 128), np.bool_)
    lesion[:, 32:96] = True
    found = point(np.ones((8, 8), np.float32), LitField(0.0, 0.0, 1.0, 1.0, lit), lesion)
    assert (found.area, found.energy) == (32 / 64, 32 / 64)
    assert found.chance_hit == 33 / 64  # one column more within the tolerance, of 1.9 pixels


def test_what_is_deleted_ends_where_the_field_is_half_lit(tmp_path: Path) -> None:
    """Grey level 20 is half lit."""
    contract = Contract(Preprocessing(image_size=64, framing="squash"))
    Checkpoint(RetinaNet(5, RESNET10).state_dict(), RESNET10, contract).save(tmp_path / "squash.pth")
    distance = np.hypot(*np.mgrid[-31.5:32, -31.5:32])
    level = np.select([distance < 20, distance < 26], [150, 18], default=0)
    image = torch.from_numpy(np.repeat(level[..., None], 3, axis=2).astype(np.uint8))[None]
    lit = _lit(CheckpointExplainer(tmp_path / "squash.pth"), image)
    np.testing.assert_array_equal(lit.numpy(), distance < 20)


def test_a_blank_map_misses() -> None:
    lesion = np.ones((64, 64), np.bool_)
    found = point(np.zeros((8, 8), np.float32), WHOLE, lesion)
    assert (found.hit, found.energy, found.area) == (0, 0, 1)


def test_the_centre_prior_is_in_the_centre() -> None:
    prior = centre_prior((9, 9))
    assert [int(at) for at in np.unravel_index(prior.argmax(), prior.shape)] == [4, 4]
    assert prior[4, 4 - 2] / prior[4, 4] == pytest.approx(np.exp(-0.5 * (2 / 9 / 0.25) ** 2))


def test_one_photograph_has_no_interval() -> None:
    interval = bootstrap(np.array([[0.1]]), lambda s: s[..., 0])
    assert interval.value == 0.1
    assert np.isnan([interval.low, interval.high]).all()


def test_the_interval_is_that_of_scipy() -> None:
    samples = np.random.default_rng(1).gamma(2.0, size=(20, 2))
    mine = bootstrap(samples, lambda s: s[..., 0] / s[..., 1])
    theirs = scipy_bootstrap(
        (samples[:, 0], samples[:, 1]),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True, vectorized=True, method="percentile", n_resamples=5000, rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert mine.value == pytest.approx(samples[:, 0].mean() / samples[:, 1].mean())
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), rel=0.06)
    assert f"{mine:.1f}" == f"{mine.value:.1f} ({mine.low:.1f} to {mine.high:.1f})"


class Corner(nn.Module):
    """A network that recognises class 1 only by the contrast (variance) of the upper left quarter."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        quarter = x[:, 0, : x.shape[2] // 2, : x.shape[3] // 2].var(dim=(1, 2))
        logits = torch.stack([torch.zeros_like(quarter), 8 * quarter - 4], dim=1)
        return logits, logits.flip(1)


class Contrast(nn.Module):
    """A network whose logits of class 1 are the logarithm of the contrast (standard deviation)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        contrast = x[:, 0].std(dim=(1, 2), correction=0).log()
        logits = torch.stack([torch.zeros_like(contrast), contrast], dim=1)
        return logits, logits.flip(1)


def test_deletion_falls_and_insertion_rises_early_where_the_map_is_right() -> None:
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    lit = torch.ones(32, 32, dtype=torch.bool)
    right, wrong = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    right[:2, :2], wrong[2:, 2:] = 1, 1
    found = deletion.curves(Corner(), x, lit, {"right": right, "wrong": wrong})  # type: ignore[arg-type]
    (deleted, inserted), (deleted_wrong, inserted_wrong) = found["right"], found["wrong"]
    with torch.no_grad():
        whole = Corner()(x)[0].softmax(dim=1)[0].numpy()
    for curves in found.values():
        np.testing.assert_allclose(curves[0][0, :2], whole, rtol=1e-6)
        np.testing.assert_allclose(curves[1][-1, :2], whole, rtol=1e-6)
        np.testing.assert_array_equal(curves[0][-1], curves[1][0])
    assert deleted.shape == (len(deletion.FRACTIONS), 4)
    np.testing.assert_allclose(deleted[:, 2:], deleted[:, 1::-1])  # the other head
    assert deletion.area_under(deleted[:, 1]) < deletion.area_under(deleted_wrong[:, 1]) - 0.2
    assert deletion.area_under(inserted[:, 1]) > deletion.area_under(inserted_wrong[:, 1]) + 0.2


@pytest.mark.parametrize("side", [40, 120])
def test_the_blur_is_a_share_of_the_side(side: int) -> None:
    """A twentieth of it, so that the same lesions vanish whatever the size of the network's input."""
    x = np.random.default_rng(0).normal(0, 3, (1, 3, side, side)).astype(np.float32)
    blurred = gaussian_filter(x, (0, 0, side / 20, side / 20), mode="mirror", truncate=2.0)
    lit, even = torch.ones(side, side, dtype=torch.bool), np.ones((4, 4), np.float32)
    deleted, _ = deletion.curves(Contrast(), torch.from_numpy(x), lit, {"": even})[""]  # type: ignore[arg-type]
    for found, seen in ((deleted[0], x), (deleted[-1], blurred)):
        assert found[1] == pytest.approx(1 / (1 + np.exp(-np.log(seen[0, 0].std()))), rel=1e-3)


def test_pixels_are_ranked_in_the_lit_field_alone_and_equal_ones_at_random() -> None:
    lit = torch.zeros(32, 32, dtype=torch.bool)
    lit[:, 8:24] = True
    rank = deletion._rank(np.ones((4, 4), np.float32), lit)
    assert (rank[~lit] > 1).all()
    np.testing.assert_allclose(np.sort(rank[lit].numpy()), np.arange(512) / 512)
    assert 96 < (rank[:16] < 0.5).sum() < 160, "as many above as below"
    assert torch.equal(rank, deletion._rank(np.ones((4, 4), np.float32), lit))


def test_the_area_under_a_straight_line_is_half() -> None:
    assert deletion.area_under(deletion.FRACTIONS) == pytest.approx(0.5)


def test_redrawing_goes_from_the_heads_down_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = RetinaNet(5, RESNET10).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training
            module.weight.data.uniform_(0.5, 1.5)
            assert module.running_mean is not None
            module.running_mean.uniform_(-1, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state_of_torch = torch.random.get_rng_state()
    changed = []
    for _, redrawn in redrawn_models(model, lambda: RetinaNet(5, RESNET10), seed=3):
        state = redrawn.state_dict()
        names = [name for name in state if not state[name].equal(before[name])]
        changed.append({name.split(".")[1 if name.startswith("backbone") else 0] for name in names})
    assert len(changed) == len(STAGES)
    assert changed[0] == {"dr_head", "me_head"}
    assert changed[1] == {"dr_head", "me_head", "layer4"}
    assert changed[-1] == {"dr_head", "me_head", "layer4", "layer3", "layer2", "layer1", "conv1", "bn1"}
    torch.manual_seed(3)
    untrained = RetinaNet(5, RESNET10).state_dict()
    assert all(torch.equal(tensor, untrained[name]) for name, tensor in state.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.random.set_rng_state(state_of_torch)
    list(redrawn_models(model, lambda: RetinaNet(5, RESNET10), seed=3))
    assert torch.equal(torch.random.get_rng_state(), state_of_torch)


def test_maps_that_are_blank_before_redrawing_do_not_count_as_changed(
    lesions: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Of heads whose last layer is 0 every map is blank, and the answer the same for every photograph."""
    trained = load_checkpoint(checkpoint)
    blind = {name: 0 * tensor if "head.3.weight" in name else tensor for name, tensor in trained.weights.items()}
    replace(trained, weights=blind).save(tmp_path / "blind.pth")
    found = measure(CheckpointExplainer(tmp_path / "blind.pth"), read_lesions(lesions))
    assert not found.depends_on_weights
    for stage in STAGES:
        redrawn, blank = found.get("redrawn", "", "me", stage), found.get("blank", "", "me", stage)
        assert redrawn and np.isnan(redrawn.interval.value)
        assert blank and 0 <= blank.interval.value < 1


def test_blank_maps_are_left_out_of_the_mean_and_all_blank_is_no_number() -> None:
    columns = np.array([[1.5, 3], [0.2, 1], [0, 0], [0.6, 2]])  # sum of correlations, and number of pairs
    found = bootstrap(columns, _mean_of_seen)
    assert found.value == pytest.approx(2.3 / 6)
    assert 0.2 <= found.low <= found.value <= found.high <= 0.5
    assert np.isnan(bootstrap(np.zeros((4, 2)), _mean_of_seen).high)
    assert not np.isnan(bootstrap(columns[1:3], _mean_of_seen).high)  # resamples with only the blank one are left out


def test_similarity_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 4, 4), np.float32)
    b[2] = 0.5  # even
    expected = [spearmanr(a[0].ravel(), b[0].ravel()).statistic, spearmanr(a[1].ravel(), b[1].ravel()).statistic, 0]
    np.testing.assert_allclose(similarity(a, b), expected)
    np.testing.assert_allclose(similarity(a, a**3), 1)


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lesions") / "masked"
    write_lesions(folder, 4, size=160)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "best.pth"
    model = RetinaNet(5, RESNET10)
    Checkpoint(model.state_dict(), RESNET10, Contract(Preprocessing(image_size=64))).save(path)
    return path


def test_every_measure_is_taken_and_can_be_taken_again(lesions: Path, checkpoint: Path) -> None:
    photographs, explainer = read_lesions(lesions), CheckpointExplainer(checkpoint)
    found = measure(explainer, photographs)
    kinds = {kind for photograph in photographs for kind in photograph.masks}
    assert kinds == {"EX", "HE"}
    expected = {(kind, head) for kind in kinds for head in ("dr", "me")}
    for name in ("pointing", "lift"):
        assert {(f.lesion, f.head) for f in found.measurements if f.measure == name and f.of == MAP} == expected
    for head in ("dr", "me"):
        own, other = found.get("deletion", "", head, MAP), found.get("deletion", "", head, CHANCE)
        both = found.get("deletion", "", head, f"{MAP} - {CHANCE}")
        assert own and other and both
        assert both.interval.value == pytest.approx(own.interval.value - other.interval.value)
        areas = [deletion.area_under(curve) for curve in found.curves["deletion", head, MAP]]
        assert own.interval.value == pytest.approx(np.mean(areas))
        assert [f.of for f in found.measurements if f.measure == "redrawn" and f.head == head] == list(STAGES)
        first = found.get("pointing", "HE", head, CENTRE)
        assert first
        assert first.photographs == sum("HE" in photograph.masks for photograph in photographs)
    assert measure(explainer, photographs).measurements == found.measurements
    check_curves(found, explainer, photographs)
    check_redrawn_heads(found, explainer, photographs)


def check_curves(found: Faithfulness, explainer: CheckpointExplainer, photographs: list[MaskedPhotograph]) -> None:
    """They follow the probability of the class explained, from the whole photograph to the blurred one and back."""
    for number, photograph in enumerate(photographs):
        pixels = explainer.decode(photograph.path)
        image = torch.from_numpy(pixels).unsqueeze(0)
        x, lit = explainer.preprocess(image), _lit(explainer, image)
        bright = explainer.preprocess[0](image)[0].amax(dim=0) > 20
        assert (lit == bright).float().mean() > 0.99 and 0.5 < lit.float().mean() < 0.9
        of_centre = deletion.curves(explainer.model, x, lit, {CENTRE: centre_prior((2, 2))})[CENTRE]
        with torch.no_grad():
            probs = torch.cat([logits.softmax(dim=1)[0] for logits in explainer.model(x)]).numpy()
        for head, head_map in explainer.explain([pixels])[0].maps.items():
            column = {"dr": 0, "me": 5}[head] + head_map.target
            for of in (MAP, CHANCE, CENTRE):
                deleted, inserted = (found.curves[name, head, of][number] for name in ("deletion", "insertion"))
                assert deleted[0] == inserted[-1] == pytest.approx(probs[column])
                assert inserted[0] == deleted[-1] != deleted[0]
            np.testing.assert_array_equal([deleted, inserted], [curve[:, column] for curve in of_centre])


def check_redrawn_heads(
    found: Faithfulness, explainer: CheckpointExplainer, photographs: list[MaskedPhotograph]
) -> None:
    """With the heads redrawn, the maps are still those of the class that the trained model's maps explain."""
    pixels = [explainer.decode(photograph.path) for photograph in photographs]
    x = torch.cat([explainer.preprocess(torch.from_numpy(each).unsqueeze(0)) for each in pixels])
    answers = explainer.explain(pixels)
    for head in ("dr", "me"):
        classes = [answer.maps[head].target for answer in answers]
        pairs = []
        for seed in range(randomisation.DRAWS):
            _, redrawn = next(redrawn_models(explainer.model, lambda: RetinaNet(5, RESNET10), seed))
            maps = GradCAM(redrawn)(x, [head_logit(head, classes)])[0]
            pairs += [(a.maps[head].values.ravel(), b.ravel()) for a, b in zip(answers, maps, strict=True)]
        figure = found.get("redrawn", "", head, "heads")
        correlations = [spearmanr(a, b).statistic for a, b in pairs if a.any() and b.any()]
        assert figure and figure.interval.value == pytest.approx(np.mean(correlations))


def test_every_figure_of_lesions_by_hand() -> None:
    """Of two photographs, for each the map and the centre prior."""
    pairs = [
        (Pointing(hit=1, energy=0.6, chance_hit=0.3, area=0.2), Pointing(hit=0, energy=0.3, chance_hit=0.3, area=0.2)),
        (Pointing(hit=1, energy=0.2, chance_hit=0.1, area=0.3), Pointing(hit=1, energy=0.2, chance_hit=0.1, area=0.3)),
    ]
    assert {(f.measure, f.of): round(f.interval.value, 9) for f in figures_on_lesions("EX", "me", pairs)} == {
        ("pointing", MAP): 1, ("pointing", CHANCE): 0.2, ("pointing", CENTRE): 0.5,
        ("pointing", f"{MAP} - {CHANCE}"): 0.8, ("pointing", f"{MAP} - {CENTRE}"): 0.5,
        ("lift", MAP): 1.6, ("lift", CENTRE): 1, ("lift", f"{MAP} / {CENTRE}"): 1.6,
    }  # fmt: skip


def test_the_command_writes_one_table_and_one_picture(lesions: Path, checkpoint: Path, tmp_path: Path) -> None:
    args = ["--evaluate", str(lesions), "--checkpoint", str(checkpoint), "--out", str(tmp_path), "--head", "dr"]
    result = CliRunner().invoke(main, args)
    assert "Sanity check" in result.output
    assert result.exit_code == (0 if "Sanity check passed" in result.output else 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "faithfulness.csv", "faithfulness.md", "faithfulness.png"
    ]  # fmt: skip
    with (tmp_path / "faithfulness.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["head"] for row in rows} == {"dr"}
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)
    with Image.open(tmp_path / "faithfulness.png") as picture:
        assert min(picture.size) > 500


def test_what_is_refused(lesions: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"lesions\.csv: expected a list of photographs"):
        read_lesions(tmp_path)
    listing = tmp_path / "lesions.csv"
    listing.write_text("Name\nx.jpg\n")
    with pytest.raises(AnnotationError, match="expected the column Image name, found Name"):
        read_lesions(tmp_path)
    listing.write_text("Image name\nx.jpg\ny.jpg\nx.jpg\n")
    with pytest.raises(AnnotationError, match=r"expected each photograph once, found x\.jpg more often"):
        read_lesions(tmp_path)
    listing.write_text("Image name\n" + "x" * (csv.field_size_limit() + 1))
    with pytest.raises(AnnotationError, match=r"lesions\.csv: expected a list of photographs .* found: field larger"):
        read_lesions(tmp_path)
    listing.write_text("Image name\nx.jpg\n")
    with pytest.raises(AnnotationError, match=r"lesions\.csv: expected at least two photographs, .* found one"):
        read_lesions(tmp_path)
    listing.write_text("Image name\nx.jpg\ny.jpg\n")
    with pytest.raises(AnnotationError, match=r"line 2: x\.jpg: expected the photograph .* found none"):
        read_lesions(tmp_path)
    Image.new("RGB", (50, 40)).save(tmp_path / "x.jpg")
    with pytest.raises(AnnotationError, match=r"expected masks x_EX\.png"):
        read_lesions(tmp_path)
    Image.new("L", (40, 50)).save(tmp_path / "x_EX.png")
    with pytest.raises(PictureError, match="expected a mask of 50 x 40, found 40 x 50"):
        read_lesions(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["kinds;image  NAME\nEX,HE;x.jpg\n\n;y.jpg\n", "sep=\t\nkinds\tImage Name\n\tx.jpg\n\n\ty.jpg\n"],
)
def test_the_list_is_written_as_annotations_are(tmp_path: Path, text: str) -> None:
    for name in "xy":
        Image.new("RGB", (40, 40), "white").save(tmp_path / f"{name}.jpg")
        Image.new("L", (40, 40), 255).save(tmp_path / f"{name}_EX.png")
    (tmp_path / "lesions.csv").write_text(text, encoding="utf-8-sig")
    assert [photograph.path.name for photograph in read_lesions(tmp_path)] == ["x.jpg", "y.jpg"]
    (tmp_path / "y.jpg").unlink()
    line = 1 + text[: text.index("y.jpg")].count("\n")
    with pytest.raises(AnnotationError, match=rf"line {line}: y\.jpg: expected the photograph"):
        read_lesions(tmp_path)
    (tmp_path / "lesions.csv").write_text("Image name\n")
    with pytest.raises(AnnotationError, match=r"expected at least two photographs, .* found none"):
        read_lesions(tmp_path)


def test_evaluation_refuses_what_it_would_not_obey(lesions: Path) -> None:
    beside = ["--model", "explain.onnx", "--npy", "--scale", "shared", "--format", "png", "eye.jpg"]
    refused = CliRunner().invoke(main, ["--evaluate", str(lesions), *beside])
    assert refused.exit_code == 2
    assert "'IMAGE|FOLDER...', '--scale', '--format', '--npy', '--model', which it does not obey" in refused.stderr


def test_masks_are_those_of_their_own_photograph(tmp_path: Path) -> None:
    (tmp_path / "lesions.csv").write_text("Image name\neye.png\neye_2.png\neye [1].png\n")
    for name, side in (("eye", 40), ("eye_2", 50), ("eye [1]", 60)):
        Image.new("RGB", (side, side), "white").save(tmp_path / f"{name}.png")
        Image.new("L", (side, side), 255).save(tmp_path / f"{name}_EX.png")
    Image.new("L", (40, 40), 255).save(tmp_path / "eye_HE.png")
    assert [sorted(photograph.masks) for photograph in read_lesions(tmp_path)] == [["EX", "HE"], ["EX"], ["EX"]]


def test_a_mask_is_where_its_samples_are_not_zero(tmp_path: Path) -> None:
    samples = np.zeros((40, 40), np.uint8)
    samples[10:20, 5:8] = 1
    palette = Image.fromarray(samples, "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    kinds = {
        "bits": Image.fromarray(samples.astype(bool)),
        "grey": Image.fromarray(samples),
        "palette": palette,
        "deep": Image.fromarray(samples.astype(np.uint16)),
        "blue": Image.fromarray(np.dstack([0 * samples, 0 * samples, samples])),
        "clear": Image.fromarray(np.dstack([samples, samples, samples, 0 * samples + 255])),
    }
    (tmp_path / "lesions.csv").write_text("Image name\na.png\nb.png\n")
    for name in "ab":
        Image.new("RGB", (40, 40), "white").save(tmp_path / f"{name}.png")
        for kind, image in kinds.items():
            image.save(tmp_path / f"{name}_{kind}.png")
    masks = read_lesions(tmp_path)[0].masks
    assert masks.keys() == kinds.keys()
    for kind, mask in masks.items():
        np.testing.assert_array_equal(mask, samples > 0, err_msg=kind)


def test_where_nothing_can_be_written_nothing_is_measured(
    lesions: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(faithfulness, "measure", measured)
    options = ["--checkpoint", str(checkpoint), "--out", str(checkpoint / "out")]
    result = CliRunner().invoke(main, ["--evaluate", str(lesions), *options])
    assert result.exit_code == 2
    assert "expected a folder that can be written" in result.stderr


@pytest.mark.parametrize("end", [np.nan, 0.25], ids=["of one photograph", "of photographs that agree"])
def test_a_figure_of_too_little_has_no_interval_in_the_table(end: float) -> None:
    one = Measurement("pointing", "EX", "dr", MAP, 3, Interval(0.25, end, end))
    table = as_markdown(Faithfulness([one], {}))
    assert "| pointing, hard exudates | DR grade | 3 | 0.25 |" in table
    assert "nan" not in table


def test_the_table_names_each_figure_for_what_it_is() -> None:
    values = {MAP: 0.1, CHANCE: 0.2, CENTRE: 0.3, f"{MAP} - {CHANCE}": 0.4, f"{MAP} - {CENTRE}": 0.5}
    figures = [
        Measurement(measure, lesion, "dr", of, 3, Interval(value + shift, np.nan, np.nan))
        for measure, lesion, shift in (("pointing", "EX", 0), ("deletion", "", 1), ("insertion", "", 2))
        for of, value in values.items()
    ]
    for of, value in ((MAP, 3.1), (CENTRE, 3.3), (f"{MAP} / {CENTRE}", 3.6)):
        figures.append(Measurement("lift", "EX", "dr", of, 3, Interval(value, np.nan, np.nan)))
    table = as_markdown(Faithfulness(figures, {})).splitlines()
    assert table[0] == "| measure | head | n | map | chance | centre prior | map against centre |"
    assert table[2:6] == [
        "| pointing, hard exudates | DR grade | 3 | 0.10 | 0.20 | 0.30 | 0.50 |",
        "| lift, hard exudates | DR grade | 3 | 3.10 | 1 | 3.30 | 3.60 |",
        "| deletion | DR grade | 3 | 1.10 | 1.20 | 1.30 | 1.50 |",
        "| insertion | DR grade | 3 | 2.10 | 2.20 | 2.30 | 2.50 |",
    ]


def test_what_is_evaluated_is_what_is_asked_for(
    lesions: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[CheckpointExplainer] = []

    def measured(explainer: CheckpointExplainer, *_: object) -> None:
        opened.append(explainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(faithfulness, "measure", measured)
    how = ["--head", "dr", "--target", "4", "--layer", "layer3", "--method", "gradcam++"]
    options = ["--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    result = CliRunner().invoke(main, ["--evaluate", str(lesions), *options, *how])
    assert (result.exit_code, "no new tables" in result.stderr) == (130, True)
    expected = CheckpointExplainer(checkpoint, ["dr"], 4, ["layer3"], "gradcam++")
    pixels = expected.decode(read_lesions(lesions)[0].path)
    found, maps = (explainer.explain([pixels])[0].maps for explainer in (opened[0], expected))
    assert found.keys() == {"dr"} and found["dr"].target == 4
    assert maps["dr"].values.any()
    np.testing.assert_array_equal(found["dr"].values, maps["dr"].values)


def test_the_sanity_check_is_sure_only_where_the_whole_interval_is() -> None:
    def passes(low: float, high: float) -> bool:
        """Of the ME head's figure, whichever way the DR head's passes."""
        ends: dict[Head, tuple[float, float]] = {"dr": (ALIKE_BELOW - 0.2, ALIKE_BELOW - 0.1), "me": (low, high)}
        figures = [
            Measurement("redrawn", "", head, list(STAGES)[-1], 9, Interval((a + b) / 2, a, b))
            for head, (a, b) in ends.items()
        ]
        return Faithfulness(figures, {}).depends_on_weights

    assert passes(ALIKE_BELOW - 0.2, ALIKE_BELOW - 0.1)
    assert not passes(ALIKE_BELOW - 0.2, ALIKE_BELOW + 0.1)


def test_the_tolerance_is_a_share_of_the_longer_side() -> None:
    lesion = np.zeros((256, 1024), np.bool_)
    peak = 1.5 * 128  # centre of the cells of column 1
    lesion[:, round(peak) + 10 : round(peak) + 30] = True  # 10 of the 15 pixels allowed; of the shorter side 3.75 were
    assert point(spot(1, 1), WHOLE, lesion).hit == 1


def test_chance_is_a_point_of_the_lit_field_alone() -> None:
    lit = np.zeros((64, 64), np.float32)
    lit[:, :32] = 1
    lesion = np.zeros((512, 512), np.bool_)
    lesion[:, :128] = True
    found = point(np.ones((8, 8), np.float32), LitField(0.0, 0.0, 1.0, 1.0, lit), lesion)
    assert found.chance_hit == pytest.approx((128 + 7) / 256, abs=0.01)  # of the whole photograph it were half of that


def test_each_photographs_own_maps_are_pointed_with(
    lesions: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the photograph to the table, by hand: each head's own map, the centre prior, and the lit field."""
    for name, nothing in (("_curves", {}), ("_on_curves", []), ("_on_redrawn", [])):
        monkeypatch.setattr(faithfulness, name, lambda *_, nothing=nothing: nothing)
    photographs, explainer = read_lesions(lesions), CheckpointExplainer(checkpoint)
    found = measure(explainer, photographs)
    for head in ("dr", "me"):
        own, centre = [], []
        for photograph in photographs:
            pixels = explainer.decode(photograph.path)
            values = explainer.explain([pixels])[0].maps[head].values
            field, mask = LitField.find(pixels, explainer.contract.preprocessing), photograph.masks["EX"]
            own.append(point(values, field, mask))
            centre.append(point(centre_prior(values.shape), field, mask))
        energy = {MAP: [p.energy for p in own], CENTRE: [p.energy for p in centre]}
        hits = {MAP: [p.hit for p in own], CENTRE: [p.hit for p in centre], CHANCE: [p.chance_hit for p in own]}
        assert energy[MAP] != energy[CENTRE]
        for of, shares in energy.items():
            lift = found.get("lift", "EX", head, of)
            assert lift and lift.interval.value == pytest.approx(np.mean(shares) / np.mean([p.area for p in own]))
        for of, shares in hits.items():
            pointing = found.get("pointing", "EX", head, of)
            assert pointing and pointing.interval.value == pytest.approx(np.mean(shares))


def test_every_figure_of_curves_by_hand() -> None:
    """Of two photographs whose probability is the same at every step."""
    levels = {
        ("deletion", MAP): (0.1, 0.2), ("deletion", CHANCE): (0.4, 0.5), ("deletion", CENTRE): (0.3, 0.3),
        ("insertion", MAP): (0.9, 0.8), ("insertion", CHANCE): (0.5, 0.3), ("insertion", CENTRE): (0.6, 0.6),
    }  # fmt: skip
    steps = np.ones(len(deletion.FRACTIONS))
    curves: dict[tuple[str, Head, str], NDArray[np.float64]] = {
        (name, "me", of): np.outer(each, steps) for (name, of), each in levels.items()
    }
    figures = faithfulness._on_curves("me", curves)
    assert {(f.measure, f.of): round(f.interval.value, 9) for f in figures} == {
        ("deletion", MAP): 0.15, ("deletion", CHANCE): 0.45, ("deletion", CENTRE): 0.3,
        ("deletion", f"{MAP} - {CHANCE}"): -0.3, ("deletion", f"{MAP} - {CENTRE}"): -0.15,
        ("insertion", MAP): 0.85, ("insertion", CHANCE): 0.4, ("insertion", CENTRE): 0.6,
        ("insertion", f"{MAP} - {CHANCE}"): 0.45, ("insertion", f"{MAP} - {CENTRE}"): 0.25,
    }  # fmt: skip


def test_each_photograph_has_a_random_map_of_its_own(
    lesions: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faithfulness, "_on_redrawn", lambda *_: [])
    curves = measure(CheckpointExplainer(checkpoint), read_lesions(lesions)[:1] * 2).curves  # the same one twice
    for of, same in ((MAP, True), (CENTRE, True), (CHANCE, False)):
        first, second = curves["deletion", "dr", of]
        assert np.array_equal(first, second) == same, of


def test_redrawn_maps_are_compared_photograph_by_photograph(
    lesions: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More photographs than are explained at once, and the share of maps that are blank."""
    monkeypatch.setattr(randomisation, "DRAWS", 2)
    explainer = CheckpointExplainer(checkpoint)
    pixels = [explainer.decode(photograph.path) for photograph in read_lesions(lesions)[:3]] * 3
    x = torch.cat([explainer.preprocess(torch.from_numpy(each).unsqueeze(0)) for each in pixels])
    answers = explainer.explain(pixels)
    # Blank: the first photograph's trained maps, and of each redrawn model the eighth photograph's.
    for head_map in answers[0].maps.values():
        head_map.values[:] = 0
    explain = GradCAM.__call__

    def blanked(cam: GradCAM, x: Tensor, targets: Any) -> list[np.ndarray]:
        maps = explain(cam, x, targets)
        for each in maps if len(x) == 8 else ():
            each[7] = 0
        return maps

    monkeypatch.setattr(GradCAM, "__call__", blanked)
    figures = faithfulness._on_redrawn(explainer, x, answers, lambda: None)
    monkeypatch.undo()
    for head in ("dr", "me"):
        classes = [answer.maps[head].target for answer in answers]
        rows = np.zeros((9, 3))
        for seed in range(2):
            _, redrawn = next(redrawn_models(explainer.model, explainer.fresh_network, seed))
            maps = GradCAM(redrawn)(x, [head_logit(head, classes)])[0]
            maps[7] = 0
            for row, answer, other in zip(rows, answers, maps, strict=True):
                if (own := answer.maps[head].values).any() and other.any():
                    row[:2] += spearmanr(own.ravel(), other.ravel()).statistic, 1
                row[2] += not other.any()
        of = {f.measure: f.interval for f in figures if (f.head, f.of) == (head, "heads")}
        assert of["blank"].value == pytest.approx(rows[:, 2].sum() / 2 / 9)
        expected = bootstrap(rows, _mean_of_seen)
        for end in ("value", "low", "high"):
            assert getattr(of["redrawn"], end) == pytest.approx(getattr(expected, end), abs=1e-5)


def test_grades_with_a_gap_are_explained_as_grades(lesions: Path, tmp_path: Path) -> None:
    contract = Contract(Preprocessing(image_size=64), dr_grades=(0, 2, 4))
    torch.manual_seed(0)
    Checkpoint(RetinaNet(3, RESNET10).state_dict(), RESNET10, contract).save(tmp_path / "gap.pth")
    explainer = CheckpointExplainer(tmp_path / "gap.pth", target=4)
    photographs = read_lesions(lesions)[:2]
    pixels = explainer.decode(photographs[0].path)
    answer = explainer.explain([pixels])[0]
    (expected,) = GradCAM(explainer.model)(
        explainer.preprocess(torch.from_numpy(pixels).unsqueeze(0)), [head_logit("dr", 2)]
    )
    np.testing.assert_array_equal(answer.maps["dr"].values, expected[0])
    assert (answer.maps["dr"].target, answer.maps["dr"].probability) == (4, answer.prediction.dr_probs[4])
    found = measure(explainer, photographs)
    for head in ("dr", "me"):
        whole = found.curves["deletion", head, MAP][0][0]
        assert whole == pytest.approx(answer.maps[head].probability, abs=1e-5)


def test_a_mask_without_a_pixel_is_no_kind_of_lesion(tmp_path: Path) -> None:
    (tmp_path / "lesions.csv").write_text("Image name\na.png\nb.png\n")
    for name in "ab":
        Image.new("RGB", (40, 40), "white").save(tmp_path / f"{name}.png")
        for kind, level in (("EX", 255), ("HE", 0)):
            Image.new("L", (40, 40), level).save(tmp_path / f"{name}_{kind}.png")
    assert [photograph.masks.keys() for photograph in read_lesions(tmp_path)] == [{"EX"}, {"EX"}]


def test_the_table_tells_each_stage_of_redrawing_for_each_head() -> None:
    shifts: dict[tuple[str, Head], float] = {
        ("redrawn", "dr"): 0, ("redrawn", "me"): -0.6, ("blank", "dr"): 0, ("blank", "me"): 0.25
    }  # fmt: skip
    figures = [
        Measurement(measure, "", head, stage, 9, Interval(0.1 * number + shift, np.nan, np.nan))
        for number, stage in enumerate(STAGES)
        for (measure, head), shift in shifts.items()
    ]
    table = as_markdown(Faithfulness(figures, {})).splitlines()
    start = table.index("| redrawn down to | DR grade | ME risk |")
    assert table[start + 2 : start + 5] == [
        "| heads | 0.00 | -0.60, 25% blank |",
        "| layer4 | 0.10, 10% blank | -0.50, 35% blank |",
        "| layer3 | 0.20, 20% blank | -0.40, 45% blank |",
    ]
    assert table[start + 7].startswith("| conv1 | 0.50, 50% blank | -0.10")


def test_bars_reach_from_the_value_to_the_ends_of_its_interval() -> None:
    values, (below, above) = _bars([Interval(0.5, 0.4, 0.8), Interval(0.2, 0.0, 0.3)])
    assert values == [0.5, 0.2]
    assert below == pytest.approx([0.1, 0.2])
    assert above == pytest.approx([0.3, 0.1])


def test_the_charts_of_hits_and_of_lift_have_the_same_rows_and_no_legend_covers_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(faithfulness_report, "write_png", lambda path, figure: drawn.append(figure))
    heads: tuple[Head, ...] = ("dr", "me")
    measurements = [
        Measurement(name, kind, head, of, 2, Interval(0.5, 0.4, 0.6))
        for name, contenders in (("pointing", (MAP, CENTRE, CHANCE)), ("lift", (MAP, CENTRE)))
        for kind, head, of in product(("EX", "HE"), heads, contenders)
    ]
    measurements += [
        Measurement("redrawn", "", head, stage, 2, Interval(0, -0.1, 0.1)) for head, stage in product(heads, STAGES)
    ]
    curves: dict[tuple[str, Head, str], NDArray[np.float64]] = {
        (name, head, of): np.full((2, len(deletion.FRACTIONS)), 0.5)
        for name, head, of in product(("deletion", "insertion"), heads, (MAP, CENTRE, CHANCE))
    }
    write_picture(tmp_path / "faithfulness.png", Faithfulness(measurements, curves))
    (figure,) = drawn
    require_clear(figure)
    for axis, contenders in zip(figure.axes[:2], (3, 2), strict=True):
        assert axis.get_ylim() == (3.5, -0.5), "the first row on top, and room for four"
        assert [label.get_text() for label in axis.get_yticklabels()] == [
            "hard exudates\nDR grade", "hard exudates\nME risk", "haemorrhages\nDR grade", "haemorrhages\nME risk"
        ]  # fmt: skip
        marks = [
            np.asarray(bars.lines[0].get_ydata(), np.float64)
            for bars in axis.containers
            if isinstance(bars, ErrorbarContainer)
        ]
        assert len(marks) == contenders
        assert all(np.round(rows).tolist() == [0, 1, 2, 3] for rows in marks)
        assert all((above < below).all() for above, below in pairwise(marks)), "the map above the centre prior"


def test_the_chart_of_curves_shows_each_map_and_both_directions() -> None:
    curves: dict[tuple[str, Head, str], NDArray[np.float64]] = {
        (name, "dr", of): np.full((2, len(deletion.FRACTIONS)), level + shift)
        for name, shift in (("deletion", 0.0), ("insertion", 0.5))
        for of, level in ((MAP, 0.1), (CENTRE, 0.2), (CHANCE, 0.3))
    }
    one = Measurement("deletion", "", "dr", MAP, 2, Interval(0.1, np.nan, np.nan))
    axis = Figure().subplots()
    _draw_curves(axis, Faithfulness([one], curves))
    heights = {str(line.get_label()): np.asarray(line.get_ydata(), np.float64) for line in axis.get_lines()}
    assert {label: round(float(height[0]), 9) for label, height in heights.items()} == {
        "Grad-CAM, deletion": 0.1, "Grad-CAM, insertion": 0.6,
        "centre prior, deletion": 0.2, "centre prior, insertion": 0.7,
        "random map, deletion": 0.3, "random map, insertion": 0.8,
    }  # fmt: skip

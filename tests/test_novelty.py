"""Novelty of a finished file, compared with PyTorch's features and scikit-learn's whitened principal components."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from eyes import eye, write_split
from invoking import invoke
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image, ImageDraw
from plain_runtime import outputs_of
from retina.export import novelty_output
from retina.export.cli import main as export
from retina.export.inspection import inspect_file
from retina.export.novelty import main
from retina.export.novelty_output import DIRECTIONS, UNFAMILIAR_FROM, Novelty
from retina.export.photographs import spread
from retina.export.quantize import Quantization, quantize, tensors_to_measure
from retina.export.ranges import measure_ranges
from retina.export.recalibration import main as recalibrate
from retina.export.recovery import main as recover
from retina.export.to_onnx import OnnxFile
from retina.runtime import RELEASED
from retina.runtime.contract import HEADS, Contract, Head
from retina.runtime.errors import UsageError
from retina.runtime.model import RetinaModel
from retina.runtime.picture import decode
from retina.train.checkpoint import load_checkpoint
from retina.train.data import read_dataset
from retina.train.framing import make_preprocess
from scipy.spatial.distance import mahalanobis
from sklearn.decomposition import PCA
from small_export import small_pictures
from tiny_model import write_tiny_model

teach = partial(invoke, main)
COUNT = 110


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for n in range(COUNT):
        eye(n, 64).save(folder / f"{n:02}.png")
    return folder


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that novelty is not fitted to."""
    folder = tmp_path_factory.mktemp("strangers")
    eye(900, 64).save(folder / "eye.png")
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    stripes = np.zeros((64, 80, 3), np.uint8)
    stripes[::4] = 255
    Image.fromarray(stripes).save(folder / "stripes.png")
    return folder


@pytest.fixture(scope="module", params=["fp32", "int8"])
def file(
    request: pytest.FixtureRequest, small_explained: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "fp32":
        return small_explained
    model, contract = onnx.load(small_explained), replace(RetinaModel(small_explained).contract, precision="int8")
    ranges = measure_ranges(model, tensors_to_measure(model), map(decode, sorted(photographs.iterdir())[:4]))
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    OnnxFile(quantize(model, ranges, Quantization("mean"))).write(path, contract)
    return path


@pytest.fixture(scope="module")
def told(file: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("told") / "told.onnx"
    result = teach(photographs, "--model", file, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"fitted to {COUNT} photographs. Theirs is 1.0 on average" in result.output
    assert "ships with this package" not in result.output
    return out


def outputs(file: Path, folder: Path) -> dict[str, NDArray[np.float32]]:
    """What the file says about each picture, by plain onnxruntime, in the order of their names."""
    return outputs_of(file, map(decode, sorted(folder.iterdir())))


def layer2_of(checkpoint: Path, folder: Path) -> NDArray[np.float64]:
    """PyTorch's features: the mean over height and width of what ``layer2`` returns."""
    read = load_checkpoint(checkpoint)
    net, preprocess = read.build_model().eval(), make_preprocess(read.contract.preprocessing)
    seen = []
    net.backbone.layer2.register_forward_hook(lambda _, __, out: seen.append(out.mean(dim=(2, 3))))
    with torch.no_grad():
        for path in sorted(folder.iterdir()):
            net(preprocess(torch.from_numpy(decode(path))[None]))
    return torch.cat(seen).double().numpy()


def whitened_distance(
    fitted: NDArray[np.float64], features: NDArray[np.float64], directions: int
) -> NDArray[np.float64]:
    scale = fitted.std(axis=0) + 0.03 * fitted.std()
    pca = PCA(directions, whiten=True, svd_solver="full").fit(fitted / scale)
    distances: NDArray[np.float64] = np.square(pca.transform(features / scale)).mean(axis=1)
    return distances


def test_in_all_directions_it_is_the_mahalanobis_distance() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8)) + 5
    inverse = np.linalg.inv(np.cov(features, rowvar=False))
    expected = [mahalanobis(row, features.mean(axis=0), inverse) ** 2 / 8 for row in features]
    assert Novelty.fit(features, 8).of(features) == pytest.approx(np.array(expected))


def test_in_few_directions_it_is_that_of_whitened_principal_components() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 60)) @ rng.normal(size=(60, 60)) * np.geomspace(1, 1e-6, 60) + 2
    other = 3 * rng.normal(size=(20, 60))
    expected = whitened_distance(features, other, DIRECTIONS)
    novelty = Novelty.fit(features)
    assert novelty.of(other) == pytest.approx(expected, rel=1e-6)
    assert novelty.of(features).mean() == pytest.approx(199 / 200)


def test_the_file_computes_what_pytorch_s_features_give(
    checkpoint: Path, file: Path, told: Path, photographs: Path, strangers: Path
) -> None:
    """int8 rounds the features, so that only its fp32 twin is compared."""
    if RetinaModel(file).contract.precision == "int8":
        pytest.skip("rounded features")
    expected = whitened_distance(layer2_of(checkpoint, photographs), layer2_of(checkpoint, strangers), DIRECTIONS)
    assert outputs(told, strangers)["novelty"] == pytest.approx(expected, rel=1e-2)


def test_the_other_answers_stay_to_the_bit(file: Path, told: Path, strangers: Path) -> None:
    before, after = outputs(file, strangers), outputs(told, strangers)
    assert list(after) == [*before, "novelty"]
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, name)


def test_what_was_fitted_to_is_familiar_and_what_is_no_eye_is_not(
    told: Path, photographs: Path, strangers: Path
) -> None:
    model = RetinaModel(told)
    assert model.contract.unfamiliar_from == UNFAMILIAR_FROM
    assert model.contract.outputs[-1] == {"name": "novelty", "dtype": "float32", "shape": ["N"]}
    own = outputs(told, photographs)["novelty"]
    assert own.mean() == pytest.approx((COUNT - 1) / COUNT, rel=0.02)
    found = {path.stem: model.predict(path) for path in strangers.iterdir()}
    assert {name: said.unfamiliar for name, said in found.items()} == {"eye": False, "black": True, "stripes": True}
    assert found["stripes"].novelty == pytest.approx(float(outputs(told, strangers)["novelty"][2]), rel=1e-4)


def test_a_batch_gets_the_answers_of_each_alone(told: Path, photographs: Path) -> None:
    session = ort.InferenceSession(told, providers=["CPUExecutionProvider"])
    batch = np.stack([decode(path) for path in sorted(photographs.iterdir())[:3]])
    (together,) = session.run(["novelty"], {"image": batch})
    assert together == pytest.approx(outputs(told, photographs)["novelty"][:3], rel=1e-3)


def test_what_stands_beside_it_is_its_own(told: Path) -> None:
    inspected = inspect_file(told)
    assert inspected.digest_known
    assert json.loads(told.with_name("told.onnx.contract.json").read_text()) == inspected.contract.to_dict()
    lines = "\n".join(inspect_file(told).lines())
    assert "output     novelty float32 (N)" in lines
    assert "rule       unfamiliar: novelty at_least 10" in lines


def test_fitted_again_it_is_replaced(told: Path, photographs: Path, tmp_path: Path) -> None:
    assert teach(photographs, "--model", told, "--out", tmp_path / "again.onnx").exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == told.read_bytes()


def test_a_recalibrated_file_keeps_it(told: Path, strangers: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "valid", [0, 1, 2, 3, 4, 0] * 2, 1)
    result = invoke(recalibrate, tmp_path, "--model", told, "--out", tmp_path / "new.onnx")
    assert result.exit_code == 0, result.output
    assert RetinaModel(tmp_path / "new.onnx").contract.unfamiliar_from == UNFAMILIAR_FROM
    np.testing.assert_array_equal(
        outputs(tmp_path / "new.onnx", strangers)["novelty"], outputs(told, strangers)["novelty"]
    )


def test_a_recovered_checkpoint_has_none(small_explained: Path, photographs: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.onnx"
    assert teach(photographs, "--model", small_explained, "--out", told).exit_code == 0
    assert RetinaModel(told).contract.provenance["novelty"] == f"fitted to {COUNT} photographs"
    result = invoke(recover, photographs, "--model", told, "--out", tmp_path / "again.pth")
    assert result.exit_code == 0, result.output
    contract = load_checkpoint(tmp_path / "again.pth").contract
    assert contract.unfamiliar_from is None
    assert "novelty" not in contract.provenance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("few", "--model", "small.onnx"), "few: expected a folder with 100 photographs or more, found 99"),
        (("alike", "--model", "small.onnx"), f"expected photographs that differ in {DIRECTIONS} ways or more"),
        (("none", "--model", "small.onnx"), "none: expected a folder with 100 photographs or more, found no folder"),
        (("few/00.png", "--model", "small.onnx"), "expected a folder with 100 photographs or more, found no folder"),
        (("many", "--model", "tiny.onnx"), "expected the network that retina-export writes, found model.backbone"),
        (("many", "--model", "small.onnx", "--out", "small.onnx"), "small.onnx"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    small_explained: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("small.onnx").write_bytes(small_explained.read_bytes())
    write_tiny_model(Path("tiny.onnx"))
    for name, sources in (("few", range(99)), ("alike", [0] * 100), ("many", range(100))):
        Path(name).mkdir()
        for n, source in enumerate(sources):
            Path(name, f"{n:02}.png").write_bytes((photographs / f"{source:02}.png").read_bytes())
    out = () if "--out" in arguments else ("--out", "new.onnx")
    result = teach(*arguments, *out)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not Path("new.onnx").exists()


def test_a_file_that_says_something_else_is_not_written(
    small_explained: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Novelty.of
    monkeypatch.setattr(Novelty, "of", lambda self, features: 1.002 * of(self, features))
    result = teach(photographs, "--model", small_explained, "--out", tmp_path / "new.onnx")
    assert result.exit_code == 2
    assert "expected the probabilities of explain.onnx and the novelty computed" in result.output
    assert "0.002 apart; nothing was written" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", HEADS)
def test_a_file_with_other_probabilities_is_not_written(
    small_explained: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Head
) -> None:
    def write(self: OnnxFile, path: Path, contract: Contract) -> None:
        for tensor in self.model.graph.initializer:
            if tensor.name == f"model.{head}_head.3.bias":
                bias = numpy_helper.to_array(tensor)
                other = bias + np.arange(len(bias), dtype=np.float32)
                tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
        of(self, path, contract)

    of = OnnxFile.write
    monkeypatch.setattr(OnnxFile, "write", write)
    result = teach(photographs, "--model", small_explained, "--out", tmp_path / "new.onnx")
    assert result.exit_code == 2
    assert "apart; nothing was written" in result.output
    assert list(tmp_path.iterdir()) == []


def test_all_that_cannot_be_read_are_listed(small_explained: Path, photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    shutil.copytree(photographs, folder)
    for name in ("07.png", "50.png"):
        (folder / name).write_bytes(b"")
    result = teach(folder, "--model", small_explained, "--out", tmp_path / "new.onnx")
    assert result.exit_code == 2
    assert "found some that cannot be read; remove them:" in result.output
    assert all(f"{folder / name}: empty file" in result.output for name in ("07.png", "50.png"))
    assert not (tmp_path / "new.onnx").exists()


def test_an_export_takes_no_level_from_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    read = load_checkpoint(checkpoint)
    replace(read, contract=replace(read.contract, unfamiliar_from=10.0)).save(tmp_path / "level.pth")
    pictures = small_pictures(tmp_path / "pictures")
    result = invoke(export, tmp_path / "level.pth", "--check", pictures, "--out", tmp_path / "level.onnx")
    assert result.exit_code == 0, result.output
    assert RetinaModel(tmp_path / "level.onnx").contract.unfamiliar_from is None


def test_the_model_that_ships_is_told_from_ones_own(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(novelty_output, "FITTED_TO", 30)
    monkeypatch.chdir(tmp_path)
    result = teach(photographs, "--out", "new.onnx")
    assert f"released.onnx ships with this package: {photographs} should be what it was trained on" in result.output


def test_of_many_photographs_it_is_fitted_to_some(
    small_explained: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(novelty_output, "FITTED_TO", 102)
    result = teach(photographs, "--model", small_explained, "--out", tmp_path / "new.onnx")
    (tmp_path / "some").mkdir()
    for path in spread(sorted(photographs.iterdir()), 102):
        shutil.copy(path, tmp_path / "some")
    assert teach(tmp_path / "some", "--model", small_explained, "--out", tmp_path / "same.onnx").exit_code == 0
    assert (tmp_path / "new.onnx").read_bytes() == (tmp_path / "same.onnx").read_bytes()
    assert "fitted to 102 photographs" in result.output
    assert RetinaModel(tmp_path / "new.onnx").contract.provenance["novelty"] == "fitted to 102 photographs"


def test_channels_that_never_vary_count_for_nothing() -> None:
    rng = np.random.default_rng(2)
    features = np.concatenate([rng.normal(size=(100, 40)), np.full((100, 3), 7.0)], axis=1)
    assert Novelty.fit(features).of(features).mean() == pytest.approx(0.99)
    with pytest.raises(UsageError, match="24 ways"):
        Novelty.fit(features[:, 20:])


def letter() -> Image.Image:
    page = Image.new("RGB", (800, 1100), "white")
    pen = ImageDraw.Draw(page)
    for line in range(40, 1060, 24):
        pen.text((40, line), "The patient was seen on Monday and referred; see the letter. " * 2, fill="black")
    return page


def test_the_released_model_takes_no_picture_without_a_retina_for_one() -> None:
    model = RetinaModel()
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    for name, picture in {
        "black": Image.new("RGB", (800, 600)),
        "white": Image.new("RGB", (800, 600), "white"),
        "skin": Image.new("RGB", (800, 600), (224, 172, 140)),
        "noise": Image.fromarray(noise),
        "letter": letter(),
    }.items():
        assert model.predict(picture).unfamiliar, name


def test_the_released_model_knows_real_photographs_and_no_red_for_blue(real_data: Path) -> None:
    model = RetinaModel(RELEASED)
    for photo in read_dataset(real_data / "retina").splits["valid"].photos[::12]:
        pixels = decode(photo.path)
        assert not model.predict(pixels).unfamiliar, photo.image_name
        assert model.predict(np.ascontiguousarray(pixels[..., ::-1])).unfamiliar, photo.image_name

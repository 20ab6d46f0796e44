"""A checkpoint recovered from a model file, compared with the checkpoint that the file was made from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from invoking import invoke
from onnx import numpy_helper
from PIL import Image
from retina.export.graph import DeployedModel
from retina.export.quantize import Quantization, quantize, tensors_to_measure
from retina.export.ranges import measure_ranges
from retina.export.recovery import main
from retina.export.to_onnx import OnnxFile
from retina.runtime.contract import Rule
from retina.runtime.errors import ModelFileError
from retina.runtime.model import RetinaModel
from retina.train.checkpoint import Checkpoint, load_checkpoint
from retina.train.framing import make_preprocess
from retina.train.model import RetinaNet
from small_backbone import RESNET10
from small_checkpoint import small_checkpoint
from small_export import SmallExport
from torch import Tensor, nn

recover = partial(invoke, main)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(2)
    for n in range(6):
        pixels = rng.integers(0, 256, (70, 60, 3), dtype=np.uint8) // np.uint8(1 + n % 3)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


def logits(checkpoint: Checkpoint, folder: Path) -> Tensor:
    preprocess, net = make_preprocess(checkpoint.contract.preprocessing), checkpoint.build_model()
    files = sorted(folder.iterdir())
    with torch.no_grad():
        return torch.cat([torch.cat(net(preprocess(pixels(file))), dim=1) for file in files])


def pixels(file: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(file)))[None]


def test_it_answers_as_the_checkpoint_of_before(small_export: SmallExport, photographs: Path, tmp_path: Path) -> None:
    result = recover(photographs, "--model", small_export.model, "--out", tmp_path / "again.pth")
    assert result.exit_code == 0, result.output
    assert "batch-norm from 6 photographs" in result.output
    like_it = "--backbone resnet10 --framing field --image-size 64"
    gently = "--lr-backbone 1e-5 --lr-heads 1e-4 --calibrate valid"
    assert f"retina-train DATA --weights {tmp_path}/again.pth {like_it} {gently}\n" in result.output
    with pytest.raises(
        ModelFileError, match=r"retina_multitask\.onnx: .* to a checkpoint first: python -m retina\.export\.recovery"
    ):
        load_checkpoint(small_export.model)
    again, before = load_checkpoint(tmp_path / "again.pth"), load_checkpoint(small_export.checkpoint)
    assert again.backbone == before.backbone
    assert again.contract.preprocessing == before.contract.preprocessing
    # And nothing that is only true of the checkpoint of before, such as its figures.
    of_file = {"backbone": RESNET10, "recovered_from": RetinaModel(small_export.model).sha256}
    assert (again.contract.provenance, again.metrics, again.epoch) == (of_file, {}, None)
    torch.testing.assert_close(logits(again, photographs), logits(before, photographs), atol=1e-3, rtol=1e-4)


def test_batch_norm_has_the_mean_and_variance_of_what_it_sees(
    small_export: SmallExport, photographs: Path, tmp_path: Path
) -> None:
    """In training mode, with all photographs as one batch, the network gives the same answers as in evaluation."""
    assert recover(photographs, "--model", small_export.model, "--out", tmp_path / "again.pth").exit_code == 0
    again = load_checkpoint(tmp_path / "again.pth")
    net, preprocess = again.build_model(), make_preprocess(again.contract.preprocessing)
    batch = torch.cat([preprocess(pixels(file)) for file in sorted(photographs.iterdir())])
    with torch.no_grad():
        evaluated = torch.cat(net(batch), dim=1)
        net.backbone.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of the last batch
        trained = torch.cat(net(batch), dim=1)
    torch.testing.assert_close(trained, evaluated, atol=2e-3, rtol=1e-3)
    for name, found in net.state_dict().items():
        if "running" in name:  # torch divides the variance by n - 1, recovery by n
            torch.testing.assert_close(found, again.weights[name], atol=1e-2, rtol=2e-2)


def test_an_int8_file_gives_its_rounded_weights_and_its_rules(
    small_export: SmallExport, photographs: Path, tmp_path: Path
) -> None:
    before = load_checkpoint(small_export.checkpoint)
    rules = {**before.contract.thresholds, "referable_dr": Rule("at_least", 0.37, 2)}
    # The last two are of the file alone, by retina.export.recalibration, and as the file that ships had it once.
    facts = {"backbone": RESNET10, "dr_temperature": 1.2, "recalibrated": "DR on valid", "calibrated_on": "valid"}
    contract = replace(before.contract, precision="int8", thresholds=rules, provenance=facts)
    deployed = onnx.load(small_export.model)
    seen = [np.array(Image.open(file)) for file in sorted(photographs.iterdir())]
    ranges = measure_ranges(deployed, tensors_to_measure(deployed), seen)
    OnnxFile(quantize(deployed, ranges, Quantization("mean", 1))).write(tmp_path / "m.int8.onnx", contract)
    result = recover(photographs, "--model", tmp_path / "m.int8.onnx", "--out", tmp_path / "again.pth")
    assert result.exit_code == 0, result.output
    again = load_checkpoint(tmp_path / "again.pth")
    assert (again.contract.precision, again.contract.thresholds) == ("fp32", rules)
    assert again.contract.provenance.keys() == {"backbone", "dr_temperature", "recovered_from"}
    old, new = before.weights, again.weights
    # A step is 1/127 of the row's largest weight; kernels are rounded so that they keep their sums, by up to one step.
    for conv, bn, steps in (
        ("backbone.layer1.0.conv1", "backbone.layer1.0.bn1", 0.0),
        ("backbone.layer4.0.downsample.0", "backbone.layer4.0.downsample.1", 1.0),
    ):
        scale = old[f"{bn}.weight"] / (old[f"{bn}.running_var"] + 1e-5).sqrt()
        folded = old[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)
        step = folded.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
        assert ((new[f"{conv}.weight"] - folded).abs() <= 1.001 * steps * step + 1e-6).all()
        shift = new[f"{bn}.bias"] - new[f"{bn}.running_mean"]
        torch.testing.assert_close(shift, old[f"{bn}.bias"] - old[f"{bn}.running_mean"] * scale, atol=1e-4, rtol=1e-4)
    step = old["dr_head.0.weight"].abs().amax(dim=1, keepdim=True) / 127
    assert ((new["dr_head.0.weight"] - old["dr_head.0.weight"]).abs() <= 0.5001 * step).all()
    assert not torch.equal(new["dr_head.0.weight"], old["dr_head.0.weight"])


@pytest.mark.slow
def test_layers_frozen_from_the_start_are_recovered(photographs: Path, tmp_path: Path) -> None:
    """Trained from ``--weights none``, their batch-norm shifts nothing, and the file's convolutions have no bias."""
    before = load_checkpoint(small_checkpoint(tmp_path / "c.pth", framing="squash"))
    new = RetinaNet(5, RESNET10).state_dict()
    frozen = {name: value for name, value in new.items() if name.startswith(("backbone.bn1.", "backbone.layer1."))}
    before = replace(before, weights=before.weights | frozen)
    contract = replace(before.contract, provenance={"backbone": RESNET10})
    file = OnnxFile.of(DeployedModel(before.build_model(), contract), contract)
    assert [len(node.input) for node in file.model.graph.node if node.op_type == "Conv"][:4] == [2, 2, 2, 3]
    file.write(tmp_path / "m.onnx", contract)
    result = recover(photographs, "--model", tmp_path / "m.onnx", "--out", tmp_path / "again.pth")
    assert result.exit_code == 0, result.output
    again = load_checkpoint(tmp_path / "again.pth")
    torch.testing.assert_close(logits(again, photographs), logits(before, photographs), atol=1e-3, rtol=1e-4)


def test_a_file_that_answers_otherwise_is_refused(small_export: SmallExport, photographs: Path, tmp_path: Path) -> None:
    """With a mean colour changed in the graph but not in the contract, the recovered checkpoint's answers differ."""
    model = onnx.load(small_export.model)
    (mean,) = (tensor for tensor in model.graph.initializer if tensor.name == "preprocess.1.mean")
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) + np.float32(0.3), mean.name))
    onnx.save(model, tmp_path / "other.onnx")
    result = recover(photographs, "--model", tmp_path / "other.onnx", "--out", tmp_path / "again.pth")
    assert result.exit_code == 2
    assert "expected a checkpoint that answers as the file does, found probabilities" in result.output
    assert not (tmp_path / "again.pth").exists()


@pytest.mark.parametrize("apart", [(1.0, 0.0), (0.0, 1.0)])
def test_both_heads_are_compared_on_every_photograph(
    small_export: SmallExport,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    apart: tuple[float, float],
) -> None:
    compared: list[object] = []

    def differing(_logits: object, _model: object, pixels: object) -> tuple[float, float]:
        compared.append(pixels)
        return apart

    monkeypatch.setattr("retina.export.recovered._apart", differing)
    result = recover(photographs, "--model", small_export.model, "--out", tmp_path / "again.pth")
    assert result.exit_code == 2
    assert "expected a checkpoint that answers as the file does, found probabilities" in result.output
    assert len(compared) == 6


def test_another_graph_is_refused(small_export: SmallExport, photographs: Path, tmp_path: Path) -> None:
    model = onnx.load(small_export.model)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "model.dr_head.3.weight")
    for node in model.graph.node:
        node.input[:] = ["another" if name == tensor.name else name for name in node.input]
    tensor.name = "another"
    onnx.save(model, tmp_path / "other.onnx")
    result = recover(photographs, "--model", tmp_path / "other.onnx", "--out", tmp_path / "again.pth")
    assert result.exit_code == 2
    assert "expected the network that retina-export writes, found dr_head.3.weight missing" in result.output
    result = recover(tmp_path / "none", "--model", small_export.model, "--out", tmp_path / "again.pth")
    assert "none: expected a folder with photographs to measure batch-norm on" in result.output
    assert not (tmp_path / "again.pth").exists()

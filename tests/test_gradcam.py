"""Maps equal those of the grad-cam package and of the explain export, and the model is left as it was."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import pytorch_grad_cam as package
import torch
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from retina.gradcam import GradCAM, find_layer, head_logit
from retina.gradcam.cam import Method
from retina.gradcam.explainer import CheckpointExplainer, OnnxExplainer
from retina.runtime.contract import Head
from retina.runtime.errors import UsageError
from retina.runtime.picture import decode
from retina.train.framing import make_preprocess
from retina.train.model import RetinaNet
from retina.train.synthetic import photograph
from small_backbone import RESNET10
from small_export import SmallExport
from small_network import CONTRACT, linear, network
from torch import Tensor, nn

PACKAGE = {"gradcam": package.GradCAM, "gradcam++": package.GradCAMPlusPlus, "hirescam": package.HiResCAM}


@pytest.fixture(scope="module")
def batch() -> Tensor:
    pictures = [photograph(grade, 0, 128, seed=grade).picture for grade in range(4)]
    preprocess = make_preprocess(CONTRACT.preprocessing)
    return torch.cat([preprocess(torch.from_numpy(picture)[None]) for picture in pictures])


class OneHead(nn.Module):
    """A model with only one head, because the package explains models with one output."""

    def __init__(self, model: RetinaNet, index: int) -> None:
        super().__init__()
        self.model, self.index = model, index

    def forward(self, x: Tensor) -> Tensor:
        logits: tuple[Tensor, Tensor] = self.model(x)
        return logits[self.index]


def by_package(
    model: RetinaNet, head: str, layers: list[str], method: str, x: Tensor, classes: list[int]
) -> np.ndarray:
    """The package's maps (N, h, w) before resizing: raw for one layer, aggregated as the package does for several."""
    modules = [find_layer(model, layer) for layer in layers]
    targets = [ClassifierOutputTarget(index) for index in classes]
    with PACKAGE[method](OneHead(model, 0 if head == "dr" else 1), modules) as cam:
        cam(x, targets)
        recorded = cam.activations_and_grads
        raw: list[np.ndarray] = [
            np.maximum(cam.get_cam_image(x, module, targets, a.numpy(), g.numpy(), False), 0)
            for module, a, g in zip(modules, recorded.activations, recorded.gradients, strict=True)
        ]
        if len(raw) == 1:
            return raw[0]
        whole: np.ndarray = cam.aggregate_multi_layers([scale_cam_image(each)[:, None] for each in raw])
        return whole


@pytest.fixture(scope="module")
def twenty() -> Tensor:
    """The network's input for 20 photographs: real ones if there are any, else drawn ones."""
    if "RETINA_DATA" in os.environ:
        files = sorted((Path(os.environ["RETINA_DATA"]) / "retina/test/images").iterdir())[::16][:20]
        pictures = [decode(file) for file in files]
    else:
        pictures = [photograph(seed % 5, 0, 128, seed=seed).picture for seed in range(20)]
    assert len(pictures) == 20
    preprocess = make_preprocess(CONTRACT.preprocessing)
    return torch.cat([preprocess(torch.from_numpy(picture)[None]) for picture in pictures])


def test_a_head_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="head: expected one of dr, me, found 'DR'"):
        head_logit("DR")  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", [RESNET10, "resnet50"])
def test_equals_the_grad_cam_package(backbone: str, twenty: Tensor) -> None:
    model = network(backbone)
    with torch.no_grad():
        classes = [logits.argmax(dim=1).tolist() for logits in model(twenty)]
    mine = GradCAM(model)(twenty, [head_logit("dr"), head_logit("me")])
    for head, maps, of_head in zip(("dr", "me"), mine, classes, strict=True):
        theirs = by_package(model, head, ["layer4"], "gradcam", twenty, of_head)
        assert maps.shape == theirs.shape == (20, 3, 3)
        assert maps.dtype == np.float32
        assert theirs.max() > 0
        assert np.abs(maps - theirs).max() <= 1e-4 * min(1, theirs.max())


@pytest.mark.parametrize("method", sorted(PACKAGE))
@pytest.mark.parametrize("layers", [["layer3"], ["layer4[-1].conv2"], ["layer4[0].conv2", "layer4"]])
def test_every_method_equals_the_package(method: Method, layers: list[str], batch: Tensor) -> None:
    model, classes = network(), [1, 1, 4, 0]
    (mine,) = GradCAM(model, layers, method)(batch, [head_logit("dr", classes)])
    np.testing.assert_allclose(mine, by_package(model, "dr", layers, method, batch, classes), atol=1e-4, rtol=1e-4)


def test_layers_of_different_size_come_back_at_the_largest(batch: Tensor) -> None:
    (maps,) = GradCAM(network(), ["layer3", "layer4"])(batch, [head_logit("dr")])
    assert maps.shape == (4, 6, 6)
    np.testing.assert_allclose(maps.max(axis=(1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(maps.min(axis=(1, 2)), 0, atol=1e-5)


def test_a_batch_is_explained_as_its_pictures_one_by_one(batch: Tensor) -> None:
    cam = GradCAM(network())
    (together,) = cam(batch, [head_logit("me", 1)])
    singles = np.concatenate([cam(x[None], [head_logit("me", 1)])[0] for x in batch])
    np.testing.assert_allclose(together, singles, atol=1e-6)


def test_the_sum_is_the_logit_without_biases(batch: Tensor) -> None:
    """As the documented unit says: without biases and negative evidence, the cells sum to the logit."""
    model = network()
    for layer in (linear(model.dr_head, 0), linear(model.dr_head, 3)):
        layer.weight.data.abs_()
        layer.bias.data.zero_()
    cam = GradCAM(model)
    (maps,) = cam(batch, [head_logit("dr", 3)])
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), cam.output[0][:, 3].numpy(), rtol=1e-5)


@pytest.mark.parametrize("layers", [["layer4"], ["bn1", "layer2"]], ids=["last", "followed by an in-place ReLU"])
def test_the_model_is_left_as_it_was_found(layers: list[str], batch: Tensor) -> None:
    model = network().train()
    model.set_frozen(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    cam = GradCAM(model, layers)
    with torch.inference_mode():  # as a caller might use
        cam(batch, [head_logit("dr")])

    def fails(_output: object) -> Tensor:
        raise KeyError("interrupted")

    with pytest.raises(KeyError):
        cam(batch, [fails])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] != [True] * len(list(model.parameters()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_is_found_by_name_and_a_wrong_one_says_what_there_is(batch: Tensor) -> None:
    model = network("resnet50")
    assert find_layer(model, "layer4[-1].conv3") is model.backbone.layer4[2].conv3
    assert find_layer(model, "backbone.layer4.0") is model.backbone.layer4[0]
    with pytest.raises(UsageError, match=r"layer layer5: expected one of conv1, bn1.*layer4.* found 'layer5'"):
        GradCAM(model, ["layer5"])
    with pytest.raises(UsageError, match=r"expected one of conv1.*relu, downsample, found '7'"):
        find_layer(model, "layer4[0].7")
    with pytest.raises(UsageError, match="3 outputs"):
        GradCAM(model, ["layer4.2.relu"])(batch, [head_logit("dr")])
    with pytest.raises(UsageError, match=r"layer fc: .* shape \(4, 2048\)"):
        GradCAM(model, ["fc"])(batch, [head_logit("dr")])
    with pytest.raises(UsageError, match=r"layer avgpool: .* found \(4, 2048, 1, 1\), .* earlier layer"):
        GradCAM(model, ["avgpool"])(batch, [head_logit("dr")])
    with pytest.raises(UsageError, match="gradcam, gradcam"):
        GradCAM(model, method="scorecam")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("heads", "target"), [(("dr", "me"), None), (("dr", "me"), 0), (("dr",), 4), (("me",), 0), (("me",), 1)]
)
def test_equals_the_explain_export(
    heads: tuple[Head, ...], target: int | None, small_export: SmallExport, small_explained: Path
) -> None:
    by_torch, by_onnx = (
        CheckpointExplainer(small_export.checkpoint, heads, target),
        OnnxExplainer(small_explained, heads, target),
    )
    pictures = [photograph(grade, 0, size, seed=grade).picture for grade, size in ((0, 97), (2, 300), (4, 160))]
    by_torch_said = by_torch.explain(pictures)
    assert any(a.maps[head].values.any() for a in by_torch_said for head in heads)
    for a, b in zip(by_torch_said, by_onnx.explain(pictures), strict=True):
        for decided in ("grade", "me_risk", "referable", "referable_me"):
            assert getattr(a.prediction, decided) == getattr(b.prediction, decided)
        assert a.prediction.referable_prob == pytest.approx(b.prediction.referable_prob, abs=1e-4)
        assert set(a.maps) == set(b.maps) == set(heads)
        if target is not None:
            assert b.maps[heads[0]].target == target
        for head in heads:
            assert a.maps[head].target == b.maps[head].target
            assert a.maps[head].probability == pytest.approx(b.maps[head].probability, abs=1e-4)
            largest = a.maps[head].values.max()
            np.testing.assert_allclose(a.maps[head].values, b.maps[head].values, atol=1e-3 * largest)

"""Checkpoints: what is written can be read, the notebook's files load, and no foreign code is ever unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from retina.runtime.contract import Contract, Preprocessing
from retina.runtime.errors import ModelFileError, OutputError, UsageError
from retina.runtime.output_file import replacing, write_bytes_atomically
from retina.train.checkpoint import Checkpoint, load_checkpoint
from retina.train.model import RetinaNet, backbone_names, load_backbone_weights
from retina.train.warm_start import open_start
from small_backbone import RESNET10

CONTRACT = Contract(Preprocessing(image_size=64), dr_grades=(0, 2, 4))


@pytest.fixture(scope="module")
def net() -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet(3, RESNET10).eval()


def test_what_is_saved_is_read(net: RetinaNet, tmp_path: Path) -> None:
    saved = Checkpoint(net.state_dict(), RESNET10, CONTRACT, {"seed": 1}, {"valid": {"score": 0.5}}, 3)
    saved.save(tmp_path / "a.pth")
    read = load_checkpoint(str(tmp_path / "a.pth"))
    assert (read.backbone, read.contract, read.config, read.metrics, read.epoch) == (
        RESNET10, CONTRACT, {"seed": 1}, {"valid": {"score": 0.5}}, 3,
    )  # fmt: skip
    assert read.versions["torch"] == torch.__version__.split("+")[0]
    x = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(read.build_model()(x), net(x), strict=True):
        assert torch.equal(ours, theirs)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"], "no temporary file is left"


def test_model_is_torchvisions_resnet_with_two_heads() -> None:
    """Parameter names and shapes of the original notebook, and torchvision's own forward pass."""
    torch.manual_seed(1)
    net = RetinaNet(5).eval()
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters() if "head" in name}
    assert shapes == {
        "dr_head.0.weight": (512, 2048), "dr_head.0.bias": (512,),
        "dr_head.3.weight": (5, 512), "dr_head.3.bias": (5,),
        "me_head.0.weight": (256, 2048), "me_head.0.bias": (256,),
        "me_head.3.weight": (2, 256), "me_head.3.bias": (2,),
    }  # fmt: skip
    assert net.dr_head[2].p == net.me_head[2].p == 0.3
    reference = torchvision.models.resnet50()
    reference.fc = torch.nn.Identity()
    reference.load_state_dict({n.removeprefix("backbone."): t for n, t in net.state_dict().items() if "head" not in n})
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        features = reference.eval()(x)
        dr = features @ net.dr_head[0].weight.T + net.dr_head[0].bias
        dr = dr.clamp(min=0) @ net.dr_head[3].weight.T + net.dr_head[3].bias
        torch.testing.assert_close(net(x)[0], dr, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net.feature_map(x).mean((2, 3)), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grades", [1, 6])
def test_a_bare_state_dict_of_more_grades_than_there_are_is_told(tmp_path: Path, grades: int) -> None:
    torch.save(RetinaNet(grades, RESNET10).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=rf"w\.pth: expected a dr_head of 2 to 5 DR grades, found {grades}"):
        load_checkpoint(tmp_path / "w.pth")


def test_bare_state_dict_of_the_notebook(net: RetinaNet, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "retina_multitask_best.pth")
    read = load_checkpoint(tmp_path / "retina_multitask_best.pth")
    assert read.backbone == RESNET10
    assert read.contract.dr_grades == (0, 1, 2)
    assert (read.contract.preprocessing.framing, read.contract.preprocessing.image_size) == ("squash", 384)
    other = load_checkpoint(tmp_path / "retina_multitask_best.pth", framing="field", image_size=256)
    assert (other.contract.preprocessing.framing, other.contract.preprocessing.image_size) == ("field", 256)


def compiled_by_torch(module: torch.nn.Module) -> torch.nn.Module:
    compiled = torch.compile(module)
    assert isinstance(compiled, torch.nn.Module)  # more than its annotations promise
    return compiled


def test_weights_are_found_in_what_wraps_them(net: RetinaNet, tmp_path: Path) -> None:
    path, weights = tmp_path / "w.pth", net.state_dict()
    parallel = torch.nn.DataParallel(net).state_dict()
    assert not parallel.keys() & weights.keys()
    compiled = compiled_by_torch(net).state_dict()
    assert not compiled.keys() & weights.keys()
    both = (
        compiled_by_torch(torch.nn.DataParallel(net)).state_dict(),
        torch.nn.DataParallel(compiled_by_torch(net)).state_dict(),
    )
    for content in (
        parallel, compiled, *both, {"epoch": 3, "model_state_dict": parallel}, {"state_dict": weights},
        {"model": {"state_dict": weights}},
    ):  # fmt: skip
        torch.save(content, path)
        read = load_checkpoint(path)
        assert read.is_bare and read.weights.keys() == weights.keys()
        assert all(torch.equal(read.weights[name], weights[name]) for name in weights)
        start = open_start(RESNET10, str(path))
        assert start is not None and start.weights.keys() == weights.keys()
    torch.save({**parallel, "odd": torch.zeros(1)}, path)
    with pytest.raises(ModelFileError, match=r"found the entries module\.backbone"):
        load_checkpoint(path)


def test_a_checkpoint_knows_how_it_was_trained(net: RetinaNet, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    Checkpoint(net.state_dict(), RESNET10, CONTRACT).save(path)
    prep = CONTRACT.preprocessing
    load_checkpoint(path, framing=prep.framing, image_size=prep.image_size)
    with pytest.raises(UsageError, match=f"--image-size: expected {prep.image_size} as .* was trained, found 999"):
        load_checkpoint(path, image_size=999)
    with pytest.raises(UsageError, match=f"--framing: expected {prep.framing}"):
        load_checkpoint(path, framing="squash" if prep.framing == "field" else "field")


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("container", ["pickle", "torch"])
@pytest.mark.parametrize("kind", [{}, {"kind": "retina-edge checkpoint"}])
def test_foreign_pickle_is_refused_and_never_run(tmp_path: Path, container: str, kind: dict[str, str]) -> None:
    content = {**kind, "weights": Evil(tmp_path / "was_run")}
    if container == "pickle":
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(ModelFileError, match=r"evil\.pth: expected a torch file of plain tensors"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a torch file", "cannot be read safely"),
        (b"", "cannot be read safely"),
        (b"PK\x03\x04 cut short", "cannot be read safely"),
        (None, "found no such file. Make one with  retina-train"),
        ([1, 2], "found list"),
        ({"model": 1}, "found the entries model"),
        ({"dr_head.3.weight": torch.zeros(5, 512), "me_head.3.weight": torch.zeros(2, 256)}, "fit none of"),
        ({"kind": "retina-edge checkpoint"}, "expected a checkpoint with the entry 'weights'"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_weights_of_another_shape_are_refused(net: RetinaNet, tmp_path: Path) -> None:
    Checkpoint(net.state_dict(), "resnet34", CONTRACT).save(tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=r"expected \(64, 64, 3, 3\), found nothing"):
        load_checkpoint(tmp_path / "a.pth")


def test_damaged_checkpoints_are_refused(net: RetinaNet, tmp_path: Path) -> None:
    """Each is of the right kind, but with one entry that differs from what retina-train writes."""
    weights, path = net.state_dict(), tmp_path / "a.pth"
    Checkpoint(weights, RESNET10, CONTRACT).save(path)
    whole = torch.load(path, weights_only=True)
    nan = {**weights, "me_head.3.bias": torch.tensor([0.0, float("nan")])}
    for change, said in (
        ({"weights": {**weights, "extra": torch.zeros(1)}}, "found extra too"),
        ({"weights": {**weights, "me_head.3.bias": [0.0, 0.0]}}, r"me_head.3.bias: expected \(2,\), found nothing"),
        ({"weights": nan}, "me_head.3.bias: expected finite weights"),
        ({"weights": 3}, "found a damaged checkpoint"),
        ({"config": [1]}, "found a damaged checkpoint"),
        ({"backbone": "resnet9"}, "a.pth: expected a backbone among .*resnet50.*, found 'resnet9'"),
        ({"contract": 3}, "found a damaged one"),
    ):
        torch.save({**whole, **change}, path)
        with pytest.raises(ModelFileError, match=said):
            load_checkpoint(path)
    torch.save(nan, path)
    with pytest.raises(ModelFileError, match=r"me_head\.3\.bias: expected finite weights"):
        load_checkpoint(path)
    torch.save({"dr_head.3.weight": torch.tensor(1.0), "me_head.3.weight": torch.zeros(2, 256)}, path)
    with pytest.raises(ModelFileError, match=r"found the entries dr_head\.3\.weight"):
        load_checkpoint(path)


def test_rotten_bytes_are_told_and_not_loaded(net: RetinaNet, tmp_path: Path) -> None:
    """torch.load does not look at the archive's checksums."""
    path = tmp_path / "a.pth"
    Checkpoint(net.state_dict(), RESNET10, CONTRACT).save(path)
    content = bytearray(path.read_bytes())
    at = content.index(net.state_dict()["dr_head.3.weight"].numpy().tobytes())
    content[at] ^= 0x40
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["kind"] == "retina-edge checkpoint"
    with pytest.raises(ModelFileError, match=r"a\.pth: expected a sound file, found .*data/\d+ in it damaged"):
        load_checkpoint(path)


def test_backbone_starts_from_a_torchvision_state_dict(tmp_path: Path) -> None:
    torch.manual_seed(2)
    source = torchvision.models.get_model(RESNET10)
    weights = source.state_dict()
    for content in (weights, {"state_dict": weights, "epoch": 3}, {"model": weights, "args": {}}):
        torch.save(content, tmp_path / "w.pth")
        net = RetinaNet(3, RESNET10)
        load_backbone_weights(net, RESNET10, str(tmp_path / "w.pth"))
        assert torch.equal(net.backbone.layer4[0].conv2.weight, source.layer4[0].conv2.weight)
    with pytest.raises(ModelFileError, match="expected a torchvision state_dict of resnet34"):
        load_backbone_weights(RetinaNet(3, "resnet34"), "resnet34", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        (RESNET10, "resnet50", r"shape: 19 \(layer1\.0\.conv1\.weight, .*\), names unknown: 246 \("),
        ("resnet50", "resnext50_32x4d", r"shape: 176 \(.*\), names unknown: 0\."),
        (RESNET10, {1: torch.zeros(2)}, r"names unknown: 1 \(1\)\."),
    ],
)
def test_weights_of_another_backbone_are_refused(tmp_path: Path, backbone: str, weights: Any, message: str) -> None:
    state = torchvision.models.get_model(weights).state_dict() if isinstance(weights, str) else weights
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=rf"w\.pth: expected a torchvision state_dict of {backbone}, .*{message}"):
        load_backbone_weights(RetinaNet(3, backbone), backbone, str(tmp_path / "w.pth"))


def test_imagenet_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The network is cut off by a proxy on a port where nothing listens. The loading code is torchvision's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"--weights FILE .* or --weights none"):
        load_backbone_weights(RetinaNet(3, "resnet18"), "resnet18", "imagenet")


def test_unknown_backbone_lists_the_known() -> None:
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"} <= set(backbone_names())
    with pytest.raises(UsageError, match="resnet50"):
        RetinaNet(5, "vgg16")


def test_frozen_layers_keep_their_statistics(net: RetinaNet) -> None:
    net.set_frozen(True)
    net.train()
    assert not net.backbone.bn1.training
    assert not net.backbone.layer1[0].bn1.training
    assert net.backbone.layer2[0].bn1.training
    assert {n.split(".")[1] for n, p in net.named_parameters() if not p.requires_grad} == {"conv1", "bn1", "layer1"}
    net.set_frozen(False)
    assert net.backbone.bn1.training
    assert all(p.requires_grad for p in net.parameters())


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.pth"
    target.write_text("old")
    full = pytest.raises(OutputError, match=r"a\.pth: cannot be written: No space left")
    with full, replacing(target) as temporary:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.pth"
    target.write_text("old")
    synced: list[tuple[int, str]] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, target.read_text())))
    write_bytes_atomically(target, b"newer")
    assert synced == [(len(b"newer"), "old")], "whole, and under its former name still the former file"
    assert target.read_bytes() == b"newer"


@pytest.mark.parametrize(("place", "why"), [("x" * 256, "File name too long"), ("file/a", "File exists")])
def test_a_place_that_cannot_be_is_told(tmp_path: Path, place: str, why: str) -> None:
    """In places where the temporary file cannot be removed either."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"cannot be written: {why}"):
        write_bytes_atomically(tmp_path / place, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    write_bytes_atomically(tmp_path / ("y" * 255), b"new")  # just fits


def test_bytes_do_not_depend_on_the_files_name_and_a_full_disk_is_told(net: RetinaNet, tmp_path: Path) -> None:
    import resource

    saved = Checkpoint(net.state_dict(), RESNET10, CONTRACT)
    saved.save(tmp_path / "a.pth")
    saved.save(tmp_path / "other.pth")
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # like a full disk, but only for this process
    try:
        with pytest.raises(OutputError, match=r"full\.pth: cannot be written: File too large"):
            saved.save(tmp_path / "full.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "other.pth"]

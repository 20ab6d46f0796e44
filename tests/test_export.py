"""retina-export, from the command to the file, compared with PyTorch, Pillow and plain onnxruntime."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from invoking import invoke
from retina.export import job, placing, to_onnx
from retina.export.cli import _unseen, main
from retina.export.graph import DeployedModel, class_cams
from retina.export.inspection import inspect_file
from retina.export.parity import Predictor, predictor_of_module
from retina.export.photographs import choose_photographs, spread
from retina.export.to_onnx import OnnxFile, set_metadata
from retina.export.to_pt2 import Pt2File
from retina.export.to_torchscript import TorchScriptFile
from retina.runtime.contract import METADATA_KEY, Contract
from retina.runtime.digest import sha256_of
from retina.runtime.errors import ModelFileError, ParityError, PictureError
from retina.runtime.model import RetinaModel
from retina.runtime.picture import decode
from retina.train.checkpoint import load_checkpoint
from retina.train.framing import make_preprocess
from small_backbone import RESNEXT14
from small_checkpoint import small_checkpoint
from small_export import SmallExport, small_pictures
from tiny_model import tiny_model

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("few_sizes")


export = partial(invoke, main)


@pytest.fixture(scope="module")
def plain(small_export: SmallExport) -> Path:
    return small_export.model


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pictures(tmp_path_factory.mktemp("photographs"))


def torch_probs(checkpoint: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities from the network's own forward, which the exported module does not use."""
    read = load_checkpoint(checkpoint)
    with torch.no_grad():
        logits = read.build_model()(make_preprocess(read.contract.preprocessing)(torch.from_numpy(pixels)))
    dr, me = (value.softmax(1).numpy() for value in logits)
    return dr, me


def test_bare_export_writes_what_retina_score_looks_for(plain: Path, checkpoint: Path) -> None:
    model = RetinaModel(plain)
    assert model.contract.output_names == ["dr_probs", "me_probs"]
    assert model.contract.provenance["checkpoint_sha256"] == sha256_of(checkpoint)
    assert model.contract.provenance["metrics"] == {"valid": {"dr_accuracy": 0.5, "me_auc": None}}
    assert plain.with_name("retina_multitask.onnx.sha256").read_text() == f"{model.sha256}  retina_multitask.onnx\n"
    parity = model.contract.parity
    assert parity["worst"] <= 1e-4 and parity["equal_decisions"] == 1.0 and parity["pictures"] >= 12
    assert sorted(path.name for path in plain.parent.iterdir()) == [
        "retina_multitask.onnx", "retina_multitask.onnx.contract.json", "retina_multitask.onnx.sha256",
        "retina_multitask_best.pth",
    ]  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(n=st.sampled_from([1, 2, 5]), height=st.integers(32, 300), width=st.integers(32, 300), data=st.data())
def test_file_answers_as_the_network_for_any_size(
    plain: Path, checkpoint: Path, n: int, height: int, width: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    pixels = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    pixels[:, : height // 3] = 0  # a border
    pixels[0] *= data.draw(st.sampled_from([0, 1]))  # sometimes a black picture
    session = ort.InferenceSession(plain, providers=["CPUExecutionProvider"])
    found = session.run(["dr_probs", "me_probs"], {"image": pixels})
    for ours, theirs in zip(torch_probs(checkpoint, pixels), found, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)


def test_answers_differ_between_pictures(plain: Path) -> None:
    """Otherwise the tests above would compare constants."""
    session = ort.InferenceSession(plain, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    pixels[1, :, :, 0] = 255
    dr = session.run(["dr_probs"], {"image": pixels})[0]
    assert np.abs(dr[0] - dr[1]).max() > 1e-3


def test_file_holds_one_checked_graph_and_no_path_of_this_machine(plain: Path, small_explained: Path) -> None:
    for path in (plain, small_explained):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        content = path.read_bytes()
        assert str(REPOSITORY).encode() not in content and b"site-packages" not in content
        assert b"mueller" not in content, "the folder of the photographs that it was compared on"
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        read = {name for node in model.graph.node for name in node.input} | {out.name for out in model.graph.output}
        assert all(any(name in read for name in node.output) for node in model.graph.node), "a node nobody reads"


def test_metadata_for_other_tools(plain: Path) -> None:
    session = ort.InferenceSession(plain, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["names"])["4"] == "DR grade 4"
    assert json.loads(metadata["imgsz"]) == [64, 64]
    assert "license" not in metadata  # the code's licence is not the weights', whose data have their own terms
    assert "not for clinical use" in metadata["description"]
    assert metadata["Image.BitmapPixelFormat"] == "Rgb8"
    assert Contract.from_json(metadata[METADATA_KEY]).preprocessing.image_size == 64


def test_explain_is_autograd_and_leaves_the_probabilities(plain: Path, small_explained: Path, checkpoint: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 90, 70, 3), dtype=np.uint8)
    names = ["dr_probs", "me_probs", "dr_cam", "me_cam", "dr_cam_per_grade", "me_cam_per_label"]
    session = ort.InferenceSession(small_explained, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == names
    found = dict(zip(names, session.run(names, {"image": pixels}), strict=True))
    without = ort.InferenceSession(plain, providers=["CPUExecutionProvider"]).run(names[:2], {"image": pixels})
    np.testing.assert_allclose(found["dr_probs"], without[0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(found["me_probs"], without[1], atol=1e-6, rtol=0)

    read = load_checkpoint(checkpoint)
    model, preprocess = read.build_model(), make_preprocess(read.contract.preprocessing)
    kept: list[torch.Tensor] = []
    model.backbone.layer4.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    logits = model(preprocess(torch.from_numpy(pixels)))
    for head, (per_class, predicted, probs) in enumerate(
        [("dr_cam_per_grade", "dr_cam", "dr_probs"), ("me_cam_per_label", "me_cam", "me_probs")]
    ):
        for k in range(logits[head].shape[1]):
            (gradient,) = torch.autograd.grad(logits[head][:, k].sum(), kept[0], retain_graph=True)
            cam = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).detach().numpy()
            difference = np.abs(found[per_class][:, k] - np.maximum(cam, 0)).max()
            assert difference <= 1e-3 * np.abs(cam).max(), (per_class, k)
        rows = np.arange(3)
        np.testing.assert_array_equal(found[predicted], found[per_class][rows, found[probs].argmax(1)])
    assert found["dr_cam_per_grade"].max() > 0


@pytest.mark.slow
def test_torch_formats_open_without_this_package(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    for kind in ("torchscript", "pt2"):
        out = tmp_path / kind
        result = export(checkpoint, "--format", kind, "--check", photographs, "--out", out)
        assert result.exit_code == 0, result.output
        with zipfile.ZipFile(out) as archive:
            assert archive.testzip() is None
            for name in archive.namelist():
                content = archive.read(name)
                assert str(REPOSITORY).encode() not in content and b"site-packages" not in content, name
        inspected = json.loads(export("--inspect", out, "--json").output)
        assert inspected["format"] == kind and inspected["contract"]["parity"]["equal_decisions"] == 1.0
    script = f"""
import warnings, sys; warnings.simplefilter("ignore")
import numpy as np, torch
scripted, exported = {{"{METADATA_KEY}": ""}}, {{"{METADATA_KEY}": ""}}
modules = [torch.jit.load("torchscript", _extra_files=scripted)]
with open("pt2", "rb") as file:
    modules.append(torch.export.load(file, extra_files=exported).module())
assert not any(name.split(".")[0] == "retina" for name in sys.modules)
pixels = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (2, 75, 50, 3), dtype=np.uint8))
print(repr([[probs.tolist() for probs in module(pixels)] for module in modules]))
print(repr([len(extra["{METADATA_KEY}"]) for extra in (scripted, exported)]))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    answers, contract_lengths = map(eval, ran.stdout.splitlines())
    pixels = np.random.default_rng(5).integers(0, 256, (2, 75, 50, 3), dtype=np.uint8)
    expected = torch_probs(checkpoint, pixels)
    for dr, me in answers:
        np.testing.assert_allclose(dr, expected[0], atol=1e-5)
        np.testing.assert_allclose(me, expected[1], atol=1e-5)
    assert min(contract_lengths) > 500


def test_bare_state_dict_of_the_notebook(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    bare = tmp_path / "notebook.pth"
    torch.save(load_checkpoint(checkpoint).weights, bare)
    out = tmp_path / "bare.pt"
    result = export(bare, "--format", "torchscript", "--image-size", 64, "--check", photographs, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{bare} does not say how it was trained: taken as --framing squash --image-size 64." in result.output
    preprocessing = json.loads(export("--inspect", out, "--json").output)["contract"]["preprocessing"]
    assert (preprocessing["framing"], preprocessing["image_size"]) == ("squash", 64)


@pytest.mark.slow
def test_a_backbone_of_bottlenecks_and_groups_passes_the_same_checks(photographs: Path, tmp_path: Path) -> None:
    checkpoint = small_checkpoint(tmp_path / "other.pth", backbone=RESNEXT14, image_size=32, framing="squash")
    result = export(checkpoint, "--explain", "--check", photographs, "--out", tmp_path / "other.onnx")
    assert result.exit_code == 0, result.output


def test_inspect_prints_for_a_person_and_a_program(plain: Path, checkpoint: Path) -> None:
    shown = export("--inspect", plain).output
    for part in ("image uint8 (N, H, W, 3)", "dr_probs float32 (N, 5)", "opset      18", "equal_decisions: 1.0"):
        assert part in shown
    inspected = json.loads(export("--inspect", plain, "--json").output)
    assert inspected["sha256"] == sha256_of(plain) and inspected["operators"]["Conv"] == 12
    assert inspected["size"] == plain.stat().st_size
    counts = list(inspected["operators"].values())
    assert counts == sorted(counts, reverse=True) and len(set(counts)) > 3, "the most frequent first"
    assert (
        f"To make a model file from a checkpoint:  retina-export {checkpoint}" in export("--inspect", checkpoint).output
    )


def test_what_inspect_does_not_obey_is_refused(plain: Path, tmp_path: Path) -> None:
    result = export("c.pth", "--inspect", plain, "--precision", "fp32", "--out", tmp_path / "x.onnx", "--json")
    assert result.exit_code == 2
    assert "--inspect: found beside it '[CHECKPOINT]', '--precision', '--out', which it does not obey" in result.output


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """What else is none, and that no code in it is run: test_checkpoint.py."""
    (tmp_path / "x.pth").write_bytes(b"not a checkpoint")
    result = export(tmp_path / "x.pth", "--out", tmp_path / "x.onnx")
    assert result.exit_code == 2 and "x.pth: expected" in result.output and "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_another_network_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    result = export(tmp_path / "other.pth")
    assert result.exit_code == 2 and "expected a retina-edge checkpoint" in result.output
    result = export("--artifacts", tmp_path)
    assert result.exit_code == 2 and "retina_multitask_best.pth: expected" in result.output


def test_a_file_that_answers_otherwise_than_pytorch_is_not_kept(
    checkpoint: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = TorchScriptFile.open

    def slightly_off(file: TorchScriptFile, path: Path, contract: Contract) -> Predictor:
        answer = opened(file, path, contract)
        return lambda pixels: {name: values + np.float32(2e-4) for name, values in answer(pixels).items()}

    monkeypatch.setattr(TorchScriptFile, "open", slightly_off)
    out = tmp_path / "out" / "m.pt"
    result = export(checkpoint, "--format", "torchscript", "--check", photographs, "--out", out)
    assert result.exit_code == 2 and "0.0002" in result.output, result.output
    assert list(out.parent.iterdir()) == []


def test_a_disk_without_room_for_the_file_is_told_before_the_conversion(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(tensor.nbytes for tensor in load_checkpoint(checkpoint).weights.values())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10**12, free=size - 1))
    monkeypatch.setattr(TorchScriptFile, "of", lambda _: pytest.fail("converted"))
    result = export(checkpoint, "--format", "torchscript", "--out", tmp_path / "m.pt")
    assert result.exit_code == 2
    assert f"{tmp_path}: expected {size / 1e6:.0f} MB of room for the file, found" in result.output


def test_options_that_cannot_be_met(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "key.sig").write_text("private")
    (tmp_path / "eye.raw").write_text("no picture")
    for arguments, reason in (
        (("--precision", "int8"), "expected --calibration DATA"),
        (("--precision", "int8", "--format", "pt2", "--calibration", tmp_path), "expected --format onnx"),
        (("--calibration", tmp_path), "expected --precision int8, found fp32"),
        (("--out", checkpoint), "expected the ending .onnx of --format onnx"),
        (("--check", tmp_path), "expected photographs, found none"),
        (("--force",), "--force: expected --precision int8, found fp32"),
        (("--me-positive-from", 2), "--me-positive-from: expected --calibration DATA"),
        # Nor may the files beside it replace one: of this name, the signature.
        (("--sign", tmp_path / "key.sig", "--out", tmp_path / "key"), "key.sig: expected a file to write, found one"),
        (("--check", tmp_path / "eye.raw", "--out", tmp_path / "eye.raw"), "eye.raw: expected a file to write, found"),
        (("--out", tmp_path / ("n" * 250)), "File name too long"),
        (("--check", tmp_path / "eye.raw"), "eye.raw: expected JPEG, PNG"),
        (("--out", "/proc/nowhere/x.onnx"), "cannot be written"),
        (("--sign", tmp_path / "no.key"), "--sign"),
        (
            ("--precision", "int8", "--calibration", tmp_path / "none"),
            "none: expected the data folder given to retina-train",
        ),
    ):
        result = export(checkpoint, *arguments)
        assert result.exit_code == 2 and reason in result.output, result.output
    own = tmp_path / "own"
    own.touch()
    assert "own: expected a file to write, found one that is to be read" in export(own, "--out", own).output


def test_edema_is_graded_as_asked_or_else_as_the_checkpoint_was_trained(
    checkpoint: Path, plain: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def record(_fp32: object, _contract: object, _root: object, me_positive_from: int | None, **_: object) -> None:
        asked.append(me_positive_from)
        raise ParityError("enough seen")

    monkeypatch.setattr(to_onnx, "to_onnx", lambda *_: onnx.load(plain))
    monkeypatch.setattr(job, "to_int8", record)
    graded = tmp_path / "graded.pth"
    replace(load_checkpoint(checkpoint), config={"me_positive_from": 2}).save(graded)
    options = ["--precision", "int8", "--calibration", tmp_path, "--check", photographs, "--out", tmp_path / "m.onnx"]
    for more in ([checkpoint], [graded], [graded, "--me-positive-from", 1]):
        assert "enough seen" in export(*more, *options).output
    assert asked == [None, 2, 1]


def test_a_flipped_byte_is_refused(plain: Path, tmp_path: Path) -> None:
    content = bytearray(plain.read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / plain.name
    changed.write_bytes(content)
    digest = plain.with_name(plain.name + ".sha256").read_text()
    changed.with_name(changed.name + ".sha256").write_text(digest)
    with pytest.raises(ModelFileError, match=r"expected sha256 \w+ .* found"):
        RetinaModel(changed)
    assert "expected sha256" in export("--inspect", changed).output


@pytest.mark.parametrize("kind", [TorchScriptFile, Pt2File])
def test_torch_formats_do_not_depend_on_the_files_name_and_tell_of_a_full_disk(
    kind: type[TorchScriptFile | Pt2File], checkpoint: Path, tmp_path: Path
) -> None:
    import resource

    loaded = load_checkpoint(checkpoint)
    file = kind.of(DeployedModel(loaded.build_model(), loaded.contract))
    file.write(tmp_path / ".one.tmp", loaded.contract)
    file.write(tmp_path / "two", loaded.contract)
    assert (tmp_path / ".one.tmp").read_bytes() == (tmp_path / "two").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.write(tmp_path / "full", loaded.contract)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_damaged_archive_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    whole = tmp_path / "m.pt"
    TorchScriptFile.of(DeployedModel(loaded.build_model(), loaded.contract)).write(whole, loaded.contract)
    whole.write_bytes(whole.read_bytes().replace(b"PK\x01\x02", b"XX\x01\x02", 1))
    result = export("--inspect", whole)
    assert result.exit_code == 2
    assert "m.pt: expected a whole file, found damage" in result.output


def test_an_archive_that_would_swell_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/extra/retina.contract", bytes(1 << 25))
    result = export("--inspect", tmp_path / "m.pt")
    assert result.exit_code == 2
    assert "m.pt: expected a contract of at most 16777216 bytes, found 33554432" in result.output


@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_it_leaves_no_file_that_is_refused_and_says_what_was_written(
    when: str, checkpoint: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.pt"
    out.write_bytes(b"the file of an earlier export")
    for ending in (".sha256", ".sig", ".contract.json"):
        out.with_name(out.name + ending).write_text("0" * 64)

    def stopped(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    module, name = (job, "check_parity") if when == "before" else (placing, "sha256_of")
    monkeypatch.setattr(module, name, stopped)
    result = export(checkpoint, "--format", "torchscript", "--check", photographs, "--out", out)
    assert result.exit_code == 130
    if when == "before":
        assert "stopped; nothing was written" in result.output
        assert len(list(tmp_path.iterdir())) == 4
    else:
        assert "m.pt is whole" in result.output
        assert list(tmp_path.iterdir()) == [out]
        assert export("--inspect", out).exit_code == 0


def test_an_int8_file_that_retina_score_would_pass_over_says_so(tmp_path: Path) -> None:
    int8 = tmp_path / "retina_multitask.int8.onnx"
    assert _unseen(int8) == _unseen(tmp_path / "mine.onnx") == []
    (tmp_path / "retina_multitask.onnx").touch()
    (said,) = _unseen(int8)
    assert (
        said
        == f"retina-score takes {tmp_path / 'retina_multitask.onnx'} beside it unless told otherwise: --model {int8}"
    )
    assert _unseen(tmp_path / "mine.onnx") == []


def small_archive(path: Path, compression: int = zipfile.ZIP_DEFLATED) -> bytearray:
    """Write a file of the format pt2 with nothing in it but its contract; returns its bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("m/extra/retina.contract", Contract().to_json())
    return bytearray(path.read_bytes())


def test_an_archives_digest_is_compared_and_that_it_was_is_said(tmp_path: Path) -> None:
    file, beside = tmp_path / "m.pt2", tmp_path / "m.pt2.sha256"
    small_archive(file)
    assert inspect_file(file).digest_known is False
    assert inspect_file(file).lines()[0].endswith(f"{sha256_of(file)} (no .sha256 beside it to compare with)")
    beside.write_text(f"{sha256_of(file)}  m.pt2\n")
    assert inspect_file(file).digest_known is True
    assert inspect_file(file).lines()[0].endswith(f"{sha256_of(file)} (as written beside it)")
    beside.write_text(f"{'0' * 64}  m.pt2\n")
    with pytest.raises(ModelFileError, match=r"m\.pt2: expected sha256 0{64} .*, found"):
        inspect_file(file)


@pytest.mark.parametrize(
    ("signature", "at", "value"),
    [
        (b"PK\x01\x02", 8, 1),  # encrypted
        (b"PK\x01\x02", 10, 12),  # bzip2, which it is not
        (b"PK\x01\x02", 10, 14),  # LZMA, which it is not
        (b"PK\x01\x02", 10, 99),  # no compression there is
        (b"PK\x01\x02", 42, 200),  # the data begin elsewhere
        (b"PK\x05\x06", 17, 200),  # the list of files begins elsewhere
        (b"retina.contract", 15, 0xFF),  # the data themselves
    ],
)
def test_every_damage_of_an_archive_is_refused(signature: bytes, at: int, value: int, tmp_path: Path) -> None:
    content = small_archive(tmp_path / "m.pt2")
    content[content.index(signature) + at] = value
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m\.pt2: expected a whole file, found damage"):
        inspect_file(tmp_path / "m.pt2")


def test_a_hidden_unit_at_zero_passes_no_gradient_as_in_pytorch() -> None:
    """Both channels have the mean 1, so W1 f = 0 and the logit changes with neither."""
    feature_map = torch.tensor([[[[2.0, 0.0]], [[0.0, 2.0]]]], requires_grad=True)
    first, last = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    head = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Dropout(), last).eval()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -1.0]]))
        last.weight.fill_(1.0)
    features = feature_map.mean(dim=(2, 3))
    (gradient,) = torch.autograd.grad(head(features).sum(), feature_map)
    expected = (gradient.mean((2, 3), keepdim=True) * feature_map).sum(1, keepdim=True).relu()
    found = class_cams(head, head[0](features), feature_map)
    assert found.tolist() == expected.tolist() == [[[[0.0, 0.0]]]]


def test_photographs_are_spread_evenly_over_the_list() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 7, 9]  # 0, 2.25, 4.5, 6.75 and 9; a half goes to the even one
    assert spread(range(40), 3) == [0, 20, 39]
    assert spread("abc", 5) == ["a", "b", "c"] and spread([], 5) == []


def test_without_photographs_given_those_that_the_run_was_validated_on_are_compared(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evenly spread ones; where the folder is gone or empty, synthetic ones, and none that lie about."""
    trained = load_checkpoint(checkpoint)
    data = tmp_path / "data"
    for name, count in (("train", 3), ("valid", 63)):
        (data / name / "images").mkdir(parents=True)
        for n in range(count):
            (data / name / "images" / f"{n:02d}.jpg").touch()
    chosen = choose_photographs(None, replace(trained, config={"data": str(data)}))
    assert chosen.paths == tuple(data / "valid/images" / f"{2 * n:02d}.jpg" for n in range(32))
    assert chosen.source == "validation split of the run"
    (tmp_path / "empty/valid/images").mkdir(parents=True)
    monkeypatch.chdir(data)
    for config in ({"data": str(tmp_path / "empty")}, {"data": str(tmp_path / "gone")}, {"data": ""}, {}):
        drawn = choose_photographs(None, replace(trained, config=config))
        assert (drawn.paths, drawn.source) == ((), "synthetic photographs"), config
    assert [pixels.shape[2] for _, pixels in drawn] == [3] * 5


def test_photographs_given_are_not_named_in_the_contract_and_read_before_the_conversion(
    checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    trained = replace(load_checkpoint(checkpoint), config={"data": str(tmp_path)})
    given = choose_photographs(photographs, trained)
    assert given.source == "given photographs"
    assert [name for name, _ in given] == ["a.png", "b.png"]
    for (_, pixels), path in zip(given, sorted(photographs.iterdir()), strict=True):
        np.testing.assert_array_equal(pixels, decode(path))
    assert choose_photographs(photographs / "b.png", trained).paths == (photographs / "b.png",)
    for name, content in (("a.png", (photographs / "a.png").read_bytes()), ("b.png", b"torn")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PictureError, match=r"b\.png: expected"):
        choose_photographs(tmp_path, trained)


def test_classes_are_named_by_their_grade_and_not_by_their_place() -> None:
    model = tiny_model(contract=Contract(dr_grades=(0, 1, 3)))
    set_metadata(model, Contract(dr_grades=(0, 1, 3)))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["names"]) == {"0": "DR grade 0", "1": "DR grade 1", "2": "DR grade 3"}
    assert len(metadata) == len(model.metadata_props)


def test_what_retina_score_would_refuse_is_not_opened_to_be_compared(tmp_path: Path) -> None:
    model = tiny_model(contract=None)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"m\.onnx: expected"):
        OnnxFile(model).open(tmp_path / "m.onnx", Contract())


def test_a_module_with_another_number_of_outputs_is_refused() -> None:
    answer = predictor_of_module(torch.nn.Flatten(), Contract())
    assert answer(np.zeros((2, 2), np.uint8)).keys() == {"dr_probs", "me_probs"}
    with pytest.raises(ParityError, match=r"expected \['dr_probs', 'me_probs'\], found 3 tensors"):
        answer(np.zeros((3, 2), np.uint8))

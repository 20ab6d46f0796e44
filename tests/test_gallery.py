"""retina-gradcam: what it draws, its page and table, and what it refuses."""

from __future__ import annotations

import csv
import html
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from retina.gradcam import head_logit
from retina.gradcam.cli import main
from retina.gradcam.explainer import CheckpointExplainer, Explanation, OnnxExplainer
from retina.gradcam.gallery import Gallery, Scale, _looked_at_again, _scale_max, list_photographs
from retina.gradcam.index import write_index, write_rows
from retina.gradcam.item import GalleryItem
from retina.gradcam.panel import TILE
from retina.runtime import RELEASED
from retina.runtime.contract import Contract, Head, Rule
from retina.runtime.errors import OutputError, PictureError
from retina.runtime.field import LitField
from retina.runtime.formats import NO_MEMORY
from retina.runtime.model import RetinaModel
from retina.runtime.overlay import HeadMap, peak_at
from retina.runtime.picture import decode
from retina.runtime.prediction import Prediction
from retina.train.checkpoint import Checkpoint
from retina.train.synthetic import photograph
from small_backbone import RESNET10
from small_export import SmallExport
from small_network import CONTRACT, linear, network
from tiny_model import write_tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photographs"
    (root / "clinic").mkdir(parents=True)
    for name, size in (("a.jpg", 200), ("a.png", 96), ("clinic/b.png", 150)):
        Image.fromarray(photograph(2, 1, size, seed=size).picture[: 2 * size // 3]).save(root / name)
    (root / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    return root


def test_a_folder_in_a_gallery_out(folder: Path, checkpoint: Path, small_export: SmallExport, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = [str(folder), "--out", str(out), "--checkpoint", str(checkpoint), "--npy", "--target", "3"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 1, result.output  # one file cannot be read
    assert "torn.jpg: " in result.stderr
    assert "3 photographs drawn, 1 failed" in result.stdout
    with (out / "gradcam.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Image name"] for row in rows] == ["a.jpg", "a.png", "clinic/b.png", "torn.jpg"]
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "error"]
    assert rows[3]["error"]
    assert not rows[3]["dr_grade"]
    assert [row["dr_overlay"] for row in rows[:3]] == ["a.jpg_dr.jpg", "a.png_dr.jpg", "clinic/b_dr.jpg"]
    model = RetinaModel(small_export.model)
    for row in rows[:3]:
        assert row["dr_target"] == "3"
        pixels = decode(folder / row["Image name"])
        field, size = LitField.find(pixels, model.contract.preprocessing), (pixels.shape[1], pixels.shape[0])
        said = model.predict(pixels)
        assert said.grade != 3
        assert float(row["dr_target_prob"]) == pytest.approx(said.dr_probs[3], abs=1e-4)
        assert float(row["me_target_prob"]) == pytest.approx(max(said.me_prob, 1 - said.me_prob), abs=1e-4)
        for head in ("dr", "me"):
            assert decode(out / row[f"{head}_overlay"]).shape == pixels.shape
            values = np.load(out / f"{row[f'{head}_overlay'].removesuffix('.jpg')}.npy")
            assert values.shape == (2, 2)
            assert values.max() == pytest.approx(float(row[f"{head}_peak"]), rel=1e-4)
            assert values.sum() == pytest.approx(float(row[f"{head}_total"]), rel=1e-4)
            x, y = peak_at(HeadMap(head, values, 0, 0.5), field, size) or ("", "")
            assert (row[f"{head}_peak_x"], row[f"{head}_peak_y"]) == (str(x), str(y))
    page = (out / "index.html").read_text()
    assert page.count("<article>") == 4
    assert 'href="clinic/b_dr.jpg"' in page
    assert "<p>4 photographs, 1 not read. " in page
    assert page.count("Not read: ") == 1


def test_a_probability_on_the_page_is_text(tmp_path: Path) -> None:
    said = Prediction.of(CONTRACT, np.array([0.999, 0, 0, 0, 0.001]), np.array([1.0, 0.0]))
    rare = Explanation(said, {"dr": HeadMap("dr", np.ones((2, 2), np.float32), 4, 0.001)})
    write_index(tmp_path / "index.html", [GalleryItem(Path("a.jpg"), "a.jpg", "a", rare, overlays={"dr": "a_dr.jpg"})])
    assert "DR grade 4 (proliferative), &lt;1%: full size</a>" in (tmp_path / "index.html").read_text()


def test_the_default_checkpoint_and_folder(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "retina_multitask_best.pth").write_bytes(checkpoint.read_bytes())
    args = [str(folder / "a.jpg"), "--artifacts", str(tmp_path / "artifacts"), "--head", "me", "--target", "1"]
    assert CliRunner().invoke(main, args).exit_code == 0
    written = sorted(path.name for path in (tmp_path / "artifacts" / "gradcam").iterdir())
    assert written == ["a_me.jpg", "a_panel.jpg", "gradcam.csv", "index.html"]


@pytest.mark.parametrize("source", ["--checkpoint", "--model"])
def test_a_close_call_is_explained_on_the_whole_photograph_as_it_is_scored(tmp_path: Path, source: str) -> None:
    """With a threshold between the answers for the reduced and for the full-size photograph."""
    path = tmp_path / "eye.jpg"
    Image.fromarray(photograph(2, 1, 900, seed=8).picture).save(path, quality=60)

    def opened(contract: Contract) -> tuple[Path, CheckpointExplainer | OnnxExplainer]:
        if source == "--checkpoint":
            Checkpoint(network().state_dict(), RESNET10, contract).save(tmp_path / "a.pth")
            return tmp_path / "a.pth", CheckpointExplainer(tmp_path / "a.pth")
        file = write_tiny_model(tmp_path / "a.onnx", contract=replace(contract, explain=True))
        return file, OnnxExplainer(file)

    def risk_of(explainer: CheckpointExplainer | OnnxExplainer, whole: bool) -> tuple[int, float]:
        said = explainer.explain([explainer.decode(path, whole=whole)])[0]
        prob = said.maps["me"].probability
        return said.prediction.me_risk, prob if said.maps["me"].target == 1 else 1 - prob

    _, plain = opened(CONTRACT)
    assert plain.decode(path).shape != plain.decode(path, whole=True).shape
    between = (risk_of(plain, whole=False)[1] + risk_of(plain, whole=True)[1]) / 2
    rules = {**CONTRACT.thresholds, "me": Rule("at_least", between)}
    file, explainer = opened(replace(CONTRACT, thresholds=rules))
    reduced, whole = risk_of(explainer, whole=False)[0], risk_of(explainer, whole=True)[0]
    assert reduced != whole
    result = CliRunner().invoke(main, [str(path), source, str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "gradcam.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert int(row["me_risk"]) == whole
    if source == "--model":
        assert RetinaModel(file).predict(path).me_risk == whole


@pytest.mark.parametrize("source", ["--checkpoint", "--model"])
def test_a_small_close_call_is_decoded_once(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is never reduced, with the threshold at the answer itself: a second look would see the same pixels."""
    path = tmp_path / "eye.png"
    Image.fromarray(photograph(2, 1, 96, seed=8).picture).save(path)
    file = tmp_path / ("a.pth" if source == "--checkpoint" else "a.onnx")

    def opened(contract: Contract) -> CheckpointExplainer | OnnxExplainer:
        if source == "--checkpoint":
            Checkpoint(network().state_dict(), RESNET10, contract).save(file)
            return CheckpointExplainer(file)
        return OnnxExplainer(write_tiny_model(file, contract=replace(contract, explain=True)))

    plain = opened(CONTRACT)
    at = plain.explain([plain.decode(path)])[0].prediction.me_prob
    explainer = type(opened(replace(CONTRACT, thresholds={**CONTRACT.thresholds, "me": Rule("at_least", at)})))
    looks: list[bool] = []
    decoded = explainer.decode

    def counted(self: Any, path: Path, *, whole: bool = False) -> np.ndarray:
        looks.append(whole)
        return decoded(self, path, whole=whole)

    monkeypatch.setattr(explainer, "decode", counted)
    result = CliRunner().invoke(main, [str(path), source, str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert looks == [False]


def test_without_a_checkpoint_the_file_that_would_score_is_explained(
    folder: Path, small_explained: Path, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    shutil.copy(small_explained, artifacts / "retina_multitask.onnx")
    for told, empty in ((f"explaining {artifacts / 'retina_multitask.onnx'}", False), ("that ships", True)):
        if empty:
            (artifacts / "retina_multitask.onnx").unlink()
        result = CliRunner().invoke(main, [str(folder / "a.jpg"), "--artifacts", str(artifacts)])
        assert result.exit_code == 0, result.output
        assert f"{artifacts / 'retina_multitask_best.pth'}: no checkpoint there; explaining" in result.stderr
        assert told in result.stderr
        with (artifacts / "gradcam" / "gradcam.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        expected = RetinaModel(RELEASED if empty else small_explained).predict(folder / "a.jpg")
        assert (row["dr_grade"], row["me_risk"]) == (str(expected.grade), str(expected.me_risk))
        prob = expected.me_prob if expected.me_risk else 1.0 - expected.me_prob
        assert float(row["me_target_prob"]) == pytest.approx(prob, abs=1e-4)
    result = CliRunner().invoke(main, [str(folder / "a.jpg"), "--artifacts", str(artifacts), "--layer", "layer3"])
    assert result.exit_code == 2
    best = artifacts / "retina_multitask_best.pth"
    assert f"--layer: expected a checkpoint at {best}, found none. Make one with" in result.stderr


@pytest.mark.parametrize(
    ("layers", "method", "sums"),
    [
        (["layer4"], "gradcam", True),
        (["layer4[-1]"], "hirescam", True),
        (["layer4"], "gradcam++", False),
        (["layer3"], "gradcam", False),
        (["layer4[-1].conv2"], "gradcam", False),
        (["layer3", "layer4"], "gradcam", False),
    ],
)
def test_which_maps_sum_to_the_logit(checkpoint: Path, layers: list[str], method: Any, sums: bool) -> None:
    """Compared with the logit itself: of the map before its ReLU, whose sum is the map's less that of the opposite."""
    explainer = CheckpointExplainer(checkpoint, layers=layers, method=method)
    pixels = photograph(3, 0, 96, seed=1).picture
    head_map = explainer.explain([pixels])[0].maps["dr"]
    assert head_map.sums_to_logit is sums
    x = explainer.preprocess(torch.from_numpy(pixels).unsqueeze(0))
    index = CONTRACT.dr_grades.index(head_map.target)

    def score(output: Any) -> torch.Tensor:
        return head_logit("dr", index)(output)

    def opposite(output: Any) -> torch.Tensor:
        return -score(output)

    of_score, of_opposite = (m.sum() for m in explainer.cam(x, [score, opposite]))
    first, last = linear(explainer.model.dr_head, 0), linear(explainer.model.dr_head, 3)
    with torch.no_grad():
        features = explainer.model.backbone(x)[0]
        logit = (last.weight[index] @ (first.weight @ features * (first(features) > 0))).item()  # without biases
    assert bool(np.isclose(of_score - of_opposite, logit, rtol=1e-3)) == sums


def test_the_layers_and_the_method_asked_for_are_explained(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    asked = ["--layer", "layer3", "--layer", "layer4", "--method", "gradcam++", "--head", "dr", "--npy"]
    args = [str(folder / "a.jpg"), "--checkpoint", str(checkpoint), "--out", str(tmp_path), *asked]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    explainer = CheckpointExplainer(checkpoint, ["dr"], layers=["layer3", "layer4"], method="gradcam++")
    (expected,) = explainer.explain([explainer.decode(folder / "a.jpg")])
    np.testing.assert_array_equal(np.load(tmp_path / "a_dr.npy"), expected.maps["dr"].values)


def test_a_bare_state_dict_is_explained_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "bare.pth")
    Checkpoint(network().state_dict(), RESNET10, CONTRACT).save(tmp_path / "ours.pth")
    prep = CONTRACT.preprocessing
    how = ["--framing", prep.framing, "--image-size", str(prep.image_size)]
    tables = {}
    for name, options in (("ours", []), ("bare", how), ("bare at 384", [])):
        file, out = tmp_path / f"{name.split()[0]}.pth", tmp_path / name
        args = [str(folder / "a.jpg"), "--checkpoint", str(file), "--out", str(out), *options]
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0, result.output
        tables[name] = (out / "gradcam.csv").read_text()
    assert tables["bare"] == tables["ours"] != tables["bare at 384"]


def test_what_cannot_be_read_or_explained_keeps_its_row(
    folder: Path, small_explained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DICOM file without pydicom installed, and a photograph that the model cannot process."""
    (folder / "b.dcm").write_bytes(bytes(128) + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydicom" else find_spec(name))
    predict, refused = RetinaModel.predict_pixels, decode(folder / "a.png").shape

    def refusing(model: RetinaModel, pixels: np.ndarray, **options: Any) -> Prediction:
        if pixels.shape == refused:
            raise PictureError("explain.onnx: too large", "too large")
        return predict(model, pixels, **options)

    monkeypatch.setattr(RetinaModel, "predict_pixels", refusing)
    out = tmp_path / "out"
    result = CliRunner().invoke(main, [str(folder), "--out", str(out), "--model", str(small_explained)])
    assert result.exit_code == 1, result.output
    with (out / "gradcam.csv").open(newline="") as file:
        rows = {row["Image name"]: (row["status"], row["error"]) for row in csv.DictReader(file)}
    page = (out / "index.html").read_text()
    assert "<p>5 photographs, 1 not explained, 2 not read. " in page
    assert "Not explained: too large" in page
    assert rows["a.jpg"] == rows["clinic/b.png"] == ("ok", "")
    assert rows["a.png"] == ("error", "too large")
    assert rows["b.dcm"] == ("error", "pydicom not installed. Run:  pip install 'retina-edge[dicom]'")


def test_what_cannot_be_drawn_keeps_its_answer(folder: Path, small_explained: Path, tmp_path: Path) -> None:
    """A name that leaves no room for an overlay's, and a photograph wider than a JPEG may be."""
    long = 250 * "x" + ".png"
    shutil.copy(folder / "a.png", folder / long)
    Image.new("L", (66_000, 40)).save(folder / "wide.png")
    out = tmp_path / "out"
    result = CliRunner().invoke(main, [str(folder), "--out", str(out), "--model", str(small_explained)])
    assert result.exit_code == 1, result.output
    with (out / "gradcam.csv").open(newline="") as file:
        rows = {row.pop("Image name"): row for row in csv.DictReader(file)}
    assert [rows[name]["status"] for name in ("a.jpg", "a.png", "clinic/b.png")] == ["ok"] * 3
    fault = "overlays cannot be written: File name too long"
    undrawn = {"status": "error", "error": fault, "dr_overlay": "", "me_overlay": ""}
    assert rows[long] == {**rows["a.png"], **undrawn}  # the same photograph
    assert rows["wide.png"]["error"] == (
        "overlays cannot be written: a JPEG has at most 65500 pixels a side, found 66000 x 40"
    )
    assert rows["wide.png"]["dr_grade"] and rows["wide.png"]["me_target_prob"]
    assert f"{long}: {fault}" in result.stderr
    assert "3 photographs drawn, 3 failed" in result.stdout
    page = (out / "index.html").read_text()
    assert f'<h2>{long}</h2><p class="error">Not drawn: {fault}</p>' in page
    assert "<p>6 photographs, 1 not read, 2 not drawn. " in page
    assert page.count("Not read: ") == 1  # torn.jpg


def test_what_memory_does_not_suffice_to_draw_keeps_its_answer(
    folder: Path, small_explained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("retina.gradcam.gallery.draw_panel", exhausted)
    args = [str(folder / "a.png"), "--out", str(tmp_path / "out"), "--model", str(small_explained)]
    assert CliRunner().invoke(main, args).exit_code == 1
    with (tmp_path / "out" / "gradcam.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["dr_grade"] == str(RetinaModel(small_explained).predict(folder / "a.png").grade)
    assert (row["status"], row["error"]) == ("error", NO_MEMORY)
    assert f"Not drawn: {NO_MEMORY}" in (tmp_path / "out" / "index.html").read_text()


def test_what_is_gone_before_it_is_drawn_was_not_read(
    folder: Path, small_explained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = OnnxExplainer.explain

    def explained_then_gone(explainer: OnnxExplainer, photographs: Any) -> list[Explanation]:
        (folder / "a.png").unlink()
        return explain(explainer, photographs)

    monkeypatch.setattr(OnnxExplainer, "explain", explained_then_gone)
    args = [str(folder / "a.png"), "--out", str(tmp_path / "out"), "--model", str(small_explained)]
    assert CliRunner().invoke(main, args).exit_code == 1
    with (tmp_path / "out" / "gradcam.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["dr_grade"], row["status"], row["error"]) == ("", "error", "no such file")
    assert "Not read: no such file" in (tmp_path / "out" / "index.html").read_text()


def test_what_is_not_there_does_not_stop_the_others_and_each_is_drawn_once(
    folder: Path, small_explained: Path, tmp_path: Path
) -> None:
    named = [folder / "a.jpg", folder / "gone.jpg", folder / "." / "a.jpg", folder]
    result = CliRunner().invoke(
        main, [*map(str, named), "--out", str(tmp_path / "out"), "--model", str(small_explained)]
    )
    assert result.exit_code == 1, result.output
    with (tmp_path / "out" / "gradcam.csv").open(newline="") as file:
        rows = {row["Image name"]: row["error"] for row in csv.DictReader(file)}
    assert [name for name in rows if not rows[name]] == ["a.jpg", "a.png", "clinic/b.png"]
    assert rows["gone.jpg"] == "no such file" and len(rows) == 5


def test_the_page_names_each_photograph_in_letters_that_the_panels_lack(
    folder: Path, small_explained: Path, tmp_path: Path
) -> None:
    for name in ("M\u00fcller & S\u00f6hne.png", "\u0418\u0432\u0430\u043d\u043e\u0432.png"):
        shutil.copy(folder / "a.png", tmp_path / name)
        CliRunner().invoke(
            main, [str(tmp_path / name), "--out", str(tmp_path / "out"), "--model", str(small_explained)]
        )
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert f"<h2>{html.escape(name)}</h2>" in page


def test_photographs_are_never_drawn_over(folder: Path, small_explained: Path) -> None:
    """Whether --out is the folder given, the folder of the photograph given, or a folder that contains it."""
    for name in ("eye.jpg", "eye_dr.jpg", "clinic/eye.jpg"):
        Image.fromarray(photograph(1, 0, 64, seed=5).picture).save(folder / name)
    # With --out photographs/, the overlay of clinic's clinic/eye.jpg would be photographs/clinic/eye_dr.jpg.
    (folder / "clinic" / "clinic").mkdir()
    for name in ("clinic/clinic/eye.jpg", "clinic/eye_dr.jpg"):
        Image.fromarray(photograph(1, 0, 64, seed=6).picture).save(folder / name)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pair = [str(folder / "eye.jpg"), str(folder / "eye_dr.jpg")]
    for inputs in ([str(folder)], pair, pair[:1], [str(folder / "clinic")]):
        result = CliRunner().invoke(main, [*inputs, "--model", str(small_explained), "--out", str(folder)])
        assert result.exit_code == 2, inputs
        assert "give another --out" in result.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_default_folder_is_refused_where_it_lies_among_the_photographs(
    folder: Path, small_explained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(main, [".", "--model", str(small_explained)])
    assert result.exit_code == 2
    assert "--out artifacts/gradcam: expected a folder outside" in result.stderr


def test_no_two_photographs_overlays_begin_alike(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.jpg.jpg", "b.jpg", "b.jpg.png", "c.jpg"):
        (tmp_path / name).touch()
    stems = {listed.name: listed.stem for listed in list_photographs([tmp_path])}
    assert stems == {
        "a.jpg": "a.jpg", "a.jpg.jpg": "a.jpg.jpg", "a.png": "a.png",
        "b.jpg": "b", "b.jpg.png": "b.jpg.png", "c.jpg": "c",
    }  # fmt: skip


def test_the_top_of_a_shared_scale_is_each_heads_own() -> None:
    said = Prediction.of(CONTRACT, np.array([1.0, 0, 0, 0, 0]), np.array([1.0, 0.0]))

    def explained(dr: float, me: float) -> GalleryItem:
        peaks: dict[Head, float] = {"dr": dr, "me": me}
        maps = {head: HeadMap(head, np.array([[0, peak]], np.float32), 0, 1.0) for head, peak in peaks.items()}
        return GalleryItem(Path("a.jpg"), "a.jpg", "a", Explanation(said, maps))

    torn = GalleryItem(Path("torn.jpg"), "torn.jpg", "torn", error="empty file")
    assert _scale_max([explained(1, 7), torn, explained(3, 5)]) == {"dr": 3, "me": 7}


def test_a_shared_scale_dims_the_weaker_map(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    changes, in_panels = {}, {}
    for scale in ("image", "shared"):
        args = [str(folder), "--out", str(tmp_path / scale), "--checkpoint", str(checkpoint), "--scale", scale]
        CliRunner().invoke(main, [*args, "--head", "dr", "--format", "png"])
        with (tmp_path / scale / "gradcam.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
        weakest = min(rows, key=lambda row: float(row["dr_peak"]))
        assert float(weakest["dr_peak"]) < 0.99 * max(float(row["dr_peak"]) for row in rows)
        original = decode(folder / weakest["Image name"]).astype(int)
        changes[scale] = np.abs(decode(tmp_path / scale / weakest["dr_overlay"]) - original).mean()
        assert weakest["dr_overlay"].endswith("_dr.png")
        panel = decode(tmp_path / scale / f"{weakest['dr_overlay'].removesuffix('_dr.png')}_panel.jpg").astype(int)
        left, dr = (panel[62 : 62 + TILE, x : x + TILE] for x in (20, 40 + TILE))
        in_panels[scale] = np.abs(dr - left).mean()
    assert changes["shared"] < changes["image"]
    assert in_panels["shared"] < in_panels["image"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "expected photographs or folders"),
        (["nowhere.jpg"], "nowhere.jpg: expected a photograph or a folder"),
        ([300 * "x"], "x: expected a photograph or a folder"),
        (["nowhere.jpg", "nor.jpg"], "nowhere.jpg: expected a photograph or a folder"),
        (["{folder}", "{folder}/gone/a.jpg"], "gone/a.jpg: expected a photograph, found nothing there"),
        (["{folder}/a.jpg", "{folder}/clinic/../../other/a.jpg"], "would have the same name"),
        (["{folder}/a.jpg", "{folder}/link/../a.jpg"], "would have the same name"),
        (["{folder}/a.jpg", "nowhere"], "nowhere: expected a photograph or a folder"),
        (["{folder}", "--checkpoint", "nowhere.pth"], "nowhere.pth: expected a checkpoint"),
        (["{folder}", "--artifacts", "{other}", "--layer", "layer3"], "--layer: expected a checkpoint at {other}/"),
        (["{folder}", "--artifacts", "{other}", "--method", "hirescam"], "recovered.pth  Then name it with --check"),
        (["{folder}", "--checkpoint", "{checkpoint}", "--target", "7"], "expected one of 0, 1, 2, 3, 4"),
        (["{folder}", "--checkpoint", "{checkpoint}", "--layer", "layer9"], "layer layer9: expected one of conv1"),
        (["{folder}", "--model", "x.onnx", "--layer", "layer3"], "--layer: expected without --model"),
        (["{folder}", "--model", "x.onnx", "--image-size", "512"], "--image-size: expected without --model"),
        (
            ["{folder}", "--model", "{small_explained}", "--target", "5"],
            "expected one of 0, 1, 2, 3, 4 for the dr head",
        ),
        (["{folder}", "{other}", "--checkpoint", "{checkpoint}"], "would have the same name"),
        (["{folder}", "--checkpoint", "{checkpoint}", "--out", "{checkpoint}"], "best.pth: expected a folder that can"),
        (["{folder}", "--out", "{folder}/maps"], "expected a folder outside"),
        (["{folder}/a.jpg", "--out", "{folder}"], "expected a folder outside"),
        (["{folder}", "--checkpoint", "{checkpoint}", "--out", "{loop}"], "Choose another --out."),
    ],
)
def test_what_is_refused(
    args: list[str], message: str, folder: Path, checkpoint: Path, small_explained: Path, tmp_path: Path
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").touch()
    (other / "within").mkdir()
    (folder / "link").symlink_to(other / "within")
    names = {
        "folder": folder,
        "other": other,
        "checkpoint": checkpoint,
        "small_explained": small_explained,
        "loop": loop,
    }
    result = CliRunner().invoke(main, [arg.format(**names) for arg in args])
    assert result.exit_code == 2
    assert message.format(**names) in result.stderr
    assert result.stderr.startswith("retina-gradcam: ")


def without_extras(*args: object) -> subprocess.CompletedProcess[str]:
    """Run retina-gradcam where only the base packages are installed."""
    wall = (
        "import sys\nfor name in ('torch', 'torchvision', 'pandas', 'matplotlib', 'scipy'): sys.modules[name] = None\n"
    )
    code = wall + "from retina.gradcam.cli import main\nmain()"
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_folder_that_is_not_there_is_not_replaced_by_the_model_that_ships(
    folder: Path, tmp_path: Path, way: str
) -> None:
    absent = str(tmp_path / "artefacts")
    arguments = ["--artifacts", absent] if way == "option" else []
    env = {} if way == "option" else {"RETINA_ARTIFACTS": absent}
    result = CliRunner().invoke(main, [str(folder / "a.jpg"), *arguments], env=env)
    assert result.exit_code == 2
    assert f"expected a folder, found none: {absent}" in result.stderr


def test_torch_is_asked_for_only_where_a_checkpoint_would_be_read(folder: Path, tmp_path: Path) -> None:
    from tiny_model import CONTRACT as TINY

    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    write_tiny_model(artifacts / "retina_multitask.onnx", contract=replace(TINY, explain=True))
    args = (folder / "a.jpg", "--artifacts", artifacts)
    done = without_extras(*args)
    assert done.returncode == 0, done.stderr
    assert "no checkpoint there; explaining" in done.stderr
    assert (artifacts / "gradcam" / "a_dr.jpg").is_file()

    checkpoint = artifacts / "retina_multitask_best.pth"
    checkpoint.touch()
    for refused in (without_extras(*args), without_extras(folder / "a.jpg", "--checkpoint", checkpoint)):
        assert refused.returncode == 2
        assert f"{checkpoint}: expected torch to read a checkpoint, found: torch, torchvision, " in refused.stderr
        assert "pip install 'retina-edge[gradcam]'" in refused.stderr
        assert f"--model {RELEASED}" in refused.stderr
    assert without_extras(*args, "--model", artifacts / "retina_multitask.onnx").returncode == 0


def test_a_model_file_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    from tiny_model import CONTRACT as TINY
    from tiny_model import tiny_model

    for name, contract in (("explain.onnx", replace(TINY, explain=True)), ("plain.onnx", TINY)):
        (tmp_path / name).write_bytes(tiny_model(contract=contract).SerializeToString())

    def run(model: str) -> subprocess.CompletedProcess[str]:
        return without_extras(folder / "clinic", "--model", tmp_path / model, "--out", tmp_path / "out", "--npy")

    done = run("explain.onnx")
    assert done.returncode == 0, done.stderr
    pixels = decode(folder / "clinic" / "b.png") / 255
    ramp = np.arange(16).reshape(4, 4) / 16
    np.testing.assert_allclose(np.load(tmp_path / "out" / "b_dr.npy"), pixels[..., 0].mean() * ramp, rtol=1e-3)
    refused = run("plain.onnx")
    assert refused.returncode == 2
    assert "retina-export --explain" in refused.stderr


def test_a_gallery_that_is_drawn_counts_whoever_listens(folder: Path, small_explained: Path, tmp_path: Path) -> None:
    args = [str(folder / "a.jpg"), "--model", str(small_explained), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", "from retina.gradcam.cli import main; main()", *args]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "index.html").is_file()


def test_a_folder_that_the_output_cannot_spell(folder: Path, small_explained: Path, tmp_path: Path) -> None:
    args = [str(folder / "a.jpg"), "--model", str(small_explained), "--out", str(tmp_path / "\u65e5")]
    done = subprocess.run(
        [sys.executable, "-c", "from retina.gradcam.cli import main; main()", *args],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u65e5/index.html" in done.stdout


def test_stopped_by_the_user_it_says_so(
    folder: Path, small_explained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxExplainer, "explain", stopped)
    result = CliRunner().invoke(main, [str(folder), "--model", str(small_explained), "--out", str(tmp_path / "out")])
    assert result.exit_code == 130
    assert "retina-gradcam: stopped" in result.stderr


def test_more_photographs_than_are_explained_at_once_keep_their_own_answers(tmp_path: Path) -> None:
    for n in range(18):
        Image.fromarray(photograph(n % 5, 0, 64, seed=n).picture).save(tmp_path / f"{n:02d}.png")
    file = write_tiny_model(tmp_path / "tiny.onnx", contract=replace(CONTRACT, explain=True))
    result = CliRunner().invoke(main, [str(tmp_path), "--model", str(file), "--out", str(tmp_path.with_name("out"))])
    assert result.exit_code == 0, result.output
    with (tmp_path.with_name("out") / "gradcam.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["Image name"] for row in rows] == [f"{n:02d}.png" for n in range(18)]
    model = RetinaModel(file)
    said = [model.predict(tmp_path / row["Image name"]) for row in rows]
    assert len({each.me_prob for each in said}) == 18
    for row, expected in zip(rows, said, strict=True):
        assert float(row["me_target_prob"]) == pytest.approx(max(expected.me_prob, 1 - expected.me_prob), abs=1e-5)


def test_a_panel_is_not_drawn_over_a_photograph_either(small_explained: Path, tmp_path: Path) -> None:
    """The panel of clinic/clinic/eye.jpg would be clinic/eye_panel.jpg, as its name is relative to the folder given."""
    (tmp_path / "clinic" / "clinic").mkdir(parents=True)
    for name in ("clinic/clinic/eye.jpg", "clinic/eye_panel.jpg"):
        Image.fromarray(photograph(1, 0, 64, seed=6).picture).save(tmp_path / name)
    before = (tmp_path / "clinic/eye_panel.jpg").read_bytes()
    args = [str(tmp_path / "clinic"), "--model", str(small_explained), "--out", str(tmp_path)]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert "eye_panel.jpg: expected a name to write to, found a photograph" in result.stderr
    assert (tmp_path / "clinic/eye_panel.jpg").read_bytes() == before


def test_a_row_says_what_was_decided_and_which_map_is_blank(tmp_path: Path) -> None:
    """Of a photograph without risk whose risk is enough to refer it."""
    contract = replace(CONTRACT, thresholds={**CONTRACT.thresholds, "referable_me": Rule("at_least", 0.2)})
    said = Prediction.of(contract, np.array([0.6, 0.4, 0, 0, 0]), np.array([0.7, 0.3]))
    maps: dict[Head, HeadMap] = {
        "dr": HeadMap("dr", np.ones((2, 2), np.float32), 0, 0.6),
        "me": HeadMap("me", np.zeros((2, 2), np.float32), 0, 0.7),
    }
    write_rows(tmp_path / "gradcam.csv", [GalleryItem(Path("a.jpg"), "a.jpg", "a", Explanation(said, maps))])
    with (tmp_path / "gradcam.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["dr_grade"], row["me_risk"], said.referable_me) == ("0", "0", True)
    assert (row["dr_blank"], row["me_blank"]) == ("0", "1")


def test_a_probability_in_a_row_has_six_decimals_and_a_peak_that_is_nowhere_no_place(tmp_path: Path) -> None:
    said = Prediction.of(CONTRACT, np.array([0.6, 0.4, 0, 0, 0]), np.array([0.7, 0.3]))
    maps: dict[Head, HeadMap] = {"dr": HeadMap("dr", np.zeros((2, 2), np.float32), 1, 0.1234567)}
    write_rows(tmp_path / "gradcam.csv", [GalleryItem(Path("a.jpg"), "a.jpg", "a", Explanation(said, maps))])
    with (tmp_path / "gradcam.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["dr_target_prob"], row["dr_peak_x"], row["dr_peak_y"]) == ("0.123457", "", "")


def test_a_reason_on_the_page_is_text(tmp_path: Path) -> None:
    torn = GalleryItem(Path("a.jpg"), "a.jpg", "a", error="found <b>&", undone="read")
    write_index(tmp_path / "index.html", [torn])
    assert '<p class="error">Not read: found &lt;b&gt;&amp;</p>' in (tmp_path / "index.html").read_text()


def test_a_link_to_a_name_that_is_not_utf_8_has_its_bytes(tmp_path: Path) -> None:
    said = Prediction.of(CONTRACT, np.array([1.0, 0, 0, 0, 0]), np.array([1.0, 0.0]))
    explanation = Explanation(said, {"dr": HeadMap("dr", np.ones((2, 2), np.float32), 0, 1.0)})
    name = os.fsdecode(b"\xe4")
    eye = GalleryItem(Path(name), name, name, explanation, overlays={"dr": f"{name}_dr.jpg"})
    write_index(tmp_path / "index.html", [eye])
    page = (tmp_path / "index.html").read_text()
    assert 'href="%E4_dr.jpg"' in page and 'src="%E4_panel.jpg"' in page


def test_links_lead_to_names_that_mean_something_in_an_address(tmp_path: Path) -> None:
    said = Prediction.of(CONTRACT, np.array([1.0, 0, 0, 0, 0]), np.array([1.0, 0.0]))
    maps: dict[Head, HeadMap] = {head: HeadMap(head, np.ones((2, 2), np.float32), 0, 1.0) for head in ("dr", "me")}
    overlays: dict[Head, str] = {"dr": "left#1 50%_dr.jpg", "me": "left#1 50%_me.jpg"}
    eye = GalleryItem(
        Path("left#1 50%.jpg"), "left#1 50%.jpg", "left#1 50%", Explanation(said, maps), overlays=overlays
    )
    write_index(tmp_path / "index.html", [eye])
    page = (tmp_path / "index.html").read_text()
    for name in ('href="left%231%2050%25_dr.jpg', 'href="left%231%2050%25_me.jpg', 'src="left%231%2050%25_panel.jpg'):
        assert name in page


@pytest.mark.parametrize(("scale", "times"), [("image", 1), ("shared", 2)])
def test_each_photograph_is_counted(tmp_path: Path, scale: Scale, times: int) -> None:
    """Also one that cannot be read: a command's progress reaches its end."""
    (tmp_path / "eyes").mkdir()
    for n in range(10):
        Image.fromarray(photograph(n % 5, 0, 64, seed=n).picture).save(tmp_path / "eyes" / f"{n}.png")
    (tmp_path / "eyes" / "torn.png").write_bytes(b"torn")
    file = write_tiny_model(tmp_path / "tiny.onnx", contract=replace(CONTRACT, explain=True))
    steps: list[None] = []
    photographs = list_photographs([tmp_path / "eyes"])
    gallery = Gallery(tmp_path / "out", scale)
    made = gallery.make(OnnxExplainer(file), photographs, lambda: steps.append(None))
    assert [each.name for each in made if each.undone] == ["torn.png"]
    assert len(steps) == gallery.steps(photographs) == times * 11


def test_unfamiliar_pictures_are_marked(tmp_path: Path) -> None:
    """With the tiny model, whose novelty is 20 times the mean blue."""
    (tmp_path / "eyes").mkdir()
    for name, blue in (("a", 40), ("b", 200), ("c", 80)):
        Image.new("RGB", (64, 64), (120, 60, blue)).save(tmp_path / "eyes" / f"{name}.png")
    (tmp_path / "eyes" / "torn.png").write_bytes(b"torn")
    file = write_tiny_model(tmp_path / "tiny.onnx", contract=replace(CONTRACT, explain=True, unfamiliar_from=10.0))
    told = CliRunner().invoke(main, [str(tmp_path / "eyes"), "--model", str(file), "--out", str(tmp_path / "out")])
    assert told.stdout == f"3 photographs drawn, 1 failed; 1 of 4 unfamiliar: {tmp_path / 'out' / 'index.html'}\n"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<p>4 photographs, 1 not read; 1 of them unfamiliar. " in page
    articles = {article[:5]: "Unfamiliar: " in article for article in page.split("<article><h2>")[1:]}
    assert articles == {"a.png": False, "b.png": True, "c.png": False, "torn.": False}
    headers = [decode(tmp_path / "out" / f"{name}_panel.jpg")[37:56].astype(int) for name in "abc"]
    assert [int((header[..., 0] - header[..., 1]).max()) > 50 for header in headers] == [False, True, False], "red"


def test_an_unfamiliar_picture_that_could_not_be_drawn_is_marked_too(tmp_path: Path) -> None:
    said = Prediction.of(replace(CONTRACT, unfamiliar_from=10.0), np.eye(5)[0], np.array([1.0, 0.0]), novelty=12.0)
    undrawn = GalleryItem(Path("a.jpg"), "a.jpg", "a", Explanation(said, {}), undone="drawn", error="full")
    write_index(tmp_path / "index.html", [undrawn])
    page = (tmp_path / "index.html").read_text()
    assert "<p>1 photograph, 1 not drawn; 1 of them unfamiliar. " in page
    assert '<p class="error">Unfamiliar: as unlike the model&#x27;s training photographs' in page


def test_a_full_disk_stops_a_gallery(tmp_path: Path) -> None:
    """It is not the fault of a picture, which would keep its row."""
    Image.fromarray(photograph(2, 1, 300, seed=8).picture).save(tmp_path / "eye.png")
    file = write_tiny_model(tmp_path / "tiny.onnx", contract=replace(CONTRACT, explain=True))
    explainer, photographs = OnnxExplainer(file), list_photographs([tmp_path / "eye.png"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            Gallery(tmp_path / "out").make(explainer, photographs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_close_call_that_is_gone_before_its_second_look_was_not_read(tmp_path: Path) -> None:
    path = tmp_path / "eye.jpg"
    Image.fromarray(photograph(2, 1, 900, seed=8).picture).save(path, quality=60)

    def opened(contract: Contract) -> OnnxExplainer:
        return OnnxExplainer(write_tiny_model(tmp_path / "a.onnx", contract=replace(contract, explain=True)))

    plain = opened(CONTRACT)
    pixels = plain.decode(path)
    at = plain.explain([pixels])[0].prediction.me_prob
    explainer = opened(replace(CONTRACT, thresholds={**CONTRACT.thresholds, "me": Rule("at_least", at)}))
    explanation = explainer.explain([pixels])[0]
    again = _looked_at_again(explainer, path, pixels, explanation)
    assert isinstance(again, Explanation) and again.prediction.me_prob != at
    path.unlink()
    assert _looked_at_again(explainer, path, pixels, explanation) == "no such file"

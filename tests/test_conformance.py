"""The conformance kit: its contents, the source of its answers, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from retina.export.cli import main
from retina.export.conformance import pictures, write_kit
from retina.export.graph import DeployedModel
from retina.runtime.contract import Precision, Rule
from retina.runtime.model import RetinaModel
from retina.runtime.prediction import Prediction
from retina.train.checkpoint import load_checkpoint
from small_export import SmallExport
from tiny_model import CONTRACT, expected_probs, write_tiny_model


def read_index(kit: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((kit / "index.json").read_text(encoding="utf-8"))
    return index


def read_pixels(kit: Path, picture: dict[str, Any]) -> NDArray[np.uint8]:
    content = (kit / picture["file"]).read_bytes()
    return np.frombuffer(content, picture["dtype"]).reshape(picture["shape"])


def test_answers_are_pytorchs(small_export: SmallExport) -> None:
    """The kit is written from the ONNX file; the checkpoint of that file gives the same answers for the same pixels."""
    index = read_index(small_export.kit)
    checkpoint = load_checkpoint(small_export.checkpoint)
    network = DeployedModel(checkpoint.build_model(), checkpoint.contract)
    for picture in index["pictures"]:
        pixels = read_pixels(small_export.kit, picture)
        with torch.inference_mode():
            dr, me = network(torch.from_numpy(pixels[None].copy()))
        assert np.abs(dr[0].numpy() - picture["dr_probs"]).max() < index["tolerance"] / 10, picture["name"]
        assert np.abs(me[0].numpy() - picture["me_probs"]).max() < index["tolerance"] / 10, picture["name"]


def test_pictures_differ_in_what_an_embedding_can_get_wrong(small_export: SmallExport) -> None:
    index = read_index(small_export.kit)
    shapes = {picture["name"]: tuple(picture["shape"]) for picture in index["pictures"]}
    assert len(shapes) == 9 and all(shape[2] == 3 for shape in shapes.values())
    assert shapes["smallest"] == (32, 32, 3) and shapes["odd"] == (131, 97, 3)
    assert shapes["landscape"] == (240, 360, 3) and shapes["portrait"] == (360, 240, 3)
    assert not read_pixels(small_export.kit, next(p for p in index["pictures"] if p["name"] == "black")).any()
    assert index["model"]["sha256"] == RetinaModel(small_export.model).sha256
    # A wrong colour order, wrong axes, or pixels scaled by the caller are noticed.
    model = RetinaModel(small_export.model)
    mistakes: tuple[Callable[[NDArray[np.uint8]], NDArray[np.uint8]], ...] = (
        lambda p: p[..., ::-1], lambda p: p.transpose(1, 0, 2), lambda p: p // 255
    )  # fmt: skip
    for wrong in mistakes:
        far = [
            np.abs(np.subtract(list(model.predict_pixels(np.ascontiguousarray(wrong(pixels))).dr_probs.values()), dr))
            for pixels, dr in ((read_pixels(small_export.kit, p), p["dr_probs"]) for p in index["pictures"])
        ]
        assert np.max(far) > 10 * index["tolerance"]


def test_decisions_follow_the_rules(tmp_path: Path) -> None:
    write_kit(RetinaModel(write_tiny_model(tmp_path / "m.onnx")), tmp_path / "kit")
    decided = 0
    for picture in read_index(tmp_path / "kit")["pictures"]:
        dr, me = expected_probs(read_pixels(tmp_path / "kit", picture))
        assert picture["dr_probs"] == pytest.approx(dr, abs=1e-5)
        if picture["decisions"] is not None:
            assert picture["decisions"] == {
                "dr_grade": int(dr.argmax()),
                "me_risk": int(me.argmax()),
                "referable": bool(dr[2:].sum() >= 0.5),
                "referable_me": bool(me[1] >= 0.5),
            }
            decided += 1
    assert decided >= 5


def test_every_wrong_rule_shows_on_a_case(tmp_path: Path) -> None:
    """With thresholds like those of the file that ships, between which and 0.5 no picture of its kit lies."""
    fitted = {"me": Rule(), "referable_dr": Rule("at_least", 0.41), "referable_me": Rule("at_least", 0.27)}
    contract = replace(CONTRACT, thresholds={**CONTRACT.thresholds, **fitted})
    write_kit(RetinaModel(write_tiny_model(tmp_path / "m.onnx", contract=contract)), tmp_path / "kit")
    cases = [
        (np.array(case["dr_probs"]), case["me_probs"], case["decisions"])
        for case in read_index(tmp_path / "kit")["cases"]
    ]
    assert all(dr.sum() == pytest.approx(1) and sum(me) == pytest.approx(1) for dr, me, _ in cases)
    assert {decisions["dr_grade"] for *_, decisions in cases} == {0, 1, 2, 3, 4}

    def faults(what: str, rule: Callable[[NDArray[np.float64], list[float]], object]) -> int:
        return sum(rule(dr, me) != decisions[what] for dr, me, decisions in cases)

    assert faults("dr_grade", lambda dr, me: dr.argmax()) == 0
    assert faults("me_risk", lambda dr, me: me[1] > 0.5) == 0
    assert faults("me_risk", lambda dr, me: me[1] >= 0.27) > 0
    assert faults("referable_me", lambda dr, me: me[1] >= 0.27) == 0
    assert faults("referable_me", lambda dr, me: me[1] >= 0.5) > 0
    assert faults("referable", lambda dr, me: dr[2:].sum() >= 0.41) == 0
    assert faults("referable", lambda dr, me: dr[2:].sum() >= 0.5) > 0
    assert faults("referable", lambda dr, me: dr[2:].sum() >= 0.35) > 0
    assert faults("referable", lambda dr, me: dr[2:].max() >= 0.41) > 0
    assert faults("referable", lambda dr, me: dr[1:].sum() >= 0.41) > 0
    assert faults("referable", lambda dr, me: dr[3:].sum() >= 0.41) > 0
    assert faults("referable", lambda dr, me: dr.argmax() >= 2) > 0


def test_a_close_call_is_left_to_the_embedding(tmp_path: Path) -> None:
    """With a threshold at the very ME probability of a picture, either decision is right."""
    noise = dict(pictures())["noise"]
    at_noise = Rule("at_least", RetinaModel(write_tiny_model(tmp_path / "m.onnx")).predict_pixels(noise).me_prob)
    thresholds = {**CONTRACT.thresholds, "me": at_noise, "referable_me": at_noise}
    path = write_tiny_model(tmp_path / "m.onnx", contract=replace(CONTRACT, thresholds=thresholds))
    write_kit(RetinaModel(path), tmp_path / "kit")
    decisions = {p["name"]: p["decisions"] for p in read_index(tmp_path / "kit")["pictures"]}
    assert decisions["noise"] is None and decisions["black"] is not None


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("int8", 2e-2)])
def test_decisions_are_the_same_for_every_answer_within_the_tolerance(
    tmp_path: Path, precision: Precision, tolerance: float
) -> None:
    """Two grades may both move: the lead of the first shrinks by twice the tolerance."""
    contract = replace(CONTRACT, precision=precision)
    path = write_tiny_model(tmp_path / "m.onnx", contract=contract)

    def decided(lead: float) -> bool:
        dr = np.array([0.35 + lead / 2, 0.35 - lead / 2, 0.1, 0.1, 0.1])
        said = Prediction.of(contract, dr, np.array([0.9, 0.1]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RetinaModel, "predict_pixels", lambda *_: said)
            write_kit(RetinaModel(path), tmp_path / "kit")
        return all(picture["decisions"] is not None for picture in read_index(tmp_path / "kit")["pictures"])

    assert decided(2.1 * tolerance) and not decided(1.9 * tolerance)


def test_the_tolerance_is_the_precisions(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.onnx", contract=replace(CONTRACT, precision="int8"))
    result = CliRunner().invoke(main, ["--inspect", str(path), "--conformance", str(tmp_path / "kit")])
    assert result.exit_code == 0, result.output
    assert read_index(tmp_path / "kit")["tolerance"] == 2e-2


def test_what_cannot_be_done_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = CliRunner().invoke(main, ["none.pth", "--conformance", str(tmp_path / "file")])
    assert result.exit_code == 2 and "file: expected a folder that can be written" in result.output
    result = CliRunner().invoke(main, ["none.pth", "--format", "pt2", "--conformance", str(tmp_path / "kit")])
    assert result.exit_code == 2 and "--conformance: expected --format onnx, found pt2" in result.output


def test_the_contract_stands_beside_the_file(small_export: SmallExport) -> None:
    beside = small_export.model.with_name(small_export.model.name + ".contract.json").read_text(encoding="utf-8")
    assert beside == RetinaModel(small_export.model).contract.to_json() + "\n"


def test_each_picture_is_what_its_name_says() -> None:
    made = dict(pictures())
    assert {name: pixels.shape[:2] for name, pixels in made.items()} == {
        "square": (256, 256), "landscape": (240, 360), "portrait": (360, 240), "large": (640, 960), "odd": (131, 97),
        "smallest": (32, 32), "strip": (32, 360), "black": (48, 64), "noise": (97, 131),
    }  # fmt: skip
    np.testing.assert_array_equal(made["strip"], made["landscape"][100:132])
    red, green, blue = (made["noise"][..., channel].ravel() for channel in range(3))
    assert abs(np.corrcoef([red, green, blue]) - np.eye(3)).max() < 0.05, "each pixel and channel by itself"
    assert min(made["noise"].min(), 255 - made["noise"].max()) == 0

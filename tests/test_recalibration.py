"""A finished file calibrated anew, compared with a second fit to the answers of the file before."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from eyes import write_annotations, write_split
from invoking import invoke
from numpy.typing import NDArray
from onnx import numpy_helper
from plain_runtime import outputs_of
from retina.export import recalibrated
from retina.export.inspection import inspect_file
from retina.export.quantize import Quantization, quantize, tensors_to_measure
from retina.export.ranges import measure_ranges
from retina.export.recalibration import main
from retina.export.to_onnx import OnnxFile
from retina.runtime.contract import HEADS, Contract, Head, Rule
from retina.runtime.digest import sha256_of
from retina.runtime.model import RetinaModel
from retina.runtime.picture import decode
from retina.train.calibration import BIAS_SD
from retina.train.screening import screening_threshold
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import norm
from tiny_model import write_tiny_model

recalibrate = partial(invoke, main)
GRADES = [0, 1, 2, 3, 4, 2, 0, 4, 1, 2, 0, 0] * 2
RISKS = [n % 3 == 0 for n in range(len(GRADES))]
TRUE = {"dr": np.array(GRADES), "me": np.array(RISKS, int)}
SICK = {"dr": TRUE["dr"] >= 2, "me": TRUE["me"] == 1}
TEMPERATURE = {"dr": 2.5, "me": 0.6}
BIAS = {"dr": np.array([0.5, -0.25, 0.125, 0.0, -0.5]), "me": np.array([0.3, -0.1])}
FACTS = {
    "backbone": "resnet10",
    "dr_temperature": TEMPERATURE["dr"],
    "dr_bias": BIAS["dr"].tolist(),
    "me_temperature": TEMPERATURE["me"],
    "me_bias": BIAS["me"].tolist(),
    "me_sensitivity": 0.75,
    "calibrated_on": "by hand",
    "metrics": {"splits": {"test": "of the checkpoint"}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Valid alone."""
    root = tmp_path_factory.mktemp("data")
    write_split(root / "valid", GRADES, 1, me=[int(risk) for risk in RISKS])
    return root


def pictures(data: Path) -> list[NDArray[np.uint8]]:
    return [decode(data / f"valid/images/eye_{n}.jpg") for n in range(len(GRADES))]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def file(
    request: pytest.FixtureRequest, small_explained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An export with Grad-CAM outputs, whose heads have ``TEMPERATURE`` and ``BIAS`` in their last layers."""
    model, contract = onnx.load(small_explained), RetinaModel(small_explained).contract
    rules = {**contract.thresholds, "referable_dr": Rule("at_least", 0.37, 2), "referable_me": Rule("at_least", 0.21)}
    contract = replace(contract, precision=request.param, thresholds=rules, provenance=FACTS)
    for head in HEADS:
        weight, bias = (constant(model, f"model.{head}_head.3.{name}") for name in ("weight", "bias"))
        change(weight, numpy_helper.to_array(weight) / TEMPERATURE[head])
        change(bias, numpy_helper.to_array(bias) / TEMPERATURE[head] + BIAS[head])
    if request.param == "int8":
        ranges = measure_ranges(model, tensors_to_measure(model), pictures(data)[:4])
        model = quantize(model, ranges, Quantization("mean"))
    path = tmp_path_factory.mktemp(request.param) / "before.onnx"
    OnnxFile(model).write(path, contract)
    return path


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: list[onnx.TensorProto] = [tensor for tensor in model.graph.initializer if tensor.name == name]
    return found[0]


def change(tensor: onnx.TensorProto, values: NDArray[np.floating]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def outputs(file: Path, data: Path) -> dict[str, NDArray[np.float64]]:
    """What the file says about each photograph, by plain onnxruntime."""
    return {name: values.astype(np.float64) for name, values in outputs_of(file, pictures(data)).items()}


def second_fit(raw: NDArray[np.float64], head: Head, true: NDArray[np.integer]) -> tuple[float, NDArray[np.float64]]:
    """Temperature and biases."""
    sd = BIAS_SD[head]

    def loss(fitted: NDArray[np.float64]) -> float:
        bias = fitted[1:] if sd else np.zeros(2)
        likelihood = log_softmax(raw / math.exp(fitted[0]) + bias, axis=1)[range(len(true)), true].sum()
        return float(-likelihood - (norm(0, sd).logpdf(bias).sum() if sd else 0))

    best = minimize(loss, np.zeros(6 if sd else 1), method="BFGS", options={"gtol": 1e-7}).x
    return math.exp(best[0]), best[1:] if sd else np.zeros(2)


def test_the_new_file_answers_as_a_second_fit_to_the_old_ones_answers(file: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.onnx"
    result = recalibrate(data, "--model", file, "--out", out)
    assert result.exit_code == 0, result.output
    before, after, model = outputs(file, data), outputs(out, data), RetinaModel(out)
    facts, old_rules = model.contract.provenance, RetinaModel(file).contract.thresholds
    for head in HEADS:
        raw = (np.log(before[f"{head}_probs"]) - BIAS[head]) * TEMPERATURE[head]
        temperature, bias = second_fit(raw, head, TRUE[head])
        expected = softmax(raw / temperature + bias, axis=1)
        np.testing.assert_allclose(after[f"{head}_probs"], expected, atol=1e-4)
        assert np.abs(expected - before[f"{head}_probs"]).max() > 0.01
        assert facts[f"{head}_temperature"] == pytest.approx(temperature, rel=1e-3)
        # The referral threshold is that of the new answers, and finds nine of ten, or what the file was fitted for.
        sensitivity = FACTS.get(f"{head}_sensitivity", 0.9)
        prob = expected[:, 2:].sum(1) if head == "dr" else expected[:, 1]
        rule = model.contract.thresholds[f"referable_{head}"]
        assert rule.level == pytest.approx(screening_threshold(SICK[head].astype(int), prob, sensitivity), abs=1e-4)
        assert (rule.rule, rule.from_grade) == ("at_least", old_rules[f"referable_{head}"].from_grade)
        said = [getattr(model.predict(p), "referable" if head == "dr" else "referable_me") for p in pictures(data)]
        assert np.array(said)[SICK[head]].mean() >= sensitivity
        assert facts[f"{head}_sensitivity"] == sensitivity
        if head == "dr":
            np.testing.assert_allclose(facts["dr_bias"], bias, atol=1e-4)
            assert facts["dr_bias"] == [round(value, 6) for value in facts["dr_bias"]]
        # The maps are in logits, so that they become stronger or fainter, and stay in place.
        cams = "dr_cam_per_grade" if head == "dr" else "me_cam_per_label"
        assert before[cams].max() > 0
        np.testing.assert_allclose(
            after[cams], before[cams] * TEMPERATURE[head] / temperature, rtol=1e-3, atol=1e-3 * before[cams].max()
        )
        right = (after[f"{head}_probs"].argmax(1) == TRUE[head]).mean()
        assert facts["metrics"]["splits"]["valid"]["all"][head]["accuracy"]["value"] == pytest.approx(right)
    assert "me_bias" not in facts


def test_what_stands_beside_and_in_the_new_file_is_its_own(file: Path, data: Path, tmp_path: Path) -> None:
    out, old = tmp_path / "new.onnx", RetinaModel(file).contract
    for ending in (".sha256", ".sig", ".contract.json"):
        out.with_name(out.name + ending).write_text("0" * 64)
    result = recalibrate(data, "--model", file, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.onnx", "new.onnx.contract.json", "new.onnx.sha256"]
    assert (tmp_path / "new.onnx.sha256").read_text() == f"{sha256_of(out)}  new.onnx\n"
    contract = RetinaModel(out).contract
    assert (tmp_path / "new.onnx.contract.json").read_text() == contract.to_json() + "\n"
    facts = contract.provenance
    assert facts["backbone"] == "resnet10" and "calibrated_on" not in facts
    assert facts["metrics"].keys() == {"splits"} and facts["metrics"]["splits"].keys() == {"valid"}
    assert facts["recalibrated"].startswith("DR and ME on valid; the metrics are this file's own there, the parity of")
    shown = [line for line in inspect_file(out).lines() if "bias" in line or "recalibrated" in line]
    assert len(shown) == 2 and not any(line.endswith("...") for line in shown)
    same = {"thresholds": old.thresholds, "provenance": old.provenance}
    assert replace(contract, **same) == old  # type: ignore[arg-type]
    body = facts["metrics"]["splits"]["valid"]["all"]
    assert "Calibrated on valid: temperatures DR " in result.output
    assert f"There: DR accuracy {body['dr']['accuracy']['value']:.3f}, kappa" in result.output


def test_calibrated_twice_it_is_as_calibrated_once(file: Path, data: Path, tmp_path: Path) -> None:
    for before, after in ((file, "a.onnx"), (tmp_path / "a.onnx", "b.onnx")):
        assert recalibrate(data, "--model", before, "--out", tmp_path / after).exit_code == 0
    once, twice = (RetinaModel(tmp_path / name).contract for name in ("a.onnx", "b.onnx"))
    for key in ("dr_temperature", "dr_bias", "me_temperature"):
        assert twice.provenance[key] == pytest.approx(once.provenance[key], rel=1e-4, abs=1e-5)
    first, second = (outputs(tmp_path / name, data) for name in ("a.onnx", "b.onnx"))
    for name in ("dr_probs", "me_probs"):
        np.testing.assert_allclose(second[name], first[name], atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_was_not_asked_for_stays_to_the_bit(file: Path, data: Path, tmp_path: Path, head: Head) -> None:
    other = "me" if head == "dr" else "dr"
    out = tmp_path / "new.onnx"
    result = recalibrate(data, "--model", file, "--out", out, "--head", head)
    assert result.exit_code == 0, result.output
    assert f"temperatures {head.upper()} " in result.output and other.upper() not in result.output.split("There")[0]
    before, after = outputs(file, data), outputs(out, data)
    changed = {name for name, values in before.items() if not np.array_equal(after[name], values)}
    assert f"{head}_probs" in changed and not any(name.startswith(other) for name in changed)
    old, new = (onnx.load(path) for path in (file, out))
    differing = [a.name for a, b in zip(old.graph.initializer, new.graph.initializer, strict=True) if a != b]
    layer = f"model.{head}_head.3"
    factor = f"{layer}.weight" if RetinaModel(file).contract.precision == "fp32" else f"{layer}.weight_scale"
    assert sorted(differing) == [f"{layer}.bias", factor]
    was, now = (RetinaModel(path).contract for path in (file, out))
    assert now.thresholds[f"referable_{other}"] == was.thresholds[f"referable_{other}"]
    assert now.thresholds[f"referable_{head}"] != was.thresholds[f"referable_{head}"]
    assert now.provenance[f"{other}_temperature"] == TEMPERATURE[other]
    assert now.provenance["recalibrated"].startswith(f"{head.upper()} on valid; ")


def test_a_sensitivity_is_fitted_for_the_head_that_is_asked_for(file: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.onnx"
    assert recalibrate(data, "--model", file, "--out", out, "--head", "dr", "--sensitivity", 0.6).exit_code == 0
    prob, contract = outputs(out, data)["dr_probs"][:, 2:].sum(1), RetinaModel(out).contract
    expected = screening_threshold(SICK["dr"].astype(int), prob, 0.6)
    assert contract.thresholds["referable_dr"].level == pytest.approx(expected, abs=1e-4)
    assert expected != screening_threshold(SICK["dr"].astype(int), prob)
    assert (contract.provenance["dr_sensitivity"], contract.provenance["me_sensitivity"]) == (0.6, 0.75)
    assert contract.thresholds["referable_me"] == RetinaModel(file).contract.thresholds["referable_me"]
    for wrong, why in ((1, "1.0 is not in the range"), ("nan", "expected a number from 0.5 to below 1.0, found nan")):
        refused = recalibrate(data, "--model", file, "--out", tmp_path / "no.onnx", "--sensitivity", wrong)
        assert refused.exit_code == 2
        assert why in refused.output
    assert not (tmp_path / "no.onnx").exists()


def test_a_file_that_was_never_calibrated_and_is_too_sure(small_explained: Path, data: Path, tmp_path: Path) -> None:
    """Where a probability rounds to 1, the other one does not say how sure the network is, but the logits do."""
    model, contract = onnx.load(small_explained), RetinaModel(small_explained).contract
    for name in ("weight", "bias"):
        tensor = constant(model, f"model.me_head.3.{name}")
        change(tensor, 150 * numpy_helper.to_array(tensor))
    OnnxFile(model).write(tmp_path / "sure.onnx", contract)
    raw = 150 * np.log(outputs(small_explained, data)["me_probs"])
    # Half of them are called risk, and of every six one wrongly.
    risks = np.argsort(np.argsort(raw[:, 1] - raw[:, 0])) >= len(GRADES) // 2
    risks[np.argsort(raw[:, 1] - raw[:, 0])[2::6]] ^= True
    root = labelled(tmp_path / "data", data, [[grade, int(risk)] for grade, risk in zip(GRADES, risks, strict=True)])
    assert (outputs(tmp_path / "sure.onnx", data)["me_probs"] == 1).any()
    out = tmp_path / "new.onnx"
    result = recalibrate(root, "--model", tmp_path / "sure.onnx", "--out", out, "--head", "me")
    assert result.exit_code == 0, result.output
    temperature, _ = second_fit(raw, "me", risks.astype(int))
    assert 1 < temperature < 20
    assert RetinaModel(out).contract.provenance["me_temperature"] == pytest.approx(temperature, rel=1e-3)
    np.testing.assert_allclose(outputs(out, data)["me_probs"], softmax(raw / temperature, axis=1), atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_a_file_whose_answers_are_not_those_computed_is_not_written(
    file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Head
) -> None:
    monkeypatch.setattr(recalibrated.LastLayer, "exchange", lambda *_: None)
    result = recalibrate(data, "--model", file, "--out", tmp_path / "new.onnx", "--head", head)
    assert result.exit_code == 2
    said = f"new.onnx: expected {head.upper()} probabilities within 0.0001 of those that its calibration gives, found"
    assert said in result.output and "nothing was written" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_head_without_labels_is_left_out_and_said_to_be(file: Path, data: Path, tmp_path: Path) -> None:
    root = labelled(tmp_path / "data", data, [[grade, "NA"] for grade in GRADES])
    out = tmp_path / "new.onnx"
    result = recalibrate(root, "--model", file, "--out", out)
    assert result.exit_code == 0, result.output
    assert "; not ME, for which it has no labels. There:" in result.output
    contract = RetinaModel(out).contract
    assert contract.provenance["me_temperature"] == TEMPERATURE["me"]
    assert contract.thresholds["referable_me"].level == 0.21


def test_a_head_that_was_never_trained_is_left_out(file: Path, data: Path, tmp_path: Path) -> None:
    contract = replace(RetinaModel(file).contract, provenance={**FACTS, "untrained_heads": ["dr"]})
    OnnxFile(onnx.load(file)).write(tmp_path / "half.onnx", contract)
    out = tmp_path / "new.onnx"
    result = recalibrate(data, "--model", tmp_path / "half.onnx", "--out", out)
    assert result.exit_code == 0, result.output
    assert "; not DR, which was never trained. There:" in result.output
    assert RetinaModel(out).contract.provenance["dr_temperature"] == TEMPERATURE["dr"]
    result = recalibrate(data, "--model", tmp_path / "half.onnx", "--out", out, "--head", "dr")
    assert result.exit_code == 2
    assert "expected labels to calibrate on, found none; not DR, which was never trained" in result.output


def labelled(root: Path, data: Path, labels: list[list[object]]) -> Path:
    """The same photographs with other labels."""
    (root / "valid").mkdir(parents=True)
    (root / "valid/images").symlink_to(data / "valid/images")
    write_annotations(root / "valid", [[f"eye_{n}.jpg", *both, "", "", ""] for n, both in enumerate(labels)])
    return root


def test_what_cannot_be_calibrated_on_is_refused(file: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "new.onnx"
    healthy = labelled(tmp_path / "healthy", data, [[grade, 0] for grade in GRADES])
    result = recalibrate(healthy, "--model", file, "--out", out)
    assert result.exit_code == 2
    assert "valid/annotations.csv: expected photographs with ME risk to calibrate on, found none" in result.output
    assert recalibrate(healthy, "--model", file, "--out", out, "--head", "dr").exit_code == 0
    graded = labelled(tmp_path / "graded", data, [[grade, min(grade, 2)] for grade in GRADES])
    assert "--me-positive-from N makes graded risk binary" in recalibrate(graded, "--model", file, "--out", out).output
    assert recalibrate(graded, "--model", file, "--out", out, "--me-positive-from", 2).exit_code == 0
    sick = labelled(tmp_path / "sick", data, [[grade, 1] for grade in GRADES])
    result = recalibrate(sick, "--model", file, "--out", out, "--sensitivity", 0.95)
    assert result.exit_code == 0, result.output
    assert "every photograph has ME risk; the ME referral threshold stays 0.210" in result.output
    facts = RetinaModel(out).contract.provenance
    assert (facts["dr_sensitivity"], facts["me_sensitivity"]) == (0.95, 0.75), (
        "of a threshold that was not fitted again"
    )
    assert RetinaModel(out).contract.thresholds["referable_me"].level == 0.21
    none = labelled(tmp_path / "none", data, [["NA", int(risk)] for risk in RISKS])
    result = recalibrate(none, "--model", file, "--out", out, "--head", "dr")
    assert result.exit_code == 2
    assert "found none; not DR, for which it has no labels" in result.output


def test_another_file_or_the_file_itself_is_refused(file: Path, data: Path, tmp_path: Path) -> None:
    tiny = write_tiny_model(tmp_path / "tiny.onnx")
    out = tmp_path / "new.onnx"
    result = recalibrate(data, "--model", tiny, "--out", out)
    assert result.exit_code == 2
    assert (
        f"{tiny}: expected the last layer of the DR head as retina-export writes it, found model.dr_head.3.weight and "
        "model.dr_head.3.bias missing. Calibrate its checkpoint instead"
    ) in result.output
    model = onnx.load(file)
    (node,) = (node for node in model.graph.node if list(node.input[2:]) == ["model.me_head.3.bias"])
    node.input[2] = "another"
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["model.me_head.3.bias"], ["another"]))
    onnx.save(model, tmp_path / "other.onnx")
    result = recalibrate(data, "--model", tmp_path / "other.onnx", "--out", out)
    assert result.exit_code == 2
    assert "of the ME head as retina-export writes it, found model.me_head.3 missing" in result.output
    three = write_tiny_model(tmp_path / "three.onnx", contract=Contract(dr_grades=(0, 1, 2)))
    result = recalibrate(data, "--model", three, "--out", out)
    assert result.exit_code == 2
    assert "expected the model's grades [0, 1, 2], found [3, 4] too" in result.output
    content = file.read_bytes()
    result = recalibrate(data, "--model", file, "--out", file)
    assert result.exit_code == 2
    assert "before.onnx: expected a file to write, found one that is to be read" in result.output
    assert file.read_bytes() == content
    assert not out.exists()

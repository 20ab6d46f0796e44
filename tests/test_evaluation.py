"""Evaluation of an exported file, compared with the tiny model's hand-computed answers and with scikit-learn."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from eyes import write_set, write_split
from retina.runtime.picture import decode
from retina.train import evaluation
from retina.train.evaluation import main
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from tiny_model import CONTRACT, expected_probs, write_tiny_model

GRADES = [0, 1, 2, 3, 4, 2, 0, 4]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_set(tmp_path / "data", train=GRADES, others=GRADES)


def test_figures_are_scikit_learns_on_the_files_own_answers(data: Path, tmp_path: Path) -> None:
    model, out = write_tiny_model(tmp_path / "tiny.onnx"), tmp_path / "metrics.json"
    result = CliRunner().invoke(main, [str(data), "--model", str(model), "--out", str(out)])
    assert result.exit_code == 0, result.output
    probs = [expected_probs(decode(data / f"test/images/eye_{n}.jpg")) for n in range(len(GRADES))]
    dr, me = np.array([p for p, _ in probs]), np.array([p for _, p in probs])
    figures = json.loads(out.read_text())
    assert figures["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    body = figures["splits"]["test"]["all"]
    truth = np.array(GRADES)
    assert body["dr"]["accuracy"]["value"] == pytest.approx((dr.argmax(1) == truth).mean())
    kappa = cohen_kappa_score(truth, dr.argmax(1), weights="quadratic")
    assert body["dr"]["kappa"]["value"] == pytest.approx(kappa)
    auc = roc_auc_score(truth >= 2, dr[:, 2:].sum(1))
    assert body["referable_dr"]["auc"]["value"] == pytest.approx(auc)
    assert body["me"]["accuracy"]["value"] == pytest.approx(((me[:, 1] >= 0.5) == (truth > 1)).mean())
    assert f"| DR quadratic kappa | {kappa:.3f}" in result.output
    assert "| DR grade 2 | 2 |" in result.output


def test_what_the_model_was_never_trained_for_is_said(data: Path, tmp_path: Path) -> None:
    contract = replace(CONTRACT, provenance={"untrained_heads": ["me"]})
    model = write_tiny_model(tmp_path / "tiny.onnx", contract=contract)
    result = CliRunner().invoke(main, [str(data), "--model", str(model)])
    assert result.output.startswith(f"Caution: {contract.caution}\n")


def test_the_splits_asked_for_are_evaluated(data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "valid")
    write_split(data / "valid", [4, 0, 3], seed=9)
    model, out = write_tiny_model(tmp_path / "tiny.onnx"), tmp_path / "metrics.json"
    splits = ["--split", "valid", "--split", "train"]
    result = CliRunner().invoke(main, [str(data), "--model", str(model), "--out", str(out), *splits])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["splits"]
    truth = {"valid": [4, 0, 3], "train": GRADES}
    assert found.keys() == truth.keys()
    for split, grades in truth.items():
        probs = [expected_probs(decode(data / f"{split}/images/eye_{n}.jpg"))[0] for n in range(len(grades))]
        right = np.mean(np.argmax(probs, axis=1) == grades)
        assert (found[split]["all"]["n"], found[split]["all"]["dr"]["accuracy"]["value"]) == (len(grades), right)


def test_other_data_need_only_the_split_and_the_grades_of_the_model(data: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.onnx")
    command = [str(data), "--model", str(model), "--split", "test"]
    whole = CliRunner().invoke(main, command)
    for few in ([0, 1], [0, 0]):  # grades of train, of which test has others
        shutil.rmtree(data / "train")
        write_split(data / "train", few, seed=0)
        result = CliRunner().invoke(main, [*command, "--split", "train"])
        assert result.exit_code == 0, result.output
        assert result.output.startswith(whole.output.rstrip())
    shutil.rmtree(data / "train")
    shutil.rmtree(data / "valid")
    assert CliRunner().invoke(main, command).output == whole.output


def test_graded_me_risk_is_made_binary(data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "test")
    write_split(data / "test", GRADES, seed=2, me=[min(grade, 2) for grade in GRADES])
    model, out = write_tiny_model(tmp_path / "tiny.onnx"), tmp_path / "metrics.json"
    arguments = [str(data), "--model", str(model), "--out", str(out)]
    assert "--me-positive-from N makes graded risk binary" in CliRunner().invoke(main, arguments).output
    said_risk = [expected_probs(decode(data / f"test/images/eye_{n}.jpg"))[1][1] >= 0.5 for n in range(len(GRADES))]
    for threshold in (1, 2):
        result = CliRunner().invoke(main, [*arguments, "--me-positive-from", str(threshold)])
        assert result.exit_code == 0, result.output
        right = np.mean(np.array(said_risk) == (np.array(GRADES) >= threshold))
        assert json.loads(out.read_text())["splits"]["test"]["all"]["me"]["accuracy"]["value"] == right


def test_a_photograph_that_cannot_be_read_is_named(data: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.onnx")
    (data / "test/images/eye_3.jpg").write_bytes(b"no picture")
    result = CliRunner().invoke(main, [str(data), "--model", str(model)])
    assert result.exit_code == 2
    assert "eye_3.jpg: expected JPEG" in result.output


def test_a_place_that_cannot_be_written_is_named_before_anything_is_scored(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "evaluate_file", lambda *_, **__: pytest.fail("scored first"))
    model = write_tiny_model(tmp_path / "tiny.onnx")
    result = CliRunner().invoke(main, [str(data), "--model", str(model), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{tmp_path}: cannot be written" in result.output


def test_the_model_is_not_written_over(data: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.onnx")
    before = model.read_bytes()
    result = CliRunner().invoke(main, [str(data), "--model", str(model), "--out", str(model)])
    assert result.exit_code == 2
    assert "tiny.onnx: expected a file to write, found one that is to be read" in result.output
    assert model.read_bytes() == before


def test_a_grade_that_the_model_lacks_is_named(data: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "three.onnx", contract=replace(CONTRACT, dr_grades=(0, 1, 2)))
    result = CliRunner().invoke(main, [str(data), "--model", str(model)])
    assert result.exit_code == 2
    assert "expected DR grades [0, 1, 2], found [3, 4]" in result.output

"""The mean of several checkpoints, compared with torch's own averaging, and its calibration, with a second fit."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from eyes import write_annotations, write_set, write_split
from PIL import Image
from retina.runtime.contract import Contract, Preprocessing
from retina.runtime.errors import UsageError
from retina.train.averaging import main
from retina.train.calibration import BIAS_SD
from retina.train.checkpoint import Checkpoint, load_checkpoint
from retina.train.data import read_dataset
from retina.train.framing import make_preprocess
from retina.train.model import RetinaNet
from retina.train.scaling import fit_scaling
from retina.train.screening import screening_threshold
from retina.train.soup import average
from small_backbone import RESNET10
from torch.optim.swa_utils import AveragedModel

CONTRACT = Contract(Preprocessing(image_size=32), provenance={"data_fingerprint": "f00d"})
GRADES = [0, 1, 2, 3, 4, 2, 0, 4]


def branch(seed: int, contract: Contract = CONTRACT, backbone: str = RESNET10) -> Checkpoint:
    torch.manual_seed(seed)
    net = RetinaNet(len(contract.dr_grades), backbone).train()
    for _ in range(seed):
        net(torch.randn(4, 3, 32, 32))  # gives it batch-norm statistics and counts of its own
    contract = replace(contract, provenance={**contract.provenance, "run": f"run-{seed}"})
    return Checkpoint(net.state_dict(), backbone, contract, config={"seed": seed}, metrics={"old": 1}, epoch=seed)


def contract_of(data: Path, me_positive_from: int | None = None) -> Contract:
    """The contract of a checkpoint trained on this data."""
    read = read_dataset(data, me_positive_from)
    lines = [
        f"{name} {hashlib.sha256(photo.path.read_bytes()).hexdigest()} {photo.dr_grade} {photo.me_label}"
        for name, split in read.splits.items()
        for photo in split.photos
    ]
    return replace(
        CONTRACT, provenance={"data_fingerprint": hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()}
    )


def test_mean_is_torchs_own() -> None:
    branches = [(f"{seed}.pth", branch(seed)) for seed in (1, 2, 2)]
    mean = average(branches)
    reference = AveragedModel(branches[0][1].build_model(), use_buffers=True)
    for _, checkpoint in branches:
        reference.update_parameters(checkpoint.build_model())
    expected = reference.module.state_dict()
    counts = [name for name in expected if name.endswith("num_batches_tracked")]
    assert {int(mean.weights[name]) for name in counts} == {1}
    for name in expected.keys() - set(counts):
        torch.testing.assert_close(mean.weights[name], expected[name], rtol=1e-5, atol=1e-6)
        assert mean.weights[name].dtype == torch.float32
    assert mean.contract.provenance == {"run": "mean of run-1, run-2, run-2", "data_fingerprint": "f00d"}
    again = average([("mean.pth", mean), branches[0]])
    assert again.contract.provenance["run"] == "mean of (mean of run-1, run-2, run-2), run-1"
    assert (mean.metrics, mean.epoch) == ({}, None), "what was measured of a branch is not true of the mean"


@pytest.mark.parametrize(
    ("backbone", "contract", "message"),
    [
        ("resnet34", CONTRACT, "expected the backbone of a.pth, resnet10, found resnet34"),
        (RESNET10, replace(CONTRACT, dr_grades=(0, 2, 4)), r"the DR grades of a.pth, \(0, 1, 2, 3, 4\), found"),
        (
            RESNET10,
            replace(CONTRACT, preprocessing=Preprocessing("squash", 32)),
            "the framing.*field with.*black, found squash",
        ),
        (RESNET10, replace(CONTRACT, provenance={"data_fingerprint": "beef"}), "the training data.*f00d, found beef"),
        (RESNET10, replace(CONTRACT, provenance={}), "names the data it was trained on, found bare weights"),
    ],
)
def test_what_has_no_mean_is_refused(backbone: str, contract: Contract, message: str) -> None:
    with pytest.raises(UsageError, match=rf"^b\.pth: .*{message}"):
        average([("a.pth", branch(1)), ("b.pth", branch(2, contract, backbone))])


def test_mean_of_branches_at_two_sizes_is_for_the_firsts() -> None:
    larger = branch(2, replace(CONTRACT, preprocessing=Preprocessing(image_size=40)))
    mean = average([("a.pth", branch(1)), ("b.pth", larger)])
    assert mean.contract.preprocessing.image_size == 32
    same = average([("a.pth", branch(1)), ("b.pth", branch(2))])
    assert all(torch.equal(mean.weights[name], tensor) for name, tensor in same.weights.items())


def test_a_mean_cautions_of_what_any_branch_does() -> None:
    told = [branch(n, replace(CONTRACT, added_caution=text)) for n, text in enumerate(("", "One.", "Two.", "One."))]
    assert average([(f"{n}.pth", each) for n, each in enumerate(told)]).contract.caution == "One. Two."


def test_branches_that_call_other_grades_edema_have_no_mean() -> None:
    other = replace(branch(2), config={"me_positive_from": 2})
    with pytest.raises(UsageError, match=r"^b\.pth: expected --me-positive-from of a.pth, None, found 2"):
        average([("a.pth", branch(1)), ("b.pth", other)])


def test_branches_from_different_random_weights_have_no_mean() -> None:
    one, same, other = (
        replace(branch(n), config={"weights": "none", "seed": seed}) for n, seed in ((1, 7), (2, 7), (3, 8))
    )
    average([("a.pth", one), ("b.pth", same)])
    message = r"^b\.pth: expected the start of a.pth, random weights of seed 7, found random weights of seed 8"
    with pytest.raises(UsageError, match=message):
        average([("a.pth", one), ("b.pth", other)])
    with pytest.raises(UsageError, match=r"^b\.pth: .*found trained weights"):
        average([("a.pth", one), ("b.pth", branch(2))])


def test_saved_mean_is_calibrated_on_valid(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for seed, split in enumerate(("train", "valid", "test")):
        write_split(data / split, GRADES, seed, me=[min(grade, 3) for grade in GRADES])
    for seed in (1, 2):
        graded = replace(branch(seed, contract_of(data, 2)), config={"me_positive_from": 2, "sensitivity": 0.6})
        graded.save(tmp_path / f"{seed}.pth")
    parts, out = [tmp_path / "1.pth", tmp_path / "2.pth", tmp_path / "2.pth"], tmp_path / "mean.pth"
    result = CliRunner().invoke(main, [str(data), *map(str, parts), "--out", str(out)])
    assert result.exit_code == 0, result.output
    mean, raw = load_checkpoint(out), average([(path.name, load_checkpoint(path)) for path in parts])
    preprocess = make_preprocess(CONTRACT.preprocessing)
    pixels = [np.array(Image.open(data / f"valid/images/eye_{n}.jpg").convert("RGB")) for n in range(len(GRADES))]
    with torch.inference_mode():
        seen = torch.cat([preprocess(torch.from_numpy(picture[None])) for picture in pixels])
        (dr, me), (raw_dr, raw_me) = mean.build_model()(seen), raw.build_model()(seen)
    true = torch.tensor(GRADES)
    found = mean.contract.provenance
    of_dr, of_me = fit_scaling(raw_dr, true, BIAS_SD["dr"]), fit_scaling(raw_me, (true > 1).long())
    assert found["dr_temperature"] == pytest.approx(of_dr.temperature, rel=1e-3) != 1
    assert found["me_temperature"] == pytest.approx(of_me.temperature, rel=1e-3) != 1
    assert found["dr_bias"] == pytest.approx(of_dr.bias.tolist(), abs=1e-4)
    assert of_dr.bias.abs().max() > 0.001
    # To the decimals that a person can read, with which the network computes.
    assert found["dr_bias"] == [round(value, 6) for value in found["dr_bias"]]
    as_recorded = raw.weights["dr_head.3.bias"] / found["dr_temperature"] + torch.tensor(found["dr_bias"])
    assert torch.equal(mean.weights["dr_head.3.bias"], as_recorded)
    assert "me_bias" not in found
    torch.testing.assert_close(dr, raw_dr / found["dr_temperature"] + of_dr.bias, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(me, raw_me / found["me_temperature"], rtol=1e-3, atol=1e-5)
    accuracy = (dr.argmax(1) == true).double().mean().item()
    assert mean.metrics["splits"]["valid"]["all"]["dr"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert f"DR accuracy {accuracy:.3f}" in result.output
    threshold = mean.contract.thresholds["referable_dr"].threshold
    referable_prob = dr.softmax(1)[:, 2:].sum(1)
    assert (referable_prob >= threshold)[true >= 2].double().mean() >= 0.60
    assert found["dr_sensitivity"] == found["me_sensitivity"] == 0.6
    # From the mean's calibrated answers, not from those before.
    rules = mean.contract.thresholds
    for task, sick, prob in (("dr", true >= 2, referable_prob), ("me", true > 1, me.softmax(1)[:, 1])):
        expected = screening_threshold(sick.long().numpy(), prob.numpy(), 0.6)
        assert expected != screening_threshold(sick.long().numpy(), prob.numpy())
        assert rules[f"referable_{task}"].threshold == pytest.approx(expected, abs=1e-5)


def test_a_recovered_checkpoint_keeps_the_sensitivity_that_it_records(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", train=GRADES, others=GRADES)
    contract = contract_of(data)
    facts = {**contract.provenance, "dr_sensitivity": 0.95}
    replace(branch(1, replace(contract, provenance=facts)), config={}).save(tmp_path / "1.pth")
    result = CliRunner().invoke(main, [str(data), str(tmp_path / "1.pth"), "--out", str(tmp_path / "mean.pth")])
    assert result.exit_code == 0, result.output
    found = load_checkpoint(tmp_path / "mean.pth").contract.provenance
    assert (found["dr_sensitivity"], found["me_sensitivity"]) == (0.95, 0.9)
    assert re.search(
        r"referral from DR 0\.\d{3} \(sensitivity 0\.95\), ME 0\.\d{3} \(sensitivity 0\.9\)", result.output
    )


def test_a_mean_keeps_a_threshold_that_no_photograph_should_be_below(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", train=GRADES, others=GRADES)
    write_annotations(data / "valid", [[f"eye_{n}.jpg", g, 1, "", "", ""] for n, g in enumerate(GRADES)])
    branch(1, contract_of(data)).save(tmp_path / "1.pth")
    result = CliRunner().invoke(main, [str(data), str(tmp_path / "1.pth"), "--out", str(tmp_path / "mean.pth")])
    assert result.exit_code == 0, result.output
    warning = "valid/annotations.csv: every photograph has ME risk; the ME referral threshold stays 0.500"
    assert warning in result.output and "every photograph has DR" not in result.output
    assert load_checkpoint(tmp_path / "mean.pth").contract.thresholds["referable_me"].level == 0.5


@pytest.mark.parametrize("lacking", ["dr", "me"])
def test_mean_of_a_head_without_labels(tmp_path: Path, lacking: str) -> None:
    data = write_set(tmp_path / "data", train=GRADES, others=GRADES)
    for name in ("train", "valid", "test"):
        labels = [("NA", n % 2) if lacking == "dr" else (grade, "NA") for n, grade in enumerate(GRADES)]
        write_annotations(data / name, [[f"eye_{n}.jpg", *both, "", "", ""] for n, both in enumerate(labels)])
    contract = contract_of(data)
    contract = replace(contract, provenance={**contract.provenance, "untrained_heads": [lacking]})
    branch(1, contract).save(tmp_path / "1.pth")
    result = CliRunner().invoke(main, [str(data), str(tmp_path / "1.pth"), "--out", str(tmp_path / "mean.pth")])
    assert result.exit_code == 0, result.output
    assert f"{lacking.upper()} accuracy no photograph has a label" in result.output
    assert f"; not {lacking.upper()}, which was never trained. There:" in result.output
    assert f"{lacking}_temperature" not in load_checkpoint(tmp_path / "mean.pth").contract.provenance


def test_a_head_that_was_never_trained_is_not_calibrated(tmp_path: Path) -> None:
    """Valid may have labels for it all the same."""
    data = write_set(tmp_path / "data", train=GRADES, others=GRADES)
    contract = contract_of(data)
    branch(1, replace(contract, provenance={**contract.provenance, "untrained_heads": ["dr"]})).save(tmp_path / "1.pth")
    result = CliRunner().invoke(main, [str(data), str(tmp_path / "1.pth"), "--out", str(tmp_path / "mean.pth")])
    assert result.exit_code == 0, result.output
    mean = load_checkpoint(tmp_path / "mean.pth")
    assert torch.equal(mean.weights["dr_head.3.weight"], branch(1).weights["dr_head.3.weight"])
    assert mean.contract.thresholds["referable_dr"] == CONTRACT.thresholds["referable_dr"]
    assert mean.contract.thresholds["referable_me"] != CONTRACT.thresholds["referable_me"]


def test_faults_are_named(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", train=GRADES, others=GRADES)
    branch(1).save(tmp_path / "other.pth")
    branch(1, contract_of(data)).save(tmp_path / "own.pth")

    def fault(*arguments: Path, out: Path = tmp_path / "mean.pth") -> str:
        result = CliRunner().invoke(main, [*map(str, arguments), "--out", str(out)])
        assert result.exit_code == 2, result.output
        assert not out.is_file()
        return result.output

    assert "expected the photographs and labels" in fault(data, tmp_path / "other.pth")
    assert "none.pth" in fault(data, tmp_path / "own.pth", tmp_path / "none.pth")
    assert "expected the name of a file" in fault(data, tmp_path / "own.pth", out=tmp_path)
    (data / "valid/images/eye_3.jpg").write_bytes(b"no picture")
    assert "expected the photographs and labels" in fault(data, tmp_path / "own.pth")
    branch(1, contract_of(data)).save(tmp_path / "own.pth")
    assert "eye_3.jpg: expected JPEG" in fault(data, tmp_path / "own.pth")
    (data / "train/images/eye_3.jpg").unlink()
    (data / "train/images/eye_3.jpg").symlink_to("gone.jpg")
    assert "eye_3.jpg: cannot be read: No such file or directory" in fault(data, tmp_path / "own.pth")


def test_a_head_that_one_branch_never_trained_is_untrained_in_the_mean() -> None:
    never = replace(CONTRACT, provenance={**CONTRACT.provenance, "untrained_heads": ["me"]})
    for contracts in ((never, CONTRACT), (CONTRACT, never)):
        branches = [(f"{n}.pth", branch(n, contract)) for n, contract in enumerate(contracts, 1)]
        assert average(branches).contract.untrained_heads == ("me",)

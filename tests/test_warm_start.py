"""Training that goes on from a checkpoint: what is kept, what is refused, and what a user is told."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from eyes import write_set
from invoking import invoke
from retina.runtime.contract import HEADS, Contract, Preprocessing, Rule, default_thresholds
from retina.runtime.errors import ModelFileError
from retina.train import cli, pipeline
from retina.train.checkpoint import Checkpoint, load_checkpoint
from retina.train.config import TrainConfig
from retina.train.data import DataSet, Photo, Split
from retina.train.model import RetinaNet, load_backbone_weights
from retina.train.warm_start import grades_of_network, open_start, start_notes
from small_backbone import RESNET10
from small_network import linear

CONTRACT = Contract(Preprocessing(image_size=64), dr_grades=(0, 2, 4))
retina_train = partial(invoke, cli.main)


def graded(*train: int, test: tuple[int, ...] = ()) -> DataSet:
    """Data with these DR grades in train, or ME labels alone, and with those in test."""

    def split(name: str, grades: tuple[int, ...]) -> Split:
        photos = tuple(Photo(Path(f"{n}.jpg"), f"{n}.jpg", n, grade, 0) for n, grade in enumerate(grades, 2))
        return Split(Path(name), photos)

    return DataSet(Path(), {"train": split("train", train), "test": split("test", test or train)}, train)


@pytest.fixture(scope="module")
def net() -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet(3, RESNET10).eval()


@pytest.mark.parametrize("bare", [False, True])
def test_training_goes_on_from_a_checkpoint(net: RetinaNet, tmp_path: Path, bare: bool) -> None:
    """From ours and from the notebook's; both backbone and heads are loaded."""
    path = tmp_path / "earlier.pth"
    if bare:
        torch.save(net.state_dict(), path)
    else:
        Checkpoint(net.state_dict(), RESNET10, CONTRACT).save(path)
    start = open_start(RESNET10, str(path))
    assert start is not None
    assert start.is_bare == bare
    of_data = (1, 2, 3) if bare else (0, 2, 4)
    assert grades_of_network(start, str(path), graded(*of_data)) == of_data
    for name, tensor in net.state_dict().items():
        assert torch.equal(start.weights[name], tensor), name


def test_training_goes_on_from_torchvisions_weights_with_new_heads(net: RetinaNet, tmp_path: Path) -> None:
    torch.save(torchvision.models.get_model(RESNET10).state_dict(), tmp_path / "imagenet.pth")
    assert open_start(RESNET10, str(tmp_path / "imagenet.pth")) is None
    assert grades_of_network(None, "imagenet", graded(0, 2, 4)) == (0, 2, 4)
    fresh = RetinaNet(3, RESNET10)
    head = linear(fresh.dr_head, 3).weight.clone()
    load_backbone_weights(fresh, RESNET10, str(tmp_path / "imagenet.pth"))
    saved = torch.load(tmp_path / "imagenet.pth", weights_only=True)
    assert torch.equal(fresh.backbone.conv1.weight, saved["conv1.weight"])
    assert torch.equal(linear(fresh.dr_head, 3).weight, head)


def test_training_does_not_go_on_from_another_network(net: RetinaNet, tmp_path: Path) -> None:
    Checkpoint(net.state_dict(), RESNET10, CONTRACT).save(tmp_path / "a.pth")
    with pytest.raises(
        ModelFileError, match=r"expected a checkpoint of resnet34 .* found one of resnet10\. Choose that"
    ):
        open_start("resnet34", str(tmp_path / "a.pth"))


@pytest.mark.parametrize("grades", [(0, 1, 2, 3, 4), (0, 1, 2)])
def test_training_does_not_go_on_from_other_grades(net: RetinaNet, tmp_path: Path, grades: tuple[int, ...]) -> None:
    Checkpoint(net.state_dict(), RESNET10, CONTRACT).save(tmp_path / "a.pth")
    torch.save(net.state_dict(), tmp_path / "bare.pth")  # of its grades only the number is known
    ours, bare = (open_start(RESNET10, str(tmp_path / name)) for name in ("a.pth", "bare.pth"))
    expected = rf"expected a checkpoint with the DR grades {re.escape(str(list(grades)))} .* found"
    with pytest.raises(ModelFileError, match=rf"{expected} \[0, 2, 4\]") as caught:
        grades_of_network(ours, "a.pth", graded(*grades))
    assert "--backbone" not in str(caught.value)
    if len(grades) == 3:
        assert grades_of_network(bare, "bare.pth", graded(*grades)) == grades
    else:
        with pytest.raises(ModelFileError, match=rf"{expected} 3 of them"):
            grades_of_network(bare, "bare.pth", graded(*grades))


def test_who_goes_on_from_a_checkpoint_is_told_what_will_differ(net: RetinaNet, tmp_path: Path) -> None:
    screening = {**default_thresholds(), "referable_dr": Rule("at_least", 0.4056, from_grade=2)}
    fitted = replace(CONTRACT, thresholds=screening)
    Checkpoint(net.state_dict(), RESNET10, fitted).save(tmp_path / "a.pth")
    start = open_start(RESNET10, str(tmp_path / "a.pth"))
    config = TrainConfig(data="d", weights="a.pth", image_size=64, framing=CONTRACT.preprocessing.framing)
    assert grades_of_network(start, "a.pth", graded(0, 2)) == (0, 2, 4)
    notes = start_notes(start, config, (0, 2), HEADS)
    assert len(notes) == 2
    assert "thresholds fitted to it (DR 0.406, ME 0.500); this run will have 0.5" in notes[0]
    assert "No DR grade 4 in train: the network can still predict it, but forgets when to predict it" in notes[1]
    calibrating = replace(config, image_size=384, calibrate="valid")
    (size,) = start_notes(start, calibrating, (0, 2, 4), HEADS)
    assert "trained with --framing field --image-size 64; this run has field and 384" in size
    assert start_notes(None, config, (0, 2), HEADS) == []
    asked = {"dr_sensitivity": 0.95, "me_sensitivity": 0.9}
    Checkpoint(net.state_dict(), RESNET10, replace(fitted, provenance=asked)).save(tmp_path / "b.pth")
    (lower,) = start_notes(
        open_start(RESNET10, str(tmp_path / "b.pth")), replace(calibrating, image_size=64), (0, 2, 4), HEADS
    )
    assert lower == "a.pth was fitted for a sensitivity of 0.95 in DR referral; this run has --sensitivity 0.9."


def test_data_with_me_labels_alone_keep_the_grades_of_the_checkpoint(net: RetinaNet, tmp_path: Path) -> None:
    Checkpoint(net.state_dict(), RESNET10, CONTRACT).save(tmp_path / "a.pth")
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    ours, bare = (open_start(RESNET10, str(tmp_path / name)) for name in ("a.pth", "bare.pth"))
    assert grades_of_network(None, "imagenet", graded()) == (0, 1, 2, 3, 4)
    assert grades_of_network(ours, "a.pth", graded(test=(0, 4))) == (0, 2, 4)
    assert grades_of_network(bare, "bare.pth", graded()) == (0, 1, 2)
    for start, known in ((ours, "[0, 2, 4]"), (bare, "[0, 1, 2]")):
        with pytest.raises(
            ModelFileError, match=re.escape(f"DR grades [3] of valid and test to start from, found {known}")
        ):
            grades_of_network(start, "w.pth", graded(test=(0, 3)))
    config = TrainConfig(data="d", weights="a.pth", image_size=64, framing=CONTRACT.preprocessing.framing)
    (stale,) = start_notes(ours, config, (), ["me"])
    assert stale.startswith("The DR head stays that of a.pth while the features that it reads change")
    never = replace(ours, contract=replace(CONTRACT, provenance={"untrained_heads": ["dr"]})) if ours else None
    assert start_notes(never, config, (), ["me"]) == []


@pytest.mark.usefixtures("no_pictures")
def test_a_network_keeps_the_grades_that_new_data_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is resumed, by which time the checkpoint may be gone."""
    contract = Contract(Preprocessing(image_size=32), dr_grades=(0, 1, 2, 3, 4))
    Checkpoint(RetinaNet(5, RESNET10).state_dict(), RESNET10, contract).save(tmp_path / "start.pth")
    data = write_set(tmp_path / "data", train=[0, 1, 2] * 3, others=(0, 1, 2, 4))
    quick = ["--image-size", "32", "--backbone", RESNET10, "--workers", "0", "--epochs", "2", "--batch-size", "3"]
    where = ["--artifacts", tmp_path, "--name", "on"]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "publish", interrupted)
        stopped = retina_train(data, *quick, *where, "--weights", tmp_path / "start.pth")
    assert stopped.exit_code == 130, stopped.output
    assert "No DR grade 3, 4 in train" in stopped.stdout
    assert "no Patient is named" not in stopped.stdout
    (tmp_path / "start.pth").unlink()
    resumed = retina_train("--resume", *where)
    assert resumed.exit_code == 0, resumed.output
    assert load_checkpoint(tmp_path / "retina_multitask_best.pth").contract.dr_grades == (0, 1, 2, 3, 4)
    header = (tmp_path / "test_predictions.csv").read_text().splitlines()[0]
    assert "dr_prob_4" in header


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("before", [(), ("me",)])
def test_a_head_that_is_left_alone_is_as_trained_as_before(tmp_path: Path, before: tuple[str, ...]) -> None:
    contract = Contract(Preprocessing(image_size=32), provenance={"untrained_heads": list(before)})
    Checkpoint(RetinaNet(5, RESNET10).state_dict(), RESNET10, contract).save(tmp_path / "start.pth")
    data = write_set(tmp_path / "data", train=[0, 1, 2] * 3, others=(0, 1, 2))
    quick = ["--image-size", "32", "--backbone", RESNET10, "--workers", "0", "--epochs", "1", "--batch-size", "3"]
    start = ["--weights", tmp_path / "start.pth", "--me-weight", "0", "--artifacts", tmp_path]
    result = retina_train(data, *quick, *start)
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tmp_path / "retina_multitask_best.pth").contract.untrained_heads == before

"""What training refuses: it lists all faults at once, before it trains anything."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from eyes import Row, eye, write_annotations, write_set, write_split
from invoking import invoke
from retina.runtime.contract import Head, Preprocessing
from retina.runtime.errors import AnnotationError, OutputError, UsageError
from retina.train import frames, pipeline, survey
from retina.train.checkpoint import save_tensors
from retina.train.cli import main
from retina.train.config import TrainConfig
from retina.train.console import SILENT
from retina.train.data import fingerprint_of_files, read_dataset
from retina.train.device import make_fabric
from retina.train.frames import DecodedFrames, Frames
from retina.train.model import RetinaNet, read_state_dict
from retina.train.resume import save_resume
from retina.train.trainer import Trainer
from small_backbone import RESNET10
from without_pictures import started

pytestmark = pytest.mark.usefixtures("no_pictures")
QUICK = ["--image-size", "32", "--backbone", RESNET10, "--weights", "none", "--workers", "0", "--epochs", "1"]
retina_train = partial(invoke, main)


def refused(artifacts: Path, *arguments: object) -> str:
    """The message of a command that must exit with 2 and train nothing."""
    result = retina_train(*arguments, "--artifacts", artifacts)
    assert result.exit_code == 2, result.output
    assert not list(artifacts.glob("runs/*/*.pth"))
    return result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sound"))


def rewrite(annotations: Path, change: dict[str, list[object] | None], add: list[list[object]]) -> None:
    """Replace, drop or add rows by their name."""
    with annotations.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    kept: list[Row | None] = [change.get(row[0], row) for row in rows]
    write_annotations(annotations.parent, [*(row for row in kept if row is not None), *add], header)


def test_every_planted_fault_is_named_in_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "pydicom" else find_spec(name))
    root = write_set(tmp_path / "data", train=[0, 1, 2] * 6, others=(0, 1, 2, 0, 1))
    train, valid, test = root / "train", root / "valid", root / "test"
    images = train / "images"
    rewrite(
        train / "annotations.csv",
        {
            "eye_0.jpg": None,
            "eye_1.jpg": ["eye_1.jpg", "mild", 0, "", "", ""],
            "eye_2.jpg": ["eye_2.jpg", 7, 0, "", "", ""],
            "eye_3.jpg": ["eye_3.jpg", 0, 2, "", "", ""],
            "eye_4.jpg": ["eye_4.jpg", 1, 0],
            "eye_5.jpg": ["eye_5.jpg", 2, "", "", "", ""],
        },
        [
            ["nobody.jpg", 0, 0, "", "", ""],
            ["eye_6.jpg", 0, 0, "", "", ""],
            ["EYE_7.PNG", 1, 0, "", "", ""],
            ["", 1, 0, "", "", ""],
            ["twin", 1, 0, "", "", ""],
        ],
    )
    for ending in ("jpg", "png"):
        eye(77).save(images / f"twin.{ending}")
    whole = (images / "eye_8.jpg").read_bytes()
    (images / "eye_8.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "eye_9.jpg").write_bytes(b"")
    (images / "eye_10.jpg").write_text("not a photograph")
    eye(5, side=31).save(images / "eye_11.jpg")
    (images / "eye_12.jpg").unlink()
    (images / "eye_12.jpg").symlink_to("gone.jpg")
    (images / "eye_14.jpg").write_bytes(bytes(128) + b"DICM")
    (images / "eye_15.jpg").unlink()
    (images / "eye_15.jpg").symlink_to("eye_15.jpg")
    shutil.copy(images / "eye_13.jpg", valid / "images" / "eye_1.jpg")
    rewrite(valid / "annotations.csv", {"eye_2.jpg": ["eye_2.jpg", 4, 1, "", "", ""]}, [])
    write_annotations(test, [[f"eye_{n}", n % 3] for n in range(5)], ["Image name", "Retinopathy grade"])

    message = refused(tmp_path / "artifacts", root, *QUICK)
    faults = {
        "unlisted image": f"{images / 'eye_0.jpg'}: expected a row in",
        "grade that is no number": "line 2: Retinopathy grade: expected a whole number from 0, found 'mild'",
        "unknown grade": "line 3: Retinopathy grade: expected 0 to 4, found 7 (eye_2.jpg)",
        "ME 2": "line 4: Risk of macular edema: expected 0 or 1, found 2 (eye_3.jpg)",
        "missing cells": "line 5: expected 6 columns, found 3: 'eye_4.jpg'",
        "no ME": "line 6: Risk of macular edema: expected a whole number from 0, found ''",
        "missing image": "expected a photograph named 'nobody.jpg'",
        "row twice": "line 20: Image name: 'eye_6.jpg' is already on line 7",
        "two names for one file": "line 21: 'EYE_7.PNG' means eye_7.jpg, which line 8 already labels",
        "no name": "line 22: Image name: expected a name, found nothing",
        "one name for two files": "line 23: 'twin' in",
        "the first of the two": f"{images / 'twin.jpg'}: expected a row in",
        "the second": f"{images / 'twin.png'}: expected a row in",
        "truncated": f"line 9: {images / 'eye_8.jpg'}: ",
        "empty file": f"line 10: {images / 'eye_9.jpg'}: ",
        "no picture": f"line 11: {images / 'eye_10.jpg'}: ",
        "too small": f"line 12: {images / 'eye_11.jpg'}: ",
        "link to nothing": f"line 13: {images / 'eye_12.jpg'}: ",
        "link to itself": f"line 16: {images / 'eye_15.jpg'}: ",
        "DICOM without its extra": f"line 15: {images / 'eye_14.jpg'}: pydicom not installed. Run:  pip install",
        "same bytes in two splits": "same bytes: train/eye_13.jpg (line 14) and valid/eye_1.jpg (line 3)",
        "grade that train lacks": "line 4: Retinopathy grade: expected one of 0, 1, 2 as in train, found 4",
        "missing column": f"{test / 'annotations.csv'}, line 1: expected a column 'Risk of macular edema'",
    }
    missing = [kind for kind, text in faults.items() if message.count(text) != 1]
    assert missing == [], message
    assert f"{len(faults)} faults; nothing was trained" in message
    assert len(message.splitlines()) == 1 + len(faults)  # none is listed twice
    assert not (tmp_path / "artifacts" / "runs").exists()


def test_a_thousand_faults_do_not_fill_the_terminal(tmp_path: Path, data: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    write_annotations(
        root / "train",
        [[f"gone_{n}", n % 3, 0] for n in range(200)],
        ["Image name", "Retinopathy grade", "Risk of macular edema"],
    )
    message = refused(tmp_path / "artifacts", root, *QUICK)
    assert len(message.splitlines()) == 102
    assert message.splitlines()[-1].strip().startswith("... and ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_while_it_reads_photographs_training_leaves_nothing_half_written(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def stopped(*_: object) -> Frames:
        signal.raise_signal(number)
        raise AssertionError("not stopped")

    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("started by nohup, under which a run goes on")
    monkeypatch.setattr(frames, "_look_at_each", stopped)
    result = retina_train(data, *QUICK, "--cache", "disk", "--artifacts", tmp_path)
    assert result.exit_code == 130, result.output
    assert "stopped before training began. Run the same command again." in result.stderr
    assert not (tmp_path / "runs").exists() and list((tmp_path / "cache").iterdir()) == []


def test_data_that_are_not_there_are_told_before_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "open_start", lambda *_: pytest.fail("fetched"))
    message = refused(tmp_path / "artifacts", tmp_path / "nodata", "--weights", "imagenet")
    assert "nodata: expected a folder with train/, valid/ and test/, found none there" in message
    assert not (tmp_path / "artifacts").exists()


def test_runs_are_not_listed_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert f"expected a folder, found none: {tmp_path}/gone" in refused(tmp_path / "gone", "--list")


def test_weights_that_cannot_be_started_from_are_told_before_photographs_are_read(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "look_through", lambda *_: pytest.fail("read first"))
    body = {f"backbone.{name}": weight for name, weight in torchvision.models.resnet34().state_dict().items()}
    del body["backbone.fc.weight"], body["backbone.fc.bias"]
    heads = {key: value for key, value in RetinaNet(5, RESNET10).state_dict().items() if "head" in key}
    torch.save(body | heads, tmp_path / "34.pth")
    infinite = torchvision.models.get_model(RESNET10).state_dict()
    infinite["layer4.0.bn2.bias"][7] = torch.nan
    torch.save(infinite, tmp_path / "nan.pth")
    for file, reason in (
        ("none.pth", "none.pth: expected a checkpoint or weights file, found none there"),
        ("34.pth", "34.pth: expected a checkpoint of resnet10 to start from, found one of resnet34"),
        ("nan.pth", "nan.pth: layer4.0.bn2.bias: expected finite weights, found others"),
    ):
        assert reason in refused(tmp_path, data, *QUICK, "--weights", tmp_path / file)
    known = "--backbone resnet19: expected one of resnet10, resnet101, "
    assert known in refused(tmp_path, data, *QUICK, "--backbone", "resnet19")


def test_a_data_folder_that_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("loop", 300 * "x"):
        assert f"{name}: expected a folder with train/" in refused(tmp_path / "artifacts", tmp_path / name, *QUICK)


def test_a_missing_split_is_named(tmp_path: Path, data: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(root / "valid")
    assert "found no annotations.csv in valid/" in refused(tmp_path / "artifacts", root, *QUICK)
    assert "name the data folder" in refused(tmp_path / "artifacts")


def test_how_to_split_a_folder_that_is_not_split_is_said(tmp_path: Path, data: Path) -> None:
    folder = shutil.copytree(data / "train", tmp_path / "my photographs")
    said = refused(tmp_path / "artifacts", folder, *QUICK)
    assert f"Split the folder first:  python -m retina.train.splitting '{folder}' --out DIR" in said
    with pytest.raises(AnnotationError) as test_alone:
        read_dataset(data / "train", splits=("test",))
    for other in (refused(tmp_path / "artifacts", data / "train/images", *QUICK), str(test_alone.value)):
        assert "found no annotations.csv in" in other
        assert "Split the folder" not in other


def test_an_artifacts_folder_that_cannot_be_written_is_said_before_anything_is_read(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "open_start", lambda *_: pytest.fail("read first"))
    file = tmp_path / "file"
    file.touch()
    result = retina_train(data, *QUICK, "--artifacts", file / "artifacts")
    assert result.exit_code == 2
    assert "expected a folder that can be written" in result.stderr
    assert "--artifacts" in result.stderr


def test_the_name_of_an_earlier_run_is_refused(tmp_path: Path, data: Path) -> None:
    folder = interrupted(tmp_path, data)
    (folder / "history.csv").touch()
    message = refused(tmp_path, data, *QUICK, "--name", "mine")
    assert "expected a new run, found one there. Give another --name." in message
    (folder / "resume.pth").touch()
    stopped = retina_train(data, *QUICK, "--name", "mine", "--artifacts", tmp_path)
    assert "expected a new run, found one there. Give another --name, or --resume it." in stopped.stderr


def test_a_run_that_another_process_writes_is_refused(tmp_path: Path, data: Path) -> None:
    folder = interrupted(tmp_path, data)
    (folder / ".lock").touch()
    code = "import fcntl, sys; fcntl.lockf(f := open(sys.argv[1], 'w'), 2); print('kept', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, folder / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == b"kept\n"
        message = refused(tmp_path, data, *QUICK, "--name", "mine")
        assert f"{folder}: another retina-train is writing this run" in message
        (folder / "resume.pth").touch()
        resumed = retina_train("--resume", "--artifacts", tmp_path)
        assert resumed.exit_code == 2
        assert "another retina-train is writing this run" in resumed.stderr
        other.stdin.close()
    (folder / "resume.pth").unlink()  # the name of a run that never began is free
    result = retina_train(data, *QUICK, "--name", "mine", "--artifacts", tmp_path)
    assert result.exit_code == 0, result.output


def test_a_run_that_cannot_have_its_folder_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()
    assert f"{tmp_path / 'runs' / 'mine'}: cannot be written" in refused(tmp_path, data, *QUICK, "--name", "mine")


@pytest.mark.slow
def test_training_goes_on_when_nobody_reads_what_it_says(tmp_path: Path, data: Path) -> None:
    """The list of runs, which is all that its command is for, is not given up in silence."""
    artifacts = ["--artifacts", str(tmp_path)]
    training = [str(data), *QUICK, *artifacts, "--name", "alone"]
    process = started(training, ["--list", *artifacts], out=Path("/dev/full"), err=tmp_path / "err")
    process.join(200)
    assert (tmp_path / "runs" / "alone" / "report.html").is_file()
    assert process.exitcode == 2
    said = (tmp_path / "err").read_text()
    assert said == "retina-train: stopped, its output cannot be written: No space left on device\n"


def test_a_train_split_without_referable_grades_or_edema_is_trained_with_warnings(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data", train=[0, 1, 0, 1], others=(0, 1))
    result = retina_train(root, *QUICK, "--unfreeze-epoch", 2, "--sensitivity", 0.95, "--artifacts", tmp_path)
    assert result.exit_code == 0, result.output
    assert "--unfreeze-epoch 2 comes after the last of 1 epochs: no effect." in result.output
    assert "--sensitivity 0.95 without --calibrate valid: no effect." in result.output
    warning = f"Warning: {root / 'train' / 'annotations.csv'}: every ME label is 0; no risk can be learned"
    assert warning in result.output
    assert "no DR grade is 2 or more; nobody will be referred" in result.output


def interrupted(artifacts: Path, data: Path) -> Path:
    folder = artifacts / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(TrainConfig(data=str(data), seed=5).to_json())
    (folder / "run.json").write_text('{"data_fingerprint": "other", "devices": 1}')
    return folder


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"augment": "strng"}, "augment: expected one of notebook, cameras, found 'strng'"),
        ({"calibrate": None}, "calibrate: expected one of none, valid, found None"),
        ({"epochs": 0}, "epochs: expected a whole number from 1, found 0"),
        ({"batch_size": 1.5}, "batch_size: expected a whole number from 1, found 1.5"),
        ({"image_size": 31}, "image_size: expected a whole number from 32 to 4096, found 31"),
        ({"lr_heads": float("nan")}, "lr_heads: expected a finite number from 0.0, found nan"),
        ({"ema": 1.0}, "ema: expected a finite number from 0.0 to below 1.0, found 1.0"),
        ({"me_positive_from": 4}, "me_positive_from: expected a whole number from 1 to 3, found 4"),
        ({"dr_weight": 0, "me_weight": 0}, "dr_weight, me_weight: expected one of them above 0"),
        ({"weights": None}, "weights: expected text, found None"),
    ],
    ids=str,
)
def test_options_from_python_are_those_of_the_command(option: dict[str, Any], message: str) -> None:
    """Or a typo would silently train something else."""
    with pytest.raises(UsageError, match=re.escape(message)):
        TrainConfig("data", **option)
    (name, value), *_ = option.items()
    arguments = [f"--{name.replace('_', '-')}", value, "--artifacts", "nowhere"]
    assert value is None or name == "dr_weight" or retina_train("data", *arguments).exit_code == 2


def test_numbers_of_numpy_and_none_where_it_is_the_default_are_options() -> None:
    config = TrainConfig("data", epochs=np.int64(3), lr_heads=1, unfreeze_epoch=None, workers=None)  # type: ignore[arg-type]
    assert config.epochs == 3


def test_options_of_numpy_can_be_read_back_from_a_file_of_tensors(tmp_path: Path) -> None:
    config = TrainConfig("data", lr_heads=np.float64(1e-4), seed=np.int64(1), cache=np.str_("off"), ema=0)  # type: ignore[arg-type]
    save_tensors(tmp_path / "a.pth", {"config": config.to_dict()})
    assert read_state_dict(tmp_path / "a.pth") == {"config": config.to_dict()}
    assert TrainConfig.from_dict(json.loads(config.to_json())) == config
    torch.manual_seed(config.seed)


def test_nothing_to_resume(tmp_path: Path, data: Path) -> None:
    assert "expected an interrupted run, found none" in refused(tmp_path, "--resume")
    interrupted(tmp_path, data)
    assert "found no resume.pth there" in refused(tmp_path, "--resume", "--name", "mine")
    (tmp_path / "runs/mine/metrics.json").touch()
    assert "found one that has finished" in refused(tmp_path, "--resume", "--name", "mine")


def test_options_of_another_version_are_not_dropped(tmp_path: Path, data: Path) -> None:
    folder = interrupted(tmp_path, data)
    (folder / "resume.pth").touch()
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, "lr_backbon": 1.0}))
    result = retina_train("--resume", "--artifacts", tmp_path)
    assert result.exit_code == 2
    assert "found damage: expected options of this version, found lr_backbon" in result.stderr


def test_one_photograph_has_no_variance_in_one_pixel(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", train=[1], others=(0, 1))
    for split in ("train", "valid", "test"):
        write_annotations(data / split, [[f"eye_{n}.jpg", "NA", n, "", "", ""] for n in range(1 + (split != "train"))])
    message = refused(tmp_path / "artifacts", data, *QUICK)
    assert "expected two photographs or more at --image-size 32, found one" in message


def test_the_run_that_was_saved_last_is_resumed(tmp_path: Path) -> None:
    for name, seconds in (("a", 2), ("b", 3), ("c", 1)):
        file = tmp_path / "runs" / name / "resume.pth"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (seconds, seconds))
    result = retina_train("--resume", "--artifacts", tmp_path)
    assert f"{tmp_path / 'runs' / 'b' / 'config.json'}: expected the options of a run" in result.stderr


def test_resume_refuses_other_options_and_other_data(tmp_path: Path, data: Path) -> None:
    folder = interrupted(tmp_path / "a", data)
    (folder / "resume.pth").touch()
    result = retina_train("elsewhere", "--resume", "--seed", 6, "--epochs", 12, "--artifacts", tmp_path / "a")
    assert result.exit_code == 2
    assert "seed: expected 5 as the run began, found 6" in result.stderr
    assert "epochs" not in result.stderr  # 12 is the run's own value


def test_resume_refuses_photographs_that_changed(tmp_path: Path, data: Path) -> None:
    config = TrainConfig(str(data), image_size=32, backbone=RESNET10, weights="none", workers=0)
    folder = interrupted(tmp_path, data)
    (folder / "config.json").write_text(config.to_json())
    torch.save({"kind": "something else"}, folder / "resume.pth")
    result = retina_train("--resume", "--artifacts", tmp_path)
    assert result.exit_code == 2
    (folder / "run.json").write_text('{"data_fingerprint": "other", "devices": 2}')
    assert "expected 2 devices as the run began, found 1" in retina_train("--resume", "--artifacts", tmp_path).stderr
    assert "expected the photographs and labels the run was started with" in result.stderr


def test_the_command_itself_loads_without_torch() -> None:
    code = "import sys, retina.train.cli; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "cuda:99"])
def test_a_device_that_is_not_here(tmp_path: Path, data: Path, device: str) -> None:
    message = refused(tmp_path, data, *QUICK, "--device", device)
    assert f"--device {device}: expected one of auto, " in message


def test_imagenet_weights_without_a_network(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for proxy in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # the discard port, where nothing answers
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    message = refused(tmp_path / "a", data, *QUICK, "--backbone", "resnet18", "--weights", "imagenet")
    assert "--weights imagenet: torchvision could not fetch resnet18" in message
    assert "--weights FILE" in message
    assert "--weights none" in message
    assert not (tmp_path / "a" / "runs").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    assert "expected a torchvision state_dict of resnet10" in refused(tmp_path / "a", data, *QUICK, "--weights", file)
    file.write_bytes(b"PK\x03\x04 nothing")
    assert "cannot be read safely" in refused(tmp_path / "a", data, *QUICK, "--weights", file)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"data": 5}'])
def test_a_damaged_config_is_named(tmp_path: Path, data: Path, content: str) -> None:
    folder = interrupted(tmp_path, data)
    (folder / "resume.pth").touch()
    (folder / "config.json").write_text(content)
    result = retina_train("--resume", "--artifacts", tmp_path)
    assert result.exit_code == 2
    assert "config.json: expected the options of a run, found damage" in result.stderr


def test_a_disk_without_room_for_the_checkpoints_is_told_before_the_training(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One network and twice the state to resume from, or at the end that state and four networks."""
    net = RetinaNet(3, RESNET10)
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    learned = sum(parameter.nbytes for parameter in net.parameters())
    state = weights + 2 * learned  # two of Adam's moments for each weight
    needed = max(weights + 2 * state, 4 * weights + state)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=needed - 1))
    message = refused(tmp_path, data, *QUICK, "--cache", "off")
    assert f"expected {needed / 1e6:.0f} MB of room for checkpoints, found" in message
    assert "make room, or choose another --artifacts" in message
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=needed))
    assert retina_train(data, *QUICK, "--cache", "off", "--artifacts", tmp_path).exit_code == 0


def test_a_disk_that_fills_during_the_training_is_told_with_the_command_to_go_on(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Path] = []

    def fills(trainer: Trainer, file: Path) -> None:
        if saved:
            raise OutputError(f"{file}: cannot be written: No space left on device")
        saved.append(file)
        save_resume(trainer, file)

    here, moved = shutil.copytree(data, tmp_path / "here"), tmp_path / "moved"
    with monkeypatch.context() as patch:
        patch.setattr("retina.train.loop.save_resume", fills)
        stopped = retina_train(here, *QUICK, "--artifacts", tmp_path, "--name", "full")
    assert stopped.exit_code == 2
    go_on = f"retina-train --resume --name full --artifacts {tmp_path}"
    assert stopped.stderr.endswith(f"No space left on device. Then continue with:  {go_on}\n")
    here.rename(moved)
    lost = retina_train(*go_on.split()[1:])
    assert lost.exit_code == 2
    assert f"{here}: expected a folder" in lost.stderr
    assert lost.stderr.endswith(f". If the data were moved:  {go_on} DATA\n")
    resumed = retina_train(*go_on.split()[1:], moved)
    assert resumed.exit_code == 0, resumed.output


def test_a_state_that_cannot_be_resumed_from_says_what_is_left(tmp_path: Path, data: Path) -> None:
    folder = interrupted(tmp_path, data)
    config = TrainConfig(str(data), image_size=32, backbone=RESNET10, weights="none", workers=0)
    (folder / "config.json").write_text(config.to_json())
    (folder / "resume.pth").write_bytes(b"PK\x03\x04 cut")
    begun = {"devices": 1, "data_fingerprint": fingerprint_of_files(read_dataset(data))}
    (folder / "run.json").write_text(json.dumps(begun))
    for best, then in ((False, "Start a new run.\n"), (True, f"best epoch:  --weights {folder / 'best.pth'}\n")):
        if best:
            (folder / "best.pth").touch()
        stopped = retina_train("--resume", "--artifacts", tmp_path)
        assert stopped.exit_code == 2
        assert "resume.pth: expected a retina-edge resume state 2, found one that cannot be read." in stopped.stderr
        assert stopped.stderr.endswith(then)


SOUND = '{"devices": 1, "data_fingerprint": "a", '


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", '{"devices": 1}', SOUND + '"asked": []}', SOUND + '"dr_grades": [[1]]}']
)
def test_damaged_facts_of_a_run_are_named(tmp_path: Path, data: Path, content: str) -> None:
    config = TrainConfig(str(data), image_size=32, backbone=RESNET10, weights="none", workers=0)
    folder = interrupted(tmp_path, data)
    (folder / "resume.pth").touch()
    (folder / "config.json").write_text(config.to_json())
    (folder / "run.json").write_text(content)
    result = retina_train("--resume", "--artifacts", tmp_path)
    assert result.exit_code == 2
    assert f"{folder / 'run.json'}: expected the facts of a run, found damage" in result.stderr


@pytest.mark.parametrize(
    ("me", "lacks"), [([1, 1, 0], ["DR grade of 2 or more"]), ([0] * 3, ["ME risk", "DR grade of"])]
)
def test_valid_without_what_is_calibrated_on_is_refused(tmp_path: Path, me: list[int], lacks: list[str]) -> None:
    write_split(tmp_path / "train", [0, 1, 2, 3], 0)
    write_split(tmp_path / "valid", [0, 1, 0], 1, me=me)
    write_split(tmp_path / "test", [0, 1, 2], 2)
    message = refused(tmp_path / "artifacts", tmp_path, *QUICK, "--calibrate", "valid")
    for condition in lacks:
        assert f"{tmp_path}/valid/annotations.csv: expected photographs with {condition}" in message
    assert message.count("to calibrate on") == len(lacks)


def test_valid_without_the_healthy_is_warned_of_and_keeps_its_threshold(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", train=[0, 2, 3] * 2, others=(0, 2, 3))
    write_annotations(data / "valid", [[f"eye_{n}.jpg", 2 + n % 2, n % 2, "", "", n] for n in range(3)])
    result = retina_train(data, *QUICK, "--calibrate", "valid", "--artifacts", tmp_path / "a")
    assert result.exit_code == 0, result.output
    warning = f"Warning: {data}/valid/annotations.csv: every photograph has DR grade of 2 or more; the DR referral"
    assert f"{warning} threshold stays 0.500" in result.output
    assert "every photograph has ME risk" not in result.output
    assert re.search(r"referral from DR 0\.500, ME 0\.\d{3} \(sensitivity 0\.9\)", result.output)
    assert "every photograph" not in retina_train(data, *QUICK, "--artifacts", tmp_path / "b").output


@pytest.mark.parametrize("name", ["exp/1", "exp\\1", "..", " ", "/tmp/x", "é" * 128])
def test_a_name_that_is_no_folders_is_refused(tmp_path: Path, data: Path, name: str) -> None:
    for start in ([data, *QUICK], ["--resume"]):
        message = refused(tmp_path, *start, "--name", name)
        assert f"--name {name}: expected the name of one folder" in message
    assert not (tmp_path / "runs").exists()


def test_numbers_that_cannot_be_trained_with_are_refused(tmp_path: Path, data: Path) -> None:
    assert "18446744073709551616 is not in the range" in refused(tmp_path, data, *QUICK, "--seed", 2**64)
    message = refused(tmp_path, data, *QUICK, "--batch-size", 1)
    assert "--batch-size 1: expected two photographs or more at --image-size 32" in message
    for option, number, found in (
        ("--dr-weight", "nan", "dr_weight: expected a finite number from 0.0, found nan"),
        ("--lr-heads", "inf", "lr_heads: expected a finite number from 0.0, found inf"),
        ("--ema", "nan", "ema: expected a finite number from 0.0 to below 1.0, found nan"),
    ):
        assert found in refused(tmp_path, data, *QUICK, option, number)
    assert not (tmp_path / "runs").exists()


def test_imbalance_that_is_corrected_twice_is_said(tmp_path: Path, data: Path) -> None:
    options = ["--sampler", "weighted", "--backbone", "none"]  # which is refused afterwards
    assert "Rare grades count twice:" in retina_train(data, *QUICK, *options, "--artifacts", tmp_path).output
    options += ["--class-weights", "none"]
    assert "Rare grades count twice:" not in retina_train(data, *QUICK, *options, "--artifacts", tmp_path).output


def test_one_photograph_a_batch_is_trained_on_at_a_larger_square(tmp_path: Path, data: Path) -> None:
    options = ["--image-size", 48, "--batch-size", 1, "--seed", 2**63 - 1, "--artifacts", tmp_path]
    result = retina_train(data, *QUICK, *options)
    assert result.exit_code == 0, result.output


def surveyed(tmp_path: Path, data: Path, untrained: Collection[Head] = (), **options: Any) -> survey.Survey:
    config = TrainConfig(str(data), image_size=32, backbone=RESNET10, weights="none", workers=0, **options)
    fabric = make_fabric("cpu", "fp32")
    prep = Preprocessing(image_size=32)
    return survey.survey_data(config, prep, tmp_path / "cache", False, SILENT, fabric, untrained)


def test_what_is_judged_is_not_rounded_and_what_is_read_once_is_not_kept(tmp_path: Path, data: Path) -> None:
    found = surveyed(tmp_path, data, cache="disk")
    assert found.frames["train"][0].dtype == torch.uint8
    paths = found.data.splits["valid"].paths
    exact = DecodedFrames(paths, Preprocessing(image_size=32))
    for n in range(len(paths)):
        torch.testing.assert_close(found.frames["valid"][n], exact[n], rtol=0, atol=0)
    assert isinstance(found.frames["test"], DecodedFrames)


def test_labels_that_faults_have_taken_are_not_missed_too(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    write_annotations(root / "valid", [[f"eye_{n}.jpg", "x", 0, "", "", ""] for n in range(3)])
    message = refused(tmp_path / "artifacts", root, *QUICK)
    assert message.count("found 'x'") == 3 and "to choose the best epoch" not in message


def test_a_head_that_nothing_has_trained_needs_no_photographs_to_calibrate_on(tmp_path: Path) -> None:
    """Of ME there are no labels in train, and no risk in valid."""
    for seed, (name, me) in enumerate((("train", "NA"), ("valid", 0), ("test", 0))):
        write_split(tmp_path / name, [0, 1, 2], seed, me=[me] * 3)
    assert surveyed(tmp_path, tmp_path, ["me"], cache="off", calibrate="valid").data.dr_grades == (0, 1, 2)
    with pytest.raises(AnnotationError, match=r"1 fault; .*\n.* photographs with ME risk to calibrate on, found none"):
        surveyed(tmp_path, tmp_path, cache="off", calibrate="valid")

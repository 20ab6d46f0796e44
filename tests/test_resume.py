"""Stopped, killed and resumed runs: where they go on, and that they end on the same bits as whole ones."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from eyes import write_annotations
from lightning_fabric import Fabric
from retina.runtime.errors import ModelFileError, NonFiniteLossError, OutputError, UsageError
from retina.runtime.terminal import tell
from retina.train import pipeline
from retina.train.checkpoint import load_checkpoint
from retina.train.cli import main
from retina.train.console import Console
from retina.train.data import DataSet
from retina.train.device import make_fabric
from retina.train.items import Batch, EvalItems
from retina.train.loader import make_loader
from retina.train.pipeline import train
from retina.train.resume import load_resume, save_resume, saved_progress
from retina.train.run import Run
from retina.train.signals import StopRequest
from retina.train.totals import Totals
from retina.train.tracking import Tracker
from small_backbone import RESNET10
from small_run import RECIPE, assert_same_bits, command, pretrained, run, trainer, weights
from small_set import items, small_set
from without_pictures import started

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_run_is_not_continued_without_its_best_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, "a")
    run.require_best(0)
    with pytest.raises(ModelFileError, match=r"best\.pth: expected the best checkpoint so far, of epoch 3, found none"):
        run.require_best(3)
    run.folder.mkdir(parents=True)
    (run.folder / "best.pth").touch()
    run.require_best(3)


@pytest.mark.parametrize("name", ["../z", "a/b", "", ".", "..", "a\\b", "x" * 256])
def test_a_run_is_one_folder_below_the_others(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected the name of one folder"):
        Run(tmp_path, name)
    assert Run(str(tmp_path), "a") == replace(Run(tmp_path, "b"), name="a")


def test_stopped_at_a_random_step_and_resumed_a_run_ends_on_the_same_bits(data: DataSet, tmp_path: Path) -> None:
    config = replace(RECIPE, sampler="weighted", unfreeze_epoch=2, epochs=2)
    train, _ = items(data)
    whole = trainer(train, config)
    assert run(whole, data, tmp_path / "whole.pth")
    file = tmp_path / "resume.pth"
    for stop_after in random.sample(range(1, 8), 2):  # of eight steps
        part, steps = trainer(train, config), 0

        def show(n: int, totals: Totals, stop_after: int = stop_after) -> None:
            nonlocal steps
            steps += n
            if steps == stop_after:
                signal.raise_signal(signal.SIGINT)

        assert not run(part, data, file, show), stop_after
        assert (part.progress.epoch, part.progress.batch) == (1 + (stop_after - 1) // 4, 1 + (stop_after - 1) % 4)
        torch.manual_seed(0)  # other random numbers, as in another process
        resumed = trainer(train, replace(config, seed=1))  # other initial weights
        resumed.config = config
        load_resume(resumed, file)
        assert run(resumed, data, file)
        assert_same_bits(weights(resumed), weights(whole))
        without_time = [
            [{k: v for k, v in row.items() if k != "seconds"} for row in t.progress.history] for t in (resumed, whole)
        ]
        assert without_time[0] == without_time[1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stop_requested_while_devices_agree_is_kept_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    exchange = fabric.all_reduce

    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return exchange(*arguments, **options)

    with StopRequest() as stop:
        with monkeypatch.context() as patch:
            patch.setattr(fabric, "all_reduce", interrupted)
            assert not stop.agreed(fabric)
        assert stop.agreed(fabric)


def test_stopped_while_its_last_epoch_is_judged_a_run_stops(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = items(data)
    t, file = trainer(train, replace(RECIPE, epochs=1)), tmp_path / "resume.pth"
    validate = t.validate

    def interrupted(split: EvalItems, loader: Iterable[Batch]) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return validate(split, loader)

    monkeypatch.setattr(t, "validate", interrupted)
    assert not run(t, data, file)
    resumed = trainer(train, t.config)
    load_resume(resumed, file)
    assert (resumed.progress.epoch, len(resumed.progress.history)) == (2, 1)
    assert run(resumed, data, file)
    assert_same_bits(weights(resumed), weights(t))


def test_a_file_that_is_no_resume_state_is_refused(data: DataSet, tmp_path: Path) -> None:
    train, _ = items(data)
    t = trainer(train)
    torch.save({"kind": "retina-edge checkpoint"}, tmp_path / "best.pth")
    with pytest.raises(ModelFileError, match="expected a retina-edge resume state"):
        load_resume(t, tmp_path / "best.pth")
    save_resume(t, tmp_path / "resume.pth")
    assert list(tmp_path.glob(".*")) == []
    assert torch.load(tmp_path / "resume.pth", weights_only=True)["progress"]["epoch"] == 1


@pytest.mark.slow
def test_killed_twice_a_run_ends_on_the_same_bits(data: DataSet, tmp_path: Path) -> None:
    resume, said = tmp_path / "runs" / "killed" / "resume.pth", tmp_path / "said"
    saved = 0
    for attempt in range(2):
        options = ["--workers", str(1 - attempt), *(["--resume"] if attempt else [])]
        process = started(command(data, tmp_path, "killed", *options), out=said)
        # Kill after something new is saved, at any moment of the next epoch, even while the next state is written.
        while process.is_alive() and (not resume.exists() or resume.stat().st_mtime_ns == saved):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, said.read_text()
        saved = resume.stat().st_mtime_ns
    assert said.read_text().count("Resuming killed at ") == 1
    assert json.loads((resume.parent / "config.json").read_text())["workers"] == 0
    for name, *options in (("killed", "--resume"), ("whole",)):
        result = CliRunner().invoke(main, command(data, tmp_path, name, "--workers", "1", *options))
        assert result.exit_code == 0, result.output
    for file in ("best.pth", "final.pth"):
        killed, whole = (load_checkpoint(tmp_path / "runs" / name / file) for name in ("killed", "whole"))
        assert_same_bits(killed.weights, whole.weights)
        assert killed.epoch == whole.epoch
    assert whole.epoch == 3


@pytest.mark.parametrize(("parent", "exit_code"), [(os.getpid(), 0), (1, 1)], ids=["alive", "killed"])
def test_a_worker_whose_parent_was_killed_while_it_started_ends(
    data: DataSet, parent: int, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own watchdog starts later: it would take the process that adopted the worker for its parent."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: parent)
        loader = make_loader(items(data)[0], 1, Fabric(accelerator="cpu"))
    worker = multiprocessing.get_context("fork").Process(target=loader.worker_init_fn, args=(0,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == exit_code


def test_a_worker_outlives_the_terminal(data: DataSet) -> None:
    """Of another start method than fork, which hands it its parent's handlers."""
    loader = make_loader(items(data)[0], 1, Fabric(accelerator="cpu"))

    def hung_up() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert loader.worker_init_fn is not None
        loader.worker_init_fn(0)
        signal.raise_signal(signal.SIGHUP)

    worker = multiprocessing.get_context("fork").Process(target=hung_up)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0


def stopped_while_it_is_evaluated(data: DataSet, artifacts: Path) -> Result:
    def interrupted(line: str) -> None:
        tell(line)
        if line.startswith("Evaluating"):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retina.train.cli.tell", interrupted)
        result = CliRunner().invoke(main, command(data, artifacts, "h", "--epochs", "1", "--workers", "0"))
    assert result.exit_code == 130, result.output
    return result


def test_stopped_while_it_is_evaluated_a_run_goes_on_as_it_says(data: DataSet, tmp_path: Path) -> None:
    artifacts = tmp_path / "of mine"
    result = stopped_while_it_is_evaluated(data, artifacts)
    go_on = f"retina-train --resume --name h --artifacts '{artifacts}'"
    assert result.output.strip().endswith(f"Continue with:  {go_on}")
    result = CliRunner().invoke(main, shlex.split(go_on)[1:])
    assert result.exit_code == 0, result.output


def test_a_resumed_run_keeps_its_precision_on_a_machine_that_would_choose_another(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def made(device: str, precision: str) -> Fabric:
        fabric = make_fabric(device, precision)
        used.append(fabric.strategy.precision.precision)
        return fabric

    monkeypatch.setattr("retina.train.pipeline.make_fabric", made)
    for is_faster in (True, False):
        monkeypatch.setattr("retina.train.device.bf16_is_faster", lambda _, is_faster=is_faster: is_faster)
        assert make_fabric("cpu", "auto").strategy.precision.precision == ("bf16-mixed" if is_faster else "32-true")
        if is_faster:
            stopped_while_it_is_evaluated(data, tmp_path)
            recorded = (tmp_path / "runs" / "h" / "run.json").read_bytes()
        else:
            resumed = CliRunner().invoke(main, ["--resume", "--artifacts", str(tmp_path)])
            assert resumed.exit_code == 0, resumed.output
            assert (tmp_path / "runs" / "h" / "run.json").read_bytes() == recorded
    assert used == ["bf16-mixed", "bf16-mixed"]


def test_a_run_is_not_resumed_on_photographs_with_other_names(tmp_path: Path) -> None:
    """The files and labels are the same, but an epoch draws them in the order of their names."""
    torch.save(torchvision.models.get_model(RESNET10).state_dict(), pretrained(tmp_path))
    data = small_set(tmp_path, train=[0, 0, 1, 2], others=[0, 1, 2])
    stopped_while_it_is_evaluated(data, tmp_path)
    images = tmp_path / "train" / "images"
    first, *_, last = sorted(path.name for path in images.iterdir())
    for old, new in ((first, "aside"), (last, first), ("aside", last)):
        (images / old).rename(images / new)
    csv = tmp_path / "train" / "annotations.csv"
    names = {first: last, last: first}
    csv.write_text(re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], csv.read_text()))
    resumed = CliRunner().invoke(main, ["--resume", "--artifacts", str(tmp_path)])
    assert resumed.exit_code == 2
    assert "expected the training photographs under the names that they had when the run was started" in resumed.stderr


def test_a_patient_that_is_found_in_two_splits_when_a_run_is_resumed_is_in_its_report(tmp_path: Path) -> None:
    """The fingerprint is of photographs and labels, so that the names of patients may be mended on the way."""
    torch.save(torchvision.models.get_model(RESNET10).state_dict(), pretrained(tmp_path))
    data = small_set(tmp_path, train=[0, 0, 1, 2], others=[0, 1, 2])
    stopped_while_it_is_evaluated(data, tmp_path)
    facts = tmp_path / "runs" / "h" / "run.json"
    before = json.loads(facts.read_text())
    header = ["Image name", "Retinopathy grade", "Risk of macular edema", "Patient"]
    for split in data.splits.values():
        rows = [[photo.image_name, photo.dr_grade, photo.me_label, "p9"] for photo in split.photos]
        write_annotations(split.annotations.parent, rows, header)
    resumed = CliRunner().invoke(main, ["--resume", "--artifacts", str(tmp_path)])
    assert resumed.exit_code == 0, resumed.output
    leak = "same patient: patient p9: train (4 photographs) and test (3 photographs)"
    assert f"Warning: {leak}" in resumed.output
    assert leak in facts.with_name("report.html").read_text()
    after = json.loads(facts.read_text())
    assert leak in after["leaks"]
    assert {**after, "leaks": before["leaks"]} == before


def test_a_session_that_ends_stops_a_run_once_and_leaves_one_under_nohup_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
        with StopRequest() as stop:
            for _ in range(2):  # from the kernel and from the shell
                signal.raise_signal(signal.SIGHUP)
            assert stop.agreed(fabric)
        assert signal.getsignal(signal.SIGHUP) is signal.default_int_handler
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.agreed(fabric)
            with monkeypatch.context() as patch:
                patch.delattr(signal, "SIGHUP")  # as on Windows
                with StopRequest():
                    pass
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_with_all_its_processes_a_run_saves_everything(
    data: DataSet, tmp_path: Path, number: signal.Signals
) -> None:
    """As by systemd, Slurm, timeout and a terminal that is closed, which send the signal to the workers too."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("started by nohup, and so are the processes that it starts")
    slowly = ["--epochs", "999", "--workers", "1", "--image-size", "112", "--batch-size", "16"]
    said = tmp_path / "said"
    process = started(command(data, tmp_path, "ended", *slowly), out=said)
    while process.is_alive() and not (said.exists() and "epoch   1 " in said.read_text()):
        time.sleep(0.01)
    assert process.pid is not None
    time.sleep(0.5)  # into a step
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == 130, said.read_text()
    assert "everything saved. Continue with:" in said.read_text()
    saved = saved_progress(tmp_path / "runs" / "ended" / "resume.pth")
    assert f"Stopped at {saved.place(999)}, " in said.read_text()


def test_a_second_ctrl_c_in_an_epoch_says_what_is_saved(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupted_twice(_: Console, epoch: int, *__: object) -> Iterator[Callable[[int, Totals], None]]:
        def show(done: int, totals: Totals) -> None:
            for _ in range(2 * (epoch == 2)):
                signal.raise_signal(signal.SIGINT)

        yield show

    with monkeypatch.context() as patch:
        patch.setattr(Console, "epoch", interrupted_twice)
        result = CliRunner().invoke(main, command(data, tmp_path, "twice", "--workers", "0"))
    assert result.exit_code == 130, result.output
    assert "everything saved" not in result.output
    assert (
        "Stopped. Saved up to the start of epoch 2 of 3; what came after is done again. Continue with:" in result.output
    )
    moved = shutil.copytree(data.root, tmp_path / "moved")
    result = CliRunner().invoke(main, [str(moved), "--resume", "--cache", "memory", "--artifacts", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "Resuming twice at the start of epoch 2 of 3." in result.output
    config = json.loads((tmp_path / "runs" / "twice" / "config.json").read_text())
    assert (config["data"], config["cache"], config["workers"]) == (str(moved), "memory", 0)


def test_resumed_a_run_is_tracked_and_runs_where_it_was_asked_to(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked: list[str | None] = []
    devices: list[str] = []

    def make(kind: str | None, _: Path) -> Tracker:
        tracked.append(kind)
        tracker = Tracker()
        tracker.kind = kind
        return tracker

    def pick(device: str) -> str:
        devices.append(device)
        return "cpu"

    def interrupted(*_: object) -> AbstractContextManager[Callable[[int, Totals], None]]:
        return nullcontext(lambda done, totals: signal.raise_signal(signal.SIGINT))

    monkeypatch.setattr("retina.train.tracking.make_tracker", make)
    monkeypatch.setattr(pipeline, "pick_device", pick)
    with monkeypatch.context() as patch:
        patch.setattr(Console, "epoch", interrupted)
        begun = command(data, tmp_path, "asked", "--workers", "0", "--track", "mlflow", "--device", "cuda:1")
        resumed = ["--resume", "--name", "asked", "--artifacts", str(tmp_path)]
        for arguments in (begun, resumed, [*resumed, "--device", "auto"]):
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code == 130, result.output
    assert tracked == ["mlflow", "mlflow", "mlflow"]
    assert devices == ["cuda:1", "cuda:1", "auto"]
    facts = tmp_path / "runs" / "asked" / "run.json"
    facts.write_text(json.dumps({key: value for key, value in json.loads(facts.read_text()).items() if key != "asked"}))
    result = CliRunner().invoke(main, resumed)
    assert result.exit_code == 0, f"a run of an earlier version: {result.output}"
    assert (tracked[-1], devices[-1]) == (None, "auto")


def test_interrupted_after_everything_is_written_a_run_has_finished(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(line: str) -> None:
        if line.startswith("Report: "):
            raise KeyboardInterrupt

    monkeypatch.setattr("retina.train.cli.tell", interrupted)
    result = CliRunner().invoke(main, command(data, tmp_path, "done", "--workers", "0", "--epochs", "1"))
    assert result.exit_code == 0, result.output


def test_how_far_a_run_is_saved(data: DataSet, tmp_path: Path) -> None:
    t = trainer(items(data)[0])
    file = tmp_path / "resume.pth"
    for epoch, batch, place in (
        (2, 3, "batch 3 of epoch 2 of 3"),
        (3, 0, "the start of epoch 3 of 3"),
        (4, 0, "the end of its last epoch"),
    ):
        t.progress.epoch, t.progress.batch = epoch, batch
        save_resume(t, file)
        assert saved_progress(file).place(RECIPE.epochs) == place


def test_a_run_that_fails_or_is_interrupted_is_ended_for_its_tracker(data: DataSet, tmp_path: Path) -> None:
    class Recorded(Tracker):
        def __init__(self, error: BaseException | None = None) -> None:
            self.error, self.stopped = error, list[bool]()

        def epoch(self, row: object) -> None:
            if self.error is not None:
                raise self.error

        def stop(self, *, failed: bool = False) -> None:
            self.stopped.append(failed)
            raise OutputError("the store is out of reach as well")

    config = replace(RECIPE, data=str(data.root), weights=str(pretrained(data.root)))
    diverging = replace(config, lr_heads=1e38, lr_backbone=1e38)
    for name, recipe, error, failed in (
        ("diverged", diverging, NonFiniteLossError("expected a finite loss"), True),
        ("full", config, OutputError("disk full"), True),
        ("interrupted", config, KeyboardInterrupt(), False),
    ):
        tracker = Recorded(None if name == "diverged" else error)
        with pytest.raises(type(error)):
            train(recipe, Run(tmp_path, name), device="cpu", tracker=tracker)
        assert tracker.stopped == [failed], name


def test_where_runs_are_kept_is_said_only_where_it_is_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINA_ARTIFACTS", "others")
    assert Run(Path("artifacts"), "a").resume_command == "retina-train --resume --name a --artifacts artifacts"
    monkeypatch.delenv("RETINA_ARTIFACTS")
    assert Run(Path("artifacts"), "a b").resume_command == "retina-train --resume --name 'a b'"
    assert Run(Path("/x"), "a").resume_command == "retina-train --resume --name a --artifacts /x"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    on_two = "torchrun --nproc-per-node 2 -m retina.train --resume --name a"
    assert Run(Path("artifacts"), "a").resume_command == on_two

"""The loop compared with steps made by hand, and two processes with one."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from eyes import write_set
from lightning_fabric import Fabric
from retina.runtime import progress
from retina.runtime.errors import NonFiniteLossError, OutputError
from retina.runtime.picture import decode
from retina.train import pipeline, plots, recorder
from retina.train.augment import augment_with_seed, draw_seed, make_augment
from retina.train.checkpoint import Checkpoint, load_checkpoint
from retina.train.cli import main
from retina.train.data import DataSet, read_dataset
from retina.train.device import make_fabric
from retina.train.framing import Normalize, make_preprocess
from retina.train.items import Batch, Draw, EpochPlan, TrainItems
from retina.train.loader import EvalBatches, make_loader, require_shared_memory, workers_for
from retina.train.loop import fit
from retina.train.model import RetinaNet
from retina.train.pipeline import train
from retina.train.resume import saved_progress
from retina.train.run import Run
from retina.train.signals import StopRequest
from retina.train.totals import Totals
from retina.train.trainer import Trainer
from small_backbone import RESNET10
from small_network import linear
from small_run import RECIPE, assert_same_bits, command, pretrained, run, trainer, weights
from small_set import SMALL, items
from torch import Tensor
from torch.utils.data import DataLoader
from without_pictures import replace_pictures, run_commands, run_on_two_devices

pytestmark = pytest.mark.usefixtures("no_pictures")
FROZEN = ("backbone.conv1", "backbone.bn1", "backbone.layer1")


class NeverStop(StopRequest):
    def agreed(self, fabric: Fabric) -> bool:
        return False


def train_epoch(t: Trainer, train: TrainItems, plan: EpochPlan | None = None) -> None:
    plan = plan or EpochPlan(train.dr_index, t.config.batch_size, t.config.sampler, t.config.seed)
    t.train_epoch(
        make_loader(train, 0, t.fabric, batch_sampler=plan), NeverStop(), lambda n, totals: None, plan.n_batches
    )


@pytest.mark.parametrize("weighting", ["inverse", "none"])
def test_one_step_is_the_textbooks(data: DataSet, weighting: str) -> None:
    """Two accumulated micro-batches of 4, compared with torch's own mean cross-entropy on all 8 and its own Adam."""
    train, valid = items(data)
    t = trainer(train, replace(RECIPE, accumulate=2, dr_weight=1.5, me_weight=0.5))
    if weighting == "none":
        t.dr_weights = torch.ones(3)
    t.net.train = lambda mode=True: torch.nn.Module.train(t.net, False)  # type: ignore[method-assign]
    before = weights(t)

    class OneStep(EpochPlan):
        def __iter__(self) -> Any:
            return iter(list(super().__iter__())[:2])

    plan = OneStep(train.dr_index, 4, "shuffle", RECIPE.seed)
    train_epoch(t, train, plan)

    reference = RetinaNet(3, RESNET10).eval()
    reference.load_state_dict(before)
    reference.set_frozen(True)
    reference.eval()
    batch = [train[draw] for micro_batch in plan for draw in micro_batch]
    x = Normalize(SMALL.mean, SMALL.std)(torch.stack([item.image for item in batch]).float())
    dr_true, me_true = torch.tensor([item.dr_index for item in batch]), torch.tensor([item.me_label for item in batch])
    dr_logits, me_logits = reference(x)
    loss = 1.5 * F.cross_entropy(dr_logits, dr_true, t.dr_weights) + 0.5 * F.cross_entropy(me_logits, me_true)
    heads = [*reference.dr_head.parameters(), *reference.me_head.parameters()]
    adam = torch.optim.Adam([{"params": reference.backbone.parameters(), "lr": 1e-4}, {"params": heads, "lr": 1e-3}])
    torch.autograd.backward(loss)
    # Adam's first step is the gradient's sign, so compare only where the gradient exceeds rounding errors.
    clear = {name: p.grad.abs() > 1e-6 for name, p in reference.named_parameters() if p.grad is not None}
    adam.step()
    after = t.net.state_dict()
    for name, expected in reference.named_parameters():
        if name in clear:
            difference = (after[name] - expected).abs()[clear[name]]
            assert difference.numel() == 0 or difference.max() < 1e-6, name
            assert not torch.equal(after[name], before[name]), name
        else:
            assert name.startswith(FROZEN)
    right = [(logits.argmax(1) == true).sum() for logits, true in ((dr_logits, dr_true), (me_logits, me_true))]
    assert t.train_figures() == pytest.approx(
        {
            "loss": loss.item(),
            "dr_loss": F.cross_entropy(dr_logits, dr_true, t.dr_weights).item(),
            "me_loss": F.cross_entropy(me_logits, me_true).item(),
            "dr_accuracy": right[0].item() / 8,
            "me_accuracy": right[1].item() / 8,
        },
        rel=1e-5,
    )

    reference.load_state_dict(after)
    batch = [valid[n] for n in range(len(valid))]
    dr_true, me_true = torch.tensor([item.dr_index for item in batch]), torch.tensor([item.me_label for item in batch])
    with torch.no_grad():
        dr_logits, me_logits = reference(Normalize(SMALL.mean, SMALL.std)(torch.stack([item.image for item in batch])))
    loss = 1.5 * F.cross_entropy(dr_logits, dr_true, t.dr_weights) + 0.5 * F.cross_entropy(me_logits, me_true)
    assert t.validate(valid, make_loader(valid, 0, t.fabric))["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_frozen_layers_and_their_statistics_wait_for_the_epoch_that_opens_them(data: DataSet, tmp_path: Path) -> None:
    train, _ = items(data)
    t = trainer(train, replace(RECIPE, epochs=2, unfreeze_epoch=2))
    seen: list[dict[str, Tensor]] = [weights(t)]
    rates: list[float] = []

    def on_epoch(history: list[dict[str, float]]) -> None:
        seen.append(weights(t))
        rates.append(history[-1]["lr_backbone"])

    fit(
        t,
        *items(data),
        tmp_path / "resume.pth",
        lambda row: None,
        on_epoch,
        lambda *_: nullcontext(lambda done, totals: None),
    )
    start, first, second = seen
    frozen = [name for name in start if name.startswith(FROZEN)]
    assert any("running_mean" in name for name in frozen)
    assert_same_bits({name: start[name] for name in frozen}, {name: first[name] for name in frozen})
    assert not any(torch.equal(first[name], second[name]) for name in frozen)
    others = [name for name in start if name not in frozen]
    assert not any(torch.equal(start[name], first[name]) for name in others)
    assert rates == [1e-4, pytest.approx(1e-5)]


def test_of_random_weights_nothing_is_frozen(data: DataSet) -> None:
    train, _ = items(data)
    t = trainer(train, replace(RECIPE, weights="none"))
    start = weights(t)
    train_epoch(t, train)
    assert [name for name, tensor in weights(t).items() if torch.equal(tensor, start[name])] == []


def test_a_loss_that_is_no_number_names_the_files(data: DataSet) -> None:
    train, _ = items(data)
    t = trainer(train)
    with torch.no_grad():
        linear(t.net.dr_head, 3).bias[0] = float("nan")
    first = next(iter(EpochPlan(train.dr_index, 4, "shuffle", RECIPE.seed)))
    names = ", ".join(train.photos[draw.photo].image_name for draw in first)
    with pytest.raises(NonFiniteLossError, match=rf"epoch 1: expected a finite loss, found DR nan .* {names}\. "):
        train_epoch(t, train)


def test_a_network_that_diverged_in_its_last_step_is_not_kept(data: DataSet, tmp_path: Path) -> None:
    train, valid = items(data)
    t = trainer(train, replace(RECIPE, epochs=1, batch_size=16, lr_heads=1e38, lr_backbone=1e38))  # one step
    kept: list[dict[str, float]] = []
    with pytest.raises(NonFiniteLossError, match="epoch 1: expected a finite loss on valid, found DR nan"):
        fit(
            t, train, valid, tmp_path / "resume.pth", kept.append, lambda history: None,
            lambda *_: nullcontext(lambda done, totals: None),
        )  # fmt: skip
    assert kept == []


def judged_as(
    t: Trainer, loss: Callable[[int], float], score: Callable[[int], float] = lambda epoch: 0.1 * epoch
) -> Trainer:
    """Without training: in each epoch, valid has this loss and this score, by default a higher one than before."""
    t.train_epoch = lambda *_: False  # type: ignore[method-assign]
    t.validate = lambda *_: {"loss": loss(t.progress.epoch), "score": score(t.progress.epoch)}  # type: ignore[method-assign]
    return t


def test_rates_halve_when_the_loss_on_valid_no_longer_falls(data: DataSet, tmp_path: Path) -> None:
    scores = [0.2, 0.4, 0.4, 0.3, 0.4]
    t = judged_as(trainer(items(data)[0], replace(RECIPE, epochs=5)), lambda epoch: 1.0, lambda n: scores[n - 1])
    run(t, data, tmp_path / "resume.pth")
    assert (t.progress.best_epoch, t.progress.best_score) == (2, 0.4), "the first of equal ones"
    # With patience 2, the first epoch is the best, two more are tolerated, and after the fourth the rates halve.
    assert [row["lr_backbone"] for row in t.progress.history] == [1e-4] * 4 + [5e-5]
    assert [row["lr_heads"] for row in t.progress.history] == [1e-3] * 4 + [5e-4]


def test_rates_stay_while_the_loss_on_valid_falls(data: DataSet, tmp_path: Path) -> None:
    """The scheduler watches the loss instead of the score, for which lower is worse."""
    t = judged_as(trainer(items(data)[0], replace(RECIPE, epochs=6)), lambda epoch: 1 / epoch)
    run(t, data, tmp_path / "resume.pth")
    assert [row["lr_heads"] for row in t.progress.history] == [1e-3] * 6


def test_each_micro_batch_of_a_run_drops_other_features(data: DataSet, tmp_path: Path) -> None:
    t = trainer(items(data)[0], replace(RECIPE, epochs=2, accumulate=2))
    seeds: list[int] = []
    t.net.register_forward_pre_hook(lambda net, _: seeds.append(torch.initial_seed()) if net.training else None)
    run(t, data, tmp_path / "resume.pth")
    assert len(seeds) == len(set(seeds)) == 8


@pytest.mark.parametrize(("asked", "expected"), [("none", [1, 1, 1]), ("inverse", [16 / 27, 16 / 12, 16 / 9])])
def test_grades_weigh_as_asked(data: DataSet, tmp_path: Path, asked: str, expected: list[float]) -> None:
    options = ["--workers", "0", "--epochs", "1", "--class-weights", asked]
    result = CliRunner().invoke(main, command(data, tmp_path, "w", *options))
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "runs" / "w" / "run.json").read_text())
    assert facts["dr_class_weights"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sampler", ["shuffle", "weighted"])
def test_photographs_are_drawn_as_asked(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: Literal["shuffle", "weighted"]
) -> None:
    train, _ = items(data)
    t = judged_as(trainer(train, replace(RECIPE, epochs=1, sampler=sampler)), lambda epoch: 1.0)
    drawn: list[Any] = []

    def train_epoch(loader: DataLoader[Batch], *_: object) -> bool:
        assert loader.batch_sampler is not None
        drawn.extend(loader.batch_sampler)
        return False

    monkeypatch.setattr(t, "train_epoch", train_epoch)
    run(t, data, tmp_path / "resume.pth")
    assert drawn == list(EpochPlan(train.dr_index, 4, sampler, RECIPE.seed))


@pytest.mark.parametrize("augment", ["notebook", "cameras"])
def test_photographs_are_augmented_as_asked(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: Literal["notebook", "cameras"]
) -> None:
    pictures: list[Tensor] = []

    def noted(_trainer: Trainer, train_items: TrainItems, *_: object) -> bool:
        whole = train_items.frames[0].round().to(torch.uint8)
        pictures.append(train_items[Draw(0, 1, 0)].image)
        pictures.append(augment_with_seed(make_augment(augment), whole, draw_seed(RECIPE.seed, 1, 0)))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "fit", noted)
    config = replace(RECIPE, data=str(data.root), weights=str(pretrained(data.root)), augment=augment)
    with pytest.raises(KeyboardInterrupt):
        train(config, Run(tmp_path, "a"), device="cpu")
    assert torch.equal(*pictures)


def test_bf16_is_for_training_only(data: DataSet) -> None:
    train, valid = items(data)
    plain, mixed = trainer(train), trainer(train, replace(RECIPE, precision="bf16"))
    of_features: list[torch.dtype] = []
    mixed.net.backbone.conv1.register_forward_hook(lambda _net, _inputs, output: of_features.append(output.dtype))
    train_epoch(mixed, train)
    assert set(of_features) == {torch.bfloat16}
    assert {tensor.dtype for tensor in mixed.net.parameters()} == {torch.float32}

    plain.net.load_state_dict(mixed.net.state_dict())
    of_features.clear()
    loader = make_loader(valid, 0, plain.fabric)
    for of_plain, of_mixed in zip(plain.predict(loader, len(valid)), mixed.predict(loader, len(valid)), strict=True):
        assert torch.equal(of_plain, of_mixed)
    assert set(of_features) == {torch.float32}


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
def test_too_little_shared_memory_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = Fabric(accelerator="cpu")
    require_shared_memory(replace(RECIPE, workers=2), fabric)
    much = replace(RECIPE, workers=10**6, batch_size=10**6)
    # Two batches for each worker and two for the training itself, of 10^6 photographs of 3 x 32 x 32 bytes.
    expected = f"expected {2_000_002 * 3072} MB of shared memory for what 1000000 workers load, found "
    with pytest.raises(OutputError, match=expected):
        require_shared_memory(much, fabric)
    require_shared_memory(replace(much, workers=0), fabric)
    monkeypatch.setattr("retina.train.loader.SHARED_MEMORY", Path("/dev/none"))
    with pytest.raises(OutputError, match="/dev/none: expected shared memory, found: No such file"):
        require_shared_memory(replace(RECIPE, workers=1), fabric)


def test_all_devices_of_this_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = Fabric(accelerator="cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    much = replace(RECIPE, workers=10**6, batch_size=10**6)
    with pytest.raises(OutputError, match=f"expected {4 * 2_000_002 * 3072} MB of shared memory"):
        require_shared_memory(much, fabric)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux changed its default")
def test_workers_are_forked_whatever_pythons_default(data: DataSet) -> None:
    """As of Python 3.14 it is a server, which would be the parent of workers and outlive theirs."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        valid = items(data)[1]
        assert len(next(iter(make_loader(valid, 1, Fabric(accelerator="cpu")))).image) == 1
    finally:
        multiprocessing.set_start_method(before, force=True)


TWICE_THE_BATCH = ["--epochs", "2", "--unfreeze-epoch", "2"]
STANDING_STILL = ["--epochs", "1", "--lr-backbone", "0", "--lr-heads", "0"]
EMA = 0.25
# In bf16, sums in another order differ by more than the tests allow.
EXACT = ["--workers", "0", "--precision", "fp32"]


@pytest.fixture(scope="module")
def on_two_devices(data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The artifacts of runs by two processes, ``twice``, ``still`` and ``average``, and what was printed."""
    artifacts = tmp_path_factory.mktemp("two")
    runs = {"twice": TWICE_THE_BATCH, "still": STANDING_STILL, "average": [*STANDING_STILL, "--ema", str(EMA)]}
    commands = [command(data, artifacts, name, *options, *EXACT) for name, options in runs.items()]
    said = artifacts / "said"
    run_on_two_devices(said, run_commands, *commands)
    return artifacts, said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("run_name", "decay"), [("still", 0.0), ("average", EMA)])
def test_two_processes_keep_the_mean_of_their_batch_norm_statistics(
    data: DataSet, on_two_devices: tuple[Path, str], run_name: str, decay: float
) -> None:
    """With constant weights, the expected statistics of each device's share are computed here by hand."""
    artifacts, _ = on_two_devices
    found = load_checkpoint(artifacts / "runs" / run_name / "final.pth").weights
    train, _ = items(data)
    names = [name for name in found if "running" in name]
    assert len(names) == 24
    shares = []
    for rank in range(2):
        net = RetinaNet(3, RESNET10)
        net.load_state_dict(found)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        net.set_frozen(True)
        net.train()
        average: dict[str, Tensor] = {}
        for batch in EpochPlan(train.dr_index, 4, "shuffle", RECIPE.seed, rank, 2):
            with torch.no_grad():
                net(Normalize(SMALL.mean, SMALL.std)(torch.stack([train[draw].image for draw in batch]).float()))
            now = net.state_dict()
            average = {name: decay * average.get(name, now[name]) + (1 - decay) * now[name] for name in names}
        shares.append(average)
    for name in names:
        torch.testing.assert_close(found[name], (shares[0][name] + shares[1][name]) / 2, rtol=1e-4, atol=1e-5)


def stop_on_the_second(data: DataSet, folder: Path) -> None:
    """Train by small batches on this device, until the second one is asked to stop after its first step."""
    train, _ = items(data)
    t = trainer(train, replace(RECIPE, batch_size=2))
    assert t.fabric.world_size == 2

    def show(n: int, totals: Totals) -> None:
        (folder / f"{t.fabric.global_rank}.json").write_text(json.dumps(totals))
        if t.fabric.global_rank == 1:
            signal.raise_signal(signal.SIGTERM)

    assert not run(t, data, folder / "resume.pth", show)


@pytest.mark.slow
def test_asked_to_stop_on_one_device_all_stop_and_share_what_they_added_up(data: DataSet, tmp_path: Path) -> None:
    run_on_two_devices(tmp_path / "said", stop_on_the_second, data, tmp_path)
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert shares[0] != shares[1]
    saved = saved_progress(tmp_path / "resume.pth")
    assert (saved.epoch, saved.batch) == (1, 1)
    assert saved.totals.dr_labelled == 2  # of the 4 photographs of a step, half for each device to go on from
    np.testing.assert_allclose(saved.totals, np.mean(shares, axis=0), rtol=1e-6)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(data: DataSet, on_two_devices: tuple[Path, str]) -> None:
    artifacts, said = on_two_devices
    assert said.count("epoch   1 ") == 3  # once per run
    assert said.count("2 devices: a step sees 8 photographs instead of 4. ") == 3
    assert "deprecated" not in said  # of PyTorch and Lightning to each other
    options = [*TWICE_THE_BATCH, *EXACT, "--accumulate", "2"]
    alone = CliRunner().invoke(main, command(data, artifacts, "one", *options))
    assert alone.exit_code == 0, alone.output
    torch.manual_seed(42)
    start = RetinaNet(3, RESNET10)
    start.backbone.load_state_dict(torch.load(pretrained(data.root)), strict=False)
    left, right = (load_checkpoint(artifacts / "runs" / name / "final.pth").weights for name in ("one", "twice"))

    def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum((a[name] - b[name]).square().sum().item() for name, _ in start.named_parameters()))

    # Not parameter by parameter: where a gradient is almost 0, Adam's step has the sign of its rounding error. Measured
    # 0.007; training on one device's share alone, half of the batch, gives 0.89.
    assert distance(left, right) < 0.05 * distance(left, start.state_dict())
    histories = [pd.read_csv(artifacts / "runs" / name / "history.csv") for name in ("one", "twice")]
    for column in ("train_loss", "train_dr_accuracy", "train_me_accuracy"):
        np.testing.assert_allclose(histories[0][column], histories[1][column], rtol=1e-2)
    metrics = json.loads((artifacts / "runs" / "twice" / "metrics.json").read_text())
    counts = {name: len(split.photos) for name, split in data.splits.items()}
    assert {name: split["all"]["n"] for name, split in metrics["splits"].items()} == counts


def test_without_a_terminal_lines_tell_how_far_an_epoch_is(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    result = CliRunner().invoke(main, command(data, tmp_path, "lines", "--workers", "0"))
    assert result.exit_code == 0, result.output
    told = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    # Of 16 photographs by 4.
    expected = [f"epoch {epoch}/3: {batch} of 4, " for epoch in (1, 2, 3) for batch in (1, 2, 3, 4)]
    assert [line[: len(start)] for line, start in zip(told, expected, strict=True)] == expected
    last = pd.read_csv(tmp_path / "runs" / "lines" / "history.csv").iloc[-1]
    figures = [last[f"train_{name}"] for name in ("dr_loss", "dr_accuracy", "me_loss", "me_accuracy")]
    assert told[-1].endswith(", DR loss {:.3f} acc {:.3f}  ME loss {:.3f} acc {:.3f}".format(*figures))


@pytest.mark.parametrize(("every", "expected"), [(0.0, [1, 2, 3, 3]), (999.0, [1, 3])])
def test_curves_are_drawn_now_and_then_and_at_a_stop(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, expected: list[int]
) -> None:
    monkeypatch.setattr(recorder, "CURVES_EVERY", every)
    drawn: list[int] = []
    monkeypatch.setattr(plots, "learning_curves", lambda history, _: drawn.append(len(history)))

    def stopped(*arguments: Any) -> bool:
        fit(*arguments)
        return False

    monkeypatch.setattr(pipeline, "fit", stopped)
    config = replace(RECIPE, data=str(data.root), weights=str(pretrained(data.root)))
    assert not train(config, Run(tmp_path, "curves"), device="cpu")
    assert drawn == expected


@pytest.mark.parametrize(("world", "threads"), [(1, 0), (1, 2), (2, 2)])
def test_devices_share_a_split_in_its_order(data: DataSet, world: int, threads: int) -> None:
    _, valid = items(data)
    for rank in range(world):
        batches = EvalBatches(valid, 2, rank, world, threads)
        expected = [valid[index] for index in range(rank, len(valid), world)]
        found = list(batches)
        assert [len(batch.filenames) for batch in found] == [2] * (len(expected) // 2) + [1] * (len(expected) % 2)
        assert len(batches) == len(found)
        assert [name for batch in found for name in batch.filenames] == [item.filename for item in expected]
        assert torch.equal(torch.cat([batch.image for batch in found]), torch.stack([item.image for item in expected]))


def test_no_convolution_runs_in_tf32_where_fp32_is_promised() -> None:
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    make_fabric("cpu", "fp32")
    assert not torch.backends.cudnn.allow_tf32


@dataclass(frozen=True)
class FinishedRun:
    """A small run that ``retina-train`` finished, on a set with one photograph in two splits."""

    data: Path
    artifacts: Path
    output: str

    @property
    def folder(self) -> Path:
        return self.artifacts / "runs" / "a"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    root = tmp_path_factory.mktemp("run")
    data, artifacts = write_set(root / "data", train=[0, 1, 2, 3, 4] * 4, others=[0, 1, 2, 3, 4, 0]), root / "artifacts"
    shutil.copy(data / "train/images/eye_0.jpg", data / "test/images/eye_3.jpg")
    options = ["--epochs", "3", "--image-size", "64", "--batch-size", "8", "--backbone", RESNET10, "--workers", "0"]
    options += ["--lr-backbone", "1e-3", "--weights", "none", "--allow-leakage", "--name", "a"]
    with pytest.MonkeyPatch.context() as patch:
        replace_pictures(patch.setattr)
        result = CliRunner().invoke(main, [str(data), *options, "--artifacts", str(artifacts)])
    assert result.exit_code == 0, result.output
    return FinishedRun(data, artifacts, result.output)


def test_the_best_checkpoint_is_that_of_the_best_epoch(finished_run: FinishedRun) -> None:
    history = pd.read_csv(finished_run.folder / "history.csv")
    best = history.loc[history["valid_score"].idxmax()]
    checkpoint = load_checkpoint(finished_run.folder / "best.pth")
    assert checkpoint.epoch == best["epoch"]
    assert len(history) == 3
    predictions = answers(finished_run, "valid", checkpoint)
    assert (predictions[0].argmax(1) == predictions[2]).double().mean().item() == best["valid_dr_accuracy"]
    assert (predictions[1].argmax(1) == predictions[3]).double().mean().item() == best["valid_me_accuracy"]
    assert load_checkpoint(finished_run.folder / "final.pth").epoch == 3
    for name in ("best", "final"):
        published = finished_run.artifacts / f"retina_multitask_{name}.pth"
        assert published.read_bytes() == (finished_run.folder / f"{name}.pth").read_bytes()
    assert not (finished_run.folder / "resume.pth").exists()


def test_copies_are_trained_on_when_allowed_and_stay_on_record(finished_run: FinishedRun) -> None:
    leak = "same bytes: train/eye_0.jpg (line 2) and test/eye_3.jpg (line 5); DR grade 0 and 3, ME risk 0 and 1"
    assert f"Warning: {leak}" in finished_run.output
    assert leak in json.loads((finished_run.folder / "run.json").read_text())["leaks"]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_tables_are_what_the_best_checkpoint_says(finished_run: FinishedRun, split: str) -> None:
    checkpoint = load_checkpoint(finished_run.artifacts / "retina_multitask_best.pth")
    dr_probs, me_probs, dr_true, me_true = answers(finished_run, split, checkpoint)
    table = pd.read_csv(finished_run.folder / f"{split}_predictions.csv")
    published = finished_run.artifacts / "test_predictions.csv"
    assert published.read_bytes() == (finished_run.folder / "test_predictions.csv").read_bytes()
    assert table["Image name"].tolist() == [f"eye_{n}.jpg" for n in range(6)]
    np.testing.assert_allclose(table[[f"dr_prob_{g}" for g in range(5)]], dr_probs, atol=2e-6)
    np.testing.assert_allclose(table["me_prob"], me_probs[:, 1], atol=2e-6)
    assert table["Pred DR grade (orig)"].tolist() == dr_probs.argmax(1).tolist()
    assert table["Pred ME risk"].tolist() == me_probs.argmax(1).tolist()
    assert table["True DR grade (orig)"].tolist() == dr_true.tolist()
    assert table["True ME risk"].tolist() == me_true.tolist()


def answers(run: FinishedRun, split: str, checkpoint: Checkpoint) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """DR and ME probabilities, computed one photograph at a time, and the true labels."""
    dataset = read_dataset(run.data)
    model, preprocess = checkpoint.build_model(), make_preprocess(checkpoint.contract.preprocessing)
    photos = dataset.splits[split].photos
    with torch.inference_mode():
        logits = [model(preprocess(torch.from_numpy(decode(photo.path))[None])) for photo in photos]
    dr, me = (torch.cat(both).softmax(1) for both in zip(*logits, strict=True))
    return dr, me, torch.tensor([p.dr_grade for p in photos]), torch.tensor([p.me_label for p in photos])


@pytest.mark.parametrize(
    ("asked", "device", "devices_here", "cores", "expected"),
    [
        (None, "cpu", 1, 8, 1),  # the cores compute
        (None, "cuda", 1, 8, 8),
        (None, "cuda", 4, 8, 2),
        (None, "cuda", 8, 4, 1),
        (None, "cuda", 1, 96, 16),
        (None, "mps", 1, 10, 10),
        (0, "cuda", 1, 8, 0),
        (3, "cpu", 1, 2, 3),
    ],
)
def test_a_gpu_is_fed_by_all_cores(
    asked: int | None, device: str, devices_here: int, cores: int, expected: int
) -> None:
    assert workers_for(asked, device, devices_here, cores) == expected


def test_the_guides_program_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "data", others=(0, 1, 2, 2))
    guide = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL) if "of_recipe" in block]
    small = f'"epochs": 1, "image_size": 32, "batch_size": 4, "backbone": "{RESNET10}", "workers": 0'
    block = block.replace('"epochs": 20', small).replace('"imagenet"', '"none"')
    exec(block, {"__name__": "__main__"})
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Report: artifacts/runs/first/") for line in said), said
    epoch, kappa = said[-1].split()
    assert epoch == "1" and -1 <= float(kappa) <= 1
    assert Run("artifacts", "first").config().recipe == "released"

"""How fast training is: the loop's overhead over the plainest one, its gain over the original's, the cost of loading.

    python benchmarks/train.py                                            # drawn photographs
    python benchmarks/train.py --data DATA --backbone resnet50 --image-size 384 --device cuda

The rounds are interleaved in one process, so that other load on the machine affects all contenders equally; the figures
are medians of the rounds' ratios. Frames are cached before the first round, as they are in every epoch of a run.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import click
import torch
import torch.nn.functional as F
from PIL import Image
from retina.runtime.contract import Preprocessing
from retina.runtime.terminal import exit_codes
from retina.train import EpochPlan, Normalize, RetinaNet, TrainConfig, Trainer, class_weights
from retina.train.augment import make_augment
from retina.train.data import DataSet, read_dataset
from retina.train.device import make_fabric, pick_device
from retina.train.frames import look_through
from retina.train.items import Batch, TrainItems
from retina.train.loader import make_loader, train_loader
from retina.train.signals import StopRequest
from retina.train.synthetic import write_dataset
from retina.train.totals import Totals
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class InMemory:
    """A loader with ready batches, so that only the loop itself is measured."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Watched:
    """A loader that measures how long the loop waits for it."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.loader, self.waited = loader, 0.0

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            start = perf_counter()
            batch = next(batches, None)
            self.waited += perf_counter() - start
            if batch is None:
                return
            yield batch


class Original(Dataset[tuple[Tensor, int, int]]):
    """The original notebook's data set: opens and resizes each photograph with Pillow on every access."""

    def __init__(self, items: TrainItems, size: int) -> None:
        self.items = items
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.RandomHorizontalFlip(0.5),
                transforms.RandomVerticalFlip(0.1),
                transforms.RandomRotation(10),
                transforms.ColorJitter(brightness=0.1, contrast=0.1),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        photo = self.items.photos[index]
        with Image.open(photo.path) as picture:
            return self.transform(picture.convert("RGB")), self.items.dr_index[index], photo.me_index


def new_trainer(config: TrainConfig, items: TrainItems, dr_grades: tuple[int, ...], device: str) -> Trainer:
    torch.manual_seed(0)
    prep = Preprocessing(image_size=config.image_size)
    net = RetinaNet(len(dr_grades), config.backbone)
    weights = class_weights(items.dr_index, len(dr_grades))
    fabric = make_fabric(device, config.precision)
    return Trainer(fabric, config, net, Normalize(prep.mean, prep.std), dr_grades, weights)


def our_epoch(trainer: Trainer, loader: object, n_batches: int) -> None:
    trainer.progress.batch, trainer.progress.totals = 0, Totals()
    trainer.train_epoch(loader, StopRequest(), lambda n, totals: None, n_batches)  # type: ignore[arg-type]


def plain_epoch(trainer: Trainer, batches: list[Batch]) -> None:
    """Only forward, backward and step, with the same network, tensors, precision and optimiser."""
    net, device = trainer.net, trainer.fabric.device
    net.train()
    for batch in batches:
        x = trainer.normalize(batch.image.to(device).float()).contiguous(memory_format=torch.channels_last)
        dr_true, me_true = batch.dr_index.to(device), batch.me_label.to(device)
        with trainer.fabric.autocast():
            dr_logits, me_logits = net(x)
        loss = F.cross_entropy(dr_logits.float(), dr_true, trainer.dr_weights)
        loss = loss + F.cross_entropy(me_logits.float(), me_true)
        loss.backward()  # type: ignore[no-untyped-call]
        trainer.optimizer.optimizer.step()
        trainer.optimizer.optimizer.zero_grad()


def original_epoch(
    net: nn.Module, adam: torch.optim.Adam, loader: Iterable[Sequence[Tensor]], trainer: Trainer
) -> None:
    """The original notebook's loop: fp32, no workers, each loss and accuracy fetched with .item()."""
    device = trainer.fabric.device
    net.train()
    for batch in loader:
        x, dr_true, me_true = (tensor.to(device) for tensor in batch)
        adam.zero_grad()
        dr_logits, me_logits = net(x)
        loss = F.cross_entropy(dr_logits, dr_true, trainer.dr_weights) + F.cross_entropy(me_logits, me_true)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        loss.item()
        (dr_logits.argmax(1) == dr_true).sum().item()
        (me_logits.argmax(1) == me_true).sum().item()


def timed(device: torch.device, work: Callable[[], None]) -> float:
    """Seconds that ``work`` takes, including work queued on the device."""
    start = perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="A data folder.  [default: drawn photographs]")
@click.option("--size", default=512, show_default=True, help="Side of the drawn photographs in pixels.")
@click.option("--count", default=48, show_default=True, help="Drawn training photographs.")
@click.option("--backbone", default="resnet18", show_default=True)
@click.option("--image-size", default=128, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--batches", default=0, help="Batches per round; 0: a whole epoch.")
@click.option("--workers", type=int, help="As for retina-train.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16"]))
@click.option("--device", default="auto", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@exit_codes("train.py")
def main(
    data: Path | None, size: int, count: int, backbone: str, image_size: int, batch_size: int, batches: int,
    workers: int | None, precision: str, device: str, rounds: int,
) -> None:  # fmt: skip
    """Compare this project's training loop with the plainest possible one and with the original notebook's."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        if data is None:
            data = Path(scratch) / "drawn"
            write_dataset(data, {"train": count, "valid": 10, "test": 10}, size=size)
        config = TrainConfig(
            str(data), batch_size=batch_size, image_size=image_size, backbone=backbone, workers=workers,
            precision=precision,  # type: ignore[arg-type]
        )  # fmt: skip
        compare(config, read_dataset(data), batches * batch_size, pick_device(device), rounds, Path(scratch))


def compare(config: TrainConfig, dataset: DataSet, keep: int, device: str, rounds: int, scratch: Path) -> None:
    if keep:
        train = dataset.splits["train"]
        dataset = replace(dataset, splits={**dataset.splits, "train": replace(train, photos=train.photos[:keep])})
    paths = dataset.splits["train"].paths
    frames, _ = look_through(paths, Preprocessing(image_size=config.image_size), "uint8", "disk", scratch)
    items = TrainItems(dataset, frames, make_augment("notebook"), seed=0)
    plan = EpochPlan(items.dr_index, config.batch_size, "shuffle", seed=0)
    ours, bare, whole = (new_trainer(config, items, dataset.dr_grades, device) for _ in range(3))
    loader = Watched(train_loader(items, plan, config, ours.fabric))
    ready = list(make_loader(items, 0, ours.fabric, batch_sampler=plan))
    n = sum(len(batch.filenames) for batch in ready)

    theirs = RetinaNet(len(dataset.dr_grades), config.backbone).to(ours.fabric.device)
    theirs.set_frozen(True)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-4)
    original = DataLoader(
        Original(items, config.image_size), batch_size=config.batch_size, shuffle=True, drop_last=True
    )
    n_original = len(original) * config.batch_size

    target = ours.fabric.device
    ways: dict[str, Callable[[], None]] = {
        "plain": lambda: plain_epoch(bare, ready),
        "loop": lambda: our_epoch(ours, InMemory(ready), len(ready)),
        "whole": lambda: our_epoch(whole, loader, len(ready)),
        "original": lambda: original_epoch(theirs, adam, original, ours),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    waited: list[float] = []
    for turn in range(rounds + 1):
        loader.waited = 0.0
        # The order alternates, because the first contender of a round finds cold caches.
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            took = timed(target, ways[name])
            if turn:  # the first round warms up
                seconds[name].append(took)
        if turn:
            waited.append(loader.waited / seconds["whole"][-1])

    pairs = zip(seconds["loop"], seconds["plain"], strict=True)
    gains = zip(seconds["original"], seconds["whole"], strict=True)
    overhead = statistics.median(loop / plain for loop, plain in pairs) - 1
    gain = statistics.median(slow * n / (quick * n_original) for slow, quick in gains)
    rate = {name: n / statistics.median(times) for name, times in seconds.items()}
    rate["original"] *= n_original / n
    precision, load = ours.fabric.strategy.precision.precision, os.getloadavg()[0]
    print(
        f"{config.backbone} at {config.image_size} px, batch {config.batch_size}, {target}, {precision}, "
        f"{torch.get_num_threads()} threads, {loader.loader.num_workers} workers\n"
        f"{rounds} rounds of {n} photographs; load average {load:.1f} on {os.cpu_count()} cores"
    )
    wait = statistics.median(waited)
    print(f"plainest loop        {rate['plain']:8.1f} photographs/s")
    print(f"this loop            {rate['loop']:8.1f} photographs/s   overhead {overhead:+.1%}")
    print(f"with its loader      {rate['whole']:8.1f} photographs/s   waits for the loader {wait:.1%} of the time")
    print(f"the original's way   {rate['original']:8.1f} photographs/s   this is {gain:.2f} times as fast")


if __name__ == "__main__":
    main()

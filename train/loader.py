"""Data loaders whose worker processes end when the training process does."""

from __future__ import annotations

import atexit
import os
import signal
from functools import partial
from multiprocessing import RawValue
from typing import Any

from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Dataset

from .config import TrainConfig
from .data import Batch, EvalItems, collate


def make_loader(items: Dataset[Any], workers: int, fabric: Fabric, **kwargs: Any) -> DataLoader[Batch]:
    exiting = RawValue("b", 0)  # in memory shared with the workers
    atexit.register(setattr, exiting, "value", 1)
    return DataLoader(
        items,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=fabric.device.type == "cuda",
        collate_fn=collate,
        worker_init_fn=partial(_begin_worker, os.getpid(), exiting),
        **kwargs,
    )


def _begin_worker(parent: int, exiting: Any, _worker: int) -> None:
    # PyTorch's watchdog starts after this and watches the parent at that time: if the real one was killed before, the
    # worker would wait forever.
    if os.getppid() != parent:
        os._exit(1)
    # A terminal sends Ctrl-C to the whole process group, but the parent needs its workers until the end of the step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Likewise systemd, Slurm and timeout send SIGTERM to all processes. At its exit the parent sends it too, and would
    # wait forever for a worker that ignores it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1) if exiting.value else None)


def eval_loader(items: EvalItems, config: TrainConfig, fabric: Fabric) -> DataLoader[Batch]:
    """One device's share of a split: photographs rank, rank + world, ..."""
    share = range(fabric.global_rank, len(items), fabric.world_size)
    return make_loader(items, 0, fabric, batch_size=config.batch_size, sampler=share)

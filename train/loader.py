"""Data loaders whose worker processes end when the training process does."""

from __future__ import annotations

import atexit
import math
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from multiprocessing import Lock, RawValue
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Dataset

from ..runtime.errors import OutputError
from ..runtime.output_file import require_free
from ..runtime.workers import ordered_map, usable_cores
from .config import TrainConfig
from .hangup import hangup
from .items import Batch, EpochPlan, EvalItems, TrainItems, collate

MOST_WORKERS = 16
"""As many are started at most if not asked for. At 512 px one core of a 2-core CPU augments about 14 photographs
a second (``cameras``); an H200 trains on 400."""

READY_BATCHES = 2
"""Batches that each worker loads ahead: PyTorch's default."""
READY_PHOTOGRAPHS = 8
"""Photographs that each thread loads ahead for evaluation: float32, so 3 MB each at 512 px."""
SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps the memory in which workers hand over what they loaded."""


def workers_for(asked: int | None, device: str, devices_here: int, cores: int) -> int:
    """Processes that load the training photographs of one device.

    Args:
        asked: ``TrainConfig.workers``; None: one beside a CPU, which does the training, and for a GPU an equal share
            of the cores, at most ``MOST_WORKERS``, because a GPU trains faster than one core augments.
        device: torch's type of device, such as ``cuda``.
        devices_here: devices of this machine that train together.
        cores: cores that this process may use.
    """
    if asked is not None:
        return asked
    return 1 if device == "cpu" else max(1, min(MOST_WORKERS, cores // devices_here))


def require_shared_memory(config: TrainConfig, fabric: Fabric) -> None:
    """Check before any work that the processes that load photographs can hand them over.

    If they cannot, PyTorch waits for them forever.

    Raises:
        OutputError: shared memory cannot be written or is too small; a container of Docker has 64 MB unless told
            otherwise.
    """
    workers = _workers(config, fabric)
    if not workers or sys.platform != "linux":
        return
    # Each worker's batches that are ready, the one that is trained on and the next, of uint8 pixels.
    batches = _devices_here() * (workers * READY_BATCHES + 2)
    needed = batches * config.batch_size * 3 * config.image_size**2
    remedy = ". Give it more (docker run --shm-size), use fewer --workers or none: --workers 0"
    try:
        RawValue("b", 0)
        Lock()
        require_free(SHARED_MEMORY, needed, f"shared memory for what {workers} workers load", remedy)
    except OSError as err:
        raise OutputError(f"{SHARED_MEMORY}: expected shared memory, found: {err.strerror}{remedy}") from None


def make_loader(items: Dataset[Any], workers: int, fabric: Fabric, **kwargs: Any) -> DataLoader[Batch]:
    """A loader of micro-batches whose worker processes end with this one, and never before their last batch.

    Args:
        items: what is loaded.
        workers: processes that load; 0: this one.
        fabric: whose device the batches are for.
        kwargs: passed on to ``DataLoader``.
    """
    exiting = None
    if workers:
        exiting = RawValue("b", 0)  # in memory shared with the workers
        atexit.register(setattr, exiting, "value", 1)
    return DataLoader(
        items,
        num_workers=workers,
        # Python 3.14's default here, forkserver, would copy photographs kept in memory to each worker, and make another
        # process than this one its parent.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        persistent_workers=workers > 0,
        prefetch_factor=READY_BATCHES if workers else None,
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
    # A terminal sends Ctrl-C, and SIGHUP at its end, to the whole process group, but the parent needs its workers until
    # the end of the step.
    for number in (signal.SIGINT, *hangup()):
        signal.signal(number, signal.SIG_IGN)
    # Likewise systemd, Slurm and timeout send SIGTERM to all processes. At its exit the parent sends it too, and would
    # wait forever for a worker that ignores it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1) if exiting.value else None)


def train_loader(items: TrainItems, plan: EpochPlan, config: TrainConfig, fabric: Fabric) -> DataLoader[Batch]:
    """One device's micro-batches of each epoch, augmented."""
    return make_loader(items, _workers(config, fabric), fabric, batch_sampler=plan)


class EvalBatches:
    """A split's photographs in batches, for one device of several: photographs rank, rank + world, ...

    With ``threads``, they are loaded while the network works. Unlike processes these need no shared memory, and
    decoding, framing and reading a mapped file leave Python to other threads anyway.
    """

    def __init__(self, items: EvalItems, batch_size: int, rank: int = 0, world: int = 1, threads: int = 0) -> None:
        self.items, self.batch_size, self.threads = items, batch_size, threads
        self.share = range(rank, len(items), world)

    def __len__(self) -> int:
        return math.ceil(len(self.share) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        load, share = self.items.__getitem__, self.share
        loaded = ordered_map(load, share, self.threads, READY_PHOTOGRAPHS) if self.threads else map(load, share)
        while batch := list(islice(loaded, self.batch_size)):
            yield collate(batch)


def eval_loader(items: EvalItems, config: TrainConfig, fabric: Fabric) -> EvalBatches:
    """One device's share of a split.

    A CPU loads no photographs beside the network, which would have to wait for the core.
    """
    threads = 0 if fabric.device.type == "cpu" else _workers(config, fabric)
    return EvalBatches(items, config.batch_size, fabric.global_rank, fabric.world_size, threads)


def _workers(config: TrainConfig, fabric: Fabric) -> int:
    return workers_for(config.workers, fabric.device.type, _devices_here(), usable_cores())


def _devices_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

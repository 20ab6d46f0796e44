"""The device that a run trains on."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from ..runtime.errors import UsageError

FABRIC_NAMES = {"bf16": "bf16-mixed", "fp32": "32-true"}
"""Fabric's names of the precisions."""


def make_fabric(device: str, precision: str) -> Fabric:
    """Lightning Fabric for this device, or for the process group that ``torchrun`` started.

    Args:
        device: as ``pick_device`` returns it.
        precision: ``fp32``, ``bf16``, ``auto`` for bf16 where it is faster, or as Fabric names it.

    Raises:
        UsageError: another precision.
    """
    accelerator = device.split(":", maxsplit=1)[0]
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices: Any = local if ":" not in device else [int(device.split(":")[1])]
    if precision == "auto":
        precision = "bf16" if bf16_is_faster(accelerator) else "fp32"
    precision = FABRIC_NAMES.get(precision, precision)
    if precision not in FABRIC_NAMES.values():
        raise UsageError(f"precision: expected one of auto, {', '.join(FABRIC_NAMES)}, found {precision}")
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=max(world // local, 1),
        # Each device keeps the batch-norm statistics of its own share; ``Trainer`` averages them.
        strategy=DDPStrategy(broadcast_buffers=False) if world > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    # PyTorch's default, True, computes convolutions with a mantissa of 10 bits, but fp32 is promised.
    torch.backends.cudnn.allow_tf32 = False
    return fabric


def pick_device(asked: str) -> str:
    """Check a device's name, and resolve ``auto`` to the best device of this machine: cuda, else mps, else cpu.

    Raises:
        UsageError: this machine does not have the device.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, here in have.items() if here)
    here = ["auto", *(name for name, is_here in have.items() if is_here)]
    here += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if asked not in here:
        raise UsageError(f"--device {asked}: expected one of {', '.join(here)} on this machine")
    return asked


def bf16_is_faster(accelerator: str) -> bool:
    """Whether bfloat16 runs in hardware: on a CPU with AVX512-BF16 or AMX, on CUDA from Ampere on.

    On the CPU measured in docs/training.md ("Precision") it is 2.7 times as fast as float32.
    """
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False

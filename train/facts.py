"""The circumstances of a run, and the check that they are the same when it is resumed."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import torch
from lightning_fabric import Fabric

from ..runtime.contract import Head
from ..runtime.errors import UsageError
from .checkpoint import current_versions
from .leakage import unnamed_patients
from .run import Run
from .survey import Survey


def run_facts(survey: Survey, fabric: Fabric, dr_weights: torch.Tensor, untrained: Sequence[Head]) -> dict[str, Any]:
    """What a run records beside its options: data, class balance, machine, versions; JSON values only."""
    counts = {
        name: {
            "photographs": len(split.photos),
            "dr_grades": {str(g): sum(p.dr_grade == g for p in split.photos) for g in survey.data.dr_grades},
            "me_risk": sum(p.me_label == 1 for p in split.photos),
            "without_dr_grade": sum(p.dr_grade is None for p in split.photos),
            "without_me_label": sum(p.me_label is None for p in split.photos),
        }
        for name, split in survey.data.splits.items()
    }
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "data_fingerprint": survey.fingerprint,
        "train_order": survey.train_order,
        "dr_grades": list(survey.data.dr_grades),
        "counts": counts,
        "dr_class_weights": [round(float(weight), 6) for weight in dr_weights],
        "untrained_heads": list(untrained),
        "unnamed_patients": unnamed_patients(survey.data),
        "leaks": [str(leak) for leak in survey.leaks],
        "device": str(fabric.device),
        "devices": fabric.world_size,
        "precision": str(fabric.strategy.precision.precision),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": current_versions(),
        "git_commit": _git_commit(),
    }


def check_same(facts: Mapping[str, Any], run: Run, survey: Survey, fabric: Fabric) -> None:
    """Refuse to resume a run with another number of devices, other data, or data in another order.

    Raises:
        UsageError: one of them differs from the ``facts`` that the run recorded when it began.
    """
    if facts["devices"] != fabric.world_size:
        raise UsageError(
            f"{run.folder}: expected {facts['devices']} devices as the run began, found {fabric.world_size}: another "
            "number would make other batches. Resume on as many (torchrun --nproc-per-node), or start a new run."
        )
    before = facts["data_fingerprint"]
    if before != survey.fingerprint:
        raise UsageError(
            f"{run.folder}: expected the photographs and labels the run was started with (fingerprint {before[:12]}), "
            f"found others ({survey.fingerprint[:12]}). Restore them, or start a new run without --resume."
        )
    if facts.get("train_order", survey.train_order) != survey.train_order:
        raise UsageError(
            f"{run.folder}: expected the training photographs under the names that they had when the run was started, "
            "found others: what an epoch has already drawn follows their order. Rename them back, or start a new run "
            "without --resume."
        )


def _git_commit() -> str:
    """The commit checked out in the working directory, where an experiment's own code would be; empty without one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

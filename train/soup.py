"""The mean of the weights of several networks whose training started from the same one.

Wortsman et al. 2022 ("Model soups"): networks fine-tuned from the same start lie in one basin of the loss, and the mean
of their weights does as well as an ensemble of them, at the cost of one network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..runtime.contract import HEADS
from ..runtime.errors import UsageError
from ..runtime.progress import tracked
from .checkpoint import Checkpoint, current_versions
from .data import DataSet, fingerprint_of_files
from .frames import DecodedFrames
from .framing import Normalize
from .items import EvalItems
from .loader import EvalBatches
from .metrics import evaluate
from .screening import sensitivity_key


def average(branches: Sequence[tuple[str, Checkpoint]]) -> Checkpoint:
    """The checkpoint whose weights and batch-norm statistics are the unweighted mean of the branches'.

    Args:
        branches: the name for messages and the checkpoint of each; decision rules and config are taken from the first.
            One that is listed twice counts twice. They may have been trained on squares of different sizes: the mean is
            for the first one's.

    Returns:
        a checkpoint without metrics. It still has to be calibrated, because each branch's own scalings are folded
        into the weights that are averaged. Its provenance names their runs.

    Raises:
        UsageError: the branches differ in backbone, grades, framing, training data or ``me_positive_from``, started
            from different random weights, or one does not say what it was trained on.
    """
    (start, first), *_ = branches
    for name, other in branches:
        if not other.contract.data_fingerprint:
            raise UsageError(f"{name}: expected a checkpoint that names the data it was trained on, found bare weights")
        for what, expected, found in zip(_COMPATIBILITY, _compatibility(first), _compatibility(other), strict=True):
            if expected != found:
                raise UsageError(f"{name}: expected {what} of {start}, {expected}, found {found}: no mean of these")
    runs = [checkpoint.contract.provenance.get("run", name) for name, checkpoint in branches]
    runs = [f"({run})" if ", " in run else run for run in runs]
    provenance: dict[str, Any] = {
        "run": "mean of " + ", ".join(runs),
        "data_fingerprint": first.contract.data_fingerprint,
    }
    if untrained := [head for head in HEADS if any(head in one.contract.untrained_heads for _, one in branches)]:
        provenance["untrained_heads"] = untrained
    of_first = first.contract.provenance
    provenance |= {key: of_first[key] for key in map(sensitivity_key, HEADS) if key in of_first}
    cautions = dict.fromkeys(one.contract.added_caution for _, one in branches if one.contract.added_caution)
    return replace(
        first,
        weights={name: _mean([checkpoint.weights[name] for _, checkpoint in branches]) for name in first.weights},
        contract=replace(first.contract, provenance=provenance, added_caution=" ".join(cautions)),
        metrics={},
        epoch=None,
        versions=current_versions(),
    )


_COMPATIBILITY = (
    "the backbone",
    "the DR grades",
    "the framing",
    "the training data",
    "--me-positive-from",
    "the start",
)


def _compatibility(checkpoint: Checkpoint) -> tuple[object, ...]:
    contract = checkpoint.contract
    trained_on = contract.data_fingerprint  # with other data, photographs of this valid split might be among them
    config = checkpoint.config
    positive_from = config.get("me_positive_from")
    prep = contract.preprocessing
    framing = f"{prep.framing} with the surround {prep.surround}"
    start = f"random weights of seed {config.get('seed')}" if config.get("weights") == "none" else "trained weights"
    return checkpoint.backbone, contract.dr_grades, framing, trained_on, positive_from, start


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():  # batch-norm's count of batches, which evaluation does not use
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0).to(tensors[0].dtype)


@torch.inference_mode()
def predict_logits(checkpoint: Checkpoint, items: EvalItems) -> tuple[Tensor, Tensor]:
    """Logits of the DR grades (N, K) and of the ME risk (N, 2), float32, for a split in its order; runs on the CPU."""
    prep = checkpoint.contract.preprocessing
    normalize, net = Normalize(prep.mean, prep.std), checkpoint.build_model().to(memory_format=torch.channels_last)
    images = (normalize(batch.image) for batch in tracked(EvalBatches(items, 16), "Evaluating"))
    rows = [net(image.contiguous(memory_format=torch.channels_last)) for image in images]
    dr, me = zip(*rows, strict=True)
    return torch.cat(dr), torch.cat(me)


def evaluate_checkpoint(checkpoint: Checkpoint, items: EvalItems) -> dict[str, Any]:
    """All metrics on a split (``metrics.evaluate``), by the checkpoint's own decision rules."""
    return evaluate(items.predictions(*predict_logits(checkpoint, items)), checkpoint.contract)


def items_of(checkpoint: Checkpoint, data: DataSet, split: str) -> EvalItems:
    """A split's photographs, framed as the checkpoint's contract says."""
    contract = checkpoint.contract
    graded = replace(data, dr_grades=contract.dr_grades)  # it may know grades that the data lack
    return EvalItems(graded, split, DecodedFrames(data.splits[split].paths, contract.preprocessing))


def require_same_data(data: DataSet, mean: Checkpoint) -> None:
    """Refuse other data: photographs of its valid split might be among those that the branches were trained on.

    Raises:
        UsageError: they are others.
        AnnotationError: see ``fingerprint_of_files``.
    """
    expected = mean.contract.data_fingerprint
    found = fingerprint_of_files(data)
    if found != expected:
        raise UsageError(
            f"{data.root}: expected the photographs and labels that the checkpoints were trained on (fingerprint "
            f"{expected[:12]}), found others ({found[:12]})"
        )

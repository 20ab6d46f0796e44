"""The checkpoint that training starts from, if its heads are kept too."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..runtime.contract import HEADS, Contract, Head, default_thresholds
from ..runtime.errors import ModelFileError
from .checkpoint import Checkpoint, has_heads, parse_checkpoint
from .config import TrainConfig
from .data import DataSet, unknown_grades
from .model import RetinaNet, load_backbone_weights, read_state_dict
from .screening import sensitivity_key


def open_start(backbone: str, weights: str) -> Checkpoint | None:
    """Read the starting weights, to find their faults before anything else is done.

    Args:
        backbone: torchvision's name of the network.
        weights: ``imagenet``, ``none`` or a file.

    Returns:
        a checkpoint of this project or of the original notebook; None for weights of a backbone alone, and for none.
        Weights that torchvision downloads are then on this machine.

    Raises:
        UsageError: torchvision could not download the weights for ``imagenet``.
        ModelFileError: the file cannot be read, is of another network, or holds weights that are not finite.
    """
    if weights not in ("imagenet", "none"):
        body = read_state_dict(Path(weights))
        if has_heads(body):
            start = parse_checkpoint(Path(weights), body)
            if start.backbone != backbone:
                raise ModelFileError(
                    f"{weights}: expected a checkpoint of {backbone} to start from, found one of {start.backbone}. "
                    "Choose that --backbone, or start from a torchvision state_dict."
                )
            return start
    load_backbone_weights(RetinaNet(1, backbone), backbone, weights)
    return None


def grades_of_start(start: Checkpoint | None) -> tuple[int, ...]:
    """The DR grades of the starting checkpoint; none if there is no checkpoint, or one that does not say."""
    return () if start is None or start.is_bare else start.contract.dr_grades


def grades_of_network(start: Checkpoint | None, weights: str, data: DataSet) -> tuple[int, ...]:
    """The DR grades of the network: those of the data, or of the starting checkpoint if it has these and others.

    Of a bare state_dict, only the number of grades is known, which must be that of the data. For data without any, all
    grades of the scale, or those of the checkpoint.

    Raises:
        ModelFileError: the checkpoint lacks a grade of the data.
    """
    of_data = data.dr_grades
    if start is None:
        return of_data or Contract().dr_grades
    known = start.contract.dr_grades
    if not of_data:  # train has none, but valid and test may
        photos = [photo for split in data.splits.values() for photo in split.photos]
        if unknown := unknown_grades(photos, known):
            raise ModelFileError(
                f"{weights}: expected a checkpoint with the DR grades {unknown} of valid and test to start from, found "
                f"{list(known)}. Start from a torchvision state_dict, or leave those photographs out."
            )
        return known
    if start.is_bare and len(known) == len(of_data):
        return of_data
    if start.is_bare or not set(of_data) <= set(known):
        raise ModelFileError(
            f"{weights}: expected a checkpoint with the DR grades {list(of_data)} of the data to start from, "
            f"found {f'{len(known)} of them' if start.is_bare else list(known)}. Start from a torchvision state_dict."
        )
    return known


def start_notes(
    start: Checkpoint | None, config: TrainConfig, of_data: tuple[int, ...], heads: Collection[Head]
) -> list[str]:
    """What a user should know who goes on from a checkpoint: how this run differs from the one that made it.

    Args:
        start: the checkpoint; None: there is nothing to say.
        config: the run's options.
        of_data: the DR grades in train.
        heads: those that are trained.
    """
    if start is None:
        return []
    prep, notes = start.contract.preprocessing, []
    if not start.is_bare and (config.framing, config.image_size) != (prep.framing, prep.image_size):
        notes.append(
            f"{config.weights} was trained with --framing {prep.framing} --image-size {prep.image_size}; this run has "
            f"{config.framing} and {config.image_size}, for which its features are not made."
        )
    if start.contract.thresholds != default_thresholds() and config.calibrate == "none":
        rules = start.contract.thresholds
        referral = ", ".join(f"{head.upper()} {rules[f'referable_{head}'].level:.3f}" for head in HEADS)
        notes.append(
            f"{config.weights} has referral thresholds fitted to it ({referral}); this run will have 0.5. To fit new "
            "ones on valid:  --calibrate valid"
        )
    if config.calibrate == "valid":
        notes += [
            f"{config.weights} was fitted for a sensitivity of {before:g} in {head.upper()} referral; this run has "
            f"--sensitivity {config.sensitivity:g}."
            for head in heads
            if (before := start.contract.provenance.get(sensitivity_key(head))) not in (None, config.sensitivity)
        ]
    notes += [
        f"The {head.upper()} head stays that of {config.weights} while the features that it reads change: measure it "
        "again before you use it."
        for head in HEADS
        if head not in heads and head not in start.contract.untrained_heads
    ]
    missing = sorted(set(start.contract.dr_grades) - set(of_data))
    if "dr" in heads and missing:
        notes.append(
            f"No DR grade {', '.join(map(str, missing))} in train: the network can still predict it, but forgets when "
            "to predict it, and data without it cannot show how much. Add photographs of it to train and valid."
        )
    return notes

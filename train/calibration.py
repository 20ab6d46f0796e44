"""Calibration of a trained network on photographs that it was not trained on."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..runtime.contract import Contract
from .checkpoint import Checkpoint
from .data import DataSet, EvalItems
from .loop import as_predictions
from .screening import screening_rules
from .temperature import LIMITS, fit_temperature, scale_head


def calibration_faults(data: DataSet, contract: Contract) -> list[str]:
    """What the valid split lacks for calibration, one line each, so that a command can refuse before its work."""
    valid, referable = data.splits["valid"], contract.referable_from
    is_there = {
        "ME risk": any(photo.me_label for photo in valid.photos),
        f"DR grade of {referable} or more": any((photo.dr_grade or 0) >= referable for photo in valid.photos),
    }
    return [
        f"{valid.annotations}: expected photographs with {what} to calibrate on, found none"
        for what, found in is_there.items()
        if not found
    ]


def is_calibrated(contract: Contract) -> bool:
    """Whether the contract is that of a checkpoint made by ``calibrated``."""
    return "dr_temperature" in contract.provenance


def calibrated(best: Checkpoint, items: EvalItems, dr_logits: torch.Tensor, me_logits: torch.Tensor) -> Checkpoint:
    """The checkpoint with a temperature folded into each head, and referral thresholds for screening.

    See ``fit_temperature`` and ``screening_rules``. The temperatures are also recorded in the provenance.

    Args:
        best: the checkpoint.
        items: N photographs that it was not trained on: valid.
        dr_logits: (N, K) float32, its DR logits for them.
        me_logits: (N, 2) float32, its ME logits for them.

    Raises:
        UsageError: no photograph among ``items`` has referable DR, or none has ME risk.
    """
    raw = as_predictions(items, dr_logits, me_logits)
    dr_temperature = fit_temperature(dr_logits, torch.from_numpy(raw.dr_true))
    me_temperature = fit_temperature(me_logits, torch.from_numpy(raw.me_true))
    weights = scale_head(scale_head(best.weights, "dr_head", dr_temperature), "me_head", me_temperature)
    p = as_predictions(items, dr_logits / dr_temperature, me_logits / me_temperature)
    contract = best.contract.with_(
        thresholds=screening_rules(best.contract, p),
        provenance={
            **best.contract.provenance, "dr_temperature": dr_temperature, "me_temperature": me_temperature
        },
    )  # fmt: skip
    return replace(best, weights=weights, contract=contract)


def calibration_line(best: Checkpoint) -> str:
    """The temperatures and thresholds that ``calibrated`` found, as text."""
    facts, rules = best.contract.provenance, best.contract.thresholds
    return (
        f"temperatures DR {_in_words(facts['dr_temperature'])}, ME {_in_words(facts['me_temperature'])}; referral from "
        f"DR {rules['referable_dr'].threshold:.3f}, ME {rules['referable_me'].threshold:.3f}"
    )


def _in_words(temperature: float) -> str:
    limit = {LIMITS[0]: " (the lowest allowed)", LIMITS[1]: " (the highest allowed: the answers say almost nothing)"}
    return f"{temperature:.3f}{limit.get(temperature, '')}"

"""Calibration of a trained network on photographs that it was not trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..runtime.contract import HEADS, Contract, Head
from ..runtime.weighted_metrics import Indices
from .checkpoint import Checkpoint
from .data import DataSet
from .items import EvalItems
from .scaling import LIMITS, Scaling, fit_scaling
from .screening import heads_to_screen, screening_rules, sensitivity_key, sensitivity_of

BIAS_SD: Mapping[Head, float] = {"dr": 0.12, "me": 0.0}
"""``bias_sd`` of ``fit_scaling``, by cross-validation on valid: docs/recipe.md, "Calibration"."""
_DECIMALS = 6
"""Of a bias, so that the provenance says exactly what a file computes with, and a person can read it."""


def heads_to_calibrate(data: DataSet, contract: Contract, asked: Collection[Head] = HEADS) -> tuple[Head, ...]:
    """Those of the heads asked for that were trained and for which the valid split has labels."""
    found = [head for head, _, _ in _conditions(data, contract, asked)]
    return tuple(head for head in HEADS if head in found)


def calibration_faults(data: DataSet, contract: Contract, asked: Collection[Head] = HEADS) -> list[str]:
    """What the valid split lacks for calibration, one line each, so that a command can refuse before its work.

    A head for which it has no labels at all, or which was never trained, is not calibrated, which is no fault.
    """
    return [
        f"{data.splits['valid'].annotations}: expected photographs with {what} to calibrate on, found none"
        for _, what, found in _conditions(data, contract, asked)
        if not any(found)
    ]


def calibration_notes(data: DataSet, contract: Contract, asked: Collection[Head] = HEADS) -> list[str]:
    """What a user should know about a valid split to calibrate on that has no faults, as lines of text."""
    return [
        f"Warning: {data.splits['valid'].annotations}: every photograph has {what}; the {head.upper()} referral "
        f"threshold stays {contract.thresholds[f'referable_{head}'].level:.3f}, as it is fitted to those without too"
        for head, what, found in _conditions(data, contract, asked)
        if all(found)
    ]


def _conditions(data: DataSet, contract: Contract, asked: Collection[Head]) -> list[tuple[Head, str, list[bool]]]:
    """The heads asked for that are calibrated, what each refers for, and which photographs of valid have that."""
    valid, referable = data.splits["valid"], contract.referable_from
    has_dr = [photo.dr_grade >= referable for photo in valid.photos if photo.dr_grade is not None]
    has_me = [photo.me_label == 1 for photo in valid.photos if photo.me_label is not None]
    conditions: list[tuple[Head, str, list[bool]]] = [
        ("me", "ME risk", has_me),
        ("dr", f"DR grade of {referable} or more", has_dr),
    ]
    return [each for each in conditions if each[2] and each[0] in asked and each[0] not in contract.untrained_heads]


def is_calibrated(contract: Contract) -> bool:
    """Whether the contract is that of a checkpoint made by ``calibrated``."""
    return any(_temperature_key(head) in contract.provenance for head in HEADS)


def calibrated(best: Checkpoint, items: EvalItems, dr_logits: torch.Tensor, me_logits: torch.Tensor) -> Checkpoint:
    """The checkpoint with a scaling folded into each head, and referral thresholds for screening.

    See ``fit_scaling`` and ``screening_rules``. The scalings are also recorded in the provenance, and the sensitivity,
    which is that of the checkpoint's options or, if it has none, of its provenance. A head for which no photograph has
    a label, or which was never trained, stays as it is.

    Args:
        best: the checkpoint.
        items: N photographs that it was not trained on: valid.
        dr_logits: (N, K) float32, its DR logits for them.
        me_logits: (N, 2) float32, its ME logits for them.

    Raises:
        UsageError: ``items`` have DR grades but none is referable, or ME labels but no risk.
    """
    raw = items.predictions(dr_logits, me_logits).without_labels(best.contract.untrained_heads)
    weights = best.weights
    logits: dict[Head, torch.Tensor] = {"dr": dr_logits, "me": me_logits}
    scalings = {head: fit_head(head, logits[head], raw.true(head)) for head in raw.labelled_heads}
    for head, scaling in scalings.items():
        weights, logits[head] = scaling.folded(weights, f"{head}_head"), scaling(logits[head])
    p = items.predictions(logits["dr"], logits["me"])
    sensitivities = {
        head: float(best.config.get("sensitivity", sensitivity_of(best.contract, head)))
        for head in heads_to_screen(best.contract, p)
    }
    contract = recorded(best.contract, scalings, sensitivities)
    contract = replace(contract, thresholds=screening_rules(contract, p))
    return replace(best, weights=weights, contract=contract)


def fit_head(head: Head, logits: torch.Tensor, true: Indices) -> Scaling:
    """The scaling that calibrates a head, as ``recorded`` writes it.

    Args:
        head: whose ``BIAS_SD`` is used.
        logits: (N, K) of photographs that were not trained on.
        true: (N,), their classes, or ``UNLABELLED``.
    """
    scaling = fit_scaling(logits, torch.from_numpy(true), BIAS_SD[head])
    return replace(scaling, bias=torch.tensor(_rounded(scaling.bias)))


def recorded(contract: Contract, scalings: Mapping[Head, Scaling], sensitivities: Mapping[Head, float]) -> Contract:
    """The contract with these heads' scalings and sensitivities in place of those that its provenance records."""
    facts: dict[str, Any] = dict(contract.provenance)
    for head, scaling in scalings.items():
        for key in (_temperature_key(head), _bias_key(head)):
            facts.pop(key, None)
        facts[_temperature_key(head)] = scaling.temperature
        if BIAS_SD[head] > 0:
            facts[_bias_key(head)] = _rounded(scaling.bias)
    facts |= {sensitivity_key(head): sensitivity for head, sensitivity in sensitivities.items()}
    return replace(contract, provenance=facts)


def scaling_of(contract: Contract, head: Head) -> Scaling:
    """What a head was calibrated with, as ``recorded``; if it was not, a scaling that changes nothing."""
    facts = contract.provenance
    none = [0.0] * len(contract.classes(head))
    bias = torch.tensor(facts.get(_bias_key(head), none), dtype=torch.float32)
    return Scaling(float(facts.get(_temperature_key(head), 1.0)), bias)


def calibration_line(
    contract: Contract, fitted: Collection[Head] | None = None, asked: Collection[Head] = HEADS
) -> str:
    """The scalings and thresholds that were found, as text, with a warning if one refers everybody.

    Args:
        contract: records them.
        fitted: the heads that they were found for; None: those that the contract records any for.
        asked: the heads that they were asked for; of those without, it says why.
    """
    facts, rules = contract.provenance, contract.thresholds
    fitted = [head for head in HEADS if (_temperature_key(head) in facts if fitted is None else head in fitted)]
    temperatures = ", ".join(f"{head.upper()} {_in_words(facts[_temperature_key(head)])}" for head in fitted)
    biases = ", ".join(
        f"{head.upper()} {' '.join(f'{value:+.3f}' for value in facts[_bias_key(head)])}"
        for head in fitted
        if _bias_key(head) in facts
    )
    referral = ", ".join(
        f"{head.upper()} {rules[f'referable_{head}'].threshold:.3f}"
        + (f" (sensitivity {facts[sensitivity_key(head)]:g})" if sensitivity_key(head) in facts else "")
        for head in fitted
    )
    others = without_scaling(contract, [head for head in asked if head not in fitted])
    everybody = " and ".join(head.upper() for head in fitted if rules[f"referable_{head}"].threshold == 0.0)
    warning = (
        f". Warning: everybody will be referred for {everybody}, because more photographs with the condition than may "
        "be missed have a probability of 0, or nearly"
    )
    biases = f"; biases {biases}" if biases else ""
    return f"temperatures {temperatures}{biases}; referral from {referral}{others}{warning if everybody else ''}"


def without_scaling(contract: Contract, heads: Collection[Head]) -> str:
    """That these heads were not calibrated on a split, and why, as the end of a line about it."""
    why = dict.fromkeys(HEADS, "for which it has no labels")
    why |= dict.fromkeys(contract.untrained_heads, "which was never trained")
    return "".join(f"; not {head.upper()}, {why[head]}" for head in heads)


def _rounded(bias: torch.Tensor) -> list[float]:
    return [round(value, _DECIMALS) for value in bias.tolist()]


def _temperature_key(head: Head) -> str:
    """Under which the provenance records the head's temperature."""
    return f"{head}_temperature"


def _bias_key(head: Head) -> str:
    """Under which the provenance records the head's biases, if any were fitted."""
    return f"{head}_bias"


def _in_words(temperature: float) -> str:
    limit = {LIMITS[0]: " (the lowest allowed)", LIMITS[1]: " (the highest allowed: the answers say almost nothing)"}
    return f"{temperature:.3f}{limit.get(temperature, '')}"

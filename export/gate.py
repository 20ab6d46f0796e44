"""The accuracy gate: whether int8 is as good as fp32 on the labels of the validation split."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..runtime.contract import HEAD_NAMES, Contract
from ..train.metrics import accuracy, auc
from ..train.predictions import Decisions, Predictions

ACCURACY_LOSS = 0.005
"""Largest accepted fall of either head's accuracy: half a percentage point."""
AUC_LOSS = 0.005
"""Largest accepted fall of the AUC of referable DR and of ME risk."""
AGREEMENT = 0.98
"""Smallest accepted share of photographs with the same DR grade, and with the same ME risk."""
_ROUNDING = 1e-9
"""Of two shares and their difference: 0.9 - 0.895 is more than 0.005 in floating point."""
_TOO_FEW = (
    f"  too few photographs to judge by: one answer that changes is more than the {1 - AGREEMENT:.0%} that may; take "
    f"{1 / (1 - AGREEMENT):.0f} or more"
)


@dataclass(frozen=True)
class Quality:
    """Metrics of one file on labelled photographs, each in [0, 1].

    None if no photograph has the label, or if the head was never trained.
    """

    dr_accuracy: float | None
    me_accuracy: float | None
    referable_auc: float | None
    """None too if the labels have only one class."""
    me_auc: float | None
    """None too if the labels have only one class."""


@dataclass(frozen=True)
class Gate:
    """int8 compared with fp32 on the same photographs."""

    photographs: int
    """Their number."""
    fp32: Quality
    int8: Quality
    dr_agreement: float | None
    me_agreement: float | None
    """Share of photographs with the same DR grade, and with the same ME risk, in [0, 1]; None if the head was never
    trained, so that its answers fall either way."""

    @property
    def faults(self) -> list[str]:
        """Where int8 falls short, one line each; empty if it is accepted."""
        faults = []
        for name, allowed in (
            ("dr_accuracy", ACCURACY_LOSS), ("me_accuracy", ACCURACY_LOSS),
            ("referable_auc", AUC_LOSS), ("me_auc", AUC_LOSS),
        ):  # fmt: skip
            before, after = getattr(self.fp32, name), getattr(self.int8, name)
            if before is not None and before - after > allowed + _ROUNDING:
                faults.append(f"{name}: expected a fall of at most {allowed}, found {before:.4f} to {after:.4f}")
        for name in ("dr_agreement", "me_agreement"):
            agreement = getattr(self, name)
            if agreement is not None and agreement < AGREEMENT:
                faults.append(f"{name}: expected at least {AGREEMENT}, found {agreement:.4f}")
        return faults

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "accepted": not self.faults}

    def lines(self) -> list[str]:
        """The figures as lines to print."""
        pairs = [(name, getattr(self.fp32, name), getattr(self.int8, name)) for name in asdict(self.fp32)]
        shown = [f"{name} {before:.4f} to {after:.4f}" for name, before, after in pairs if before is not None]
        few = self.photographs * (1 - AGREEMENT) < 1 - _ROUNDING
        same = {HEAD_NAMES["dr"]: self.dr_agreement, HEAD_NAMES["me"]: self.me_agreement}
        return [
            f"int8 against fp32 on {self.photographs} photographs of valid:",
            f"  {', '.join(shown)}",
            "  " + ", ".join(f"same {what} {share:.1%}" for what, share in same.items() if share is not None),
            *([_TOO_FEW] if few and any(share is not None and share < AGREEMENT for share in same.values()) else []),
        ]


def compare(contract: Contract, fp32: Predictions, int8: Predictions) -> Gate:
    """Compare two files' decisions, by the contract's rules, with each other and with the labels.

    Both predictions must be for the same photographs, in the same order.
    """
    # What a head says that was never trained is compared with nothing.
    fp32, int8 = (p.without_labels(contract.untrained_heads) for p in (fp32, int8))
    before, after = Decisions.of(fp32, contract), Decisions.of(int8, contract)
    return Gate(
        len(fp32.paths),
        _quality(fp32, before),
        _quality(int8, after),
        None if "dr" in contract.untrained_heads else float(np.mean(before.dr_pred == after.dr_pred)),
        None if "me" in contract.untrained_heads else float(np.mean(before.me_pred == after.me_pred)),
    )


def _quality(p: Predictions, decisions: Decisions) -> Quality:
    return Quality(
        _if_defined(accuracy(p.dr_true, decisions.dr_pred)),
        _if_defined(accuracy(p.me_true, decisions.me_pred)),
        _if_defined(auc(decisions.referable_true, decisions.referable_prob)),
        _if_defined(auc(p.me_true, p.me_probs[:, 1])),
    )


def _if_defined(figure: float) -> float | None:
    return None if math.isnan(figure) else figure

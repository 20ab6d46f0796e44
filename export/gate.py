"""Whether int8 is as good as fp32 where it counts: on the validation split's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ..runtime.contract import Contract, Decision, decide
from ..train.data import Photo

ACCURACY_LOSS = 0.005
"""Largest fall of either head's accuracy: half a point."""
AUC_LOSS = 0.005
"""Largest fall of the AUC of referable DR and of ME risk."""
AGREEMENT = 0.98
"""Smallest share of photographs with the same DR grade, and with the same ME risk."""


@dataclass(frozen=True)
class Answers:
    """One file's probabilities for some photographs, in their order."""

    dr_probs: NDArray[np.float32]
    """(N, K)."""
    me_probs: NDArray[np.float32]
    """(N, 2)."""


@dataclass(frozen=True)
class Quality:
    """How good one file is on labelled photographs, each in [0, 1]."""

    dr_accuracy: float
    me_accuracy: float
    referable_auc: float | None
    """None where the labels hold one class only."""
    me_auc: float | None


@dataclass(frozen=True)
class Gate:
    """int8 against fp32 on the same photographs."""

    photographs: int
    fp32: Quality
    int8: Quality
    dr_agreement: float
    me_agreement: float

    @property
    def faults(self) -> list[str]:
        """What int8 falls short in; empty when it is accepted."""
        faults = []
        for name, allowed in (
            ("dr_accuracy", ACCURACY_LOSS), ("me_accuracy", ACCURACY_LOSS),
            ("referable_auc", AUC_LOSS), ("me_auc", AUC_LOSS),
        ):  # fmt: skip
            before, after = getattr(self.fp32, name), getattr(self.int8, name)
            if before is not None and before - after > allowed:
                faults.append(f"{name}: expected a fall of at most {allowed}, found {before:.4f} to {after:.4f}")
        for name in ("dr_agreement", "me_agreement"):
            if getattr(self, name) < AGREEMENT:
                faults.append(f"{name}: expected at least {AGREEMENT}, found {getattr(self, name):.4f}")
        return faults

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "accepted": not self.faults}

    def lines(self) -> list[str]:
        """The figures, for a person."""
        pairs = [(name, getattr(self.fp32, name), getattr(self.int8, name)) for name in asdict(self.fp32)]
        shown = [f"{name} {before:.4f} to {after:.4f}" for name, before, after in pairs if before is not None]
        return [
            f"int8 against fp32 on {self.photographs} photographs of valid:",
            f"  {', '.join(shown)}",
            f"  same DR grade {self.dr_agreement:.1%}, same ME risk {self.me_agreement:.1%}",
        ]


def judge(contract: Contract, photos: Sequence[Photo], fp32: Answers, int8: Answers) -> Gate:
    """Compare two files' decisions by the contract's rules, with each other and with the labels."""
    ours, theirs = (
        [decide(contract, dr, me) for dr, me in zip(a.dr_probs, a.me_probs, strict=True)] for a in (fp32, int8)
    )
    return Gate(
        len(photos),
        _quality(contract, photos, fp32, ours),
        _quality(contract, photos, int8, theirs),
        float(np.mean([a.dr_grade == b.dr_grade for a, b in zip(ours, theirs, strict=True)])),
        float(np.mean([a.me_risk == b.me_risk for a, b in zip(ours, theirs, strict=True)])),
    )


def _quality(contract: Contract, photos: Sequence[Photo], answers: Answers, decisions: list[Decision]) -> Quality:
    referable = [photo.dr_grade >= contract.referable_from for photo in photos]
    return Quality(
        float(np.mean([d.dr_grade == photo.dr_grade for d, photo in zip(decisions, photos, strict=True)])),
        float(np.mean([d.me_risk == photo.me_label for d, photo in zip(decisions, photos, strict=True)])),
        _auc(referable, [d.referable_prob for d in decisions]),
        _auc([bool(photo.me_label) for photo in photos], [float(me[1]) for me in answers.me_probs]),
    )


def _auc(truth: list[bool], score: list[float]) -> float | None:
    return float(roc_auc_score(truth, score)) if len(set(truth)) == 2 else None

"""What an epoch of training has added up so far."""

from __future__ import annotations

import math
from typing import NamedTuple


class Totals(NamedTuple):
    """Sums over an epoch's photographs; each head counts only those that have a label for it."""

    dr_loss: float = 0.0
    """Cross-entropy, weighted by grade."""
    dr_weights: float = 0.0
    """Sum of those weights."""
    dr_right: float = 0.0
    dr_labelled: float = 0.0
    me_loss: float = 0.0
    me_right: float = 0.0
    me_labelled: float = 0.0

    def loss(self, dr_weight: float, me_weight: float) -> float:
        """The training loss: the weighted sum of both heads' mean losses; a head without labels adds nothing."""
        heads = ((dr_weight, self.dr_loss, self.dr_weights), (me_weight, self.me_loss, self.me_labelled))
        return sum(weight * total / n for weight, total, n in heads if n)

    def figures(self) -> dict[str, float]:
        """Mean loss and accuracy of each head, such as ``dr_loss``; NaN if no photograph has a label for it."""
        return {
            "dr_loss": _mean(self.dr_loss, self.dr_weights),
            "me_loss": _mean(self.me_loss, self.me_labelled),
            "dr_accuracy": _mean(self.dr_right, self.dr_labelled),
            "me_accuracy": _mean(self.me_right, self.me_labelled),
        }


def _mean(total: float, n: float) -> float:
    return total / n if n else math.nan

"""The summary of a scoring run, counted while its rows are written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .agreement import Confusion
from .annotations import Annotation
from .contract import Contract
from .table import Row, utf8
from .wording import counted

REASONS_SHOWN = 8
"""Most frequent reasons of failure that are listed; the rest are only counted."""


@dataclass
class Summary:
    """Counts only, so that it stays small however many rows there are."""

    contract: Contract
    """The model's, to print from which probability on patients are referred."""
    listed: bool = False
    """Whether the table says who is referred."""
    novelty_listed: bool = False
    """Whether the table says which photographs are unfamiliar."""
    grades: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    first_failed: dict[str, str] = field(default_factory=dict)
    """The first file that failed for each reason."""
    me_risks: int = 0
    referable: int = 0
    referable_me: int = 0
    unfamiliar: int = 0
    first_unfamiliar: str = ""
    known: int = 0
    """Rows taken over from an earlier run."""
    dr: Confusion = field(default_factory=Confusion)
    me: Confusion = field(default_factory=Confusion)
    referral_dr: Confusion = field(default_factory=Confusion)
    referral_me: Confusion = field(default_factory=Confusion)
    """Of 0 and 1: whether it should be referred, by the true grade and by the contract's rule."""
    truths: int = 0
    """Annotated photographs that were scored."""
    unscored_truths: int = 0
    """Annotated photographs that could not be scored."""

    @property
    def scored(self) -> int:
        return self.grades.total()

    @property
    def failed(self) -> int:
        return self.reasons.total()

    def add(self, row: Row, *, known: bool, truth: Annotation | None) -> None:
        """Count one row."""
        self.known += known
        if row.prediction is None:
            self.reasons[row.error] += 1
            self.first_failed.setdefault(row.error, row.name)
            self.unscored_truths += truth is not None
            return
        self.grades[row.prediction.grade] += 1
        self.me_risks += row.prediction.me_risk
        self.referable += row.prediction.referable
        self.referable_me += row.prediction.referable_me
        if row.prediction.unfamiliar:
            self.unfamiliar += 1
            self.first_unfamiliar = self.first_unfamiliar or row.name
        self.truths += truth is not None
        if truth is not None and truth.dr_grade is not None:
            self.dr.add(truth.dr_grade, row.prediction.grade)
            should = truth.dr_grade >= self.contract.referable_from
            self.referral_dr.add(int(should), int(row.prediction.referable))
        if truth is not None and truth.me_grade is not None:
            self.me.add(truth.me_grade, row.prediction.me_risk)
            self.referral_me.add(truth.me_grade, int(row.prediction.referable_me))

    def lines(self, seconds: float) -> Iterator[str]:
        """Lines to print: counts, rate, failures by reason and, if there is truth, agreement with it.

        ``seconds`` is the duration of the run, for the rate.
        """
        fresh = self.scored + self.failed - self.known
        again = f", {self.known} of them in an earlier run" if self.known else ""
        yield f"scored {self.scored}{again}; failed {self.failed}; {fresh / max(seconds, 1e-9):.1f} per second"
        if self.scored:
            yield from self._found()
        for reason, count in self.reasons.most_common(REASONS_SHOWN):
            yield f"failed {count}: {reason} (such as {utf8(self.first_failed[reason])!r})"
        if len(self.reasons) > REASONS_SHOWN:
            yield f"... and {len(self.reasons) - REASONS_SHOWN} more reasons: see the column error"
        if self.unscored_truths:
            yield f"annotated, but not scored and so not compared: {self.unscored_truths}"
        if self.truths:
            yield ""
            graded = ""
            if not self.dr.total == self.me.total == self.truths:
                graded = f" ({self.dr.total} with a DR grade, {self.me.total} with an ME label)"
            yield f"against {counted(self.truths, 'annotation')}{graded}:"
        if self.dr.total:
            kappa = self.dr.quadratic_kappa()
            told = "undefined: only one grade occurs" if math.isnan(kappa) else f"{kappa:.4f}"
            yield f"DR accuracy {self.dr.accuracy():.4f}, quadratic weighted kappa {told}"
            yield from _grid("DR", self.dr)
        if self.me.total:
            yield f"ME accuracy {self.me.accuracy():.4f}"
            yield from _grid("ME", self.me)
        if self.dr.total:
            grade = self.contract.referable_from
            yield f"referral of DR grade {grade} or more: {_referral(self.referral_dr)}"
        if self.me.total:
            yield f"referral of ME risk: {_referral(self.referral_me)}"

    def _found(self) -> Iterator[str]:
        """What the model says about the photographs, without what it was never trained for."""
        untrained = self.contract.untrained_heads
        dr, me = (self.contract.thresholds[task].level for task in ("referable_dr", "referable_me"))
        to_refer = []
        if "dr" not in untrained:
            counts = ", ".join(f"{grade}: {self.grades[grade]}" for grade in sorted(self.grades))
            yield f"DR grades {counts}"
            to_refer.append(f"DR {_share(self.referable, self.scored)}, from a probability of {dr:.3f}")
        if "me" not in untrained:
            yield f"ME risk {_share(self.me_risks, self.scored)}"
            to_refer.append(f"ME {_share(self.referable_me, self.scored)}, from a probability of {me:.3f}")
        yield f"to refer{'' if self.listed else ' (which ones: --referral)'}: {'; '.join(to_refer)}"
        if self.contract.unfamiliar_from is not None:
            yield f"unfamiliar {_share(self.unfamiliar, self.scored)}{self._unfamiliar_ones()}"
        if self.contract.caution:
            yield f"Caution: {self.contract.caution}"

    def _unfamiliar_ones(self) -> str:
        if not self.unfamiliar:
            return ""
        which = "" if self.novelty_listed else "; which ones: --novelty"
        such = f"such as {utf8(self.first_unfamiliar)!r}{which}"
        return f": perhaps no retina, but counted above too; look at them before you use their answers ({such})"


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})"


def _referral(confusion: Confusion) -> str:
    ill, well = confusion.counts[1, 1] + confusion.counts[1, 0], confusion.counts[0, 0] + confusion.counts[0, 1]
    return f"sensitivity {_right(confusion.counts[1, 1], ill)}, specificity {_right(confusion.counts[0, 0], well)}"


def _right(count: int, total: int) -> str:
    return f"{count / total:.4f} ({count} of {total})" if total else "unknown (none annotated)"


def _grid(title: str, confusion: Confusion) -> Iterator[str]:
    yield f"{title} true down, predicted across"
    yield "      " + "".join(f"{grade:>7}" for grade in confusion.grades)
    for grade, counts in zip(confusion.grades, confusion.matrix(), strict=True):
        yield f"{grade:>6}" + "".join(f"{count:>7}" for count in counts)

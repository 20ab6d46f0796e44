"""What a model says about a split, beside the true labels, and what a contract decides from it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..runtime.contract import HEADS, Contract, Head, decide
from ..runtime.weighted_metrics import UNLABELLED, Floats, Indices, label_index
from .data import Photo

UNKNOWN = "unknown"
"""Name of the source of photographs whose annotations give none."""


@dataclass(frozen=True)
class Predictions:
    """A model's probabilities and the true labels of one split's N photographs, in the split's order.

    A label that was not given is ``UNLABELLED``; every figure of its head leaves the photograph out.
    """

    image_names: tuple[str, ...]
    paths: tuple[str, ...]
    dr_true: Indices
    """(N,) indices into the contract's dr_grades."""
    me_true: Indices
    """(N,) 0 or 1."""
    dr_probs: NDArray[np.float32]
    """(N, K) in [0, 1]."""
    me_probs: NDArray[np.float32]
    """(N, 2) in [0, 1]."""
    sources: tuple[str, ...]
    """Camera or collection of each photograph; an empty string if unknown."""
    patients: tuple[str, ...]
    """``Photo.patient_key`` of each photograph; if unknown, one of its own, whose name no patient has."""

    @classmethod
    def of(
        cls,
        photos: Sequence[Photo],
        dr_grades: Sequence[int],
        dr_probs: NDArray[np.float32],
        me_probs: NDArray[np.float32],
    ) -> Predictions:
        """Predictions for N annotated photographs.

        Args:
            photos: the photographs.
            dr_grades: (K,) the original grade of each DR index; those of the photographs are among them.
            dr_probs: (N, K) in [0, 1].
            me_probs: (N, 2) in [0, 1].
        """
        return cls(
            image_names=tuple(photo.image_name for photo in photos),
            paths=tuple(str(photo.path) for photo in photos),
            dr_true=np.array([label_index(photo.dr_grade, dr_grades) for photo in photos], np.int64),
            me_true=np.array([photo.me_index for photo in photos], np.int64),
            dr_probs=dr_probs,
            me_probs=me_probs,
            sources=tuple(photo.source for photo in photos),
            patients=tuple(photo.patient_key or f"\0{photo.image_name}" for photo in photos),
        )

    @property
    def named_sources(self) -> list[str]:
        """The sources in alphabetical order, UNKNOWN first; empty if all photographs are from one source."""
        names = sorted({name or UNKNOWN for name in self.sources}, key=lambda name: (name != UNKNOWN, name))
        return names if len(names) > 1 else []

    @property
    def labelled_heads(self) -> tuple[Head, ...]:
        """The heads for which at least one photograph has a label."""
        return tuple(head for head in HEADS if (self.true(head) != UNLABELLED).any())

    def labelled_patients(self, head: Head) -> int:
        """The number of patients with a photograph that has a label for the head."""
        return np.unique(np.array(self.patients)[self.true(head) != UNLABELLED]).size

    def true(self, head: Head) -> Indices:
        """The true labels of one head: (N,)."""
        return self.dr_true if head == "dr" else self.me_true

    def probs(self, head: Head) -> NDArray[np.float32]:
        """The probabilities of one head: (N, K) or (N, 2), in [0, 1]."""
        return self.dr_probs if head == "dr" else self.me_probs

    def without_labels(self, heads: Collection[Head]) -> Predictions:
        """The same predictions without labels for these heads, so that what they say is neither fitted nor judged."""
        none = np.full(len(self.paths), UNLABELLED)
        dr_true, me_true = (none if head in heads else self.true(head) for head in HEADS)
        return replace(self, dr_true=dr_true, me_true=me_true)

    def of_source(self, source: str) -> Predictions:
        """The photographs of one source, in the same order."""
        keep = [i for i, name in enumerate(self.sources) if (name or UNKNOWN) == source]
        return Predictions(
            tuple(self.image_names[i] for i in keep),
            tuple(self.paths[i] for i in keep),
            self.dr_true[keep],
            self.me_true[keep],
            self.dr_probs[keep],
            self.me_probs[keep],
            tuple(self.sources[i] for i in keep),
            tuple(self.patients[i] for i in keep),
        )


@dataclass(frozen=True)
class Decisions:
    """Predictions turned into decisions by a contract's rules; all arrays are (N,)."""

    dr_grades: tuple[int, ...]
    """The contract's: the original grade of each index."""
    dr_pred: Indices
    """Indices into dr_grades."""
    me_pred: Indices
    """0 or 1."""
    referable_true: Indices
    """0 or 1: whether DR is referable by the true grade; ``UNLABELLED`` without one."""
    referable_pred: Indices
    """0 or 1: whether DR is referable by the contract's rule."""
    referable_prob: Floats
    """Summed probability of the referable grades, in [0, 1]."""
    referable_me_pred: Indices
    """0 or 1: whether the ME risk is referable, by the contract's rule."""

    @classmethod
    def of(cls, p: Predictions, contract: Contract) -> Decisions:
        made = [decide(contract, dr, me) for dr, me in zip(p.dr_probs, p.me_probs, strict=True)]
        index_of = {grade: index for index, grade in enumerate(contract.dr_grades)}
        is_referable = np.array([grade >= contract.referable_from for grade in contract.dr_grades], np.int64)
        return cls(
            contract.dr_grades,
            np.array([index_of[d.grade] for d in made], np.int64),
            np.array([d.me_risk for d in made], np.int64),
            np.where(p.dr_true == UNLABELLED, UNLABELLED, is_referable[p.dr_true]),
            np.array([d.referable for d in made], np.int64),
            np.array([d.referable_prob for d in made], np.float64),
            np.array([d.referable_me for d in made], np.int64),
        )

    def pred(self, head: Head) -> Indices:
        """The predicted class of one head: (N,)."""
        return self.dr_pred if head == "dr" else self.me_pred

"""Deals labelled photographs to splits: a patient and all copies go to one, and every split gets the same mix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..runtime.contract import HEADS
from .data import Photo


class Kind(NamedTuple):
    """What some photographs have in common."""

    what: str
    value: object

    @property
    def is_label(self) -> bool:
        return self.what in HEADS and self.value is not None


def families(photos: Sequence[Photo], pairs: Iterable[tuple[int, int]]) -> list[list[Photo]]:
    """Photographs that belong in one split: of one patient, or linked by ``pairs`` of indices, also through others.

    A photograph of an unknown patient is alone, unless a pair links it. Families and their members are in the order of
    ``photos``.
    """
    leads_to = list(range(len(photos)))  # another member of the family; the last of such a chain leads to itself

    def end(index: int) -> int:
        while leads_to[index] != index:
            index = leads_to[index]
        return index

    known: dict[str, int] = {}
    same_patient = [(known.setdefault(p.patient_key, i), i) for i, p in enumerate(photos) if p.patient]
    for one, other in (*same_patient, *pairs):
        leads_to[end(other)] = end(one)
    found: dict[int, list[Photo]] = {}
    for index, photo in enumerate(photos):
        found.setdefault(end(index), []).append(photo)
    return list(found.values())


def deal(families: Sequence[Sequence[Photo]], shares: Mapping[str, float], seed: int) -> dict[str, list[Photo]]:
    """Deal whole families to splits, so that each split gets its share of all photographs and of every kind of them.

    The largest families come first, those of one size in random order. Each goes where the distance between the splits'
    counts and their shares of every kind grows least: iterative stratification (Sechidis et al., ECML PKDD 2011), for
    groups. The distance is Pearson's chi-square, except that it divides by one more than the share: where most kinds
    occur once, all would otherwise go to the largest split. A family with a grade or risk that the first split lacks
    goes there, since nothing can be learned of it otherwise.

    Args:
        families: those of ``families``.
        shares: of each split, above 0, together 1; the first is the one to train on.
        seed: of the order; the same arguments give the same splits.

    Returns:
        each split's photographs, ordered by their paths; a split may remain empty if there are few families.
    """
    kinds = [Counter(kind for photo in family for kind in _kinds(photo)) for family in families]
    total = sum(kinds, Counter[Kind]())
    dealt: dict[str, Counter[Kind]] = {split: Counter() for split in shares}
    splits: dict[str, list[Photo]] = {split: [] for split in shares}

    def growth(split: str, added: Counter[Kind]) -> float:
        """How much the split's part of the distance grows: (n - e)^2 / (e + 1), summed over kinds, with n + k for n."""
        have, share = dealt[split], shares[split]
        expected = {kind: share * total[kind] for kind in added}
        return sum(k * (2 * (have[kind] - expected[kind]) + k) / (expected[kind] + 1) for kind, k in added.items())

    first = next(iter(shares))
    shuffled = np.random.default_rng(seed).permutation(len(families))
    for index in sorted(shuffled, key=lambda i: -len(families[i])):
        added = kinds[index]
        is_new = any(kind.is_label and kind not in dealt[first] for kind in added)
        split = first if is_new else min(shares, key=lambda name: growth(name, added))
        dealt[split].update(added)
        splits[split] += families[index]
    return {split: sorted(photos, key=lambda photo: photo.path.as_posix()) for split, photos in splits.items()}


def _kinds(photo: Photo) -> tuple[Kind, ...]:
    """What a photograph counts as: one of its source, of its grade, of its risk, and of these three together."""
    return (
        Kind("source", photo.source),
        Kind("dr", photo.dr_grade),
        Kind("me", photo.me_label),
        Kind("all", (photo.source, photo.dr_grade, photo.me_label)),
    )

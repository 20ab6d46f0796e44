"""Deals labelled photographs to splits: a patient and all copies go to one, and every split gets the same mix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from .data import Photo


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

    The families with the largest part of a rare kind come first, others in random order. Each goes where the distance
    between the splits' counts and their shares of every kind grows least: iterative stratification (Sechidis et al.,
    ECML PKDD 2011), for groups. The distance is Pearson's chi-square, except that it divides by one more than the
    share: where most kinds occur once, all would otherwise go to the largest split.

    Args:
        families: those of ``families``.
        shares: of each split, above 0, together 1.
        seed: of the order; the same arguments give the same splits.

    Returns:
        each split's photographs, ordered by their paths; a split may remain empty if there are few families.
    """
    kinds = [Counter(kind for photo in family for kind in _kinds(photo)) for family in families]
    total = sum(kinds, Counter[Hashable]())
    dealt: dict[str, Counter[Hashable]] = {split: Counter() for split in shares}
    splits: dict[str, list[Photo]] = {split: [] for split in shares}

    def growth(split: str, added: Counter[Hashable]) -> float:
        """How much the split's part of the distance grows: (n - e)^2 / (e + 1), summed over kinds, with n + k for n."""
        have, share = dealt[split], shares[split]
        expected = {kind: share * total[kind] for kind in added}
        return sum(k * (2 * (have[kind] - expected[kind]) + k) / (expected[kind] + 1) for kind, k in added.items())

    shuffled = np.random.default_rng(seed).permutation(len(families))
    for index in sorted(shuffled, key=lambda i: -sum(k / total[kind] for kind, k in kinds[i].items())):
        added = kinds[index]
        split = min(shares, key=lambda name: growth(name, added))
        dealt[split].update(added)
        splits[split] += families[index]
    return {split: sorted(photos, key=lambda photo: photo.path.as_posix()) for split, photos in splits.items()}


def _kinds(photo: Photo) -> tuple[Hashable, ...]:
    """What a photograph counts as: one of its source, of its grade, of its risk, and of these three together."""
    labels = {"source": photo.source, "dr": photo.dr_grade, "me": photo.me_label}
    return (*labels.items(), tuple(labels.values()))

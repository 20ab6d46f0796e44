"""Counts and probabilities in words."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def percent(probability: float) -> str:
    """A probability as a percentage, never "0%" or "100%", so that no reader takes the model to be certain."""
    return ">99%" if probability > 0.99 else "<1%" if probability < 0.01 else f"{probability:.0%}"

"""Figures with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.floating]], NDArray[np.floating]]
"""From columns' means over photographs, (..., columns), to a figure, (...); for example the ratio of two columns."""
RESAMPLES = 2000
"""Bootstrap resamples for each interval."""


@dataclass(frozen=True)
class Interval:
    """A figure over photographs with its 95% interval; NaN where undefined."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def bootstrap(samples: NDArray[np.floating], of: Statistic) -> Interval:
    """The percentile bootstrap over photographs (Efron and Tibshirani, 1993, chapter 13), the same at every call.

    Args:
        samples: (photographs, columns), the measurements on each photograph.
        of: the figure. Resamples of which it is NaN are left out.
    """
    with np.errstate(invalid="ignore"):
        value = float(of(samples.mean(axis=0)))
        if len(samples) < 2:  # all resamples would be equal
            return Interval(value, np.nan, np.nan)
        rng = np.random.default_rng(0)
        drawn = rng.integers(len(samples), size=(RESAMPLES, len(samples)))
        figures = of(samples[drawn].mean(axis=1))
    known = figures[~np.isnan(figures)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
    return Interval(value, float(low), float(high))

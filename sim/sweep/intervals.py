"""Repeated measurements → mean, standard deviation and 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean, sample standard deviation, and the 95 % interval of the mean by Student's t with n − 1 degrees of freedom.

    With one measurement all but the mean are NaN, with none the mean, too.
    """

    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        """Summarise measurements, which are taken as independent and normal."""
        found = np.array(list(values), float)
        if len(found) < 2:
            return cls(float(found[0]) if len(found) else math.nan, math.nan, math.nan, math.nan)
        from scipy.stats import t

        mean, sd = float(found.mean()), float(found.std(ddof=1))
        half = float(t.ppf((1 + _CONFIDENCE) / 2, len(found) - 1)) * sd / math.sqrt(len(found))
        return cls(mean, sd, mean - half, mean + half)

    def named(self, name: str) -> dict[str, float]:
        """The four as columns of a table: ``name_mean`` …"""
        return {f"{name}_{part}": value for part, value in vars(self).items()}

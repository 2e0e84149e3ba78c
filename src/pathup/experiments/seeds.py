"""Figures of several seeds: their mean and spread, and whether two arms differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

__all__ = ["Difference", "difference", "holm", "mean_std"]


@dataclass(frozen=True)
class Difference:
    """What one arm has more than another, seed by seed.

    Attributes
    ----------
    mean
        Of the differences.
    low, high
        The 95 % interval of the mean, from Student's t; it assumes that differences are near to normal.
    p
        Of the paired t-test, two-sided; None where all differences are equal. With few seeds it finds large ones only.
    """

    mean: float
    low: float
    high: float
    p: float | None


def mean_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1)."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


def difference(values_S: np.ndarray, other_S: np.ndarray) -> Difference:
    """Two arms by the same seeds, at least two of them."""
    gaps = np.asarray(values_S, np.float64) - np.asarray(other_S, np.float64)
    mean, error = float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
    if error == 0:
        return Difference(mean, mean, mean, None)
    reach = float(stats.t.ppf(0.975, len(gaps) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(gaps) - 1))
    return Difference(mean, mean - reach, mean + reach, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """The p of several tests, corrected for their number (Holm 1979); where a test gave none, none."""
    there = [value for value in values if value is not None]
    corrected = iter(multipletests(there, method="holm")[1].tolist() if there else [])
    return [None if value is None else next(corrected) for value in values]

"""Summaries of raw numbers: median and spread, never a bare mean; intervals by bootstrap."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optimeter.measure.records.schema import Spread

RESAMPLES = 2000


def spread(values: Sequence[float]) -> Spread | None:
    """Median, 10th and 90th percentile, and how many values; None without values."""
    if len(values) == 0:
        return None
    p10, middle, p90 = np.quantile(np.asarray(values, dtype=float), (0.1, 0.5, 0.9))
    return Spread(median=float(middle), p10=float(p10), p90=float(p90), n=len(values))


def median(values: Sequence[float]) -> float:
    """The median. Raises ValueError without values."""
    if len(values) == 0:
        raise ValueError("a median needs at least one value")
    return float(np.quantile(np.asarray(values, dtype=float), 0.5))


def bootstrap(
    values: Sequence[float],
    statistic: Callable[..., Any] = np.median,
    confidence: float = 0.9,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(estimate, low, high): the statistic of `values` and its percentile bootstrap interval.

    `statistic` takes an array and an axis. Raises ValueError for fewer than two values, which have no interval.
    """
    sample = np.asarray(values, dtype=float)
    if sample.size < 2:
        raise ValueError("an interval needs at least two values")
    chosen = np.random.default_rng(seed).integers(0, sample.size, (resamples, sample.size))
    low, high = np.quantile(statistic(sample[chosen], axis=1), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(statistic(sample, axis=0)), float(low), float(high)

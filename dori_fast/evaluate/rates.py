"""Shares with confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import beta

from dori_fast.errors import UsageError


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> Interval:
    """The share hits / trials with its exact binomial interval (Clopper & Pearson, 1934).

    Raises:
        UsageError: no trials, or hits outside 0..trials.
    """
    if not 0 <= hits <= trials or trials == 0:
        raise UsageError(f"clopper_pearson: hits must be 0..trials > 0, got {hits} of {trials}")
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return Interval(hits / trials, low, high)

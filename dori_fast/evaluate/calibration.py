"""Calibration: decisions at a stated false-positive rate, from scores of clean prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dori_fast.errors import UsageError
from dori_fast.evaluate.rates import Interval, clopper_pearson


class Calibration:
    """Scores of n prompts that are known not to be memorized, to calibrate others by.

    A prompt's p-value is (1 + number of clean scores at least as high) / (n + 1) (conformal; Vovk
    et al., 2005). For a prompt that is exchangeable with the clean ones, it is below any rate r
    with probability at most r. The smallest p-value, the resolution, is 1 / (n + 1).

    Args:
        scores: finite scores [n] of clean prompts.
    """

    def __init__(self, scores: Sequence[float] | NDArray[np.float64]) -> None:
        self.scores = np.sort(np.asarray(scores, dtype=np.float64))
        if self.scores.ndim != 1 or not len(self.scores) or not np.isfinite(self.scores).all():
            raise UsageError("calibration: needs one or more finite scores of clean prompts")

    @property
    def resolution(self) -> float:
        """The smallest p-value, and false-positive rate, that n scores can give."""
        return 1 / (len(self.scores) + 1)

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """p-values [P] of scores [P]; NaN where a score is NaN or infinite."""
        found = np.asarray(scores, dtype=np.float64)
        higher = len(self.scores) - np.searchsorted(self.scores, found, side="left")
        p = (1 + higher) * self.resolution
        return np.where(np.isfinite(found), p, np.nan)

    def threshold(self, rate: float) -> float:
        """The score above which a prompt's p-value is at most ``rate``.

        Raises:
            UsageError: a rate outside 0..1 (both excluded), or below the resolution.
        """
        if not 0 < rate < 1:
            raise UsageError(f"calibration: the rate must be over 0 and under 1, got {rate}")
        allowed = math.floor(rate * (len(self.scores) + 1) * (1 + 1e-12)) - 1
        if allowed < 0:
            needed = math.ceil(1 / rate) - 1
            raise UsageError(
                f"calibration: a false-positive rate of {rate:g} needs at least {needed} clean"
                f" prompts, this calibration has {len(self.scores)}; use {self.resolution:.2g} or"
                " more, or calibrate on more prompts"
            )
        return float(self.scores[len(self.scores) - 1 - allowed])

    def false_positive_rate(self, rate: float, confidence: float = 0.95) -> Interval:
        """The share of clean scores above :meth:`threshold`, with its exact interval."""
        above = int((self.scores > self.threshold(rate)).sum())
        return clopper_pearson(above, len(self.scores), confidence)

"""Detection rates of scores: ROC, AUC, true-positive rate at a false-positive rate."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from dori_fast.errors import UsageError
from dori_fast.evaluate.rates import Interval, clopper_pearson

Scores = NDArray[np.float64]


def roc(positive: ArrayLike, negative: ArrayLike) -> tuple[Scores, Scores, Scores]:
    """ROC points (false-positive rate, true-positive rate, threshold), strictest threshold first.

    A prompt is flagged if its score is at least the threshold; the first point flags nothing.
    """
    pos, neg = _checked(positive, negative)
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([pos, neg]))[::-1]])
    pos_sorted, neg_sorted = np.sort(pos), np.sort(neg)
    flagged_pos = len(pos) - np.searchsorted(pos_sorted, thresholds, side="left")
    flagged_neg = len(neg) - np.searchsorted(neg_sorted, thresholds, side="left")
    return flagged_neg / len(neg), flagged_pos / len(pos), thresholds


def auc(positive: ArrayLike, negative: ArrayLike, confidence: float = 0.95) -> Interval:
    """Area under the ROC curve: probability that a positive outscores a negative; ties count half.

    The interval is Newcombe's method 5 (Statistics in Medicine 25, 2006, 559-573), which stays
    within 0..1 and keeps a width when the sample is separated perfectly.
    """
    pos, neg = _checked(positive, negative)
    m, n = len(pos), len(neg)
    ranks = rankdata(np.concatenate([pos, neg]))
    value = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
    z = norm.ppf(1 - (1 - confidence) / 2)

    def excess(theta: float) -> float:
        spread = 1 + ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return float((value - theta) ** 2 - z**2 * theta * (1 - theta) * spread / (m * n))

    # an estimate of 0 or 1 is itself a root; the bound is the other root
    tiny = 1e-12
    low = brentq(excess, 0.0, min(value, 1 - tiny)) if value > 0 else 0.0
    high = brentq(excess, max(value, tiny), 1.0) if value < 1 else 1.0
    return Interval(value, float(low), float(high))


def tpr_at_fpr(
    positive: ArrayLike,
    negative: ArrayLike,
    fpr: float = 0.01,
    *,
    rule: Literal["strict", "nearest"] = "strict",
    confidence: float = 0.95,
) -> Interval:
    """True-positive rate at a false-positive rate, with its exact interval given the threshold.

    Args:
        positive: scores of memorized prompts.
        negative: scores of others.
        fpr: false-positive rate, over 0 and under 1.
        rule: ``"strict"``, the last ROC point whose false-positive rate is below ``fpr`` (Wen et
            al.); or ``"nearest"``, the point whose rate is closest to ``fpr``, which may exceed it
            (Jeon et al., Ren et al.).
        confidence: confidence of the interval.
    """
    if not 0 < fpr < 1:
        raise UsageError(f"tpr_at_fpr: fpr must be over 0 and under 1, got {fpr}")
    if rule not in ("strict", "nearest"):
        raise UsageError(f"tpr_at_fpr: rule must be 'strict' or 'nearest', got {rule!r}")
    rates, hits, _ = roc(positive, negative)
    point = (
        np.flatnonzero(rates < fpr)[-1] if rule == "strict" else int(np.abs(rates - fpr).argmin())
    )
    trials = np.asarray(positive).size
    return clopper_pearson(round(float(hits[point]) * trials), trials, confidence)


def _checked(positive: ArrayLike, negative: ArrayLike) -> tuple[Scores, Scores]:
    pos, neg = (np.asarray(x, dtype=np.float64).ravel() for x in (positive, negative))
    if not len(pos) or not len(neg):
        raise UsageError("detection: needs at least one positive and one negative score")
    if not (np.isfinite(pos).all() and np.isfinite(neg).all()):
        raise UsageError("detection: scores must be finite; leave quarantined rows out")
    return pos, neg

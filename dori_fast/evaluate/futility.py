"""A bound below which a prompt's first seeds make a flag unlikely, with a stated miss rate."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from dori_fast.errors import NonFiniteError, UsageError


def futility_bound(per_seed: ArrayLike, threshold: float, keep: float) -> float:
    """The running mean below which a prompt may be dropped after any of its seeds but the last.

    Split conformal (Vovk et al., 2005) on the lowest running mean u of a prompt that the full test
    flags. Take n such prompts and the bound at the j-th smallest u, j = floor((1 - keep) (n + 1)):
    then another prompt, exchangeable with them, is dropped with probability at most j / (n + 1).
    One statistic covers all stages, so no union bound over them is needed.

    Args:
        per_seed: scores [N, S] of memorized prompts; those whose mean exceeds ``threshold`` count.
        threshold: threshold of the full test, on the mean over S seeds.
        keep: share of the full test's positives to keep, over 0 and under 1.

    Raises:
        UsageError: too few positives for ``keep``, fewer than two seeds, or a threshold of NaN.
        NonFiniteError: scores that are NaN or infinite, which would count as negatives.
    """
    scores = np.asarray(per_seed, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise UsageError("cascade: needs scores of two or more seeds per prompt")
    if not 0 < keep < 1:
        raise UsageError(f"cascade: the share to keep must be over 0 and under 1, got {keep}")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(axis=1).sum())
        raise NonFiniteError(
            f"cascade: {bad} of {len(scores)} prompts have scores that are NaN or Inf; leave"
            " quarantined rows out"
        )
    # not through _checks, which loads torch
    if math.isnan(threshold):
        raise UsageError(f"cascade: threshold must be a number, got {threshold}")
    positives = scores[scores.mean(axis=1) > threshold]
    rank = math.floor((1 - keep) * (len(positives) + 1) * (1 + 1e-12))
    if rank < 1:
        needed = math.ceil(1 / (1 - keep) * (1 - 1e-12)) - 1
        raise UsageError(
            f"cascade: keeping {keep:g} of the positives needs at least {needed} memorized prompts"
            f" that the full test flags, this calibration has {len(positives)}; keep less, or"
            " calibrate with more"
        )
    stages = np.arange(1, scores.shape[1])
    running = positives[:, :-1].cumsum(axis=1) / stages
    return float(np.sort(running.min(axis=1))[rank - 1])

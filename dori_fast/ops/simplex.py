"""Exact projection of many rows onto the capped simplex, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def capped_simplex_project(points: Tensor) -> Tensor:
    """Return the nearest points with entries in [0, 1] that sum to 1, along the last dimension.

    They are max(x - tau, 0) with tau such that the entries sum to 1 (Held, Wolfe & Crowder, 1974;
    Duchi et al., ICML 2008); no entry then exceeds 1. Sorting finds tau exactly, where
    UnlearnDiffAtk's code (Zhang et al., ECCV 2024, arXiv 2310.11868) bisects row by row.

    Args:
        points: [*, V] float32 or float64, V >= 1; entries of -inf get 0.

    Returns:
        [*, V] in the dtype of points. A row with NaN or +inf, or without a finite entry, is NaN.

    Raises:
        ValueError: V is 0.
    """
    if points.shape[-1] == 0:
        raise ValueError("capped_simplex_project: no entries, and 0 numbers never sum to 1")
    ordered = points.sort(dim=-1, descending=True).values.double()
    rank = torch.arange(1, points.shape[-1] + 1, device=points.device)
    excess = ordered.cumsum(-1) - 1
    support = ordered * rank > excess
    # a row without a nearest point has no support
    count = support.sum(-1, keepdim=True)
    tau = excess.gather(-1, (count - 1).clamp(min=0)) / torch.where(count > 0, count, torch.nan)
    return (points.double() - tau).clamp(min=0).to(points.dtype)

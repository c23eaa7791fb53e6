"""Choices of tokens as points of a simplex: a draw from one."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices int64 [*] drawn with probabilities ``weights`` [*, V], by numbers [*] in 0..1."""
    below = weights.double().cumsum(-1)
    at = (uniform.to(below) * below[..., -1]).unsqueeze(-1)
    found = torch.searchsorted(below, at, right=True).squeeze(-1)
    return found.clamp(max=weights.shape[-1] - 1)

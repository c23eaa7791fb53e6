"""Weights whose importance for one set of prompts is among the largest of their row."""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, accumulate_dtype, randn


def wanda_mask_reference(
    weight: Tensor, act_norm: Tensor, base_act_norm: Tensor | None, count: int
) -> Tensor:
    """Mark, per row, the `count` largest `|weight * act_norm|` that exceed `|weight * base|`.

    Args:
        weight: [O, I], any floating dtype.
        act_norm: [I], any floating dtype.
        base_act_norm: [I], or None for no comparison.
        count: how many per row, 0..I. Of equal scores the lowest column counts first; a NaN ranks
            above infinity, but does not exceed anything.

    Returns:
        bool [O, I]; scores are taken in float32 (float64 for float64 weight).
    """
    dtype = accumulate_dtype(weight.dtype)
    score = (weight.to(dtype) * act_norm.to(dtype)).abs()
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    mask = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order[:, :count], True)
    if base_act_norm is not None:
        mask &= score > (weight.to(dtype) * base_act_norm.to(dtype)).abs()
    return mask


def _inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (O, I, how many per row, whether there is a base).

    Few distinct values, so that rows are full of ties, and exact in every dtype, so that the order
    is the same in all of them.
    """
    rows, columns, count, has_base = size
    wide = accumulate_dtype(dtype)

    def norms() -> torch.Tensor:
        draws = randn((columns,), torch.float32, device, generator)
        return torch.exp2(draws.round()).to(wide)

    weight = (randn((rows, columns), torch.float32, device, generator) * 8).round() / 8
    return (weight.to(dtype), norms(), norms() if has_base else None, count)


SPECS = (
    OpSpec(
        name="wanda_mask",
        public="wanda_mask",
        reference=wanda_mask_reference,
        # Widths around the vector widths; none, one, some, all pruned; empty dimensions.
        sizes=(
            *((3, columns, 1 + columns // 10, 1) for columns in (1, 3, 63, 64, 257, 1000)),
            *((2, 65, 0, 0), (2, 65, 1, 0), (2, 65, 64, 1), (2, 65, 65, 0), (5, 320, 32, 0)),
            *((0, 8, 2, 1), (2, 0, 0, 1)),
        ),
        make_inputs=_inputs,
    ),
)

"""Weights whose importance for given prompts is among the largest of their row, in plain torch.

Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024)
prunes the weights with the smallest scores. Chavhan et al. ("Memorized Images in Diffusion Models
share a Subspace that can be Located and Deleted", 2024) prune those with the *largest* scores on
memorized prompts (target) if they exceed the scores of the empty prompt (base).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, accumulate_dtype, randn


def wanda_mask_reference(
    weight: Tensor, act_norm: Tensor, base_act_norm: Tensor | None, count: int
) -> Tensor:
    """Mark, per row, the `count` largest scores that exceed the base's score.

        score[o, i] = |weight[o, i] * act_norm[i]|
        mask[o, i]  = score is among the `count` largest of row o, and above the base's score

    Args:
        weight: [O, I], any floating dtype.
        act_norm: [I], any floating dtype.
        base_act_norm: [I], or None for no comparison.
        count: number of weights per row, 0..I. Of equal scores the lowest column counts first; a
            NaN ranks above infinity but exceeds nothing.

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
    """`size` is (O, I, count per row, 1 with a base).

    Values are few, so that rows are full of ties, and exact in every dtype, so that all dtypes have
    one order.
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
        # widths around the vector widths; none, one, some, all pruned; empty dimensions
        sizes=(
            *((3, columns, 1 + columns // 10, 1) for columns in (1, 3, 63, 64, 257, 1000)),
            *((2, 65, 0, 0), (2, 65, 1, 0), (2, 65, 64, 1), (2, 65, 65, 0), (5, 320, 32, 0)),
            *((0, 8, 2, 1), (2, 0, 0, 1)),
        ),
        make_inputs=_inputs,
    ),
)

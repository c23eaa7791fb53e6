"""A linear layer whose output neurons are scaled, in plain torch.

NeMo (Hintersdorf et al., NeurIPS 2024) blocks the value projections of cross-attention this way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, accumulate_dtype, randn
from dori_fast.reference.neuron_mask import neuron_mask_reference


def masked_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor
) -> Tensor:
    """Compute `y[b, t, o] = (sum over i of x[b, t, i] weight[o, i] + bias[o]) * scale[b, o]`.

    Args:
        x: [B, T, I], any floating dtype.
        weight: [O, I], same dtype.
        bias: [O], same dtype, or None.
        scale: [O] (shared by all samples) or [B, O], any floating dtype.

    Returns:
        [B, T, O] in the dtype of x: torch's linear, rounded, then the mask, rounded.
    """
    return neuron_mask_reference(F.linear(x, weight, bias), scale)


def _inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (B, T, I, O, rank of the scale, 1 with a bias)."""
    batch, tokens, inputs, outputs, rank, has_bias = size
    return (
        randn((batch, tokens, inputs), dtype, device, generator),
        randn((outputs, inputs), dtype, device, generator),
        randn((outputs,), dtype, device, generator) if has_bias else None,
        randn((batch, outputs)[2 - rank :], accumulate_dtype(dtype), device, generator),
    )


SPECS = (
    OpSpec(
        name="masked_linear",
        public="masked_linear",
        reference=masked_linear_reference,
        # sizes around the tiles (64 x 64 x 16 to 64), both ranks of the scale, with and without
        # bias, empty dimensions
        sizes=(
            *((2, 3, inputs, 5, 2, 1) for inputs in (1, 3, 31, 32, 65)),
            *((3, 25, 40, 70, 2, 0), (3, 50, 33, 64, 1, 1), (1, 77, 16, 17, 1, 0)),
            *((0, 3, 8, 4, 2, 1), (2, 0, 8, 4, 1, 0), (2, 3, 8, 0, 2, 1), (2, 3, 0, 4, 2, 1)),
        ),
        make_inputs=_inputs,
        uncanceled=lambda *inputs: tuple(None if x is None else x.abs() for x in inputs),
    ),
)

"""Statistics of each neuron over everything else, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, randn


def activation_stats_reference(x: Tensor) -> Tensor:
    """Compute mean, m2, mean magnitude, largest magnitude and sum of squares of each column.

    `m2[n] = sum_r (x[r, n] - mean[n])^2`. A NaN in a column makes all its statistics NaN.

    Args:
        x: [R, N], any floating dtype.

    Returns:
        float64 [5, N], the statistics in that order, zeros where R = 0; arithmetic in float64.
    """
    values = x.to(torch.float64)
    if values.shape[0] == 0:
        return values.new_zeros(5, values.shape[1])
    magnitudes = values.abs()
    mean = values.mean(0)
    m2 = (values - mean).square().sum(0)
    stats = (mean, m2, magnitudes.mean(0), magnitudes.amax(0), values.square().sum(0))
    return torch.stack(stats)


def _inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (R, N); means are away from 0, where rounding would be all that is left of them."""
    return (randn(size, torch.float32, device, generator).add(2).to(dtype),)


SPECS = (
    OpSpec(
        name="activation_stats",
        public="activation_stats",
        reference=activation_stats_reference,
        # Rows and widths around the unrolling, the blocks and the tiles; one row; nothing.
        sizes=(
            *((rows, 5) for rows in (1, 3, 7, 8, 9, 63, 64, 65, 200, 1030)),
            *((33, width) for width in (1, 16, 63, 64, 65, 320)),
            *((0, 8), (4, 0)),
        ),
        make_inputs=_inputs,
    ),
)

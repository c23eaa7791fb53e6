"""Statistics of each neuron over all rows, in plain torch.

NeMo (Hintersdorf et al., "Finding NeMo: Localizing Neurons Responsible For Memorization in
Diffusion Models", NeurIPS 2024) compares magnitudes with their mean and standard deviation. Wanda
(Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024) weighs
weights by the root of `sum_sq`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, randn


def activation_stats_reference(x: Tensor) -> Tensor:
    """Compute five statistics of each column; a NaN in a column makes all of them NaN.

        mean[n]     = 1/R sum_r x[r, n]
        m2[n]       = sum_r (x[r, n] - mean[n])^2
        abs_mean[n] = 1/R sum_r |x[r, n]|
        abs_max[n]  = max_r |x[r, n]|
        sum_sq[n]   = sum_r x[r, n]^2

    Args:
        x: [R, N], any floating dtype.

    Returns:
        float64 [5, N], the statistics in that order; zeros if R = 0. Arithmetic is in float64.
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
    """`size` is (R, N); means are near 2, since a mean near 0 would be all rounding."""
    return (randn(size, torch.float32, device, generator).add(2).to(dtype),)


SPECS = (
    OpSpec(
        name="activation_stats",
        public="activation_stats",
        reference=activation_stats_reference,
        # rows around the unrolling (8) and the block (64) of the CPU kernel and the block (128) of
        # Triton's; widths around the tiles (64); one row; nothing
        sizes=(
            *((rows, 5) for rows in (1, 3, 7, 8, 9, 63, 64, 65, 200, 1030)),
            *((33, width) for width in (1, 16, 63, 64, 65, 320)),
            *((0, 8), (4, 0)),
        ),
        make_inputs=_inputs,
    ),
)

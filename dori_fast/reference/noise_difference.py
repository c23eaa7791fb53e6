"""Norm of the difference between conditional and unconditional noise prediction, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, accumulate_dtype, randn


def noise_difference_reference(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    """Compute `norm[p, s] = || eps_cond[p, s] - eps_uncond[s] ||_2` over the flattened rest.

    Args:
        eps_cond: [P, S, *], any floating dtype.
        eps_uncond: [S, *] (shared by all prompts) or [P, S, *], same dtype.

    Returns:
        [P, S], float32 (float64 for float64 inputs); arithmetic in that dtype.
    """
    dtype = accumulate_dtype(eps_cond.dtype)
    difference = eps_cond.to(dtype) - eps_uncond.to(dtype)
    return torch.linalg.vector_norm(difference.unsqueeze(-1).flatten(2), dim=2)


def _inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (P, S, *rest)."""
    return (
        randn(size, dtype, device, generator),
        randn(size[1:], dtype, device, generator),
    )


SPECS = (
    OpSpec(
        name="noise_difference",
        public="noise_difference",
        reference=noise_difference_reference,
        # Lengths around the vector widths and the summation block; scalars; empty batches and rows.
        sizes=(
            *((2, 3, length) for length in (1, 3, 63, 64, 257, 1000, 4096, 4099, 9001)),
            *((1, 1, 4, 8, 8), (3, 2, 4, 5, 7), (2, 2), (0, 2, 16), (2, 0, 16), (2, 2, 0)),
        ),
        make_inputs=_inputs,
    ),
)

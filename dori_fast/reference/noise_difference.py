"""Norm and cosine of the difference of two noise predictions, in plain torch.

The norm at one timestep is the score of Wen et al., "Detecting, Explaining, and Mitigating
Memorization in Diffusion Models" (ICLR 2024), section 3.2. The cosine over channels is the other
half of the score of Asthana & Belagiannis (ICLR 2026).
"""

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


def noise_difference_step_reference(
    eps_cond: Tensor,
    eps_uncond: Tensor,
    latents: Tensor,
    guidance: float,
    alpha_bar: float,
    alpha_bar_prev: float,
) -> tuple[Tensor, Tensor]:
    """Compute the norm, and the DDIM step (eta 0) along the guided prediction.

        guided       = eps_uncond + guidance (eps_cond - eps_uncond)
        x_0          = (latents - sqrt(1 - alpha_bar) guided) / sqrt(alpha_bar)
        latents_prev = sqrt(alpha_bar_prev) x_0 + sqrt(1 - alpha_bar_prev) guided

    Song et al. (ICLR 2021), equation 12, along the prediction of Ho & Salimans (2022). The last two
    lines are collected by their terms, which keeps digits if alpha_bar is small.

    Args:
        eps_cond: [P, S, *], any floating dtype.
        eps_uncond: [S, *] (shared by all prompts) or [P, S, *], same dtype.
        latents: [P, S, *], same dtype.
        guidance, alpha_bar, alpha_bar_prev: numbers of the step.

    Returns:
        norm [P, S], float32 (float64 for float64 inputs), and latents_prev [P, S, *] in the dtype
        of latents, rounded once.
    """
    dtype = accumulate_dtype(eps_cond.dtype)
    cond, uncond, x_t = (x.to(dtype) for x in (eps_cond, eps_uncond, latents))
    guided = uncond + guidance * (cond - uncond)
    keep = (alpha_bar_prev / alpha_bar) ** 0.5
    add = (1 - alpha_bar_prev) ** 0.5 - keep * (1 - alpha_bar) ** 0.5
    latents_prev = keep * x_t + add * guided
    return noise_difference_reference(eps_cond, eps_uncond), latents_prev.to(latents.dtype)


def noise_cosine_reference(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    """Compute `mean over * of cos(eps_uncond[s], eps_cond[p, s] - eps_uncond[s])` over channels C.

    Args:
        eps_cond: [P, S, C, *], any floating dtype.
        eps_uncond: [S, C, *] (shared by all prompts) or [P, S, C, *], same dtype.

    Returns:
        [P, S], float32 (float64 for float64 inputs); arithmetic in that dtype. A vector shorter
        than 1e-8 counts as 1e-8 long.
    """
    dtype = accumulate_dtype(eps_cond.dtype)
    uncond = eps_uncond.to(dtype)
    difference = eps_cond.to(dtype) - uncond
    dim = 2 - eps_cond.dim()
    product = (uncond * difference).sum(dim)
    lengths = [torch.linalg.vector_norm(x, dim=dim).clamp_min(1e-8) for x in (uncond, difference)]
    return (product / (lengths[0] * lengths[1])).unsqueeze(-1).flatten(2).mean(2)


def _inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (P, S, *rest)."""
    return (
        randn(size, dtype, device, generator),
        randn(size[1:], dtype, device, generator),
    )


def _step_inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (P, S, *rest); the step is the first of 50 of Stable Diffusion 1.x."""
    latents = randn(size, dtype, device, generator)
    return (*_inputs(size, dtype, device, generator), latents, 7.5, 0.0058, 0.0068)


# Lengths around the vector widths, the 64 partial sums and the summation block (4096 float32 in
# C++, 2048 in Triton); scalars; empty batches and rows.
_SIZES = (
    *((2, 3, length) for length in (1, 3, 63, 64, 257, 1000, 4096, 4099, 9001)),
    *((1, 1, 4, 8, 8), (3, 2, 4, 5, 7), (2, 2), (0, 2, 16), (2, 0, 16), (2, 2, 0)),
)

SPECS = (
    OpSpec(
        name="noise_difference",
        public="noise_difference",
        reference=noise_difference_reference,
        sizes=_SIZES,
        make_inputs=_inputs,
    ),
    OpSpec(
        name="noise_difference_step",
        public="noise_difference_step",
        reference=noise_difference_step_reference,
        sizes=_SIZES,
        make_inputs=_step_inputs,
        uncanceled=lambda cond, uncond, latents, *rest: (
            cond.abs(),
            -uncond.abs(),
            -latents.abs(),
            *rest,
        ),
    ),
    OpSpec(
        name="noise_cosine",
        public="noise_cosine",
        reference=noise_cosine_reference,
        # positions around the vector widths and the block (1024 in Triton); one channel, many; none
        sizes=(
            *((2, 3, 4, positions) for positions in (1, 3, 63, 64, 257, 1000)),
            *((1, 1, 4, 8, 8), (3, 2, 16, 5, 7), (2, 2, 4), (2, 1, 1, 9)),
            *((0, 2, 4, 9), (2, 0, 4, 9), (2, 2, 0, 9), (2, 2, 4, 0)),
        ),
        make_inputs=_inputs,
    ),
)

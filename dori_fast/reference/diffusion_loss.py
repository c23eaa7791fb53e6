"""Noised latents and the mean squared error of a noise prediction, in plain torch.

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020), equations 4 and 14. Kowalczuk
et al., "Finding DoRI" (ICML 2026), minimize the loss over embeddings, fine-tuning over weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, accumulate_dtype, randn


def add_noise_reference(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Compute `x_t[p, b] = sqrt(alpha_bar[p, b]) x0[p] + sqrt(1 - alpha_bar[p, b]) eps[p, b]`.

    Args:
        x0: [P, *], any floating dtype.
        eps: [P, B, *], same dtype.
        alpha_bar: [P, B] in [0, 1], any floating dtype.

    Returns:
        [P, B, *] in the dtype of x0; arithmetic in float32 (float64 for float64 x0).
    """
    dtype = accumulate_dtype(x0.dtype)
    shape = (*alpha_bar.shape, *(1,) * (eps.dim() - 2))
    alpha_bar = alpha_bar.to(dtype).reshape(shape)
    x_t = alpha_bar.sqrt() * x0.to(dtype).unsqueeze(1) + (1 - alpha_bar).sqrt() * eps.to(dtype)
    return x_t.to(x0.dtype)


def diffusion_loss_reference(eps_pred: Tensor, eps: Tensor) -> Tensor:
    """Compute `loss[p] = mean over b and * of (eps_pred[p, b] - eps[p, b])^2`.

    Args:
        eps_pred: [P, B, *], any floating dtype.
        eps: [P, B, *], same dtype.

    Returns:
        [P], float32 (float64 for float64 inputs); arithmetic in that dtype.
    """
    dtype = accumulate_dtype(eps_pred.dtype)
    return (eps_pred.to(dtype) - eps.to(dtype)).square().flatten(1).mean(1)


def diffusion_loss_bwd_reference(rate: Tensor, eps_pred: Tensor, eps: Tensor) -> Tensor:
    """Compute `rate[p] * (eps_pred[p, b] - eps[p, b])`.

    Args:
        rate: [P], any floating dtype, gradient of the loss times 2 / (B * size of *).
        eps_pred: [P, B, *], any floating dtype.
        eps: [P, B, *], same dtype.

    Returns:
        [P, B, *] in the dtype of eps_pred; arithmetic in float32 (float64 for float64 eps_pred).
    """
    dtype = accumulate_dtype(eps_pred.dtype)
    rate = rate.to(dtype).reshape(-1, *(1,) * (eps_pred.dim() - 1))
    return (rate * (eps_pred.to(dtype) - eps.to(dtype))).to(eps_pred.dtype)


def _noise_inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (P, B, *rest)."""
    alpha_bar = torch.rand(size[:2], generator=generator)
    return (
        randn((size[0], *size[2:]), dtype, device, generator),
        randn(size, dtype, device, generator),
        alpha_bar.to(device=device, dtype=accumulate_dtype(dtype)),
    )


def _loss_inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (P, B, *rest)."""
    return randn(size, dtype, device, generator), randn(size, dtype, device, generator)


def _bwd_inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (P, B, *rest)."""
    rate = randn((size[0],), accumulate_dtype(dtype), device, generator)
    return (rate, *_loss_inputs(size, dtype, device, generator))


# Lengths around the vector widths, the 64 partial sums and the summation block (4096 float32 in
# C++, 2048 in Triton); scalars; empty batches and rows.
_SIZES = (
    *((2, 3, length) for length in (1, 3, 63, 64, 257, 1000, 4096, 4099, 9001)),
    *((1, 1, 4, 8, 8), (3, 2, 4, 5, 7), (2, 2), (0, 2, 16), (2, 0, 16), (2, 2, 0)),
)

SPECS = (
    OpSpec(
        name="add_noise",
        public="add_noise",
        reference=add_noise_reference,
        sizes=_SIZES,
        make_inputs=_noise_inputs,
        uncanceled=lambda x0, eps, alpha_bar: (x0.abs(), eps.abs(), alpha_bar),
    ),
    OpSpec(
        name="diffusion_loss",
        public="diffusion_loss",
        reference=diffusion_loss_reference,
        sizes=_SIZES,
        make_inputs=_loss_inputs,
    ),
    OpSpec(
        name="diffusion_loss_bwd",
        public="diffusion_loss",
        reference=diffusion_loss_bwd_reference,
        sizes=_SIZES,
        make_inputs=_bwd_inputs,
    ),
)

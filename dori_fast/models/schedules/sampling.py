"""From noise to clean latents: deterministic DDIM with classifier-free guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dori_fast.models.text.conditions import TextCondition

if TYPE_CHECKING:
    from dori_fast.models.denoiser import Denoiser


@torch.no_grad()
def denoise(
    model: Denoiser, condition: TextCondition, latents: Tensor, *, steps: int, guidance: float
) -> Tensor:
    """Clean latents [P, S, C, H, W] from noise of the same shape.

    eps = eps_uncond + guidance (eps_cond - eps_uncond) (Ho & Salimans, 2022, arXiv 2207.12598).
    """
    timesteps, empty = model.timesteps(steps), model.unconditional_for(condition)
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
        eps = model.epsilon(condition, latents, t)
        if guidance != 1.0:
            eps_uncond = model.epsilon(empty, latents, t)
            eps = eps_uncond + guidance * (eps - eps_uncond)
        latents = model.schedule.step(eps, latents, t, t_prev).to(model.dtype)
    return latents

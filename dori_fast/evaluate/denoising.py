"""The training loss of a model on held-out images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast._checks import require_finite
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser
from dori_fast.models.probes import prediction
from dori_fast.models.text.prompts import list_of_str
from dori_fast.ops import add_noise, diffusion_loss


@torch.no_grad()
def held_out_loss(
    model: Denoiser,
    prompts: Sequence[str],
    images: Tensor | NDArray[np.uint8],
    *,
    draws: int = 20,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Mean squared error of the network's output: epsilon, velocity or sample.

    Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020), equation 14. Models with
    the same schedule see the same timesteps, uniform over it, and the same noise.

    Args:
        model: the denoiser, plain or masked.
        prompts: P held-out prompts.
        images: uint8 [P, H, W, 3], their images.
        draws: draws of timestep and noise per pair.
        seed: random seed of all draws.

    Returns:
        float64 [P], the mean over each pair's draws.

    Raises:
        UsageError: not one prompt per image, no draws, or no autoencoder.
        NonFiniteError: latents or losses are NaN or infinite.
    """
    prompts = list_of_str("held_out_loss", prompts)
    if len(images) != len(prompts) or len(prompts) == 0 or draws < 1:
        raise UsageError(
            f"held_out_loss: {len(images)} images, {len(prompts)} prompts, {draws} draws; needs"
            " one prompt for each image, and a draw"
        )
    x_0, condition = model.latents(torch.as_tensor(np.array(images))), model.encode(prompts)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(prompts), draws)
    timesteps = torch.randint(len(model.alphas_cumprod), shape, generator=generator)
    noise = torch.randn(*shape, *model.latent_shape, generator=generator).to(x_0)
    x_t = add_noise(x_0, noise, model.alphas_cumprod[timesteps].to(model.device))
    output = prediction(model, condition, x_t, timesteps)
    target = model.schedule.target(x_0, noise, timesteps).to(output.dtype)
    losses = diffusion_loss(output, target).double().cpu()
    require_finite("held_out_loss", "losses", losses, model.dtype)
    return np.asarray(losses.numpy())

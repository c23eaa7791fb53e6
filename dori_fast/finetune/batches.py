"""What the weights are trained on: groups of pictures with texts, and their diffusion loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dori_fast.models import Denoiser
from dori_fast.ops import add_noise, diffusion_loss


@dataclass(frozen=True)
class Group:
    """N samples whose mean loss counts with one weight.

    Attributes:
        x_0: [N, C, H, W] clean latents.
        text: [N, T, D] embeddings.
        weight: of their mean loss.
    """

    x_0: Tensor
    text: Tensor
    weight: float


def backward(
    model: Denoiser,
    groups: Mapping[str, Group],
    generator: torch.Generator,
    *,
    at_once: int,
    autocast: torch.dtype | None,
) -> dict[str, Tensor]:
    """Add to the weights' gradients that of the sum of weighted mean losses.

        loss = sum over groups of weight * mean_n || target_n - f(x_t_n, t_n, text_n) ||^2

    where f is the network and target what it was trained to answer, be it epsilon, v or the
    sample; the square is a mean over a latent's numbers. Each sample has one timestep, uniform
    over the schedule, and one noise, drawn on the CPU in float32.

    Args:
        model: whose weights require gradients.
        groups: by name.
        generator: on the CPU, of timesteps and noise.
        at_once: samples per forward pass; the gradients of all passes add up.
        autocast: lower precision of the forward pass, or None.

    Returns:
        The mean loss of each group, scalars on the model's device.
    """
    x_0 = torch.cat([group.x_0 for group in groups.values()])
    text = torch.cat([group.text for group in groups.values()])
    counts = [len(group.x_0) for group in groups.values()]
    rates = [group.weight / count for group, count in zip(groups.values(), counts, strict=True)]
    shares = torch.tensor(rates, dtype=x_0.dtype).repeat_interleave(torch.tensor(counts))
    shares = shares.to(x_0.device)
    timesteps = torch.randint(len(model.alphas_cumprod), (len(x_0),), generator=generator)
    noise = torch.randn(x_0.shape, generator=generator).to(x_0)
    losses = []
    for rows in torch.arange(len(x_0)).split(at_once):
        loss = _loss(model, x_0[rows], text[rows], timesteps[rows], noise[rows], autocast)
        (loss * shares[rows]).sum().backward()
        losses.append(loss.detach())
    parts = torch.cat(losses).split(counts)
    return {name: part.mean() for name, part in zip(groups, parts, strict=True)}


def _loss(
    model: Denoiser,
    x_0: Tensor,
    text: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    autocast: torch.dtype | None,
) -> Tensor:
    """Losses [N] of N samples, one draw each."""
    noise, draws = noise.unsqueeze(1), timesteps.unsqueeze(1)
    alpha_bar = model.alphas_cumprod[draws].to(x_0.device)
    x_t = add_noise(x_0, noise, alpha_bar).squeeze(1)
    with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
        answer = model.engine.plain(x_t, timesteps, text).unsqueeze(1)
    return diffusion_loss(answer.to(x_0.dtype), model.schedule.target(x_0, noise, draws))

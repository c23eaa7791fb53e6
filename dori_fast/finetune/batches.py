"""Training batches: groups of images with texts, and their diffusion loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dori_fast._checks import to_device
from dori_fast.models import Denoiser
from dori_fast.ops import add_noise, diffusion_loss


@dataclass(frozen=True)
class Group:
    """N samples whose mean loss has one weight.

    Attributes:
        x_0: [N, C, H, W] clean latents, the training target.
        text: [N, T, D] embeddings.
        weight: weight of the mean loss.
        seen: [N, C, H, W] clean latents that are noised instead of ``x_0``, or None.
        first: smallest timestep that is drawn. With ``seen`` it must leave enough noise for
            ``seen`` to pass for ``x_0``.
        teacher: model whose outputs replace the schedule's targets, or None.
    """

    x_0: Tensor
    text: Tensor
    weight: float
    seen: Tensor | None = None
    first: int = 0
    teacher: Denoiser | None = None


def backward(
    model: Denoiser,
    groups: Mapping[str, Group],
    generator: torch.Generator,
    *,
    at_once: int,
    autocast: torch.dtype | None,
) -> dict[str, Tensor]:
    """Add the gradient of the sum of weighted mean losses to the weights' gradients.

        loss = sum over groups of weight * mean_n || target_n - f(x_t_n, t_n, text_n) ||^2

    where f is the network and target its prediction target: epsilon, velocity or sample. The
    square is a mean over the values of a latent. Each sample has one timestep, uniform over the
    schedule from its group's first one, and one noise, drawn on the CPU in float32. If a group has
    ``seen``, the network is shown ``seen`` noised but must predict the target of x_0; the
    difference is added to the noise.

    Args:
        model: the model to train; its weights require gradients.
        groups: the groups by name.
        generator: CPU generator of timesteps and noise.
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
    shares = to_device(shares, x_0.device)
    last = len(model.alphas_cumprod)

    def alphas(timesteps: Tensor) -> Tensor:
        return to_device(model.alphas_cumprod[timesteps].to(x_0.dtype), x_0.device)

    drawn = [
        torch.randint(group.first, last, (len(group.x_0),), generator=generator)
        for group in groups.values()
    ]
    timesteps = torch.cat(drawn)
    noise = to_device(torch.randn(x_0.shape, generator=generator), x_0.device).to(x_0)
    for group, own, part in zip(groups.values(), drawn, noise.split(counts), strict=True):
        if group.seen is not None:
            alpha_bar = alphas(own).view(-1, 1, 1, 1)
            part += (alpha_bar / (1 - alpha_bar)).sqrt() * (group.seen - group.x_0)
    draws = timesteps.unsqueeze(1)
    x_t = add_noise(x_0, noise.unsqueeze(1), alphas(draws)).squeeze(1)
    target = model.schedule.target(x_0, noise.unsqueeze(1), draws)
    of_group = torch.arange(len(x_0)).split(counts)

    def output(network: Denoiser, rows: Tensor) -> Tensor:
        with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
            predicted = network.engine.plain(x_t[rows], timesteps[rows], text[rows])
        return predicted.unsqueeze(1).to(x_0.dtype)

    for group, own in zip(groups.values(), of_group, strict=True):
        if group.teacher is not None:
            with torch.no_grad():
                for rows in own.split(at_once):
                    target[rows] = output(group.teacher, rows)
    losses = []
    for rows in torch.arange(len(x_0)).split(at_once):
        loss = diffusion_loss(output(model, rows), target[rows])
        (loss * shares[rows]).sum().backward()
        losses.append(loss.detach())
    parts = torch.cat(losses).split(counts)
    return {name: part.mean() for name, part in zip(groups, parts, strict=True)}

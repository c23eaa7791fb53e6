"""Conversion between latents and images, through a model's image autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError


def decode(vae: Any, latents: Tensor, batch: int) -> Tensor:
    """uint8 [N, H, W, 3] on the CPU from scaled latents [N, C, h, w], rounded as in diffusers."""
    images = []
    for chunk in latents.split(batch):
        decoded = vae.decode(chunk.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        unit = (decoded.float() / 2 + 0.5).clamp(0, 1)
        images.append((unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return torch.cat(images)


def encode(vae: Any, images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Scaled latents [N, C, h, w] of images, uint8 [N, H, W, 3]: the posterior mean, no noise.

    Images are encoded one by one, so that no latent depends, to the bit, on its neighbors.

    Raises:
        UsageError: the images are not uint8 [N, H, W, 3].
    """
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UsageError(
            f"latents: images must be uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}"
        )
    latents = []
    for chunk in images.split(1):
        unit = chunk.permute(0, 3, 1, 2).to(device, dtype) / 127.5 - 1
        mean = vae.encode(unit, return_dict=False)[0].mean
        latents.append(mean * vae.config.scaling_factor)
    return torch.cat(latents)

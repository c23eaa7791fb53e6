"""Stable Diffusion 1.4's architecture with random weights: its cost without its download."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import dori_fast as df

UNET_WIDTH, LATENT_SIDE, TEXT_LAYERS = 320, 64, 12
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


def random_weights(build: Callable[[], Any], dtype: torch.dtype, device: str) -> Any:
    """A module with cheaply drawn weights, each scaled by its fan-in."""
    with torch.device("meta"):
        module = build()
    module = module.to(dtype).to_empty(device=device)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if not value.is_floating_point():
            # the text encoder's position ids
            value.data.copy_(torch.arange(value.numel()).reshape(value.shape))
        elif value.ndim == 1:
            value.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            value.data.normal_(0, value[0].numel() ** -0.5)
    return module


def random_pipeline(
    dtype: torch.dtype,
    device: str,
    *,
    unet_width: int = UNET_WIDTH,
    latent_side: int = LATENT_SIDE,
    text_layers: int = TEXT_LAYERS,
    with_vae: bool = False,
) -> SimpleNamespace:
    """A pipeline for :func:`dori_fast.load`; its weights depend on the device only.

    A smaller `unet_width` (a multiple of 32) or `latent_side` keeps every layer of the UNet but
    makes it cheap. Without `with_vae` the VAE stays on the meta device and has no weights.
    """
    torch.manual_seed(0)
    width = unet_width
    unet = {
        "sample_size": latent_side,
        "block_out_channels": (width, 2 * width, 4 * width, 4 * width),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }
    text = CLIPTextConfig(**_TEXT, num_hidden_layers=text_layers)
    with torch.device("meta"):
        vae = AutoencoderKL(**_VAE)
    if with_vae:
        vae = random_weights(lambda: AutoencoderKL(**_VAE), dtype, device)
    return SimpleNamespace(
        unet=random_weights(lambda: UNet2DConditionModel(**unet), dtype, device),
        text_encoder=random_weights(lambda: CLIPTextModel(text), dtype, device),
        # the embedded model has CLIP's own vocabulary
        tokenizer=CLIPTokenizer.from_pretrained(df.demo.path() / "tokenizer"),
        vae=vae,
        # the scheduler of SD 1.4, which differs from the detectors'
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
    )

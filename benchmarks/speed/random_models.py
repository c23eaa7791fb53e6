"""Architectures of Stable Diffusion with random weights: their cost without their download."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

import dori_fast as df

UNET_WIDTH, LATENT_SIDE, TEXT_LAYERS = 320, 64, 12
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_TEXT_2 = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}
# name: whether it has SDXL's topology, and the sizes other than the real ones
RANDOM: dict[str, tuple[bool, dict[str, int]]] = {
    "sd14": (False, {}),
    "sd14-narrow": (False, {"unet_width": 32, "latent_side": 16, "text_layers": 1}),
    "sdxl": (True, {}),
    "sdxl-narrow": (True, {"unet_width": 32, "latent_side": 16, "text_layers": 1, "depth": 2}),
}


def random_model(
    name: str, dtype: str, device: str, *, with_vae: bool = False, **how: Any
) -> df.Denoiser:
    """A model of :data:`RANDOM`, or any other that :func:`dori_fast.load` opens.

    `how` are options of :func:`dori_fast.load`.
    """
    if name not in RANDOM:
        return df.load(name, dtype=dtype, device=device, **how)
    pipe = pipeline_of(name, getattr(torch, dtype), device, with_vae=with_vae)
    return df.load(laid_out(pipe, how), dtype=dtype, device=device, **how)


def laid_out(pipe: Any, how: dict[str, Any]) -> Any:
    """The pipeline in the memory layout that the options ask for: its owner chooses it."""
    if how.get("channels_last") is not True:
        return pipe
    other = copy.copy(pipe)
    other.unet = copy.deepcopy(pipe.unet).to(memory_format=torch.channels_last)
    return other


def pipeline_of(name: str, dtype: torch.dtype, device: str, *, with_vae: bool = False) -> Any:
    """The pipeline of a name in :data:`RANDOM`."""
    xl, sizes = RANDOM[name]
    build = random_pipeline_xl if xl else random_pipeline
    return build(dtype, device, with_vae=with_vae, **sizes)


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
) -> Any:
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
    return StableDiffusionPipeline(
        unet=random_weights(lambda: UNet2DConditionModel(**unet), dtype, device),
        text_encoder=random_weights(lambda: CLIPTextModel(text), dtype, device),
        # the embedded model has CLIP's own vocabulary
        tokenizer=CLIPTokenizer.from_pretrained(df.demo.path() / "tokenizer"),
        vae=_random_vae(width, dtype, device, with_vae),
        # the scheduler of SD 1.4, which differs from the detectors'
        scheduler=PNDMScheduler(**_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def random_pipeline_xl(
    dtype: torch.dtype,
    device: str,
    *,
    unet_width: int = UNET_WIDTH,
    latent_side: int = 2 * LATENT_SIDE,
    text_layers: int | None = None,
    depth: int = 10,
    with_vae: bool = False,
) -> Any:
    """SDXL's topology; arguments as in :func:`random_pipeline`.

    `depth` is the number of layers of the deepest transformers; `text_layers` applies to both
    encoders, which by default have 12 and 32.
    """
    torch.manual_seed(0)
    width = unet_width
    unet = {
        "sample_size": latent_side,
        "block_out_channels": (width, 2 * width, 4 * width),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, min(2, depth), depth),
        "attention_head_dim": tuple(max(1, width * n // 64) for n in (1, 2, 4)),
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    }
    first = CLIPTextConfig(**_TEXT, num_hidden_layers=text_layers or 12)
    second = CLIPTextConfig(**_TEXT_2, num_hidden_layers=text_layers or 32)
    tokenizer = CLIPTokenizer.from_pretrained(df.demo.path() / "tokenizer")
    return StableDiffusionXLPipeline(
        unet=random_weights(lambda: UNet2DConditionModel(**unet), dtype, device),
        text_encoder=random_weights(lambda: CLIPTextModel(first), dtype, device),
        text_encoder_2=random_weights(lambda: CLIPTextModelWithProjection(second), dtype, device),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        vae=_random_vae(width, dtype, device, with_vae, scaling_factor=0.13025, force_upcast=True),
        scheduler=PNDMScheduler(**_NOISE),
    )


def _random_vae(width: int, dtype: torch.dtype, device: str, real: bool, **other: Any) -> Any:
    """An autoencoder that is as narrow as the UNet; on the meta device if it is never used."""
    channels = min(128, 4 * width // 10 // 32 * 32 or 32)
    config = {
        **_VAE,
        "block_out_channels": (channels, 2 * channels, 4 * channels, 4 * channels),
        **other,
    }
    if real:
        return random_weights(lambda: AutoencoderKL(**config), dtype, device)
    with torch.device("meta"):
        return AutoencoderKL(**config)

"""A Stable Diffusion XL with random weights, small enough to build and run in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_model import _text_encoder, _vae, byte_tokenizer

WIDTH, POOLED = 64, 24


def save_tiny_sdxl(directory: Path, seed: int = 0, **pipeline_options: Any) -> Path:
    """Write a diffusers SDXL directory: 8x8 latents, text of width 32 + 32, pooled width 24."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = _text_encoder(len(byte_tokenizer())).config
        config.projection_dim = POOLED
        pipe = StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(config),
            text_encoder_2=CLIPTextModelWithProjection(config),
            tokenizer=byte_tokenizer(),
            tokenizer_2=byte_tokenizer(pad_token="!</w>"),
            unet=tiny_unet(),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            **pipeline_options,
        )
    pipe.save_pretrained(directory)
    return directory


def tiny_unet(**overrides: Any) -> UNet2DConditionModel:
    """SDXL's topology: no attention in the first block, transformers of growing depth."""
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 8,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": POOLED + 6 * 8,
    }
    return UNet2DConditionModel(**(config | overrides))

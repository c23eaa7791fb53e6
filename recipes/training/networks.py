"""The untrained networks and the noise schedule: a small Stable Diffusion 1.x layout."""

from __future__ import annotations

from typing import Any, TypeAlias

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from recipes.training.tokenizer import MAX_LENGTH

# diffusers imports its classes lazily, so type checkers see empty modules
Autoencoder: TypeAlias = Any
Pipeline: TypeAlias = Any
Scheduler: TypeAlias = Any
Unet: TypeAlias = Any

TEXT_WIDTH = 48
END_OF_TEXT = 49_407


def new_unet() -> Unet:
    """3.3 M parameters; cross-attention at 16x16, 8x8 and in the middle, two heads everywhere.

    diffusers' `attention_head_dim` of this class is the number of heads (as in SD 1.x configs).
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(48, 96, 96),
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )


def new_text_encoder() -> nn.Module:
    """2.4 M parameters, almost all of them CLIP's 49,408 token embeddings."""
    encoder: nn.Module = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=END_OF_TEXT + 1,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=END_OF_TEXT - 1,
            eos_token_id=END_OF_TEXT,
            pad_token_id=1,
        )
    )
    return encoder


def new_vae() -> Autoencoder:
    """An untrained autoencoder of 0.77 M parameters: a factor of 4 in each direction."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        sample_size=64,
    )


def new_scheduler() -> Scheduler:
    """SD 1.x's schedule, predicting the clean latents ("sample")."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )

"""Tiny autoencoders of every supported class, and what diffusers' own pipelines do with them."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    ConsistencyDecoderVAE,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    VQModel,
)

import dori_fast as df

PROMPT = "a cup of coffee"
MOMENTS = {"latents_mean": [-1.6, 1.9, -1.4, 2.5], "latents_std": [8.5, 5.9, 6.5, 5.2]}
PIPELINES = {
    "sd": (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline),
    "xl": (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline),
}


def kl(**changes):
    config = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return AutoencoderKL(**(config | changes))


def tiny(**changes):
    config = {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    }
    return AutoencoderTiny(**(config | changes))


def asymmetric(**changes):
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "down_block_out_channels": (8, 16),
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "up_block_out_channels": (12, 24),
        "norm_num_groups": 4,
    }
    return AsymmetricAutoencoderKL(**(config | changes))


def consistency():
    return ConsistencyDecoderVAE(
        encoder_block_out_channels=(8, 16),
        encoder_down_block_types=("DownEncoderBlock2D",) * 2,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=4,
        encoder_out_channels=4,
        decoder_block_out_channels=(8, 8),
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
        decoder_layers_per_block=1,
        decoder_norm_num_groups=4,
    )


def vq(**changes):
    config = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "num_vq_embeddings": 16,
        "norm_num_groups": 4,
    }
    return VQModel(**(config | changes))


def certain(vae):
    """The autoencoder with a posterior so narrow that a sample is its mean."""
    if not isinstance(vae, (AutoencoderTiny, VQModel)):
        last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
        with torch.no_grad():
            last.weight[4:] = 0
            last.bias[4:] = -1e4
    return vae


def overflowing(vae):
    """The autoencoder with activations beyond float16's largest number, but not float32's."""
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(2e4)
        vae.encoder.conv_in.weight.mul_(2e5)
    return certain(vae)


def stock(root, kind, dtype=torch.float32, image_to_image=False):
    options = {"add_watermarker": False} if kind == "xl" else {"safety_checker": None}
    if not (root / "vae").is_dir():
        options["vae"] = None
    pipeline = PIPELINES[kind][image_to_image]
    pipe = pipeline.from_pretrained(root, torch_dtype=dtype, local_files_only=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both(root, kind, dtype=torch.float32):
    """The model from files and in memory."""
    yield "files", df.load(root, device="cpu", dtype=dtype, batch_size=2)
    yield "memory", df.load(stock(root, kind, dtype), batch_size=2)


def their_latents(root, kind, images, dtype):
    """Clean latents of the image-to-image pipeline, without the noise that it adds."""
    pipe = stock(root, kind, dtype, image_to_image=True)
    unit = pipe.image_processor.preprocess(images.numpy().astype(np.float32) / 255)
    generator, timestep = torch.Generator().manual_seed(0), torch.tensor([0])
    pipe.scheduler.alphas_cumprod = torch.ones(1000)
    return pipe.prepare_latents(unit, timestep, len(images), 1, dtype, "cpu", generator)


def their_image(root, kind, dtype, latents):
    """The pipeline's image from given clean latents: its last step keeps what it was given."""
    pipe = stock(root, kind, dtype)

    def given(pipe, step, timestep, found):
        return {"latents": latents}

    found = pipe(
        PROMPT,
        num_inference_steps=1,
        guidance_scale=1.0,
        height=16,
        width=16,
        output_type="np",
        callback_on_step_end=given,
    ).images
    return (found * 255).round().astype(int)
